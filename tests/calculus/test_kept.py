"""A training is found again where nothing has changed; a killed one goes on to the same bits."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import whence
from whence.calculus import bulk, kept
from whence.calculus.optimizers import SGD, Adam
from whence.calculus.training import Course, Training
from whence.core.problem import Problem

N = 24


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def other_network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def elsewhere() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    return model


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 4, generator=generator), torch.randint(3, (N,), generator=generator)


def problem_of(
    folder: Path | None, *, examples: object = None, settings: dict | None = None, **options: object
) -> Problem:
    plain = {"init": network, "lr": 0.05, "epochs": 4, "batch_size": 8, "cache": folder}
    training = Training(**plain | (settings or {}))
    plain_options = {"loss": "cross_entropy", "training": training}
    return whence.make_problem(training.model(), examples or data(), **plain_options | options)


def some_weights(runs: int) -> Tensor:
    return (torch.rand(runs, N, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def reused(problem: Problem, weights: Tensor, seed: int = 0) -> int:
    return problem.retrain(weights, seed=seed).report["reused"]


def test_what_was_trained_is_found_again(tmp_path: Path) -> None:
    weights = some_weights(3)
    first = problem_of(tmp_path).retrain(weights)
    again = problem_of(tmp_path).retrain(weights.flip(0))
    assert (first.report["reused"], again.report["reused"]) == (0, 3)
    assert torch.equal(again.parameters.flip(0), first.parameters)
    assert torch.equal(first.parameters, problem_of(None).retrain(weights).parameters)


def test_trainings_of_one_seed_are_found_among_those_of_many(tmp_path: Path) -> None:
    weights, problem = some_weights(3), problem_of(tmp_path)
    alone = problem.retrain(weights[:2], seed=1)
    mixed = problem.retrain(weights[[2, 0, 1, 0]], seed=[1, 1, 1, 2])
    assert mixed.report["reused"] == 2
    assert torch.equal(mixed.parameters[1:3], alone.parameters)
    assert not torch.equal(mixed.parameters[3], mixed.parameters[1])
    assert reused(problem, weights[:1], seed=2) == 1


def test_only_rows_that_are_new_are_trained_and_equal_ones_once(tmp_path: Path) -> None:
    weights = some_weights(3)
    problem = problem_of(tmp_path)
    problem.retrain(weights[:2])
    found = problem.retrain(weights[[0, 2, 1, 2]])
    assert found.report["reused"] == 2
    assert len(list(tmp_path.iterdir())) == 3
    assert torch.equal(found.parameters[1], found.parameters[3])


def louder(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def much_louder(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.2 * torch.randn(inputs.shape, generator=generator)


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy
    return loss(outputs, targets, reduction="none", label_smoothing=0.1)


CHANGES: dict[str, Callable[[Path], Problem]] = {
    "inputs": lambda at: problem_of(at, examples=(data()[0] * 1.001, data()[1])),
    "labels": lambda at: problem_of(at, examples=(data()[0], data()[1].flip(0))),
    "ids": lambda at: problem_of(at, ids=[f"example {place}" for place in range(N)]),
    "base weights": lambda at: problem_of(at, sample_weight=[2.0] + [1.0] * (N - 1)),
    "loss": lambda at: problem_of(at, loss=smoothed),
    "renormalize": lambda at: problem_of(at, renormalize=True),
    "precision": lambda at: problem_of(at).to(dtype=torch.float64),
    "seed": lambda at: problem_of(at, settings={"seed": 1}),
    "model": lambda at: problem_of(at, settings={"init": other_network}),
    "start": lambda at: problem_of(at, settings={"init": elsewhere}),
    "learning rate": lambda at: problem_of(at, settings={"lr": 0.051}),
    "schedule": lambda at: problem_of(at, settings={"schedule": "linear"}),
    "epochs": lambda at: problem_of(at, settings={"epochs": 5}),
    "batch size": lambda at: problem_of(at, settings={"batch_size": 12}),
    "weight decay": lambda at: problem_of(at, settings={"weight_decay": 0.01}),
    "clip": lambda at: problem_of(at, settings={"clip": 10.0}),
    "optimizer": lambda at: problem_of(at, settings={"optimizer": "sgd"}),
    "betas": lambda at: problem_of(at, settings={"optimizer": Adam(betas=(0.9, 0.99))}),
    "epsilon": lambda at: problem_of(at, settings={"optimizer": Adam(eps=1e-6)}),
    "momentum": lambda at: problem_of(at, settings={"optimizer": SGD(momentum=0.9)}),
    "more momentum": lambda at: problem_of(at, settings={"optimizer": SGD(momentum=0.91)}),
    "nesterov": lambda at: problem_of(at, settings={"optimizer": SGD(momentum=0.9, nesterov=True)}),
    "augmentation": lambda at: problem_of(at, settings={"augment": louder}),
    "more augmentation": lambda at: problem_of(at, settings={"augment": much_louder}),
}


def test_nothing_else_is_ever_taken_for_it(tmp_path: Path) -> None:
    problems = [problem_of(tmp_path), *(make(tmp_path) for make in CHANGES.values())]
    recipes = [kept.recognised(Course(problem, problem.training)) for problem in problems]
    names = ["as it was", *CHANGES]
    for place, recipe in enumerate(recipes):
        assert recipes.index(recipe) == place, (names[place], names[recipes.index(recipe)])
    again = problem_of(tmp_path)
    assert kept.recognised(Course(again, again.training)) == recipes[0]
    assert kept.recognised(Course(again, again.training, seed=1)) != recipes[0]


def test_a_constant_that_shows_nowhere_but_in_the_code_of_an_optimizer_counts(
    tmp_path: Path,
) -> None:
    @dataclass(frozen=True)
    class Odd(SGD):
        scale: float = 1.0

        def step(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> Tensor:
            return super().step(state, self.scale * gradient, lr=lr, count=count)

    first, second = (
        problem_of(tmp_path, settings={"optimizer": Odd(scale=scale)}) for scale in (1.0, 1.1)
    )
    assert kept.recognised(Course(first, first.training)) != kept.recognised(
        Course(second, second.training)
    )


class Stop(Exception):
    """Stands for whatever ends a program."""


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ends the training after some of its steps, each of which has been saved."""
    whole = bulk.Group.steps

    def some(group: bulk.Group, **options: object) -> Iterator:
        for found in whole(group, **options):
            if found[0] == after:
                raise Stop
            yield found

    monkeypatch.setattr(kept, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(bulk.Group, "steps", some)


@pytest.mark.parametrize("calls", [0, 10**9], ids=["with graphs", "without graphs"])
@pytest.mark.parametrize("optimizer", ["adamw", SGD(momentum=0.9)])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, optimizer: object
) -> None:
    monkeypatch.setattr(bulk, "_CALLS_OF_A_GRAPH", calls)
    weights, settings = some_weights(3), {"optimizer": optimizer, "augment": louder}
    expected = problem_of(None, settings=settings).retrain(weights).parameters
    problem = problem_of(tmp_path, settings=settings)
    with monkeypatch.context() as patch:
        stopping(patch, after=8)
        with pytest.raises(Stop):
            problem.retrain(weights)
    (interrupted,) = tmp_path.iterdir()
    assert "interrupted" in interrupted.name

    made: list[int] = []
    batch = Course.batch
    monkeypatch.setattr(Course, "batch", lambda course, at: (made.append(at), batch(course, at))[1])
    assert torch.equal(problem.retrain(weights).parameters, expected)
    assert made[-5:] == [7, 8, 9, 10, 11]  # what came before was not run again
    assert not any("interrupted" in path.name for path in tmp_path.iterdir())


def test_groups_that_are_done_are_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = some_weights(5)
    size = problem_of(None).size
    settings = {"memory": 2 * 4 * 11 * size}  # two trainings with AdamW side by side
    problem = problem_of(tmp_path, settings=settings)
    expected = problem_of(None, settings=settings).retrain(weights).parameters
    with monkeypatch.context() as patch:
        whole, begun = bulk.Group.steps, []

        def some(group: bulk.Group, **options: object) -> Iterator:
            begun.append(len(group.rows))
            if len(begun) == 3:
                raise Stop
            return whole(group, **options)

        patch.setattr(bulk.Group, "steps", some)
        with pytest.raises(Stop):
            problem.retrain(weights)
        assert begun == [2, 2, 1]
    found = problem.retrain(weights)
    assert found.report["reused"] == 4
    assert torch.equal(found.parameters, expected)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_kept
from pathlib import Path
from whence.calculus import bulk, kept

kept.SAVE_SECONDS = -1.0
whole = bulk.Group.steps

def told(group, **options):
    for found in whole(group, **options):
        yield found
        print(found[0], flush=True)
        if found[0] == 6:
            sys.stdin.read()  # until it is killed

bulk.Group.steps = told
test_kept.problem_of(Path({folder!r})).retrain(test_kept.some_weights(3))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_another_goes_on_with(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 6:
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL
    (interrupted,) = tmp_path.iterdir()
    assert interrupted.name.endswith(".interrupted.npz")
    weights = some_weights(3)
    expected = problem_of(None).retrain(weights).parameters
    assert torch.equal(problem_of(tmp_path).retrain(weights).parameters, expected)
    assert not interrupted.exists()


def test_no_folder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reused(problem_of(None), some_weights(2)) == 0
    assert reused(replace(problem_of(None)), some_weights(2), seed=1) == 0
    assert list(tmp_path.iterdir()) == []
