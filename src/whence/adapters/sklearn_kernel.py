"""Kernel models of scikit-learn, alone or at the end of a pipeline: SVC and KernelRidge.

They become linear models on explicit features of their kernel (`whence.core.kernels`), with the
same decision function and the same objective.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.adapters.base import Adapter, Options, make_weights
from whence.core.batches import Data
from whence.core.estimators import (
    DOUBLE,
    Opened,
    Translation,
    family_of,
    open_estimator,
    told,
)
from whence.core.kernels import Kernel, KernelFeatures, check_rows, explicit_features
from whence.core.linear import LinearObjective, linear_layer, smooth_loss
from whence.core.losses import make_loss
from whence.core.problem import Problem
from whence.core.refitting import solve_kernel_svc, solve_ridge
from whence.errors import BadData, Unsupported

_AGREEMENT = 1e-6
"""Share of the largest output by which linear model and estimator may differ: far above the
rounding of a kernel, far below the difference that another kernel makes."""


class SklearnKernelAdapter(Adapter):
    """A fitted `SVC` of two classes or `KernelRidge`, or a pipeline of fixed steps that ends so."""

    def recognises(self, model: object) -> bool:
        """Whether it is a kernel model."""
        return family_of(model) == "kernel"

    def make_problem(self, model: Any, data: object, options: Options) -> Problem:
        """The objective that the estimator minimised, in the explicit features of its kernel."""
        opened = open_estimator(model)
        fitted, translate = KINDS[opened.kind]
        _refuse_unreadable(opened)
        options.refuse(opened.kind, **told(fitted))
        table = opened.preparation(make_loss(fitted).task)
        seen = Seen.read(options.reader(table)(data, ids=options.ids), opened, options)
        dual = translate(opened, seen)
        features = explicit_features(table, dual.kernel, seen.rows)
        # An extractor below the kernel runs a second time: before, there were no features to keep.
        read = options.reader(features.preparation())
        problem = opened.problem(
            _translation(opened, dual, seen, features, options),
            read(data, ids=options.ids),
            weights=torch.from_numpy(seen.weights),
            read=read,
            display=opened.display(data) if options.features is None else None,
        )
        _check_agreement(opened, problem, seen.rows)
        return options.complete(problem)


@dataclass(frozen=True, eq=False)
class Seen:
    """What an estimator was fitted on.

    Args:
        rows: (N, d) features.
        codes: (N,) or (N, C) targets; -1 and +1 for the two classes.
        weights: (N,) base weights.
    """

    rows: np.ndarray
    codes: np.ndarray
    weights: np.ndarray

    @staticmethod
    def read(examples: Data, opened: Opened, options: Options) -> "Seen":
        """From the training data, with the class weights of the fit."""
        weights = opened.weights(examples, make_weights(examples, options, DOUBLE))
        parts = cast("tuple[Tensor, Tensor]", examples.take(torch.arange(len(examples))))
        rows, codes = (part.double().numpy() for part in parts)
        check_rows(rows)
        return Seen(rows, codes, weights.numpy())


@dataclass(frozen=True, eq=False)
class DualModel:
    """A model as its dual solution.

    Args:
        objective: what it minimised.
        kernel: of two sets of rows.
        coefficients: (N, C), f(x) = sum_i a_i k(x_i, x) + b.
        intercept: (C,) b, or None.
    """

    objective: LinearObjective
    kernel: Kernel
    coefficients: np.ndarray
    intercept: np.ndarray | None = None


# ---------------------------------------------------------- what estimators minimised


def _svc(opened: Opened, seen: Seen) -> DualModel:
    """C sum_i s_i hinge_i + |w|^2 / 2, with a free intercept."""
    model = opened.estimator
    coefficients = np.zeros((len(seen.rows), 1))
    _check_rows_of_fit(opened, len(seen.rows), int(model.shape_fit_[0]))
    places = _support(opened, seen.weights)
    found = _dense(model.dual_coef_)[0]
    _check_alike(opened, seen.rows[places], _dense(model.support_vectors_), places)
    _check_labels(seen.codes[places], found, places)
    _check_bounds(found / model.C, seen.weights[places], places)
    coefficients[places, 0] = found
    gamma, notes = model.gamma, ()
    if isinstance(gamma, str):
        spread = seen.rows.var() if gamma == "scale" else 1.0
        gamma = 1 / (seen.rows.shape[1] * spread) if spread else 1.0
        notes = (f"The kernel keeps gamma = {gamma:.4g}, whatever is removed.",)
    return DualModel(
        LinearObjective("hinge", 1 / model.C, solver=solve_kernel_svc, notes=notes),
        _kernel(model, gamma),
        coefficients,
        np.array(model.intercept_, dtype=np.float64),
    )


def _support(opened: Opened, weights: np.ndarray) -> np.ndarray:
    """Positions of the support vectors; the fit counts only examples that have a weight."""
    weighted = np.flatnonzero(weights > 0)
    places = opened.estimator.support_
    if places.max(initial=-1) >= len(weighted):
        raise BadData(
            found=f"{len(weights) - len(weighted):,} training examples have no weight; the fit "
            "used more of them than that.",
            why="Each coefficient of its dual solution belongs to one training example.",
            remedy="Pass the sample_weight of the fit to make_problem.",
        )
    return weighted[places]


def _kernel_ridge(opened: Opened, seen: Seen) -> DualModel:
    """sum_i s_i |y_i - f_i|^2 + alpha |w|^2; the loss "mse" is |y - f|^2 / C for C outputs."""
    model = opened.estimator
    fitted = _dense(model.X_fit_)
    _check_rows_of_fit(opened, len(seen.rows), len(fitted))
    _check_alike(opened, seen.rows, fitted, np.arange(len(fitted)))
    coefficients = np.array(model.dual_coef_, dtype=np.float64).reshape(len(fitted), -1)
    strength = 2 * opened.value("alpha") / coefficients.shape[1]
    return DualModel(
        LinearObjective("mse", strength, solver=partial(solve_ridge, fit_intercept=False)),
        _kernel(model, model.gamma),
        coefficients,
    )


KINDS: dict[str, tuple[str, Callable[[Opened, Seen], DualModel]]] = {
    "KernelRidge": ("mse", _kernel_ridge),
    "SVC": ("hinge", _svc),
}
"""The kernel models that are understood: the loss of each, and what reads it."""


def _kernel(model: Any, gamma: float | None) -> Kernel:
    from sklearn.metrics.pairwise import pairwise_kernels

    return partial(
        pairwise_kernels,
        metric=model.kernel,
        filter_params=True,  # each kernel takes those that it has
        gamma=gamma,
        degree=model.degree,
        coef0=model.coef0,
    )


def _translation(
    opened: Opened, dual: DualModel, seen: Seen, features: KernelFeatures, options: Options
) -> Translation:
    objective = dual.objective
    loss, notes = smooth_loss(objective.loss, options.loss, kind=opened.kind, targets=seen.codes)
    count = len(seen.rows)
    note = (
        f"The {opened.estimator.kernel} kernel stands as {len(features.values):,} explicit "
        f"features, one for each eigenvalue of its matrix of {count:,} training examples; "
        f"{features.dropped:,} eigenvalues that are zero to rounding were dropped."
    )
    return Translation(
        model=linear_layer(features.weights(dual.coefficients), dual.intercept),
        loss=loss,
        regularizer=objective.regularizer(count),
        training=objective.training(opened.kind),
        notes=(note, *objective.notes, *notes),
    )


def _dense(table: Any) -> np.ndarray:
    return np.asarray(table.toarray() if hasattr(table, "toarray") else table, dtype=np.float64)


# -------------------------------------------------------------------------- refusals


def _refuse_unreadable(opened: Opened) -> None:
    opened.check_fitted("dual_coef_")
    kernel = opened.estimator.kernel
    if callable(kernel) or kernel == "precomputed":
        raise opened.unsupported(
            "was fitted with " + ("a kernel of your own" if callable(kernel) else f"{kernel=}"),
            "Features of training examples and queries are made from a kernel known by its name.",
            "Fit with a named kernel, or fit a linear model on explicit features of the kernel.",
        )
    classes = len(getattr(opened.estimator, "classes_", ()))
    if classes > 2:
        raise opened.unsupported(
            f"separates {classes} classes in pairs, one against one",
            "These are as many separate problems as there are pairs, not one with a common loss.",
            "Fit one SVC for the two classes in question, or use LogisticRegression.",
        )


def _check_rows_of_fit(opened: Opened, given: int, fitted: int) -> None:
    if given != fitted:
        raise BadData(
            found=f"There are {given:,} training examples; this {opened.kind} was fitted on "
            f"{fitted:,}.",
            why="Each coefficient of its dual solution belongs to one training example.",
            remedy="Pass all of its training data, in the order of the fit.",
        )


def _check_alike(opened: Opened, rows: np.ndarray, kept: np.ndarray, places: np.ndarray) -> None:
    size = float(np.abs(kept).max(initial=0.0))
    apart = np.abs(rows - kept).max(1, initial=0.0) > _AGREEMENT * size
    if apart.any():
        raise BadData(
            found=f"Example {places[apart.argmax()]} is another one than the {opened.kind} was "
            f"fitted on; so are {int(apart.sum()):,} of the {len(rows):,} that it kept.",
            why="Each coefficient of its dual solution belongs to one training example.",
            remedy="Pass its own training data, in the order of the fit.",
        )


def _check_labels(codes: np.ndarray, coefficients: np.ndarray, places: np.ndarray) -> None:
    wrong = codes * coefficients < 0
    if wrong.any():
        raise BadData(
            found=f"Example {places[wrong.argmax()]} has another label than at the fit; so have "
            f"{int(wrong.sum()):,} of the {len(places):,} support vectors.",
            why="The objective would be that of another fit.",
            remedy="Pass the labels of the fit, in their order.",
        )


def _check_bounds(shares: np.ndarray, weights: np.ndarray, places: np.ndarray) -> None:
    above = np.abs(shares) > weights * (1 + _AGREEMENT)
    if above.any():
        place = int(above.argmax())
        raise BadData(
            found=f"The dual coefficient of example {places[place]} is {abs(shares[place]):.4g} C, "
            f"above its weight of {weights[place]:.4g}.",
            why="The fit gave it a larger weight than the problem has.",
            remedy="Pass the sample_weight of the fit to make_problem.",
        )


def _check_agreement(opened: Opened, problem: Problem, rows: np.ndarray) -> None:
    """Refuses a translation that does not predict what the estimator does."""
    model = opened.estimator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the rows carry no names
        theirs = getattr(model, "decision_function", model.predict)(rows)
    with torch.no_grad():
        batch = problem.batch(torch.arange(len(problem)))
        ours = problem.outputs(problem.parameters, batch.inputs).numpy()
    apart = np.abs(ours - theirs.reshape(ours.shape))
    if not apart.max() <= _AGREEMENT * np.abs(theirs).max():
        raise Unsupported(
            found=f"The explicit features give another output than the {opened.kind}, by up to "
            f"{apart.max():.3g}, on its training examples.",
            why="Its kernel is not the one that its parameters now say.",
            remedy="Fit again; parameters must not be set after the fit.",
        )
