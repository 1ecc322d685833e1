"""Words of a command line as the values that the library takes: ids, labels, arrays, groups."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.cli.references import load_object
from whence.errors import BadArgument, StoreError

if TYPE_CHECKING:  # `whence --help` answers without loading torch
    from whence.core.problem import Problem, Queries


def read_id(word: str, problem: "Problem") -> int | str:
    """One id: a number where the ids of the training data are numbers, else the word itself.

    A word that is no number stays a word; the library says that there is no such example.
    """
    if problem.data.ids.dtype.kind not in "iu":
        return word
    try:
        return int(word)
    except ValueError:
        return word


def read_ids(words: str, problem: "Problem") -> list[int | str]:
    """Several ids: `1,2,3`, `@file.txt` with one id a line, or `file.npy`.

    Raises:
        BadArgument: there is no such file.
        StoreError: the file cannot be read.
    """
    if words.endswith(".npy"):
        return read_array(words).ravel().tolist()
    is_file = words.startswith("@")
    listed = _read_text(Path(words[1:])).splitlines() if is_file else words.split(",")
    return [read_id(word.strip(), problem) for word in listed if word.strip()]


def read_label(word: str, problem: "Problem") -> str | float:
    """A label: the name or number of a class, or a number for a regression."""
    if problem.loss.task in ("classes", "binary", "signed"):
        return word
    try:
        return float(word)
    except ValueError:
        return word


def read_array(name: str) -> Any:
    """The array in an .npy file.

    Raises:
        BadArgument: there is no such file.
        StoreError: it holds no plain array.
    """
    import numpy as np

    try:
        return np.load(name, allow_pickle=False)
    except FileNotFoundError as error:
        raise _no_file(name) from error
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            found=f"{name} cannot be read: {error}",
            why="An .npy file holds one plain array.",
            remedy="Write it with numpy.save(path, array).",
        ) from error


def read_groups(name: str) -> Any:
    """Groups of training examples, as the library takes them.

    Args:
        name: of an .npy file with a label for each training example, of a .json file with ids by
            name of the group, of an object `file.py:name` that is either, or of a column.

    Raises:
        WhenceError: what `read_array` and `load_object` cannot read, or no JSON.
    """
    if name.endswith(".npy"):
        return read_array(name)
    if not name.endswith(".json"):
        return load_object(name) if ":" in name else name
    try:
        return json.loads(_read_text(Path(name)))
    except ValueError as error:
        raise StoreError(
            found=f"{name} holds no JSON: {error}",
            why='Groups are a mapping from names to lists of ids, such as {"old": [1, 2]}.',
            remedy="Write it with json.dump(groups, file).",
        ) from error


def one_query(queries: object, position: int | None, problem: "Problem") -> "Queries":
    """The query at a position; without one, the only query that there is.

    Raises:
        BadArgument: there are several, and none was named; or there is no such position.
    """
    asked = problem.queries(queries)
    count = len(asked)
    if position is None and count > 1:
        raise BadArgument(
            found=f"{count} queries were given.",
            why="This is asked of one prediction at a time.",
            remedy=f"Say which: --position 0 is the first, --position {count - 1} the last.",
        )
    position = position or 0
    if position >= count:
        raise BadArgument(
            found=f"--position {position}; there are {count} queries.",
            why="Queries are counted from 0, in the order in which they were given.",
            remedy=f"Give a position from 0 to {count - 1}.",
        )
    return asked.take([position])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _no_file(path) from error
    except (OSError, ValueError) as error:
        raise StoreError(
            found=f"{path} cannot be read: {error}",
            why="It should hold plain text in UTF-8.",
            remedy="Check the path, and write one id a line.",
        ) from error


def _no_file(path: object) -> BadArgument:
    return BadArgument(
        found=f"There is no file {path}.",
        why="It was named on the command line.",
        remedy="Check the path; it is read from the current folder.",
    )


def given(**options: Any) -> dict[str, Any]:
    """The options that were written: the defaults of the others stand in the library alone."""
    return {name: value for name, value in options.items() if value is not None}


def without_pictures(value: Any) -> Any:
    """Plain JSON without the pictures, which no program reads on a terminal."""
    if isinstance(value, dict):
        return {name: without_pictures(entry) for name, entry in value.items() if name != "png"}
    if isinstance(value, list | Sequence) and not isinstance(value, str):
        return [without_pictures(entry) for entry in value]
    return value
