"""How well ensembles predict models that were trained on random halves, and what they cost.

    python benchmarks/ensembles.py --work digits-decay   # or -sgd, -adamw, cnn-small, gpt-small
    python benchmarks/ensembles.py --figure

The truth is that of `ground_truth.py`: for each of 60 halves models trained on its rows alone. Here
the same procedure is a `whence.Training`: an example of weight zero stays in its batch, so batches
are twice as large, hold as many examples as there, and their mean is taken over those
(`renormalize=True`). Members of ensembles never share a seed or a half with the truth. Beside them
stand methods on one model, among them kronfluence on one checkpoint. Every method costs the core
seconds that it takes beyond the model that is explained: trainings of members, fits and scores.
Small members are trained side by side, and their trainings are timed anew for every size of an
ensemble; where a training fills a core by itself, all cost the same.

Choices of `Ensemble` were made on digits-decay alone: halves rather than other shares or other
seeds, and which members score an example (`--study`). The other works only report.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ekfac_lds import DAMPINGS, all_by_kronfluence, ceiling, shortened
from ground_truth import PLANS, Plan, truth
from measuring import circumstances, timed
from peers import IS_INSTALLED, MISSING
from vl_convert import svg_to_png
from works import WORKS, Work

import whence
from whence.numerics import stats
from whence.report.curves import lines

HERE = Path(__file__).parent
SIZES = (1, 2, 4, 6, 8, 12, 16)
"""Members of the ensembles that are measured, as far as the largest goes."""
DRAWS = 200
"""Of the bootstrap over halves."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Compared:
    """What is measured of a work.

    Args:
        singles: methods on one model.
        largest: of the ensembles of each method, how many members it has.
        seeds: of the models that are explained.
        draws: ensembles of EK-FAC that share nothing.
        has_peer: whether kronfluence is measured.
        is_stacked: whether members are trained side by side.
    """

    singles: tuple[str, ...]
    largest: dict[str, int]
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: tuple[int, ...] = (0, 1)
    has_peer: bool = True
    is_stacked: bool = True


BASELINES = ("graddot", "gradcos", "embedding", "loss", "tracin")
SLOW = Compared(("ekfac",), {"ekfac": 8}, (0,), (0,), has_peer=False, is_stacked=False)
COMPARED = {
    "digits-decay": Compared(
        (*BASELINES, "ekfac", "source", "refined"), {"ekfac": 16, "graddot": 8, "refined": 8}
    ),
    "digits-sgd": Compared(("ekfac", "source"), {"ekfac": 16}),
    "digits-adamw": Compared(("ekfac", "source"), {"ekfac": 16}),
    "cnn-small": SLOW,
    "gpt-small": SLOW,
}
SHORT = Compared((*BASELINES, "ekfac", "source"), {"ekfac": 2}, (0,), (0,), has_peer=False)


def main() -> None:
    """One work, or the figure of all."""
    arguments = parse()
    torch.set_num_threads(1)
    path = arguments.out / "ensembles.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if arguments.figure:
        draw(results, HERE.parent / "docs/images/ensembles.png")
        return
    work, plan = WORKS[arguments.work](), PLANS[arguments.work]
    if arguments.short:
        work, plan = shortened(work), Plan(12, 1, together=12)
    bench = Bench.of(work, plan)
    compared = SHORT if arguments.short else COMPARED[arguments.work]
    found = study(bench) if arguments.study else frontier(bench, compared)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.is_file() else {}
    name = f"{work.name}, study" if arguments.study else work.name
    results[name] = found | {"circumstances": circumstances(__file__)}
    path.write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=PLANS, default="digits-decay")
    parser.add_argument("--study", action="store_true", help="the choices of Ensemble")
    parser.add_argument("--figure", action="store_true", help="draws what is in the results")
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


# ---------------------------------------------------------------------------- the problems


def training(work: Work, **changes: Any) -> whence.Training:
    """The recipe of a work."""
    recipe = work.recipe
    options = {
        "optimizer": whence.SGD(momentum=0.9) if recipe.optimizer == "sgd" else "adamw",
        "lr": recipe.rate,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch,
        "weight_decay": recipe.weight_decay,
    }
    return whence.Training(work.build, **options | changes)


@dataclass(frozen=True, eq=False)
class Bench:
    """A work with what models say that were trained on halves.

    Args:
        work: what is trained.
        kept: (halves, N) booleans.
        retrained: (halves, seeds, Q) measurements.
    """

    work: Work
    kept: Array
    retrained: Array

    @classmethod
    def of(cls, work: Work, plan: Plan) -> "Bench":
        """With the truth that is kept in a file, or made."""
        return cls(work, *truth(work, plan))

    @property
    def actual(self) -> Array:
        """(Q, halves) the mean over models of each half."""
        return self.retrained.mean(1).T

    def halved(self) -> whence.Problem:
        """The problem of the members: how halves are trained."""
        recipe = training(self.work, batch_size=2 * self.work.recipe.batch)
        model = recipe.model()
        return whence.make_problem(
            model, self.work.train, loss="cross_entropy", training=recipe, renormalize=True
        )

    def whole(self, seed: int) -> whence.Problem:
        """The problem of one explained model, trained on everything."""
        recipe = training(self.work, seed=seed)
        return whence.make_problem(recipe, self.work.train, loss="cross_entropy")

    def lds(self, tables: Sequence[Array]) -> dict[str, Any]:
        """Mean over queries and tables of the rank correlation with what was left out.

        Args:
            tables: (Q, N) effects of each explained model or ensemble.
        """
        predicted = np.concatenate([values @ ~self.kept.T for values in tables])
        actual = np.tile(self.actual, (len(tables), 1))
        low, high = stats.bootstrap_interval(
            stats.spearman, predicted, actual, over_queries=stats.mean, draws=DRAWS
        )
        found = stats.mean(stats.spearman(predicted, actual))
        return {"LDS": round(found, 4), "interval": [round(low, 3), round(high, 3)]}


# ------------------------------------------------------------------------------ one model


def single(bench: Bench, method: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """A method on one model, for several of them."""
    tables, seconds = [], []
    for seed in seeds:
        problem = bench.whole(seed)
        options = {"measurement": bench.work.measurement, "method": method}
        numbers, scores = timed(partial(whence.explain, problem, bench.work.queries, **options))
        tables.append(scores.values)
        seconds.append(numbers["core seconds"])
    return bench.lds(tables) | {"members": 1, "core seconds": round(float(np.mean(seconds)), 2)}


def by_peer(bench: Bench, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """kronfluence at the best and at the default of its dampings, as its users see it."""
    if not IS_INSTALLED:
        print(MISSING)
        return {}
    found = {}
    for name, damping in DAMPINGS.items():
        runs = [all_by_kronfluence(bench.work, seed)[damping] for seed in seeds]
        seconds = round(float(np.mean([spent for _, spent in runs])), 2)
        numbers = bench.lds([effects for effects, _ in runs])
        found[f"kronfluence EK-FAC, {name}"] = numbers | {"members": 1, "core seconds": seconds}
    return found


# ------------------------------------------------------------------------------- ensembles


def grown(
    bench: Bench, ensemble: whence.Ensemble, draws: Sequence[int], *, is_stacked: bool
) -> dict[str, Any]:
    """An ensemble of every size up to that of a recipe.

    Args:
        bench: the work.
        ensemble: the largest.
        draws: seeds of ensembles that share nothing.
        is_stacked: times the trainings of every size instead of taking a share of the largest.

    Returns:
        Points by size, for both ways to score: "8" by all members, "8, seen" by those that have
        seen an example.
    """
    found = [members(bench, replace(ensemble, seed=draw)) for draw in draws]
    points = {}
    for size in [size for size in SIZES if size <= ensemble.size]:
        seconds = size * float(np.mean([effects.explaining for effects in found]))
        seconds += found[0].training(bench, size, is_stacked=is_stacked)
        told = {"members": size, "core seconds": round(seconds, 2)}
        for name, by_seen in ((f"{size}", False), (f"{size}, seen", True)):
            if by_seen and (size < 4 or ensemble.seeds):
                continue
            means = [effects.mean(size, by_seen=by_seen) for effects in found]
            points[name] = bench.lds(means) | told
    return points


@dataclass(frozen=True, eq=False)
class Effects:
    """What the members of an ensemble say.

    Args:
        tables: (M, Q, N).
        inside: (M, N) who has seen what.
        seeds: (M,) of the trainings.
        fitting: core seconds of all trainings.
        explaining: core seconds of one member, beside its training.
    """

    tables: Array
    inside: torch.Tensor
    seeds: tuple[int, ...]
    fitting: float
    explaining: float

    def mean(self, size: int, *, by_seen: bool) -> Array:
        """(Q, N) the mean over the first members: over all, or those that have seen an example."""
        share = self.inside[:size].numpy() if by_seen else np.ones((size, len(self.inside[0])))
        return (self.tables[:size] * share[:, None]).sum(0) / np.maximum(share.sum(0), 1)

    def training(self, bench: Bench, size: int, *, is_stacked: bool) -> float:
        """Core seconds of the trainings of the first members: timed, or their share of all."""
        if not is_stacked:
            return self.fitting * size / len(self.seeds)
        problem, weights = bench.halved(), self.inside[:size].double()
        spent, _ = timed(partial(problem.retrain, weights, seed=self.seeds[:size]))
        return spent["core seconds"]


def members(bench: Bench, ensemble: whence.Ensemble) -> Effects:
    """Trains the members, and asks one after the other."""
    spent, fitted = timed(partial(ensemble.fit, bench.halved()))
    asking = [timed(partial(asked, bench, fitted, member)) for member in fitted.members]
    return Effects(
        np.stack([scores.values for _, scores in asking]),
        fitted.members.inside,
        fitted.members.seeds,
        spent["core seconds"],
        float(np.mean([numbers["core seconds"] for numbers, _ in asking])),
    )


def asked(bench: Bench, fitted: Any, member: whence.Problem) -> whence.Scores:
    """What one member says, of all examples."""
    method = fitted.method.fit(member).weighing(fitted.problem.weights)
    return method.scores(bench.work.queries, bench.work.measurement)


# --------------------------------------------------------------------------- what is compared


def frontier(bench: Bench, compared: Compared) -> dict[str, Any]:
    """Methods on one model and ensembles of them, with their cost."""
    points = by_peer(bench, compared.seeds) if compared.has_peer else {}
    for name in compared.singles:
        points[name] = told(name, single(bench, name, compared.seeds))
    for name, size in compared.largest.items():
        recipe = whence.Ensemble(name, subsets=size)
        draws = compared.draws if name == "ekfac" else (0,)
        found = grown(bench, recipe, draws, is_stacked=compared.is_stacked)
        points |= {f"{name} over {n}": told(f"{name} over {n}", x) for n, x in found.items()}
    return {"settings": settings(bench, compared.seeds), "methods": points}


def study(bench: Bench) -> dict[str, Any]:
    """The choices of `Ensemble`: shares of the data, other seeds, who scores."""
    recipes = {"all data, other seeds": whence.Ensemble("ekfac", seeds=8)}
    for share in (0.3, 0.5, 0.7, 0.9):
        recipes[f"share {share}"] = whence.Ensemble("ekfac", subsets=8, fraction=share)
    found = {}
    for name, recipe in recipes.items():
        found[name] = grown(bench, recipe, (0,), is_stacked=True)
        told(name, found[name]["8"])
    return {"settings": settings(bench, (0,)), "recipes": found}


def told(name: str, point: dict[str, Any]) -> dict[str, Any]:
    """The same, after it was printed."""
    print(f"{name:28} {point['LDS']:.3f} {point['interval']} {point['core seconds']} s", flush=True)
    return point


def settings(bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    """What was trained, and how often."""
    halves, models, queries = bench.retrained.shape
    plan = PLANS.get(bench.work.name, Plan(halves, models, together=halves))
    return {
        "examples": len(bench.work.train[1]),
        "queries": queries,
        "halves": halves,
        "models for each half": models,
        "ceiling": None if plan.shares_seeds else ceiling(bench.retrained),
        "recipe": vars(bench.work.recipe),
        "seeds of the explained models": list(seeds),
    }


# ---------------------------------------------------------------------------------- figure


def draw(results: dict[str, Any], path: Path) -> None:
    """LDS against cost on the work whose methods are all measured, as a picture."""
    methods = results["digits-decay"]["methods"]
    peers = {name: point for name, point in methods.items() if name.startswith("kronfluence")}
    best = max(peers, key=lambda name: peers[name]["LDS"])
    series = {
        "EK-FAC over halves": curve(methods, r"ekfac over \d+"),
        "whole Gauss-Newton matrix over halves": curve(methods, r"refined over \d+"),
        "gradient products over halves": curve(methods, r"graddot over \d+"),
        "SOURCE, one model": curve(methods, "source"),
        "EK-FAC, one model": curve(methods, "ekfac"),
        "kronfluence EK-FAC, best of four dampings": curve(methods, re.escape(best)),
    }
    block = {"series": series, "x": "core seconds beyond the model", "y": "LDS"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(svg_to_png(standing_alone(str(lines(block))), scale=2))


def curve(methods: dict[str, Any], pattern: str) -> dict[str, list[float]]:
    """The points of the methods whose names are a pattern, by cost, with half their interval."""
    points = [point for name, point in methods.items() if re.fullmatch(pattern, name)]
    return {
        "x": [point["core seconds"] for point in points],
        "y": [point["LDS"] for point in points],
        "error": [(point["interval"][1] - point["interval"][0]) / 2 for point in points],
    }


def standing_alone(svg: str) -> str:
    """The picture with colours and a font of its own instead of those of a page."""
    style = (Path(whence.__file__).parent / "report/static/style.css").read_text()
    light = style.split("@media")[0]
    colors = dict(re.findall(r"(--[a-z0-9-]+):\s*(#[0-9a-fA-F]+)", light))
    svg = svg.replace('"inherit"', '"sans-serif"')
    plain = re.sub(r"var\((--[a-z0-9-]+)\)", lambda found: colors.get(found[1], "#333"), svg)
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', plain)
    size = f'width="{box[1]}" height="{box[2]}"' if box else ""
    opened = plain.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ', 1)
    return opened.replace("><", '><rect width="100%" height="100%" fill="white"/><', 1)


if __name__ == "__main__":
    main()
