"""Losses that give one value per example, by name.

A loss knows what kind of task it belongs to, because a measurement such as the margin means
something different for ten classes, for one logit and for a hinge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import BadArgument, BadData, unknown_name

Task = Literal["classes", "binary", "signed", "regression", "unknown"]
"""What the outputs are: C logits; one logit for label 1 of {0, 1}; a decision value for the label
+1 of {-1, +1}; predicted numbers; or not known to whence."""

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """One value per example from the outputs of a model.

    Args:
        name: how reports call it.
        function: `(outputs (B, ...), targets (B, ...)) -> (B,)`.
        task: what the outputs mean.
        unit: unit of the loss.
    """

    name: str
    function: LossFunction
    task: Task = "unknown"
    unit: str = "units of the loss"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) losses."""
        return self.function(outputs, targets)

    def check_targets(self, targets: Tensor, outputs: Tensor, *, names: Sequence[Any]) -> None:
        """Refuses labels that this loss has no meaning for.

        Args:
            targets: (B, ...) targets.
            outputs: outputs of the model for any examples, for the number of classes.
            names: (B,) what to call the examples in the message.

        Raises:
            BadData: labels of the wrong type or range, naming the first offending example.
        """
        if self.task == "classes":
            _check_integers(targets)
            classes = outputs.shape[1] if outputs.ndim > 1 else 0
            outside = ((targets < 0) | (targets >= classes)) & (targets != -100)
            allowed = f"0 to {classes - 1}, one for each output of the model"
        elif self.task in ("binary", "signed"):
            low = 0 if self.task == "binary" else -1
            outside = (targets != low) & (targets != 1)
            allowed = f"{low} and 1 for {self.name}"
        else:
            return
        if bool(outside.any()):
            _refuse_label(targets, outside, allowed, names)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs)[target], summed over any positions after the class axis.

    Args:
        outputs: (B, C) or (B, C, ...) logits.
        targets: (B,) or (B, ...) integer classes; -100 is ignored.

    Returns:
        (B,) in nats.
    """
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log sigmoid of the logit of the true label, for one logit per example.

    Args:
        outputs: (B,) or (B, 1) logit of label 1.
        targets: (B,) or (B, 1) of 0 and 1.

    Returns:
        (B,) in nats.
    """
    logits = column(outputs)
    return F.softplus(logits) - targets.reshape(logits.shape) * logits


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, averaged over the outputs of an example: (1/C) sum_c (f_c - y_c)^2.

    Raises:
        BadData: an example has another number of targets than of outputs.
    """
    if outputs.numel() != targets.numel():
        raise BadData(
            found=f"Outputs of shape {tuple(outputs.shape)}, targets of shape "
            f"{tuple(targets.shape)}.",
            why="Every predicted number is compared with one target.",
            remedy="Give as many targets per example as the model has outputs.",
        )
    errors = (outputs - targets.reshape(outputs.shape)) ** 2
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """max(0, 1 - y f) for labels y in {-1, +1}; its curvature is zero."""
    return F.relu(1 - _signed(outputs, targets))


def squared_hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """max(0, 1 - y f)^2 for labels y in {-1, +1}."""
    return F.relu(1 - _signed(outputs, targets)) ** 2


def smooth_hinge(outputs: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """T log(1 + exp((1 - y f) / t)): a hinge with curvature, and the hinge itself as t -> 0.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 4.3.
    """
    return temperature * F.softplus((1 - _signed(outputs, targets)) / temperature)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", cross_entropy, "classes", "nats"),
        Loss("binary_cross_entropy", binary_cross_entropy, "binary", "nats"),
        Loss("mse", mse, "regression", "squared units of the target"),
        Loss("hinge", hinge, "signed", "units of the hinge loss"),
        Loss("squared_hinge", squared_hinge, "signed", "units of the squared hinge loss"),
    )
}


def make_loss(loss: str | LossFunction | Loss) -> Loss:
    """The loss of this name, or a callable as a loss.

    Args:
        loss: a key of `LOSSES`, `"smooth_hinge:0.001"` with its temperature, or a callable
            `(outputs, targets) -> one value per example`.

    Raises:
        UnknownName: no loss of this name.
        BadArgument: a smooth hinge without a positive temperature.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(_callable_name(loss), loss)
    name, _, temperature = str(loss).partition(":")
    if name == "smooth_hinge":
        return make_smooth_hinge(temperature)
    if name not in LOSSES:
        raise unknown_name("loss", loss, (*LOSSES, "smooth_hinge:TEMPERATURE"))
    return LOSSES[name]


def make_smooth_hinge(temperature: float | str) -> Loss:
    """The smooth hinge of a temperature t > 0."""
    try:
        t = float(temperature)
    except ValueError:
        t = 0.0
    if not t > 0:
        raise BadArgument(
            found=f"The smooth hinge was given the temperature {temperature!r}.",
            why="It is t log(1 + exp((1 - margin) / t)); at t = 0 it is the hinge, "
            "whose curvature is zero.",
            remedy='Give a positive number, for example loss="smooth_hinge:0.001".',
        )
    return Loss(
        f"smooth_hinge:{t:g}",
        partial(smooth_hinge, temperature=t),
        "signed",
        "units of the hinge loss",
    )


def column(outputs: Tensor) -> Tensor:
    """(B, 1) outputs as (B,)."""
    return outputs.squeeze(-1) if outputs.ndim > 1 else outputs


def _signed(outputs: Tensor, targets: Tensor) -> Tensor:
    values = column(outputs)
    return targets.reshape(values.shape) * values


def _callable_name(function: object) -> str:
    inner = function.func if isinstance(function, partial) else function  # pyright: ignore
    name = getattr(inner, "__name__", type(inner).__name__)
    return str(name)


def _check_integers(targets: Tensor) -> None:
    if targets.is_floating_point():
        raise BadData(
            found=f"Class labels are {targets.dtype}.",
            why="Cross-entropy takes the index of the class, an integer.",
            remedy="Pass y.astype(int) (or y.long()); for numbers to be predicted use "
            'loss="mse", for one logit loss="binary_cross_entropy".',
        )


def _refuse_label(targets: Tensor, outside: Tensor, allowed: str, names: Sequence[Any]) -> None:
    row = int(torch.nonzero(outside)[0, 0])
    label = targets[outside][0].item()
    raise BadData(
        found=f"Example {names[row]} has the label {label}; {int(outside.sum())} labels here are "
        "out of range.",
        why=f"The labels allowed are {allowed}.",
        remedy="Renumber the labels, or check that data and model belong together.",
    )
