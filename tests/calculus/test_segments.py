"""Segments against dense float64 algebra."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import problems
from whence.calculus.fisher import Fisher
from whence.calculus.kronecker import Plan, fit_kronecker
from whence.calculus.products import decay_diagonal
from whence.calculus.segments import Segment, make_segment, mean_curvature
from whence.core.problem import Problem

EXPECTED = Fisher("expected")


def dense(segment: Segment, problem: Problem) -> Tensor:
    """(P, P) the matrix whose functions a segment applies."""
    kronecker = segment.kronecker
    matrices = kronecker.structure.gather(problem, torch.eye(problem.size, dtype=torch.float64))
    parts = [
        b.back(b.rotate(m) * (b.values + b.decay))
        for b, m in zip(kronecker.blocks, matrices, strict=True)
    ]
    return kronecker.structure.scatter(problem, parts)


def segment_of(problem: Problem, reach: float) -> Segment:
    decay = decay_diagonal(problem).to(problem.parameters)
    shifted = problem.at(problem.parameters + 0.3)
    reaches = [torch.full_like(problem.parameters, reach)] * 2
    return make_segment([problem, shifted], reaches, EXPECTED, decay=decay)


@pytest.mark.parametrize("name", ["mlp_untrained", "conv", "tied"])
@pytest.mark.parametrize("reach", [0.01, 1.0, 50.0])
def test_functions_of_the_curvature_are_those_of_dense_algebra(name: str, reach: float):
    problem = problems.ALL[name]().problem
    segment = segment_of(problem, reach)
    matrix, total = dense(segment, problem), 2 * reach
    vectors = torch.randn(3, problem.size, generator=torch.Generator().manual_seed(1)).double()
    left = torch.linalg.matrix_exp(-total * matrix)
    assert_close(segment.shrink(vectors), vectors @ left, rtol=1e-8, atol=1e-9)
    moved = torch.linalg.solve(matrix, (vectors - vectors @ left).T).T
    assert_close(segment.respond(vectors), moved, rtol=1e-7, atol=1e-8)


def test_without_curvature_a_constant_force_moves_with_time():
    problem = problems.mlp_untrained().problem
    segment = segment_of(problem, 0.5)
    flat = replace(
        segment.kronecker,
        blocks=tuple(
            replace(block, values=torch.zeros_like(block.values), decay=0.0)
            for block in segment.kronecker.blocks
        ),
    )
    still = Segment(flat, segment.times)
    vectors = torch.ones(1, problem.size, dtype=torch.float64)
    assert_close(still.respond(vectors), vectors)  # 2 x 0.5
    assert_close(still.shrink(vectors), vectors)


def test_the_mean_of_one_is_ekfac():
    problem = problems.conv().problem
    decay = decay_diagonal(problem).to(problem.parameters)
    mean = mean_curvature([problem], EXPECTED, decay)
    plan = Plan(EXPECTED, accuracy=0.0, is_corrected=True)
    alone = fit_kronecker(problem, plan, decay, keeps=lambda structure: None)
    vectors = torch.randn(2, problem.size, generator=torch.Generator().manual_seed(2)).double()
    dampings = (0.1,) * len(alone.blocks)
    assert_close(mean.solve(vectors, dampings), alone.solve(vectors, dampings))


def test_the_mean_of_two_has_their_mean_trace():
    problem = problems.tied().problem
    decay = torch.zeros_like(problem.parameters)
    other = problem.at(problem.parameters * 0.5)
    both = mean_curvature([problem, other], EXPECTED, decay)
    alone = [mean_curvature([one], EXPECTED, decay).mean() for one in (problem, other)]
    assert both.mean() == pytest.approx(sum(alone) / 2, rel=1e-10)


def test_learning_rates_of_a_layer_are_averaged():
    problem = problems.mlp_untrained().problem
    named = {name: torch.ones(shape) for name, shape in problem.layout.shapes.items()}
    named["0.weight"] = torch.linspace(0, 4, 20).reshape(5, 4)
    named["0.bias"] = torch.full((5,), 2.0)
    reach = problem.layout.join(named).double()
    decay = decay_diagonal(problem).to(problem.parameters)
    segment = make_segment([problem], [reach], EXPECTED, decay=decay)
    assert sorted(segment.times) == pytest.approx([1.0, 2.0])
