"""Training again from the optimum, against optima known in closed form or found by dense Newton."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import problems
from oracles import ridge_closed_form
from whence.calculus import retraining
from whence.calculus.products import CurvatureMatrix, objective_gradient
from whence.calculus.retraining import (
    USEFUL,
    Goal,
    NewtonTraining,
    Objectives,
    hessian_preconditioner,
    minimise,
)
from whence.core.losses import make_loss
from whence.core.problem import Problem
from whence.errors import BadArgument, NotConverged

RTOL = 1e-8  # a gradient of 1e-10 of one pull, divided by the curvature


def without(problem: Problem, *positions: int) -> Tensor:
    """(M, N) weights that leave out one example each."""
    weights = torch.ones(len(positions), len(problem), dtype=torch.float64)
    weights[torch.arange(len(positions)), torch.tensor(positions)] = 0
    return weights


def retrained(problem: Problem, weights: Tensor, **recipe) -> Tensor:
    return NewtonTraining(**recipe).retrain(problem, weights).parameters


def assert_same(actual: Tensor, expected: Tensor, rtol: float = RTOL) -> None:
    """Equal up to rtol of how far removals move the parameters."""
    scale = (expected - expected.mean(0)).norm(dim=1).max()
    assert (actual - expected).norm(dim=1).max() <= rtol * scale


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", problems.CONVEX)
def test_leaving_out_each_example_leads_to_the_optimum_without_it(name, renormalize):
    case = problems.CONVEX[name]()
    case = case.renormalized() if renormalize else case
    weights = without(case.problem, *range(len(case.problem)))
    expected = torch.from_numpy(case.oracle.flat(case.oracle.retrained()))
    assert_same(retrained(case.problem, weights), expected)


def test_any_weights_of_ridge_lead_to_its_closed_form():
    case = problems.ridge_free_intercept()
    weights = torch.rand(5, len(case.problem), dtype=torch.float64) * 2
    expected = [ridge_closed_form(case.oracle, w) for w in weights.numpy()]
    assert_same(
        retrained(case.problem, weights), torch.from_numpy(case.oracle.flat(np.stack(expected)))
    )


def test_a_removal_from_ridge_follows_sherman_and_morrison():
    problem = problems.ridge().problem
    x, y = problem.data.take(torch.arange(len(problem)))
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = 2 * x.T @ x / len(x) + 0.1 * torch.eye(x.shape[1], dtype=x.dtype)
    theta = torch.linalg.solve(gram, 2 * x.T @ y / len(x))
    solved = torch.linalg.solve(gram, x.T).T  # (N, P)
    leverage = 2 * (x * solved).sum(1) / len(x)
    residual = y - x @ theta
    expected = theta - 2 / len(x) * solved * (residual / (1 - leverage))[:, None]
    assert_same(retrained(problem, without(problem, *range(len(x)))), expected)


def test_the_fixed_matrix_only_decides_how_fast_the_optimum_is_found():
    problem = problems.multinomial().problem
    weights = without(problem, 0, 7, 31)
    chord = NewtonTraining().retrain(problem, weights)
    bare = NewtonTraining(preconditioner=lambda slopes: slopes).retrain(problem, weights)
    assert_same(bare.parameters, chord.parameters)
    assert max(chord.report["steps"]) < min(bare.report["steps"])


def test_memory_limits_how_many_runs_go_together_but_not_where_they_end(monkeypatch):
    problem = problems.logistic().problem
    weights = without(problem, 1, 2, 3, 4, 5)
    expected = retrained(problem, weights)
    monkeypatch.setattr(retraining, "_STATE_BYTES", 2 * 24 * problem.size * 8)
    monkeypatch.setattr(retraining, "_runs_together", lambda problem, runs: 1)
    assert_same(retrained(problem, weights), expected)


def test_a_model_that_vmap_cannot_follow_is_trained_in_a_loop():
    looped, vectorised = problems.branching().problem, problems.selecting().problem
    weights = without(looped, 0, 5)
    looped = looped.at(vectorised.parameters)
    assert_same(retrained(looped, weights), retrained(vectorised, weights))


def test_a_network_comes_back_to_the_minimum_nearby():
    problem = problems.mlp().problem
    weights = without(problem, *range(0, len(problem), 4))
    found = NewtonTraining().retrain(problem, weights)
    for theta, w in zip(found.parameters, weights, strict=True):
        there = replace(problem.at(theta), weights=problem.weights * w)
        assert objective_gradient(there).norm() <= 1.01e-10 * found.report["pull"]
        curvature = CurvatureMatrix(there, "hessian").dense()
        assert torch.linalg.eigvalsh(curvature)[0] > 0
        assert (theta - problem.parameters).norm() <= 0.2 * problem.parameters.norm()
    assert found.report["strayed"] == 0


def test_a_start_beside_the_optimum_leads_to_the_same_models():
    problem = problems.mlp().problem
    weights = without(problem, 3, 8)
    beside = problem.at(problem.parameters + 0.01 * torch.randn(problem.size, dtype=torch.float64))
    assert_same(retrained(beside, weights), retrained(problem, weights), rtol=1e-6)


def test_a_float32_model_is_trained_in_float64():
    problem = problems.logistic().problem
    narrow = problem.to(dtype=torch.float32)
    found = retrained(narrow, without(problem, 4, 9))
    assert found.dtype == torch.float64
    assert_same(found, retrained(narrow.to(dtype=torch.float64), without(problem, 4, 9)))


def test_a_model_that_insists_on_float32_is_trained_as_far_as_rounding_allows():
    problem = problems.logistic().problem.to(dtype=torch.float32)
    stubborn = replace(problem, forward=lambda model, x: model(x.float()))
    report = NewtonTraining().retrain(stubborn, without(problem, 4, 9)).report
    assert report["dtype"] == "float32"
    assert max(report["remaining"]) <= report["tolerance"] < USEFUL


def test_an_optimum_at_a_kink_is_refused():
    """A support vector lies where the hinge has no derivative."""
    problem = problems.smooth_hinge().problem
    with pytest.raises(NotConverged, match="no optimum") as caught:
        retrained(replace(problem, loss=make_loss("hinge")), without(problem, 0), max_steps=200)
    assert "training=" in caught.value.remedy


@pytest.mark.parametrize("shape", [(40,), (2, 41)])
def test_weights_must_be_one_row_a_training(shape):
    with pytest.raises(BadArgument, match="training examples"):
        retrained(problems.ridge().problem, torch.ones(shape))


def test_the_objectives_are_the_objective_of_each_row_of_weights():
    for case in (problems.ridge_weighted(), problems.conv(), problems.tied()):
        for problem in (case.problem, case.renormalized().problem):
            weights = torch.rand(3, len(problem), dtype=torch.float64)
            theta = problem.parameters + torch.randn(3, problem.size, dtype=torch.float64)
            values, slopes = Objectives(problem, weights)(theta, torch.arange(3))
            expected = [problem.objective(t, w) for t, w in zip(theta, weights, strict=True)]
            torch.testing.assert_close(values, torch.stack(expected))
            direction = torch.randn_like(theta)
            step = 1e-6 * direction
            shift = torch.stack(
                [
                    problem.objective(t + s, w) - problem.objective(t - s, w)
                    for t, s, w in zip(theta, step, weights, strict=True)
                ]
            )
            # central differences: an error of 1e-12 from the third derivative, 1e-9 from rounding
            torch.testing.assert_close(
                (slopes * direction).sum(1), shift / 2e-6, rtol=1e-6, atol=1e-7
            )


def test_the_matrix_of_a_saddle_still_points_downhill():
    problem = problems.mlp_untrained().problem
    slope = objective_gradient(problem)
    step = hessian_preconditioner(problem)(slope[None])[0]
    assert step @ slope > 0


def test_runs_side_by_side_each_find_their_own_minimum():
    """Rosenbrock's valley from four starts, each with its own place for the minimum."""
    places = torch.tensor([[1.0], [0.5], [-1.0], [2.0]], dtype=torch.float64)

    def function(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        point = theta.clone().requires_grad_(True)
        x, y = (point - places[rows] + 1).unbind(1)
        values = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        (slope,) = torch.autograd.grad(values.sum(), point)
        return values.detach(), slope

    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)
    search = partial(minimise, function, precondition=None, goal=Goal(1e-9, 1e-9), max_steps=200)
    together = search(start)
    torch.testing.assert_close(together.parameters, places.expand(4, 2), rtol=0, atol=1e-8)
    assert together.steps[3] == 0  # it starts at its minimum
