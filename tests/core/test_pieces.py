"""Pieces shrink where memory runs out, and nothing is lost or done twice."""

import pytest
import torch
from torch import Tensor

from whence.core.pieces import in_pieces, noticing
from whence.errors import TooLarge

FAILURES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_every_position_is_worked_on_once_in_order(most, failure):
    def work(piece: Tensor) -> int:
        if len(piece) > most:
            raise failure
        return int(piece.sum())

    positions = torch.arange(23).flip(0)
    with noticing() as notes:
        found = list(in_pieces(positions, 8, work))
    assert torch.equal(torch.cat([piece for piece, _ in found]), positions)
    assert [total for _, total in found] == [int(piece.sum()) for piece, _ in found]
    assert max(len(piece) for piece, _ in found) <= most
    assert len(notes) == {1: 3, 2: 2, 5: 1, 100: 0}[most]
    if notes:
        assert notes[0].startswith("Memory ran out with 8 examples at a time")


def test_one_example_that_does_not_fit_is_an_error():
    def work(piece: Tensor) -> None:
        raise RuntimeError(f"out of memory for {len(piece)}\nand more")

    with pytest.raises(TooLarge, match=r"One example does not fit .*out of memory for 1"):
        list(in_pieces(torch.arange(4), 4, work))


def test_other_failures_are_not_touched():
    def work(piece: Tensor) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(in_pieces(torch.arange(4), 4, work))


def test_a_failed_trial_is_forgotten_before_the_next():
    """What it had made would otherwise still take the memory that was missing."""
    alive: list[int] = []

    class Large:
        def __init__(self) -> None:
            alive.append(id(self))

        def __del__(self) -> None:
            alive.remove(id(self))

    def work(piece: Tensor) -> int:
        before = len(alive)
        made = Large()
        if len(piece) > 1:
            raise MemoryError
        return before + 0 * id(made)

    assert [before for _, before in in_pieces(torch.arange(4), 4, work)] == [0, 0, 0, 0]
