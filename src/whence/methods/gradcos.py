"""Cosines of gradients."""

import time
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from whence.calculus.gradients import gradients, measurement_gradients
from whence.core.batches import Batch
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.methods.base import Fitted, MeasurementLike, Method, make_scores, stream

_GRADIENT_NUMBERS = 2**23
"""Gradients of a batch are written out; together they stay near 64 MB."""


@dataclass(frozen=True)
class GradCos(Method):
    """Cosine of the gradients of measurement and loss: a baseline without curvature and scale.

        score[q, i] = grad m_q . grad loss_i / (|grad m_q| |grad loss_i|)

    Against gradient dot products ("graddot") it takes away that examples with a large loss come
    first for every query. Examples of base weight zero get 0.

    Cost: a backward pass of every example.

    Source: Charpiat et al. 2019 (arXiv:2102.13262).
    """

    is_calibrated: ClassVar[bool] = False

    def fit(self, problem: Problem) -> "FittedGradCos":
        """Nothing to fit; refuses what would make every score wrong."""
        problem.check()
        return FittedGradCos(problem, {"method": "gradcos", "is_calibrated": False})


@dataclass(frozen=True)
class FittedGradCos(Fitted):
    """Cosines of gradients, ready for queries."""

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Cosines with the sign of effects; see `Fitted.scores`."""
        started = time.monotonic()
        problem = self.problem
        asked = problem.queries(queries)
        measured = problem.measurement(measurement)
        baseline, slopes = measurement_gradients(problem, measured, asked)
        directions = normalize(slopes, eps=0)

        def rows(batch: Batch) -> Tensor:
            cosines = directions @ normalize(gradients(problem, batch), eps=0).T
            return cosines.nan_to_num() * (batch.weights > 0)

        size = max(1, min(problem.batch_size(), _GRADIENT_NUMBERS // problem.size))
        return make_scores(
            problem,
            asked,
            measured,
            values=stream(problem, rows, queries=len(asked), size=size),
            baseline=baseline,
            report=self.report,
            started=started,
        )
