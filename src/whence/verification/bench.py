"""Trains again and measures the queries under every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.adapters.base import make_training
from whence.calculus.gradients import measure_many
from whence.calculus.products import hessian_is_ggn
from whence.calculus.retraining import DENSE_PARAMETERS, NewtonTraining
from whence.core.batches import TensorData
from whence.core.changes import Change
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.core.training import Retrained, Trainer
from whence.errors import CannotRetrain, NonFinite

Array = np.ndarray[Any, Any]

_AFFORDABLE = 1e11
"""N P M up to which retraining is offered unasked for models with many parameters: minutes."""


@dataclass(frozen=True)
class Bench:
    """Measures effects by training again.

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

    def effects(self, weights: Tensor, seeds: Sequence[int]) -> tuple[Array, Retrained]:
        """What M rows of weights do, against the first row of all under the same seed.

        Args:
            weights: (1 + M, N); the first row is the control.
            seeds: S, under each of which all rows are trained.

        Returns:
            (S, Q, M) effects, and the S (1 + M) trainings, those of the first seed first.

        Raises:
            NonFinite: a training ended at parameters that are not numbers.
        """
        retrained = self._trained(self.problem, weights, seeds)
        self._refuse_diverged(retrained.parameters, seeds)
        values = self.values(retrained.parameters)
        values = values.reshape(len(values), len(seeds), len(weights)).swapaxes(0, 1)
        return values[:, :, 1:] - values[:, :, :1], retrained

    def effect_of(self, change: Change, seeds: Sequence[int]) -> tuple[Array, Tensor]:
        """(S, Q) effects of one change, and (2, P) of the first control and changed training."""
        problem, row = self.problem, change.row(len(self.problem))[None]
        ones = torch.ones_like(row)
        if change.is_replacement:
            pairs = (problem, ones), (change.contents(problem), row)
            control, changed = (self._trained(p, w, seeds).parameters for p, w in pairs)
        else:
            both = self._trained(problem, torch.cat([ones, row]), seeds).parameters
            control, changed = both[::2], both[1::2]
        effects = self.values(changed) - self.values(control)
        return effects.T, torch.stack([control[0], changed[0]])

    def _trained(self, problem: Problem, weights: Tensor, seeds: Sequence[int]) -> Retrained:
        """All rows under each seed in turn."""
        own = [seed for seed in seeds for _ in weights]
        return self.training.retrain_each(problem, weights.repeat(len(seeds), 1), seeds=own)

    def values(self, parameters: Tensor) -> Array:
        """(Q, M) measurements at parameters (M, P), in the precision that these have."""
        problem = self.problem
        if problem.dtype != parameters.dtype:
            problem = problem.to(dtype=parameters.dtype)
        asked = problem.queries(
            TensorData(self.queries.inputs, self.queries.targets, self.queries.ids)
        )
        return (
            measure_many(problem, self.measurement, asked, at=parameters).T.double().cpu().numpy()
        )

    def _refuse_diverged(self, parameters: Tensor, seeds: Sequence[int]) -> None:
        is_broken = ~parameters.isfinite().all(1)
        if bool(is_broken.any()):
            raise NonFinite(
                found=f"{int(is_broken.sum())} of {len(parameters)} trainings with the seeds "
                f"{', '.join(map(str, seeds))} ({self.training.name}) ended at "
                "parameters that are NaN or infinite.",
                why="There is no actual effect to compare with.",
                remedy="Lower the learning rate of the training, or clip its gradients.",
            )


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
        "retrainings.",
    )


def drift_warnings(bench: Bench, control: Tensor, *, baseline: Array, actual: Array) -> list[str]:
    """Tells when training again without a removal changes the queries.

    Args:
        bench: measures.
        control: (P,) where the training without a removal led.
        baseline: (Q,) measurements of the model as it is.
        actual: (Q, M) effects.
    """
    drift = np.abs(bench.values(control[None])[:, 0] - baseline)
    worst = int(drift.argmax())
    if drift[worst] <= np.sqrt(np.square(actual).mean(axis=1))[worst]:
        return []
    return [
        f"Training again with everything changes the {bench.measurement.name} of query "
        f"{bench.queries.ids[worst]} by {drift[worst]:.2g}, more than a typical removal does: the "
        "model was not at the optimum that training leads to. Effects are compared with that one."
    ]
