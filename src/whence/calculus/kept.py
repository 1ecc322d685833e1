"""Trainings kept in a folder: found again, and gone on with after an interruption."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from whence.calculus.bulk import Group, group_size, in_groups, run
from whence.core.batches import Batch
from whence.store import fingerprint
from whence.store.trainings import Trainings
from whence.version import __version__

if TYPE_CHECKING:
    from whence.calculus.training import Course

SAVE_SECONDS = 30.0
"""Work that a kill may cost."""

_PROBED = 64
"""Examples on which model and loss are recognised."""


def trained(courses: "Sequence[Course]", weights: Tensor) -> tuple[Tensor, int]:
    """The parameters of M trainings, and how many of them were found in the folder.

    A training goes into the folder when it has come to its end, and the states of those on their
    way every `SAVE_SECONDS`. Equal rows of weights are trained once from a seed.

    Args:
        courses: (M,) one of each, with the folder; the same one for trainings from one seed.
        weights: (M, N).

    Returns:
        (M, P), and a count.
    """
    training = courses[0].training
    if training.cache is None:
        return run(courses, weights)[:, 0], 0
    kept, recipes = Trainings(Path(training.cache)), {c: recognised(c) for c in set(courses)}
    weights = weights.to(courses[0].problem.parameters)
    pairs = zip(courses, weights.cpu().numpy(), strict=True)
    keys = [fingerprint(recipes[course], row) for course, row in pairs]
    known = {key: found for key in keys if (found := kept.find(key)) is not None}
    reused = sum(key in known for key in keys)
    missing = list({key: place for place, key in enumerate(keys) if key not in known}.values())

    def work(group: range) -> dict[str, np.ndarray]:
        places = missing[group.start : group.stop]
        names = [keys[place] for place in places]
        whole = fingerprint(*names)
        own = [courses[place] for place in places]
        ends = _to_the_end(kept, Group(own, weights[places], places), whole)
        for name, end in zip(names, ends, strict=True):
            kept.keep(name, end)
        kept.forget_interrupted(whole)
        return dict(zip(names, ends, strict=True))

    for made in in_groups(work, len(missing), group_size(courses[0])):
        known |= made
    return torch.from_numpy(np.stack([known[key] for key in keys])).to(weights), reused


def _to_the_end(kept: Trainings, group: Group, key: str) -> np.ndarray:
    """(m, P) of a group, from where an earlier call was interrupted."""
    done, state = 0, None
    interrupted = kept.find_interrupted(key)
    if interrupted is not None:
        done, state = interrupted[0], torch.from_numpy(interrupted[1])
        state = state.to(group.course.problem.parameters)
    saved, stacks = time.monotonic(), []
    for at, stacks in group.steps(until=group.course.steps, state=state, done=done):
        if time.monotonic() - saved > SAVE_SECONDS:
            kept.keep_interrupted(key, at, torch.cat(stacks).cpu().numpy())
            saved = time.monotonic()
    return torch.cat(stacks)[:, 0].cpu().numpy()


def recognised(course: "Course") -> str:
    """A hash over everything that the result of a training depends on, but the weights.

    What is written in numbers counts as it is: the start, the orders, the learning rates, data and
    base weights. What is written in code (model, loss, regulariser, optimizer, augmentation) counts
    by what it answers: for the first and the last batch, at the start and away from it.
    """
    problem, training = course.problem, course.training
    facts: list[Any] = [
        *(__version__, torch.__version__, str(problem.dtype), problem.device.type),
        *(problem.loss.name, problem.regularizer.describe(), problem.renormalize),
        *(course.optimizer.name, training.weight_decay, training.clip, training.batch_size),
        {name: list(shape) for name, shape in problem.layout.shapes.items()},
        [course.lr(at) for at in range(course.steps)],
        problem.data.fingerprint(),
    ]
    start = course.start()
    places = torch.cat([course.positions(at) for at in range(course.steps)])
    numbers = [problem.weights, start, places]
    for at in sorted({0, course.steps - 1}):
        numbers += _answers(course, start, at)
    return fingerprint(*facts, *(x.detach().cpu().numpy() for x in numbers))


def _answers(course: "Course", start: Tensor, at: int) -> list[Tensor]:
    """What the code says of a step: its batch, outputs, losses, penalty, and the next states."""
    problem, batch = course.problem, course.batch(at)
    few = _first(batch)
    numbers = [leaf for leaf in tree_leaves((batch.inputs, batch.targets)) if leaf is not None]
    for scale in (1.0, 3.0):
        # No memory of the optimizer is empty here, so that each of its constants counts.
        state = scale * start + start.abs().mean()
        with torch.no_grad():
            numbers += [
                problem.outputs(state[0], few.inputs),
                problem.losses(state[0], few),
                problem.penalty(state[0]),
            ]
        numbers.append(course.step(state, torch.ones(len(few)).to(start), batch=few, at=at))
    return numbers


def _first(batch: Batch) -> Batch:
    rows = slice(0, _PROBED)
    inputs, targets = tree_map(
        lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf,
        (batch.inputs, batch.targets),
    )
    return Batch(inputs, targets, batch.positions[rows], batch.weights[rows])
