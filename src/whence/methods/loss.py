"""The loss of each training example."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from whence.core.batches import Batch
from whence.core.problem import Problem, Queries
from whence.methods.base import Method, Ranking, stream


@dataclass(frozen=True)
class TrainLoss(Method):
    """Loss of the training example, the same for every query: what knows nothing of the query.

        score[q, i] = b_i loss_i

    The worse an example is fitted, the more it counts as an opponent: it takes the model away from
    what the others agree on. A method that ranks no better has found nothing about the query.

    Cost: a forward pass of every example.
    """

    is_calibrated: ClassVar[bool] = False

    def fit(self, problem: Problem) -> Ranking:
        """One pass over the training data."""
        problem.check()

        def rows(batch: Batch) -> Tensor:
            with torch.no_grad():
                return (batch.weights * problem.losses(problem.parameters, batch))[None]

        losses = stream(problem, rows, queries=1, size=problem.batch_size())

        def helpfulness(queries: Queries) -> np.ndarray:
            return np.repeat(-losses, len(queries), axis=0)

        return Ranking(problem, {"method": "loss"}, helpfulness)
