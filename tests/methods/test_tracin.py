"""TracIn against trainings that were taken one example less."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import problems
from problems import Case
from whence.calculus.gradients import gradients, measure, measurement_gradients
from whence.calculus.optimizers import SGD
from whence.calculus.training import Training
from whence.errors import BadArgument, CannotRetrain
from whence.methods.tracin import TracIn


def case_of(lr: float, *, momentum: float = 0.0, epochs: int = 1, batch_size: int = 30) -> Case:
    case = problems.mlp_untrained()
    training = Training(
        case.problem.model, SGD(momentum), lr=lr, epochs=epochs, batch_size=batch_size
    )
    return replace(case, problem=replace(case.problem, training=training))


def removed(case: Case) -> np.ndarray:
    """(Q, N) what the measurements do when each example is left out of the training."""
    problem = case.problem
    asked, measured = problem.queries(case.queries), problem.measurement(None)
    weights = torch.cat([torch.ones(1, 30), 1 - torch.eye(30)]).double()
    trained = problem.retrain(weights).parameters
    values = torch.stack([measure(problem.at(theta), measured, asked) for theta in trained])
    return (values[1:] - values[0]).T.numpy()


@pytest.mark.parametrize("convention", ["fixed N", "renormalized"])
def test_one_step_of_training_is_predicted_to_first_order(convention):
    """What is left out grows with the step: 1e-4 of an effect at lr 1e-4."""
    case = case_of(1e-4)
    if convention == "renormalized":
        case = replace(case, problem=replace(case.problem, renormalize=True))
    found = TracIn(1).fit(case.problem).scores(case.queries)
    expected = removed(case) * (29 / 30 if convention == "renormalized" else 1)
    assert_allclose(found.values, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
    assert found.is_calibrated


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_short_training_in_batches_is_predicted_up_to_its_curvature(momentum):
    """Removals meet other steps with other gradients; in 60 short steps that is below a tenth."""
    case = case_of(1e-3, momentum=momentum, epochs=20, batch_size=10)
    found = TracIn(5).fit(case.problem).scores(case.queries).values
    expected = removed(case)
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_scores_are_the_formula_written_out():
    case = case_of(0.1, epochs=4, batch_size=10)
    problem, rates = case.problem, (0.3, 0.7)
    places = [problem.parameters, problem.parameters + 0.1]
    recipe = TracIn(checkpoints=places, lrs=rates)
    expected = 0.0
    for theta, rate in zip(places, rates, strict=True):
        there = problem.at(theta)
        asked, measured = there.queries(case.queries), there.measurement(None)
        _, slopes = measurement_gradients(there, measured, asked)
        rows = gradients(there, there.batch(torch.arange(30)))
        expected = expected + rate * (slopes @ rows.T).numpy() / 30
    assert_allclose(recipe.fit(problem).scores(case.queries).values, expected, rtol=1e-9)


def test_without_a_training_checkpoints_are_asked_for():
    case = problems.mlp_untrained()
    with pytest.raises(CannotRetrain, match="checkpoints="):
        TracIn().fit(case.problem)
    state = case.problem.model.state_dict()
    assert TracIn(checkpoints=[state], lrs=[1.0]).fit(case.problem).report["checkpoints"] == 1
    with pytest.raises(BadArgument):
        TracIn(checkpoints=[state]).fit(case.problem)
