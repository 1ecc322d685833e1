"""What one change of the training data does, by training again."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from whence.calculus.retraining import DENSE_PARAMETERS, NewtonTraining, hessian_preconditioner
from whence.core.changes import Change
from whence.core.measurements import Contrast, MeasurementFunction
from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.core.training import Trainer
from whence.verification.bench import Bench, choose_training, drift_warnings

Array = np.ndarray[Any, Any]

_REPEATS = 2
"""Further seeds with which a noisy training is repeated."""


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
    actual, (control, changed) = bench.effect_of(change, range(seed, seed + repeats))
    noise = np.zeros(actual.shape[1])
    if repeats > 1:
        noise = actual.std(axis=0, ddof=1) / math.sqrt(repeats)
    baseline = bench.values(problem.parameters[None])[:, 0]
    warnings = drift_warnings(bench, control, baseline=baseline, actual=actual[0][:, None])
    return Retraining(actual.mean(axis=0), noise, how.name, changed, tuple(warnings))


def _warm(problem: Problem, training: Trainer, change: Change) -> Trainer:
    """Newton steps that make the Hessian once, where they would make it for both trainings."""
    if not isinstance(training, NewtonTraining) or training.preconditioner is not None:
        return training
    if not change.is_replacement or problem.size > DENSE_PARAMETERS:
        return training
    return replace(training, preconditioner=hessian_preconditioner(problem.widened()))
