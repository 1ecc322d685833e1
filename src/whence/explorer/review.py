"""Decisions on labels, one by one, in a file that only grows.

The last decision on an example counts, whichever page or program it came from; undoing it brings
the one before back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whence.errors import BadArgument, unknown_name
from whence.store.journals import Journal

Json = dict[str, Any]

KEEP, RELABEL, DROP, UNDO = "keep", "relabel", "drop", "undo"
ACTIONS = (KEEP, RELABEL, DROP, UNDO)


@dataclass(frozen=True)
class Decision:
    """What was decided on one training example.

    Args:
        id: of the training example.
        action: "keep", "relabel" or "drop".
        label: the new one, where it is relabelled.
        at: when, ISO 8601 in UTC.
    """

    id: int | str
    action: str
    label: str | None
    at: str

    def to_json(self) -> Json:
        """Plain JSON."""
        return {"id": self.id, "action": self.action, "label": self.label, "at": self.at}


@dataclass(frozen=True)
class Review:
    """The decisions on the training examples of one data set.

    Args:
        path: of the file.
        data: fingerprint of the data; decisions on other data are left alone.
        answers: labels that an example may get; empty where any is possible.
    """

    path: Path
    data: str
    answers: tuple[str, ...]

    def decide(self, example: int | str, action: str, label: str | None = None) -> None:
        """Adds a decision; it is on the disk when this returns.

        Args:
            example: id of the training example.
            action: "keep", "relabel", "drop" or "undo".
            label: the new one, to relabel.

        Raises:
            UnknownName: no such action, or no such label.
            BadArgument: a new label without a name.
            StoreError: the run folder cannot be written.
        """
        if action not in ACTIONS:
            raise unknown_name("decision", action, ACTIONS)
        if action == RELABEL and not label:
            raise BadArgument(
                found=f"Training example {example} is to be relabelled, without a label.",
                why="It needs one.",
                remedy="Choose the label, or drop the example.",
            )
        if action == RELABEL and self.answers and label not in self.answers:
            raise unknown_name("label", str(label), self.answers)
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "data": self.data,
            "id": example,
            "action": action,
            "label": label if action == RELABEL else None,
        }
        Journal(self.path).add(entry)

    def decisions(self) -> dict[int | str, Decision]:
        """What counts for every example that was decided on, the latest last."""
        made: dict[int | str, list[Decision]] = {}
        for entry in Journal(self.path).entries():
            if entry.get("data") == self.data:
                self._replay(made, entry)
        latest = [decisions[-1] for decisions in made.values() if decisions]
        return {decision.id: decision for decision in sorted(latest, key=lambda one: one.at)}

    def as_change(self, position: Callable[[int | str], int]) -> Json:
        """The decisions as a change of the training data: {"remove", "relabel"}.

        Args:
            position: of a training example, by its id.
        """
        made = self.decisions().values()
        return {
            "remove": [position(one.id) for one in made if one.action == DROP],
            "relabel": {str(position(one.id)): one.label for one in made if one.action == RELABEL},
        }

    @staticmethod
    def _replay(made: dict[int | str, list[Decision]], entry: Mapping[str, Any]) -> None:
        example, action, label = entry.get("id"), entry.get("action"), entry.get("label")
        if not isinstance(example, int | str) or action not in ACTIONS:
            return  # a line of somebody else
        decisions = made.setdefault(example, [])
        if action == UNDO:
            del decisions[-1:]
        else:
            text = None if label is None else str(label)
            decisions.append(Decision(example, action, text, str(entry.get("at"))))
