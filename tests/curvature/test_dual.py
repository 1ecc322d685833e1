"""The inverse through the examples: the dense one's numbers, where the dense one cannot go."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit
from torch import Tensor, nn

import problems
from problems import ALL, DEEP
from whence.adapters import make_problem
from whence.calculus.gradients import jacobians
from whence.calculus.products import CurvatureMatrix, decay_diagonal
from whence.core.problem import Problem
from whence.core.regularizers import Regularizer
from whence.curvature.dual import Dual, dual_bytes
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NegativeCurvature, TooLarge, Unsupported


def vectors(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def first_jacobians(problem: Problem, count: int = 5) -> Tensor:
    return jacobians(problem, problem.batch(torch.arange(count)))


# ------------------------------------------------------------------ the dense inverse


@pytest.mark.parametrize("damping", [0.02, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_it_is_the_inverse_of_the_dense_gauss_newton_matrix(name, damping):
    problem = ALL[name]().problem
    v = vectors(problem)
    dense = Exact(matrix="ggn", damping=damping).fit(problem).solve(v).vectors
    assert_allclose(Dual(damping=damping).fit(problem).solve(v).vectors, dense, rtol=1e-9)


@pytest.mark.parametrize("name", ["ridge", "ridge_weighted", "logistic", "multinomial", *DEEP])
def test_without_damping_the_decay_alone_makes_it_invertible(name):
    problem = ALL[name]().problem
    v = vectors(problem)
    dense = Exact(matrix="ggn", damping=0.0).fit(problem).solve(v).vectors
    assert_allclose(Dual(damping=0.0).fit(problem).solve(v).vectors, dense, rtol=1e-9)


@pytest.mark.parametrize("name", ["multinomial", *DEEP])
def test_its_leverage_is_that_of_the_dense_inverse(name):
    problem = ALL[name]().problem
    jac = first_jacobians(problem)
    dense = Exact(matrix="ggn", damping=0.02).fit(problem).leverage(jac)
    found = Dual(damping=0.02).fit(problem).leverage(jac)
    assert_allclose(found, dense, rtol=1e-9, atol=1e-11 * float(dense.abs().max()))


@pytest.mark.parametrize("name", DEEP)
def test_for_networks_auto_damps_as_the_dense_curvature_does(name):
    problem = DEEP[name]().problem
    report = Dual().fit(problem).report
    assert report["matrix"] == "ggn"
    assert report["damping"] == pytest.approx(
        Exact(matrix="ggn").fit(problem).report["damping"], rel=1e-9
    )


def test_for_linear_models_auto_does_not_damp_and_the_matrix_is_the_hessian():
    case = problems.multinomial()
    ihvp = Dual().fit(case.problem)
    order = case.oracle.order
    hessian = case.oracle.hessian(case.oracle.optimum())[np.ix_(order, order)]
    v = vectors(case.problem)
    assert ihvp.report["damping"] == 0
    assert ihvp.report["matrix"] == "hessian"
    assert_allclose(ihvp.solve(v).vectors, np.linalg.solve(hessian, v.numpy().T).T, rtol=1e-9)


# ------------------------------------------------------------------ many parameters


def wide_logistic(count: int, width: int) -> tuple[Problem, np.ndarray, np.ndarray]:
    """Logistic regression on more features than examples; the model need not be at its optimum."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, width))
    y = random.integers(0, 2, count)
    model = nn.Linear(width, 1, bias=False).double()
    model.weight.data[:] = torch.from_numpy(random.standard_normal(width) / width**0.5)
    problem = make_problem(model, (x, y), loss="binary_cross_entropy", weight_decay=1e-3)
    return problem, x, model.weight.detach().numpy()[0]


def test_twenty_thousand_parameters_and_fifty_examples_are_inverted_exactly():
    problem, x, theta = wide_logistic(50, 20_000)
    bend = expit(x @ theta) * expit(-x @ theta) / 50
    matrix = LinearOperator((20_000,) * 2, lambda v: x.T @ (bend * (x @ v)) + 1e-3 * v)
    v = np.stack([x[7], np.random.default_rng(1).standard_normal(20_000)])
    expected = np.stack([cg(matrix, row, rtol=1e-13, maxiter=5000)[0] for row in v])
    solution = Dual().fit(problem).solve(torch.from_numpy(v))
    assert_allclose(solution.vectors, expected, rtol=1e-9, atol=1e-9 * abs(expected).max())
    # Rounding the solution, 1e3 times as long as v, and a matrix of norm 100 leave 1e-11.
    assert solution.report["residual"] < 1e-10


def test_a_wide_network_is_solved_at_its_stated_damping():
    random = np.random.default_rng(2)
    x, y = random.standard_normal((50, 90)), random.integers(0, 3, 50)
    model = nn.Sequential(nn.Linear(90, 215), nn.Tanh(), nn.Linear(215, 3)).double()
    problem = make_problem(model, (x, y), loss="cross_entropy", weight_decay=1e-3)
    assert problem.size > 20_000
    v = vectors(problem)
    ihvp = Dual().fit(problem)
    solved = ihvp.solve(v).vectors
    back = CurvatureMatrix(problem, "ggn")(solved) + ihvp.report["damping"] * solved
    assert float((back - v).norm() / v.norm()) < 1e-12


def counts(share: float) -> Problem:
    """Counts of 200 words in 40 texts, a share of them not zero."""
    random = np.random.default_rng(3)
    x = random.poisson(2, (40, 200)) * (random.random((40, 200)) < share)
    model = nn.Linear(200, 1, bias=False).double()
    model.weight.data[:] = torch.from_numpy(random.standard_normal(200) / 10)
    data = (x.astype(float), random.integers(0, 2, 40))
    return make_problem(model, data, loss="binary_cross_entropy", weight_decay=1e-3)


@pytest.mark.parametrize(("share", "kind"), [(0.03, csr_array), (0.3, Tensor)])
def test_counts_of_words_are_kept_sparse_and_give_the_same_numbers(share, kind):
    problem = counts(share)
    ihvp, dense = Dual().fit(problem), Exact().fit(problem)
    v, jac = vectors(problem), first_jacobians(problem)
    assert isinstance(ihvp.rows.stored, kind)
    assert_allclose(ihvp.solve(v).vectors, dense.solve(v).vectors, rtol=1e-9, atol=1e-9)
    assert_allclose(ihvp.leverage(jac), dense.leverage(jac), rtol=1e-9)
    changed = ihvp.solve_changed(v, data_factor=1.2, change=torch.zeros_like).vectors
    expected = dense.solve_changed(v, data_factor=1.2, change=torch.zeros_like).vectors
    assert_allclose(changed, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------ weak decay


def nearly_flat() -> Problem:
    """A decay of 1e-9 beside data of curvature one: a condition number of 1e9."""
    return replace(wide_logistic(12, 40)[0], regularizer=Regularizer(1e-9, frozenset({"weight"})))


def test_under_a_weak_decay_the_residual_is_still_rounding():
    """Without the step of refinement it is above 1e-7: the identity subtracts equal numbers."""
    problem = nearly_flat()
    jac = first_jacobians(problem).flatten(0, 1)
    assert Dual().fit(problem).solve(jac).report["residual"] < 1e-9


def test_under_a_weak_decay_the_distance_of_a_leverage_from_one_is_still_told():
    """1 - S K / N, about 1e-8 here, is what the Newton step divides by.

    It is 1 / (1 + s x^T D^-1 x) for examples that are orthogonal to all others.
    """
    x = (
        np.diag(np.arange(1.0, 7.0))
        @ np.linalg.qr(np.random.default_rng(0).normal(size=(9, 6)))[0].T
    )
    model = nn.Linear(9, 1, bias=False).double()
    problem = make_problem(model, (x, np.zeros(6)), loss="mse", weight_decay=1e-8)
    kernel = Dual().fit(problem).leverage(first_jacobians(problem, 6))[:, 0, 0]
    bend = 2 / 6 * np.arange(1.0, 7.0) ** 2 / 1e-8
    rest = 1 - 2 / 6 * kernel.numpy()
    # One unit in the last place of a number near one is 1e-16, a hundred-millionth of the rest.
    assert_allclose(rest, 1 / (1 + bend), rtol=1e-6)


# ------------------------------------------------------------------ what the fit says


def test_the_report_bounds_the_smallest_eigenvalue_from_below():
    for case in (problems.multinomial(), problems.conv(), problems.mlp()):
        report = Dual(damping=0.0).fit(case.problem).report
        smallest = float(torch.linalg.eigvalsh(CurvatureMatrix(case.problem, "ggn").dense())[0])
        assert 0 < report["smallest_eigenvalue_at_least"] <= smallest * (1 + 1e-9)


def test_examples_of_weight_zero_and_the_flat_direction_of_a_softmax_take_no_rows():
    assert Dual().fit(problems.multinomial().problem).report["rank"] == 60 * (3 - 1)
    assert Dual().fit(problems.class_weighted().problem).report["rank"] == 50 - 1


def test_a_loss_without_curvature_leaves_the_decay():
    problem = problems.smooth_hinge().problem
    bare = replace(problem, weights=torch.zeros_like(problem.weights))
    ihvp = Dual(damping=0.1).fit(bare)
    v = vectors(problem)
    assert ihvp.report["rank"] == 0
    assert_allclose(ihvp.solve(v).vectors, v / (0.1 + 0.1), rtol=1e-12)
    assert_allclose(ihvp.leverage(v[:, None])[:, 0, 0], (v**2).sum(1) / 0.2, rtol=1e-12)


# ------------------------------------------------------------------ changed data


@pytest.mark.parametrize("data_factor", [1.0, 1.1])
def test_a_changed_matrix_is_solved_as_if_written_out(data_factor):
    problem = problems.conv().problem
    gone = first_jacobians(problem, 2).flatten(0, 1)  # some rows whose square is taken away
    dense = CurvatureMatrix(problem, "ggn").dense()
    decay = 0.02 * torch.eye(problem.size).double()
    matrix = data_factor * (dense - decay) + decay + 0.05 * torch.eye(problem.size).double()
    v = vectors(problem)
    solution = (
        Dual(damping=0.05)
        .fit(problem)
        .solve_changed(
            v, data_factor=data_factor, change=lambda stack: -1e-4 * (stack @ gone.T) @ gone
        )
    )
    expected = torch.linalg.solve(matrix - 1e-4 * gone.T @ gone, v.T).T
    assert_allclose(solution.vectors, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    assert solution.report["changed_residual"] < 1e-8


# ------------------------------------------------------------------ what is refused


def coupled(named: dict[str, Tensor]) -> Tensor:
    """A penalty on the sum of the weights."""
    return named["weight"].sum() ** 2


def concave(named: dict[str, Tensor]) -> Tensor:
    """A penalty that pushes weights away from zero."""
    return -0.1 * (named["weight"] ** 2).sum()


def with_penalty(penalty: object) -> Problem:
    problem = problems.ridge().problem
    return replace(problem, regularizer=replace(problem.regularizer, function=penalty))


def test_a_regulariser_that_couples_parameters_is_refused():
    problem = with_penalty(coupled)
    assert decay_diagonal(problem) is None
    with pytest.raises(Unsupported, match="not diagonal"):
        Dual().fit(problem)


def test_a_diagonal_regulariser_of_ones_own_is_taken():
    problem = with_penalty(lambda named: (named["weight"] ** 4).sum())
    v = vectors(problem)
    dense = Exact(matrix="ggn", damping=0.0).fit(problem).solve(v).vectors
    assert_allclose(Dual().fit(problem).solve(v).vectors, dense, rtol=1e-9)


def test_a_regulariser_that_bends_downwards_is_refused_unless_damping_makes_up_for_it():
    problem = with_penalty(concave)
    with pytest.raises(NegativeCurvature, match=r"-0\.1") as refused:
        Dual().fit(problem)
    assert "0.1" in refused.value.remedy
    v = vectors(problem)
    dense = Exact(matrix="ggn", damping=0.2).fit(problem).solve(v).vectors
    assert_allclose(Dual(damping=0.2).fit(problem).solve(v).vectors, dense, rtol=1e-9)


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    def sine(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sin(outputs[:, 0] - targets)

    problem = problems.ridge().problem
    wavy = replace(problem, loss=replace(problem.loss, function=sine, task="unknown"))
    with pytest.raises(NegativeCurvature, match="second derivative") as refused:
        Dual().fit(wavy)
    assert "exact" in refused.value.remedy


def test_the_rounding_of_a_saturated_softmax_is_not_taken_for_a_bend():
    problem = problems.multinomial().problem
    sure = problem.at(1e3 * problem.parameters)
    v = vectors(problem)
    dense = Exact(matrix="ggn", damping=0.0).fit(sure).solve(v).vectors
    assert_allclose(Dual().fit(sure).solve(v).vectors, dense, rtol=1e-8)


def test_what_does_not_fit_is_refused_with_its_size():
    problem = problems.multinomial().problem
    needed = dual_bytes(problem)
    assert needed == 8 * 180 * 15 + 16 * 180**2 + 3 * 8 * 180 * 15
    with pytest.raises(TooLarge, match=r"180 outputs \(N = 60, C = 3\)"):
        Dual(max_bytes=int(needed) - 1).fit(problem)
    Dual(max_bytes=int(needed)).fit(problem)


def test_a_negative_damping_is_refused():
    with pytest.raises(BadArgument, match="damping"):
        Dual(damping=-1e-3).fit(problems.ridge().problem)
