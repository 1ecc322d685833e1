"""Linear models: the sum they minimised, and the layer they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.refitting import Solver
from whence.core.regularizers import Regularizer


@dataclass(frozen=True)
class LinearObjective:
    """What a linear model minimised.

        sum_i s_i loss_i + (strength / 2)(|W|^2 + |b / intercept_scaling|^2)

    Args:
        loss: name of loss_i.
        strength: of the regulariser; beside the mean loss if `beside_mean`.
        beside_mean: whether the sum of losses is divided by N.
        intercept_scaling: None where the intercept b is free.
        solver: finds the exact minimum; None where there is none.
        solved: name of the loss that the solver minimises, where it is not `loss`.
        notes: what a reader of the scores should know.
    """

    loss: str
    strength: float
    beside_mean: bool = False
    intercept_scaling: float | None = None
    solver: Solver | None = None
    solved: str | None = None
    notes: tuple[str, ...] = ()

    def regularizer(self, count: int) -> Regularizer:
        """The regulariser beside the mean loss of `count` examples, for a `linear_layer`."""
        decay = self.strength if self.beside_mean else self.strength / count
        if self.intercept_scaling is None:
            return Regularizer(decay, frozenset({"weight"}))
        if self.intercept_scaling == 1:
            return Regularizer(decay, frozenset({"weight", "bias"}))
        intercept = InterceptDecay(decay / self.intercept_scaling**2)
        return Regularizer(decay, frozenset({"weight"}), intercept)


def linear_layer(weight: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    """A float64 layer f(x) = W x + b with these coefficients; no random numbers are drawn.

    Args:
        weight: (C, d).
        bias: (C,), or None for a model without an intercept.
    """
    with torch.device("meta"):  # where no initial values are drawn
        layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    named = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    values = {name: torch.from_numpy(value) for name, value in named.items()}
    layer.load_state_dict(values, assign=True)
    layer.eval()
    return layer


@dataclass(frozen=True)
class InterceptDecay:
    """(strength / 2)|b|^2 where the intercept is regularised, but not like the weights."""

    strength: float

    def __call__(self, named: Mapping[str, Tensor]) -> Tensor:
        """The penalty."""
        return 0.5 * self.strength * (named["bias"] ** 2).sum()
