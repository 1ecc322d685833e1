"""How much effects depend on the damping: one fit, several dampings.

Damping is added to every eigenvalue of the matrix that is inverted; where the layers of a network
have their own, the number is their mean over all parameters.
Where effects hardly move between a tenth and ten times of it, nothing depends on the choice; where
their order changes, the model does not determine them: retraining (`whence.verify`) has to tell.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.errors import BadArgument, Unsupported
from whence.explanation import MethodLike, fit
from whence.methods.base import MeasurementLike
from whence.methods.influence import FittedInfluence
from whence.numerics import stats
from whence.sections import Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result

TIMES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Dampings that are looked at by default, in units of the method's own."""


@dataclass(frozen=True, eq=False, repr=False)
class DampingScan(Result):
    """Effects at several dampings, compared with those at the method's own.

    Args:
        dampings: (D,) what was added to the eigenvalues.
        values: (D, Q, N) effects, in the unit of the measurement.
        own: the damping of the method.
        reference: (Q, N) effects at that damping.
        measurement: what was measured.
        report: how the effects were computed.
    """

    dampings: tuple[float, ...]
    values: np.ndarray
    own: float
    reference: np.ndarray
    measurement: Measurement
    report: Mapping[str, Any]

    def numbers(self) -> list[dict[str, float]]:
        """What changes, for each damping.

        | number | is |
        |---|---|
        | `damping` | what was added to the eigenvalues |
        | `rank` | median over queries of Spearman's correlation with the method's own effects |
        | `lowest_rank` | the same of the query that changes most |
        | `size` | norm of the effects as a share of that of the method's own |
        """
        base = max(float(np.linalg.norm(self.reference)), np.finfo(float).tiny)
        rows: list[dict[str, float]] = []
        for damping, values in zip(self.dampings, self.values, strict=True):
            ranks = np.atleast_1d(stats.spearman(values, self.reference))
            rows.append(
                {
                    "damping": damping,
                    "rank": stats.median(ranks),
                    "lowest_rank": float(np.min(ranks)),
                    "size": float(np.linalg.norm(values)) / base,
                }
            )
        return rows

    def section(self) -> Section:
        """A table of the dampings."""
        rows = self.numbers()
        near = [row["rank"] for row in rows if _is_near(row["damping"], self.own)]
        sentence = "No damping within a factor of ten of the method's was looked at."
        if near:
            sentence = (
                f"Within a factor of ten of the method's damping, {self.own:.2g}, the order of the "
                f"effects on the median query keeps a rank correlation of at least {min(near):.2f}."
            )
        columns = ("damping", "rank correlation (median query)", "lowest query", "relative size")
        cells = tuple(tuple(row.values()) for row in rows)
        return Section("damping", "Damping", sentence, (Table(columns, cells),))

    def to_json(self) -> dict[str, Any]:
        """The numbers of every damping, and how the effects were computed."""
        values = {
            "own_damping": self.own,
            "dampings": self.numbers(),
            "measurement": self.measurement.name,
            "report": dict(self.report),
        }
        return json.loads(json_text(as_json(values, "damping")))


def _is_near(damping: float, own: float) -> bool:
    """Within a factor of ten, rounding aside."""
    return 0.099 * own <= damping <= 10.1 * own


def scan_damping(
    problem: Problem,
    queries: object,
    dampings: Sequence[float] | None = None,
    *,
    measurement: MeasurementLike = None,
    method: MethodLike = "ekfac",
) -> DampingScan:
    """Effects at several dampings from one fit.

    Args:
        problem: what was trained.
        queries: as in `explain`.
        dampings: what is added to the eigenvalues; by default a hundredth to a hundred times the
            damping of the method, of each layer where layers have their own.
        measurement: as in `explain`.
        method: a curvature that keeps its eigenvalues (`ekfac`, `kfac`, `exact`) or solves anew
            (`refined`), by name, recipe, or as `fit` returned it.

    Returns:
        Effects at each damping, and how far they are from those at the method's own.

    Raises:
        BadArgument: a damping that is negative, or none at all.
        Unsupported: a method without damping, or one that would have to be fitted again.
    """
    fitted = fit(problem, method)
    if not isinstance(fitted, FittedInfluence):
        raise Unsupported(
            found=f"{type(fitted).__name__} has no damping.",
            why="Damping belongs to a curvature that is inverted.",
            remedy='Use method="ekfac", "exact" or "refined".',
        )
    own = float(fitted.report.get("damping", 0.0))
    if dampings is None and own == 0:
        raise BadArgument(
            found=f"{fitted.report.get('curvature')} uses no damping, and no dampings were given.",
            why="There is nothing to take multiples of.",
            remedy="Give the dampings, as in scan_damping(problem, queries, [1e-4, 1e-3, 1e-2]).",
        )
    again, wanted = fitted.damped_by, TIMES
    if dampings is not None:
        again, wanted = fitted.damped, tuple(dampings)
    if not wanted or not all(0 <= damping < float("inf") for damping in wanted):
        raise BadArgument(
            found=f"dampings={list(wanted)}.",
            why="Damping is added to eigenvalues.",
            remedy="Give one or more numbers of zero or more.",
        )
    asked = problem.queries(queries)
    reference = fitted.scores(asked, measurement)
    fits = [again(number) for number in wanted]
    return DampingScan(
        tuple(float(one.report["damping"]) for one in fits),
        np.stack([one.scores(asked, measurement).values for one in fits]),
        own,
        reference.values,
        reference.measurement,
        reference.report,
    )
