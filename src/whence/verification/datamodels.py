"""Effects by regression on retrainings over random subsets.

    actual[q, s] ~ sum over the examples that s leaves out of effect[q, i]

Nothing is assumed of the model or its training, and nothing but retrainings is needed: many of
them, where examples are many.

Source: Ilyas, Park, Engstrom, Leclerc & Madry 2022 (arXiv:2202.00622), "Datamodels" (cited from
memory), who take the lasso. Ours, beyond it: effects have no intercept. All subsets are of one
size, so that the mean effect of a removal can be shared out evenly, as what any example is worth.
"""

from typing import Any, Literal

import numpy as np

from whence.core.scores import Scores
from whence.errors import BadArgument, unknown_name
from whence.numerics import stats
from whence.verification.result import Verification
from whence.version import __version__

Array = np.ndarray[Any, Any]
Penalty = Literal["ridge", "lasso"]

_FOLDS = 5
"""Parts of the subsets, each predicted by regression on the others."""

_STRENGTHS = np.logspace(-4, 4, 25)
"""Weights of the ridge that are tried, in units of the variance of a column."""


def fit_datamodels(check: Verification, *, penalty: Penalty = "ridge", seed: int = 0) -> Scores:
    """Effects of single examples, from what training on random subsets has shown.

    Args:
        check: from `verify(problem, scores, subsets=...)`; of the scores only the queries count.
        penalty: "ridge", or "lasso" where few examples matter. Its weight is chosen by leaving out
            subsets.
        seed: of the parts in which subsets are left out.

    Returns:
        (Q, N) effects. The report holds `cross_validated_lds`, `cross_validated_r2` and
        `cross_validated_slope`: how well they predict subsets that they have not seen. Holding them
        against `check` itself would not tell.

    Raises:
        BadArgument: not over subsets, or over too few of them.
        UnknownName: no such penalty.
    """
    if penalty not in ("ridge", "lasso"):
        raise unknown_name("penalty", penalty, ("ridge", "lasso"))
    truth, given = check.truth, check.prediction
    if truth.removals.kind != "subset" or len(truth.removals) < 2 * _FOLDS:
        raise BadArgument(
            found=f"The verification holds {len(truth.removals)} removals ({check.kind}).",
            why="A regression on random subsets needs some, to learn from and to be tested on.",
            remedy=f"Verify with subsets=64 or more; {2 * _FOLDS} are the least.",
        )
    is_out = truth.removals.is_out.astype(float)  # (M, N)
    values = _regress(is_out, truth.actual.T, penalty)
    unseen = _predict_unseen(is_out, truth.actual.T, penalty, seed)
    rows = [given.query_ids.tolist().index(name) for name in truth.query_ids.tolist()]
    kept = ("fingerprint", "problem", "parameters_covered", "parameters_total", "are_labelled")
    return Scores(
        values=values,
        query_ids=truth.query_ids,
        train_ids=truth.removals.ids,
        measurement=truth.measurement,
        baseline=truth.baseline,
        queries={name: array[rows] for name, array in given.queries.items()},
        report={
            **{name: given.report[name] for name in kept if name in given.report},
            "method": "datamodels",
            "reason": f"{penalty} regression on {len(is_out)} retrainings",
            "subsets": len(is_out),
            "fraction": truth.removals.fraction,
            "seeds": truth.seeds,
            "training": truth.training,
            **_quality(unseen, truth.actual),
            "warnings": list(truth.warnings),
            "version": __version__,
        },
    )


def _regress(is_out: Array, actual: Array, penalty: Penalty) -> Array:
    """(Q, N) effects from (M, N) what was left out and (M, Q) what it did."""
    mean, level = is_out.mean(axis=0), actual.mean(axis=0)
    slopes = (_ridge if penalty == "ridge" else _lasso)(is_out - mean, actual - level)
    left_out = is_out[0].sum()  # the same for all subsets, so that an intercept can be shared out
    shared = (level - slopes @ mean) / left_out
    return slopes + shared[:, None]


def _ridge(columns: Array, actual: Array) -> Array:
    """(Q, N), each query with the weight that predicts single left-out subsets best."""
    from sklearn.linear_model import RidgeCV

    strengths = _STRENGTHS * max(float((columns**2).sum(axis=0).mean()), np.finfo(float).tiny)
    model = RidgeCV(strengths, fit_intercept=False, alpha_per_target=True)
    return np.atleast_2d(model.fit(columns, actual).coef_)


def _lasso(columns: Array, actual: Array) -> Array:
    """(Q, N), each query with the weight that predicts parts of the subsets best."""
    from sklearn.linear_model import LassoCV

    model = LassoCV(cv=_FOLDS, fit_intercept=False, max_iter=10_000)
    return np.stack([model.fit(columns, one).coef_ for one in actual.T])


def _predict_unseen(is_out: Array, actual: Array, penalty: Penalty, seed: int) -> Array:
    """(Q, M) effect of every subset, predicted from those of the other parts."""
    order = np.random.default_rng(seed).permutation(len(is_out))
    predicted = np.empty(actual.T.shape)
    for part in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, part)
        predicted[:, part] = _regress(is_out[rest], actual[rest], penalty) @ is_out[part].T
    return predicted


def _quality(predicted: Array, actual: Array) -> dict[str, float]:
    """How well (Q, M) predictions of unseen subsets agree with what they did."""
    missed = np.square(actual - predicted).sum(axis=1)
    spread = np.square(actual - actual.mean(axis=1, keepdims=True)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = 1 - missed / spread
    return {
        "cross_validated_lds": stats.mean(stats.spearman(predicted, actual)),
        "cross_validated_r2": stats.median(explained),
        "cross_validated_slope": stats.median(stats.slope(predicted, actual)),
    }
