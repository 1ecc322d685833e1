"""Derivatives with respect to a training input are those of training again."""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import problems
from problems import Case
from whence.adapters import make_problem
from whence.calculus.gradients import measure
from whence.calculus.retraining import NewtonTraining
from whence.core.changes import replacement
from whence.core.problem import Problem
from whence.errors import BadArgument, Unsupported
from whence.explanation import fit
from whence.methods.base import Fitted, Method
from whence.sections import Bars, Gallery
from whence.uses.perturbation import perturb


class TwoInputs(nn.Module):
    """A row and a picture, each through its own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Linear(3, 2)
        self.picture = nn.Linear(16, 2)

    def forward(self, row: Tensor, picture: Tensor) -> Tensor:
        return torch.tanh(self.row(row)) * (1 + self.picture(picture.flatten(1)))


def images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.random((count, 1, 6, 6)))
    y = torch.from_numpy((random.random(count) < 0.5).astype(np.int64))
    return x, y


def extracted() -> Case:
    """A softmax head on the features of a frozen convolution."""
    x, y = images(30, 34)
    network = seeded(nn.Sequential, nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten())
    head = seeded(nn.Linear, 32, 2)
    problem = make_problem(
        head, (x[:30], y[:30]), loss="cross_entropy", weight_decay=0.05, features=network
    )
    return Case(problem, (x[30:], y[30:]))


def two_inputs(kind: type) -> Case:
    random = np.random.default_rng(31)
    row, picture = random.standard_normal((24, 3)), random.random((24, 4, 4))
    y = torch.from_numpy(random.integers(0, 2, 24))
    parts = {"row": torch.from_numpy(row), "picture": torch.from_numpy(picture)}

    def some(rows: slice) -> Any:
        chosen = {name: value[rows] for name, value in parts.items()}
        return (chosen, y[rows]) if kind is dict else (*chosen.values(), y[rows])

    problem = make_problem(
        seeded(TwoInputs), some(slice(20)), loss="cross_entropy", weight_decay=0.1
    )
    return Case(problem, some(slice(20, 24)))


def pipeline(*steps: Any, is_frame: bool = False) -> Case:
    random = np.random.default_rng(32)
    x = random.standard_normal((54, 3)) * [1.0, 20.0, 0.1] + [0.0, 5.0, 1.0]
    y = np.where(x[:, 0] + 0.05 * x[:, 1] + random.standard_normal(54) > 0, "yes", "no")
    table = pd.DataFrame(x, columns=["age", "dose", "share"]) if is_frame else x
    model = make_pipeline(*steps, LogisticRegression(C=0.5)).fit(table[:50], y[:50])
    problem = make_problem(model, (table[:50], y[:50]))
    return Case(problem, (table[50:], y[50:]))


def seeded(build: Callable[..., nn.Module], *parts: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(20)
        for part in parts:
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return build(*parts).double().eval()


CASES: dict[str, Callable[[], Case]] = {
    "ridge": problems.ridge,
    "ridge_weighted": problems.ridge_weighted,
    "logistic": problems.logistic,
    "multinomial_free_intercept": problems.multinomial_free_intercept,
    "mlp": problems.mlp,
    "conv": problems.conv,
    "frozen network": extracted,
    "dict of inputs": lambda: two_inputs(dict),
    "tuple of inputs": lambda: two_inputs(tuple),
    "scaled table": lambda: pipeline(StandardScaler()),
    "scaled frame": lambda: pipeline(StandardScaler(), is_frame=True),
    "principal components": lambda: pipeline(StandardScaler(), PCA(2)),
    "polynomial": lambda: pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False)),
}


def at_optimum(problem: Problem) -> Problem:
    ones = torch.ones(1, len(problem))
    return problem.at(NewtonTraining().retrain(problem, ones).parameters[0])


def measured_after_training(problem: Problem, asked: Any, position: int, raw: Any) -> np.ndarray:
    """(Q,) measurements after training again with other raw contents of one example."""
    rows = np.array([position])
    changed = replacement(problem, rows, problem.data.prepare(raw)).contents(problem)
    optimum = NewtonTraining(tolerance=1e-12).retrain(changed, torch.ones(1, len(problem)))
    queries = problem.queries(asked)
    return measure(problem.at(optimum.parameters[0]), problem.measurement(), queries).numpy()


def moves(raw: Any, *, count: int, seed: int) -> list[Any]:
    """Random directions in the space of one raw example, scaled to the size of its numbers."""
    random = np.random.default_rng(seed)

    def move(leaf: Any) -> np.ndarray:
        return random.standard_normal(leaf.shape) * np.maximum(np.abs(np.asarray(leaf)), 0.3)

    if isinstance(raw, Tensor | dict | tuple):
        return [tree_map(move, raw) for _ in range(count)]
    return [move(raw) for _ in range(count)]


def moved(raw: Any, direction: Any, step: float) -> Any:
    if isinstance(raw, Tensor | dict | tuple):
        return tree_map(lambda x, d: x + step * torch.from_numpy(d), raw, direction)
    return raw + step * direction


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_training_again(name: str, renormalize: bool) -> None:
    case = CASES[name]()
    problem = at_optimum(replace(case.problem, renormalize=renormalize))
    raw = problem.data.raw(torch.tensor([4]))
    found = perturb(problem, case.queries, example=4)

    assert [x.shape[1:] for x in tree_leaves(found.values)] == [
        x.shape[1:] for x in (tree_leaves(raw) if isinstance(raw, dict | tuple) else [raw])
    ]
    for direction in moves(raw, count=3, seed=5):
        pieces = zip(tree_leaves(found.values), tree_leaves(direction), strict=True)
        actual = sum((ours * d).reshape(len(ours), -1).sum(1) for ours, d in pieces)
        h = 1e-4
        above, below = (
            measured_after_training(problem, case.queries, 4, moved(raw, direction, sign * h))
            for sign in (1, -1)
        )
        expected = (above - below) / (2 * h)
        # Differences err by h^2 of the third derivative and by what the retraining leaves undone.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_measurement_that_is_asked_for_is_the_one_that_is_differentiated() -> None:
    """By the chain rule the loss -log sigmoid(margin) falls by p' of its logit's rise."""
    case = problems.logistic()
    margin = perturb(case.problem, case.queries, example=7)
    loss = perturb(case.problem, case.queries, example=7, measurement="loss")

    wrong = 1 / (1 + np.exp(margin.baseline))
    np.testing.assert_allclose(loss.values, -wrong[:, None] * margin.values, rtol=1e-9)
    assert (margin.unit, loss.unit) == ("logits", "nats")


def test_an_example_of_no_weight_has_no_effect() -> None:
    case = problems.ridge_weighted()  # example 7 has base weight zero
    assert (perturb(case.problem, case.queries, example=7).values == 0).all()


def test_queries_stack_and_a_fitted_method_is_reused() -> None:
    case = problems.mlp()
    fitted = fit(case.problem, "exact")
    both = perturb(case.problem, case.queries, example=1, method=fitted).values
    for q in range(len(case.queries[1])):
        one = tuple(part[q : q + 1] for part in case.queries)
        alone = perturb(case.problem, one, example=1, method=fitted).values
        np.testing.assert_allclose(alone[0], both[q], rtol=1e-9)


def test_the_best_step_is_along_the_signs() -> None:
    case = problems.multinomial()
    found = perturb(case.problem, case.queries, example=3)

    assert set(np.unique(found.direction)) <= {-1.0, 0.0, 1.0}
    along = (found.values * 0.1 * found.direction).sum(1)
    np.testing.assert_allclose(found.largest_step(0.1), along, rtol=1e-12)
    random = np.random.default_rng(0).choice([-0.1, 0.1], size=(50, 4))
    assert (found.values @ random.T <= found.largest_step(0.1)[:, None] + 1e-12).all()
    with pytest.raises(BadArgument, match="step of -1"):
        found.largest_step(-1)


# ----------------------------------------------------------------- what readers see


def picture_of(display: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(display["png"]))).convert("RGB")).astype(int)


def test_a_picture_is_blue_where_brighter_raises_and_orange_where_it_lowers() -> None:
    case = problems.conv()
    found = perturb(case.problem, case.queries, example=2)

    gallery = found.section().blocks[0]
    assert isinstance(gallery, Gallery)
    assert len(gallery.pictures) == 1 + 4  # the example, and four of five queries
    field = found.values[0, 0]
    painted = picture_of(dict(gallery.pictures[1][0]))
    assert painted.shape[:2] == field.shape
    is_strong = np.abs(field) > 0.5 * np.abs(field).max()
    is_blue = painted[:, :, 2] > painted[:, :, 0]
    assert (is_blue == (field > 0))[is_strong].all()


def test_flat_pictures_are_shown_in_their_shape() -> None:
    case = problems.digits_one_seven()
    problem = replace(case.problem, display={"kind": "image", "shape": (8, 8)})
    gallery = perturb(problem, case.queries, example=0).section().blocks[0]
    assert isinstance(gallery, Gallery)
    assert picture_of(dict(gallery.pictures[1][0])).shape == (8, 8, 3)


def test_rows_show_the_features_that_matter_most() -> None:
    case = problems.breast_cancer()
    names = [f"size {i}" for i in range(30)]
    problem = replace(case.problem, display={"kind": "row", "feature_names": names})
    found = perturb(problem, case.queries, example=5)

    bars = found.section().blocks[0]
    assert isinstance(bars, Bars)
    shown = dict(bars.values)
    row = dict(zip(names, found.values[0], strict=True))
    assert shown == {name: row[name] for name in shown}
    left_out = [row[name] for name in names if name not in shown]
    assert len(shown) <= 20
    assert max(left_out) <= min(v for v in shown.values() if v > 0)
    assert min(left_out) >= max(v for v in shown.values() if v < 0)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_the_numbers_of_several_inputs_have_names(kind: type) -> None:
    case = two_inputs(kind)
    found = perturb(case.problem, case.queries, example=2)

    assert len(found.names) == 3 + 16
    first, last = ("row[0]", "picture[3,3]") if kind is dict else ("0[0]", "1[3,3]")
    assert (found.names[0], found.names[-1]) == (first, last)
    json.dumps(found.section().to_json(), allow_nan=False)


def test_columns_of_a_frame_have_their_names() -> None:
    case = pipeline(StandardScaler(), is_frame=True)
    found = perturb(case.problem, case.queries, example=2)
    assert list(found.names) == ["age", "dose", "share"]
    assert [row[3] for row in found.section().blocks[-1].rows] == ["share"] * 4  # in units of 0.1


def test_every_number_is_in_the_json() -> None:
    case = problems.ridge()
    found = perturb(case.problem, case.queries, example=0)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    np.testing.assert_allclose(plain["values"], found.values)
    assert plain["report"]["curvature"] == "exact"
    assert "Moving every number of training example 0" in repr(found)


# ------------------------------------------------------------------------- refusals


def test_tokens_are_refused_before_anything_is_solved() -> None:
    case = problems.tokens()
    with pytest.raises(Unsupported, match="The inputs are integers"):
        perturb(case.problem, case.queries, example=0, method=FailingToFit())


def test_texts_are_refused() -> None:
    texts = ["good film", "bad film", "good play", "bad play"] * 5
    labels = [1, 0, 1, 0] * 5
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, labels)
    problem = make_problem(model, (texts, labels))
    with pytest.raises(Unsupported, match="raw examples are not numbers"):
        perturb(problem, (texts[:1], labels[:1]), example=0, method=FailingToFit())


def test_an_unknown_example_is_refused() -> None:
    case = problems.ridge()
    with pytest.raises(BadArgument, match="no training example 99"):
        perturb(case.problem, case.queries, example=99)


def test_a_method_without_a_curvature_is_refused() -> None:
    case = problems.ridge()
    with pytest.raises(Unsupported, match="does not move the parameters"):
        perturb(case.problem, case.queries, example=0, method=Bare())


class FailingToFit(Method):
    def fit(self, problem: Problem) -> Fitted:
        raise AssertionError("the refusal comes first")


class BareFitted(Fitted):
    def scores(self, queries: object, measurement: Any = None) -> Any:
        raise NotImplementedError


class Bare(Method):
    def fit(self, problem: Problem) -> Fitted:
        return BareFitted(problem, {})
