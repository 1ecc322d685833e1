"""Statistics against scipy and brute force."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats as reference

from whence.errors import BadArgument, BadData
from whence.numerics import stats

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 30))
Y = 0.5 * X + RANDOM.standard_normal((4, 30))


def test_correlations_and_slopes_are_those_of_scipy_row_by_row():
    for row, (x, y) in enumerate(zip(X, Y, strict=True)):
        assert_allclose(stats.pearson(X, Y)[row], reference.pearsonr(x, y)[0])
        assert_allclose(stats.spearman(X, Y)[row], reference.spearmanr(x, y)[0])
        assert_allclose(stats.slope(X, Y)[row], reference.linregress(x, y).slope)


def test_ties_share_their_mean_rank():
    x, y = [1, 2, 2, 3, 3, 3], [2, 1, 3, 3, 5, 4]
    assert_allclose(stats.spearman(x, y), reference.spearmanr(x, y)[0])


def test_a_constant_row_has_no_correlation():
    """0.1 + 0.1 + 0.1 is not 0.3, so a mean that is taken off leaves rounding, not zero."""
    assert np.isnan(stats.pearson(np.full(7, 0.1), np.arange(7.0)))
    assert np.isnan(stats.slope(np.full(7, 0.1), np.arange(7.0)))


def test_medians_leave_out_what_is_no_number():
    assert stats.median([np.nan, 1, 3, np.inf]) == 2
    assert np.isnan(stats.median([np.nan]))


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    """Correlation 0.6, 200 experiments: 95 % +- four standard errors of that share."""
    random = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        x = random.standard_normal(60)
        y = 0.6 * x + 0.8 * random.standard_normal(60)
        low, high = stats.bootstrap_interval(stats.pearson, x, y, draws=200, seed=seed)
        held += low <= 0.6 <= high
    assert held / 200 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)


def test_bootstrap_draws_the_same_examples_for_all_queries():
    """Two equal rows have the interval of one."""
    one = stats.bootstrap_interval(stats.pearson, X[0], Y[0], seed=3)
    two = stats.bootstrap_interval(stats.pearson, X[[0, 0]], Y[[0, 0]], seed=3)
    assert_allclose(one, two)


def test_the_noise_ceiling_is_the_correlation_of_the_truth_with_noisy_measurements():
    random = np.random.default_rng(2)
    truth = random.standard_normal(200_000)
    noisy = truth + 0.7 * random.standard_normal(200_000)
    ceiling = stats.noise_ceiling(noisy.var(), 0.49)
    assert_allclose(ceiling, np.corrcoef(truth, noisy)[0, 1], atol=0.01)
    assert stats.noise_ceiling(1.0, 2.0) == 0
    assert np.isnan(stats.noise_ceiling(0.0, 0.0))


def test_auc_counts_pairs():
    scores, labels = RANDOM.integers(0, 5, 20), RANDOM.integers(0, 2, 20)
    pairs = [
        (p > n) + 0.5 * (p == n)
        for p, n in itertools.product(scores[labels == 1], scores[labels == 0])
    ]
    assert_allclose(stats.auc(scores, labels), np.mean(pairs))


def test_average_precision_is_the_mean_precision_at_the_positives():
    assert_allclose(stats.average_precision([4, 3, 2, 1], [1, 0, 1, 0]), (1 + 2 / 3) / 2)
    assert_allclose(stats.average_precision([1, 1, 1, 1], [1, 0, 0, 0]), 1 / 4)  # ties together


@pytest.mark.parametrize("count", [1, 2, 3, 10, 29, 30, 99])
def test_a_spread_has_distinct_positions_and_both_ends(count):
    values = X[0]
    found = stats.spread(values, count, seed=5)
    assert len(set(found.tolist())) == len(found) == min(count, 30)
    assert list(values[found]) == sorted(values[found])
    if count >= 2:
        assert {values.argmin(), values.argmax()} <= set(found.tolist())


def test_a_spread_takes_one_from_every_stratum():
    values = np.arange(102.0)
    inner = stats.spread(values, 12, seed=0)[1:-1]
    assert_allclose((inner - 1) // 10, np.arange(10))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadData, match="shape"):
        stats.pearson([1, 2], [1, 2, 3])
    with pytest.raises(BadData, match="positive"):
        stats.auc([1, 2], [1, 1])
    with pytest.raises(BadArgument, match="level"):
        stats.bootstrap_interval(stats.pearson, X, Y, level=1.5)
    with pytest.raises(BadArgument, match="positions"):
        stats.spread([1, 2], 0)
