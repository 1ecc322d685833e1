"""Hessian and Gauss-Newton products against dense matrices from elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import problems
from networks import NETWORKS
from oracles import central_difference
from problems import ALL, CONVEX, DEEP
from whence.calculus.gradients import jacobians, output_hessians
from whence.calculus.products import CurvatureMatrix, hessian_is_ggn, objective_gradient
from whence.core.problem import Problem

KINDS = pytest.mark.parametrize("kind", ["hessian", "ggn"])


def vectors(problem: Problem, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def autograd_hessian(problem: Problem) -> Tensor:
    return torch.autograd.functional.hessian(problem.objective, problem.parameters)


def written_out_ggn(problem: Problem) -> Tensor:
    batch = problem.batch(torch.arange(len(problem)))
    jac = jacobians(problem, batch)
    middle = output_hessians(problem, batch) * batch.weights[:, None, None]
    data = torch.einsum("bcp,bcd,bdr->pr", jac, middle, jac) / len(problem)
    return data + torch.autograd.functional.hessian(problem.penalty, problem.parameters)


@pytest.mark.parametrize("name", CONVEX)
@KINDS
def test_matrices_of_linear_models_are_those_written_out(name, kind):
    case = CONVEX[name]()
    order = case.oracle.order
    expected = case.oracle.hessian(case.oracle.optimum())[np.ix_(order, order)]
    dense = CurvatureMatrix(case.problem, kind).dense()
    assert dense.dtype == torch.float64
    assert_allclose(dense, expected, atol=1e-12)


@pytest.mark.parametrize("name", [*DEEP, "multinomial"])
def test_the_hessian_is_that_of_autograd(name):
    problem = ALL[name]().problem
    expected = autograd_hessian(problem)
    assert_allclose(CurvatureMatrix(problem).dense(), expected, atol=1e-11)
    v = vectors(problem)
    assert_allclose(CurvatureMatrix(problem)(v), v @ expected, atol=1e-10)


@pytest.mark.parametrize("name", ["logistic", "mlp", "tokens", "branching"])
def test_hessian_products_are_finite_differences_of_the_gradient(name):
    """Central differences of step 1e-5: error about 1e-9."""
    problem = ALL[name]().problem

    def slope(theta: np.ndarray) -> np.ndarray:
        return objective_gradient(problem.at(torch.from_numpy(theta))).numpy()

    expected = central_difference(slope, problem.parameters.numpy(), 1e-5)
    assert_allclose(CurvatureMatrix(problem).dense(), expected, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_gauss_newton_products_are_jacobians_and_output_hessians(name):
    problem = ALL[name]().problem
    expected = written_out_ggn(problem)
    v = vectors(problem)
    assert_allclose(CurvatureMatrix(problem, "ggn").dense(), expected, atol=1e-11)
    assert_allclose(CurvatureMatrix(problem, "ggn")(v), v @ expected, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_the_gauss_newton_matrix_is_never_negative(name):
    dense = CurvatureMatrix(ALL[name]().problem, "ggn").dense()
    values = torch.linalg.eigvalsh(dense)
    assert float(values[0]) > -1e-13 * float(values[-1])


@pytest.mark.parametrize("name", ALL)
def test_only_for_linear_models_are_both_matrices_one(name):
    assert hessian_is_ggn(ALL[name]().problem) == (name in CONVEX)


@pytest.mark.parametrize("name", ["multinomial", "ridge"])
def test_float32_does_not_make_a_linear_model_look_bent(name):
    assert hessian_is_ggn(problems.single(ALL[name]()).problem)
    assert not hessian_is_ggn(problems.single(problems.mlp_untrained()).problem)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_of_the_objective_is_that_of_autograd(name):
    problem = ALL[name]().problem
    moved = problem.at(problem.parameters + 0.1)
    expected = torch.autograd.functional.jacobian(moved.objective, moved.parameters)
    assert_allclose(objective_gradient(moved), expected, atol=1e-12)


@KINDS
@pytest.mark.parametrize("size", [1, 7, 64, None])
@pytest.mark.parametrize("name", ["class_weighted", "mlp", "tokens", "branching"])
def test_batches_only_bound_the_memory(name, size, kind):
    problem = ALL[name]().problem
    v = vectors(problem)
    expected = CurvatureMatrix(problem, kind, batch_size=len(problem))(v)
    actual = CurvatureMatrix(problem, kind, batch_size=size)(v)
    assert_allclose(actual, expected, atol=1e-12 * float(expected.abs().max()))
    dense = CurvatureMatrix(problem, kind, batch_size=size).dense()
    assert_allclose(v @ dense, expected, atol=1e-11 * float(expected.abs().max()))


@KINDS
def test_the_scale_multiplies_the_data_and_not_the_regulariser(kind):
    problem = problems.mlp().problem
    one, three = (CurvatureMatrix(problem, kind, data_scale=s).dense() for s in (1.0, 3.0))
    decay = 0.05 * torch.eye(problem.size).double()
    assert_allclose(three - decay, 3 * (one - decay), atol=1e-12)


@KINDS
def test_some_positions_are_averaged_over_themselves(kind):
    case = problems.class_weighted()
    rows = torch.tensor([4, 9, 2, 30])
    part = problems.rearranged(case, rows)
    v = vectors(part)
    expected = CurvatureMatrix(part, kind)(v)
    assert_allclose(CurvatureMatrix(case.problem, kind, positions=rows)(v), expected, atol=1e-13)


@KINDS
def test_base_weights_weigh_the_examples(kind):
    case = problems.mlp()
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1)).double()
    weighted = CurvatureMatrix(replace(case.problem, weights=weights), kind).dense()
    decay = 0.05 * torch.eye(case.problem.size).double()
    singles = [
        CurvatureMatrix(case.problem, kind, positions=row).dense() - decay
        for row in torch.arange(40).split(1)
    ]
    expected = sum(w * m for w, m in zip(weights, singles, strict=True)) / 40 + decay
    assert_allclose(weighted, expected, atol=1e-12)


@KINDS
def test_a_further_penalty_enters_with_its_own_hessian(kind):
    case = problems.multinomial()
    regularizer = replace(
        case.problem.regularizer, function=lambda named: named["weight"].pow(4).sum()
    )
    bent = replace(case.problem, regularizer=regularizer)
    extra = CurvatureMatrix(bent, kind).dense() - CurvatureMatrix(case.problem, kind).dense()
    expected = torch.zeros(15).double()
    expected[:12] = 12 * case.problem.parameters[:12] ** 2
    assert_allclose(extra, torch.diag(expected), atol=1e-12)


@KINDS
def test_the_slow_way_and_the_fast_way_agree(kind):
    """Loops of reverse passes against vmap, with unequal base weights and one that is zero."""
    weights = torch.linspace(0, 3, 15).double()
    slow = replace(problems.branching().problem, weights=weights)
    fast = replace(problems.selecting().problem, weights=weights)
    v = vectors(slow)
    expected = CurvatureMatrix(fast, kind)(v)
    assert_allclose(CurvatureMatrix(slow, kind)(v), expected, atol=1e-12)
    assert_allclose(v @ CurvatureMatrix(slow, kind).dense(), expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_model_without_second_derivatives_is_not_linear():
    """Fused attention has none on some machines; elsewhere the comparison finds the same."""
    assert not hessian_is_ggn(NETWORKS["tied language model"]())
