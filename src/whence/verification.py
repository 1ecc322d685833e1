"""How well predicted effects agree with training again.

Training examples are left out one at a time, the model is trained again without each, and the
change of every query's measurement is compared with the effect that the scores predict.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.adapters.base import make_training
from whence.calculus.gradients import measure
from whence.calculus.products import hessian_is_ggn
from whence.calculus.retraining import (
    DENSE_PARAMETERS,
    NewtonTraining,
    hessian_preconditioner,
)
from whence.core.batches import TensorData, find_ids
from whence.core.changes import Change
from whence.core.measurements import Contrast, MeasurementFunction, is_named
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement, Scores
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, CannotRetrain
from whence.numerics import stats

Array = np.ndarray[Any, Any]

NUMBERS, RANKING, TOP = "believe the numbers", "believe the ranking", "believe only the top"
NOTHING, UNKNOWN = "do not believe", "cannot tell"

FEWEST = 8
"""With fewer retrainings any correlation can be chance, and no verdict is given."""

_EXTREMES = 4
"""One in so many retrainings goes to the strongest effects of single queries."""

_REPEATS = 2
"""Further seeds with which a noisy training is repeated; with eight removals or more each, that
tells the variance of the noise to about a third."""

_AFFORDABLE = 1e11
"""N P M up to which retraining is offered unasked for models with many parameters: minutes."""


def verify(
    problem: Problem,
    scores: Scores,
    *,
    examples: int | Sequence[int | str] = 50,
    queries: Sequence[int] | None = None,
    measurement: MeasurementFunction | Measurement | None = None,
    training: Trainer | Callable[..., object] | None = None,
    seed: int = 0,
) -> "Verification":
    """Compares predicted effects with leave-one-out retraining.

        actual[q, i] = m_q(retrained without i) - m_q(retrained with everything)

    Both models are trained in the same way, from the same seed, on the objective that the scores
    speak of: what the training does differently from the original one cancels.

    Args:
        problem: the one that the scores came from.
        scores: from `explain`, or loaded from a file.
        examples: how many training examples to leave out, drawn across the range of predicted
            effects; or the ids of those to leave out.
        queries: positions of the queries to be measured, default all.
        measurement: needed only where the scores were loaded from a file and had been made with a
            measurement of one's own.
        training: how to train again; default that of the problem, else Newton steps from the
            optimum where the model is small enough.
        seed: of the draw, and of the trainings; a noisy training is repeated with the next ones.

    Returns:
        Correlations, slope, interval, noise ceiling, and a verdict in words.

    Raises:
        Stale: the scores belong to another model or other data.
        CannotRetrain: nothing says how the model was trained, and it is too large to guess.
        NotConverged: the default training found no optimum.
        BadArgument: fewer than two examples, or a query, id or measurement that does not exist.
    """
    started = time.monotonic()
    scores.refuse_other(
        problem.fingerprint(),
        why="Predictions for one model say nothing about retraining another.",
    )
    rows = _rows(scores, queries)
    columns = _columns(scores, rows, examples, seed)
    places = problem.data.positions(scores.train_ids[columns])
    how = choose_training(problem, training, len(places))
    measured = _find_measurement(problem, scores, measurement)
    bench = Bench(problem, how, measured, _ask(problem, scores, rows))
    _check_baseline(bench, scores.baseline[rows])
    actual, retrained = bench.effects(places, seed)
    noise = bench.noise(actual, places, retrained=retrained, seed=seed)
    return Verification(
        predicted=scores.values[np.ix_(rows, columns)],
        actual=actual,
        noise_variance=noise,
        query_ids=scores.query_ids[rows],
        train_ids=scores.train_ids[columns],
        prediction=scores,
        training=how.name,
        seed=seed,
        seconds=time.monotonic() - started,
        warnings=(
            *_strays(retrained),
            *_drift(bench, retrained.parameters[0], scores.baseline[rows], actual),
        ),
    )


# ----------------------------------------------------------------------- the result


@dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """Predicted and actual effects of leaving out single training examples.

    The verdict rests on the lower ends of the 95 % intervals, which come from drawing the examples
    anew (bootstrap) and hold for the median over queries:

    - "believe the numbers": correlation at least 0.9 and slope from 0.8 to 1.25;
    - "believe the ranking": rank correlation at least 0.7;
    - "believe only the top": correlation at least 0.5, which a few large effects can bring about;
    - "do not believe": less than that;
    - "cannot tell": fewer than `FEWEST` examples, effects that do not vary, or trainings so noisy
      that true effects would correlate with them at less than 0.5.

    Scores without a scale are judged by their ranking alone, and can get no better than the second.

    Args:
        predicted: (Q, M) effects from the scores.
        actual: (Q, M) effects measured by training again.
        noise_variance: (Q,) part of the variance of an actual effect that comes from the training.
        query_ids: (Q,) queries that were measured.
        train_ids: (M,) training examples that were left out.
        prediction: the scores that were checked.
        training: what trained the models again.
        seed: of draw and training.
        seconds: that it took.
        warnings: what a reader should know.
    """

    predicted: Array
    actual: Array
    noise_variance: Array
    query_ids: Array
    train_ids: Array
    prediction: Scores
    training: str
    seed: int
    seconds: float
    warnings: tuple[str, ...] = ()
    kind: str = "leave-one-out"

    @property
    def examples(self) -> int:
        """M, how many training examples were left out."""
        return len(self.train_ids)

    @property
    def unit(self) -> str:
        """Unit of the actual effects."""
        return self.prediction.measurement.unit

    @cached_property
    def pearson_by_query(self) -> Array:
        """(Q,) correlation of predicted and actual effects."""
        return stats.pearson(self.predicted, self.actual)

    @cached_property
    def spearman_by_query(self) -> Array:
        """(Q,) rank correlation."""
        return stats.spearman(self.predicted, self.actual)

    @cached_property
    def slope_by_query(self) -> Array:
        """(Q,) slope of actual over predicted effects; NaN for scores without a scale."""
        slopes = stats.slope(self.predicted, self.actual)
        return slopes if self.prediction.is_calibrated else np.full_like(slopes, np.nan)

    @cached_property
    def noise_ceiling_by_query(self) -> Array:
        """(Q,) the correlation that the true effects would reach with these noisy ones."""
        return stats.noise_ceiling(self.actual.var(axis=1, ddof=1), self.noise_variance)

    @property
    def pearson(self) -> float:
        """Median correlation over queries."""
        return stats.median(self.pearson_by_query)

    @property
    def spearman(self) -> float:
        """Median rank correlation over queries."""
        return stats.median(self.spearman_by_query)

    @property
    def slope(self) -> float:
        """Median slope over queries; one where the sizes are right."""
        return stats.median(self.slope_by_query)

    @property
    def noise_ceiling(self) -> float:
        """Median noise ceiling over queries."""
        return stats.median(self.noise_ceiling_by_query)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `pearson`."""
        return self._interval(stats.pearson)

    @cached_property
    def spearman_interval(self) -> tuple[float, float]:
        """95 % interval of `spearman`."""
        return self._interval(stats.spearman)

    def _interval(self, statistic: stats.Statistic) -> tuple[float, float]:
        return stats.bootstrap_interval(statistic, self.predicted, self.actual, seed=self.seed)

    @property
    def verdict(self) -> str:
        """How far to believe the scores, in a few words."""
        return judge(
            correlation=self.interval[0],
            ranks=self.spearman_interval[0],
            slope=self.slope,
            ceiling=self.noise_ceiling,
            examples=self.examples,
        )

    @property
    def sentence(self) -> str:
        """The numbers and the verdict in plain words."""
        is_scaled = self.prediction.is_calibrated
        value, (low, high) = (
            (self.pearson, self.interval) if is_scaled else (self.spearman, self.spearman_interval)
        )
        words = [
            f"Over {self.examples} training examples left out one by one, predicted and actual "
            f"effects {'correlate' if is_scaled else 'agree in rank'} at {_number(value)} "
            f"(95 % interval {_number(low)} to {_number(high)})",
            f", slope {self.slope:.2f}" if is_scaled else "",
            f", in the median of {len(self.query_ids)} queries" if len(self.query_ids) > 1 else "",
            f": {self.verdict}.",
        ]
        if self.examples < FEWEST:
            words.append(f" It takes at least {FEWEST} to tell chance from agreement.")
        elif math.isnan(value):
            words.append(" Predicted or actual effects do not vary.")
        if self.noise_ceiling < 0.99:
            words.append(
                f" The training is noisy: even true effects would correlate at only "
                f"{_number(self.noise_ceiling)}."
            )
        return "".join(words)

    @cached_property
    def scores(self) -> Scores:
        """A copy of the scores that carries the verdict in its report."""
        return self.prediction.with_report(verification=self._summary())

    def to_json(self) -> dict[str, Any]:
        """Every point and number as plain JSON; what is not a number is None."""
        named = zip(self.query_ids.tolist(), self.predicted, self.actual, strict=True)
        points = [
            {"query": query, "example": example, "predicted": float(p), "actual": float(a)}
            for query, predicted, actual in named
            for example, p, a in zip(self.train_ids.tolist(), predicted, actual, strict=True)
        ]
        by_query = zip(
            self.query_ids.tolist(),
            self.pearson_by_query,
            self.spearman_by_query,
            self.slope_by_query,
            self.noise_ceiling_by_query,
            strict=True,
        )
        names = ("pearson", "spearman", "slope", "noise_ceiling")
        queries = [
            {"query": query} | dict(zip(names, map(_finite, numbers), strict=True))
            for query, *numbers in by_query
        ]
        return self._summary() | {"points": points, "queries": queries}

    def _summary(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "examples": self.examples,
            "pearson": _finite(self.pearson),
            "spearman": _finite(self.spearman),
            "slope": _finite(self.slope),
            "interval": [_finite(end) for end in self.interval],
            "spearman_interval": [_finite(end) for end in self.spearman_interval],
            "noise_ceiling": _finite(self.noise_ceiling),
            "unit": self.unit,
            "training": self.training,
            "seed": self.seed,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }

    def __repr__(self) -> str:
        return f"Verification({self.sentence})"


def judge(*, correlation: float, ranks: float, slope: float, ceiling: float, examples: int) -> str:
    """The verdict; its thresholds stand in `Verification`.

    Args:
        correlation: lower end of the interval of the correlation.
        ranks: lower end of the interval of the rank correlation.
        slope: of actual over predicted effects; NaN where the scores have no scale.
        ceiling: the correlation that true effects would reach.
        examples: retrainings.
    """
    if examples < FEWEST or math.isnan(correlation) or math.isnan(ranks) or ceiling < 0.5:
        return UNKNOWN
    if correlation >= 0.9 and 0.8 <= slope <= 1.25:
        return NUMBERS
    if ranks >= 0.7:
        return RANKING
    return TOP if correlation >= 0.5 else NOTHING


# ------------------------------------------------------------- one change, by retraining


@dataclass(frozen=True, eq=False)
class Retraining:
    """What a change of the training data does when the model is trained again.

    Args:
        actual: (Q,) effects; the mean over seeds where the training is noisy.
        noise: (Q,) standard error of `actual`: spread over seeds, or the error that the gradient
            left at the end of the trainings allows for.
        training: what trained the models.
        parameters: (P,) of the model trained on the changed data, with the first seed.
        warnings: what a reader should know.
    """

    actual: Array
    noise: Array
    training: str
    parameters: Tensor
    warnings: tuple[str, ...] = ()


def retrain(
    problem: Problem,
    change: Change,
    queries: object,
    *,
    measurement: str | MeasurementFunction | Measurement | Contrast | None = None,
    training: Trainer | Callable[..., object] | None = None,
    seed: int = 0,
) -> Retraining:
    """Trains again on changed data, and without the change as a control.

        actual[q] = m_q(trained on the changed data) - m_q(trained on the data as it is)

    Args:
        problem: what was trained.
        change: what becomes of some training examples.
        queries: in the form of the training data.
        measurement: what is measured on them.
        training: as for `verify`.
        seed: of both trainings; a noisy training is repeated with the next ones.

    Raises:
        CannotRetrain: nothing says how the model was trained, or the training cannot take other
            contents.
    """
    how = _warm(problem, choose_training(problem, training, 2), change)
    measured = problem.measurement(measurement)
    bench = Bench(problem, how, measured, problem.queries(queries))
    repeats = 1 if how.is_deterministic else 1 + _REPEATS
    runs = [bench.effect_of(change, seed + i) for i in range(repeats)]
    actual = np.stack([effects for effects, _ in runs])
    noise = np.zeros(actual.shape[1])
    if repeats > 1:
        noise = actual.std(axis=0, ddof=1) / math.sqrt(repeats)
    control, changed = runs[0][1]
    baseline = bench.values(problem.parameters[None])[:, 0]
    warnings = _drift(bench, control, baseline, actual[0][:, None])
    return Retraining(actual.mean(axis=0), noise, how.name, changed, tuple(warnings))


# ---------------------------------------------------------------- what is retrained


def draw(effects: Array, count: int, *, seed: int = 0) -> Array:
    """Training examples to leave out, across the whole range of predicted effects.

    A quarter are the largest and smallest effects of single queries, queries taking turns; the
    rest are spread over the ranks of the mean |effect|, each query's effects being divided by
    their mean size before.

    Args:
        effects: (Q, N).
        count: how many; all N if there are no more.
        seed: of the draw.

    Returns:
        Distinct positions in ascending order.
    """
    if count >= effects.shape[1]:
        return np.arange(effects.shape[1])
    extremes = _extremes(effects, max(1, count // _EXTREMES), seed)
    size = np.abs(effects)
    mean = size.mean(axis=1, keepdims=True)
    pooled = (size / np.where(mean > 0, mean, 1)).mean(axis=0)  # (N,)
    rest = np.setdiff1d(np.arange(len(pooled)), extremes)
    spread = stats.spread(pooled[rest], count - len(extremes), seed=seed)
    return np.sort(np.concatenate([extremes, rest[spread]]))


def _extremes(effects: Array, count: int, seed: int) -> Array:
    order = np.argsort(effects, axis=1, kind="stable")  # (Q, N)
    queries = np.random.default_rng(seed).permutation(len(order))
    ends = np.stack([order[queries, ::-1], order[queries]])  # (2, Q, N): largest, smallest first
    turns = ends.transpose(2, 1, 0).ravel()  # the strongest of every query before the second
    return np.array(list(dict.fromkeys(turns.tolist()))[:count], dtype=np.int64)


@dataclass(frozen=True)
class Bench:
    """Measures the effects of removals by training again.

    Args:
        problem: what is trained.
        training: how.
        measurement: what is measured on the queries.
        queries: on which.
    """

    problem: Problem
    training: Trainer
    measurement: Measurement
    queries: Queries

    def effects(self, positions: Array, seed: int) -> tuple[Array, Retrained]:
        """Leaves out one example at a time.

        Args:
            positions: (M,) of the training examples.
            seed: shared by all trainings.

        Returns:
            (Q, M) effects, and the 1 + M trainings: the first leaves out nothing.
        """
        weights = torch.ones(1 + len(positions), len(self.problem), dtype=torch.float64)
        weights[torch.arange(1, 1 + len(positions)), torch.as_tensor(positions)] = 0
        retrained = self.training.retrain(self.problem, weights, seed=seed)
        values = self.values(retrained.parameters)
        return values[:, 1:] - values[:, :1], retrained

    def effect_of(self, change: Change, seed: int) -> tuple[Array, Tensor]:
        """(Q,) effect of one change, and (2, P) of the control and the changed training."""
        rows = torch.stack([torch.ones(len(self.problem)).double(), change.row(len(self.problem))])
        if change.is_replacement:
            pairs = zip((self.problem, change.contents(self.problem)), rows, strict=True)
            found = [self.training.retrain(p, row[None], seed=seed).parameters for p, row in pairs]
            parameters = torch.cat(found)
        else:
            parameters = self.training.retrain(self.problem, rows, seed=seed).parameters
        values = self.values(parameters)
        return values[:, 1] - values[:, 0], parameters

    def values(self, parameters: Tensor) -> Array:
        """(Q, M) measurements at parameters (M, P), in the precision that these have."""
        problem = self.problem
        if problem.dtype != parameters.dtype:
            problem = problem.to(dtype=parameters.dtype)
        asked = problem.queries(
            TensorData(self.queries.inputs, self.queries.targets, self.queries.ids)
        )
        rows = [measure(problem.at(theta), self.measurement, asked) for theta in parameters]
        return torch.stack(rows, 1).double().cpu().numpy()

    def noise(self, actual: Array, positions: Array, *, retrained: Retrained, seed: int) -> Array:
        """(Q,) variance of an actual effect that the training itself brings in.

        A training that stops at a known gradient errs by about that share of an effect. Any other
        is run once more with another seed; where that changes something, a fifth of the removals
        are repeated with other seeds, each with its own control.
        """
        remaining = retrained.report.get("remaining")
        if remaining is not None:
            share = math.sqrt(np.square(remaining).mean())
            return 2 * share**2 * np.square(actual).mean(axis=1)
        if self.training.is_deterministic and self._is_repeatable(retrained, seed):
            return np.zeros(len(actual))
        few = max(min(FEWEST, len(positions)), len(positions) // 5)
        chosen = np.linspace(0, len(positions) - 1, few).astype(int)
        runs = [self.effects(positions[chosen], seed + 1 + i)[0] for i in range(_REPEATS)]
        return np.stack([actual[:, chosen], *runs]).var(axis=0, ddof=1).mean(axis=1)

    def _is_repeatable(self, retrained: Retrained, seed: int) -> bool:
        ones = torch.ones(1, len(self.problem), dtype=torch.float64)
        again = self.training.retrain(self.problem, ones, seed=seed + 1).parameters[0]
        return torch.equal(again, retrained.parameters[0])


def choose_training(
    problem: Problem, training: Trainer | Callable[..., object] | None, runs: int
) -> Trainer:
    """How a problem is trained again: as asked, as the problem says, else by Newton steps.

    Args:
        problem: what is trained.
        training: what the user asked for.
        runs: how many trainings there will be.

    Raises:
        CannotRetrain: nothing says how, and the model is too large for Newton steps.
    """
    given = make_training(training) or problem.training
    if given is not None:
        return given
    is_small = problem.size <= DENSE_PARAMETERS or hessian_is_ggn(problem)
    if is_small and len(problem) * problem.size * runs <= _AFFORDABLE:
        return NewtonTraining()
    raise CannotRetrain(
        found=f"{problem.name} does not say how it was trained, and has {problem.size:,} "
        f"parameters and {len(problem):,} examples.",
        why="Only small or linear models can be trained again without knowing how.",
        remedy="Pass training=..., a function (weights, seed) -> trained model that starts as the "
        "original training did and weights the loss of example i by weights[i]; or ask for fewer "
        "examples.",
    )


def _warm(problem: Problem, training: Trainer, change: Change) -> Trainer:
    """Newton steps that make the Hessian once, where they would make it for both trainings."""
    if not isinstance(training, NewtonTraining) or training.preconditioner is not None:
        return training
    if not change.is_replacement or problem.size > DENSE_PARAMETERS:
        return training
    return replace(training, preconditioner=hessian_preconditioner(problem.widened()))


# ------------------------------------------------------------------ what was asked


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


def _columns(scores: Scores, rows: Array, examples: int | Sequence[int | str], seed: int) -> Array:
    """Columns of the scores whose examples are left out."""
    is_count = isinstance(examples, int | np.integer)
    count = int(examples) if is_count else len(examples)
    count = min(count, len(scores.train_ids))
    if count < 2:
        raise BadArgument(
            found=f"{count} training examples are to be left out.",
            why="Agreement shows in how effects differ; with one there is no correlation.",
            remedy="Leave out some dozens: examples=50 is the default.",
        )
    if is_count:
        return draw(scores.values[rows], count, seed=seed)
    return find_ids(scores.train_ids, examples)


def _ask(problem: Problem, scores: Scores, rows: Array) -> Queries:
    """The queries that the scores kept, in the form that the model takes."""
    kept = {name: array[rows] for name, array in scores.queries.items() if name != "displays"}
    arrays = {name: torch.from_numpy(array) for name, array in kept.items()}
    if "targets" not in arrays:
        raise BadArgument(
            found="The scores do not hold their queries.",
            why="The measurement has to be taken again after every training.",
            remedy="Make them with whence.explain(problem, queries).",
        )
    targets = arrays.pop("targets")
    inputs: Any = {name.removeprefix("inputs/"): tensor for name, tensor in arrays.items()}
    if "inputs" in inputs:
        inputs = inputs["inputs"]
    elif all(name.isdigit() for name in inputs):
        inputs = tuple(inputs[name] for name in sorted(inputs, key=int))
    return problem.queries(TensorData(inputs, targets, scores.query_ids[rows]))


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


# ------------------------------------------------------------------------- refusals


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


# ------------------------------------------------------------------------- warnings


def _strays(retrained: Retrained) -> list[str]:
    """Tells of retrainings that ended in another optimum."""
    count = retrained.report.get("strayed", 0)
    if count == 0:
        return []
    return [
        f"{count} of {len(retrained.parameters) - 1} retrainings ended in another optimum: this "
        "one is so shallow that a single example holds the model in it."
    ]


def _drift(bench: Bench, control: Tensor, baseline: Array, actual: Array) -> list[str]:
    """Tells when training again without a removal, to parameters (P,), changes the queries."""
    drift = np.abs(bench.values(control[None])[:, 0] - baseline)
    worst = int(drift.argmax())
    if drift[worst] <= np.sqrt(np.square(actual).mean(axis=1))[worst]:
        return []
    return [
        f"Training again with everything changes the {bench.measurement.name} of query "
        f"{bench.queries.ids[worst]} by {drift[worst]:.2g}, more than a typical removal does: the "
        "model was not at the optimum that training leads to. Effects are compared with that one."
    ]


# ---------------------------------------------------------------------------- words


def _number(value: float) -> str:
    """Three digits, or as many as a number short of one needs not to look like one."""
    for digits in (3, 4, 5):
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 1:
            return text
    return f"{value:.6f}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
