"""What each of many retrainings leaves out: single examples, or random subsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.core.batches import find_ids
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.errors import BadArgument
from whence.numerics import draws, stats
from whence.numerics.lookup import Lookup

Array = np.ndarray[Any, Any]

_EXTREMES = 4
"""One in so many retrainings goes to the strongest effects of single queries."""

_STREAM = 0x5B
"""Keeps the subsets of a verification apart from any that a method draws from the same seed: what
was trained on the very subsets that are asked about would be judged on what it has seen."""


@dataclass(frozen=True, eq=False)
class Removals:
    """What M retrainings leave out.

    Args:
        kind: "example", one each, or "subset", a random share each.
        names: (M,) the id of the example, or the number of the subset.
        ids: (N,) of the training examples.
        is_out: (M, N) bool, True for what is left out.
    """

    kind: Literal["example", "subset"]
    names: Array
    ids: Array
    is_out: Array

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fraction(self) -> float:
        """The share of the training examples that every retraining keeps."""
        return 1 - float(self.is_out[0].mean())

    @property
    def words(self) -> str:
        """What one retraining is without."""
        if self.kind == "example":
            return "one of the training examples"
        return f"a random {percent(1 - self.fraction)} of the training examples"

    def weights(self) -> Tensor:
        """(1 + M, N) float64 for `Trainer.retrain`: the first row leaves out nothing."""
        rows = np.concatenate([np.zeros_like(self.is_out[:1]), self.is_out])
        return 1 - torch.from_numpy(rows).double()

    def some(self, positions: Array) -> "Removals":
        """Those of some of the M retrainings."""
        return Removals(self.kind, self.names[positions], self.ids, self.is_out[positions])

    def add_up(self, scores: Scores, rows: Array) -> Array:
        """(Q, M) predicted effects: of every retraining the sum over what it leaves out.

        Args:
            scores: effects of single examples.
            rows: (Q,) positions of the queries.

        Raises:
            BadArgument: the scores know nothing of an example that is left out.
        """
        values = scores.values[rows]
        if np.array_equal(scores.train_ids, self.ids):
            return np.stack([values[:, out].sum(axis=1) for out in self.is_out], axis=1)
        columns = [
            [scores.position(name) for name in self.ids[out].tolist()] for out in self.is_out
        ]
        return np.stack([values[:, places].sum(axis=1) for places in columns], axis=1)


def single_examples(problem: Problem, ids: Array) -> Removals:
    """Leaves out one training example at a time.

    Args:
        problem: whose examples.
        ids: (M,) of them.

    Raises:
        BadArgument: an id that does not exist.
    """
    is_out = np.zeros((len(ids), len(problem)), dtype=bool)
    is_out[np.arange(len(ids)), problem.data.positions(ids)] = True
    return Removals("example", ids, problem.data.ids, is_out)


def random_subsets(problem: Problem, count: int, fraction: float, *, seed: int = 0) -> Removals:
    """Keeps a random share of the training examples, another one each time.

    Args:
        problem: whose examples.
        count: M, how many subsets.
        fraction: share that is kept.
        seed: of the draw, keyed by the ids of the examples.

    Raises:
        BadArgument: a share that keeps all or nothing, or more subsets than there are.
    """
    kept = round(fraction * len(problem)) if 0 < fraction < 1 else 0
    if not 0 < kept < len(problem):
        raise BadArgument(
            found=f"fraction={fraction!r} of {len(problem):,} training examples.",
            why="It is the share that every retraining keeps: some examples stay, and some go.",
            remedy="Give a number between 0 and 1, such as the default 0.5.",
        )
    if count < 2:
        raise BadArgument(
            found=f"subsets={count!r}.",
            why="Agreement shows in how effects differ; with one subset there is no correlation.",
            remedy="Train on some dozens: subsets=64.",
        )
    word = int(np.random.SeedSequence((abs(seed), _STREAM)).generate_state(1)[0])
    is_in = draws.subsets(word, draws.keys(problem.data.ids), count=count, size=kept)
    return Removals("subset", np.arange(count), problem.data.ids, ~is_in.numpy())


def percent(share: float) -> str:
    """A share in words, such as "50 %"."""
    return f"{100 * share:.3g} %"


# ------------------------------------------------------------- examples worth leaving out


def choose_examples(
    scores: Scores, rows: Array, examples: int | Sequence[int | str], *, seed: int = 0
) -> Array:
    """(M,) ids of the training examples to leave out: as named, or drawn by `draw`.

    Raises:
        BadArgument: fewer than two, or an id that does not exist.
    """
    is_count = isinstance(examples, int | np.integer)
    count = min(int(examples) if is_count else len(examples), len(scores.train_ids))
    if count < 2:
        raise BadArgument(
            found=f"{count} training examples are to be left out.",
            why="Agreement shows in how effects differ; with one there is no correlation.",
            remedy="Leave out some dozens: examples=50 is the default.",
        )
    if is_count:
        return scores.train_ids[draw(scores.values[rows], count, seed=seed)]
    return scores.train_ids[find_ids(Lookup(scores.train_ids), examples)]


def draw(effects: Array, count: int, *, seed: int = 0) -> Array:
    """Training examples to leave out, across the whole range of predicted effects.

    A quarter are the largest and smallest effects of single queries, queries taking turns; the
    rest are spread over the ranks of the mean |effect|, each query's effects being divided by
    their mean size before.

    Args:
        effects: (Q, N).
        count: how many; all N if there are no more.
        seed: of the draw.

    Returns:
        Distinct positions in ascending order.
    """
    if count >= effects.shape[1]:
        return np.arange(effects.shape[1])
    extremes = _extremes(effects, max(1, count // _EXTREMES), seed)
    size = np.abs(effects)
    mean = size.mean(axis=1, keepdims=True)
    pooled = (size / np.where(mean > 0, mean, 1)).mean(axis=0)  # (N,)
    rest = np.setdiff1d(np.arange(len(pooled)), extremes)
    spread = stats.spread(pooled[rest], count - len(extremes), seed=seed)
    return np.sort(np.concatenate([extremes, rest[spread]]))


def _extremes(effects: Array, count: int, seed: int) -> Array:
    order = np.argsort(effects, axis=1, kind="stable")  # (Q, N)
    queries = np.random.default_rng(seed).permutation(len(order))
    ends = np.stack([order[queries, ::-1], order[queries]])  # (2, Q, N): largest, smallest first
    turns = ends.transpose(2, 1, 0).ravel()  # the strongest of every query before the second
    return np.array(list(dict.fromkeys(turns.tolist()))[:count], dtype=np.int64)
