"""Figure 1 of Koh & Liang 2017: what the train loss and the Hessian contribute to an effect.

Binary logistic regression on the ones and sevens of MNIST: 11,894 examples (the first 5,000
training images are held out), 784 parameters, no intercept, weight decay 0.01. For the test image
at position 30 among the ones and sevens (a 7) the effect of removing each training example on its
loss is compared with what remains of it without the train loss, without the Hessian, and without
both. The fifth most harmful training 7 is shown beside the test image, and left out.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from shared import (
    GREEN,
    RED,
    Clock,
    axis,
    circumstances,
    parse,
    picture,
    pooled,
    rounded,
    svg,
    write,
)
from sklearn.linear_model import LogisticRegression

import whence
from whence.datasets import load
from whence.numerics import stats
from whence.uses.components import VARIANTS, Components, components

HELD_OUT = 5000
WEIGHT_DECAY = 0.01
QUERY = 30
HARMFUL_RANK = 5
SEVEN, ONE = 0, 1


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are those of the paper.

    Args:
        examples: N, all of the ones and sevens by default.
        side: pixels along a side of an image; 14 averages blocks of 2 x 2.
        queries: test images, from the first on, whose numbers are told as medians.
    """

    examples: int = 11_894
    side: int = 28
    queries: int = 100


SHORT = Settings(examples=2000, side=14, queries=10)


def main() -> None:
    """Computes the variants, tells their numbers, leaves out the harmful 7; writes and draws."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    train, test = ones_and_sevens(settings)
    clock.lap("load")

    model = LogisticRegression(
        C=1 / (len(train.y) * WEIGHT_DECAY),
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-12,
    ).fit(train.x, train.y)
    problem = whence.make_problem(model, (train.x, train.y), renormalize=True)
    clock.lap("fit")
    found = components(problem, (test.x[[QUERY]], test.y[[QUERY]]))
    fixed = components(
        whence.make_problem(model, (train.x, train.y)), (test.x[[QUERY]], test.y[[QUERY]])
    )
    clock.lap("components of one query, renormalised and with N fixed")
    many = components(problem, (test.x[: settings.queries], test.y[: settings.queries]))
    clock.lap(f"components of {settings.queries} queries")

    harmful = harmful_of_same_label(found)
    helpful = int(np.argmax(found.full[0]))
    actual = leave_out(problem, test, [harmful, helpful])
    clock.lap("leave out two examples")

    points = drawn(found)
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 1",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY, "query": QUERY},
        "data": {
            "training ones": int((train.y == ONE).sum()),
            "training sevens": int((train.y == SEVEN).sum()),
            "test images": len(test.y),
        },
        "model": {
            "gradient norm": found.report["gradient_norm"],
            "pull of one example": found.report["example_pull"],
            "test accuracy": float(model.score(test.x, test.y)),
            "query is a seven": bool(test.y[QUERY] == SEVEN),
            "probability of the query's label": float(
                model.predict_proba(test.x[[QUERY]])[0, test.y[QUERY]]
            ),
        },
        "numbers": found.numbers(),
        "numbers, N fixed": fixed.numbers(),
        "medians over the first test images": many.medians(),
        "harmful seven": describe(found, harmful, train) | {"actual": float(actual[0])},
        "most helpful example": describe(found, helpful, train) | {"actual": float(actual[1])},
        "points": points,
        "circumstances": circumstances(__file__, clock.seconds),
    }
    pictures = [test.x[QUERY], train.x[harmful]]
    drawing = draw(points, [image.reshape(settings.side, -1) for image in pictures])
    write(arguments.out, "fig1_components", rounded(result), drawing)
    print_table(result)


@dataclass(frozen=True)
class Images:
    """Flat images with labels 0 (a 7) and 1 (a 1), and their positions in MNIST."""

    x: np.ndarray
    y: np.ndarray
    positions: np.ndarray


def ones_and_sevens(settings: Settings) -> tuple[Images, Images]:
    """Training images without the held-out ones, and test images."""
    data = load("mnist")
    parts = []
    for x, y, start, count in (
        (data.x_train, data.y_train, HELD_OUT, settings.examples),
        (data.x_test, data.y_test, 0, None),
    ):
        chosen = start + np.flatnonzero(np.isin(y[start:], (1, 7)))[:count]
        labels = (y[chosen] == 1).astype(np.int64)
        parts.append(Images(pooled(x[chosen], settings.side), labels, chosen))
    return parts[0], parts[1]


def harmful_of_same_label(found: Components) -> int:
    """Position of the training image of the query's label with the fifth lowest effect."""
    same = np.flatnonzero(found.is_same_label[0])
    return int(same[np.argsort(found.full[0, same], kind="stable")[HARMFUL_RANK - 1]])


def leave_out(problem: whence.Problem, test: Images, positions: list[int]) -> np.ndarray:
    """Actual change of the query's loss without each of these examples."""
    weights = torch.ones(len(positions) + 1, len(problem), dtype=torch.float64)
    weights[torch.arange(len(positions)), torch.tensor(positions)] = 0
    theta = problem.retrain(weights).parameters.numpy()
    sign = 2 * test.y[QUERY] - 1
    losses = np.logaddexp(0, -sign * (theta @ test.x[QUERY]))
    return losses[:-1] - losses[-1]


def describe(found: Components, position: int, train: Images) -> dict[str, Any]:
    """What the variants say of one training example."""
    return {
        "position among ones and sevens": position,
        "position in MNIST": int(train.positions[position]),
        "is a seven": bool(train.y[position] == SEVEN),
        "train loss": float(found.losses[position]),
    } | {name: float(getattr(found, name)[0, position]) for name in VARIANTS}


# ----------------------------------------------------------------------------- the results


def drawn(found: Components, count: int = 700) -> dict[str, list[Any]]:
    """What the figure shows of the examples: the 200 strongest, and others from the whole range."""
    strongest = np.argsort(-np.abs(found.full[0]), kind="stable")[:200]
    rest = stats.spread(found.without_train_loss[0], count - len(strongest))
    chosen = np.union1d(strongest, rest)
    columns = {name: getattr(found, name)[0, chosen] for name in VARIANTS}
    columns |= {"loss": found.losses[chosen]}
    same = found.is_same_label[0, chosen]
    return {
        "position": chosen.tolist(),
        "is same label": same.tolist(),
        **{name: rounded(values, 4) for name, values in columns.items()},
    }


def draw(points: dict[str, list[Any]], pictures: list[np.ndarray]) -> str:
    """Four scatter plots of the effect, and the two pictures, as SVG."""
    labels = ["7, as the test image" if same else "1" for same in points["is same label"]]
    panels = [
        ("without_train_loss", "without the train loss"),
        ("without_hessian", "without the Hessian"),
        ("without_both", "without both: inner product"),
        ("loss", "and the train loss"),
    ]
    charts = [scatter(points, labels, *panel) for panel in panels]
    words = ["test image", "harmful 7 of the training data"]
    shown = [
        {"url": picture(pixels), "row": row, "words": text}
        for row, (pixels, text) in enumerate(zip(pictures, words, strict=True))
    ]
    images = [
        {
            "title": {"text": one["words"], "fontSize": 12, "fontWeight": "normal"},
            "width": 112,
            "height": 112,
            "data": {"values": [one]},
            "mark": {"type": "image", "width": 112, "height": 112, "align": "left"},
            "encoding": {
                "url": {"field": "url", "type": "nominal"},
                "x": {"value": 0},
                "y": {"value": 56},
            },
        }
        for one in shown
    ]
    rows = [{"hconcat": charts[:2]}, {"hconcat": charts[2:]}]
    return svg({"hconcat": [{"vconcat": rows}, {"vconcat": images}]})


def scatter(
    points: dict[str, list[Any]], labels: list[str], name: str, title: str
) -> dict[str, Any]:
    """The effect against one variant, or against the loss."""
    of_variant = f"effect {VARIANTS.get(name)} (arbitrary units)"
    x = "train loss of the example (nats)" if name == "loss" else of_variant
    marks = [
        {"x": a, "y": b, "label": label}
        for a, b, label in zip(points[name], points["full"], labels, strict=True)
    ]
    kinds = {"domain": ["7, as the test image", "1"], "range": [GREEN, RED]}
    legend = {"title": None, "orient": "bottom"}
    return {
        "title": {"text": title, "fontSize": 12},
        "width": 270,
        "height": 220,
        "data": {"values": marks},
        "mark": {"type": "point", "filled": True, "size": 16, "opacity": 0.6},
        "encoding": {
            "x": axis("x", x) | {"axis": {"format": ".2~g"}},
            "y": axis("y", "effect on the test loss (nats)") | {"axis": {"format": ".2~g"}},
            "color": {"field": "label", "type": "nominal", "scale": kinds, "legend": legend},
        },
    }


def print_table(result: dict[str, Any]) -> None:
    """The numbers of the query, and the medians."""
    for title in ("numbers", "numbers, N fixed", "medians over the first test images"):
        print(f"\n{title}")
        names = list(result[title]["full"])
        print(f"{'':24}" + "".join(f"{name:>19}" for name in names))
        for variant, numbers in result[title].items():
            print(
                f"{VARIANTS[variant]:24}" + "".join(f"{value:19.3f}" for value in numbers.values())
            )
    for title in ("data", "model", "harmful seven", "most helpful example"):
        print(f"\n{title}: {result[title]}")


if __name__ == "__main__":
    main()
