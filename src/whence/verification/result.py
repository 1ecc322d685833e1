"""Predicted against actual effects: numbers, intervals, a verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whence.core.scores import Scores
from whence.errors import BadArgument
from whence.numerics import stats
from whence.tables import html_table
from whence.verification.removals import percent
from whence.verification.truth import Truth
from whence.verification.verdicts import FEWEST, judge

Array = np.ndarray[Any, Any]

_KINDS = {"loo": "leave-one-out", "subset": "subsets", "pbrf": "pbrf"}


@dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """Predicted effects of some scores beside what training again has shown.

    The verdict (`whence.verification.verdicts.judge`) rests on the lower ends of the 95 %
    intervals, which come from drawing the retrainings anew (bootstrap). They hold for the median
    over queries; the linear datamodeling score is a mean over queries, as in the literature.
    Scores without a scale are judged by their ranking, and can get no better than that.

    Args:
        prediction: the scores that are checked.
        truth: what the retrainings have shown.
    """

    prediction: Scores
    truth: Truth

    @cached_property
    def predicted(self) -> Array:
        """(Q, M) effects from the scores: sums over what was left out."""
        places = {name: row for row, name in enumerate(self.prediction.query_ids.tolist())}
        rows = np.array([places[name] for name in self.query_ids.tolist()])
        return self.truth.removals.add_up(self.prediction, rows)

    @property
    def actual(self) -> Array:
        """(Q, M) effects measured by training again; the mean over seeds."""
        return self.truth.actual

    @property
    def noise_variance(self) -> Array:
        """(Q,) part of the variance of an actual effect that comes from the training."""
        return self.truth.noise_variance

    @property
    def query_ids(self) -> Array:
        """(Q,) queries that were measured."""
        return self.truth.query_ids

    @property
    def train_ids(self) -> Array:
        """(M,) training examples that were left out; for subsets their numbers."""
        return self.truth.removals.names

    @property
    def examples(self) -> int:
        """M, how many removals were trained again."""
        return len(self.truth.removals)

    @property
    def training(self) -> str:
        """What trained the models again."""
        return self.truth.training

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know."""
        return self.truth.warnings

    @property
    def kind(self) -> str:
        """What was trained: "leave-one-out", "subsets", or "pbrf"."""
        return _KINDS[self.truth.target]

    @property
    def is_over_subsets(self) -> bool:
        """Whether random subsets were trained, which makes the mean rank correlation the LDS."""
        return self.truth.removals.kind == "subset"

    @property
    def unit(self) -> str:
        """Unit of the actual effects."""
        return self.prediction.measurement.unit

    def against(self, scores: Scores) -> "Verification":
        """The same retrainings beside other scores of the same queries; nothing is trained.

        Raises:
            Stale: the scores belong to another model or other data.
            BadArgument: they measure something else, or lack a query.
        """
        scores.refuse_other(
            self.truth.fingerprint,
            why="Predictions for one model say nothing about retraining another.",
        )
        _check_queries(scores, self.truth)
        return Verification(scores, self.truth)

    # ------------------------------------------------------------------- by query

    @cached_property
    def pearson_by_query(self) -> Array:
        """(Q,) correlation of predicted and actual effects."""
        return stats.pearson(self.predicted, self.actual)

    @cached_property
    def spearman_by_query(self) -> Array:
        """(Q,) rank correlation."""
        return stats.spearman(self.predicted, self.actual)

    @cached_property
    def slope_by_query(self) -> Array:
        """(Q,) slope of actual over predicted effects; NaN for scores without a scale."""
        slopes = stats.slope(self.predicted, self.actual)
        return slopes if self.prediction.is_calibrated else np.full_like(slopes, np.nan)

    @property
    def noise_ceiling_by_query(self) -> Array:
        """(Q,) the correlation that the true effects would reach with these noisy ones."""
        return self.truth.noise_ceiling

    # ----------------------------------------------------------------- in one number

    @property
    def pearson(self) -> float:
        """Median correlation over queries."""
        return stats.median(self.pearson_by_query)

    @property
    def spearman(self) -> float:
        """Median rank correlation over queries."""
        return stats.median(self.spearman_by_query)

    @property
    def lds(self) -> float:
        """Linear datamodeling score: mean rank correlation over queries; NaN without subsets.

        Source: Park et al. 2023 (arXiv:2303.14186), definition 2.3 (cited from memory).
        """
        return stats.mean(self.spearman_by_query) if self.is_over_subsets else math.nan

    @property
    def slope(self) -> float:
        """Median slope over queries; one where the sizes are right."""
        return stats.median(self.slope_by_query)

    @property
    def noise_ceiling(self) -> float:
        """What true effects would reach, over queries as `spearman` or, with subsets, `lds`."""
        return self._over_queries(self.noise_ceiling_by_query)

    @property
    def reliability(self) -> float:
        """Rank correlation with as many retrainings under other seeds; NaN for a single seed."""
        return self._over_queries(self.truth.reliability)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `pearson`."""
        return self._interval(stats.pearson, stats.median)

    @cached_property
    def spearman_interval(self) -> tuple[float, float]:
        """95 % interval of `spearman`."""
        return self._interval(stats.spearman, stats.median)

    @cached_property
    def lds_interval(self) -> tuple[float, float]:
        """95 % interval of `lds`."""
        if not self.is_over_subsets:
            return math.nan, math.nan
        return self._interval(stats.spearman, stats.mean)

    @cached_property
    def slope_interval(self) -> tuple[float, float]:
        """95 % interval of `slope`."""
        if not self.prediction.is_calibrated:
            return math.nan, math.nan
        return self._interval(stats.slope, stats.median)

    @property
    def _over_queries(self) -> Callable[[Any], float]:
        return stats.mean if self.is_over_subsets else stats.median

    def _interval(
        self, statistic: stats.Statistic, over_queries: Callable[[Any], float]
    ) -> tuple[float, float]:
        return stats.bootstrap_interval(
            statistic,
            self.predicted,
            self.actual,
            over_queries=over_queries,
            seed=self.truth.seed,
        )

    # -------------------------------------------------------------------- in words

    @property
    def verdict(self) -> str:
        """How far to believe the scores, in a few words."""
        ranks = self.lds_interval if self.is_over_subsets else self.spearman_interval
        return judge(
            correlation=self.interval[0],
            ranks=ranks[0],
            slope=self.slope,
            ceiling=self.noise_ceiling,
            examples=self.examples,
        )

    @property
    def sentence(self) -> str:
        """The numbers and the verdict in plain words."""
        words = [f"Over {self._retrainings()}, {self._agreement()}: {self.verdict}."]
        if self.examples < FEWEST:
            words.append(f" It takes at least {FEWEST} to tell chance from agreement.")
        elif math.isnan(self._over_queries(self.spearman_by_query)):
            words.append(" Predicted or actual effects do not vary.")
        if self.noise_ceiling < 0.99:
            words.append(
                " The training is noisy: even true effects would correlate at only "
                f"{_number(self.noise_ceiling)}."
            )
        elif np.isnan(self.noise_variance).all():
            words.append(" With a single seed it is not known how noisy the training is.")
        return "".join(words)

    def _retrainings(self) -> str:
        removals, seeds = self.truth.removals, self.truth.seeds
        if self.is_over_subsets:
            words = (
                f"{self.examples} trainings on a random {percent(removals.fraction)} of the data"
            )
        else:
            words = f"{self.examples} training examples left out one by one"
        if self.kind == "pbrf":
            words += f" ({self.training})"
        return words + (f", each under {seeds} seeds" if seeds > 1 else "")

    def _agreement(self) -> str:
        is_scaled, count = self.prediction.is_calibrated, len(self.query_ids)
        slope = f", slope {self.slope:.2f}" if is_scaled else ""
        if self.is_over_subsets:
            mean = f", mean of {count} queries" if count > 1 else ""
            words = f"the linear datamodeling score is {_ranged(self.lds, self.lds_interval)}{mean}"
            median = f", correlation {_number(self.pearson)}" if is_scaled else ""
            return words + median + slope
        value, ends = (
            (self.pearson, self.interval) if is_scaled else (self.spearman, self.spearman_interval)
        )
        verb = "correlate" if is_scaled else "agree in rank"
        median = f", in the median of {count} queries" if count > 1 else ""
        return f"predicted and actual effects {verb} at {_ranged(value, ends)}{slope}{median}"

    @cached_property
    def scores(self) -> Scores:
        """A copy of the scores that carries the verdict in its report."""
        return self.prediction.with_report(verification=self.summary())

    def to_json(self, most_points: int | None = None) -> dict[str, Any]:
        """Points and numbers as plain JSON; what is not a number is None.

        Args:
            most_points: of more than so many a sample is drawn; None tells all Q x M of them.
        """
        total = self.actual.size
        chosen = np.arange(total)
        if most_points is not None and most_points < total:
            generator = np.random.default_rng(self.truth.seed)
            chosen = np.sort(generator.choice(total, most_points, replace=False))
        rows, columns = np.divmod(chosen, self.examples)
        points = [
            {"query": query, "example": example, "predicted": predicted, "actual": actual}
            for query, example, predicted, actual in zip(
                self.query_ids[rows].tolist(),
                self.train_ids[columns].tolist(),
                self.predicted.ravel()[chosen].tolist(),
                self.actual.ravel()[chosen].tolist(),
                strict=True,
            )
        ]
        by_query = zip(
            self.query_ids.tolist(),
            self.pearson_by_query,
            self.spearman_by_query,
            self.slope_by_query,
            self.noise_ceiling_by_query,
            strict=True,
        )
        names = ("pearson", "spearman", "slope", "noise_ceiling")
        queries = [
            {"query": query} | dict(zip(names, map(_finite, numbers), strict=True))
            for query, *numbers in by_query
        ]
        return self.summary() | {"points": points, "points_total": total, "queries": queries}

    def summary(self) -> dict[str, Any]:
        """Every number without the points, as plain JSON."""
        numbers = ("lds", "pearson", "spearman", "slope", "noise_ceiling", "reliability")
        intervals = ("lds_interval", "interval", "spearman_interval", "slope_interval")
        truth = self.truth
        return {
            "kind": self.kind,
            "examples": self.examples,
            "left_out": truth.removals.words,
            "fraction": truth.removals.fraction,
            "seeds": truth.seeds,
            **{name: _finite(getattr(self, name)) for name in numbers},
            **{name: [_finite(end) for end in getattr(self, name)] for name in intervals},
            "unit": self.unit,
            "training": self.training,
            "seed": truth.seed,
            "seconds": truth.seconds,
            "warnings": list(self.warnings),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }

    def __repr__(self) -> str:
        return f"Verification({self.sentence})"

    def _repr_html_(self) -> str:
        """The verdict and the numbers behind it, for a notebook."""
        rows = [("verdict", self.verdict), ("found", self.sentence)]
        rows += [("warning", warning) for warning in self.warnings]
        return html_table(f"Verification ({self.kind}, {self.training})", rows)


def _check_queries(scores: Scores, truth: Truth) -> None:
    """Refuses scores of other queries, or of another measurement."""
    known = dict(zip(scores.query_ids.tolist(), scores.baseline, strict=True))
    missing = [name for name in truth.query_ids.tolist() if name not in known]
    if missing:
        raise BadArgument(
            found=f"The scores have no query {missing[0]!r} ({len(missing)} are missing).",
            why="Predicted and actual effects are compared query by query.",
            remedy="Explain the queries that were measured.",
        )
    baseline = np.array([known[name] for name in truth.query_ids.tolist()])
    if not np.allclose(baseline, truth.baseline, rtol=1e-3, atol=1e-3 * np.ptp(baseline)):
        worst = int(np.abs(baseline - truth.baseline).argmax())
        raise BadArgument(
            found=f"The {truth.measurement.name} of query {truth.query_ids[worst]} is "
            f"{truth.baseline[worst]:.6g}; the scores say {baseline[worst]:.6g}.",
            why="Predicted and actual effects have to be changes of the same number.",
            remedy="Measure the same thing on the same queries.",
        )


def _ranged(value: float, ends: tuple[float, float]) -> str:
    return f"{_number(value)} (95 % interval {_number(ends[0])} to {_number(ends[1])})"


def _number(value: float) -> str:
    """Three digits, or as many as a number short of one needs not to look like one."""
    for digits in (3, 4, 5):
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 1:
            return text
    return f"{value:.6f}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
