"""What is refused before a training is run: weights that mean nothing, steps that do not repeat."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_leaves

from whence.core.batches import Tree
from whence.core.checks import blamed, check_modes
from whence.core.problem import Problem
from whence.errors import BadArgument, NotDeterministic

if TYPE_CHECKING:
    from whence.calculus.training import Course


def check_weights(problem: Problem, weights: Tensor) -> None:
    """Refuses weights that no training can be run with.

    Raises:
        BadArgument: another shape than (M, N), NaN, below zero, or all of a row zero where their
            sum divides.
    """
    if weights.ndim != 2 or weights.shape[1] != len(problem) or not len(weights):
        raise BadArgument(
            found=f"Weights of shape {tuple(weights.shape)} for {len(problem)} training examples.",
            why="A training needs one weight for each example.",
            remedy=f"Give weights of shape (M, {len(problem)}): 1 = as it was, 0 = removed.",
        )
    bad = ~(weights >= 0) | ~weights.isfinite()
    if bool(bad.any()):
        row, place = torch.nonzero(bad)[0].tolist()
        raise BadArgument(
            found=f"The weight of example {problem.data.ids[place]} in row {row} is "
            f"{weights[row, place].item():g}; {int(bad.sum())} weights are negative, NaN or "
            "infinite.",
            why="A training that runs away from an example has no end.",
            remedy="Give weights of zero or more; 0 removes an example.",
        )
    if problem.renormalize and not bool((weights.sum(1) > 0).all()):
        raise BadArgument(
            found="A row of weights is all zero.",
            why="Under renormalize=True the losses are divided by the sum of the weights.",
            remedy="Keep at least one example.",
        )


def check_repeatable(course: "Course") -> None:
    """Makes the start and the first step twice, and refuses what differs.

    Raises:
        NotDeterministic: naming what gave two answers: the start, the data, a module, or the loss
            and its derivative.
        TrainMode: dropout or batch statistics are switched on.
    """
    check_modes(course.problem.model)
    _refuse_gap(
        _gap(course.start(), course.start()),
        "The untrained model starts from other parameters when it is made again",
        "Draw them from torch's global generator, which is seeded, as the layers of torch do; "
        "numpy and generators of your own need a fixed seed.",
    )
    batch, again = course.batch(0), course.batch(0)
    maker = "the data set" if course.training.augment is None else "augment or the data set"
    _refuse_gap(
        _gap((batch.inputs, batch.targets), (again.inputs, again.targets)),
        f"The first batch is another one when {maker} is asked again",
        "Give Training(augment=...) all that is random; it takes a generator, which is seeded.",
    )
    theta = course.start()[0]
    ones = torch.ones(len(batch)).to(theta)
    gap = _gap(*(grad(course.loss)(theta, batch, ones) for _ in range(2)))
    if gap > _ROUNDINGS:
        culprit = blamed(course.problem, theta, batch)
        found = f"The gradient of the first step differs when it is taken again; {culprit}"
        _refuse_gap(gap, found, _SEEDED)


_SEEDED = (
    "Take what is random out of the model and the loss, or call model.eval(); on a GPU, "
    "torch.use_deterministic_algorithms(True) names operations that add in any order."
)


def _gap(first: Tree, second: Tree) -> float:
    """The largest difference, in units of rounding and of the largest number; inf if unlike."""
    worst = 0.0
    for one, other in zip(tree_leaves(first), tree_leaves(second), strict=True):
        if not isinstance(one, Tensor) or torch.equal(one, other):
            continue
        if one.shape != other.shape or not one.is_floating_point():
            return float("inf")
        scale = float(one.abs().max()) * torch.finfo(one.dtype).eps
        gap = float((one - other).abs().nan_to_num(0).max())
        worst = max(worst, gap / max(scale, torch.finfo(one.dtype).tiny))
    return worst


_ROUNDINGS = 1e3
"""Sums in another order differ by less."""


def _refuse_gap(gap: float, found: str, remedy: str) -> None:
    if gap > _ROUNDINGS:
        size = "" if gap == float("inf") else f" (by {gap:.2g} times what rounding does)"
        raise NotDeterministic(
            found=f"{found}{size}.",
            why="Trainings that differ by chance tell nothing about the weights of examples.",
            remedy=remedy,
        )
