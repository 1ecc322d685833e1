"""Parts of a fit share what memory there is, and say how much the least is."""

import pytest

import problems
from networks import NETWORKS
from whence.calculus import rooms
from whence.calculus.kronecker import example_bytes
from whence.calculus.layers import structure_of
from whence.calculus.rooms import Room, fixed_bytes, make_room, query_bytes
from whence.core.problem import Problem
from whence.errors import BadArgument, TooLarge

NAMES = ["mlp", "conv", "language model"]


def problem_of(name: str) -> Problem:
    return problems.ALL[name]().problem if name in problems.ALL else NETWORKS[name]()


def least(problem: Problem) -> int:
    structure = structure_of(problem)
    one = example_bytes(problem, structure) + query_bytes(problem, structure)
    return fixed_bytes(problem, structure) + one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("times", [1, 1.5, 10, 1e4])
def test_the_parts_are_no_more_than_the_whole(name, times):
    problem = problem_of(name)
    structure = structure_of(problem)
    memory = int(times * least(problem))
    room = make_room(problem, structure, memory)
    assert room.batch >= example_bytes(problem, structure)
    assert room.stack >= query_bytes(problem, structure)
    assert room.kept >= 0
    assert fixed_bytes(problem, structure) + room.batch + room.stack + room.kept == memory


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_less_than_the_least_is_refused_with_the_number(name):
    problem = problem_of(name)
    needed = least(problem)
    with pytest.raises(TooLarge, match=f"{needed:,} bytes.*memory=.* was allowed") as refusal:
        make_room(problem, structure_of(problem), needed - 1)
    assert f"memory={needed}" in refusal.value.remedy


def test_by_default_half_of_what_is_free_is_taken_and_no_more_than_is_of_use(monkeypatch):
    problem = problem_of("mlp")
    structure, needed = structure_of(problem), least(problem)
    monkeypatch.setattr(rooms, "free_bytes", lambda device: 2**60)
    assert make_room(problem, structure, "auto") == Room()
    monkeypatch.setattr(rooms, "free_bytes", lambda device: 20 * needed)
    room = make_room(problem, structure, "auto")
    total = fixed_bytes(problem, structure) + room.batch + room.stack + room.kept
    assert total == 10 * needed
    monkeypatch.setattr(rooms, "free_bytes", lambda device: needed)
    assert make_room(problem, structure, "auto").kept == 0
    monkeypatch.setattr(rooms, "free_bytes", lambda device: needed - 1)
    with pytest.raises(TooLarge, match="are free"):
        make_room(problem, structure, "auto")


@pytest.mark.parametrize("memory", [0, -1, float("nan")])
def test_no_number_of_bytes_is_refused(memory):
    problem = problem_of("mlp")
    with pytest.raises(BadArgument, match="memory"):
        make_room(problem, structure_of(problem), memory)
