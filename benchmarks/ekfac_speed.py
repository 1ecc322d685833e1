"""EK-FAC of whence and of kronfluence on the same models: seconds, peak memory, agreement.

    mlp       784-512-256-10 on 10,000 images of MNIST: fit and 200 queries
    mlp-many  the same, and 2,000 queries from the same fit
    cnn       55,338 parameters on 4,000 images: fit and 200 queries
    resnet    ResNet-20 on 4,000 images of CIFAR-10: fit and 100 queries
    gpt       four layers, width 256, context 128, 2,000 sequences: fit and 50 queries
    resnet-part, gpt-part    the same on 1,000 images and on 512 sequences

Each side runs in a process of its own, with one thread, from a model and data that are already in
memory and after a warm-up on a few examples. Peak memory is what the process takes above that. The
unit of cost is one training epoch: forward and backward over the same data in the same batches.
Agreement compares scores with one damping that is a number for both; the seconds of whence are
those of its defaults. The peer draws one label for each example, so that two of its own runs
differ as well: `ekfac_agreement.py` takes that apart.

    python benchmarks/ekfac_speed.py --work mlp
    python benchmarks/ekfac_speed.py --work mlp --only whence        beside the peer's last numbers
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ekfac_lds import make_problem, mean_spearman
from measuring import circumstances, timed
from peers import IS_INSTALLED, MISSING, Kronfluence, covered
from torch import nn
from works import RUNS, WORKS, Work, mean_loss, mlp, perceptron, trained

import whence
from whence.numerics import stats

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """How a work is measured.

    Args:
        batch: examples a batch of the peer and of the epoch: its fastest of several, or near it.
        damping: of the scores that are compared; near a tenth of the mean eigenvalue.
        together: queries whose gradients the peer holds at once.
        many: a further number of queries that are scored without fitting again.
        examples: how many of the training examples there are; 0 for all.
    """

    batch: int
    damping: float
    together: int = 200
    many: int = 0
    examples: int = 0


TASKS = {
    "mlp": Task(batch=128, damping=1e-4),
    "mlp-many": Task(batch=128, damping=1e-4, many=2000),
    "cnn": Task(batch=256, damping=1e-3),
    "resnet": Task(batch=128, damping=1e-3),
    "resnet-part": Task(batch=128, damping=1e-3, examples=1000),
    "gpt": Task(batch=32, damping=1e-3),
    "gpt-part": Task(batch=32, damping=1e-3, examples=512),
    "short": Task(batch=64, damping=1e-3, many=40),
}
SIDES = ("epoch", "kronfluence", "whence")


def main() -> None:
    """Both sides of one work; writes its part of the results."""
    arguments = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # about names that the peer takes from torch
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.work, arguments.scratch)))
        return
    name = "short" if arguments.short else arguments.work
    path = arguments.out / "ekfac_speed.json"
    found = measure(name, arguments.only, read(path).get(name, {}))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(read(path) | {name: found}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The results so far, by work."""
    return json.loads(path.read_text()) if path.is_file() else {}


def parse() -> argparse.Namespace:
    """The command line; a side in a process of its own calls itself with --part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=TASKS, default="mlp")
    parser.add_argument("--only", choices=("kronfluence", "whence"), help="measure one side again")
    parser.add_argument("--short", action="store_true", help="a few seconds on a small network")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--part", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str, only: str | None, before: dict[str, Any]) -> dict[str, Any]:
    """What each side needs, and ratios; a side that is not measured now keeps its numbers."""
    scratch = RUNS / "ekfac_speed" / name
    scratch.mkdir(parents=True, exist_ok=True)
    build(name)  # trained now, so that no side counts it
    sides = [side for side in SIDES if only in (None, side) or side == "epoch"]
    if not IS_INSTALLED and "kronfluence" in sides:
        print(MISSING)
        sides.remove("kronfluence")
    if not hasattr(whence, "EKFAC") and "whence" in sides:
        sides.remove("whence")
    found = {side: before[side] for side in SIDES if side in before}
    for side in sides:
        found[side] = (PARTS[side] if name == "short" else alone(side))(name, scratch)
        print(f"{name} {side}: {json.dumps(found[side])}", flush=True)
    return {
        "settings": settings(name),
        **found,
        "measured in this run": sides,
        **ratios(found),
        "agreement": agreement(scratch),
        "circumstances": circumstances(__file__),
    }


def alone(side: str) -> Callable[[str, Path], dict[str, Any]]:
    """The same in a process of its own: nothing is warm, no memory is left over."""

    def call(name: str, scratch: Path) -> dict[str, Any]:
        command = [sys.executable, __file__, "--part", side, "--work", name, "--scratch", scratch]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(answer.stdout.splitlines()[-1])

    return call


def build(name: str) -> tuple[Work, nn.Module, Task]:
    """Work, trained model, and how they are measured."""
    task = TASKS[name]
    work = shortened() if name == "short" else WORKS[name.split("-")[0]]()
    if task.examples:
        work = replace(work, name=name, train=tuple(part[: task.examples] for part in work.train))
    return replace(work, batch=task.batch), trained(work), task


def shortened() -> Work:
    """A small network on a part of the data, for tests."""
    work = mlp(20)
    train = (work.train[0][:300], work.train[1][:300])
    build = partial(perceptron, 784, 16, 10)
    return replace(work, name="short", train=train, build=build)


# ------------------------------------------------------------------------- what is measured


def epoch(name: str, scratch: Path) -> dict[str, Any]:
    """Forward and backward over the training data, the fastest of three."""
    work, model, _ = build(name)

    def once() -> None:
        for inputs, targets in zip(*(part.split(work.batch) for part in work.train), strict=True):
            model.zero_grad()
            mean_loss(model(inputs), targets).backward()

    return min((timed(once)[0] for _ in range(3)), key=lambda found: found["core seconds"])


def kronfluence(name: str, scratch: Path) -> dict[str, Any]:
    """Its fit and its scores, at its full rank; with many queries also at a rank of 32."""
    work, model, task = build(name)
    with TemporaryDirectory() as folder:
        few = Kronfluence(few_of(work), model, f"{folder}/few", batch=4)  # imports, allocations
        few.fit()
        few.scores(task.damping)
        peer = Kronfluence(work, model, folder, batch=work.batch)
        found = {"fit": timed(peer.fit)[0]}
        score = partial(peer.scores, task.damping, together=task.together)
        found["scores"], effects = timed(score)
        np.save(scratch / "kronfluence.npy", effects)
        if task.many:
            peer.work = with_queries(work, task.many)
            found["many queries"], effects = timed(score)
            found["many queries, rank 32"], rough = timed(partial(score, low_rank=32))
            found["many queries, rank 32"]["rank correlation with full rank"] = correlations(
                rough, effects
            )["rank"]
    return found


def ours(name: str, scratch: Path) -> dict[str, Any]:
    """Fit and scores by the defaults; then, not timed, with the damping of the comparison."""
    work, model, task = build(name)
    whence.explain(
        make_problem(few_of(work), model), few_of(work).queries, method=recipe()
    )  # imports, allocations
    problem = make_problem(work, model)
    found: dict[str, Any] = {}
    found["fit"], fitted = timed(lambda: whence.fit(problem, recipe()))
    found["scores"], scores = timed(lambda: fitted.scores(work.queries, work.measurement))
    found["report"] = {
        key: value
        for key, value in scores.report.items()
        if isinstance(value, int | float | str | bool) or key == "warnings"
    }
    if task.many:
        many = with_queries(work, task.many).queries
        found["many queries"], _ = timed(lambda: fitted.scores(many, work.measurement))
    same = make_problem(work, model, parameters=covered(model))
    scores = whence.explain(
        same, work.queries, measurement=work.measurement, method=recipe(damping=task.damping)
    )
    np.save(scratch / "whence.npy", scores.values)
    return found


def recipe(**options: Any) -> Any:
    """EK-FAC with its defaults, but for what is given."""
    return whence.Influence(whence.EKFAC(**options), removal="first_order")


def few_of(work: Work) -> Work:
    """Four examples and two queries."""
    train, queries = ((x[:n], y[:n]) for (x, y), n in ((work.train, 4), (work.queries, 2)))
    return replace(work, train=train, queries=queries)


def with_queries(work: Work, count: int) -> Work:
    """The work with more queries; those of MNIST come from an order that is always the same."""
    return replace(work, queries=mlp(count).queries)


PARTS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "epoch": epoch,
    "kronfluence": kronfluence,
    "whence": ours,
}


# -------------------------------------------------------------------------------- numbers


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Kronfluence over whence, and both in training epochs; in core seconds."""
    numbers: dict[str, Any] = {"training epochs": {}}
    costs = {}
    for side in ("kronfluence", "whence"):
        if side in found:
            costs[side] = {
                "fit and scores": sum(
                    found[side][part]["core seconds"] for part in ("fit", "scores")
                ),
                **{
                    part: found[side][part]["core seconds"]
                    for part in found[side]
                    if part not in ("fit", "scores", "report")
                },
            }
            unit = found["epoch"]["core seconds"]
            numbers["training epochs"][side] = round(costs[side]["fit and scores"] / unit, 1)
            numbers[f"peak MiB of {side}"] = max(
                found[side][part]["peak MiB"] for part in ("fit", "scores")
            )
    if len(costs) == 2:
        theirs, own = costs["kronfluence"], costs["whence"]
        numbers["times faster"] = {
            part: round(theirs[part] / own[part.split(",")[0]], 2) for part in theirs
        }
    return numbers


def agreement(scratch: Path) -> dict[str, float] | None:
    """Of the two tables of scores with one damping, over the parameters that the peer covers."""
    paths = [scratch / f"{side}.npy" for side in ("kronfluence", "whence")]
    return correlations(*map(np.load, paths)) if all(path.is_file() for path in paths) else None


def correlations(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Of two tables: all numbers together, and by query."""
    by_query = stats.pearson(first, second)
    return {
        "all": round(float(np.corrcoef(first.ravel(), second.ravel())[0, 1]), 4),
        "median query": round(float(np.median(by_query)), 4),
        "worst query": round(float(by_query.min()), 4),
        "rank": round(float(mean_spearman(first, second)[0]), 4),
        "slope": round(float((first * second).sum() / (second**2).sum()), 4),
    }


def settings(name: str) -> dict[str, Any]:
    """Sizes and options."""
    work, model, task = build(name)
    names = covered(model)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    return {
        "examples": len(work.train[1]),
        "queries": len(work.queries[1]),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "of which kronfluence covers": sum(sizes[key] for key in names),
        "measurement": work.measurement,
    } | vars(task)


if __name__ == "__main__":
    main()
