"""Scores from factors are those of solved gradients that meet the data one by one."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from networks import COUNT, NETWORKS, drawn
from problems import ALL
from whence.adapters import make_problem
from whence.calculus import kronecker, pairing, rooms
from whence.calculus.gradients import gradients, measurement_slopes, pull_back
from whence.calculus.pairing import Pairing, counting, terms
from whence.calculus.products import example_pull, objective_gradient
from whence.core.problem import Problem, Queries
from whence.curvature.base import KroneckerIHVP
from whence.curvature.ekfac import EKFAC
from whence.curvature.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

DAMPING = 0.02
NAMES = [
    *ALL,
    *("conv1d", "groups", "depthwise", "transposed", "layer norm", "own rms norm", "batch norm"),
    *("added", "scaled by one number", "a slice of a weight", "shared", "unrolled", "lstm"),
    *("language model", "tied language model", "attention", "padding", "with a vector", "frozen"),
    *("encoder, positions first", "one place", "bilinear"),
]


@cache
def asked(name: str) -> tuple[Problem, Queries, Tensor]:
    """A problem, queries for it and the slopes of the default measurement."""
    if name in ALL:
        problem, data = ALL[name]().problem, ALL[name]().queries
    else:
        problem = NETWORKS[name]()
        data = problem.data.take(torch.arange(4, COUNT))
    queries = problem.queries(data)
    return problem, queries, measurement_slopes(problem, problem.measurement(None), queries)[1]


def fit(problem: Problem, *, tolerance: float = 0.0, data_scale: float = 1.0) -> KroneckerIHVP:
    return EKFAC(DAMPING, tolerance=tolerance).fit(problem, data_scale=data_scale)


def streamed(problem: Problem, ihvp: KroneckerIHVP, queries: Queries, slopes: Tensor) -> np.ndarray:
    """(Q, N) psi . grad loss, one example at a time."""
    psi = ihvp.solve(pull_back(problem, queries.inputs, slopes)).vectors
    return (psi @ gradients(problem, problem.batch(torch.arange(len(problem)))).T).numpy()


def assert_equal_scores(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert abs(actual - expected).max() <= tolerance * abs(expected).max()


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("data_scale", [1.0, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_solved_gradients_times_gradients(name, data_scale):
    problem, queries, slopes = asked(name)
    ihvp = fit(problem, data_scale=data_scale)
    found, _ = ihvp.pair(queries, slopes)
    assert found.dtype == np.float64
    assert_equal_scores(found, streamed(problem, ihvp, queries, slopes))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_kept_and_those_that_are_made_anew_give_the_same(name, monkeypatch):
    problem, queries, slopes = asked(name)
    kept = fit(problem)
    assert kept.kept is not None
    monkeypatch.setattr(rooms, "KEPT_BYTES", 0)
    anew = fit(problem)
    assert anew.kept is None
    assert_equal_scores(anew.pair(queries, slopes)[0], kept.pair(queries, slopes)[0])


@pytest.mark.parametrize("stack", [1, 2**30])
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_that_makes_gradients_anew_finds_that_of_the_objective(name, stack, monkeypatch):
    problem, queries, slopes = asked(name)
    monkeypatch.setattr(rooms, "KEPT_BYTES", 0)
    monkeypatch.setattr(pairing, "STACK_BYTES", stack)
    anew = fit(problem)
    assert anew.optimum(problem)[0] is None
    found = anew.pair(queries, slopes)[1]["gradient"]
    expected = objective_gradient(problem)
    assert float((found - expected).norm()) <= 1e-10 * float(example_pull(problem))


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "language model", "unrolled"])
def test_queries_may_come_in_pieces(name, tolerance, monkeypatch):
    """With a tolerance the terms are chosen for each piece: both are within it."""
    problem, queries, slopes = asked(name)
    ihvp = fit(problem, tolerance=tolerance)
    expected, _ = ihvp.pair(queries, slopes)
    monkeypatch.setattr(pairing, "STACK_BYTES", 1)
    found, _ = ihvp.pair(queries, slopes)
    assert_equal_scores(found, expected, 1e-10 + 3 * tolerance)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "language model", "lstm"])
def test_batches_of_queries_and_training_examples_do_not_matter(name, size, monkeypatch):
    problem, queries, slopes = asked(name)
    ihvp = fit(problem)
    expected, _ = ihvp.pair(queries, slopes)
    monkeypatch.setattr(pairing, "batch_size", lambda *_: size)
    monkeypatch.setattr(kronecker, "batch_size", lambda *_: size)
    monkeypatch.setattr(pairing, "_TILE", 1)
    assert_equal_scores(ihvp.pair(queries, slopes)[0], expected)
    monkeypatch.setattr(rooms, "KEPT_BYTES", 0)
    assert_equal_scores(fit(problem).pair(queries, slopes)[0], expected)


def test_tokens_are_looked_up_where_tables_are_long(monkeypatch):
    """Eleven tokens, two places: not every row of the table is touched."""

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(40, 3), nn.Linear(3, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.tokens(tokens)).mean(1))

    text = torch.arange(COUNT * 3).reshape(COUNT, 3) ** 2 % 40
    text[:, 2] = text[:, 1]  # twice in one example
    problem = make_problem(
        Short().double().eval(),
        (text, torch.arange(COUNT) % 2),
        loss="cross_entropy",
        weight_decay=0.1,
    )
    monkeypatch.setattr(rooms, "KEPT_BYTES", 0)
    ihvp, queries = fit(problem), problem.queries(problem.data.take(torch.arange(5)))
    slopes = drawn(5, 2)
    assert_equal_scores(ihvp.pair(queries, slopes)[0], streamed(problem, ihvp, queries, slopes))


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("name", NAMES)
def test_kept_gradients_know_how_far_the_model_is_from_its_optimum(name):
    problem, _, _ = asked(name)
    problem = replace(problem, weights=torch.linspace(0, 2, len(problem)).double())
    gradient, pull = fit(problem).optimum(problem)
    assert_allclose(gradient, objective_gradient(problem), atol=1e-12)
    assert pull == pytest.approx(example_pull(problem), rel=1e-9)


def test_an_mlp_keeps_factors_and_no_gradients():
    """At most d_in + d_out + 1 numbers of each example and layer."""
    problem, _, _ = asked("mlp")
    kept = fit(problem).kept
    sizes = [
        block.right.shape[1] + (0 if block.left is None else block.left.shape[1])
        for block in kept.blocks
    ]
    assert sizes == [4 + 4, 1 + 5]


def test_what_would_not_fit_is_not_kept(monkeypatch):
    problem, _, _ = asked("mlp")
    size = len(problem) * (8 + 6) * 8
    for room, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(rooms, "KEPT_BYTES", room)
        assert (fit(problem).kept is not None) == fits


# ------------------------------------------------------------------ what is left out


@cache
def wide() -> tuple[Problem, Queries, Tensor]:
    """Two hidden layers, wide enough for terms, with inputs of very different size."""
    x = drawn(340, 24) * torch.logspace(0, -2, 24).double()
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()
    torch.manual_seed(0)
    layers = [nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3)]
    model = nn.Sequential(*layers).double().eval()
    problem = make_problem(model, (x[:300], y[:300]), loss="cross_entropy", weight_decay=1e-4)
    queries = problem.queries((x[300:], y[300:]))
    return problem, queries, measurement_slopes(problem, problem.measurement(None), queries)[1]


@pytest.mark.parametrize("recipe", [EKFAC, KFAC])
@pytest.mark.parametrize("damping", ["auto", 1e-3, 1e-5])
@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.01, 1e-3])
def test_what_is_left_out_is_what_the_report_says(tolerance, damping, recipe):
    """Coordinates are not quite independent: the error may be 1.5 times the expected one."""
    problem, queries, slopes = wide()
    exact, _ = recipe(damping, tolerance=0.0).fit(problem).pair(queries, slopes)
    found, facts = recipe(damping, tolerance=tolerance).fit(problem).pair(queries, slopes)
    error = ((found - exact) ** 2).mean() ** 0.5 / (exact**2).mean() ** 0.5
    assert facts["factored_error"] <= tolerance
    assert error <= 1.5 * facts["factored_error"]
    assert facts["factored_terms"] >= 1


def test_with_a_tolerance_of_zero_nothing_is_left_out():
    problem, queries, slopes = wide()
    ihvp = EKFAC(1e-3, tolerance=0.0).fit(problem)
    found, facts = ihvp.pair(queries, slopes)
    assert_equal_scores(found, streamed(problem, ihvp, queries, slopes))
    assert not facts, "no error below rounding is claimed, so that nothing is factored"


def test_terms_reach_their_tolerance_with_as_few_as_the_decomposition_needs():
    left, right = torch.logspace(0, -3, 30).double(), torch.logspace(0, -4, 20).double()
    reciprocal = 1 / (torch.outer(left, right) + 1e-3)
    weights = (left.sqrt(), right.sqrt())
    weighted = weights[0][:, None] * reciprocal * weights[1]
    values = torch.linalg.svdvals(weighted)
    for tolerance in (0.3, 0.03, 1e-3, 1e-6):
        u, v, error = terms(reciprocal, weights, tolerance)
        gap = weights[0][:, None] * (u @ v.T - reciprocal) * weights[1]
        assert float(gap.norm() / weighted.norm()) == pytest.approx(error, rel=1e-3, abs=2e-8)
        assert error <= tolerance
        fewer = values[u.shape[1] - 1 :].norm() / values.norm()  # with one term less
        assert float(fewer) > tolerance


def test_coordinates_that_hardly_count_are_left_out_within_the_tolerance():
    left, right = torch.logspace(0, -6, 40).double(), torch.logspace(0, -3, 25).double()
    reciprocal = 1 / (torch.outer(left**2, right**2) + 1e-2)
    weighted = left[:, None] * reciprocal * right
    for tolerance in (0.5, 0.1, 0.0):
        rows, columns = counting(reciprocal, (left, right), tolerance)
        kept = torch.zeros_like(weighted)
        kept[rows[:, None], columns] = weighted[rows[:, None], columns]
        assert float((weighted - kept).norm() / weighted.norm()) <= tolerance
        assert (len(rows) < 40) == (tolerance > 0)
        assert torch.equal(rows, rows.sort().values)


def test_the_same_pairing_is_made_every_time():
    problem, queries, slopes = wide()
    ihvp = EKFAC("auto").fit(problem)
    torch.manual_seed(1)
    first, _ = ihvp.pair(queries, slopes)
    torch.manual_seed(2)
    assert np.array_equal(EKFAC("auto").fit(problem).pair(queries, slopes)[0], first)


def test_float32_scores_are_those_of_float64():
    """1e-3: rounding of 1e-7 times a condition number of about 1,000, and terms to match."""
    problem, queries, slopes = wide()
    expected, _ = EKFAC(1e-3, tolerance=0.0).fit(problem).pair(queries, slopes)
    single = problem.to(dtype=torch.float32)
    asked_of = single.queries((queries.inputs, queries.targets))
    found, _ = EKFAC(1e-3, tolerance=0.0).fit(single).pair(asked_of, slopes.float())
    assert found.dtype == np.float64
    assert_equal_scores(found, expected, 1e-3)


def test_a_pairing_is_a_value_of_its_curvature():
    problem, queries, slopes = wide()
    ihvp = fit(problem)
    made = Pairing(ihvp.kronecker, ihvp.dampings, ihvp.data_scale, None, 0.0)
    assert_equal_scores(made.scores(queries, slopes)[0], ihvp.pair(queries, slopes)[0])
    twice, _ = made.scores(queries, 2 * slopes)
    assert_equal_scores(twice, 2 * made.scores(queries, slopes)[0])


@pytest.mark.parametrize("name", ["class_weighted", "ridge_weighted"])
def test_base_weights_are_in_the_curvature_and_not_in_the_pairs(name):
    """An example of weight zero has a gradient all the same; effects multiply by the weight."""
    problem, queries, slopes = asked(name)
    found, _ = fit(problem).pair(queries, slopes)
    assert bool((abs(found).sum(0) > 0).all())
    scaled = replace(problem, weights=2 * problem.weights)
    assert not np.allclose(fit(scaled).pair(queries, slopes)[0], found)


def test_nobody_asks_in_vain():
    problem, queries, slopes = asked("mlp")
    one = problem.queries(tuple(part[:1] for part in problems.mlp().queries))
    assert_equal_scores(
        fit(problem).pair(one, slopes[:1])[0], fit(problem).pair(queries, slopes)[0][:1]
    )
