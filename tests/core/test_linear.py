"""Linear layers, their regularisers, and what stands for a loss with kinks."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from whence.core.linear import LinearObjective, ScaledLinear, linear_layer, smooth_loss
from whence.errors import BadArgument

RANDOM = np.random.default_rng(0)
WEIGHT, BIAS = RANDOM.standard_normal((2, 3)), RANDOM.standard_normal(2)
X = RANDOM.standard_normal((5, 3))


def test_a_layer_holds_the_coefficients_and_draws_nothing():
    before = torch.get_rng_state()
    layer = linear_layer(WEIGHT, BIAS)
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.training
    assert_allclose(layer(torch.from_numpy(X)).detach(), X @ WEIGHT.T + BIAS)
    assert_allclose(linear_layer(WEIGHT, None)(torch.from_numpy(X)).detach(), X @ WEIGHT.T)


@pytest.mark.parametrize("bias", [BIAS[:1], None])
def test_a_scale_stands_beside_the_prediction(bias):
    model = ScaledLinear(linear_layer(WEIGHT[:1], bias), 0.7)
    found = model(torch.from_numpy(X)).detach().numpy()
    assert_allclose(found[:, 0], X @ WEIGHT[0] + (0 if bias is None else bias[0]))
    assert_allclose(found[:, 1], 0.7)
    names = ["weight", "bias", "scale"] if bias is not None else ["weight", "scale"]
    assert [name for name, _ in model.named_parameters()] == names
    assert not model.training


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (LinearObjective("mse", 6.0), 3 * (WEIGHT**2).sum() / 60),
        (LinearObjective("mse", 6.0, beside_mean=True), 3 * (WEIGHT**2).sum()),
        (
            LinearObjective("mse", 6.0, intercept_scaling=1.0),
            3 * ((WEIGHT**2).sum() + (BIAS**2).sum()) / 60,
        ),
        (
            LinearObjective("mse", 6.0, intercept_scaling=2.0),
            3 * ((WEIGHT**2).sum() + (BIAS**2).sum() / 4) / 60,
        ),
    ],
)
def test_the_regulariser_stands_beside_the_mean_loss(objective, expected):
    named = {"weight": torch.from_numpy(WEIGHT), "bias": torch.from_numpy(BIAS)}
    assert float(objective.regularizer(60)(named)) == pytest.approx(expected)


def test_a_loss_with_kinks_gets_a_smooth_one_in_its_own_unit():
    y = 50 * RANDOM.standard_normal(40)
    loss, notes = smooth_loss("hinge", None, kind="SVC", targets=np.sign(y))
    assert loss.name == "smooth_hinge:0.001"
    assert "effects are computed with smooth_hinge:0.001" in notes[0]
    loss, _ = smooth_loss("epsilon_insensitive:0.5", None, kind="LinearSVR", targets=y)
    assert loss.name == f"smooth_epsilon_insensitive:0.5:{0.001 * y.std():.3g}"
    loss, _ = smooth_loss("epsilon_insensitive:0.5", None, kind="LinearSVR", targets=np.ones(40))
    assert loss.name == "smooth_epsilon_insensitive:0.5:0.001"  # targets without a spread


def test_a_loss_may_be_kept_with_its_kinks_or_rounded_more():
    kept, notes = smooth_loss("hinge", "hinge", kind="SVC", targets=np.ones(4))
    assert (kept.name, notes) == ("hinge", ())
    wide, _ = smooth_loss("hinge", "smooth_hinge:0.5", kind="SVC", targets=np.ones(4))
    assert wide.name == "smooth_hinge:0.5"
    smooth, notes = smooth_loss("mse", None, kind="Ridge", targets=np.ones(4))
    assert (smooth.name, notes) == ("mse", ())


@pytest.mark.parametrize(
    ("fitted", "asked"),
    [
        ("hinge", "mse"),
        ("hinge", "squared_hinge"),
        ("epsilon_insensitive:0.5", "smooth_epsilon_insensitive:0.4:0.1"),
        ("epsilon_insensitive:0.5", "epsilon_insensitive:0.4"),
    ],
)
def test_another_loss_than_the_fitted_one_is_refused_with_its_smooth_form(fitted, asked):
    with pytest.raises(BadArgument, match=f'"smooth_{fitted}:TEMPERATURE"'):
        smooth_loss(fitted, asked, kind="SVC", targets=np.ones(4))
