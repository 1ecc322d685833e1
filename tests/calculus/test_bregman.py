"""The proximal Bregman objective against its formula, leave-one-out, and influence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import problems
from whence.adapters import make_problem
from whence.calculus.bregman import BregmanTraining
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NotConverged
from whence.explanation import explain
from whence.methods.influence import Influence
from whence.numerics import stats
from whence.verification import Bench

DAMPING = 0.05


def without_each(problem: Problem, count: int, *, weight: float = 0.0) -> Tensor:
    """(1 + count, N): nothing, then one example at a time, weighs less."""
    rows = torch.ones(1 + count, len(problem)).double()
    rows[torch.arange(1, 1 + count), torch.arange(count)] = weight
    return rows


@pytest.fixture(scope="module")
def network() -> Problem:
    """A tanh network at its random start, far from any optimum, with unequal base weights."""
    problem = problems.mlp_untrained().problem
    weights = torch.linspace(0.5, 2, len(problem)).double()
    return replace(problem, weights=weights)


@pytest.mark.parametrize("name", ["ridge", "logistic", "multinomial", "class_weighted"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_of_a_linear_model_it_is_leave_one_out(name, renormalize):
    case = getattr(problems, name)()
    case = case.renormalized() if renormalize else case
    optimum = NewtonTraining().retrain(case.problem, torch.ones(1, len(case.problem)))
    problem = case.problem.at(optimum.parameters[0])
    rows = without_each(problem, 12)
    expected = NewtonTraining().retrain(problem, rows).parameters
    found = BregmanTraining(0.0).retrain(problem, rows).parameters
    # both stop at gradients of about 1e-9 of what one example pulls with
    pull = (expected - expected[0]).norm(dim=1).max()
    assert (found - expected).norm(dim=1).max() < 1e-6 * pull


def test_without_a_removal_the_model_stays_where_it_is(network):
    found = BregmanTraining(DAMPING).retrain(network, without_each(network, 1))
    assert torch.allclose(found.parameters[0], network.parameters, rtol=0, atol=1e-12)
    assert not torch.allclose(found.parameters[1], network.parameters, rtol=0, atol=1e-6)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_answer_is_a_minimum_of_the_formula_as_it_is_written(network, renormalize):
    """For cross-entropy the divergence is that of Kullback and Leibler, for |theta|^2 itself."""
    problem = replace(network, renormalize=renormalize)
    rows = without_each(problem, 3)
    found = BregmanTraining(DAMPING).retrain(problem, rows).parameters
    batch, start = problem.batch(torch.arange(len(problem))), problem.parameters
    before = F.log_softmax(problem.outputs(start, batch.inputs), 1).detach()
    b, count = batch.weights, float(len(problem))

    def objective(theta: Tensor, w: Tensor) -> Tensor:
        outputs = problem.outputs(theta, batch.inputs)
        now, losses = (
            F.log_softmax(outputs, 1),
            F.cross_entropy(outputs, batch.targets, reduction="none"),
        )
        kept = (b * (before.exp() * (before - now)).sum(1)).sum() / count
        total = w.sum() if renormalize else count
        change = (w * b * losses).sum() / total - (b * losses).sum() / count
        return kept + (1e-3 + DAMPING) / 2 * (theta - start).square().sum() + change

    for theta, w in zip(found, rows, strict=True):
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(leaf, w), leaf)
        assert slope.norm() < 1e-9
        curvature = torch.autograd.functional.hessian(lambda t, w=w: objective(t, w), theta)
        assert torch.linalg.eigvalsh(curvature).min() > 0


def predicted_and_measured(network: Problem, damping: float, weight: float) -> list[np.ndarray]:
    """(Q, N) effects of influence, and of the minima when one example at a time weighs less."""
    queries = problems.mlp_untrained().queries
    recipe = Influence(Exact(matrix="ggn", damping=damping), removal="first_order")
    scores = explain(network, queries, method=recipe)
    bench = Bench(network, BregmanTraining(damping), scores.measurement, network.queries(queries))
    (actual,), _ = bench.effects(without_each(network, len(network), weight=weight), [0])
    return [scores.values, actual]


def test_to_first_order_it_is_influence_with_the_damped_gauss_newton_matrix(network):
    step = 1e-4
    predicted, actual = predicted_and_measured(network, DAMPING, 1 - step)
    np.testing.assert_allclose(actual / step, predicted, rtol=1e-2, atol=1e-4)


def test_whole_removals_agree_where_the_damping_keeps_them_small(network):
    """One of thirty examples is no small part; the distance to first order falls with damping."""
    wide, near = (predicted_and_measured(network, damping, 0.0) for damping in (DAMPING, 1.0))
    assert stats.pearson(*near).min() > 0.99
    np.testing.assert_allclose(stats.slope(*near), 1, atol=0.1)
    assert stats.pearson(*wide).min() < stats.pearson(*near).min()


def test_a_network_too_large_for_a_dense_matrix_is_solved_without(network, monkeypatch):
    rows = without_each(network, 3)
    expected = BregmanTraining(DAMPING).retrain(network, rows).parameters
    monkeypatch.setattr("whence.calculus.bregman.DENSE_PARAMETERS", 10)
    found = BregmanTraining(DAMPING).retrain(network, rows).parameters
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)


def test_float32_models_are_solved_in_float64():
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    problem = make_problem(nn.Linear(3, 2), (x, y), loss="cross_entropy")
    found = BregmanTraining(1e-2).retrain(problem, without_each(problem, 2))
    assert found.parameters.dtype == torch.float64
    assert max(found.report["remaining"]) < 1e-8


def test_a_minimum_that_is_not_found_is_refused(network):
    with pytest.raises(NotConverged, match="1 of 2 minima"):
        BregmanTraining(1e-6, max_steps=1).retrain(network, without_each(network, 1))


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_a_damping_has_to_be_a_number_of_zero_or_more(damping):
    with pytest.raises(BadArgument, match="damping"):
        BregmanTraining(damping)
