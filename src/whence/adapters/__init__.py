"""Kinds of models, one a file, and the front door `make_problem`."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from whence import discovery
from whence.adapters.base import Adapter, Options
from whence.core.losses import Loss, LossFunction
from whence.core.problem import Forward, Problem
from whence.core.regularizers import Penalty
from whence.core.training import Trainer
from whence.errors import Unsupported

__all__ = ["Adapter", "Options", "make_problem", "names"]


def names() -> tuple[str, ...]:
    """The kinds of models that exist."""
    return discovery.names(sys.modules[__name__])


def make_problem(
    model: object,
    data: object,
    *,
    loss: str | LossFunction | Loss | None = None,
    weight_decay: float | None = None,
    regularizer: str | Iterable[str] | Penalty | None = None,
    parameters: str | Iterable[str] | Callable[[str], bool] | None = None,
    forward: Forward | None = None,
    sample_weight: object = None,
    class_weight: str | Mapping[int, float] | None = None,
    renormalize: bool = False,
    training: Trainer | Callable[[Tensor, int], object] | None = None,
    ids: object = None,
    target: str | None = None,
    display: str | Mapping[str, Any] | Callable[..., Any] | None = None,
    label_names: Sequence[str] | None = None,
    name: str | None = None,
    features: nn.Module | Callable[..., Any] | None = None,
) -> Problem:
    """What was trained, on what, and how; checked before anything is computed.

        R(theta; w) = (1/N) sum_i w_i b_i loss_i(theta) + (weight_decay / 2)|theta|^2

    Args:
        model: an `nn.Module` in eval mode, or a fitted scikit-learn model. It is never changed. A
            `Training` is run, and what it leads to is explained.
        data: training data: `(inputs, targets)` as tensors, arrays or frames, several inputs
            before the targets, a dict, a `Dataset` or a `DataLoader`.
        loss: "cross_entropy", "binary_cross_entropy", "mse", "hinge", "squared_hinge",
            "smooth_hinge:TEMPERATURE", "epsilon_insensitive:WIDTH" (also squared_ or smooth_), or a
            callable `(outputs, targets) -> (B,)`, one value per example. scikit-learn models bring
            their own; for one with kinks, the smooth form chooses how these are rounded.
        weight_decay: l of (l/2)|theta|^2 beside the *mean* loss, over all chosen parameters,
            biases included, as `torch.optim.SGD` does.
        regularizer: name pattern(s) of the parameters that are decayed, or a callable of the
            named parameters that is added.
        parameters: name pattern(s), or a predicate on names, of the parameters that influence
            goes through; default all that require a gradient.
        forward: `forward(model, inputs) -> outputs`, how the model is called on a batch.
        sample_weight: (N,) base weights b_i.
        class_weight: base weight by class, or "balanced".
        renormalize: the objective divides by sum(w) instead of N, so that what remains after a
            removal counts fully again.
        training: how it was trained, for verification: a `Training`, or a function
            `(weights (N,), seed) -> trained model`.
        ids: N unique names of the training examples, default their positions.
        target: key of the target in a dict data set.
        display: "image", "text", "row", "none", a dict of "kind" with the hints of
            `whence.core.display.describe`, such as {"kind": "audio", "rate": 16000}, or a callable
            `(inputs, target) -> picture, text, row or display`.
        label_names: names of the classes.
        name: what reports call the problem.
        features: a frozen network below the model: a module in eval mode, or a callable from raw
            inputs to features. `data` and queries then hold raw inputs, whose features are
            computed once and kept in memory; `model` is the trained head on top of them.

    Returns:
        The problem.

    Raises:
        ProblemError: model, loss or data cannot be used; the message says why and what to do.

    Example:
        >>> import torch, whence
        >>> X, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> problem = whence.make_problem(torch.nn.Linear(3, 2), (X, y), loss="cross_entropy")
        >>> len(problem), problem.size
        (20, 8)
    """
    options = Options(
        loss=loss,
        weight_decay=weight_decay,
        regularizer=regularizer,
        parameters=parameters,
        forward=forward,
        sample_weight=sample_weight,
        class_weight=class_weight,
        renormalize=renormalize,
        training=training,
        ids=ids,
        target=target,
        display=display,
        label_names=label_names,
        name=name,
        features=features,
    )
    problem = _find_adapter(model).make_problem(model, data, options)
    problem.check()
    return problem


def _find_adapter(model: object) -> Adapter:
    for kind in names():
        adapter = discovery.child(sys.modules[__name__], kind, Adapter)()
        if adapter.recognises(model):
            return adapter
    raise Unsupported(
        found=f"whence does not know models of type {type(model).__name__}.",
        why=f"It reads these kinds: {', '.join(names())}.",
        remedy="Wrap the prediction function in an nn.Module with parameters.",
    )
