"""One removal along given directions, against the dense matrices without the example."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from problems import CONVEX, Case
from whence.calculus.gradients import jacobians
from whence.calculus.removal import Removal

FULL_RANK = sorted(set(CONVEX) - {"multinomial_free_intercept"})
CONVENTIONS = pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])


def ingredients(case: Case, *, newton: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions v (3, P), the matrix H of the step, and the mean data gradient."""
    oracle = case.oracle
    theta, count = oracle.optimum(), len(oracle)
    scale = count / (count - 1) if newton and oracle.renormalize else 1.0
    matrix = scale * oracle.data_hessian(theta, oracle.base) / count + np.diag(oracle.decay)
    mean = (oracle.base[:, None] * oracle.gradients(theta)).mean(0) * oracle.renormalize
    v = np.random.default_rng(0).standard_normal((3, len(theta)))
    return v, matrix, mean


def removal_of(case: Case, v: np.ndarray, matrix: np.ndarray, mean: np.ndarray) -> Removal:
    def tensor(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(case.oracle.flat(rows))

    psi = tensor(np.linalg.solve(matrix, v.T).T)
    if not case.oracle.renormalize:
        return Removal(case.problem, psi)
    return Removal(case.problem, psi, tensor(mean), tensor(np.linalg.solve(matrix, mean))[None])


def kernels(case: Case, matrix: np.ndarray) -> Tensor:
    order = case.oracle.order
    inverse = torch.from_numpy(np.linalg.inv(matrix)[np.ix_(order, order)])
    jac = jacobians(case.problem, everything(case))
    return jac @ inverse @ jac.mT


def everything(case: Case):
    return case.problem.batch(torch.arange(len(case.problem)))


@CONVENTIONS
@pytest.mark.parametrize("name", FULL_RANK)
def test_first_order_is_the_solved_gradient_over_n(name, renormalize):
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    v, matrix, mean = ingredients(case, newton=False)
    pulls = case.oracle.base[:, None] * case.oracle.gradients(case.oracle.optimum()) - mean
    expected = np.linalg.solve(matrix, v.T).T @ pulls.T / len(pulls)
    found = removal_of(case, v, matrix, mean).first_order(everything(case))
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@CONVENTIONS
@pytest.mark.parametrize("name", FULL_RANK)
def test_newton_inverts_the_matrix_without_the_example(name, renormalize):
    """v . A_i^-1 b with A_i and b built for each example, and A_i inverted."""
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    oracle = case.oracle
    theta, divisor = oracle.optimum(), len(oracle) - renormalize
    v, matrix, mean = ingredients(case, newton=True)
    pulls = (oracle.base[:, None] * oracle.gradients(theta) - mean) / divisor
    expected, shares = [], []
    for i, b in enumerate(pulls):
        own = oracle.data_hessian(theta, oracle.base * (np.arange(len(oracle)) == i)) / divisor
        expected.append(v @ np.linalg.solve(matrix - own, b))
        shares.append(np.linalg.eigvals(own @ np.linalg.inv(matrix)).real.max())
    found, leverage = removal_of(case, v, matrix, mean).newton(
        everything(case), kernels(case, matrix)
    )
    assert_allclose(found, np.stack(expected, 1), rtol=1e-8, atol=1e-11)
    assert_allclose(leverage, shares, atol=1e-10)


@CONVENTIONS
@pytest.mark.parametrize("name", ["logistic", "multinomial", "class_weighted"])
def test_newton_is_a_step_to_the_gradient_without_the_example(name, renormalize):
    """b is minus the gradient of the objective that the step is meant to minimise."""
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    oracle = case.oracle
    theta, divisor = oracle.optimum(), len(oracle) - renormalize
    _, _, mean = ingredients(case, newton=True)
    pulls = (oracle.base[:, None] * oracle.gradients(theta) - mean) / divisor
    slopes = np.stack([oracle.gradient(theta, w) for w in oracle.removals()])
    assert_allclose(-slopes, pulls, atol=1e-12)


def test_each_example_at_or_above_leverage_one_gets_first_order():
    case = CONVEX["logistic"]()
    v, matrix, mean = ingredients(case, newton=True)
    removal = removal_of(case, v, matrix, mean)
    batch, kernel = everything(case), kernels(case, matrix)
    kernel[::2] *= 1e3
    found, shares = removal.newton(batch, kernel)
    is_above = shares >= 1
    assert 10 < int(is_above.sum()) <= 30
    first = removal.first_order(batch)
    assert_allclose(found[:, is_above], first[:, is_above], rtol=1e-12)
    assert not torch.allclose(found[:, ~is_above], first[:, ~is_above], rtol=1e-3)


# ------------------------------------------------------------------ seen by the example itself


@CONVENTIONS
@pytest.mark.parametrize("is_newton", [False, True], ids=["first order", "newton"])
@pytest.mark.parametrize("name", FULL_RANK)
def test_what_an_example_sees_is_the_removal_along_its_own_jacobian(name, is_newton, renormalize):
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    v, matrix, mean = ingredients(case, newton=is_newton)
    batch, kernel = everything(case), kernels(case, matrix)
    moved, _ = removal_of(case, v, matrix, mean).own(batch, kernel, is_newton=is_newton)
    own = case.oracle.outputs
    jac = jacobians(case.problem, batch).numpy()
    in_order = np.empty_like(jac)
    in_order[:, :, case.oracle.order] = jac  # rows in the oracle's order of parameters
    removal = removal_of(case, in_order.reshape(-1, jac.shape[2]), matrix, mean)
    along = removal.newton(batch, kernel)[0] if is_newton else removal.first_order(batch)
    expected = along.reshape(len(batch), own, len(batch)).diagonal(dim1=0, dim2=2).T  # (B, C)
    assert_allclose(moved, expected, rtol=1e-8, atol=1e-12)


@CONVENTIONS
@pytest.mark.parametrize("name", FULL_RANK)
def test_what_stays_open_is_the_jacobian_in_the_inverse_without_the_example(name, renormalize):
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    v, matrix, mean = ingredients(case, newton=True)
    removal = removal_of(case, v, matrix, mean)
    _, spread = removal.own(everything(case), kernels(case, matrix), is_newton=True)
    oracle, theta = case.oracle, case.oracle.optimum()
    for i in (0, 7, len(oracle) - 1):
        alone = np.zeros(len(oracle))
        alone[i] = oracle.base[i] / removal.divisor
        jac = np.kron(np.eye(oracle.outputs), oracle.x[i])
        inverse = np.linalg.inv(matrix - oracle.data_hessian(theta, alone))
        assert_allclose(spread[i], jac @ inverse @ jac.T / removal.divisor, rtol=1e-8)


def test_where_the_step_does_not_exist_the_example_sees_first_order():
    """A leverage of one leaves nothing that would hold the output: no step, and no more open."""
    case = CONVEX["logistic"]()
    v, matrix, mean = ingredients(case, newton=True)
    removal, batch = removal_of(case, v, matrix, mean), everything(case)
    whole = 60 / (case.oracle.loss.bend(case.oracle.predict(case.oracle.optimum()), None))
    moved, spread = removal.own(batch, torch.from_numpy(whole), is_newton=True)
    first, open_still = removal.own(batch, torch.from_numpy(whole), is_newton=False)
    assert_allclose(moved, first, rtol=1e-12)
    assert_allclose(spread, open_still, rtol=1e-12)
