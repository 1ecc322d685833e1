"""Measurements by name against numpy, for every task; what a query without label is measured at."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, softmax
from torch import Tensor

import oracles
from whence.core.losses import make_loss
from whence.core.measurements import contrast, make_measurement, predicted_targets
from whence.core.scores import Measurement
from whence.errors import BadArgument, UnknownName, Unsupported

RANDOM = np.random.default_rng(0)
LOGITS = 2 * RANDOM.standard_normal((8, 4))
COLUMN = 2 * RANDOM.standard_normal((8, 1))
CLASSES = RANDOM.integers(0, 4, 8)
BITS = RANDOM.integers(0, 2, 8)
SIGNS = 2.0 * BITS - 1
LOSS_OF = {
    "classes": "cross_entropy",
    "binary": "binary_cross_entropy",
    "signed": "smooth_hinge:0.5",
    "regression": "mse",
    "location_scale": "concomitant_huber:1.35",
}


def value(name: str | None, task: str, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    function = make_measurement(name, make_loss(LOSS_OF[task])).function
    return function(torch.from_numpy(outputs), torch.from_numpy(targets)).numpy()


def test_measurements_of_classes_are_those_written_out():
    rows, p = np.arange(8), softmax(LOGITS, axis=1)
    own = p[rows, CLASSES]
    assert_allclose(value("logit", "classes", LOGITS, CLASSES), LOGITS[rows, CLASSES])
    assert_allclose(value("log_prob", "classes", LOGITS, CLASSES), np.log(own))
    assert_allclose(value("margin", "classes", LOGITS, CLASSES), np.log(own / (1 - own)))
    assert_allclose(value("loss", "classes", LOGITS, CLASSES), -np.log(own))


def test_measurements_of_one_logit_are_those_written_out():
    p = np.where(BITS == 1, expit(COLUMN[:, 0]), expit(-COLUMN[:, 0]))
    for outputs in (COLUMN, COLUMN[:, 0]):
        assert_allclose(value("margin", "binary", outputs, BITS), np.log(p / (1 - p)))
        assert_allclose(value("log_prob", "binary", outputs, BITS), np.log(p))
        assert_allclose(value("loss", "binary", outputs, BITS), -np.log(p))
        assert_allclose(value("logit", "binary", outputs, BITS), COLUMN[:, 0])
        assert_allclose(value("prediction", "binary", outputs, BITS), COLUMN[:, 0])


def test_measurements_of_a_decision_value_are_those_written_out():
    expected = oracles.SmoothHinge(0.5).value(COLUMN, SIGNS)
    assert_allclose(value("loss", "signed", COLUMN, SIGNS), expected)
    assert_allclose(value("margin", "signed", COLUMN, SIGNS), SIGNS * COLUMN[:, 0])
    for name in ("logit", "prediction"):
        assert_allclose(value(name, "signed", COLUMN, SIGNS), COLUMN[:, 0])


def test_the_prediction_of_a_regression_is_the_mean_of_its_outputs():
    y = RANDOM.standard_normal((8, 4))
    assert_allclose(value("prediction", "regression", LOGITS, y), LOGITS.mean(1))
    assert_allclose(value("prediction", "regression", COLUMN, y), COLUMN[:, 0])
    assert_allclose(value("prediction", "regression", COLUMN[:, 0], y), COLUMN[:, 0])


def test_the_prediction_beside_a_scale_is_the_number_alone():
    outputs = np.stack([COLUMN[:, 0], np.full(8, 0.5)], 1)
    assert_allclose(value("prediction", "location_scale", outputs, SIGNS), COLUMN[:, 0])
    loss = make_loss(LOSS_OF["location_scale"])
    answers = predicted_targets(torch.from_numpy(outputs), loss)
    assert_allclose(answers, COLUMN[:, 0])
    own = value("loss", "location_scale", outputs, answers.numpy())
    assert_allclose(own, 0.5)  # an error of zero costs the scale


def test_the_margin_is_finite_where_the_probability_is_one():
    """log p - log(1 - p) computed from p would be infinite from a logit of 37."""
    far = np.array([[500.0, 0.0, -3.0]])
    expected = 500 - np.logaddexp(0.0, -3.0)
    assert_allclose(value("margin", "classes", far, np.array([0])), expected)
    assert_allclose(value("margin", "binary", np.array([500.0]), np.array([0])), -500)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("classes", "margin"),
        ("binary", "margin"),
        ("signed", "margin"),
        ("regression", "prediction"),
        ("location_scale", "prediction"),
    ],
)
def test_the_default_depends_on_the_task(task, name):
    found = make_measurement(None, make_loss(LOSS_OF[task]))
    assert found.name == name
    assert found.higher_is_better
    assert found.unit


def test_where_outputs_have_no_meaning_the_default_is_the_loss():
    found = make_measurement(None, make_loss(lambda outputs, targets: outputs))
    assert found.name == "loss"
    assert not found.higher_is_better


@pytest.mark.parametrize("task", LOSS_OF)
def test_a_loss_is_better_when_it_is_low_and_has_the_unit_of_the_loss(task):
    loss = make_loss(LOSS_OF[task])
    found = make_measurement("loss", loss)
    assert not found.higher_is_better
    assert found.unit == loss.unit


def test_a_callable_is_measured_as_it_is():
    def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.special.entr(outputs.softmax(1)).sum(1)

    found = make_measurement(entropy, make_loss("cross_entropy"))
    assert found.name == "entropy"
    assert found.function is entropy
    assert make_measurement(found, make_loss("mse")) is found


def test_a_measurement_that_was_read_from_a_file_finds_its_formula_by_name():
    read = Measurement("log_prob", "nats", True)
    found = make_measurement(read, make_loss("cross_entropy"))
    assert found.function is not None
    assert found.unit == "nats"


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UnknownName, match="margin"):
        make_measurement("margins", make_loss("cross_entropy"))


@pytest.mark.parametrize(
    ("task", "name"),
    [("regression", "margin"), ("regression", "log_prob"), ("signed", "log_prob"),
     ("classes", "prediction")],
)  # fmt: skip
def test_a_measurement_without_meaning_names_those_that_have_one(task, name):
    with pytest.raises(Unsupported, match=r"there are: .*loss"):
        make_measurement(name, make_loss(LOSS_OF[task]))


def test_queries_without_labels_are_measured_at_the_answer_of_the_model():
    def answer(task: str, outputs: np.ndarray) -> np.ndarray:
        return predicted_targets(torch.from_numpy(outputs), make_loss(LOSS_OF[task])).numpy()

    assert_allclose(answer("classes", LOGITS), LOGITS.argmax(1))
    assert_allclose(answer("binary", COLUMN), COLUMN[:, 0] > 0)
    assert_allclose(answer("signed", COLUMN), np.sign(COLUMN[:, 0]))
    assert_allclose(answer("regression", COLUMN), COLUMN)
    for task, outputs in (("classes", LOGITS), ("binary", COLUMN), ("signed", COLUMN)):
        measured = value("margin", task, outputs, answer(task, outputs))
        assert task == "classes" or (measured > 0).all()


def test_without_labels_and_meaning_there_is_no_answer():
    with pytest.raises(Unsupported, match="no labels"):
        predicted_targets(torch.zeros(3, 1), make_loss(lambda outputs, targets: outputs))


# ------------------------------------------------------------------ contrasts


@pytest.mark.parametrize("pair", [contrast("cat", "dog"), "contrast:cat:dog", contrast(0, 2)])
def test_a_contrast_is_the_difference_of_two_logits(pair):
    outputs = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.0, 4.0]])
    found = make_measurement(pair, make_loss("cross_entropy"), ["cat", "bird", "dog"])
    assert found.function(outputs, torch.tensor([1, 1])).tolist() == [5.0, -3.5]
    assert found.unit == "logits"
    again = make_measurement(found.name, make_loss("cross_entropy"), ["cat", "bird", "dog"])
    assert again.function(outputs, torch.tensor([1, 1])).tolist() == [5.0, -3.5]


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "hinge"])
def test_a_contrast_of_two_classes_is_the_one_output_with_its_sign(loss):
    outputs = torch.tensor([[0.3], [-2.0]])
    towards = make_measurement("contrast:yes:no", make_loss(loss), ["no", "yes"])
    away = make_measurement("contrast:no:yes", make_loss(loss), ["no", "yes"])
    assert torch.equal(towards.function(outputs, outputs), outputs[:, 0])
    assert torch.equal(away.function(outputs, outputs), -outputs[:, 0])


def test_the_classes_of_a_hinge_are_called_minus_one_and_one_as_well():
    outputs = torch.tensor([[0.3], [-2.0]])
    found = make_measurement("contrast:1:-1", make_loss("hinge"))
    assert torch.equal(found.function(outputs, outputs), outputs[:, 0])


def test_names_of_classes_in_a_contrast_may_hold_colons():
    found = make_measurement("contrast:a:b:c", make_loss("cross_entropy"), ["a:b", "c", "b:c"])
    outputs = torch.tensor([[5.0, 2.0, 0.0]])
    assert found.function(outputs, torch.tensor([0])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("pair", "loss", "error"),
    [
        ("contrast:cat", "cross_entropy", BadArgument),
        ("contrast:cat:", "cross_entropy", BadArgument),
        ("contrast:cat:cow", "cross_entropy", UnknownName),
        ("contrast:cat:7", "cross_entropy", UnknownName),
        ("contrast:cat:dog", "mse", Unsupported),
        ("contrast:cat:dog", "binary_cross_entropy", UnknownName),
    ],
)
def test_a_contrast_that_means_nothing_is_refused(pair, loss, error):
    with pytest.raises(error):
        make_measurement(pair, make_loss(loss), ["cat", "bird", "dog"])


def test_a_class_is_not_contrasted_with_itself():
    with pytest.raises(BadArgument, match="against itself"):
        contrast("cat", "cat")


def test_a_contrast_beyond_the_outputs_says_how_many_there_are():
    found = make_measurement("contrast:0:7", make_loss("cross_entropy"))
    with pytest.raises(BadArgument, match="class 7; the model has 3"):
        found.function(torch.zeros(2, 3), torch.zeros(2))
