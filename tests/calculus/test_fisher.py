"""The second moment of the slopes is the Hessian of the loss with respect to the outputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from problems import ALL, Case
from whence.adapters import make_problem
from whence.calculus.fisher import Fisher
from whence.calculus.gradients import output_hessians, residuals
from whence.core.losses import IGNORED
from whence.core.problem import Problem
from whence.errors import BadArgument, NegativeCurvature, Unsupported


class Given(nn.Module):
    """What goes in comes out, scaled: outputs of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def given(outputs: Tensor, targets: Tensor, loss: object, **options: object) -> Problem:
    return make_problem(Given().eval(), (outputs, targets), loss=loss, weight_decay=0.1, **options)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def labels(*shape: int, classes: int) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(1))


def slopes(problem: Problem, fisher: Fisher, positions: Tensor | None = None) -> Tensor:
    """(K, B, C) every set of slopes of all examples, or of some."""
    rows = torch.arange(len(problem)) if positions is None else positions
    batch = problem.batch(rows)
    fisher.check(problem)
    values = problem.outputs(problem.parameters, batch.inputs)
    return torch.stack(list(fisher.slopes(problem, batch, values)))


def draws(problem: Problem, fisher: Fisher) -> Tensor:
    """(K, B, C, C) the second moment of each of K draws, as if it were the only one."""
    found = slopes(problem, fisher)
    return len(found) * torch.einsum("kbc,kbd->kbcd", found, found)


def second_moments(problem: Problem, fisher: Fisher) -> Tensor:
    """(B, C, C)."""
    found = slopes(problem, fisher)
    return torch.einsum("kbc,kbd->bcd", found, found)


def bends(problem: Problem) -> Tensor:
    """(B, C, C) b_i S_i."""
    batch = problem.batch(torch.arange(len(problem)))
    return output_hessians(problem, batch) * batch.weights[:, None, None]


# ------------------------------------------------------------------ expected


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    """Convex, its Hessian is not diagonal."""
    mixed = outputs @ torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, -1.0]]).double()
    return torch.log(torch.cosh(mixed - targets)).sum(1)


def with_positions() -> Problem:
    """(B, C, T) logits; some positions do not count, and one example has none that does."""
    y = labels(8, 5, classes=3)
    y[2, 1:3], y[4], y[7, 0] = IGNORED, IGNORED, IGNORED
    return given(random(8, 3, 5), y, "cross_entropy", sample_weight=np.linspace(0, 2, 8))


def ignoring() -> Problem:
    y = labels(8, classes=4)
    y[3] = IGNORED
    return given(random(8, 4), y, "cross_entropy")


CUSTOM: dict[str, Callable[[], Problem]] = {
    "custom": lambda: given(random(9, 3), random(9, 2, seed=2), log_cosh),
    "wide mse": lambda: given(random(6, 2, 4), random(6, 2, 4, seed=2), "mse"),
    "with positions": with_positions,
    "an ignored label": ignoring,
    "one logit": lambda: given(random(9), labels(9, classes=2), "binary_cross_entropy"),
}


@pytest.mark.parametrize("name", ALL)
def test_expected_slopes_give_the_output_hessian_of_each_example(name):
    problem = ALL[name]().problem
    assert_allclose(second_moments(problem, Fisher("expected")), bends(problem), atol=1e-12)


@pytest.mark.parametrize("name", CUSTOM)
def test_expected_slopes_give_the_output_hessian_of_unusual_losses_too(name):
    problem = CUSTOM[name]()
    assert_allclose(second_moments(problem, Fisher("expected")), bends(problem), atol=1e-12)


def test_a_position_that_is_ignored_has_no_slopes():
    found = slopes(with_positions(), Fisher("sampled")).unflatten(2, (3, 5))
    assert not found[:, 2, :, 1:3].any()
    assert not found[:, 4].any()
    assert found[:, 2, :, [0, 3, 4]].any()


def long_sequences() -> Problem:
    """30 positions of 4 classes are more outputs than are taken one by one."""
    return given(random(5, 4, 30), labels(5, 30, classes=4), "cross_entropy")


def test_many_outputs_take_one_pass_for_each_class_and_are_exact_at_every_position():
    problem = long_sequences()
    found = slopes(problem, Fisher("expected")).unflatten(2, (4, 30))
    assert len(found) == 4
    at_place = torch.einsum("kbct,kbdt->btcd", found, found)
    expected = bends(problem).unflatten(1, (4, 30)).unflatten(3, (4, 30))
    assert_allclose(at_place, torch.einsum("bctdt->btcd", expected), atol=1e-12)


def test_between_positions_the_mean_over_seeds_is_zero():
    problem = long_sequences()
    moments = torch.stack(
        [second_moments(problem, Fisher("expected", seed)) for seed in range(100)]
    )
    assert_means(moments, bends(problem))


# ------------------------------------------------------------------ sampled


def assert_means(draws: Tensor, expected: Tensor) -> None:
    """The mean over the first axis is the expected one within five standard errors each."""
    spread = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() <= 5 * spread + 1e-12).all())


@pytest.mark.parametrize("name", ["multinomial", "class_weighted", "mlp", "ridge_free_intercept"])
def test_sampled_slopes_have_the_expected_mean(name):
    problem = problems.rearranged(ALL[name](), torch.arange(6))
    assert_means(draws(problem, Fisher("sampled", draws=2000)), bends(problem))


def test_sampled_slopes_at_positions_have_the_expected_mean():
    problem = with_positions()
    assert_means(draws(problem, Fisher("sampled", draws=2000)), bends(problem))


def test_other_seeds_have_the_expected_mean():
    problem = problems.rearranged(problems.multinomial(), torch.arange(6))
    moments = torch.stack([second_moments(problem, Fisher("sampled", seed)) for seed in range(500)])
    assert_means(moments, bends(problem))


def test_more_draws_have_less_noise():
    """The squared error of a mean of eight draws is an eighth; 60 examples tell it to a third."""
    problem = problems.multinomial().problem

    def error(count: int) -> float:
        found = [second_moments(problem, Fisher("sampled", s, draws=count)) for s in range(20)]
        return float(((torch.stack(found) - bends(problem)) ** 2).mean())

    assert error(8) == pytest.approx(error(1) / 8, rel=0.33)


def case_with_names() -> Case:
    case = problems.multinomial()
    x, y = case.problem.data.take(torch.arange(len(case.problem)))
    names = np.array([f"flower {i}" for i in range(len(y))])
    return replace(
        case,
        problem=make_problem(
            case.problem.model, (x, y), ids=names, loss="cross_entropy", weight_decay=0.05
        ),
    )


@pytest.mark.parametrize("case", [problems.multinomial, problems.tied, case_with_names])
@pytest.mark.parametrize("kind", ["sampled", "expected", "empirical"])
def test_an_example_draws_the_same_slopes_in_every_batch_and_order(kind, case):
    case = case()
    problem, fisher = case.problem, Fisher(kind, seed=4)
    whole = slopes(problem, fisher)
    parts = [slopes(problem, fisher, rows) for rows in torch.arange(len(problem)).split(7)]
    assert_allclose(torch.cat(parts, 1), whole, atol=1e-13)
    order = torch.randperm(len(problem), generator=torch.Generator().manual_seed(0))
    assert_allclose(slopes(problems.rearranged(case, order), fisher), whole[:, order], atol=1e-13)


def test_seeds_differ():
    problem = problems.multinomial().problem
    first, second = (slopes(problem, Fisher("sampled", seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, slopes(problem, Fisher("sampled", 0)))


# ------------------------------------------------------------------ empirical


@pytest.mark.parametrize("name", ["multinomial", "class_weighted", "tied", "conv"])
def test_empirical_slopes_are_the_derivatives_of_the_losses(name):
    problem = ALL[name]().problem
    batch = problem.batch(torch.arange(len(problem)))
    expected = residuals(problem, batch) * batch.weights.sqrt()[:, None]
    (found,) = slopes(problem, Fisher("empirical"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["sampled", "expected", "empirical"])
def test_an_example_of_weight_zero_has_no_slopes(kind):
    problem = problems.class_weighted().problem
    found = slopes(problem, Fisher(kind))
    assert not found[:, 3].any()
    assert found[:, 4].any()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("fisher", [Fisher("monte_carlo"), Fisher("sampled", draws=0)])
def test_an_unknown_choice_is_refused(fisher):
    with pytest.raises(BadArgument, match="fisher="):
        fisher.check(problems.multinomial().problem)


@pytest.mark.parametrize("loss", ["hinge", "epsilon_insensitive:0.1"])
def test_a_loss_without_curvature_is_refused_with_what_to_take_instead(loss):
    y = torch.tensor([1.0, -1.0] * 4).double()
    problem = given(random(8), y, loss)
    with pytest.raises(Unsupported, match="no curvature") as refused:
        Fisher("sampled").check(problem)
    assert "smooth" in refused.value.remedy
    Fisher("empirical").check(problem)


def test_a_loss_that_is_flat_at_most_examples_is_not_refused():
    """The first hundred are beyond the margin of the squared hinge."""
    x = torch.where(torch.arange(120) < 100, 3.0, 0.5).double()
    Fisher("sampled").check(given(x, torch.ones(120).double(), "squared_hinge"))


def test_many_outputs_of_an_unknown_loss_are_refused_with_their_number():
    def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).sum(1) ** 2

    problem = given(random(4, 101), random(4, 101, seed=2), coupled)
    with pytest.raises(Unsupported, match="101 outputs"):
        Fisher("sampled").check(problem)
    Fisher("empirical").check(problem)
    Fisher("sampled").check(given(random(4, 100), random(4, 100, seed=2), coupled))


def mean_over_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, T, C) logits; the first three positions count, and the next token is the label."""
    shown = outputs[:, :3].transpose(1, 2)
    return nn.functional.cross_entropy(shown, targets[:, 1:4], reduction="none").mean(1)


def weighted_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, C, T) logits; later positions count more."""
    found = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return found @ torch.arange(1, 6).to(found)


SUMS = {
    "classes last": lambda: given(3 * random(2, 5, 30), labels(2, 5, classes=30), mean_over_tokens),
    "classes first": lambda: given(3 * random(2, 30, 5), labels(2, 5, classes=30), weighted_tokens),
    "many classes": lambda: given(
        random(2, 150),
        labels(2, classes=150),
        partial(nn.functional.cross_entropy, reduction="none"),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_own_sums_of_cross_entropies_are_recognised(name):
    problem = SUMS[name]()
    assert problem.loss.task != "classes"
    assert_means(draws(problem, Fisher("sampled", draws=400)), bends(problem))
    seeds = range(100)
    found = [second_moments(problem, Fisher("expected", seed)) for seed in seeds]
    assert_means(torch.stack(found), bends(problem))


def test_a_loss_that_is_nearly_a_cross_entropy_is_not_taken_for_one():
    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)

    problem = given(random(6, 150), labels(6, classes=150), smoothed)
    with pytest.raises(Unsupported, match="150 outputs"):
        Fisher("sampled").check(problem)


@pytest.mark.parametrize("loss", ["mse", "smooth_epsilon_insensitive:0.1:0.2"])
def test_many_predicted_numbers_are_not_refused(loss):
    problem = given(random(4, 7, 20), random(4, 7, 20, seed=2), loss)
    assert_allclose(second_moments(problem, Fisher("expected")), bends(problem), atol=1e-12)
    assert_means(draws(problem, Fisher("sampled", draws=1000)), bends(problem))


def test_many_classes_are_not_refused():
    problem = given(random(5, 300), labels(5, classes=300), "cross_entropy")
    assert_allclose(second_moments(problem, Fisher("expected")), bends(problem), atol=1e-12)


def test_a_loss_that_bends_downwards_is_refused():
    def cauchy(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log1p((outputs - targets) ** 2).sum(1)

    problem = given(random(8, 2), 5 + random(8, 2, seed=2), cauchy)
    with pytest.raises(NegativeCurvature, match="cauchy"):
        slopes(problem, Fisher("expected"))
