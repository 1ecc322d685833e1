"""Hashes by which parameters and data are recognised."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from whence.errors import BadData
from whence.store.jsonable import as_json

_CHUNK = 2**16
"""Entries hashed at a time, so that a strided array is never copied as a whole."""


def fingerprint(*pieces: object) -> str:
    """A hash over arrays, strings and other plain values, the same on every machine.

    An array counts with its type, shape and entries in C order; neither its layout in memory nor
    its byte order matters. Entries are compared as bits: NaN equals itself, 0.0 differs from -0.0.

    >>> table = np.arange(6.0).reshape(2, 3)
    >>> fingerprint(table) == fingerprint(np.asfortranarray(table))
    True
    >>> fingerprint(table) == fingerprint(table.reshape(3, 2))
    False

    Args:
        pieces: arrays of numbers or strings, and values that JSON holds; their order counts.

    Returns:
        32 hexadecimal digits (BLAKE2b of 16 bytes).

    Raises:
        BadData: an array of Python objects, or a value that JSON cannot hold.
    """
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        if isinstance(piece, np.ndarray):
            _add_array(digest, piece)
        else:
            text = json.dumps(as_json(piece, "a piece of a fingerprint"), sort_keys=True)
            _add_header(digest, "json", len(text))
            digest.update(text.encode("ascii"))
    return digest.hexdigest()


def _add_array(digest: Any, array: np.ndarray) -> None:
    if array.dtype.hasobject:
        raise BadData(
            found=f"An array of type {array.dtype} holds Python objects.",
            why="Its memory holds addresses, which are different in every run.",
            remedy="Convert it to numbers or strings: array.astype(float) or array.astype(str).",
        )
    little = array.dtype.newbyteorder("<")
    _add_header(digest, little.descr, array.shape)
    chunks = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[little],
        order="C",
        casting="equiv",
        buffersize=_CHUNK,
    )
    for chunk in cast("Iterable[np.ndarray]", chunks):
        digest.update(chunk.tobytes())


def _add_header(digest: Any, *facts: object) -> None:
    """Kind and size of what follows, so that no two lists of pieces give the same bytes."""
    digest.update(f"{facts}\n".encode())
