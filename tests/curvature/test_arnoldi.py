"""The Krylov space against dense float64 algebra: the whole of it, and a part."""

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import problems
from problems import ALL, CONVEX, DEEP
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature.arnoldi import Arnoldi
from whence.curvature.base import AUTO_DAMPING
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NegativeCurvature, NonFinite, Unsupported
from whence.methods.influence import Influence

DAMPED = 0.02


def vectors(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((actual - expected).norm() / expected.norm()) <= tolerance


def krylov(matrix: Tensor, *, rank: int, block: int, seed: int) -> Tensor:
    """(r, P) an orthonormal basis of the space of the recipe's start, by dense algebra."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(block, len(matrix), generator=generator, dtype=torch.float64)
    rows = torch.zeros(0, len(matrix)).double()
    while len(rows) < rank:
        rows = torch.cat([rows, start])
        basis = torch.linalg.qr(rows.T)[0].T
        start = basis[-block:] @ matrix
    return basis[:rank]


def projected(matrix: Tensor, basis: Tensor, v: Tensor, floor: float, damping: float) -> Tensor:
    """The formula of the docstring, from the eigenpairs of the projected matrix."""
    values, turn = torch.linalg.eigh(basis @ matrix @ basis.T)
    pairs = turn.T @ basis
    inside = v @ pairs.T @ pairs
    rest = (v - inside) / (floor + damping) if floor + damping else 0.0
    return (v @ pairs.T / (values + damping)) @ pairs + rest


# ------------------------------------------------------------------ the whole space


@pytest.mark.parametrize("damping", ["auto", DAMPED])
@pytest.mark.parametrize("name", CONVEX)
def test_at_full_rank_it_is_the_dense_inverse(name, damping):
    problem = CONVEX[name]().problem
    v = vectors(problem)
    expected = Exact(damping=damping).fit(problem).solve(v).vectors
    actual = Arnoldi(rank=problem.size, damping=damping).fit(problem).solve(v)
    assert_close(actual.vectors, expected, 1e-8)


@pytest.mark.parametrize("block", [1, 7, 500])
@pytest.mark.parametrize("name", DEEP)
def test_at_full_rank_it_is_the_dense_inverse_of_networks_damping_included(name, block):
    """The trace is then known, and with it the mean eigenvalue."""
    problem = DEEP[name]().problem
    v = vectors(problem)
    expected = Exact(matrix="ggn").fit(problem)
    actual = Arnoldi(rank=problem.size, block=block).fit(problem)
    assert actual.report["damping"] == pytest.approx(expected.report["damping"], rel=1e-10)
    assert actual.report["captured_trace"] == pytest.approx(1)
    assert_close(actual.solve(v).vectors, expected.solve(v).vectors, 1e-8)


def test_a_hessian_of_its_own_is_taken_where_it_is_asked_for():
    problem = problems.mlp().problem
    v = vectors(problem)
    fitted = Arnoldi(matrix="hessian").fit(problem)
    assert fitted.report["matrix"] == "hessian"
    assert fitted.report["damping"] == 0
    assert_close(fitted.solve(v).vectors, Exact().fit(problem).solve(v).vectors, 1e-8)


def test_eigenvalues_that_come_several_times_are_all_found():
    """Shifts of all logits have the decay as eigenvalue, five times; one start finds it once."""
    problem = problems.class_weighted().problem
    matrix = CurvatureMatrix(problem).dense()
    known = Arnoldi(rank=problem.size, block=1).fit(problem).known
    assert_allclose(known.values, torch.linalg.eigvalsh(matrix), rtol=1e-9)
    assert_close(known.basis @ known.basis.T, torch.eye(problem.size).double(), 1e-10)


# ------------------------------------------------------------------ a part of it


@pytest.mark.parametrize(("rank", "block"), [(1, 1), (5, 1), (6, 2), (9, 3), (9, 20)])
@pytest.mark.parametrize("name", ["multinomial", "mlp_untrained", "multinomial_free_intercept"])
def test_at_rank_r_it_is_the_projection_formula(name, rank, block):
    problem = ALL[name]().problem
    v = vectors(problem)
    matrix = CurvatureMatrix(problem, "ggn").dense()
    decay = problem.regularizer.weight_decay
    floor = 0.0 if name == "multinomial_free_intercept" else decay
    block = min(block, rank)
    basis = krylov(matrix, rank=rank, block=block, seed=4)
    expected = projected(matrix, basis, v, floor, DAMPED)
    fitted = Arnoldi(rank=rank, block=block, seed=4, damping=DAMPED).fit(problem)
    assert fitted.report["floor"] == pytest.approx(floor)
    assert_close(fitted.solve(v).vectors, expected, 1e-8)


def test_a_last_block_without_room_for_all_its_vectors_is_a_projection_too():
    problem = problems.mlp_untrained().problem
    v = vectors(problem)
    fitted = Arnoldi(rank=7, block=3, damping=DAMPED).fit(problem)
    matrix = CurvatureMatrix(problem, "ggn").dense()
    decay = problem.regularizer.weight_decay
    expected = projected(matrix, fitted.known.basis, v, decay, DAMPED)
    assert_close(fitted.solve(v).vectors, expected, 1e-8)


def test_without_damping_and_decay_what_is_beside_the_space_is_left_out_and_said():
    problem = problems.multinomial_free_intercept().problem
    v = vectors(problem)
    matrix = CurvatureMatrix(problem).dense()
    basis = krylov(matrix, rank=4, block=1, seed=0)
    fitted = Arnoldi(rank=4, block=1).fit(problem)
    solution = fitted.solve(v)
    assert fitted.report["damping"] == fitted.report["floor"] == 0
    assert_close(solution.vectors, projected(matrix, basis, v, 0.0, 0.0), 1e-8)
    outside = (v - v @ basis.T @ basis).norm(dim=1) / v.norm(dim=1)
    assert solution.report["outside_share"] == pytest.approx(float(outside.max()))
    assert (
        "3 of 3 query gradients reach out of the captured space" in solution.report["warnings"][0]
    )
    assert "warnings" not in fitted.solve(basis).report


def test_with_damping_nothing_is_left_out_and_nothing_is_warned_of():
    problem = problems.multinomial_free_intercept().problem
    assert (
        "warnings" not in Arnoldi(rank=4, damping=0.1).fit(problem).solve(vectors(problem)).report
    )


def test_more_rank_is_closer_to_the_inverse():
    problem = problems.digits().problem
    v = CurvatureMatrix(problem)(vectors(problem))  # like gradients: long where the matrix is
    expected = Exact().fit(problem).solve(v).vectors
    errors = [
        float((Arnoldi(rank=rank).fit(problem).solve(v).vectors - expected).norm())
        for rank in (10, 30, 100, 300)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


# ------------------------------------------------------------------ what the report says


@pytest.mark.parametrize(("rank", "block"), [(5, 1), (8, 3)])
def test_ritz_pairs_are_reported_as_they_are(rank, block):
    problem = problems.mlp_untrained().problem
    matrix = CurvatureMatrix(problem, "ggn").dense()
    fitted = Arnoldi(rank=rank, block=block).fit(problem)
    report, pairs, values = fitted.report, fitted.known.basis, fitted.known.values
    true = (pairs @ matrix - values[:, None] * pairs).norm(dim=1)
    assert report["ritz_residual"] == pytest.approx(float(true.max() / values.max()), rel=1e-6)
    assert report["converged_pairs"] == int((true <= 0.01 * values).sum())
    assert report["rank"] == rank
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert float(eigenvalues[0]) - 1e-12 <= report["smallest_ritz_value"] == float(values[0])
    assert report["largest_ritz_value"] == float(values[-1]) <= float(eigenvalues[-1]) + 1e-12


def test_the_captured_share_of_the_trace_is_the_true_one_within_its_error():
    """Four standard errors of thirty probes, none of which would tell of a mistake of a half."""
    problem = problems.digits().problem
    matrix = CurvatureMatrix(problem).dense()
    fitted = Arnoldi(rank=40).fit(problem)
    decay = problem.regularizer.weight_decay
    total = float(matrix.trace()) - decay * problem.size
    share = float(fitted.known.values.sum() - decay * 40) / total
    error = fitted.report["captured_trace_error"]
    assert fitted.report["captured_trace"] == pytest.approx(share, abs=4 * error)
    assert 0 < error < 0.05


def test_the_damping_of_a_network_follows_its_mean_eigenvalue():
    problem = problems.tied().problem
    mean = float(CurvatureMatrix(problem, "ggn").dense().trace()) / problem.size
    report = Arnoldi(rank=10).fit(problem).report
    assert report["damping"] == pytest.approx(AUTO_DAMPING * mean, rel=0.2)
    assert report["matrix"] == "ggn"
    assert "negative" in report["matrix_reason"]


# ------------------------------------------------------------------ negative curvature


def test_a_negative_ritz_value_is_refused_with_its_size():
    problem = problems.mlp_untrained().problem
    smallest = float(torch.linalg.eigvalsh(CurvatureMatrix(problem).dense())[0])
    with pytest.raises(NegativeCurvature, match=f"{smallest:.3g}") as refused:
        Arnoldi(matrix="hessian").fit(problem)
    assert "ggn" in refused.value.remedy


def test_damping_can_make_up_for_negative_eigenvalues():
    problem = problems.mlp_untrained().problem
    v = vectors(problem)
    expected = Exact(matrix="hessian", damping=1.0).fit(problem).solve(v).vectors
    actual = Arnoldi(matrix="hessian", damping=1.0).fit(problem).solve(v).vectors
    assert_close(actual, expected, 1e-8)


# ------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize("size", [1, 7])
def test_batches_and_order_do_not_change_a_part_either(size, monkeypatch):
    case = problems.multinomial()
    v = vectors(case.problem)
    expected = Arnoldi(rank=6, block=2).fit(case.problem).solve(v).vectors
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: min(size, len(self)))
    order = torch.arange(len(case.problem)).flip(0)
    actual = Arnoldi(rank=6, block=2).fit(problems.rearranged(case, order)).solve(v).vectors
    assert_close(actual, expected, 1e-9)


def test_the_seed_decides_the_space():
    problem = problems.digits().problem
    v = vectors(problem)
    first, again, other = (
        Arnoldi(rank=10, seed=seed).fit(problem).solve(v).vectors for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_a_model_in_float32_gives_the_same_to_float32():
    case = problems.digits()
    v = vectors(case.problem)
    expected = Arnoldi(rank=20, damping=0.1).fit(case.problem).solve(v).vectors
    actual = Arnoldi(rank=20, damping=0.1).fit(problems.single(case).problem).solve(v.float())
    assert actual.vectors.dtype == torch.float32
    assert_close(actual.vectors.double(), expected, 1e-3)


# ------------------------------------------------------------------ removals


def test_self_influence_takes_no_products(monkeypatch):
    case = problems.multinomial()
    fitted = Influence(Arnoldi(rank=20)).fit(case.problem)
    expected = Influence(Exact(), removal="first_order").fit(case.problem).self_influence()

    def refuse(self: CurvatureMatrix, stack: Tensor) -> Tensor:
        raise AssertionError("a product for every example")

    monkeypatch.setattr(CurvatureMatrix, "__call__", refuse)
    assert_allclose(fitted.self_influence(), expected, rtol=1e-8)


def test_newton_removals_are_not_offered():
    problem = problems.multinomial().problem
    assert Influence("arnoldi").fit(problem).report["removal"] == "first_order"
    with pytest.raises(Unsupported):
        Influence("arnoldi", removal="newton").fit(problem)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "recipe",
    [
        Arnoldi(rank=0),
        Arnoldi(block=0),
        Arnoldi(damping=-0.1),
        Arnoldi(damping=float("nan")),
        Arnoldi(damping=float("inf")),
        Arnoldi(matrix="fisher"),
    ],
)
def test_wrong_options_are_refused(recipe):
    with pytest.raises(BadArgument) as refused:
        recipe.fit(problems.ridge().problem)
    assert "Arnoldi(" in refused.value.found


def test_a_model_that_is_not_a_number_is_refused():
    problem = problems.multinomial().problem
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    with pytest.raises(NonFinite, match="Product 1"):
        Arnoldi().fit(broken)
