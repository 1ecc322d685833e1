"""Run folders as the commands write and read them.

runs/why/
    manifest.json   what is here, when it was made, and where its problem is found
    scores.npz      every effect of every training example on every query
    album.npz       how queries and training examples look, their labels, what the model says
    story.json      what the page tells, for programs
    report.html     the page
    journal/        what people do with it later, in the explorer

A run of one use, such as `whence remove`, holds `result.json` (every number) in the place of the
scores.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.errors import BadArgument, NotARun
from whence.report.album import Album
from whence.report.html import render
from whence.store import Draft, Run, write_atomically, writing

if TYPE_CHECKING:  # a story is read and shown without torch
    from whence.core.scores import Scores

EXPLANATION, USE = "explanation", "use"
"""Kinds of runs."""

SCORES, RESULT, STORY, REPORT = "scores.npz", "result.json", "story.json", "report.html"
ALBUM = "album.npz"

MOST_TOLD = 200
"""Queries in the story and on the page of a run; the scores and the album hold them all."""


def save_run(
    folder: str | Path,
    scores: "Scores",
    story: Mapping[str, Any],
    *,
    album: Album,
    problem: str | None,
) -> Path:
    """Writes a run, whole or not at all.

    Args:
        folder: to make; an earlier run in it is replaced.
        scores: which the story tells of.
        story: from `whence.report.tell`.
        album: from `whence.report.album.make_album`.
        problem: reference by which `whence verify` finds the problem again.

    Returns:
        The path of the report.

    Raises:
        StoreError: the folder holds something else, or cannot be written.
    """
    with writing(folder, kind=EXPLANATION, problem=problem) as draft:
        scores.save(draft.path(SCORES))
        album.save(draft.path(ALBUM))
        _put_story(draft, shortened(story))
    return Path(folder) / REPORT


def shortened(story: Mapping[str, Any]) -> Mapping[str, Any]:
    """A story of so few queries that a browser can open its page; says how many are left out."""
    told, left_out = story["queries"][:MOST_TOLD], story["queries"][MOST_TOLD:]
    return {**story, "queries": told, "left_out": len(left_out)} if left_out else story


def save_use(folder: str | Path, result: object, story: Mapping[str, Any], *, problem: str) -> Path:
    """Writes a run of one use, whole or not at all.

    Args:
        folder: to make; an earlier run in it is replaced.
        result: every number, as plain JSON.
        story: from `whence.report.tell_sections`.
        problem: reference to what was asked about.

    Returns:
        The path of the report.

    Raises:
        StoreError: the folder holds something else, or cannot be written.
    """
    with writing(folder, kind=USE, problem=problem) as draft:
        draft.put_json(RESULT, result)
        _put_story(draft, story)
    return Path(folder) / REPORT


def open_run(folder: str | Path, *, kinds: Sequence[str] = (EXPLANATION,)) -> Run:
    """A run that a command wrote.

    Args:
        folder: of the run.
        kinds: what it may hold.

    Raises:
        NotARun: the folder holds no complete run, or one of another kind.
        WrongVersion: it was written in a format that this version does not read.
    """
    run = Run.open(folder)
    if run.kind not in kinds:
        raise NotARun(
            found=f"{folder} holds a run of the kind {run.kind!r}.",
            why=f"Only a run of the kind {' or '.join(map(repr, kinds))} has what is needed here.",
            remedy="Make one with whence explain ... --out FOLDER.",
        )
    return run


def problem_of(run: Run) -> str:
    """Where the problem of a run is found.

    Raises:
        BadArgument: the run does not say.
    """
    if run.problem is None:
        raise BadArgument(
            found=f"The run {run.folder} does not say where its problem is.",
            why="Verifying trains the same problem again.",
            remedy="Name it: --problem train.py:problem.",
        )
    return run.problem


def retell(run: Run, story: Mapping[str, Any]) -> Path:
    """Writes a run anew with another story and its page; everything else in it stays as it is.

    Returns:
        The path of the report.
    """
    with writing(run.folder, kind=run.kind, problem=run.problem) as draft:
        for name in run.files:
            if name not in (STORY, REPORT):
                shutil.copyfile(run.path(name), draft.path(name))
        _put_story(draft, story)
    return run.folder / REPORT


def _put_story(draft: Draft, story: Mapping[str, Any]) -> None:
    draft.put_json(STORY, story)
    write_atomically(draft.path(REPORT), render(story).encode("utf-8"))
