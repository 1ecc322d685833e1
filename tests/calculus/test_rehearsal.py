"""A training that gives two results is refused, and its cause named."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence
from whence.calculus.rehearsal import check_repeatable
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.errors import BadArgument, NotDeterministic, TrainMode

N = 16


class Dropping(nn.Module):
    """Drops units whatever its mode is, but not before there are more than six examples."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) if len(x) == 8 else x


class Noise(torch.autograd.Function):
    """Passes values on, and changes derivatives by chance."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return slope * torch.rand(())


class NoisyBackwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Noise.apply(x)


def build(*middle: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), *(make() for make in middle), nn.Linear(5, 3)).double()


def startled() -> nn.Module:
    """Draws its start from a generator that no seed reaches."""
    model = build()
    with torch.no_grad():
        model[0].bias += torch.from_numpy(np.random.default_rng().normal(size=5))
    return model


def problem_of(init: Callable[[], nn.Module], **options: object) -> Problem:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()
    training = Training(init, epochs=1, batch_size=8, **options)
    return whence.make_problem(training.model(), (x, x[:, :3]), loss="mse", training=training)


def loud(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + torch.randn(inputs.shape, dtype=inputs.dtype)


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (lambda: problem_of(startled), "The untrained model starts"),
        (lambda: problem_of(build, augment=loud), "augment or the data set"),
        (lambda: problem_of(partial(build, Dropping)), r"two ways is 1 \(Dropping\)"),
        (lambda: problem_of(partial(build, NoisyBackwards)), "the loss or a derivative"),
    ],
    ids=["start", "augmentation", "module", "gradient"],
)
def test_what_gives_two_answers_is_named(problem: Callable[[], Problem], cause: str) -> None:
    with pytest.raises(NotDeterministic, match=cause):
        problem().retrain()


def test_dropout_in_train_mode_is_refused_with_its_name() -> None:
    problem = problem_of(lambda: build(nn.Dropout).eval())
    assert problem.retrain().parameters.isfinite().all()
    problem.model.train()
    with pytest.raises(TrainMode, match="Dropout"):
        problem.retrain()


def test_what_repeats_passes_and_leaves_the_model_alone() -> None:
    problem = problem_of(partial(build, nn.Tanh))
    course = Course(problem, problem.training)
    check_repeatable(course)
    assert not any(module._forward_hooks for module in problem.model.modules())


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (torch.ones(2, N + 1), rf"\(2, {N + 1}\) for {N}"),
        (torch.ones(0, N), r"\(0, 16\)"),
        (torch.ones(2, 2, N), r"\(2, 2, 16\)"),
        (torch.tensor([[1.0] * 15 + [-0.5]]), "example 15 in row 0 is -0.5"),
        (torch.tensor([[1.0] * N, [1.0] * 3 + [float("nan")] * 13]), "3 in row 1 is nan; 13"),
        (torch.full((1, N), float("inf")), "is inf"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: Tensor, told: str) -> None:
    with pytest.raises(BadArgument, match=told):
        problem_of(build).retrain(weights)


def test_all_zero_weights_are_refused_only_where_they_divide() -> None:
    problem = problem_of(build)
    zeros = torch.zeros(1, N)
    assert problem.retrain(zeros).parameters.isfinite().all()
    training = problem.training
    x = problem.data.take(torch.arange(N))
    normed = whence.make_problem(problem.model, x, loss="mse", training=training, renormalize=True)
    with pytest.raises(BadArgument, match="all zero"):
        normed.retrain(zeros)
