"""The sketch against dense float64 algebra: all of the matrix, a part of it, and beside it."""

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import problems
from problems import ALL, CONVEX, DEEP
from whence.adapters import make_problem
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature.base import AUTO_DAMPING
from whence.curvature.exact import Exact
from whence.curvature.nystrom import Nystrom
from whence.errors import BadArgument, NegativeCurvature, NonFinite, Unsupported
from whence.methods.influence import Influence

DAMPED = 0.02


def vectors(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((actual - expected).norm() / expected.norm()) <= tolerance


def sketched(matrix: Tensor, *, rank: int, seed: int, floor: float) -> Tensor:
    """floor I + (A W^T) (W A W^T)^-1 (W A) for A = matrix - floor I, written out."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rank, len(matrix), generator=generator, dtype=torch.float64)
    probes = torch.linalg.qr(rows.T)[0].T
    one = torch.eye(len(matrix)).double()
    above = matrix - floor * one
    inside = torch.linalg.pinv(probes @ above @ probes.T, rtol=1e-12, hermitian=True)
    return floor * one + above @ probes.T @ inside @ probes @ above


# ------------------------------------------------------------------ the whole space


@pytest.mark.parametrize("damping", ["auto", DAMPED])
@pytest.mark.parametrize("name", CONVEX)
def test_at_full_rank_it_is_the_dense_inverse(name, damping):
    problem = CONVEX[name]().problem
    v = vectors(problem)
    expected = Exact(damping=damping).fit(problem).solve(v).vectors
    actual = Nystrom(rank=problem.size, damping=damping).fit(problem).solve(v)
    assert_close(actual.vectors, expected, 1e-8)


@pytest.mark.parametrize("name", DEEP)
def test_at_full_rank_it_is_the_dense_inverse_of_networks_damping_included(name):
    """The trace is then known, and with it the mean eigenvalue."""
    problem = DEEP[name]().problem
    v = vectors(problem)
    expected = Exact(matrix="ggn").fit(problem)
    actual = Nystrom(rank=problem.size).fit(problem)
    assert actual.report["damping"] == pytest.approx(expected.report["damping"], rel=1e-10)
    assert actual.report["captured_trace"] == pytest.approx(1)
    assert_close(actual.solve(v).vectors, expected.solve(v).vectors, 1e-8)


# ------------------------------------------------------------------ a part of it


@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("name", ["multinomial", "mlp_untrained", "multinomial_free_intercept"])
def test_at_rank_r_it_is_the_inverse_of_the_sketch_written_out(name, rank):
    problem = ALL[name]().problem
    v = vectors(problem)
    floor = 0.0 if name == "multinomial_free_intercept" else problem.regularizer.weight_decay
    dense = sketched(CurvatureMatrix(problem, "ggn").dense(), rank=rank, seed=4, floor=floor)
    expected = torch.linalg.solve(dense + DAMPED * torch.eye(problem.size).double(), v.T).T
    fitted = Nystrom(rank=rank, seed=4, damping=DAMPED).fit(problem)
    assert fitted.report["floor"] == pytest.approx(floor)
    assert fitted.report["rank"] == rank
    assert_close(fitted.solve(v).vectors, expected, 1e-8)


def test_a_matrix_of_low_rank_is_inverted_as_it_is():
    """Seven examples of three classes bend along fourteen directions of thirty-eight."""
    case = problems.mlp_untrained()
    problem = problems.rearranged(case, torch.arange(7))
    v = vectors(problem)
    expected = Exact(matrix="ggn", damping=0.01).fit(problem).solve(v).vectors
    fitted = Nystrom(rank=16, damping=0.01).fit(problem)
    assert fitted.report["rank"] == 14
    assert_close(fitted.solve(v).vectors, expected, 1e-8)
    assert fitted.report["captured_trace"] == pytest.approx(1)


def test_without_damping_and_decay_what_is_beside_the_sketch_is_left_out_and_said():
    problem = problems.multinomial_free_intercept().problem
    v = vectors(problem)
    dense = sketched(CurvatureMatrix(problem).dense(), rank=4, seed=0, floor=0.0)
    fitted = Nystrom(rank=4).fit(problem)
    solution = fitted.solve(v)
    inverse = torch.linalg.pinv(dense, rtol=1e-9, hermitian=True)
    assert fitted.report["damping"] == fitted.report["floor"] == 0
    assert_close(solution.vectors, v @ inverse, 1e-8)
    outside = (v - v @ dense @ inverse).norm(dim=1) / v.norm(dim=1)
    assert solution.report["outside_share"] == pytest.approx(float(outside.max()))
    assert (
        "3 of 3 query gradients reach out of the captured space" in solution.report["warnings"][0]
    )
    damped = Nystrom(rank=4, damping=0.1).fit(problem).solve(v)
    assert "warnings" not in damped.report


def test_more_rank_is_closer_to_the_inverse():
    problem = problems.digits().problem
    v = CurvatureMatrix(problem)(vectors(problem))  # like gradients: long where the matrix is
    expected = Exact().fit(problem).solve(v).vectors
    errors = [
        float((Nystrom(rank=rank).fit(problem).solve(v).vectors - expected).norm())
        for rank in (10, 30, 100, 300)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


# ------------------------------------------------------------------ what the report says


def test_the_captured_share_of_the_trace_is_the_true_one_within_its_error():
    """Four standard errors of thirty probes, none of which would tell of a mistake of a half."""
    problem = problems.digits().problem
    matrix = CurvatureMatrix(problem).dense()
    decay = problem.regularizer.weight_decay
    fitted = Nystrom(rank=40).fit(problem)
    total = float(matrix.trace()) - decay * problem.size
    share = float(fitted.known.values.sum() - decay * len(fitted.known.values)) / total
    error = fitted.report["captured_trace_error"]
    assert fitted.report["captured_trace"] == pytest.approx(share, abs=4 * error)
    assert 0 < error < 0.05


def test_the_damping_of_a_network_follows_its_mean_eigenvalue():
    problem = problems.tied().problem
    mean = float(CurvatureMatrix(problem, "ggn").dense().trace()) / problem.size
    report = Nystrom(rank=10).fit(problem).report
    assert report["damping"] == pytest.approx(AUTO_DAMPING * mean, rel=0.2)
    assert report["matrix"] == "ggn"


def test_the_sketch_is_never_larger_than_the_matrix():
    problem = problems.tied().problem
    fitted = Nystrom(rank=12).fit(problem)
    known = fitted.known
    own = known.floor * torch.eye(problem.size).double()
    own += (known.basis.T * (known.values - known.floor)) @ known.basis
    gap = torch.linalg.eigvalsh(CurvatureMatrix(problem, "ggn").dense() - own)
    assert float(gap[0]) >= -1e-12
    assert fitted.report["largest_eigenvalue"] == float(known.values.max())


# ------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize("size", [1, 7])
def test_batches_and_order_do_not_change_a_part_either(size, monkeypatch):
    case = problems.multinomial()
    v = vectors(case.problem)
    expected = Nystrom(rank=6).fit(case.problem).solve(v).vectors
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: min(size, len(self)))
    order = torch.arange(len(case.problem)).flip(0)
    actual = Nystrom(rank=6).fit(problems.rearranged(case, order)).solve(v).vectors
    assert_close(actual, expected, 1e-9)


def test_the_seed_decides_the_sketch():
    problem = problems.digits().problem
    v = vectors(problem)
    first, again, other = (
        Nystrom(rank=10, seed=seed).fit(problem).solve(v).vectors for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_a_model_in_float32_gives_the_same_to_float32():
    case = problems.digits()
    v = vectors(case.problem)
    expected = Nystrom(rank=20, damping=0.1).fit(case.problem).solve(v).vectors
    actual = Nystrom(rank=20, damping=0.1).fit(problems.single(case).problem).solve(v.float())
    assert actual.vectors.dtype == torch.float32
    assert_close(actual.vectors.double(), expected, 1e-3)


# ------------------------------------------------------------------ removals


def test_self_influence_takes_no_products(monkeypatch):
    case = problems.multinomial()
    fitted = Influence(Nystrom(rank=20)).fit(case.problem)
    expected = Influence(Exact(), removal="first_order").fit(case.problem).self_influence()

    def refuse(self: CurvatureMatrix, stack: Tensor) -> Tensor:
        raise AssertionError("a product for every example")

    monkeypatch.setattr(CurvatureMatrix, "__call__", refuse)
    assert_allclose(fitted.self_influence(), expected, rtol=1e-8)


def test_newton_removals_are_not_offered():
    problem = problems.multinomial().problem
    assert Influence("nystrom").fit(problem).report["removal"] == "first_order"
    with pytest.raises(Unsupported):
        Influence("nystrom", removal="newton").fit(problem)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "recipe",
    [
        Nystrom(rank=0),
        Nystrom(damping=-0.1),
        Nystrom(damping=float("nan")),
        Nystrom(damping=float("inf")),
    ],
)
def test_wrong_options_are_refused(recipe):
    with pytest.raises(BadArgument) as refused:
        recipe.fit(problems.ridge().problem)
    assert "Nystrom(" in refused.value.found


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    """log(1 + r^2) bends downwards beyond r = 1."""

    def heavy_tailed(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log1p((outputs[:, 0] - targets) ** 2)

    x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1).double().eval()
    y = 5 * torch.ones(20).double()
    problem = make_problem(model, (x, y), loss=heavy_tailed, weight_decay=0.1)
    with pytest.raises(NegativeCurvature, match="has the eigenvalue -") as refused:
        Nystrom(damping=1.0).fit(problem)
    assert "convex" in refused.value.remedy


def test_a_model_that_is_not_a_number_is_refused():
    problem = problems.multinomial().problem
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    with pytest.raises(NonFinite, match="Product 1"):
        Nystrom().fit(broken)
