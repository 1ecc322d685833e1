"""Numbers, words and JSON of a verification."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from whence.core.scores import Measurement, Scores
from whence.errors import BadArgument, Stale
from whence.verification import Verification, verify
from whence.verification.removals import Removals
from whence.verification.truth import Truth


def changed(scores: Scores, values: np.ndarray, **changes) -> Scores:
    return replace(scores, values=values, **changes)


# ------------------------------------------------------------------------ what is returned


def test_the_sentence_says_the_numbers(ridge):
    problem, scores = ridge
    sentence = verify(problem, scores, examples=12, queries=[2]).sentence
    assert sentence.startswith("Over 12 training examples left out one by one, predicted and ")
    assert sentence.endswith("slope 1.00: believe the numbers.")


def test_a_notebook_shows_the_verdict_and_runs_nothing(ridge):
    check = verify(*ridge, examples=8)
    page = check._repr_html_()
    assert check.verdict in page
    assert "8 training examples left out one by one" in page
    assert "<script" not in page


def test_json_holds_every_point_and_the_verdict(ridge):
    problem, scores = ridge
    checked = verify(problem, scores, examples=9)
    story = checked.to_json()
    assert json.loads(json.dumps(story, allow_nan=False)) == story
    assert story["kind"] == "leave-one-out"
    assert len(story["points"]) == checked.actual.size
    point = story["points"][9 + 4]
    assert point["query"] == scores.query_ids[1]
    assert point["example"] == checked.train_ids[4]
    assert point["predicted"] == scores.effect(1, point["example"])
    assert point["actual"] == checked.actual[1, 4]
    assert story["interval"][0] <= story["pearson"] <= story["interval"][1]
    assert [query["pearson"] for query in story["queries"]] == list(checked.pearson_by_query)


def test_of_very_many_points_json_holds_a_random_sample_and_how_many_there_are(ridge):
    checked = verify(*ridge, examples=9)
    whole, few = checked.to_json(), checked.to_json(most_points=10)
    total = checked.actual.size
    assert (len(few["points"]), few["points_total"], whole["points_total"]) == (10, total, total)
    places = [whole["points"].index(point) for point in few["points"]]
    assert places == sorted(set(places))  # in the order of all, each once
    assert np.diff(places).max() > 1
    assert len({point["query"] for point in few["points"]}) > 1
    assert {**few, "points": 0} == {**whole, "points": 0}  # every other number is that of all
    assert checked.to_json(most_points=total) == whole


def test_the_verdict_travels_with_a_copy_of_the_scores(ridge, tmp_path):
    problem, scores = ridge
    checked = verify(problem, scores, examples=9)
    checked.scores.save(tmp_path / "scores.npz")
    report = Scores.load(tmp_path / "scores.npz").report["verification"]
    assert report["verdict"] == checked.verdict
    assert "verification" not in scores.report


def test_numbers_just_below_one_do_not_read_as_one():
    scores = Scores(
        values=np.arange(20.0)[None],
        query_ids=np.array(["q"]),
        train_ids=np.arange(20),
        measurement=Measurement("margin", "logits", higher_is_better=True),
        baseline=np.zeros(1),
    )
    actual = np.arange(20.0)[None] + 0.1 * np.random.default_rng(0).standard_normal((1, 20))
    ids = scores.train_ids
    truth = Truth(
        target="loo",
        removals=Removals("example", ids, ids, np.eye(20, dtype=bool)),
        runs=actual[None],
        noise_variance=np.zeros(1),
        query_ids=scores.query_ids,
        baseline=scores.baseline,
        measurement=scores.measurement,
        training="by hand",
        seed=0,
        seconds=0.0,
        fingerprint={},
    )
    checked = Verification(scores, truth)
    assert 0.9995 < checked.pearson < 1
    assert "correlate at 0.9999" in checked.sentence


# ------------------------------------------------------------------------------ subsets


def test_the_linear_datamodeling_score_is_the_mean_rank_correlation_over_queries(network):
    check = verify(*network, subsets=12, seeds=1)
    assert check.lds == pytest.approx(check.spearman_by_query.mean())
    assert check.lds_interval[0] <= check.lds <= check.lds_interval[1]
    assert check.spearman == np.median(check.spearman_by_query)


def test_leave_one_out_has_no_linear_datamodeling_score(ridge):
    check = verify(*ridge, examples=9)
    assert np.isnan(check.lds)
    assert check.to_json()["lds"] is None


def test_a_verification_over_subsets_says_so(network):
    problem, scores = network
    check = verify(problem, scores, subsets=10, fraction=0.7, seeds=2)
    assert check.sentence.startswith(
        "Over 10 trainings on a random 70 % of the data, each under 2 "
    )
    assert "the linear datamodeling score is" in check.sentence
    assert f"correlate at only {check.noise_ceiling:.3f}" in check.sentence
    story = check.to_json()
    assert json.loads(json.dumps(story, allow_nan=False)) == story
    assert (story["kind"], story["fraction"], story["seeds"]) == ("subsets", pytest.approx(0.7), 2)
    assert story["left_out"] == "a random 30 % of the training examples"
    assert {point["example"] for point in story["points"]} == set(range(10))


def test_scores_without_a_scale_are_compared_by_rank_alone(network):
    problem, scores = network
    check = verify(problem, replace(scores, is_calibrated=False), subsets=10, seeds=1)
    assert "slope" not in check.sentence
    assert ", correlation" not in check.sentence
    assert check.to_json()["slope_interval"] == [None, None]


def test_a_single_seed_says_that_the_noise_is_unknown(network):
    check = verify(*network, subsets=10, seeds=1)
    assert np.isnan(check.noise_ceiling)
    assert np.isnan(check.reliability)
    assert check.sentence.endswith("it is not known how noisy the training is.")


# ------------------------------------------------------------------------ other scores


def test_other_scores_stand_beside_the_same_retrainings(ridge):
    problem, scores = ridge
    check = verify(problem, scores, subsets=9)
    worse = changed(scores, scores.values[:, ::-1])
    other = check.against(worse)
    assert_array_equal(other.actual, check.actual)
    assert_array_equal(other.predicted, verify(problem, worse, subsets=9).predicted)
    assert other.lds < check.lds


def test_scores_of_something_else_do_not_stand_beside_them(ridge):
    problem, scores = ridge
    check = verify(problem, scores, examples=9)
    with pytest.raises(Stale):
        check.against(scores.with_report(fingerprint={"parameters": "0" * 64}))
    with pytest.raises(BadArgument, match="the scores say"):
        check.against(replace(scores, baseline=scores.baseline + 1))
    with pytest.raises(BadArgument, match="no query"):
        check.against(replace(scores, query_ids=scores.query_ids + 100))
