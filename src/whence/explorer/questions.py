"""What can be asked of a run whose problem is at hand, and how it is answered.

change     some training examples are left out or get other labels: what becomes of the queries?
suspects   which labels are worth a second look?
pixels     which parts of a training example move a query?
tokens     which tokens of a training text carry its effect on a query?
schools    what do explanations say that look at the input only?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from whence.errors import BadArgument, unknown_name
from whence.explorer.listing import whole
from whence.explorer.live import Live
from whence.report.story import MOST_POINTS
from whence.report.texts import for_page

if TYPE_CHECKING:  # the first view does not wait for torch
    from whence.uses.mislabels import Mislabels
    from whence.uses.whatif import Outcome

Json = dict[str, Any]
Work = Callable[[], Json]

MOST_SUSPECTS = 2000
"""Suspects that are listed: more than anybody looks through at once."""


EXAMPLES, MOST_EXAMPLES = 30, 500
"""Training examples that a check leaves out, unless it is told how many."""

WAYS = ("auto", "loss", "input")
"""How a text is taken apart."""


@dataclass(frozen=True)
class Prepared:
    """A question that makes sense.

    Args:
        kind: of the question.
        asked: what it asks, as plain JSON: asked again it gives the same question.
        work: gives the answer.
        is_kept: whether an answer that is there already is given again.
    """

    kind: str
    asked: Json
    work: Work
    is_kept: bool = False


def prepare(live: Live, body: Mapping[str, Any]) -> Prepared:
    """The question in the body of a request.

    Args:
        live: the problem.
        body: {"kind": ...} with what belongs to this kind.

    Raises:
        UnknownName: no such kind.
        BadArgument: examples, labels or queries that do not exist.
        WhenceError: the problem is not at hand.
    """
    kind = str(body.get("kind"))
    if kind not in _KINDS:
        raise unknown_name("question", kind[:40], _KINDS)
    if live.state != "loading":
        _ = live.problem  # says at once why there is none
    return _KINDS[kind](live, body)


# ------------------------------------------------------------------------- changes


def _change(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{"remove": [column, ...], "relabel": {column: label}, "retrain": bool}.

    In the place of "remove", "side_of": ["opponents", query] takes all of them.
    """
    removed = _columns(live, body.get("remove", ()))
    relabelled = _new_labels(live, body.get("relabel", {}))
    if body.get("side_of"):
        removed = _side(live, body["side_of"])
    if not removed and not relabelled:
        raise BadArgument(
            found="No training example was chosen.",
            why="Without a change of the data nothing changes.",
            remedy="Tick training examples beside a query first.",
        )
    asked = {
        "remove": removed,
        "relabel": {str(column): label for column, label in relabelled.items()},
        "retrain": bool(body.get("retrain", False)),
    }
    return Prepared("change", asked, lambda: answer_change(live, asked))


def answer_change(live: Live, asked: Mapping[str, Any]) -> Json:
    """What becomes of every query, predicted and, where that was asked for, trained again."""
    from whence.uses.whatif import revise

    scores = live.catalog.scores
    ids = scores.train_ids
    outcome = revise(
        live.problem,
        live.queries(),
        remove=ids[asked["remove"]].tolist(),
        relabel={ids[int(column)].item(): label for column, label in asked["relabel"].items()},
        retrain=asked["retrain"],
        measurement=scores.measurement.name,
        method=live.responding,
    )
    return for_page(outcome.to_json()) | {"score": _score(live, outcome)}


def _score(live: Live, outcome: "Outcome") -> Json | None:
    """How many labelled queries the model answers rightly, before and after retraining."""
    rows = live.catalog.rows
    judged = [row for row in rows if row.label is not None and row.answer is not None]
    if not judged or outcome.answers_after is None or not live.catalog.album.answers:
        return None
    return {
        "queries": len(judged),
        "right_before": sum(outcome.answers[row.position] == row.label for row in judged),
        "right_after": sum(outcome.answers_after[row.position] == row.label for row in judged),
    }


# ------------------------------------------------------------------------ other questions


def _suspects(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{} or {"by": ranking}."""
    asked = {"by": str(body.get("by", "auto"))}
    return Prepared("suspects", asked, lambda: _answer_suspects(live, asked["by"]))


def _answer_suspects(live: Live, by: str) -> Json:
    from whence.uses.mislabels import find_mislabels

    found = find_mislabels(live.problem, by=by)
    suspects = [_suspect(live, suspect) for suspect in found.suspects(MOST_SUSPECTS)]
    return for_page(_told(found) | {"suspects": suspects})


def _told(found: "Mislabels") -> Json:
    return {
        "by": found.by,
        "reason": found.reason,
        "unit": found.units[found.by],
        "sentence": found.section().sentence,
        "warnings": list(found.warnings),
    }


def _suspect(live: Live, suspect: Any) -> Json:
    return {
        "position": live.catalog.scores.position(suspect.id),
        "id": suspect.id,
        "given": suspect.given,
        "answer": suspect.answer,
        "probability": suspect.probability,
        "suspicion": suspect.suspicion,
    }


def _verification(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{"examples": how many retrainings there are}; see `whence.verification.verify_some`."""
    asked = {"examples": whole(body, "examples", EXAMPLES, least=2, most=MOST_EXAMPLES)}

    def work() -> Json:
        from whence.verification import verify_some

        found = verify_some(live.problem, live.catalog.scores, asked["examples"])
        return for_page(found.to_json(MOST_POINTS))

    return Prepared("verification", asked, work)


def _pixels(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{"query": position, "example": column}."""
    asked = {"query": _query(live, body), "example": _columns(live, [body.get("example")])[0]}

    def work() -> Json:
        from whence.uses.perturbation import perturb

        found = perturb(
            live.problem,
            live.queries(asked["query"]),
            example=live.catalog.scores.train_ids[asked["example"]].item(),
            measurement=live.catalog.scores.measurement.name,
            method=live.solving,
        )
        return {"section": for_page(found.section().to_json())}

    return Prepared("pixels", asked, work)


def _tokens(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{"query": position, "example": column} or, in addition, {"by": "loss" or "input"}."""
    asked: Json = {
        "query": _query(live, body),
        "example": _columns(live, [body.get("example")])[0],
        "by": str(body.get("by", "auto")),
    }
    if asked["by"] not in WAYS:
        raise unknown_name("decomposition", asked["by"][:40], WAYS)

    def work() -> Json:
        from whence.uses.tokens import token_effects

        found = token_effects(
            live.problem,
            live.queries(asked["query"]),
            example=live.catalog.scores.train_ids[asked["example"]].item(),
            by=asked["by"],
            measurement=live.catalog.scores.measurement.name,
            method=live.solving,
        )
        return {"by": found.by, "section": for_page(found.section().to_json())}

    return Prepared("tokens", asked, work, is_kept=True)


def _schools(live: Live, body: Mapping[str, Any]) -> Prepared:
    """{"query": position}."""
    asked = {"query": _query(live, body)}

    def work() -> Json:
        from whence.uses.schools import other_schools

        name = live.catalog.scores.measurement.name
        found = other_schools(live.problem, live.queries(asked["query"]), measurement=name)
        return {"section": for_page(found.section().to_json())}

    return Prepared("schools", asked, work)


_KINDS: dict[str, Callable[[Live, Mapping[str, Any]], Prepared]] = {
    "change": _change,
    "verification": _verification,
    "suspects": _suspects,
    "pixels": _pixels,
    "tokens": _tokens,
    "schools": _schools,
}


# ------------------------------------------------------------------------ reading bodies


def _columns(live: Live, given: object) -> list[int]:
    """Columns of training examples, each once.

    Raises:
        BadArgument: something else than a list of columns that exist.
    """
    count = len(live.catalog.scores.train_ids)
    columns = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
    if columns is None or not all(_is_position(column, count) for column in columns):
        raise BadArgument(
            found=f"Training examples {str(given)[:60]}.",
            why=f"They are named by their position, a whole number from 0 to {count - 1:,}.",
            remedy="Give a list of such numbers.",
        )
    return list(dict.fromkeys(cast("list[int]", columns)))


def _new_labels(live: Live, given: object) -> dict[int, str]:
    if not isinstance(given, Mapping):
        raise BadArgument(
            found=f"New labels {str(given)[:60]}.",
            why="Every training example that is relabelled needs its new label.",
            remedy='Give {"position": "label"}.',
        )
    named = cast("Mapping[str, Any]", given)
    keys = [int(name) if str(name).isdigit() else name for name in named]
    labels = dict(zip(_columns(live, keys), map(str, named.values()), strict=False))
    known = live.catalog.album.answers
    for label in labels.values():
        if known and label not in known:
            raise unknown_name("label", label, known)
    return labels


def _side(live: Live, given: object) -> list[int]:
    """All proponents or all opponents of a query."""
    parts = cast("list[Any]", given) if isinstance(given, list) else []
    if len(parts) != 2 or parts[0] not in ("proponents", "opponents"):
        raise BadArgument(
            found=f"side_of={str(given)[:60]}.",
            why="A side is all that help a query, or all that hurt it.",
            remedy='Give ["opponents", position of the query].',
        )
    position = _query(live, {"query": parts[1]})
    scores = live.catalog.scores
    helps = -1 if scores.measurement.higher_is_better else 1
    sign = helps if parts[0] == "proponents" else -helps
    return np.flatnonzero(sign * np.asarray(scores.values[position]) > 0).tolist()


def _query(live: Live, body: Mapping[str, Any]) -> int:
    position, count = body.get("query"), len(live.catalog.scores.query_ids)
    if not _is_position(position, count):
        raise BadArgument(
            found=f"Query {str(position)[:40]}.",
            why=f"Queries are named by their position, 0 to {count - 1:,}.",
            remedy="Give such a number.",
        )
    return cast("int", position)


def _is_position(given: object, count: int) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given < count
