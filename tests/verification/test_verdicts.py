"""Predictions known to be right, wrong or by chance get the verdict they earn."""

import json
from dataclasses import replace

import numpy as np
import pytest

from whence.core.scores import Scores
from whence.verification import verify
from whence.verification.verdicts import FEWEST, judge

NAN = float("nan")


def changed(scores: Scores, values: np.ndarray, **changes) -> Scores:
    return replace(scores, values=values, **changes)


# --------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({}, "believe the numbers"),
        ({"correlation": 0.89}, "believe the ranking"),
        ({"slope": 1.3}, "believe the ranking"),
        ({"slope": 0.79}, "believe the ranking"),
        ({"slope": NAN}, "believe the ranking"),
        ({"ranks": 0.1}, "believe the numbers"),
        ({"correlation": 0.89, "ranks": 0.69}, "believe only the top"),
        ({"correlation": 0.49, "ranks": 0.69}, "do not believe"),
        ({"correlation": -1.0, "ranks": -1.0, "slope": -2.0}, "do not believe"),
        ({"examples": FEWEST - 1}, "cannot tell"),
        ({"correlation": NAN}, "cannot tell"),
        ({"ceiling": 0.4}, "cannot tell"),
    ],
)
def test_the_verdict_follows_its_thresholds(numbers, verdict):
    good = {"correlation": 0.95, "ranks": 0.9, "slope": 1.0, "ceiling": 1.0, "examples": 50}
    assert judge(**(good | numbers)) == verdict


def test_right_effects_in_a_wrong_unit_can_only_be_ranked(multinomial):
    problem, scores = multinomial
    checked = verify(problem, changed(scores, 3 * scores.values), examples=30)
    assert checked.pearson > 0.99
    assert checked.slope == pytest.approx(1 / 3, rel=0.05)
    assert checked.verdict == "believe the ranking"


def test_scores_without_a_scale_can_at_best_be_ranked(multinomial):
    problem, scores = multinomial
    checked = verify(problem, changed(scores, scores.values, is_calibrated=False), examples=30)
    assert checked.verdict == "believe the ranking"
    assert np.isnan(checked.slope)
    assert "slope" not in checked.sentence
    assert checked.to_json()["slope"] is None


def test_effects_of_the_wrong_sign_or_by_chance_are_not_believed(multinomial):
    problem, scores = multinomial
    chance = np.random.default_rng(0).standard_normal(scores.values.shape)
    for values in (-scores.values, chance):
        assert verify(problem, changed(scores, values), examples=30).verdict == "do not believe"


def test_effects_that_do_not_vary_allow_no_verdict(ridge):
    problem, scores = ridge
    checked = verify(problem, changed(scores, np.zeros_like(scores.values)), examples=10)
    assert checked.verdict == "cannot tell"
    assert "do not vary" in checked.sentence
    assert json.dumps(checked.to_json(), allow_nan=False)


def test_a_few_retrainings_allow_no_verdict(ridge):
    checked = verify(*ridge, examples=3)
    assert checked.verdict == "cannot tell"
    assert f"at least {FEWEST}" in checked.sentence
