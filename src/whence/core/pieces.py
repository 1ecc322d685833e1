"""Work on many examples in pieces, which are halved where memory runs out."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from whence.errors import TooLarge
from whence.progress import breathe

T = TypeVar("T")

_notes: ContextVar[list[str] | None] = ContextVar("whence_notes_of_memory", default=None)

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")
"""Of allocators that raise a plain RuntimeError."""


@contextmanager
def noticing() -> Generator[list[str], None, None]:
    """The warnings of work inside this block that had to go on in smaller pieces."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def in_pieces(
    positions: Tensor, size: int, work: Callable[[Tensor], T]
) -> Iterator[tuple[Tensor, T]]:
    """The pieces of some positions, in order, each with what the work on it has given.

    Args:
        positions: (M,).
        size: positions a piece; halved for the rest where a piece runs out of memory.
        work: is done again for each half, so it must leave nothing behind where it fails.

    Raises:
        TooLarge: not even one example fits.
    """
    start = 0
    while start < len(positions):
        breathe()
        piece = positions[start : start + size]
        fits, result, words = _tried(work, piece)
        if fits:
            yield piece, result[0]
            start += len(piece)
            continue
        if len(piece) == 1:
            raise TooLarge(
                found=f"One example does not fit the memory that is left ({words}).",
                why="Batches were halved until one example was left.",
                remedy="Free memory, use a smaller model or shorter inputs, or fewer queries at "
                "a time.",
            )
        size = len(piece) // 2
        _note(len(piece), size)


def _tried(work: Callable[[Tensor], T], piece: Tensor) -> tuple[bool, list[T], str]:
    """Whether there was memory for the work, what it gave, and the words of the allocator.

    The failure must be forgotten before the next trial: its frames hold what was made so far.
    """
    try:
        return True, [work(piece)], ""
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_known and not any(part in words for part in _WORDS):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, [], (words.splitlines() or ["MemoryError"])[0]


def _note(failed: int, size: int) -> None:
    notes = _notes.get()
    if notes is not None:
        notes.append(
            f"Memory ran out with {failed} examples at a time; the work went on with {size}."
        )
