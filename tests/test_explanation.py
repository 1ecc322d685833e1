"""From a name, a recipe or nothing to scores, and the reason why."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import problems
from whence import explanation
from whence.adapters import make_problem
from whence.calculus.training import Training
from whence.core.losses import make_loss
from whence.core.problem import Problem
from whence.curvature.cg import CG
from whence.curvature.dual import Dual
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.refined import Refined
from whence.errors import Stale, UnknownName
from whence.explanation import choose, dual_cost, exact_cost, explain, fit, refined_operations
from whence.methods.influence import Influence
from whence.report import write_report
from whence.verification import verify


def test_small_problems_are_explained_exactly_and_the_report_says_why():
    case = problems.multinomial()
    scores = explain(case.problem, case.queries)
    expected = Influence(Exact()).fit(case.problem).scores(case.queries)
    assert np.array_equal(scores.values, expected.values)
    assert scores.measurement.name == "margin"
    assert "affordable" in scores.report["reason"]
    assert "P = 15, N = 60" in scores.report["reason"]


@pytest.mark.parametrize("limit", ["EXACT_BYTES", "EXACT_OPERATIONS"])
def test_large_linear_problems_are_solved_by_conjugate_gradients(limit, monkeypatch):
    monkeypatch.setattr(explanation, limit, 1)
    case = problems.multinomial()
    assert choose(case.problem).method == Influence(CG())
    scores = explain(case.problem, case.queries)
    assert scores.report["curvature"] == "cg"
    assert "conjugate gradients" in scores.report["reason"]


def test_large_networks_are_solved_from_layers_and_refined_where_that_is_affordable(monkeypatch):
    monkeypatch.setattr(explanation, "EXACT_BYTES", 1)
    case = problems.mlp()
    assert choose(case.problem).method == Influence(Refined())
    assert refined_operations(case.problem) == 30 * 4 * 40 * case.problem.size
    assert explain(case.problem, case.queries).report["curvature"] == "refined"

    monkeypatch.setattr(explanation, "REFINED_OPERATIONS", 1)
    assert choose(case.problem).method == Influence(EKFAC())
    scores = explain(case.problem, case.queries)
    assert scores.report["curvature"] == "ekfac"
    assert "layers are taken one by one" in scores.report["reason"]


def test_large_networks_without_fisher_information_are_solved_by_conjugate_gradients(monkeypatch):
    monkeypatch.setattr(explanation, "EXACT_BYTES", 1)
    problem = problems.mlp().problem
    bent = replace(problem, loss=make_loss(lambda f, y: torch.sin(f.squeeze(-1) - y)))
    choice = choose(bent)
    assert choice.method == Influence(CG())
    assert "bends downwards" in choice.reason


def test_a_bent_model_costs_products_and_a_linear_one_matrix_multiplications():
    linear, bent = problems.multinomial().problem, problems.mlp().problem
    # four float64 matrices of P x P, three arrays of Jacobians
    assert exact_cost(linear).bytes == 4 * 8 * 15**2 + 3 * 8 * 60 * 3 * 15
    assert exact_cost(linear).operations == 10 * 15**3 + 60 * 3 * 15**2
    assert exact_cost(bent).operations == 10 * 21**3 + 6 * 40 * 21**2


# ------------------------------------------------------------------ few examples


def wide(model: nn.Module, examples: int = 12, **options: object) -> Problem:
    """A model on 300 features at its random start."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((examples, 300)), random.integers(0, 2, examples)
    options = {"loss": "cross_entropy", "weight_decay": 0.01} | options
    return make_problem(model.double().eval(), (x, y), **options)


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(300, 3), nn.Tanh(), nn.Linear(3, 2))


def test_a_linear_model_with_few_examples_is_inverted_through_them_without_damping():
    problem = wide(nn.Linear(300, 2))
    choice = choose(problem)
    assert choice.method == Influence(Dual())
    assert "the 24 outputs of N = 12 examples are fewer than the P = 602" in choice.reason
    scores = explain(problem, problem.data.take(torch.arange(3)))
    exact = explain(problem, problem.data.take(torch.arange(3)), method="exact")
    assert scores.report["damping"] == 0
    assert scores.report["matrix"] == exact.report["matrix"] == "hessian"
    assert np.abs(scores.values - exact.values).max() < 1e-9 * np.abs(exact.values).max()


def test_a_network_with_few_examples_is_inverted_through_them_where_exact_costs_too_much(
    monkeypatch: pytest.MonkeyPatch,
):
    problem = wide(hidden())
    assert choose(problem).method == Influence(Exact())
    monkeypatch.setattr(explanation, "EXACT_OPERATIONS", exact_cost(problem).operations / 2)
    choice = choose(problem)
    assert choice.method == Influence(Dual())
    assert "costs too much" in choice.reason
    assert "damped Gauss-Newton matrix" in choice.reason
    scores = explain(problem, problem.data.take(torch.arange(3)))
    assert scores.report["damping"] > 0
    assert scores.report["matrix"] == "ggn"


@pytest.mark.parametrize(
    "problem",
    [
        lambda: wide(nn.Linear(300, 2), regularizer="weight"),
        lambda: wide(nn.Linear(300, 2), weight_decay=0.0),
        lambda: wide(nn.Linear(300, 2), regularizer=lambda named: named["bias"].sum() ** 2),
        lambda: wide(nn.Linear(300, 2), regularizer=lambda named: -(named["bias"] ** 2).sum()),
        lambda: wide(nn.Linear(300, 2), loss=lambda outputs, y: outputs[:, 0] * y),
        lambda: wide(nn.Linear(300, 2), examples=400),
    ],
    ids=["free intercept", "no decay", "coupled", "concave", "own loss", "many examples"],
)
def test_what_the_dual_form_cannot_do_is_not_chosen(problem):
    assert dual_cost(problem()) is None
    assert choose(problem()).method == Influence(Exact())


def test_the_dual_form_is_not_chosen_for_a_small_gain():
    """Outputs almost as many as parameters: the exact curvature, and all that it tells."""
    problem = wide(nn.Linear(300, 2), examples=295)
    assert dual_cost(problem).operations < exact_cost(problem).operations
    assert choose(problem).method == Influence(Exact())


def test_the_dual_form_costs_a_matrix_of_outputs_and_their_leverage():
    problem = wide(nn.Linear(300, 2))
    cost = dual_cost(problem)
    assert cost.bytes == 8 * 24 * 602 + 16 * 24**2 + 3 * 8 * 24 * 602
    assert cost.operations == 24**2 * 602 + 24**3 / 3 + 24 * (2 * 24 * 602 + 24**2)


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


# -------------------------------------------------------------------- the verdict beside it


def test_scores_that_were_verified_carry_the_verdict_of_leave_one_out():
    case = problems.multinomial()
    scores = explain(case.problem, case.queries, verify=12)
    expected = verify(case.problem, explain(case.problem, case.queries), examples=12)
    report = scores.report["verification"]
    assert (report["kind"], report["verdict"]) == ("leave-one-out", expected.verdict)
    assert report["pearson"] == pytest.approx(expected.pearson)


def test_a_network_with_a_recipe_is_verified_over_subsets_and_its_page_begins_with_that(tmp_path):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=random).double()
    recipe = Training(lambda: nn.Linear(3, 2).double(), lr=0.05, epochs=5, batch_size=8)
    problem = make_problem(recipe, (x, (x[:, 0] > 0).long()), loss="cross_entropy")
    scores = explain(problem, x[:2] + 1, method="graddot", verify=9)
    report = scores.report["verification"]
    assert (report["kind"], report["examples"], report["seeds"]) == ("subsets", 9, 2)
    page = write_report(problem, scores, tmp_path / "why.html").read_text(encoding="utf-8")
    assert page.index(report["sentence"][:40]) < page.index("<main")
    assert "times, each without a random 50 % of the training examples, under 2 seeds" in page
    assert "Not checked by retraining" not in page
