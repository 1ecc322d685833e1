"""A problem that comes later, never, or is another one."""

from threading import Event

import pytest

from explored import PICTURES, make_problem
from whence.errors import BadData, Stale, Unsupported
from whence.explorer.catalog import Catalog
from whence.explorer.live import LOADING, MISSING, READY, REFUSED, Live


def test_a_run_is_there_before_its_problem(folder, problem):
    go_on = Event()
    live = Live(Catalog.open(folder), lambda: go_on.wait(10) and problem)
    live.begin()
    assert live.state == LOADING
    go_on.set()
    assert live.problem is problem
    assert live.state == READY


def test_without_a_problem_questions_name_the_remedy(folder):
    live = Live(Catalog.open(folder), None)
    assert live.state == MISSING
    with pytest.raises(Unsupported, match="--problem"):
        _ = live.problem


@pytest.mark.parametrize("error", [BadData(found="It has moved.", why="w", remedy="r"), OSError(2)])
def test_a_problem_that_cannot_be_loaded_says_why(folder, error):
    def load():
        raise error

    live = Live(Catalog.open(folder), load)
    live.wait(10)
    assert live.state == REFUSED
    told = live.to_json()["error"]
    assert told["found"]
    assert told["why"]
    assert told["remedy"]
    with pytest.raises((BadData, Unsupported)):
        _ = live.problem


def test_a_problem_with_other_data_is_refused(folder, problem):
    from dataclasses import replace

    other = replace(problem, parameters=problem.parameters + 1e-3)
    live = Live(Catalog.open(folder), lambda: other)
    live.wait(10)
    assert live.state == REFUSED
    with pytest.raises(Stale, match="The problem has changed since this run was made"):
        _ = live.problem
    assert "whence explore RUN --problem" in live.to_json()["error"]["remedy"]


def test_distances_are_those_of_the_pictures(folder):
    live = Live(Catalog.open(folder), make_problem)
    measured = live.distances(3)
    expected = ((PICTURES[:80] - PICTURES[103]) ** 2).sum(1) ** 0.5
    assert measured == pytest.approx(expected)
