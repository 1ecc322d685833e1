"""Losses by name against numpy, and the labels they refuse."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from oracles import Logistic, SmoothHinge, Softmax, Squared
from whence.core.losses import LOSSES, PARAMETRIC, Loss, cross_entropy, make_loss
from whence.errors import BadArgument, BadData, UnknownName

RANDOM = np.random.default_rng(0)
LOGITS = 3 * RANDOM.standard_normal((8, 4))
COLUMN = 3 * RANDOM.standard_normal((8, 1))
CLASSES = RANDOM.integers(0, 4, 8)
BITS = RANDOM.integers(0, 2, 8)
SIGNS = 2.0 * BITS - 1


def value(name: str, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return make_loss(name)(torch.from_numpy(outputs), torch.from_numpy(targets)).numpy()


def test_losses_are_those_written_out():
    y = RANDOM.standard_normal((8, 4))
    assert_allclose(value("cross_entropy", LOGITS, CLASSES), Softmax().value(LOGITS, CLASSES))
    assert_allclose(value("binary_cross_entropy", COLUMN, BITS), Logistic().value(COLUMN, BITS))
    assert_allclose(value("mse", LOGITS, y), Squared().value(LOGITS, y))
    margin = SIGNS * COLUMN[:, 0]
    assert_allclose(value("hinge", COLUMN, SIGNS), np.maximum(0, 1 - margin))
    assert_allclose(value("squared_hinge", COLUMN, SIGNS), np.maximum(0, 1 - margin) ** 2)
    for t in (0.001, 0.5):
        expected = SmoothHinge(t).value(COLUMN, SIGNS)
        assert_allclose(value(f"smooth_hinge:{t}", COLUMN, SIGNS), expected, atol=1e-14)


def test_insensitive_losses_are_those_written_out():
    y = RANDOM.standard_normal((8, 4))
    size = np.maximum(0, np.abs(LOGITS - y) - 0.7)
    assert_allclose(value("epsilon_insensitive:0.7", LOGITS, y), size.mean(1))
    assert_allclose(value("squared_epsilon_insensitive:0.7", LOGITS, y), (size**2).mean(1))
    for width, t in ((0.7, 0.5), (0.0, 0.001)):
        sides = [np.logaddexp(0, (r - width) / t) for r in (LOGITS - y, y - LOGITS)]
        found = value(f"smooth_epsilon_insensitive:{width}:{t}", LOGITS, y)
        assert_allclose(found, t * (sides[0] + sides[1]).mean(1), atol=1e-14)


def test_the_smooth_insensitive_loss_lies_at_most_two_t_log_two_above():
    y = np.linspace(-3, 3, 8)
    kinked = value("epsilon_insensitive:0.5", COLUMN, y)
    gap = value("smooth_epsilon_insensitive:0.5:0.01", COLUMN, y) - kinked
    assert ((gap >= 0) & (gap <= 0.02 * np.log(2))).all()
    assert_allclose(value("smooth_epsilon_insensitive:0.5:1e-9", COLUMN, y), kinked, atol=2e-9)


def test_a_huber_loss_with_its_scale_is_that_of_errors_in_units_of_the_scale():
    f, s, y = RANDOM.standard_normal(50), RANDOM.uniform(0.1, 2, 50), RANDOM.standard_normal(50)
    z = np.abs(f - y) / s
    huber = np.where(z <= 1.35, z**2, 2 * 1.35 * z - 1.35**2)
    assert_allclose(value("concomitant_huber:1.35", np.stack([f, s], 1), y), s + s * huber)
    assert 0 < (z <= 1.35).sum() < 50


def test_a_huber_loss_is_convex_in_number_and_scale_together():
    loss = make_loss("concomitant_huber:1.35")
    y = torch.from_numpy(RANDOM.standard_normal(50))
    one, two = torch.from_numpy(RANDOM.uniform(0.1, 2, (2, 50, 2)))
    between = loss((one + two) / 2, y)
    assert (between <= (loss(one, y) + loss(two, y)) / 2 + 1e-12).all()
    # without a jump in value or slope where squares end
    edge = torch.tensor([[1.35 * 0.8, 0.8]], dtype=torch.float64).requires_grad_()
    for side in (1 - 1e-9, 1 + 1e-9):
        at = (edge * torch.tensor([side, 1.0])).detach().requires_grad_()
        found = loss(at, torch.zeros(1, dtype=torch.float64))
        (slope,) = torch.autograd.grad(found.sum(), at)
        expected = torch.tensor([[2 * 1.35, 1 - 1.35**2]], dtype=torch.float64)
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["epsilon_insensitive:0", "squared_epsilon_insensitive:0.1"])
def test_insensitive_losses_want_a_target_for_each_output(name):
    with pytest.raises(BadData, match="as many targets"):
        value(name, LOGITS, COLUMN)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "mse", "hinge", "squared_hinge"])
def test_a_column_and_a_vector_mean_the_same(name):
    y = BITS if name == "binary_cross_entropy" else SIGNS
    expected = value(name, COLUMN, y)
    assert expected.shape == (8,)
    assert_allclose(value(name, COLUMN[:, 0], y), expected)
    assert_allclose(value(name, COLUMN, y[:, None]), expected)
    assert_allclose(value(name, COLUMN[:, 0], y[:, None]), expected)


def test_the_cross_entropy_of_a_sequence_is_summed_over_its_positions():
    logits = RANDOM.standard_normal((3, 4, 5))
    y = RANDOM.integers(0, 4, (3, 5))
    y[1, 2] = -100
    expected = [
        sum(
            Softmax().value(logits[b, :, t][None], y[b, t : t + 1])[0]
            for t in range(5)
            if y[b, t] >= 0
        )
        for b in range(3)
    ]
    assert_allclose(value("cross_entropy", logits, y), expected)


@pytest.mark.parametrize("logit", [-800.0, 800.0])
@pytest.mark.parametrize("bit", [0, 1])
def test_extreme_logits_are_neither_infinite_nor_zero_by_rounding(logit, bit):
    expected = max(0.0, -logit if bit else logit)
    found = value("binary_cross_entropy", np.array([[logit]]), np.array([bit]))
    assert_allclose(found, expected)
    assert_allclose(value("cross_entropy", np.array([[0.0, logit]]), np.array([bit])), expected)
    signed = value("smooth_hinge:0.001", np.array([logit]), np.array([2.0 * bit - 1]))
    assert_allclose(signed, max(0.0, 1 - (2 * bit - 1) * logit), atol=1e-12)


NUMBERED = [
    "smooth_hinge:0.1",
    "epsilon_insensitive:0",
    "squared_epsilon_insensitive:0.123456789",
    "smooth_epsilon_insensitive:0.1:0.001",
    "concomitant_huber:1.35",
]


@pytest.mark.parametrize("name", [*LOSSES, *NUMBERED])
def test_every_loss_says_its_name_task_and_unit(name):
    loss = make_loss(name)
    assert loss.name == name
    assert loss.task in ("classes", "binary", "signed", "regression", "location_scale")
    assert loss.unit
    assert make_loss(loss) is loss


def test_a_callable_is_a_loss_of_unknown_task():
    loss = make_loss(partial(F.cross_entropy, reduction="none"))
    assert loss.name == "cross_entropy"
    assert loss.task == "unknown"
    expected = Softmax().value(LOGITS, CLASSES)
    assert_allclose(loss(torch.from_numpy(LOGITS), torch.from_numpy(CLASSES)), expected)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UnknownName, match="cross_entropy"):
        make_loss("crossentropy")


@pytest.mark.parametrize("temperature", ["", "0", "-1", "nan", "warm"])
def test_a_smooth_hinge_needs_a_temperature(temperature):
    with pytest.raises(BadArgument, match="temperature"):
        make_loss(f"smooth_hinge:{temperature}")


def test_every_loss_with_numbers_is_tried_here():
    assert {name.partition(":")[0] for name in NUMBERED} == {
        form.partition(":")[0] for form in PARAMETRIC
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epsilon_insensitive", "with numbers in place"),
        ("epsilon_insensitive:0.1:0.2", "with numbers in place"),
        ("smooth_epsilon_insensitive:0.1", "width:temperature"),
        ("smooth_epsilon_insensitive:0.1:0", "temperature 0"),
        ("smooth_epsilon_insensitive:-1:0.1", "width"),
        ("squared_epsilon_insensitive:nan", "width"),
        ("epsilon_insensitive:inf", "width"),
        ("concomitant_huber:1", "threshold"),
    ],
)
def test_numbers_that_a_loss_has_no_meaning_for_are_refused(name, words):
    with pytest.raises(BadArgument, match=words):
        make_loss(name)


@pytest.mark.parametrize(
    ("name", "targets", "label"),
    [
        ("cross_entropy", [0, 4, 1], "4"),
        ("cross_entropy", [0, -1, 1], "-1"),
        ("binary_cross_entropy", [0, 2, 1], "2"),
        ("binary_cross_entropy", [0, -1, 1], "-1"),
        ("binary_cross_entropy", [0.0, 0.5, 1.0], "0.5"),
        ("hinge", [1, 0, -1], "0"),
    ],
)
def test_a_label_out_of_range_names_the_example(name, targets, label):
    outputs = torch.from_numpy(LOGITS if name == "cross_entropy" else COLUMN)
    with pytest.raises(BadData, match=f"second has the label {label}"):
        make_loss(name).check_targets(
            torch.tensor(targets), outputs, names=["first", "second", "third"]
        )


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("cross_entropy", [0, 3, -100]),
        ("binary_cross_entropy", [0.0, 1.0]),
        ("hinge", [-1, 1]),
        ("mse", [3.5, -100.0]),
    ],
)
def test_allowed_labels_pass(name, targets):
    outputs = torch.from_numpy(LOGITS if name == "cross_entropy" else COLUMN)
    make_loss(name).check_targets(torch.tensor(targets), outputs, names=range(3))


def test_classes_that_come_last_are_refused_with_the_way_to_put_them_first():
    targets = torch.zeros(2, 7, dtype=torch.long)
    with pytest.raises(BadData, match="classes come last") as refused:
        make_loss("cross_entropy").check_targets(targets, torch.zeros(2, 7, 5), names="ab")
    assert "movedim(-1, 1)" in refused.value.remedy
    make_loss("cross_entropy").check_targets(targets, torch.zeros(2, 5, 7), names="ab")
    make_loss("cross_entropy").check_targets(targets, torch.zeros(2, 7, 7), names="ab")


def test_classes_as_floats_are_refused_with_the_remedy():
    with pytest.raises(BadData, match="astype"):
        make_loss("cross_entropy").check_targets(
            torch.ones(3), torch.from_numpy(LOGITS), names=range(3)
        )


def test_a_loss_is_a_value():
    assert Loss("a", cross_entropy, "classes") == Loss("a", cross_entropy, "classes")
