"""Linear models of scikit-learn, alone or at the end of a pipeline.

For each estimator a translator says which sum it minimised; divided by N it is the objective of the
`Problem`. Everything is float64, whatever the precision of the fit.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.adapters.base import Adapter, Options, make_training, make_weights
from whence.core.batches import Data
from whence.core.linear import LinearObjective, linear_layer
from whence.core.losses import Loss, make_loss
from whence.core.prepared import Preparation, column_names
from whence.core.problem import Problem, call_plainly
from whence.core.refitting import (
    Refit,
    solve_least_squares,
    solve_liblinear_logistic,
    solve_logistic,
    solve_ridge,
    solve_svc,
)
from whence.core.training import Training
from whence.errors import BadArgument, BadData, NotFitted, Unsupported
from whence.numerics.vectors import layout_of


class SklearnAdapter(Adapter):
    """A fitted linear model, or a pipeline of fixed steps that ends in one."""

    def recognises(self, model: object) -> bool:
        """Whether it is an estimator."""
        base = sys.modules.get("sklearn.base")
        return base is not None and isinstance(model, base.BaseEstimator)

    def make_problem(self, model: Any, data: object, options: Options) -> Problem:
        """The objective that the estimator minimised, at the coefficients it found."""
        steps, estimator = _open_pipeline(model)
        objective = _translate(estimator)
        loss = _choose_loss(estimator, objective, options)
        prepare = options.reader(_preparation(steps, estimator, loss))
        examples = prepare(data, ids=options.ids)
        layer = linear_layer(*_coefficients(estimator))
        named = dict(layer.named_parameters())
        layout = layout_of(named)
        parameters = layout.join(named).detach().clone()
        return Problem(
            model=layer,
            layout=layout,
            parameters=parameters,
            loss=loss,
            regularizer=objective.regularizer(len(examples)),
            data=examples,
            weights=_weights(estimator, examples, options, parameters),
            forward=call_plainly,
            renormalize=options.renormalize,
            training=make_training(options.training) or _training(estimator, objective),
            name=options.name or type(estimator).__name__,
            display=options.display or _row_display(data, estimator, steps, options),
            label_names=options.label_names or _label_names(estimator),
            notes=(*objective.notes, *_pipeline_notes(steps)),
            read=prepare,
        )


# ---------------------------------------------------------- what estimators minimised


def _logistic(model: Any) -> LinearObjective:
    """C sum_i s_i loss_i + |w|^2 / 2; liblinear regularises the intercept as well."""
    _refuse_l1(model, _fitted_value(model, "l1_ratio"))
    loss = "binary_cross_entropy" if len(model.classes_) == 2 else "cross_entropy"
    _refuse_one_vs_rest(model)
    strength = 0.0 if getattr(model, "penalty", "l2") is None else 1.0 / _fitted_value(model, "C")
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


def _logistic_cv(model: Any) -> LinearObjective:
    """The final fit, at the C that cross-validation chose."""
    if not model.refit:
        raise _unsupported(
            model,
            "averages the coefficients of its folds (refit=False)",
            "Such an average minimises nothing.",
            "Fit with refit=True.",
        )
    return _logistic(model)


def _ridge(model: Any) -> LinearObjective:
    """sum_i s_i |y_i - f_i|^2 + alpha |w|^2; the loss "mse" is |y - f|^2 / C for C outputs."""
    _refuse_positive(model)
    outputs = len(np.atleast_2d(model.coef_))
    solver = partial(solve_ridge, fit_intercept=model.fit_intercept)
    return LinearObjective("mse", 2 * _fitted_value(model, "alpha") / outputs, solver=solver)


def _least_squares(model: Any) -> LinearObjective:
    """sum_i s_i |y_i - f_i|^2."""
    _refuse_positive(model)
    solver = partial(solve_least_squares, fit_intercept=model.fit_intercept)
    return LinearObjective("mse", 0.0, solver=solver)


def _sgd(model: Any) -> LinearObjective:
    """(1/N) sum_i s_i loss_i + alpha |w|^2 / 2, where stochastic steps have come to a stop."""
    if model.loss != "log_loss":
        raise _unsupported(
            model,
            f"was fitted with loss={model.loss!r}",
            'Only loss="log_loss" is translated.',
            "Fit with this loss, or use LogisticRegression or LinearSVC.",
        )
    if model.penalty not in ("l2", None):
        raise _no_derivative(model, model.penalty)
    _refuse_many_classes(model)
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


def _linear_svc(model: Any) -> LinearObjective:
    """C sum_i s_i loss_i + (|w|^2 + (b / intercept_scaling)^2) / 2, labels -1 and +1."""
    if model.penalty != "l2":
        raise _no_derivative(model, model.penalty)
    _refuse_many_classes(model)
    if model.multi_class == "crammer_singer":
        raise _unsupported(
            model,
            'was fitted with multi_class="crammer_singer"',
            "This objective has two weight vectors, of which only the difference was kept.",
            'Fit with multi_class="ovr", the default.',
        )
    scaling = float(model.intercept_scaling)
    solver = partial(solve_svc, loss=model.loss, fit_intercept=model.fit_intercept, scaling=scaling)
    is_hinge = model.loss == "hinge"
    notes = (_LIBLINEAR_NOTE,) if model.fit_intercept else ()
    return LinearObjective(
        SMOOTH_HINGE if is_hinge else model.loss,
        1.0 / model.C,
        intercept_scaling=scaling if model.fit_intercept else None,
        solver=solver,
        solved=model.loss,
        notes=(*notes, _HINGE_NOTE) if is_hinge else notes,
    )


SMOOTH_HINGE = "smooth_hinge:0.001"
"""What stands for the hinge by default; the temperature of Koh & Liang 2017, section 4.3."""

TRANSLATORS: dict[str, Callable[[Any], LinearObjective]] = {
    "LinearRegression": _least_squares,
    "LinearSVC": _linear_svc,
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic_cv,
    "Ridge": _ridge,
    "RidgeCV": _ridge,
    "SGDClassifier": _sgd,
}
"""The estimators that are understood, by the name of their class."""

REMEDIES = {
    "GridSearchCV": "Pass search.best_estimator_.",
    "RandomizedSearchCV": "Pass search.best_estimator_.",
    "OneVsRestClassifier": "Pass one of its estimators_, with labels for that class against the "
    "rest.",
}
"""What to do instead, for estimators that hold others."""

_LIBLINEAR_NOTE = (
    "liblinear regularises the intercept (divided by intercept_scaling) like the coefficients, and "
    "so does this problem."
)

_HINGE_NOTE = (
    "The hinge has no curvature, so effects are computed with a smooth hinge at the coefficients "
    "that the hinge led to (loss= chooses its temperature); a refit uses the hinge itself."
)


def _translate(estimator: Any) -> LinearObjective:
    kind = type(estimator).__name__
    is_known = kind in TRANSLATORS and type(estimator).__module__.startswith("sklearn.")
    if not is_known:
        raise Unsupported(
            found=f"There is no translation for {kind}.",
            why=f"These are understood: {', '.join(TRANSLATORS)}, and a Pipeline that ends in one.",
            remedy=REMEDIES.get(kind, "Use one of them, or train a PyTorch model instead."),
        )
    if getattr(estimator, "coef_", None) is None:
        raise NotFitted(
            found=f"This {kind} has not been fitted.",
            why="Without coefficients there is no prediction to explain.",
            remedy="Call fit(X, y) before make_problem.",
        )
    return TRANSLATORS[kind](estimator)


def _training(estimator: Any, objective: LinearObjective) -> Training | None:
    if objective.solver is None:
        return None
    return Refit(type(estimator).__name__, objective.solver, objective.solved or objective.loss)


def _fitted_value(model: Any, name: str) -> float:
    """A hyperparameter; what was chosen, where cross-validation chose it."""
    value: Any = getattr(model, f"{name}_", None)
    if value is None:
        value = getattr(model, name, 0.0)
    values = {0.0 if entry is None else float(entry) for entry in np.ravel(value).tolist()}
    if len(values) > 1:
        raise _unsupported(
            model,
            f"has {len(values)} values of {name}",
            "The problem has one regulariser for all outputs.",
            f"Fit with one value of {name}, or one model for each output.",
        )
    return values.pop()


def _refuse_l1(model: Any, l1_ratio: float) -> None:
    penalty = getattr(model, "penalty", "deprecated")
    if penalty == "l1" or (penalty not in ("l2", None) and l1_ratio > 0):
        raise _no_derivative(model, "l1" if l1_ratio in (0, 1) else "elasticnet")


def _no_derivative(model: Any, penalty: str) -> Unsupported:
    return _unsupported(
        model,
        f"was fitted with the penalty {penalty}",
        "It has no derivative where a coefficient is zero, so influence is not defined.",
        "Fit with an l2 penalty, or none.",
    )


def _refuse_one_vs_rest(model: Any) -> None:
    schemes = (getattr(model, "multi_class", None), model.solver)
    if len(model.classes_) > 2 and ("ovr" in schemes or "liblinear" in schemes):
        _refuse_many_classes(model)
    if len(model.classes_) == 2 and "multinomial" in schemes:
        raise _unsupported(
            model,
            'was fitted on two classes with multi_class="multinomial"',
            "It regularises two opposite logits, of which one was kept.",
            "Leave multi_class out.",
        )


def _refuse_many_classes(model: Any) -> None:
    if len(model.classes_) > 2:
        raise _unsupported(
            model,
            f"fits {len(model.classes_)} classes one against the rest",
            "These are as many separate problems, not one with a common loss.",
            "Use LogisticRegression with its default solver, or explain one class against the "
            "rest at a time.",
        )


def _refuse_positive(model: Any) -> None:
    if getattr(model, "positive", False):
        raise _unsupported(
            model,
            "was fitted with positive=True",
            "At a bound the gradient is not zero, so influence is not defined.",
            "Fit with positive=False.",
        )


def _unsupported(model: Any, found: str, why: str, remedy: str) -> Unsupported:
    return Unsupported(found=f"This {type(model).__name__} {found}.", why=why, remedy=remedy)


def _choose_loss(estimator: Any, objective: LinearObjective, options: Options) -> Loss:
    """The loss of the estimator; for a hinge the user may choose how smooth."""
    options.refuse(
        type(estimator).__name__,
        weight_decay="the strength it was fitted with",
        regularizer="the penalty it was fitted with",
        class_weight="its own class_weight",
        parameters="its coefficients and its intercept",
        forward="its decision function, after the steps of its pipeline",
        target="y is the second part of (X, y)",
    )
    if objective.solved != "hinge":
        options.refuse(type(estimator).__name__, loss=f"it minimised {objective.loss}")
        return make_loss(objective.loss)
    loss = make_loss(options.loss or objective.loss)
    if not loss.name.startswith(("hinge", "smooth_hinge")):
        raise BadArgument(
            found=f"loss={loss.name!r} was given for a LinearSVC that minimised the hinge.",
            why="Only a smoother hinge stands for it.",
            remedy='Give "smooth_hinge:TEMPERATURE", or "hinge" for the raw one.',
        )
    return loss


# ------------------------------------------------------------------- data and labels


def _open_pipeline(model: Any) -> tuple[Any, Any]:
    """`(fixed steps or None, final estimator)`."""
    if type(model).__name__ != "Pipeline":
        return None, model
    return (model[:-1] if len(model.steps) > 1 else None), model.steps[-1][1]


def _preparation(steps: Any, estimator: Any, loss: Loss) -> Preparation:
    codes = None
    if loss.task != "regression":
        classes = estimator.classes_.tolist()
        first = {"binary": (0.0, 1.0), "signed": (-1.0, 1.0)}.get(loss.task, range(len(classes)))
        codes = dict(zip(classes, first, strict=True))
    names = getattr(estimator, "feature_names_in_", None)
    return Preparation(
        width=int(estimator.n_features_in_),
        transform=None if steps is None else partial(_transform, steps),
        codes=codes,
        columns=None if names is None else tuple(map(str, names)),
    )


def _transform(steps: Any, raw: object) -> object:
    """What the fixed steps make of raw examples."""
    from sklearn.exceptions import NotFittedError

    try:
        return steps.transform(raw)
    except NotFittedError as error:
        raise NotFitted(
            found=f"A step of the pipeline has not been fitted ({error}).",
            why="Without it the features of the model cannot be made.",
            remedy="Fit the pipeline as a whole before make_problem.",
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadData(
            found=f"The steps of the pipeline ({_step_names(steps)}) refused the examples: {error}",
            why="Training examples and queries go through them before the model.",
            remedy="Pass raw examples in the form in which the pipeline was fitted, as one table "
            "or list.",
        ) from error


def _step_names(steps: Any) -> str:
    return ", ".join(type(step).__name__ for _, step in steps.steps)


def _pipeline_notes(steps: Any) -> tuple[str, ...]:
    if steps is None:
        return ()
    return (
        f"The fitted steps {_step_names(steps)} stay as they are: what an example contributed to "
        "them is not counted.",
    )


def _coefficients(estimator: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(C, d) and (C,), or None without an intercept."""
    weight = np.atleast_2d(np.array(estimator.coef_, dtype=np.float64))
    if not estimator.fit_intercept:
        return weight, None
    return weight, np.atleast_1d(np.array(estimator.intercept_, dtype=np.float64))


def _label_names(estimator: Any) -> tuple[str, ...] | None:
    classes = getattr(estimator, "classes_", None)
    return None if classes is None else tuple(map(str, classes.tolist()))


def _row_display(
    data: object, estimator: Any, steps: Any, options: Options
) -> dict[str, Any] | None:
    """Rows with the names of their columns, where there are names and the rows are raw."""
    if options.features is not None:
        return None
    columns = column_names(data[0]) if isinstance(data, tuple) else None
    if columns is None and steps is None:
        columns = getattr(estimator, "feature_names_in_", None)
    return None if columns is None else {"kind": "row", "feature_names": list(columns)}


def _weights(estimator: Any, examples: Data, options: Options, like: Tensor) -> Tensor:
    """(N,) base weights: sample weight times the class weight that the fit used."""
    _, targets = examples.take(torch.arange(len(examples)))
    if targets is None:
        raise BadData(
            found="The training data has no targets.",
            why="Without targets there is no loss to take the gradient of.",
            remedy="Pass (X, y).",
        )
    weights = make_weights(examples, options, like)
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return weights
    codes, index = torch.unique(targets, return_inverse=True)
    if len(codes) < len(classes):
        raise BadData(
            found=f"The training data has examples of {len(codes)} classes; the model was fitted "
            f"on {len(classes)}.",
            why="This is not the data that the model was fitted on.",
            remedy="Pass all of its training data.",
        )
    table = _class_weights(estimator, classes[index.numpy()], weights.numpy())
    return weights * torch.from_numpy(table).to(like)[index]


def _class_weights(estimator: Any, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,) the weight of each class, by the rule of the installed scikit-learn.

    For "balanced", most estimators count each example by its weight since 1.7; stochastic gradient
    descent counts heads.
    """
    from sklearn.utils.class_weight import compute_class_weight

    counts_weights = "sample_weight" in inspect.signature(compute_class_weight).parameters
    is_sgd = type(estimator).__name__ == "SGDClassifier"
    given = {"sample_weight": weights} if counts_weights and not is_sgd else {}
    return compute_class_weight(
        estimator.class_weight, classes=estimator.classes_, y=labels, **given
    )
