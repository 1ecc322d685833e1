"""Bars only for people who wait."""

import io
import time

import pytest

from whence import progress
from whence.progress import quiet, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which every loop has already taken too long."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    return screen


def slowly(count: int):
    for item in range(count):
        time.sleep(0.02)
        yield item


@pytest.mark.parametrize("items", [[1, 2, 3], (), range(4), "abc"])
def test_the_items_are_the_same_with_and_without_a_bar(items, terminal):
    assert list(track(items, "Working")) == list(items)
    with quiet():
        assert list(track(items, "Working")) == list(items)


def test_piped_output_stays_clean(monkeypatch, capfd):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert list(track(slowly(5), "Working", total=5)) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_what_is_being_done(terminal):
    list(track(slowly(5), "Solving", total=5))
    assert "Solving" in terminal.getvalue()


def test_nothing_is_shown_before_patience_ends(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    list(track(slowly(5), "Solving"))
    assert "Solving" not in terminal.getvalue()


def test_nothing_is_shown_inside_quiet(terminal):
    with quiet():
        list(track(slowly(5), "Solving"))
    assert terminal.getvalue() == ""
    list(track(slowly(5), "Scoring"))
    assert "Scoring" in terminal.getvalue()


def test_quiet_ends_with_its_block_even_after_an_error(terminal):
    with pytest.raises(ValueError, match="stop"), quiet():
        raise ValueError("stop")
    list(track(slowly(5), "Solving"))
    assert "Solving" in terminal.getvalue()


def test_a_bar_inside_a_bar_is_not_drawn(terminal):
    for _ in track(slowly(3), "Outer", total=3):
        assert list(track(slowly(3), "Inner", total=3)) == [0, 1, 2]
    assert "Outer" in terminal.getvalue()
    assert "Inner" not in terminal.getvalue()


def test_a_loop_that_was_left_early_does_not_silence_the_next(terminal):
    for item in track(slowly(5), "First", total=5):
        if item == 2:
            break
    list(track(slowly(5), "Second", total=5))
    assert "Second" in terminal.getvalue()


def test_an_error_in_the_loop_reaches_the_caller_and_the_terminal_recovers(terminal):
    def broken():
        yield 1
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(track(broken(), "First"))
    list(track(slowly(3), "Second"))
    assert "Second" in terminal.getvalue()


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
