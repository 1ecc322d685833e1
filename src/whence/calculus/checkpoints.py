"""A training seen at a few of its steps: where it was, and how far a gradient moved it there."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from whence.calculus.bulk import states
from whence.calculus.optimizers import SGD, Adam, Optimizer
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.core.training import flat_parameters
from whence.errors import BadArgument, CannotRetrain, Unsupported


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One of several places of a training, which stands for the steps around it.

    Args:
        parameters: (P,) where it was.
        reach: (P,) how far these steps move each parameter for a gradient of one, in the end: the
            sum of their learning rates times what the optimizer makes of a unit of gradient.
    """

    parameters: Tensor
    reach: Tensor


def checkpoints(problem: Problem, count: int) -> list[Checkpoint]:
    """A training in `count` parts of equally many steps, each seen from its middle.

    Args:
        problem: with its `Training`, which is run anew from its own seed.
        count: C.

    Raises:
        CannotRetrain: the problem does not say, step by step, how it was trained.
        BadArgument: there are fewer steps than parts.
        Unsupported: an optimizer of which it is not known what it makes of a gradient.
    """
    course = _course(problem)
    if not 1 <= count <= course.steps:
        raise BadArgument(
            found=f"{count} checkpoints were asked of a training of {course.steps} steps.",
            why="Each stands for one step or more.",
            remedy=f"Ask for 1 to {course.steps}.",
        )
    edges = [part * course.steps // count for part in range(count + 1)]
    middles = [(low + high) // 2 for low, high in pairwise(edges)]
    kept = states([course], torch.ones(1, len(problem)), middles)[:, 0]  # (C, S, P)
    return [
        Checkpoint(state[0], _reach(course, state, middle, range(*part)))
        for state, middle, part in zip(kept, middles, pairwise(edges), strict=True)
    ]


def given_checkpoints(
    problem: Problem, parameters: Sequence[object], rates: Sequence[float]
) -> list[Checkpoint]:
    """Checkpoints that somebody has kept.

    Args:
        problem: whose layout they have.
        parameters: C state dicts, or flat tensors (P,) in the problem's order.
        rates: the sum of the learning rates of the steps that each stands for; with momentum,
            divided by one less the momentum.

    Raises:
        BadArgument: their numbers differ, or a rate is not above zero.
        BadData: what is given is neither.
    """
    if len(parameters) != len(rates) or not parameters or not min(rates) > 0:
        raise BadArgument(
            found=f"{len(parameters)} checkpoints were given with the rates {list(rates)}.",
            why="Each stands for steps whose learning rates are summed up.",
            remedy="Give one number above zero for each checkpoint.",
        )
    flat = [flat_parameters(problem, found) for found in parameters]
    return [
        Checkpoint(theta, torch.full_like(theta, rate))
        for theta, rate in zip(flat, rates, strict=True)
    ]


def _course(problem: Problem) -> Course:
    if isinstance(problem.training, Training):
        return Course(problem, problem.training)
    how = "does not say how it was trained" if problem.training is None else "knows no single steps"
    raise CannotRetrain(
        found=f"{problem.name} {how}.",
        why="Checkpoints are taken on the way of its training.",
        remedy="Make it from whence.Training(...), or pass training=whence.Training(...); "
        "TracIn also takes checkpoints= with lrs=.",
    )


def _reach(course: Course, state: Tensor, at: int, steps: range) -> Tensor:
    """(P,) the learning rates of some steps times the pace of the optimizer at one of them."""
    total = sum(course.lr(step) for step in steps)
    return total * pace(course.optimizer, state, count=max(1, at))


def pace(optimizer: Optimizer, state: Tensor, *, count: int) -> Tensor:
    """(P,) how far a unit of gradient moves each parameter in the end, at a learning rate of one.

        SGD     1 / (1 - momentum)
        Adam    1 / (sqrt(v' + eps_root) + eps),       v as it is, not a function of weights

    Args:
        optimizer: of the training.
        state: (S, P).
        count: of the steps that have led to it.
    """
    if isinstance(optimizer, SGD):
        return torch.full_like(state[0], 1 / (1 - optimizer.momentum))
    if isinstance(optimizer, Adam):
        square = state[2] / (1 - optimizer.betas[1] ** count)
        scale = (square + optimizer.eps_root).sqrt() + optimizer.eps
        return torch.where(square > 0, 1 / scale, 0.0)  # what nothing has moved yet
    raise Unsupported(
        found=f"The optimizer is {optimizer.name}.",
        why="It is not known how far its steps go for a unit of gradient.",
        remedy="Use SGD or Adam, or method='magic', which differentiates any step.",
    )
