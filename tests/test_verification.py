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
from whence.core.scores import Measurement, Scores
from whence.core.training import CallableTraining
from whence.curvature.exact import Exact
from whence.errors import BadArgument, CannotRetrain, Stale
from whence.explanation import explain
from whence.methods.influence import Influence
from whence.verification import FEWEST, Verification, draw, judge, verify

NAN = float("nan")


@pytest.fixture(scope="module")
def ridge() -> tuple[Problem, Scores]:
    """Ridge regression, and its leave-one-out effects: one Newton step is exact."""
    case = problems.ridge()
    return case.problem, explain(case.problem, case.queries, method=Influence(removal="newton"))


@pytest.fixture(scope="module")
def multinomial() -> tuple[Problem, Scores]:
    case = problems.multinomial()
    return case.problem, explain(case.problem, case.queries, method=Influence(removal="newton"))


def changed(scores: Scores, values: np.ndarray, **changes) -> Scores:
    return replace(scores, values=values, **changes)


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


# -------------------------------------------------------------------------------- noise


def test_the_noise_of_a_training_is_measured_and_limits_the_correlation(ridge, monkeypatch):
    monkeypatch.setattr("whence.verification._REPEATS", 8)
    problem, scores = ridge
    effects = scores.values[:1]
    noise = 2 * effects.std()

    def noisy(weights: Tensor, seed: int) -> Tensor:
        """The optimum; the intercept, which moves every prediction alike, is off by chance."""
        theta = optimum(problem, weights).clone()
        key = seed * 1000 + int((weights == 0).nonzero().sum()) + 500 * int(weights.min())
        theta[-1] += noise * torch.randn((), generator=torch.Generator().manual_seed(key)).item()
        return theta

    one = verify(problem, scores, examples=40, queries=[0], training=noisy)
    # an effect is the difference of two trainings; eight repeats of eight removals know the
    # variance to about sqrt(2 / 64), the shared control makes it somewhat worse
    assert one.noise_variance[0] == pytest.approx(2 * noise**2, rel=0.6)
    expected = np.sqrt(max(0.0, 1 - one.noise_variance[0] / one.actual.var(ddof=1)))
    assert one.noise_ceiling == pytest.approx(expected)
    assert one.noise_ceiling < 0.8
    assert "noisy" in one.sentence


def test_a_training_that_wrongly_calls_itself_deterministic_is_found_out(ridge):
    problem, scores = ridge

    def noisy(weights: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(problem.size, generator=generator, dtype=torch.float64)
        return optimum(problem, weights) * (1 + 0.1 * noise)

    training = CallableTraining(noisy, is_deterministic=True)
    assert verify(problem, scores, examples=10, training=training).noise_variance.min() > 0


def test_newton_steps_report_the_noise_that_their_tolerance_leaves(multinomial):
    problem, scores = multinomial
    fine = verify(problem, scores, examples=20)
    rough = verify(problem, scores, examples=20, training=NewtonTraining(tolerance=1e-3))
    assert 0 < fine.noise_variance.max() < 1e-6 * rough.noise_variance.max()
    error = np.abs(rough.actual - fine.actual).max(axis=1)
    assert (error <= 10 * np.sqrt(rough.noise_variance)).all()
    assert fine.noise_ceiling > 0.999999


# ------------------------------------------------------------------------------ the draw


def test_the_draw_covers_the_whole_range_of_effects_and_every_query():
    effects = np.random.default_rng(0).standard_t(1.5, (3, 1000))
    drawn = draw(effects, 60, seed=1)
    assert len(np.unique(drawn)) == 60
    assert {*effects.argmax(1), *effects.argmin(1)} <= set(drawn)
    size = (np.abs(effects) / np.abs(effects).mean(1, keepdims=True)).mean(0)
    ranks = size.argsort().argsort()[drawn]
    in_tenths, _ = np.histogram(ranks, bins=10, range=(0, 1000))
    assert in_tenths.min() >= 3  # never only the top


def test_the_draw_depends_on_its_seed_alone():
    effects = np.random.default_rng(0).standard_normal((2, 300))
    assert set(draw(effects, 20, seed=3)) == set(draw(effects.copy(), 20, seed=3))
    assert set(draw(effects, 20, seed=3)) != set(draw(effects, 20, seed=4))


@pytest.mark.parametrize("count", [2, 5, 9, 10, 400])
def test_the_draw_has_as_many_as_asked_for_or_all(count):
    drawn = draw(np.random.default_rng(0).standard_normal((7, 10)), count)
    assert len(set(drawn)) == min(count, 10)


def test_named_examples_are_left_out_in_their_order(ridge):
    problem, scores = ridge
    assert list(verify(problem, scores, examples=[7, 3, 20]).train_ids) == [7, 3, 20]


# --------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({}, "believe the numbers"),
        ({"correlation": 0.89}, "believe the ranking"),
        ({"slope": 1.3}, "believe the ranking"),
        ({"slope": 0.79}, "believe the ranking"),
        ({"slope": NAN}, "believe the ranking"),
        ({"ranks": 0.1}, "believe the numbers"),
        ({"correlation": 0.89, "ranks": 0.69}, "believe only the top"),
        ({"correlation": 0.49, "ranks": 0.69}, "do not believe"),
        ({"correlation": -1.0, "ranks": -1.0, "slope": -2.0}, "do not believe"),
        ({"examples": FEWEST - 1}, "cannot tell"),
        ({"correlation": NAN}, "cannot tell"),
        ({"ceiling": 0.4}, "cannot tell"),
    ],
)
def test_the_verdict_follows_its_thresholds(numbers, verdict):
    good = {"correlation": 0.95, "ranks": 0.9, "slope": 1.0, "ceiling": 1.0, "examples": 50}
    assert judge(**(good | numbers)) == verdict


def test_right_effects_in_a_wrong_unit_can_only_be_ranked(multinomial):
    problem, scores = multinomial
    checked = verify(problem, changed(scores, 3 * scores.values), examples=30)
    assert checked.pearson > 0.99
    assert checked.slope == pytest.approx(1 / 3, rel=0.05)
    assert checked.verdict == "believe the ranking"


def test_scores_without_a_scale_can_at_best_be_ranked(multinomial):
    problem, scores = multinomial
    checked = verify(problem, changed(scores, scores.values, is_calibrated=False), examples=30)
    assert checked.verdict == "believe the ranking"
    assert np.isnan(checked.slope)
    assert "slope" not in checked.sentence
    assert checked.to_json()["slope"] is None


def test_effects_of_the_wrong_sign_or_by_chance_are_not_believed(multinomial):
    problem, scores = multinomial
    chance = np.random.default_rng(0).standard_normal(scores.values.shape)
    for values in (-scores.values, chance):
        assert verify(problem, changed(scores, values), examples=30).verdict == "do not believe"


def test_effects_that_do_not_vary_allow_no_verdict(ridge):
    problem, scores = ridge
    checked = verify(problem, changed(scores, np.zeros_like(scores.values)), examples=10)
    assert checked.verdict == "cannot tell"
    assert "do not vary" in checked.sentence
    assert json.dumps(checked.to_json(), allow_nan=False)


def test_a_few_retrainings_allow_no_verdict(ridge):
    checked = verify(*ridge, examples=3)
    assert checked.verdict == "cannot tell"
    assert f"at least {FEWEST}" in checked.sentence


# ------------------------------------------------------------------------ what is returned


def test_the_sentence_says_the_numbers(ridge):
    problem, scores = ridge
    sentence = verify(problem, scores, examples=12, queries=[2]).sentence
    assert sentence.startswith("Over 12 training examples left out one by one, predicted and ")
    assert sentence.endswith("slope 1.00: believe the numbers.")


def test_json_holds_every_point_and_the_verdict(ridge):
    problem, scores = ridge
    checked = verify(problem, scores, examples=9)
    story = checked.to_json()
    assert json.loads(json.dumps(story, allow_nan=False)) == story
    assert story["kind"] == "leave-one-out"
    assert len(story["points"]) == checked.actual.size
    point = story["points"][9 + 4]
    assert point["query"] == scores.query_ids[1]
    assert point["example"] == checked.train_ids[4]
    assert point["predicted"] == scores.effect(1, point["example"])
    assert point["actual"] == checked.actual[1, 4]
    assert story["interval"][0] <= story["pearson"] <= story["interval"][1]
    assert [query["pearson"] for query in story["queries"]] == list(checked.pearson_by_query)


def test_the_verdict_travels_with_a_copy_of_the_scores(ridge, tmp_path):
    problem, scores = ridge
    checked = verify(problem, scores, examples=9)
    checked.scores.save(tmp_path / "scores.npz")
    report = Scores.load(tmp_path / "scores.npz").report["verification"]
    assert report["verdict"] == checked.verdict
    assert "verification" not in scores.report


def test_numbers_just_below_one_do_not_read_as_one():
    scores = Scores(
        values=np.arange(20.0)[None],
        query_ids=np.array(["q"]),
        train_ids=np.arange(20),
        measurement=Measurement("margin", "logits", higher_is_better=True),
        baseline=np.zeros(1),
    )
    actual = np.arange(20.0)[None] + 0.1 * np.random.default_rng(0).standard_normal((1, 20))
    checked = Verification(
        predicted=scores.values,
        actual=actual,
        noise_variance=np.zeros(1),
        query_ids=scores.query_ids,
        train_ids=scores.train_ids,
        prediction=scores,
        training="by hand",
        seed=0,
        seconds=0.0,
    )
    assert 0.9995 < checked.pearson < 1
    assert "correlate at 0.9999" in checked.sentence


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
    monkeypatch.setattr("whence.verification._AFFORDABLE", 10)
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
    ],
)
def test_impossible_arguments_are_refused(ridge, options):
    with pytest.raises(BadArgument):
        verify(*ridge, **options)


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
