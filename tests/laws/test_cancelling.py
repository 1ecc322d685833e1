"""A retraining that nobody waits for any more ends within a second, between two of its steps."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

import whence
from whence.explorer.desk import CANCELLED, DONE, RUNNING, Desk
from whence.verification.bench import choose_training

SOON = 2.0
"""Seconds: one, and another one for machines that are busy."""

X, Y = make_classification(6000, 120, n_informative=60, n_classes=5, random_state=0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(120, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def through_training() -> whence.Problem:
    data = torch.from_numpy(X[:200]), torch.from_numpy(Y[:200])
    training = whence.Training(network, epochs=20_000, batch_size=50, lr=1e-4)
    model = network().eval()
    return whence.make_problem(model, data, loss="cross_entropy", training=training)


def through_newton_steps() -> whence.Problem:
    """No training is known: L-BFGS from the optimum, on a problem that it cannot finish soon."""
    data = torch.from_numpy(X), torch.from_numpy(Y)
    torch.manual_seed(0)
    return whence.make_problem(network().eval(), data, loss="cross_entropy", weight_decay=1e-7)


def through_logistic_regression() -> whence.Problem:
    model = LogisticRegression(C=1e6, max_iter=3).fit(X, Y)
    return whence.make_problem(model, (X, Y))


def through_a_network_of_sklearn() -> whence.Problem:
    def fit(epochs: int) -> MLPClassifier:
        return MLPClassifier((16,), max_iter=epochs, tol=0, n_iter_no_change=10**6, random_state=0)

    model = fit(2).fit(X[:500], Y[:500])
    model.set_params(max_iter=10**6)
    return whence.make_problem(model, (X[:500], Y[:500]))


def through_an_own_loop() -> whence.Problem:
    data = torch.from_numpy(X[:200]), torch.from_numpy(Y[:200])

    def train(weights: torch.Tensor, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        while True:
            losses = nn.functional.cross_entropy(model(data[0]), data[1], reduction="none")
            optimizer.zero_grad()
            (losses * weights).mean().backward()
            optimizer.step()

    return whence.make_problem(network().eval(), data, loss="cross_entropy", training=train)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "make",
    [
        through_training,
        through_newton_steps,
        through_logistic_regression,
        through_a_network_of_sklearn,
        through_an_own_loop,
    ],
)
def test_a_cancelled_retraining_ends_soon(make: Callable[[], whence.Problem], tmp_path: Path):
    problem = make()
    before = problem.parameters.clone()
    weights = torch.ones(2, len(problem), dtype=torch.float64)
    weights[1, 3] = 0.0
    how = choose_training(problem, None, 2)
    torch.func.grad(torch.sum)(torch.ones(1))  # loads a part of torch, which takes a second
    desk = Desk(tmp_path)
    question = desk.ask(
        "change", {}, lambda: {"norm": float(how.retrain(problem, weights).parameters.norm())}
    )
    time.sleep(1.0)
    assert question.state == RUNNING, question.error
    started = time.monotonic()
    desk.cancel(question)
    assert question.state == CANCELLED
    following = desk.ask("next", {}, lambda: {"found": 1})
    while following.state != DONE:
        assert time.monotonic() - started < SOON
        time.sleep(0.01)
    assert not desk.is_ending(question)
    assert question.answer is None
    assert torch.equal(problem.parameters, before)
