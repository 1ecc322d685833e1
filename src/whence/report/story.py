"""Scores, what retraining said of them, and what uses have found, as one plain JSON story.

The saved report and the explorer show the same story, so everything a reader sees stands in it:
pictures, numbers with their units, and the sentences around them.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from whence.errors import BadArgument
from whence.report.facts import choose_facts
from whence.report.queries import AtHand, tell_measurement, tell_query
from whence.report.sentences import answer, count
from whence.report.sounds import Room
from whence.sections import Section
from whence.store.jsonable import as_json, json_text
from whence.version import __version__

if TYPE_CHECKING:  # a story is read and shown on machines without torch
    from whence.core.problem import Problem
    from whence.core.scores import Scores
    from whence.uses.base import Result
    from whence.verification import Verification

    Told = Result | Section | Mapping[str, Any]
    """What becomes a section: what a use returned, a section, or one that has been told already."""

Json = dict[str, Any]

FORMAT, VERSION = "whence-story", 2
"""Version 2 has sections, and may have nothing else: readers of version 1 would not show them."""

READ = (1, 2)
"""Versions that are shown; one without sections is shown as it always was."""

MOST_POINTS = 20_000
"""Pairs of predicted and actual effects that a story holds; of more it is a random sample."""

_LEVELS = {"good": 0.8, "fair": 0.4}
"""The least correlation between predicted and actual effects."""


def tell(
    problem: "Problem",
    scores: "Scores",
    *,
    verification: "Verification | None" = None,
    queries: Sequence[int] | None = None,
    top: int = 6,
    title: str | None = None,
    sections: "Sequence[Told]" = (),
) -> Json:
    """The story of some scores.

    Args:
        problem: what was explained; shows the examples.
        scores: (Q, N) effects.
        verification: what retraining said of these scores; default the verdict in their report.
        queries: positions (0 to Q - 1) of the queries to tell of, default all.
        top: how many proponents and opponents of each query are shown.
        title: of the page.
        sections: what `remove`, `perturb` and the other uses returned, shown below the queries.

    Returns:
        Strict JSON: no NaN, no infinity, no types of numpy.

    Raises:
        Stale: the scores belong to another model or to other data.
        BadArgument: a query that does not exist, no query at all, `top` below one, or a section
            that is none.
    """
    scores.refuse_other(
        problem.fingerprint(),
        why="The report would show the wrong pictures beside the numbers.",
    )
    positions = _check_queries(queries, len(scores.query_ids))
    shown = AtHand(problem, scores)
    report = scores.report
    checked = _checked(scores) if verification is None else verification.to_json(MOST_POINTS)
    story: Json = {
        **_opening(title or _title(problem, len(positions))),
        "problem": problem.facts(),
        "measurement": tell_measurement(scores),
        "method": {
            "name": report.get("method"),
            "reason": report.get("reason"),
            "removal": report.get("removal"),
            "curvature": report.get("curvature"),
        },
        "facts": choose_facts(report),
        "queries": [tell_query(scores, shown, position, top=top) for position in positions],
        "verification": checked,
        "trust": trust(checked, is_calibrated=scores.is_calibrated),
        "warnings": list(report.get("warnings") or []),
    }
    return with_sections(_strict(story | {"answer": answer(story)}), sections)


def tell_sections(
    sections: "Sequence[Told]", *, problems: "Sequence[Problem]" = (), title: str | None = None
) -> Json:
    """A story without scores: of one use, or of several.

    Args:
        sections: what `remove`, `perturb` and the other uses returned; at least one.
        problems: what they were asked about, named at the end of the page.
        title: of the page; by default that of the section, or how many there are.

    Returns:
        Strict JSON: no NaN, no infinity, no types of numpy.

    Raises:
        BadArgument: no section at all, or one that is none.
    """
    told = [_section(section) for section in sections]
    if not told:
        raise BadArgument(
            found="No section was given.",
            why="A page without scores shows nothing else.",
            remedy="Give what whence.remove or another use returned.",
        )
    return _strict(
        {
            **_opening(title or _title_of(told, problems)),
            "problems": [problem.facts() for problem in problems],
            "queries": [],
            "verification": None,
            "warnings": [],
            "sections": told,
        }
    )


def with_sections(story: Mapping[str, Any], sections: "Sequence[Told]") -> Json:
    """A copy of a story with more sections at its end; one that it has already is not repeated.

    Raises:
        BadArgument: a section that is none.
    """
    told: list[Json] = list(story.get("sections", ()))
    for section in sections:
        new = _strict(_section(section))
        told += [] if new in told else [new]
    return {**story, "version": VERSION, "sections": told}


def trust(verification: Mapping[str, Any] | None, *, is_calibrated: bool = True) -> Json:
    """How far to believe the effects: {"level", "title", "sentence"}.

    Args:
        verification: block of a story.
        is_calibrated: False where only the order of the effects was predicted.

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
        "level": _level(verification, "pearson" if is_calibrated else "spearman"),
        "title": verification["verdict"],
        "sentence": verification["sentence"],
    }


def _checked(scores: "Scores") -> Json | None:
    """The verdict that scores carry from `explain(..., verify=n)`, without its points."""
    verdict = scores.report.get("verification")
    return None if verdict is None else {**verdict, "points": [], "queries": []}


def _opening(title: str) -> Json:
    """What every story begins with."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "whence": __version__,
    }


def _section(told: object) -> Json:
    """The plain JSON of a section, however it was given."""
    if isinstance(told, Mapping):
        return dict(told)
    if hasattr(told, "section"):  # what a use returned; its class is not loaded without torch
        told = cast("Result", told).section()
    if isinstance(told, Section):
        return told.to_json()
    raise BadArgument(
        found=f"A section is of type {type(told).__name__}.",
        why="A report shows what the uses of whence return.",
        remedy="Give the result of whence.remove(...) or of another use, or a Section.",
    )


def _strict(value: Json) -> Json:
    return Room().fit(json.loads(json_text(as_json(value, "the story"))))


def _title(problem: "Problem", queries: int) -> str:
    name = problem.facts()["name"]
    return f"{name}: the training data behind {count(queries, 'prediction')}"


def _title_of(sections: Sequence[Json], problems: "Sequence[Problem]") -> str:
    if len(sections) == 1:
        return sections[0]["title"]
    names = ", ".join(dict.fromkeys(problem.facts()["name"] for problem in problems))
    findings = count(len(sections), "finding")
    return f"{names}: {findings}" if names else findings


def _level(verification: Mapping[str, Any], correlation: str) -> str:
    reached = verification.get(correlation)
    if reached is None:
        return "poor"
    return next((level for level, least in _LEVELS.items() if reached >= least), "poor")


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
