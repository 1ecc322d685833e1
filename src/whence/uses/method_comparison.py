"""Several methods beside each other: how well each predicts the same retrainings, at what cost.

Models are trained once on random subsets of the data, each under several seeds, and every method is
asked to predict what they say of the queries. Cheap baselines are always among the methods: where
they do as well as anything, nothing else is needed.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.core.training import Trainer
from whence.costs import preflight
from whence.errors import BadArgument, WhenceError
from whence.explanation import MethodLike, fit
from whence.methods import Fitted, Method, make_method, names
from whence.methods.base import MeasurementLike
from whence.numerics import stats
from whence.progress import track
from whence.sections import Block, Cell, Scatter, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result
from whence.verification import Bench, Verification, choose_training
from whence.verification.removals import percent, random_subsets
from whence.verification.truth import Truth, measure_truth

CHEAP = ("graddot", "gradcos", "embedding", "bm25", "loss")
"""Baselines that take a pass over the data at most; those that do not apply are left out."""


class Options(TypedDict, total=False):
    """What `compare_methods` takes besides the retrainings that it makes."""

    measurement: MeasurementLike
    training: Trainer | Callable[..., object] | None
    seed: int


@dataclass(frozen=True, eq=False)
class Tried:
    """One method and what became of it.

    Args:
        name: as it was asked for.
        check: its predictions beside the retrainings; None where it failed.
        error: why it failed; None where it did not.
        fit_seconds: of the part that all queries share.
        seconds: of the scores of all queries.
        memory_bytes: estimated peak on top of model and data (`whence.preflight`); None where that
            is not known.
        is_baseline: whether it was added, and not asked for.
    """

    name: str
    check: Verification | None
    error: str | None = None
    fit_seconds: float | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    is_baseline: bool = False

    @property
    def lds(self) -> float:
        """Linear datamodeling score; NaN for a method that failed."""
        return math.nan if self.check is None else self.check.lds

    @property
    def total_seconds(self) -> float:
        """Of fit and scores."""
        return (self.fit_seconds or 0.0) + (self.seconds or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Its numbers."""
        checked: dict[str, Any] = {} if self.check is None else self.check.summary()
        kept = ("lds", "lds_interval", "pearson", "interval", "slope", "slope_interval", "verdict")
        return {
            "name": self.name,
            "error": self.error,
            "is_baseline": self.is_baseline,
            **{name: checked.get(name) for name in kept},
            "unit": None if self.check is None else self.check.prediction.unit,
            "fit_seconds": self.fit_seconds,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True, eq=False, repr=False)
class MethodComparison(Result):
    """Methods, the most faithful first, beside one set of retrainings.

    Args:
        methods: what was tried.
        truth: what the retrainings have shown.
        left_out: baselines that do not apply here, with the reason.
    """

    methods: tuple[Tried, ...]
    truth: Truth
    left_out: Mapping[str, str]

    @property
    def noise_ceiling(self) -> float:
        """The linear datamodeling score that effects known exactly would reach."""
        return stats.mean(self.truth.noise_ceiling)

    def __getitem__(self, name: str) -> Verification:
        """Predicted against actual of one method.

        Raises:
            BadArgument: it was not tried, or it failed.
        """
        found = {one.name: one for one in self.methods}.get(name)
        if found is None or found.check is None:
            raise BadArgument(
                found=f"There is no comparison of {name!r}: "
                f"{'it was not tried' if found is None else found.error}",
                why=f"Those that were tried are: {', '.join(one.name for one in self.methods)}.",
                remedy="Name one that has numbers.",
            )
        return found.check

    def section(self) -> Section:
        """A table of the methods, and their fidelity against what they cost."""
        title = f"{len(self.methods)} methods beside the same retrainings"
        blocks: list[Block] = [self._table()]
        points = [
            {"x": one.total_seconds, "y": one.lds, "group": one.name}
            for one in self.methods
            if one.check is not None
        ]
        if points:
            axes = "seconds for all queries", "linear datamodeling score"
            blocks.append(Scatter(points, *axes, "How much fidelity costs."))
        return Section("compare_methods", title, self._sentence(), blocks, self.truth.warnings)

    def to_json(self) -> dict[str, Any]:
        """The numbers of every method and of the retrainings."""
        truth = self.truth
        values = {
            "methods": [one.to_json() for one in self.methods],
            "measurement": truth.measurement.name,
            "subsets": len(truth.removals),
            "fraction": truth.removals.fraction,
            "seeds": truth.seeds,
            "noise_ceiling": self.noise_ceiling,
            "training": truth.training,
            "training_seconds": truth.seconds,
            "left_out": dict(self.left_out),
            "warnings": list(truth.warnings),
            "sentence": self._sentence(),
        }
        return json.loads(json_text(as_json(values, "methods")))

    def _sentence(self) -> str:
        best = self.methods[0]
        if best.check is None or math.isnan(best.lds):
            return "No method gave numbers that could be compared."
        low, high = best.check.lds_interval
        removals = self.truth.removals
        words = (
            f"Of {len(self.methods)} methods {best.name} predicts {len(removals)} trainings on a "
            f"random {percent(removals.fraction)} of the data best: linear datamodeling score "
            f"{best.lds:.2f} (95 % interval {low:.2f} to {high:.2f})"
        )
        if not math.isnan(self.noise_ceiling):
            words += f"; effects known exactly would reach {self.noise_ceiling:.2f}"
        return words + "."

    def _table(self) -> Table:
        removals, seeds = self.truth.removals, self.truth.seeds
        columns = ["method", "LDS", "95 % interval", "Pearson", "slope", "unit", "seconds", "MB"]
        has_failures = any(one.error for one in self.methods)
        columns += ["failed because"] if has_failures else []
        caption = (
            f"{len(removals)} trainings on {percent(removals.fraction)} of the data under {seeds} "
            f"seed{'s' * (seeds != 1)} ({self.truth.training}). Seconds of the fit and of all "
            "scores; memory is estimated, on top of model and data."
        )
        if not math.isnan(self.noise_ceiling):
            caption += f" Noise ceiling: {self.noise_ceiling:.3f}."
        if self.left_out:
            caption += f" Baselines that do not apply here: {', '.join(self.left_out)}."
        rows = [_row(one)[: len(columns)] for one in self.methods]
        return Table(columns, rows, caption)


def _row(one: Tried) -> list[Cell]:
    name, check = f"{one.name} (baseline)" if one.is_baseline else one.name, one.check
    if check is None:
        return [name, *[None] * 7, one.error]
    low, high = check.lds_interval
    numbers: list[Cell] = [check.lds, f"{low:.2f} to {high:.2f}", check.pearson, check.slope]
    megabytes = None if one.memory_bytes is None else one.memory_bytes / 1e6
    return [name, *numbers, check.prediction.unit, one.total_seconds, megabytes, None]


def compare_methods(
    problem: Problem,
    queries: object,
    methods: Sequence[MethodLike] | Mapping[str, MethodLike],
    *,
    subsets: int = 64,
    fraction: float = 0.5,
    seeds: int | None = None,
    **options: Unpack[Options],
) -> MethodComparison:
    """How well several methods predict the same retrainings, and what each of them costs.

    The retrainings are those of `whence.verify(..., subsets=...)`, made once for all methods. A
    method that fails is a row with its error.

    Args:
        problem: what was trained.
        queries: as in `explain`.
        methods: names, recipes, or what `fit` returned; a mapping gives names to recipes. Cheap
            baselines (`CHEAP`) are added.
        subsets: how many random subsets are trained on.
        fraction: share of the training examples that every subset keeps.
        seeds: how often each is trained; default 2 where the training follows its seed, else 1.
        options: `measurement`, as in `explain`; `training`, how to train again, default that of the
            problem; `seed` of the draw of subsets, and the first one of the trainings.

    Returns:
        The methods, the highest linear datamodeling score first.

    Raises:
        UnknownName: no such method.
        BadArgument: no method at all, more subsets than there are, or a fraction outside (0, 1).
        CannotRetrain: nothing says how the model was trained.
        NonFinite: a training diverged.
    """
    asked, measured = problem.queries(queries), problem.measurement(options.get("measurement"))
    wanted, seed = _named(methods), options.get("seed", 0)
    removals = random_subsets(problem, subsets, fraction, seed=seed)
    how = choose_training(problem, options.get("training"), subsets)
    bench = Bench(problem, how, measured, asked)
    truth = measure_truth(bench, removals, "subset", seeds=seeds, seed=seed)
    trial = _Trial(problem, asked, measured, truth)
    asked_for = [trial(name, method) for name, method in track(wanted.items(), "Comparing methods")]
    added = [
        replace(trial(name, name), is_baseline=True)
        for name in CHEAP
        if name in names() and name not in wanted
    ]
    applied = [one for one in added if one.check is not None]
    best_first = sorted([*asked_for, *applied], key=_worst_last)
    return MethodComparison(
        methods=tuple(best_first),
        truth=truth,
        left_out={one.name: str(one.error) for one in added if one.check is None},
    )


@dataclass(frozen=True)
class _Trial:
    """Fits a method, takes its scores, and holds them against the retrainings."""

    problem: Problem
    asked: Queries
    measured: Measurement
    truth: Truth

    def __call__(self, name: str, method: MethodLike) -> Tried:
        try:
            return self._try(name, method)
        except (WhenceError, RuntimeError, MemoryError) as error:
            reason = error.found if isinstance(error, WhenceError) else str(error)
            return Tried(name, None, f"{type(error).__name__}: {reason}")

    def _try(self, name: str, method: MethodLike) -> Tried:
        started = time.monotonic()
        fitted = fit(self.problem, method)
        fitted_at = time.monotonic()
        scores = fitted.scores(self.asked, self.measured)
        done = time.monotonic()
        return Tried(
            name,
            Verification(scores, self.truth),
            fit_seconds=fitted_at - started,
            seconds=done - fitted_at,
            memory_bytes=self._memory(method),
        )

    def _memory(self, method: MethodLike) -> int | None:
        """What `preflight` expects; nothing for what is fitted already, or not known to it."""
        if isinstance(method, Fitted):
            return None
        try:
            return preflight(self.problem, self.asked, method=method).memory_bytes
        except WhenceError:
            return None


def _worst_last(one: Tried) -> tuple[bool, float]:
    return (math.isnan(one.lds), -one.lds)


def _named(methods: Sequence[MethodLike] | Mapping[str, MethodLike]) -> dict[str, MethodLike]:
    """Methods by the names that their rows get."""
    if isinstance(methods, Mapping):
        named = dict(methods)
    else:
        given = [methods] if isinstance(methods, str | Method | Fitted) else methods
        named = {_name(method): method for method in given}
    if not named:
        raise BadArgument(
            found="No method was named.",
            why="There would be nothing but baselines to compare.",
            remedy='Name some: ["ekfac", "exact"]; `whence methods` lists them.',
        )
    for method in named.values():
        if isinstance(method, str) and method != "auto":
            make_method(method)  # a name that does not exist is refused before any cost
    return named


def _name(method: MethodLike) -> str:
    if isinstance(method, str):
        return method
    return type(method).__name__ if isinstance(method, Fitted) else repr(method)
