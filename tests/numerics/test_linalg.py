"""Solves against dense float64 algebra; every trick has a test that fails without it."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from whence.errors import NegativeCurvature, NonFinite, NotConverged
from whence.numerics.linalg import (
    block_cg,
    decompose,
    extreme_eigenvalues,
    nystrom_preconditioner,
    trace,
)

EPS = torch.finfo(torch.float64).eps


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(normal)[0]
    return basis * values.double() @ basis.T


def rows(count: int, size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


SPREAD = symmetric(torch.logspace(-4, 1, 40))


# ------------------------------------------------------------------ dense matrices


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_decomposed_matrix_solves_like_lu(damping):
    v = rows(3, 40)
    expected = torch.linalg.solve(SPREAD + damping * torch.eye(40).double(), v.T).T
    solved = decompose(SPREAD, eps=EPS).solve(v, damping)
    assert_close(solved, expected, rtol=1e-8, atol=1e-8)  # condition 1e5


def test_halves_have_the_inverse_as_their_gram_matrix():
    v = rows(4, 40)
    eigen = decompose(SPREAD, eps=EPS)
    half = eigen.half(v, 0.1)
    assert_close(half @ half.T, v @ eigen.solve(v, 0.1).T, rtol=1e-10, atol=1e-10)


def test_null_directions_are_counted_and_left_out_without_damping():
    matrix = symmetric(torch.tensor([0.0, 1e-18, 0.5, 2.0]))
    eigen = decompose(matrix, eps=EPS)
    assert eigen.null_count == 2
    assert eigen.smallest == pytest.approx(0.5)
    assert_close(eigen.solve(rows(2, 4)), rows(2, 4) @ torch.linalg.pinv(matrix, rtol=1e-12))


def test_with_damping_null_directions_are_flat_like_any_other():
    matrix = symmetric(torch.tensor([0.0, 0.5, 2.0]))
    expected = torch.linalg.solve(matrix + 0.1 * torch.eye(3).double(), rows(2, 3).T).T
    assert_close(decompose(matrix, eps=EPS).solve(rows(2, 3), 0.1), expected)


def test_the_share_in_null_directions_is_that_of_the_norm():
    eigen = decompose(torch.diag(torch.tensor([0.0, 1.0, 2.0]).double()), eps=EPS)
    v = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 1.0]]).double()
    assert_close(eigen.null_share(v), torch.tensor([0.6, 0.0]).double())
    assert_close(eigen.without_null(v), torch.tensor([[0.0, 4.0, 0.0], [0.0, 1.0, 1.0]]).double())


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(NonFinite, match="curvature matrix"):
        decompose(torch.full((2, 2), torch.nan), eps=EPS)


# ------------------------------------------------------------------ block conjugate gradients


@pytest.mark.parametrize("count", [1, 3, 40, 55])  # 55 rows in 40 dimensions
def test_block_cg_solves_like_a_dense_solve(count):
    v = rows(count, 40)
    result = block_cg(lambda x: x @ SPREAD, v, tolerance=1e-11, max_steps=400)
    expected = torch.linalg.solve(SPREAD, v.T).T
    assert_close(result.solution, expected, rtol=1e-5, atol=1e-5)  # tolerance x condition 1e5
    true = (result.solution @ SPREAD - v).norm(dim=1) / v.norm(dim=1)
    assert_close(result.residuals, true, rtol=1e-6, atol=1e-15)
    assert float(true.max()) <= 1e-11


def test_dependent_rows_and_zero_rows_are_solved_like_any_other():
    first = rows(2, 40)
    v = torch.cat([first, first, first[:1] - 2 * first[1:], torch.zeros(1, 40).double()])
    solution = block_cg(lambda x: x @ SPREAD, v, tolerance=1e-10, max_steps=400).solution
    assert_close(solution[:2], solution[2:4])
    assert_close(solution[4], solution[0] - 2 * solution[1], rtol=1e-4, atol=1e-4)
    assert bool((solution[5] == 0).all())


def test_many_rows_share_their_search_space():
    """Twenty rows together take far fewer products than the worst of them alone."""
    alone = max(
        block_cg(lambda x: x @ SPREAD, v[None], tolerance=1e-8, max_steps=400).steps
        for v in rows(20, 40)
    )
    together = block_cg(lambda x: x @ SPREAD, rows(20, 40), tolerance=1e-8, max_steps=400).steps
    assert together < alone / 3


def test_the_true_residual_decides_where_the_recursive_one_has_drifted():
    """At condition 1e10 the recursion believes in 1e-11 long before it is true."""
    matrix = symmetric(torch.logspace(-9, 1, 30))
    v = rows(2, 30) @ matrix
    result = block_cg(lambda x: x @ matrix, v, tolerance=1e-9, max_steps=2000)
    assert float(((result.solution @ matrix - v).norm(dim=1) / v.norm(dim=1)).max()) <= 1e-9


def test_negative_curvature_is_detected():
    values = torch.linspace(1, 2, 30)
    values[7] = -0.5
    with pytest.raises(NegativeCurvature, match="curvature is -"):
        block_cg(lambda x: x @ symmetric(values), rows(2, 30), tolerance=1e-8, max_steps=100)


def test_a_solve_that_ends_too_early_says_how_far_it_came():
    with pytest.raises(NotConverged, match=r"2 of 2 solves .* Curvature met: "):
        block_cg(lambda x: x @ SPREAD, rows(2, 40), tolerance=1e-9, max_steps=5)


def test_a_tolerance_below_rounding_is_an_error_and_no_endless_loop():
    with pytest.raises(NotConverged, match="rounding"):
        block_cg(
            lambda x: x @ SPREAD.float(), rows(2, 40).float(), tolerance=1e-12, max_steps=10_000
        )


def test_a_product_that_is_not_a_number_is_refused():
    with pytest.raises(NonFinite, match="Product 1"):
        block_cg(lambda x: x * torch.nan, rows(1, 4), tolerance=1e-6, max_steps=9)


# ------------------------------------------------------------------ sketches


def test_a_full_sketch_is_the_formula():
    """With rank P the sketch is exact: P^-1 = U diag((l_min + d) / (l + d)) U^T."""
    matrix, damping = symmetric(torch.linspace(0.5, 4, 12)), 0.2
    condition = nystrom_preconditioner(
        lambda x: x @ matrix, torch.zeros(12).double(), rank=12, damping=damping, seed=0
    )
    values, basis = torch.linalg.eigh(matrix)
    expected = basis * ((values[0] + damping) / (values + damping)) @ basis.T
    assert_close(condition(torch.eye(12).double()), expected, rtol=1e-8, atol=1e-8)


def test_a_sketch_saves_most_of_the_steps_on_a_decaying_spectrum():
    matrix = symmetric(torch.logspace(2, -8, 200).clamp_min(0.1))
    like, v = torch.zeros(200).double(), rows(1, 200)
    condition = nystrom_preconditioner(lambda x: x @ matrix, like, rank=100, damping=0.0, seed=0)
    bare = block_cg(lambda x: x @ matrix, v, tolerance=1e-8, max_steps=500)
    helped = block_cg(
        lambda x: x @ matrix, v, tolerance=1e-8, max_steps=500, preconditioner=condition
    )
    assert helped.steps < bare.steps / 3
    assert_close(helped.solution, bare.solution, rtol=1e-4, atol=1e-3)


def test_the_trace_lies_within_its_own_error():
    found, error = trace(lambda x: x @ SPREAD, torch.zeros(40).double(), probes=400, seed=0)
    assert abs(found - float(SPREAD.trace())) < 4 * error


def test_ritz_values_approach_the_ends_of_the_spectrum_from_within():
    like = torch.zeros(40).double()
    few = extreme_eigenvalues(lambda x: x @ SPREAD, like, steps=8, seed=0)
    assert 1e-4 < few[0] < few[1] < 10
    all_steps = extreme_eigenvalues(lambda x: x @ SPREAD, like, steps=60, seed=0)
    assert all_steps == pytest.approx((1e-4, 10.0), rel=1e-6)
