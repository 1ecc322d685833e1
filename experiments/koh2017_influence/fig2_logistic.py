"""Figure 2, left and middle, of Koh & Liang 2017: predicted effects against retraining.

Multinomial logistic regression on MNIST: 55,000 examples (the first 5,000 training images are held
out), 7,840 parameters, no intercept, weight decay 0.01. For the test image at position 8 the effect
of removing each training example on the loss is predicted by influence functions, once with
conjugate gradients and once with LiSSA. The 500 examples of largest predicted effect are then left
out one at a time, and the model is trained again.

Retraining here shares no code with whence. All models are trained side by side by steps with the
Hessian of the full data, factorised once,

    theta <- theta - H^-1 grad R_i(theta),      R_i = mean of the other losses + 0.005 |theta|^2

and some of them again, from zero, by scikit-learn.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from shared import Clock, circumstances, parse, pooled, rounded, svg, write
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import whence
from whence.curvature.cg import CG
from whence.curvature.lissa import LiSSA
from whence.datasets import load
from whence.methods.influence import Influence
from whence.numerics import stats

HELD_OUT = 5000
QUERY = 8
WEIGHT_DECAY = 0.01
CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are those of the paper.

    Args:
        examples: N.
        side: pixels along a side of an image; 14 averages blocks of 2 x 2.
        removals: how many examples are left out, one at a time.
        depth: steps of LiSSA.
        repeats: of LiSSA, averaged.
        seed: of LiSSA.
        cold_refits: removals that scikit-learn repeats from zero.
    """

    examples: int = 55_000
    side: int = 28
    removals: int = 500
    depth: int = 5000
    repeats: int = 10
    seed: int = 17
    cold_refits: int = 3


SHORT = Settings(examples=2000, side=7, removals=10, depth=800, repeats=1, cold_refits=2)


def main() -> None:
    """Predicts, retrains, compares; writes the numbers and the figure."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    data = load("mnist")
    x = pooled(data.x_train[HELD_OUT:][: settings.examples], settings.side)
    y = data.y_train[HELD_OUT:][: settings.examples]
    query = (pooled(data.x_test[[QUERY]], settings.side), data.y_test[[QUERY]])
    clock.lap("load")

    model = LogisticRegression(
        C=1 / (len(x) * WEIGHT_DECAY), fit_intercept=False, tol=1e-8, max_iter=1000
    ).fit(x, y)
    clock.lap("fit with scikit-learn")
    retraining = Retraining(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(model.coef_))
    model.coef_ = retraining.optimum.numpy()
    clock.lap("factorise the Hessian and polish the optimum")

    mean_problem = whence.make_problem(model, (x, y), renormalize=True)
    sum_problem = whence.make_problem(model, (x, y))
    by_cg = Influence(CG(tolerance=1e-8), removal="first_order")
    cg = whence.explain(mean_problem, query, measurement="loss", method=by_cg)
    clock.lap("predict with CG")
    cg_fixed = whence.explain(sum_problem, query, measurement="loss", method=by_cg)
    clock.lap("predict with CG, N fixed")
    recursion = LiSSA(
        samples=1, depth=settings.depth, repeats=settings.repeats, scale=25.0, seed=settings.seed
    )
    by_lissa = Influence(recursion, removal="first_order")
    lissa = whence.explain(mean_problem, query, measurement="loss", method=by_lissa)
    clock.lap("predict with LiSSA")

    chosen = np.argsort(-np.abs(cg.values[0]), kind="stable")[: settings.removals]
    loss = QueryLoss(*(torch.from_numpy(array) for array in query))
    without, norm = retraining.leave_out(chosen, divisor=len(x) - 1)
    actual = loss.change(without, retraining.optimum)
    clock.lap("retrain")
    without_fixed, norm_fixed = retraining.leave_out(chosen, divisor=len(x))
    actual_fixed = loss.change(without_fixed, retraining.optimum)
    clock.lap("retrain, N fixed")
    spread = np.linspace(0, len(chosen) - 1, settings.cold_refits).astype(int)
    cold = torch.stack([refit_cold(x, y, int(i)) for i in chosen[spread]])
    cold_actual = loss.change(cold, retraining.optimum)
    clock.lap("retrain cold with scikit-learn")

    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 2, left and middle",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY, "query": QUERY},
        "agreement": {
            "CG": compare(cg.values[0, chosen], actual),
            "LiSSA": compare(lissa.values[0, chosen], actual),
            "CG, N fixed": compare(cg_fixed.values[0, chosen], actual_fixed),
        },
        "checks": {
            "gradient norm of the optimum": retraining.gradient_norm,
            "largest gradient norm after retraining": max(norm, norm_fixed),
            "residual of CG": cg.report["residual"],
            "residual of LiSSA": lissa.report["residual"],
            "steps of CG": cg.report["steps"],
            "cold refits": chosen[spread].tolist(),
            "largest difference of a cold refit, share of the effect": float(
                np.abs(cold_actual / actual[spread] - 1).max()
            ),
        },
        "points": {
            "position": chosen.tolist(),
            "predicted by CG": rounded(cg.values[0, chosen]),
            "predicted by LiSSA": rounded(lissa.values[0, chosen]),
            "actual": rounded(actual),
        },
        "circumstances": circumstances(__file__, clock.seconds),
    }
    write(arguments.out, "fig2_logistic", result, draw(result["points"]))
    print_table(result)


# ------------------------------------------------------------------------------ retraining


class Retraining:
    """Logistic regression trained again and again from its optimum, in plain matrix algebra.

    Args:
        x: (N, d) float64.
        y: (N,) labels.
        start: (C, d) coefficients near the optimum.
    """

    def __init__(self, x: Tensor, y: Tensor, start: Tensor) -> None:
        self.x, self.y = x, y
        labels = torch.nn.functional.one_hot(y, CLASSES).to(x)
        self.label_sum = labels.T @ x  # (C, d)
        self.factor = torch.linalg.cholesky(self.hessian(start))
        theta = start[None]
        for _ in range(3):
            theta = theta - self.solve(self.gradient(theta, len(x)))
        self.optimum = theta[0]
        self.gradient_norm = float(self.gradient(theta, len(x)).norm())

    def hessian(self, theta: Tensor) -> Tensor:
        """(C d, C d): the mean of (diag p - p p^T) x (x x^T), block by block, plus weight decay."""
        p = (self.x @ theta.T).softmax(1)
        d = self.x.shape[1]
        matrix = torch.empty(CLASSES * d, CLASSES * d, dtype=self.x.dtype)
        for a in range(CLASSES):
            for b in range(a + 1):
                weight = p[:, a] * (float(a == b) - p[:, b]) / len(self.x)
                block = (self.x * weight[:, None]).T @ self.x
                matrix[a * d : (a + 1) * d, b * d : (b + 1) * d] = block
                matrix[b * d : (b + 1) * d, a * d : (a + 1) * d] = block
        matrix.diagonal().add_(WEIGHT_DECAY)
        return matrix

    def solve(self, stack: Tensor) -> Tensor:
        """H^-1 times each of M gradients (M, C, d)."""
        return torch.cholesky_solve(stack.flatten(1).T, self.factor).T.reshape(stack.shape)

    def gradient(self, theta: Tensor, divisor: int, left_out: Tensor | None = None) -> Tensor:
        """Gradients (M, C, d) of M objectives at M parameters.

        Args:
            theta: (M, C, d).
            divisor: what the sum of losses is divided by.
            left_out: (M,) the example that each objective lacks.
        """
        total = -self.label_sum.expand(theta.shape).clone()
        for rows in self.x.split(1000):
            p = (theta.flatten(0, 1) @ rows.T).unflatten(0, theta.shape[:2]).softmax(1)
            total += (p.flatten(0, 1) @ rows).unflatten(0, theta.shape[:2])
        if left_out is not None:
            x, y = self.x[left_out], self.y[left_out]
            p = torch.einsum("mcd,md->mc", theta, x).softmax(1)
            p[torch.arange(len(y)), y] -= 1
            total -= p[:, :, None] * x[:, None]
        return total / divisor + WEIGHT_DECAY * theta

    def leave_out(self, positions: np.ndarray, *, divisor: int) -> tuple[Tensor, float]:
        """Optima (M, C, d) without one example each, and the largest gradient norm there."""
        found, norms = [], []
        for part in torch.from_numpy(positions).split(100):
            theta = self.optimum.expand(len(part), -1, -1)
            slope = self.gradient(theta, divisor, part)
            for _ in range(50):
                theta = theta - self.solve(slope)
                slope = self.gradient(theta, divisor, part)
                norm = float(slope.flatten(1).norm(dim=1).max())
                if norm < 1e-11:
                    break
            found.append(theta)
            norms.append(norm)
        return torch.cat(found), max(norms)


class QueryLoss:
    """The loss of one test example.

    Args:
        x: (1, d).
        y: (1,).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x[0], int(y[0])

    def change(self, theta: Tensor, before: Tensor) -> np.ndarray:
        """(M,) loss at theta (M, C, d) minus the loss before (C, d)."""
        return (self.at(theta) - self.at(before)).numpy()

    def at(self, theta: Tensor) -> Tensor:
        """The loss at parameters (..., C, d)."""
        return -(theta @ self.x).log_softmax(-1)[..., self.y]


def refit_cold(x: np.ndarray, y: np.ndarray, left_out: int) -> Tensor:
    """(C, d) coefficients of a model that never saw one example, trained from zero."""
    keep = np.arange(len(x)) != left_out
    model = LogisticRegression(
        C=1 / (keep.sum() * WEIGHT_DECAY), fit_intercept=False, tol=1e-10, max_iter=10_000
    )
    return torch.from_numpy(model.fit(x[keep], y[keep]).coef_)


# ----------------------------------------------------------------------------- the results


def compare(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """How well predicted effects tell the actual ones."""
    return {
        "pearson": float(stats.pearson(predicted, actual)),
        "slope": float(stats.slope(predicted, actual)),
        "spearman": float(stats.spearman(predicted, actual)),
        "largest error, share of the effect": float(np.abs(predicted / actual - 1).max()),
    }


def draw(points: dict[str, list[Any]]) -> str:
    """Two panels as SVG: predicted against actual, with the line where they agree."""
    actual = points["actual"]
    reach = 1.1 * max(abs(value) for value in actual)
    scale = {"domain": [-reach, reach], "nice": False}

    def axis(field: str, title: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "title": title, "scale": scale}

    def panel(name: str) -> dict[str, Any]:
        predicted = points[f"predicted by {name}"]
        marks = [{"x": a, "y": p} for a, p in zip(actual, predicted, strict=True)]
        ends = [{"x": end, "y": end} for end in (-reach, reach)]
        encoding = {
            "x": axis("x", "change of the test loss after retraining (nats)"),
            "y": axis("y", "predicted change (nats)"),
        }
        line = {"type": "line", "color": "#999999", "strokeDash": [5, 4], "strokeWidth": 1.5}
        dots = {"type": "point", "filled": True, "size": 30, "opacity": 0.6, "color": "#2b6cb0"}
        return {
            "title": name,
            "width": 300,
            "height": 300,
            "encoding": encoding,
            "layer": [
                {"data": {"values": ends}, "mark": line},
                {"data": {"values": marks}, "mark": dots},
            ],
        }

    return svg({"hconcat": [panel("CG"), panel("LiSSA")]})


def print_table(result: dict[str, Any]) -> None:
    """The agreement and the checks."""
    print(f"\n{'':14}{'Pearson':>10}{'slope':>10}{'Spearman':>10}{'largest error':>16}")
    for name, numbers in result["agreement"].items():
        pearson, slope, spearman, error = numbers.values()
        print(f"{name:14}{pearson:10.5f}{slope:10.4f}{spearman:10.5f}{error:16.2%}")
    for name, value in result["checks"].items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
