"""Reference answers in plain float64 numpy; nothing here uses the package.

`LinearOracle` is a linear model with C outputs, f = Theta x, whose objective

    R(Theta; w) = (1/D) sum_i w_i b_i loss(f_i, y_i) + (1/2) sum_j decay_j theta_j^2

is minimised by Newton steps to rounding; D is N, or sum_i w_i when renormalised. Parameters are
kept as Theta (C, d), flattened row by row; `order` brings them into the order of an `nn.Linear`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import solve
from scipy.special import expit, logsumexp, softmax

Array = np.ndarray


# ------------------------------------------------------------------ losses of the outputs


@dataclass(frozen=True)
class Squared:
    """(1/C) sum_c (f_c - y_c)^2."""

    def value(self, f: Array, y: Array) -> Array:
        return ((f - y.reshape(f.shape)) ** 2).mean(1)

    def slope(self, f: Array, y: Array) -> Array:
        return 2 * (f - y.reshape(f.shape)) / f.shape[1]

    def bend(self, f: Array, y: Array) -> Array:
        del y
        return np.broadcast_to(2 / f.shape[1] * np.eye(f.shape[1]), (*f.shape, f.shape[1]))


@dataclass(frozen=True)
class Softmax:
    """-log softmax(f)[y]."""

    def value(self, f: Array, y: Array) -> Array:
        return logsumexp(f, axis=1) - f[np.arange(len(f)), y]

    def slope(self, f: Array, y: Array) -> Array:
        return softmax(f, axis=1) - np.eye(f.shape[1])[y]

    def bend(self, f: Array, y: Array) -> Array:
        del y
        p = softmax(f, axis=1)
        return p[:, :, None] * np.eye(f.shape[1]) - p[:, :, None] * p[:, None, :]


@dataclass(frozen=True)
class Logistic:
    """-log sigmoid of the logit of the true label; y in {0, 1}."""

    def value(self, f: Array, y: Array) -> Array:
        return np.logaddexp(0, f[:, 0]) - y * f[:, 0]

    def slope(self, f: Array, y: Array) -> Array:
        return expit(f) - y[:, None]

    def bend(self, f: Array, y: Array) -> Array:
        del y
        return (expit(f) * expit(-f))[:, :, None]


@dataclass(frozen=True)
class SmoothHinge:
    """t log(1 + exp((1 - y f) / t)); y in {-1, +1}."""

    temperature: float

    def value(self, f: Array, y: Array) -> Array:
        return self.temperature * np.logaddexp(0, (1 - y * f[:, 0]) / self.temperature)

    def slope(self, f: Array, y: Array) -> Array:
        return -y[:, None] * expit((1 - y[:, None] * f) / self.temperature)

    def bend(self, f: Array, y: Array) -> Array:
        u = (1 - y[:, None] * f) / self.temperature
        return (expit(u) * expit(-u) / self.temperature)[:, :, None]


OutputLoss = Squared | Softmax | Logistic | SmoothHinge


# ------------------------------------------------------------------ linear models


@dataclass(frozen=True, eq=False)
class LinearOracle:
    """A linear model with a convex loss.

    Args:
        x: (N, d) inputs, with a last column of ones where there is an intercept.
        y: (N,) or (N, C) targets.
        loss: of the outputs.
        outputs: C.
        decay: (C * d,) factors of theta_j^2 / 2.
        base: (N,) base weights b.
        has_intercept: whether the last column of x is the intercept.
        renormalize: D is sum w instead of N.
    """

    x: Array
    y: Array
    loss: OutputLoss
    outputs: int
    decay: Array
    base: Array
    has_intercept: bool
    renormalize: bool = False
    order: Array = field(init=False)

    def __post_init__(self) -> None:
        index = np.arange(self.outputs * self.x.shape[1]).reshape(self.outputs, -1)
        if self.has_intercept:
            index = np.concatenate([index[:, :-1].ravel(), index[:, -1]])
        object.__setattr__(self, "order", index.ravel())

    def __len__(self) -> int:
        return len(self.x)

    def divisor(self, w: Array) -> float:
        return float(w.sum()) if self.renormalize else float(len(self))

    def predict(self, theta: Array, x: Array | None = None) -> Array:
        """(B, C) outputs."""
        return (self.x if x is None else x) @ theta.reshape(self.outputs, -1).T

    def losses(self, theta: Array) -> Array:
        return self.loss.value(self.predict(theta), self.y)

    def objective(self, theta: Array, w: Array) -> float:
        data = (w * self.base * self.losses(theta)).sum() / self.divisor(w)
        return float(data + 0.5 * (self.decay * theta**2).sum())

    def gradients(self, theta: Array) -> Array:
        """(N, P) gradient of each loss, without base weight and regulariser."""
        slopes = self.loss.slope(self.predict(theta), self.y)
        return (slopes[:, :, None] * self.x[:, None, :]).reshape(len(self), -1)

    def gradient(self, theta: Array, w: Array) -> Array:
        slopes = self.loss.slope(self.predict(theta), self.y) * (w * self.base)[:, None]
        return (slopes.T @ self.x).ravel() / self.divisor(w) + self.decay * theta

    def data_hessian(self, theta: Array, weights: Array) -> Array:
        """(P, P) sum_i weights_i hess loss_i, block by block."""
        bends = self.loss.bend(self.predict(theta), self.y) * weights[:, None, None]
        rows = [
            np.hstack([self.x.T @ (bends[:, c, e, None] * self.x) for e in range(self.outputs)])
            for c in range(self.outputs)
        ]
        return np.vstack(rows)

    def hessian(self, theta: Array, w: Array | None = None) -> Array:
        w = np.ones(len(self)) if w is None else w
        return self.data_hessian(theta, w * self.base) / self.divisor(w) + np.diag(self.decay)

    def newton_step(self, theta: Array, w: Array) -> Array:
        """-(Hessian of R)^+ gradient of R; the pseudo-inverse leaves flat directions alone."""
        if (self.decay > 0).all():
            return -solve(self.hessian(theta, w), self.gradient(theta, w), assume_a="pos")
        values, vectors = np.linalg.eigh(self.hessian(theta, w))
        kept = values > 1e-12 * values.max()
        along = vectors.T @ self.gradient(theta, w)
        return -vectors[:, kept] @ (along[kept] / values[kept])

    def optimum(self, w: Array | None = None, start: Array | None = None) -> Array:
        """The minimum of R(.; w), by Newton steps that are halved until R falls."""
        w = np.ones(len(self)) if w is None else w
        theta = np.zeros(self.outputs * self.x.shape[1]) if start is None else start
        for _ in range(200):
            step = self.newton_step(theta, w)
            if np.abs(step).max() <= 1e-14 * (1 + np.abs(theta).max()):
                break
            before, size = self.objective(theta, w), 1.0
            while self.objective(theta + size * step, w) > before + 1e-14 * abs(before):
                size /= 2
            theta = theta + size * step
        assert np.linalg.norm(self.gradient(theta, w)) < 1e-13 * len(theta), "not at the optimum"
        return theta

    def removals(self, positions: Array | None = None) -> Array:
        """(M, N) weights, each with one example removed."""
        w = np.ones((len(self), len(self))) - np.eye(len(self))
        return w if positions is None else w[positions]

    def retrained(self, positions: Array | None = None) -> Array:
        """(M, P) the optimum after each removal, found by training again."""
        start = self.optimum()
        return np.stack([self.optimum(w, start) for w in self.removals(positions)])

    def newton_retrained(self) -> Array:
        """(N, P) one explicit Newton step of the objective without each example."""
        theta = self.optimum()
        return np.stack([theta + self.newton_step(theta, w) for w in self.removals()])

    def derivative(self, step: float = 1e-4) -> Array:
        """(N, P) d theta* / d w_i, by central differences of the optimum."""
        start = self.optimum()
        nudges = np.eye(len(self)) * step
        return np.stack(
            [(self.optimum(1 + e, start) - self.optimum(1 - e, start)) / (2 * step) for e in nudges]
        )

    def flat(self, theta: Array) -> Array:
        """(..., P) parameters in the order of an `nn.Linear`."""
        return theta[..., self.order]

    def renormalized(self) -> "LinearOracle":
        return replace(self, renormalize=True)


def ridge_closed_form(oracle: LinearOracle, w: Array) -> Array:
    """The minimum of a squared-error objective from its normal equations, one output at a time."""
    scale = 2 * w * oracle.base / (oracle.divisor(w) * oracle.outputs)
    gram = oracle.x.T @ (scale[:, None] * oracle.x)
    right = oracle.x.T @ (scale[:, None] * oracle.y.reshape(len(oracle), -1))
    decay = oracle.decay.reshape(oracle.outputs, -1)
    rows = [solve(gram + np.diag(d), r) for d, r in zip(decay, right.T, strict=True)]
    return np.concatenate(rows)


# ------------------------------------------------------------------ measurements


def margin(f: Array, y: Array) -> Array:
    """log p_y - log(1 - p_y) for class logits, written out over the other classes."""
    others = np.where(np.eye(f.shape[1], dtype=bool)[y], -np.inf, f)
    return f[np.arange(len(f)), y] - logsumexp(others, axis=1)


def margin_slope(f: Array, y: Array) -> Array:
    own = np.eye(f.shape[1], dtype=bool)[y]
    return own - softmax(np.where(own, -np.inf, f), axis=1)


def binary_margin(f: Array, y: Array) -> Array:
    """log p_y - log(1 - p_y) for one logit."""
    p = np.where(y == 1, expit(f[:, 0]), expit(-f[:, 0]))
    return np.log(p) - np.log1p(-p)


def binary_margin_slope(f: Array, y: Array) -> Array:
    del f
    return (2.0 * y - 1)[:, None]


def signed_margin(f: Array, y: Array) -> Array:
    return y * f[:, 0]


def signed_margin_slope(f: Array, y: Array) -> Array:
    del f
    return y[:, None]


def prediction(f: Array, y: Array) -> Array:
    del y
    return f.mean(1)


def prediction_slope(f: Array, y: Array) -> Array:
    del y
    return np.full(f.shape, 1 / f.shape[1])


# ------------------------------------------------------------------ finite differences


def central_difference(function: Callable[[Array], Array], point: Array, step: float) -> Array:
    """(..., P) derivative of `function` at a point (P,); its error is of the order of step^2."""
    nudges = np.eye(len(point)) * step
    columns = [
        (np.asarray(function(point + e)) - np.asarray(function(point - e))) / (2 * step)
        for e in nudges
    ]
    return np.stack(columns, -1)


def slope_through_origin(predicted: Array, actual: Array) -> float:
    """The factor s of the line predicted = s actual that fits best."""
    return float((predicted * actual).sum() / (actual * actual).sum())
