"""Regression on retrainings finds effects that are known, and tells what it does not know."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from whence.core.scores import Scores
from whence.errors import BadArgument, UnknownName
from whence.numerics import stats
from whence.verification import Verification, verify
from whence.verification.datamodels import fit_datamodels


@pytest.fixture(scope="module")
def known(ridge, additive) -> tuple[Scores, Verification]:
    """True effects, which add up exactly, and 120 retrainings without a third of the data."""
    problem, scores = ridge
    source = additive(problem)
    options = {"subsets": 120, "fraction": 2 / 3, "training": source.training}
    return source.scores(scores), verify(problem, scores, **options)


def test_effects_that_add_up_are_found_with_their_sizes(known):
    true, check = known
    found = fit_datamodels(check)
    assert_allclose(found.values, true.values, atol=0.01 * np.abs(true.values).max())
    assert found.report["cross_validated_lds"] > 0.99
    assert found.report["cross_validated_r2"] > 0.99
    assert found.report["cross_validated_slope"] == pytest.approx(1, abs=0.02)


def test_sums_of_effects_have_the_mean_that_was_measured(known):
    _, check = known
    found = fit_datamodels(check)
    predicted = check.against(found).predicted
    assert_allclose(predicted.mean(axis=1), check.actual.mean(axis=1), rtol=1e-9)


def test_few_subsets_are_enough_for_few_examples_that_matter(ridge, additive):
    problem, scores = ridge
    source = additive(problem)
    source.pulls[5:] = 0
    options = {"subsets": 30, "training": source.training}
    check = verify(problem, scores, **options)
    true = source.scores(scores)
    ridge_found, lasso_found = (fit_datamodels(check, penalty=p) for p in ("ridge", "lasso"))
    errors = [np.abs(found.values - true.values).max() for found in (ridge_found, lasso_found)]
    assert errors[1] < 0.2 * errors[0]
    quality = [found.report["cross_validated_lds"] for found in (ridge_found, lasso_found)]
    assert quality[1] > quality[0]


def test_noise_is_not_taken_for_effects(known):
    _, check = known
    random = np.random.default_rng(0)
    noise = replace(check.truth, runs=random.standard_normal(check.truth.runs.shape))
    found = fit_datamodels(replace(check, truth=noise))
    # five queries of 120 subsets each: the mean rank correlation has a standard error of 0.04
    assert abs(found.report["cross_validated_lds"]) < 0.2
    assert found.report["cross_validated_r2"] < 0.05
    own = stats.mean(stats.spearman(check.against(found).predicted, noise.actual))
    assert own > found.report["cross_validated_lds"]  # on what it has seen it looks better


def test_the_scores_belong_to_the_problem_and_are_saved_with_their_report(known, ridge, tmp_path):
    problem, scores = ridge
    _, check = known
    found = Scores.load(fit_datamodels(check).save(tmp_path / "found"))
    found.refuse_other(problem.fingerprint(), why="")
    assert found.report["method"] == "datamodels"
    assert found.report["subsets"] == 120
    assert json.dumps(dict(found.report), allow_nan=False)
    fresh = verify(problem, found, subsets=12, seed=1)  # queries are there to be measured again
    assert fresh.query_ids.tolist() == scores.query_ids.tolist()


def test_some_of_the_queries_are_enough(ridge):
    problem, scores = ridge
    check = verify(problem, scores, subsets=20, queries=[3, 1])
    found = fit_datamodels(check)
    assert found.query_ids.tolist() == scores.query_ids[[3, 1]].tolist()
    assert_allclose(found.queries["inputs"], scores.queries["inputs"][[3, 1]])


def test_what_no_regression_can_learn_from_is_refused(ridge):
    with pytest.raises(BadArgument, match="leave-one-out"):
        fit_datamodels(verify(*ridge, examples=20))
    with pytest.raises(BadArgument, match="9 removals"):
        fit_datamodels(verify(*ridge, subsets=9))
    with pytest.raises(UnknownName, match="elastic"):
        fit_datamodels(verify(*ridge, subsets=12), penalty="elastic")
