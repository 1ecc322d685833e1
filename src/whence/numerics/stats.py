"""How well one set of numbers predicts another, with intervals; numpy only.

`predicted` and `actual` are (M,) or (Q, M): one row per query, one column per example. A statistic
of (Q, M) arrays is one number per row; constant rows have no correlation and give NaN.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from whence.errors import BadArgument, BadData

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]


def pearson(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Correlation of each row: (Q,), or a scalar array for (M,)."""
    x, y = _centred(predicted, actual)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def spearman(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Rank correlation of each row, ties sharing their mean rank."""
    x, y = _pair(predicted, actual)
    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def slope(predicted: ArrayLike, actual: ArrayLike) -> Floats:
    """Slope of the least-squares line `actual = intercept + slope * predicted` of each row.

    One: the sizes are right. Above one: the effects are larger than predicted.
    """
    x, y = _centred(predicted, actual)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / (x * x).sum(-1)


def median(values: ArrayLike) -> float:
    """Median of the values that are numbers; NaN if none is."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.median(numbers)) if numbers.size else float("nan")


def mean(values: ArrayLike) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.mean(numbers)) if numbers.size else float("nan")


def bootstrap_interval(
    statistic: Statistic,
    predicted: ArrayLike,
    actual: ArrayLike,
    *,
    over_queries: Callable[[ArrayLike], float] = median,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over all queries, drawing examples anew.

    Columns are drawn for all rows together, because the effects of one example on several queries
    come from one retraining.

    Args:
        statistic: one of the functions above.
        predicted: (Q, M) or (M,).
        actual: the same shape.
        over_queries: makes one number of those of all queries: `median` or `mean`.
        level: probability inside the interval.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        Lower and upper end; NaN where the statistic is.
    """
    if not 0 < level < 1 or draws < 1:
        raise BadArgument(
            found=f"level={level}, draws={draws}.",
            why="A level is a probability between 0 and 1, and at least one draw is needed.",
            remedy="Take for example level=0.95, draws=1000.",
        )
    x, y = (np.atleast_2d(array) for array in _pair(predicted, actual))
    generator = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(draws):
        columns = generator.integers(0, x.shape[1], x.shape[1])
        found.append(over_queries(statistic(x[:, columns], y[:, columns])))
    numbers = np.asarray(found)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def noise_ceiling(total_variance: ArrayLike, noise_variance: ArrayLike) -> Floats:
    """The correlation that the true effects themselves would reach with noisy measured ones.

    ceiling = sqrt(max(0, 1 - noise variance / total variance)): what no predictor can exceed.

    Args:
        total_variance: variance of the measured effects, noise included.
        noise_variance: variance of a measured effect that comes from noise.
    """
    total = np.asarray(total_variance, dtype=float)
    noise = np.asarray(noise_variance, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, noise / total, np.nan)
    return np.sqrt(np.clip(1 - share, 0, None))


def reliability(runs: ArrayLike) -> Floats:
    """Rank correlation of a mean over S measurements with the mean over S others like them.

        r = mean over pairs of measurements of their rank correlation
        reliability = S r / (1 + (S - 1) r)

    With two measurements r is the correlation of the two halves. Effects that were known exactly
    would reach the square root of the reliability, and no prediction can do better.

    Args:
        runs: (S, Q, M) effects, measured S times.

    Returns:
        (Q,), between 0 and 1; NaN for a single measurement, or where effects do not vary.

    Source: the formula of Spearman 1910 and Brown 1910, for S halves (cited from memory).
    """
    measured = np.asarray(runs, dtype=float)
    count = len(measured)
    if count < 2:
        return np.full(measured.shape[1], np.nan)
    pairs = combinations(measured, 2)
    r = np.clip(np.mean([spearman(one, other) for one, other in pairs], axis=0), 0, None)
    return count * r / (1 + (count - 1) * r)


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half."""
    values, is_positive = _labelled(scores, labels)
    positives = int(is_positive.sum())
    negatives = len(values) - positives
    ranks = rankdata(values)[is_positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Precision averaged over the positives as they are found from the top, ties found together."""
    values, is_positive = _labelled(scores, labels)
    order = np.argsort(-values, kind="stable")
    found = np.cumsum(is_positive[order])
    last_of_tie = np.append(np.diff(values[order]) != 0, True)
    checked = np.flatnonzero(last_of_tie) + 1
    hits = found[last_of_tie]
    return float((np.diff(hits, prepend=0) * hits / checked).sum() / is_positive.sum())


def spread(values: ArrayLike, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Positions drawn across the range of values: both ends, and one from each stratum between.

    Args:
        values: (N,) numbers.
        count: how many positions; all of them if that is N or more.
        seed: of the draw inside each stratum.

    Returns:
        Distinct positions in ascending order of their values.

    Raises:
        BadArgument: fewer than one position.
        BadData: a value is NaN.
    """
    numbers = np.asarray(values, dtype=float)
    if np.isnan(numbers).any():
        raise BadData(
            found=f"{int(np.isnan(numbers).sum())} of {numbers.size} values are NaN.",
            why="They have no place in the range that is to be covered.",
            remedy="Leave them out.",
        )
    order = np.argsort(numbers, kind="stable")
    if count < 1:
        raise BadArgument(
            found=f"{count} positions were asked for.",
            why="At least one is needed.",
            remedy="Ask for one or more.",
        )
    if count >= len(order):
        return order
    if count <= 2:
        return order[[-1, 0][:count]][::-1]
    generator = np.random.default_rng(seed)
    strata = np.array_split(order[1:-1], count - 2)
    inner = [int(generator.choice(stratum)) for stratum in strata]
    return np.array([order[0], *inner, order[-1]], dtype=np.int64)


def _pair(predicted: ArrayLike, actual: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if x.shape != y.shape or x.ndim not in (1, 2) or x.size == 0:
        raise BadData(
            found=f"Predicted effects of shape {x.shape}, actual ones of shape {y.shape}.",
            why="They are compared number by number.",
            remedy="Give two arrays of one shape, (M,) or (Q, M), that are not empty.",
        )
    return x, y


def _centred(predicted: ArrayLike, actual: ArrayLike) -> tuple[Floats, Floats]:
    """Rows minus their means; constant rows become exactly zero, whatever the rounding."""
    x, y = _pair(predicted, actual)
    return tuple(  # pyright: ignore[reportReturnType]
        np.where(np.ptp(a, axis=-1, keepdims=True) == 0, 0.0, a - a.mean(-1, keepdims=True))
        for a in (x, y)
    )


def _labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, given = np.asarray(scores, dtype=float), np.asarray(labels)
    if np.isnan(values).any() or not np.isin(given, (0, 1)).all():
        raise BadData(
            found=f"{int(np.isnan(values).sum())} scores are NaN; labels hold "
            f"{', '.join(map(repr, np.unique(given)[:4].tolist()))}.",
            why="NaN has no place in a ranking, and only 0 and 1 say what is positive.",
            remedy="Leave out what has no score, and compare labels with the positive one.",
        )
    is_positive = given.astype(bool)
    if values.shape != is_positive.shape or values.ndim != 1:
        raise BadData(
            found=f"{values.shape} scores and {is_positive.shape} labels.",
            why="Every score belongs to one label.",
            remedy="Give two vectors of one length.",
        )
    if is_positive.all() or not is_positive.any():
        raise BadData(
            found=f"{int(is_positive.sum())} of {len(values)} labels are positive.",
            why="A ranking separates positives from negatives; one kind is missing.",
            remedy="Give labels of both kinds.",
        )
    return values, is_positive
