"""What if the training data were different: predictions against each other and retraining."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import problems
from whence.adapters import make_problem
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, CannotRetrain, UnknownName, Unsupported
from whence.explanation import explain
from whence.methods.base import Fitted
from whence.methods.influence import Influence
from whence.numerics import stats
from whence.uses.whatif import Outcome, relabel, remove, replace, revise, upweight

LINEAR = ["ridge", "ridge_free_intercept", "multinomial", "class_weighted", "smooth_hinge"]
RECIPES = {
    "newton": Influence("exact"),
    "finite": Influence("exact", change="finite"),
    "first order": Influence("exact", removal="first_order"),
}


def label_of(problem: Problem, position: int) -> Tensor:
    return problem.data.take(torch.tensor([position]))[1][0]


def inputs_of(problem: Problem, position: int) -> Tensor:
    return problem.data.take(torch.tensor([position]))[0][0]


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [*LINEAR, "mlp", "conv"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_group_of_one_is_the_removal_of_that_example(recipe, name, renormalize):
    case = problems.ALL[name]()
    case = case.renormalized() if renormalize else case
    scores = explain(case.problem, case.queries, method=RECIPES[recipe])
    for position in (0, 7):
        outcome = remove(case.problem, case.queries, group=[position], method=RECIPES[recipe])
        scale = abs(scores.values).max()
        assert_allclose(outcome.predicted, scores.values[:, position], atol=1e-8 * scale)


@pytest.mark.parametrize("name", LINEAR)
def test_to_first_order_effects_of_a_group_add_up(name):
    case = problems.CONVEX[name]()
    scores = explain(case.problem, case.queries, method=RECIPES["first order"])
    outcome = remove(case.problem, case.queries, group=[1, 4, 9], method="exact")
    assert_allclose(outcome.first_order, scores.values[:, [1, 4, 9]].sum(1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("renormalize", [False, True])
def test_every_change_of_a_ridge_is_predicted_exactly(renormalize):
    """Its objective is quadratic, so that the minimum is found and not approximated."""
    case = problems.ridge()
    case = case.renormalized() if renormalize else case
    problem, queries = case.problem, case.queries
    new = inputs_of(problem, 1) + 1
    outcomes = [
        remove(problem, queries, group=np.arange(0, 32, 2), retrain=True),
        upweight(problem, queries, example=3, by=4.0, retrain=True),
        upweight(problem, queries, example=[3, 5], by=0.25, retrain=True),
        relabel(problem, queries, example=3, label=7.5, retrain=True),
        replace(problem, queries, example=3, with_=(new, 7.5), retrain=True),
    ]
    for outcome in outcomes:
        gap = abs(outcome.first_order - outcome.actual).max()
        # Another label changes no curvature: there first order is exact as well.
        assert (outcome.kind == "relabel") == (gap < 1e-9)
        assert_allclose(outcome.predicted, outcome.actual, rtol=1e-7, atol=1e-9)


def test_a_relabelling_is_a_replacement_by_another_label():
    case = problems.multinomial()
    one = relabel(case.problem, case.queries, example=5, label=2, retrain=True)
    new = (inputs_of(case.problem, 5), np.int64(2))
    other = replace(case.problem, case.queries, example=5, with_=new, retrain=True)
    assert_allclose(one.predicted, other.predicted, rtol=1e-12)
    assert_allclose(one.actual, other.actual, rtol=1e-12)


def test_a_revision_is_a_removal_and_a_relabelling_at_once():
    case = problems.multinomial()
    problem, queries = case.problem, case.queries
    removed = remove(problem, queries, group=[2, 5], method="exact")
    assert_allclose(
        revise(problem, queries, remove=[2, 5], method="exact").predicted, removed.predicted
    )
    relabelled = relabel(problem, queries, example=7, label=1, method="exact")
    alone = revise(problem, queries, relabel={7: 1}, method="exact")
    assert_allclose(alone.predicted, relabelled.predicted)
    both = revise(problem, queries, remove=[2, 5], relabel={7: 1}, method="exact", retrain=True)
    assert_allclose(both.first_order, removed.first_order + relabelled.first_order, rtol=1e-8)
    assert stats.pearson(both.predicted, both.actual) > 0.99
    assert both.train_ids.tolist() == [2, 5, 7]
    assert both.words == "without 2 training examples and with training example 7 relabelled"


def test_a_revision_of_nothing_and_of_one_example_twice_is_refused():
    case = problems.multinomial()
    for changes in ({}, {"remove": [3], "relabel": {3: 1}}):
        with pytest.raises(BadArgument):
            revise(case.problem, case.queries, **changes)


def test_a_weight_of_zero_removes_and_a_weight_of_one_does_nothing():
    case = problems.multinomial()
    removed = remove(case.problem, case.queries, group=[5])
    weighted = upweight(case.problem, case.queries, example=5, by=0.0)
    assert_allclose(weighted.predicted, removed.predicted, rtol=1e-12)
    assert abs(upweight(case.problem, case.queries, example=5, by=1.0).predicted).max() < 1e-12


def test_a_weight_of_two_is_what_a_second_copy_does():
    """N fixed: the copy is an example of weight one that was there with weight zero before."""
    case = problems.logistic()
    doubled = torch.cat([torch.arange(60), torch.tensor([8])])
    twice = problems.rearranged(case, doubled)
    base = twice.weights.clone()
    base[-1] = 0
    scaled = 60 / 61  # the mean over 61 has a smaller share of the losses
    without = make_problem(
        twice.model,
        (twice.data.inputs, twice.data.targets),
        loss="binary_cross_entropy",
        weight_decay=0.03 * scaled,
        sample_weight=base,
    )
    row = torch.ones(2, 61).double()
    row[0, -1] = 0
    weighted = make_problem(
        twice.model,
        (twice.data.inputs, twice.data.targets),
        loss="binary_cross_entropy",
        weight_decay=0.03 * scaled,
    )
    start, end = NewtonTraining().retrain(weighted, row).parameters
    values = [
        without.outputs(theta, case.queries[0])[:, 0] * (2 * case.queries[1] - 1)
        for theta in (start, end)
    ]
    outcome = upweight(case.problem, case.queries, example=8, by=2.0, retrain=True)
    assert_allclose(outcome.actual, (values[1] - values[0]).detach(), rtol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "multinomial", "smooth_hinge"])
@pytest.mark.parametrize("change", ["upweight", "replace", "group"])
def test_the_minimum_is_nearer_to_retraining_than_first_order(name, change):
    """The median, over eight changes of each kind, of the share of the error of first order."""
    case = problems.CONVEX[name]()
    problem, queries = case.problem, case.queries
    ratios = []
    for i in range(8):
        if change == "upweight":
            outcome = upweight(problem, queries, example=i, by=4.0, retrain=True)
        elif change == "replace":
            new = inputs_of(problem, i + 10)
            outcome = replace(problem, queries, example=i, with_=new, retrain=True)
        else:
            group = np.random.default_rng(i).choice(len(problem), 10, replace=False)
            outcome = remove(problem, queries, group=group, retrain=True)
        errors = [outcome.predicted - outcome.actual, outcome.first_order - outcome.actual]
        ratios.append(np.linalg.norm(errors[0]) / np.linalg.norm(errors[1]))
    assert np.median(ratios) < 1


@pytest.mark.parametrize("kind", ["random", "adversarial"])
def test_the_newton_effect_of_a_fifth_of_the_data_has_the_right_size(kind):
    """First order under-estimates; slopes of actual over predicted effects, over ten queries."""
    case = problems.breast_cancer()
    problem = case.problem
    size = len(problem) // 5
    scores = explain(problem, case.queries)
    group = np.random.default_rng(0).choice(len(problem), size, replace=False)
    if kind == "adversarial":
        group = np.argsort(scores.values[0])[:size]
    outcome = remove(problem, case.queries, group=problem.data.ids[group], retrain=True)
    newton = float(stats.slope(outcome.predicted, outcome.actual))
    first = float(stats.slope(outcome.first_order, outcome.actual))
    assert abs(newton - 1) < 0.5 * abs(first - 1)


# ------------------------------------------------------------------ models and methods


def test_conjugate_gradients_predict_what_the_exact_curvature_does():
    case = problems.multinomial()
    group = np.arange(0, 60, 6)
    for renormalized in (case, case.renormalized()):
        exact = remove(renormalized.problem, case.queries, group=group, method="exact")
        cg = remove(renormalized.problem, case.queries, group=group, method="cg")
        assert_allclose(cg.predicted, exact.predicted, rtol=1e-4)
        assert_allclose(cg.first_order, exact.first_order, rtol=1e-4)


def test_a_method_without_a_scale_says_so_and_adds_up():
    case = problems.multinomial()
    outcome = remove(case.problem, case.queries, group=[1, 2], method="graddot")
    scores = explain(case.problem, case.queries, method="graddot")
    assert outcome.unit == "arbitrary"
    assert_allclose(outcome.predicted, scores.values[:, [1, 2]].sum(1), rtol=1e-10)


def test_an_own_training_is_trained_on_the_new_contents():
    x = torch.linspace(-1, 1, 12).double()[:, None]
    y = (3 * x[:, 0] + 1).clone()

    def train(weights: Tensor, seed: int, data: tuple[Tensor, Tensor] | None = None) -> nn.Module:
        del seed
        inputs, targets = (x, y) if data is None else data
        design = torch.cat([inputs, torch.ones(12, 1)], 1)
        w = weights.to(design)[:, None]
        solved = torch.linalg.solve(
            2 * design.T @ (w * design) / 12 + 0.1 * torch.eye(2),
            2 * design.T @ (w[:, 0] * targets) / 12,
        )
        model = nn.Linear(1, 1).double().eval()
        nn.utils.vector_to_parameters(solved, model.parameters())
        return model

    model = train(torch.ones(12), 0)
    problem = make_problem(model, (x, y), loss="mse", weight_decay=0.1, training=train)
    outcome = relabel(problem, x[:3], example=4, label=-2.0, retrain=True)
    assert_allclose(outcome.predicted, outcome.actual, rtol=1e-8)

    def only_weights(weights: Tensor, seed: int) -> nn.Module:
        return train(weights, seed)

    with pytest.raises(CannotRetrain, match="data"):
        relabel(problem, x[:3], example=4, label=-2.0, retrain=only_weights)


def test_a_noisy_training_comes_with_a_standard_error():
    case = problems.ridge()
    solved = case.problem.parameters

    def train(weights: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(solved), generator=generator, dtype=torch.float64)
        return solved * weights.mean() + 0.01 * noise * (1 + (weights == 0).any())

    outcome = remove(case.problem, case.queries, group=[1], retrain=train)
    assert (outcome.retraining.noise > 0).all()
    assert "standard error" in outcome.section().blocks[0].columns


def test_names_of_labels_and_raw_rows_serve_where_the_model_was_fitted_on_them():
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 3)) * [1, 10, 100]
    y = np.where(x[:, 0] + 0.5 * random.standard_normal(40) > 0, "spam", "ham")
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    problem = make_problem(model, (x, y))
    label = "ham" if y[3] == "spam" else "spam"
    one = relabel(problem, x[:4], example=3, label=label, retrain=True)
    other = replace(problem, x[:4], example=3, with_=(x[3], label), retrain=True)
    assert_allclose(one.predicted, other.predicted, rtol=1e-10)
    assert_allclose(one.predicted, one.actual, rtol=0.2)
    assert label in one.sentence
    with pytest.raises(UnknownName, match="eggs"):
        relabel(problem, x[:4], example=3, label="eggs")


def test_kernel_features_hold_relabelled_examples_and_refuse_new_ones():
    """Explicit features span the training examples alone; removals and labels stay in that span."""
    random = np.random.default_rng(1)
    x = random.standard_normal((40, 2))
    y = np.sin(2 * x[:, 0]) + 0.1 * random.standard_normal(40)
    problem = make_problem(KernelRidge(kernel="rbf", gamma=1.0, alpha=0.5).fit(x, y), (x, y))
    queries = random.standard_normal((5, 2))
    changed = y.copy()
    changed[7] += 1
    again = KernelRidge(kernel="rbf", gamma=1.0, alpha=0.5).fit(x, changed)
    before = KernelRidge(kernel="rbf", gamma=1.0, alpha=0.5).fit(x, y)
    expected = again.predict(queries) - before.predict(queries)
    outcome = relabel(problem, queries, example=7, label=changed[7])
    assert_allclose(outcome.predicted, expected, rtol=1e-6, atol=1e-10)
    with pytest.raises(Unsupported, match="other inputs"):
        replace(problem, queries, example=7, with_=(x[7] + 1, y[7]))


# ------------------------------------------------------------------ what a reader gets


def test_an_outcome_is_strict_json_and_a_section_with_a_row_for_each_query():
    case = problems.multinomial()
    outcome = remove(case.problem, case.queries, group=[1, 2, 3], retrain=True)
    document = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert [row["predicted"] for row in document["queries"]] == outcome.predicted.tolist()
    table, scatter, gallery = outcome.section().blocks
    assert len(table.rows) == len(outcome.query_ids) == len(scatter.points)
    assert len(gallery.pictures) == 3
    assert outcome.unit == "logits"
    assert "3 training examples" in repr(outcome)


def test_answers_that_change_are_counted():
    case = problems.multinomial()
    scores = explain(case.problem, case.queries)
    nearest = int(scores.baseline.argmin())
    group = np.argsort(scores.values[nearest])[:30]
    outcome = remove(case.problem, case.queries, group=group, retrain=True)
    after = case.problem.at(outcome.retraining.parameters)
    expected = after.outputs(after.parameters, case.queries[0]).argmax(1)
    before = case.problem.outputs(case.problem.parameters, case.queries[0]).argmax(1)
    assert outcome.flipped.tolist() == (expected != before).tolist()
    assert outcome.flipped.any()


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda p, q: remove(p, q, group=[1, 99]), BadArgument, "no training example 99"),
        (lambda p, q: remove(p, q, group=["1"]), BadArgument, "no training example '1'"),
        (lambda p, q: remove(p, q, group=[]), BadArgument, "0 training examples"),
        (lambda p, q: remove(p, q, group=[2, 2]), BadArgument, "1 of them different"),
        (lambda p, q: remove(p, q, group=range(61)), BadArgument, "no training example 60"),
        (lambda p, q: upweight(p, q, example=1, by=-1.0), BadArgument, "weighted by -1"),
        (lambda p, q: relabel(p, q, example=1, label=3), BadData, "label 3"),
        (lambda p, q: relabel(p, q, example=1, label="cat"), UnknownName, "cat"),
        (lambda p, q: replace(p, q, example=1, with_=np.zeros(5)), BadArgument, "5 examples"),
        (lambda p, q: replace(p, q, example=1, with_=np.zeros((1, 5))), BadData, "shape"),
        (lambda p, q: replace(p, q, example=1, with_=q[0][:2]), BadArgument, "2 examples"),
        (lambda p, q: relabel(p, q, example=1, label=1, method="graddot"), None, ""),
        (lambda p, q: remove(p, (q[0] * np.nan, q[1]), group=[1]), Exception, "NaN"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(ask, error, words):
    case = problems.multinomial()
    if error is None:
        assert isinstance(ask(case.problem, case.queries), Outcome)
        return
    with pytest.raises(error, match=words):
        ask(case.problem, case.queries)


def test_a_model_that_cannot_be_retrained_is_still_predicted_for():
    case = problems.conv()
    big = problems.single(case)
    object.__setattr__(big.problem, "training", None)
    assert len(remove(big.problem, big.queries, group=[1]).predicted) == 5


def test_a_method_that_only_scores_removals_refuses_new_contents():
    class OnlyRemovals(Fitted):
        def scores(self, queries, measurement=None):
            return explain(self.problem, queries, measurement=measurement)

    case = problems.multinomial()
    fitted = OnlyRemovals(case.problem, {})
    with pytest.raises(Unsupported, match="in its place"):
        relabel(case.problem, case.queries, example=1, label=1, method=fitted)
    summed = remove(case.problem, case.queries, group=[1, 2], method=fitted)
    scores = explain(case.problem, case.queries)
    assert_allclose(summed.predicted, scores.values[:, [1, 2]].sum(1))
