"""What is left out covers the range of effects, and random subsets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import problems
from whence.errors import BadArgument
from whence.numerics import draws
from whence.verification import verify
from whence.verification.removals import draw, random_subsets

NAN = float("nan")


# ------------------------------------------------------------------- single examples


def test_the_draw_covers_the_whole_range_of_effects_and_every_query():
    effects = np.random.default_rng(0).standard_t(1.5, (3, 1000))
    drawn = draw(effects, 60, seed=1)
    assert len(np.unique(drawn)) == 60
    assert {*effects.argmax(1), *effects.argmin(1)} <= set(drawn)
    size = (np.abs(effects) / np.abs(effects).mean(1, keepdims=True)).mean(0)
    ranks = size.argsort().argsort()[drawn]
    in_tenths, _ = np.histogram(ranks, bins=10, range=(0, 1000))
    assert in_tenths.min() >= 3  # never only the top


def test_the_draw_depends_on_its_seed_alone():
    effects = np.random.default_rng(0).standard_normal((2, 300))
    assert set(draw(effects, 20, seed=3)) == set(draw(effects.copy(), 20, seed=3))
    assert set(draw(effects, 20, seed=3)) != set(draw(effects, 20, seed=4))


@pytest.mark.parametrize("count", [2, 5, 9, 10, 400])
def test_the_draw_has_as_many_as_asked_for_or_all(count):
    drawn = draw(np.random.default_rng(0).standard_normal((7, 10)), count)
    assert len(set(drawn)) == min(count, 10)


def test_named_examples_are_left_out_in_their_order(ridge):
    problem, scores = ridge
    assert list(verify(problem, scores, examples=[7, 3, 20]).train_ids) == [7, 3, 20]


# ------------------------------------------------------------------------------ subsets


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_subsets_keep_the_share_that_was_asked_for(ridge, fraction):
    problem, _ = ridge
    removals = random_subsets(problem, 6, fraction)
    kept = round(fraction * len(problem))
    assert ((~removals.is_out).sum(axis=1) == kept).all()
    assert removals.fraction == pytest.approx(kept / len(problem))
    weights = removals.weights()
    assert torch.equal(weights[0], torch.ones(len(problem)).double())
    assert_array_equal(weights[1:] == 0, removals.is_out)


def test_subsets_hold_the_same_ids_whatever_the_order_of_the_data(ridge):
    problem, _ = ridge
    order = torch.arange(len(problem)).flip(0)
    other = problems.rearranged(problems.ridge(), order)
    expected = random_subsets(problem, 5, 0.5, seed=3).is_out[:, order]
    ids = problem.data.ids[order.numpy()]
    assert_array_equal(other.data.ids, ids)
    assert_array_equal(random_subsets(other, 5, 0.5, seed=3).is_out, expected)


def test_subsets_are_not_those_that_a_method_draws_from_the_same_seed(ridge):
    problem, _ = ridge
    drawn = draws.subsets(0, draws.keys(problem.data.ids), count=5, size=20).numpy()
    of_verification = ~random_subsets(problem, 5, 0.5, seed=0).is_out
    assert not (drawn[:, None] == of_verification).all(axis=2).any()


def test_predicted_effects_are_added_by_id(ridge):
    problem, scores = ridge
    removals = random_subsets(problem, 4, 0.5)
    rows = np.array([2, 0])
    expected = scores.values[rows] @ removals.is_out.T
    np.testing.assert_allclose(removals.add_up(scores, rows), expected, rtol=1e-12)
    turned = replace(scores, values=scores.values[:, ::-1], train_ids=scores.train_ids[::-1])
    np.testing.assert_allclose(removals.add_up(turned, rows), expected, rtol=1e-12)
    few = replace(scores, values=scores.values[:, :3], train_ids=scores.train_ids[:3])
    with pytest.raises(BadArgument, match="no training example"):
        removals.add_up(few, rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fraction": 0.0}, "between 0 and 1"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"fraction": 1.5}, "between 0 and 1"),
        ({"fraction": float("nan")}, "between 0 and 1"),
        ({"fraction": 0.999}, "some examples stay"),
        ({"count": 1}, "no correlation"),
        ({"count": 41, "fraction": 0.975}, "There are 40 of that size"),
    ],
)
def test_subsets_that_cannot_be_are_refused(ridge, options, words):
    with pytest.raises(BadArgument, match=words):
        random_subsets(ridge[0], **({"count": 8, "fraction": 0.5} | options))
