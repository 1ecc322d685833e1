"""Linear models: the sum they minimised, and the layer they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.core.losses import Loss, LossFunction, Task, is_kinked, make_loss
from whence.core.refitting import Refit, Solver
from whence.core.regularizers import Regularizer
from whence.errors import BadArgument

TEMPERATURE = 0.001
"""How far a kink is rounded by default, in units of the hinge, or of the spread of the targets; for
the hinge that of Koh & Liang 2017, section 4.3."""


@dataclass(frozen=True)
class LinearObjective:
    """What a linear model minimised.

        sum_i s_i loss_i + (strength / 2)(|W|^2 + |b / intercept_scaling|^2)

    Args:
        loss: name of loss_i; one with kinks is differentiated through a smooth one beside it.
        strength: of the regulariser; beside the mean loss if `beside_mean`.
        beside_mean: whether the sum of losses is divided by N.
        intercept_scaling: None where the intercept b is free.
        solver: finds the exact minimum; None where there is none.
        notes: what a reader of the scores should know.
    """

    loss: str
    strength: float
    beside_mean: bool = False
    intercept_scaling: float | None = None
    solver: Solver | None = None
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return make_loss(self.loss).task

    def training(self, kind: str) -> Refit | None:
        """Fits an estimator of this kind again; None without a solver."""
        return None if self.solver is None else Refit(kind, self.solver, self.loss)

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


def smooth_loss(
    fitted: str, asked: str | LossFunction | Loss | None, *, kind: str, targets: np.ndarray
) -> tuple[Loss, tuple[str, ...]]:
    """The loss through which a model is differentiated: its own, or a smooth form of a kinked one.

    Args:
        fitted: name of the loss that was minimised.
        asked: what the user wants in place of a kinked one; None for the temperature
            `TEMPERATURE`, times the standard deviation of the targets where the loss has their
            unit.
        kind: of the estimator, for messages.
        targets: (N,).

    Returns:
        The loss, and what a reader should know of it.

    Raises:
        BadArgument: neither the kinked loss itself nor its smooth form.
    """
    if not is_kinked(fitted):
        return make_loss(fitted), ()
    spread = 1.0 if fitted == "hinge" else float(targets.std()) or 1.0
    default = f"smooth_{fitted}:{TEMPERATURE * spread:.3g}"
    loss = make_loss(asked or default)
    own = make_loss(fitted).name
    if loss.name != own and not loss.name.startswith(f"smooth_{own}:"):
        raise BadArgument(
            found=f"loss={loss.name!r} was given for a {kind} that minimised {own}.",
            why="Only a smoother form of the same loss stands for it.",
            remedy=f'Give "smooth_{own}:TEMPERATURE", or "{own}" for the raw one.',
        )
    note = (
        f"The loss {own} has no curvature, so effects are computed with {loss.name} at the "
        "coefficients that the former led to (loss= chooses the temperature); a refit uses "
        f"{own} itself."
    )
    return loss, () if is_kinked(loss.name) else (note,)


class ScaledLinear(nn.Module):
    """A linear prediction, and beside it one scale of its errors for all examples: (B, 2)."""

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = nn.Parameter(torch.tensor([scale], dtype=linear.weight.dtype))
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 2): f(x) = w x + b, and the scale."""
        values = F.linear(inputs, self.weight, self.bias)
        return torch.cat([values, self.scale.expand(len(values), 1)], 1)


@dataclass(frozen=True)
class InterceptDecay:
    """(strength / 2)|b|^2 where the intercept is regularised, but not like the weights."""

    strength: float

    def __call__(self, named: Mapping[str, Tensor]) -> Tensor:
        """The penalty."""
        return 0.5 * self.strength * (named["bias"] ** 2).sum()
