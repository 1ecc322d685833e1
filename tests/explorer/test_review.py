"""The last decision on an example counts; undoing it brings back the one before."""

from pathlib import Path

import pytest

from whence.errors import BadArgument, UnknownName
from whence.explorer.review import Review
from whence.store.journals import Journal


def review(folder: Path, data: str = "d1") -> Review:
    return Review(folder / "decisions.jsonl", data, ("ham", "spam"))


def counted(reviewed: Review) -> dict:
    return {name: (d.action, d.label) for name, d in reviewed.decisions().items()}


def test_the_last_decision_counts_and_two_pages_lose_nothing(tmp_path: Path):
    first, second = review(tmp_path), review(tmp_path)
    first.decide(7, "drop")
    second.decide(8, "keep")
    second.decide(7, "relabel", "ham")
    first.decide("7", "keep")  # another id
    expected = {8: ("keep", None), 7: ("relabel", "ham"), "7": ("keep", None)}
    assert counted(first) == counted(second) == counted(review(tmp_path)) == expected


def test_undoing_goes_back_one_decision_at_a_time(tmp_path: Path):
    reviewed = review(tmp_path)
    for action in ("keep", "drop", "undo"):
        reviewed.decide(7, action)
    assert counted(reviewed) == {7: ("keep", None)}
    reviewed.decide(7, "undo")
    reviewed.decide(7, "undo")  # nothing is left to undo
    assert counted(reviewed) == {}
    reviewed.decide(7, "drop")
    assert counted(reviewed) == {7: ("drop", None)}


def test_decisions_on_other_data_are_left_alone(tmp_path: Path):
    review(tmp_path).decide(7, "drop")
    assert counted(review(tmp_path, "d2")) == {}
    assert counted(review(tmp_path)) == {7: ("drop", None)}


def test_lines_of_somebody_else_do_no_harm(tmp_path: Path):
    journal = Journal(tmp_path / "decisions.jsonl")
    for entry in ({}, {"data": "d1"}, {"data": "d1", "id": [], "action": "drop"}, {"id": 1}):
        journal.add(entry)
    assert counted(review(tmp_path)) == {}


def test_decisions_become_one_change_of_the_data(tmp_path: Path):
    reviewed = review(tmp_path)
    reviewed.decide(70, "drop")
    reviewed.decide(80, "relabel", "ham")
    reviewed.decide(90, "keep")
    change = reviewed.as_change(lambda example: int(example) // 10)
    assert change == {"remove": [7], "relabel": {"8": "ham"}}


def test_what_makes_no_sense_is_refused_and_not_written(tmp_path: Path):
    reviewed = review(tmp_path)
    with pytest.raises(UnknownName):
        reviewed.decide(7, "explode")
    with pytest.raises(UnknownName):
        reviewed.decide(7, "relabel", "eggs")
    with pytest.raises(BadArgument):
        reviewed.decide(7, "relabel")
    assert not reviewed.path.exists()
