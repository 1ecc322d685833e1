"""Groups of training data: sums and leads by hand, derivatives against training again."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression

import problems
from whence.adapters import make_problem
from whence.errors import BadArgument, BadData, UnknownName
from whence.explanation import explain
from whence.methods.base import Fitted
from whence.methods.influence import Influence
from whence.sections import Bars, Gallery, Table
from whence.uses.mismatch import find_mismatch


def grouping(count: int) -> dict[str, np.ndarray]:
    ids = np.arange(count)
    return {"low": ids[:7], "middle": ids[5:20], "high": ids[20:]}


@pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])
def test_a_group_has_the_sum_and_the_lead_of_its_effects(renormalize):
    case = problems.logistic()
    case = case.renormalized() if renormalize else case
    groups = grouping(len(case.problem))
    effects = explain(case.problem, case.queries).values

    found = find_mismatch(case.problem, case.queries, groups=groups)

    assert {group.name for group in found.groups} == set(groups)
    leads = [group.lead for group in found.groups]
    assert leads == sorted(leads, reverse=True)
    mean = effects.mean(0)
    for name, ids in groups.items():
        group = found.group(name)
        outside = np.setdiff1d(np.arange(len(mean)), ids)
        assert group.size == len(ids)
        assert group.sum == pytest.approx(mean[ids].sum())
        assert group.mean == pytest.approx(mean[ids].mean())
        assert group.largest == pytest.approx(mean[ids][abs(mean[ids]).argmax()])
        assert group.largest_id == ids[abs(mean[ids]).argmax()]
        assert group.lead == pytest.approx(abs(mean[ids]).max() / abs(mean[outside]).max())
        assert_allclose(group.sum_by_query, effects[:, ids].sum(1), rtol=1e-12)
        expected = abs(effects[:, ids]).max(1) / abs(effects[:, outside]).max(1)
        assert_allclose(group.lead_by_query, expected, rtol=1e-12)


@pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])
@pytest.mark.parametrize("name", ["logistic", "ridge_weighted", "multinomial"])
def test_derivatives_are_those_of_training_again_with_a_moved_feature(name, renormalize):
    case = problems.CONVEX[name]()
    case = case.renormalized() if renormalize else case
    found = find_mismatch(
        case.problem, case.queries, groups=grouping(len(case.problem)), strongest=2
    )
    oracle, ones = case.oracle, np.ones(len(case.problem))

    def measured(example: int, feature: int, step: float) -> float:
        x = oracle.x.copy()
        x[example, feature] += step
        theta = replace(oracle, x=x).optimum(ones, oracle.optimum())
        return float(case.measured(theta).mean())

    for example in found.strongest:
        assert example.derivatives.shape == (case.problem.data.inputs.shape[1],)
        for feature, derivative in enumerate(example.derivatives):
            up, down = (measured(example.id, feature, step) for step in (1e-4, -1e-4))
            assert derivative == pytest.approx((up - down) / 2e-4, rel=1e-5, abs=1e-9)


def test_the_strongest_examples_are_those_of_the_largest_mean_effect():
    case = problems.logistic()
    groups = grouping(len(case.problem))
    found = find_mismatch(case.problem, case.queries, groups=groups, strongest=4)
    mean = explain(case.problem, case.queries).values.mean(0)
    assert [example.id for example in found.strongest] == np.argsort(-abs(mean))[:4].tolist()
    for example in found.strongest:
        assert example.effect == pytest.approx(mean[example.id])
        assert example.groups == tuple(name for name, ids in groups.items() if example.id in ids)
        assert example.label == case.problem.label_of(example.id)


def hospital() -> tuple[LogisticRegression, pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]:
    """Four children of whom three came back, among adults of whom few did; healthy children."""
    random = np.random.default_rng(0)
    count = 400
    frame = pd.DataFrame(
        {"child": np.r_[np.ones(4), np.zeros(count)], "days": random.random(count + 4)}
    )
    y = np.r_[1, 1, 1, 0, random.random(count) < 0.3].astype(int)
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(frame, y)
    queries = pd.DataFrame({"child": np.ones(6), "days": random.random(6)})
    return model, frame, y, queries, np.zeros(6, dtype=int)


def test_the_few_examples_that_are_like_the_queries_lead():
    model, frame, y, queries, labels = hospital()
    problem = make_problem(model, (frame, y))
    groups = np.where(frame["child"] == 1, "child", "adult")
    found = find_mismatch(problem, (queries, labels), groups=groups, measurement="loss")
    first = found.groups[0]
    assert (first.name, first.size) == ("child", 4)
    assert first.lead > 10
    assert all(example.groups == ("child",) for example in found.strongest[:4])
    # Those who came back raise the loss of children who do not; the fourth lowers it.
    by_label = {example.id: example.effect for example in found.strongest[:4]}
    assert by_label[3] > 0
    assert all(by_label[i] < 0 for i in range(3))
    assert "'child' (4 examples) leads" in found.section().sentence


def test_groups_by_ids_by_label_and_by_column_are_one():
    model, frame, y, queries, labels = hospital()
    problem = make_problem(model, (frame, y))
    ways = [
        {"1.0": np.flatnonzero(frame["child"] == 1), "0.0": np.flatnonzero(frame["child"] == 0)},
        frame["child"],
        frame["child"].tolist(),
        "child",
    ]
    results = [find_mismatch(problem, (queries, labels), groups=way) for way in ways]
    for result in results:
        assert [group.name for group in result.groups] == ["1.0", "0.0"]
        assert result.groups[0].sum == pytest.approx(results[0].groups[0].sum)
    assert results[0].feature_names == ("child", "days")


def test_groups_without_the_strongest_example_do_not_lead():
    case = problems.logistic()
    strongest = find_mismatch(case.problem, case.queries, groups={"x": [0]}).strongest[0].id
    rest = np.delete(np.arange(len(case.problem)), strongest)
    found = find_mismatch(case.problem, case.queries, groups={"rest": rest, "few": rest[:3]})
    assert found.groups[0].name == "rest"
    assert found.groups[0].lead < 1
    assert "none holds the strongest example" in found.section().sentence


def test_a_group_that_holds_everything_leads_nobody_and_stands_last():
    case = problems.logistic()
    groups = {"all": np.arange(len(case.problem)), "one": [3]}
    found = find_mismatch(case.problem, case.queries, groups=groups)
    assert [group.name for group in found.groups] == ["one", "all"]
    assert np.isnan(found.group("all").lead)
    assert found.to_json()["groups"][1]["lead"] is None


def test_tokens_have_groups_but_no_derivatives_and_a_reason():
    case = problems.tokens()
    groups = {"first": [0, 1], "last": [2]}
    found = find_mismatch(case.problem, case.queries, groups=groups)
    assert found.strongest[0].derivatives is None
    assert any("integers" in warning for warning in found.warnings)
    json.dumps(found.section().to_json(), allow_nan=False)


def test_a_method_without_a_curvature_has_groups_but_no_derivatives():
    class Recorded(Fitted):
        def scores(self, queries, measurement=None):
            return explain(self.problem, queries, measurement=measurement)

    case = problems.logistic()
    groups = grouping(len(case.problem))
    fitted = Recorded(case.problem, {})
    found = find_mismatch(case.problem, case.queries, groups=groups, method=fitted)
    expected = find_mismatch(case.problem, case.queries, groups=groups)
    assert found.groups[0].sum == expected.groups[0].sum
    assert found.strongest[0].derivatives is None
    assert "does not solve with a curvature" in found.warnings[-1]


def test_first_order_sums_are_the_derivative_of_the_weight_of_the_group():
    """Sums add up: the effect of taking a share of the weight of all of them."""
    case = problems.logistic()
    ids = np.arange(12)
    method = Influence(removal="first_order")
    found = find_mismatch(case.problem, case.queries, groups={"few": ids}, method=method)
    oracle, step = case.oracle, 1e-4
    w = np.ones(len(oracle))
    w[ids] -= step
    less = case.measured(oracle.optimum(w, oracle.optimum()))
    w[ids] += 2 * step
    more = case.measured(oracle.optimum(w, oracle.optimum()))
    expected = (less - more) / (2 * step)
    assert_allclose(found.group("few").sum_by_query, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        ({}, BadArgument, "no group"),
        ({"some": [1], "none": []}, BadArgument, "'none' is empty"),
        ({"some": [1, 1]}, BadArgument, "1 of them"),
        ({"some": [1, 100_000]}, BadArgument, "no training example 100000"),
        (["a", "b"], BadData, r"\(2,\)"),
        ("age", UnknownName, "'age' is not a column"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(groups, error, words):
    case = problems.logistic()
    with pytest.raises(error, match=words):
        find_mismatch(case.problem, case.queries, groups=groups)


def test_no_strongest_example_is_refused_and_an_unknown_group_too():
    case = problems.logistic()
    groups = grouping(len(case.problem))
    with pytest.raises(BadArgument, match="strongest=0"):
        find_mismatch(case.problem, case.queries, groups=groups, strongest=0)
    with pytest.raises(UnknownName, match="'hihg' is not a group"):
        find_mismatch(case.problem, case.queries, groups=groups).group("hihg")


def test_the_section_has_a_table_bars_the_strongest_examples_and_their_features():
    model, frame, y, queries, labels = hospital()
    problem = make_problem(model, (frame, y))
    found = find_mismatch(problem, (queries, labels), groups="child")
    table, bars, gallery, features = found.section().blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["1.0", "0.0"]
    assert isinstance(bars, Bars)
    assert bars.values[0] == ("1.0", found.groups[0].largest)
    assert isinstance(gallery, Gallery)
    assert len(gallery.pictures) == 5
    assert isinstance(features, Bars)
    assert {name for name, _ in features.values} <= {"child", "days"}
    json.dumps(found.section().to_json(), allow_nan=False)
    json.dumps(found.to_json(), allow_nan=False)
    assert "leads" in repr(found)
