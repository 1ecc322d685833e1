"""How the dampings that "auto" stands for were chosen: on works that no other benchmark reports.

    spam      perceptron 300-64-32-2 on word counts of messages        spam4     300-4-2
    hospital  perceptron 41-64-32-2 on a table of hospital stays       hospital8 41-8-2
    mnist     perceptron 784-48-24-10 on 1,000 images of digits        ten       49-32-10, shrunk
    parity    the same images, told even from odd                      parity16  49-16-2, shrunk
    cifar     three convolutions and a linear layer on 1,500 images
    sst2      a transformer that reads sentences for their sentiment
    stories   a transformer that goes on writing children's stories

Perceptrons are trained by SGD with weight decay and, where the name says so, by AdamW; the others
by AdamW. As in `ekfac_lds.py` models are trained on random halves, and scores are to rank the
halves. EK-FAC is fitted once for each explained model; its damping is then a share of the mean
eigenvalue, of all parameters ("global") or of each layer ("layer"). "whole" is the Gauss-Newton
matrix of all layers together, for a part of the queries of the perceptrons: for the others it takes
hours. The slope is that of what happened over what was said: one where effects have their
size.

    python benchmarks/damping_choice.py
    python benchmarks/damping_choice.py --table
"""

import argparse
import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ekfac_lds import make_problem, mean_spearman, shortened
from ground_truth import Plan, truth
from measuring import circumstances
from torch import Tensor, nn
from works import Block, Recipe, Transformer, Work, digits, folder, perceptron, trained

import whence
from whence.datasets import load
from whence.numerics import stats

HERE = Path(__file__).parent
SHARES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.01, 0.001)
WHOLE_SHARES = (30.0, 10.0, 3.0, 1.0, 0.1)
"""Of the mean eigenvalue."""
WHOLE_QUERIES = 40
SEEDS = (0, 1)
"""Of the models that are explained."""
DRAWS = 200
"""Of the bootstrap over halves."""

SGD = Recipe("sgd", rate=0.05, weight_decay=1e-3, epochs=20, batch=32)
ADAMW = Recipe("adamw", rate=1e-3, weight_decay=1e-2, epochs=12, batch=32)


def main() -> None:
    """All works; writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=WORKS, help="one of them; default all")
    parser.add_argument("--table", action="store_true", help="print what was found")
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "damping_choice.json"
    if arguments.table:
        print(table(json.loads(path.read_text())))
        return
    if arguments.short:
        work = shortened(digits("sgd"))
        record(path, work, compare(work, Plan(12, 1, together=12)))
        return
    for name in [arguments.work] if arguments.work else WORKS:
        work = WORKS[name]()
        record(path, work, compare(work, PLANS[name]))


def record(path: Path, work: Work, found: dict[str, Any]) -> None:
    """Adds what was found to the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[work.name] = found | {"circumstances": circumstances(__file__)}
    path.write_text(json.dumps(results, indent=1) + "\n")


def compare(work: Work, plan: Plan) -> dict[str, Any]:
    """LDS and slope by rule and share, over all explained models."""
    kept, retrained = truth(work, plan)
    actual = retrained.mean(1).T  # (Q, halves)
    predicted: dict[str, list[np.ndarray]] = {}
    for seed in SEEDS:
        for rule, effects in by_damping(work, seed):
            predicted.setdefault(rule, []).append(effects @ ~kept.T)
    found = {rule: summary(np.concatenate(rows), actual) for rule, rows in predicted.items()}
    for rule, numbers in found.items():
        print(f"{work.name}: {rule:16} {numbers}", flush=True)
    return {
        "parameters": sum(p.numel() for p in trained(work, SEEDS[0]).parameters()),
        "examples": len(work.train[1]),
        "queries": len(work.queries[1]),
        "recipe": vars(work.recipe),
        "rules": found,
    }


def by_damping(work: Work, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(Q, N) effects by rule, each from one fit."""
    problem = make_problem(work, trained(work, seed))
    fitted = whence.fit(problem, whence.Influence(whence.EKFAC(), removal="first_order"))
    inner = fitted.ihvp
    blocks, overall = inner.kronecker.blocks, inner.kronecker.mean()
    levels = {"global": [overall] * len(blocks), "layer": [block.mean() for block in blocks]}
    for (name, level), share in product(levels.items(), SHARES):
        ihvp = replace(inner, dampings=tuple(share * one for one in level))
        scores = replace(fitted, ihvp=ihvp).scores(work.queries, work.measurement)
        yield f"{name} {share:g}", scores.values
    if work.name in SINGLES:
        return
    recipe = whence.Influence(whence.Refined(tolerance=1e-2), removal="first_order")
    fitted = whence.fit(problem, recipe)
    few = tuple(part[:WHOLE_QUERIES] for part in work.queries)
    for share in WHOLE_SHARES:
        scores = fitted.damped(share * overall).scores(few, work.measurement)
        yield f"whole {share:g}", scores.values


def summary(predicted: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    """LDS with its interval, and the slope.

    Args:
        predicted: (models x Q', halves), of the first Q' queries and of the models of `SEEDS`.
        actual: (Q, halves).
    """
    truths = np.tile(actual[: len(predicted) // len(SEEDS)], (len(SEEDS), 1))
    low, high = stats.bootstrap_interval(mean_spearman, predicted, truths, draws=DRAWS)
    value = float(mean_spearman(predicted, truths)[0])
    said, seen = (rows - rows.mean(1, keepdims=True) for rows in (predicted, truths))
    return {
        "LDS": round(value, 4),
        "interval": [round(low, 3), round(high, 3)],
        "slope": round(float((said * seen).sum() / (said**2).sum()), 3),
    }


def table(results: dict[str, Any]) -> str:
    """LDS by work and rule, and their means."""
    rules = [f"layer {share:g}" for share in SHARES[:5]]
    rules += [f"whole {share:g}" for share in WHOLE_SHARES]
    lines = ["| work | " + " | ".join(rules) + " |", "|---" * (len(rules) + 1) + "|"]
    for name, found in results.items():
        cells = [
            f"{found['rules'][rule]['LDS']:.3f} ({found['rules'][rule]['slope']:.2g})"
            if rule in found["rules"]
            else ""
            for rule in rules
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [
        np.mean([f["rules"][rule]["LDS"] for f in results.values() if rule in f["rules"]])
        for rule in rules
    ]
    return "\n".join([*lines, "| mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |"])


# ----------------------------------------------------------------------------------- works


def spam() -> Work:
    """Messages as counts of the 300 most frequent words."""
    rows = _lines("sms_spam.jsonl.gz")
    words = [re.findall(r"[a-z']+|\d", row["text"].lower()) for row in rows]
    places = _most_frequent(words, 300)
    counts = np.zeros((len(rows), len(places)))
    for row, text in zip(counts, words, strict=True):
        for word in text:
            if word in places:
                row[places[word]] += 1
    labels = np.array([row["label"] for row in rows])
    return _work("spam", lambda: perceptron(300, 64, 32, 2), np.log1p(counts), labels, SGD)


def hospital() -> Work:
    """Stays in a hospital, whether the patient came back within thirty days."""
    with gzip.open(folder() / "diabetic_data.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    back = np.array([row["readmitted"] == "<30" for row in rows])
    chosen = np.concatenate([np.flatnonzero(back)[:900], np.flatnonzero(~back)[:900]])
    stays = _table([rows[place] for place in chosen])
    build = partial(perceptron, stays.shape[1], 64, 32, 2)
    return _work("hospital", build, stays, back[chosen].astype(int), SLOW_SGD)


def mnist() -> Work:
    """Images of digits, each as one row."""
    data = load("mnist")
    build = partial(perceptron, 784, 48, 24, 10)
    images = data.x_train.reshape(len(data.x_train), -1)
    return _work("mnist", build, images, data.y_train, SGD, count=1000)


def cifar() -> Work:
    """Images of ten kinds."""
    data = np.load(folder() / "cifar10_lossless4k.npz")
    images = data["x"].transpose(0, 3, 1, 2) / 127.5 - 1
    return _work("cifar", convolutional, images, data["y"], ADAMW, count=1500)


def sst2() -> Work:
    """Sentences as the first 24 of their words, unknown ones included."""
    rows = [row for row in _lines("sst2.jsonl.gz") if row["split"] == "train"]
    words = [row["text"].split()[:24] for row in rows]
    places = _most_frequent(words, 998)
    codes = np.zeros((len(rows), 24), dtype=np.int64)
    for row, text in zip(codes, words, strict=True):
        row[: len(text)] = [places.get(word, 997) + 2 for word in text]
    labels = np.array([row["label"] for row in rows])
    return _work("sst2", Reader, codes, labels, replace(ADAMW, epochs=8), count=2000)


def stories() -> Work:
    """Pieces of children's stories, character by character."""
    text = " ".join(row["text"] for row in _lines("tinystories.jsonl.gz"))[:200_000]
    letters = {letter: place for place, letter in enumerate(sorted(set(text)))}
    codes = np.array([letters[letter] for letter in text])
    pieces = codes[: len(codes) // 49 * 49].reshape(-1, 49)
    build = partial(Transformer, len(letters), width=48, layers=1, heads=4, context=48)
    recipe = replace(ADAMW, rate=2e-3, weight_decay=1e-1, batch=16)
    work = _work("stories", build, pieces[:, :-1], pieces[:, 1:], recipe, asked=50)
    return replace(work, measurement="log_prob", batch=32)


def parity() -> Work:
    """The images of `mnist`, even or odd."""
    return _even_or_odd(mnist(), "parity", 784, 48, 24, 2)


def parity16() -> Work:
    """The same at a quarter of the size."""
    return _even_or_odd(ten(), "parity16", 49, 16, 2)


def ten() -> Work:
    """The images of `mnist` at a quarter of their size."""
    work = mnist()
    train, queries = (
        (F.avg_pool2d(x.view(-1, 1, 28, 28), 4).flatten(1), y)
        for x, y in (work.train, work.queries)
    )
    return replace(
        work, name="ten", build=partial(perceptron, 49, 32, 10), train=train, queries=queries
    )


def hospital8() -> Work:
    """The table of `hospital` for a network with eight hidden units."""
    return replace(hospital(), name="hospital8", build=partial(perceptron, 41, 8, 2))


def spam4() -> Work:
    """The messages of `spam` for a network with four hidden units."""
    return replace(spam(), name="spam4", build=partial(perceptron, 300, 4, 2))


def _even_or_odd(work: Work, name: str, *widths: int) -> Work:
    train, queries = ((x, y % 2) for x, y in (work.train, work.queries))
    return replace(
        work, name=name, build=partial(perceptron, *widths), train=train, queries=queries
    )


def _by(optimizer: Recipe, make: Callable[[], Work]) -> Work:
    work = make()
    suffix = "-adamw" if optimizer.optimizer == "adamw" else ""
    return replace(work, name=work.name + suffix, recipe=optimizer)


STACKED = Plan(60, 3, together=60, shares_seeds=True)
SINGLE = Plan(60, 1, together=1, shares_seeds=True)
SLOW_SGD, LONG = replace(SGD, rate=0.02), replace(ADAMW, epochs=30)
WORKS: dict[str, Callable[[], Work]] = {
    "spam": spam,
    "spam-adamw": partial(_by, ADAMW, spam),
    "spam4": spam4,
    "hospital": partial(_by, SLOW_SGD, hospital),
    "hospital-adamw": partial(_by, replace(ADAMW, rate=3e-3, epochs=15), hospital),
    "hospital8": partial(_by, SLOW_SGD, hospital8),
    "hospital8-adamw": partial(_by, LONG, hospital8),
    "mnist": mnist,
    "mnist-adamw": partial(_by, replace(ADAMW, epochs=15), mnist),
    "ten": ten,
    "ten-adamw": partial(_by, replace(ADAMW, epochs=40), ten),
    "parity": parity,
    "parity-adamw": partial(_by, replace(ADAMW, epochs=15), parity),
    "parity16": parity16,
    "parity16-adamw": partial(_by, replace(ADAMW, epochs=40), parity16),
    "cifar": cifar,
    "sst2": sst2,
    "stories": stories,
}
SINGLES = ("cifar", "sst2", "stories")
"""Works whose models are trained one by one."""
PLANS = {name: SINGLE if name in SINGLES else STACKED for name in WORKS}


def convolutional() -> nn.Sequential:
    """Three convolutions with pooling, and a linear layer; 25,578 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


class Reader(nn.Module):
    """One layer of a transformer over words, the mean of its outputs, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(1000, 32), nn.Embedding(24, 32)
        self.block, self.norm, self.head = Block(32, 4), nn.LayerNorm(32), nn.Linear(32, 2)

    def forward(self, words: Tensor) -> Tensor:
        """(B, 24) integers -> (B, 2) logits."""
        x = self.word(words) + self.place.weight
        return self.head(self.norm(self.block(x)).mean(1))


def _work(
    name: str,
    build: Callable[[], nn.Module],
    x: np.ndarray,
    y: np.ndarray,
    recipe: Recipe,
    *,
    count: int = 1200,
    asked: int = 100,
) -> Work:
    order = np.random.default_rng(0).permutation(len(x))
    inputs = torch.from_numpy(x[order[: count + asked]])
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    targets = torch.from_numpy(np.asarray(y)[order[: count + asked]].astype(np.int64))
    train, queries = ((inputs[part], targets[part]) for part in (slice(count), slice(count, None)))
    return Work(name, build, train, queries, recipe)


def _lines(name: str) -> list[dict[str, Any]]:
    with gzip.open(folder() / name, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file]


def _most_frequent(texts: list[list[str]], count: int) -> dict[str, int]:
    """The place of each of the most frequent words."""
    found = Counter(word for text in texts for word in text).most_common(count)
    return {word: place for place, (word, _) in enumerate(found)}


def _table(rows: list[dict[str, str]]) -> np.ndarray:
    """Numbers by their z-score, and the most frequent words of each column, one column each."""
    columns: list[np.ndarray] = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("encounter_id", "patient_nbr", "readmitted"):
            continue
        if all(value.isdigit() for value in values):
            numbers = np.array(values, dtype=float)
            columns.append((numbers - numbers.mean()) / max(numbers.std(), 1e-9))
            continue
        for word, times in Counter(values).most_common(4)[:-1]:
            if 0.05 < times / len(rows) < 0.95:
                columns.append(np.array([float(value == word) for value in values]))
    return np.stack(columns, 1)


if __name__ == "__main__":
    main()
