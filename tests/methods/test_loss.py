"""The loss of each example as a baseline."""

import numpy as np
from numpy.testing import assert_allclose

import problems
from whence.methods.loss import TrainLoss


def test_every_query_gets_the_weighted_losses():
    case = problems.class_weighted()
    oracle = case.oracle
    losses = oracle.base * oracle.losses(oracle.optimum())
    scores = TrainLoss().fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, np.tile(losses, (len(scores.values), 1)), rtol=1e-10)


def test_the_worst_fitted_example_is_an_opponent_whatever_is_measured():
    case = problems.multinomial()
    fitted = TrainLoss().fit(case.problem)
    margin, loss = (fitted.scores(case.queries, name) for name in ("margin", "loss"))
    worst = margin.top(1).opponents[0].id
    assert worst == loss.top(1).opponents[0].id == int(margin.values[0].argmax())
