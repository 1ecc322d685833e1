"""The curvature of each loss along two directions, against dense Hessians."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import problems
from problems import ALL
from whence.calculus import nonconvergence
from whence.calculus.nonconvergence import Correction, mixed_curvature
from whence.core.changes import Change
from whence.core.problem import Problem


def directions(problem: Problem, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def dense_hessian(problem: Problem, row: int) -> Tensor:
    batch = problem.batch(torch.tensor([row]))
    return torch.autograd.functional.hessian(
        lambda theta: problem.losses(theta, batch).sum(), problem.parameters
    )


@pytest.mark.parametrize("name", ALL)
def test_mixed_curvature_is_the_dense_hessian_between_two_directions(name):
    problem = ALL[name]().problem
    rows = torch.tensor([0, 3, 7])
    psi, step = directions(problem, 4), directions(problem, 5)[4]
    expected = torch.stack([psi @ dense_hessian(problem, int(row)) @ step for row in rows], 1)
    found = mixed_curvature(problem, psi, problem.batch(rows), step=step)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["conv", "multinomial", "tied", "selecting"])
def test_a_model_that_vmap_cannot_follow_gets_the_same_curvature(name, monkeypatch):
    problem = getattr(problems, name)().problem
    batch = problem.batch(torch.arange(6))
    psi, step = directions(problem, 4), directions(problem, 5)[4]
    expected = mixed_curvature(problem, psi, batch, step=step)
    monkeypatch.setattr(nonconvergence, "is_vectorised", lambda problem: False)
    found = mixed_curvature(problem, psi, batch, step=step)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])
@pytest.mark.parametrize("name", ["mlp_untrained", "class_weighted"])
def test_the_correction_of_a_change_is_that_of_its_examples_together(name, renormalize):
    """A removal of three examples, of which one stays with half its weight."""
    problem = replace(ALL[name]().problem, renormalize=renormalize)
    psi, step = directions(problem, 4), directions(problem, 5)[4]
    positions, weights = torch.tensor([1, 4, 6]), torch.tensor([0.0, 0.5, 0.0]).double()
    correction = Correction(problem, step)
    singles = correction.along(psi, problem.batch(positions)) * len(problem)
    divisor = problem.total_weight(
        torch.ones(len(problem)).double().index_put((positions,), weights)
    )
    together = correction.of(Change(positions, weights), divisor)
    torch.testing.assert_close(psi @ together, singles @ (1 - weights), rtol=1e-9, atol=1e-11)
