"""A training is a function of weights and a seed, and that of `torch.optim`."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence
from whence.calculus.bulk import run
from whence.calculus.optimizers import SGD, Optimizer
from whence.calculus.training import Course, Training
from whence.core.changes import replacement
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, UnknownName

N = 30


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=generator).double()
    return x, torch.randint(3, (N,), generator=generator)


def _problem(**options: object) -> Problem:
    training = Training(_network, **{"lr": 0.05, "epochs": 3, "batch_size": 8} | options)
    return whence.make_problem(training, _data(), loss="cross_entropy")


def _by_hand(course: Course, make: partial, weights: Tensor, *, decay: float = 0.0) -> Tensor:
    """The same training as anybody would write it."""
    model = course.training.model()
    optimizer = make(model.parameters())
    x, y = _data()
    for step in range(course.steps):
        optimizer.param_groups[0]["lr"] = course.lr(step)
        rows = course.positions(step)
        losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
        optimizer.zero_grad()
        penalty = sum((p**2).sum() for p in model.parameters())
        ((weights[rows] * losses).mean() + decay / 2 * penalty).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "make", "decay"),
    [
        (SGD(momentum=0.9), partial(torch.optim.SGD, lr=1, momentum=0.9), 0.1),
        ("adam", partial(torch.optim.Adam, lr=1), 0.1),
        ("adamw", partial(torch.optim.AdamW, lr=1, weight_decay=0.1), 0.0),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_it_is_the_training_of_torch(
    optimizer: str | Optimizer, make: partial, decay: float
) -> None:
    problem = _problem(optimizer=optimizer, weight_decay=0.1, schedule="cosine")
    weights = torch.ones(N).double()
    weights[::4] = 0
    course = Course(problem, problem.training)
    expected = _by_hand(course, make, weights, decay=decay)
    found = problem.retrain(weights).parameters[0]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_the_model_is_what_the_training_returns() -> None:
    problem = _problem()
    assert torch.equal(problem.parameters, problem.retrain().parameters[0])


def test_many_runs_are_the_runs_one_by_one() -> None:
    problem = _problem()
    weights = (torch.rand(5, N, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    together = problem.retrain(weights, seed=1).parameters
    for row, theta in zip(weights, together, strict=True):
        assert torch.allclose(problem.retrain(row, seed=1).parameters[0], theta, atol=1e-12)


def test_runs_from_seeds_of_their_own_are_the_runs_one_by_one() -> None:
    problem, seeds = _problem(schedule="cosine"), [2, 0, 2, 5]
    weights = (torch.rand(4, N, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    found = problem.retrain(weights, seed=seeds)
    for row, seed, theta in zip(weights, seeds, found.parameters, strict=True):
        alone = problem.retrain(row, seed=seed)
        assert torch.allclose(alone.parameters[0], theta, atol=1e-12)
        assert alone.report["seed"] == seed
    assert found.report["seed"] == [2, 0, 5]
    assert problem.retrain(seed=[1, 2]).parameters.shape == (2, problem.size)
    for wrong in ([], [1, 2, 3]):
        with pytest.raises(BadArgument, match=f"{len(wrong)} seeds for 4 rows"):
            problem.retrain(weights, seed=wrong)


def test_every_epoch_sees_every_example_once_in_its_own_order() -> None:
    problem = _problem()
    course = Course(problem, problem.training)
    epochs = [torch.cat([course.positions(4 * e + i) for i in range(4)]) for e in range(3)]
    assert all(torch.equal(order.sort().values, torch.arange(N)) for order in epochs)
    assert len({tuple(order.tolist()) for order in epochs}) == 3
    other = Course(problem, problem.training, seed=1)
    assert not torch.equal(other.positions(0), course.positions(0))


def test_derivatives_pass_through_all_of_it() -> None:
    problem = _problem(optimizer="adam")
    course = Course(problem, problem.training)
    weights = torch.ones(N).double().requires_grad_()
    state = course.start()
    for at in range(course.steps):
        batch = course.batch(at)
        state = course.step(state, weights[batch.positions], batch=batch, at=at)
    (slope,) = torch.autograd.grad(state[0].sum(), weights)
    step = torch.zeros(N).double()
    step[3] = 1e-5
    ends = run([course] * 2, torch.stack([weights + step, weights - step]).detach())[:, 0].sum(1)
    assert slope[3].item() == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_a_long_gradient_is_clipped() -> None:
    problem = _problem(optimizer="sgd", clip=1e-3, lr=1.0, epochs=1)
    course = Course(problem, problem.training)
    moved = (problem.parameters - course.start()[0]).norm()
    assert float(moved) <= course.steps * 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adam", SGD(momentum=0.9, nesterov=True)])
def test_a_stack_of_runs_is_updated_as_each_of_them(optimizer: str | Optimizer) -> None:
    problem = _problem(optimizer=optimizer, weight_decay=0.1, clip=0.5)
    course = Course(problem, problem.training)
    generator = torch.Generator().manual_seed(0)
    shape = (4, *course.start().shape)
    stack = torch.rand(shape, generator=generator).double()
    slopes = torch.randn(4, problem.size, generator=generator).double()
    together = course.update(stack, slopes, at=2)
    for state, slope, found in zip(stack, slopes, together, strict=True):
        assert torch.allclose(course.update(state, slope, at=2), found, rtol=1e-13)


def test_a_batch_may_be_larger_than_the_data() -> None:
    problem = _problem(batch_size=1000, optimizer="sgd", epochs=4)
    course = Course(problem, problem.training)
    assert course.steps == 4
    assert len(course.batch(3)) == N
    expected = _by_hand(course, partial(torch.optim.SGD, lr=1), torch.ones(N).double())
    assert torch.allclose(problem.parameters, expected, rtol=1e-10, atol=1e-12)


def test_examples_with_other_contents_are_trained_on_as_they_are_now() -> None:
    problem, (x, y) = _problem(), _data()
    changed = replacement(problem, np.array([3, 7]), targets=(y[[3, 7]] + 1) % 3)
    assert changed.contents(problem).data.is_changed
    found = changed.contents(problem).retrain().parameters
    y[[3, 7]] = (y[[3, 7]] + 1) % 3
    training = problem.training
    expected = whence.make_problem(training, (x, y), loss="cross_entropy").parameters
    assert torch.equal(found[0], expected)
    assert not torch.equal(found[0], problem.parameters)


def test_a_start_of_another_kind_of_model_is_refused() -> None:
    for model, told in (
        (nn.Linear(4, 3), "no parameter"),
        (nn.Sequential(nn.Linear(4, 6)), "6, 4"),
    ):
        problem = _problem()
        other = replace(problem, training=replace(problem.training, init=lambda m=model: m))
        with pytest.raises(BadData, match=f"0.weight.*{told}"):
            other.retrain()


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"batch_size": 8.0},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"memory": 0},
    ):
        with pytest.raises(BadArgument):
            Training(_network, **wrong)
    with pytest.raises(UnknownName, match="cosine"):
        Training(_network, schedule="cosin")
    training = Training(_network, weight_decay=0.1, optimizer="adam")
    with pytest.raises(BadArgument, match="weight_decay"):
        whence.make_problem(training, _data(), loss="cross_entropy", weight_decay=0.2)
