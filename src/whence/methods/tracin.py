"""TracIn: what each step of training did, added up over checkpoints."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whence.calculus.checkpoints import Checkpoint, checkpoints, given_checkpoints
from whence.calculus.gradients import measure, measurement_gradients
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.methods.base import Fitted, MeasurementLike, Method, first_order, make_scores


@dataclass(frozen=True)
class TracIn(Method):
    """Gradient dot products on the way of training, in the unit of the measurement.

        effect[q, i] = (1/N) sum_c grad m_q(theta_c)^T [reach_c o b_i grad loss_i(theta_c)]

    reach_c is the sum of the learning rates of the steps that checkpoint c stands for, times what
    the optimizer makes of a unit of gradient (`whence.calculus.checkpoints`): each example is in
    one of the N/B batches of an epoch. This is the first-order effect of every single step; that
    later steps take part of it back, which curvature is about, is left out, so that effects of long
    trainings come out too large.

    Args:
        count: C, places of the problem's own `Training`, run anew, each in the middle of an equal
            share of the steps.
        checkpoints: state dicts or flat tensors that were kept, instead.
        lrs: for each of them the sum of the learning rates of the steps it stands for; with
            momentum, divided by one less the momentum.

    Raises:
        CannotRetrain: on fitting, no checkpoints are given and the problem has no `Training`.
        BadArgument: on fitting, as many `lrs` as `checkpoints` are not given.

    Cost: one training, and C passes over the data, which all queries share.

    Source: Pruthi et al. 2020 (arXiv:2002.08484), "TracInCP". There each checkpoint stands for its
    own learning rate, and Adam is not treated; the factor 1/N makes it an effect.
    """

    follows_training: ClassVar[bool] = True

    count: int = 5
    checkpoints: Sequence[object] | None = None
    lrs: Sequence[float] = ()

    def fit(self, problem: Problem) -> "FittedTracIn":
        """Runs the training once and keeps the checkpoints."""
        problem.check()
        started = time.monotonic()
        if self.checkpoints is None:
            seen = checkpoints(problem, self.count)
        else:
            seen = given_checkpoints(problem, self.checkpoints, self.lrs)
        report = {
            "method": "tracin",
            "checkpoints": len(seen),
            "fit_seconds": time.monotonic() - started,
        }
        return FittedTracIn(problem, report, tuple(seen))


@dataclass(frozen=True)
class FittedTracIn(Fitted):
    """The checkpoints of a training.

    Args:
        problem: what was trained.
        report: how many there are.
        checkpoints: in the order of the training.
    """

    checkpoints: tuple[Checkpoint, ...]

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Effects added up over the checkpoints; see `Fitted.scores`."""
        started = time.monotonic()
        problem = self.problem
        asked = problem.queries(queries)
        measured = problem.measurement(measurement)
        values = np.zeros((len(asked), len(problem)))
        for seen in self.checkpoints:
            there = problem.at(seen.parameters)
            _, slopes = measurement_gradients(there, measured, asked)
            values += first_order(there, slopes * seen.reach)
        return make_scores(
            problem,
            asked,
            measured,
            values=values,
            baseline=measure(problem, measured, asked),
            report=self.report,
            started=started,
        )
