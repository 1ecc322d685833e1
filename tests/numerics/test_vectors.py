"""Splitting and joining named tensors."""

import doctest

import pytest
import torch

from whence.errors import BadData
from whence.numerics import vectors
from whence.numerics.vectors import Layout, layout_of

SHAPES = {
    "weight": torch.Size([2, 3]),
    "scale": torch.Size([]),
    "bias": torch.Size([2]),
    "empty": torch.Size([0, 4]),
}


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_joining_undoes_splitting(leading):
    layout = Layout(SHAPES)
    flat = torch.arange(9 * torch.Size(leading).numel()).double().reshape(*leading, 9)
    named = layout.split(flat)
    assert {name: value.shape for name, value in named.items()} == {
        name: torch.Size(leading) + shape for name, shape in SHAPES.items()
    }
    assert torch.equal(layout.join(named), flat)


def test_splitting_undoes_joining_in_any_order_of_names():
    layout = Layout(SHAPES)
    named = {name: torch.rand(SHAPES[name]) for name in reversed(SHAPES)}
    again = layout.split(layout.join(named))
    assert all(torch.equal(again[name], named[name]) for name in SHAPES)


def test_numbers_lie_in_the_order_of_the_names():
    layout = Layout(SHAPES)
    flat = layout.join(
        {
            "weight": torch.tensor([[0, 1, 2], [3, 4, 5]]),
            "scale": torch.tensor(6),
            "bias": torch.tensor([7, 8]),
            "empty": torch.zeros(0, 4, dtype=torch.int64),
        }
    )
    assert flat.tolist() == list(range(9))
    assert layout.names == tuple(SHAPES)
    assert layout.lengths == (6, 1, 2, 0)
    assert layout.size == 9


def test_splitting_copies_nothing():
    flat = torch.zeros(9)
    Layout(SHAPES).split(flat)["bias"][1] = 5
    assert flat[8] == 5


def test_gradients_flow_through_both_ways():
    layout = Layout(SHAPES)
    flat = torch.arange(9.0, requires_grad=True)
    (layout.join(layout.split(flat)) ** 2).sum().backward()
    assert torch.equal(flat.grad, 2 * flat.detach())


def test_a_layout_of_tensors_has_their_shapes():
    model = torch.nn.Linear(3, 2)
    layout = layout_of(dict(model.named_parameters()))
    assert layout.shapes == {"weight": torch.Size([2, 3]), "bias": torch.Size([2])}


@pytest.mark.parametrize(
    "wrong", [{"weight": torch.zeros(2, 3)}, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}]
)
def test_a_missing_or_misshapen_tensor_is_named(wrong):
    layout = Layout({"weight": torch.Size([2, 3]), "bias": torch.Size([2])})
    with pytest.raises(BadData, match="weight" if "bias" in wrong else "bias"):
        layout.join(wrong)


def test_the_example_in_the_documentation_is_right():
    assert doctest.testmod(vectors).failed == 0
