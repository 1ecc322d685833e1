"""Actual effects: many removals trained again, under several seeds."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from whence.core.scores import Measurement
from whence.core.training import Retrained
from whence.errors import BadArgument
from whence.numerics import stats
from whence.verification.bench import Bench, drift_warnings
from whence.verification.removals import Removals
from whence.verification.verdicts import FEWEST

Array = np.ndarray[Any, Any]

Target = Literal["loo", "subset", "pbrf"]
"""One example at a time; random subsets; one at a time under the proximal Bregman objective."""

SEEDS = 2
"""Under which subsets are trained where the seed matters: with two, the noise is known."""

_REPEATS = 2
"""Further seeds with which a fifth of the removals of a noisy training, eight or more, are repeated
where no number of seeds was asked for: that tells the variance of the noise to about a third."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What M removals really do to Q queries.

    Args:
        target: what was asked of the retrainings.
        removals: what each of them left out.
        runs: (S, Q, M) effects under each seed, against the control of the same seed.
        noise_variance: (Q,) part of the variance of an effect that comes from the training; NaN
            where nothing tells it.
        query_ids: (Q,) queries that were measured.
        baseline: (Q,) measurements of the model as it is.
        measurement: what was measured.
        training: what trained the models.
        seed: the first one.
        seconds: that it took.
        fingerprint: of the problem.
        warnings: what a reader should know.
    """

    target: Target
    removals: Removals
    runs: Array
    noise_variance: Array
    query_ids: Array
    baseline: Array
    measurement: Measurement
    training: str
    seed: int
    seconds: float
    fingerprint: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """S."""
        return len(self.runs)

    @cached_property
    def actual(self) -> Array:
        """(Q, M) effects, the mean over seeds."""
        return self.runs.mean(axis=0)

    @cached_property
    def reliability(self) -> Array:
        """(Q,) rank correlation with as many retrainings under other seeds; NaN for one seed."""
        return stats.reliability(self.runs)

    @cached_property
    def noise_ceiling(self) -> Array:
        """(Q,) the correlation that the true effects would reach with these noisy ones."""
        if self.seeds > 1:
            return np.sqrt(self.reliability)
        return stats.noise_ceiling(self.actual.var(axis=1, ddof=1), self.noise_variance)


def measure_truth(
    bench: Bench, removals: Removals, target: Target, *, seeds: int | None, seed: int
) -> Truth:
    """Trains again without what is left out, and with everything as a control.

    Args:
        bench: trains and measures.
        removals: what M retrainings leave out.
        target: what is asked of them.
        seeds: S, how often each is trained; all removals share a seed, so that what it does to
            every model alike cancels. None stands for one seed; for `SEEDS` with subsets and a
            training that follows its seed.
        seed: the first one.

    Raises:
        BadArgument: no seed at all, or several for a training that takes no notice of them.
        NonFinite: a training diverged.
    """
    started = time.monotonic()
    count = _count_seeds(bench, target, seeds)
    runs, retrained = bench.effects(removals.weights(), range(seed, seed + count))
    baseline = bench.values(bench.problem.parameters[None])[:, 0]
    return Truth(
        target=target,
        removals=removals,
        runs=runs,
        noise_variance=_noise(bench, removals, runs, retrained, seed, is_asked=seeds is not None),
        query_ids=bench.queries.ids,
        baseline=baseline,
        measurement=bench.measurement,
        training=bench.training.name,
        seed=seed,
        seconds=time.monotonic() - started,
        fingerprint=bench.problem.fingerprint(),
        warnings=(
            *_strays(retrained),
            *drift_warnings(bench, retrained.parameters[0], baseline=baseline, actual=runs[0]),
        ),
    )


def _count_seeds(bench: Bench, target: Target, seeds: int | None) -> int:
    is_fixed = bench.training.is_deterministic
    if seeds is None:
        return SEEDS if target == "subset" and not is_fixed else 1
    if seeds < 1:
        raise BadArgument(
            found=f"seeds={seeds!r}.",
            why="It counts how often every removal is trained.",
            remedy="Train once or more; from two on the noise of the training is known.",
        )
    if seeds > 1 and is_fixed:
        raise BadArgument(
            found=f"seeds={seeds}, but the training ({bench.training.name}) takes no notice of "
            "its seed.",
            why="Every repetition would be the same training again.",
            remedy="Leave seeds out; if the training does depend on the seed, say so: "
            "CallableTraining(function, is_deterministic=False).",
        )
    return seeds


def _noise(
    bench: Bench,
    removals: Removals,
    runs: Array,
    retrained: Retrained,
    seed: int,
    *,
    is_asked: bool,
) -> Array:
    """(Q,) variance of an actual effect that the training itself brings in.

    Several seeds tell it. A training that stops at a known gradient errs by about that share of an
    effect. Any other is run once more with another seed; where that changes something and no
    number of seeds was asked for, some of the removals are repeated, each with its own control.
    """
    if len(runs) > 1:
        spread = runs - runs.mean(axis=2, keepdims=True)  # a control errs for all removals alike
        return spread.var(axis=0, ddof=1).mean(axis=1) / len(runs)
    remaining = retrained.report.get("remaining")
    if remaining is not None:
        share = math.sqrt(np.square(remaining).mean())
        return 2 * share**2 * np.square(runs[0]).mean(axis=1)
    if bench.training.is_deterministic and _is_repeatable(bench, retrained, seed):
        return np.zeros(runs.shape[1])
    if is_asked:
        return np.full(runs.shape[1], np.nan)
    few = max(min(FEWEST, len(removals)), len(removals) // 5)
    chosen = np.linspace(0, len(removals) - 1, few).astype(int)
    weights = removals.some(chosen).weights()
    again, _ = bench.effects(weights, range(seed + 1, seed + 1 + _REPEATS))
    return np.concatenate([runs[:, :, chosen], again]).var(axis=0, ddof=1).mean(axis=1)


def _is_repeatable(bench: Bench, retrained: Retrained, seed: int) -> bool:
    ones = torch.ones(1, len(bench.problem), dtype=torch.float64)
    again = bench.training.retrain(bench.problem, ones, seed=seed + 1).parameters[0]
    return torch.equal(again, retrained.parameters[0])


def _strays(retrained: Retrained) -> list[str]:
    """Tells of retrainings that ended in another optimum."""
    count = retrained.report.get("strayed", 0)
    if count == 0:
        return []
    return [
        f"{count} of {len(retrained.parameters) - 1} retrainings ended in another optimum: this "
        "one is so shallow that a single example holds the model in it."
    ]
