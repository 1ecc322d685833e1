"""The derivative through a training is that of training again with weights moved a little."""

import math
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

import whence
from whence.calculus import replay as replaying
from whence.calculus.gradients import measure, measurement_gradients
from whence.calculus.optimizers import SGD, Adam, Optimizer
from whence.calculus.replay import Derivatives, Step, Walk, record, replay, step_bytes
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.errors import Diverged, Unsupported

N, QUERIES = 14, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=generator).double()
    return x, torch.randint(3, (N,), generator=generator)


def problem_with(
    init: Any = network, *, options: dict[str, Any] | None = None, **training: Any
) -> Problem:
    """Fourteen examples in batches of four: the last one of an epoch has two."""
    recipe = Training(init, **{"lr": 0.05, "epochs": 3, "batch_size": 4} | training)
    return whence.make_problem(recipe, data(), loss="cross_entropy", **(options or {}))


def course_of(problem: Problem, seed: int = 0) -> Course:
    assert isinstance(problem.training, Training)
    return Course(problem, problem.training, seed)


def measured(problem: Problem) -> tuple[Tensor, Tensor]:
    """Values (Q,) and gradients (Q, P) of the margins of the first examples."""
    x, y = data()
    asked = problem.queries((x[:QUERIES].to(problem.dtype), y[:QUERIES]))
    return measurement_gradients(problem, problem.measurement(), asked)


def derivatives(problem: Problem, weights: Tensor, *, seed: int = 0, **memory: int) -> Tensor:
    recording = record(course_of(problem, seed), weights, **memory)
    return replay(recording, measured(recording.problem)[1], **memory)


def by_retraining(problem: Problem, weights: Tensor, *, seed: int = 0) -> Tensor:
    """(Q, N) central differences of retraining; where a weight is zero, of second order beside it.

    2 N trainings and one: m' = (m(w + h) - m(w - h)) / 2 h or (4 m(h) - 3 m(0) - m(2 h)) / 2 h.
    """
    size = 1e-5
    move = size * torch.eye(N).double()
    is_zero = weights == 0
    second = torch.where(is_zero[:, None], 2 * move, -move)
    rows = torch.cat([weights + move, weights + second, weights[None]])
    asked = problem.queries((data()[0][:QUERIES], data()[1][:QUERIES]))
    values = torch.stack(
        [
            measure(problem.at(theta), problem.measurement(), asked)
            for theta in problem.retrain(rows, seed=seed).parameters
        ],
        1,
    )
    once, other, never = values.split([N, N, 1], 1)
    return torch.where(is_zero, 4 * once - 3 * never - other, once - other) / (2 * size)


def assert_equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    gaps = (found - expected).abs() / expected.abs().amax(1, keepdim=True)
    assert float(gaps.max()) <= tolerance


def jittered(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator).to(inputs)


class Rooted(Optimizer):
    """One that divides by the norm of the gradient, so that parameters are not by themselves."""

    @property
    def name(self) -> str:
        return "rooted"

    @property
    def slots(self) -> int:
        return 0

    def step(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> Tensor:
        length = gradient.norm(dim=-1, keepdim=True)
        return state - lr * (gradient / (1 + length) / count).unsqueeze(-2)


TRAININGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.2},
    "momentum": {"optimizer": SGD(momentum=0.9)},
    "nesterov": {"optimizer": SGD(momentum=0.8, nesterov=True), "weight_decay": 0.1},
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "adam, rooted": {"optimizer": Adam(betas=(0.8, 0.95), eps_root=1e-4)},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.2, "decayed": "*weight"},
    "cosine": {"optimizer": "adamw", "schedule": "cosine"},
    "clipped": {"optimizer": SGD(momentum=0.9), "clip": 0.3},
    "augmented": {"optimizer": "adam", "augment": jittered},
    "fine-tuned": {"init": network(), "optimizer": SGD(momentum=0.5)},
    "of the user": {"optimizer": Rooted()},
    "renormalized": {"optimizer": "adam", "options": {"renormalize": True}},
    "base weights": {"optimizer": "adam", "options": {"sample_weight": torch.rand(N) + 0.5}},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_it_is_what_retraining_says(name: str) -> None:
    """1e-5: differences over 1e-5 are right to some 1e-9, their rounding to 1e-10 / 1e-5."""
    problem = problem_with(**TRAININGS[name])
    weights = torch.ones(N).double()
    assert_equal(derivatives(problem, weights), by_retraining(problem, weights), 1e-5)


def test_examples_without_weight_have_derivatives_too() -> None:
    problem = problem_with(optimizer="adamw")
    weights = torch.ones(N).double()
    weights[::2] = 0
    found = derivatives(problem, weights, seed=5)
    assert_equal(found, by_retraining(problem, weights, seed=5), 1e-5)
    assert bool((found[:, ::2] != 0).all())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", SGD(momentum=0.9), Rooted()])
def test_many_queries_are_the_queries_one_by_one(optimizer: str | Optimizer) -> None:
    """More queries than the optimizer has rows of state go another way."""
    recording = record(course_of(problem_with(optimizer=optimizer)), torch.ones(N))
    slopes = torch.randn(9, recording.end.shape[1], generator=torch.Generator().manual_seed(1))
    together = replay(recording, slopes.double())
    apart = torch.cat([replay(recording, row[None]) for row in slopes.double()])
    assert_equal(together, apart, 1e-10)


@pytest.mark.parametrize("steps", [0, 20])
def test_how_many_states_are_kept_changes_nothing(steps: int) -> None:
    problem = problem_with(optimizer="adam", epochs=10)  # 40 steps
    weights = torch.ones(N).double()
    memory = 2 * steps * step_bytes(course_of(problem))
    assert_equal(derivatives(problem, weights, memory=memory), derivatives(problem, weights), 1e-10)


@pytest.mark.parametrize("size", [1, 2])
def test_queries_in_chunks_are_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, weights = problem_with(optimizer="adam"), torch.ones(N).double()
    expected = derivatives(problem, weights)
    monkeypatch.setattr(replaying, "chunk_size", lambda course: size)
    assert_equal(derivatives(problem, weights), expected, 1e-10)


@pytest.mark.parametrize("epochs", [4, 16, 64])
def test_states_held_at_a_time_grow_with_the_logarithm_of_the_steps(
    epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_with(optimizer="sgd", epochs=epochs)
    recording = record(course_of(problem), torch.ones(N), memory=0)
    alive: WeakSet[Step] = WeakSet(recording.kept)
    taken = Walk.step

    def counted(walk: Walk, at: int, state: Tensor) -> Step:
        step = taken(walk, at, state)
        alive.add(step)
        return step

    monkeypatch.setattr(Walk, "step", counted)
    steps = 4 * epochs
    seen = [(step.at, len(alive)) for step in recording.backwards()]
    assert [at for at, _ in seen] == list(reversed(range(steps)))
    # One more: the last step of the loop above is held by the loop itself.
    assert max(held for _, held in seen) <= recording.room + 1 <= 2 * math.log2(steps + 1) + 5


class Branching(nn.Module):
    """Takes one example at a time, and another way for each sign: vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layers(row if row.sum() > 0 else -row) for row in x])


def test_a_model_without_vmap_gets_the_same_derivatives() -> None:
    class Folded(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x * x.sum(1, keepdim=True).sign())

    weights = torch.ones(N).double()
    slow, fast = problem_with(Branching), problem_with(Folded)
    assert not Derivatives(course_of(slow))._is_stacked
    assert Derivatives(course_of(fast))._is_stacked
    assert_equal(derivatives(slow, weights), derivatives(fast, weights), 1e-10)


def test_fused_attention_is_differentiated_as_plain_attention() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(2, 6), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.inner(x.view(-1, 2, 2)).view(-1, 1, 2, 6).chunk(3, -1)
            return self.outer(nn.functional.scaled_dot_product_attention(q, k, v).flatten(1))

    problem = problem_with(lambda: Attending().double())
    weights = torch.ones(N).double()
    assert_equal(derivatives(problem, weights), by_retraining(problem, weights), 1e-5)


def test_single_precision_agrees() -> None:
    """1e-3: rounding of 1e-7, grown over 12 steps of training and as many back."""
    wide = problem_with(optimizer="adam")
    narrow = replace(wide.to(dtype=torch.float32))
    found = derivatives(narrow, torch.ones(N))
    assert found.dtype == torch.float64
    assert_equal(found, derivatives(wide, torch.ones(N).double()), 1e-3)


def test_derivatives_that_overflow_are_refused() -> None:
    problem = problem_with(optimizer="sgd")
    recording = record(course_of(problem), torch.ones(N))
    with pytest.raises(Diverged, match="not finite for 1 of 2"):
        replay(
            recording,
            torch.stack(
                [torch.full_like(recording.end[0], torch.inf), torch.ones_like(recording.end[0])]
            ),
        )


def test_a_model_with_one_derivative_only_is_refused() -> None:
    class Once(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return slope * ctx.saved_tensors[0].cos()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * Once.apply(self.layers(x))

    with pytest.raises(Unsupported, match="differentiated again"):
        derivatives(problem_with(Model), torch.ones(N))
