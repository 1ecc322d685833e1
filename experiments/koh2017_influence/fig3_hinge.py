"""Figure 3 of Koh & Liang 2017: effects through a smooth hinge, for a model of the raw hinge.

A linear support vector machine on the ones and sevens of MNIST: 11,800 examples (the first 5,000
training images are held out), 784 parameters, no intercept, weight decay 0.01. The hinge has no
curvature, so influence functions see only the regulariser in its Hessian. A smooth hinge,

    t log(1 + exp((1 - margin) / t)),

at the parameters that the raw hinge led to, has one. For the test image at position 1597 among the
ones and sevens (a 7) the effects on its loss are predicted with t = 0 (the raw hinge), 0.001 and
0.1. The 100 examples of largest predicted effect with t = 0 are left out one at a time.

Retraining here shares no code with whence: scikit-learn finds which examples lie within the margin
and at its edge, the linear system that then holds at the optimum is solved, and a certificate
bounds how far the answer can be from the optimum.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from shared import (
    BLUE,
    GREEN,
    GREY,
    RED,
    Clock,
    axis,
    circumstances,
    parse,
    pooled,
    rounded,
    svg,
    write,
)
from sklearn.svm import LinearSVC

import whence
from whence.datasets import load
from whence.methods.influence import Influence
from whence.numerics import stats

HELD_OUT = 5000
WEIGHT_DECAY = 0.01
QUERY = 1597
TEMPERATURES = (0.0, 0.001, 0.1)
SEVEN = -1.0
AT_THE_KINK = 1e-6
PAPER = {0.0: 0.6325, 0.001: 0.9502, 0.1: 0.9141}


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are those of the paper.

    Args:
        examples: N; the paper cuts 11,894 ones and sevens to a multiple of 100.
        side: pixels along a side of an image; 14 averages blocks of 2 x 2.
        removals: how many examples are left out, one at a time.
    """

    examples: int = 11_800
    side: int = 28
    removals: int = 100


SHORT = Settings(examples=2000, side=14, removals=20)


def main() -> None:
    """Predicts, retrains, compares; writes the numbers and the figure."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    machine, query = ones_and_sevens(settings)
    clock.lap("load")
    model, exact = machine.fit()
    clock.lap("fit with scikit-learn")

    def predict(removal: Any, t: float) -> np.ndarray:
        return effects(machine, model, query, Influence(removal=removal), t)

    first = {t: predict("first_order", t) for t in TEMPERATURES}
    newton = {t: predict("newton", t) for t in TEMPERATURES}
    model.coef_ = exact.theta[None] * (1 + 1e-9)  # what lies at the kink is now beyond it
    beyond = first | {0.0: predict("first_order", 0.0)}
    clock.lap("predict seven times")
    chosen = strongest(first[0.0], settings.removals)
    chosen_beyond = strongest(beyond[0.0], settings.removals)
    refits = {i: machine.fit(without=i)[1] for i in {*chosen, *chosen_beyond}}
    actual = {i: query.loss(refit.theta) - query.loss(exact.theta) for i, refit in refits.items()}
    clock.lap(f"retrain {len(refits)} times")

    points = {
        "position": chosen,
        **{f"predicted, t = {t:g}": [float(first[t][i]) for i in chosen] for t in TEMPERATURES},
        "actual": [actual[i] for i in chosen],
    }
    bound = 2 * float(np.sqrt(2 * max(refit.gap for refit in refits.values())))
    margins = machine.y * (machine.x @ exact.theta)
    sizes = np.abs(list(actual.values()))
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 3",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY, "query": QUERY},
        "pearson in the paper": {f"t = {t:g}": PAPER[t] for t in TEMPERATURES},
        "agreement": {
            "first order": compare(first, actual, chosen),
            "newton": compare(newton, actual, chosen),
            "first order, no derivative at the kink": compare(beyond, actual, chosen_beyond),
        },
        "model": {
            "margin of the query": float(query.y * (query.x @ exact.theta)),
            "query is a seven": bool(query.y == SEVEN),
            "examples at the kink": int((np.abs(margins - 1) <= AT_THE_KINK).sum()),
            "examples within the margin": int((margins < 1 - AT_THE_KINK).sum()),
        },
        "checks": {
            "largest possible error of an actual effect": bound * np.linalg.norm(query.x),
            "largest actual effect": sizes.max(),
            "median size of an actual effect": np.median(sizes),
        },
        "points": points,
        "circumstances": circumstances(__file__, clock.seconds),
    }
    write(arguments.out, "fig3_hinge", rounded(result), draw(points))
    print_table(result)


@dataclass(frozen=True)
class Query:
    """The test image, flat, with its label -1 or 1."""

    x: np.ndarray
    y: float

    def loss(self, theta: np.ndarray) -> float:
        """The raw hinge."""
        return float(np.maximum(0, 1 - self.y * (self.x @ theta)))


def ones_and_sevens(settings: Settings) -> tuple["Machine", Query]:
    """Training images without the held-out ones, and the query; labels 1 (a 1) and -1 (a 7)."""
    data = load("mnist")
    rows = HELD_OUT + np.flatnonzero(np.isin(data.y_train[HELD_OUT:], (1, 7)))
    rows = rows[: settings.examples]
    tests = np.flatnonzero(np.isin(data.y_test, (1, 7)))
    x = pooled(data.x_train[rows], settings.side)
    y = np.where(data.y_train[rows] == 1, 1.0, SEVEN)
    query = pooled(data.x_test[tests[[QUERY]]], settings.side)[0]
    return Machine(x, y), Query(query, 1.0 if data.y_test[tests[QUERY]] == 1 else SEVEN)


@dataclass(frozen=True)
class Machine:
    """A linear support vector machine without an intercept, to be trained again and again.

        theta = argmin (1/n) sum_i max(0, 1 - y_i theta . x_i) + 0.005 |theta|^2

    over the n examples that are left: C = 1 / (0.01 n) for scikit-learn.

    Args:
        x: (N, d) float64.
        y: (N,) labels -1 and 1.
    """

    x: np.ndarray
    y: np.ndarray

    def fit(self, without: int | None = None) -> tuple[LinearSVC, "Optimum"]:
        """The model as scikit-learn finds it, and the exact optimum beside it."""
        keep = np.arange(len(self.y)) != without
        x, y = self.x[keep], self.y[keep]
        C = 1 / (len(y) * WEIGHT_DECAY)
        model = LinearSVC(
            C=C, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=1_000_000, random_state=24
        )
        model.fit(x, y)
        return model, polished(x, y, model.coef_[0], C)


@dataclass(frozen=True)
class Optimum:
    """Parameters (d,) and their duality gap: |theta - theta*|^2 <= 2 gap."""

    theta: np.ndarray
    gap: float


def polished(x: np.ndarray, y: np.ndarray, theta: np.ndarray, C: float) -> Optimum:
    """The exact optimum near theta, with a bound on how far it can be from the true one.

    At the optimum theta = sum_i a_i y_i x_i, with a_i = C within the margin, 0 outside, and at the
    kink what makes these margins one: a linear system. Any a in [0, C] bounds the minimum from
    below, so the gap between primal and dual objective is a certificate whatever the solver did.
    """
    margins = y * (x @ theta)
    is_at_kink = np.abs(margins - 1) <= AT_THE_KINK
    dual = np.where((margins < 1) & ~is_at_kink, C, 0.0)
    kink = x[is_at_kink] * y[is_at_kink, None]
    fixed = x.T @ (dual * y)
    dual[is_at_kink] = np.linalg.solve(kink @ kink.T, 1 - kink @ fixed)
    theta = x.T @ (dual * y)
    primal = theta @ theta / 2 + C * np.maximum(0, 1 - y * (x @ theta)).sum()
    dual = dual.clip(0, C)
    reached = x.T @ (dual * y)
    gap = primal - (dual.sum() - reached @ reached / 2)
    return Optimum(theta, float(gap))


def effects(
    machine: Machine, model: LinearSVC, query: Query, method: Influence, t: float
) -> np.ndarray:
    """(N,) predicted effects on the loss of the query, with the hinge or a smooth one."""
    problem = whence.make_problem(
        model,
        (machine.x, machine.y),
        loss=f"smooth_hinge:{t}" if t else "hinge",
        renormalize=True,
    )
    scores = whence.explain(
        problem,
        (query.x[None], np.array([query.y])),
        measurement="loss",
        method=method,
    )
    return scores.values[0]


# ----------------------------------------------------------------------------- the results


def strongest(effects: np.ndarray, count: int) -> list[int]:
    """Positions of the largest effects."""
    return np.argsort(-np.abs(effects), kind="stable")[:count].tolist()


def compare(
    predicted: dict[float, np.ndarray], actual: dict[int, float], chosen: list[int]
) -> dict[str, dict[str, float]]:
    """How well effects predicted at each temperature tell the actual ones."""
    after = np.array([actual[i] for i in chosen])
    return {
        f"t = {t:g}": {
            "pearson": float(stats.pearson(values[chosen], after)),
            "spearman": float(stats.spearman(values[chosen], after)),
            "slope": float(stats.slope(values[chosen], after)),
            "predicted size": float(np.linalg.norm(values[chosen]) / np.linalg.norm(after)),
        }
        for t, values in predicted.items()
    }


def draw(points: dict[str, Any]) -> str:
    """The hinge and smooth hinges; predicted against actual effects for three temperatures."""
    panels = [scatter(points, t) for t in TEMPERATURES]
    rows = [{"hconcat": [curves(), panels[0]]}, {"hconcat": panels[1:]}]
    return svg({"vconcat": rows})


def curves() -> dict[str, Any]:
    """The hinge around its kink, raw and smooth."""
    s = np.linspace(0.8, 1.2, 161)
    lines = {"t = 0": np.maximum(0, 1 - s)}
    for t in (0.001, 0.01, 0.1):
        lines[f"t = {t:g}"] = t * np.logaddexp(0, (1 - s) / t)
    marks = [
        {"s": round(float(a), 4), "loss": round(float(b), 5), "t": name}
        for name, values in lines.items()
        for a, b in zip(s, values, strict=True)
    ]
    kinds = {"domain": list(lines), "range": [GREY, BLUE, GREEN, RED]}
    legend = {"title": None, "orient": "none", "legendX": 200, "legendY": 10}
    return {
        "title": {"text": "smooth hinges", "fontSize": 12},
        "width": 270,
        "height": 250,
        "data": {"values": marks},
        "mark": {"type": "line", "opacity": 0.8},
        "encoding": {
            "x": axis("s", "margin of an example", domain=[0.8, 1.2], nice=False),
            "y": axis("loss", "loss"),
            "color": {"field": "t", "type": "nominal", "scale": kinds, "legend": legend},
            "strokeWidth": {  # the raw hinge shows behind the sharpest of the smooth ones
                "condition": {"test": "datum.t === 't = 0'", "value": 5},
                "value": 1.8,
            },
        },
    }


def scatter(points: dict[str, Any], t: float) -> dict[str, Any]:
    """Predicted against actual effects, with the line where they agree."""
    actual, predicted = points["actual"], points[f"predicted, t = {t:g}"]
    marks = [{"x": float(a), "y": float(p)} for a, p in zip(actual, predicted, strict=True)]
    reach = [1.1 * float(np.abs(values).max()) for values in (actual, predicted)]
    ends = [{"x": sign * reach[0], "y": sign * reach[0]} for sign in (-1, 1)]
    line = {"type": "line", "color": GREY, "strokeDash": [5, 4], "strokeWidth": 1.5}
    dots = {"type": "point", "filled": True, "size": 30, "opacity": 0.6, "color": BLUE}
    sides = [max(reach) if t else size for size in reach]
    return {
        "title": {"text": f"t = {t:g}", "fontSize": 12},
        "width": 270,
        "height": 250,
        "encoding": {
            "x": axis("x", "change of the test loss by retraining", domain=both(sides[0])),
            "y": axis("y", "predicted change", domain=both(sides[1])),
        },
        "layer": [
            {"data": {"values": ends}, "mark": line},
            {"data": {"values": marks}, "mark": dots},
        ],
    }


def both(reach: float) -> list[float]:
    """A range around zero."""
    return [-reach, reach]


def print_table(result: dict[str, Any]) -> None:
    """The agreement and the checks."""
    for removal, rows in result["agreement"].items():
        columns = ("", "Pearson", "Spearman", "slope", "size", "paper")
        print(f"\n{removal}\n" + "".join(f"{name:>10}" for name in columns))
        for name, numbers in rows.items():
            cells = "".join(f"{value:10.4f}" for value in numbers.values())
            print(f"{name:>10}{cells}{result['pearson in the paper'][name]:10.4f}")
    for name, value in {**result["model"], **result["checks"]}.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
