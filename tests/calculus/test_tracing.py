"""A traced function is the function, also where it cannot be traced."""

import torch
from torch import Tensor
from torch.func import grad

from whence.calculus.tracing import Traced


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_it_gives_the_same_numbers_for_every_shape() -> None:
    slope = grad(lambda theta, x: (x @ theta).tanh().square().sum())
    traced = Traced(slope, patience=1)
    for seed in range(4):
        for count in (3, 5):
            args = _drawn(2, seed=seed), _drawn(count, 2, seed=seed)
            assert torch.allclose(traced(*args), slope(*args), rtol=1e-14)
    assert traced.is_traced


def test_a_graph_leaves_out_views_that_show_what_was_there() -> None:
    def turning(x: Tensor) -> Tensor:
        back = x.transpose(0, 1).transpose(0, 1).view(x.shape).expand(3, 3)
        return back.transpose(0, 1).sin()  # a square one, whose transpose has the same shape

    traced = Traced(turning, patience=1)
    for seed in range(3):
        x = _drawn(3, 3, seed=seed)
        assert torch.equal(traced(x), x.T.sin())
    (graph,) = traced._graphs.values()
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.transpose.int, torch.ops.aten.sin.default]


def test_trees_of_tensors_come_in_and_tuples_go_out() -> None:
    def both(inputs: dict[str, Tensor], nothing: None) -> tuple[Tensor, Tensor]:
        return inputs["a"] * 2, inputs["b"].sum(0)

    traced = Traced(both, patience=1)
    for seed in range(3):
        doubled, summed = traced({"a": _drawn(3, seed=seed), "b": _drawn(4, 2, seed=seed)}, None)
        assert torch.equal(doubled, 2 * _drawn(3, seed=seed))
        assert torch.equal(summed, _drawn(4, 2, seed=seed).sum(0))
    assert traced.is_traced


def test_what_depends_on_values_is_called_as_it_is() -> None:
    def branching(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    traced = Traced(branching, patience=1)
    for sign in (1, -1, -1, 1):
        x = sign * torch.ones(3)
        assert torch.equal(traced(x), torch.ones(3))
    assert not traced.is_traced


def test_a_graph_that_holds_values_of_its_first_call_is_not_believed() -> None:
    seen: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        kept = torch.tensor(float(len(seen)))  # a constant for the graph
        return x * kept

    traced = Traced(remembering, patience=1)
    traced(torch.ones(2))
    traced(torch.ones(2))
    assert not traced.is_traced


def test_nothing_of_it_is_differentiated() -> None:
    traced = Traced(lambda x: x * 2, patience=2)
    x = torch.ones(2, requires_grad=True)
    assert not any(traced(x).requires_grad for _ in range(3))
