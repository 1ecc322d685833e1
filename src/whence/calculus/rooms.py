"""Memory that a fit of layers may take, shared out among its parts.

    fixed     second moments in float64, bases, eigenvalues
    batch     activations and factors of the examples that are looked at together
    stack     solved gradients of the queries that meet the training data together
    kept      training gradients, to be used again by later queries

Nothing can be done without what is fixed, one example and one query. What is left is shared out;
training gradients that do not fit go to a folder on disk where one is given, and are made anew for
every set of queries where none is.
"""

from dataclasses import dataclass
from typing import Literal

from whence.calculus.kronecker import (
    FACTOR_BYTES,
    FIRST_ROUND,
    example_bytes,
    moment_numbers,
)
from whence.calculus.layers import Structure
from whence.calculus.pairing import STACK_BYTES, query_numbers
from whence.core.problem import Problem
from whence.errors import BadArgument, TooLarge
from whence.numerics.memory import free_bytes, in_words

KEPT_BYTES = 2**28
"""Memory that training gradients take at the most where no budget is stated: to make them anew
costs one pass for every set of queries."""


@dataclass(frozen=True)
class Room:
    """Bytes for each part.

    Args:
        batch, stack, kept: as above.
        folder: where training gradients go that do not fit; None for nowhere.
    """

    batch: int = FACTOR_BYTES
    stack: int = STACK_BYTES
    kept: int = KEPT_BYTES
    folder: str | None = None


def make_room(
    problem: Problem,
    structure: Structure,
    memory: int | Literal["auto"],
    *,
    folder: str | None = None,
) -> Room:
    """What each part of a fit may take.

    Args:
        problem: what was trained.
        structure: the blocks of its model.
        memory: bytes for all parts together; "auto" is half of what the machine has free, and no
            more than the parts can use well.
        folder: for training gradients that do not fit.

    Raises:
        BadArgument: a budget that is no positive number.
        TooLarge: not even one example and one query fit.
    """
    if memory != "auto" and not memory > 0:
        raise BadArgument(
            found=f"memory={memory!r}.",
            why="It is a number of bytes.",
            remedy='Give a positive number such as 2e9, or "auto".',
        )
    example, query = example_bytes(problem, structure), query_bytes(problem, structure)
    fixed = fixed_bytes(problem, structure)
    least = fixed + example + query
    limit = free_bytes(problem.device) if memory == "auto" else int(memory)
    if limit < least:
        _refuse(limit, least, fixed, is_stated=memory != "auto")
    rest = max(limit // 2, least) - fixed if memory == "auto" else limit - fixed
    batch = max(example, min(FACTOR_BYTES, rest // 4))
    stack = max(query, min(STACK_BYTES, (rest - batch) // 2))
    kept = rest - batch - stack
    return Room(batch, stack, min(kept, KEPT_BYTES) if memory == "auto" else kept, folder)


def fixed_bytes(problem: Problem, structure: Structure) -> int:
    """Memory of moments, bases and eigenvalues.

    Sums are in float64, beside those of a batch; where there are several rounds two halves have
    sums of their own.
    """
    element = problem.parameters.element_size()
    moments = sum(moment_numbers(block) for block in structure.blocks)
    halves = 2 if len(problem) > FIRST_ROUND else 1
    return (8 * halves + element) * moments + (8 * halves + 2 * element) * problem.size


def query_bytes(problem: Problem, structure: Structure) -> int:
    """The solved gradient of one query, and what is made on its way."""
    numbers = sum(query_numbers(block) for block in structure.blocks)
    return numbers * problem.parameters.element_size()


def _refuse(limit: int, least: int, fixed: int, *, is_stated: bool) -> None:
    raise TooLarge(
        found=f"The layers need at least {in_words(least)} ({least:,} bytes), {in_words(fixed)} of "
        f"them for moments and bases; {'memory=' if is_stated else ''}{in_words(limit)} "
        f"{'was allowed' if is_stated else 'are free'}.",
        why="With less not even one example and one query can be looked at.",
        remedy=f"Give memory={least} or more, or use curvature='diagonal' or 'identity'.",
    )
