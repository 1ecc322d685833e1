"""Linear models of scikit-learn, fitted again to the exact minimum for any example weights.

Each solver takes weighted examples and finds the coefficients and the intercept at the minimum of

    sum_i s_i loss_i + (strength / 2)|coef|^2
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.core.training import Retrained, Training
from whence.progress import track

if TYPE_CHECKING:
    from whence.core.problem import Problem

Coefficients = tuple[np.ndarray, np.ndarray | float]
"""Coefficients and intercept, in the shapes of scikit-learn."""


@dataclass(frozen=True)
class Weighted:
    """Examples with a weight each.

    Args:
        features: (N, d).
        targets: (N,) or (N, C).
        weights: (N,) s_i; an example of weight 0 is as if removed, but its class stays known.
    """

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


Solver = Callable[[Weighted, float], Coefficients]
"""`(examples, strength) -> (coefficients, intercept)`."""


@dataclass(frozen=True)
class Refit(Training):
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
        """Fits once for each row of weights; see `Training.retrain`."""
        start = time.perf_counter()
        batch = problem.batch(torch.arange(len(problem)))
        parts = (batch.inputs, cast("Tensor", batch.targets), batch.weights)
        features, targets, base = (part.double().cpu().numpy() for part in parts)
        rows: list[Tensor] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for row in track(weights, f"Fitting {self.kind}"):
                examples = Weighted(features, targets, base * row.cpu().numpy())
                strength = problem.regularizer.weight_decay * problem.total_weight(row)
                rows.append(_join(problem, self.solver(examples, strength)))
        report: dict[str, Any] = {"training": self.name, "seed": seed}
        if self.loss != "hinge":  # its minimum lies at kinks, where there is no gradient
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
    wider = np.hstack([examples.features, constant])
    widened = Weighted(wider, examples.targets, examples.weights)
    coef, _ = solve_logistic(widened, strength, fit_intercept=False)
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
