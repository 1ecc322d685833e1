"""Figure 5 of Koh & Liang 2017: training images that flip a prediction, changed out of sight.

Dog against fish: 900 + 900 photographs to train on, 300 + 300 to test. A network trained on
ImageNet stays as it is, and a logistic layer is trained on its features. For each attacked test
image the training images of largest effect move by signed steps within half a grey level, so that
their images of 8 bits stay the same; after each step their features are computed again and the
layer is trained again. The attack succeeds when the test image is classified wrongly.

First every attacked test image by itself, with the strongest training image, with the second
strongest alone, and with both. Then one training image against thirty test images of one kind,
chosen in each class in two ways: the thirty that lie closest together in the space of the features
(a test image and its nearest), and the least sure test image with those nearest to it.

What is not as in the paper: the network is SqueezeNet 1.0 instead of Inception v3, the classes are
one dog and one fish of ImageNet, and features are standardised before the layer.

Results of test images are kept in a work folder as they come, so that a run can be taken up again.
"""

import argparse
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shared import (
    BLUE,
    GREEN,
    GREY,
    HERE,
    RED,
    ROOT,
    Clock,
    axis,
    circumstances,
    rounded,
    svg,
    write,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import whence
from whence.core.problem import Problem
from whence.uses.poisoning import Attack, Outcome, Poisoning, poison

WEIGHT_DECAY = 0.001
MEAN = (123.0, 117.0, 104.0)
CLASSES = ("fish", "dog")
CHOICES = ("closest", "least sure")
TOGETHER = 5
"""Test images between two savings."""

PAPER = {"one": 335 / 591, "two": 0.77}


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        train: training images, half of each class.
        test: test images, half of each class.
        side: pixels along a side of what the network sees.
        attacked: test images that are attacked, evenly from those classified rightly.
        step: of an attack, in grey levels.
        box: largest change, in grey levels.
        iterations: steps of an attack at the most.
        group: test images that are attacked together.
        group_iterations: steps of that attack at the most.
    """

    train: int = 1800
    test: int = 600
    side: int = 227
    attacked: int = 100
    step: float = 0.02
    box: float = 0.5
    iterations: int = 100
    group: int = 30
    group_iterations: int = 200


SHORT = Settings(
    train=40, test=20, side=63, attacked=2, step=0.25, iterations=3, group=3, group_iterations=3
)


def main() -> None:
    """Trains, attacks, counts; writes the numbers and the figure."""
    arguments = parse()
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    train, test = Photographs(settings, "train"), Photographs(settings, "test")
    network = Remembered(SqueezeNet.pretrained(), arguments.work / "features.npz")
    layer = LogisticRegression(
        C=1 / (len(train) * WEIGHT_DECAY), fit_intercept=False, tol=1e-8, max_iter=1000
    )
    model = make_pipeline(StandardScaler(), layer)
    model.fit(network.features(train), train.labels)
    clock.lap("features, and the layer by scikit-learn")
    problem = whence.make_problem(
        model,
        train,
        features=network,
        label_names=CLASSES,
        display={"kind": "image", "low": 0.0, "high": 1.0},
    )
    judge = Judge(problem, test)
    network.save()
    clock.lap("make the problem")

    singles = attack_each(problem, judge, settings, arguments.work)
    clock.lap("attacks on single test images")
    groups = [
        attack_group(problem, judge, settings, (label, choice), arguments.work)
        for choice in CHOICES
        for label in (0, 1)
    ]
    clock.lap("attacks on groups")
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 5 and section 5.2",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY},
        "clean": judge.clean,
        "counts": counts(singles),
        "single": singles,
        "groups": groups,
        "circumstances": circumstances(__file__, clock.seconds),
    }
    write(arguments.out, "fig5_attack", rounded(result), draw(result))
    print_table(result)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "fig5_attack",
        help="folder of single results and pictures, which stay out of the repository",
    )
    return parser.parse_args()


# ------------------------------------------------------------------- images and network


def data(name: str) -> Path:
    """A file of the data folder."""
    path = Path(os.environ.get("WHENCE_DATA") or ".") / name
    if not path.is_file():
        raise SystemExit(f"Set WHENCE_DATA to a folder with {name}.")
    return path


class Photographs(Dataset[tuple[Tensor, int]]):
    """Dog and fish, decoded when asked for: (3, side, side) in [0, 1], whole 255ths, and a label.

    Args:
        settings: how many, and how large.
        part: "train" or "test".
    """

    def __init__(self, settings: Settings, part: str) -> None:
        stored = np.load(data("dogfish_jpeg.npz"))
        self.bytes, self.offset = stored["data"], stored["offset"]
        first = 0 if part == "train" else int(stored["n_train"])
        count = settings.train if part == "train" else settings.test
        self.rows = range(first, first + count)  # labels take turns, so half of each class
        self.labels = stored["label"][first : first + count].astype(np.int64)
        self.side = settings.side

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        start, end = self.offset[self.rows[row]], self.offset[self.rows[row] + 1]
        image = Image.open(io.BytesIO(self.bytes[start:end].tobytes())).convert("RGB")
        large = round(self.side * 256 / 227)
        edge = (large - self.side) // 2
        image = image.resize((large, large), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)[edge : edge + self.side, edge : edge + self.side]
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, int(self.labels[row])


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then a 1x1 and a 3x3 one side by side to many."""

    def __init__(self, inputs: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, few, 1)
        self.expand1x1 = nn.Conv2d(few, many, 1)
        self.expand3x3 = nn.Conv2d(few, many, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2 many, H, W)."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 (Iandola et al. 2016) up to its last fire module; mean over positions."""

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2),
            nn.ReLU(),
            pool(),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            pool(),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            pool(),
            Fire(512, 64, 256),
        )
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)

    @classmethod
    def pretrained(cls) -> "SqueezeNet":
        """With the weights for ImageNet."""
        stored = np.load(data("weights/squeezenet1_0_imagenet.npz"))
        named = {name: torch.from_numpy(stored[name]) for name in stored.files}
        network = cls()
        network.load_state_dict({k: v for k, v in named.items() if k.startswith("features.")})
        return network.eval().to(memory_format=torch.channels_last)  # a sixth faster

    def forward(self, images: Tensor) -> Tensor:
        """(B, 512) features of images (B, 3, H, W) in [0, 1]."""
        return self.features(255 * images - self.mean).mean((2, 3))


class Remembered:
    """A network that computes the features of an image once, also for later runs.

    Args:
        network: in eval mode.
        path: of the file of features.
    """

    def __init__(self, network: SqueezeNet, path: Path) -> None:
        self.network, self.path = network, path
        self.known: dict[str, Tensor] = {}
        if path.is_file():
            stored = np.load(path)
            rows = zip(stored["names"].tolist(), stored["features"], strict=True)
            self.known = {name: torch.from_numpy(row) for name, row in rows}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 512) features; where a derivative is wanted, by the network itself."""
        if images.requires_grad:
            return self.network(images)
        names = [hashlib.blake2b(image.numpy().tobytes()).hexdigest() for image in images]
        for name, image in zip(names, images, strict=True):
            if name not in self.known:
                self.known[name] = self.network(image[None])[0]
        return torch.stack([self.known[name] for name in names])

    def features(self, photographs: Photographs) -> np.ndarray:
        """(N, 512)."""
        with torch.no_grad():
            rows = [self(photographs[i][0][None])[0] for i in range(len(photographs))]
        return torch.stack(rows).numpy()

    def save(self) -> None:
        """Writes what is known by now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            self.path, names=np.array(list(self.known)), features=np.stack([*self.known.values()])
        )


class Judge:
    """The test images under any parameters of the layer.

    Args:
        problem: the clean one.
        test: all test images.
    """

    def __init__(self, problem: Problem, test: Photographs) -> None:
        self.test = test
        self.queries = problem.queries(test)
        self.problem = problem
        self.logits = self.look(problem.parameters)
        self.sign = torch.where(self.queries.targets > 0, 1.0, -1.0)
        self.margins = self.logits * self.sign
        right = self.margins > 0
        self.right = torch.nonzero(right).flatten().numpy()
        self.clean = {
            "test accuracy": float(right.double().mean()),
            "classified rightly": len(self.right),
            "mean test loss": float(F.softplus(-self.margins).mean()),
        }

    def look(self, parameters: Tensor) -> Tensor:
        """(test,) logits."""
        with torch.no_grad():
            return self.problem.outputs(parameters, self.queries.inputs).flatten()

    def others_flipped(self, outcome: Outcome, aimed: Sequence[int]) -> int:
        """Test images that the attack was not aimed at and whose answer is another one now."""
        now = self.look(torch.from_numpy(outcome.parameters))
        flipped = (now > 0) != (self.logits > 0)
        flipped[list(aimed)] = False
        return int(flipped.sum())

    def kind(self, label: int, choice: str, count: int) -> list[int]:
        """A test image of a class and those nearest to it: the densest such set, or the least sure.

        Only images that are classified rightly count: the others cannot be flipped.
        """
        rows = self.right[self.test.labels[self.right] == label]
        distances = torch.cdist(self.features(rows), self.features(rows))
        near, order = distances.sort(dim=1)
        least = self.margins[torch.from_numpy(rows)] if choice == "least sure" else near[:, :count]
        first = int(least.reshape(len(rows), -1).mean(1).argmin())
        return rows[order[first, :count].numpy()].tolist()

    def distance(self, rows: Sequence[int]) -> float:
        """Mean distance of test images from the first of them."""
        found = self.features(rows)
        return float((found - found[0]).norm(dim=1).mean())

    def features(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Standardised features of test images."""
        return self.queries.inputs[torch.as_tensor(rows)]

    def images(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Test images with their labels, as queries."""
        images = torch.stack([self.test[int(row)][0] for row in rows])
        return images, torch.from_numpy(self.test.labels[list(rows)])


# ------------------------------------------------------------------------------ attacks


class Kept:
    """Results of test images in a file, a line each; of another run's settings none is taken.

    Args:
        path: of the file.
        settings: of this run.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.rows = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        first = json.dumps(asdict(settings))
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and lines[0] == first:
            found = [json.loads(line) for line in lines[1:]]
            self.rows = {int(facts["test image"]): facts for facts in found}
        else:
            path.write_text(first + "\n")

    def add(self, facts: dict[str, Any]) -> None:
        """Keeps the result of one test image."""
        self.rows[int(facts["test image"])] = facts
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


def attack_each(
    problem: Problem, judge: Judge, settings: Settings, work: Path
) -> list[dict[str, Any]]:
    """One training image, else two, else the second alone, for each attacked test image."""
    spread = np.linspace(0, len(judge.right) - 1, min(settings.attacked, len(judge.right)))
    rows = judge.right[np.unique(spread.round().astype(int))]
    kept = Kept(work / "single.jsonl", settings)
    missing = [row for row in rows if int(row) not in kept.rows]
    for start in range(0, len(missing), TOGETHER):
        for facts in attack_some(problem, judge, settings, missing[start : start + TOGETHER], work):
            kept.add(facts)
        print(f"{len(kept.rows)} of {len(rows)}: {counts(list(kept.rows.values()))}", flush=True)
    return [kept.rows[int(row)] for row in rows]


def attack_some(
    problem: Problem, judge: Judge, settings: Settings, rows: Sequence[int], work: Path
) -> list[dict[str, Any]]:
    """The attacks on a few test images, each by itself."""

    def attack(some: Sequence[int], examples: int | list[int], name: str) -> dict[int, Any]:
        if not some:
            return {}
        found = poison(
            problem,
            judge.images(some),
            examples=examples,
            step=settings.step,
            box=settings.box,
            attack=Attack(iterations=settings.iterations),
        )
        save_pictures(found, some, work, name)
        return {row: told(found, judge, some, place) for place, row in enumerate(some)}

    one = attack(rows, 1, "one")
    two = attack([row for row in rows if not one[row]["flipped"]], 2, "two")
    second: dict[int, Any] = {}
    for row, facts in two.items():
        if facts["flipped"]:  # what both cannot do, one of them cannot either
            second |= attack([row], [facts["training images"][1]], "second")
    return [
        {
            "test image": int(row),
            "label": CLASSES[judge.test.labels[row]],
            "margin": float(judge.margins[row]),
            "strongest": one[row],
            "both": two.get(row),
            "second": second.get(row),
        }
        for row in rows
    ]


def told(found: Poisoning, judge: Judge, rows: Sequence[int], place: int) -> dict[str, Any]:
    """What an attack on one test image has reached, in a few numbers."""
    outcome = found.outcomes[place]
    return {
        "training images": [int(name) for name in outcome.examples],
        "flipped": bool(outcome.is_flipped[0]),
        "margin": float(outcome.after[0]),
        "first order": float(outcome.predicted.sum()),
        "actual": float(outcome.actual.sum()),
        "steps": outcome.steps,
        "largest change": outcome.largest_change,
        "same bytes": outcome.has_same_bytes,
        "other test images flipped": judge.others_flipped(outcome, [rows[place]]),
        "train accuracy": float(found.train_accuracy[1][place]),
        "ending": outcome.ending,
    }


def attack_group(
    problem: Problem, judge: Judge, settings: Settings, of: tuple[int, str], work: Path
) -> dict[str, Any]:
    """One training image against the mean loss of test images of one kind: a class and a choice."""
    label, choice = of
    name = f"group-{CLASSES[label]}-{choice.replace(' ', '-')}"
    kept = Kept(work / f"{name}.jsonl", settings)
    if kept.rows:
        return next(iter(kept.rows.values()))
    rows = judge.kind(label, choice, settings.group)
    found = poison(
        problem,
        judge.images(rows),
        examples=1,
        step=settings.step,
        box=settings.box,
        measurement="loss",
        attack=Attack(target="together", iterations=settings.group_iterations),
    )
    save_pictures(found, rows[:1], work, name)
    outcome = found.outcomes[0]
    facts = {
        "test image": int(rows[0]),
        "class": CLASSES[label],
        "choice": choice,
        "test images": rows,
        "mean distance from the first": judge.distance(rows),
        "mean margin before": float(judge.margins[rows].mean()),
        "training image": int(outcome.examples[0]),
        "its label": problem.label_of(int(outcome.examples[0])),
        "flipped": int(outcome.is_flipped.sum()),
        "mean loss before": float(found.before.mean()),
        "mean loss after": float(outcome.after.mean()),
        "mean loss by step": [
            float(x) for x in found.before.mean() + np.concatenate([[0], outcome.actual.cumsum()])
        ],
        "steps": outcome.steps,
        "largest change": outcome.largest_change,
        "same bytes": outcome.has_same_bytes,
        "other test images flipped": judge.others_flipped(outcome, rows),
        "train accuracy": float(found.train_accuracy[1][0]),
        "ending": outcome.ending,
    }
    kept.add(facts)
    return facts


def save_pictures(found: Poisoning, rows: Sequence[int], work: Path, name: str) -> None:
    """Original, poisoned and difference of the first attack, side by side; not for publication."""
    outcome = found.outcomes[0]
    for before, after, example in zip(
        outcome.original, outcome.poisoned, outcome.examples, strict=True
    ):
        reach = found.settings["box"] / 255
        change = np.clip(0.5 + (after - before) / reach / 2, 0, 1)
        panel = np.concatenate([before, after, change], axis=2).transpose(1, 2, 0)
        picture = Image.fromarray(np.rint(255 * panel).astype(np.uint8))
        picture.save(work / f"test-{rows[0]}-{name}-{example}.png")


# ----------------------------------------------------------------------------- the results


def counts(singles: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the attacked test images, how many flipped by what."""
    first = [facts["strongest"]["flipped"] for facts in singles]
    second = [bool(facts["second"] and facts["second"]["flipped"]) for facts in singles]
    both = [bool(facts["both"] and facts["both"]["flipped"]) for facts in singles]
    either = [a or b for a, b in zip(first, second, strict=True)]
    two = [a or b for a, b in zip(either, both, strict=True)]
    return {
        "attacked": len(singles),
        "the strongest": sum(first),
        "one, the strongest or the second": sum(either),
        "two": sum(two),
    }


def told_group(group: dict[str, Any]) -> str:
    """A name for a group."""
    return f"{group['class']}, {group['choice']}"


def draw(result: dict[str, Any]) -> str:
    """Left: flipped by so many training images, paper and here. Right: first order and actual."""
    found, groups = result["counts"], result["groups"]
    shares = [
        {"what": "1 image", "who": "paper", "share": PAPER["one"]},
        {"what": "2 images", "who": "paper", "share": PAPER["two"]},
        {
            "what": "1 image",
            "who": "here",
            "share": found["one, the strongest or the second"] / found["attacked"],
        },
        {"what": "2 images", "who": "here", "share": found["two"] / found["attacked"]},
    ]
    bars = {
        "title": "Test images flipped",
        "width": 200,
        "height": 260,
        "data": {"values": shares},
        "mark": "bar",
        "encoding": {
            "x": {"field": "what", "type": "nominal", "title": None, "axis": {"labelAngle": 0}},
            "xOffset": {"field": "who", "sort": ["paper", "here"]},
            "y": axis("share", "share of the attacked test images", domain=[0, 1]),
            "color": {
                "field": "who",
                "title": None,
                "scale": {"domain": ["paper", "here"], "range": [GREY, BLUE]},
            },
        },
    }
    steps = [
        {"step": step, "loss": loss, "who": f"{told_group(group)} ({group['flipped']} flipped)"}
        for group in groups
        for step, loss in enumerate(group["mean loss by step"])
    ]
    names = list(dict.fromkeys(step["who"] for step in steps))
    lines = {
        "title": f"One training image against {len(groups[0]['test images'])} test images",
        "width": 300,
        "height": 260,
        "data": {"values": steps},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": axis("step", "accepted steps of the attack"),
            "y": axis("loss", "mean loss of the attacked test images (nats)"),
            "color": {
                "field": "who",
                "title": None,
                "scale": {"domain": names, "range": [BLUE, RED, GREEN, GREY]},
            },
        },
    }
    return svg({"hconcat": [bars, lines], "resolve": {"scale": {"color": "independent"}}})


def print_table(result: dict[str, Any]) -> None:
    """The counts."""
    for name, value in {**result["clean"], **result["counts"]}.items():
        print(f"{name}: {value:.4g}")
    for group in result["groups"]:
        print(
            f"{told_group(group)}: {group['flipped']} of {len(group['test images'])} flipped, mean "
            f"loss {group['mean loss before']:.3f} -> {group['mean loss after']:.3f}, training "
            f"image {group['training image']} ({group['its label']})"
        )


if __name__ == "__main__":
    main()
