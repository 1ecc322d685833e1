"""Trained parameters in a folder, each under its key, and trainings that were interrupted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import StoreError
from whence.store.archives import DAMAGE, read_archive
from whence.store.files import cannot_read, cannot_write, write_atomically
from whence.store.jsonable import as_json, json_text

FORMAT, VERSION = "whence training", 1

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trainings:
    """What was trained before. One process at a time writes into a folder.

    Args:
        folder: made when something is kept.
    """

    folder: Path

    def find(self, key: str) -> Array | None:
        """(P,) the parameters under a key, or None.

        Raises:
            StoreError: the file is damaged.
        """
        found = self._read(self._path(key), key)
        return None if found is None else found[1]

    def keep(self, key: str, parameters: Array) -> None:
        """Writes parameters under a key.

        Raises:
            StoreError: the disk is full, or the folder may not be written.
        """
        self._write(self._path(key), key, parameters, done=-1)

    def find_interrupted(self, key: str) -> tuple[int, Array] | None:
        """Steps done and the states (m, S, P) of a training on its way, or None.

        Raises:
            StoreError: the file is damaged.
        """
        return self._read(self._path_of_interrupted(key), key)

    def keep_interrupted(self, key: str, done: int, states: Array) -> None:
        """Writes the states after some steps in place of earlier ones.

        Raises:
            StoreError: the disk is full, or the folder may not be written.
        """
        self._write(self._path_of_interrupted(key), key, states, done=done)

    def forget_interrupted(self, key: str) -> None:
        """Removes the states of a training that has come to its end."""
        path = self._path_of_interrupted(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _path_of_interrupted(self, key: str) -> Path:
        return self.folder / f"{key}.interrupted.npz"

    def _write(self, path: Path, key: str, numbers: Array, *, done: int) -> None:
        metadata = {"format": FORMAT, "version": VERSION, "key": key, "done": done}
        text = np.array(json_text(as_json(metadata, "metadata")))
        write_atomically(path, lambda file: np.savez(file, numbers=numbers, metadata=text))

    def _read(self, path: Path, key: str) -> tuple[int, Array] | None:
        try:
            metadata, arrays = read_archive(path, kind=FORMAT, version=VERSION)
            if metadata["key"] != key:
                raise ValueError(f"it was written as {metadata['key']}")
            return metadata["done"], arrays["numbers"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_read(path, error) from error
        except DAMAGE as error:
            raise StoreError(
                found=f"{path} is no training of whence, or a damaged one ({error}).",
                why="It would be taken for the result of a training.",
                remedy="Remove the file; what it held is then trained again.",
            ) from error
