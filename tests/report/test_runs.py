"""Runs of explanations on the disk."""

import pytest

from whence.errors import BadArgument, NotARun
from whence.report import render, tell
from whence.report.runs import MOST_TOLD, USE, open_run, problem_of, shortened
from whence.store import writing


def test_only_runs_of_the_kind_that_was_asked_for_are_opened(tmp_path):
    with writing(tmp_path / "use", kind=USE) as draft:
        draft.put_json("result.json", {})
    with pytest.raises(NotARun, match="kind 'use'"):
        open_run(tmp_path / "use")
    assert open_run(tmp_path / "use", kinds=(USE,)).kind == USE


def test_a_run_that_does_not_say_where_its_problem_is_names_the_remedy(tmp_path):
    with writing(tmp_path / "use", kind=USE) as draft:
        draft.put_json("result.json", {})
    with pytest.raises(BadArgument, match="--problem"):
        problem_of(open_run(tmp_path / "use", kinds=(USE,)))


def test_the_page_of_many_queries_tells_of_the_first_and_how_many_it_leaves_out(
    make_problem, make_scores
):
    story = tell(make_problem(), make_scores(make_problem(), MOST_TOLD + 30))
    short = shortened(story)
    assert short["queries"] == story["queries"][:MOST_TOLD]
    assert "30 more queries are not shown." in render(short)
    few = tell(make_problem(), make_scores(make_problem(), 3))
    assert shortened(few) is few
    assert "not shown" not in render(few)
