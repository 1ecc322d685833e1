"""What retraining shows, and how much of it is noise."""

import numpy as np
import pytest
import torch
from torch import Tensor

from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.core.training import CallableTraining, Retrained, Trainer
from whence.errors import BadArgument, NonFinite
from whence.numerics import stats
from whence.verification import Bench, verify

NAN = float("nan")


def optimum(problem: Problem, weights: Tensor) -> Tensor:
    return NewtonTraining().retrain(problem, weights[None]).parameters[0]


# -------------------------------------------------------------------------------- noise


def test_the_noise_of_a_training_is_measured_and_limits_the_correlation(ridge, monkeypatch):
    monkeypatch.setattr("whence.verification.truth._REPEATS", 8)
    problem, scores = ridge
    effects = scores.values[:1]
    noise = 2 * effects.std()

    def noisy(weights: Tensor, seed: int) -> Tensor:
        """The optimum; the intercept, which moves every prediction alike, is off by chance."""
        theta = optimum(problem, weights).clone()
        key = seed * 1000 + int((weights == 0).nonzero().sum()) + 500 * int(weights.min())
        theta[-1] += noise * torch.randn((), generator=torch.Generator().manual_seed(key)).item()
        return theta

    one = verify(problem, scores, examples=40, queries=[0], training=noisy)
    # an effect is the difference of two trainings; eight repeats of eight removals know the
    # variance to about sqrt(2 / 64), the shared control makes it somewhat worse
    assert one.noise_variance[0] == pytest.approx(2 * noise**2, rel=0.6)
    expected = np.sqrt(max(0.0, 1 - one.noise_variance[0] / one.actual.var(ddof=1)))
    assert one.noise_ceiling == pytest.approx(expected)
    assert one.noise_ceiling < 0.8
    assert "noisy" in one.sentence


def test_a_training_that_wrongly_calls_itself_deterministic_is_found_out(ridge):
    problem, scores = ridge

    def noisy(weights: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(problem.size, generator=generator, dtype=torch.float64)
        return optimum(problem, weights) * (1 + 0.1 * noise)

    training = CallableTraining(noisy, is_deterministic=True)
    assert verify(problem, scores, examples=10, training=training).noise_variance.min() > 0


def test_newton_steps_report_the_noise_that_their_tolerance_leaves(multinomial):
    problem, scores = multinomial
    fine = verify(problem, scores, examples=20)
    rough = verify(problem, scores, examples=20, training=NewtonTraining(tolerance=1e-3))
    assert 0 < fine.noise_variance.max() < 1e-6 * rough.noise_variance.max()
    error = np.abs(rough.actual - fine.actual).max(axis=1)
    assert (error <= 10 * np.sqrt(rough.noise_variance)).all()
    assert fine.noise_ceiling > 0.999999


# ------------------------------------------------------------------------------- seeds


def test_every_seed_has_its_own_control_and_the_first_is_that_of_the_training(network):
    problem, scores = network
    check = verify(problem, scores, subsets=4, seeds=3)
    weights = check.truth.removals.weights()
    bench = Bench(problem, problem.training, scores.measurement, problem.queries(_asked(scores)))
    for seed, effects in enumerate(check.truth.runs):
        values = bench.values(problem.retrain(weights, seed=seed).parameters)
        np.testing.assert_allclose(effects, values[:, 1:] - values[:, :1], atol=1e-12)
    np.testing.assert_allclose(check.actual, check.truth.runs.mean(0))
    control = bench.values(problem.retrain(seed=0).parameters)[:, 0]
    np.testing.assert_allclose(control, scores.baseline, atol=1e-12)


def _asked(scores: Scores) -> tuple[Tensor, Tensor]:
    return tuple(torch.from_numpy(scores.queries[name].copy()) for name in ("inputs", "targets"))


def test_effects_that_add_up_are_found_to_do_so(ridge, additive):
    """Parameters linear in the weights: sums of effects are exact for any subset."""
    problem, scores = ridge
    known = additive(problem)
    check = verify(problem, known.scores(scores), training=known.training, subsets=20, fraction=0.3)
    np.testing.assert_allclose(check.predicted, check.actual, rtol=1e-9, atol=1e-10)
    assert check.lds == check.pearson == pytest.approx(1)
    assert check.slope == pytest.approx(1)
    assert check.noise_ceiling == pytest.approx(1)
    assert check.verdict == "believe the numbers"


def test_true_effects_reach_the_noise_ceiling_and_another_training_the_reliability(ridge, additive):
    problem, scores = ridge
    known = additive(problem, noise=6.0)
    again = CallableTraining(lambda weights, seed: known(weights, seed + 50))
    check, other = (
        verify(problem, known.scores(scores), training=training, subsets=300, seeds=2)
        for training in (known.training, again)
    )
    assert 0.3 < check.reliability < 0.95
    # a rank correlation over 300 subsets has a standard error below 1 / sqrt(300)
    assert check.lds == pytest.approx(check.noise_ceiling, abs=3 / 300**0.5)
    agreement = stats.mean(stats.spearman(check.actual, other.actual))
    assert agreement == pytest.approx(check.reliability, abs=3 / 300**0.5)


def test_subsets_are_trained_under_two_seeds_where_the_seed_matters(network, ridge):
    assert verify(*network, subsets=3).truth.seeds == 2
    assert verify(*ridge, subsets=3).truth.seeds == 1


def test_several_seeds_tell_the_noise_of_leave_one_out(ridge, additive):
    problem, scores = ridge
    known = additive(problem, noise=1.0)
    check = verify(problem, scores, training=known.training, examples=40, seeds=12)
    inputs = np.hstack([scores.queries["inputs"], np.ones((len(scores.values), 1))])
    expected = (inputs**2).sum(1) / 12  # of the mean over seeds; the control's share is common
    # 11 x 39 degrees of freedom: a relative standard error of 7 %
    np.testing.assert_allclose(check.noise_variance, expected, rtol=0.3)


@pytest.mark.parametrize("seeds", [0, -1, 2])
def test_seeds_that_cannot_be_are_refused(ridge, seeds):
    with pytest.raises(BadArgument, match="seeds"):
        verify(*ridge, subsets=5, seeds=seeds)


class Diverging(Trainer):
    """Ends at NaN where the first example is left out."""

    name = "diverging"
    is_deterministic = True

    def retrain(self, problem: Problem, weights: Tensor, *, seed: int = 0) -> Retrained:
        thetas = problem.parameters.expand(len(weights), -1).clone()
        thetas[weights[:, 0] == 0] = float("nan")
        return Retrained(thetas)


def test_a_training_that_diverges_is_named(ridge):
    problem, scores = ridge
    ids = problem.data.ids[:3].tolist()
    with pytest.raises(NonFinite, match="1 of 4 trainings with the seeds 0 "):
        verify(problem, scores, training=Diverging(), examples=ids)
