"""Compares predicted effects with training again."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack, cast, get_args

import numpy as np
import torch

from whence.calculus.bregman import BregmanTraining
from whence.calculus.training import Training
from whence.core.kept import kept_queries
from whence.core.measurements import MeasurementFunction, is_named
from whence.core.problem import Problem
from whence.core.scores import Measurement, Scores
from whence.core.training import Trainer
from whence.errors import BadArgument, unknown_name
from whence.verification.bench import Bench, choose_training
from whence.verification.removals import (
    choose_examples,
    random_subsets,
    single_examples,
)
from whence.verification.result import Verification
from whence.verification.truth import SEEDS, Target, measure_truth

Array = np.ndarray[Any, Any]

SUBSETS = 64
"""Random subsets that are trained where no number was asked for."""


class Options(TypedDict, total=False):
    """What `verify` takes besides the retrainings that it makes."""

    queries: Sequence[int] | None
    measurement: MeasurementFunction | Measurement | None
    training: Trainer | Callable[..., object] | None
    damping: float
    seed: int


def verify(
    problem: Problem,
    scores: Scores,
    *,
    target: Target | None = None,
    examples: int | Sequence[int | str] = 50,
    subsets: int | None = None,
    fraction: float | None = None,
    seeds: int | None = None,
    **options: Unpack[Options],
) -> Verification:
    """Compares predicted effects with training again, without some of the training examples.

        actual[q, s] = m_q(trained without what s leaves out) - m_q(trained with everything)
        predicted[q, s] = sum over i that s leaves out of effect[q, i]

    | target | what is left out | asks |
    |---|---|---|
    | "loo" | one example at a time | what is a single example worth, in this very run? |
    | "subset" | a random share (1 - fraction) each time | do effects add up, over large removals? |
    | "pbrf" | one at a time, by `BregmanTraining` | is the linear algebra right, at no optimum? |

    Both models of a difference are trained in the same way, from the same seed, on the objective
    that the scores speak of: what the training does differently from the original one cancels.

    Args:
        problem: the one that the scores came from.
        scores: from `explain`, or loaded from a file.
        target: default "subset" where subsets or a fraction are asked for, else "loo".
        examples: how many training examples to leave out one by one, drawn across the range of
            predicted effects; or the ids of those to leave out.
        subsets: how many random subsets to train on, default 64.
        fraction: share of the training examples that every subset keeps, default 0.5.
        seeds: how often each removal is trained, with the seed of the training itself first; from
            two on, the noise of the training is known. Default 2 for subsets under a training that
            follows its seed, else 1.
        options: `queries`, positions of those to be measured, default all; `measurement`, needed
            only where the scores were loaded from a file and had been made with a measurement of
            one's own; `training`, how to train again, default that of the problem, else Newton
            steps from the optimum where the model is small enough; `damping` of the proximal
            Bregman objective, default that of the scores; `seed` of the draw, and the first one of
            the trainings.

    Returns:
        Correlations, slope, intervals, noise ceiling, and a verdict in words.

    Raises:
        Stale: the scores belong to another model or other data.
        CannotRetrain: nothing says how the model was trained, and it is too large to guess.
        NotConverged: the default training found no optimum.
        NonFinite: a training diverged.
        BadArgument: fewer than two removals, more subsets than there are, a fraction outside
            (0, 1), several seeds for a training that takes no notice of them, or a query, id or
            measurement that does not exist.
    """
    scores.refuse_other(
        problem.fingerprint(),
        why="Predictions for one model say nothing about retraining another.",
    )
    target = _resolve(target, subsets, fraction)
    seed = options.get("seed", 0)
    rows = _rows(scores, options.get("queries"))
    if target == "subset":
        count = SUBSETS if subsets is None else subsets
        share = 0.5 if fraction is None else fraction
        removals = random_subsets(problem, count, share, seed=seed)
    else:
        removals = single_examples(problem, choose_examples(scores, rows, examples, seed=seed))
    how = _choose(problem, scores, target, len(removals), options)
    bench = bench_of(problem, scores, rows, training=how, measurement=options.get("measurement"))
    return Verification(scores, measure_truth(bench, removals, target, seeds=seeds, seed=seed))


def verify_some(problem: Problem, scores: Scores, count: int) -> Verification:
    """Trains again without `count` things, in the way that tells most of this problem.

    A network with a recipe (`Training`) is trained on random halves, each under two seeds: its
    single effects drown in the noise of its seed. Anything else is trained without one example at a
    time.

    Args:
        problem: the one that the scores came from.
        scores: from `explain`.
        count: removals that are trained again.

    Raises:
        WhenceError: as `verify` does.
    """
    if isinstance(problem.training, Training):
        return verify(problem, scores, subsets=count)
    return verify(problem, scores, examples=count)


def bench_of(
    problem: Problem,
    scores: Scores,
    rows: Array,
    *,
    training: Trainer,
    measurement: MeasurementFunction | Measurement | None = None,
) -> Bench:
    """Trains again, and measures the queries that scores speak of.

    Args:
        problem: the one that the scores came from.
        scores: from `explain`.
        rows: (Q,) positions of the queries.
        training: how to train again.
        measurement: where the scores have lost theirs in a file.

    Raises:
        BadArgument: the scores do not hold their queries, or measure something else.
    """
    measured = _find_measurement(problem, scores, measurement)
    bench = Bench(problem, training, measured, kept_queries(problem, scores, rows.tolist()))
    _check_baseline(bench, scores.baseline[rows])
    return bench


def _choose(
    problem: Problem, scores: Scores, target: Target, count: int, options: Options
) -> Trainer:
    """What trains again."""
    given = options.get("training")
    if target != "pbrf":
        return choose_training(problem, given, SEEDS * count)
    damping = options.get("damping", scores.report.get("damping"))
    if given is not None or not isinstance(damping, int | float):
        raise BadArgument(
            found=f"target='pbrf', training={given!r}, damping={damping!r}.",
            why="The proximal Bregman objective is minimised from the parameters as they are, with "
            "the damping of the scores; these scores may have none.",
            remedy="Leave training out, and give a number: damping=1e-3.",
        )
    return BregmanTraining(float(damping))


# ------------------------------------------------------------------ what was asked


def _resolve(target: Target | None, subsets: int | None, fraction: float | None) -> Target:
    is_subset = subsets is not None or fraction is not None
    if target is None:
        return "subset" if is_subset else "loo"
    if target not in get_args(Target):
        raise unknown_name("target", cast("str", target), get_args(Target))
    if is_subset and target != "subset":
        raise BadArgument(
            found=f"target={target!r}, subsets={subsets!r}, fraction={fraction!r}.",
            why=f"Under {target!r} training examples are left out one by one.",
            remedy="Leave target out, or give examples= instead of subsets= and fraction=.",
        )
    return target


def _rows(scores: Scores, queries: Sequence[int] | None) -> Array:
    """Positions of the queries that are measured."""
    count = len(scores.query_ids)
    rows = np.arange(count) if queries is None else np.asarray(queries, dtype=np.int64)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= count:
        raise BadArgument(
            found=f"queries={list(rows)} of {count} queries.",
            why=f"They are positions, 0 to {count - 1}.",
            remedy="Give at least one of these, or leave queries out to measure all.",
        )
    return rows


def _find_measurement(
    problem: Problem, scores: Scores, given: MeasurementFunction | Measurement | None
) -> Measurement:
    measured = scores.measurement if given is None else given
    is_lost = isinstance(measured, Measurement) and measured.function is None
    if is_lost and not is_named(scores.measurement.name):
        raise BadArgument(
            found=f"The scores measure {scores.measurement.name!r}, a function of your own, which "
            "a file cannot hold.",
            why="The measurement has to be taken again after every training.",
            remedy="Pass measurement=, the function that the scores were made with.",
        )
    return problem.measurement(measured)


def _check_baseline(bench: Bench, baseline: Array) -> None:
    """Refuses a measurement that does not give what the scores say it gave."""
    values = bench.values(bench.problem.parameters[None])[:, 0]
    tolerance = 1e3 * torch.finfo(bench.problem.dtype).eps
    if not np.allclose(values, baseline, rtol=tolerance, atol=tolerance):
        worst = int(np.abs(values - baseline).argmax())
        raise BadArgument(
            found=f"The {bench.measurement.name} of query {bench.queries.ids[worst]} is "
            f"{values[worst]:.6g}; the scores say {baseline[worst]:.6g}.",
            why="Predicted and actual effects have to be changes of the same number.",
            remedy="Pass as measurement= the function that the scores were made with.",
        )
