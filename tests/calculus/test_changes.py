"""The pull and the curvature of a change, against the dense Hessian of the changed objective."""

import numpy as np
import pytest
import torch

import problems
from whence.calculus.changes import Pull
from whence.calculus.products import CurvatureMatrix, objective_gradient
from whence.core.changes import Change, removal, replacement, reweighting
from whence.core.problem import Problem
from whence.errors import BadArgument

CASES = {
    "ridge": problems.ridge_free_intercept,
    "multinomial": problems.multinomial,
    "weighted": problems.class_weighted,
    "renormalized": lambda: problems.multinomial().renormalized(),
}


def changes(problem: Problem) -> dict[str, Change]:
    old, _ = problem.data.take(torch.arange(len(problem)))
    return {
        "removal": removal(np.arange(0, 20, 4)),
        "twice": reweighting(np.array([2, 9]), 2.0),
        "replacement": replacement(problem, np.array([4, 7]), old[[0, 1]]),
    }


def pull(problem: Problem, change: Change) -> Pull:
    theta = problem.parameters.clone().requires_grad_()
    (decay,) = torch.autograd.grad(problem.penalty(theta), theta, materialize_grads=True)
    return Pull(problem, change, objective_gradient(problem) - decay)


@pytest.mark.parametrize(("case", "step"), [*((name, 0.0) for name in CASES), ("ridge", 0.05)])
@pytest.mark.parametrize("kind", ["removal", "twice", "replacement"])
def test_force_and_bend_are_the_slope_and_hessian_of_the_changed_objective(case, kind, step):
    """At d = 0 for every linear model; elsewhere for the ridge, whose objective is quadratic."""
    problem = CASES[case]().problem
    change = changes(problem)[kind]
    found = pull(problem, change)
    generator = torch.Generator().manual_seed(0)
    move = step * torch.randn(problem.size, generator=generator, dtype=torch.float64)
    theta = problem.parameters + move
    after, row = change.contents(problem), change.row(len(problem))

    slope = torch.autograd.functional.jacobian(lambda t: after.objective(t, row), theta)
    hessian = torch.autograd.functional.hessian(lambda t: after.objective(t, row), theta)
    start = torch.autograd.functional.jacobian(problem.objective, problem.parameters)
    penalty = CurvatureMatrix(problem).penalty_product(torch.eye(problem.size).double())
    own = torch.autograd.functional.hessian(problem.objective, problem.parameters)
    factor = len(problem) / found.divisor
    bend = found.bend(move)(torch.eye(problem.size).double())
    surrogate = factor * (own - penalty) + penalty + bend

    assert torch.allclose(surrogate, hessian, atol=1e-10)
    # The force takes the model to be at its optimum; what is left of the gradient stays outside.
    expected = found.divisor * (surrogate @ move - slope)
    assert torch.allclose(found.force(move) - found.divisor * start, expected, atol=1e-8)


def test_a_removal_brings_nothing_in():
    problem = problems.multinomial().problem
    assert pull(problem, removal(np.array([1, 2]))).is_removal
    assert not pull(problem, reweighting(np.array([1, 2]), 0.5)).is_removal


def test_leaving_nothing_behind_is_refused_where_the_mean_is_taken_anew():
    problem = problems.multinomial().renormalized().problem
    with pytest.raises(BadArgument, match="would be left out"):
        pull(problem, removal(np.arange(len(problem)))).force()


def test_jacobians_that_are_not_kept_give_the_same_numbers(monkeypatch):
    problem = problems.conv().problem
    change = changes(problem)["removal"]
    kept = pull(problem, change)
    probe = torch.ones(2, problem.size, dtype=torch.float64)
    expected = kept.force(), kept.bend()(probe)
    monkeypatch.setattr("whence.calculus.changes._KEPT", 0)
    monkeypatch.setattr("whence.calculus.changes.jacobian_batch", lambda problem: 2)
    made_again = pull(problem, change)
    assert torch.allclose(made_again.force(), expected[0], atol=1e-12)
    assert torch.allclose(made_again.bend()(probe), expected[1], atol=1e-12)
