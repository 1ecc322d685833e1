"""Figure 4 of Koh & Liang 2017: effects against distance, for a kernel machine and a deep network.

Dog against fish, 900 + 900 photographs to train on and 300 + 300 to test. Two models of the same
training data: a support vector machine with an RBF kernel on the pixels, whose hinge is smoothed
for influence (temperature 0.001), and a logistic layer on the frozen features of a deep network.
For one test fish the effect of removing each training photograph on its margin is compared with the
Euclidean distance between their pixels. Then both models are asked about all test photographs.

Here fish are tenches and dogs English springers, the network is SqueezeNet, and photographs have
64 x 64 pixels for the kernel and for distances: the paper has several kinds of each, Inception v3
and 299 x 299. Its gamma times a squared distance is kept for each pixel, so gamma is 22 times the
paper's. The kernel machine has a free intercept, which the paper's has not.

Chosen before looking: the query is the first test fish that both models get right and whose hinge
loss is not flat (a margin below 1), in the order of the data. The paper measures the loss. That was
left after looking: the network is so sure of this fish that its loss hardly has a slope. Effects on
the loss are those on the margin times one number, so pictures and correlations are the same.

The figure holds numbers only. Photographs are put together in pictures/, which is not kept.
"""

import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shared import GREEN, HERE, RED, Clock, axis, circumstances, parse, rounded, svg, write
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

import whence
from whence.methods.influence import Influence
from whence.numerics import stats
from whence.uses.comparison import Comparison, Views, compare

WEIGHT_DECAY = 1e-3
GAMMA, PAPER_SIDE, PAPER_COUNT = 0.05, 299, 1800
FISH, DOG = 0, 1
LABELS = ("fish", "dog")
TOP = 5


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        side: pixels along a side of a photograph.
        train: N, the first of the training photographs; labels alternate.
        test: the first of the test photographs.
    """

    side: int = 64
    train: int = 1800
    test: int = 600

    @property
    def gamma(self) -> float:
        """The paper's 0.05 / 1800, for fewer pixels: squared distances shrink with their number."""
        return GAMMA / PAPER_COUNT * (PAPER_SIDE / self.side) ** 2


SHORT = Settings(side=32, train=400, test=60)


def main() -> None:
    """Trains both models, compares them; writes the numbers, the figure and the pictures."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    data = read(settings)
    clock.lap("load")
    machine, layer = train_both(data, settings)
    kernel, network = problems(machine, layer, data)
    clock.lap("train both models")

    query = first_fish(machine, layer, data)
    margin = -float(machine.decision_function(data.pixels[1][[query]])[0])  # dog is positive
    first_order = Influence(removal="first_order")
    fitted = [whence.fit(problem, first_order) for problem in (kernel, network)]
    clock.lap("fit both curvatures")
    one = ask(fitted, data, [query])
    clock.lap("one query")
    every = ask(fitted, data, range(len(data.y_test)))
    clock.lap(f"{len(data.y_test)} queries")

    points = {
        "kernel machine": drawn(one, one.scores_a.values[0]),
        "network": drawn(one, one.scores_b.values[0]),
    }
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 4",
        "settings": asdict(settings) | {"gamma": settings.gamma, "weight_decay": WEIGHT_DECAY},
        "models": {
            "kernel machine": facts(machine, data.pixels, data, one.scores_a.report),
            "network": facts(layer, data.features, data, one.scores_b.report),
        },
        "query": {
            "position": query,
            "label": LABELS[data.y_test[query]],
            "margin of the kernel machine": margin,
            "slope of the network's loss by its margin": -float(
                layer.predict_proba(data.features[1][[query]])[0, DOG]
            ),
            "probability by the network": float(
                layer.predict_proba(data.features[1][[query]])[0, FISH]
            ),
        },
        "one query": one.numbers(),
        "all queries, medians": every.medians(),
        "share of queries where the network's top is farther": farther(every),
        "proponents": {
            "kernel machine": proponents(one, one.scores_a, data),
            "network": proponents(one, one.scores_b, data),
        },
        "points": points,
        "circumstances": circumstances(__file__, clock.seconds),
    }
    write(arguments.out, "fig4_distance", rounded(result), draw(points))
    if not arguments.short:
        show(result, query)
    print_table(result)


# ------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Photographs:
    """Pixels in [-1, 1] and frozen features, each for training and test; labels 0 fish, 1 dog."""

    pixels: tuple[np.ndarray, np.ndarray]
    features: tuple[np.ndarray, np.ndarray]
    y: np.ndarray
    y_test: np.ndarray


def folder() -> Path:
    """Where the data are."""
    return Path(os.environ["WHENCE_DATA"])


def read(settings: Settings) -> Photographs:
    """The first photographs of both parts, small, with their features."""
    features = np.load(folder() / "dogfish_features.npz")
    count, tests = settings.train, settings.test
    start = len(features["y_train"])
    with np.load(folder() / "dogfish_jpeg.npz") as file:
        whole = Bytes(file["data"].tobytes(), file["offset"])
    small = (settings.side, settings.side)

    def pixels(rows: range) -> np.ndarray:
        images = [np.asarray(whole.image(row).resize(small)) for row in rows]
        return np.stack(images).reshape(len(rows), -1) / 127.5 - 1

    return Photographs(
        (pixels(range(count)), pixels(range(start, start + tests))),
        (features["x_train"][:count].astype(float), features["x_test"][:tests].astype(float)),
        features["y_train"][:count].astype(int),
        features["y_test"][:tests].astype(int),
    )


@dataclass(frozen=True)
class Bytes:
    """JPEG files after each other."""

    data: bytes
    offset: np.ndarray

    def image(self, row: int) -> Image.Image:
        """One photograph in colour."""
        part = self.data[self.offset[row] : self.offset[row + 1]]
        return Image.open(io.BytesIO(part)).convert("RGB")


# ------------------------------------------------------------------------------ the models


def train_both(data: Photographs, settings: Settings) -> tuple[SVC, LogisticRegression]:
    """The kernel machine and the layer on frozen features, both at their optimum."""
    C = 1 / (len(data.y) * WEIGHT_DECAY)
    machine = SVC(C=C, kernel="rbf", gamma=settings.gamma, tol=1e-8)
    layer = LogisticRegression(C=C, fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    return machine.fit(data.pixels[0], data.y), layer.fit(data.features[0], data.y)


def problems(
    machine: SVC, layer: LogisticRegression, data: Photographs
) -> tuple[whence.Problem, whence.Problem]:
    """What both models solved; the mean is taken anew after a removal, as in the paper."""
    kernel = whence.make_problem(
        machine,
        (data.pixels[0], data.y),
        loss="smooth_hinge:0.001",
        renormalize=True,
        name="kernel machine",
        label_names=LABELS,
    )
    network = whence.make_problem(
        layer, (data.features[0], data.y), renormalize=True, name="network", label_names=LABELS
    )
    return kernel, network


def facts(
    model: Any, inputs: tuple[np.ndarray, np.ndarray], data: Photographs, report: Any
) -> dict[str, Any]:
    """How good a model is, and how near to its optimum."""
    return {
        "training accuracy": float(model.score(inputs[0], data.y)),
        "test accuracy": float(model.score(inputs[1], data.y_test)),
        "gradient norm": report["gradient_norm"],
        "pull of one example": report["example_pull"],
        "parameters": report["parameters_covered"],
    }


def first_fish(machine: SVC, layer: LogisticRegression, data: Photographs) -> int:
    """The first test fish that both models get right, with a margin below 1."""
    margins = -machine.decision_function(data.pixels[1])  # dog is the positive class
    is_right = layer.predict(data.features[1]) == FISH
    fits = (data.y_test == FISH) & (margins > 0) & (margins < 1) & is_right
    return int(np.flatnonzero(fits)[0])


def ask(fitted: list[Any], data: Photographs, rows: range | list[int]) -> Comparison:
    """Both models on the margins of some test photographs; distances between pixels."""
    places = np.array(rows)
    return compare(
        fitted[0],
        fitted[1],
        (data.pixels[1][places], data.y_test[places]),
        views=Views((data.features[1][places], data.y_test[places])),
        k=TOP,
        measurement="margin",
    )


# ----------------------------------------------------------------------------- the results


def farther(every: Comparison) -> float:
    """In what share of queries the network's top proponents are the more distant ones."""
    pairs = [every.numbers(query) for query in range(len(every.distances))]
    return float(
        np.mean([pair["b"]["median_distance"] > pair["a"]["median_distance"] for pair in pairs])
    )


def proponents(one: Comparison, scores: whence.Scores, data: Photographs) -> list[dict[str, Any]]:
    """The strongest proponents of the query under one model."""
    distances = one.distances[0]
    return [
        {
            "position": int(effect.id),
            "label": LABELS[data.y[effect.id]],
            "effect": effect.effect,
            "distance": float(distances[effect.id]),
            "share of examples that are nearer": float((distances < distances[effect.id]).mean()),
        }
        for effect in scores.proponents(TOP)
    ]


def drawn(one: Comparison, effects: np.ndarray, count: int = 800) -> dict[str, list[Any]]:
    """What the figure shows: the strongest examples, and others from the whole range."""
    strongest = np.argsort(-np.abs(effects), kind="stable")[: count // 4]
    rest = stats.spread(one.distances[0], min(count, len(effects)) - len(strongest))
    chosen = np.union1d(strongest, rest)
    return {
        "position": chosen.tolist(),
        "distance": rounded(one.distances[0, chosen], 5),
        "effect": rounded(effects[chosen], 4),
        "is fish": one.is_same_label[0, chosen].tolist(),
    }


def draw(points: dict[str, Any]) -> str:
    """The effect against distance for both models, as SVG."""
    words = {"kernel machine": "RBF support vector machine", "network": "deep network"}
    return svg({"hconcat": [scatter(points[name], title) for name, title in words.items()]})


def scatter(points: dict[str, list[Any]], title: str) -> dict[str, Any]:
    """The effect against distance."""
    rows = zip(points["distance"], points["effect"], points["is fish"], strict=True)
    marks = [{"x": x, "y": -y, "label": LABELS[not is_fish]} for x, y, is_fish in rows]
    kinds = {"domain": list(LABELS), "range": [GREEN, RED]}
    legend = {"title": None, "orient": "bottom"}
    return {
        "title": {"text": title, "fontSize": 12},
        "width": 320,
        "height": 260,
        "data": {"values": marks},
        "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.6},
        "encoding": {
            "x": axis("x", "distance of the pixels from the test fish", zero=False),
            "y": axis("y", "fall of its margin without the example") | {"axis": {"format": ".2~g"}},
            "color": {"field": "label", "type": "nominal", "scale": kinds, "legend": legend},
        },
    }


def show(result: dict[str, Any], query: int) -> None:
    """The query and the strongest proponents under both models, as photographs."""
    with np.load(folder() / "dogfish_jpeg.npz") as file:
        whole = Bytes(file["data"].tobytes(), file["offset"])
        start = int(file["n_train"])
    rows = [[one["position"] for one in tops] for tops in result["proponents"].values()]
    sheet = Image.new("RGB", (224 * (TOP + 1), 224 * len(rows)), "white")
    sheet.paste(whole.image(start + query), (0, 0))
    for line, positions in enumerate(rows):
        for place, position in enumerate(positions):
            sheet.paste(whole.image(position), (224 * (place + 1), 224 * line))
    (HERE / "pictures").mkdir(exist_ok=True)
    sheet.save(HERE / "pictures" / "fig4_distance.jpg", quality=90)


def print_table(result: dict[str, Any]) -> None:
    """The numbers of the query and of all queries."""
    for title in ("one query", "all queries, medians"):
        found = result[title]
        print(f"\n{title:38}{'kernel machine':>16}{'network':>12}")
        for name, value in found["a"].items():
            print(f"{name:38}{value:16.3f}{found['b'][name]:12.3f}")
        print(f"both: {found['both']}")
    for name in ("models", "query", "proponents"):
        print(f"\n{name}: {result[name]}")
    share = result["share of queries where the network's top is farther"]
    print(f"\nshare of queries where the network's top is farther: {share}")


if __name__ == "__main__":
    main()
