"""Bars only for people who wait."""

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr

import pytest

from whence import progress
from whence.progress import breathe, breathing_inside, quiet, track, watched


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop has already taken too long."""
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setenv("TERM", "xterm")


def shown(loops: Callable[[], object]) -> str:
    """What a terminal gets to see while the loops run."""
    screen = Terminal()
    with redirect_stderr(screen):  # pytest has its own once the fixtures are made
        loops()
    return screen.getvalue()


def slowly(count: int):
    for item in range(count):
        time.sleep(0.02)
        yield item


@pytest.mark.parametrize("items", [[1, 2, 3], (), range(4), "abc"])
def test_the_items_are_the_same_with_and_without_a_bar(items):
    def loops() -> None:
        assert list(track(items, "Working")) == list(items)
        with quiet():
            assert list(track(items, "Working")) == list(items)

    loops()
    shown(loops)


def test_piped_output_stays_clean(capfd):
    assert list(track(slowly(5), "Working", total=5)) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_what_is_being_done():
    assert "Solving" in shown(lambda: list(track(slowly(5), "Solving", total=5)))


def test_nothing_at_all_is_written_before_patience_ends(monkeypatch):
    """Not even the codes that hide the cursor or clear the line."""
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    assert shown(lambda: list(track(slowly(5), "Solving"))) == ""


def test_nothing_is_shown_inside_quiet():
    def loops() -> None:
        with quiet():
            list(track(slowly(5), "Solving"))
        list(track(slowly(5), "Scoring"))

    found = shown(loops)
    assert "Solving" not in found
    assert "Scoring" in found


def test_quiet_ends_with_its_block_even_after_an_error():
    with pytest.raises(ValueError, match="stop"), quiet():
        raise ValueError("stop")
    assert "Solving" in shown(lambda: list(track(slowly(5), "Solving")))


def test_a_bar_inside_a_bar_is_not_drawn():
    def loops() -> None:
        for _ in track(slowly(3), "Outer", total=3):
            assert list(track(slowly(3), "Inner", total=3)) == [0, 1, 2]

    found = shown(loops)
    assert "Outer" in found
    assert "Inner" not in found


def test_a_loop_that_was_left_early_does_not_silence_the_next():
    def loops() -> None:
        for item in track(slowly(5), "First", total=5):
            if item == 2:
                break
        list(track(slowly(5), "Second", total=5))

    assert "Second" in shown(loops)


def test_an_error_in_the_loop_reaches_the_caller_and_the_next_bar_is_drawn():
    def broken():
        yield 1
        raise RuntimeError("broken")

    def loops() -> None:
        with pytest.raises(RuntimeError, match="broken"):
            list(track(broken(), "First"))
        list(track(slowly(3), "Second"))

    assert "Second" in shown(loops)


def test_loops_are_lazy():
    taken: list[int] = []

    def source():
        for item in range(3):
            taken.append(item)
            yield item

    loop = track(source(), "Working")
    assert taken == []
    assert next(iter(loop)) == 0
    assert taken == [0]


def test_a_watcher_hears_of_every_step_and_no_bar_is_drawn():
    heard: list[tuple[str, int, int | None]] = []

    def work() -> None:
        with progress.watched(lambda *step: heard.append(step)):
            assert list(track("ab", "Spelling")) == ["a", "b"]
            assert list(track(iter("c"), "Guessing")) == ["c"]

    assert shown(work) == ""
    assert heard[:3] == [("Spelling", 0, 2), ("Spelling", 1, 2), ("Spelling", 2, 2)]
    assert heard[3:] == [("Guessing", 0, None), ("Guessing", 1, None)]


def test_what_a_watcher_raises_ends_the_work_before_the_next_step():
    done: list[int] = []

    def stop_after_two(label: str, steps: int, total: int | None) -> None:
        if steps == 2:
            raise KeyboardInterrupt

    def work() -> None:
        for number in track(range(5), "Counting"):
            done.append(number)

    with pytest.raises(KeyboardInterrupt), progress.watched(stop_after_two):
        work()
    assert done == [0, 1]


class Ended(BaseException):
    """Of these tests."""


def end() -> None:
    raise Ended


def test_work_is_ended_where_it_breathes_and_only_where_somebody_watches():
    breathe()
    with watched(lambda *_: None):
        breathe()  # this watcher ends nothing
    with watched(lambda *_: None, end), pytest.raises(Ended):
        breathe()
    breathe()


def test_a_loop_of_another_package_breathes_whenever_it_calls_a_function_of_its_own():
    calls: list[int] = []

    def pulse() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Ended

    numbers = (str(i) for i in range(100))
    with watched(lambda *_: None, pulse), pytest.raises(Ended), breathing_inside("json"):
        list(map(json.loads, numbers))
    assert next(numbers) not in ("0", "99")  # ended in the middle
    assert sys.getprofile() is None


def test_a_loop_of_another_package_is_left_alone_where_nobody_watches():
    with breathing_inside("json"):
        assert sys.getprofile() is None
        assert json.loads("3") == 3
    with watched(lambda *_: None, end), breathing_inside("another"):
        assert json.loads("3") == 3
    assert sys.getprofile() is None
