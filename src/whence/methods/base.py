"""What every method is, and the loop that is written once: solve once, stream once."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from whence.calculus.gradients import inner, measure
from whence.core.batches import Batch
from whence.core.changes import Change
from whence.core.measurements import Contrast, MeasurementFunction
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement, Scores
from whence.errors import Unsupported
from whence.progress import track
from whence.store import fingerprint
from whence.version import __version__

MeasurementLike = str | MeasurementFunction | Measurement | Contrast | None


@dataclass(frozen=True, eq=False)
class Response:
    """Predicted effects of one change of the training data on every query.

    Args:
        values: (Q,) effects, as faithful as the method can tell them.
        first_order: (Q,) the same to first order in the weights, where effects add up.
        baseline: (Q,) measurements with the model as trained.
        measurement: what was measured.
        queries: what was asked.
        report: how the effects were computed.
    """

    values: np.ndarray
    first_order: np.ndarray
    baseline: np.ndarray
    measurement: Measurement
    queries: Queries
    report: Mapping[str, Any]

    @property
    def is_calibrated(self) -> bool:
        """False where only the order of effects has a meaning."""
        return bool(self.report.get("is_calibrated", True))

    @property
    def unit(self) -> str:
        """The unit of the effects: that of the measurement, or "arbitrary" without a scale."""
        return self.measurement.unit if self.is_calibrated else "arbitrary"


@dataclass(frozen=True)
class Fitted(ABC):
    """A method that has paid the cost which all queries share; immutable.

    Args:
        problem: what it was fitted to.
        report: what the fit has measured.
    """

    problem: Problem
    report: Mapping[str, Any]

    def weighing(self, weights: Tensor) -> Self:
        """The same fit, asked about examples of other base weights.

        An example that had no part in the fit is so scored as if it came in.

        Args:
            weights: (N,) base weights.
        """
        return replace(self, problem=replace(self.problem, weights=weights))

    def because(self, reason: str) -> Self:
        """The same, with the reason why this method was taken in its report."""
        return replace(self, report={**self.report, "reason": reason})

    @abstractmethod
    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Effects of every training example on every query.

        Args:
            queries: `(inputs, targets)` in the form of the training data, or inputs alone.
            measurement: what is measured on a query; see `whence.explain`.

        Returns:
            (Q, N) effects with their sign, unit and report.
        """

    def respond(
        self, change: Change, queries: object, measurement: MeasurementLike = None
    ) -> Response:
        """What a change of the training data does to every query.

        A method that knows only removals one by one adds them up, to first order:
        sum_k (1 - w_k) effect[q, k].

        Args:
            change: what becomes of some training examples.
            queries: as for `scores`.
            measurement: as for `scores`.

        Raises:
            Unsupported: the method scores removals, and the change puts something else in place.
        """
        if change.is_replacement:
            raise Unsupported(
                found=f"{type(self).__name__} scores what happens without an example, not with "
                "another one in its place.",
                why="The gradient of the new example is not among those it has seen.",
                remedy='Use method="exact", "cg" or another curvature.',
            )
        asked = self.problem.queries(queries)
        scores = self.scores(asked, measurement)
        shares = (1 - change.weights.double()).numpy()  # (M,)
        values = scores.values[:, change.positions.numpy()] @ shares
        report = {**scores.report, "is_calibrated": scores.is_calibrated}
        return Response(values, values, scores.baseline, scores.measurement, asked, report)


class Method(ABC):
    """Recipe for attribution."""

    is_calibrated: ClassVar[bool] = True
    """False for a principle whose scores mean only their order."""

    follows_training: ClassVar[bool] = False
    """Whether it runs the problem's own training once more, with the base weights of its data."""

    scores_unseen: ClassVar[bool] = True
    """Whether an example without weight in the training can be scored as if it came in."""

    def linear(self) -> "Method":
        """The same to first order in the weights of examples, where it can go beyond."""
        return self

    @abstractmethod
    def fit(self, problem: Problem) -> Fitted:
        """Pays the cost that all queries share.

        Raises:
            WhenceError: the problem or the method's options do not allow it.
        """


@dataclass(frozen=True)
class Ranking(Fitted):
    """A baseline: it says in which order training examples help, and no more.

    Args:
        problem: what it was fitted to.
        report: how it is called, and what the fit has found.
        helpfulness: from Q queries to (Q, N) numbers, the larger the more an example helps.
    """

    helpfulness: Callable[[Queries], np.ndarray]

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Numbers in arbitrary units with the sign of effects; see `Fitted.scores`."""
        started = time.monotonic()
        asked = self.problem.queries(queries)
        measured = self.problem.measurement(measurement)
        sign = -1 if measured.higher_is_better else 1
        takes_part = (self.problem.weights > 0).cpu().numpy()
        return make_scores(
            self.problem,
            asked,
            measured,
            values=np.where(takes_part, sign * self.helpfulness(asked), 0.0),
            baseline=measure(self.problem, measured, asked),
            report={**self.report, "is_calibrated": False},
            started=started,
        )


def resolve(method: "str | Method") -> "Method":
    """A method by its name, or as it is, for recipes that hold another one.

    The folder knows its files; one of them knows no other.

    Raises:
        UnknownName: no such method.
    """
    return import_module(__package__ or "").make_method(method)


def stream(
    problem: Problem, rows: Callable[[Batch], Tensor], *, queries: int, size: int
) -> np.ndarray:
    """One pass over the training data.

    Args:
        problem: whose data is streamed.
        rows: effects (Q, B) of the examples of a batch; asked again for the halves of one that
            does not fit the memory.
        queries: Q.
        size: examples a batch; never changes the result beyond rounding.

    Returns:
        (Q, N) float64.
    """
    values = np.empty((queries, len(problem)))
    steps = -(-len(problem) // size)
    parts = problem.sweep(lambda batch: rows(batch).detach(), size)
    for positions, found in track(parts, "Scoring training examples", total=steps):
        values[:, positions.numpy()] = found.cpu().numpy()
    return values


def first_order(problem: Problem, directions: Tensor) -> np.ndarray:
    """What each example does along directions of the parameters: directions . b_i grad loss_i / N.

    Under `renormalize` an example does as much as it differs from the mean.

    Args:
        problem: whose data is streamed.
        directions: (Q, P).

    Returns:
        (Q, N) float64.
    """

    def rows(batch: Batch) -> Tensor:
        return inner(problem, directions, batch) * (batch.weights / len(problem))

    size = problem.batch_size(len(directions))
    values = stream(problem, rows, queries=len(directions), size=size)
    return values - values.mean(1, keepdims=True) if problem.renormalize else values


def merge_reports(*reports: Mapping[str, Any]) -> dict[str, Any]:
    """One report out of several; later entries win, warnings are put one after the other."""
    merged: dict[str, Any] = {}
    for report in reports:
        merged |= report
    warnings = [text for report in reports for text in report.get("warnings", ())]
    return merged | {"warnings": warnings}


def make_scores(
    problem: Problem,
    queries: Queries,
    measurement: Measurement,
    *,
    values: np.ndarray,
    baseline: Tensor,
    report: Mapping[str, Any],
    started: float,
) -> Scores:
    """Scores with everything that every method reports.

    Args:
        problem: what was explained.
        queries: what was asked.
        measurement: what was measured.
        values: (Q, N) effects.
        baseline: (Q,) measurements with the model as trained.
        report: what the method has to say; `is_calibrated` False makes the unit "arbitrary".
        started: `time.monotonic()` at the start of the work.
    """
    values.setflags(write=False)  # nobody else holds them: `Scores` needs no copy of them
    facts = problem.facts()
    arrays = queries.arrays()
    common = {
        "parameters_covered": facts["parameters"],
        "parameters_total": facts["parameters_total"],
        "problem": facts["name"],
        "are_labelled": queries.are_labelled,
        "fingerprint": problem.fingerprint() | {"queries": fingerprint(*arrays.values())},
        "seconds": time.monotonic() - started,
        "version": __version__,
    }
    return Scores(
        values=values,
        query_ids=queries.ids,
        train_ids=problem.data.ids,
        measurement=measurement,
        baseline=baseline.detach().double().cpu().numpy(),
        queries=arrays,
        report=merge_reports({"warnings": problem.notes}, report, common),
        is_calibrated=bool(report.get("is_calibrated", True)),
    )
