"""Files that only grow: a line of JSON an entry, on the disk before the writer goes on."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.store.files import cannot_read, cannot_write
from whence.store.jsonable import as_json, json_text


@dataclass(frozen=True)
class Journal:
    """Entries in the order in which they were made, by any number of writers.

    Every entry is added by one write to the end of the file, so that entries of several writers
    never mix and none is lost. One that a power cut has broken off is not read, and does no harm to
    those that follow.

    Args:
        path: of the file; it need not exist.
    """

    path: Path

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds one entry.

        Raises:
            BadData: it has a part that JSON cannot hold.
            StoreError: the disk is full, or the folder may not be written.
        """
        text = json.dumps(json.loads(json_text(as_json(dict(entry), "an entry"))))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0, opener=_open_itself) as file:
                # A line of its own even after one that was broken off.
                file.write(f"\n{text}\n".encode("ascii"))
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error, len(text)) from error

    def entries(self) -> list[dict[str, Any]]:
        """All entries that are whole.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise cannot_read(self.path, error) from error
        found = [_parsed(line) for line in lines if line]
        return [entry for entry in found if entry is not None]


def _open_itself(path: str, flags: int) -> int:
    """Opens a file, but not one that a link leads to: a run may come from somebody else."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)  # Windows has no such flag


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
