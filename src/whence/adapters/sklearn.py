"""Linear models of scikit-learn, alone or at the end of a pipeline.

For each estimator a translator says which sum it minimised; divided by N it is the objective of the
`Problem`. Everything is float64, whatever the precision of the fit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from whence.adapters.base import Adapter, Options, make_weights
from whence.core.estimators import (
    DOUBLE,
    Opened,
    Translation,
    family_of,
    open_estimator,
    told,
)
from whence.core.linear import LinearObjective, ScaledLinear, linear_layer, smooth_loss
from whence.core.problem import Problem
from whence.core.refitting import (
    solve_huber,
    solve_least_squares,
    solve_liblinear_logistic,
    solve_logistic,
    solve_ridge,
    solve_svc,
    solve_svr,
)
from whence.errors import Unsupported


class SklearnAdapter(Adapter):
    """A fitted linear model, or a pipeline of fixed steps that ends in one."""

    def recognises(self, model: object) -> bool:
        """Whether it is an estimator, and of no family that another adapter reads."""
        return family_of(model) in ("linear", "")

    def make_problem(self, model: Any, data: object, options: Options) -> Problem:
        """The objective that the estimator minimised, at the coefficients it found."""
        opened = open_estimator(model)
        opened.refuse_unknown()
        opened.check_fitted("coef_")
        objective = TRANSLATORS[opened.kind](opened)
        options.refuse(opened.kind, **told(objective.loss))
        read = options.reader(opened.preparation(objective.task))
        examples = read(data, ids=options.ids)
        weights = opened.weights(examples, make_weights(examples, options, DOUBLE))
        _, targets = examples.take(torch.arange(len(examples)))
        codes = cast("Tensor", targets).numpy()
        loss, notes = smooth_loss(objective.loss, options.loss, kind=opened.kind, targets=codes)
        translation = Translation(
            model=_layer(opened.estimator),
            loss=loss,
            regularizer=objective.regularizer(len(examples)),
            training=objective.training(opened.kind),
            notes=(*objective.notes, *notes),
        )
        display = opened.display(data) if options.features is None else None
        return options.complete(
            opened.problem(translation, examples, weights=weights, read=read, display=display)
        )


# ---------------------------------------------------------- what estimators minimised


def _logistic(opened: Opened) -> LinearObjective:
    """C sum_i s_i loss_i + |w|^2 / 2; liblinear regularises the intercept as well."""
    model = opened.estimator
    _refuse_l1(opened)
    _refuse_one_vs_rest(opened)
    loss = "binary_cross_entropy" if len(model.classes_) == 2 else "cross_entropy"
    strength = 0.0 if getattr(model, "penalty", "l2") is None else 1.0 / opened.value("C")
    if model.solver == "liblinear" and model.fit_intercept:
        return LinearObjective(
            loss,
            strength,
            intercept_scaling=float(model.intercept_scaling),
            solver=partial(solve_liblinear_logistic, scaling=float(model.intercept_scaling)),
            notes=(_LIBLINEAR_NOTE,),
        )
    solver = partial(solve_logistic, fit_intercept=model.fit_intercept)
    return LinearObjective(loss, strength, solver=solver)


def _logistic_cv(opened: Opened) -> LinearObjective:
    """The final fit, at the C that cross-validation chose."""
    if not opened.estimator.refit:
        raise opened.unsupported(
            "averages the coefficients of its folds (refit=False)",
            "Such an average minimises nothing.",
            "Fit with refit=True.",
        )
    return _logistic(opened)


def _ridge(opened: Opened) -> LinearObjective:
    """sum_i s_i |y_i - f_i|^2 + alpha |w|^2; the loss "mse" is |y - f|^2 / C for C outputs."""
    _refuse_positive(opened)
    outputs = len(np.atleast_2d(opened.estimator.coef_))
    solver = partial(solve_ridge, fit_intercept=opened.estimator.fit_intercept)
    return LinearObjective("mse", 2 * opened.value("alpha") / outputs, solver=solver)


def _least_squares(opened: Opened) -> LinearObjective:
    """sum_i s_i |y_i - f_i|^2."""
    _refuse_positive(opened)
    solver = partial(solve_least_squares, fit_intercept=opened.estimator.fit_intercept)
    return LinearObjective("mse", 0.0, solver=solver)


def _huber(opened: Opened) -> LinearObjective:
    """sum_i s_i (scale + scale h((y_i - f_i) / scale)) + alpha |w|^2; the scale is fitted along."""
    model = opened.estimator
    size = np.abs(model.intercept_) + np.abs(model.coef_).sum()
    if model.epsilon <= 1 or model.scale_ <= 1e-12 * size:
        raise opened.unsupported(
            f"has an epsilon of {model.epsilon:g} and a scale of {model.scale_:.2g}",
            "Where the scale shrinks to zero there is a bound, at which the gradient is not zero.",
            "Fit with an epsilon above 1; where almost every example lies on the model, fit Ridge.",
        )
    epsilon = float(model.epsilon)
    return LinearObjective(
        f"concomitant_huber:{epsilon!r}",
        2 * opened.value("alpha"),
        solver=partial(solve_huber, epsilon=epsilon, fit_intercept=model.fit_intercept),
    )


def _sgd(opened: Opened) -> LinearObjective:
    """(1/N) sum_i s_i loss_i + alpha |w|^2 / 2, where stochastic steps have come to a stop."""
    model = opened.estimator
    if model.loss != "log_loss":
        raise opened.unsupported(
            f"was fitted with loss={model.loss!r}",
            'Only loss="log_loss" is translated.',
            "Fit with this loss, or use LogisticRegression or LinearSVC.",
        )
    if model.penalty not in ("l2", None):
        raise _no_derivative(opened, model.penalty)
    _refuse_many_classes(opened)
    strength = 0.0 if model.penalty is None else float(model.alpha)
    return LinearObjective(
        "binary_cross_entropy",
        strength,
        beside_mean=True,
        notes=(
            "SGDClassifier stops near the minimum of its objective, not at it: compare the "
            "gradient norm.",
        ),
    )


def _linear_svc(opened: Opened) -> LinearObjective:
    """C sum_i s_i loss_i + (|w|^2 + (b / intercept_scaling)^2) / 2, labels -1 and +1."""
    model = opened.estimator
    if model.penalty != "l2":
        raise _no_derivative(opened, model.penalty)
    _refuse_many_classes(opened)
    if model.multi_class == "crammer_singer":
        raise opened.unsupported(
            'was fitted with multi_class="crammer_singer"',
            "This objective has two weight vectors, of which only the difference was kept.",
            'Fit with multi_class="ovr", the default.',
        )
    return _liblinear(opened, model.loss, partial(solve_svc, loss=model.loss))


def _linear_svr(opened: Opened) -> LinearObjective:
    """C sum_i s_i loss_i + (|w|^2 + (b / intercept_scaling)^2) / 2, loss_i zero up to epsilon."""
    model = opened.estimator
    loss = f"{model.loss}:{float(model.epsilon)!r}"
    return _liblinear(opened, loss, partial(solve_svr, loss=loss))


def _liblinear(opened: Opened, loss: str, solve: Callable[..., Any]) -> LinearObjective:
    model = opened.estimator
    scaling = float(model.intercept_scaling)
    return LinearObjective(
        loss,
        1.0 / model.C,
        intercept_scaling=scaling if model.fit_intercept else None,
        solver=partial(solve, fit_intercept=model.fit_intercept, scaling=scaling),
        notes=(_LIBLINEAR_NOTE,) if model.fit_intercept else (),
    )


TRANSLATORS: dict[str, Callable[[Opened], LinearObjective]] = {
    "HuberRegressor": _huber,
    "LinearRegression": _least_squares,
    "LinearSVC": _linear_svc,
    "LinearSVR": _linear_svr,
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic_cv,
    "Ridge": _ridge,
    "RidgeCV": _ridge,
    "SGDClassifier": _sgd,
}
"""The linear estimators that are understood, by the name of their class."""

_LIBLINEAR_NOTE = (
    "liblinear regularises the intercept (divided by intercept_scaling) like the coefficients, and "
    "so does this problem."
)


def _layer(estimator: Any) -> nn.Module:
    """The fitted model, its coefficients (C, d) and, where it has one, its intercept (C,)."""
    weight = np.atleast_2d(np.array(estimator.coef_, dtype=np.float64))
    bias = None
    if estimator.fit_intercept:
        bias = np.atleast_1d(np.array(estimator.intercept_, dtype=np.float64))
    layer = linear_layer(weight, bias)
    scale = getattr(estimator, "scale_", None)
    return layer if scale is None else ScaledLinear(layer, float(scale))


# -------------------------------------------------------------------------- refusals


def _refuse_l1(opened: Opened) -> None:
    penalty = getattr(opened.estimator, "penalty", "deprecated")
    l1_ratio = opened.value("l1_ratio")
    if penalty == "l1" or (penalty not in ("l2", None) and l1_ratio > 0):
        raise _no_derivative(opened, "l1" if l1_ratio in (0, 1) else "elasticnet")


def _no_derivative(opened: Opened, penalty: str) -> Unsupported:
    return opened.unsupported(
        f"was fitted with the penalty {penalty}",
        "It has no derivative where a coefficient is zero, so influence is not defined.",
        "Fit with an l2 penalty, or none.",
    )


def _refuse_one_vs_rest(opened: Opened) -> None:
    model = opened.estimator
    schemes = (getattr(model, "multi_class", None), model.solver)
    if len(model.classes_) > 2 and ("ovr" in schemes or "liblinear" in schemes):
        _refuse_many_classes(opened)
    if len(model.classes_) == 2 and "multinomial" in schemes:
        raise opened.unsupported(
            'was fitted on two classes with multi_class="multinomial"',
            "It regularises two opposite logits, of which one was kept.",
            "Leave multi_class out.",
        )


def _refuse_many_classes(opened: Opened) -> None:
    classes = len(opened.estimator.classes_)
    if classes > 2:
        raise opened.unsupported(
            f"fits {classes} classes one against the rest",
            "These are as many separate problems, not one with a common loss.",
            "Use LogisticRegression with its default solver, or explain one class against the "
            "rest at a time.",
        )


def _refuse_positive(opened: Opened) -> None:
    if getattr(opened.estimator, "positive", False):
        raise opened.unsupported(
            "was fitted with positive=True",
            "At a bound the gradient is not zero, so influence is not defined.",
            "Fit with positive=False.",
        )
