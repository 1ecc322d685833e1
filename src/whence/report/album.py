"""What a run keeps of its examples, so that they can be shown without the model and its data.

Labels are kept of all training examples; how they look, of those that matter most to any query, as
many as the limits allow.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.scores import Scores
from whence.errors import StoreError
from whence.report.queries import AtHand
from whence.report.sounds import Room
from whence.store import write_atomically
from whence.store.archives import DAMAGE, read_archive
from whence.store.files import cannot_read
from whence.store.jsonable import json_text
from whence.store.records import Records
from whence.version import __version__

if TYPE_CHECKING:  # an album is read without torch
    from whence.core.problem import Problem

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

FORMAT, VERSION = "whence-album", 1

MOST_EXAMPLES = 2000
"""Training examples whose looks are kept: those of MNIST take a second and a megabyte."""

MOST_BYTES = 64 * 2**20
"""What the looks of training examples may take on the disk, besides their sounds."""

_MAPPED = ("examples/text", "queries/text", "labels", "places")
"""Arrays that may be large, and of which little is looked at."""

NOT_KEPT: Json = {"kind": "none", "text": "not kept in this run"}
"""Stands for the display of an example that is known by its label only."""


@dataclass(frozen=True, eq=False)
class Album:
    """Queries and training examples of a run; shows them in the place of the problem.

    Args:
        labels: (N,) of the training examples in words; empty strings where they have none.
        places: (N,) where among `displays` each training example is, -1 = not kept.
        displays: how training examples look.
        queries: (Q,) display, label and prediction of each query.
        losses: (Q,) loss of each query with the model as trained; NaN where it has none.
        answers: all labels that the model may give, in words; empty where they are not known.
    """

    labels: Array
    places: Array
    displays: Records
    queries: Records
    losses: Array
    answers: tuple[str, ...]

    def query(self, position: int) -> Json:
        """How a query looks, its label, and what the model says."""
        return self.queries[position]

    def example(self, position: int) -> Json:
        """How a training example looks, where that is kept, and its label."""
        place = int(self.places[position])
        display = NOT_KEPT if place < 0 else self.displays[place]
        return {"display": display, "label": str(self.labels[position]) or None}

    def save(self, path: Path) -> None:
        """Writes one file, in which every display can be read without the others.

        Raises:
            StoreError: it cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "whence": __version__,
            "answers": list(self.answers),
        }
        arrays: dict[str, Any] = {
            "metadata": np.array(json_text(metadata)),
            "labels": self.labels,
            "places": self.places,
            "losses": self.losses,
            "examples/text": self.displays.text,
            "examples/starts": self.displays.starts,
            "queries/text": self.queries.text,
            "queries/starts": self.queries.starts,
        }
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def open(cls, path: Path) -> "Album":
        """Reads what `save` wrote; displays stay in the file until they are looked at.

        Raises:
            WrongVersion: written in a format that this version does not read.
            StoreError: a damaged file, or one that holds something else.
        """
        try:
            metadata, arrays = read_archive(path, kind=FORMAT, version=VERSION, mapped=_MAPPED)
            return cls(
                labels=arrays["labels"],
                places=arrays["places"],
                displays=Records(arrays["examples/text"], arrays["examples/starts"]),
                queries=Records(arrays["queries/text"], arrays["queries/starts"]),
                losses=arrays["losses"],
                answers=tuple(map(str, metadata["answers"])),
            )
        except OSError as error:
            raise cannot_read(path, error) from error
        except DAMAGE as error:
            raise StoreError(
                found=f"{path} holds no album of examples, or only part of one: {error}.",
                why="Pictures could stand beside the wrong numbers.",
                remedy="Make the run anew.",
            ) from error


def make_album(problem: "Problem", scores: Scores) -> Album:
    """The album of some scores.

    Args:
        problem: what was explained.
        scores: its effects; examples stand in the order of their columns.

    Raises:
        Stale: the scores belong to another model or to other data.
    """
    scores.refuse_other(
        problem.fingerprint(), why="The album would show the wrong pictures beside the numbers."
    )
    shown = AtHand(problem, scores)
    rows = problem.data.positions(scores.train_ids)
    labels = problem.labels()[rows]
    kept, places = _keep(shown, _most_wanted(scores), len(labels))
    sounds = Room()
    queries = [sounds.fit(shown.query(position)) for position in range(len(scores.query_ids))]
    return Album(
        labels=labels,
        places=places,
        displays=Records.pack(kept),
        queries=Records.pack(queries),
        losses=_losses(problem, scores),
        answers=_answers(problem, labels),
    )


def _most_wanted(scores: Scores) -> Array:
    """Columns in the order of the largest share of influence that they have on any query."""
    largest = np.zeros(len(scores.train_ids))
    for row in scores.values:
        sizes = np.abs(row)
        np.maximum(largest, sizes / (sizes.sum() or 1.0), out=largest)
    count = min(MOST_EXAMPLES, len(largest))
    able = np.flatnonzero(largest >= np.partition(largest, -count)[-count])
    return able[np.argsort(-largest[able], kind="stable")[:count]]


def _keep(shown: AtHand, columns: Array, count: int) -> tuple[list[Json], Array]:
    """Displays of these training examples until they fill their space, and where they are."""
    places = np.full(count, -1, dtype=np.int32)
    kept: list[Json] = []
    room, sounds = MOST_BYTES, Room()
    for column in columns.tolist():
        display = sounds.fit(shown.example(column)["display"])
        room -= len(json_text(display)) - len(display.get("wav", ""))
        if room < 0:
            break
        places[column] = len(kept)
        kept.append(display)
    return kept, places


def _losses(problem: "Problem", scores: Scores) -> Array:
    """(Q,) losses of the queries; NaN where the scores do not hold them."""
    if not scores.queries:
        return np.full(len(scores.query_ids), np.nan)
    from whence.calculus.gradients import measure
    from whence.core.kept import kept_queries

    asked = kept_queries(problem, scores)
    return measure(problem, problem.measurement("loss"), asked).double().cpu().numpy()


def _answers(problem: "Problem", labels: Array) -> tuple[str, ...]:
    """All classes by name, else the labels that occur; none where targets are no labels."""
    if problem.loss.task not in ("classes", "binary", "signed"):
        return ()
    names = problem.label_names if problem.label_names is not None else np.unique(labels).tolist()
    return tuple(map(str, names))
