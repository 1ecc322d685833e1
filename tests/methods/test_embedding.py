"""Similarity of representations."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import problems
from whence.adapters import make_problem
from whence.errors import Unsupported
from whence.methods.embedding import Embedding


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    return a @ b.T


def test_a_linear_model_compares_its_inputs():
    case = problems.multinomial()
    train = case.problem.data.take(torch.arange(len(case.problem)))[0].numpy()
    scores = Embedding().fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, -cosines(case.queries[0].numpy(), train), rtol=1e-10)


def test_a_network_compares_what_goes_into_its_last_layer():
    case = problems.conv()
    model = case.problem.model
    with torch.no_grad():
        train, asked = (
            model.features(x).flatten(1).numpy()
            for x in (case.problem.data.take(torch.arange(24))[0], case.queries[0])
        )
    scores = Embedding().fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, -cosines(asked, train), rtol=1e-10)


def test_positions_of_a_sequence_are_averaged():
    case = problems.tied()
    model = case.problem.model
    with torch.no_grad():
        train, asked = (
            torch.tanh(model.mix(model.embedding(text))).mean(1).numpy()
            for text in (case.problem.data.take(torch.arange(16))[0], case.queries[0])
        )
    scores = Embedding().fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, -cosines(asked, train), rtol=1e-10)


def test_models_that_take_examples_apart_are_asked_one_by_one():
    case = problems.branching()
    scores = Embedding().fit(case.problem).scores(case.queries)
    asked = case.queries[0].numpy()
    train = case.problem.data.take(torch.arange(15))[0].numpy()
    assert_allclose(scores.values, -cosines(asked, train), rtol=1e-10)  # one layer: its inputs


def test_own_features_take_the_place_of_the_models():
    case = problems.tokens()
    recipe = Embedding(features=lambda inputs: inputs["mask"])
    scores = recipe.fit(case.problem).scores(case.queries)
    assert_allclose(
        scores.values,
        -cosines(
            case.queries[0]["mask"].numpy(),
            case.problem.data.take(torch.arange(20))[0]["mask"].numpy(),
        ),
        rtol=1e-10,
    )


class Bare(nn.Module):
    """A product with a parameter, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).squeeze(1)


class Outer(nn.Module):
    """Calls no module with parameters of its own on a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bare()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.inner.weight).squeeze(1)


def test_a_model_without_layers_is_told_to_bring_features():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    problem = make_problem(Outer(), (x, x[:, 0]), loss="mse")
    with pytest.raises(Unsupported, match="features="):
        Embedding().fit(problem)
