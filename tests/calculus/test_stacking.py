"""Linear layers from the left."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from whence.calculus.stacking import StackedLinear


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_are_those_of_linear(shape, has_bias):
    x, weight, bias = numbers(*shape), numbers(4, 5), numbers(4) if has_bias else None
    expected = F.linear(x, weight, bias)
    with StackedLinear():
        torch.testing.assert_close(F.linear(x, weight, bias), expected, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(
            F.linear(input=x, weight=weight, bias=bias), expected, rtol=1e-14, atol=1e-14
        )


def test_layers_and_stacks_of_weights_go_through_it():
    layer = torch.nn.Linear(5, 4).double()
    x, stack = numbers(7, 5), numbers(3, 4, 5)
    expected = x @ stack.mT + layer.bias
    with StackedLinear():
        found = vmap(lambda w: functional_call(layer, {"weight": w}, (x,)))(stack)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_derivatives_of_both_modes_are_unchanged():
    x, weight, direction = numbers(7, 5), numbers(4, 5), numbers(4, 5)

    def value(w: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, w)).pow(2).sum()

    expected = jvp(grad(value), (weight,), (direction,))[1]
    with StackedLinear():
        found = jvp(grad(value), (weight,), (direction,))[1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_other_functions_and_the_world_outside_are_left_alone():
    x = numbers(2, 5)
    with StackedLinear():
        torch.testing.assert_close(torch.tanh(x), x.tanh())
    assert F.linear(x, numbers(4, 5)).shape == (2, 4)
