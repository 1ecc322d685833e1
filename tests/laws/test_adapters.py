"""What every kind of model obeys: the same numbers as the same model written in numpy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

import problems
from problems import Case
from whence import adapters, discovery
from whence.adapters import make_problem
from whence.adapters.base import Adapter
from whence.calculus.gradients import gradients
from whence.calculus.products import objective_gradient
from whence.core.problem import Problem
from whence.errors import BadData, Unsupported
from whence.methods.influence import Influence


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Args:
        fitted: that model, fitted to the data of `problems.multinomial_free_intercept`.
        options: what `make_problem` has to be told about it.
    """

    fitted: Callable[[np.ndarray, np.ndarray], object]
    options: dict[str, Any]


def case() -> Case:
    return problems.multinomial_free_intercept()


def torch_model(x: np.ndarray, y: np.ndarray) -> nn.Module:
    model = nn.Linear(4, 3).double().eval()
    nn.utils.vector_to_parameters(case().problem.parameters, model.parameters())
    return model


def sklearn_model(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """C = 1 / (N l); Newton steps, since the laws compare with an optimum to rounding."""
    model = LogisticRegression(C=1 / (60 * 0.05), solver="newton-cholesky", tol=1e-13, max_iter=500)
    return model.fit(x, y)


def sklearn_network(x: np.ndarray, y: np.ndarray) -> MLPClassifier:
    """Without hidden layers; started again until lbfgs gets no further."""
    model = MLPClassifier((), alpha=60 * 0.05, solver="lbfgs", tol=1e-12, max_iter=500)
    model.set_params(warm_start=True, random_state=0)
    for _ in range(20):
        model.fit(x, y)
    return model


KINDS = {
    "torch": Kind(
        torch_model, {"loss": "cross_entropy", "weight_decay": 0.05, "regularizer": "weight"}
    ),
    "sklearn": Kind(sklearn_model, {}),
    "sklearn_mlp": Kind(sklearn_network, {}),
}
NAMES = pytest.mark.parametrize("name", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:lbfgs failed")  # to go below its rounding


def arrays() -> tuple[np.ndarray, np.ndarray]:
    oracle = case().oracle
    return oracle.x[:, :-1], oracle.y


def problem_of(kind: str, /, **options: Any) -> Problem:
    x, y = arrays()
    return make_problem(KINDS[kind].fitted(x, y), (x, y), **KINDS[kind].options, **options)


def centred(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts without the common shift that changes no probability."""
    named = problem.layout.split(problem.parameters)
    weight, bias = (value.numpy() for value in named.values())
    return weight - weight.mean(0), bias - bias.mean()


def test_every_kind_is_compared_here():
    optional = {"huggingface", "sklearn_kernel"}  # none of their models is multinomial logistic
    assert set(adapters.names()) - optional == set(KINDS)


@NAMES
def test_only_its_own_adapter_recognises_a_model(name):
    model = KINDS[name].fitted(*arrays())
    recognising = [
        kind
        for kind in adapters.names()
        if discovery.child(adapters, kind, Adapter)().recognises(model)
    ]
    assert recognising == [name]


@NAMES
def test_the_objective_is_at_its_minimum(name):
    """1e-7: where scikit-learn's solver stops; the others stop at rounding."""
    assert float(objective_gradient(problem_of(name)).norm()) < 1e-7


@NAMES
def test_parameters_losses_and_gradients_are_those_of_the_equation(name):
    problem, oracle = problem_of(name), case().oracle
    theta = oracle.optimum()
    weight, bias = centred(problem)
    expected = theta.reshape(3, 5) - theta.reshape(3, 5).mean(0)
    assert_allclose(np.hstack([weight, bias[:, None]]), expected, atol=1e-6)
    batch = problem.batch(torch.arange(60))
    losses = problem.losses(problem.parameters, batch)
    assert_allclose(losses.detach(), oracle.losses(theta), atol=1e-6)
    rows = oracle.flat(oracle.gradients(theta))
    assert_allclose(gradients(problem, batch), rows, atol=1e-6)
    value = problem.objective(problem.parameters)
    assert value.item() == pytest.approx(oracle.objective(theta, np.ones(60)), abs=1e-9)


@NAMES
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("removal", ["first_order", "newton"])
def test_effects_are_those_of_the_equation(name, renormalize, removal):
    reference = case().renormalized() if renormalize else case()
    theta = reference.oracle.optimum()
    moved = (
        reference.oracle.newton_retrained() - theta
        if removal == "newton"
        else -reference.oracle.derivative()
    )
    expected = reference.measurement_gradients(theta) @ moved.T
    problem = problem_of(name, renormalize=renormalize)
    queries = tuple(part.numpy() for part in reference.queries)
    scores = Influence("exact", removal=removal).fit(problem).scores(queries)
    assert_allclose(scores.values, expected, atol=1e-5 * abs(expected).max())
    assert scores.measurement.name == "margin"


@NAMES
def test_base_weights_are_those_of_the_equation(name):
    weights = np.random.default_rng(0).uniform(0.2, 2, 60)
    problem = problem_of(name, sample_weight=weights)
    assert_allclose(problem.weights, weights)


@NAMES
def test_ids_and_names_are_kept(name):
    names = [f"row {i}" for i in range(60)]
    problem = problem_of(name, ids=names, label_names=["a", "b", "c"], name="mine")
    assert list(problem.data.ids) == names
    assert problem.label_of(0) in ("a", "b", "c")
    assert problem.facts()["name"] == "mine"


@NAMES
def test_the_model_is_left_as_it_was(name):
    x, y = arrays()
    model = KINDS[name].fitted(x, y)
    before = repr(sorted(vars(model).items(), key=lambda item: item[0]))
    problem = make_problem(model, (x, y), **KINDS[name].options)
    Influence("exact").fit(problem).scores(tuple(part.numpy() for part in case().queries))
    assert repr(sorted(vars(model).items(), key=lambda item: item[0])) == before


@NAMES
def test_data_and_model_that_do_not_belong_together_are_refused(name):
    x, y = arrays()
    model = KINDS[name].fitted(x, y)
    with pytest.raises(BadData):
        make_problem(model, (x, y[:-1]), **KINDS[name].options)
    with pytest.raises(BadData):
        make_problem(model, (x[:0], y[:0]), **KINDS[name].options)
    with pytest.raises(BadData):
        make_problem(model, (x, y + 7), **KINDS[name].options)


@pytest.mark.parametrize("model", [object(), "model", None, lambda x: x, np.zeros(3)])
def test_other_kinds_of_models_are_refused_with_a_list_of_those_that_are_known(model):
    with pytest.raises(Unsupported, match="sklearn, sklearn_kernel, sklearn_mlp, torch"):
        make_problem(model, arrays(), loss="cross_entropy")
