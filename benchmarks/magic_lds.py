"""How well derivatives through training predict training again, and what they cost.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/magic_lds.py --work tanh --part own        # or relu, cnn, gpt
    python benchmarks/magic_lds.py --work tanh --part across     # other seeds, half of the data
    python benchmarks/magic_lds.py --work relu --part masks      # own seed, averaged over masks
    python benchmarks/magic_lds.py --work tanh --part cost       # or cnn; cost-longer
    python benchmarks/magic_lds.py --work tanh --part memory

The score is the linear datamodeling score of `whence.verify` over random subsets. Trainings and
their number were fixed before any score was looked at. What was trained is kept under `runs/`, so
that a run that was stopped goes on.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import works
from measuring import circumstances, timed
from torch import Tensor, nn

import whence
from whence.calculus.gradients import measurement_gradients
from whence.calculus.replay import record, replay
from whence.calculus.training import Course
from whence.core.problem import Problem
from whence.core.scores import Scores

RESULTS = Path(__file__).parent / "results"
FRESH = 1000
"""First seed of the trainings that stand for the procedure; those explained have others."""

SMOOTH = whence.Adam(is_decoupled=True, eps_root=1e-6)
"""Of the larger works: what `magic_smoothness.py` found on perceptrons to be smoother than zero, at
no loss of accuracy."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What is trained, and how much is asked.

    Args:
        build: makes the module.
        train: inputs and targets.
        queries: the same of what is explained.
        measurement: on them.
        options: of the `Training`.
        subsets: random subsets of each share.
        shares: of the data that subsets keep, for the own seed.
    """

    build: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    options: dict[str, Any]
    measurement: str = "margin"
    subsets: int = 64
    shares: tuple[float, ...] = (0.5, 0.9, 0.99)

    def problem(self) -> Problem:
        """Trained, or found again among what was trained before."""
        cache = works.RUNS / "magic"
        training = whence.Training(self.build, cache=cache, **self.options)
        loss: Any = "cross_entropy" if self.measurement == "margin" else sequence_loss
        return whence.make_problem(training, self.train, loss=loss)

    def asking(self, count: int) -> "Setting":
        """The same with the first few of its queries."""
        return replace(self, queries=(self.queries[0][:count], self.queries[1][:count]))

    @property
    def measured(self) -> Any:
        return "margin" if self.measurement == "margin" else log_probability


def sequence_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the characters of each sequence."""
    return F.cross_entropy(outputs, targets, reduction="none").mean(1)


def log_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(outputs, targets, reduction="none").sum(1)


def perceptron(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """64-64-32-10."""
    layers: list[nn.Module] = []
    for before, after in pairwise((64, 64, 32, 10)):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def smooth_convolutional() -> nn.Sequential:
    """The network of `works.convolutional` without corners: GELU and mean pooling."""
    swaps = {nn.ReLU: nn.GELU, nn.MaxPool2d: partial(nn.AvgPool2d, 2)}
    return nn.Sequential(
        *(swaps[type(m)]() if type(m) in swaps else m for m in works.convolutional())
    )


def settings() -> dict[str, Callable[[], Setting]]:
    adamw = {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine"}
    small = adamw | {"epochs": 15, "batch_size": 64, "weight_decay": 1e-2}

    def digits(activation: Callable[[], nn.Module]) -> Setting:
        work = works.digits("adamw")
        asked = (work.queries[0][:100], work.queries[1][:100])
        return Setting(partial(perceptron, activation), work.train, asked, small)

    def cnn() -> Setting:
        work = works.WORKS["cnn-small"]()
        asked = (work.queries[0][:8], work.queries[1][:8])
        options = small | {"optimizer": SMOOTH, "epochs": 3}
        return Setting(smooth_convolutional, work.train, asked, options, subsets=24, shares=(0.99,))

    def gpt() -> Setting:
        work = works.gpt(small=True)
        asked = (work.queries[0][:4], work.queries[1][:4])
        options = adamw | {"optimizer": SMOOTH, "epochs": 2, "batch_size": 16, "weight_decay": 0.1}
        return Setting(
            work.build, work.train, asked, options, "log_prob", subsets=24, shares=(0.99,)
        )

    return {
        "tanh": lambda: digits(nn.Tanh),
        "relu": lambda: digits(nn.ReLU),
        "cnn": cnn,
        "gpt": gpt,
    }


# ------------------------------------------------------------------------------ parts


def own(setting: Setting) -> dict[str, Any]:
    """The own seed: what if examples had not been in this very run?"""
    problem = setting.problem()
    numbers, scores = timed(lambda: _explained(setting, problem, whence.MAGIC()))
    found: dict[str, Any] = {
        "explain": numbers,
        "metasmoothness": scores.report["metasmoothness"],
        "steps": scores.report["steps"],
    }
    for share in setting.shares:
        check = _verified(setting, problem, scores, share)
        found[f"LDS, {1 - share:.0%} dropped"] = _lds(check)
    return found


def masks(setting: Setting) -> dict[str, Any]:
    """The own seed again, the derivative averaged over eight masks."""
    setting = setting.asking(30)
    problem = setting.problem()
    found: dict[str, Any] = {}
    for share in setting.shares[-2:]:
        method = whence.MAGIC(subsets=8, fraction=share, own_seed=True, directions=0)
        scores = _explained(setting, problem, method)
        found[f"LDS, {1 - share:.0%} dropped"] = _lds(_verified(setting, problem, scores, share))
    return found


def across(setting: Setting) -> dict[str, Any]:
    """Other seeds, half of the data: what is an example worth to the training procedure?"""
    setting = setting.asking(30)
    problem = setting.problem()
    found: dict[str, Any] = {}
    check = None
    for name, method in {
        "one full run": whence.MAGIC(directions=0),
        "10 half-subset runs": whence.MAGIC(subsets=10, directions=0),
    }.items():
        scores = _explained(setting, problem, method)
        if check is None:
            check = _verified(setting, problem, scores, 0.5, seed=FRESH, seeds=3)
        found[name] = _lds(check.against(scores))
    return found


def cost(setting: Setting, times: int = 1) -> dict[str, Any]:
    """In units of one training as anybody would write it, by `torch.optim`."""
    epochs = times * setting.options["epochs"]
    setting = replace(setting, options=setting.options | {"epochs": epochs})
    problem = setting.problem()
    course = Course(problem, problem.training)
    unit = _fastest(partial(_by_hand, course))["core seconds"]
    found: dict[str, Any] = {"steps": course.steps, "core seconds of a training": unit}
    for count in (1, len(setting.queries[1][:64])):
        asked = setting.asking(count).queries
        for name, method in {
            "explain": whence.MAGIC(directions=0),
            "explain, with metasmoothness": whence.MAGIC(),
        }.items():
            ask = partial(whence.explain, problem, asked, measurement=setting.measured)
            numbers = _fastest(partial(ask, method=method), 3 if count == 1 else 1)
            found[f"{name}, {count} queries"] = numbers | {
                "trainings": round(numbers["core seconds"] / unit, 2)
            }
    return found


def _fastest(work: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    runs = [timed(work)[0] for _ in range(repeats)]
    return min(runs, key=lambda numbers: numbers["core seconds"])


def memory(setting: Setting) -> dict[str, Any]:
    """Peak memory of a replay that keeps few states, against keeping all, at three lengths."""
    found: dict[str, Any] = {}
    for epochs in (15, 60, 240):
        longer = replace(setting, options=setting.options | {"epochs": epochs})
        problem = longer.problem()
        course = Course(problem, problem.training)
        for name, budget in {"every state": 2**40, "few states": 0}.items():
            numbers, kept = timed(partial(_replayed, longer, course, budget))
            found[f"{course.steps} steps, {name}"] = numbers | {"states kept": kept}
    return found


def _replayed(setting: Setting, course: Course, budget: int) -> int:
    """Goes back through a training for one query; how many states were kept for it."""
    recording = record(course, torch.ones(len(course.problem)), memory=budget)
    problem = recording.problem
    asked, measured = problem.queries(setting.queries), problem.measurement(setting.measured)
    replay(recording, measurement_gradients(problem, measured, asked)[1][:1])
    return len(recording.kept)


def _explained(setting: Setting, problem: Problem, method: Any) -> Scores:
    return whence.explain(problem, setting.queries, measurement=setting.measured, method=method)


def _verified(
    setting: Setting, problem: Problem, scores: Scores, share: float, **seeds: int
) -> Any:
    options: dict[str, Any] = {"seeds": 1} | seeds
    return whence.verify(problem, scores, subsets=setting.subsets, fraction=share, **options)


def _lds(check: Any) -> dict[str, Any]:
    low, high = check.lds_interval
    return {"lds": round(check.lds, 4), "interval": [round(low, 4), round(high, 4)]}


def _by_hand(course: Course) -> None:
    """The same training by `torch.optim`."""
    training, problem = course.training, course.problem
    model, loss = training.model(), problem.loss
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    for step in range(course.steps):
        batch = course.batch(step)
        optimizer.param_groups[0]["lr"] = course.lr(step)
        optimizer.zero_grad()
        loss(model(batch.inputs), batch.targets).mean().backward()
        optimizer.step()


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "own": own,
    "masks": masks,
    "across": across,
    "cost": cost,
    "cost-longer": partial(cost, times=2),
    "memory": memory,
}


def shortened(setting: Setting) -> Setting:
    """A minute's work for the tests."""
    rows = slice(0, 300)
    return replace(
        setting,
        train=(setting.train[0][rows], setting.train[1][rows]),
        queries=(setting.queries[0][:8], setting.queries[1][:8]),
        options=setting.options | {"epochs": 6},
        subsets=16,
        shares=(0.9,),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=list(settings()), required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--short", action="store_true", help="few examples, few steps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    setting = settings()[asked.work]()
    found = PARTS[asked.part](shortened(setting) if asked.short else setting)
    path = asked.out / "magic_lds.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result.setdefault(asked.work, {})[asked.part] = circumstances(__file__) | found
    asked.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
