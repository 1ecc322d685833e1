"""What is measured on a query: loss, margin, logit, log-probability, prediction, or any function.

A measurement is a number per query computed from the outputs of the model. Which formula stands
behind a name depends on what the outputs mean, that is, on the task of the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from whence.core.losses import Loss, Task, column
from whence.core.scores import Measurement
from whence.errors import BadArgument, Unsupported, unknown_name

MeasurementFunction = Callable[[Tensor, Tensor], Tensor]

NAMES = ("loss", "margin", "logit", "log_prob", "prediction")

CONTRAST = "contrast"
"""A measurement "contrast:7:1" is the logit of class 7 less that of class 1."""


@dataclass(frozen=True)
class Contrast:
    """The logit of one class less that of another; see `contrast`."""

    of: str
    against: str

    @property
    def name(self) -> str:
        """By which the same contrast is found again: "contrast:7:1"."""
        return f"{CONTRAST}:{self.of}:{self.against}"


def contrast(of: object, against: object) -> Contrast:
    """Why one class rather than another: f_of - f_against, the log of the ratio of their chances.

    Positive effects then mean that, without the example, the model would lean more towards `of`.

    Args:
        of: a class by its name, or by its number where classes have no names.
        against: another one.

    Returns:
        A measurement in logits, accepted wherever `measurement=` is; its name, such as
        "contrast:7:1", is accepted as well.

    Raises:
        BadArgument: both are the same class.
    """
    if str(of) == str(against):
        raise BadArgument(
            found=f"The contrast of {of} against itself was asked for.",
            why="It is zero, whatever the model says.",
            remedy="Name two different classes.",
        )
    return Contrast(str(of), str(against))


def make_measurement(
    measurement: str | MeasurementFunction | Measurement | Contrast | None,
    loss: Loss,
    label_names: Sequence[str] | None = None,
) -> Measurement:
    """The measurement of this name for models trained with this loss.

    Args:
        measurement: one of `NAMES`, a contrast or its name, a callable
            `(outputs, targets) -> one value per query`, or None for the default: the prediction
            for a regression, the loss where the outputs have no known meaning, else the margin.
        loss: what the model was trained with.
        label_names: names of the classes, for contrasts.

    Raises:
        UnknownName: no such measurement, or no such class in a contrast.
        Unsupported: the measurement has no meaning for this loss.
    """
    if isinstance(measurement, Measurement) and measurement.function is not None:
        return measurement
    if isinstance(measurement, Measurement):
        measurement = measurement.name
    if measurement is None:
        measurement = _DEFAULTS.get(loss.task, "margin")
    if isinstance(measurement, str) and measurement.startswith(f"{CONTRAST}:"):
        measurement = _contrast_named(measurement, label_names)
    if isinstance(measurement, Contrast):
        return _contrast(measurement, loss, label_names)
    if callable(measurement):
        name = getattr(measurement, "__name__", type(measurement).__name__)
        return Measurement(str(name), "units of the measurement", True, measurement)
    if measurement not in NAMES:
        raise unknown_name("measurement", measurement, (*NAMES, f"{CONTRAST}:CLASS:CLASS"))
    if measurement == "loss":
        return Measurement("loss", loss.unit, False, loss.function)
    found = _FORMULAS.get((measurement, loss.task))
    if found is None:
        raise _no_meaning(measurement, loss)
    unit, function = found
    return Measurement(measurement, unit, True, function)


def is_named(name: str) -> bool:
    """Whether a measurement of this name can be made again without its function."""
    return name in NAMES or name.startswith(f"{CONTRAST}:")


def class_index(label: object, label_names: Sequence[str] | None, task: Task = "classes") -> int:
    """The place of a class among the outputs; 0 and 1 where one output tells two classes.

    Args:
        label: its name, or its number; -1 and +1 name the classes of a hinge as well.
        label_names: names of the classes, where they have any.
        task: what the outputs mean.

    Raises:
        UnknownName: no class of this name.
    """
    names = [str(name) for name in label_names or ()]
    if str(label) in names:
        return names.index(str(label))
    number = "0" if task == "signed" and str(label) in ("-1", "-1.0") else str(label)
    if number.isdigit() and (not names or int(number) < len(names)):
        return int(number)
    raise unknown_name("class", label, names or ("0", "1", "2, ..."))


def _contrast_named(name: str, label_names: Sequence[str] | None) -> Contrast:
    """The contrast of a name; names of classes may hold colons themselves."""
    parts = name.split(":")[1:]
    halves = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(1, len(parts))]
    known = {str(label) for label in label_names or ()}
    fitting = [half for half in halves if set(half) <= known]
    if not halves or not all(parts):
        raise BadArgument(
            found=f"The measurement {name!r} does not name two classes.",
            why="A contrast is the logit of one class less that of another.",
            remedy='Write "contrast:7:1", or pass whence.contrast("7", "1").',
        )
    return contrast(*(fitting or halves)[0])


def _contrast(pair: Contrast, loss: Loss, label_names: Sequence[str] | None) -> Measurement:
    if loss.task not in ("classes", "binary", "signed"):
        raise _no_meaning(pair.name, loss)
    first, second = (
        class_index(label, label_names, loss.task) for label in (pair.of, pair.against)
    )
    if loss.task == "classes":
        return Measurement(pair.name, "logits", True, partial(_between, classes=(first, second)))
    if {first, second} != {0, 1}:
        raise unknown_name("class", pair.of if first > 1 else pair.against, ("0", "1"))
    unit = _FORMULAS["logit", loss.task][0]
    return Measurement(pair.name, unit, True, partial(_towards, sign=first - second))


def _between(outputs: Tensor, targets: Tensor, *, classes: tuple[int, int]) -> Tensor:
    """(B,) f_first - f_second, summed over positions."""
    del targets
    if max(classes) >= outputs.shape[1]:
        raise BadArgument(
            found=f"The contrast names class {max(classes)}; the model has {outputs.shape[1]}.",
            why="Classes are counted from 0, one for each output.",
            remedy="Name two classes of the model, or pass label_names to make_problem.",
        )
    gaps = outputs[:, classes[0]] - outputs[:, classes[1]]
    return gaps.flatten(1).sum(1) if gaps.ndim > 1 else gaps


def _towards(outputs: Tensor, targets: Tensor, *, sign: int) -> Tensor:
    """(B,) the one output of two classes, with the sign of the first."""
    del targets
    return sign * column(outputs)


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
    if loss.task == "location_scale":
        return outputs[:, 0].clone()
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


def _location(outputs: Tensor, targets: Tensor) -> Tensor:
    """The predicted number without the scale of its errors."""
    del targets
    return outputs[:, 0]


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
    ("prediction", "location_scale"): ("units of the target", _location),
}

_DEFAULTS = {"regression": "prediction", "location_scale": "prediction", "unknown": "loss"}
"""What is measured where nothing is said; the margin for classes."""


def _no_meaning(name: str, loss: Loss) -> Unsupported:
    fitting = sorted({"loss"} | {key[0] for key in _FORMULAS if key[1] == loss.task})
    return Unsupported(
        found=f"The measurement {name!r} has no meaning for the loss {loss.name!r}.",
        why="A margin needs classes, a prediction needs numbers; "
        f"for this loss there are: {', '.join(fitting)}.",
        remedy="Use one of these, or pass a callable (outputs, targets) -> one value per query.",
    )
