"""The oracle is scikit-learn's dual solution: its decisions, its minima, its fits on the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import linear_kernel, pairwise_kernels
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

import whence
from whence.adapters import make_problem
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, NonFinite, NotFitted, Unsupported
from whence.methods.influence import Influence

Array = np.ndarray

random = np.random.default_rng(0)
X = random.standard_normal((60, 4))
NEW = random.standard_normal((9, 4))
SIDES = X @ [1.0, -2.0, 0.5, 0.0] + X[:, 0] * X[:, 3] + 0.3 + random.logistic(size=60)
BINARY = np.where(SIDES > 0, "spam", "ham")
SIGNS = np.where(SIDES > 0, 1.0, -1.0)
NUMBERS = SIDES
TWO_NUMBERS = np.stack([SIDES, X[:, 0] - SIDES**2], 1)
WEIGHTS = random.uniform(0.2, 3.0, 60)


@dataclass(frozen=True)
class Case:
    """A kernel model, its targets, and the kernel that its documentation names."""

    estimator: Any
    y: Array
    kernel: dict[str, Any]

    def fit(self, weights: Array | None = None) -> Any:
        return clone(self.estimator).fit(X, self.y, sample_weight=weights)

    def problem(self, weights: Array | None = None, **options: Any) -> Problem:
        given = {} if weights is None else {"sample_weight": weights}
        return make_problem(self.fit(weights), (X, self.y), **given, **options)

    def matrix(self) -> Array:
        return pairwise_kernels(X, filter_params=True, **self.kernel)


def svc(**keywords: Any) -> SVC:
    return SVC(tol=1e-10, **keywords)


SCALE = 1 / (4 * X.var())
MACHINES = {
    "rbf": Case(svc(), BINARY, {"metric": "rbf", "gamma": SCALE}),
    "rbf, gamma auto, C": Case(svc(gamma="auto", C=5), BINARY, {"metric": "rbf", "gamma": 0.25}),
    "rbf, gamma": Case(svc(gamma=2.0, C=0.3), BINARY, {"metric": "rbf", "gamma": 2.0}),
    "poly": Case(
        svc(kernel="poly", degree=2, coef0=1),
        BINARY, {"metric": "poly", "gamma": SCALE, "degree": 2, "coef0": 1},
    ),
    "linear": Case(svc(kernel="linear"), BINARY, {"metric": "linear"}),
    "sigmoid": Case(
        svc(kernel="sigmoid", gamma=1e-9, C=1e7),  # so flat that it is a linear kernel
        BINARY, {"metric": "sigmoid", "gamma": 1e-9, "coef0": 0},
    ),
}  # fmt: skip
RIDGES = {
    "ridge, linear": Case(KernelRidge(alpha=0.7), NUMBERS, {"metric": "linear"}),
    "ridge, rbf": Case(
        KernelRidge(alpha=0.1, kernel="rbf", gamma=0.3), NUMBERS, {"metric": "rbf", "gamma": 0.3}
    ),
    "ridge, default gamma": Case(KernelRidge(kernel="rbf"), NUMBERS, {"metric": "rbf"}),
    "ridge, poly": Case(
        KernelRidge(kernel="poly", degree=2, coef0=2),
        NUMBERS, {"metric": "poly", "degree": 2, "coef0": 2},
    ),
    "ridge, laplacian": Case(KernelRidge(kernel="laplacian"), NUMBERS, {"metric": "laplacian"}),
    "ridge, two targets": Case(
        KernelRidge(alpha=0.1, kernel="rbf"), TWO_NUMBERS, {"metric": "rbf"}
    ),
}  # fmt: skip
CASES = MACHINES | RIDGES
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
machines = pytest.mark.parametrize("case", MACHINES.values(), ids=MACHINES.keys())
ridges = pytest.mark.parametrize("case", RIDGES.values(), ids=RIDGES.keys())
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])

SMO = 1e-6
"""How near libsvm comes to its minimum: it keeps kernels in single precision."""


def gradient(problem: Problem, weights: torch.Tensor | None = None) -> torch.Tensor:
    theta = problem.parameters.clone().requires_grad_()
    return torch.autograd.grad(problem.objective(theta, weights), theta)[0]


def outputs(problem: Problem, inputs: Any, at: torch.Tensor | None = None) -> Array:
    features = problem.queries(inputs).inputs
    return problem.outputs(problem.parameters if at is None else at, features).detach().numpy()


def decisions(model: Any, inputs: Any) -> Array:
    return getattr(model, "decision_function", model.predict)(inputs)


# --------------------------------------------------------------------- the same model


@cases
@weightings
def test_outputs_are_those_of_the_estimator(case: Case, weights: Array | None):
    model, problem = case.fit(weights), case.problem(weights)
    for inputs in (X, NEW):
        expected = decisions(model, inputs)
        found = outputs(problem, inputs).reshape(expected.shape)
        assert_allclose(found, expected, atol=1e-8 * abs(expected).max())


@cases
def test_features_are_those_of_the_kernel(case: Case):
    problem, kernel = case.problem(), case.matrix()
    features = problem.batch(torch.arange(60)).inputs.numpy()
    assert_allclose(features @ features.T, kernel, atol=1e-10 * kernel.max())
    assert f"{features.shape[1]:,} explicit features" in " ".join(problem.notes)


# ------------------------------------------------------------------ the same objective


@ridges
@weightings
def test_the_fit_of_a_ridge_is_where_the_gradient_is_zero(case: Case, weights: Array | None):
    assert gradient(case.problem(weights)).norm() < 1e-11


@machines
@weightings
def test_the_fit_of_a_machine_is_at_the_minimum_of_the_hinge(case: Case, weights: Array | None):
    """Where the dual objective, computed from the kernel alone, is as large as the primal one."""
    model = case.fit(weights)
    problem = case.problem(weights, loss="hinge")
    dual = np.zeros(60)
    dual[model.support_] = model.dual_coef_[0]
    best = (SIGNS * dual).sum() - dual @ case.matrix() @ dual / 2
    primal = 60 * model.C * float(problem.objective(problem.parameters))
    assert primal == pytest.approx(best, rel=SMO)


@ridges
def test_the_objective_of_a_ridge_is_its_own(case: Case):
    problem, model = case.problem(WEIGHTS), case.fit(WEIGHTS)
    theta = torch.randn(3, problem.size, dtype=torch.float64)
    batch = problem.batch(torch.arange(60))
    count = TWO_NUMBERS.shape[1] if case.y.ndim > 1 else 1
    for row in theta:
        errors = problem.outputs(row, batch.inputs).numpy() - case.y.reshape(60, -1)
        total = (WEIGHTS * (errors**2).sum(1)).sum() + model.alpha * float(row @ row)
        assert float(problem.objective(row)) * 60 * count == pytest.approx(total, rel=1e-12)


def test_the_hinge_is_replaced_by_a_smooth_hinge_and_says_so():
    case = MACHINES["rbf"]
    smooth, raw = case.problem(), case.problem(loss="hinge")
    assert smooth.loss.name == "smooth_hinge:0.001"
    assert any("no curvature" in note for note in smooth.notes)
    gap = float(smooth.objective(raw.parameters) - raw.objective(raw.parameters))
    assert 0 < gap < 0.001 * np.log(2)
    assert case.problem(loss="smooth_hinge:0.1").loss.name == "smooth_hinge:0.1"
    with pytest.raises(BadArgument, match="minimised hinge"):
        case.problem(loss="squared_hinge")
    with pytest.raises(BadArgument, match="it minimised mse"):
        RIDGES["ridge, rbf"].problem(loss="mse")


@pytest.mark.parametrize("class_weight", ["balanced", {"spam": 3.0}])
@weightings
def test_base_weights_are_class_weight_times_sample_weight(class_weight: Any, weights: Any):
    """The fit with a class weight is the fit with these weights and none."""
    model = svc(class_weight=class_weight).fit(X, BINARY, sample_weight=weights)
    given = {} if weights is None else {"sample_weight": weights}
    problem = make_problem(model, (X, BINARY), **given)
    twin = svc().fit(X, BINARY, sample_weight=problem.weights.numpy())
    assert_allclose(decisions(twin, NEW), decisions(model, NEW), rtol=1e-7)


@cases
def test_examples_without_weight_keep_their_place(case: Case):
    weights = np.where(np.arange(60) % 7 == 0, 0.0, 1.0)
    problem = case.problem(weights)
    expected = decisions(case.fit(weights), NEW)
    assert_allclose(outputs(problem, NEW).reshape(expected.shape), expected, rtol=1e-6)
    again = problem.retrain(torch.ones(1, 60)).parameters[0]
    assert_allclose(outputs(problem, NEW, again).reshape(expected.shape), expected, rtol=1e-5)


# ------------------------------------------------------------------------ fitting again


@cases
def test_a_refit_with_all_examples_is_the_fit(case: Case):
    problem = case.problem(WEIGHTS)
    again = problem.retrain(torch.ones(1, 60, dtype=torch.float64)).parameters[0]
    expected = outputs(problem, NEW)
    assert_allclose(outputs(problem, NEW, again), expected, atol=1e-6 * abs(expected).max())


def on_the_others(case: Case, gone: list[int], weights: Array | None) -> Any:
    """Fitted without some examples, with the kernel as it was."""
    others = np.delete(np.arange(60), gone)
    gamma = case.kernel.get("gamma", case.estimator.gamma)
    model = clone(case.estimator).set_params(gamma=gamma)
    kept = None if weights is None else weights[others]
    return model.fit(X[others], case.y[others], sample_weight=kept)


@cases
@weightings
def test_a_refit_without_examples_is_the_fit_on_the_others(case: Case, weights: Array | None):
    """Although the features were made with the examples that are gone."""
    problem = case.problem(weights)
    groups = [[7], [8], list(range(0, 30, 3))]
    removed = torch.ones(3, 60, dtype=torch.float64)
    for row, gone in zip(removed, groups, strict=True):
        row[gone] = 0
    for theta, gone in zip(problem.retrain(removed).parameters, groups, strict=True):
        expected = decisions(on_the_others(case, gone, weights), NEW)
        found = outputs(problem, NEW, theta).reshape(expected.shape)
        assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


def test_without_a_class_the_other_one_is_decided_everywhere():
    problem = MACHINES["rbf"].problem()
    weights = torch.from_numpy(np.stack([SIGNS > 0, SIGNS < 0]).astype(float))
    spam, ham = problem.retrain(weights).parameters
    assert_allclose(outputs(problem, NEW, spam), 1.0)
    assert_allclose(outputs(problem, NEW, ham), -1.0)


# ---------------------------------------------------------------- effects on real data


def real(name: str) -> tuple[Any, Array, Array]:
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return KernelRidge(alpha=1.0, kernel="rbf", gamma=0.02), 20 * x, y / y.std()
    x, y = load_digits(return_X_y=True)
    chosen = np.isin(y, (3, 8))
    return svc(), x[chosen] / 16, y[chosen]


@pytest.mark.parametrize(("name", "least"), [("diabetes", 0.9999), ("digits", 0.8)])
def test_effects_predict_fits_without_an_example(name: str, least: float):
    """Against scikit-learn's own fits on the others, with the gamma of the whole.

    Measured: 1.00000 for the ridge, whose Newton step is exact; 0.85 for the hinge, whose support
    vectors jump.
    """
    estimator, x, y = real(name)
    test, train = np.arange(0, len(x), 12), np.flatnonzero(np.arange(len(x)) % 12)
    model = estimator.fit(x[train], y[train])
    if name == "digits":
        model = estimator.set_params(gamma=1 / (64 * x[train].var())).fit(x[train], y[train])
    problem = make_problem(model, (x[train], y[train]))
    scores = Influence("exact").fit(problem).scores((x[test], y[test]), "prediction")
    gone = np.arange(0, len(train), 2 if name == "digits" else 20)
    before = decisions(model, x[test])
    actual = []
    for example in gone:
        others = np.delete(train, example)
        actual.append(decisions(clone(model).fit(x[others], y[others]), x[test]) - before)
    predicted = scores.values[:, gone]
    correlation = np.corrcoef(predicted.ravel(), np.stack(actual, 1).ravel())[0, 1]
    assert correlation > least


def test_verify_believes_the_numbers_of_a_kernel_ridge():
    problem = RIDGES["ridge, rbf"].problem()
    scores = whence.explain(problem, (NEW, np.zeros(9)))
    assert whence.verify(problem, scores, examples=20).verdict == "believe the numbers"


# ---------------------------------------------------------------- pipelines and displays


def test_a_pipeline_is_its_model_on_transformed_features():
    steps = make_pipeline(StandardScaler(), svc()).fit(X, BINARY)
    whole = make_problem(steps, (X, BINARY))
    alone = make_problem(steps[-1], (steps[0].transform(X), BINARY))
    assert_allclose(outputs(whole, NEW)[:, 0], steps.decision_function(NEW), atol=1e-10)
    features, expected = (p.data.take(torch.arange(len(p)))[0] for p in (whole, alone))
    assert_allclose(features, expected, atol=1e-12)  # to rounding, which depends on the machine
    assert_allclose(whole.parameters, alone.parameters, atol=1e-12)
    assert any("StandardScaler stay" in note for note in whole.notes)


def test_texts_are_explained_as_texts():
    texts = ["a good film", "a bad film", "a good plot", "an awful bad plot"] * 3
    labels = np.array([True, False, True, False] * 3)
    steps = make_pipeline(TfidfVectorizer(), svc(kernel="linear")).fit(texts, labels)
    problem = make_problem(steps, (texts, labels))
    assert problem.show(1) == {"kind": "text", "text": "a bad film"}
    assert problem.label_of(1) == "False"
    found = outputs(problem, ["good", "bad"])[:, 0]
    assert_allclose(found, steps.decision_function(["good", "bad"]), atol=1e-10)
    assert "8 eigenvalues that are zero" in problem.notes[0]  # every text stands there three times


def test_raw_rows_and_their_names_are_shown():
    table = pd.DataFrame(X, columns=list("abcd"))
    model = svc().fit(table, BINARY)
    problem = make_problem(model, (table, pd.Series(BINARY)))
    assert problem.show(5)["cells"] == [
        [name, pytest.approx(x)] for name, x in zip("abcd", X[5], strict=True)
    ]
    assert problem.queries(table[5:6]).displays[0] == problem.show(5)
    with pytest.raises(BadData, match="position 2: 'd' instead of 'c'"):
        make_problem(model, (table[list("abdc")], BINARY))


def test_a_fit_on_a_sparse_table_is_the_fit_on_the_dense_one():
    sparse = scipy.sparse.csr_matrix(np.where(X > 0, X, 0))
    for estimator, y in ((svc(), BINARY), (KernelRidge(kernel="rbf"), NUMBERS)):
        model = clone(estimator).fit(sparse, y)
        expected = decisions(model, scipy.sparse.csr_matrix(NEW))
        assert_allclose(
            outputs(make_problem(model, (sparse, y)), NEW).reshape(expected.shape),
            expected,
            atol=1e-8,
        )


def test_a_kernel_on_features_of_a_frozen_network():
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double().eval()
    with torch.no_grad():
        features = network(torch.from_numpy(X)).numpy()
        new = network(torch.from_numpy(NEW)).numpy()
    model = svc().fit(features, BINARY)
    problem = make_problem(model, (X, BINARY), features=network)
    assert_allclose(outputs(problem, NEW)[:, 0], model.decision_function(new), atol=1e-10)


def test_no_derivative_goes_back_to_raw_examples():
    data = MACHINES["rbf"].problem().data
    slopes = torch.ones(1, 60, data.take(torch.arange(1))[0].shape[1]).double()
    with pytest.raises(Unsupported, match="leaves that span"):
        data.pull_back(torch.from_numpy(X), slopes)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("estimator", "y", "words"),
    [
        (SVC(kernel=linear_kernel), BINARY, "kernel of your own"),
        (KernelRidge(kernel=lambda a, b: float(a @ b)), NUMBERS, "kernel of your own"),
        (SVC(), np.array(["a", "b", "c"])[np.arange(60) % 3], "one against one"),
        (SVC(kernel="sigmoid", gamma=1.0, coef0=-1.0), BINARY, "eigenvalue -"),
        (KernelRidge(alpha=[1.0, 2.0]), TWO_NUMBERS, "2 values of alpha"),
    ],
)
def test_what_has_no_exact_translation_is_refused(estimator: Any, y: Array, words: str):
    with pytest.raises(Unsupported, match=words):
        make_problem(estimator.fit(X, y), (X, y))


def test_a_precomputed_kernel_is_refused():
    matrix = linear_kernel(X)
    for estimator, y in ((SVC(kernel="precomputed"), BINARY), (KernelRidge(), NUMBERS)):
        model = estimator.set_params(kernel="precomputed").fit(matrix, y)
        with pytest.raises(Unsupported, match="precomputed"):
            make_problem(model, (matrix, y))


@pytest.mark.parametrize("model", [SVC(), KernelRidge(), make_pipeline(StandardScaler(), SVC())])
def test_an_unfitted_model_is_refused(model: Any):
    with pytest.raises(NotFitted, match=r"Call fit"):
        make_problem(model, (X, BINARY))


BROKEN = np.where(np.arange(60)[:, None] == 17, np.nan, X)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((X[:50], BINARY[:50]), BadData, "fitted on 60"),
        ((X[:, :3], BINARY), BadData, r"\(60, 3\)"),
        ((X[::-1], BINARY[::-1]), BadData, "another one"),
        ((X, np.where(BINARY == "ham", "spam", "ham")), BadData, "another label"),
        ((X, np.where(np.arange(60) == 9, "eggs", BINARY)), BadData, "'eggs'"),
        ((X, BINARY[:50]), BadData, "unequal lengths"),
        (X, BadData, "no targets"),
        ((BROKEN, BINARY), NonFinite, "Example 17"),
    ],
)
def test_data_of_another_fit_is_refused(data: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        make_problem(MACHINES["rbf"].fit(), data)


def test_other_rows_of_a_kernel_ridge_are_refused():
    model = RIDGES["ridge, rbf"].fit()
    with pytest.raises(BadData, match="Example 5 is another one"):
        make_problem(model, (np.where(np.arange(60)[:, None] == 5, X + 1, X), NUMBERS))
    with pytest.raises(BadData, match="fitted on 60"):
        make_problem(model, (X[:59], NUMBERS[:59]))
    with pytest.raises(NonFinite, match="example 4"):
        make_problem(model, (X, np.where(np.arange(60) == 4, np.nan, NUMBERS)))


def test_weights_that_were_not_those_of_the_fit_are_refused():
    case = MACHINES["rbf"]
    with pytest.raises(BadData, match="sample_weight of the fit"):
        make_problem(case.fit(WEIGHTS), (X, BINARY))
    with pytest.raises(BadData, match="40 training examples have no weight"):
        make_problem(case.fit(), (X, BINARY), sample_weight=(np.arange(60) < 20).astype(float))


def test_a_kernel_that_was_set_after_the_fit_is_refused():
    ridge = RIDGES["ridge, rbf"].fit()
    problem = make_problem(ridge, (X, NUMBERS))
    machine = MACHINES["rbf"].fit().set_params(gamma=5.0)
    with pytest.raises(Unsupported, match="must not be set after the fit"):
        make_problem(machine, (X, BINARY))
    assert problem.size == 60


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"class_weight": "balanced"}])
def test_options_that_the_estimator_answers_are_refused(option: dict[str, Any]):
    with pytest.raises(BadArgument, match="The model itself says it"):
        MACHINES["rbf"].problem(**option)


def test_nan_in_a_query_is_refused():
    with pytest.raises(NonFinite, match="Example 17"):
        MACHINES["rbf"].problem().queries(BROKEN)


def test_the_estimator_is_not_changed():
    model = MACHINES["rbf"].fit()
    before = repr(sorted(vars(model).items()))
    problem = make_problem(model, (X, BINARY))
    problem.retrain(torch.zeros(1, 60, dtype=torch.float64).index_fill(1, torch.arange(30), 1.0))
    assert repr(sorted(vars(model).items())) == before
