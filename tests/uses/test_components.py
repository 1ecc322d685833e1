"""The factors of an effect against their closed forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

import problems
from oracles import Logistic
from problems import Case, linear_case
from whence.core.losses import make_loss
from whence.curvature.cg import CG
from whence.errors import Unsupported
from whence.explanation import explain, fit
from whence.methods.base import Fitted
from whence.methods.influence import Influence
from whence.sections import Scatter, Table
from whence.uses.components import VARIANTS, components

CONVENTIONS = pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])


def signed(y: np.ndarray) -> np.ndarray:
    return 2.0 * y - 1


def pixels() -> Case:
    """Binary logistic regression without an intercept on inputs that are never negative."""
    random = np.random.default_rng(3)
    x = random.random((90, 6))
    y = (random.random(90) < expit(3 * x @ random.standard_normal(6))).astype(np.int64)
    queries = (x[80:], y[80:])
    return linear_case(
        x[:80], y[:80], Logistic(), weight_decay=0.02, queries=queries, intercept="none"
    )


@CONVENTIONS
def test_every_variant_is_the_closed_form_of_binary_logistic_regression(renormalize):
    """Koh & Liang 2017, section 2.3, with the regulariser in grad loss where they have it."""
    case = pixels()
    case = case.renormalized() if renormalize else case
    oracle = case.oracle
    theta = oracle.optimum()
    x, y = oracle.x, signed(oracle.y)
    xq, yq = case.query_design()[0], signed(case.query_design()[1])
    wrongness = expit(-y * (x @ theta))  # sigma(-y theta x)
    query_slope = -(expit(-yq * (xq @ theta)) * yq)[:, None] * xq
    inverse = np.linalg.inv(oracle.hessian(theta))
    slopes = -(wrongness * y)[:, None] * x
    if renormalize:
        slopes = slopes + 0.02 * theta  # minus the mean gradient, which is -0.02 theta here
    alone = -y[:, None] * x
    count = len(x)

    found = components(case.problem, case.queries)

    expected = {
        "full": query_slope @ inverse @ slopes.T / count,
        "without_train_loss": query_slope @ inverse @ alone.T / count,
        "without_hessian": query_slope @ slopes.T / count,
        "without_both": query_slope @ alone.T / count,
    }
    assert list(expected) == list(VARIANTS)
    for name, values in expected.items():
        scale = abs(values).max()
        assert_allclose(getattr(found, name), values, rtol=1e-8, atol=1e-9 * scale)
    assert_allclose(found.losses, np.log1p(np.exp(-y * (x @ theta))), rtol=1e-10)
    assert (found.is_same_label == (yq[:, None] == y)).all()


@CONVENTIONS
@pytest.mark.parametrize("name", ["multinomial", "ridge_weighted", "class_weighted"])
def test_the_full_variant_is_the_first_order_effect(name, renormalize):
    case = problems.CONVEX[name]()
    case = case.renormalized() if renormalize else case
    for measurement in ("loss", None):
        scores = explain(
            case.problem,
            case.queries,
            measurement=measurement,
            method=Influence(removal="first_order"),
        )
        found = components(case.problem, case.queries, measurement=measurement)
        scale = abs(scores.values).max()
        assert_allclose(found.full, scores.values, rtol=1e-9, atol=1e-12 * scale)


def test_a_softmax_loses_the_factor_one_minus_p():
    case = problems.multinomial()
    oracle = case.oracle
    theta = oracle.optimum()
    p = np.exp(oracle.predict(theta))
    p = (p / p.sum(1, keepdims=True))[np.arange(len(oracle)), oracle.y]
    found = components(case.problem, case.queries)
    assert_allclose(found.without_train_loss * (1 - p), found.full, rtol=1e-8, atol=1e-14)


def test_without_train_loss_the_examples_of_low_loss_weigh_more():
    """They are divided by the small |r_i|; this holds for every loss that grows with |r_i|."""
    for case in (pixels(), problems.multinomial(), problems.logistic()):
        found = components(case.problem, case.queries)
        for query in range(len(found.query_ids)):
            numbers = found.numbers(query)
            shares = [numbers[name]["low_loss_share"] for name in VARIANTS]
            assert shares[1] > shares[0]
            assert shares[3] > shares[2]


def test_without_curvature_all_of_the_label_look_helpful_on_inputs_that_are_never_negative():
    """Then x . x' >= 0, so the sign of the product is that of y y'; with H it is not."""
    found = components(pixels().problem, pixels().queries)
    full_helps = []
    for query in range(len(found.query_ids)):
        numbers = found.numbers(query)
        for name in ("without_hessian", "without_both"):
            assert numbers[name]["same_label_helps"] == 1
            assert numbers[name]["other_label_harms"] == 1
        full_helps.append(numbers["full"]["same_label_helps"])
    assert max(full_helps) < 1


def test_the_sign_pattern_follows_the_measurement():
    """What raises the loss lowers the log-probability: the same examples help."""
    case = pixels()
    by_loss = components(case.problem, case.queries, measurement="loss").numbers(0)
    by_log_prob = components(case.problem, case.queries, measurement="log_prob").numbers(0)
    for name in VARIANTS:
        assert by_loss[name] == pytest.approx(by_log_prob[name], rel=1e-9)


def test_numbers_are_those_of_their_definition():
    case = pixels()
    found = components(case.problem, case.queries)
    effects, bare = found.full[2], found.without_train_loss[2]
    numbers = found.numbers(2)["without_train_loss"]
    assert numbers["pearson"] == pytest.approx(np.corrcoef(effects, bare)[0, 1])
    lowest = found.losses <= np.median(found.losses)
    assert lowest.sum() == 40
    assert numbers["low_loss_share"] == pytest.approx(abs(bare[lowest]).sum() / abs(bare).sum())
    same = found.is_same_label[2]
    assert numbers["same_label_helps"] == pytest.approx((bare[same] > 0).mean())
    assert numbers["other_label_harms"] == pytest.approx((bare[~same] < 0).mean())
    each = [found.numbers(query)["full"]["low_loss_share"] for query in range(10)]
    assert found.medians()["full"]["low_loss_share"] == pytest.approx(np.median(each))


def test_an_example_without_residual_stays_at_zero_and_is_counted():
    """Beyond its margin the hinge has no derivative, and so no direction."""
    case = problems.smooth_hinge()
    problem = replace(case.problem, loss=make_loss("hinge"))
    found = components(problem, case.queries, measurement="margin")
    outside = found.losses == 0
    assert 0 < outside.sum() < len(outside)
    assert found.report["zero_residuals"] == outside.sum()
    assert (found.without_train_loss[:, outside] == 0).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_change_nothing(monkeypatch, batch_size):
    case = pixels()
    whole = components(case.problem, case.queries)
    monkeypatch.setattr(type(case.problem), "batch_size", lambda self, stack=1: batch_size)
    parts = components(case.problem, case.queries)
    for name in VARIANTS:
        assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-16)


def test_any_influence_method_will_do_and_is_taken_to_first_order():
    case = pixels()
    exact = components(case.problem, case.queries)
    for method in ("exact", CG(tolerance=1e-10), fit(case.problem, Influence(removal="newton"))):
        method = Influence(method) if isinstance(method, CG) else method
        found = components(case.problem, case.queries, method=method)
        assert_allclose(found.full, exact.full, rtol=1e-6, atol=1e-12)
        assert found.report["removal"] == "first_order"


def test_a_method_without_a_curvature_is_refused():
    class Guess(Fitted):
        def scores(self, queries, measurement=None):
            raise NotImplementedError

    case = pixels()
    with pytest.raises(Unsupported, match="does not solve with a curvature"):
        components(case.problem, case.queries, method=Guess(case.problem, {}))


def test_a_regression_has_no_labels_and_says_so_by_not_a_number():
    case = problems.ridge()
    found = components(case.problem, case.queries)
    assert found.is_same_label is None
    assert np.isnan(found.numbers()["full"]["same_label_helps"])
    assert "Hessian" not in found.section().sentence
    assert found.to_json()["numbers"][0]["full"]["same_label_helps"] is None


def test_the_section_draws_the_effect_against_each_variant_and_against_the_loss():
    case = pixels()
    found = components(case.problem, case.queries)
    table, *charts = found.section().blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == list(VARIANTS.values())
    assert len(charts) == 4
    assert all(isinstance(chart, Scatter) for chart in charts)
    assert len(charts[0].points) == len(case.problem)
    example = charts[3].points[5]
    assert example["x"] == found.losses[5]
    assert example["y"] == found.full[0, 5]
    assert "without the train loss" in repr(found)
    json.dumps(found.section().to_json(), allow_nan=False)
    json.dumps(found.to_json(), allow_nan=False)
