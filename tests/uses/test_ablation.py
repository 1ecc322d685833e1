"""Leaving out more and more of the strongest examples, and random ones beside them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

import problems
import whence
from whence.errors import BadArgument, Stale
from whence.explanation import explain
from whence.methods import Influence
from whence.uses.ablation import KS, RANDOM_ORDERS, RemovalCurve, removal_curve


@pytest.fixture(scope="module")
def curve() -> RemovalCurve:
    case = problems.ridge()
    scores = explain(case.problem, case.queries, method=Influence(removal="newton"))
    return removal_curve(case.problem, scores, 2, ks=[10, 1, 3])


def test_the_strongest_are_the_proponents_in_their_order(curve):
    case = problems.ridge()
    scores = explain(case.problem, case.queries, method=Influence(removal="newton"))
    expected = [effect.id for effect in scores.proponents(10, 2)]
    assert list(curve.ks) == [1, 3, 10]
    assert curve.train_ids.tolist() == expected
    sums = [sum(scores.effect(2, one) for one in expected[:k]) for k in (1, 3, 10)]
    assert_allclose(curve.predicted, sums)


def test_effects_are_those_of_the_optimum_without_the_set(curve):
    case = problems.ridge()
    before = case.measured(case.oracle.optimum())[2]
    for k, actual in zip(curve.ks, curve.strongest[0], strict=True):
        weights = (~np.isin(case.problem.data.ids, curve.train_ids[:k])).astype(float)
        expected = case.measured(case.oracle.optimum(weights))[2] - before
        assert actual == pytest.approx(expected, rel=1e-7)


def test_the_strongest_do_more_than_random_ones_and_the_section_says_so(curve):
    assert (curve.times_random > 2).all()
    assert (curve.strongest < 0).all()
    section = curve.section()
    assert "without the 10 strongest examples" in section.sentence
    (lines,) = section.blocks
    assert set(lines.series) == {"strongest", "random", "as predicted"}
    assert len(lines.series["random"]["error"]) == 3
    assert "error" not in lines.series["strongest"]  # one seed of a training without noise
    assert lines.series["strongest"]["x"] == [1, 3, 10]
    assert_allclose(lines.series["strongest"]["y"], curve.strongest[0])


def test_random_sets_depend_on_ids_alone(curve):
    case = problems.rearranged(problems.ridge(), torch.arange(40).flip(0))
    scores = explain(case, problems.ridge().queries, method=Influence(removal="newton"))
    again = removal_curve(case, scores, 2, ks=[1, 3, 10])
    assert_allclose(again.random, curve.random, rtol=1e-6)
    assert curve.random.shape == (1, RANDOM_ORDERS, 3)


def test_for_a_loss_the_strongest_are_those_that_keep_it_low():
    case = problems.multinomial()
    scores = explain(case.problem, case.queries, measurement="loss")
    found = removal_curve(case.problem, scores, ks=[5])
    assert found.predicted[0] > 0
    assert found.strongest[0, 0] > 0


def test_a_noisy_training_is_repeated_with_other_seeds():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=random).double()
    recipe = whence.Training(lambda: nn.Linear(3, 2).double(), lr=0.05, epochs=4, batch_size=8)
    problem = whence.make_problem(recipe, (x, (x[:, 0] > 0).long()), loss="cross_entropy")
    scores = replace(explain(problem, x[:1] + 1, method="graddot"), is_calibrated=False)
    found = removal_curve(problem, scores)
    assert list(found.ks) == [k for k in KS if k < 30]
    assert found.strongest.shape == (2, len(found.ks))
    assert found.predicted is None
    assert "predicted" not in found.section().sentence
    once = removal_curve(problem, scores, seeds=1)
    assert_array_equal(once.strongest[0], found.strongest[0])


@pytest.mark.parametrize("ks", [[], [0, 3], [40], [-1]])
def test_sets_that_cannot_be_left_out_are_refused(ks):
    case = problems.ridge()
    scores = explain(case.problem, case.queries)
    with pytest.raises(BadArgument, match="from 1 to 39"):
        removal_curve(case.problem, scores, ks=ks)


def test_other_queries_and_other_models_are_refused():
    case = problems.ridge()
    scores = explain(case.problem, case.queries)
    with pytest.raises(BadArgument, match="query=5 of 5"):
        removal_curve(case.problem, scores, 5)
    with pytest.raises(Stale):
        removal_curve(case.problem.at(case.problem.parameters + 1), scores)
