"""Whether a training follows its weights smoothly enough for derivatives to mean something."""

import torch
from torch import Tensor

from whence.calculus.training import Course
from whence.numerics import draws

SHARE = 0.1
"""Of the examples of weight above zero, so many are removed along a direction."""


def metasmoothness(
    course: Course, weights: Tensor, end: Tensor, *, directions: int = 1, seed: int = 0
) -> float:
    """Share of a removal's movement of the parameters that goes on as it has begun.

        there = theta(w + h v) - theta(w),      on = theta(w + 2 h v) - theta(w + h v)
        sum_p |there_p + on_p| [sign there_p = sign on_p]  /  sum_p |there_p + on_p|

    v takes the weight of a random tenth of the examples and h is a half: from all of them over
    half their weight to none. It is 1 where parameters go straight on, 0.71 where both halves of
    the way are independent of each other, and 0.35 where every weight leads to parameters of its
    own (for normal numbers: 1/sqrt(2) and 1/sqrt(8)).

    Args:
        course: of the training.
        weights: (N,) w.
        end: (P,) theta(w), the parameters that it leads to.
        directions: of which the mean is taken; each takes two trainings.
        seed: of the directions.

    Source: Engstrom et al. 2025 (arXiv:2503.13751), definition 2, known from code that implements
    it; their number is the share that agrees less the share that does not, 2 x - 1, and their v is
    normal noise.
    """
    size = max(1, round(SHARE * int((weights > 0).sum())))
    rows = torch.cat([_along(course, weights, size, seed, k) for k in range(directions)])
    found = course.training.retrain(course.problem, rows, seed=course.seed).parameters
    half, whole = found.double().reshape(directions, 2, -1).unbind(1)
    there, on = half - end.double(), whole - half
    movement = (there + on).abs()
    shares = (movement * (there.sign() == on.sign())).sum(1) / movement.sum(1)
    return float(shares.mean())


def _along(course: Course, weights: Tensor, size: int, seed: int, place: int) -> Tensor:
    """(2, N) weights with half of a random tenth, and without it."""
    inside = torch.nonzero(weights > 0).flatten().cpu()
    keys = draws.keys(course.problem.data.ids)[inside.numpy()]
    taken = inside[draws.order(seed + place, keys)[:size]]
    rows = weights.cpu().repeat(2, 1)
    rows[0, taken] /= 2
    rows[1, taken] = 0
    return rows
