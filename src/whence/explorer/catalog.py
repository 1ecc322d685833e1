"""A run that is open for readers: its queries, its training examples, and the effects between them.

Effects and displays stay in their files; what a view shows of them is read when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whence.core.scores import Scores
from whence.errors import WrongVersion
from whence.report.album import NOT_KEPT, Album
from whence.report.queries import tell_measurement, tell_query
from whence.report.runs import ALBUM, SCORES, STORY, open_run
from whence.report.sentences import predicts_number
from whence.report.texts import for_page
from whence.store import Run
from whence.version import __version__

Json = dict[str, Any]

STRONGEST = 12
"""Queries that are shown of a training example."""


@dataclass(frozen=True)
class Row:
    """What a list shows and knows of one query.

    Args:
        position: 0 to Q - 1.
        id: of the query.
        label: in words; None where the user gave none.
        answer: what the model says, in words; None where outputs have no known meaning.
        confidence: that it has in its answer, where it has one.
        is_wrong: whether a class was given that differs from the label.
        value: of the measurement.
        loss: with the model as trained; NaN where it is not known.
        words: what a search looks at: the text or row as it is shown, else nothing.
        display: how it looks, pictures by their address.
    """

    position: int
    id: int | str
    label: str | None
    answer: str | None
    confidence: float | None
    is_wrong: bool
    value: float
    loss: float
    words: str
    display: Json


@dataclass(frozen=True, eq=False)
class Catalog:
    """One run.

    Args:
        run: its folder and files.
        scores: effects, left in their file.
        album: how examples look.
        story: title, facts, verification, warnings and findings, without the queries.
    """

    run: Run
    scores: Scores
    album: Album
    story: Json

    @classmethod
    def open(cls, folder: str | Path) -> "Catalog":
        """The run in a folder.

        Raises:
            NotARun: no complete run of an explanation.
            WrongVersion: a run, or a part of one, in a format that this version does not read.
            StoreError: damaged or unreadable files.
        """
        run = open_run(folder)
        if ALBUM not in run.files:
            raise WrongVersion(
                found=f"The run {folder} was made by whence {run.whence}, and has no {ALBUM}.",
                why=f"The explorer of whence {__version__} shows queries and examples from it.",
                remedy="Make the run anew: whence explain ... --out FOLDER.",
            )
        story = for_page(run.read_json(STORY))
        story.pop("queries", None)
        scores, album = Scores.open(run.path(SCORES)), Album.open(run.path(ALBUM))
        return cls(run, scores, album, story)

    @property
    def name(self) -> str:
        """What the run is called: its folder."""
        return self.run.folder.resolve().name

    @cached_property
    def measurement(self) -> Json:
        """What was measured, in which unit."""
        return tell_measurement(self.scores)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All queries, in their order."""
        return tuple(self._row(position) for position in range(len(self.scores.query_ids)))

    def query(self, position: int, *, top: int) -> Json:
        """Everything about one query, with its strongest training examples.

        Args:
            position: 0 to Q - 1.
            top: proponents and opponents.
        """
        told = for_page(tell_query(self.scores, self.album, position, top=top))
        told["id"] = self.scores.query_ids[position].item()
        told["display"] = by_address(told["display"], f"/queries/{position}")
        for side in ("proponents", "opponents"):
            told[side] = [self._told(entry, told["id"]) for entry in told[side]]
        return told

    def example(self, position: int) -> Json:
        """One training example: how it looks, and its label.

        Args:
            position: of its column in the scores, 0 to N - 1.
        """
        shown = for_page(self.album.example(position))
        return {
            "id": self.scores.train_ids[position].item(),
            "position": position,
            "label": shown["label"],
            "display": by_address(shown["display"], f"/examples/{position}"),
            "href": f"/examples/{position}",
        }

    def strongest_queries(self, position: int) -> list[Json]:
        """The queries on which a training example has the largest effects.

        Args:
            position: of the training example.
        """
        effects = np.asarray(self.scores.values[:, position])
        order = np.argsort(-np.abs(effects), kind="stable")[:STRONGEST]
        return [self.summary(int(q)) | {"effect": float(effects[q])} for q in order]

    def summary(self, position: int) -> Json:
        """A query as lists show it."""
        row = self.rows[position]
        return {
            "id": row.id,
            "position": position,
            "label": row.label,
            "answer": row.answer,
            "confidence": row.confidence,
            "is_wrong": row.is_wrong,
            "value": row.value,
            "loss": None if np.isnan(row.loss) else row.loss,
            "display": row.display,
            "href": f"/queries/{position}",
        }

    def display(self, kind: str, position: int) -> Json:
        """How a query or a training example looks, as the run has kept it.

        Args:
            kind: "queries" or "examples".
            position: in the scores.
        """
        shown = self.album.query if kind == "queries" else self.album.example
        return shown(position)["display"]

    def is_kept(self, position: int) -> bool:
        """Whether the run knows how a training example looks."""
        return self.album.example(position)["display"] != NOT_KEPT

    @cached_property
    def actual(self) -> dict[tuple[Any, Any], float]:
        """Effects after retraining by the ids of query and example, where they were measured."""
        checked = self.story.get("verification") or {}
        if checked.get("kind") != "leave-one-out":
            return {}
        points = checked.get("points", ())
        known = [point for point in points if point["actual"] is not None]
        return {(point["query"], point["example"]): point["actual"] for point in known}

    def _told(self, entry: Mapping[str, Any], query: Any) -> Json:
        """A training example beside its effect on a query."""
        position = self.scores.position(entry["id"])
        actual = self.actual.get((query, entry["id"]))
        return self.example(position) | {"effect": entry["effect"], "actual": actual}

    def _row(self, position: int) -> Row:
        shown = for_page(self.album.query(position))
        prediction, label = shown["prediction"], shown["label"] if shown["is_labelled"] else None
        answer = prediction["label"]
        is_class = not predicts_number(prediction)
        return Row(
            position=position,
            id=self.scores.query_ids[position].item(),
            label=label,
            answer=answer,
            confidence=prediction["confidence"],
            is_wrong=is_class and None not in (label, answer) and label != answer,
            value=float(self.scores.baseline[position]),
            loss=float(self.album.losses[position]),
            words=words_in(shown["display"]),
            display=by_address(shown["display"], f"/queries/{position}"),
        )


def by_address(display: Mapping[str, Any], address: str) -> Json:
    """A display whose picture and sound are fetched when they are wanted.

    Args:
        display: of a query or a training example.
        address: of that.
    """
    told = {name: value for name, value in display.items() if name not in ("png", "wav")}
    told |= {"src": f"{address}/picture.png"} if "png" in display else {}
    return told | ({"sound": f"{address}/sound.wav"} if "wav" in display else {})


def words_in(display: Mapping[str, Any]) -> str:
    """What a search looks at: a text or a row as it is shown, else nothing."""
    if display["kind"] == "row":
        return " ".join(f"{name} {value}" for name, value in display["cells"])
    return str(display.get("text", ""))
