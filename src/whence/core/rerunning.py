"""Networks of scikit-learn, trained again as they were for any example weights."""

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.core.training import Retrained, Trainer
from whence.errors import CannotRetrain
from whence.progress import breathing_inside, track

if TYPE_CHECKING:
    from whence.core.problem import Problem


@dataclass(frozen=True, eq=False)
class Rerun(Trainer):
    """Runs the fit of an estimator once more, step by step as it was, with other weights.

    From the same random state the same examples meet in the same batches; one that is removed
    stays in its batch without weight. Features are those of the problem.

    Args:
        estimator: fitted with a whole number as its random state; it is copied, never changed.
    """

    estimator: Any

    @property
    def name(self) -> str:
        """The estimator and its solver."""
        return f"{type(self.estimator).__name__} fitted again ({self.estimator.solver})"

    @property
    def is_deterministic(self) -> bool:
        """Another seed starts from other parameters."""
        return False

    def retrain(self, problem: "Problem", weights: Tensor, *, seed: int = 0) -> Retrained:
        """Fits once for each row of weights; see `Trainer.retrain`.

        Args:
            problem: of this estimator.
            weights: (M, N).
            seed: added to the random state of the estimator.

        Raises:
            CannotRetrain: a batch would be left without any weight.
        """
        start = time.perf_counter()
        batch = problem.batch(torch.arange(len(problem)))
        kind = self.estimator.coefs_[0].dtype
        features = cast("Tensor", batch.inputs).cpu().numpy().astype(kind)
        targets = cast("Tensor", batch.targets).cpu().numpy()
        rows: list[Tensor] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for row in track(weights, f"Fitting {type(self.estimator).__name__}"):
                model = self._fresh(seed)
                factors = (batch.weights.cpu() * row.cpu()).numpy()
                try:
                    with breathing_inside("sklearn.neural_network"):
                        model.fit(features, targets, sample_weight=factors)
                except ZeroDivisionError as error:
                    raise _empty_batch() from error
                rows.append(_layers(problem, model))
        report = {
            "training": self.name,
            "seed": seed,
            "warnings": sorted({str(warning.message) for warning in caught}),
            "seconds": time.perf_counter() - start,
        }
        return Retrained(torch.stack(rows), report)

    def _fresh(self, seed: int) -> Any:
        from sklearn.base import clone

        model: Any = clone(self.estimator)
        state = (int(self.estimator.random_state) + seed) % 2**32
        return model.set_params(random_state=state, warm_start=False, verbose=False)


def _layers(problem: "Problem", model: Any) -> Tensor:
    """(P,) weights and intercepts of a network, layer by layer."""
    pairs = zip(model.coefs_, model.intercepts_, strict=True)
    pieces = [part for weight, bias in pairs for part in (weight.T, bias)]
    named = {
        name: torch.tensor(np.ascontiguousarray(part))
        for name, part in zip(problem.layout.names, pieces, strict=True)
    }
    return problem.layout.join(named).to(problem.parameters)


def _empty_batch() -> CannotRetrain:
    return CannotRetrain(
        found="So many examples are removed that a batch of the fit has none left.",
        why="scikit-learn averages over the weights of each batch, which are all zero.",
        remedy="Remove fewer examples, or pass training=..., a function (weights, seed) -> "
        "trained model.",
    )
