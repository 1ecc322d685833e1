"""Runs side by side are the runs one by one, however they are grouped, stacked and traced."""

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence
from whence.calculus import bulk
from whence.calculus.training import Course, Training
from whence.core.problem import Problem
from whence.errors import BadArgument, Diverged, TooLarge

N = 20


class Branching(nn.Module):
    """Goes another way where its numbers say so: there is no graph of it, and no vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h if float(h.detach().sum()) > 0 else 2 * h


class Attending(nn.Module):
    """Attention over four positions of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(1, 6), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x.unsqueeze(-1)).unsqueeze(1).split(2, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean((1, 2)))


class Folding(nn.Module):
    """Four means of many inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (4, -1)).mean(2)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    shape = nn.Unflatten(1, (1, 2, 2))
    return nn.Sequential(shape, nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3))


MODELS = [perceptron, convolutional, Attending, Branching]


def problem_of(
    build: Callable[[], nn.Module] = perceptron, *, features: int = 4, **options: object
) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, features, generator=generator).double()
    y = torch.randint(3, (N,), generator=generator)
    settings = {"lr": 0.05, "epochs": 2, "batch_size": 8} | options
    training = Training(lambda: build().double(), **settings)
    return whence.make_problem(training.model(), (x, y), loss="cross_entropy", training=training)


def some_weights(runs: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(runs, N, generator=generator) > 0.5).double()


def one_by_one(courses: Sequence[Course], weights: Tensor) -> Tensor:
    """(M, S, P) by single steps, which know no stacks and no graphs."""
    ends = []
    for course, row in zip(courses, weights, strict=True):
        state = course.start()
        for at in range(course.steps):
            batch = course.batch(at)
            state = course.step(state, row[batch.positions], batch=batch, at=at)
        ends.append(state)
    return torch.stack(ends)


def courses_of(problem: Problem, seeds: Sequence[int]) -> list[Course]:
    made = {seed: Course(problem, problem.training, seed) for seed in seeds}
    return [made[seed] for seed in seeds]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("calls", [0, 10**9], ids=["with graphs", "without graphs"])
@pytest.mark.parametrize("seeds", [[0] * 5, [3, 1, 1, 0, 2]], ids=["one seed", "own seeds"])
def test_runs_side_by_side_are_the_runs_one_by_one(
    build: Callable[[], nn.Module], calls: int, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_CALLS_OF_A_GRAPH", calls)
    problem = problem_of(build, weight_decay=0.1, clip=1.0, schedule="cosine")
    courses, weights = courses_of(problem, seeds), some_weights(5)
    found = bulk.run(courses, weights)
    # Rounding of float64, which six steps carry on.
    assert torch.allclose(found, one_by_one(courses, weights), rtol=1e-9, atol=1e-12)
    assert torch.equal(found, bulk.run(courses, weights))


def jittered(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


def test_every_seed_augments_its_own_batches() -> None:
    problem = problem_of(augment=jittered)
    courses, weights = courses_of(problem, [0, 1, 1]), some_weights(3)
    expected = one_by_one(courses, weights)
    assert torch.allclose(bulk.run(courses, weights), expected, rtol=1e-9, atol=1e-12)


def test_inputs_without_targets_go_side_by_side_as_well() -> None:
    x = {"a": torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()}
    training = Training(lambda: nn.Linear(4, 3).double(), lr=0.05, epochs=2, batch_size=8)
    problem = whence.make_problem(
        training.model(),
        (x, None),
        loss=lambda outputs, targets: outputs.square().sum(1),
        forward=lambda model, inputs: model(inputs["a"]),
        training=training,
    )
    courses, weights = courses_of(problem, [0, 1, 2]), some_weights(3)
    expected = one_by_one(courses, weights)
    assert torch.allclose(bulk.run(courses, weights), expected, rtol=1e-9, atol=1e-12)


def test_stacks_of_one_seed_share_a_batch_and_mixed_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problem_of()
    courses, weights = courses_of(problem, [0] * 5 + [1] * 4), some_weights(9)
    monkeypatch.setattr(bulk, "stack_size", lambda courses: 3)
    made: list[int] = []
    batch = Course.batch
    monkeypatch.setattr(Course, "batch", lambda c, at: (made.append(c.seed), batch(c, at))[1])
    found = bulk.run(courses, weights)
    assert made == [0, 1] * courses[0].steps
    monkeypatch.undo()
    assert torch.allclose(found, one_by_one(courses, weights), rtol=1e-9, atol=1e-12)


def test_neither_groups_nor_stacks_change_more_than_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = problem_of(optimizer="sgd")
    courses, weights = [Course(whole, whole.training)] * 7, some_weights(7)
    places = [2, courses[0].steps]
    expected = bulk.states(courses, weights, places)
    monkeypatch.setattr(bulk, "_STACK_BYTES", 2 * 8 * (8 * whole.activation_size + 100))
    assert 1 < bulk.stack_size(courses) < 7
    tight = problem_of(optimizer="sgd", memory=3 * 8 * 7 * whole.size)
    courses = [Course(tight, tight.training)] * 7
    assert bulk.group_size(courses[0]) == 4
    found = bulk.states(courses, weights, places)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_stacks_are_even_and_no_larger_than_the_cache() -> None:
    problem = problem_of()
    assert bulk.stack_size([Course(problem, problem.training)] * 9) == 9
    wide = problem_of(lambda: nn.Sequential(nn.Linear(4, 50_000), nn.Tanh(), nn.Linear(50_000, 3)))
    assert bulk.stack_size([Course(wide, wide.training)] * 9) == 1
    folded = problem_of(lambda: nn.Sequential(Folding(), nn.Linear(4, 3)), features=4 * 50_000)
    assert bulk.stack_size(courses_of(folded, [0] * 9)) == 9
    assert bulk.stack_size(courses_of(folded, range(9))) == 1  # each has inputs of its own
    branching = problem_of(Branching)
    assert bulk.stack_size([Course(branching, branching.training)] * 9) == 1


def test_a_group_that_does_not_fit_is_halved() -> None:
    tried: list[range] = []

    def work(rows: range) -> list[int]:
        tried.append(rows)
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return list(rows)

    assert list(chain(*bulk.in_groups(work, 7, 6))) == list(range(7))
    assert [len(rows) for rows in tried] == [6, 3, 1, 1, 1, 1, 1, 1, 1]


def test_what_never_fits_and_what_is_no_lack_of_memory_is_told() -> None:
    def starved(rows: range) -> None:
        raise MemoryError("no room")

    def broken(rows: range) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(TooLarge, match="no room"):
        list(bulk.in_groups(starved, 4, 4))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(bulk.in_groups(broken, 4, 4))


def test_states_on_the_way_lead_to_each_other() -> None:
    problem = problem_of(optimizer="adam")
    course, weights = Course(problem, problem.training), some_weights(2)
    found = bulk.states([course] * 2, weights, [0, 4, 5, course.steps])
    assert torch.equal(found[0], course.start().expand(2, -1, -1))
    assert torch.equal(found[-1], bulk.run([course] * 2, weights))
    batch = course.batch(4)
    rows = weights[:, batch.positions]
    for before, after, row in zip(found[1], found[2], rows, strict=True):
        assert torch.allclose(course.step(before, row, batch=batch, at=4), after, atol=1e-14)
    for wrong in ([], [3, 2], [1, 1], [-1], [course.steps + 1]):
        with pytest.raises(BadArgument, match=f"{course.steps}"):
            bulk.states([course] * 2, weights, wrong)


def test_a_training_goes_on_from_its_own_states() -> None:
    problem = problem_of()
    course, weights = Course(problem, problem.training), some_weights(3)
    group = bulk.Group([course] * 3, weights, range(3))
    half = {done: torch.cat(stacks) for done, stacks in group.steps(until=3)}[3]
    (*_, (done, stacks)) = group.steps(until=course.steps, state=half, done=3)
    assert done == course.steps
    assert torch.equal(torch.cat(stacks), bulk.run([course] * 3, weights))


def test_a_training_that_diverges_is_named_with_step_and_learning_rate() -> None:
    deep = lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))  # noqa: E731
    problem = problem_of(deep, optimizer="sgd", lr=1e200, epochs=3)
    weights = some_weights(3)
    weights[0] = 0  # without examples nothing moves
    with pytest.raises(Diverged, match=r"Step \d+ of 9, at the learning rate 1e\+200.*training 1"):
        bulk.run([Course(problem, problem.training)] * 3, weights)
