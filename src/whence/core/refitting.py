"""Linear models of scikit-learn, fitted again to the exact minimum for any example weights.

Each solver takes weighted examples and finds the coefficients and the intercept at the minimum of

    sum_i s_i loss_i + (strength / 2)|coef|^2
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.core.losses import is_kinked
from whence.core.training import Retrained, Trainer
from whence.progress import breathing_inside, track

if TYPE_CHECKING:
    from whence.core.problem import Problem

Coefficients = tuple[np.ndarray | float, ...]
"""Coefficients, intercept and whatever else was fitted, in the order of the parameters and in the
shapes of scikit-learn. What follows the last parameter of the problem is not looked at."""


@dataclass(frozen=True, eq=False)
class Table:
    """Examples that are fitted again and again.

    Args:
        features: (N, d).
        targets: (N,) or (N, C).
    """

    features: np.ndarray
    targets: np.ndarray

    @cached_property
    def products(self) -> np.ndarray:
        """(N, N) inner products of the features."""
        return self.features @ self.features.T


@dataclass(frozen=True, eq=False)
class Weighted:
    """Examples with a weight each.

    Args:
        table: the examples.
        weights: (N,) s_i; an example of weight 0 is as if removed, but its class stays known.
    """

    table: Table
    weights: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """(N, d)."""
        return self.table.features

    @property
    def targets(self) -> np.ndarray:
        """(N,) or (N, C)."""
        return self.table.targets


_LOOPS = ("sklearn.utils.optimize", "sklearn.linear_model._linear_loss")
"""Modules in which Newton's method of scikit-learn loops; the other solvers are in C."""

Solver = Callable[[Weighted, float], Coefficients]
"""`(examples, strength) -> (coefficients, intercept)`."""


@dataclass(frozen=True)
class Refit(Trainer):
    """Fits an estimator to the exact minimum, from the start, for any weights.

    Features, base weights, N and the strength of the regulariser stay as they are in the problem.
    Tolerances are far below those of a usual fit, so that the difference made by one example is
    not lost in the noise of a solver.

    Args:
        kind: of the estimator.
        solver: finds the minimum.
        loss: name of the loss it minimises.
    """

    kind: str
    solver: Solver
    loss: str

    @property
    def name(self) -> str:
        """The estimator and its loss."""
        return f"{self.kind} fitted again ({self.loss})"

    @property
    def is_deterministic(self) -> bool:
        """The objective is convex: no seed matters."""
        return True

    def retrain(self, problem: "Problem", weights: Tensor, *, seed: int = 0) -> Retrained:
        """Fits once for each row of weights; see `Trainer.retrain`."""
        start = time.perf_counter()
        batch = problem.batch(torch.arange(len(problem)))
        parts = (batch.inputs, cast("Tensor", batch.targets), batch.weights)
        features, targets, base = (part.double().cpu().numpy() for part in parts)
        table = Table(features, targets)
        rows: list[Tensor] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for row in track(weights, f"Fitting {self.kind}"):
                examples = Weighted(table, base * row.cpu().numpy())
                strength = problem.regularizer.weight_decay * problem.total_weight(row)
                with breathing_inside(*_LOOPS):
                    rows.append(_join(problem, self.solver(examples, strength)))
        report: dict[str, Any] = {"training": self.name, "seed": seed}
        if not is_kinked(self.loss):  # at a kink there is no gradient
            pairs = zip(rows, weights, strict=True)
            report["gradient_norm"] = [_gradient_norm(problem, row, w) for row, w in pairs]
        report["warnings"] = sorted({str(warning.message) for warning in caught})
        report["seconds"] = time.perf_counter() - start
        return Retrained(torch.stack(rows), report)


def solve_logistic(examples: Weighted, strength: float, *, fit_intercept: bool) -> Coefficients:
    """Logistic regression, binary or multinomial; the intercept is free."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / strength if strength else np.inf,
        fit_intercept=fit_intercept,
        solver="newton-cg",  # converges quadratically; lbfgs stalls at gradients of 1e-8
        tol=1e-14,
        max_iter=10_000,
    )
    return _fitted(model, examples)


def solve_liblinear_logistic(
    examples: Weighted, strength: float, *, scaling: float
) -> Coefficients:
    """Binary logistic regression with a regularised intercept.

    The intercept is the weight of one more feature, of the constant value `scaling`, times it.
    """
    constant = np.full((len(examples.features), 1), scaling)
    wider = Table(np.hstack([examples.features, constant]), examples.targets)
    widened = Weighted(wider, examples.weights)
    coef = np.asarray(solve_logistic(widened, strength, fit_intercept=False)[0])
    return coef[:, :-1], scaling * coef[:, -1]


def solve_ridge(examples: Weighted, strength: float, *, fit_intercept: bool) -> Coefficients:
    """Ridge regression, where loss_i is the mean of the squared errors of C outputs."""
    from sklearn.linear_model import Ridge

    outputs = examples.targets[0].size
    alpha = strength * outputs / 2
    model = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky")
    return _fitted(model, examples)


def solve_least_squares(
    examples: Weighted, strength: float, *, fit_intercept: bool
) -> Coefficients:
    """Least squares; there is no regulariser."""
    from sklearn.linear_model import LinearRegression

    del strength
    return _fitted(LinearRegression(fit_intercept=fit_intercept), examples)


def solve_svc(
    examples: Weighted, strength: float, *, loss: str, fit_intercept: bool, scaling: float
) -> Coefficients:
    """A linear support vector machine, whose intercept b adds (strength / 2)(b / scaling)^2."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        loss=loss,
        C=1 / strength,
        fit_intercept=fit_intercept,
        intercept_scaling=scaling,
        dual=loss == "hinge",  # the hinge has no other form; Newton's method solves the square
        tol=1e-10,
        max_iter=1_000_000,
        random_state=0,
    )
    return _fitted(model, examples)


def solve_svr(
    examples: Weighted, strength: float, *, loss: str, fit_intercept: bool, scaling: float
) -> Coefficients:
    """A linear support vector regression, whose intercept b adds (strength / 2)(b / scaling)^2.

    Args:
        examples: weighted.
        strength: of the regulariser.
        loss: "epsilon_insensitive:WIDTH" or its square.
        fit_intercept: whether there is one.
        scaling: of the intercept.
    """
    from sklearn.svm import LinearSVR

    name, _, width = loss.partition(":")
    model = LinearSVR(
        loss=name,
        epsilon=float(width),
        C=1 / strength,
        fit_intercept=fit_intercept,
        intercept_scaling=scaling,
        dual=name == "epsilon_insensitive",
        tol=1e-12,
        max_iter=1_000_000,
        random_state=0,
    )
    return _fitted(model, examples)


def solve_kernel_svc(examples: Weighted, strength: float) -> Coefficients:
    """A support vector machine with a free intercept, by its dual problem.

    Removing all examples of a class leaves nothing to separate: the weights are zero, and the
    decision is the label of the other class everywhere.
    """
    from sklearn.svm import SVC

    kept = np.flatnonzero(examples.weights > 0)  # others would shift the places of support_
    targets = examples.targets[kept]
    present = np.unique(targets)
    if len(present) < 2:
        return np.zeros(examples.features.shape[1]), float(present.sum())
    model = SVC(C=1 / strength, kernel="precomputed", tol=1e-12, cache_size=1000)
    products = examples.table.products[np.ix_(kept, kept)]
    model.fit(products, targets, sample_weight=examples.weights[kept])
    return model.dual_coef_[0] @ examples.features[kept[model.support_]], model.intercept_


def solve_huber(
    examples: Weighted, strength: float, *, epsilon: float, fit_intercept: bool
) -> Coefficients:
    """Huber's regression with its scale, by Newton steps; coefficients, intercept, scale.

        sum_i s_i (scale + scale h(r_i / scale)) + (strength / 2)|w|^2,    r = f - y

    scikit-learn's own solver stops where its steps gain little, far above rounding. The objective
    is convex with a continuous slope, and quadratic in the weights on either side of each bend, so
    that Newton steps that go down end after finitely many of them.
    """
    x, y = examples.features, examples.targets.ravel()
    ones = np.ones((len(x), int(fit_intercept)))
    objective = _Huber(np.hstack([x, ones]), y, examples.weights, epsilon, strength, x.shape[1])
    theta = objective.minimum()
    return theta[: x.shape[1]], *theta[x.shape[1] :]


@dataclass(frozen=True)
class _Huber:
    """Objective of `solve_huber` in theta = (weights, intercept, scale).

    Args:
        x: (N, d) features, with a column of ones where there is an intercept.
        y: (N,) targets.
        s: (N,) weights.
        epsilon: where squares end.
        strength: of the regulariser.
        decayed: how many of the columns of x are regularised, from the left.
    """

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    epsilon: float
    strength: float
    decayed: int

    def minimum(self) -> np.ndarray:
        """From least squares on, until rounding lets no step go down any more."""
        root = np.sqrt(self.s)
        start, *_ = np.linalg.lstsq(root[:, None] * self.x, root * self.y, rcond=None)
        error = self.x @ start - self.y
        scale = np.sqrt((self.s * error**2).sum() / self.s.sum())
        theta = np.append(start, scale or 1.0)
        for _ in range(200):
            slope, bend = self.derivatives(theta)
            bend[np.diag_indices_from(bend)] += 1e-12 * np.trace(bend)  # may be singular
            step = np.linalg.solve(bend, -slope)
            if -step[-1] > theta[-1] / 2:  # the scale stays positive
                step *= theta[-1] / 2 / -step[-1]
            then = self.below(theta, step, slope)
            if then is None:
                break
            theta = then
        return theta

    def below(self, theta: np.ndarray, step: np.ndarray, slope: np.ndarray) -> np.ndarray | None:
        """A point along the step where the value is lower; None without any.

        Near the minimum the decrease drowns in the rounding of the value long before the slope
        does: there the slope decides.
        """
        value, norm = self.value(theta), np.linalg.norm(slope)
        rounding = 1e-13 * abs(value)
        for _ in range(60):
            then = theta + step
            gain = 1e-4 * float(slope @ step)
            is_lower = self.value(then) <= value + gain and -gain > rounding
            is_flat = self.value(then) <= value + rounding
            if is_lower or (is_flat and np.linalg.norm(self.derivatives(then)[0]) <= 0.9 * norm):
                return then
            step = step / 2
        return None

    def value(self, theta: np.ndarray) -> float:
        """The objective."""
        size, scale = np.abs(self.x @ theta[:-1] - self.y), theta[-1]
        squares = scale + size**2 / scale
        lines = scale + 2 * self.epsilon * size - self.epsilon**2 * scale
        losses = np.where(size <= self.epsilon * scale, squares, lines)
        return float(self.s @ losses + self.strength / 2 * (theta[: self.decayed] ** 2).sum())

    def derivatives(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian."""
        error, scale = self.x @ theta[:-1] - self.y, theta[-1]
        is_near = np.abs(error) <= self.epsilon * scale
        pull = np.where(is_near, 2 * error / scale, 2 * self.epsilon * np.sign(error))
        widen = 1 - np.where(is_near, (error / scale) ** 2, self.epsilon**2)
        slope = np.append(self.x.T @ (self.s * pull), self.s @ widen)
        arms = np.hstack([self.x, -error[:, None] / scale])[is_near]
        bend = 2 / scale * (arms.T * self.s[is_near]) @ arms
        slope[: self.decayed] += self.strength * theta[: self.decayed]
        bend[np.arange(self.decayed), np.arange(self.decayed)] += self.strength
        return slope, bend


def _fitted(model: Any, examples: Weighted) -> Coefficients:
    model.fit(examples.features, examples.targets, sample_weight=examples.weights)
    return model.coef_, model.intercept_


def _join(problem: "Problem", found: Coefficients) -> Tensor:
    """(P,) parameters; an intercept that the problem does not have is left out."""
    pieces = zip(problem.layout.shapes.items(), found, strict=False)
    named = {name: torch.tensor(value).reshape(shape) for (name, shape), value in pieces}
    return problem.layout.join(named).to(problem.parameters)


def _gradient_norm(problem: "Problem", parameters: Tensor, weights: Tensor) -> float:
    theta = parameters.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(problem.objective(theta, weights), theta)
    return float(slope.norm())
