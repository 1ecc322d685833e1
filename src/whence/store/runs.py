"""Run folders: what one command has made, with a manifest that tells whether it is all there.

    runs/why/
        manifest.json     format, version, kind, when, by which whence, and of each file its
        scores.npz        number of bytes and SHA-256
        story.json

A run grows in `runs/why.partial/` and gets its name in one step, when it is whole. A run that it
replaces waits meanwhile in `runs/why.replaced.partial/`. One writer at a time.

What people do with a run later, such as decisions on labels, is kept in `runs/why/journal/`. It is
no part of what the run was when it was made, and goes over to a run that takes its place.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from whence.errors import NotARun, StoreError, WrongVersion
from whence.store.files import PARTIAL, beside, cannot_read, cannot_write, write_atomically
from whence.store.jsonable import as_json, json_text
from whence.version import __version__

FORMAT, VERSION = "whence-run", 1

MANIFEST = "manifest.json"

JOURNAL = "journal"
"""Folder of what is added after a run was made."""

_REPLACED = ".replaced" + PARTIAL


@dataclass(frozen=True)
class Member:
    """What the manifest knows of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Run:
    """A complete run, open for reading.

    Args:
        folder: where it lies.
        kind: what it holds, for example "explanation".
        created: when it was made, ISO 8601 in UTC.
        whence: the version that made it.
        problem: where its problem is found, for example "train.py:problem", or None.
        files: its files by name, "/" between folders.
    """

    folder: Path
    kind: str
    created: str
    whence: str
    problem: str | None
    files: Mapping[str, Member]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, check_hashes: bool = False) -> "Run":
        """The run in a folder, if it is all there.

        Args:
            folder: which `writing` has made.
            check_hashes: also reads every file, which finds damage that leaves its size alone.

        Raises:
            NotARun: no such folder, no manifest, or files are missing or cut off.
            WrongVersion: written in a format that this version does not read.
            StoreError: a file is not the one that was written, or cannot be read.
        """
        where = Path(folder)
        manifest = _read_manifest(where)
        if manifest.get("version") != VERSION:
            raise WrongVersion(
                found=f"{where} has version {manifest.get('version')} of the format {FORMAT}.",
                why=f"whence {__version__} reads version {VERSION}.",
                remedy=f"Use the whence that wrote it ({manifest.get('whence')}), or make it anew.",
            )
        run = cls._from_manifest(where, manifest)
        for name, member in run.files.items():
            _check_member(run.path(name), member, check_hashes=check_hashes)
        return run

    def path(self, name: str) -> Path:
        """Where a file of this run lies.

        Args:
            name: one of `files`.

        Raises:
            StoreError: there is no such file, or the name leads out of the folder.
        """
        path = _inside(self.folder, name)
        if name not in self.files:
            raise StoreError(
                found=f"The run {self.folder} has no {name!r}.",
                why=f"It has: {', '.join(self.files) or 'no files'}.",
                remedy="Ask for one of these, or make the run anew.",
            )
        return path

    @property
    def journal(self) -> Path:
        """The folder of what is added later; it need not exist.

        Raises:
            StoreError: it is a link that leads out of the run.
        """
        return _inside(self.folder, JOURNAL)

    def read_json(self, name: str) -> Any:
        """The value in a JSON file of this run.

        Raises:
            StoreError: there is no such file, or it holds no JSON.
        """
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise cannot_read(path, error) from error
        except ValueError as error:
            raise StoreError(
                found=f"{path} holds no JSON ({error}).",
                why="It was changed after it was written, or was never a JSON file.",
                remedy="Make the run anew.",
            ) from error

    @classmethod
    def _from_manifest(cls, folder: Path, manifest: Mapping[str, Any]) -> "Run":
        try:
            facts = {name: manifest[name] for name in ("kind", "created", "whence", "problem")}
            files = {
                name: Member(int(member["bytes"]), str(member["sha256"]))
                for name, member in manifest["files"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _not_a_run(folder, f"its {MANIFEST} is damaged ({error!r})") from error
        return cls(folder, **facts, files=files)


@dataclass(frozen=True)
class Draft:
    """A run that is being written; see `writing`."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where to write a file of this run; folders in its name are made.

        Args:
            name: with "/" between folders.

        Raises:
            StoreError: the name leads out of the folder, or is the manifest's.
        """
        path = _inside(self.folder, name)
        if name.casefold().split("/")[0] in (MANIFEST, JOURNAL):
            raise _bad_name(name, "is written by whence itself")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        return path

    def put_json(self, name: str, value: object) -> None:
        """Writes a value as strict JSON; NaN and infinity become null.

        Raises:
            BadData: the value has a part that JSON cannot hold.
            StoreError: it cannot be written.
        """
        text = json_text(as_json(value, name))
        write_atomically(self.path(name), text.encode("ascii"))


@contextmanager
def writing(
    folder: str | os.PathLike[str], *, kind: str, problem: str | None = None
) -> Generator[Draft]:
    """A run folder that appears when the `with` block ends, and only if it ends well.

        with writing("runs/why", kind="explanation") as run:
            scores.save(run.path("scores.npz"))
            run.put_json("story.json", story)

    An error or Ctrl-C inside the block leaves nothing behind. An earlier run of that name stays
    until the new one is whole. Files have to be closed when the block ends.

    Args:
        folder: the run to make or to replace.
        kind: what it holds.
        problem: where its problem is found.

    Yields:
        The draft to write into.

    Raises:
        StoreError: the folder holds something else than a run, or cannot be written.
    """
    target = Path(folder).resolve()
    draft = Draft(beside(target, PARTIAL))
    try:
        _clear_the_way(target)
        draft.folder.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        yield draft
        _finish(draft.folder, target, {"kind": kind, "problem": problem})
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)  # after a success there is none


def _clear_the_way(target: Path) -> None:
    """Undoes what a killed writer left, and refuses to replace anything but a run."""
    replaced = beside(target, _REPLACED)
    if replaced.exists():
        if target.exists():  # killed before the old run was deleted
            shutil.rmtree(replaced)
        else:  # killed before the new run got its name
            replaced.rename(target)
    _check_replaceable(target)
    partial = beside(target, PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)


def _check_replaceable(target: Path) -> None:
    """Lets pass what may be deleted: nothing, an empty folder, or a run without foreign files."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        files = _read_manifest(target).get("files")
    except NotARun as error:
        raise StoreError(
            found=f"{target} exists, and is not a run of whence.",
            why="Writing the run would delete what is there.",
            remedy="Choose another folder, or move this one away.",
        ) from error
    known = {MANIFEST, *files} if isinstance(files, dict) else {MANIFEST}
    foreign = [name for name in _members(target) if name not in known]
    if foreign:
        raise StoreError(
            found=f"The run {target} holds files that whence did not write: {_few(foreign)}.",
            why="Replacing the run would delete them.",
            remedy="Move them away, or choose another folder.",
        )


def _finish(partial: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest and gives the run its name."""
    try:
        _hand_over(target / JOURNAL, partial / JOURNAL)
        files = {name: asdict(_measure(partial / name)) for name in _members(partial)}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "whence": __version__,
            **facts,
            "files": files,
        }
        write_atomically(partial / MANIFEST, json_text(manifest).encode("ascii"))
        _take_the_place(partial, target)
    except OSError as error:
        raise cannot_write(target, error) from error


def _hand_over(old: Path, new: Path) -> None:
    """The journal in a second folder; by links, so that what is added meanwhile is in both."""
    if old.is_dir():
        shutil.copytree(old, new, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the disk knows no links
        shutil.copy2(source, target)


def _take_the_place(partial: Path, target: Path) -> None:
    """Two renames: a folder that is not empty cannot be replaced in one."""
    replaced = beside(target, _REPLACED)
    try:
        if target.exists():
            os.replace(target, replaced)
        os.replace(partial, target)
    except BaseException:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)  # a rest is removed by the next writer


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise _not_a_run(folder, "it is a file" if folder.exists() else "there is no such folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _not_a_run(folder, f"it has no {MANIFEST}") from error
    except OSError as error:
        raise cannot_read(folder / MANIFEST, error) from error
    except ValueError as error:
        raise _not_a_run(folder, f"its {MANIFEST} is damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _not_a_run(folder, f"its {MANIFEST} is not that of a run")
    return cast("Mapping[str, Any]", manifest)


def _check_member(path: Path, expected: Member, *, check_hashes: bool) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
        is_same = not check_hashes or size != expected.bytes or _measure(path) == expected
    except OSError as error:
        raise cannot_read(path, error) from error
    if size is None:
        raise _not_a_run(path.parent, f"{path.name} is missing")
    if size != expected.bytes:
        lengths = f"{size:,} bytes instead of {expected.bytes:,}"
        raise _not_a_run(path.parent, f"{path.name} has {lengths}")
    if not is_same:
        raise StoreError(
            found=f"{path} is not the file that was written: its SHA-256 differs.",
            why="It was damaged or changed, so what it says may be wrong.",
            remedy="Make the run anew, or bring the file back from a copy.",
        )


def _measure(path: Path) -> Member:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Member(path.stat().st_size, digest)


def _members(folder: Path) -> list[str]:
    """Names of the files of a run, but for what file browsers leave (.DS_Store) and the journal."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    own = (path for path in files if path.parts[0] != JOURNAL and not path.name.startswith("."))
    return sorted(path.as_posix() for path in own)


def _inside(folder: Path, name: str) -> Path:
    """The path of a name that means the same file, inside the folder, on every system."""
    if any(part.startswith(".") or part != part.rstrip(". ") for part in name.split("/")):
        raise _bad_name(name, "leads out of the folder, is hidden, or ends in a dot or space")
    if "" in name.split("/") or any(sign in name for sign in '\\:*?"<>|\0'):
        raise _bad_name(name, "has an empty part, or a sign that Windows does not allow")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _bad_name(name, "is a link that leads out of the folder")
    return path


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bad_name(name: str, reason: str) -> StoreError:
    return StoreError(
        found=f"The name {name!r} {reason}.",
        why="The files of a run lie in its folder, under names that work on every system.",
        remedy='Use a plain name such as "scores.npz" or "arrays/values.npy".',
    )


def _not_a_run(folder: Path, reason: str) -> NotARun:
    return NotARun(
        found=f"{folder} holds no complete run: {reason}.",
        why="Only a run that is all there can be shown; part of one could mislead.",
        remedy=_where_runs_are(folder) or "Check the path, or make the run anew.",
    )


def _where_runs_are(folder: Path) -> str:
    """Whole runs inside the folder, or one beside it that was not finished; nothing without any."""
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    inside = [str(path) for path in found if path.suffix != PARTIAL]
    if inside:
        return f"Name one of the runs in it: {_few(inside)}."
    if not folder.exists() and beside(folder, PARTIAL).exists():
        return "A run of this name was begun and not finished: make it anew."
    return ""
