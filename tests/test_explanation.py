"""From a name, a recipe or nothing to scores, and the reason why."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import problems
from whence import explanation
from whence.curvature.cg import CG
from whence.curvature.exact import Exact
from whence.errors import Stale, UnknownName
from whence.explanation import choose, exact_cost, explain, fit
from whence.methods.influence import Influence


def test_small_problems_are_explained_exactly_and_the_report_says_why():
    case = problems.multinomial()
    scores = explain(case.problem, case.queries)
    expected = Influence(Exact()).fit(case.problem).scores(case.queries)
    assert np.array_equal(scores.values, expected.values)
    assert scores.measurement.name == "margin"
    assert "affordable" in scores.report["reason"]
    assert "P = 15, N = 60" in scores.report["reason"]


@pytest.mark.parametrize("limit", ["EXACT_BYTES", "EXACT_OPERATIONS"])
def test_large_problems_are_solved_by_conjugate_gradients(limit, monkeypatch):
    monkeypatch.setattr(explanation, limit, 1)
    case = problems.multinomial()
    assert choose(case.problem).method == Influence(CG())
    scores = explain(case.problem, case.queries)
    assert scores.report["curvature"] == "cg"
    assert "conjugate gradients" in scores.report["reason"]


def test_a_bent_model_costs_products_and_a_linear_one_matrix_multiplications():
    linear, bent = problems.multinomial().problem, problems.mlp().problem
    # four float64 matrices of P x P, three arrays of Jacobians
    assert exact_cost(linear).bytes == 4 * 8 * 15**2 + 3 * 8 * 60 * 3 * 15
    assert exact_cost(linear).operations == 10 * 15**3 + 60 * 3 * 15**2
    assert exact_cost(bent).operations == 10 * 21**3 + 6 * 40 * 21**2


@pytest.mark.parametrize(
    "method", ["exact", Influence("exact"), Influence(Exact()), "fitted"], ids=str
)
def test_names_recipes_and_fitted_methods_mean_the_same(method):
    case = problems.multinomial()
    if method == "fitted":
        method = fit(case.problem, "exact")
    scores = explain(case.problem, case.queries, method=method)
    assert scores.report["reason"] == "asked for"
    assert np.array_equal(scores.values, explain(case.problem, case.queries).values)


def test_a_curvature_by_name_is_influence_with_it():
    case = problems.multinomial()
    by_name = explain(case.problem, case.queries, method="graddot")
    recipe = explain(case.problem, case.queries, method=Influence("identity"))
    assert np.array_equal(by_name.values, recipe.values)


def test_a_fitted_method_serves_an_equal_problem():
    case = problems.multinomial()
    fitted = fit(case.problem)
    again = replace(case.problem)
    assert np.array_equal(
        explain(again, case.queries, method=fitted).values, fitted.scores(case.queries).values
    )


def changed(change: str) -> object:
    problem = problems.multinomial().problem
    if change == "parameters":
        return problem.at(problem.parameters + 1e-6)
    if change == "data":
        return problems.rearranged(problems.multinomial(), torch.arange(59))
    if change == "convention":
        return replace(problem, renormalize=True)
    if change == "weights":
        return replace(problem, weights=2 * problem.weights)
    if change == "decay":
        return replace(problem, regularizer=replace(problem.regularizer, weight_decay=1.0))
    return replace(problem, loss=replace(problem.loss, function=lambda f, y: f[:, 0]))


@pytest.mark.parametrize("change", ["parameters", "data", "convention", "weights", "decay", "loss"])
def test_a_method_that_was_fitted_to_something_else_is_refused(change):
    """Every part of the equation: with another one the effects are others."""
    fitted = fit(problems.multinomial().problem)
    with pytest.raises(Stale, match="fitted to"):
        explain(changed(change), problems.multinomial().queries, method=fitted)


def test_the_measurement_is_passed_on():
    case = problems.multinomial()
    assert explain(case.problem, case.queries, measurement="loss").measurement.name == "loss"


def test_queries_without_labels_are_measured_at_the_answer_of_the_model():
    case = problems.multinomial()
    inputs, _ = case.queries
    answers = case.problem.outputs(case.problem.parameters, inputs).argmax(1)
    unlabelled = explain(case.problem, inputs)
    assert np.array_equal(unlabelled.values, explain(case.problem, (inputs, answers)).values)
    assert unlabelled.queries["targets"].tolist() == answers.tolist()


@pytest.mark.parametrize("method", ["exat", "influenced", ""])
def test_unknown_methods_are_refused_with_all_names(method):
    with pytest.raises(UnknownName, match="exact"):
        fit(problems.multinomial().problem, method)


@pytest.mark.parametrize("name", ["tied", "tokens", "conv", "mlp", "mlp_untrained", "branching"])
def test_every_small_network_is_explained_without_a_word_of_configuration(name):
    case = problems.ALL[name]()
    scores = explain(case.problem, case.queries)
    assert np.isfinite(scores.values).all()
    assert scores.values.any()
