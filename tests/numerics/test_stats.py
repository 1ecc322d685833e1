"""Statistics against scipy, scikit-learn and counting by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from whence.errors import BadArgument, BadData
from whence.numerics import stats


def related(rows: int, columns: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, columns))
    return x, 2 * x + noise * random.normal(size=x.shape) + 5


def test_correlations_and_slopes_are_those_of_scipy_row_by_row():
    x, y = related(4, 30, 1.0)
    x[:, :10] = x[:, :10].round()  # ties
    for row in range(4):
        line = scipy.stats.linregress(x[row], y[row])
        assert stats.pearson(x, y)[row] == pytest.approx(line.rvalue, rel=1e-12)
        assert stats.slope(x, y)[row] == pytest.approx(line.slope, rel=1e-12)
        expected = scipy.stats.spearmanr(x[row], y[row]).statistic
        assert stats.spearman(x, y)[row] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("statistic", [stats.pearson, stats.spearman, stats.slope])
def test_a_vector_is_treated_as_one_row(statistic):
    x, y = related(1, 20, 1.0)
    assert float(statistic(x[0], y[0])) == statistic(x, y)[0]


@pytest.mark.parametrize("statistic", [stats.pearson, stats.spearman, stats.slope])
def test_constant_predictions_give_nan_although_their_mean_is_rounded(statistic):
    """0.1 less the rounded mean of 0.1 is not zero: the noise would correlate with anything."""
    x = np.stack([np.full(7, 0.1), np.arange(7.0)])
    found = statistic(x, np.tile(np.arange(7.0), (2, 1)))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1)


def test_the_slope_is_that_of_a_line_with_an_intercept():
    x = np.array([1.0, 2.0, 4.0])
    assert float(stats.slope(x, 3 * x + 100)) == pytest.approx(3)


def test_the_median_leaves_out_what_is_not_a_number():
    assert stats.median([np.nan, 1, 5, np.nan, 3]) == 3
    assert np.isnan(stats.median([np.nan]))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (3,)), ((0,), (0,)), ((1, 1, 2),) * 2])
def test_arrays_that_do_not_fit_are_refused(shapes):
    with pytest.raises(BadData):
        stats.pearson(np.ones(shapes[0]), np.ones(shapes[1]))


# ------------------------------------------------------------------ intervals and ceilings


def test_the_interval_covers_the_true_correlation_about_as_often_as_it_says():
    truth, hits = 1 / np.sqrt(1 + 0.5**2), 0
    for seed in range(100):
        x, y = related(1, 80, 1.0, seed)  # correlation 2 / sqrt(4 + 1)
        low, high = stats.bootstrap_interval(stats.pearson, x, y, draws=200, level=0.9, seed=seed)
        hits += low <= truth <= high
    assert 78 <= hits <= 98  # 90 of 100, four standard deviations of 3 below; percentile intervals


def test_the_interval_is_that_of_drawing_pairs_by_hand():
    x, y = related(3, 12, 1.0)
    random = np.random.default_rng(4)
    found = []
    for _ in range(50):
        columns = random.integers(0, 12, 12)
        rows = [np.corrcoef(x[q, columns], y[q, columns])[0, 1] for q in range(3)]
        found.append(np.median(rows))
    expected = np.quantile(found, [0.1, 0.9])
    interval = stats.bootstrap_interval(stats.pearson, x, y, level=0.8, draws=50, seed=4)
    assert interval == pytest.approx(tuple(expected))


def test_queries_that_share_their_examples_do_not_narrow_the_interval():
    """Copies of one query bring no information: columns are drawn jointly."""
    x, y = related(1, 25, 2.0)
    one = stats.bootstrap_interval(stats.pearson, x, y, seed=1)
    copies = stats.bootstrap_interval(
        stats.pearson, np.repeat(x, 9, axis=0), np.repeat(y, 9, axis=0), seed=1
    )
    assert copies == pytest.approx(one)


def test_an_interval_of_constant_predictions_is_nan():
    assert np.isnan(stats.bootstrap_interval(stats.pearson, np.ones(9), np.arange(9.0))).all()


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"draws": 0}])
def test_impossible_intervals_are_refused(options):
    with pytest.raises(BadArgument):
        stats.bootstrap_interval(stats.pearson, np.arange(5.0), np.arange(5.0), **options)


def test_a_perfect_predictor_reaches_the_noise_ceiling():
    random = np.random.default_rng(0)
    signal = random.normal(size=200_000)
    measured = signal + 0.5 * random.normal(size=signal.size)
    ceiling = stats.noise_ceiling(measured.var(), 0.25)
    # the standard error of a correlation of 0.9 from 200,000 pairs is 4e-4
    assert float(stats.pearson(signal, measured)) == pytest.approx(float(ceiling), abs=2e-3)


def test_the_ceiling_is_zero_where_all_is_noise_and_nan_where_nothing_varies():
    found = stats.noise_ceiling([1.0, 1.0, 0.0, 4.0], [1.0, 2.0, 0.0, 0.0])
    np.testing.assert_array_equal(found, [0, 0, np.nan, 1])


# ------------------------------------------------------------------ rankings


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_those_of_scikit_learn_with_ties(seed):
    random = np.random.default_rng(seed)
    labels = np.append(random.integers(0, 2, 28), [0, 1])
    scores = random.integers(0, 6, 30) + labels
    assert stats.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    expected = average_precision_score(labels, scores)
    assert stats.average_precision(scores, labels) == pytest.approx(expected)


def test_the_area_counts_pairs_in_order():
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8, 0.3]), np.array([0, 1, 0, 1, 0])
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    wins = [(high > low) + 0.5 * (high == low) for high, low in pairs]
    assert stats.auc(scores, labels) == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("area", [stats.auc, stats.average_precision])
@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1, np.nan, 2], [0, 1, 1]),
        ([1, 2, 3], ["no", "yes", "no"]),  # any text that is not empty would count as true
        ([1, 2, 3], [1, 2, 1]),
        ([1, 2], [1, 1]),
        ([1, 2], [0, 1, 0]),
    ],
)
def test_rankings_without_meaning_are_refused(area, scores, labels):
    with pytest.raises(BadData):
        area(scores, labels)


# ------------------------------------------------------------------ spread


@pytest.mark.parametrize("count", [2, 3, 10, 49, 50])
def test_positions_are_distinct_ascending_and_reach_both_ends(count):
    values = np.random.default_rng(0).normal(size=50) ** 3
    chosen = stats.spread(values, count, seed=1)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(values[chosen]) >= 0).all()
    assert values[chosen[0]] == values.min()
    assert values[chosen[-1]] == values.max()


def test_one_position_comes_from_each_stratum():
    ranks = stats.spread(np.arange(102.0), 12, seed=3)
    assert ((ranks[1:-1] - 1) // 10).tolist() == list(range(10))


def test_the_seed_decides_and_ties_are_no_trouble():
    values = np.random.default_rng(0).normal(size=200)
    first = stats.spread(values, 20, seed=1)
    np.testing.assert_array_equal(first, stats.spread(values, 20, seed=1))
    assert (first != stats.spread(values, 20, seed=2)).any()
    assert len(set(stats.spread(np.zeros(30), 10).tolist())) == 10


def test_impossible_choices_are_refused():
    with pytest.raises(BadArgument):
        stats.spread(np.arange(5.0), 0)
    with pytest.raises(BadData):
        stats.spread([1.0, np.nan, 3.0], 2)


@pytest.mark.parametrize("seeds", [2, 5])
def test_reliability_is_the_agreement_of_a_second_set_of_measurements(seeds):
    random = np.random.default_rng(0)
    true = random.normal(size=(1, 3, 4000))
    runs = true + 1.5 * random.normal(size=(2, seeds, 3, 4000))
    found = stats.reliability(runs[0])
    # a rank correlation over 4,000 has the standard error 1 / sqrt(4000)
    agreement = stats.spearman(runs[0].mean(0), runs[1].mean(0))
    np.testing.assert_allclose(found, agreement, atol=5 / np.sqrt(4000))
    reached = stats.spearman(true[0], runs[0].mean(0))
    np.testing.assert_allclose(np.sqrt(found), reached, atol=5 / np.sqrt(4000))


def test_two_measurements_are_two_halves():
    random = np.random.default_rng(0)
    runs = random.normal(size=30) + 0.5 * random.normal(size=(2, 1, 30))
    r = scipy.stats.spearmanr(*runs[:, 0]).statistic
    assert stats.reliability(runs)[0] == pytest.approx(2 * r / (1 + r))


def test_reliability_needs_two_measurements_and_effects_that_vary():
    runs = np.random.default_rng(0).normal(size=(2, 3, 30))
    assert np.isnan(stats.reliability(runs[:1])).all()
    runs[:, 1] = 0.0
    assert list(np.isnan(stats.reliability(runs))) == [False, True, False]
    assert stats.reliability(np.stack([runs[0], -runs[0]]))[0] == 0  # measurements that contradict


def test_a_mean_over_queries_counts_those_that_have_a_number():
    x, y = related(3, 20, 0.5)
    y[1] = 2.0
    interval = stats.bootstrap_interval(stats.spearman, x, y, over_queries=stats.mean, seed=1)
    assert interval[0] < stats.mean(stats.spearman(x, y)) < interval[1]
    assert stats.mean([1.0, np.nan, 3.0]) == 2.0
    assert np.isnan(stats.mean([np.nan]))
