"""Questions outlive pages and servers, and can be given up."""

import json
import time
from pathlib import Path
from threading import Event

import pytest

from whence.errors import BadArgument
from whence.explorer.desk import (
    CANCELLED,
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    Desk,
    Question,
)
from whence.progress import track


def ended(question: Question) -> Question:
    for _ in range(500):
        if question.state not in ("waiting", RUNNING):
            return question
        time.sleep(0.01)
    raise AssertionError(f"still {question.state}")


def test_an_answer_is_there_for_the_next_server(tmp_path: Path):
    question = ended(Desk(tmp_path).ask("kind", {"x": [1]}, lambda: {"found": 3.5}))
    assert question.state == DONE
    (kept,) = Desk(tmp_path).questions()
    assert (kept.id, kept.kind, kept.asked) == (question.id, "kind", {"x": [1]})
    assert (kept.state, kept.answer) == (DONE, {"found": 3.5})


def test_answers_about_other_scores_are_left_alone(tmp_path: Path):
    question = ended(Desk(tmp_path, "first").ask("kind", {}, lambda: {}))
    assert Desk(tmp_path, "second").questions() == []
    assert [one.id for one in Desk(tmp_path, "first").questions()] == [question.id]


def test_one_question_waits_for_the_other_and_tells_how_far_it_is(tmp_path: Path):
    go_on, is_inside = Event(), Event()

    def work():
        for number in track(range(3), "Counting"):
            if number == 2:
                is_inside.set()
                assert go_on.wait(10)
        return {}

    desk = Desk(tmp_path)
    first, second = desk.ask("a", {}, work), desk.ask("b", {}, lambda: {})
    assert is_inside.wait(10)
    assert first.steps == {"label": "Counting", "done": 2, "total": 3}
    assert second.state == "waiting"
    go_on.set()
    assert ended(second).state == DONE
    assert first.state == DONE
    assert [question.kind for question in desk.questions()] == ["b", "a"]


def test_work_that_is_cancelled_ends_at_its_next_step_and_the_next_begins(tmp_path: Path):
    go_on, is_inside, steps = Event(), Event(), []

    def work():
        for number in track(range(100), "Training again"):
            steps.append(number)
            is_inside.set()
            assert go_on.wait(10)
        return {"too": "late"}

    desk = Desk(tmp_path)
    question = desk.ask("a", {}, work)
    assert is_inside.wait(10)
    desk.cancel(question)
    assert question.state == CANCELLED  # at once, for whoever looks
    go_on.set()
    assert ended(desk.ask("b", {}, lambda: {})).state == DONE
    assert steps == [0]
    assert question.answer is None
    assert desk.find(question.id).state == CANCELLED
    assert {q.state for q in Desk(tmp_path).questions()} == {CANCELLED, DONE}


def test_a_question_that_waits_is_never_begun_once_it_is_cancelled(tmp_path: Path):
    go_on, begun = Event(), []
    desk = Desk(tmp_path)
    desk.ask("a", {}, lambda: {"waited": go_on.wait(10)})
    second = desk.ask("b", {}, lambda: begun.append(1) or {})
    desk.cancel(second)
    go_on.set()
    ended(desk.ask("c", {}, lambda: {}))
    assert begun == []


def test_an_error_is_an_answer_and_ends_nothing_else(tmp_path: Path):
    def refuse():
        raise BadArgument(found="f", why="w", remedy="r")

    desk = Desk(tmp_path)
    refused = ended(desk.ask("a", {}, refuse))
    assert (refused.state, refused.error) == (FAILED, {"found": "f", "why": "w", "remedy": "r"})
    broken = ended(desk.ask("b", {}, lambda: 1 / 0))
    assert broken.state == FAILED
    assert "ZeroDivisionError" in broken.error["found"]
    assert ended(desk.ask("c", {}, lambda: {})).state == DONE


def test_a_server_that_was_killed_says_that_it_was_interrupted(tmp_path: Path):
    go_on, is_inside = Event(), Event()

    def work():
        is_inside.set()
        return {"waited": go_on.wait(10)}

    question = Desk(tmp_path).ask("a", {}, work)
    assert is_inside.wait(10)
    (found,) = Desk(tmp_path).questions()  # as a second server reads it
    go_on.set()
    assert (found.id, found.state) == (question.id, INTERRUPTED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        json.dumps({"format": "whence-answer", "version": 2, "id": "x", "kind": "k", "asked": {}}),
        json.dumps({"format": "whence-answer", "version": 1, "id": "y", "kind": "k", "asked": {}}),
        json.dumps({"format": "whence-answer", "version": 1, "id": "x", "unknown": 1}),
    ],
)
def test_files_that_are_not_whole_or_not_ours_are_left_alone(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    assert Desk(tmp_path).questions() == []
    assert (tmp_path / "x.json").read_text() == text
