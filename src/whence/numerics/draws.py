"""Random numbers that belong to an example: keyed by (seed, id), never by batch or position.

A hash of the key takes the place of a generator's state, so that an example draws the same numbers
whatever comes before it, in whichever batch it stands. The hash is the finaliser of SplitMix64.

Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
"""

from hashlib import blake2b
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadArgument

Words = np.ndarray[Any, np.dtype[np.uint64]]
"""Unsigned integers of 64 bits; their products and sums wrap around."""

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def keys(ids: np.ndarray) -> Words:
    """One word for each id, the same for equal ids: integers as they are, names hashed."""
    if ids.dtype.kind in "iu":
        return ids.astype(np.uint64)
    digests = [blake2b(str(name).encode(), digest_size=8).digest() for name in ids]
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def signs(seed: int, key: Words, count: int) -> Tensor:
    """Independent random signs for each example.

    Args:
        seed: of the draw.
        key: (B,) from `keys`.
        count: how many signs each example draws.

    Returns:
        (B, count) of -1 and +1, int8.

    >>> a = signs(0, keys(np.arange(9)), 100)
    >>> bool((signs(0, keys(np.arange(5, 9)), 100) == a[5:]).all())
    True
    """
    places = np.arange(-(-count // 64), dtype=np.uint64)
    words = _hash(_of(seed, key)[:, None] + places * _STEP)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=count, bitorder="little")
    return torch.from_numpy(bits.astype(np.int8)) * 2 - 1


def order(seed: int, key: Words) -> Tensor:
    """Positions of the examples in a random order that depends on their ids alone.

    Args:
        seed: of the draw.
        key: (N,) from `keys`.

    Returns:
        (N,) int64.
    """
    # Words of their own: those of the signs would put examples with equal signs side by side.
    places = _hash(_of(seed, key) - _STEP)
    return torch.from_numpy(np.argsort(places, kind="stable"))


def starts(seed: int, key: Words, below: int) -> Tensor:
    """A random whole number for each example.

    Args:
        seed: of the draw.
        key: (B,) from `keys`.
        below: numbers are from 0 to one less.

    Returns:
        (B,) int64.
    """
    words = _hash(_of(seed, key) - _STEP - _STEP)
    return torch.from_numpy((words % np.uint64(below)).astype(np.int64))


def subsets(seed: int, key: Words, *, count: int, size: int) -> Tensor:
    """Different random subsets, each of the `size` examples that come first in an order of its own.

    Args:
        seed: of the draw.
        key: (N,) from `keys`.
        count: M, how many.
        size: examples in each.

    Returns:
        (M, N) bool, True for the examples of a subset.

    Raises:
        BadArgument: there are not so many different subsets of this size.

    >>> inside = subsets(0, keys(np.arange(6)), count=15, size=4)
    >>> len({tuple(row) for row in inside.tolist()}), inside.sum(1).unique()
    (15, tensor([4]))
    """
    available = comb(len(key), size)
    if not 1 <= count <= available:
        raise BadArgument(
            found=f"{count:,} different subsets were asked for, of {size:,} of {len(key):,} "
            "examples each.",
            why=f"There are {available:,} of that size; the same one twice tells nothing new.",
            remedy=f"Ask for at most {available:,}, or for another size.",
        )
    found: dict[bytes, Tensor] = {}
    draw = 0
    while len(found) < count:
        word = np.random.SeedSequence((abs(seed), draw)).generate_state(1)[0]
        inside = torch.zeros(len(key), dtype=torch.bool)
        inside[order(int(word), key)[:size]] = True
        found.setdefault(inside.numpy().tobytes(), inside)
        draw += 1
    return torch.stack(list(found.values()))


def _of(seed: int, key: Words) -> Words:
    """One word for each example and seed, from which its draws are counted."""
    start = _hash(np.array([seed], np.int64).view(np.uint64) * _STEP)
    return _hash(start + key)


def _hash(words: Words) -> Words:
    """Every bit of a word has an even chance to turn when one bit of the argument turns."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
