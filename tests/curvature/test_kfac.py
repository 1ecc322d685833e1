"""K-FAC against products of factors written out; what it shares with EK-FAC is tested there."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from networks import drawn
from whence.adapters import make_problem
from whence.calculus import kronecker
from whence.calculus.gradients import output_hessians
from whence.core.problem import Problem
from whence.curvature import base
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.kfac import KFAC


def factors(problem: Problem) -> tuple[Tensor, Tensor]:
    """Mean output Hessian (C, C) and mean r r^T (d + 1, d + 1) of a linear model."""
    batch = problem.batch(torch.arange(len(problem)))
    x = torch.cat([batch.inputs, torch.ones(len(problem), 1).double()], 1)
    bend = output_hessians(problem, batch) * batch.weights[:, None, None]
    return bend.mean(0), x.T @ x / len(x)


def in_order_of(problem: Problem, matrix: Tensor) -> Tensor:
    """A matrix over (C, d + 1), bias last, in the order of the parameters of an `nn.Linear`."""
    outputs = problem.output_size
    places = torch.arange(problem.size).reshape(outputs, -1)
    order = torch.cat([places[:, :-1].flatten(), places[:, -1]])
    return matrix[order][:, order]


@pytest.mark.parametrize("name", ["ridge", "multinomial", "class_weighted", "logistic"])
@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_a_linear_layer_is_solved_with_the_product_of_its_factors(name, damping):
    problem = problems.ALL[name]().problem
    kron = in_order_of(problem, torch.kron(*factors(problem)))
    shift = problem.regularizer.weight_decay + damping
    matrix = kron + shift * torch.eye(problem.size).double()
    v = drawn(3, problem.size)
    solved = KFAC(damping, fisher="expected").fit(problem).solve(v).vectors
    assert_allclose(solved, torch.linalg.solve(matrix, v.T).T, rtol=1e-8, atol=1e-9)


def test_damping_is_added_to_the_eigenvalues_of_the_product_not_to_the_factors():
    problem = problems.multinomial().problem
    report = KFAC(0.5).fit(problem).report
    left, right = (torch.linalg.eigvalsh(factor) for factor in factors(problem))
    values = torch.outer(left, right) + problem.regularizer.weight_decay
    assert report["damping"] == 0.5
    assert report["largest_eigenvalue"] == pytest.approx(float(values.max()), rel=1e-9)
    assert report["mean_eigenvalue"] == pytest.approx(float(values.mean()), rel=1e-9)


def test_the_first_round_gives_every_side_rows_enough(monkeypatch):
    """600 examples, of which bases of five and two coordinates want forty."""
    monkeypatch.setattr(base, "FEW_OPERATIONS", 0)
    monkeypatch.setattr(kronecker, "FIRST_ROUND", 4)
    monkeypatch.setattr(kronecker, "FEWEST", 1)
    monkeypatch.setattr(kronecker, "ROWS", 8)
    model = torch.nn.Linear(4, 2).double().eval()
    data = drawn(600, 4), torch.arange(600) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=0.1)
    assert KFAC(accuracy=9.0).fit(problem).report["examples_used"] == 40
    assert EKFAC(accuracy=9.0).fit(problem).report["examples_used"] == 4


def test_sampled_factors_have_the_expected_mean():
    """200 seeds; the factor of a layer with one position is linear in the squares of its slopes."""
    problem = problems.multinomial().problem
    expected, _ = factors(problem)
    found: list[Tensor] = []
    for seed in range(200):
        block = KFAC(0.1, fisher="sampled", seed=seed).fit(problem).kronecker.blocks[0]
        vectors, values = block.left.vectors[0], block.left.values[0]
        found.append((vectors * values) @ vectors.T)
    draws = torch.stack(found)
    spread = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() <= 5 * spread + 1e-12).all())


def test_a_bias_by_itself_is_exact():
    model = nn.Linear(3, 4).double().eval()
    data = drawn(20, 3), torch.arange(20) % 4
    problem = make_problem(
        model, data, loss="cross_entropy", weight_decay=0.05, parameters=["bias"]
    )
    v = drawn(2, 4)
    expected = Exact(matrix="ggn", damping=0.01).fit(problem).solve(v).vectors
    assert_allclose(KFAC(0.01).fit(problem).solve(v).vectors, expected, rtol=1e-9)
