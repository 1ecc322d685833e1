"""Cosines against gradients written out."""

import numpy as np
import torch
from numpy.testing import assert_allclose

import problems
from whence.methods.gradcos import GradCos


def test_scores_are_cosines_of_the_gradients_in_closed_form():
    case = problems.multinomial()
    oracle, theta = case.oracle, case.oracle.optimum()
    train, asked = oracle.gradients(theta), case.measurement_gradients(theta)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    scores = GradCos().fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, asked @ train.T, rtol=1e-9, atol=1e-12)
    assert scores.unit == "arbitrary"


def test_an_example_explained_by_itself_has_cosine_one():
    case = problems.conv()
    own = case.problem.data.take(torch.arange(5))
    scores = GradCos().fit(case.problem).scores(own, "loss")
    assert_allclose(np.diag(scores.values), 1, rtol=1e-12)
    assert abs(scores.values).max() <= 1 + 1e-12
