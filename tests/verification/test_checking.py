"""Verification: predictions known to be right, wrong or noisy get the verdict they earn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import problems
from whence.adapters import make_problem
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.core.training import CallableTraining
from whence.curvature.exact import Exact
from whence.errors import BadArgument, CannotRetrain, Stale, UnknownName
from whence.explanation import explain
from whence.methods.influence import Influence
from whence.verification import verify

NAN = float("nan")


def optimum(problem: Problem, weights: Tensor) -> Tensor:
    return NewtonTraining().retrain(problem, weights[None]).parameters[0]


# ------------------------------------------------------------- what retraining measures


def test_actual_effects_of_ridge_are_those_of_sherman_and_morrison(ridge):
    problem, scores = ridge
    checked = verify(problem, scores, examples=len(problem))
    np.testing.assert_allclose(checked.actual, scores.values, rtol=1e-8, atol=1e-12)
    assert checked.verdict == "believe the numbers"
    assert checked.slope == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("renormalize", [False, True])
def test_what_is_retrained_is_the_objective_that_was_predicted(renormalize):
    case = problems.logistic()
    case = case.renormalized() if renormalize else case
    scores = explain(case.problem, case.queries)
    checked = verify(case.problem, scores, examples=12)
    places = np.searchsorted(case.problem.data.ids, checked.train_ids)
    before = case.measured(case.oracle.optimum())
    expected = case.measured(case.oracle.retrained(places)) - before
    np.testing.assert_allclose(checked.actual, expected.T, rtol=1e-6, atol=1e-9)


def test_actual_effects_are_those_of_refitting_scikit_learn():
    case = problems.digits_one_seven()
    problem = case.problem
    scores = explain(problem, case.queries, measurement="logit")
    checked = verify(problem, scores, examples=8)
    (x, y), query = problem.data.take(torch.arange(len(problem))), case.queries[0].numpy()
    x, y = np.hstack([x.numpy(), np.ones((len(x), 1))]), y.numpy()  # the intercept is decayed too
    query = np.hstack([query, np.ones((len(query), 1))])

    def logits(kept: np.ndarray) -> np.ndarray:
        fitted = LogisticRegression(
            C=1 / (1e-2 * len(x)), fit_intercept=False, solver="newton-cg", tol=1e-12
        )
        return query @ fitted.fit(x[kept], y[kept]).coef_[0]

    whole = logits(np.arange(len(x)))
    expected = [logits(np.delete(np.arange(len(x)), i)) - whole for i in checked.train_ids]
    # scikit-learn stops at gradients of about 1e-9, one effect is of size 1e-3
    np.testing.assert_allclose(checked.actual, np.stack(expected, 1), rtol=1e-4, atol=1e-7)


def test_effects_of_all_kinds_of_inputs_are_measured_on_the_queries_that_scores_kept():
    for case in (problems.tokens(), problems.tied()):
        scores = explain(case.problem, case.queries, measurement="loss")
        checked = verify(case.problem, scores, examples=3, queries=[1, 0])
        assert list(checked.query_ids) == [1, 0]
        losses = []
        inputs = case.problem.queries(case.queries)
        for weights in [torch.ones(len(case.problem)), *_without(case.problem, checked.train_ids)]:
            theta = optimum(case.problem, weights)
            outputs = case.problem.outputs(theta, inputs.inputs)
            losses.append(case.problem.loss(outputs, inputs.targets)[[1, 0]])
        expected = torch.stack(losses[1:], 1) - losses[0][:, None]
        np.testing.assert_allclose(checked.actual, expected.detach(), rtol=1e-4, atol=1e-7)


def _without(problem: Problem, ids: np.ndarray) -> Tensor:
    weights = torch.ones(len(ids), len(problem), dtype=torch.float64)
    weights[torch.arange(len(ids)), torch.as_tensor(ids)] = 0
    return weights


def test_scores_from_a_file_are_verified_like_those_in_memory(multinomial, tmp_path):
    problem, scores = multinomial
    scores.save(tmp_path / "scores.npz")
    loaded = Scores.load(tmp_path / "scores.npz")
    expected = verify(problem, scores, examples=10)
    np.testing.assert_array_equal(verify(problem, loaded, examples=10).actual, expected.actual)


def test_the_control_cancels_what_the_training_does_differently_from_the_original(ridge):
    problem, scores = ridge

    def shifted(weights: Tensor, seed: int) -> Tensor:
        return optimum(problem, weights) + 3.0

    training = CallableTraining(shifted, is_deterministic=True)
    checked = verify(problem, scores, examples=12, training=training)
    expected = verify(problem, scores, examples=12)
    np.testing.assert_allclose(checked.actual, expected.actual, rtol=1e-8, atol=1e-12)
    assert "not at the optimum" in checked.warnings[0]
    assert expected.warnings == ()


def test_the_training_of_the_problem_is_used_unless_another_is_given(ridge):
    problem, scores = ridge
    seeds = []

    def recorded(weights: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return optimum(problem, weights)

    own = replace(problem, training=CallableTraining(recorded, is_deterministic=True))
    assert verify(own, scores, examples=3, seed=5).training == "recorded"
    assert seeds == [5] * 4 + [6]  # the control, three removals; the control with another seed
    assert verify(own, scores, examples=3, training=NewtonTraining()).training != "recorded"


# ------------------------------------------------------------------------- what is refused


def test_scores_of_another_model_or_other_data_are_refused(ridge):
    problem, scores = ridge
    with pytest.raises(Stale, match="parameters"):
        verify(problem.at(problem.parameters + 1e-3), scores)
    other = problems.rearranged(problems.ridge(), torch.arange(len(problem)).flip(0))
    with pytest.raises(Stale, match="data"):
        verify(other, scores)


def test_a_large_network_without_a_training_is_refused_with_a_remedy(ridge, monkeypatch):
    problem, scores = ridge
    monkeypatch.setattr("whence.verification.bench._AFFORDABLE", 10)
    with pytest.raises(CannotRetrain) as caught:
        verify(problem, scores)
    assert "training=" in caught.value.remedy


def test_a_measurement_of_ones_own_has_to_be_passed_again(ridge, tmp_path):
    problem = ridge[0]

    def square(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.flatten() ** 2

    scores = explain(problem, problems.ridge().queries, measurement=square)
    scores.save(tmp_path / "scores.npz")
    loaded = Scores.load(tmp_path / "scores.npz")
    with pytest.raises(BadArgument, match="measurement="):
        verify(problem, loaded, examples=4)
    checked = verify(problem, loaded, examples=4, measurement=square)
    np.testing.assert_array_equal(checked.actual, verify(problem, scores, examples=4).actual)
    with pytest.raises(BadArgument, match="the scores say"):
        verify(problem, loaded, examples=4, measurement=lambda f, y: f.flatten())


@pytest.mark.parametrize(
    "options",
    [
        {"examples": 1},
        {"examples": [3]},
        {"examples": [3, 4000]},
        {"queries": []},
        {"queries": [99]},
        {"subsets": 0},
        {"subsets": 1},
        {"subsets": 20, "fraction": 1.2},
        {"target": "loo", "subsets": 20},
        {"target": "pbrf", "fraction": 0.5},
        {"target": "pbrf", "seeds": 2},
        {"target": "pbrf", "training": NewtonTraining()},
        {"target": "pbrf", "damping": -1.0},
    ],
)
def test_impossible_arguments_are_refused(ridge, options):
    with pytest.raises(BadArgument):
        verify(*ridge, **options)


def test_the_target_follows_from_what_was_asked_for(ridge):
    kinds = [{}, {"examples": 5}, {"subsets": 5}, {"fraction": 0.8}, {"target": "subset"}]
    found = [verify(*ridge, **asked).kind for asked in kinds]
    assert found == ["leave-one-out"] * 2 + ["subsets"] * 3
    with pytest.raises(UnknownName, match="shapley"):
        verify(*ridge, target="shapley")


def test_under_the_proximal_bregman_objective_a_network_follows_its_damped_matrix():
    """At a random start: training again would move it whether or not an example is left out."""
    case = problems.mlp_untrained()
    scores = explain(case.problem, case.queries, method=Influence(Exact("ggn", damping=1.0)))
    checked = verify(case.problem, scores, target="pbrf", examples=30)
    assert checked.kind == "pbrf"
    assert checked.verdict == "believe the numbers"
    assert checked.warnings == ()
    assert "left out one by one (proximal Bregman objective, damping 1)" in checked.sentence
    assert json.loads(json.dumps(checked.to_json(), allow_nan=False))["kind"] == "pbrf"
    other = verify(case.problem, scores, target="pbrf", examples=8, damping=0.1)
    assert other.slope > 2  # the effects at another damping are others


def test_scores_without_a_damping_need_one_for_the_proximal_bregman_objective():
    case = problems.mlp_untrained()
    scores = explain(case.problem, case.queries, method="graddot")
    with pytest.raises(BadArgument, match="damping"):
        verify(case.problem, scores, target="pbrf")
    assert verify(case.problem, scores, target="pbrf", damping=0.1, examples=9).spearman > 0.5


def test_subsets_of_ridge_are_those_of_the_closed_form(ridge):
    """Effects of removals add up only nearly: half of the data is no small change."""
    problem, scores = ridge
    checked = verify(problem, scores, subsets=10, fraction=0.8)
    oracle = problems.ridge().oracle
    before = problems.ridge().measured(oracle.optimum())
    rows = [oracle.optimum(1.0 - out) for out in checked.truth.removals.is_out]
    expected = problems.ridge().measured(np.stack(rows)) - before
    np.testing.assert_allclose(checked.actual, expected.T, rtol=1e-7, atol=1e-10)
    assert checked.lds > 0.9


def test_first_order_effects_of_a_network_are_judged_by_retraining_it():
    case = problems.mlp()
    scores = explain(case.problem, case.queries, method=Influence(Exact(), removal="newton"))
    checked = verify(case.problem, scores, examples=len(case.problem))
    assert checked.spearman > 0.9
    assert checked.verdict in ("believe the numbers", "believe the ranking")


def test_a_pipeline_is_verified_on_the_queries_as_they_were_asked(tmp_path):
    """Queries go through the fixed steps once, also after a file; effects on ridge are exact."""
    random = np.random.default_rng(0)
    x = 5 + 3 * random.standard_normal((40, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + random.standard_normal(40)
    model = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(x, y)
    problem = make_problem(model, (x, y))
    scores = explain(problem, (x[:3] + 1, y[:3]))
    loaded = Scores.load(scores.save(tmp_path / "scores"))
    for each in (scores, loaded):
        check = verify(problem, each, examples=20)
        assert_allclose(check.actual, check.predicted, rtol=1e-6, atol=1e-9)
