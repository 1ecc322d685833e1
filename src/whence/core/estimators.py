"""What fitted estimators of scikit-learn have in common, whatever they minimised.

An estimator may stand at the end of a pipeline. The steps before it are fixed: every example goes
through them, and what it contributed to them is not counted.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.batches import Data
from whence.core.losses import Loss, Task, is_kinked
from whence.core.prepared import Preparation, column_names
from whence.core.problem import Problem, call_plainly
from whence.core.regularizers import Regularizer
from whence.core.training import Trainer
from whence.errors import BadData, NotFitted, Unsupported
from whence.numerics.vectors import layout_of

FAMILIES: dict[str, tuple[str, ...]] = {
    "linear": (
        "HuberRegressor",
        "LinearRegression",
        "LinearSVC",
        "LinearSVR",
        "LogisticRegression",
        "LogisticRegressionCV",
        "Ridge",
        "RidgeCV",
        "SGDClassifier",
    ),
    "kernel": ("KernelRidge", "SVC"),
    "network": ("MLPClassifier", "MLPRegressor"),
}
"""The estimators that are understood, by the name of their class; an adapter reads each family."""

REMEDIES = {
    "GridSearchCV": "Pass search.best_estimator_.",
    "RandomizedSearchCV": "Pass search.best_estimator_.",
    "OneVsRestClassifier": "Pass one of its estimators_, with labels for that class against the "
    "rest.",
    "OneVsOneClassifier": "Pass one of its estimators_, with the examples of its two classes.",
    "TransformedTargetRegressor": "Pass its regressor_, with the targets transformed.",
    "NuSVC": "Use SVC, whose C plays the part of nu.",
    "SVR": "Use KernelRidge with the same kernel, or LinearSVR.",
    "NuSVR": "Use KernelRidge with the same kernel, or LinearSVR.",
    "GaussianProcessRegressor": "Use KernelRidge with the same kernel and alpha: it predicts the "
    "same mean.",
}
"""What to do instead, for estimators that hold others or resemble one that is understood."""

DOUBLE = torch.zeros(0, dtype=torch.float64)
"""Everything about an estimator is float64 on the CPU, whatever the precision of its fit."""


@dataclass(frozen=True)
class Translation:
    """What an estimator minimised, and how it is minimised again.

    Args:
        model: what it predicts with, in float64.
        loss: of one example.
        regularizer: beside the mean loss.
        training: fits again for any weights; None where there is no exact way.
        notes: what a reader of the scores should know.
    """

    model: nn.Module
    loss: Loss
    regularizer: Regularizer
    training: Trainer | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A fitted estimator, taken out of its pipeline.

    Args:
        estimator: the last step, or the model itself.
        steps: the fixed steps before it; None without any.
    """

    estimator: Any
    steps: Any = None

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.estimator).__name__

    @property
    def family(self) -> str:
        """Its key of `FAMILIES`; "" for one that is not understood.

        A subclass from elsewhere may minimise anything and has no family.
        """
        if not type(self.estimator).__module__.startswith("sklearn."):
            return ""
        return next((name for name, kinds in FAMILIES.items() if self.kind in kinds), "")

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the estimator."""
        classes = getattr(self.estimator, "classes_", None)
        return None if classes is None else tuple(map(str, classes.tolist()))

    @property
    def notes(self) -> tuple[str, ...]:
        """That the steps are fixed, where there are any."""
        if self.steps is None:
            return ()
        return (
            f"The fitted steps {_step_names(self.steps)} stay as they are: what an example "
            "contributed to them is not counted.",
        )

    def check_fitted(self, attribute: str) -> None:
        """Refuses an estimator that has not been fitted.

        Args:
            attribute: what the fit leaves behind.

        Raises:
            NotFitted: it is not there.
        """
        if getattr(self.estimator, attribute, None) is None:
            raise NotFitted(
                found=f"This {self.kind} has not been fitted.",
                why="Without coefficients there is no prediction to explain.",
                remedy="Call fit(X, y) before make_problem.",
            )

    def preparation(self, task: Task) -> Preparation:
        """How raw examples become what the estimator takes, and labels codes of a loss."""
        codes = None
        if task in ("classes", "binary", "signed"):
            classes = self.estimator.classes_.tolist()
            pairs = {"binary": (0.0, 1.0), "signed": (-1.0, 1.0)}
            codes = dict(zip(classes, pairs.get(task, range(len(classes))), strict=True))
        return Preparation(
            width=int(self.estimator.n_features_in_),
            transform=None if self.steps is None else partial(_transform, self.steps),
            codes=codes,
            columns=self.columns,
        )

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features that the estimator takes, where it or its steps know them."""
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is None and self.steps is not None:
            try:
                names = self.steps.get_feature_names_out()
            except (AttributeError, ValueError):  # a step that makes features without names
                return None
        if names is None or len(names) != self.estimator.n_features_in_:
            return None
        return tuple(map(str, names))

    def weights(self, examples: Data, given: Tensor) -> Tensor:
        """(N,) base weights: those that were given times the class weights of the fit.

        Args:
            examples: the training data, labels as codes.
            given: (N,) sample weights.

        Raises:
            BadData: no targets, or fewer classes than the estimator was fitted on.
        """
        _, targets = examples.take(torch.arange(len(examples)))
        if targets is None:
            raise BadData(
                found="The training data has no targets.",
                why="Without targets there is no loss to take the gradient of.",
                remedy="Pass (X, y).",
            )
        classes = getattr(self.estimator, "classes_", None)
        if classes is None:
            return given
        codes, index = torch.unique(targets, return_inverse=True)
        if len(codes) < len(classes):
            raise BadData(
                found=f"The training data has examples of {len(codes)} classes; the model was "
                f"fitted on {len(classes)}.",
                why="This is not the data that the model was fitted on.",
                remedy="Pass all of its training data.",
            )
        table = _class_weights(self.estimator, classes[index.numpy()], given.numpy())
        return given * torch.from_numpy(table).to(given)[index]

    def display(self, data: object) -> dict[str, Any] | None:
        """Rows with the names of their columns, where there are names."""
        columns = column_names(data[0]) if isinstance(data, tuple) else None
        if columns is None and self.steps is None:
            columns = getattr(self.estimator, "feature_names_in_", None)
        return None if columns is None else {"kind": "row", "feature_names": list(columns)}

    def problem(
        self,
        translation: Translation,
        examples: Data,
        *,
        weights: Tensor,
        read: Callable[[object], Data],
        display: dict[str, Any] | None,
    ) -> Problem:
        """The problem that the estimator solved.

        Args:
            translation: its objective.
            examples: what it was fitted on.
            weights: (N,) base weights.
            read: makes such examples of queries.
            display: how examples are shown.
        """
        named = dict(translation.model.named_parameters())
        layout = layout_of(named)
        return Problem(
            model=translation.model,
            layout=layout,
            parameters=layout.join(named).detach().clone(),
            loss=translation.loss,
            regularizer=translation.regularizer,
            data=examples,
            weights=weights,
            forward=call_plainly,
            training=translation.training,
            name=self.kind,
            display=display,
            label_names=self.label_names,
            notes=(*translation.notes, *self.notes),
            read=read,
        )

    def refuse_unknown(self) -> None:
        """Refuses an estimator that no adapter reads.

        Raises:
            Unsupported: with what to use instead.
        """
        if not self.family:
            known = sorted(kind for kinds in FAMILIES.values() for kind in kinds)
            raise Unsupported(
                found=f"There is no translation for {self.kind}.",
                why=f"These are understood: {', '.join(known)}, and a Pipeline that ends in one.",
                remedy=REMEDIES.get(
                    self.kind, "Use one of them, or train a PyTorch model instead."
                ),
            )

    def unsupported(self, found: str, why: str, remedy: str) -> Unsupported:
        """An error for what this estimator was fitted with."""
        return Unsupported(found=f"This {self.kind} {found}.", why=why, remedy=remedy)

    def value(self, name: str) -> float:
        """A hyperparameter; what was chosen, where cross-validation chose it.

        Raises:
            Unsupported: it has several values.
        """
        found: Any = getattr(self.estimator, f"{name}_", None)
        if found is None:
            found = getattr(self.estimator, name, 0.0)
        values = {0.0 if entry is None else float(entry) for entry in np.ravel(found).tolist()}
        if len(values) > 1:
            raise self.unsupported(
                f"has {len(values)} values of {name}",
                "The problem has one regulariser for all outputs.",
                f"Fit with one value of {name}, or one model for each output.",
            )
        return values.pop()


def open_estimator(model: Any) -> Opened:
    """An estimator, and the fixed steps before it where it ends a pipeline."""
    if type(model).__name__ != "Pipeline":
        return Opened(model)
    return Opened(model.steps[-1][1], model[:-1] if len(model.steps) > 1 else None)


def told(loss: str) -> dict[str, str]:
    """Options of `make_problem` that an estimator answers by itself, and how.

    Args:
        loss: what it minimised; where that has kinks, the user may choose how they are rounded.
    """
    answers = {
        "weight_decay": "the strength it was fitted with",
        "regularizer": "the penalty it was fitted with",
        "class_weight": "its own class_weight",
        "parameters": "its coefficients and its intercept",
        "forward": "its decision function, after the steps of its pipeline",
        "target": "y is the second part of (X, y)",
    }
    return answers if is_kinked(loss) else answers | {"loss": f"it minimised {loss}"}


def family_of(model: object) -> str | None:
    """The family of an estimator, "" for one that is not understood, None for anything else.

    scikit-learn is not imported for the answer.
    """
    base = sys.modules.get("sklearn.base")
    if base is None or not isinstance(model, base.BaseEstimator):
        return None
    return open_estimator(model).family


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


def _class_weights(estimator: Any, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,) the weight of each class, by the rule of the installed scikit-learn.

    For "balanced", most estimators count each example by its weight since 1.7; stochastic gradient
    descent counts heads. A support vector machine tells what it used.
    """
    from sklearn.utils.class_weight import compute_class_weight

    used = getattr(estimator, "class_weight_", None)
    if used is not None:
        return np.asarray(used, dtype=np.float64)
    counts_weights = "sample_weight" in inspect.signature(compute_class_weight).parameters
    is_sgd = type(estimator).__name__ == "SGDClassifier"
    given = {"sample_weight": weights} if counts_weights and not is_sgd else {}
    wanted = getattr(estimator, "class_weight", None)
    return compute_class_weight(wanted, classes=estimator.classes_, y=labels, **given)
