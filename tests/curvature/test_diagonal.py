"""The diagonal is that of the dense matrix, and the rest is told by the residual."""

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import problems
from networks import NETWORKS
from problems import ALL
from whence.adapters import make_problem
from whence.calculus.gradients import gradients
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature.base import LAYER_DAMPING
from whence.curvature.diagonal import Diagonal
from whence.curvature.exact import Exact
from whence.errors import BadArgument, NegativeCurvature, NonFinite, Unsupported
from whence.methods.influence import Influence


def vectors(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def dense(problem: Problem, data_scale: float = 1.0) -> Tensor:
    return CurvatureMatrix(problem, "ggn", data_scale).dense().diagonal()


@pytest.mark.parametrize("data_scale", [1.0, 60 / 59])
@pytest.mark.parametrize("name", ALL)
def test_the_diagonal_is_that_of_the_dense_matrix(name, data_scale):
    problem = ALL[name]().problem
    expected = dense(problem, data_scale)
    fitted = Diagonal(damping=0.1).fit(problem, data_scale=data_scale)
    assert_allclose(fitted.diagonal, expected, rtol=1e-10)
    v = vectors(problem)
    assert_allclose(fitted.solve(v).vectors, v / (expected + 0.1), rtol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "tokens"])
def test_networks_are_damped_with_a_share_of_the_mean(name):
    problem = ALL[name]().problem
    report = Diagonal().fit(problem).report
    expected = LAYER_DAMPING * float(dense(problem).mean())
    assert report["damping"] == pytest.approx(expected, rel=1e-10)
    assert report["matrix"] == "ggn"
    assert report["smallest_entry"] == pytest.approx(float(dense(problem).min()))
    assert report["largest_entry"] == pytest.approx(float(dense(problem).max()))


def test_linear_models_are_not_damped():
    report = Diagonal().fit(problems.multinomial().problem).report
    assert report["matrix"] == "hessian"
    assert report["damping"] == 0


def test_parameters_that_do_not_act_together_are_solved_exactly():
    """Inputs that are never there together make a diagonal matrix."""
    x = torch.eye(4).double().repeat(3, 1)
    model = torch.nn.Linear(4, 1, bias=False).double().eval()
    y = torch.linspace(-1, 1, 12, dtype=torch.float64)
    problem = make_problem(model, (x, y), loss="mse", weight_decay=0.1)
    v = vectors(problem)
    solution = Diagonal().fit(problem).solve(v)
    assert_allclose(solution.vectors, Exact().fit(problem).solve(v).vectors, rtol=1e-12)
    assert solution.report["residual"] < 1e-14


def test_a_regulariser_that_couples_parameters_gives_its_diagonal():
    case = problems.ridge()
    x, y = case.problem.data.take(torch.arange(len(case.problem)))

    def coupled(named: dict[str, Tensor]) -> Tensor:
        return named["weight"].sum() ** 2 + (named["weight"] ** 4).sum()

    model = torch.nn.Linear(5, 1).double().eval()
    problem = make_problem(model, (x, y), loss="mse", weight_decay=0.1, regularizer=coupled)
    assert_allclose(Diagonal().fit(problem).diagonal, dense(problem), rtol=1e-10)


def test_entries_that_are_zero_are_left_out_and_counted():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double()
    model = torch.nn.Linear(2, 1, bias=False).double().eval()
    problem = make_problem(model, (x, torch.ones(2).double()), loss="mse", weight_decay=0.0)
    fitted = Diagonal().fit(problem)
    assert fitted.report["null_entries"] == 1
    assert_allclose(fitted.solve(torch.ones(1, 2).double()).vectors, [[1 / 5, 0]])
    damped = Diagonal(damping=0.5).fit(problem)
    assert damped.report["null_entries"] == 0
    assert_allclose(damped.solve(torch.ones(1, 2).double()).vectors, [[1 / 5.5, 2]])


def test_a_model_in_float32_gives_the_same_to_float32():
    case = problems.digits()
    expected = Diagonal().fit(case.problem).diagonal
    assert_allclose(Diagonal().fit(problems.single(case).problem).diagonal, expected, rtol=1e-5)


def test_self_influence_takes_no_products(monkeypatch):
    case = problems.multinomial()
    fitted = Influence(Diagonal()).fit(case.problem)
    expected = -fitted.scores(
        case.problem.data.take(torch.arange(len(case.problem))), "loss"
    ).values.diagonal()

    def refuse(self: CurvatureMatrix, stack: Tensor) -> Tensor:
        raise AssertionError("a product for every example")

    monkeypatch.setattr(CurvatureMatrix, "__call__", refuse)
    assert_allclose(abs(fitted.self_influence()), abs(expected), rtol=1e-10)


def test_newton_removals_are_not_offered():
    problem = problems.multinomial().problem
    assert Influence("diagonal").fit(problem).report["removal"] == "first_order"
    with pytest.raises(Unsupported):
        Influence("diagonal", removal="newton").fit(problem)


# ------------------------------------------------------------------ the Fisher information


KINDS = [
    *("groups", "conv3d", "transposed", "layer norm", "batch norm", "own rms norm", "added"),
    *("a slice of a weight", "shared", "unrolled", "lstm", "attention", "padding", "frozen"),
    *("tied language model", "in two unlike ways"),
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", KINDS)
def test_the_diagonal_of_networks_of_every_kind_is_that_of_the_dense_matrix(name):
    problem = NETWORKS[name]()
    fitted = Diagonal(damping=0.1, fisher="expected").fit(problem)
    assert fitted.report["fisher"] == "expected"
    expected = dense(problem)
    assert_allclose(fitted.diagonal, expected, rtol=1e-8, atol=1e-10 * float(expected.max()))


def test_many_classes_have_no_limit():
    model = torch.nn.Linear(3, 150).double().eval()
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    problem = make_problem(model, (x, torch.arange(20)), loss="cross_entropy", weight_decay=0.1)
    assert_allclose(Diagonal(damping=0.1).fit(problem).diagonal, dense(problem), rtol=1e-10)


@pytest.mark.parametrize("name", ["multinomial", "conv"])
def test_the_sampled_diagonal_has_the_expected_mean(name):
    """60 seeds, five standard errors."""
    problem = ALL[name]().problem
    draws = torch.stack(
        [Diagonal(0.1, fisher="sampled", seed=seed).fit(problem).diagonal for seed in range(60)]
    )
    spread = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - dense(problem)).abs() <= 5 * spread + 1e-12).all())
    assert Diagonal(0.1, fisher="sampled").fit(problem).report["fisher"] == "sampled"


def test_the_empirical_diagonal_is_made_of_squared_gradients():
    problem = problems.class_weighted().problem
    batch = problem.batch(torch.arange(len(problem)))
    rows = gradients(problem, batch)
    expected = (rows**2 * batch.weights[:, None]).mean(0) + 0.05
    assert_allclose(Diagonal(0.1, fisher="empirical").fit(problem).diagonal, expected, rtol=1e-10)


def test_a_loss_without_curvature_leaves_the_decay():
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1).double().eval()
    problem = make_problem(model, (x, x.sign()[:, 0]), loss="hinge", weight_decay=0.3)
    assert_allclose(Diagonal(damping=0.0).fit(problem).diagonal, [0.3, 0.3])


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf")])
def test_a_damping_that_is_none_is_refused(damping):
    with pytest.raises(BadArgument, match=r"Diagonal\("):
        Diagonal(damping=damping).fit(problems.ridge().problem)


def test_many_outputs_of_an_unknown_loss_are_refused_with_their_number():
    def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.sum(1) - targets) ** 2

    model = torch.nn.Linear(2, 101).double().eval()
    data = torch.ones(3, 2).double(), torch.ones(3).double()
    problem = make_problem(model, data, loss=coupled, weight_decay=0.1)
    with pytest.raises(Unsupported, match="101 outputs"):
        Diagonal().fit(problem)
    with pytest.raises(BadArgument, match="monte_carlo"):
        Diagonal(fisher="monte_carlo").fit(problem)


def test_a_negative_entry_is_refused_unless_damping_makes_up_for_it():
    """log(1 + r^2) bends downwards beyond r = 1."""

    def heavy_tailed(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log1p((outputs[:, 0] - targets) ** 2)

    x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1).double().eval()
    y = 9 * torch.ones(20).double()
    problem = make_problem(model, (x, y), loss=heavy_tailed, weight_decay=0.001)
    with pytest.raises(NegativeCurvature, match="has the entry -"):
        Diagonal(damping=0.0).fit(problem)
    Diagonal(damping=1.0).fit(problem)


def test_a_model_that_is_not_a_number_is_refused():
    problem = problems.multinomial().problem
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    with pytest.raises(NonFinite, match="example 0 is NaN"):
        Diagonal().fit(broken)
