"""Which groups of training data drive some predictions, and which of their features matter.

Where training data and queries come from different populations, the few training examples that are
like the queries decide what the model says of them. Their effects stand out from all others.

Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from whence.calculus.gradients import input_effects, measurement_gradients
from whence.core.display import Display
from whence.core.problem import Problem, Queries
from whence.core.scores import Scores
from whence.errors import BadArgument, BadData, NonFinite, Unsupported, unknown_name
from whence.explanation import MethodLike, fit
from whence.methods import Fitted
from whence.methods.base import MeasurementLike
from whence.methods.influence import FittedInfluence
from whence.sections import Bars, Block, Gallery, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result, positions_of

GroupsLike = Mapping[str, Sequence[int | str] | np.ndarray] | Sequence[object] | np.ndarray | str
"""Ids by name of the group; or one label for each training example; or the name of a column."""

_SHOWN = 20
"""Groups in a table or chart: those that lead."""

_BARS = 10
"""Features with the largest positive, and as many with the largest negative derivative."""


@dataclass(frozen=True, eq=False)
class GroupEffect:
    """What a group of training examples does to the queries.

    Effects are means over the queries unless said otherwise; each is the effect of removing one
    example, and the sum is that of removing all of them as far as removals add up.

    Args:
        name: of the group.
        size: number of examples.
        sum: over the group.
        largest: the effect of largest size.
        largest_id: the example it belongs to.
        lead: |largest| over the largest |effect| outside the group; NaN if nothing is outside.
        sum_by_query: (Q,) sum over the group.
        lead_by_query: (Q,) the lead on each query alone.
    """

    name: str
    size: int
    sum: float
    largest: float
    largest_id: int | str
    lead: float
    sum_by_query: np.ndarray
    lead_by_query: np.ndarray

    @property
    def mean(self) -> float:
        """Mean effect of an example of the group."""
        return self.sum / self.size


@dataclass(frozen=True, eq=False)
class StrongExample:
    """A training example of large effect.

    Args:
        id: of the example.
        effect: of removing it, mean over the queries.
        groups: names of the groups it belongs to.
        label: in words, where there is one.
        derivatives: (d,) of the mean measurement by each of its features, in the unit of the
            measurement per unit of the feature; None where there are none.
        display: how it looks.
    """

    id: int | str
    effect: float
    groups: tuple[str, ...]
    label: str | None
    derivatives: np.ndarray | None
    display: Display


@dataclass(frozen=True, eq=False, repr=False)
class Mismatch(Result):
    """Groups of training data by what they do to some queries.

    Args:
        groups: the group that leads the others most first.
        strongest: the training examples of largest effect, the strongest first.
        feature_names: of the derivatives.
        scores: effects of every training example on every query.
        warnings: what a reader should know.
    """

    groups: tuple[GroupEffect, ...]
    strongest: tuple[StrongExample, ...]
    feature_names: tuple[str, ...]
    scores: Scores
    warnings: tuple[str, ...]

    def group(self, name: str) -> GroupEffect:
        """The group of this name.

        Raises:
            UnknownName: there is no such group.
        """
        found = {group.name: group for group in self.groups}
        if name not in found:
            raise unknown_name("group", name, found)
        return found[name]

    def section(self) -> Section:
        """A sentence on the leading group, a table and bars by group, the strongest examples."""
        return Section(
            kind="find_mismatch",
            title=f"Groups of training data behind {_counted(len(self.scores.values), 'query')}",
            sentence=self._sentence(),
            blocks=(self._table(), self._bars(), *self._examples()),
            warnings=self.warnings,
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values = {
            "measurement": self.scores.measurement.name,
            "unit": self.scores.unit,
            "query_ids": self.scores.query_ids,
            "baseline": self.scores.baseline,
            "groups": [vars(group) | {"mean": group.mean} for group in self.groups],
            "strongest": [vars(example) for example in self.strongest],
            "feature_names": self.feature_names,
            "warnings": self.warnings,
            "report": dict(self.scores.report),
        }
        return json.loads(json_text(as_json(values, "mismatch")))

    def _sentence(self) -> str:
        first = self.groups[0]
        members = f"{first.name!r} ({_counted(first.size, 'example')})"
        role = f"{members} leads"
        if first.lead < 1:
            role = f"none holds the strongest example, and {members} comes nearest"
        name = self.scores.measurement.name
        times = f", {first.lead:.3g} times the strongest outside" if np.isfinite(first.lead) else ""
        return (
            f"Of {_counted(len(self.groups), 'group')}, {role}: without its example "
            f"{first.largest_id} the {name} changes by {first.largest:+.3g} {self.scores.unit}"
            f"{times}; its effects add up to {first.sum:+.3g}."
        )

    def _table(self) -> Table:
        unit = self.scores.unit
        columns = (
            "group",
            "examples",
            f"sum of effects ({unit})",
            f"mean of an example ({unit})",
            f"largest ({unit})",
            "of example",
            "lead over the rest",
        )
        rows = [
            (g.name, g.size, g.sum, g.mean, g.largest, str(g.largest_id), g.lead)
            for g in self.groups[:_SHOWN]
        ]
        count = len(self.scores.values)
        words = "" if count == 1 else f"Means over {count:,} queries. "
        if len(self.groups) > _SHOWN:
            words += f"The first {_SHOWN} of {len(self.groups):,} groups. "
        return Table(columns, rows, f"{words}{self.scores.sign_sentence.capitalize()}.")

    def _bars(self) -> Bars:
        return Bars(
            [(group.name, group.largest) for group in self.groups[:_SHOWN]],
            f"largest effect of one example of the group ({self.scores.unit})",
            "What the strongest example of each group does when it is removed.",
        )

    def _examples(self) -> list[Block]:
        pictures = [
            (
                example.display,
                f"{example.id}, {', '.join(example.groups) or 'no group'}, "
                f"label {example.label}: {example.effect:+.3g}",
            )
            for example in self.strongest
        ]
        blocks: list[Block] = [Gallery(pictures, "The training examples of largest effect.")]
        first = self.strongest[0]
        if first.derivatives is not None:
            blocks.append(self._features(first, first.derivatives))
        return blocks

    def _features(self, example: StrongExample, row: np.ndarray) -> Bars:
        order = np.argsort(-row, kind="stable")
        top = [i for i in order[:_BARS] if row[i] > 0]
        bottom = [i for i in order[len(top) :][-_BARS:] if row[i] < 0]
        return Bars(
            [(self.feature_names[i], float(row[i])) for i in (*top, *bottom)],
            f"change of the {self.scores.measurement.name} ({self.scores.unit} per unit)",
            f"Features of training example {example.id} whose change would matter most.",
        )


def find_mismatch(
    problem: Problem,
    queries: object,
    *,
    groups: GroupsLike,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
    strongest: int = 5,
) -> Mismatch:
    """Which groups of training data drive these predictions.

        sum of a group    sum_{i in group} mean_q effect[q, i]
        lead of a group   max_{i in group} |mean_q effect[q, i]| / max_{i outside} of the same
        derivatives       -(b_i / N) d/dx_i (psi . grad loss_i)
        psi               (H + damping I)^-1 mean_q grad m_q

    Sums are those of single removals. A group that shapes its own part of the model moves it by
    more when all of it goes; `whence.remove(problem, queries, group=...)` takes that into account.

    Args:
        problem: what was trained.
        queries: the predictions in question, such as a model's errors: `(inputs, targets)`.
        groups: ids of training examples by name of the group; or one label for each of the N
            training examples; or the name of a column (of a frame, or of named features) whose
            values are the groups. Groups may overlap, and need not hold every example.
        measurement: as for `explain`.
        method: as for `explain`. Derivatives need one that solves with a curvature.
        strongest: number of single training examples that are described.

    Returns:
        Groups, the strongest examples, and what their features do.

    Raises:
        BadArgument: no group, an empty one, an unknown id, or `strongest` below 1.
        BadData: another number of labels than of training examples.
        UnknownName: no such column.
        WhenceError: the problem, the queries or a solve failed.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.2; derivatives from equation 5.
    """
    members = _members(problem, groups)
    if strongest < 1:
        raise BadArgument(
            found=f"strongest={strongest}.",
            why="It counts the training examples that are described.",
            remedy="Give one or more.",
        )
    fitted = fit(problem, method)
    asked = problem.queries(queries)
    scores = fitted.scores(asked, measurement)
    found = [_group_effect(name, places, scores) for name, places in members.items()]
    found.sort(key=lambda group: np.inf if np.isnan(group.lead) else -group.lead)
    order = np.argsort(-np.abs(scores.values.mean(0)), kind="stable")[:strongest]
    derivatives, names, reasons = _derivatives(fitted, asked, measurement, order)
    return Mismatch(
        groups=tuple(found),
        strongest=_strong_examples(problem, scores, members, order, derivatives),
        feature_names=names,
        scores=scores,
        warnings=(*scores.report.get("warnings", ()), *reasons),
    )


# --------------------------------------------------------------------------------- groups


def _members(problem: Problem, groups: GroupsLike) -> dict[str, np.ndarray]:
    """Positions of the examples of each group."""
    if isinstance(groups, str):
        return _by_label(_column(problem, groups))
    if not isinstance(groups, Mapping):
        labels = np.asarray(groups)
        if labels.shape != (len(problem),):
            raise BadData(
                found=f"Labels of groups in the shape {labels.shape} for {len(problem):,} training "
                "examples.",
                why="Each training example belongs to the group that its label names.",
                remedy="Give one label for each, or a dict of ids by name of the group.",
            )
        return _by_label(labels)
    named = cast("Mapping[str, Any]", groups)
    if not named:
        raise BadArgument(
            found="There is no group.",
            why="Effects are added up over groups.",
            remedy="Name at least one, as in groups={'children': ids}.",
        )
    for name, ids in named.items():
        if len(ids) == 0:
            raise BadArgument(
                found=f"The group {name!r} is empty.",
                why="It has no effect to speak of.",
                remedy="Leave it out, or check how its ids were chosen.",
            )
    return {str(name): positions_of(problem, ids) for name, ids in named.items()}


def _by_label(labels: np.ndarray) -> dict[str, np.ndarray]:
    words = np.array([str(label) for label in labels.tolist()])
    return {str(name): np.flatnonzero(words == name) for name in np.unique(words)}


def _column(problem: Problem, name: str) -> np.ndarray:
    """(N,) the values of a column of the raw examples."""
    raw: Any = problem.data.raw(torch.arange(len(problem)))
    if hasattr(raw, "columns"):
        columns = [str(column) for column in raw.columns]
        if name in columns:
            return np.asarray(raw.iloc[:, columns.index(name)])
    else:
        columns = list(_hinted_names(problem))
        if name in columns and isinstance(raw, Tensor) and raw.ndim == 2:
            return raw[:, columns.index(name)].cpu().numpy()
    raise unknown_name("column of the training data", name, columns)


def _hinted_names(problem: Problem) -> tuple[str, ...]:
    """Names of the features that the display of the problem knows."""
    hints = problem.display if isinstance(problem.display, Mapping) else {}
    return tuple(map(str, hints.get("feature_names") or ()))


def _group_effect(name: str, places: np.ndarray, scores: Scores) -> GroupEffect:
    effects = scores.values.mean(0)  # (N,)
    inside = np.zeros(len(effects), dtype=bool)
    inside[places] = True
    largest = int(places[np.abs(effects[places]).argmax()])
    return GroupEffect(
        name=name,
        size=len(places),
        sum=float(effects[places].sum()),
        largest=float(effects[largest]),
        largest_id=scores.train_ids[largest].item(),
        lead=float(_lead(effects[None], inside)[0]),
        sum_by_query=scores.values[:, places].sum(1),
        lead_by_query=_lead(scores.values, inside),
    )


def _lead(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(Q,) the largest |effect| inside over the largest outside."""
    if inside.all():
        return np.full(len(values), np.nan)
    sizes = np.abs(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sizes[:, inside].max(1) / sizes[:, ~inside].max(1)


# --------------------------------------------------------------------- the strongest examples


def _strong_examples(
    problem: Problem,
    scores: Scores,
    members: Mapping[str, np.ndarray],
    order: np.ndarray,
    derivatives: np.ndarray | None,
) -> tuple[StrongExample, ...]:
    effects = scores.values.mean(0)
    return tuple(
        StrongExample(
            id=scores.train_ids[place].item(),
            effect=float(effects[place]),
            groups=tuple(name for name, places in members.items() if place in places),
            label=problem.label_of(int(place)),
            derivatives=None if derivatives is None else derivatives[row],
            display=problem.show(int(place)),
        )
        for row, place in enumerate(order)
    )


def _derivatives(
    fitted: Fitted, asked: Queries, measurement: MeasurementLike, order: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """(M, d) derivatives by each feature, the names of these, and why there are none."""
    if not isinstance(fitted, FittedInfluence):
        words = f"{type(fitted).__name__} does not solve with a curvature, so which features of "
        return None, (), (f"{words}an example matter is not known.",)
    problem, places = fitted.problem, torch.from_numpy(order)
    batch, raw = problem.batch(places), problem.data.raw(places)
    _, slopes = measurement_gradients(problem, problem.measurement(measurement), asked)
    try:
        psi = fitted.solve(slopes.mean(0, keepdim=True)).vectors
        leaves = tree_leaves(problem.data.pull_back(raw, input_effects(problem, psi, batch)))
    except (Unsupported, NonFinite) as error:
        return None, (), (f"Which features of an example matter is not known: {error.found}",)
    flat = [leaf[0].detach().double().cpu().flatten(1) for leaf in leaves]
    values = torch.cat(flat, 1).numpy()
    return values, _names(problem, raw, values.shape[1]), ()


def _names(problem: Problem, raw: Any, count: int) -> tuple[str, ...]:
    columns = tuple(map(str, getattr(raw, "columns", ()))) or _hinted_names(problem)
    return columns if len(columns) == count else tuple(str(place) for place in range(count))


def _counted(count: int, noun: str) -> str:
    plural = {"query": "queries"}.get(noun, f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"
