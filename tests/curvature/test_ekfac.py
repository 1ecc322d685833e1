"""EK-FAC as users get it: exact where it can be, its options, its report, what it refuses.

What holds for K-FAC in the same words is asked of both here.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from networks import NETWORKS, drawn
from problems import ALL, Case
from whence.adapters import make_problem
from whence.calculus import kronecker, pairing
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature import base
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.kfac import KFAC
from whence.errors import BadArgument, NonFinite, Unsupported
from whence.methods.influence import Influence

BOTH = pytest.mark.parametrize("recipe", [EKFAC, KFAC])


def scores(problem: Problem, queries: object, curvature: object) -> np.ndarray:
    return Influence(curvature, removal="first_order").fit(problem).scores(queries).values


def assert_rows_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert abs(actual - expected).max() <= tolerance * abs(expected).max()


# ------------------------------------------------------------------ what it approximates


@BOTH
@pytest.mark.parametrize("damping", [0.0, 0.03])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_linear_layer_with_squared_errors_is_solved_exactly(outputs, damping, recipe):
    """Its output Hessian is the same for all examples: two independent factors."""
    model = nn.Linear(5, outputs).double().eval()
    x, y = drawn(30, 5), drawn(30, outputs) + 1
    problem = make_problem(model, (x, y), loss="mse", weight_decay=0.1)
    expected = scores(problem, (x[:6], y[:6]), Exact(matrix="ggn", damping=damping))
    found = scores(problem, (x[:6], y[:6]), recipe(damping, tolerance=0.0))
    assert_rows_close(found, expected, 1e-9)


@BOTH
@pytest.mark.parametrize("name", ["ridge", "renormalized ridge"])
def test_ridge_regression_is_solved_exactly(name, recipe):
    case = problems.ridge()
    case = case.renormalized() if name != "ridge" else case
    expected = scores(case.problem, case.queries, Exact(matrix="ggn", damping=0.0))
    assert_rows_close(scores(case.problem, case.queries, recipe(0.0)), expected, 1e-9)


def test_scales_and_biases_by_themselves_are_solved_exactly():
    problem = NETWORKS["batch norm"]()
    some = make_problem(
        problem.model,
        problem.data.take(torch.arange(len(problem))),
        loss="cross_entropy",
        weight_decay=0.05,
        parameters=["middle.weight"],
    )
    v = drawn(3, some.size)
    expected = Exact(matrix="ggn", damping=0.01).fit(some).solve(v).vectors
    assert_allclose(EKFAC(0.01).fit(some).solve(v).vectors, expected, rtol=1e-9)


@BOTH
def test_the_data_part_alone_is_scaled(recipe):
    """s F + decay + damping, as one removal under `renormalize` would have it."""
    problem = problems.ridge().problem
    v = drawn(3, problem.size)
    matrix = CurvatureMatrix(problem, "ggn", 1.25).dense() + 0.1 * torch.eye(6).double()
    solved = recipe(0.1).fit(problem, data_scale=1.25).solve(v).vectors
    assert_allclose(solved, torch.linalg.solve(matrix, v.T).T, rtol=1e-9)


# ------------------------------------------------------------------ one call, many ways


@BOTH
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("fisher", ["sampled", "expected", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_batches_and_order_do_not_matter(name, fisher, size, recipe, monkeypatch):
    case = ALL[name]()
    own = recipe(0.02, fisher=fisher, tolerance=0.0)
    expected = scores(case.problem, case.queries, own)
    order = torch.randperm(len(case.problem), generator=torch.Generator().manual_seed(1))
    for module in (kronecker, pairing):
        monkeypatch.setattr(module, "batch_size", lambda *_: size)
    assert_rows_close(scores(case.problem, case.queries, own), expected, 1e-10)
    if isinstance(case.problem.data.take(order)[0], Tensor):
        shuffled = scores(problems.rearranged(case, order), case.queries, own)
        assert_rows_close(shuffled, expected[:, order.numpy()], 1e-10)


@BOTH
def test_a_seed_gives_the_same_numbers_again_and_another_one_others(recipe):
    case = problems.conv()
    first, again, other = (
        scores(case.problem, case.queries, recipe(0.02, fisher="sampled", seed=seed))
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert abs(first - other).max() > 1e-3 * abs(first).max()


@BOTH
def test_expected_slopes_do_not_depend_on_the_seed(recipe):
    case = problems.conv()
    first, other = (
        scores(case.problem, case.queries, recipe(0.02, fisher="expected", seed=seed))
        for seed in (0, 1)
    )
    assert_rows_close(other, first, 1e-10)


def test_base_weights_of_zero_leave_an_example_out_of_the_matrix():
    """Its gradients are in no moment of l; its inputs still turn the basis of r."""
    case = problems.ridge_weighted()
    exact = scores(case.problem, case.queries, Exact(matrix="ggn", damping=0.0))
    found = scores(case.problem, case.queries, EKFAC(0.0, tolerance=0.0))
    assert not found[:, 7].any()
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_effects_under_renormalize_sum_to_zero(name):
    case = ALL[name]()
    found = scores(case.renormalized().problem, case.queries, EKFAC(0.02, tolerance=0.0))
    fixed = scores(case.problem, case.queries, EKFAC(0.02, tolerance=0.0))
    assert_allclose(found.sum(1), 0, atol=1e-12 * abs(found).sum())
    assert_rows_close(found, fixed - fixed.mean(1, keepdims=True), 1e-10)


# ------------------------------------------------------------------ the report


def report(problem: Problem, **options: object) -> dict[str, object]:
    return dict(EKFAC(**options).fit(problem).report)


def test_automatic_damping_is_a_tenth_of_the_mean_eigenvalue():
    for name in ("multinomial", "mlp", "conv", "tied"):
        problem = ALL[name]().problem
        found = report(problem)
        mean = float(CurvatureMatrix(problem, "ggn").dense().trace()) / problem.size
        assert found["mean_eigenvalue"] == pytest.approx(mean, rel=1e-9)
        assert found["damping"] == pytest.approx(0.1 * mean, rel=1e-9)


def test_the_report_says_what_was_inverted():
    found = report(problems.multinomial_free_intercept().problem, damping=0.5)
    assert found["curvature"] == "ekfac"
    assert found["matrix"] == "ggn"
    assert found["damping"] == 0.5
    assert found["smallest_eigenvalue"] >= 0
    assert found["largest_eigenvalue"] > found["mean_eigenvalue"] > found["smallest_eigenvalue"]
    assert KFAC().fit(problems.ridge().problem).report["curvature"] == "kfac"


def test_coverage_is_a_number_of_parameters():
    assert report(problems.conv().problem)["covered_as"] == {"layer": 133, "single": 0}
    assert report(problems.branching().problem)["covered_as"] == {"layer": 0, "single": 16}


@pytest.mark.parametrize(("outputs", "fisher"), [(180, "expected"), (179, "sampled")])
def test_few_outputs_are_expected_and_many_sampled(outputs, fisher, monkeypatch):
    problem = problems.multinomial().problem  # 60 examples of 3 outputs
    monkeypatch.setattr(base, "FEW_SLOPES", outputs)
    assert report(problem)["fisher"] == fisher
    assert report(problem, fisher="empirical")["fisher"] == "empirical"


def many(count: int = 600) -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    data = drawn(count, 4), torch.arange(count) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=0.1)
    return Case(problem, (drawn(5, 4), torch.arange(5) % 2))


@BOTH
def test_fewer_examples_are_looked_at_where_accuracy_allows(recipe, monkeypatch):
    monkeypatch.setattr(kronecker, "FIRST_ROUND", 32)
    case = many()
    everything = recipe(0.05, accuracy=0.0, tolerance=0.0)
    some = recipe(0.05, accuracy=0.15, tolerance=0.0)
    facts = some.fit(case.problem).report
    assert 32 <= facts["examples_used"] < 600
    assert facts["share_used"] == facts["examples_used"] / 600
    assert 0 < facts["moment_error"] <= 0.15
    assert everything.fit(case.problem).report["share_used"] == 1
    expected = scores(case.problem, case.queries, everything)
    found = scores(case.problem, case.queries, some)
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


@BOTH
@pytest.mark.parametrize("size", [1, 50])
def test_rounds_do_not_depend_on_batches_or_order(size, recipe, monkeypatch):
    monkeypatch.setattr(kronecker, "FIRST_ROUND", 32)
    case, own = many(150), recipe(0.05, accuracy=0.5, tolerance=0.0)
    expected = scores(case.problem, case.queries, own)
    used = own.fit(case.problem).report["examples_used"]
    assert used < 150
    for module in (kronecker, pairing):
        monkeypatch.setattr(module, "batch_size", lambda *_: size)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    shuffled = problems.rearranged(case, order)
    assert own.fit(shuffled).report["examples_used"] == used
    assert_rows_close(scores(shuffled, case.queries, own), expected[:, order.numpy()], 1e-10)


def test_scores_report_what_was_left_out():
    case = many()
    found = Influence(EKFAC(0.05, tolerance=0.1)).fit(case.problem).scores(case.queries)
    assert found.report["removal"] == "first_order"
    assert 0 < found.report.get("factored_error", 0.01) <= 0.1
    assert found.report["examples_used"] == 600


# ------------------------------------------------------------------ refusals


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"damping": -0.1},
        {"damping": float("nan")},
        {"accuracy": -1.0},
        {"accuracy": float("nan")},
        {"tolerance": 1.0},
        {"tolerance": -0.1},
        {"fisher": "true"},
    ],
)
def test_options_out_of_range_are_refused(options, recipe):
    with pytest.raises(BadArgument):
        recipe(**options).fit(problems.ridge().problem)


@BOTH
def test_a_loss_without_curvature_is_refused(recipe):
    model = nn.Linear(2, 1).double().eval()
    y = torch.tensor([1.0, -1.0] * 5).double()
    problem = make_problem(model, (drawn(10, 2), y), loss="hinge", weight_decay=0.1)
    with pytest.raises(Unsupported, match="no curvature"):
        recipe().fit(problem)
    recipe(fisher="empirical").fit(problem)


@BOTH
def test_a_regulariser_that_couples_parameters_is_refused(recipe):
    def coupled(named: dict[str, Tensor]) -> Tensor:
        return named["weight"].sum() ** 2

    model = nn.Linear(5, 1).double().eval()
    problem = make_problem(
        model, (drawn(10, 5), drawn(10)), loss="mse", weight_decay=0.1, regularizer=coupled
    )
    with pytest.raises(Unsupported, match="not diagonal"):
        recipe().fit(problem)


@BOTH
def test_numbers_that_are_none_are_refused(recipe):
    problem = problems.mlp().problem
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    with pytest.raises(NonFinite):
        recipe(0.1).fit(broken)


@BOTH
def test_newton_removals_are_not_offered(recipe):
    with pytest.raises(Unsupported):
        Influence(recipe(), removal="newton").fit(problems.ridge().problem)
