"""Gradients in blocks are those of a plain reverse pass, whatever the model is made of."""

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from networks import CLASSES, COUNT, NETWORKS, ROWS, drawn, problem_of
from problems import ALL
from whence.adapters import make_problem
from whence.calculus import layers, watching
from whence.calculus.gradients import plain_pull_back
from whence.calculus.layers import Structure, dense, structure_of
from whence.core.problem import Problem
from whence.errors import NotDeterministic, Unsupported

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

SIZES = [1, 2, 6, 7, COUNT]
"""Batches: alone, as many as positions, as many as the model was watched on, all."""


def slopes(problem: Problem, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, problem.output_size, generator=generator).to(problem.parameters)


def by_blocks(problem: Problem, structure: Structure, count: int) -> Tensor:
    """(B, P) gradients of slopes . outputs."""
    batch = problem.batch(torch.arange(count))
    watched = structure.watch(problem, batch.inputs, count)
    factors = watched.factors(slopes(problem, count))
    return structure.scatter(problem, [dense(left, r).mT @ r for left, r in factors])


def plain(problem: Problem, count: int) -> Tensor:
    batch = problem.batch(torch.arange(count))
    return plain_pull_back(problem, batch.inputs, slopes(problem, count))


def assert_right(problem: Problem, structure: Structure, count: int) -> None:
    expected = plain(problem, count)
    assert_allclose(
        by_blocks(problem, structure, count), expected, atol=1e-11 * float(expected.abs().max())
    )


# ------------------------------------------------------------------ every kind of model


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks_are_plain_ones_in_batches_of_every_size(name):
    problem = NETWORKS[name]()
    for count in SIZES:
        assert_right(problem, structure_of(problem), count)


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_the_problems_are_plain_ones(name):
    problem = ALL[name]().problem
    for count in (1, len(problem)):
        assert_right(problem, structure_of(problem), count)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_no_layer_can_hold_is_taken_example_by_example(name):
    structure = structure_of(NETWORKS[name]())
    assert set(structure.rest.names) == ROWS.get(name, set())


@pytest.mark.parametrize("name", [*NETWORKS, *ALL])
def test_every_parameter_is_covered_exactly_once(name):
    problem = NETWORKS[name]() if name in NETWORKS else ALL[name]().problem
    structure = structure_of(problem)
    names = [name for block in structure.blocks for name in block.names]
    assert sorted(names) == sorted(problem.layout.names)
    assert sum(structure.coverage().values()) == problem.size


@pytest.mark.parametrize("name", NETWORKS)
def test_gather_and_scatter_are_inverse(name):
    problem = NETWORKS[name]()
    structure = structure_of(problem)
    vectors = drawn(3, problem.size)
    matrices = structure.gather(problem, vectors)
    assert torch.equal(structure.scatter(problem, matrices), vectors)
    shapes = [(3, block.groups, block.rows, block.columns) for block in structure.blocks]
    assert [matrix.shape for matrix in matrices] == shapes


@pytest.mark.parametrize(
    "name", ["unrolled", "groups", "attention", "tied language model", "shared", "frozen", "lstm"]
)
def test_biases_can_stand_apart(name):
    problem = NETWORKS[name]()
    whole = structure_of(problem)
    biases = {block.names[1] for block in whole.blocks if len(block.names) == 2}
    structure = whole.apart(biases)
    assert all(len(block.names) == 1 for block in structure.blocks)
    assert sum(block.size for block in structure.blocks) == problem.size
    assert_right(problem, structure, 5)
    assert whole.apart(()).blocks == whole.blocks


def test_coverage_counts_parameters():
    structure = structure_of(NETWORKS["lstm"]())
    assert structure.coverage() == {
        "layer": 3 * 11 + 5 * CLASSES,
        "single": 4 * (3 * 4 + 4 * 4 + 8),
    }


# ------------------------------------------------------------------ the form of blocks


def blocks_of(name: str) -> dict[tuple[str, ...], tuple[int, int, int, str]]:
    blocks = structure_of(NETWORKS[name]()).blocks
    return {b.names: (b.groups, b.rows, b.columns, b.kind) for b in blocks}


def test_a_bias_is_the_last_column_of_its_layer():
    assert blocks_of("groups")["layer.weight", "layer.bias"] == (2, 3, 2 * 9 + 1, "product")


def test_a_layer_that_is_used_with_two_biases_keeps_them_apart():
    found = blocks_of("shared")
    assert found["weight",][3] == "product"
    assert found["biases.0",][3] == found["biases.1",][3] == "single"


def test_a_step_that_is_used_again_has_its_bias_in_its_block():
    assert blocks_of("unrolled")["step.weight", "step.bias"] == (1, 4, 8, "product")


def test_a_tied_embedding_is_one_block():
    assert blocks_of("tied language model")["tokens.weight",] == (1, 11, 4, "mixed")


def test_embeddings_are_looked_up_once_for_all_and_for_each():
    found = blocks_of("language model")
    assert found["tokens.weight",] == (1, 11, 4, "lookup")
    assert found["places.weight",] == (1, 6, 4, "lookup")


def test_scales_are_single_rows():
    assert blocks_of("batch norm")["middle.weight",] == (1, 1, 4, "single")


def test_positions_are_those_of_the_layer():
    blocks = {b.names[0]: b.positions for b in structure_of(NETWORKS["unrolled"]()).blocks}
    assert blocks == {"tokens.weight": 6, "step.weight": 6, "head.weight": 1}


# ------------------------------------------------------------------ finding it


def test_a_structure_is_found_once_for_a_model_and_a_choice_of_parameters():
    problem = NETWORKS["language model"]()
    assert structure_of(problem) is structure_of(replace(problem, weights=2 * problem.weights))
    model, (x, y) = problem.model, problem.data.take(torch.arange(COUNT))
    some = make_problem(
        model, (x, y), loss="cross_entropy", weight_decay=0.05, parameters=["out.weight"]
    )
    assert [block.names for block in structure_of(some).blocks] == [("out.weight",)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_examples_than_a_model_is_watched_on_are_enough(count):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    data = drawn(count, 3), torch.arange(count) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=0.1)
    assert not structure_of(problem).rest.size
    assert_right(problem, structure_of(problem), count)


def test_float32_models_have_layers():
    problem = problems.single(problems.conv()).problem
    structure = structure_of(problem)
    assert not structure.rest.size
    expected = plain(problem, 9)
    assert_allclose(by_blocks(problem, structure, 9), expected, atol=1e-5)


def test_a_branching_model_is_taken_example_by_example():
    problem = problems.branching().problem
    assert set(structure_of(problem).rest.names) == set(problem.layout.names)


def test_nothing_stays_on_the_model():
    problem = NETWORKS["encoder, examples first"]()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    attributes = {id(module): set(vars(module)) for module in problem.model.modules()}
    structure = structure_of(problem)
    by_blocks(problem, structure, 5)
    for module in problem.model.modules():
        assert set(vars(module)) == attributes[id(module)]
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    assert all(torch.equal(before[n], v) for n, v in problem.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in problem.model.parameters())


def test_several_slopes_share_one_forward_pass():
    problem = NETWORKS["unrolled"]()
    structure = structure_of(problem)
    batch = problem.batch(torch.arange(5))
    watched = structure.watch(problem, batch.inputs, 5)
    for scale in (1.0, -2.0):
        factors = watched.factors(scale * slopes(problem, 5), is_last=scale < 0)
        rows = structure.scatter(problem, [dense(left, r).mT @ r for left, r in factors])
        assert_allclose(rows, scale * plain(problem, 5), atol=1e-12)


def test_inputs_of_layers_are_the_same_tensors_for_every_slope():
    """Second moments of inputs are added once, by identity."""
    problem = NETWORKS["conv2d"]()
    structure = structure_of(problem)
    watched = structure.watch(problem, problem.batch(torch.arange(5)).inputs, 5)
    first = watched.factors(slopes(problem, 5), is_last=False)
    second = watched.factors(2 * slopes(problem, 5))
    assert all(a[1] is b[1] for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------ models that change their ways


class Changing(nn.Module):
    """Large batches are treated in another way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.head, self.way = nn.Linear(3, 3), nn.Linear(3, CLASSES), way

    def forward(self, x: Tensor) -> Tensor:
        if len(x) <= 7:
            return self.head(torch.tanh(self.layer(x)))
        x = x.clone()
        if self.way == "skips":
            return self.head(torch.cat([torch.tanh(self.layer(x[1:])), x[:1]]))
        out = self.layer(x)
        x *= 2
        return self.head(torch.tanh(out))


def test_inputs_that_are_overwritten_later_are_refused():
    problem = problem_of(lambda: Changing("overwrites"), drawn(COUNT, 3))
    assert_right(problem, structure_of(problem), 7)
    with pytest.raises(NotDeterministic, match="overwrites inputs"):
        by_blocks(problem, structure_of(problem), COUNT)


def test_a_layer_that_sees_some_of_the_examples_is_refused():
    problem = problem_of(lambda: Changing("skips"), drawn(COUNT, 3))
    with pytest.raises(Unsupported, match="11 rows for 12 examples"):
        by_blocks(problem, structure_of(problem), COUNT)


def test_a_description_that_is_wrong_costs_its_parameters_alone(monkeypatch):
    """Nothing is believed: scales seen twice as large are not layers any more."""

    def wrong(call: watching.Call):
        for piece in watching._multiply(call):
            yield replace(piece, factors=lambda g, piece=piece: piece.factors(2 * g))

    def broken(call: watching.Call):
        raise IndexError

    problem = NETWORKS["own rms norm"]()
    for describe in (wrong, broken):
        monkeypatch.setattr(layers, "_KNOWN", {})
        monkeypatch.setitem(watching._KINDS, torch.Tensor.mul, describe)
        structure = structure_of(problem)
        assert set(structure.rest.names) == {"middle.weight"}
        assert_right(problem, structure, 5)


def test_parameters_that_are_no_numbers_tell_nothing_of_a_model_that_others_share():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double().eval()
    problem = make_problem(model, (drawn(6, 3), torch.arange(6) % 2), loss="cross_entropy")
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    structure_of(broken)
    assert not structure_of(problem).rest.names
    assert [block.names for block in structure_of(problem).blocks] == [
        ("0.weight", "0.bias"),
        ("2.weight", "2.bias"),
    ]
