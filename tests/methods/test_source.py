"""SOURCE against dense algebra, and against influence with the damping it brings along."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import problems
from problems import Case
from whence.calculus.gradients import gradients, measurement_gradients
from whence.calculus.optimizers import SGD
from whence.calculus.training import Training
from whence.curvature.ekfac import EKFAC
from whence.errors import BadArgument, CannotRetrain
from whence.methods.influence import Influence
from whence.methods.source import FittedSource, Source
from whence.numerics.stats import spearman


def case_of(lr: float = 0.1, epochs: int = 12) -> Case:
    case = problems.mlp_untrained()
    training = Training(case.problem.model, SGD(0.5), lr=lr, epochs=epochs, batch_size=10)
    problem = replace(case.problem, training=training)
    return replace(case, problem=problem.at(problem.retrain().parameters[0]))


def by_dense_algebra(case: Case, fitted: FittedSource) -> np.ndarray:
    """The formula with every matrix written out."""
    problem, size = case.problem, case.problem.size
    asked, measured = problem.queries(case.queries), problem.measurement(None)
    _, slopes = measurement_gradients(problem, measured, asked)
    everyone, identity = problem.batch(torch.arange(30)), torch.eye(size, dtype=torch.float64)
    total, after = 0.0, identity
    for stretch in reversed(fitted.stretches):
        shrink = stretch.segment.shrink(identity)
        mean = sum(gradients(problem.at(c.parameters), everyone) for c in stretch.checkpoints)
        mean = mean / len(stretch.checkpoints)
        moved = mean @ stretch.segment.respond(identity)  # symmetric
        total = total + slopes @ after @ moved.T / 30
        after = after @ shrink
    return total.numpy()


@pytest.mark.parametrize(("segments", "checkpoints"), [(1, 1), (1, 3), (3, 3), (3, 6)])
def test_scores_are_the_formula_with_matrices_written_out(segments, checkpoints):
    case = case_of()
    fitted = Source(segments, checkpoints).fit(case.problem)
    found = fitted.scores(case.queries)
    assert_allclose(found.values, by_dense_algebra(case, fitted), rtol=1e-8, atol=1e-12)
    assert found.unit == "logits"


def test_one_segment_is_influence_with_a_damping_of_one_over_time():
    """(1 - exp(-t x)) / x and 1 / (x + 1/t) differ by 30 % at the most; ranks stay."""
    case = case_of(lr=1e-9)  # goes nowhere: the checkpoint is the model
    theta = case.problem.parameters
    still = replace(case.problem.training, init=case.problem.model)
    problem = replace(case.problem, training=still)
    fitted = Source(1, 1).fit(problem)
    (stretch,) = fitted.stretches
    segment = replace(stretch.segment, times=(20.0,) * len(stretch.segment.times))
    fitted = replace(fitted, stretches=(replace(stretch, segment=segment),))
    damped = Influence(EKFAC(damping=1 / 20, tolerance=0.0), removal="first_order")
    expected = damped.fit(problem.at(theta)).scores(case.queries).values
    found = fitted.scores(case.queries).values
    assert spearman(found, expected).min() > 0.95
    ratio = (found * expected).sum() / (expected**2).sum()
    assert 1.0 < ratio < 1.3


def test_a_longer_training_makes_larger_effects():
    """A constant force moves as far as curvature lets it, or as time does."""
    short, long = (Source(1, 1).fit(case_of(epochs=n).problem) for n in (3, 30))
    few, many = (f.stretches[0].segment.times[0] for f in (short, long))
    assert many == pytest.approx(10 * few)
    assert few == pytest.approx(9 * 0.1 / 0.5)  # steps, rate, momentum
    assert short.report["derived_damping"] == [pytest.approx(1 / few)]


@pytest.mark.parametrize("options", [(3, 4), (0, 3), (2, 0)])
def test_checkpoints_that_do_not_fit_segments_are_refused(options):
    with pytest.raises(BadArgument):
        Source(*options).fit(case_of().problem)


def test_a_problem_without_training_is_refused():
    with pytest.raises(CannotRetrain, match=r"whence\.Training"):
        Source().fit(problems.mlp_untrained().problem)
