"""MAGIC says what removals do to first order, and refuses what it would explain wrongly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

import whence
from whence.calculus.gradients import measure, measurement_gradients
from whence.calculus.replay import record, replay
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.errors import BadArgument, CannotRetrain, Stale
from whence.methods.magic import FIRST_SEED, MAGIC
from whence.numerics import draws

N = 24


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=generator).double()
    return x, torch.randint(3, (N,), generator=generator)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def problem_with(**training: object) -> Problem:
    recipe = Training(network, **{"lr": 0.02, "epochs": 4, "batch_size": 8} | training)
    return whence.make_problem(recipe, data(), loss="cross_entropy")


def queries() -> tuple[Tensor, Tensor]:
    x, y = data()
    return x[:3] + 0.1, y[:3]


def changes(problem: Problem, weights: Tensor, *, seed: int = 0) -> np.ndarray:
    """(Q, M) what retraining with weights (M, N) does to the queries."""
    asked, measured = problem.queries(queries()), problem.measurement()
    models = problem.retrain(weights, seed=seed).parameters
    values = torch.stack([measure(problem.at(theta), measured, asked) for theta in models], 1)
    return (values - measure(problem, measured, asked)[:, None]).numpy()


def differences(problem: Problem, weights: Tensor, *, seed: int) -> np.ndarray:
    """(Q, N) minus derivatives from retraining, of second order and with no weight below zero."""
    move = 1e-5 * torch.eye(N).double()
    once, twice = (changes(problem, weights + k * move, seed=seed) for k in (1, 2))
    never = changes(problem, weights[None], seed=seed)
    return -(4 * once - 3 * never - twice) / 2e-5


def test_an_effect_is_minus_the_derivative_of_retraining() -> None:
    problem = problem_with()
    found = whence.explain(problem, queries(), method="magic")
    expected = differences(problem, torch.ones(N).double(), seed=0)
    assert_allclose(found.values, expected, rtol=0, atol=1e-5 * abs(expected).max())
    assert found.is_calibrated
    assert found.unit == "logits"
    assert found.errors is None


def test_a_small_part_of_an_example_has_that_part_of_its_effect() -> None:
    """With the sign and in the unit of a removal: a hundredth of it is nearly linear."""
    problem = problem_with()
    values = whence.explain(problem, queries(), method="magic").values
    actual = 100 * changes(problem, 1 - 0.01 * torch.eye(N).double())
    assert abs(values - actual).max() < 0.02 * abs(actual).max()


@pytest.mark.parametrize("own_seed", [False, True])
def test_over_subsets_it_is_the_median_with_its_standard_error(own_seed: bool) -> None:
    problem = problem_with(epochs=2)
    method = MAGIC(subsets=3, fraction=0.5, seed=1, own_seed=own_seed, directions=0)
    found = method.fit(problem).scores(queries())
    keys = draws.keys(problem.data.ids)
    inside = draws.subsets(1, keys, count=3, size=N // 2).double()
    seeds = [0 if own_seed else FIRST_SEED + 3 + k for k in range(3)]
    pairs = zip(inside, seeds, strict=True)
    runs = np.stack([differences(problem, row, seed=seed) for row, seed in pairs])
    scale = abs(runs).max()
    assert_allclose(found.values, np.median(runs, 0), rtol=0, atol=1e-5 * scale)
    assert found.errors is not None
    deviation = median_abs_deviation(runs, scale="normal")
    error = (np.pi / 2) ** 0.5 * deviation / 3**0.5  # of a median of normal numbers
    assert_allclose(found.errors, error, rtol=1e-4, atol=1e-5 * scale)


def test_one_run_that_explodes_does_not_decide() -> None:
    """An example alone with a feature: to Adam its first gradient is one, whatever its weight."""
    x, y = data()
    x = torch.cat([x, torch.zeros(N, 1)], 1)
    x[3, 4] = 1.0
    recipe = Training(lambda: nn.Linear(5, 3).double(), "adam", lr=0.02, epochs=4, batch_size=8)
    problem = whence.make_problem(recipe, (x, y), loss="cross_entropy")
    inside = draws.subsets(0, draws.keys(problem.data.ids), count=5, size=18)
    assert inside[:, 3].tolist() == [True, True, False, True, False]
    unseen = record(Course(problem, recipe, FIRST_SEED + 2), inside[2])
    queries = problem.queries((x[3:4], y[3:4]))
    _, slopes = measurement_gradients(unseen.problem, problem.measurement(), queries)
    assert abs(replay(unseen, slopes)[0, 3]) > 1e4
    found = MAGIC(subsets=5, fraction=0.75, directions=0).fit(problem).scores(queries)
    assert abs(found.values[0, 3]) < 1


def test_little_memory_changes_nothing() -> None:
    problem = problem_with()
    much, little = (MAGIC(directions=0, memory=m).fit(problem) for m in (2**30, 0))
    assert little.report["states_kept"] < much.report["states_kept"] == much.report["steps"] == 12
    found, expected = little.scores(queries()).values, much.scores(queries()).values
    assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(expected).max())


def test_a_change_of_weights_is_answered_to_first_order() -> None:
    problem = problem_with()
    fitted = MAGIC(directions=0).fit(problem)
    outcome = whence.remove(problem, queries(), group=[3, 5], method=fitted)
    values = fitted.scores(queries()).values
    assert_allclose(outcome.predicted, values[:, 3] + values[:, 5], rtol=1e-10)


def test_a_model_that_the_training_does_not_return_is_refused() -> None:
    problem = problem_with()
    other = problem.at(problem.parameters + 0.1)
    with pytest.raises(Stale, match="from what the training returns"):
        MAGIC().fit(other)
    seeded = replace(problem, training=replace(problem.training, seed=1))
    for method in (MAGIC(), MAGIC(subsets=2, own_seed=True)):
        with pytest.raises(Stale):
            method.fit(seeded)
    assert MAGIC().fit(problem).report["distance_to_training"] < 1e-10


def test_a_training_that_is_no_recipe_is_refused() -> None:
    x, y = data()
    for training in (None, lambda weights, seed: network()):
        problem = whence.make_problem(network(), (x, y), loss="cross_entropy", training=training)
        with pytest.raises(CannotRetrain, match="Training"):
            MAGIC().fit(problem)


@pytest.mark.parametrize(
    "wrong", [{"subsets": 1}, {"subsets": -1}, {"subsets": 2, "fraction": 1.0}, {"directions": -1}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadArgument):
        MAGIC(**wrong).fit(problem_with(epochs=1))


def test_more_subsets_than_there_are_is_refused() -> None:
    with pytest.raises(BadArgument, match="276"):
        MAGIC(subsets=300, fraction=2 / N).fit(problem_with(epochs=1))


def test_a_rough_training_is_warned_about() -> None:
    """Steps that overshoot: where they end hangs on every weight."""
    smooth = MAGIC(directions=3).fit(problem_with()).report
    rough = MAGIC(directions=3).fit(problem_with(lr=1.0, epochs=30)).report
    assert smooth["metasmoothness"] > 0.9
    assert not smooth["warnings"]
    assert rough["metasmoothness"] < 0.9
    assert "rough in its weights" in rough["warnings"][0]
