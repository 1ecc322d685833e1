"""Values as strict JSON has them: no NaN, no infinity, no types of numpy."""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from whence.errors import BadData


def as_json(value: object, name: str) -> Any:
    """A copy of a value in the types that JSON has.

    Mappings become dicts, tuples and arrays lists, and scalars of numpy those of Python. NaN and
    infinity are kept: only the text has no place for them, see `json_text`.

    Args:
        value: None, booleans, numbers, strings, arrays, and mappings and sequences of these.
        name: what the value is, for the error.

    Raises:
        BadData: something that JSON cannot hold; names where it stands.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        named = cast("Mapping[object, object]", value)
        return {_key(key, name): as_json(entry, f"{name}[{key!r}]") for key, entry in named.items()}
    if isinstance(value, list | tuple):
        entries = cast("list[object]", value)
        return [as_json(entry, f"{name}[{i}]") for i, entry in enumerate(entries)]
    raise BadData(
        found=f"{name} is of type {type(value).__name__}.",
        why="It is saved as JSON, which holds numbers, strings, lists and dicts.",
        remedy="Give a number (tensor.item()), a string (str(path)), or a list or dict of these.",
    )


def json_text(value: object) -> str:
    """Strict JSON in ASCII; NaN and infinity become null.

    Args:
        value: made by `as_json`.
    """
    return json.dumps(_finite(value), allow_nan=False, indent=1)


def _key(key: object, name: str) -> str:
    if isinstance(key, str):
        return str(key)
    raise BadData(
        found=f"{name} has the key {key!r}, of type {type(key).__name__}.",
        why="Keys of JSON are strings: any other key would come back as a different one.",
        remedy=f"Use the string {str(key)!r}.",
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        return {name: _finite(entry) for name, entry in named.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in cast("list[object]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
