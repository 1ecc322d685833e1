"""Effects averaged over models that were trained again: of a training procedure, with errors."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.calculus.gradients import measure
from whence.calculus.training import Training
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.errors import BadArgument, Unsupported
from whence.methods.base import (
    Fitted,
    MeasurementLike,
    Method,
    make_scores,
    merge_reports,
    resolve,
)
from whence.numerics import draws
from whence.progress import track

SUBSETS = 8
"""Members where neither `subsets` nor `seeds` is given."""

FIRST_SEED = 10_000
"""Members are trained from seeds far from those by which a verification trains."""

TOP = 10
"""Rank stability looks at so many of the largest effects of a query."""

_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
"""Warnings of a kind differ from member to member in their numbers."""

_MEMBER_FACTS = (
    *("curvature", "matrix", "matrix_reason", "damping", "removal", "change"),
    "is_calibrated",
)


@dataclass(frozen=True)
class Ensemble(Method):
    """Mean of a method's effects over several trained models: what an example is worth to training.

        effect[q, i] = (1/M) sum_k effect_k[q, i]
        error[q, i]  = standard deviation of effect_k[q, i] over k, divided by sqrt(M)

    A single model answers for its own seed and for small changes of its own data. Members with
    other seeds average over the chance of training; members on random subsets are also linearised
    where removals of many examples lead (measured in `benchmarks/ensembles.py`).

    Scale. A member is trained with weights 1 on n of the N examples and 0 on the others, as a
    removal of the others would be: N stays N unless the problem renormalises. Its method is then
    fitted with the weights N/n, so that data and regulariser stand in the curvature as they do with
    all N examples, and every effect is that of removing one example from all N. Each member scores
    all examples, also those that it has not seen, to first order. A method that follows the
    training ("tracin", "source") needs members that were trained with the weights N/n.

    Args:
        method: any method, by name or as a recipe.
        seeds: members trained on all data from so many seeds.
        subsets: members trained on so many random subsets, each from a seed of its own; 8 where
            `seeds` is not given either. One random order is cut into as many subsets as it holds
            before the next one is drawn, so that halves come in pairs that share no example.
        fraction: n / N, the share of the data in a subset.
        scored_by: "all" members score an example, or only those that have "seen" it.
        seed: of the subsets and of the members' seeds.

    Raises:
        BadArgument: on fitting, both `seeds` and `subsets`, numbers outside their range, or an
            example that is to be scored by those that have seen it and that none has seen.
        Unsupported: on fitting, subsets for a method that scores only what a model was trained on.
        CannotRetrain: on fitting, the problem does not say how it was trained.

    Cost: that of M trainings for the fit; the members are fitted one after the other for each call
    of `scores`, with the memory of one of them, so ask about all queries at once.

    Source: averages over subset models as in Park et al. 2023 (arXiv:2303.14186); over seeds as in
    Bae et al. 2024 (arXiv:2405.12186). The scale is ours.
    """

    method: str | Method = "ekfac"
    seeds: int | None = None
    subsets: int | None = None
    fraction: float = 0.5
    scored_by: Literal["all", "seen"] = "all"
    seed: int = 0

    @property
    def size(self) -> int:
        """M, the number of members."""
        return self.seeds or self.subsets or SUBSETS

    @property
    def member(self) -> Method:
        """The method of the members."""
        method = resolve(self.method)
        return method if self.seeds else method.linear()

    def fit(self, problem: Problem) -> "FittedEnsemble":
        """Trains the members."""
        self._check()
        problem.check()
        started = time.monotonic()
        inside = self._inside(problem)
        seeds = [FIRST_SEED + self.seed * self.size + place for place in range(self.size)]
        weights = torch.stack([self._weights(row) for row in inside])
        trained = problem.retrain(weights, seed=seeds)
        report = {
            "method": "ensemble",
            "members": self.size,
            "member_share": float(inside[0].double().mean()),
            "scored_by": self.scored_by,
            "member_method": _name(self.member),
            "training": trained.report.get("training"),
            "seed": self.seed,
            "fit_seconds": time.monotonic() - started,
        }
        members = Members(problem, trained.parameters, inside, tuple(seeds))
        takes_part = inside if self.scored_by == "seen" else torch.ones_like(inside)
        return FittedEnsemble(problem, report, self.member, members, takes_part)

    def _check(self) -> None:
        count, is_share = self.size, 0 < self.fraction < 1
        if not self.seeds and not self.member.scores_unseen:
            raise Unsupported(
                found=f"{type(self.member).__name__} was asked of models trained on subsets.",
                why="It scores only the examples that a model was trained on.",
                remedy=f"Use {type(self.member).__name__}(subsets=...), which averages over "
                "subsets by itself, or Ensemble(..., seeds=8).",
            )
        if (self.seeds and self.subsets) or count < 2 or not is_share:
            raise BadArgument(
                found=f"seeds={self.seeds!r}, subsets={self.subsets!r}, "
                f"fraction={self.fraction!r}.",
                why="An ensemble is of two models or more, on all data or on a share of it.",
                remedy="Give seeds=8, or subsets=8 with a fraction between 0 and 1.",
            )
        if self.scored_by not in ("all", "seen"):
            raise BadArgument(
                found=f"scored_by={self.scored_by!r}.",
                why="The choices are all and seen.",
                remedy="Give one of them, or leave scored_by out.",
            )

    def _weights(self, inside: Tensor) -> Tensor:
        """(N,) weights of the examples in the training of one member."""
        weights = inside.double()
        return weights / weights.mean() if self.member.follows_training else weights

    def _inside(self, problem: Problem) -> Tensor:
        """(M, N) bool: the examples that each member is trained on."""
        if self.seeds:
            return torch.ones(self.size, len(problem), dtype=torch.bool)
        size = max(1, min(len(problem) - 1, round(self.fraction * len(problem))))
        inside = subsets(draws.keys(problem.data.ids), self.size, size, seed=self.seed)
        seen = inside.sum(0)
        if self.scored_by == "seen" and int(seen.min()) < 2:
            raise BadArgument(
                found=f"{int((seen < 2).sum())} of {len(problem):,} examples are in fewer than two "
                f"of {self.size} subsets.",
                why="Each is to be scored by those that have seen it, and with an error.",
                remedy=f'Ask for more than {self.size} subsets, or for scored_by="all".',
            )
        return inside


def subsets(keys: draws.Words, count: int, size: int, *, seed: int) -> Tensor:
    """Random subsets that share as few examples as can be.

    Args:
        keys: (N,) of the examples.
        count: M.
        size: examples in each.
        seed: of the draws.

    Returns:
        (M, N) bool; each order of the examples is cut into floor(N / size) of them.

    >>> inside = subsets(draws.keys(np.arange(6)), 4, 3, seed=0)
    >>> inside.sum(1).tolist(), inside[:2].sum(0).tolist(), inside[2:].sum(0).tolist()
    ([3, 3, 3, 3], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1])
    """
    inside = torch.zeros(count, len(keys), dtype=torch.bool)
    at_once = len(keys) // size
    for place, row in enumerate(inside):
        turn, part = divmod(place, at_once)
        word = np.random.SeedSequence((abs(seed), turn)).generate_state(1)[0]
        row[draws.order(int(word), keys)[part * size : (part + 1) * size]] = True
    return inside


def _name(method: Method) -> str:
    """Of its file, or of the curvature that it holds."""
    curvature = getattr(method, "curvature", None)
    if curvature is None:
        return type(method).__module__.rpartition(".")[2]
    return curvature if isinstance(curvature, str) else type(curvature).__name__.lower()


@dataclass(frozen=True, eq=False)
class Members:
    """Models that were trained on parts of the data.

    Args:
        problem: what they were trained on.
        parameters: (M, P).
        inside: (M, N) bool, the examples of each.
        seeds: of their trainings.
    """

    problem: Problem
    parameters: Tensor
    inside: Tensor
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[Problem]:
        """Each member as a problem: N/n times the base weights of its examples, none of others."""
        problem = self.problem
        for theta, row, seed in zip(self.parameters, self.inside, self.seeds, strict=True):
            raised = row.to(problem.weights) / row.double().mean()
            member = replace(problem.at(theta), weights=problem.weights * raised)
            if isinstance(problem.training, Training):
                own = replace(problem.training, seed=problem.training.seed + seed)
                member = replace(member, training=own)
            yield member


@dataclass(frozen=True)
class FittedEnsemble(Fitted):
    """Trained members, each to be explained in turn.

    Args:
        problem: what was trained.
        report: of the trainings.
        method: of each member.
        members: the models.
        scoring: (M, N) bool: which member scores which example.
    """

    method: Method
    members: Members
    scoring: Tensor

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Mean effects with their standard errors; see `Fitted.scores`."""
        started = time.monotonic()
        asked = self.problem.queries(queries)
        measured = self.problem.measurement(measurement)
        weights = self.scoring.numpy()
        mean = _Mean((len(asked), len(self.problem)))
        reports: list[Mapping[str, Any]] = []
        pairs = zip(self.members, weights, strict=True)
        for member, share in track(pairs, "Explaining members", total=len(self.members)):
            scores = self.method.fit(member).weighing(self.problem.weights).scores(asked, measured)
            mean.add(scores.values, share)
            reports.append({**scores.report, "is_calibrated": scores.is_calibrated})
        facts = {
            "warnings": warnings_of_members(reports, known=self.problem.notes),
            "rank_stability": mean.stability(),
            "stable_among": min(TOP, len(self.problem)),
        }
        scores = make_scores(
            self.problem,
            asked,
            measured,
            values=mean.values,
            baseline=measure(self.problem, measured, asked),
            report=merge_reports(_of_first(reports), facts, self.report),
            started=started,
        )
        return replace(scores, errors=mean.errors())


def _of_first(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What members have in common."""
    return {name: reports[0][name] for name in _MEMBER_FACTS if name in reports[0]}


def warnings_of_members(reports: Sequence[Mapping[str, Any]], *, known: Sequence[str]) -> list[str]:
    """What members warn of: each kind once, in the words of the first, with their number.

    Args:
        reports: of the members.
        known: what is told of the problem anyway.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for report in reports:
        kinds = {_NUMBER.sub("#", text): text for text in report["warnings"] if text not in known}
        counts.update(kinds.keys())
        first |= {kind: text for kind, text in kinds.items() if kind not in first}
    return [f"{counts[kind]} of {len(reports)} members: {text}" for kind, text in first.items()]


class _Mean:
    """Mean and spread of the members' effects, while they come in.

    Args:
        shape: (Q, N).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.counts = np.zeros(shape[1])
        self.values, self.spread = np.zeros(shape), np.zeros(shape)
        self.strongest: list[np.ndarray] = []

    def add(self, values: np.ndarray, share: np.ndarray) -> None:
        """The effects (Q, N) of one member, and which of the examples it scores (N,)."""
        self.counts += share
        gap = np.where(share, values - self.values, 0.0)
        self.values += gap / np.maximum(self.counts, 1)
        self.spread += gap * (values - self.values)
        self.strongest.append(_strongest(values))

    def errors(self) -> np.ndarray:
        """(Q, N) standard errors of the means."""
        return np.sqrt(np.maximum(self.spread, 0.0) / (self.counts * (self.counts - 1)))

    def stability(self) -> float:
        """Share of a query's largest effects that are among the largest of a single member."""
        own = _strongest(self.values)
        pairs = [
            np.isin(mine, theirs).mean()
            for member in self.strongest
            for mine, theirs in zip(own, member, strict=True)
        ]
        return float(np.mean(pairs))


def _strongest(values: np.ndarray) -> np.ndarray:
    """(Q, k) positions of the largest |effects|."""
    count = min(TOP, values.shape[1])
    return np.argpartition(-abs(values), count - 1, axis=1)[:, :count]
