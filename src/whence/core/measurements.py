"""What is measured on a query: loss, margin, logit, log-probability, prediction, or any function.

A measurement is a number per query computed from the outputs of the model. Which formula stands
behind a name depends on what the outputs mean, that is, on the task of the loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from whence.core.losses import Loss, column
from whence.core.scores import Measurement
from whence.errors import Unsupported, unknown_name

MeasurementFunction = Callable[[Tensor, Tensor], Tensor]

NAMES = ("loss", "margin", "logit", "log_prob", "prediction")


def make_measurement(
    measurement: str | MeasurementFunction | Measurement | None, loss: Loss
) -> Measurement:
    """The measurement of this name for models trained with this loss.

    Args:
        measurement: one of `NAMES`, a callable `(outputs, targets) -> one value per query`, or
            None for the default: the prediction for a regression, the loss where the outputs
            have no known meaning, else the margin.
        loss: what the model was trained with.

    Raises:
        UnknownName: no such measurement.
        Unsupported: the measurement has no meaning for this loss.
    """
    if isinstance(measurement, Measurement) and measurement.function is not None:
        return measurement
    if isinstance(measurement, Measurement):
        measurement = measurement.name
    if measurement is None:
        measurement = {"regression": "prediction", "unknown": "loss"}.get(loss.task, "margin")
    if callable(measurement):
        name = getattr(measurement, "__name__", type(measurement).__name__)
        return Measurement(str(name), "units of the measurement", True, measurement)
    if measurement not in NAMES:
        raise unknown_name("measurement", measurement, NAMES)
    if measurement == "loss":
        return Measurement("loss", loss.unit, False, loss.function)
    found = _FORMULAS.get((measurement, loss.task))
    if found is None:
        raise _no_meaning(measurement, loss)
    unit, function = found
    return Measurement(measurement, unit, True, function)


def predicted_targets(outputs: Tensor, loss: Loss) -> Tensor:
    """What the model itself would answer: the target of a query that has no label.

    Raises:
        Unsupported: the loss is a callable, so the outputs have no known meaning.
    """
    if loss.task == "classes":
        return outputs.argmax(1)
    if loss.task == "binary":
        return (column(outputs) > 0).to(outputs.dtype)
    if loss.task == "signed":
        return torch.where(column(outputs) > 0, 1.0, -1.0).to(outputs.dtype)
    if loss.task == "regression":
        return outputs.clone()
    raise Unsupported(
        found=f"The queries have no labels, and the loss {loss.name!r} is a callable.",
        why="Without a label whence measures the model's own answer, but it cannot know what "
        "that is for outputs of unknown meaning.",
        remedy="Pass queries as (inputs, targets).",
    )


def _at_target(values: Tensor, targets: Tensor) -> Tensor:
    """(B,) values (B, C, ...) at the target class, summed over positions that have a target."""
    classes = targets.long().clamp_min(0).unsqueeze(1)
    chosen = values.gather(1, classes).squeeze(1).where(targets >= 0, 0.0)
    return chosen.flatten(1).sum(1) if chosen.ndim > 1 else chosen


def _class_log_prob(outputs: Tensor, targets: Tensor) -> Tensor:
    return _at_target(torch.log_softmax(outputs, 1), targets)


def _class_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """Log p_y - log(1 - p_y) = f_y - logsumexp of the other logits: exact also where p_y is 1."""
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    is_own = classes.reshape(-1, *[1] * (outputs.ndim - 2)) == targets.unsqueeze(1)
    others = torch.logsumexp(outputs.masked_fill(is_own, -torch.inf), 1, keepdim=True)
    return _at_target(outputs - others, targets)


def _class_logit(outputs: Tensor, targets: Tensor) -> Tensor:
    return _at_target(outputs, targets)


def _binary_sign(outputs: Tensor, targets: Tensor) -> Tensor:
    return (2 * targets.reshape(column(outputs).shape) - 1) * column(outputs)


def _binary_log_prob(outputs: Tensor, targets: Tensor) -> Tensor:
    return -torch.nn.functional.softplus(-_binary_sign(outputs, targets))


def _signed_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    values = column(outputs)
    return targets.reshape(values.shape) * values


def _decision(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return column(outputs)


def _prediction(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return outputs.flatten(1).mean(1) if outputs.ndim > 1 else outputs


_FORMULAS: dict[tuple[str, str], tuple[str, MeasurementFunction]] = {
    ("margin", "classes"): ("logits", _class_margin),
    ("logit", "classes"): ("logits", _class_logit),
    ("log_prob", "classes"): ("nats", _class_log_prob),
    ("margin", "binary"): ("logits", _binary_sign),
    ("logit", "binary"): ("logits", _decision),
    ("log_prob", "binary"): ("nats", _binary_log_prob),
    ("margin", "signed"): ("units of the decision value", _signed_margin),
    ("logit", "signed"): ("units of the decision value", _decision),
    ("prediction", "signed"): ("units of the decision value", _decision),
    ("prediction", "binary"): ("logits", _decision),
    ("prediction", "regression"): ("units of the target", _prediction),
}


def _no_meaning(name: str, loss: Loss) -> Unsupported:
    fitting = sorted({"loss"} | {key[0] for key in _FORMULAS if key[1] == loss.task})
    return Unsupported(
        found=f"The measurement {name!r} has no meaning for the loss {loss.name!r}.",
        why="A margin needs classes, a prediction needs numbers; "
        f"for this loss there are: {', '.join(fitting)}.",
        remedy="Use one of these, or pass a callable (outputs, targets) -> one value per query.",
    )
