"""PyTorch modules."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from whence.adapters.base import Adapter, Options, make_training, make_weights
from whence.calculus.training import Training
from whence.core.batches import check_device, make_data
from whence.core.losses import make_loss
from whence.core.problem import Problem, call_plainly
from whence.core.regularizers import Regularizer, make_regularizer, matching
from whence.errors import BadArgument, BadData, DeviceMismatch, NonFinite
from whence.numerics.vectors import Layout, layout_of


class TorchAdapter(Adapter):
    """Any `nn.Module`, or a `Training` that makes one."""

    def recognises(self, model: object) -> bool:
        """Whether it is a module or its training."""
        return "torch" in sys.modules and isinstance(model, nn.Module | Training)

    def make_problem(self, model: nn.Module | Training, data: object, options: Options) -> Problem:
        """A problem on a copy of the model's present parameters, or of those trained now."""
        if isinstance(model, Training):
            options.refuse("Training", training="it is the training")
            return _trained(self._problem(model.model(), data, replace(options, training=model)))
        return self._problem(model, data, options)

    def _problem(self, model: nn.Module, data: object, options: Options) -> Problem:
        if options.loss is None:
            raise BadArgument(
                found="No loss was given for a PyTorch model.",
                why="Effects are derivatives of the loss it was trained with.",
                remedy='Pass for example loss="cross_entropy", "binary_cross_entropy" or "mse", '
                "or a callable (outputs, targets) -> one value per example.",
            )
        chosen = choose_parameters(model, options.parameters)
        layout = layout_of(chosen)
        parameters = layout.join(chosen).detach().clone()
        read = options.reader(partial(make_data, target=options.target))
        examples = read(data, ids=options.ids)
        check_device(examples, parameters.device)
        return Problem(
            model=model,
            layout=layout,
            parameters=parameters,
            loss=make_loss(options.loss),
            regularizer=_make_regularizer(layout, options),
            data=examples,
            weights=make_weights(examples, options, parameters),
            forward=options.forward or call_plainly,
            renormalize=options.renormalize,
            training=make_training(options.training),
            name=options.name or type(model).__name__,
            display=options.display,
            label_names=options.label_names,
            read=read,
        )


def _make_regularizer(layout: Layout, options: Options) -> Regularizer:
    """r(theta), which a `Training` knows by itself.

    Raises:
        BadArgument: the weight decay differs from that of the training.
    """
    decay, decayed = options.weight_decay or 0.0, options.regularizer
    if isinstance(options.training, Training):
        own = options.training.coupled_decay
        if options.weight_decay not in (None, own):
            raise BadArgument(
                found=f"weight_decay={options.weight_decay!r}; the training has {own!r} in its "
                "objective.",
                why="The objective that is explained is the one that was trained.",
                remedy="Leave it out, and say it once: Training(weight_decay=...).",
            )
        decay, decayed = own, decayed or (options.training.decayed if own else None)
    return make_regularizer(layout.names, decay, decayed)


def _trained(problem: Problem) -> Problem:
    """The problem at the parameters that its training leads to; what is wrong fails before it."""
    problem.check()
    return problem.at(problem.retrain().parameters[0])


def choose_parameters(
    model: nn.Module, chosen: str | Iterable[str] | Callable[[str], bool] | None
) -> dict[str, Tensor]:
    """The parameters that influence goes through, by name.

    Args:
        model: the module.
        chosen: name pattern(s) such as "head.*", a predicate on names, or None for all that
            require a gradient.

    Raises:
        BadData: no parameter is left.
        DeviceMismatch: they lie on several devices, or hold no values (device "meta").
        NonFinite: NaN or infinity in a parameter.
        BadArgument: a pattern matches nothing.
    """
    named: dict[str, Any] = dict(model.named_parameters())
    if chosen is None:
        names = [name for name, parameter in named.items() if parameter.requires_grad]
    elif callable(chosen):
        names = [name for name in named if chosen(name)]
    else:
        names = matching(named, [chosen] if isinstance(chosen, str) else chosen)
    parameters = {name: named[name].detach() for name in names}
    _check_parameters(parameters, named)
    return parameters


def _check_parameters(parameters: dict[str, Tensor], named: dict[str, Any]) -> None:
    if not parameters:
        raise BadData(
            found=f"None of the model's {len(named)} parameters was chosen.",
            why="Influence is a movement of parameters; without any there is none.",
            remedy="Leave parameters= out to take all with requires_grad, or check the predicate.",
        )
    devices = {str(parameter.device) for parameter in parameters.values()}
    if len(devices) > 1 or "meta" in devices:
        raise DeviceMismatch(
            found=f"The parameters are on {', '.join(sorted(devices))}.",
            why="They travel as one flat vector with values, on one device.",
            remedy='Load the weights and move the model to one device, as in model.to("cpu").',
        )
    kinds = {parameter.dtype for parameter in parameters.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        raise BadData(
            found=f"The parameters have the types {', '.join(sorted(map(str, kinds)))}.",
            why="They travel as one flat vector of one floating-point type.",
            remedy="Convert the model, as in model.float(), or choose fewer with parameters=...",
        )
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            raise NonFinite(
                found=f"The parameter {name} holds NaN or infinity.",
                why="No prediction of this model is a number.",
                remedy="Train the model again with a smaller learning rate, or load another "
                "checkpoint.",
            )
