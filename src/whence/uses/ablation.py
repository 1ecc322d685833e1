"""What is left of a prediction when the training examples that help it most are gone.

The k examples whose removal is predicted to hurt a query most are left out of the training, and as
many random ones for comparison. Where the first curve falls far below the second, the scores have
found what the prediction rests on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.core.problem import Problem
from whence.core.scores import Measurement, Scores
from whence.core.training import Trainer
from whence.errors import BadArgument
from whence.numerics import draws
from whence.sections import Lines, Section
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result
from whence.verification import choose_training
from whence.verification.checking import bench_of
from whence.verification.removals import Removals
from whence.verification.truth import measure_truth

KS = (1, 2, 5, 10, 20, 50)
"""How many examples are left out, as far as there are so many."""

RANDOM_ORDERS = 4
"""Random examples are left out in so many orders, which gives their curve a spread."""

_STREAM = 0xC5
"""Keeps the random orders apart from other draws of the same seed."""


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve(Result):
    """What leaving out more and more training examples does to one query.

    Args:
        query: its id.
        measurement: what was measured.
        baseline: of the model as trained.
        ks: (K,) how many examples were left out.
        train_ids: those that were left out, the strongest first.
        predicted: (K,) sums of their effects; None for scores without a scale.
        strongest: (S, K) effects of leaving them out, under each seed.
        random: (S, R, K) the same of random examples, in R orders.
        training: what trained the models.
        warnings: what a reader should know.
    """

    query: int | str
    measurement: Measurement
    baseline: float
    ks: np.ndarray
    train_ids: np.ndarray
    predicted: np.ndarray | None
    strongest: np.ndarray
    random: np.ndarray
    training: str
    warnings: tuple[str, ...] = ()

    @property
    def times_random(self) -> np.ndarray:
        """(K,) effect of the strongest, in units of the root mean square effect of random ones."""
        size = np.sqrt(np.square(self.random).mean(axis=(0, 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(self.strongest.mean(axis=0)) / size

    def section(self) -> Section:
        """The curves."""
        series: dict[str, dict[str, Sequence[float]]] = {
            "strongest": self._curve(self.strongest),
            "random": self._curve(self.random.reshape(-1, len(self.ks))),
        }
        if self.predicted is not None:
            series["as predicted"] = {"x": self.ks.tolist(), "y": self.predicted.tolist()}
        unit = self.measurement.unit
        x, y = "training examples left out", f"change of the {self.measurement.words} ({unit})"
        caption = (
            f"The {self.measurement.words} is {self.baseline:.3g} now. Trained again "
            f"({self.training}); bands are standard errors over seeds and orders."
        )
        lines = Lines(series, x, y, caption)
        title = f"What is left of query {self.query} without its strongest examples"
        return Section("removal_curve", title, self._sentence(), (lines,), self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Every effect that was measured."""
        values = {
            "query": self.query,
            "measurement": self.measurement.name,
            "unit": self.measurement.unit,
            "baseline": self.baseline,
            "ks": self.ks,
            "train_ids": self.train_ids,
            "predicted": self.predicted,
            "strongest": self.strongest,
            "random": self.random,
            "times_random": [x if np.isfinite(x) else None for x in self.times_random.tolist()],
            "training": self.training,
            "warnings": list(self.warnings),
            "sentence": self._sentence(),
        }
        return json.loads(json_text(as_json(values, "removal curve")))

    def _curve(self, runs: np.ndarray) -> dict[str, Sequence[float]]:
        """The mean over runs (R, K), with its standard error where there are several."""
        curve: dict[str, Sequence[float]] = {"x": self.ks.tolist(), "y": runs.mean(axis=0).tolist()}
        if len(runs) > 1:
            curve["error"] = (runs.std(axis=0, ddof=1) / np.sqrt(len(runs))).tolist()
        return curve

    def _sentence(self) -> str:
        words, unit, count = self.measurement.words, self.measurement.unit, int(self.ks[-1])
        actual, random = float(self.strongest.mean(0)[-1]), float(self.random.mean((0, 1))[-1])
        told = "" if self.predicted is None else f", {self.predicted[-1]:+.3g} predicted"
        examples = "the strongest example" if count == 1 else f"the {count} strongest examples"
        return (
            f"Trained again without {examples}, the {words} of query {self.query} changes by "
            f"{actual:+.3g} {unit}{told}; without as many random ones by {random:+.3g}."
        )


def removal_curve(
    problem: Problem,
    scores: Scores,
    query: int = 0,
    *,
    ks: Sequence[int] | None = None,
    seeds: int | None = None,
    training: Trainer | Callable[..., object] | None = None,
    seed: int = 0,
) -> RemovalCurve:
    """Trains again without the k strongest examples of a query, and without k random ones.

    The strongest are those whose removal is predicted to make the measurement worst: proponents,
    the strongest first. Every set contains the smaller ones.

    Args:
        problem: the one that the scores came from.
        scores: from `explain`.
        query: its position in the scores.
        ks: how many are left out, each below N; default those of `KS` that are.
        seeds: how often each set is trained; default 2 where the training follows its seed, else 1.
        training: how to train again; default that of the problem.
        seed: of the random orders, and the first one of the trainings.

    Returns:
        Both curves, with the predicted one where the scores have a scale.

    Raises:
        Stale: the scores belong to another model or other data.
        BadArgument: no such query, or a k that leaves nothing or takes nothing.
        CannotRetrain: nothing says how the model was trained.
    """
    scores.refuse_other(problem.fingerprint(), why="Its strongest examples would be others.")
    sizes, row = _sizes(problem, ks), _row(scores, query)
    helps = -1 if scores.measurement.higher_is_better else 1
    ranked = scores.train_ids[np.argsort(-helps * scores.values[row], kind="stable")]
    removals = _first_of_each([ranked, *_random_orders(problem, seed)], sizes, problem.data.ids)
    how = choose_training(problem, training, len(removals))
    bench = bench_of(problem, scores, np.array([row]), training=how)
    truth = measure_truth(bench, removals, "subset", seeds=seeds, seed=seed)
    effects = truth.runs[:, 0].reshape(truth.seeds, 1 + RANDOM_ORDERS, len(sizes))  # (S, 1 + R, K)
    predicted = removals.add_up(scores, np.array([row]))[0, : len(sizes)]
    return RemovalCurve(
        query=scores.query_ids[row].item(),
        measurement=scores.measurement,
        baseline=float(scores.baseline[row]),
        ks=sizes,
        train_ids=ranked[: sizes[-1]],
        predicted=predicted if scores.is_calibrated else None,
        strongest=effects[:, 0],
        random=effects[:, 1:],
        training=truth.training,
        warnings=truth.warnings,
    )


def _sizes(problem: Problem, ks: Sequence[int] | None) -> np.ndarray:
    """(K,) ascending."""
    count = len(problem)
    wanted = [k for k in KS if k < count] if ks is None else sorted(set(ks))
    if not wanted or wanted[0] < 1 or wanted[-1] >= count:
        raise BadArgument(
            found=f"ks={list(wanted)} of {count:,} training examples.",
            why="A training without them needs at least one to go, and at least one to stay.",
            remedy=f"Give numbers from 1 to {count - 1:,}.",
        )
    return np.array(wanted, dtype=np.int64)


def _row(scores: Scores, query: int) -> int:
    count = len(scores.query_ids)
    if not 0 <= query < count:
        raise BadArgument(
            found=f"query={query!r} of {count}.",
            why=f"It is a position, 0 to {count - 1}.",
            remedy="Give one of these.",
        )
    return int(query)


def _random_orders(problem: Problem, seed: int) -> list[np.ndarray]:
    """The ids in random orders that depend on the ids alone."""
    ids = problem.data.ids
    words = np.random.SeedSequence((abs(seed), _STREAM)).generate_state(RANDOM_ORDERS)
    return [ids[draws.order(int(word), draws.keys(ids)).numpy()] for word in words]


def _first_of_each(orders: list[np.ndarray], sizes: np.ndarray, ids: np.ndarray) -> Removals:
    """The first k of every order, for every k: (orders x K, N)."""
    is_out = np.stack([np.isin(ids, order[:size]) for order in orders for size in sizes])
    return Removals("subset", np.arange(len(is_out)), ids, is_out)
