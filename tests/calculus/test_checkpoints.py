"""Checkpoints of a training, and how far a gradient reaches."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import problems
from whence.calculus.bulk import run
from whence.calculus.checkpoints import checkpoints, given_checkpoints, pace
from whence.calculus.optimizers import SGD, Adam, Optimizer
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.core.training import CallableTraining
from whence.errors import BadArgument, CannotRetrain

STEPS = 12  # 30 examples in batches of 10, 4 epochs


def trained(**options: object) -> Problem:
    problem = problems.mlp_untrained().problem
    recipe = {"optimizer": "sgd", "lr": 0.1, "epochs": 4, "batch_size": 10} | options
    return replace(problem, training=Training(problem.model, **recipe))


def test_parts_of_a_training_are_seen_from_their_middle():
    problem = trained()
    seen = checkpoints(problem, 3)
    for checkpoint, steps in zip(seen, (2, 6, 10), strict=True):
        short = replace(problem.training, epochs=4)
        course = Course(problem, short)
        theta = course.start()
        for at in range(steps):
            batch = course.batch(at)
            theta = course.step(theta, torch.ones_like(batch.weights), batch=batch, at=at)
        assert_close(checkpoint.parameters, theta[0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("count", [1, 5, STEPS])
def test_the_learning_rates_of_all_steps_are_shared_out(schedule: str, count: int):
    problem = trained(schedule=schedule, optimizer=SGD(momentum=0.5))
    course = Course(problem, problem.training)
    total = sum(course.lr(step) for step in range(STEPS)) / (1 - 0.5)
    reach = torch.stack([seen.reach for seen in checkpoints(problem, count)]).sum(0)
    assert_close(reach, torch.full_like(reach, total))


@pytest.mark.parametrize("optimizer", [SGD(), SGD(0.8), SGD(0.8, nesterov=True)])
def test_a_unit_of_gradient_in_one_step_moves_parameters_by_the_pace(optimizer: Optimizer):
    start = optimizer.start(torch.zeros(3, dtype=torch.float64))
    state, unit = start, torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    for count in range(1, 400):
        gradient = unit if count == 1 else torch.zeros_like(unit)
        state = optimizer.step(state, gradient, lr=0.1, count=count)
    assert_close(state[0], -0.1 * pace(optimizer, state, count=400) * unit)


def test_under_a_steady_gradient_adam_moves_by_the_pace_times_the_gradient():
    optimizer, gradient = Adam(), torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    state = optimizer.start(torch.zeros(3, dtype=torch.float64))
    for count in range(1, 50):
        state = optimizer.step(state, gradient, lr=0.1, count=count)
    after = optimizer.step(state, gradient, lr=0.1, count=50)
    found = 0.1 * pace(optimizer, state, count=49) * gradient
    assert_close(state[0] - after[0], found)
    assert found[2] == 0


def test_checkpoints_that_were_kept_are_taken_in_any_form():
    problem = trained()
    model: nn.Module = problem.model
    seen = given_checkpoints(problem, [model, model.state_dict(), problem.parameters], [1, 2, 3])
    for checkpoint, rate in zip(seen, (1.0, 2.0, 3.0), strict=True):
        assert_close(checkpoint.parameters, problem.parameters)
        assert (checkpoint.reach == rate).all()


def test_the_last_checkpoint_lies_on_the_way_to_the_last_state():
    problem = trained()
    last = checkpoints(problem, STEPS)[-1]
    course = Course(problem, problem.training)
    batch = course.batch(STEPS - 1)
    ones = torch.ones_like(batch.weights)
    state = course.step(last.parameters[None], ones, batch=batch, at=STEPS - 1)
    assert_close(state, run([course], torch.ones(1, 30))[0])


@pytest.mark.parametrize("training", [None, CallableTraining(lambda weights, seed: None)])
def test_a_training_without_steps_is_refused(training: CallableTraining | None):
    problem = replace(problems.mlp_untrained().problem, training=training)
    with pytest.raises(CannotRetrain, match=r"whence\.Training"):
        checkpoints(problem, 3)


def test_impossible_checkpoints_are_refused():
    problem = trained()
    for count in (0, STEPS + 1):
        with pytest.raises(BadArgument, match="12 steps"):
            checkpoints(problem, count)
    for rates in ([], [1, 2], [0]):
        with pytest.raises(BadArgument, match="rates"):
            given_checkpoints(problem, [problem.parameters], rates)
