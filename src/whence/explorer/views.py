"""What each view of the explorer says, as plain JSON: the page draws it, programs read it.

Every view is a function of the session and of the parameters in its address.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from whence.core.scores import Scores
from whence.errors import BadArgument, WhenceError
from whence.explorer.catalog import Catalog, by_address
from whence.explorer.cleaning import writes_parquet
from whence.explorer.desk import DONE, OPEN, Desk, Question
from whence.explorer.listing import SORTS, Wanted, choices, whole
from whence.explorer.live import READY, Live
from whence.explorer.review import Review
from whence.numerics.lookup import Lookup
from whence.report.charts import pairs
from whence.report.story import trust
from whence.report.svg import thinned
from whence.sections import Scatter
from whence.store import fingerprint as fingerprint_of

Json = dict[str, Any]
Parameters = Mapping[str, str]

TOP, MOST_TOP = 6, 100
"""Proponents and opponents that a view of a query shows."""

CHANGED = 60
"""Queries that are shown of a change: those that change most."""

MOST_POINTS = 5000
"""Training examples of which the distance is told."""

MOST_NAMED = 1000
"""Training examples of a change that are named."""

MOST_MARKS = 1500
"""Pairs of predicted and actual effects that a view tells."""

NEAREST = 6
"""Nearest training examples that are named."""


@dataclass(frozen=True, eq=False)
class Session:
    """What one server shows.

    Args:
        catalog: the run.
        live: its problem, where it can be had.
        desk: questions about it.
        review: decisions on its labels.
        other: a second run of the same queries, to compare with.
    """

    catalog: Catalog
    live: Live
    desk: Desk
    review: Review
    other: Catalog | None = None

    @classmethod
    def open(
        cls, catalog: Catalog, load: "Callable[[], Any] | None", other: Catalog | None = None
    ) -> "Session":
        """A session over a run.

        Args:
            catalog: the run.
            load: gives its problem.
            other: a run to compare with.

        Raises:
            BadArgument: the other run has other queries or other training examples.
        """
        if other is not None:
            _check_alike(catalog, other)
        scores = catalog.scores
        fingerprint = scores.report.get("fingerprint") or {}
        made_for = fingerprint_of(dict(fingerprint), scores.query_ids, scores.train_ids)
        journal = catalog.run.journal
        return cls(
            catalog=catalog,
            live=Live(catalog, load),
            desk=Desk(journal / "answers", made_for),
            review=Review(
                journal / "decisions.jsonl", str(fingerprint.get("data")), catalog.album.answers
            ),
            other=other,
        )


def run(session: Session, parameters: Parameters) -> Json:
    """The run: its title, what was measured and how, how far to believe it, and its state."""
    del parameters
    catalog = session.catalog
    story = catalog.story
    return {
        "title": story["title"],
        "name": catalog.name,
        "created": story["created"],
        "whence": story["whence"],
        "problem": story["problem"],
        "measurement": catalog.measurement,
        "method": story["method"],
        "trust": checked(session)[1],
        "facts": story["facts"],
        "warnings": story["warnings"],
        "queries": len(catalog.rows),
        "examples": len(catalog.scores.train_ids),
        "live": session.live.to_json(),
        "other": None if session.other is None else session.other.name,
        "open_questions": sum(question.state in OPEN for question in session.desk.questions()),
    }


def queries(session: Session, parameters: Parameters) -> Json:
    """Queries, filtered and sorted, a page at a time."""
    wanted = Wanted.read(parameters)
    catalog = session.catalog
    chosen = wanted.choose(catalog.rows)
    return {
        "wanted": {
            "label": wanted.page.label,
            "says": wanted.says,
            "wrong": wanted.is_wrong,
            "q": wanted.page.words,
            "sort": wanted.page.sort,
        },
        "sorts": SORTS,
        **choices(catalog.rows),
        "count": len(chosen),
        "wrong": sum(row.is_wrong for row in catalog.rows),
        "page": wanted.page.number,
        "pages": wanted.page.count(len(chosen)),
        "queries": [catalog.summary(row.position) for row in chosen[wanted.page.lines]],
    }


def query(session: Session, parameters: Parameters) -> Json:
    """One query: what the model says, proponents and opponents, how its influence is spread."""
    position = query_position(session, parameters)
    top = whole(parameters, "top", TOP, least=1, most=MOST_TOP)
    told = session.catalog.query(position, top=top)
    return {
        "query": _completed(session, told),
        "top": top,
        "more": min(MOST_TOP, 4 * top) if top < MOST_TOP else None,
        "previous": position - 1 if position else None,
        "next": position + 1 if position + 1 < len(session.catalog.rows) else None,
        "labels": list(session.catalog.album.answers),
    }


def distances(session: Session, parameters: Parameters) -> Json:
    """Influence on one query against the distance of the training examples' inputs."""
    from whence.numerics import stats  # the first view does not wait for scipy

    position = query_position(session, parameters)
    summary = session.catalog.summary(position)
    told: Json = {"query": summary, "block": None, "correlation": None, "error": None}
    if session.live.state != READY:
        return told | {"error": "The model and its data are needed for distances."}
    try:
        measured = session.live.distances(position)
    except WhenceError as error:
        return told | {"error": f"{error.found} {error.why}"}
    effects = np.asarray(session.catalog.scores.values[position])
    near = np.argsort(measured, kind="stable")[:NEAREST]
    return told | {
        "block": _against_distance(session.catalog, position, measured).to_json(),
        "correlation": float(stats.spearman(np.abs(effects), measured)),
        "nearest": [
            session.catalog.example(int(i)) | {"effect": float(effects[i]), "actual": None}
            for i in near
        ],
    }


def example(session: Session, parameters: Parameters) -> Json:
    """One training example, and the queries that it moves most."""
    count = len(session.catalog.scores.train_ids)
    position = example_position(session, parameters)
    told = session.catalog.example(position)
    decision = session.review.decisions().get(told["id"])
    return {
        "example": looked_up(session, told),
        "queries": session.catalog.strongest_queries(position),
        "previous": position - 1 if position else None,
        "next": position + 1 if position + 1 < count else None,
        "decision": None if decision is None else decision.to_json(),
        "labels": list(session.catalog.album.answers),
    }


def verification(session: Session, parameters: Parameters) -> Json:
    """What retraining said of the effects, and how the numbers were made."""
    del parameters
    found, how_far = checked(session)
    asked = [one for one in session.desk.questions() if one.kind == "verification"]
    running = next((one for one in asked if one.state in OPEN), None)
    return {
        "verification": None if found is None else few_points(found),
        "trust": how_far,
        "question": None if running is None else without_answer(running),
    }


def findings(session: Session, parameters: Parameters) -> Json:
    """What other commands have found and added to this run."""
    del parameters
    return {"sections": list(session.catalog.story.get("sections", ()))}


def questions(session: Session, parameters: Parameters) -> Json:
    """Every question that was asked of this run, the newest first."""
    del parameters
    asked = session.desk.questions()
    return {"questions": [without_answer(question) for question in asked[:200]]}


def question(session: Session, parameters: Parameters) -> Json:
    """One question, how far it is, and its answer."""
    found = session.desk.find(parameters["id"])
    if found is None:
        raise HTTPException(404, f"There is no question {parameters['id'][:20]}.")
    told = _bounded(found)
    told["words"] = words_of(session, found)
    told["is_ending"] = session.desk.is_ending(found)
    if found.kind == "change":
        told["changed"] = _changed_examples(session, found)
        told["effects"] = _most_changed(session, found) if found.state == DONE else []
    if found.kind in ("pixels", "tokens", "schools"):
        told["query"] = session.catalog.summary(found.asked["query"])
    return told


def review(session: Session, parameters: Parameters) -> Json:
    """Suspects in order, one of them large, and what was decided so far."""
    found = latest_suspects(session)
    decisions = session.review.decisions()
    told: Json = {
        "question": None if found is None else without_answer(found),
        "decided": len(decisions),
        "actions": _counted([decision.action for decision in decisions.values()]),
        "labels": list(session.catalog.album.answers),
        "writes_parquet": writes_parquet(),
        "suspect": None,
    }
    if found is None or found.state != DONE or found.answer is None:
        return told
    suspects = found.answer["suspects"]
    told |= {name: found.answer[name] for name in ("by", "reason", "unit", "sentence")}
    undecided = [i for i, one in enumerate(suspects) if one["id"] not in decisions]
    first = undecided[0] if undecided else 0
    at = whole(parameters, "at", first, most=len(suspects) - 1)
    left = [i for i in undecided if i > at] or [i for i in undecided if i != at]
    return told | {
        "at": at,
        "count": len(suspects),
        "left": len(undecided),
        "after": left[0] if left else min(at + 1, len(suspects) - 1),
        "suspect": _suspect(session, suspects[at], decisions),
    }


def decisions(session: Session, parameters: Parameters) -> Json:
    """Every decision that counts, the latest last."""
    del parameters
    made = session.review.decisions().values()
    return {"decisions": [decision.to_json() for decision in made]}


def comparison(session: Session, parameters: Parameters) -> Json:
    """The same query in two runs, side by side."""
    if session.other is None:
        raise BadArgument(
            found="Only one run is open.",
            why="It is compared with a second one.",
            remedy="Start with two: whence explore runs/a runs/b.",
        )
    position = query_position(session, parameters)
    top = whole(parameters, "top", TOP, least=1, most=MOST_TOP)
    catalogs = (session.catalog, session.other)
    told = [_beside(catalog, session.catalog, position, top) for catalog in catalogs]
    _mark_shared(*(one["query"] for one in told))
    return {
        "query": session.catalog.summary(position),
        "previous": position - 1 if position else None,
        "next": position + 1 if position + 1 < len(session.catalog.rows) else None,
        "runs": told,
        "top": top,
        **_agreement(session.catalog.scores, session.other.scores, position, top),
    }


# ------------------------------------------------------------------------ parts of views


def query_position(session: Session, parameters: Parameters) -> int:
    """The query that an address names.

    Raises:
        HTTPException: there is none of this position.
    """
    return _position(parameters, len(session.catalog.rows), "query")


def example_position(session: Session, parameters: Parameters) -> int:
    """The training example that an address names.

    Raises:
        HTTPException: there is none of this position.
    """
    return _position(parameters, len(session.catalog.scores.train_ids), "training example")


def checked(session: Session) -> tuple[Json | None, Json]:
    """What retraining said, in the run or asked for since, and how far to believe the effects."""
    story = session.catalog.story
    asked = (q for q in session.desk.questions() if q.kind == "verification" and q.state == DONE)
    latest = next(asked, None)
    if latest is None or latest.answer is None:
        return story["verification"], story["trust"]
    return latest.answer, trust(latest.answer, is_calibrated=session.catalog.scores.is_calibrated)


def few_points(checked: Json) -> Json:
    """A verification with as many of its points as a view shows, and how many there are."""
    points = checked.get("points", ())
    return checked | {
        "points": list(thinned(points, MOST_MARKS)),
        "points_total": pairs({"points": points, **checked}),
    }


def latest_suspects(session: Session) -> Question | None:
    """The last question for suspects that has an answer, or is being answered."""
    asked = [one for one in session.desk.questions() if one.kind == "suspects"]
    return next((one for one in asked if one.state == DONE), asked[0] if asked else None)


def words_of(session: Session, found: Question) -> str:
    """A question in words, such as 'Without 3 training examples'."""
    asked, ids = found.asked, session.catalog.scores.train_ids
    if found.kind == "change":
        gone, new = asked["remove"], asked["relabel"]
        parts = [f"without {_named(ids, gone)}"] if gone else []
        if new:
            labels = sorted(set(new.values()))
            told = f"labelled {labels[0]}" if len(labels) == 1 else "with new labels"
            parts.append(f"with {_named(ids, [int(column) for column in new])} {told}")
        sentence = " and ".join(parts)
        return sentence[:1].upper() + sentence[1:]
    if found.kind == "suspects":
        return "Labels worth a second look"
    if found.kind == "verification":
        return f"Checked by leaving out {asked['examples']} training examples, one at a time"
    query_id = session.catalog.rows[asked["query"]].id
    if found.kind == "pixels":
        return f"What in training example {ids[asked['example']]} moves query {query_id}"
    if found.kind == "tokens":
        return f"Tokens of training example {ids[asked['example']]} for query {query_id}"
    return f"What in query {query_id} mattered to the model"


def _against_distance(catalog: Catalog, position: int, measured: np.ndarray) -> Scatter:
    """Effects on a query against (N,) distances, of at most `MOST_POINTS` training examples."""
    scores, summary = catalog.scores, catalog.summary(position)
    effects = np.asarray(scores.values[position])
    step = -(-len(effects) // MOST_POINTS)
    ids, label = scores.train_ids, summary["label"] or summary["answer"]
    points = [
        {
            "x": float(measured[i]),
            "y": float(effects[i]),
            "group": "same label" if catalog.album.labels[i] == label else "other label",
            "words": f"example {ids[i]}",
        }
        for i in np.argsort(-np.abs(effects), kind="stable")[::step].tolist()
    ]
    each = "a training example" if step == 1 else f"for every {step} examples of like effects"
    return Scatter(
        points,
        x="distance of the raw inputs",
        y=f"effect ({scores.unit})",
        caption=f"One mark {each}.",
    )


def _completed(session: Session, told: Json) -> Json:
    """Pictures of training examples that the run has not kept come from the problem."""
    for side in ("proponents", "opponents"):
        told[side] = [_with_tokens(session, looked_up(session, one), told) for one in told[side]]
    return told


def _with_tokens(session: Session, told: Json, query: Json) -> Json:
    """A training text with the address of its tokens, where they can be told apart."""
    is_text = told["display"]["kind"] == "text"
    if not is_text or session.live.state != READY or not session.live.has_tokens:
        return told
    asked = {"kind": "tokens", "query": query["position"], "example": told["position"]}
    return told | {
        "tokens": f"/queries/{query['position']}/tokens/{told['position']}",
        "ask_tokens": asked,
    }


def looked_up(session: Session, told: Json) -> Json:
    """A training example whose looks the run has not kept, as the problem shows it."""
    position = told["position"]
    if session.catalog.is_kept(position) or session.live.state != READY:
        return told
    display = session.live.display(position)
    return told | {"display": by_address(display, f"/examples/{position}")}


def without_answer(found: Question) -> Json:
    """A question and how far it is, as plain JSON."""
    told = _bounded(found)
    del told["answer"]
    return told


def _bounded(found: Question) -> Json:
    """A question as plain JSON, of whose training examples the first are named, and all counted."""
    told = {**vars(found), "href": f"/questions/{found.id}"}  # no copy of what it names
    if found.kind == "change":
        asked = found.asked
        told["changes"] = len(asked["remove"]) + len(asked["relabel"])
        relabel = dict(list(asked["relabel"].items())[:MOST_NAMED])
        told["asked"] = asked | {"remove": asked["remove"][:MOST_NAMED], "relabel": relabel}
    if found.kind == "verification" and found.answer is not None:
        told["answer"] = few_points(found.answer)
    if found.kind == "change" and found.answer is not None:
        named = found.answer["train_ids"][:MOST_NAMED]
        told["answer"] = found.answer | {"train_ids": named}
    return told


def _changed_examples(session: Session, found: Question) -> list[Json]:
    """The first changed training examples, with their new labels."""
    shown = [(column, None) for column in found.asked["remove"]]
    shown += [(int(column), label) for column, label in found.asked["relabel"].items()]
    return [
        looked_up(session, session.catalog.example(column)) | {"new_label": label}
        for column, label in shown[:12]
    ]


def _most_changed(session: Session, found: Question) -> list[Json]:
    """Queries whose answer or measurement changes most."""
    rows = (found.answer or {}).get("queries", [])

    def size(position: int) -> tuple[bool, float]:
        row = rows[position]
        told = row["predicted"] if row["actual"] is None else row["actual"]
        return _is_flipped(row), abs(told or 0.0)

    order = sorted(range(len(rows)), key=size, reverse=True)[:CHANGED]
    return [
        session.catalog.summary(position)
        | rows[position]
        | {"flipped": _is_flipped(rows[position])}
        for position in order
    ]


def _is_flipped(row: Json) -> bool:
    return row["answer_after"] is not None and row["answer_after"] != row["answer"]


def _suspect(session: Session, suspect: Json, decisions: Mapping[Any, Any]) -> Json:
    decision = decisions.get(suspect["id"])
    shown = looked_up(session, session.catalog.example(suspect["position"]))
    return shown | suspect | {"decision": None if decision is None else decision.to_json()}


def _beside(catalog: Catalog, shown: Catalog, position: int, top: int) -> Json:
    told = catalog.query(position, top=top)
    for side in ("proponents", "opponents"):
        for entry in told[side]:  # pictures come from the run that is served
            column = shown.scores.position(entry["id"])
            entry |= shown.example(column)
    return {
        "name": catalog.name,
        "method": catalog.story["method"],
        "measurement": catalog.measurement,
        "trust": catalog.story["trust"],
        "query": told,
    }


def _mark_shared(first: Json, second: Json) -> None:
    """Tells of every training example whether both runs show it on the same side."""
    for side in ("proponents", "opponents"):
        shown = [{entry["id"] for entry in query[side]} for query in (first, second)]
        for entry in first[side] + second[side]:
            entry["is_shared"] = entry["id"] in shown[0] & shown[1]


def _agreement(first: Scores, second: Scores, position: int, top: int) -> Json:
    """How far two runs agree on how much every training example helps a query."""
    from whence.numerics import stats

    helps = [_helps(scores, position) for scores in (first, second)]
    helps[1] = helps[1][Lookup(second.train_ids).places(first.train_ids)]
    tops = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in helps]
    return {
        "spearman": float(stats.spearman(helps[0], helps[1])),
        "shared": len(tops[0] & tops[1]),
    }


def _helps(scores: Scores, position: int) -> np.ndarray:
    sign = -1.0 if scores.measurement.higher_is_better else 1.0
    return sign * np.asarray(scores.values[position])


def _check_alike(first: Catalog, second: Catalog) -> None:
    for what in ("query_ids", "train_ids"):
        ours, theirs = (getattr(catalog.scores, what) for catalog in (first, second))
        is_same = np.array_equal(ours, theirs)
        if not is_same and what == "train_ids":  # in another order
            is_same = set(ours.tolist()) == set(theirs.tolist())
        if not is_same:
            noun = "queries" if what == "query_ids" else "training examples"
            raise BadArgument(
                found=f"The runs {first.name} and {second.name} have other {noun}.",
                why="Two runs are compared on the same queries and the same training data.",
                remedy="Explain the same queries with both, under the same ids.",
            )


def _counted(names: list[str]) -> Json:
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _named(ids: np.ndarray, columns: list[int]) -> str:
    if len(columns) == 1:
        return f"training example {ids[columns[0]]}"
    return f"{len(columns):,} training examples"


def _position(parameters: Parameters, count: int, noun: str) -> int:
    given = parameters["position"]
    position = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else count
    if position >= count:
        words = f"There is no {noun} at the position {given[:20]}; there are {count:,}, from 0 on."
        raise HTTPException(404, words)
    return position
