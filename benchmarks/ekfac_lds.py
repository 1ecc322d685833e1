"""How well scores predict what models say that were trained on random halves of the data.

For each query the measurement of models trained on 60 random halves is compared, by rank, with
what the scores add up to over what was left out (the linear datamodeling score, LDS). The truth is
made by `ground_truth.py`: model, training, halves, queries and seeds were fixed before any method
was scored. Models with three other seeds, trained on everything, are explained; beside whence
stands kronfluence with four dampings, whose scores are kept under `runs/`, as are those of the
exact curvatures.

    python benchmarks/ekfac_lds.py --work digits-sgd
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ground_truth import PLANS, Plan, truth
from measuring import circumstances, timed
from peers import IS_INSTALLED, MISSING, Kronfluence
from torch import nn
from works import RUNS, WORKS, Work, fingerprint, perceptron, trained

import whence
from whence.numerics import stats

HERE = Path(__file__).parent
DAMPINGS = {"default, 1e-8": 1e-8, "heuristic": None, "1e-2": 1e-2, "1e-3": 1e-3}
SEEDS = (0, 1, 2)
"""Of the models that are explained."""
DRAWS = 200
"""Of the bootstrap; halves are drawn for all queries and models together."""

Table = tuple[np.ndarray, float]
"""(Q, N) effects, and the core seconds that they took."""
Method = Callable[[Work, int], Table]


def main() -> None:
    """All methods on one work; writes its part of the results."""
    arguments = parse()
    torch.set_num_threads(1)
    work, plan = WORKS[arguments.work](), PLANS[arguments.work]
    seeds = SEEDS
    if arguments.short:
        work, plan, seeds = shortened(work), Plan(12, 1, together=12), (0,)
    methods = whence_methods(work) | peer_methods()
    if arguments.match:
        wanted = arguments.match
        methods = {name: methods[name] for name in methods if any(w in name for w in wanted)}
    found = compare(work, plan, seeds, methods)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "ekfac_lds.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    before = results.get(work.name, {})
    found["methods"] = before.get("methods", {}) | found["methods"]
    results[work.name] = before | found | {"circumstances": circumstances(__file__)}
    path.write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=PLANS, default="digits-sgd")
    parser.add_argument(
        "--match", action="append", help="only methods with this in their name; may be repeated"
    )
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


def shortened(work: Work) -> Work:
    """A smaller network and a part of the data, for tests."""
    train, queries = ((x[:n], y[:n]) for (x, y), n in ((work.train, 200), (work.queries, 20)))
    build = partial(perceptron, 64, 12, 10)
    return replace(work, name="short", build=build, train=train, queries=queries)


def compare(
    work: Work, plan: Plan, seeds: tuple[int, ...], methods: dict[str, Method]
) -> dict[str, Any]:
    """The scores of all methods for one work."""
    kept, retrained = truth(work, plan)
    actual = retrained.mean(1).T  # (Q, halves)
    found, rows = {}, {}
    for name, method in methods.items():
        predicted, seconds = [], []
        for seed in seeds:
            path = RUNS / "scores" / f"{work.name}-{fingerprint(work)[:16]}-{seed}-{name}.npz"
            once = partial(method, work, seed)
            effects, spent = remembered(
                once, path if work.name in WORKS and is_settled(name) else None
            )
            predicted.append(effects @ ~kept.T)
            seconds.append(spent)
        rows[name] = np.stack(predicted)  # (models, Q, halves)
        found[name] = summary(rows[name], actual) | {"core seconds": round(np.mean(seconds), 2)}
        print(
            f"{work.name}: {name:36} {found[name]['LDS']:.3f} {found[name]['interval']}", flush=True
        )
    less = differences(rows, found, actual)
    return {
        "settings": settings(work, plan, seeds),
        "ceiling": ceiling(retrained),
        "methods": found,
        **({"less the best of kronfluence": less} if less else {}),
    }


@dataclass(frozen=True)
class ByWhence:
    """Effects by a method of whence, to first order in what is removed."""

    curvature: Any

    def __call__(self, work: Work, seed: int) -> Table:
        problem = make_problem(work, trained(work, seed))
        method = whence.Influence(self.curvature, removal="first_order")
        options = {"measurement": work.measurement, "method": method}
        numbers, scores = timed(lambda: whence.explain(problem, work.queries, **options))
        return scores.values, numbers["core seconds"]


def make_problem(work: Work, model: nn.Module, **options: Any) -> Any:
    """What was trained; the weight decay of AdamW is not part of an objective."""
    return whence.make_problem(
        model, work.train, loss="cross_entropy", weight_decay=work.penalty, **options
    )


def whence_methods(work: Work) -> dict[str, Method]:
    """Curvatures of whence by the name in the results."""
    recipes: dict[str, Any] = {"grad-dot": "identity"}
    if work.name.startswith(("digits", "short")):
        recipes["GGN, exact"] = whence.Exact(matrix="ggn")
        recipes["Hessian, exact, damping 0.1"] = whence.Exact(matrix="hessian", damping=0.1)
    for name in ("EKFAC", "KFAC", "Diagonal", "Arnoldi", "Nystrom", "Refined"):
        if hasattr(whence, name):
            recipes[name] = getattr(whence, name)()
    return {f"whence {name}": ByWhence(recipe) for name, recipe in recipes.items()}


def peer_methods() -> dict[str, Method]:
    """EK-FAC by kronfluence with several dampings; none where it is not installed."""
    if not IS_INSTALLED:
        print(MISSING)
        return {}
    return {
        f"kronfluence EK-FAC, {name}": partial(by_kronfluence, damping=damping)
        for name, damping in DAMPINGS.items()
    }


def by_kronfluence(work: Work, seed: int, *, damping: float | None) -> Table:
    """Effects by kronfluence."""
    return all_by_kronfluence(work, seed)[damping]


@lru_cache
def all_by_kronfluence(work: Work, seed: int) -> dict[float | None, Table]:
    """By damping, with one fit; its seconds count for each."""
    tables = {}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about names that it takes from torch
        peer = Kronfluence(work, trained(work, seed), folder, batch=work.batch)
        fit, _ = timed(peer.fit)
        for damping in DAMPINGS.values():
            score, effects = timed(partial(peer.scores, damping))
            tables[damping] = effects, round(fit["core seconds"] + score["core seconds"], 3)
    return tables


def is_settled(name: str) -> bool:
    """Whether the scores of a method do not change from one version of whence to the next."""
    return name.startswith("kronfluence") or "exact" in name


def remembered(once: Callable[[], Table], path: Path | None) -> Table:
    """What a method found, from a file where there is one."""
    if path is not None and path.is_file():
        found = np.load(path)
        return found["effects"], float(found["seconds"])
    effects, seconds = once()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, effects=effects, seconds=seconds)
    return effects, seconds


# -------------------------------------------------------------------------------- numbers


def mean_spearman(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """(1,) mean of the rank correlations of all rows."""
    return stats.spearman(predicted, actual).mean(keepdims=True)


def summary(predicted: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    """LDS over queries and models, its interval, and its spread over models and queries.

    Args:
        predicted: (models, Q, halves).
        actual: (Q, halves).
    """
    by_row = np.stack([stats.spearman(one, actual) for one in predicted])  # (models, Q)
    rows = predicted.reshape(-1, predicted.shape[-1])
    truths = np.tile(actual, (len(predicted), 1))
    low, high = stats.bootstrap_interval(mean_spearman, rows, truths, draws=DRAWS)
    return {
        "LDS": round(float(by_row.mean()), 4),
        "interval": [round(low, 3), round(high, 3)],
        "by model": by_row.mean(1).round(4).tolist(),
        "quartiles over queries": np.quantile(by_row.mean(0), (0.25, 0.5, 0.75)).round(3).tolist(),
    }


def differences(
    rows: dict[str, np.ndarray], found: dict[str, Any], actual: np.ndarray
) -> dict[str, Any]:
    """LDS of each method less that of the peer's best damping, on the same halves."""
    peers = [name for name in rows if name.startswith("kronfluence")]
    if not peers:
        return {}
    best = max(peers, key=lambda name: found[name]["LDS"])
    others, truths = np.concatenate(rows[best]), np.tile(actual, (len(rows[best]), 1))

    def less(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
        own, peer = np.split(predicted, 2)
        truth = actual[: len(own)]
        return mean_spearman(own, truth) - mean_spearman(peer, truth)

    pairs = {name: np.concatenate([*rows[name], others]) for name in rows if name != best}
    twice = np.tile(truths, (2, 1))
    return {"best": best} | {
        name: {
            "difference": round(float(less(pair, twice)[0]), 4),
            "interval": np.round(
                stats.bootstrap_interval(less, pair, twice, draws=DRAWS), 3
            ).tolist(),
        }
        for name, pair in pairs.items()
    }


def ceiling(retrained: np.ndarray) -> float | None:
    """The median over queries of the correlation that true effects would reach.

    Args:
        retrained: (halves, seeds, Q); one seed tells nothing of the noise.
    """
    seeds = retrained.shape[1]
    if seeds < 2:
        return None
    total = retrained.mean(1).var(0, ddof=1)
    noise = retrained.var(1, ddof=1).mean(0) / seeds
    return round(stats.median(stats.noise_ceiling(total, noise)), 3)


def settings(work: Work, plan: Plan, seeds: tuple[int, ...]) -> dict[str, Any]:
    """What was trained, and how often."""
    model = trained(work, seeds[0])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "examples": len(work.train[1]),
        "queries": len(work.queries[1]),
        "measurement": work.measurement,
        "recipe": vars(work.recipe),
        "halves": plan.subsets,
        "models for each half": plan.seeds,
        "halves share seeds": plan.shares_seeds,
        "seeds of the explained models": list(seeds),
    }


if __name__ == "__main__":
    main()
