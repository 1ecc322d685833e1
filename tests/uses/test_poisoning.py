"""A training-set attack stays in its box, goes where it was told to, and flips a prediction."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import problems
from problems import Case
from whence.adapters import make_problem
from whence.calculus.gradients import measure
from whence.calculus.retraining import NewtonTraining
from whence.core.changes import replacement
from whence.core.problem import Problem
from whence.errors import BadArgument, CannotRetrain, Unsupported
from whence.explanation import fit
from whence.sections import Gallery, Table
from whence.uses.perturbation import perturb
from whence.uses.poisoning import Attack, Outcome, poison


def grey_images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Images of 8 bits as floats in [0, 1], some of them black or white at places; two classes."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, count)
    bright = 90 + 40 * y[:, None, None, None] + 60 * random.standard_normal((count, 1, 5, 5))
    x = np.rint(bright.clip(0, 255)) / 255
    return torch.from_numpy(x), torch.from_numpy(y)


def head_on_features(dtype: torch.dtype = torch.float64) -> Case:
    """A logistic head on frozen features of 30 images, and queries among which some are close."""
    x, y = grey_images(40, 70)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten()).eval().to(dtype)
        head = nn.Linear(54, 2).to(dtype).eval()
    problem = make_problem(
        head,
        (x[:30].to(dtype), y[:30]),
        loss="cross_entropy",
        weight_decay=0.003,
        features=network,
        display={"kind": "image", "low": 0.0, "high": 1.0},
    )
    problem = at_optimum(problem)
    return Case(problem, (x[30:].to(dtype), y[30:]))


def at_optimum(problem: Problem) -> Problem:
    ones = torch.ones(1, len(problem))
    return problem.at(NewtonTraining().retrain(problem, ones).parameters[0])


def closest(case: Case, count: int) -> tuple[Tensor, Tensor]:
    """The queries that the model gets right by the smallest margin."""
    asked = case.problem.queries(case.queries)
    margins = measure(case.problem, case.problem.measurement(), asked)
    order = margins.where(margins > 0, torch.inf).argsort()[:count]
    return case.queries[0][order], case.queries[1][order]


CASES = {
    "features": lambda: head_on_features(),
    "features in float32": lambda: head_on_features(torch.float32),
}


def each_leaf(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    return outcome.original, outcome.poisoned


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["each", "together"])
def test_the_images_stay_in_the_box_and_in_the_bounds(name: str, target: Any) -> None:
    case = CASES[name]()
    found = poison(
        case.problem,
        closest(case, 3),
        examples=4,
        step=0.1,
        attack=Attack(target=target, iterations=10),
    )
    for outcome in found.outcomes:
        before, after = each_leaf(outcome)
        assert len(before) == len(outcome.examples) == 4
        assert np.abs(after - before).max() * 255 < 0.5
        assert after.min() >= 0
        assert after.max() <= 1
        assert (np.rint(255 * after) == np.rint(255 * before)).all()
        assert outcome.has_same_bytes
        assert outcome.largest_change == pytest.approx(np.abs(after - before).max() * 255)
        assert outcome.largest_change > 0.09


def test_each_step_does_what_it_was_predicted_to_do() -> None:
    case = head_on_features()
    found = poison(case.problem, closest(case, 2), examples=2, attack=Attack(iterations=12))
    for outcome in found.outcomes:
        assert len(outcome.actual) > 3
        assert (outcome.actual < 0).all()  # a margin is lowered
        # What first order leaves out is of the second order in a step of 0.02 grey levels.
        np.testing.assert_allclose(outcome.predicted, outcome.actual, rtol=1e-2)


def test_the_first_step_is_along_the_perturbation() -> None:
    case = head_on_features()
    queries = closest(case, 1)
    found = poison(case.problem, queries, step=0.1, attack=Attack(iterations=1)).outcomes[0]
    slope = perturb(case.problem, queries, example=found.examples[0])

    moved = (found.poisoned - found.original)[0]
    free = (found.original[0] > 0) & (found.original[0] < 1)
    assert (np.sign(moved) == -slope.direction[0])[free].all()
    np.testing.assert_allclose(
        found.predicted[0], (slope.values[0] * moved).sum(), rtol=1e-4
    )  # the solve of an attack is that exact


def test_the_examples_are_those_that_one_step_moves_most() -> None:
    case = head_on_features()
    queries = closest(case, 1)
    fitted = fit(case.problem)
    totals = [
        perturb(case.problem, queries, example=i, method=fitted).largest_step(1.0)[0]
        for i in range(len(case.problem))
    ]
    order = np.argsort(totals)[::-1]
    found = poison(case.problem, queries, examples=3, attack=Attack(iterations=1, candidates=30))
    assert found.outcomes[0].examples == tuple(order[:3].tolist())


def test_the_reported_state_is_the_optimum_of_the_poisoned_data() -> None:
    case = head_on_features()
    problem, queries = case.problem, closest(case, 2)
    found = poison(problem, queries, examples=5, step=0.2, box=2.0, attack=Attack(iterations=8))
    asked = problem.queries(queries)
    for q, outcome in enumerate(found.outcomes):
        features = problem.data.prepare(torch.from_numpy(outcome.poisoned))
        changed = replacement(problem, np.array(outcome.examples), features)
        optimum = at_optimum(changed.contents(problem))
        after = measure(optimum, problem.measurement(), asked)[q]
        assert outcome.after[0] == pytest.approx(float(after), abs=1e-5)
        answers = problem.outputs(optimum.parameters, asked.inputs)[q].argmax()
        assert outcome.is_flipped[0] == (answers != queries[1][q])


def test_a_prediction_flips() -> None:
    """Of the query closest to the border, with a few images that change by a few grey levels."""
    case = head_on_features()
    found = poison(case.problem, closest(case, 1), examples=10, step=0.5, box=8.0)
    outcome = found.outcomes[0]
    assert found.is_flipped.tolist() == [True]
    assert found.before[0] > 0 > found.after[0]
    assert outcome.ending == "every prediction flipped"
    assert len(outcome.actual) <= outcome.steps < 100
    assert "1 of 1 predictions flipped when 10 training images" in found.section().sentence
    assert found.train_accuracy[1][0] >= found.train_accuracy[0] - 0.1


def test_an_attack_that_cannot_arrive_ends_early_and_would_not_have_arrived() -> None:
    """Steps bring less once the numbers reach the edge of the box; the rest is not tried."""
    case = head_on_features()
    asked = case.problem.queries(case.queries)
    margins = measure(case.problem, case.problem.measurement(), asked)
    row = margins.argmax()  # far from the border
    queries = case.queries[0][row : row + 1], case.queries[1][row : row + 1]
    few = Attack(iterations=10)
    found = poison(case.problem, queries, step=0.4, attack=few)
    (outcome,) = found.outcomes
    assert outcome.ending.startswith("out of reach")
    assert len(outcome.actual) == 2  # the second step has only a quarter of the way left
    assert found.after[0] > abs(outcome.actual[-1]) * (10 - outcome.steps)

    whole = poison(case.problem, queries, step=0.4, measurement="loss", attack=few)
    assert not whole.outcomes[0].ending.startswith("out of reach")
    assert not whole.is_flipped[0]


def test_one_attack_for_all_lowers_their_mean() -> None:
    case = head_on_features()
    queries = closest(case, 4)
    found = poison(
        case.problem,
        queries,
        examples=5,
        step=0.2,
        box=2.0,
        attack=Attack(target="together", iterations=8),
    )
    (outcome,) = found.outcomes
    assert outcome.queries.tolist() == [0, 1, 2, 3]
    gain = found.after.mean() - found.before.mean()
    assert gain == pytest.approx(outcome.actual.sum(), rel=1e-5)
    assert gain < 0


def test_a_loss_is_raised() -> None:
    case = head_on_features()
    found = poison(case.problem, closest(case, 1), measurement="loss", attack=Attack(iterations=2))
    assert found.after[0] > found.before[0]


def test_named_examples_are_the_ones_that_change() -> None:
    case = head_on_features()
    found = poison(case.problem, closest(case, 1), examples=[7, 2], attack=Attack(iterations=1))
    assert found.outcomes[0].examples == (7, 2)


def test_queries_that_are_wrong_already_are_left_alone() -> None:
    case = head_on_features()
    x, y = closest(case, 2)
    found = poison(case.problem, (x, torch.stack([y[0], 1 - y[1]])), attack=Attack(iterations=1))
    assert found.was_right.tolist() == [True, False]
    assert [outcome.queries.tolist() for outcome in found.outcomes] == [[0]]
    assert found.after[1] == found.before[1]


def test_queries_without_labels_are_attacked_at_the_models_own_answer() -> None:
    case = head_on_features()
    found = poison(case.problem, case.queries[0][:3], attack=Attack(iterations=1))
    assert found.was_right.all()


def test_accuracy_on_the_rest_is_told() -> None:
    case = head_on_features()
    right = closest(case, 3)
    found = poison(case.problem, right, attack=Attack(iterations=2))
    assert found.rest_accuracy[0].tolist() == [1.0, 1.0, 1.0]
    assert found.rest_accuracy[1].tolist() == [1.0, 1.0, 1.0]
    alone = poison(case.problem, closest(case, 1), attack=Attack(iterations=1))
    assert np.isnan(alone.rest_accuracy[0]).all()


def test_raw_models_are_attacked_on_their_own_inputs() -> None:
    """No frozen network: the derivative is the one of the inputs, and all examples compete."""
    case = problems.digits_one_seven()
    found = poison(case.problem, case.queries, examples=2, attack=Attack(iterations=3))
    assert len(found.outcomes) == len(found.query_ids)
    for outcome in found.outcomes:
        assert np.abs(outcome.poisoned - outcome.original).max() <= 0.5 / 255
    totals = [
        perturb(case.problem, case.queries, example=i).largest_step(1.0)[0]
        for i in found.outcomes[0].examples
    ]
    assert totals[0] >= totals[1]


@pytest.mark.parametrize("build", [problems.conv, problems.multinomial_free_intercept])
def test_networks_and_flat_directions_are_no_obstacle(build: Any) -> None:
    case = build()
    problem = at_optimum(case.problem)
    found = poison(
        problem, case.queries[0][:2], step=0.2, attack=Attack(bounds=(-9.0, 9.0), iterations=3)
    )
    for outcome in found.outcomes:
        np.testing.assert_allclose(outcome.predicted, outcome.actual, rtol=0.05)


def test_a_pipeline_is_confirmed_by_its_own_fit() -> None:
    random = np.random.default_rng(41)
    x = random.random((60, 5))
    y = np.where(x[:, 0] + 0.3 * random.standard_normal(60) > 0.5, "yes", "no")
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[:50], y[:50])
    problem = make_problem(model, (x[:50], y[:50]))
    asked = (x[50:54], y[50:54])
    found = poison(problem, asked, examples=3, step=1.0, box=4.0, attack=Attack(iterations=6))

    assert found.report["trained_by"].startswith("LogisticRegression fitted again")
    for outcome in found.outcomes:
        table = x[:50].copy()
        table[list(outcome.examples)] = outcome.poisoned
        scaled = model[0].transform(table)  # the scaler stays as it is
        again = LogisticRegression(tol=1e-10, max_iter=1000).fit(scaled, y[:50])
        logits = again.decision_function(model[0].transform(asked[0]))[outcome.queries]
        sign = np.where(asked[1][outcome.queries] == "yes", 1, -1)
        np.testing.assert_allclose(outcome.after, sign * logits, rtol=1e-4, atol=1e-5)


def test_what_readers_see() -> None:
    case = head_on_features()
    found = poison(case.problem, closest(case, 2), examples=2, attack=Attack(iterations=2))
    table, gallery = found.section().blocks
    assert isinstance(table, Table)
    assert isinstance(gallery, Gallery)
    assert [row[0] for row in table.rows] == ["0", "1"]
    assert [words for _, words in gallery.pictures[1:3]] == ["poisoned", "difference"]
    assert gallery.pictures[0][0]["png"] == gallery.pictures[1][0]["png"]  # nobody sees it
    assert gallery.pictures[2][0]["png"] != gallery.pictures[0][0]["png"]
    json.dumps(found.section().to_json(), allow_nan=False)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["outcomes"][0]["examples"] == list(found.outcomes[0].examples)
    assert "the same as before" in repr(found)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples=0 of 30"),
        ({"examples": 31}, "examples=31 of 30"),
        ({"examples": [99]}, "no training example 99"),
        ({"step": 0.6}, "A step of 0.6 grey levels in a box of 0.5"),
        ({"step": 0.0}, "A step of 0"),
        ({"box": float("inf"), "step": 1.0}, "in a box of inf"),
        ({"attack": Attack(bounds=(1.0, 0.0))}, "bounds="),
        ({"attack": Attack(bounds=(0.0, 0.5))}, "outside the bounds 0 to 0.5"),
        ({"attack": Attack(target="both")}, "target="),  # pyright: ignore[reportArgumentType]
        ({"attack": Attack(iterations=0)}, "iterations=0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    case = head_on_features()
    with pytest.raises(BadArgument, match=message):
        poison(case.problem, closest(case, 1), **options)


def test_there_must_be_something_to_flip() -> None:
    case = head_on_features()
    x, y = closest(case, 1)
    with pytest.raises(BadArgument, match="None of the 1 queries"):
        poison(case.problem, (x, 1 - y))


def test_integers_and_numbers_are_refused() -> None:
    case = problems.tokens()
    with pytest.raises(Unsupported, match="integers"):
        poison(case.problem, case.queries)
    case = problems.ridge()
    with pytest.raises(Unsupported, match="not one of a classifier"):
        poison(case.problem, case.queries)


def test_images_of_bytes_are_refused_with_the_way_out() -> None:
    x, y = grey_images(42, 20)
    whole = (255 * x).to(torch.uint8)
    problem = make_problem(
        nn.Linear(25, 2).eval(),
        (whole, y),
        loss="cross_entropy",
        weight_decay=0.1,
        features=lambda images: images.float().flatten(1) / 255,
    )
    with pytest.raises(Unsupported, match=r"images.float\(\) / 255"):
        poison(problem, whole[:2])


def test_a_model_that_cannot_be_trained_again_is_refused() -> None:
    x, y = grey_images(43, 20)
    flat = x.flatten(1).float()
    large = nn.Sequential(nn.Linear(25, 400), nn.Tanh(), nn.Linear(400, 2)).eval()
    problem = make_problem(large, (flat, y), loss="cross_entropy", weight_decay=0.1)
    with pytest.raises(CannotRetrain, match="11,202 parameters"):
        poison(problem, flat[:1])

    def train(weights: Tensor, seed: int) -> nn.Module:
        raise NotImplementedError

    small = nn.Linear(25, 2).eval()
    problem = make_problem(small, (flat, y), loss="cross_entropy", weight_decay=0.1, training=train)
    with pytest.raises(CannotRetrain, match="but no data"):
        poison(problem, flat[:1])


def test_a_training_that_takes_data_has_the_last_word() -> None:
    x, y = grey_images(44, 24)
    flat = x.flatten(1)
    marked = nn.Linear(25, 2).double().eval()
    given: list[Tensor] = []

    def train(weights: Tensor, seed: int, data: tuple[Tensor, Tensor]) -> nn.Module:
        given.append(data[0])
        return marked

    problem = make_problem(
        marked, (flat, y), loss="cross_entropy", weight_decay=0.1, training=train
    )
    found = poison(problem, flat[:1], attack=Attack(iterations=1))
    outcome = found.outcomes[0]
    np.testing.assert_allclose(given[0][outcome.examples[0]], outcome.poisoned[0])
    assert outcome.parameters.tolist() == problem.parameters.tolist()
