"""Questions that take a while: answered one after the other, and kept in the run folder.

A question outlives the page that asked it. Its state is on the disk at every change, so that a
server that was ended in the middle says so when it starts again.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from secrets import token_hex
from threading import Event, Lock, Thread
from typing import Any, cast

from whence import progress
from whence.errors import StoreError, WhenceError
from whence.store import write_atomically
from whence.store.jsonable import as_json, json_text

Json = dict[str, Any]

FORMAT, VERSION = "whence-answer", 1

WAITING, RUNNING, DONE = "waiting", "running", "done"
FAILED, CANCELLED, INTERRUPTED = "failed", "cancelled", "interrupted"
OPEN = (WAITING, RUNNING)
"""States from which a question goes on by itself."""

MOST_BYTES = 32 * 2**20
"""An answer in a file larger than this is not read."""


class _Stopped(BaseException):
    """Ends work that nobody waits for any more; no `except Exception` on its way holds it up."""


@dataclass
class Question:
    """One question and, when it is there, its answer.

    Args:
        id: letters and digits by which it is found.
        kind: what was asked.
        asked: with which words.
        made_for: fingerprint of the scores that it is about.
        state: one of the states above.
        created: when it was asked, ISO 8601 in UTC.
        seconds: that the answer took.
        answer: plain JSON; None until it is there.
        error: why there is none: what was found, why it matters, what to do.
    """

    id: str
    kind: str
    asked: Json
    made_for: str = ""
    state: str = WAITING
    created: str = ""
    seconds: float | None = None
    answer: Json | None = None
    error: Json | None = None
    steps: Json | None = field(default=None, repr=False)

    def to_json(self) -> Json:
        """Everything about it, with the steps that are done."""
        return asdict(self)


class Desk:
    """Takes questions and answers them in the order in which they came.

    Args:
        folder: of the answers; made when there is one.
        made_for: fingerprint of the scores that are asked about; answers about others, which a run
            that took the place of another may hold, are left alone.
    """

    def __init__(self, folder: Path, made_for: str = "") -> None:
        self.folder = folder
        self.made_for = made_for
        self._lock = Lock()
        earlier = [one for one in _read_all(folder) if one.made_for == made_for]
        self._questions = {question.id: question for question in earlier}
        self._stops: dict[str, Event] = {}
        self._at_work: Question | None = None
        self._queue: Queue[tuple[Question, Callable[[], Json]]] = Queue()
        self._worker: Thread | None = None

    def questions(self) -> list[Question]:
        """All questions, the newest first."""
        with self._lock:
            # Of the same moment, the one that was asked last comes first.
            return sorted(self._questions.values(), key=lambda q: q.created)[::-1]

    def find(self, question: str) -> Question | None:
        """The question with this id."""
        return self._questions.get(question)

    def latest(self, kind: str, asked: Json) -> Question | None:
        """The newest question of this kind with these words."""
        alike = (one for one in self.questions() if one.kind == kind and one.asked == asked)
        return next(alike, None)

    def ask(self, kind: str, asked: Json, work: Callable[[], Json]) -> Question:
        """Puts a question at the end of the queue.

        Args:
            kind: of the question.
            asked: the words of the question, as plain JSON.
            work: gives the answer; loops in it that are tracked tell how far it is.

        Raises:
            StoreError: the run folder cannot be written.
        """
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        question = Question(token_hex(5), kind, asked, self.made_for, created=created)
        self._save(question)
        with self._lock:
            self._questions[question.id] = question
            self._stops[question.id] = Event()
            if self._worker is None:
                self._worker = Thread(target=self._work, name="whence-desk", daemon=True)
                self._worker.start()
        self._queue.put((question, work))
        return question

    def cancel(self, question: Question) -> None:
        """Gives up on an answer; work that has begun ends between two of its steps."""
        with self._lock:
            if question.state not in OPEN:
                return
            question.state = CANCELLED
            self._stops[question.id].set()
            self._save(question)

    def is_ending(self, question: Question) -> bool:
        """Whether work goes on that was given up, which the next question waits for."""
        return question is self._at_work and question.state == CANCELLED

    def _work(self) -> None:
        while True:
            question, work = self._queue.get()
            with self._lock:
                if question.state != WAITING:
                    continue
                question.state = RUNNING
                with suppress(StoreError):  # a full disk ends no answer
                    self._save(question)
            self._at_work = question
            self._answer(question, work)
            self._at_work = None

    def _answer(self, question: Question, work: Callable[[], Json]) -> None:
        stop = self._stops[question.id]

        def pulse() -> None:
            if stop.is_set():
                raise _Stopped

        def watch(label: str, done: int, total: int | None) -> None:
            pulse()
            question.steps = {"label": label, "done": done, "total": total}

        started = time.monotonic()
        changes: Json
        try:
            with progress.watched(watch, pulse):
                changes = {"state": DONE, "answer": as_json(work(), "the answer")}
        except _Stopped:
            return
        except WhenceError as error:
            parts = {"found": error.found, "why": error.why, "remedy": error.remedy}
            changes = {"state": FAILED, "error": parts}
        except Exception as error:  # noqa: BLE001  one question must not end the others
            found = f"{type(error).__name__}: {error}"
            changes = {"state": FAILED, "error": {"found": found, "why": "", "remedy": ""}}
        self._finish(question, changes | {"seconds": time.monotonic() - started})

    def _finish(self, question: Question, changes: Json) -> None:
        """Keeps an answer; who sees that it is there also finds it, here and on the disk."""
        with self._lock:
            if question.state != RUNNING:  # given up meanwhile
                return
            for name, value in changes.items():
                if name != "state":
                    setattr(question, name, value)
            with suppress(StoreError):  # a full disk: it is shown as long as the server runs
                self._save(question, changes["state"])
            question.steps = None
            question.state = changes["state"]

    def _save(self, question: Question, state: str | None = None) -> None:
        told = {"format": FORMAT, "version": VERSION, **question.to_json(), "steps": None}
        text = json_text(as_json(told | {"state": state or question.state}, "a question"))
        write_atomically(self.folder / f"{question.id}.json", text.encode("ascii"))


def _read_all(folder: Path) -> list[Question]:
    """Questions of earlier servers; what is not whole or not ours is left alone."""
    found = [_read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return [question for question in found if question is not None]


def _read(path: Path) -> Question | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        told = cast("Json", json.loads(path.read_text(encoding="utf-8")))
        if told.pop("format") != FORMAT or told.pop("version") != VERSION:
            return None
        question = Question(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if question.id != path.stem:
        return None
    if question.state in OPEN:
        question.state = INTERRUPTED
    return question
