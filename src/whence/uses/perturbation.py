"""What a small change of one training example's input does to a measurement.

    values[q, ...] = d m_q(theta trained again) / d x_i
                   = -(b_i / N) d/dx (psi_q . grad loss_i(x))
    psi_q          = (H + damping I)^-1 grad m_q

Behind a frozen network or fixed steps of a pipeline, x is the raw input: the chain rule goes on.

Source: Koh & Liang 2017 (arXiv:1703.04730), equation 5, with the 1/N that a real example weighs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from whence.calculus.gradients import input_effects, measurement_gradients
from whence.core.batches import Batch, Tree
from whence.core.display import Display
from whence.core.heatmap import heat_map
from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.errors import BadArgument, Unsupported
from whence.explanation import MethodLike, fit
from whence.methods import Fitted
from whence.methods.base import MeasurementLike, merge_reports
from whence.methods.influence import FittedInfluence
from whence.sections import Bars, Block, Gallery, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result, position_of, unit_of_effects

_SHOWN = 4
"""Queries that get a picture or a chart of their own."""

_SAME_ASPECT = 0.05
"""A picture that the user draws may have another shape than the input; it is left unpainted."""

_BARS = 10
"""Features with the largest positive, and as many with the largest negative derivative."""


@dataclass(frozen=True, eq=False, repr=False)
class Perturbation(Result):
    """Derivatives of every query's measurement with respect to one training input.

    Args:
        values: (Q, *raw input shape) in units of the measurement per unit of the input; a dict or
            tuple of such arrays where a training example has several inputs.
        baseline: (Q,) measurements with the model as trained.
        query_ids: (Q,).
        example: id of the training example.
        measurement: what was measured.
        display: how the training example looks.
        names: of its numbers, in order.
        report: how the values were computed.
    """

    values: Tree
    baseline: np.ndarray
    query_ids: np.ndarray
    example: int | str
    measurement: Measurement
    display: Display
    names: Sequence[str]
    report: Mapping[str, Any]

    @property
    def direction(self) -> Tree:
        """The signs of `values`: the step, of one size in every coordinate, that raises it most."""
        return tree_map(np.sign, self.values)

    @property
    def unit(self) -> str:
        """The unit of effects: that of the measurement, or "arbitrary" without a scale."""
        return unit_of_effects(self.measurement, self.report)

    def largest_step(self, step: float) -> np.ndarray:
        """(Q,) effect, to first order, of the best move by `step` in every coordinate.

            effect[q] = step sum |values[q]|

        Args:
            step: size of the move, in the unit of the input.

        Raises:
            BadArgument: a negative or infinite step.
        """
        if not (step >= 0 and np.isfinite(step)):
            raise BadArgument(
                found=f"A step of {step}.",
                why="It is how far each number of the training example is moved, up or down.",
                remedy="Give a finite number of zero or more, in the unit of the input.",
            )
        return step * np.abs(self._flat()).sum(1)

    def section(self) -> Section:
        """Pictures with the derivatives over them, or the numbers that matter most, and a table."""
        return Section(
            kind="perturb",
            title=f"Small changes of training example {self.example}",
            sentence=self.sentence,
            blocks=(*self._pictures(), self._table()),
            warnings=tuple(self.report.get("warnings", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values = {
            "example": self.example,
            "query_ids": self.query_ids,
            "measurement": self.measurement.name,
            "unit": self.unit,
            "baseline": self.baseline,
            "values": self.values,
            "names": list(self.names),
            "report": dict(self.report),
        }
        return json.loads(json_text(as_json(values, "perturbation")))

    def _flat(self) -> np.ndarray:
        """(Q, number of inputs) all inputs of the example after each other."""
        leaves = [leaf.reshape(len(self.query_ids), -1) for leaf in tree_leaves(self.values)]
        return np.concatenate(leaves, axis=1)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        totals = self.largest_step(1.0)
        strongest = int(totals.argmax())
        name = self.measurement.name
        return (
            f"Moving every number of training example {self.example} by a small step s in the best "
            f"direction and training again changes the {name} of query "
            f"{self.query_ids[strongest]} by {totals[strongest]:.3g} s {self.unit}, to first order"
            + (
                "."
                if len(totals) == 1
                else f"; the least moved of {len(totals)} queries by {totals.min():.3g} s."
            )
        )

    def _table(self) -> Table:
        flat = self._flat()
        rows = [
            (str(query), float(base), float(np.abs(row).sum()), self.names[int(abs(row).argmax())])
            for query, base, row in zip(self.query_ids, self.baseline, flat, strict=True)
        ]
        unit = self.unit
        columns = (
            "query",
            f"{self.measurement.name} ({self.measurement.unit})",
            f"sum of |derivatives| ({unit} per unit of the input)",
            "most sensitive number",
        )
        return Table(columns, rows, "Times a small step: the largest effect to first order.")

    def _pictures(self) -> list[Block]:
        if not tree_leaves(self.values)[0][0].size:
            return []
        fields = [self._field(row) for row in range(min(_SHOWN, len(self.query_ids)))]
        if any(field is None for field in fields):
            return [self._bars(row) for row in range(len(fields))]
        pictures = [(self.display, f"training example {self.example}")]
        pictures += [
            (heat_map(cast("np.ndarray", field), self.display), f"query {query}")
            for query, field in zip(self.query_ids, fields, strict=False)
        ]
        words = (
            f"Blue: a larger value there raises the {self.measurement.name} of the query. Orange: "
            "it lowers it. Colours run to the largest derivative of each picture."
        )
        return [Gallery(pictures, words)]

    def _field(self, query: int) -> np.ndarray | None:
        """(H, W) derivatives, channels added, of an example that is shown as a picture."""
        if self.display["kind"] != "image" or not isinstance(self.values, np.ndarray):
            return None
        aspect = self.display["width"] / self.display["height"]
        field = _as_picture(self.values[query], aspect)
        if field is None:
            return None
        is_alike = abs(field.shape[1] / field.shape[0] / aspect - 1) < _SAME_ASPECT
        return field if is_alike else None

    def _bars(self, query: int) -> Bars:
        row = self._flat()[query]
        order = np.argsort(-row, kind="stable")
        most = min(_BARS, (len(row) + 1) // 2)
        kept = [i for i in order[:most] if row[i] > 0]
        kept += [i for i in order[most:][-most:] if row[i] < 0]
        return Bars(
            [(str(self.names[i]), float(row[i])) for i in kept],
            f"derivative of the {self.measurement.name} ({self.unit} per unit of the feature)",
            f"Query {self.query_ids[query]}: the features of training example {self.example} whose "
            "change matters most.",
        )


def perturb(
    problem: Problem,
    queries: object,
    *,
    example: int | str,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> Perturbation:
    """How each query's measurement follows the input of one training example.

        values[q, ...] = d m_q(theta trained again) / d x = -(b / N) d/dx (psi_q . grad loss(x))

    Args:
        problem: what was trained.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone.
        example: id of the training example whose input moves.
        measurement: what is measured on a query; see `whence.explain`.
        method: an influence function, by name, recipe or fitted; see `whence.explain`.

    Returns:
        (Q, *raw input shape) derivatives, in units of the measurement per unit of the input.

    Raises:
        BadArgument: no such training example.
        Unsupported: the inputs are integers, texts or categories, or the method does not solve
            with a curvature.

    Source: Koh & Liang 2017 (arXiv:1703.04730), equation 5, with 1/N.
    """
    position = torch.tensor([position_of(problem, example)])
    batch, raw = problem.batch(position), problem.data.raw(position)
    _check_movable(problem, batch, raw)
    fitted = _influence(fit(problem, method))
    asked = problem.queries(queries)
    measured = problem.measurement(measurement)
    baseline, slopes = measurement_gradients(problem, measured, asked)
    solution = fitted.solve(slopes)
    effects = problem.data.pull_back(raw, input_effects(problem, solution.vectors, batch))
    values = tree_map(lambda leaf: leaf[:, 0].detach().double().cpu().numpy(), effects)
    return Perturbation(
        values=values,
        baseline=baseline.detach().double().cpu().numpy(),
        query_ids=asked.ids,
        example=example,
        measurement=measured,
        display=problem.show(int(position)),
        names=_names(problem, raw, values),
        report=merge_reports({"warnings": problem.notes}, fitted.report, solution.report),
    )


def _check_movable(problem: Problem, batch: Batch, raw: Tree) -> None:
    """Fails for inputs without a derivative before anything is solved."""
    nothing = torch.zeros_like(problem.parameters)[None]
    problem.data.pull_back(raw, input_effects(problem, nothing, batch))


def _influence(fitted: Fitted) -> FittedInfluence:
    if isinstance(fitted, FittedInfluence):
        return fitted
    raise Unsupported(
        found=f"{type(fitted).__name__} does not move the parameters.",
        why="The effect of a changed input goes through the response of the parameters.",
        remedy='Use method="exact", "cg" or another curvature.',
    )


def _names(problem: Problem, raw: Any, values: Tree) -> tuple[str, ...]:
    """A name for each number of the example, in the order of its inputs."""
    columns = getattr(raw, "columns", None)
    if columns is not None:
        return tuple(map(str, columns))
    if not isinstance(values, np.ndarray):
        parts = values.items() if isinstance(values, dict) else enumerate(values)
        return tuple(f"{key}[{place}]" for key, leaf in parts for place in _places(leaf.shape[1:]))
    hints = problem.display if isinstance(problem.display, Mapping) else {}
    given = hints.get("feature_names")
    if given is not None and len(given) == prod(values.shape[1:]):
        return tuple(map(str, given))
    return _places(values.shape[1:])


def _places(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple([",".join(map(str, place)) for place in np.ndindex(*shape)])


def _as_picture(values: np.ndarray, aspect: float) -> np.ndarray | None:
    """(H, W) from a picture in any layout, its channels added; None where it is none."""
    if values.ndim == 1:
        height = round((values.size / aspect) ** 0.5)
        return values.reshape(height, -1) if values.size % height == 0 else None
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        return values.sum(0)
    if values.ndim == 3 and values.shape[2] in (1, 3, 4):
        return values.sum(2)
    return values if values.ndim == 2 else None
