"""One file, written whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from whence.errors import StoreError

PARTIAL = ".partial"
"""Ending of what is still being written."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]
) -> None:
    """Writes a file that is whole at every moment.

    The content goes to `<name>.partial` in the same folder, which then takes the place of the file
    in one step. Whatever goes wrong, Ctrl-C included, the partial file is removed and an earlier
    file stays as it was. Missing folders are made. One writer at a time.

    Args:
        path: of the file.
        content: bytes, or a function that writes them into an open binary file.

    Raises:
        StoreError: the disk is full, the folder may not be written, the path is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise StoreError(
            found=f"{target} is a folder.",
            why="A file cannot take the place of a folder.",
            remedy="Name a file inside it.",
        )
    partial = beside(target, PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name on empty blocks
        os.replace(partial, target)
    except OSError as error:
        needed = len(content) if isinstance(content, bytes) else None
        raise cannot_write(target, error, needed) from error
    finally:
        with suppress(OSError):  # after a success there is none
            partial.unlink()


def beside(path: Path, ending: str) -> Path:
    """The neighbour of a path with a longer name, on the same disk."""
    return path.with_name(path.name + ending)


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> StoreError:
    """The error for a file or folder that could not be written.

    Args:
        path: what was to be written.
        error: what the system said.
        needed: bytes that were to be written, where known.
    """
    if error.errno in _FULL:
        size = "more" if needed is None else f"{needed:,} bytes"
        return StoreError(
            found=f"The disk is full: {path} needs {size}, {_free_bytes(path)} are free.",
            why="Nothing was written; an earlier version is as it was.",
            remedy="Free some space, or write to another disk.",
        )
    if error.errno in _FORBIDDEN:
        return StoreError(
            found=f"{path} may not be written ({error.strerror}).",
            why="The folder or file is read-only, belongs to somebody else, or is open elsewhere.",
            remedy="Close programs that have it open, or write to a folder of your own.",
        )
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StoreError(
            found=f"{path} cannot be made: one of the folders on the way is a file.",
            why="A file holds no other files.",
            remedy="Choose another name, or move that file away.",
        )
    return StoreError(
        found=f"{path} could not be written: {error.strerror or error}.",
        why="Nothing was written; an earlier version is as it was.",
        remedy="Check the name and the disk, or write elsewhere.",
    )


def cannot_read(path: Path, error: OSError) -> StoreError:
    """The error for a file that could not be read.

    Args:
        path: what was to be read.
        error: what the system said.
    """
    return StoreError(
        found=f"{path} could not be read: {error.strerror or error}.",
        why="Without it there is nothing to show.",
        remedy="Check the path and its permissions.",
    )


def _free_bytes(path: Path) -> str:
    """Space on the disk of a path, or of the nearest folder above it that exists."""
    for folder in path.absolute().parents:
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,} bytes"
    return "an unknown number"
