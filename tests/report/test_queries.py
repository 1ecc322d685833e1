"""One query of a story, whoever shows its examples."""

from dataclasses import replace

import numpy as np
import pytest

from whence.report import render, tell
from whence.report.queries import BINS, AtHand, histogram, query_arrays, tell_query
from whence.report.sentences import number, signed


def test_a_histogram_counts_every_effect_and_puts_none_in_the_middle():
    effects = np.array([-2.0, 0.0, 0.0, 1.0])
    counted = histogram(effects)
    assert sum(counted["counts"]) == 4
    assert counted["counts"][BINS // 2] == 2
    assert (counted["low"], counted["high"]) == (-2.0, 2.0)
    assert histogram(np.zeros(3))["counts"][BINS // 2] == 3


def test_several_inputs_come_back_in_the_structure_that_the_model_takes():
    queries = {"inputs/0": np.eye(2), "inputs/1": np.ones((2, 1)), "targets": np.array([3, 4])}
    inputs, target = query_arrays(queries, 1)
    assert isinstance(inputs, tuple)
    assert [part.tolist() for part in inputs] == [[0, 1], [1]]
    assert target == 4
    named, target = query_arrays({"inputs/left": np.eye(2), "inputs/right": np.eye(2)}, 0)
    assert set(named) == {"left", "right"}
    assert target is None


def test_an_example_is_looked_at_once_for_all_queries(make_problem, make_scores):
    problem = make_problem(examples=20)
    looked: list[int] = []
    problem.show = lambda position: looked.append(position) or {"kind": "none", "text": ""}
    scores = make_scores(problem, 3)
    shown = AtHand(problem, scores)
    for query in range(3):
        tell_query(scores, shown, query, top=20)
    assert sorted(looked) == list(range(20))


def test_a_standard_error_stands_beside_its_effect_where_there_is_one(make_problem, make_scores):
    problem = make_problem(examples=20)
    plain = make_scores(problem, 2)
    scores = replace(plain, errors=abs(plain.values) / 4)
    for entry in tell_query(scores, AtHand(problem, scores), 1, top=3)["proponents"]:
        assert entry["error"] == pytest.approx(abs(entry["effect"]) / 4)
    (strongest, *_) = tell(problem, scores)["queries"][0]["proponents"]
    page = render(tell(problem, scores))
    assert f"{signed(strongest['effect'])} ± {number(strongest['error'])}" in page
    assert "±" not in render(tell(problem, plain))
