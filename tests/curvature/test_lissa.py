"""The truncated series, term by term, and its sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import problems
from whence.calculus.products import CurvatureMatrix
from whence.curvature.exact import Exact
from whence.curvature.lissa import LiSSA
from whence.errors import BadArgument, Diverged


def vectors(size: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("depth", [1, 5, 60])
def test_truncation_leaves_the_factor_that_is_stated(depth, damping):
    """1 - (1 - (mu + damping) / scale)^(t + 1) times the exact answer, eigenvalue by eigenvalue."""
    problem = problems.multinomial().problem
    v = vectors(problem.size)
    values, basis = torch.linalg.eigh(CurvatureMatrix(problem).dense())
    factor = 1 - (1 - (values + damping) / 3.0) ** (depth + 1)
    expected = (v @ basis) * factor / (values + damping) @ basis.T
    recipe = LiSSA(samples=None, depth=depth, damping=damping, scale=3.0)
    assert_allclose(recipe.fit(problem).solve(v).vectors, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_damping_means_what_it_means_everywhere(damping):
    problem = problems.class_weighted().problem
    v = vectors(problem.size)
    expected = Exact(damping=damping).fit(problem).solve(v).vectors
    solved = LiSSA(samples=None, depth=600, damping=damping).fit(problem).solve(v).vectors
    assert_allclose(solved, expected, rtol=1e-8, atol=1e-10)


def test_the_scale_of_the_full_batch_is_just_above_the_largest_eigenvalue():
    problem = problems.breast_cancer().problem
    largest = float(torch.linalg.eigvalsh(CurvatureMatrix(problem).dense())[-1])
    scale = LiSSA(samples=None, damping=0.5).fit(problem).report["scale"]
    assert largest + 0.5 < scale < 1.2 * (largest + 0.5)


def test_the_scale_of_samples_covers_every_single_example():
    case = problems.multinomial()
    scale = LiSSA(samples=1).fit(case.problem).report["scale"]
    largest = max(
        float(torch.linalg.eigvalsh(CurvatureMatrix(case.problem, positions=row).dense())[-1])
        for row in torch.arange(60).split(1)
    )
    assert scale > largest


def test_sampling_is_right_on_average():
    """Eight runs, five examples a step: within five standard errors of the exact answer."""
    problem = problems.ridge().problem
    v = vectors(problem.size, 1)
    expected = Exact(damping=0.2).fit(problem).solve(v).vectors
    runs = torch.stack(
        [
            LiSSA(samples=5, depth=150, damping=0.2, scale=20.0, seed=seed)
            .fit(problem)
            .solve(v)
            .vectors
            for seed in range(8)
        ]
    )
    spread = runs.std(0) / np.sqrt(8)
    assert bool(((runs.mean(0) - expected).abs() < 5 * spread + 1e-3 * expected.norm()).all())


def test_repeats_are_averaged_and_not_alike():
    problem = problems.ridge().problem
    v = vectors(problem.size, 1)
    recipe = LiSSA(samples=2, depth=20, scale=40.0)
    two = replace(recipe, repeats=2).fit(problem)
    runs = [two._run(v, repeat) for repeat in range(2)]
    assert not torch.equal(runs[0], runs[1])
    assert_allclose(two.solve(v).vectors, (runs[0] + runs[1]) / 2, rtol=1e-12)


@pytest.mark.parametrize("samples", [1, 4])
def test_draws_follow_the_seed_and_the_ids_and_not_the_order_of_the_data(samples):
    case = problems.multinomial()
    v = vectors(case.problem.size)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    recipe = LiSSA(samples=samples, depth=50, scale=30.0)
    expected = recipe.fit(case.problem).solve(v).vectors
    actual = recipe.fit(problems.rearranged(case, shuffled)).solve(v).vectors
    assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)
    other = replace(recipe, seed=1).fit(case.problem).solve(v).vectors
    assert not torch.allclose(other, expected, rtol=1e-3)


def test_the_residual_in_the_report_is_that_of_the_whole_data():
    problem = problems.multinomial().problem
    v = vectors(problem.size)
    solution = LiSSA(samples=1, depth=30, damping=0.1, scale=9.0).fit(problem).solve(v)
    rest = CurvatureMatrix(problem)(solution.vectors) + 0.1 * solution.vectors - v
    expected = (rest.norm(dim=1) / v.norm(dim=1)).max()
    assert solution.report["residual"] == pytest.approx(float(expected), rel=1e-9)


def test_a_scale_that_is_too_small_is_an_error():
    problem = problems.multinomial().problem
    with pytest.raises(Diverged, match="scale"):
        LiSSA(samples=None, depth=2000, scale=0.05).fit(problem).solve(vectors(problem.size))


def test_an_indefinite_hessian_is_an_error_and_not_a_number():
    problem = problems.mlp_untrained().problem
    with pytest.raises(Diverged, match="negative"):
        LiSSA(samples=None, depth=3000).fit(problem).solve(vectors(problem.size))


@pytest.mark.parametrize(
    "recipe",
    [LiSSA(samples=0), LiSSA(samples=61), LiSSA(depth=0), LiSSA(repeats=0), LiSSA(damping=-1.0),
     LiSSA(scale=0.0), LiSSA(matrix="fisher")],
)  # fmt: skip
def test_wrong_options_are_refused(recipe):
    with pytest.raises(BadArgument):
        recipe.fit(problems.multinomial().problem)
