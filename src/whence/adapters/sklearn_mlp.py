"""Networks of scikit-learn, alone or at the end of a pipeline: MLPClassifier and MLPRegressor.

    (1/N) sum_i s_i loss_i + (alpha / 2D) |weights|^2          intercepts are free

D is N for the solver lbfgs. The stochastic solvers divide the penalty by the size of each *batch*,
so that their steps follow, over an epoch, the objective with 1/D the mean of 1/(size of a batch).
"""

import inspect
from collections import OrderedDict
from typing import Any

import numpy as np
from torch import nn

from whence.adapters.base import Adapter, Options, make_weights
from whence.calculus.retraining import DENSE_PARAMETERS, NewtonTraining
from whence.core.estimators import (
    DOUBLE,
    Opened,
    Translation,
    family_of,
    open_estimator,
    told,
)
from whence.core.linear import linear_layer
from whence.core.losses import make_loss
from whence.core.problem import Problem
from whence.core.regularizers import Regularizer
from whence.core.rerunning import Rerun
from whence.core.training import Trainer

LOSSES = {
    "logistic": "binary_cross_entropy",
    "softmax": "cross_entropy",
    "identity": "mse",
}
"""The loss that belongs to each activation of the outputs; a network here returns what goes into
that activation."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
"""The activations of hidden layers."""


class SklearnMLPAdapter(Adapter):
    """A fitted `MLPClassifier` or `MLPRegressor`, or a pipeline of fixed steps that ends in one."""

    def recognises(self, model: object) -> bool:
        """Whether it is a network of scikit-learn."""
        return family_of(model) == "network"

    def make_problem(self, model: Any, data: object, options: Options) -> Problem:
        """The objective that the steps of the network went down, at the weights it reached."""
        opened = open_estimator(model)
        _refuse_unreadable(opened)
        loss = make_loss(LOSSES[opened.estimator.out_activation_])
        options.refuse(opened.kind, **told(loss.name))
        read = options.reader(opened.preparation(loss.task))
        examples = read(data, ids=options.ids)
        network = _network(opened.estimator)
        translation = Translation(
            model=network,
            loss=loss,
            regularizer=_regularizer(opened.estimator, network, len(examples)),
            training=_training(opened.estimator, network),
            notes=_notes(opened, len(examples)),
        )
        problem = opened.problem(
            translation,
            examples,
            weights=opened.weights(examples, make_weights(examples, options, DOUBLE)),
            read=read,
            display=opened.display(data) if options.features is None else None,
        )
        return options.complete(problem)


def _network(estimator: Any) -> nn.Module:
    """Linear layers with the activations between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    pairs = list(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    for depth, (weight, bias) in enumerate(pairs):
        last = depth == len(pairs) - 1
        values = (np.array(part, dtype=np.float64) for part in (weight.T, bias))
        layers["output" if last else f"hidden{depth}"] = linear_layer(*values)
        if not last:
            layers[f"{estimator.activation}{depth}"] = ACTIVATIONS[estimator.activation]()
    return nn.Sequential(layers).eval()


def _regularizer(estimator: Any, network: nn.Module, count: int) -> Regularizer:
    """Beside the mean loss; "mse" is 2 / C times the half squared error, summed over C outputs.

    For several outputs the loss that scikit-learn prints is a mean over them, but its steps follow
    the derivative of the sum.
    """
    factor = 2 / estimator.n_outputs_ if estimator.out_activation_ == "identity" else 1.0
    decay = factor * float(estimator.alpha) * _penalty_share(estimator, count)
    weights = (name for name, _ in network.named_parameters() if name.endswith("weight"))
    return Regularizer(decay, frozenset(weights))


def _penalty_share(estimator: Any, count: int) -> float:
    """1/D: the mean over the steps of an epoch of 1 / (examples behind a step)."""
    size = _batch_size(estimator, count)
    whole, rest = divmod(count, size)
    return (whole / size + (1 / rest if rest else 0.0)) / (whole + bool(rest))


def _batch_size(estimator: Any, count: int) -> int:
    if estimator.solver == "lbfgs":
        return count
    size = 200 if estimator.batch_size == "auto" else int(estimator.batch_size)
    return max(1, min(size, count))


def _training(estimator: Any, network: nn.Module) -> Trainer | None:
    """The minimum nearby, where lbfgs looked for one and it is smooth; else the same fit again.

    A fit is repeatable where it takes weights and its random state is a number.
    """
    size = sum(parameter.numel() for parameter in network.parameters())
    is_minimum = estimator.solver == "lbfgs" and size <= DENSE_PARAMETERS
    if is_minimum and estimator.activation != "relu":
        return NewtonTraining()
    takes_weights = "sample_weight" in inspect.signature(estimator.fit).parameters
    if takes_weights and isinstance(estimator.random_state, int | np.integer):
        return Rerun(estimator)
    return NewtonTraining() if is_minimum else None


def _notes(opened: Opened, count: int) -> tuple[str, ...]:
    estimator = opened.estimator
    if estimator.solver == "lbfgs":
        return ()
    size = _batch_size(estimator, count)
    notes = (
        f"{opened.kind} took stochastic steps ({estimator.solver}) and stops near a minimum of its "
        "objective, not at it: compare the gradient norm.",
    )
    if size == count or not estimator.alpha:
        return notes
    return (
        *notes,
        f"With batches of {size:,} its penalty is alpha / {size:,} beside the mean loss, not alpha "
        f"/ {count:,}: scikit-learn divides it by the examples behind each step.",
    )


def _refuse_unreadable(opened: Opened) -> None:
    opened.check_fitted("coefs_")
    model = opened.estimator
    if model.early_stopping and model.solver != "lbfgs":
        raise opened.unsupported(
            f"held out {model.validation_fraction:.0%} of its data to decide when to stop "
            "(early_stopping=True)",
            "It does not say which examples it was trained on.",
            "Hold out validation data yourself, and fit on the rest with early_stopping=False.",
        )
    if model.out_activation_ not in LOSSES:
        raise opened.unsupported(
            f"was fitted with loss={model.loss!r}",
            'Only loss="squared_error" is translated for a regression.',
            "Fit with this loss, or translate the network to a PyTorch module.",
        )
    classes = len(getattr(model, "classes_", (0, 1)))
    if classes < 2 or (model.out_activation_ == "logistic" and model.n_outputs_ > 1):
        raise opened.unsupported(
            f"was fitted on {classes} class" if classes < 2 else f"has {classes} labels at once",
            "A classifier here decides between classes, of which each example has one.",
            "Fit on one label with two classes or more; one network for each label.",
        )
