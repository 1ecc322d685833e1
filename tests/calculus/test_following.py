"""From optimum to optimum while training examples change."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import problems
from whence.adapters import make_problem
from whence.calculus.following import RESIDUAL, make_follower
from whence.calculus.products import CurvatureMatrix
from whence.calculus.retraining import NewtonTraining
from whence.core.changes import replacement
from whence.core.problem import Problem
from whence.errors import CannotRetrain, NotConverged

CASES = (problems.logistic, problems.multinomial_free_intercept, problems.mlp, problems.conv)


def moved(problem: Problem, size: float) -> Problem:
    """The problem with two of its examples moved a little."""
    places = np.array([3, 8])
    inputs, _ = problem.data.take(torch.from_numpy(places))
    step = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1), dtype=inputs.dtype)
    return replacement(problem, places, inputs + size * step).contents(problem)


def optimum(problem: Problem) -> Tensor:
    return NewtonTraining(tolerance=1e-12).retrain(problem, torch.ones(1, len(problem))).parameters


@pytest.mark.parametrize("build", CASES)
def test_the_optimum_is_followed(build) -> None:
    follower = make_follower(build().problem)
    torch.testing.assert_close(follower.clean.parameters[None], optimum(follower.clean))
    state = follower.clean
    for size in (0.01, 0.1, 0.2):
        changed = moved(follower.clean, size)
        state = follower.follow(changed.at(state.parameters))
        expected = optimum(changed.at(follower.clean.parameters))[0]
        # A millionth of one example's pull is left, and one example moves parameters by a tenth.
        assert (state.parameters - expected).norm() < 1e-5 * (1 + expected.norm())
    renewed = follower.renewed(state)
    again = renewed.follow(moved(follower.clean, 0.21).at(state.parameters))
    expected = optimum(moved(follower.clean, 0.21).at(follower.clean.parameters))[0]
    assert (again.parameters - expected).norm() < 1e-5 * (1 + expected.norm())


@pytest.mark.parametrize("build", CASES)
def test_solves_are_with_the_hessian_of_the_present_state(build) -> None:
    follower = make_follower(build().problem)
    state = follower.follow(moved(follower.clean, 0.1).at(follower.clean.parameters))
    H = CurvatureMatrix(state, "hessian").dense()
    vectors = torch.randn(2, state.size, generator=torch.Generator().manual_seed(0)).double() @ H
    solved = follower.solve(state, vectors)
    gap = (solved @ H - vectors).norm(dim=1) / vectors.norm(dim=1)
    assert float(gap.max()) <= 1.01 * RESIDUAL


def test_a_model_without_an_optimum_cannot_be_followed() -> None:
    """The minimum of a hinge lies at a kink, where no gradient is zero."""
    x = torch.randn(12, 3, dtype=torch.float64)
    y = 2.0 * (torch.arange(12) % 2) - 1
    model = nn.Linear(3, 1).double().eval()
    problem = make_problem(model, (x, y), loss="hinge", weight_decay=0.1)
    with pytest.raises(CannotRetrain, match="cannot be trained again"):
        make_follower(problem)


def test_a_large_model_cannot_be_followed() -> None:
    model = nn.Linear(2100, 2).eval()
    data = torch.randn(4, 2100), torch.arange(4) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=1.0)
    with pytest.raises(CannotRetrain, match="4,202 parameters"):
        make_follower(problem)


def test_a_change_after_which_nothing_is_found_is_refused() -> None:
    follower = make_follower(problems.logistic().problem)
    nowhere = follower.clean.at(follower.clean.parameters + 1)
    stuck = replace_precondition(follower, lambda slopes: -slopes)  # steps that only go up
    with pytest.raises(NotConverged, match="no optimum was found"):
        stuck.follow(nowhere)


def replace_precondition(follower, precondition):
    return type(follower)(follower.clean, precondition, follower.pull, follower.kind)
