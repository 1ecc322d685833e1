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

Task = Literal["classes", "binary", "signed", "regression", "location_scale", "unknown"]
"""What the outputs are: C logits; one logit for label 1 of {0, 1}; a decision value for the label
+1 of {-1, +1}; predicted numbers; a predicted number and the scale of its errors; or not known to
whence."""

LossFunction = Callable[[Tensor, Tensor], Tensor]


IGNORED = -100
"""The label of a position that does not count, such as padding."""


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
            _refuse_classes_last(targets, outputs)
            classes = outputs.shape[1] if outputs.ndim > 1 else 0
            outside = ((targets < 0) | (targets >= classes)) & (targets != IGNORED)
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
    return _averaged(_errors(outputs, targets) ** 2)


def epsilon_insensitive(outputs: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """max(0, |f - y| - e), averaged over the outputs of an example; its curvature is zero."""
    return _averaged(F.relu(_errors(outputs, targets).abs() - epsilon))


def squared_epsilon_insensitive(outputs: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """max(0, |f - y| - e)^2, averaged over the outputs of an example."""
    return _averaged(F.relu(_errors(outputs, targets).abs() - epsilon) ** 2)


def smooth_epsilon_insensitive(
    outputs: Tensor, targets: Tensor, *, epsilon: float, temperature: float
) -> Tensor:
    """The epsilon-insensitive loss with curvature, and that loss itself as t -> 0.

        t log(1 + exp((r - e) / t)) + t log(1 + exp((-r - e) / t)),   r = f - y

    averaged over the outputs of an example: both kinks are rounded as the smooth hinge rounds its
    own, so that it lies at most 2 t log 2 above.
    """
    errors = _errors(outputs, targets)
    sides = [F.softplus((side - epsilon) / temperature) for side in (errors, -errors)]
    return _averaged(temperature * (sides[0] + sides[1]))


def concomitant_huber(outputs: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """Huber's loss of an error in units of a scale s that is fitted along: convex in (f, s).

        s + r^2 / s             where |r| <= e s,        r = f - y
        s + 2 e |r| - e^2 s     beyond

    Args:
        outputs: (B, 2), the predicted number f and the scale s > 0.
        targets: (B,) or (B, 1).
        epsilon: e, where the loss passes from squares to absolute values.

    Returns:
        (B,) in units of the target.

    Source: Owen 2007, "A robust hybrid of lasso and ridge regression" (cited from memory).
    """
    scale = outputs[:, 1]
    size = _errors(outputs[:, 0], targets).abs()
    beyond = 2 * epsilon * size - epsilon**2 * scale
    return scale + torch.where(size <= epsilon * scale, size**2 / scale, beyond)


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
        loss: a key of `LOSSES`, one of `PARAMETRIC` with its numbers, as in
            `"smooth_hinge:0.001"`, or a callable `(outputs, targets) -> one value per example`.

    Raises:
        UnknownName: no loss of this name.
        BadArgument: a number is missing, or out of range.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(_callable_name(loss), loss)
    name, *numbers = str(loss).split(":")
    if name in LOSSES and not numbers:
        return LOSSES[name]
    forms = {form.partition(":")[0]: form for form in PARAMETRIC}
    if name not in forms:
        raise unknown_name("loss", loss, (*LOSSES, *PARAMETRIC))
    return PARAMETRIC[forms[name]](*_numbers(numbers, forms[name]))


def make_smooth_hinge(temperature: float) -> Loss:
    """The smooth hinge of a temperature t > 0."""
    _check_temperature(temperature, "hinge", "smooth_hinge:0.001")
    function = partial(smooth_hinge, temperature=temperature)
    name = _named("smooth_hinge", temperature)
    return Loss(name, function, "signed", "units of the hinge loss")


def make_epsilon_insensitive(epsilon: float) -> Loss:
    """The epsilon-insensitive loss of a half-width e >= 0."""
    _check_width(epsilon, "epsilon_insensitive:0.1")
    function = partial(epsilon_insensitive, epsilon=epsilon)
    return Loss(_named("epsilon_insensitive", epsilon), function, "regression", _TARGET)


def make_squared_epsilon_insensitive(epsilon: float) -> Loss:
    """The squared epsilon-insensitive loss of a half-width e >= 0."""
    _check_width(epsilon, "squared_epsilon_insensitive:0.1")
    function = partial(squared_epsilon_insensitive, epsilon=epsilon)
    name = _named("squared_epsilon_insensitive", epsilon)
    return Loss(name, function, "regression", "squared units of the target")


def make_smooth_epsilon_insensitive(epsilon: float, temperature: float) -> Loss:
    """The smooth epsilon-insensitive loss of a half-width e >= 0 and a temperature t > 0."""
    example = "smooth_epsilon_insensitive:0.1:0.001"
    _check_width(epsilon, example)
    _check_temperature(temperature, "epsilon-insensitive loss", example)
    function = partial(smooth_epsilon_insensitive, epsilon=epsilon, temperature=temperature)
    name = _named("smooth_epsilon_insensitive", epsilon, temperature)
    return Loss(name, function, "regression", _TARGET)


def make_concomitant_huber(epsilon: float) -> Loss:
    """Huber's loss with a fitted scale, for a threshold e > 1."""
    if not 1 < epsilon < float("inf"):
        raise BadArgument(
            found=f"The threshold of Huber's loss is {epsilon:g}.",
            why="It counts scales of the error; up to one, the fitted scale shrinks to zero.",
            remedy='Give a number above one, for example loss="concomitant_huber:1.35".',
        )
    function = partial(concomitant_huber, epsilon=epsilon)
    return Loss(_named("concomitant_huber", epsilon), function, "location_scale", _TARGET)


_TARGET = "units of the target"

PARAMETRIC: dict[str, Callable[..., Loss]] = {
    "smooth_hinge:TEMPERATURE": make_smooth_hinge,
    "epsilon_insensitive:WIDTH": make_epsilon_insensitive,
    "squared_epsilon_insensitive:WIDTH": make_squared_epsilon_insensitive,
    "smooth_epsilon_insensitive:WIDTH:TEMPERATURE": make_smooth_epsilon_insensitive,
    "concomitant_huber:THRESHOLD": make_concomitant_huber,
}
"""Losses that have numbers in their names, and what makes them."""


def is_kinked(name: str) -> bool:
    """Whether the loss of this name is piecewise linear: its minimum then lies at kinks."""
    return name.partition(":")[0] in ("hinge", "epsilon_insensitive")


def column(outputs: Tensor) -> Tensor:
    """(B, 1) outputs as (B,)."""
    return outputs.squeeze(-1) if outputs.ndim > 1 else outputs


def _signed(outputs: Tensor, targets: Tensor) -> Tensor:
    values = column(outputs)
    return targets.reshape(values.shape) * values


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """F - y, in the shape of the outputs."""
    if outputs.numel() != targets.numel():
        raise BadData(
            found=f"Outputs of shape {tuple(outputs.shape)}, targets of shape "
            f"{tuple(targets.shape)}.",
            why="Every predicted number is compared with one target.",
            remedy="Give as many targets per example as the model has outputs.",
        )
    return outputs - targets.reshape(outputs.shape)


def _averaged(values: Tensor) -> Tensor:
    """(B, ...) values as their means (B,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _numbers(words: Sequence[str], form: str) -> list[float]:
    """The numbers in the name of a loss."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != form.count(":"):
        name = form.partition(":")[0]
        raise BadArgument(
            found=f"The loss {name} was given as {':'.join([name, *words])!r}.",
            why=f"Its numbers stand in its name: {form}.",
            remedy=f"Write {form.lower()!r} with numbers in place of the words.",
        )
    return numbers


def _named(name: str, *numbers: float) -> str:
    """The name with its numbers, short where nothing is lost."""
    words = [f"{x:g}" if float(f"{x:g}") == x else repr(float(x)) for x in numbers]
    return ":".join([name, *words])


def _check_temperature(temperature: float, kinked: str, example: str) -> None:
    if not 0 < temperature < float("inf"):
        raise BadArgument(
            found=f"A smooth {kinked} was given the temperature {temperature:g}.",
            why="A kink x > 0 is rounded to t log(1 + exp(x / t)); at t = 0 it is a kink, without "
            "curvature.",
            remedy=f'Give a positive number, for example loss="{example}".',
        )


def _check_width(epsilon: float, example: str) -> None:
    if not 0 <= epsilon < float("inf"):
        raise BadArgument(
            found=f"The width of an epsilon-insensitive loss is {epsilon:g}.",
            why="Errors up to this size cost nothing.",
            remedy=f'Give zero or a positive number, for example loss="{example}".',
        )


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


def _refuse_classes_last(targets: Tensor, outputs: Tensor) -> None:
    """Logits (B, positions, C), as language models give them, where (B, C, positions) is meant."""
    shape = tuple(outputs.shape[1:])
    is_last = len(shape) > 1 and shape[:-1] == targets.shape[1:] != shape[1:]
    if is_last:
        raise BadData(
            found=f"Outputs of an example are {shape}, its targets {tuple(targets.shape[1:])}: the "
            "classes come last.",
            why="Cross-entropy takes the classes first, as torch does: (B, C, positions).",
            remedy="Give forward=lambda model, x: model(x).movedim(-1, 1), with .logits where the "
            "model returns an object; or a loss of your own, one value per example.",
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
