"""Which ranking finds wrong labels first? Four data sets, a tenth of the labels flipped.

Logistic regression on digits (ten classes), on MNIST ones and sevens, on the words of SMS messages
and on frozen-network features of photographs of dogs and fish, each with three strengths of weight
decay. Another label is put in the place of a tenth of the training labels, drawn anew ten times,
and the model is trained on all of them. Each ranking is judged by its average precision: the share
of wrong labels among the examples checked so far, averaged over the finds.

The rankings of whence look at the one trained model. Those of cleanlab get what they are made for:
probabilities from five models in turn, each trained without the fifth that it judges.
"""

import argparse
import gzip
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vl_convert
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

import whence
from whence.datasets import load
from whence.numerics import stats
from whence.uses.mislabels import find_mislabels

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HELD_OUT = 5000
FOLDS = 5


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        examples: at most so many of each data set.
        seeds: draws of the wrong labels.
        first_seed: of the draws. The left-out loss got its form on the draws 0 and 1 of parts of
            these data sets; the draws that count are others.
        flipped: share of wrong labels.
        weight_decays: l of (l/2)|theta|^2 beside the mean loss; the intercept is free.
    """

    examples: int = 3000
    seeds: int = 10
    first_seed: int = 100
    flipped: float = 0.1
    weight_decays: tuple[float, ...] = (1e-2, 1e-3, 1e-4)


SHORT = Settings(examples=200, seeds=2, weight_decays=(1e-3,))


def main() -> None:
    """All data sets, weight decays and draws; writes the numbers and the figure."""
    arguments = parse()
    settings = SHORT if arguments.short else Settings()
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for name, read in DATA.items():
        x, y = (part[: settings.examples] for part in read())
        facts[name] = {"examples": len(y), "features": x.shape[1], "classes": len(set(y.tolist()))}
        for weight_decay in settings.weight_decays:
            seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
            runs = [judge(x, y, weight_decay, settings, seed) for seed in seeds]
            rows.append({"data": name, "weight decay": weight_decay} | summarise(runs))
            done = f"{time.perf_counter() - started:8.0f} s  {name}, l = {weight_decay:g}"
            print(done, rows[-1]["average precision"], flush=True)
    result = {
        "settings": asdict(settings),
        "data": facts,
        "rows": rows,
        "mean over data sets and weight decays": overall(rows),
        "circumstances": circumstances(time.perf_counter() - started),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "four_datasets.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "four_datasets.svg").write_text(draw(rows))
    print(table(rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


# ------------------------------------------------------------------------------- data


def digits() -> tuple[Any, np.ndarray]:
    """Ten classes, 64 pixels."""
    data = load("digits")
    return data.x_train, data.y_train


def ones_and_sevens() -> tuple[Any, np.ndarray]:
    """MNIST, in the order of the set, behind the first 5,000 images."""
    data = load("mnist")
    y = data.y_train[HELD_OUT:]
    chosen = np.isin(y, (1, 7))
    return data.x_train[HELD_OUT:][chosen].astype(np.float64), (y[chosen] == 7).astype(np.int64)


def sms() -> tuple[Any, np.ndarray]:
    """Words of distinct messages that occur in at least five of them."""
    with gzip.open(folder() / "sms_spam.jsonl.gz", "rt", encoding="utf8") as file:
        found = {row["text"]: row["label"] for row in map(json.loads, file)}
    order = np.random.default_rng(0).permutation(len(found))
    texts, labels = list(found), np.array(list(found.values()))
    counts = CountVectorizer(min_df=5).fit_transform([texts[i] for i in order])
    return counts.astype(np.float64).toarray(), labels[order]


def dogs_and_fish() -> tuple[Any, np.ndarray]:
    """Features of SqueezeNet, standardised."""
    data = np.load(folder() / "dogfish_features.npz")
    x = StandardScaler().fit_transform(data["x_train"].astype(np.float64))
    return x, data["y_train"].astype(np.int64)


def folder() -> Path:
    """Where the data are."""
    found = os.environ.get("WHENCE_DATA")
    if not found:
        raise SystemExit("Set WHENCE_DATA to a folder with the data sets.")
    return Path(found)


DATA: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "digits": digits,
    "MNIST 1 v 7": ones_and_sevens,
    "SMS spam": sms,
    "dog v fish": dogs_and_fish,
}


# --------------------------------------------------------------------------- one draw


def judge(
    x: np.ndarray, y: np.ndarray, weight_decay: float, settings: Settings, seed: int
) -> dict[str, float]:
    """Average precision of every ranking on one draw of wrong labels, and what was learnt."""
    given = flip(y, settings.flipped, seed)
    is_wrong = given != y
    model = train(x, given, weight_decay)
    problem = whence.make_problem(model, (x, given))
    fitted = whence.fit(problem, "exact")
    found = find_mislabels(problem, method=fitted, truth=is_wrong, seed=seed)
    finite = replace(fitted, change="finite")
    untempered = found.suspicion["loss"] + finite.self_influence()
    out_of_sample = held_out_chances(x, given, weight_decay, seed)
    scores = {
        "left-out loss": found.suspicion["left_out_loss"],
        "left-out loss, not tempered": untempered,
        "self-influence": found.suspicion["self_influence"],
        "self-influence, first order": replace(fitted, is_newton=False).self_influence(),
        "loss": found.suspicion["loss"],
        "margin": found.suspicion["margin"],
        "confidence": found.suspicion["confidence"],
        "cleanlab, quality": -get_label_quality_scores(given, out_of_sample),
        "cleanlab, issues first": issues_first(given, out_of_sample),
        "random": found.suspicion["random"],
    }
    precisions = {name: stats.average_precision(v, is_wrong) for name, v in scores.items()}
    facts = {
        "accuracy on the given labels": float(model.score(x, given)),
        "wrong labels that the model repeats": float(model.score(x[is_wrong], given[is_wrong])),
    }
    return precisions | facts


def flip(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of which a share has become another one, each other label being as likely."""
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(y), round(share * len(y)), replace=False)
    classes = int(y.max()) + 1
    given = y.copy()
    given[wrong] = (y[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return given


def train(x: np.ndarray, y: np.ndarray, weight_decay: float) -> LogisticRegression:
    """The minimum of the mean loss + (weight decay / 2) |weights|^2."""
    strength = 1 / (len(y) * weight_decay)
    return LogisticRegression(C=strength, solver="newton-cg", tol=1e-8, max_iter=1000).fit(x, y)


def held_out_chances(x: np.ndarray, y: np.ndarray, weight_decay: float, seed: int) -> np.ndarray:
    """(N, C) probabilities from models that have not seen the example."""
    chances = np.zeros((len(y), int(y.max()) + 1))
    parts = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y)
    for rest, part in parts:
        chances[part] = train(x[rest], y[rest], weight_decay).predict_proba(x[part])
    return chances


def issues_first(given: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """(N,) suspicion: what confident learning calls an issue before all else, then by quality."""
    quality = get_label_quality_scores(given, chances)
    is_issue = find_label_issues(given, chances, n_jobs=1)
    return is_issue - quality  # a quality lies between 0 and 1


# ----------------------------------------------------------------------------- results


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Means over the draws with the half width of their 95 % interval."""
    found = {name: interval([run[name] for run in runs]) for name in runs[0]}
    facts = [name for name in found if name.endswith(("labels", "repeats"))]
    gaps = {
        name: interval([run["left-out loss"] - run[name] for run in runs])
        for name in found
        if name not in (*facts, "left-out loss")
    }
    return {
        "average precision": {name: v for name, v in found.items() if name not in facts},
        "left-out loss less": gaps,
        **{name: found[name]["mean"] for name in facts},
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean, and 2.26 standard errors: the t interval of ten draws."""
    array = np.asarray(values)
    half = T_VALUES[len(array)] * array.std(ddof=1) / len(array) ** 0.5
    return {"mean": round(float(array.mean()), 5), "half width": round(float(half), 5)}


T_VALUES = {2: 12.706, 10: 2.262}
"""97.5 % points of Student's t for one draw less."""


def overall(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each ranking the mean, and how far it falls behind the best ranking at the most."""
    table = np.array([[v["mean"] for v in row["average precision"].values()] for row in rows])
    behind = (table.max(1, keepdims=True) - table).max(0)
    pairs = zip(rows[0]["average precision"], table.mean(0), behind, strict=True)
    return {
        name: {"mean": round(float(mean), 5), "largest shortfall": round(float(short), 5)}
        for name, mean, short in pairs
    }


def circumstances(seconds: float) -> dict[str, Any]:
    """Versions, threads, command and seconds."""
    packages = ("torch", "numpy", "scipy", "scikit-learn", "cleanlab")
    return {
        "command": " ".join(["python", str(Path(__file__).relative_to(ROOT)), *sys.argv[1:]]),
        "versions": {"whence": whence.__version__} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: mean ± half width of the interval."""
    names = list(rows[0]["average precision"])
    lines = [
        "| data | l | repeats wrong labels | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        found = row["average precision"]
        best = max(value["mean"] for value in found.values())
        cells = [
            f"{'**' if v['mean'] == best else ''}{v['mean']:.3f}"
            f"{'**' if v['mean'] == best else ''} ± {v['half width']:.3f}"
            for v in found.values()
        ]
        share = f"{row['wrong labels that the model repeats']:.0%}"
        head = [row["data"], f"{row['weight decay']:g}", share]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> str:
    """A panel a data set: average precision of every ranking, with its interval."""
    names = list(rows[0]["average precision"])[:-1]  # without the random order
    order = {"field": "ranking", "type": "nominal", "sort": names, "title": None}
    color = {
        "field": "weight decay",
        "type": "nominal",
        "sort": [f"{value:g}" for value in sorted({row["weight decay"] for row in rows})][::-1],
        "scale": {"range": ["#2b6cb0", "#2f855a", "#c53030"]},
        "legend": {"orient": "bottom"},
    }
    panels = []
    for place, data in enumerate(dict.fromkeys(row["data"] for row in rows)):
        points = [
            {
                "ranking": name,
                "weight decay": f"{row['weight decay']:g}",
                "mean": row["average precision"][name]["mean"],
                "low": row["average precision"][name]["mean"]
                - row["average precision"][name]["half width"],
                "high": row["average precision"][name]["mean"]
                + row["average precision"][name]["half width"],
            }
            for row in rows
            if row["data"] == data
            for name in names
        ]
        level = {
            "field": "mean",
            "type": "quantitative",
            "title": "average precision",
            "scale": {"zero": False, "nice": True},
        }
        labels = {"labelLimit": 220} if place % 2 == 0 else {"labels": False, "ticks": False}
        panels.append(
            {
                "title": data,
                "width": 260,
                "height": 200,
                "data": {"values": points},
                "encoding": {"y": {**order, "axis": labels}, "color": color},
                "layer": [
                    {
                        "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
                        "encoding": {"x": {**level, "field": "low"}, "x2": {"field": "high"}},
                    },
                    {"mark": {"type": "point", "filled": True}, "encoding": {"x": level}},
                ],
            }
        )
    config = {
        "background": "white",
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {"gridColor": "#eeeeee", "domain": False, "titleFontSize": 12},
        "axisY": {"grid": True},
        "aria": False,
    }
    spec = {"config": config, "vconcat": [{"hconcat": panels[i : i + 2]} for i in (0, 2)]}
    drawn = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    places = r'(?: d|transform)="[^"]+"'  # coordinates, and not the numbers beside the axes
    return re.sub(places, lambda found: shortened(found[0]), drawn) + "\n"


def shortened(coordinates: str) -> str:
    """Two digits behind the point are more than a screen shows."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates)


if __name__ == "__main__":
    main()
