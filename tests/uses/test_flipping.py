"""The smallest set whose removal flips a prediction: checked by retraining, and by brute force."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

import problems
from problems import Case
from whence.calculus.retraining import NewtonTraining
from whence.core.problem import Problem
from whence.errors import BadArgument, CannotRetrain, Unsupported
from whence.uses import flipping
from whence.uses.base import fit_to_respond
from whence.uses.flipping import Brittleness, Flip, brittleness, smallest_flip


def nearest(case: Case, place: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The query whose two strongest answers are closest, or the next one."""
    outputs = case.problem.outputs(case.problem.parameters, case.queries[0]).detach()
    if outputs.shape[1] > 1:
        best = outputs.topk(2, dim=1).values
        gaps = best[:, 0] - best[:, 1]
    else:
        gaps = outputs[:, 0].abs()
    row = gaps.argsort()[place : place + 1]
    return case.queries[0][row], case.queries[1][row]


def answer(problem: Problem, theta: torch.Tensor, query: torch.Tensor) -> int:
    outputs = problem.outputs(theta, query)[0].detach()
    return int(outputs.argmax()) if len(outputs) > 1 else int(outputs[0] > 0)


def without(problem: Problem, group: list[int]) -> torch.Tensor:
    row = torch.ones(1, len(problem), dtype=torch.float64)
    row[0, group] = 0
    return NewtonTraining().retrain(problem, row).parameters[0]


@pytest.mark.parametrize("name", ["logistic", "multinomial", "smooth_hinge", "class_weighted"])
@pytest.mark.parametrize("place", [0, 2])
def test_retraining_without_the_set_gives_the_answer_that_is_reported(name, place):
    case = problems.CONVEX[name]()
    query = nearest(case, place)
    found = smallest_flip(case.problem, query)
    assert found.flipped
    theta = without(case.problem, found.train_ids.tolist())
    before = answer(case.problem, case.problem.parameters, query[0])
    assert answer(case.problem, theta, query[0]) != before
    assert found.actual < 0 < found.baseline
    assert found.new_answer != found.answer
    assert len(set(found.train_ids.tolist())) == found.size


def test_where_one_example_suffices_the_search_finds_one():
    """By brute force over all single removals; and where none does, it claims no single one."""
    case = problems.multinomial()
    for place in range(3):
        query = nearest(case, place)
        before = answer(case.problem, case.problem.parameters, query[0])
        rows = 1 - torch.eye(len(case.problem), dtype=torch.float64)
        thetas = NewtonTraining().retrain(case.problem, rows).parameters
        singles = [answer(case.problem, theta, query[0]) != before for theta in thetas]
        found = smallest_flip(case.problem, query)
        assert (found.size == 1) == any(singles)


def test_no_pair_beats_a_set_of_three_or_more_found_on_a_few_examples():
    """By brute force over all pairs of the ten most influential examples."""
    case = problems.logistic()
    query = nearest(case, 2)
    found = smallest_flip(case.problem, query)
    before = answer(case.problem, case.problem.parameters, query[0])
    few = found.train_ids[:10].tolist()
    pairs = list(combinations(few, 2))
    rows = torch.ones(len(pairs), len(case.problem), dtype=torch.float64)
    for row, pair in zip(rows, pairs, strict=True):
        row[list(pair)] = 0
    thetas = NewtonTraining().retrain(case.problem, rows).parameters if pairs else []
    pair_flips = any(answer(case.problem, theta, query[0]) != before for theta in thetas)
    assert not (pair_flips and found.size > 2)


def test_every_attempt_tells_what_retraining_gave():
    case = problems.multinomial()
    query = nearest(case, 2)
    found = smallest_flip(case.problem, query)
    for one in found.tried[:: max(1, len(found.tried) // 4)]:
        theta = without(case.problem, list(one.positions))
        is_flip = answer(case.problem, theta, query[0]) != int(found.answer)
        assert is_flip == one.is_flip


def test_ranking_anew_finds_no_larger_set_than_the_first_ranking(monkeypatch):
    case = problems.breast_cancer()
    query = nearest(case, 1)
    best = smallest_flip(case.problem, query)
    monkeypatch.setattr("whence.uses.flipping.ROUNDS", 0)
    once = smallest_flip(case.problem, query)
    assert best.flipped
    assert not once.flipped or best.size <= once.size


def test_without_retraining_the_size_is_only_predicted():
    case = problems.multinomial()
    found = smallest_flip(case.problem, nearest(case), retrain=False)
    assert found.flipped is None
    assert found.actual is None
    assert found.predicted < 0
    assert found.size == found.predicted_sizes["predicted"]
    assert "nothing was trained" in found.sentence


def test_a_prediction_that_few_examples_cannot_flip_is_reported_as_not_flipped():
    case = problems.multinomial()
    found = smallest_flip(case.problem, nearest(case, 5), most=1)
    assert found.flipped is False
    assert found.size <= 1
    assert "No set was found" in found.sentence


def test_the_result_is_strict_json_and_a_section():
    case = problems.multinomial()
    found = smallest_flip(case.problem, nearest(case))
    assert isinstance(found, Flip)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["size"] == len(document["train_ids"]) == found.size
    table = found.section().blocks[0]
    assert [row[0] for row in table.rows] == sorted({len(one.positions) for one in found.tried})


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda c: smallest_flip(c.problem, c.queries), BadArgument, "6 queries"),
        (lambda c: smallest_flip(c.problem, nearest(c), most=0), BadArgument, "most=0"),
        (lambda c: smallest_flip(c.problem, nearest(c), most=60), BadArgument, "most=60"),
    ],
)
def test_what_makes_no_sense_is_refused(ask, error, words):
    with pytest.raises(error, match=words):
        ask(problems.multinomial())


def test_a_regression_does_not_flip():
    case = problems.ridge()
    with pytest.raises(Unsupported, match="mse"):
        smallest_flip(case.problem, (case.queries[0][:1], case.queries[1][:1]))


def test_a_training_that_fails_is_told():
    case = problems.multinomial()

    def train(weights: torch.Tensor, seed: int) -> torch.Tensor:
        raise CannotRetrain(found="x", why="y", remedy="z")

    with pytest.raises(CannotRetrain):
        smallest_flip(case.problem, nearest(case), retrain=train)


def test_a_set_is_the_same_when_it_is_asked_for_again():
    case = problems.multinomial()
    first, second = (smallest_flip(case.problem, nearest(case, 1)) for _ in range(2))
    assert np.array_equal(first.train_ids, second.train_ids)


# --------------------------------------------------------------------- many predictions


@pytest.fixture(scope="module")
def many() -> tuple[Case, Brittleness]:
    case = problems.multinomial()
    return case, brittleness(case.problem, case.queries)


def test_every_prediction_gets_the_set_that_it_gets_alone(many):
    case, found = many
    assert len(found.flips) == len(case.queries[1])
    alone = smallest_flip(case.problem, (case.queries[0][1:2], case.queries[1][1:2]))
    assert found.flips[1].train_ids.tolist() == alone.train_ids.tolist()
    assert [one.query for one in found.flips] == case.problem.queries(case.queries).ids.tolist()


def test_the_size_for_a_share_suffices_for_that_share_and_no_smaller_one_does(many):
    _, found = many
    for share in (0.2, 0.5, 1.0):
        size = found.size_for(share)
        flipped = [(found.sizes <= limit).mean() for limit in (size, size - 1)]
        assert flipped[0] >= share > flipped[1]


def test_the_method_is_fitted_to_all_data_once_for_all_predictions(monkeypatch):
    case, fits = problems.logistic(), []
    monkeypatch.setattr(
        flipping, "fit_to_respond", lambda *asked: fits.append(asked) or fit_to_respond(*asked)
    )
    brittleness(case.problem, case.queries, retrain=False)
    assert len(case.queries[1]) > 1
    assert len(fits) == 1


def test_predictions_without_a_set_count_as_not_flipped():
    case = problems.multinomial()
    found = brittleness(case.problem, case.queries, most=2)
    unflipped = np.isnan(found.sizes)
    assert unflipped.any()
    assert found.size_for(1.0) is None
    assert found.to_json()["sizes"].count(None) == unflipped.sum()
    assert json.dumps(found.to_json(), allow_nan=False)
    lines, table = found.section().blocks
    assert lines.series["predictions"]["y"][-1] == pytest.approx((~unflipped).mean())
    assert [row[-1] is None for row in table.rows] == unflipped.tolist()


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0])
def test_a_share_is_a_part_of_the_predictions(many, share):
    with pytest.raises(BadArgument, match="share"):
        many[1].size_for(share)
