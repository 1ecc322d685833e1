"""The dense inverse against numpy, and what it does where there is no inverse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import problems
from problems import CONVEX, Case
from whence.calculus.products import CurvatureMatrix
from whence.curvature import exact
from whence.curvature.base import AUTO_DAMPING
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NegativeCurvature, TooLarge


def vectors(size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def hessian(case: Case) -> np.ndarray:
    order = case.oracle.order
    return case.oracle.hessian(case.oracle.optimum())[np.ix_(order, order)]


@pytest.mark.parametrize("damping", [0.0, 0.03])
@pytest.mark.parametrize("name", CONVEX)
def test_it_is_the_inverse_of_the_hessian_written_out(name, damping):
    """Without damping null directions are left out; with damping they are flat like any other."""
    case = CONVEX[name]()
    v = vectors(case.problem.size)
    values, basis = np.linalg.eigh(hessian(case))
    kept = values + damping > 1e-10 * values.max()
    inverse = basis[:, kept] @ np.diag(1 / (values[kept] + damping)) @ basis[:, kept].T
    solved = Exact(damping=damping).fit(case.problem).solve(v).vectors
    expected = v.numpy() @ inverse
    assert_allclose(solved, expected, rtol=1e-9, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize("name", CONVEX)
def test_the_report_tells_the_eigenvalues(name):
    case = CONVEX[name]()
    values = np.linalg.eigvalsh(hessian(case))
    nulls = int((values < 1e-10 * values.max()).sum())
    report = Exact().fit(case.problem).report
    assert report["null_directions"] == nulls == (name == "multinomial_free_intercept")
    assert report["smallest_eigenvalue"] == pytest.approx(values[nulls], rel=1e-9)
    assert report["largest_eigenvalue"] == pytest.approx(values[-1], rel=1e-9)
    assert report["matrix"] == "hessian"
    assert report["damping"] == 0


@pytest.mark.parametrize("name", CONVEX)
def test_hessian_and_gauss_newton_matrix_of_a_linear_model_are_one(name):
    problem = CONVEX[name]().problem
    v = vectors(problem.size)
    solved = [
        Exact(matrix=matrix, damping=0.01).fit(problem).solve(v).vectors
        for matrix in ("hessian", "ggn", "auto")
    ]
    assert_allclose(solved[0], solved[1], rtol=1e-8, atol=1e-9)
    assert_allclose(solved[2], solved[1], rtol=1e-8, atol=1e-9)


def test_a_vector_in_a_null_direction_is_left_out_with_a_warning():
    """A shift of all three intercepts changes no probability."""
    problem = problems.multinomial_free_intercept().problem
    shift = torch.zeros(1, 15, dtype=torch.float64)
    shift[0, 12:] = 1
    solution = Exact().fit(problem).solve(shift)
    assert float(solution.vectors.norm()) < 1e-10
    assert "1 of 1" in solution.report["warnings"][0]
    assert solution.report["null_share"] == pytest.approx(1)


def test_measurements_that_no_shift_changes_reach_into_no_null_direction():
    case = problems.multinomial_free_intercept()
    problem = case.problem
    batch = problem.batch(torch.arange(5))
    slopes = torch.func.jacrev(lambda theta: problem.losses(theta, batch))(problem.parameters)
    solution = Exact().fit(problem).solve(slopes)
    assert solution.report["null_share"] < 1e-10
    assert "warnings" not in solution.report


def test_at_a_minimum_of_a_network_auto_takes_its_hessian_without_damping():
    report = Exact().fit(problems.mlp().problem).report
    assert report["matrix"] == "hessian"
    assert report["damping"] == 0
    assert report["smallest_eigenvalue"] > 0


def test_where_the_hessian_is_indefinite_auto_takes_the_damped_gauss_newton_matrix_and_says_so():
    problem = problems.mlp_untrained().problem
    smallest = torch.linalg.eigvalsh(CurvatureMatrix(problem, "hessian").dense())[0]
    assert smallest < 0
    report = Exact().fit(problem).report
    assert report["matrix"] == "ggn"
    assert report["hessian_smallest_eigenvalue"] == pytest.approx(float(smallest), rel=1e-8)
    assert f"{float(smallest):.2g}" in report["matrix_reason"]
    ggn = CurvatureMatrix(problem, "ggn").dense()
    expected = AUTO_DAMPING * float(ggn.trace()) / problem.size
    assert report["damping"] == pytest.approx(expected, rel=1e-6)


def test_an_indefinite_hessian_is_refused_where_it_was_asked_for():
    problem = problems.mlp_untrained().problem
    with pytest.raises(NegativeCurvature, match="smallest eigenvalue") as refused:
        Exact(matrix="hessian").fit(problem)
    assert "ggn" in refused.value.remedy


def test_enough_damping_makes_an_indefinite_hessian_usable():
    problem = problems.mlp_untrained().problem
    matrix = CurvatureMatrix(problem, "hessian").dense()
    damping = 1e-3 - float(torch.linalg.eigvalsh(matrix)[0])
    v = vectors(problem.size)
    for recipe in (Exact(matrix="hessian", damping=damping), Exact(damping=damping)):
        ihvp = recipe.fit(problem)
        assert ihvp.report["matrix"] == "hessian"
        back = ihvp.solve(v).vectors @ (matrix + damping * torch.eye(problem.size).double())
        assert_allclose(back, v, atol=1e-9)


def test_without_examples_that_weigh_the_regulariser_alone_is_inverted():
    problem = problems.ridge().problem
    bare = replace(problem, weights=torch.zeros(40, dtype=torch.float64))
    v = vectors(problem.size)
    assert_allclose(Exact().fit(bare).solve(v).vectors, 10 * v, rtol=1e-12)


@pytest.mark.parametrize("recipe", [Exact(damping=-1.0), Exact(matrix="fisher")])
def test_wrong_options_are_refused(recipe):
    with pytest.raises(BadArgument):
        recipe.fit(problems.ridge().problem)


def test_a_matrix_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    problem = problems.mlp().problem
    monkeypatch.setattr(exact, "free_bytes", lambda device: 32 * problem.size**2 - 1)
    with pytest.raises(TooLarge, match=f"P = {problem.size} parameters"):
        Exact().fit(problem)
