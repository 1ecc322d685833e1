"""Scores, and what retraining said of them, as one plain JSON story.

The saved report and the explorer show the same story, so everything a reader sees stands in it:
pictures, numbers with their units, and the sentences around them.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.errors import BadArgument, NonFinite, Stale
from whence.report.facts import choose_facts
from whence.report.sentences import answer, count, says, without
from whence.version import __version__

if TYPE_CHECKING:  # a story is read and shown on machines without torch
    from whence.core.problem import Problem
    from whence.core.scores import Scores
    from whence.verification import Verification

Json = dict[str, Any]

FORMAT, VERSION = "whence-story", 1

BINS = 41
"""Of the histogram of all effects on a query; odd, so that one bin is centred on no effect."""


def tell(
    problem: "Problem",
    scores: "Scores",
    *,
    verification: "Verification | None" = None,
    queries: Sequence[int] | None = None,
    top: int = 6,
    title: str | None = None,
) -> Json:
    """The story of some scores.

    Args:
        problem: what was explained; shows the examples.
        scores: (Q, N) effects.
        verification: what retraining said of these scores.
        queries: positions (0 to Q - 1) of the queries to tell of, default all.
        top: how many proponents and opponents of each query are shown.
        title: of the page.

    Returns:
        Strict JSON: no NaN, no infinity, no types of numpy.

    Raises:
        Stale: the scores belong to another model or to other data.
        NonFinite: an effect is NaN or infinite.
        BadArgument: a query that does not exist, no query at all, or `top` below one.
    """
    _check_origin(problem, scores)
    positions = _check_queries(queries, len(scores.query_ids))
    if top < 1:
        raise BadArgument(
            found=f"top={top}.",
            why="A report shows at least one training example a query.",
            remedy="Ask for top=1 or more.",
        )
    teller = _Teller(problem, scores, top)
    report = plain(scores.report, not_finite="not finite")
    checked = None if verification is None else plain(verification.to_json())
    story: Json = {
        "format": FORMAT,
        "version": VERSION,
        "title": title or _title(problem, len(positions)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "whence": __version__,
        "problem": plain(problem.facts()),
        "measurement": _measurement(scores),
        "method": {
            "name": report.get("method"),
            "reason": report.get("reason"),
            "removal": report.get("removal"),
            "curvature": report.get("curvature"),
        },
        "facts": choose_facts(report),
        "queries": [teller.query(position) for position in positions],
        "verification": checked,
        "trust": trust(checked),
        "warnings": list(report.get("warnings") or []),
    }
    return story | {"answer": answer(story)}


def plain(value: Any, not_finite: str | None = None) -> Any:
    """The same value in types that strict JSON has.

    Args:
        value: numbers, strings, arrays, and dicts, lists and tuples of these.
        not_finite: what stands for NaN and infinity.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry, not_finite) for name, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), not_finite)
    if isinstance(value, list | tuple):
        return [plain(entry, not_finite) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else not_finite
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def half_of_influence(effects: np.ndarray) -> int:
    """How many examples carry half of sum |effect|, the largest counted first.

    Args:
        effects: (N,) of one query.
    """
    shares = np.cumsum(np.sort(np.abs(effects))[::-1])
    if shares.size == 0 or shares[-1] == 0:
        return 0
    return int(np.searchsorted(shares, shares[-1] / 2 * (1 - 1e-12))) + 1  # rounding of the sum


def histogram(effects: np.ndarray) -> Json:
    """How many effects lie in each of `BINS` equal bins around zero.

    Args:
        effects: (N,) of one query.

    Returns:
        {"low", "high", "counts"}; low = -high.
    """
    reach = float(np.abs(effects).max(initial=0.0)) or 1.0
    counts, _ = np.histogram(effects, bins=BINS, range=(-reach, reach))
    return {"low": -reach, "high": reach, "counts": counts.tolist()}


def trust(verification: Mapping[str, Any] | None) -> Json:
    """How far to believe the effects: {"level", "title", "sentence"}.

    Args:
        verification: block of a story.

    Returns:
        The level is "good", "fair", "poor" or "unchecked".
    """
    if verification is None:
        return {
            "level": "unchecked",
            "title": "Not checked by retraining",
            "sentence": "These effects are predictions. To see how well they predict, call "
            "whence.verify(problem, scores): it trains again without some of the examples and "
            "compares.",
        }
    return {
        "level": _level(verification),
        "title": verification["verdict"],
        "sentence": verification["sentence"],
    }


class _Teller:
    """Shows and words queries; remembers the training examples that it has already shown."""

    def __init__(self, problem: "Problem", scores: "Scores", top: int) -> None:
        self.problem = problem
        self.scores = scores
        self.top = top
        self.is_labelled = bool(scores.report.get("are_labelled", True))
        self.positions = {name: i for i, name in enumerate(problem.data.ids.tolist())}
        self.shown: dict[int, Json] = {}

    def query(self, position: int) -> Json:
        """The block of one query."""
        inputs, target = _one(self.scores.queries, position)
        effects = self.scores.values[position]
        label = None if target is None else self.problem.label_name(target)
        top = self.scores.top(self.top, query=position)
        query: Json = {
            "id": plain(self.scores.query_ids[position]),
            "position": position,
            "display": plain(self.problem.show_query(inputs, target)),
            "label": label,
            "is_labelled": self.is_labelled and label is not None,
            "prediction": plain(self.problem.prediction_of(inputs)),
            "value": plain(float(self.scores.baseline[position])),
            "half_of_influence": half_of_influence(effects),
            "distribution": histogram(effects),
            "proponents": [self.example(effect) for effect in top.proponents],
            "opponents": [self.example(effect) for effect in top.opponents],
        }
        opening = says(query["prediction"], label, is_labelled=self.is_labelled)
        sentence = f"{opening} {without(query, _measurement(self.scores))}"
        return query | {"sentence": sentence.strip()}

    def example(self, effect: Any) -> Json:
        """One training example and its effect."""
        position = self.positions[plain(effect.id)]
        if position not in self.shown:
            self.shown[position] = {
                "id": plain(effect.id),
                "display": plain(self.problem.show(position)),
                "label": self.problem.label_of(position),
            }
        return self.shown[position] | {"effect": float(effect.effect)}


def _one(queries: Mapping[str, np.ndarray], position: int) -> tuple[Any, Any]:
    """Inputs and target of one query, in the structure that the model takes."""
    targets = queries.get("targets")
    target = None if targets is None else targets[position]
    if "inputs" in queries:
        return queries["inputs"][position], target
    parts = {
        name.removeprefix("inputs/"): array[position]
        for name, array in queries.items()
        if name.startswith("inputs/")
    }
    is_tuple = list(parts) == [str(i) for i in range(len(parts))]
    return tuple(parts.values()) if is_tuple else parts, target


def _measurement(scores: "Scores") -> Json:
    return {
        "name": scores.measurement.name,
        "unit": scores.measurement.unit if scores.is_calibrated else "arbitrary",
        "higher_is_better": bool(scores.measurement.higher_is_better),
        "is_calibrated": bool(scores.is_calibrated),
        "sign": scores.sign_sentence,
    }


def _title(problem: "Problem", queries: int) -> str:
    name = problem.facts()["name"]
    return f"{name}: {count(queries, 'prediction')} and the training data behind"


def _level(verification: Mapping[str, Any]) -> str:
    correlation = verification.get("pearson")
    if correlation is None:
        correlation = verification.get("spearman")
    if correlation is None:
        return "poor"
    return "good" if correlation >= 0.8 else "fair" if correlation >= 0.4 else "poor"


def _check_origin(problem: "Problem", scores: "Scores") -> None:
    """Refuses to show the examples of one problem beside the scores of another."""
    own, theirs = problem.fingerprint(), scores.report.get("fingerprint") or {}
    for name in ("parameters", "data"):
        if name in theirs and theirs[name] != own[name]:
            raise Stale(
                found=f"The scores were made for {name} {theirs[name][:8]}..., this problem has "
                f"{own[name][:8]}....",
                why="The report would show the wrong pictures beside the numbers.",
                remedy="Pass the problem that the scores came from, or explain this one anew.",
            )
    if not np.isfinite(scores.values).all():
        broken = int((~np.isfinite(scores.values)).sum())
        raise NonFinite(
            found=f"{broken} of {scores.values.size} effects are NaN or infinite.",
            why="They have no place in a ranking.",
            remedy="Raise the damping, or look for examples with an infinite loss.",
        )


def _check_queries(queries: Sequence[int] | None, available: int) -> list[int]:
    positions = list(range(available)) if queries is None else [int(query) for query in queries]
    wrong = [position for position in positions if not 0 <= position < available]
    if wrong or not positions:
        what = f"query {wrong[0]}" if wrong else "no query at all"
        raise BadArgument(
            found=f"The report was asked for {what}; there are {available} queries.",
            why="Queries are counted from 0, in the order in which they were explained.",
            remedy=f"Ask for positions from 0 to {available - 1}, or leave queries out for all.",
        )
    return positions
