"""A user's own training loop."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import problems
from oracles import ridge_closed_form
from whence.adapters import make_problem
from whence.core.training import CallableTraining, Retrained, Trainer
from whence.errors import BadData, CannotRetrain, NonFinite, ProblemError


def retrained(answer: object) -> Tensor:
    problem = problems.ridge().problem
    training = CallableTraining(lambda weights, seed: answer)
    return training.retrain(problem, torch.ones(1, 40)).parameters


def test_it_is_called_once_for_each_row_of_weights_with_the_seed():
    problem = problems.ridge().problem
    calls: list[tuple[list[float], int]] = []

    def train(weights: Tensor, seed: int) -> Tensor:
        calls.append((weights.tolist(), seed))
        return torch.full((6,), float(len(calls)))

    weights = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)).double()
    found = CallableTraining(train).retrain(problem, weights, seed=5)
    assert calls == [(row.tolist(), 5) for row in weights]
    assert found.parameters.tolist() == [[float(run)] * 6 for run in (1, 2, 3)]
    assert found.parameters.dtype == problem.dtype
    assert found.report == {"training": "train", "seed": 5}


def test_it_is_called_seed_by_seed_and_its_answers_stay_in_order():
    problem = problems.ridge().problem
    calls: list[int] = []

    def train(weights: Tensor, seed: int) -> Tensor:
        calls.append(seed)
        return torch.full((6,), 10.0 * seed + weights[0])

    weights = torch.arange(4.0)[:, None].expand(-1, 40)
    found = CallableTraining(train).retrain_each(problem, weights, seeds=[3, 1, 3, 2])
    assert calls == [3, 3, 1, 2]
    assert found.parameters[:, 0].tolist() == [30, 11, 32, 23]
    assert found.report == {"training": "train", "seed": [3, 1, 2]}


def test_where_seeds_change_nothing_there_is_one_call():
    problem = problems.ridge().problem
    calls: list[int] = []

    class Fixed(Trainer):
        name, is_deterministic = "fixed", True

        def retrain(self, problem: object, weights: Tensor, *, seed: int = 0) -> Retrained:
            calls.append(len(weights))
            return Retrained(weights)

    weights = torch.rand(4, 40, generator=torch.Generator().manual_seed(0))
    found = Fixed().retrain_each(problem, weights, seeds=[3, 1, 3, 2])
    assert calls == [4]
    assert torch.equal(found.parameters, weights)


def test_modules_states_and_flat_tensors_mean_the_same():
    model = nn.Linear(5, 1).double()
    flat = torch.cat([model.weight.flatten(), model.bias]).detach()
    for answer in (model, model.state_dict(), flat, dict(model.named_parameters())):
        found = retrained(answer)
        assert torch.equal(found[0], flat)
        assert not found.requires_grad


def test_what_comes_back_is_a_copy():
    flat = torch.zeros(6).double()
    found = retrained(flat)
    flat += 1
    assert not found.any()


def test_states_may_hold_buffers_and_parameters_that_were_not_chosen():
    """A state_dict has more in it than the parameters of the problem."""
    conv = problems.conv().problem
    inputs, targets = conv.data.take(torch.arange(24))
    problem = make_problem(conv.model, (inputs, targets), loss="cross_entropy", parameters="head.*")
    state = conv.model.state_dict()
    training = CallableTraining(lambda weights, seed: state)
    found = training.retrain(problem, torch.ones(1, 24))
    assert torch.equal(found.parameters[0], problem.parameters)


@pytest.mark.parametrize("answer", [None, 3.0, torch.zeros(5), "model"])
def test_anything_else_is_refused_with_the_remedy(answer):
    with pytest.raises(BadData, match="state_dict"):
        retrained(answer)


def test_a_state_without_a_parameter_names_it():
    with pytest.raises(ProblemError, match="bias"):
        retrained({"weight": torch.zeros(1, 5)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_training_that_blew_up_is_refused(bad):
    with pytest.raises(NonFinite, match="learning rate"):
        retrained(torch.full((6,), bad))


def test_a_problem_trains_again_through_it():
    """Ridge in closed form as the training: one removal, in the problem's order of parameters."""
    case = problems.ridge()

    def train(weights: Tensor, seed: int) -> Tensor:
        return torch.from_numpy(case.oracle.flat(ridge_closed_form(case.oracle, weights.numpy())))

    inputs, targets = case.problem.data.take(torch.arange(40))
    problem = make_problem(
        case.problem.model, (inputs, targets), loss="mse", weight_decay=0.1, training=train
    )
    without = torch.ones(40).double()
    without[3] = 0
    found = problem.retrain(without).parameters
    expected = case.oracle.flat(case.oracle.retrained(np.array([3])))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_problem_without_training_cannot_train_again():
    with pytest.raises(CannotRetrain, match="training="):
        problems.ridge().problem.retrain(torch.ones(40))


def test_the_name_is_that_of_the_function():
    class Trainer:
        def __call__(self, weights: Tensor, seed: int) -> Tensor:
            return weights

    assert CallableTraining(Trainer()).name == "Trainer"
    assert not CallableTraining(Trainer()).is_deterministic
    assert CallableTraining(Trainer(), is_deterministic=True).is_deterministic
