"""Figure 6 of Koh & Liang 2017: wrong labels found by self-influence, by loss and at random.

Logistic regression without an intercept on the words of the Enron spam mails: 4,137 mails to train
on, 1,035 to test, weight decay 1e-4. A tenth of the training labels, 412, is flipped. The mails are
then checked in the order of a ranking, 5 % to 30 % of them; a wrong label that is met is put right,
and the model is trained again. Forty draws of the flipped labels.

    self-influence               (1/N) s^2 x^T H^-1 x              s = 1 - p(label given)
    self-influence, Newton       the same, divided by 1 - leverage
    self-influence, first power  s x^T H^-1 x      what the authors' code computed until 2020
    left-out loss                the default of `whence.find_mislabels`
    loss                         -log(1 - s)
    random
"""

import gzip
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import expit
from shared import BLUE, GREEN, GREY, RED, Clock, axis, circumstances, parse, rounded, svg, write
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.linear_model import LogisticRegression

import whence
from whence.core.problem import Problem
from whence.curvature.dual import Dual
from whence.methods.influence import Influence
from whence.numerics import stats
from whence.uses.mislabels import find_mislabels

WEIGHT_DECAY = 1e-4
MIN_DOCUMENTS = 5
SHARES = 6
COLORS = {
    "self-influence": BLUE,
    "self-influence, Newton": "#6b46c1",
    "self-influence, first power": GREEN,
    "left-out loss": "#b7791f",
    "loss": RED,
    "random": GREY,
}


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are those of the paper.

    Args:
        train: mails to train on.
        test: mails to test on.
        flipped: wrong labels.
        step: mails checked at a time, about 5 %.
        repeats: draws of the wrong labels.
        seed: of the split and of the draws.
    """

    train: int = 4137
    test: int = 1035
    flipped: int = 412
    step: int = 206
    repeats: int = 40
    seed: int = 0


SHORT = Settings(train=300, test=200, flipped=30, step=15, repeats=2)


def main() -> None:
    """Flips, ranks, repairs, trains again; writes the numbers and the figure."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    clock = Clock()
    data = read(settings)
    clock.lap("read, split and count words")
    clean = fit(data.x, data.y)
    runs: list[dict[str, Any]] = []
    for repeat in range(settings.repeats):
        runs.append(one_repeat(data, settings, repeat))
        clock.lap(f"repeat {repeat + 1} of {settings.repeats}")
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 6",
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY},
        "data": data.facts | {"accuracy with clean labels": accuracy(clean, data)},
        "checked": [settings.step * (k + 1) / settings.train for k in range(SHARES)],
        "accuracy before any repair": summary([run["before"] for run in runs]),
        "rankings": {name: summarise(name, runs) for name in COLORS},
        "self-influence less loss": against("self-influence", "loss", runs),
        "self-influence, first power less loss": against(
            "self-influence, first power", "loss", runs
        ),
        "checks": {
            "largest gradient norm": max(run["gradient norm"] for run in runs),
            "largest residual of the solve": max(run["residual"] for run in runs),
            "find_mislabels against the formulas": max(run["formulas"] for run in runs),
        },
        "circumstances": circumstances(__file__, {"all": round(sum(clock.seconds.values()), 1)}),
    }
    write(arguments.out, "fig6_spam", rounded(result, 5), draw(result))
    print_table(result)


# ------------------------------------------------------------------------------ mails


@dataclass(frozen=True)
class Mails:
    """Counted words and labels (1 spam).

    Args:
        x: (N, d) counts of the training mails.
        y: (N,).
        x_test: (M, d).
        y_test: (M,).
        facts: numbers about them.
    """

    x: csr_matrix
    y: np.ndarray
    x_test: csr_matrix
    y_test: np.ndarray
    facts: dict[str, Any]


def read(settings: Settings) -> Mails:
    """The mails, split by text: copies of a mail stay on one side."""
    texts, labels = enron()
    order = split(texts, settings)
    train, test = order[: settings.train], order[settings.train :]
    counter = CountVectorizer(min_df=MIN_DOCUMENTS, tokenizer=words, token_pattern=None)
    x = counter.fit_transform([texts[i] for i in train]).astype(np.float64)
    x_test = counter.transform([texts[i] for i in test]).astype(np.float64)
    facts = {
        "words": x.shape[1],
        "share of spam": float(labels[train].mean()),
        "training mails that are copies of another": len(train) - len({texts[i] for i in train}),
        "test mails whose text is in the training set": len(
            {texts[i] for i in train} & {texts[i] for i in test}
        ),
    }
    return Mails(x, labels[train], x_test, labels[test], facts)


def enron() -> tuple[list[str], np.ndarray]:
    """Texts and labels of the collection enron1."""
    folder = os.environ.get("WHENCE_DATA")
    path = Path(folder or ".") / "enron1.jsonl.gz"
    if not path.is_file():
        raise SystemExit("Set WHENCE_DATA to a folder with enron1.jsonl.gz.")
    with gzip.open(path, "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def split(texts: list[str], settings: Settings) -> np.ndarray:
    """Positions of the training mails, then of the test mails.

    Texts are drawn at random with all their copies, as long as they fit the training set exactly.
    """
    copies: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        copies.setdefault(text, []).append(position)
    groups = list(copies.values())
    train: list[int] = []
    rest: list[int] = []
    for group in np.random.default_rng(settings.seed).permutation(len(groups)):
        fits = len(train) + len(groups[group]) <= settings.train
        (train if fits else rest).extend(groups[group])
    return np.array(train + rest[: settings.test])


def words(text: str) -> list[str]:
    """Runs of letters, without the words that every text has."""
    return [word for word in re.findall("[a-z]+", text.lower()) if word not in ENGLISH_STOP_WORDS]


# ---------------------------------------------------------------------------- one draw


def one_repeat(data: Mails, settings: Settings, repeat: int) -> dict[str, Any]:
    """Flips labels, ranks the mails in every way, repairs along each ranking."""
    generator = np.random.default_rng([settings.seed, repeat])
    is_wrong = np.zeros(len(data.y), dtype=bool)
    is_wrong[generator.choice(len(data.y), settings.flipped, replace=False)] = True
    given = np.where(is_wrong, 1 - data.y, data.y)
    model = fit(data.x, given)
    problem = whence.make_problem(model, (data.x.toarray(), given))
    scores, checks = suspicion(problem)
    checks["formulas"] = gap_to_formulas(problem, scores) if repeat == 0 else 0.0
    scores["random"] = generator.random(len(given))
    result: dict[str, Any] = {"before": accuracy(model, data), **checks, "rankings": {}}
    for name, values in scores.items():
        order = np.argsort(-values, kind="stable")
        tested, fixed = [], []
        for share in range(1, SHARES + 1):
            labels = given.copy()
            seen = order[: share * settings.step]
            labels[seen] = data.y[seen]
            tested.append(accuracy(fit(data.x, labels), data))
            fixed.append(float(is_wrong[seen].mean() * len(seen) / settings.flipped))
        precision = stats.average_precision(values, is_wrong)
        result["rankings"][name] = {
            "accuracy": tested,
            "fixed": fixed,
            "average precision": precision,
        }
    return result


def fit(x: csr_matrix, y: np.ndarray) -> LogisticRegression:
    """The minimum of the mean loss + (weight decay / 2) |theta|^2."""
    strength = 1 / (len(y) * WEIGHT_DECAY)
    return LogisticRegression(
        C=strength, fit_intercept=False, solver="liblinear", tol=1e-8, max_iter=1000
    ).fit(x, y)


def accuracy(model: LogisticRegression, data: Mails) -> float:
    """Share of test mails that are told right."""
    return float(model.score(data.x_test, data.y_test))


def suspicion(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What each ranking says of every mail, and checks of the solve.

    All forms of self-influence, and the left-out loss, come from x^T H^-1 x, computed once.
    """
    fitted = Influence(Dual(), removal="first_order").fit(problem)
    everything = problem.batch(torch.arange(len(problem)))
    parts = everything.inputs.split(512)
    pull = torch.cat([fitted.ihvp.leverage(part[:, None])[:, 0, 0] for part in parts]).numpy()
    logits = problem.outputs(problem.parameters, everything.inputs)[:, 0].detach().numpy()
    margin = (2 * everything.targets.numpy() - 1) * logits
    count, slip = len(problem), expit(-margin)
    leverage = slip * (1 - slip) * pull / count
    own = slip**2 * pull / count
    open_still = pull / count / (1 - leverage)  # variance of the logit without the mail
    alone = (margin - slip * open_still) / np.sqrt(1 + np.pi / 8 * open_still)
    scores = {
        "self-influence": own,
        "self-influence, Newton": own / (1 - leverage),
        "self-influence, first power": slip * pull,
        "left-out loss": np.logaddexp(0, -alone),
        "loss": np.logaddexp(0, -margin),
    }
    checks = {
        "gradient norm": fitted.report["gradient_norm"],
        "residual": fitted.ihvp.solve(everything.inputs[:8]).report["residual"],
    }
    return scores, checks


def gap_to_formulas(problem: Problem, scores: dict[str, np.ndarray]) -> float:
    """Largest difference between the library's own rankings and the formulas, as a share."""
    first_order = Influence(Dual(), removal="first_order").fit(problem)
    newton = Influence(Dual(), removal="newton").fit(problem)
    found = find_mislabels(problem, method=newton).suspicion
    pairs = [
        (first_order.self_influence(), scores["self-influence"]),
        (found["self_influence"], scores["self-influence, Newton"]),
        (found["left_out_loss"], scores["left-out loss"]),
        (found["loss"], scores["loss"]),
    ]
    return max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)


# ----------------------------------------------------------------------------- results


def summary(values: Any) -> dict[str, float]:
    """Mean and standard error over the draws."""
    array = np.asarray(values)
    return {"mean": float(array.mean()), "error": float(array.std(ddof=1) / len(array) ** 0.5)}


def summaries(runs: list[Any]) -> list[dict[str, float]]:
    """The same for each share of checked mails."""
    return [summary(values) for values in np.asarray(runs).T]


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, share of wrong labels found and average precision of a ranking."""
    found = [run["rankings"][name] for run in runs]
    return {
        "accuracy": summaries([f["accuracy"] for f in found]),
        "fixed": summaries([f["fixed"] for f in found]),
        "average precision": summary([f["average precision"] for f in found]),
    }


def against(one: str, other: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences draw by draw, which share the flipped labels and the model."""
    answer: dict[str, Any] = {}
    for what in ("accuracy", "fixed"):
        pairs = [
            np.subtract(run["rankings"][one][what], run["rankings"][other][what]) for run in runs
        ]
        answer[what] = summaries(pairs)
    return answer


def draw(result: dict[str, Any]) -> str:
    """Two panels: test accuracy, and the share of wrong labels put right."""

    def panel(what: str, title: str, ends: list[float]) -> dict[str, Any]:
        points = [
            {"x": 100 * x, "y": 100 * y["mean"], "e": 100 * y["error"], "ranking": name}
            for name in COLORS
            for x, y in zip(result["checked"], result["rankings"][name][what], strict=True)
        ]
        for point in points:
            point |= {"low": point["y"] - point["e"], "high": point["y"] + point["e"]}
        color = {
            "field": "ranking",
            "scale": {"domain": list(COLORS), "range": list(COLORS.values())},
            "legend": {"title": None, "orient": "bottom", "columns": 3, "labelLimit": 300},
        }
        level = axis("y", title, domain=ends)
        shared_axis = axis("x", "training mails checked (%)")
        band = {"y": {**level, "field": "low"}, "y2": {"field": "high"}}
        lines = [
            {"mark": {"type": "line", "point": True}, "encoding": {"y": level}},
            {"mark": {"type": "area", "opacity": 0.2}, "encoding": band},
        ]
        if what == "accuracy":
            clean = 100 * result["data"]["accuracy with clean labels"]
            rule = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
            level_rule = {"y": {"datum": clean}, "x": None, "color": None}
            lines.append({"mark": rule, "encoding": level_rule})
        return {
            "width": 330,
            "height": 280,
            "data": {"values": points},
            "encoding": {"x": shared_axis, "color": color},
            "layer": lines,
        }

    means = [
        100 * value["mean"] for name in COLORS for value in result["rankings"][name]["accuracy"]
    ]
    ends = [np.floor(min(means)), np.ceil(100 * result["data"]["accuracy with clean labels"])]
    return svg(
        {
            "hconcat": [
                panel("accuracy", "test accuracy after the repair (%)", ends),
                panel("fixed", "flipped labels put right (%)", [0, 100]),
            ]
        }
    )


def print_table(result: dict[str, Any]) -> None:
    """Share of flipped labels found and test accuracy, at each share of checked mails."""
    for what in ("fixed", "accuracy"):
        print(f"\n{what:30}" + "".join(f"{share:>16.0%}" for share in result["checked"]))
        for name, numbers in result["rankings"].items():
            cells = [f"{v['mean']:.4f} ± {v['error']:.4f}" for v in numbers[what]]
            print(f"{name:30}" + "".join(f"{cell:>18}" for cell in cells))
    for name, numbers in result["rankings"].items():
        value = numbers["average precision"]
        print(f"average precision, {name}: {value['mean']:.4f} ± {value['error']:.4f}")
    print(result["accuracy before any repair"], result["data"], result["checks"])


if __name__ == "__main__":
    main()
