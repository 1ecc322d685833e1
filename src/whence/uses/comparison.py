"""How two models use the same training data: effects against distance, and whom they share.

Two models that agree on a prediction may have learned it from different examples. One that compares
inputs as they are is led by those nearby; one that has learned features also by some far away.

Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.1 and figure 4.
"""

import json
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from whence.core.display import Display
from whence.core.problem import Problem, Queries
from whence.core.scores import Scores
from whence.errors import BadArgument, BadData
from whence.explanation import MethodLike, fit
from whence.methods import Fitted
from whence.methods.base import MeasurementLike
from whence.numerics import stats
from whence.sections import Block, Gallery, Scatter, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result

NEAREST = 0.1
"""The share of training examples that count as near to a query."""

_DRAWN = 1000
"""Points a chart: the strongest effects, and the others spread over all distances."""

_PICTURES = 5
"""Proponents of each model that are shown."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Effects of two models on the same queries, beside the distance of each training example.

    Args:
        scores_a: effects (Q, N) on the first model.
        scores_b: the same on the second.
        distances: (Q, N) Euclidean, between raw inputs, in their unit.
        is_same_label: (Q, N) whether an example has the label of the query; None without labels.
        names: of the two models.
        k: how many of the strongest proponents are looked at.
        pictures: the strongest proponents of the first query, in words and as displays.
        warnings: what a reader should know.
    """

    scores_a: Scores
    scores_b: Scores
    distances: np.ndarray
    is_same_label: np.ndarray | None
    names: tuple[str, str]
    k: int
    pictures: tuple[tuple[Display, str], ...]
    warnings: tuple[str, ...]

    def numbers(self, query: int = 0) -> dict[str, dict[str, float]]:
        """What can be said of each model, and of both, on one query.

        | number | is |
        |---|---|
        | spearman, pearson | correlation of abs(effect) with distance over all examples |
        | median_distance | of the k strongest proponents |
        | distance_ratio | that over the median distance of all examples |
        | near_share | share of sum abs(effect) on the nearest tenth of the examples |
        | other_label | share of another label among all proponents |
        | other_label_in_top | the same among the k strongest |
        | first_other_label | rank of the strongest proponent of another label, 1 = strongest |

        and of `both`: `overlap`, the share of the k strongest proponents that they have in common,
        and `spearman`, the rank correlation of how much each example helps.

        Args:
            query: position of the query, 0 to Q - 1.

        Returns:
            For "a", "b" and "both" the numbers; NaN where there are no labels or no effects.
        """
        helps = [_helps(scores, query) for scores in (self.scores_a, self.scores_b)]
        tops = [self._top(values) for values in helps]
        shared = len(np.intersect1d(tops[0], tops[1])) / self.k
        return {
            "a": self._against_distance(helps[0], tops[0], query),
            "b": self._against_distance(helps[1], tops[1], query),
            "both": {"overlap": shared, "spearman": float(stats.spearman(*helps))},
        }

    def medians(self) -> dict[str, dict[str, float]]:
        """Each of the `numbers`, the median over the queries where it is one."""
        found = [self.numbers(query) for query in range(len(self.distances))]
        return {
            who: {
                name: stats.median([numbers[who][name] for numbers in found])
                for name in found[0][who]
            }
            for who in ("a", "b", "both")
        }

    def section(self) -> Section:
        """A table of the numbers, medians over the queries, charts and pictures for the first."""
        numbers = self.medians()
        blocks: list[Block] = [self._table(numbers), *self._charts()]
        if self.pictures:
            words = f"The strongest proponents of query {self.scores_a.query_ids[0]}."
            blocks.append(Gallery(self.pictures, words))
        return Section(
            kind="compare",
            title=f"{self.names[0]} and {self.names[1]} on the same training data",
            sentence=self._sentence(numbers),
            blocks=blocks,
            warnings=self.warnings,
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values = {
            "names": self.names,
            "k": self.k,
            "query_ids": self.scores_a.query_ids,
            "train_ids": self.scores_a.train_ids,
            "measurements": [s.measurement.name for s in (self.scores_a, self.scores_b)],
            "units": [self.scores_a.unit, self.scores_b.unit],
            "effects_a": self.scores_a.values,
            "effects_b": self.scores_b.values,
            "distances": self.distances,
            "is_same_label": self.is_same_label,
            "numbers": [self.numbers(query) for query in range(len(self.distances))],
            "warnings": self.warnings,
        }
        return json.loads(json_text(as_json(values, "comparison")))

    def _top(self, helps: np.ndarray) -> np.ndarray:
        """Positions of at most k proponents, the strongest first."""
        order = np.argsort(-helps, kind="stable")[: self.k]
        return order[helps[order] > 0]

    def _against_distance(self, helps: np.ndarray, top: np.ndarray, query: int) -> dict[str, float]:
        distances, sizes = self.distances[query], np.abs(helps)
        near = np.argsort(distances, kind="stable")[: max(1, round(NEAREST * len(distances)))]
        middle = stats.median(distances[top])
        return {
            "spearman": float(stats.spearman(sizes, distances)),
            "pearson": float(stats.pearson(sizes, distances)),
            "median_distance": middle,
            "distance_ratio": _ratio(middle, stats.median(distances)),
            "near_share": _ratio(float(sizes[near].sum()), float(sizes.sum())),
            **self._other_labels(helps, top, query),
        }

    def _other_labels(self, helps: np.ndarray, top: np.ndarray, query: int) -> dict[str, float]:
        if self.is_same_label is None:
            return dict.fromkeys(_OF_LABELS, float("nan"))
        other = ~self.is_same_label[query]
        order = np.argsort(-helps, kind="stable")
        order = order[helps[order] > 0]
        ranks = np.flatnonzero(other[order])
        return {
            "other_label": _ratio(float(other[order].sum()), len(order)),
            "other_label_in_top": _ratio(float(other[top].sum()), len(top)),
            "first_other_label": float(ranks[0] + 1) if len(ranks) else float("nan"),
        }

    def _sentence(self, numbers: dict[str, dict[str, float]]) -> str:
        count = len(self.distances)
        where = "" if count == 1 else f"Medians over {count:,} queries: "
        a, b = self.names
        return (
            f"{where}the rank correlation of |effect| with distance is "
            f"{numbers['a']['spearman']:+.2f} for {a} and {numbers['b']['spearman']:+.2f} for {b}; "
            f"their {self.k} strongest proponents lie at {numbers['a']['distance_ratio']:.0%} and "
            f"{numbers['b']['distance_ratio']:.0%} of the median distance, and share "
            f"{numbers['both']['overlap']:.0%}."
        )

    def _table(self, numbers: dict[str, dict[str, float]]) -> Table:
        rows = [(words, numbers["a"][name], numbers["b"][name]) for name, words in _ROWS.items()]
        both = numbers["both"]
        caption = (
            f"k = {self.k}. Of both: share of common proponents {both['overlap']:.3g}, rank "
            f"correlation of how much examples help {both['spearman']:.3g}."
        )
        return Table(("", *self.names), rows, caption)

    def _charts(self) -> list[Scatter]:
        pairs = zip(self.names, (self.scores_a, self.scores_b), strict=True)
        return [
            Scatter(
                self._points(scores),
                x="distance of the raw inputs",
                y=f"effect on the {scores.measurement.name} ({scores.unit})",
                caption=f"{name}, query {scores.query_ids[0]}.",
            )
            for name, scores in pairs
        ]

    def _points(self, scores: Scores) -> list[dict[str, Any]]:
        x, y = self.distances[0], scores.values[0]
        strongest = np.argsort(-np.abs(y), kind="stable")[: _DRAWN // 5]
        drawn = np.union1d(strongest, stats.spread(x, _DRAWN - len(strongest)))
        return [
            {"x": x[i], "y": y[i], "words": f"example {scores.train_ids[i]}", **self._group(int(i))}
            for i in drawn
        ]

    def _group(self, example: int) -> dict[str, str]:
        if self.is_same_label is None:
            return {}
        is_same = self.is_same_label[0, example]
        return {"group": "label of the query" if is_same else "another label"}


_OF_LABELS = ("other_label", "other_label_in_top", "first_other_label")

_ROWS = {
    "spearman": "rank correlation of |effect| with distance",
    "pearson": "correlation of |effect| with distance",
    "median_distance": "median distance of the top proponents",
    "distance_ratio": "the same over that of all examples",
    "near_share": "share of all |effect| on the nearest tenth",
    "other_label": "share of another label among proponents",
    "other_label_in_top": "the same among the top proponents",
    "first_other_label": "rank of the first proponent of another label",
}


@dataclass(frozen=True, eq=False)
class Views:
    """How the same examples look to the second model, and to the distances.

    Args:
        queries_b: the queries as `problem_b` reads them, where that is another form.
        inputs: `(train inputs (N, ...), query inputs (Q, ...))` between which distances are
            measured; by default the raw inputs of `problem_a` and `queries`.
    """

    queries_b: object = None
    inputs: tuple[object, object] | None = None


def compare(
    problem_a: Problem | Fitted,
    problem_b: Problem | Fitted,
    queries: object,
    *,
    views: Views = Views(),
    k: int = 10,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> Comparison:
    """How two models use the same training data for the same queries.

        distances[q, i] = |x_q - x_i|        Euclidean, over all numbers of the raw inputs

    Args:
        problem_a: the first model, or what `whence.fit` returned for it.
        problem_b: the second, trained on the same examples in the same order, under the same ids
            and labels; how it prepares its inputs may differ.
        queries: `(inputs, targets)` as `problem_a` reads them, and `problem_b` too.
        views: other forms of the queries for `problem_b`, other inputs for the distances.
        k: how many of the strongest proponents are looked at.
        measurement: as for `explain`, of both models.
        method: as for `explain`, of both models, where they are not fitted yet.

    Returns:
        Both scores, distances, and the numbers that compare them.

    Raises:
        BadData: other training ids or labels, other queries, or inputs that are not numbers.
        BadArgument: k is below 1 or above N.
        WhenceError: a problem, the queries or a solve failed.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.1.
    """
    fitted = [
        one if isinstance(one, Fitted) else fit(one, method) for one in (problem_a, problem_b)
    ]
    first, second = (one.problem for one in fitted)
    _check_alike(first, second)
    if not 1 <= k <= len(first):
        raise BadArgument(
            found=f"k={k} of {len(first):,} training examples.",
            why="It counts the strongest proponents of each query.",
            remedy="Give a whole number from 1 to the number of training examples.",
        )
    asked = first.queries(queries)
    asked_b = second.queries(queries if views.queries_b is None else views.queries_b)
    warnings = _check_queries(first, second, asked, asked_b)
    given = views.inputs
    distances = raw_distances(first, queries, asked) if given is None else _between(*given)
    if distances.shape != (len(asked), len(first)):
        raise BadData(
            found=f"inputs holds {distances.shape[1]:,} training inputs and "
            f"{distances.shape[0]:,} query inputs.",
            why=f"There are {len(first):,} training examples and {len(asked):,} queries.",
            remedy="Give one row for each, in their order.",
        )
    scores = [one.scores(q, measurement) for one, q in zip(fitted, (asked, asked_b), strict=True)]
    reports = [text for one in scores for text in one.report.get("warnings", ())]
    return Comparison(
        scores_a=scores[0],
        scores_b=scores[1],
        distances=distances,
        is_same_label=_same_label(first, asked),
        names=_names(first, second),
        k=k,
        pictures=_pictures(first, scores, _names(first, second), distances[0]),
        warnings=(*warnings, *reports),
    )


def _names(first: Problem, second: Problem) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name} (a)", f"{second.name} (b)"


def _pictures(
    problem: Problem, scores: list[Scores], names: tuple[str, str], distances: np.ndarray
) -> tuple[tuple[Display, str], ...]:
    """The strongest proponents of the first query under each model."""
    shown: list[tuple[Display, str]] = []
    for name, one in zip(names, scores, strict=True):
        helps = _helps(one, 0)
        for place in np.argsort(-helps, kind="stable")[:_PICTURES]:
            if helps[place] > 0:
                words = (
                    f"{name}: {one.train_ids[place]} ({problem.label_of(int(place))}), effect "
                    f"{one.values[0, place]:+.3g}, distance {distances[place]:.3g}"
                )
                shown.append((problem.show(int(place)), words))
    return tuple(shown)


def _helps(scores: Scores, query: int) -> np.ndarray:
    """(N,) how much each example helps: the effect where lower is better, else minus it."""
    row = scores.values[query]
    return -row if scores.measurement.higher_is_better else row


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")


# ------------------------------------------------------------------- the same training data


def _check_alike(first: Problem, second: Problem) -> None:
    """Refuses models of different training data."""
    ids = (first.data.ids, second.data.ids)
    if not np.array_equal(*ids):
        which = "in another order" if set(ids[0].tolist()) == set(ids[1].tolist()) else "others"
        raise BadData(
            found=f"The first model has {len(ids[0]):,} training ids, the second {len(ids[1]):,}; "
            f"they are {which}.",
            why="Effects are compared example by example.",
            remedy="Train both models on the same examples in the same order, with the same ids.",
        )
    targets = [_targets(problem) for problem in (first, second)]
    _check_labels(first, second, targets[0], targets[1], first.data.ids, "Training example")


def _targets(problem: Problem) -> Tensor | None:
    return problem.data.take(torch.arange(len(problem)))[1]


def _check_queries(
    first: Problem, second: Problem, asked: Queries, asked_b: Queries
) -> tuple[str, ...]:
    """Refuses different queries; what the models answer themselves may differ, with a warning."""
    if len(asked) != len(asked_b):
        raise BadData(
            found=f"There are {len(asked):,} queries for the first model and {len(asked_b):,} for "
            "the second.",
            why="Both are asked about the same queries.",
            remedy="Pass the same queries in queries= and queries_b=, in the same order.",
        )
    try:
        _check_labels(first, second, asked.targets, asked_b.targets, asked.ids, "Query")
    except BadData as error:
        if asked.are_labelled and asked_b.are_labelled:
            raise
        return (f"The models are measured at their own answers, which differ: {error.found}",)
    return ()


def _check_labels(
    first: Problem,
    second: Problem,
    targets: Tensor | None,
    targets_b: Tensor | None,
    ids: np.ndarray,
    what: str,
) -> None:
    """Refuses labels that differ both as codes and as words."""
    if targets is None or targets_b is None:
        return
    codes = [_codes(first, targets), _codes(second, targets_b)]
    if codes[0].shape != codes[1].shape:
        raise BadData(
            found=f"The targets have the shapes {codes[0].shape} and {codes[1].shape}.",
            why="The effects are on different answers and could not be compared.",
            remedy="Train and ask both models with the same targets.",
        )
    apart = np.flatnonzero((codes[0] != codes[1]).reshape(len(ids), -1).any(1))
    for row in apart:
        words = first.label_name(targets[row].cpu()), second.label_name(targets_b[row].cpu())
        if words[0] != words[1] or codes[0].ndim > 1:
            raise BadData(
                found=f"{what} {ids[row]} has the label {words[0]} for the first model and "
                f"{words[1]} for the second.",
                why="What helps one label hurts another: the effects could not be compared.",
                remedy="Train and ask both models with the same labels.",
            )


def _codes(problem: Problem, targets: Tensor) -> np.ndarray:
    """Targets as numbers; of a hinge 0 and 1 in the place of -1 and 1."""
    values = targets.detach().cpu().double().numpy()
    return (values + 1) / 2 if problem.loss.task == "signed" else values


def _same_label(problem: Problem, asked: Queries) -> np.ndarray | None:
    """(Q, N) whether example and query have one label; None where there is no single label."""
    targets = _targets(problem)
    if targets is None or problem.loss.task not in ("classes", "binary", "signed"):
        return None
    if targets.numel() != len(problem) or asked.targets.numel() != len(asked):
        return None
    train, query = (_codes(problem, t).reshape(-1) for t in (targets, asked.targets))
    return query[:, None] == train


# ---------------------------------------------------------------------------- distances


def raw_distances(problem: Problem, source: object, asked: Queries) -> np.ndarray:
    """(Q, N) between the raw inputs of queries and training examples."""
    if not isinstance(source, Queries):
        data = problem.read(source)
        query = data.raw(torch.arange(len(data)))
    elif problem.data.is_prepared:
        raise BadData(
            found="The queries are prepared already.",
            why="Distances are measured between raw inputs, which are not kept with them.",
            remedy="Pass the raw queries, or inputs=(train inputs, query inputs).",
        )
    else:
        query = asked.inputs
    return _between(problem.data.raw(torch.arange(len(problem))), query)


def _between(train: object, query: object) -> np.ndarray:
    """(Q, N) Euclidean distances."""
    rows, columns = _table(query), _table(train)
    if rows.shape[1] != columns.shape[1]:
        raise BadData(
            found=f"A query has {rows.shape[1]:,} numbers, a training example "
            f"{columns.shape[1]:,}.",
            why="A distance is measured number by number.",
            remedy="Give inputs of one shape in inputs=(train inputs, query inputs).",
        )
    return cdist(rows, columns)


def _table(source: object) -> np.ndarray:
    """(M, numbers of an example) float64 from tensors, arrays, frames, or several of them."""
    frame: Any = source
    parts = [frame.to_numpy()] if hasattr(frame, "to_numpy") else tree_leaves(source)
    if isinstance(source, list):
        parts = [cast("list[object]", source)]
    try:
        arrays = [_array(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise BadData(
            found=f"The raw inputs are not numbers ({error}).",
            why="Between texts or categories there is no Euclidean distance.",
            remedy="Pass inputs=(train inputs, query inputs) as numbers, such as embeddings.",
        ) from error
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _array(part: Any) -> np.ndarray:
    if isinstance(part, Tensor):
        part = part.detach().cpu().double().numpy()
    return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)
