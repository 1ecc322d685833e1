"""Sixty-four trainings at once against a loop of the same trainings by `torch.optim`.

Same start, batches, learning rate and weights (random halves of the data); the loop is what anybody
would write. Seconds are those of all cores; of the perceptron, each side's faster run of two.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/retraining_in_bulk.py
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import works
from measuring import circumstances, timed
from torch import Tensor, nn

import whence
from whence.calculus.training import Course

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, eq=False)
class Case:
    """What is trained how often.

    Args:
        build: makes the module.
        train: inputs and targets.
        optimizer: as `Training` takes it.
        theirs: the same of torch, from parameters.
        epochs: passes over the data.
        batch: examples a step.
        lr: learning rate.
        repeats: each side is timed so often, and the fastest counts.
    """

    build: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    optimizer: Any
    theirs: Callable[..., torch.optim.Optimizer]
    epochs: int
    batch: int = 64
    lr: float = 1e-3
    repeats: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="eight runs of few steps")
    parser.add_argument("--work", choices=list(cases()), help="this one, beside earlier numbers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    path, runs = asked.out / "retraining_in_bulk.json", 8 if asked.short else 64
    found = json.loads(path.read_text())["works"] if asked.work and path.exists() else {}
    for name, case in cases().items():
        if asked.work in (None, name):
            found[name] = compare(shortened(case) if asked.short else case, runs)
            print(name, json.dumps(found[name], indent=1))
    result = circumstances(__file__) | {"runs": runs, "works": found}
    asked.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def cases() -> dict[str, Case]:
    """A perceptron for both optimizers, and the larger ones for a single epoch."""
    digits = works.digits("sgd").train
    network = partial(works.perceptron, 64, 64, 32, 10)
    adamw = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    cnn, gpt = works.WORKS["cnn-small"](), works.WORKS["gpt-small"]()
    return {
        "perceptron, AdamW": Case(network, digits, "adamw", adamw, 15, repeats=2),
        "perceptron, fused AdamW": Case(
            network, digits, "adamw", partial(adamw, fused=True), 15, repeats=2
        ),
        "perceptron, SGD": Case(
            network, digits, whence.SGD(momentum=0.9), sgd, 15, lr=0.05, repeats=2
        ),
        "convolutional": Case(cnn.build, cut(cnn.train, 640), "adamw", adamw, 1),
        "transformer": Case(gpt.build, cut(gpt.train, 160), "adamw", adamw, 1, batch=16),
    }


def cut(data: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The first examples."""
    return data[0][:count], data[1][:count]


def shortened(case: Case) -> Case:
    """The same over two batches."""
    return replace(case, train=cut(case.train, 2 * case.batch), epochs=1)


def compare(case: Case, runs: int) -> dict[str, Any]:
    """Seconds of both sides, and how far apart their parameters are."""
    training = whence.Training(
        case.build,
        optimizer=case.optimizer,
        lr=case.lr,
        epochs=case.epochs,
        batch_size=case.batch,
        weight_decay=1e-2 if case.optimizer == "adamw" else 0.0,
    )
    loss = "cross_entropy" if case.train[1].ndim == 1 else mean_over_positions
    problem = whence.make_problem(training.model(), case.train, loss=loss, training=training)
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(runs, len(problem), generator=generator) < 0.5).float()
    course = Course(problem, training)
    (theirs, ours), (loop, bulk) = fastest(
        case.repeats, lambda: looped(case, course, weights), lambda: problem.retrain(weights)
    )
    gap = (bulk.parameters - loop).norm() / (loop - course.start()[0]).norm()
    return {
        "parameters": problem.size,
        "steps": course.steps,
        "loop": theirs,
        "bulk": ours,
        "times as fast, core seconds": round(theirs["core seconds"] / ours["core seconds"], 2),
        "times as fast, clock": round(theirs["seconds"] / ours["seconds"], 2),
        "distance as a share of the way from the start": float(f"{float(gap):.2g}"),
    }


def fastest(repeats: int, *sides: Callable[[], Any]) -> tuple[list[dict[str, float]], list[Any]]:
    """Numbers of the fastest run of each side, which take turns, and what they gave."""
    rounds = [[timed(side) for side in sides] for _ in range(repeats)]
    numbers = [
        min((found[side][0] for found in rounds), key=lambda times: times["core seconds"])
        for side in range(len(sides))
    ]
    return numbers, [found for _, found in rounds[-1]]


def mean_over_positions(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a sequence."""
    return F.cross_entropy(outputs, targets, reduction="none").mean(1)


def looped(case: Case, course: Course, weights: Tensor) -> Tensor:
    """(M, P) by one training after the other."""
    return torch.stack([trained(case, course, row) for row in weights])


def trained(case: Case, course: Course, weights: Tensor) -> Tensor:
    """(P,) as anybody would write it."""
    model, (x, y) = course.training.model(), case.train
    optimizer = case.theirs(model.parameters())
    for step in range(course.steps):
        rows = course.positions(step)
        losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
        losses = losses if losses.ndim == 1 else losses.mean(1)
        optimizer.zero_grad()
        (weights[rows] * losses).mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


if __name__ == "__main__":
    main()
