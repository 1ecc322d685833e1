"""Damped solves, checked against dense float64 algebra and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from whence.errors import BadArgument, NegativeCurvature, NonFinite, NotConverged, NumericsError
from whence.numerics.linalg import (
    LowRank,
    block_cg,
    decompose,
    eigenbasis,
    extreme_eigenvalues,
    nystrom,
    nystrom_preconditioner,
    ritz_pairs,
    trace,
    trace_outside,
)

EPS = torch.finfo(torch.float64).eps
P = 120


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_eigenvalues(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    turn = torch.linalg.qr(normal(len(values), len(values), seed=0))[0]
    matrix = (turn * values) @ turn.T
    return (matrix + matrix.T) / 2


def conditioned(condition: float, size: int = P) -> Tensor:
    return with_eigenvalues(torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64))


class Counted:
    """A matrix as a product that counts its calls."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.calls = 0

    def __call__(self, stack: Tensor) -> Tensor:
        self.calls += 1
        return stack @ self.matrix


def solved(matrix: Tensor, rhs: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, rhs.T).T


def relative_residuals(matrix: Tensor, solution: Tensor, rhs: Tensor) -> Tensor:
    return (solution @ matrix - rhs).norm(dim=1) / rhs.norm(dim=1)


# ------------------------------------------------------------------ dense


def test_a_solve_without_damping_is_the_pseudo_inverse():
    matrix = with_eigenvalues(torch.cat([torch.zeros(3), torch.linspace(0.1, 2, 17)]).double())
    eigen = decompose(matrix, eps=EPS)
    rhs = normal(4, 20)
    assert eigen.null_count == 3
    torch.testing.assert_close(eigen.solve(rhs), rhs @ torch.linalg.pinv(matrix, rtol=1e-10))


def test_a_damped_solve_of_a_matrix_of_full_rank_undoes_the_product():
    matrix, rhs = conditioned(1e3), normal(4, P)
    x = decompose(matrix, eps=EPS).solve(rhs, 0.01)
    torch.testing.assert_close(x @ matrix + 0.01 * x, rhs)


def test_halves_multiply_to_the_leverage():
    matrix, rows = conditioned(1e3), normal(5, P)
    half = decompose(matrix, eps=EPS).half(rows, 0.01)
    expected = rows @ torch.linalg.inv(matrix + 0.01 * torch.eye(P).double()) @ rows.T
    torch.testing.assert_close(half @ half.T, expected)


def test_eigenvalues_that_rounding_of_float32_could_have_made_are_null_only_for_float32():
    values = torch.tensor([1e-9, 0.5, 1.0]).double()
    float32 = decompose(torch.diag(values), eps=torch.finfo(torch.float32).eps)
    assert float32.null_count == 1
    assert float32.smallest == 0.5
    assert decompose(torch.diag(values), eps=EPS).smallest == float(values[0])


def test_the_null_share_is_the_sine_of_the_angle_to_the_range():
    eigen = decompose(torch.diag(torch.tensor([0.0, 1.0, 2.0]).double()), eps=EPS)
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([0.6, 0.0, 1.0, 0.0]).double()
    torch.testing.assert_close(eigen.null_share(rows.double()), expected)


def test_smallest_largest_and_mean_are_those_of_the_spectrum():
    eigen = decompose(with_eigenvalues(torch.tensor([-2.0, 1.0, 4.0]).double()), eps=EPS)
    assert (eigen.smallest, eigen.largest, eigen.mean) == pytest.approx((-2, 4, 1))


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(NumericsError, match="mirror images by up to 5"):
        decompose(torch.tensor([[1.0, 5.0], [0.0, 1.0]]).double(), eps=EPS)


def test_asymmetry_far_from_the_first_rows_is_seen_too():
    matrix = torch.eye(1500).double()
    matrix[1400, 1200] = 1
    with pytest.raises(NumericsError, match="mirror"):
        decompose(matrix, eps=EPS)


def test_asymmetry_of_rounding_is_allowed():
    matrix = conditioned(10.0)
    matrix[0, 1] += 1e-12
    decompose(matrix, eps=EPS)


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(NonFinite):
        decompose(torch.full((2, 2), torch.nan).double(), eps=EPS)


def test_a_decomposition_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch):
    def fail(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(NumericsError, match="no convergence"):
        decompose(torch.eye(2).double(), eps=EPS)


# ------------------------------------------------------------------ block conjugate gradients


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("condition", [1e1, 1e4])
def test_the_solution_is_that_of_dense_algebra(count, condition):
    matrix, rhs = conditioned(condition), normal(count, P)
    result = block_cg(Counted(matrix), rhs, tolerance=1e-11, max_steps=2000)
    error = (result.solution - solved(matrix, rhs)).norm(dim=1) / rhs.norm(dim=1)
    assert float(error.max()) <= 1e-11 * condition  # |error| <= |residual| / smallest eigenvalue


def test_the_reported_residuals_are_the_true_ones():
    matrix, rhs = conditioned(1e4), normal(5, P) * torch.logspace(-6, 6, 5).double()[:, None]
    result = block_cg(Counted(matrix), rhs, tolerance=1e-9, max_steps=2000)
    true = relative_residuals(matrix, result.solution, rhs)
    assert float(true.max()) <= 1e-9 * (1 + 1e-6)
    torch.testing.assert_close(result.residuals, true, rtol=1e-6, atol=1e-15)


def test_a_condition_of_a_million_is_solved_to_1e_11():
    """Right-hand sides in the range, as gradients are: |x| is moderate, and so is its rounding."""
    matrix = conditioned(1e6)
    rhs = normal(8, P) @ matrix
    result = block_cg(Counted(matrix), rhs, tolerance=1e-11, max_steps=3000)
    assert float(relative_residuals(matrix, result.solution, rhs).max()) <= 1e-11 * (1 + 1e-6)


def test_drift_of_the_recursive_residual_is_repaired_by_starting_again():
    """Near what rounding allows the first check fails, although the recursion had said "done"."""
    matrix, rhs = conditioned(1e6), normal(4, P, seed=2)
    direct = float(relative_residuals(matrix, solved(matrix, rhs), rhs).max())
    checked: list[float] = []

    def product(stack: Tensor) -> Tensor:
        image = stack @ matrix
        if not torch.allclose(stack @ stack.T, torch.eye(len(stack)).double()):  # no directions
            checked.append(float(relative_residuals(matrix, stack, rhs).max()))
        return image

    result = block_cg(product, rhs, tolerance=1.5 * direct, max_steps=3000)
    assert checked[0] > 1.5 * direct
    assert float(result.residuals.max()) <= 1.5 * direct


def test_a_tolerance_that_rounding_forbids_is_refused_and_not_far_above_a_direct_solve():
    matrix, rhs = conditioned(1e6), normal(8, P)
    direct = float(relative_residuals(matrix, solved(matrix, rhs), rhs).max())
    with pytest.raises(NotConverged, match="rounding lets it go no further"):
        block_cg(Counted(matrix), rhs, tolerance=direct / 100, max_steps=5000)
    block_cg(Counted(matrix), rhs, tolerance=4 * direct, max_steps=5000)


def test_many_rows_need_fewer_steps_than_few():
    """Fails with directions made orthonormal through their Gram matrix: 243 steps for 32 rows."""
    matrix = conditioned(1e4, 300)
    few = block_cg(Counted(matrix), normal(8, 300), tolerance=1e-11, max_steps=2000).steps
    many = block_cg(Counted(matrix), normal(32, 300), tolerance=1e-11, max_steps=2000).steps
    assert many < few / 2


@pytest.mark.parametrize("distance", [0.0, 1e-14, 1e-9, 1e-6])
def test_dependent_rows_cost_no_more_steps_than_one_of_each(distance):
    matrix, rows = conditioned(1e4, 300), normal(4, 300)
    alone = block_cg(Counted(matrix), rows, tolerance=1e-11, max_steps=3000)
    stack = torch.cat([rows, rows + distance * normal(4, 300, seed=5)])
    both = block_cg(Counted(matrix), stack, tolerance=1e-11, max_steps=3000)
    assert both.steps <= 1.1 * alone.steps
    assert float(relative_residuals(matrix, both.solution, stack).max()) <= 1e-11 * (1 + 1e-6)


def test_copies_are_not_multiplied():
    widths: list[int] = []
    matrix, rows = conditioned(1e3), normal(3, P)

    def product(stack: Tensor) -> Tensor:
        widths.append(len(stack))
        return stack @ matrix

    stack = torch.cat([rows, -2 * rows, rows[:1] + rows[1:2]])
    block_cg(product, stack, tolerance=1e-9, max_steps=500)
    assert max(widths[:-1]) == 3  # the last is the check of all rows


def test_more_rows_than_dimensions_cost_the_dimension():
    widths: list[int] = []
    matrix = conditioned(1e3, 20)

    def product(stack: Tensor) -> Tensor:
        widths.append(len(stack))
        return stack @ matrix

    rhs = normal(70, 20)
    result = block_cg(product, rhs, tolerance=1e-10, max_steps=50)
    torch.testing.assert_close(result.solution, solved(matrix, rhs), rtol=1e-6, atol=1e-6)
    assert max(widths[:-1]) == 20  # the last is the check of all rows


def test_zero_rows_give_zero_and_an_empty_stack_an_empty_one():
    rhs = torch.cat([torch.zeros(1, P).double(), normal(2, P), torch.zeros(1, P).double()])
    result = block_cg(Counted(conditioned(10.0)), rhs, tolerance=1e-10, max_steps=200)
    assert torch.equal(result.solution[[0, 3]], torch.zeros(2, P).double())
    assert float(result.residuals[[0, 3]].max()) == 0
    empty = block_cg(Counted(conditioned(10.0)), rhs[:0], tolerance=1e-10, max_steps=200)
    assert empty.solution.shape == (0, P)
    zeros = block_cg(Counted(conditioned(10.0)), rhs[:1], tolerance=1e-10, max_steps=200)
    assert torch.equal(zeros.solution, rhs[:1])


def test_rows_whose_squares_underflow_are_solved():
    matrix, rhs = conditioned(1e2), normal(3, P)
    small = block_cg(Counted(matrix), rhs * 1e-200, tolerance=1e-11, max_steps=500)
    expected = solved(matrix, rhs)
    torch.testing.assert_close(small.solution * 1e200, expected, rtol=1e-8, atol=1e-8)


def test_a_row_is_solved_alike_alone_and_in_a_stack():
    matrix, rhs = conditioned(1e3), normal(6, P)
    together = block_cg(Counted(matrix), rhs, tolerance=1e-10, max_steps=1000).solution
    for k in range(len(rhs)):
        alone = block_cg(Counted(matrix), rhs[k : k + 1], tolerance=1e-10, max_steps=1000)
        distance = float((alone.solution[0] - together[k]).norm() / rhs[k].norm())
        assert distance <= 2 * 1e-10 * 1e3


def test_a_singular_matrix_is_solved_for_rows_in_its_range():
    matrix = with_eigenvalues(torch.cat([torch.zeros(100), torch.linspace(0.1, 1, 20)]).double())
    rhs = normal(40, P) @ matrix  # more rows than the rank
    result = block_cg(Counted(matrix), rhs, tolerance=1e-9, max_steps=100)
    expected = rhs @ torch.linalg.pinv(matrix, rtol=1e-10)
    torch.testing.assert_close(result.solution, expected, rtol=1e-6, atol=1e-6)


def test_a_singular_matrix_is_not_called_negative_where_rounding_makes_it_so():
    matrix = with_eigenvalues(torch.cat([torch.zeros(100), torch.linspace(0.1, 1, 20)]).double())
    with pytest.raises(NotConverged):
        block_cg(Counted(matrix), normal(4, P), tolerance=1e-8, max_steps=100)


def test_negative_curvature_is_refused_with_its_value():
    values = torch.linspace(0.1, 1, P).double()
    values[0] = -0.3
    with pytest.raises(NegativeCurvature) as caught:
        block_cg(Counted(with_eigenvalues(values)), normal(4, P), tolerance=1e-8, max_steps=500)
    told = float(caught.value.found.split("curvature is ")[1].split(" ")[0])
    assert -0.3 - 1e-9 <= told < 0  # a Rayleigh quotient lies inside the range


def test_stopping_early_says_how_many_rows_and_how_far():
    with pytest.raises(NotConverged, match=r"at relative residual .* \(asked 1.0e-11\); 4 of 4"):
        block_cg(Counted(conditioned(1e4)), normal(4, P), tolerance=1e-11, max_steps=5)


def test_only_as_many_products_are_made_as_reported():
    product = Counted(conditioned(1e3))
    assert block_cg(product, normal(4, P), tolerance=1e-8, max_steps=500).steps == product.calls


def test_rayleigh_quotients_lie_inside_the_range_of_eigenvalues():
    result = block_cg(Counted(conditioned(1e3)), normal(8, P), tolerance=1e-10, max_steps=500)
    assert 1e-3 * (1 - 1e-9) <= result.smallest_ritz < result.largest_ritz <= 1 + 1e-9


def test_nan_is_blamed_on_the_side_it_comes_from():
    rhs = normal(3, P)
    with pytest.raises(NonFinite, match="Product 1"):
        block_cg(lambda stack: stack * torch.nan, rhs, tolerance=1e-8, max_steps=9)
    rhs[1, 0] = torch.nan
    with pytest.raises(NonFinite, match="1 of 3 right-hand sides"):
        block_cg(Counted(conditioned(10.0)), rhs, tolerance=1e-8, max_steps=9)


def test_the_type_of_the_rows_is_kept():
    matrix = conditioned(10.0).float()
    result = block_cg(Counted(matrix), normal(4, P).float(), tolerance=1e-5, max_steps=200)
    assert result.solution.dtype == torch.float32
    true = relative_residuals(matrix.double(), result.solution.double(), normal(4, P))
    assert float(true.max()) <= 1.1e-5


# ------------------------------------------------------------------ matrices of low rank


def orthonormal(count: int, size: int) -> Tensor:
    return torch.linalg.qr(normal(count, size).T)[0].T


def written_out(known: LowRank) -> Tensor:
    inside = known.basis.T @ known.basis
    one = torch.eye(known.basis.shape[1]).double()
    return (known.basis.T * known.values) @ known.basis + known.floor * (one - inside)


@pytest.mark.parametrize(("floor", "damping"), [(0.0, 0.1), (0.2, 0.0), (0.2, 0.1), (0.0, 0.0)])
def test_a_matrix_of_low_rank_is_inverted_as_when_it_is_written_out(floor, damping):
    known = LowRank(orthonormal(6, 20), torch.linspace(0.3, 5, 6).double(), floor)
    dense = written_out(known) + damping * torch.eye(20).double()
    expected = torch.linalg.pinv(dense, rtol=1e-10, hermitian=True)
    rows = normal(8, 20, seed=3)
    torch.testing.assert_close(known.solve(rows, damping), rows @ expected)
    jacobians = rows.reshape(2, 4, 20)
    leverage = known.leverage(jacobians, damping)
    torch.testing.assert_close(leverage, jacobians @ expected @ jacobians.mT)
    assert known.is_left_out(damping) == (floor + damping == 0)


def test_the_floor_of_a_complete_basis_plays_no_part():
    known = LowRank(orthonormal(5, 5), torch.linspace(1, 5, 5).double(), -7.0)
    assert known.is_complete
    assert known.smallest == 1
    assert not known.is_left_out(7.0)
    rows = normal(2, 5, seed=3)
    torch.testing.assert_close(known.solve(rows), rows @ torch.linalg.inv(written_out(known)))


def test_the_smallest_eigenvalue_counts_the_floor_and_no_rounding():
    basis, values = orthonormal(3, 9), torch.tensor([1e-18, 0.5, 2.0]).double()
    assert LowRank(basis, values).smallest == 0.5
    assert LowRank(basis, values, 0.25).smallest == 0.25
    assert LowRank(basis, values, -0.25).smallest == -0.25
    assert LowRank(basis[:0], values[:0]).smallest == 0


def test_rows_fall_into_a_part_inside_and_one_outside():
    known = LowRank(orthonormal(4, 12), torch.ones(4).double())
    rows = normal(3, 12, seed=2)
    inside, outside = known.split(rows)
    torch.testing.assert_close(inside @ known.basis + outside, rows)
    torch.testing.assert_close(outside @ known.basis.T, torch.zeros(3, 4).double())


# ------------------------------------------------------------------ Krylov spaces


@pytest.mark.parametrize(("rank", "block"), [(1, 1), (12, 1), (12, 4), (14, 4), (30, 200)])
def test_ritz_pairs_are_those_of_the_projected_matrix(rank, block):
    matrix = conditioned(1e3)
    found = ritz_pairs(Counted(matrix), torch.zeros(P).double(), rank=rank, block=block)
    pairs = found.vectors
    torch.testing.assert_close(pairs @ pairs.T, torch.eye(rank).double())
    torch.testing.assert_close(pairs @ matrix @ pairs.T, torch.diag(found.values))
    rest = (pairs @ matrix - found.values[:, None] * pairs).norm(dim=1)
    torch.testing.assert_close(found.residuals, rest, rtol=1e-6, atol=1e-14)


def test_the_krylov_space_holds_the_powers_of_its_start():
    matrix = conditioned(10.0)
    pairs = ritz_pairs(Counted(matrix), torch.zeros(P).double(), rank=6, seed=2).vectors
    power = torch.randn(
        1, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )  # the start of that seed
    for _ in range(6):
        torch.testing.assert_close(power @ pairs.T @ pairs, power)
        power = power @ matrix


@pytest.mark.parametrize("block", [1, 3, 7])
def test_all_steps_find_all_eigenvalues_multiple_ones_and_zero_included(block):
    values = torch.cat([torch.zeros(20), torch.ones(15), torch.linspace(2, 9, 5)]).double()
    product = Counted(with_eigenvalues(values))
    found = ritz_pairs(product, torch.zeros(40).double(), rank=100, block=block)
    torch.testing.assert_close(found.values, values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(40).double())
    assert float(found.residuals.max()) < 1e-12
    assert product.calls == -(-40 // block)


def test_a_matrix_of_zeros_has_pairs_of_zero():
    found = ritz_pairs(Counted(torch.zeros(9, 9).double()), torch.zeros(9).double(), rank=4)
    assert not found.values.any()
    assert not found.residuals.any()
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(4).double())


def test_a_space_in_float32_stays_orthonormal():
    values = torch.logspace(-8, 2, P, dtype=torch.float64)
    matrix = with_eigenvalues(values).float()
    found = ritz_pairs(Counted(matrix), torch.zeros(P), rank=60, block=2)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(60), rtol=0, atol=1e-5)
    assert float(found.values[-1]) == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("find", [ritz_pairs, nystrom])
def test_products_that_are_not_a_number_are_refused(find):
    with pytest.raises(NonFinite, match="Product 1"):
        find(lambda stack: stack * torch.nan, torch.zeros(9).double(), rank=3, seed=0)


# ------------------------------------------------------------------ random sketches


@pytest.mark.parametrize("rank", [1, 10, P])
def test_the_sketch_is_the_formula_and_never_more_than_the_matrix(rank):
    matrix = conditioned(1e3)
    made = nystrom(Counted(matrix), torch.zeros(P).double(), rank=rank, seed=3)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(rank, P, generator=generator, dtype=torch.float64)
    image = rows @ matrix
    expected = image.T @ torch.linalg.solve(rows @ image.T, image)
    actual = made.multiply(torch.eye(P).double())
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(made.basis @ made.basis.T, torch.eye(rank).double())
    assert float(torch.linalg.eigvalsh(matrix - actual)[0]) > -1e-12
    probes = torch.linalg.qr(rows.T)[0].T
    torch.testing.assert_close(made.inside.sum(), (probes @ matrix @ probes.T).trace())


def test_directions_without_curvature_are_no_part_of_the_sketch():
    nothing = nystrom(Counted(torch.zeros(9, 9).double()), torch.zeros(9).double(), rank=4, seed=0)
    assert nothing.basis.shape == (0, 9)
    assert not nothing.multiply(normal(2, 9)).any()
    few = with_eigenvalues(torch.cat([torch.zeros(30), torch.ones(5)]).double())
    assert len(nystrom(Counted(few), torch.zeros(35).double(), rank=12, seed=0).values) == 5


def test_the_preconditioner_equals_its_formula():
    """On a matrix of rank r the sketch is exact, so U and l are its eigenpairs."""
    values = torch.cat([torch.zeros(P - 10), torch.linspace(1, 5, 10)]).double()
    matrix, damping = with_eigenvalues(values), 0.01
    made = nystrom_preconditioner(
        Counted(matrix), torch.zeros(P).double(), rank=10, damping=damping, seed=0
    )
    kept, vectors = torch.linalg.eigh(matrix)
    U, top = vectors[:, -10:], kept[-10:]
    expected = torch.eye(P).double() + (U * ((top.min() + damping) / (top + damping) - 1)) @ U.T
    torch.testing.assert_close(made(torch.eye(P).double()), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sketch_wider_than_the_rank_stays_positive_and_orthonormal(damping, dtype):
    root = normal(5, P)
    matrix = (root.T @ root).to(dtype)
    made = nystrom_preconditioner(
        Counted(matrix), torch.zeros(P, dtype=dtype), rank=20, damping=damping, seed=0
    )
    width = made.basis.shape[1]
    torch.testing.assert_close(made.basis.T @ made.basis, torch.eye(width, dtype=dtype))
    assert float((1 + made.factors).min()) > 0


def test_preconditioning_saves_steps_where_the_spectrum_decays_and_changes_no_solution():
    decaying = with_eigenvalues(torch.arange(1, P + 1, dtype=torch.float64) ** -3.0)
    damping = 1e-6
    made = nystrom_preconditioner(
        Counted(decaying), torch.zeros(P).double(), rank=60, damping=damping, seed=0
    )
    matrix, rhs = decaying + damping * torch.eye(P).double(), normal(2, P)
    options = {"tolerance": 1e-9, "max_steps": 3000}
    plain = block_cg(Counted(matrix), rhs, **options)
    helped = block_cg(Counted(matrix), rhs, preconditioner=made, **options)
    assert helped.steps < plain.steps / 3
    bound = 2 * 1e-9 / float(torch.linalg.eigvalsh(matrix)[0])
    apart = (helped.solution - plain.solution).norm(dim=1) / rhs.norm(dim=1)
    assert float(apart.max()) <= bound


def test_the_trace_of_a_diagonal_matrix_is_exact_with_random_signs():
    mean, error = trace(
        Counted(torch.diag(torch.arange(5.0).double())), torch.zeros(5).double(), probes=3, seed=0
    )
    assert mean == 10
    assert error == 0


def test_the_standard_error_of_the_trace_is_honest():
    """The error of the estimate, in its own standard errors, has a mean square of about one."""
    matrix = conditioned(10.0, 40)
    true, squares = float(matrix.trace()), []
    for seed in range(200):
        mean, error = trace(Counted(matrix), torch.zeros(40).double(), probes=30, seed=seed)
        squares.append(((mean - true) / error) ** 2)
    # Student's t with 29 degrees of freedom: mean 29/27, standard deviation of 200 means 0.11
    assert sum(squares) / 200 == pytest.approx(29 / 27, abs=4 * 0.11)


def test_the_trace_beside_a_space_is_honest_about_its_error_and_nothing_beside_the_whole():
    matrix, basis = conditioned(10.0, 40), orthonormal(25, 40)
    beside = torch.eye(40).double() - basis.T @ basis
    true, squares = float((beside @ matrix).trace()), []
    like = torch.zeros(40).double()
    for seed in range(200):
        mean, error = trace_outside(Counted(matrix), basis, like, probes=30, seed=seed)
        squares.append(((mean - true) / error) ** 2)
    # Student's t with 29 degrees of freedom: mean 29/27, standard deviation of 200 means 0.11
    assert sum(squares) / 200 == pytest.approx(29 / 27, abs=4 * 0.11)
    whole = trace_outside(Counted(matrix), orthonormal(40, 40), like, probes=30, seed=0)
    assert whole == (0, 0)


def test_the_trace_beside_a_krylov_space_does_not_depend_on_its_start():
    """Signs of the very numbers that the space starts from would lie too much inside it."""
    matrix = torch.eye(400).double() + with_eigenvalues(torch.linspace(0, 1, 400).double())
    like = torch.zeros(400).double()
    gaps = []
    for seed in range(50):
        pairs = ritz_pairs(Counted(matrix), like, rank=30, block=30, seed=seed).vectors
        mean, error = trace_outside(Counted(matrix), pairs, like, probes=30, seed=seed)
        true = float(matrix.trace() - (pairs @ matrix @ pairs.T).trace())
        gaps.append((mean - true) / error)
    assert abs(sum(gaps) / 50) < 4 / 50**0.5


def test_one_probe_has_no_standard_error():
    with pytest.raises(BadArgument):
        trace(Counted(torch.eye(3).double()), torch.zeros(3).double(), probes=1, seed=0)


def test_ritz_values_lie_inside_the_range_and_full_steps_reach_its_ends():
    values = torch.linspace(-1, 3, 40).double()
    product, like = Counted(with_eigenvalues(values)), torch.zeros(40).double()
    for steps in (1, 5, 15):
        low, high = extreme_eigenvalues(product, like, steps=steps, seed=0)
        assert -1 - 1e-12 <= low <= high <= 3 + 1e-12
    assert extreme_eigenvalues(product, like, steps=40, seed=0) == pytest.approx((-1, 3))


def test_full_orthogonalisation_finds_no_eigenvalue_outside_long_after_convergence():
    values = torch.logspace(-8, 0, 60, dtype=torch.float64)
    values[-1] = 1e4  # converges at once: without reorthogonalisation ghosts of it appear
    ends = extreme_eigenvalues(
        Counted(with_eigenvalues(values)), torch.zeros(60).double(), steps=60, seed=0
    )
    assert ends[1] == pytest.approx(1e4, rel=1e-12)
    assert ends[0] >= -1e-10  # P eps times the largest


def test_an_invariant_space_ends_the_iteration():
    product = Counted(torch.eye(50).double() * 7)
    ends = extreme_eigenvalues(product, torch.zeros(50).double(), steps=20, seed=0)
    assert ends == pytest.approx((7, 7))
    assert product.calls <= 3


def test_ends_are_missed_no_more_often_than_the_bound_says():
    values, steps, share = torch.linspace(0, 1, P).double(), 15, 0.05
    product = Counted(with_eigenvalues(values))
    missed = [
        extreme_eigenvalues(product, torch.zeros(P).double(), steps=steps, seed=seed)[1] < 1 - share
        for seed in range(50)
    ]
    bound = math.sqrt(P) * math.exp(-(2 * steps - 1) * math.sqrt(share))
    assert sum(missed) / 50 <= bound


def test_a_product_that_is_not_a_number_ends_the_iteration():
    with pytest.raises(NonFinite):
        extreme_eigenvalues(
            lambda stack: stack * torch.nan, torch.zeros(5).double(), steps=3, seed=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seeds_decide_and_types_do_not(dtype):
    matrix, like = conditioned(10.0).to(dtype), torch.zeros(P, dtype=dtype)
    first = trace(Counted(matrix), like, probes=4, seed=3)
    assert first == trace(Counted(matrix), like, probes=4, seed=3)
    wide = trace(Counted(conditioned(10.0)), torch.zeros(P).double(), probes=4, seed=3)
    assert first == pytest.approx(wide, rel=1e-4)
    assert first != trace(Counted(matrix), like, probes=4, seed=4)


# ------------------------------------------------------------------ eigenvectors of moments


@pytest.mark.parametrize("failure", ["raises", "answers with NaN"])
def test_eigenvectors_that_fail_are_looked_for_again_in_float64(failure, monkeypatch):
    """700 rows: below 513 they are looked for in float64 to begin with."""
    rows = torch.randn(1000, 700, generator=torch.Generator().manual_seed(0))
    moment = rows.T @ rows / 1000
    eigh = torch.linalg.eigh

    def fragile(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float64:
            return eigh(matrix)
        if failure == "raises":
            raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")
        values, vectors = eigh(matrix)
        return values, vectors * torch.nan

    monkeypatch.setattr(torch.linalg, "eigh", fragile)
    values, vectors = eigenbasis(moment)
    torch.testing.assert_close(
        (vectors * values) @ vectors.T, moment.double(), rtol=1e-10, atol=1e-10
    )


def test_eigenvectors_that_fail_twice_are_an_error_and_no_zeros(monkeypatch):
    def broken(matrix: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    with pytest.raises(NumericsError, match="3 x 3 second moment did not converge"):
        eigenbasis(torch.eye(3))
