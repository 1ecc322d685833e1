"""The oracle is scikit-learn itself: its predictions, its loss, and the steps it takes."""

import inspect
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import whence
from whence.adapters import make_problem
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.core.rerunning import Rerun
from whence.errors import BadArgument, BadData, CannotRetrain, NonFinite, NotFitted, Unsupported
from whence.methods.influence import Influence

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
Array = np.ndarray

random = np.random.default_rng(0)
X = random.standard_normal((60, 4))
SIDES = X @ [1.0, -2.0, 0.5, 0.0] + X[:, 0] * X[:, 3] + 0.3 + random.logistic(size=60)
BINARY = np.where(SIDES > 0, "spam", "ham")
THIRDS = np.array(["low", "middle", "high"])[np.digitize(SIDES, [-1.0, 1.0])]
TWO_NUMBERS = np.stack([SIDES, X[:, 0] - SIDES**2], 1)
WEIGHTS = random.uniform(0.2, 3.0, 60)

TAKES_WEIGHTS = "sample_weight" in inspect.signature(MLPClassifier.fit).parameters
needs_weights = pytest.mark.skipif(not TAKES_WEIGHTS, reason="needs scikit-learn 1.7 or newer")
weightings = pytest.mark.parametrize(
    "weights", [None, pytest.param(WEIGHTS, marks=needs_weights)], ids=["equal", "weighted"]
)


@dataclass(frozen=True)
class Case:
    """A network and its targets; `outputs` C of the factor C / 2 between half squares and "mse"."""

    estimator: Any
    y: Array
    outputs: int = 2

    def fit(self, weights: Array | None = None, **options: Any) -> Any:
        model = clone(self.estimator).set_params(**options)
        return model.fit(X, self.y) if weights is None else model.fit(X, self.y, weights)

    def problem(self, weights: Array | None = None, **options: Any) -> Problem:
        given = {} if weights is None else {"sample_weight": weights}
        return make_problem(self.fit(weights), (X, self.y), **given, **options)


def classifier(activation: str, *hidden: int, **keywords: Any) -> MLPClassifier:
    given = {"solver": "lbfgs", "alpha": 0.5, "random_state": 0, "max_iter": 2000} | keywords
    return MLPClassifier(hidden, activation=activation, **given)


def regressor(activation: str, *hidden: int, **keywords: Any) -> MLPRegressor:
    given = {"solver": "lbfgs", "alpha": 0.5, "random_state": 0, "max_iter": 2000} | keywords
    return MLPRegressor(hidden_layer_sizes=hidden, activation=activation, **given)


CASES = {
    "binary, tanh": Case(classifier("tanh", 5), BINARY),
    "binary, relu, two layers": Case(classifier("relu", 5, 3), BINARY),
    "classes, logistic": Case(classifier("logistic", 5), THIRDS),
    "classes, identity": Case(classifier("identity", 2), THIRDS),
    "classes, no hidden layer": Case(classifier("relu"), THIRDS),
    "regression, tanh": Case(regressor("tanh", 5), SIDES, outputs=1),
    "regression, two targets": Case(regressor("logistic", 5), TWO_NUMBERS, outputs=2),
    "binary, adam": Case(classifier("relu", 6, solver="adam", max_iter=30), BINARY),
    "classes, sgd": Case(classifier("tanh", 6, solver="sgd", max_iter=30), THIRDS),
    "regression, adam": Case(regressor("relu", 6, solver="adam", max_iter=30), SIDES, outputs=1),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
REPORTED = {
    name: case
    for name, case in CASES.items()
    if case.estimator.solver == "lbfgs" and case.y.ndim == 1  # of several outputs, a mean
}


def gradient(problem: Problem) -> torch.Tensor:
    theta = problem.parameters.clone().requires_grad_()
    return torch.autograd.grad(problem.objective(theta), theta)[0]


def outputs(problem: Problem, inputs: Any = X) -> Array:
    features = problem.queries(inputs).inputs
    return problem.outputs(problem.parameters, features).detach().numpy()


def parameters_of(model: Any) -> Array:
    pairs = zip(model.coefs_, model.intercepts_, strict=True)
    return np.concatenate([part.ravel() for w, b in pairs for part in (w.T, b)])


# --------------------------------------------------------------------- the same model


@cases
@weightings
def test_outputs_are_those_of_the_estimator(case: Case, weights: Array | None):
    model, found = case.fit(weights), outputs(case.problem(weights))
    if not hasattr(model, "classes_"):
        expected = model.predict(X)
        assert_allclose(found.reshape(expected.shape), expected, rtol=1e-12)
    elif len(model.classes_) == 2:
        assert_allclose(expit(found[:, 0]), model.predict_proba(X)[:, 1], rtol=1e-12)
    else:
        assert_allclose(softmax(found, 1), model.predict_proba(X), rtol=1e-12)


@cases
def test_parameters_are_weights_and_intercepts_layer_by_layer(case: Case):
    problem = case.problem()
    assert_array_equal(problem.parameters, parameters_of(case.fit()))
    assert problem.layout.names[-2:] == ("output.weight", "output.bias")


# ------------------------------------------------------------------ the same objective


@pytest.mark.parametrize("case", REPORTED.values(), ids=REPORTED.keys())
@weightings
def test_the_objective_is_the_loss_that_lbfgs_reports(case: Case, weights: Array | None):
    model, problem = case.fit(weights), case.problem(weights)
    count = 60 if weights is None else weights.sum()
    factor = 1 if hasattr(model, "classes_") else 1 / 2
    ours = factor * float(problem.objective(problem.parameters)) * 60 / count
    assert ours == pytest.approx(model.loss_, rel=1e-9)


def step_of(model: Any, y: Array, weights: Array | None, size: int) -> Array:
    """The gradient that scikit-learn follows: one epoch of small steps without momentum."""
    rate, given = 1e-6, () if weights is None else (weights,)
    steps = {"solver": "sgd", "batch_size": size, "learning_rate_init": rate, "momentum": 0.0}
    twin = clone(model).set_params(**steps, max_iter=1).fit(X, y)
    for theirs, ours in zip(
        twin.coefs_ + twin.intercepts_, model.coefs_ + model.intercepts_, strict=True
    ):
        theirs[...] = ours  # in place: its optimizer holds them
    twin.partial_fit(X, y, *given)
    return (parameters_of(model) - parameters_of(twin)) / (rate * (60 // size))


@cases
@weightings
def test_the_gradient_is_the_one_that_scikit_learn_follows(case: Case, weights: Array | None):
    """Written with the half squared errors of all outputs, and divided by the sum of weights."""
    model = case.fit(weights).set_params(solver="lbfgs")
    given = {} if weights is None else {"sample_weight": weights}
    problem = make_problem(model, (X, case.y), **given)
    step = step_of(model, case.y, weights, 60)
    factor = 1.0 if hasattr(model, "classes_") else case.outputs / 2
    count = 60 if weights is None else weights.sum()
    ours = factor * 60 / count * gradient(problem).numpy()
    assert_allclose(ours, step, atol=1e-5 * np.abs(step).max() + 1e-8)


@cases
@pytest.mark.parametrize("size", [6, 20])
def test_the_penalty_of_stochastic_steps_is_divided_by_the_batch(case: Case, size: int):
    """Over an epoch they follow the objective with alpha / B, not alpha / N."""
    model = deepcopy(case.fit()).set_params(solver="sgd", batch_size=size)
    for weight in model.coefs_:
        weight *= 1.01  # the optimum can lie at a corner of ReLU, which a step would cross
    problem = make_problem(model, (X, case.y))
    step = step_of(model, case.y, None, size)
    factor = 1.0 if hasattr(model, "classes_") else case.outputs / 2
    assert_allclose(factor * gradient(problem).numpy(), step, atol=1e-4 * np.abs(step).max())
    assert f"alpha / {size}" in problem.notes[1]


def test_a_smaller_last_batch_counts_by_its_size():
    model = classifier("tanh", 3, solver="sgd", batch_size=25, alpha=2.0).fit(X, BINARY)
    decay = make_problem(model, (X, BINARY)).regularizer.weight_decay
    assert decay == pytest.approx(2.0 * (1 / 25 + 1 / 25 + 1 / 10) / 3)
    whole = classifier("tanh", 3, solver="sgd", alpha=2.0).fit(X, BINARY)  # 200 a batch at most
    assert make_problem(whole, (X, BINARY)).regularizer.weight_decay == pytest.approx(2.0 / 60)


def test_intercepts_are_not_regularised():
    names = CASES["binary, relu, two layers"].problem().regularizer.names
    assert names == {"hidden0.weight", "hidden1.weight", "output.weight"}


@pytest.mark.parametrize("name", ["binary, tanh", "classes, logistic", "regression, tanh"])
def test_a_fit_of_lbfgs_is_near_a_point_without_gradient(name: str):
    """Its solver stops where steps gain a few billionths; a step of ours goes on from there."""
    problem = CASES[name].problem()
    optimum = problem.retrain(torch.ones(1, 60)).parameters[0]
    assert gradient(problem).norm() < 1e-3
    assert gradient(problem.at(optimum)).norm() < 1e-10
    assert (optimum - problem.parameters).norm() < 0.1 * problem.parameters.norm()


# ------------------------------------------------------------------------ fitting again


@needs_weights
@pytest.mark.parametrize("name", ["binary, adam", "classes, sgd", "regression, adam"])
def test_the_same_steps_lead_to_the_same_parameters(name: str):
    case = CASES[name]
    for weights in (None, WEIGHTS):
        problem = case.problem(weights)
        assert isinstance(problem.training, Rerun)
        again = problem.retrain(torch.ones(1, 60)).parameters[0]
        assert_allclose(again, problem.parameters, rtol=1e-9, atol=1e-12)


@needs_weights
def test_a_rerun_without_an_example_gives_it_no_weight():
    case = CASES["binary, adam"]
    problem = case.problem(WEIGHTS)
    weights = torch.ones(2, 60, dtype=torch.float64)
    weights[1, 7] = 0
    found = problem.retrain(weights)
    expected = parameters_of(case.fit(WEIGHTS * weights[1].numpy()))
    assert_allclose(found.parameters[1], expected, rtol=1e-12)
    assert (found.parameters[1] - found.parameters[0]).abs().max() > 1e-4
    other = problem.retrain(weights[:1], seed=1).parameters[0]
    assert_allclose(other, parameters_of(case.fit(WEIGHTS, random_state=1)), rtol=1e-12)
    assert not problem.training.is_deterministic


@needs_weights
def test_a_network_of_single_precision_is_fitted_again_in_single_precision():
    model = classifier("relu", 6, solver="adam", max_iter=30).fit(X.astype(np.float32), BINARY)
    problem = make_problem(model, (X.astype(np.float32), BINARY))
    assert problem.dtype == torch.float64
    again = problem.retrain(torch.ones(1, 60)).parameters[0]
    assert_allclose(again, problem.parameters, rtol=1e-4, atol=1e-6)


@needs_weights
def test_a_batch_without_any_weight_cannot_be_fitted():
    model = classifier("relu", 3, solver="adam", max_iter=2, batch_size=1).fit(X, BINARY)
    weights = torch.ones(1, 60)
    weights[0, 3] = 0
    with pytest.raises(CannotRetrain, match="a batch of the fit has none left"):
        make_problem(model, (X, BINARY)).retrain(weights)


def test_the_training_depends_on_what_is_known_of_the_fit():
    def training(**options: Any) -> Any:
        model = clone(classifier("tanh", 3, max_iter=20)).set_params(**options).fit(X, BINARY)
        return make_problem(model, (X, BINARY)).training

    repeatable = Rerun if TAKES_WEIGHTS else type(None)
    assert isinstance(training(), NewtonTraining)
    assert isinstance(training(activation="relu"), Rerun if TAKES_WEIGHTS else NewtonTraining)
    assert isinstance(training(activation="relu", random_state=None), NewtonTraining)
    assert isinstance(training(solver="adam"), repeatable)
    assert training(solver="adam", random_state=None) is None


def test_a_users_training_takes_precedence():
    def own(weights: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.zeros(5)

    assert CASES["binary, tanh"].problem(training=own).training.name == "own"


# ---------------------------------------------------------------- effects on real data


def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    chosen = np.isin(y, (3, 8))
    return x[chosen] / 16, y[chosen]


@pytest.mark.slow
def test_effects_predict_fits_without_an_example():
    """scikit-learn goes on from the network as it is, on the others. Measured: 0.98, slope 0.90."""
    x, y = digits()
    test, train = np.arange(0, len(x), 12), np.flatnonzero(np.arange(len(x)) % 12)
    model = classifier("tanh", 8, alpha=1.0, tol=1e-9, max_iter=20_000).fit(x[train], y[train])
    problem = make_problem(model, (x[train], y[train]))
    scores = Influence("exact").fit(problem).scores((x[test], y[test]), "logit")

    def logits(rows: Array) -> Array:
        again = deepcopy(model).set_params(warm_start=True).fit(x[rows], y[rows])
        p = again.predict_proba(x[test])
        return np.log(p[:, 1] / p[:, 0])

    gone = np.argsort(-np.abs(scores.values).mean(0))[::8]
    actual = np.stack([logits(np.delete(train, i)) for i in gone], 1) - logits(train)[:, None]
    predicted = scores.values[:, gone]
    assert np.corrcoef(predicted.ravel(), actual.ravel())[0, 1] > 0.9


@pytest.mark.slow
def test_verify_believes_the_numbers_of_a_small_smooth_network():
    case = Case(classifier("tanh", 3, alpha=3.0), BINARY)
    problem = case.problem()
    scores = whence.explain(problem, (X[:5], BINARY[:5]), method="exact")
    check = whence.verify(problem, scores, examples=30)
    assert check.training == "Newton steps from the optimum"
    assert check.verdict == "believe the numbers"


# ---------------------------------------------------------------- pipelines and labels


def test_a_pipeline_is_its_network_on_transformed_features():
    steps = make_pipeline(StandardScaler(), classifier("tanh", 3)).fit(X, BINARY)
    problem = make_problem(steps, (X, BINARY))
    assert_allclose(expit(outputs(problem)[:, 0]), steps.predict_proba(X)[:, 1], rtol=1e-12)
    assert any("StandardScaler stay" in note for note in problem.notes)


def test_labels_and_columns_are_words():
    table = pd.DataFrame(X, columns=list("abcd"))
    model = classifier("tanh", 3).fit(table, THIRDS)
    problem = make_problem(model, (table, THIRDS))
    assert problem.label_names == ("high", "low", "middle")
    assert [problem.label_of(i) for i in range(5)] == THIRDS[:5].tolist()
    assert [name for name, _ in problem.show(0)["cells"]] == list("abcd")
    queries = problem.queries(table[:9])
    words = [problem.label_name(target) for target in queries.targets]
    assert words == model.predict(table[:9]).tolist()


# ----------------------------------------------------------------------------- refusals

LABELS = np.stack([SIDES > 0, X[:, 0] > 0], 1).astype(int)


@pytest.mark.parametrize(
    ("estimator", "y", "words"),
    [
        (classifier("relu", 3, solver="adam", early_stopping=True), BINARY, "held out 10%"),
        (classifier("relu", 3), LABELS, "2 labels at once"),
        (classifier("relu", 3), np.full(60, "spam"), "1 class"),
        (regressor("relu", 3, loss="poisson"), np.abs(SIDES), "poisson"),
    ],
)
def test_what_has_no_exact_translation_is_refused(estimator: Any, y: Array, words: str):
    with pytest.raises(Unsupported, match=words):
        make_problem(estimator.fit(X, y), (X, y))


@pytest.mark.parametrize("model", [MLPClassifier(), MLPRegressor()])
def test_an_unfitted_network_is_refused(model: Any):
    with pytest.raises(NotFitted, match=r"Call fit"):
        make_problem(model, (X, BINARY))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((X[:, :3], BINARY), BadData, r"\(60, 3\)"),
        ((X, np.where(np.arange(60) == 9, "eggs", BINARY)), BadData, "'eggs'"),
        ((X, BINARY[:50]), BadData, "unequal lengths"),
        ((X[BINARY == "spam"], BINARY[BINARY == "spam"]), BadData, "fitted on 2"),
        (X, BadData, "no targets"),
        ((np.where(np.arange(60)[:, None] == 17, np.nan, X), BINARY), NonFinite, "example 17"),
    ],
)
def test_wrong_data_is_refused(data: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        make_problem(CASES["binary, tanh"].fit(), data)


@pytest.mark.parametrize("option", [{"loss": "mse"}, {"weight_decay": 0.1}, {"parameters": "*"}])
def test_options_that_the_estimator_answers_are_refused(option: dict[str, Any]):
    with pytest.raises(BadArgument, match="The model itself says it"):
        CASES["binary, tanh"].problem(**option)


def test_the_estimator_is_not_changed():
    for name in ("binary, tanh", "binary, adam"):
        model = CASES[name].fit()
        before = repr(sorted((key, str(value)) for key, value in vars(model).items()))
        problem = make_problem(model, (X, BINARY))
        problem.retrain(torch.ones(1, 60, dtype=torch.float64))
        assert repr(sorted((key, str(value)) for key, value in vars(model).items())) == before
