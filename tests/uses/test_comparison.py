"""Two models on the same data: their numbers by hand, and models of which the answer is known."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

import problems
from whence.adapters import make_problem
from whence.errors import BadArgument, BadData
from whence.explanation import explain, fit
from whence.methods.influence import Influence
from whence.sections import Gallery, Scatter, Table
from whence.uses.comparison import Comparison, Views, compare

Data = tuple[np.ndarray, np.ndarray]


def blobs(seed: int = 0, count: int = 80) -> tuple[Data, Data]:
    """Training examples and queries of two classes that overlap."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, count)
    x = random.standard_normal((count, 3)) + 0.8 * y[:, None]
    return (x[:-10], y[:-10]), (x[-10:], y[-10:])


def two_models() -> tuple[Comparison, Data, Data]:
    train, queries = blobs()
    a = make_problem(LinearSVC(C=0.5, loss="squared_hinge", tol=1e-10).fit(*train), train)
    b = make_problem(LogisticRegression(C=0.5, tol=1e-10).fit(*train), train)
    return compare(a, b, queries, k=5), train, queries


def test_numbers_are_those_of_their_definition():
    found, (x, y), (xq, yq) = two_models()
    for query in (0, 7):
        numbers = found.numbers(query)
        distance = np.sqrt(((x - xq[query]) ** 2).sum(1))
        assert_allclose(found.distances[query], distance, rtol=1e-12)
        tops = []
        for who, scores in (("a", found.scores_a), ("b", found.scores_b)):
            helps = -scores.values[query]  # of a margin
            top = np.argsort(-helps)[:5]
            tops.append(set(top))
            near = np.argsort(distance)[:7]
            helpful = np.flatnonzero(helps > 0)
            ranked = helpful[np.argsort(-helps[helpful])]
            others = np.flatnonzero(y[ranked] != yq[query])
            expected = {
                "spearman": spearmanr(abs(helps), distance).statistic,
                "pearson": np.corrcoef(abs(helps), distance)[0, 1],
                "median_distance": np.median(distance[top]),
                "distance_ratio": np.median(distance[top]) / np.median(distance),
                "near_share": abs(helps[near]).sum() / abs(helps).sum(),
                "other_label": (y[helpful] != yq[query]).mean(),
                "other_label_in_top": (y[top] != yq[query]).mean(),
                "first_other_label": others[0] + 1,
            }
            assert numbers[who] == pytest.approx(expected)
        both = numbers["both"]
        assert both["overlap"] == len(tops[0] & tops[1]) / 5
        expected = spearmanr(found.scores_a.values[query], found.scores_b.values[query]).statistic
        assert both["spearman"] == pytest.approx(expected)


def test_a_model_compared_with_itself_shares_everything():
    train, queries = blobs()
    problem = make_problem(LogisticRegression(tol=1e-10).fit(*train), train)
    found = compare(problem, problem, queries)
    for query in range(len(queries[0])):
        numbers = found.numbers(query)
        assert numbers["a"] == numbers["b"]
        assert numbers["both"] == pytest.approx({"overlap": 1, "spearman": 1})
    assert found.names == ("LogisticRegression (a)", "LogisticRegression (b)")


def test_a_narrow_kernel_is_led_by_those_nearby_and_a_linear_model_is_not():
    train, queries = blobs(seed=2, count=160)
    kernel = make_problem(SVC(C=1.0, gamma=3.0, tol=1e-8).fit(*train), train)
    linear = make_problem(LogisticRegression(tol=1e-10).fit(*train), train)
    found = compare(kernel, linear, queries)
    medians = found.medians()
    each = [found.numbers(query)["a"]["near_share"] for query in range(10)]
    assert medians["a"]["near_share"] == np.median(each)
    assert medians["a"]["near_share"] > 2 * medians["b"]["near_share"]
    assert medians["a"]["distance_ratio"] < medians["b"]["distance_ratio"] / 1.5


def test_both_models_read_the_same_raw_queries():
    """One scales its inputs, the other squares them: distances are between what both were given."""
    train, queries = blobs()
    scaled = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10)).fit(*train)
    squares = make_pipeline(FunctionTransformer(np.square), LogisticRegression(tol=1e-10))
    squares = squares.fit(*train)
    found = compare(make_problem(scaled, train), make_problem(squares, train), queries)
    expected = np.linalg.norm(queries[0][:, None] - train[0], axis=2)
    assert_allclose(found.distances, expected, rtol=1e-12)
    alone = explain(make_problem(squares, train), queries).values
    assert_allclose(found.scores_b.values, alone, rtol=1e-12)


def test_queries_may_have_a_form_for_each_model_and_distances_a_form_of_their_own():
    (x, y), (xq, yq) = blobs()
    a = make_problem(LogisticRegression(tol=1e-10).fit(x, y), (x, y))
    b = make_problem(LogisticRegression(tol=1e-10).fit(x[:, :2], y), (x[:, :2], y))
    found = compare(a, b, (xq, yq), views=Views((xq[:, :2], yq), (x[:, 2:], xq[:, 2:])))
    assert_allclose(found.distances, abs(xq[:, 2:] - x[:, 2]), rtol=1e-12)
    assert_allclose(found.scores_b.values, explain(b, (xq[:, :2], yq)).values, rtol=1e-12)


def test_a_fitted_method_stands_for_its_problem():
    train, queries = blobs()
    problem = make_problem(LogisticRegression(tol=1e-10).fit(*train), train)
    first_order = fit(problem, Influence(removal="first_order"))
    found = compare(first_order, problem, queries)
    expected = explain(problem, queries, method=Influence(removal="first_order"))
    assert_allclose(found.scores_a.values, expected.values, rtol=1e-12)
    assert abs(found.scores_a.values - found.scores_b.values).max() > 1e-6


def test_helping_is_lowering_a_loss_and_raising_a_log_probability():
    train, queries = blobs()
    problem = make_problem(LogisticRegression(tol=1e-10).fit(*train), train)
    fitted = fit(problem, Influence(removal="first_order"))
    by_loss = compare(fitted, fitted, queries, measurement="loss").numbers(3)
    by_log_prob = compare(fitted, fitted, queries, measurement="log_prob").numbers(3)
    assert by_loss["a"] == pytest.approx(by_log_prob["a"])


def test_labels_of_a_hinge_are_those_of_a_logit():
    """-1 and +1 in the one, 0 and 1 in the other: the same two classes."""
    found, (_, y), (_, yq) = two_models()
    assert (found.is_same_label == (yq[:, None] == y)).all()


def test_the_same_classes_in_another_order_are_the_same_labels():
    train, queries = blobs()
    names = np.array(["fish", "dog"])
    model = LogisticRegression(tol=1e-10)
    by_name = (train[0], names[train[1]])
    sorted_names = make_problem(model.fit(*by_name), by_name)  # dog is 0
    layer = torch.nn.Linear(3, 2).double().eval()
    torch_train = tuple(map(torch.from_numpy, train))
    given = make_problem(layer, torch_train, loss="cross_entropy", label_names=names.tolist())
    asked = (queries[0], names[queries[1]])
    found = compare(sorted_names, given, asked, views=Views(tuple(map(torch.from_numpy, queries))))
    assert (found.is_same_label == (queries[1][:, None] == train[1])).all()


def test_other_training_data_are_refused():
    (x, y), queries = blobs()
    a = make_problem(LogisticRegression().fit(x, y), (x, y))
    ids = [f"p{i}" for i in range(len(x))]
    with pytest.raises(BadData, match="they are others"):
        compare(a, make_problem(LogisticRegression().fit(x, y), (x, y), ids=ids), queries)
    backwards = make_problem(
        LogisticRegression().fit(x, y), (x, y), ids=np.arange(len(x))[::-1].copy()
    )
    with pytest.raises(BadData, match="in another order"):
        compare(a, backwards, queries)
    flipped = make_problem(LogisticRegression().fit(x, 1 - y), (x, 1 - y))
    with pytest.raises(BadData, match="Training example 0 has the label"):
        compare(a, flipped, queries)


def test_other_queries_are_refused():
    train, (xq, yq) = blobs()
    problem = make_problem(LogisticRegression().fit(*train), train)
    with pytest.raises(BadData, match="10 queries for the first model and 4"):
        compare(problem, problem, (xq, yq), views=Views((xq[:4], yq[:4])))
    with pytest.raises(BadData, match="Query 0 has the label"):
        compare(problem, problem, (xq, yq), views=Views((xq, 1 - yq)))


def test_answers_of_the_models_themselves_may_differ_with_a_warning():
    train, (xq, _) = blobs()
    right = make_problem(LogisticRegression().fit(*train), train)
    wrong = right.at(-right.parameters)
    found = compare(right, wrong, xq)
    assert "own answers" in found.warnings[0]


def test_inputs_that_are_no_numbers_need_a_distance():
    texts = ["a good film", "bad film", "good good", "very bad", "so good a film", "bad"]
    labels = [1, 0, 1, 0, 1, 0]
    model = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression())
    problem = make_problem(model.fit(texts, labels), (texts, labels))
    queries = (["good film"], [1])
    with pytest.raises(BadData, match="not numbers"):
        compare(problem, problem, queries, k=2)
    counts = (np.arange(6.0)[:, None], np.array([[2.0]]))
    found = compare(problem, problem, queries, k=2, views=Views(inputs=counts))
    assert found.distances.tolist() == [[2, 1, 0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": 0}, BadArgument, "k=0"),
        ({"k": 71}, BadArgument, "k=71 of 70"),
        ({"views": Views(inputs=(np.ones((70, 2)), np.ones((9, 2))))}, BadData, "9 query inputs"),
        (
            {"views": Views(inputs=(np.ones((70, 2)), np.ones((10, 3))))},
            BadData,
            "A query has 3 numbers",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, words):
    train, queries = blobs()
    problem = make_problem(LogisticRegression().fit(*train), train)
    with pytest.raises(error, match=words):
        compare(problem, problem, queries, **options)


def test_prepared_queries_have_lost_their_raw_inputs():
    train, queries = blobs()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(*train)
    problem = make_problem(model, train)
    prepared = problem.queries(queries)
    with pytest.raises(BadData, match="prepared already"):
        compare(problem, problem, prepared)
    plain = make_problem(LogisticRegression().fit(*train), train)
    found = compare(plain, plain, plain.queries(queries))
    assert_allclose(found.distances, compare(plain, plain, queries).distances)


def test_a_regression_has_no_labels():
    case = problems.ridge()
    found = compare(case.problem, case.problem, case.queries, k=3)
    assert found.is_same_label is None
    assert np.isnan(found.numbers()["a"]["other_label"])
    assert found.to_json()["numbers"][0]["a"]["other_label"] is None


def test_the_section_has_a_table_two_charts_and_the_strongest_proponents():
    found, (x, _), _ = two_models()
    table, first, second, gallery = found.section().blocks
    assert isinstance(table, Table)
    assert table.columns[1:] == ("LinearSVC", "LogisticRegression")
    for chart, scores in ((first, found.scores_a), (second, found.scores_b)):
        assert isinstance(chart, Scatter)
        assert len(chart.points) == len(x)
        assert chart.points[4]["x"] == found.distances[0, 4]
        assert chart.points[4]["y"] == scores.values[0, 4]
    assert isinstance(gallery, Gallery)
    assert len(gallery.pictures) == 10
    strongest = found.scores_a.top(1).proponents[0].id
    assert f"LinearSVC: {strongest} " in gallery.pictures[0][1]
    assert "rank correlation" in repr(found)
    json.dumps(found.section().to_json(), allow_nan=False)
    json.dumps(found.to_json(), allow_nan=False)
