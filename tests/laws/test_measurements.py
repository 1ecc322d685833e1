"""Effects on measurements, whatever the model looks like that makes them."""

from contextlib import suppress
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from problems import CONVEX, Case
from whence.adapters import make_problem
from whence.core.measurements import NAMES, make_measurement
from whence.core.problem import Problem
from whence.errors import NotPerExample, UnknownName, Unsupported
from whence.methods.influence import Influence

CLASSIFIERS = ["multinomial", "multinomial_free_intercept", "logistic", "class_weighted"]


def effects(case: Case, measurement: object = None, **options: str) -> np.ndarray:
    method = Influence("exact", **options)
    return method.fit(case.problem).scores(case.queries, measurement).values


def meaningful() -> list[tuple[str, str]]:
    """Every problem with every measurement that has a meaning for it."""
    pairs: list[tuple[str, str]] = []
    for name, measurement in product(CONVEX, NAMES):
        with suppress(Unsupported):
            make_measurement(measurement, CONVEX[name]().problem.loss)
            pairs.append((name, measurement))
    return pairs


@pytest.mark.parametrize(("name", "measurement"), meaningful())
@pytest.mark.parametrize("removal", ["first_order", "newton"])
def test_a_small_finite_change_is_a_linear_one(name, measurement, removal):
    """A base weight of 1e-5 makes the step of example 11 so small that its square does not show."""
    case = CONVEX[name]()
    weights = case.problem.weights.clone()
    weights[11] = 1e-5
    light = Case(replace(case.problem, weights=weights), case.queries)
    linear = effects(light, measurement, removal=removal)[:, 11]
    finite = effects(light, measurement, removal=removal, change="finite")[:, 11]
    assert abs(linear).max() > 0
    assert_allclose(finite, linear, atol=1e-3 * abs(linear).max())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_loss_is_minus_the_log_probability(name):
    case = CONVEX[name]()
    assert_allclose(effects(case, "loss"), -effects(case, "log_prob"), atol=1e-12)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_margin_moves_as_the_log_probability_over_that_of_the_other_classes(name):
    """d margin = d log p / (1 - p)."""
    case = CONVEX[name]()
    scores = Influence("exact").fit(case.problem).scores(case.queries, "log_prob")
    p = np.exp(scores.baseline)[:, None]
    assert_allclose(effects(case, "margin") * (1 - p), scores.values, atol=1e-12)


@pytest.mark.parametrize("removal", ["first_order", "newton"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("measurement", ["margin", "log_prob", "loss"])
def test_one_logit_and_two_logits_are_the_same_model(removal, renormalize, measurement):
    """f = w . x against (-w/2, w/2) . x with twice the decay: |W|^2 is half of |w|^2."""
    one = problems.logistic()
    inputs, targets = one.problem.data.take(torch.arange(60))
    weight, bias = one.problem.model.weight.detach(), one.problem.model.bias.detach()
    model = nn.Linear(4, 2).double()
    model.load_state_dict(
        {"weight": torch.cat([-weight, weight]) / 2, "bias": torch.cat([-bias, bias]) / 2}
    )
    problem = make_problem(
        model,
        (inputs, targets.long()),
        loss="cross_entropy",
        weight_decay=2 * one.problem.regularizer.weight_decay,
    )
    two = Case(problem, (one.queries[0], one.queries[1].long()))
    if renormalize:
        one, two = one.renormalized(), two.renormalized()
    for change in ("linear", "finite"):
        expected = effects(one, measurement, removal=removal, change=change)
        actual = effects(two, measurement, removal=removal, change=change)
        assert_allclose(actual, expected, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied", "branching", "multinomial"])
def test_a_callable_is_measured_like_the_name_it_stands_for(name):
    case = problems.ALL[name]()
    loss = case.problem.loss

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss.function(outputs, targets)

    assert_allclose(effects(case, own), effects(case, "loss"), atol=1e-14)


def test_a_measurement_may_use_all_outputs_of_its_query():
    case = problems.multinomial()

    def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.special.entr(outputs.softmax(1)).sum(1)

    step = 1e-4
    nudges = np.eye(60)[7] * step
    start = case.oracle.optimum()

    def at(w: np.ndarray) -> Tensor:
        x, _ = case.query_design()
        outputs = torch.from_numpy(case.oracle.predict(case.oracle.optimum(w, start), x))
        return entropy(outputs, case.queries[1])

    expected = -(at(1 + nudges) - at(1 - nudges)) / (2 * step)
    actual = effects(case, entropy, removal="first_order")[:, 7]
    assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_every_named_measurement_of_a_network_is_finite_or_has_no_meaning(name):
    case = problems.ALL[name]()
    for measurement in (None, *NAMES):
        with suppress(Unsupported):
            found = effects(case, measurement)
            assert np.isfinite(found).all()
            assert found.any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_query_without_label_is_measured_at_the_answer_of_the_model(name):
    case = CONVEX[name]()
    inputs, _ = case.queries
    outputs = case.problem.outputs(case.problem.parameters, inputs)
    answers = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    labelled = effects(Case(case.problem, (inputs, answers)))
    fitted = Influence("exact").fit(case.problem)
    assert np.array_equal(fitted.scores(inputs).values, labelled)


def test_the_sign_of_a_label_is_the_sign_of_the_margin():
    case = problems.logistic()
    inputs, targets = case.queries
    flipped = Case(case.problem, (inputs, 1 - targets))
    assert_allclose(effects(flipped), -effects(case), atol=1e-14)


def fitted_problem() -> Problem:
    return problems.multinomial().problem


def test_unknown_and_meaningless_measurements_are_refused():
    fitted = Influence("exact").fit(fitted_problem())
    queries = problems.multinomial().queries
    with pytest.raises(UnknownName, match="margin"):
        fitted.scores(queries, "margn")
    with pytest.raises(Unsupported, match="prediction"):
        fitted.scores(queries, "prediction")
    with pytest.raises(NotPerExample, match="one value per query"):
        fitted.scores(queries, lambda outputs, targets: outputs)
