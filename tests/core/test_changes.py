"""A change of the training data: what becomes of which example, and with which weight."""

import numpy as np
import pytest
import torch

import problems
from whence.core.changes import Change, removal, replacement, reweighting
from whence.errors import BadArgument, BadData


def test_the_row_of_a_removal_is_zero_at_the_group_and_one_elsewhere():
    assert removal(np.array([1, 3])).row(5).tolist() == [1, 0, 1, 0, 1]


def test_the_row_of_a_reweighting_holds_the_factor():
    assert reweighting(np.array([2]), 2.5).row(4).tolist() == [1, 1, 2.5, 1]


@pytest.mark.parametrize("factor", [-1.0, np.nan, np.inf])
def test_a_weight_is_finite_and_not_negative(factor: float):
    with pytest.raises(BadArgument, match="weighted by"):
        reweighting(np.array([0]), factor)


def test_removals_and_weights_leave_the_contents_alone():
    problem = problems.logistic().problem
    assert removal(np.array([1])).contents(problem) is problem


def test_only_replaced_examples_have_new_contents():
    problem = problems.logistic().problem
    old, labels = problem.data.take(torch.arange(len(problem)))
    change = replacement(problem, np.array([4, 2]), old[[0, 1]] + 1, targets=1 - labels[[4, 2]])
    new, relabelled = change.contents(problem).data.take(torch.arange(len(problem)))
    same = [i for i in range(len(problem)) if i not in (2, 4)]
    assert torch.equal(new[same], old[same])
    assert torch.equal(relabelled[same], labels[same])
    assert torch.equal(new[[4, 2]], old[[0, 1]] + 1)
    assert torch.equal(relabelled[[4, 2]], 1 - labels[[4, 2]])


@pytest.mark.parametrize("rows", [[4], [2, 4], [3, 4, 5], [9, 2]])
def test_changed_data_are_the_same_in_any_batch(rows: list[int]):
    problem = problems.logistic().problem
    old, _ = problem.data.take(torch.arange(len(problem)))
    change = replacement(problem, np.array([4, 2]), old[[0, 1]])
    data = change.contents(problem).data
    whole, _ = data.take(torch.arange(len(problem)))
    assert torch.equal(data.take(torch.tensor(rows))[0], whole[rows])


def test_examples_of_several_inputs_are_replaced_together():
    problem = problems.tokens().problem
    new, labels = problem.data.take(torch.tensor([7]))
    data = replacement(problem, np.array([3]), new, targets=labels).contents(problem).data
    inputs, targets = data.take(torch.tensor([2, 3]))
    assert torch.equal(inputs["tokens"][1], new["tokens"][0])
    assert torch.equal(inputs["mask"][1], new["mask"][0])
    assert torch.equal(targets[1], labels[0])


def test_a_change_of_contents_is_seen_in_the_fingerprint():
    problem = problems.logistic().problem
    old, _ = problem.data.take(torch.arange(1))
    change = replacement(problem, np.array([0]), old + 1)
    assert change.contents(problem).fingerprint()["data"] != problem.fingerprint()["data"]


def test_what_leaves_and_what_comes_add_up_to_the_change_of_the_objective():
    """In float64, on examples with base weights, one of them zero."""
    problem = problems.class_weighted().problem
    old, labels = problem.data.take(torch.arange(len(problem)))
    rows = np.array([1, 3, 8])
    given = replacement(problem, rows, old[[0, 5, 6]], targets=1 - labels[rows])
    change = Change(given.positions, torch.tensor([0.0, 2.0, 0.5]), given.inputs, given.targets)
    theta = problem.parameters + 0.1
    total = sum(
        sign * float((weights * problem.losses(theta, batch)).sum())
        for parts, sign in ((change.leaving(problem, 2), -1), (change.coming(problem, 2), 1))
        for batch, weights in parts
    )
    after = change.contents(problem).objective(theta, change.row(len(problem)))
    expected = float(after - problem.objective(theta)) * len(problem)
    assert total == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("inputs", "targets", "error"),
    [
        (torch.zeros(1, 3), None, BadData),
        (torch.full((1, 4), torch.nan), None, BadData),
        (None, torch.tensor([2]), BadData),
        (None, torch.tensor([[1]]), BadData),
    ],
)
def test_contents_that_do_not_fit_are_refused(inputs, targets, error):
    with pytest.raises(error):
        replacement(problems.logistic().problem, np.array([0]), inputs, targets=targets)
