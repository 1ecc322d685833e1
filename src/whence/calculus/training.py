"""A training written down as a recipe: a pure function of a seed and of example weights.

    state_0 = start(init(seed))
    state_t+1 = step(state_t, gradient of (1/B) sum_b w_b b_b loss_b(theta_t) + r(theta_t))

Which examples meet in which batch follows from the seed and their ids alone. An example of weight
zero stays in its batch, and B stays B, so that trainings with different weights differ in nothing
else. On one machine a training gives the same bits every time.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from whence.calculus.kept import trained
from whence.calculus.optimizers import Optimizer, make_optimizer
from whence.calculus.rehearsal import check_repeatable, check_weights
from whence.core.batches import Batch, Tree
from whence.core.problem import Problem
from whence.core.regularizers import matching
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, BadData, unknown_name
from whence.numerics import draws
from whence.progress import breathe

Schedule = Callable[[int, int], float]
"""`(step, steps) -> factor` of the learning rate, with step from 0."""

Augment = Callable[[Tree, torch.Generator], Tree]
"""`(inputs of a batch, generator) -> inputs`, drawing from the generator alone."""

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: 1 - step / steps,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2,
}
"""By the names that `Training` takes; the last two end at zero after the last step."""

Init = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True)
class Training(Trainer):
    """How a network is trained, as a recipe that can be run for any seed and any weights.

    Args:
        init: makes the untrained model, drawing from torch's global generator, which is seeded; or
            a model, from whose parameters every training starts, as in fine-tuning.
        optimizer: "sgd", "adam", "adamw", or a recipe such as `SGD(momentum=0.9)`.
        lr: learning rate.
        schedule: "constant", "linear", "cosine", or a function `(step, steps) -> factor`.
        epochs: passes over the data.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        seed: of the training itself; other seeds are counted from it.
        weight_decay: (weight_decay / 2)|theta|^2 in the objective; of "adamw", beside it.
        decayed: name pattern(s) of the parameters that decay.
        clip: largest norm of the gradient of a step.
        augment: changes the inputs of a batch: `(inputs, generator) -> inputs`.
        memory: bytes that the states of trainings side by side may take.
        cache: a folder in which trained parameters are kept, and found again where nothing that
            matters has changed; a training that was killed goes on from there.

    Raises:
        BadArgument: a number outside its range.
        UnknownName: no such optimizer or schedule.
    """

    init: Init
    optimizer: str | Optimizer = "adamw"
    lr: float = 1e-3
    schedule: str | Schedule = "constant"
    epochs: int = 10
    batch_size: int = 64
    seed: int = 0
    weight_decay: float = 0.0
    decayed: str | tuple[str, ...] = "*"
    clip: float | None = None
    augment: Augment | None = None
    memory: int = 2**30
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        make_optimizer(self.optimizer)
        if isinstance(self.schedule, str) and self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        clip = math.inf if self.clip is None else self.clip
        counts: list[Any] = [self.epochs, self.batch_size, self.memory]
        are_whole = all(isinstance(count, int) for count in counts)
        are_above = min(*counts, clip) > 0 and self.lr > 0
        if not (are_whole and are_above and self.weight_decay >= 0):
            raise BadArgument(
                found=f"lr={self.lr!r}, epochs={self.epochs!r}, batch_size={self.batch_size!r}, "
                f"clip={self.clip!r}, weight_decay={self.weight_decay!r}, memory={self.memory!r}.",
                why="A training takes steps of some size over batches of some examples.",
                remedy="Give numbers above zero, whole ones where they count something, and a "
                "weight decay of zero or more.",
            )

    @property
    def name(self) -> str:
        """Optimizer, epochs and batches."""
        kind = make_optimizer(self.optimizer).name
        return f"{kind}, {self.epochs} epochs in batches of {self.batch_size}"

    @property
    def is_deterministic(self) -> bool:
        """Another seed starts elsewhere, and shuffles in another way."""
        return False

    @property
    def coupled_decay(self) -> float:
        """The weight decay that is part of the objective R."""
        return 0.0 if make_optimizer(self.optimizer).is_decoupled else self.weight_decay

    def model(self, seed: int = 0) -> nn.Module:
        """The untrained model.

        Args:
            seed: counted from that of the training.
        """
        if isinstance(self.init, nn.Module):
            return deepcopy(self.init)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed + seed)
            return self.init()

    def retrain(self, problem: Problem, weights: Tensor, *, seed: int = 0) -> Retrained:
        """Trains once for each row of weights; see `retrain_each`."""
        return self.retrain_each(problem, weights, seeds=[seed] * len(weights))

    def retrain_each(self, problem: Problem, weights: Tensor, *, seeds: Sequence[int]) -> Retrained:
        """Trains all of them side by side; see `Trainer.retrain_each`.

        Args:
            problem: what is trained.
            weights: (M, N).
            seeds: (M,) counted from that of the training.

        Raises:
            BadArgument: weights of another shape, negative or NaN.
            NotDeterministic: the first step gives two results.
            Diverged: a gradient is not a number.
            TooLarge: not even one training fits the memory.
        """
        check_weights(problem, weights)
        courses, started = {seed: Course(problem, self, seed) for seed in seeds}, time.monotonic()
        first = courses[seeds[0]]
        check_repeatable(first)
        parameters, reused = trained([courses[seed] for seed in seeds], weights)
        report = {
            "training": self.name,
            "seed": seeds[0] if len(courses) == 1 else list(courses),
            "steps": first.steps,
            "reused": reused,
            "seconds": time.monotonic() - started,
        }
        return Retrained(parameters, report)


@dataclass(frozen=True, eq=False)
class Course:
    """A training laid out on a problem: what happens at each of its T steps.

    Args:
        problem: model, loss, regulariser and data.
        training: the recipe.
        seed: counted from that of the recipe.
    """

    problem: Problem
    training: Training
    seed: int = 0

    @cached_property
    def optimizer(self) -> Optimizer:
        """Of the recipe."""
        return make_optimizer(self.training.optimizer)

    @property
    def steps(self) -> int:
        """T."""
        return self.training.epochs * self._steps_an_epoch

    @property
    def _steps_an_epoch(self) -> int:
        return -(-len(self.problem) // self.training.batch_size)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        schedule = self.training.schedule
        factor = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        return self.training.lr * factor(step, self.steps)

    def positions(self, step: int) -> Tensor:
        """(B,) the examples of a step."""
        epoch, place = divmod(step, self._steps_an_epoch)
        size = self.training.batch_size
        return self._orders[epoch, place * size : (place + 1) * size]

    @cached_property
    def _orders(self) -> Tensor:
        """(epochs, N) the order of the examples in every epoch."""
        keys = draws.keys(self.problem.data.ids)

        def order(epoch: int) -> Tensor:
            breathe()
            return draws.order(self._mixed(epoch), keys)

        return torch.stack([order(epoch) for epoch in range(self.training.epochs)])

    def _mixed(self, *places: int) -> int:
        """A seed for one place of the training."""
        entropy = (abs(self.training.seed + self.seed), *places)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def batch(self, step: int) -> Batch:
        """The examples of a step, augmented."""
        batch = self.problem.batch(self.positions(step))
        if self.training.augment is None:
            return batch
        generator = torch.Generator(self.problem.device).manual_seed(self._mixed(step, 1))
        inputs = self.training.augment(batch.inputs, generator)
        return Batch(inputs, batch.targets, batch.positions, batch.weights)

    def start(self) -> Tensor:
        """(S, P) the state before the first step.

        Raises:
            BadData: the model of the recipe has other parameters than that of the problem.
        """
        named = dict(self.training.model(self.seed).named_parameters())
        for name, shape in self.problem.layout.shapes.items():
            if name not in named or named[name].shape != shape:
                got = tuple(named[name].shape) if name in named else "no parameter of this name"
                raise BadData(
                    found=f"{name} of {self.problem.name} has shape {tuple(shape)}; the model that "
                    f"Training(init=...) makes has {got}.",
                    why="The training has to lead to a model of the same kind.",
                    remedy="Give make_problem the model that init makes, or the training alone.",
                )
        flat = self.problem.layout.join(named).detach()
        return self.optimizer.start(flat.to(self.problem.parameters))

    def loss(self, parameters: Tensor, batch: Batch, weights: Tensor) -> Tensor:
        """The objective of one step, a scalar.

        Args:
            parameters: (P,).
            batch: B examples.
            weights: (B,) w_b.
        """
        count = weights.sum() if self.problem.renormalize else len(batch)
        losses = self.problem.losses(parameters, batch)
        return (weights * batch.weights * losses).sum() / count + self.problem.penalty(parameters)

    def step(self, state: Tensor, weights: Tensor, *, batch: Batch, at: int) -> Tensor:
        """The next state, as a function that can be differentiated.

        Args:
            state: (S, P).
            weights: (B,) w_b.
            batch: the examples of this step.
            at: its number, from 0.
        """
        return self.update(state, grad(self.loss)(state[0], batch, weights), at=at)

    def update(self, state: Tensor, slope: Tensor, *, at: int) -> Tensor:
        """The part of a step that knows no example: the next state, of one run or of a stack.

        Args:
            state: (..., S, P).
            slope: (..., P) gradient of `loss`.
            at: the number of the step, from 0.
        """
        lr = self.lr(at)
        then = self.optimizer.step(state, self._clipped(slope), lr=lr, count=at + 1)
        if self._shrink is None:
            return then
        theta = torch.addcmul(then[..., 0, :], self._shrink, state[..., 0, :], value=-lr)
        return torch.cat([theta.unsqueeze(-2), then[..., 1:, :]], -2)

    def update_(self, state: Tensor, slope: Tensor, *, at: int) -> None:
        """The same, written over the state; without derivatives."""
        lr = self.lr(at)
        if self._shrink is not None:
            state[..., 0, :].mul_(1 - lr * self._shrink)
        self.optimizer.step_(state, self._clipped(slope), lr=lr, count=at + 1)

    def _clipped(self, slope: Tensor) -> Tensor:
        if self.training.clip is None:
            return slope
        length = slope.norm(dim=-1, keepdim=True)
        return slope * (self.training.clip / (length + 1e-6)).clamp(max=1)

    @cached_property
    def _shrink(self) -> Tensor | None:
        """(P,) the decoupled weight decay of every parameter."""
        decay = self.training.weight_decay - self.training.coupled_decay
        if not decay:
            return None
        layout, like = self.problem.layout, self.problem.parameters
        decayed = set(matching(layout.names, _several(self.training.decayed)))
        named = {
            name: torch.full(shape, decay if name in decayed else 0.0, dtype=like.dtype)
            for name, shape in layout.shapes.items()
        }
        return layout.join(named).to(like)


def _several(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)
