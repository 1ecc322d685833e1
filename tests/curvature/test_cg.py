"""Conjugate gradients: the same numbers as the dense inverse, and honest where there are none."""

import pytest
import torch
from numpy.testing import assert_allclose

import problems
from problems import CONVEX
from whence.calculus.products import CurvatureMatrix
from whence.curvature.base import AUTO_DAMPING
from whence.curvature.cg import CG
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NegativeCurvature, NotConverged


def vectors(size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("name", sorted(set(CONVEX) - {"multinomial_free_intercept"}))
def test_it_agrees_with_the_dense_inverse(name, damping):
    problem = CONVEX[name]().problem
    v = vectors(problem.size)
    expected = Exact(damping=damping).fit(problem).solve(v).vectors
    solved = CG(tolerance=1e-11, damping=damping).fit(problem).solve(v).vectors
    assert_allclose(solved, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def test_null_directions_that_no_query_reaches_into_do_no_harm():
    problem = problems.multinomial_free_intercept().problem
    v = CurvatureMatrix(problem)(vectors(problem.size))
    expected = Exact().fit(problem).solve(v).vectors
    solved = CG(tolerance=1e-11).fit(problem).solve(v).vectors
    assert_allclose(solved, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_every_query_reaches_the_tolerance(tolerance):
    problem = problems.breast_cancer().problem
    v = vectors(problem.size, 6) * torch.logspace(-6, 6, 6, dtype=torch.float64)[:, None]
    solution = CG(tolerance=tolerance).fit(problem).solve(v)
    rest = CurvatureMatrix(problem)(solution.vectors) - v
    assert bool((rest.norm(dim=1) <= tolerance * v.norm(dim=1)).all())
    assert solution.report["residual"] <= tolerance


@pytest.mark.parametrize("rank", [0, 3, 10, 100])
def test_the_preconditioner_changes_the_steps_and_not_the_solution(rank):
    problem = problems.breast_cancer().problem
    v = vectors(problem.size, 2)
    expected = Exact().fit(problem).solve(v).vectors
    solved = CG(tolerance=1e-10, rank=rank).fit(problem).solve(v).vectors
    assert_allclose(solved, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def test_a_block_shares_its_steps():
    """Thirty-one vectors span the whole space, so one product answers them all."""
    problem = problems.breast_cancer().problem
    recipe = CG(tolerance=1e-8, rank=0)
    alone = recipe.fit(problem).solve(vectors(problem.size, 1)).report["steps"]
    together = recipe.fit(problem).solve(vectors(problem.size, 31)).report["steps"]
    assert together < alone / 2


def test_too_few_steps_are_an_error_that_names_the_residual():
    problem = problems.breast_cancer().problem
    with pytest.raises(NotConverged, match="residual"):
        CG(tolerance=1e-12, max_steps=2, rank=0).fit(problem).solve(vectors(problem.size))


def test_an_indefinite_hessian_is_an_error_that_names_the_way_out():
    problem = problems.mlp_untrained().problem
    with pytest.raises(NegativeCurvature) as refused:
        CG(matrix="hessian", damping=0.0).fit(problem).solve(vectors(problem.size))
    assert "ggn" in str(refused.value)


def test_networks_take_the_gauss_newton_matrix_with_a_multiple_of_its_mean_eigenvalue():
    """The trace is probed with thirty vectors: within 40 % of the true one."""
    problem = problems.mlp_untrained().problem
    report = CG().fit(problem).report
    mean = float(CurvatureMatrix(problem, "ggn").dense().trace()) / problem.size
    assert report["matrix"] == "ggn"
    assert report["damping"] == pytest.approx(AUTO_DAMPING * mean, rel=0.4)


@pytest.mark.parametrize("matrix", ["auto", "hessian", "ggn"])
def test_linear_models_are_not_damped_whatever_the_matrix_is_called(matrix):
    report = CG(matrix=matrix).fit(problems.multinomial().problem).report
    assert report["matrix"] == "hessian"
    assert report["damping"] == 0


def test_a_seed_of_the_sketch_does_not_show_in_the_solution():
    problem = problems.breast_cancer().problem
    v = vectors(problem.size)
    first, second = (
        CG(tolerance=1e-10, seed=seed, rank=5).fit(problem).solve(v).vectors for seed in (0, 1)
    )
    assert_allclose(first, second, rtol=1e-6, atol=1e-8 * float(first.abs().max()))


@pytest.mark.parametrize(
    "recipe", [CG(tolerance=0), CG(max_steps=0), CG(damping=-0.1), CG(rank=-1), CG(matrix="fisher")]
)
def test_wrong_options_are_refused(recipe):
    with pytest.raises(BadArgument):
        recipe.fit(problems.ridge().problem)
