"""Groups: predicted against actual effects of removing 1 %, 5 % and 20 % of the training data.

Logistic regression (weight decay 1e-2 beside the mean loss, N fixed) on three data sets. For twenty
queries, spread over the test data, the effect of removing a group on the margin is predicted to
first order (the sum of single effects) and by one Newton step that takes the curvature of the
group out as well. Then the group is really left out, and the model is trained again by Newton steps
to a gradient near rounding; scikit-learn repeats one training for each size from zero.

Random groups are drawn from the training data. Adversarial groups are the examples with the most
negative effects on one of the queries: those that hold its margin up.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from shared import BLUE, RED, Clock, axis, circumstances, parse, rounded, svg, write
from sklearn.linear_model import LogisticRegression

import whence
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.datasets import load
from whence.numerics import stats
from whence.uses.whatif import remove

WEIGHT_DECAY = 1e-2
SHARES = (0.01, 0.05, 0.20)


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        data: names of the data sets.
        groups: of each kind and size.
        queries: on which effects are measured.
        examples: N at the most.
        seed: of the random groups.
    """

    data: tuple[str, ...] = ("breast_cancer", "digits", "mnist 1 v 7")
    groups: int = 5
    queries: int = 20
    examples: int = 4000
    seed: int = 0


SHORT = Settings(data=("breast_cancer",), groups=2)


def main() -> None:
    """Predicts, retrains, compares; writes the numbers and the figure."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    points: list[dict[str, Any]] = []
    checks: dict[str, float] = {}
    for name in settings.data:
        problem, queries = make(name, settings)
        points += measure(problem, queries, name, settings)
        clock.lap(name)
        checks[name] = cold(problem, queries, settings)
        clock.lap(f"{name}, cold")
    result = {
        "question": "effects of groups, to first order and by one Newton step",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY, "shares": SHARES},
        "rows": rounded(table(points), 4),
        "largest difference of a cold refit, share of the largest effect": rounded(checks, 3),
        "points": rounded(points, 5),
        "circumstances": circumstances(__file__, clock.seconds),
    }
    write(arguments.out, "groups", result, draw(points))
    show(result["rows"])


def make(name: str, settings: Settings) -> tuple[Problem, tuple[np.ndarray, np.ndarray]]:
    """A logistic regression at its optimum, and the queries."""
    kind, _, classes = name.partition(" ")
    chosen = {"classes": tuple(int(c) for c in classes.split(" v "))} if classes else {}
    data = load(kind, **chosen)
    x, xq = (
        np.asarray(part, dtype=np.float64).reshape(len(part), -1)
        for part in (data.x_train, data.x_test)
    )
    if kind == "breast_cancer":  # its columns have units of their own
        mean, spread = x.mean(0), x.std(0)
        x, xq = (x - mean) / spread, (xq - mean) / spread
    x, y = x[: settings.examples], data.y_train[: settings.examples]
    model = LogisticRegression(C=1 / (len(x) * WEIGHT_DECAY), tol=1e-10, max_iter=10_000).fit(x, y)
    asked = np.linspace(0, len(xq) - 1, settings.queries).astype(int)
    return whence.make_problem(model, (x, y)), (xq[asked], data.y_test[asked])


def measure(
    problem: Problem, queries: tuple[np.ndarray, np.ndarray], name: str, settings: Settings
) -> list[dict[str, Any]]:
    """Effects of every group on every query."""
    random = np.random.default_rng(settings.seed)
    fitted = whence.fit(problem, whence.Influence("exact", change="finite"))
    scores = fitted.scores(queries)
    points: list[dict[str, Any]] = []
    for share in SHARES:
        size = round(share * len(problem))
        for g in range(settings.groups):
            drawn = random.choice(len(problem), size, replace=False)
            worst = np.argsort(scores.values[g % settings.queries], kind="stable")[:size]
            for kind, group in (("random", drawn), ("adversarial", worst)):
                outcome = remove(
                    problem, queries, group=group, retrain=NewtonTraining(), method=fitted
                )
                points += [
                    {
                        "data": name,
                        "share": share,
                        "kind": kind,
                        "group": g,
                        "first order": float(outcome.first_order[q]),
                        "newton": float(outcome.predicted[q]),
                        "actual": float(outcome.actual[q]),
                    }
                    for q in range(settings.queries)
                ]
    return points


def cold(problem: Problem, queries: tuple[np.ndarray, np.ndarray], settings: Settings) -> float:
    """How far scikit-learn's own refits are from the Newton steps, over one group of each size."""
    worst = 0.0
    for share in SHARES:
        size = round(share * len(problem))
        group = np.random.default_rng(settings.seed).choice(len(problem), size, replace=False)
        steps, refit = (
            remove(problem, queries, group=group, retrain=how, method="graddot").actual
            for how in (NewtonTraining(), True)
        )
        worst = max(worst, float(np.abs(steps - refit).max() / np.abs(refit).max()))
    return worst


def table(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Agreement over all groups and queries of a kind and size.

    The slope is that of actual over predicted effects, with its range over the groups.
    """
    rows = []
    keys = list(dict.fromkeys((p["data"], p["share"], p["kind"]) for p in points))
    for data, share, kind in keys:
        own = [p for p in points if (p["data"], p["share"], p["kind"]) == (data, share, kind)]
        actual = np.array([p["actual"] for p in own])
        for form in ("first order", "newton"):
            predicted = np.array([p[form] for p in own])
            groups = np.array([p["group"] for p in own])
            slopes = [
                float(stats.slope(predicted[groups == g], actual[groups == g]))
                for g in np.unique(groups)
            ]
            rows.append(
                {
                    "data": data,
                    "share": share,
                    "kind": kind,
                    "form": form,
                    "pearson": float(stats.pearson(predicted, actual)),
                    "slope": float(stats.slope(predicted, actual)),
                    "slope_low": min(slopes),
                    "slope_high": max(slopes),
                    "relative error": float(
                        np.linalg.norm(predicted - actual) / np.linalg.norm(actual)
                    ),
                }
            )
    return rows


def draw(points: list[dict[str, Any]]) -> str:
    """A panel for each data set and kind of group, sizes together."""
    panels = []
    for data in dict.fromkeys(p["data"] for p in points):
        row = []
        for kind in ("random", "adversarial"):
            own = [p for p in points if p["data"] == data and p["kind"] == kind]
            reach = 1.05 * max(abs(p[form]) for p in own for form in ("newton", "actual"))
            marks = [
                {"x": p[form], "y": p["actual"], "form": form}
                for form in ("first order", "newton")
                for p in own
            ]
            ends = [{"x": end, "y": end} for end in (-reach, reach)]
            scale = {"domain": [-reach, reach], "nice": False}
            colors = {"domain": ["first order", "newton"], "range": [RED, BLUE]}
            row.append(
                {
                    "title": f"{data}, {kind} groups",
                    "width": 260,
                    "height": 260,
                    "encoding": {
                        "x": axis("x", "predicted effect (logits)", **scale),
                        "y": axis("y", "effect after retraining (logits)", **scale),
                    },
                    "layer": [
                        {"data": {"values": ends}, "mark": {"type": "line", "color": "#999999"}},
                        {
                            "data": {"values": marks},
                            "mark": {"type": "point", "filled": True, "size": 14, "clip": True},
                            "encoding": {
                                "color": {"field": "form", "scale": colors, "title": None}
                            },
                        },
                    ],
                }
            )
        panels.append({"hconcat": row})
    return svg({"vconcat": panels})


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'data':15}{'share':>6} {'kind':12}{'form':12}{'Pearson':>9}{'slope':>8}{'error':>8}")
    for row in rows:
        print(
            f"{row['data']:15}{row['share']:6.0%} {row['kind']:12}{row['form']:12}"
            f"{row['pearson']:9.4f}{row['slope']:8.3f}{row['relative error']:8.1%}"
        )


if __name__ == "__main__":
    main()
