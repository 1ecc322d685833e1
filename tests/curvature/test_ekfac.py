"""EK-FAC as users get it: exact where it can be, its options, its report, what it refuses.

What holds for K-FAC in the same words is asked of both here.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from torch import Tensor, nn

import problems
from networks import NETWORKS, drawn
from problems import ALL, Case
from whence.adapters import make_problem
from whence.calculus import kronecker, pairing
from whence.calculus.products import CurvatureMatrix
from whence.core.losses import Loss
from whence.core.problem import Problem
from whence.curvature import base
from whence.curvature.base import LAYER_DAMPING
from whence.curvature.cg import CG
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.kfac import KFAC
from whence.curvature.refined import Refined
from whence.errors import BadArgument, NonFinite, TooLarge, Unsupported
from whence.methods.influence import Influence

BOTH = pytest.mark.parametrize("recipe", [EKFAC, KFAC])


def scores(problem: Problem, queries: object, curvature: object) -> np.ndarray:
    return Influence(curvature, removal="first_order").fit(problem).scores(queries).values


def assert_rows_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert abs(actual - expected).max() <= tolerance * abs(expected).max()


# ------------------------------------------------------------------ what it approximates


@BOTH
@pytest.mark.parametrize("damping", [0.0, 0.03])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_linear_layer_with_squared_errors_is_solved_exactly(outputs, damping, recipe):
    """Its output Hessian is the same for all examples: two independent factors."""
    model = nn.Linear(5, outputs).double().eval()
    x, y = drawn(30, 5), drawn(30, outputs) + 1
    problem = make_problem(model, (x, y), loss="mse", weight_decay=0.1)
    expected = scores(problem, (x[:6], y[:6]), Exact(matrix="ggn", damping=damping))
    found = scores(problem, (x[:6], y[:6]), recipe(damping, tolerance=0.0))
    assert_rows_close(found, expected, 1e-9)


@BOTH
@pytest.mark.parametrize("name", ["ridge", "renormalized ridge"])
def test_ridge_regression_is_solved_exactly(name, recipe):
    case = problems.ridge()
    case = case.renormalized() if name != "ridge" else case
    expected = scores(case.problem, case.queries, Exact(matrix="ggn", damping=0.0))
    assert_rows_close(scores(case.problem, case.queries, recipe(0.0)), expected, 1e-9)


def test_scales_and_biases_by_themselves_are_solved_exactly():
    problem = NETWORKS["batch norm"]()
    some = make_problem(
        problem.model,
        problem.data.take(torch.arange(len(problem))),
        loss="cross_entropy",
        weight_decay=0.05,
        parameters=["middle.weight"],
    )
    v = drawn(3, some.size)
    expected = Exact(matrix="ggn", damping=0.01).fit(some).solve(v).vectors
    assert_allclose(EKFAC(0.01).fit(some).solve(v).vectors, expected, rtol=1e-9)


@BOTH
def test_the_data_part_alone_is_scaled(recipe):
    """s F + decay + damping, as one removal under `renormalize` would have it."""
    problem = problems.ridge().problem
    v = drawn(3, problem.size)
    matrix = CurvatureMatrix(problem, "ggn", 1.25).dense() + 0.1 * torch.eye(6).double()
    solved = recipe(0.1).fit(problem, data_scale=1.25).solve(v).vectors
    assert_allclose(solved, torch.linalg.solve(matrix, v.T).T, rtol=1e-9)


# ------------------------------------------------------------------ one call, many ways


@BOTH
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("fisher", ["sampled", "expected", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_batches_and_order_do_not_matter(name, fisher, size, recipe, monkeypatch):
    case = ALL[name]()
    own = recipe(0.02, fisher=fisher, tolerance=0.0)
    expected = scores(case.problem, case.queries, own)
    order = torch.randperm(len(case.problem), generator=torch.Generator().manual_seed(1))
    for module in (kronecker, pairing):
        monkeypatch.setattr(module, "batch_size", lambda *_: size)
    assert_rows_close(scores(case.problem, case.queries, own), expected, 1e-10)
    if isinstance(case.problem.data.take(order)[0], Tensor):
        shuffled = scores(problems.rearranged(case, order), case.queries, own)
        assert_rows_close(shuffled, expected[:, order.numpy()], 1e-10)


@BOTH
def test_a_seed_gives_the_same_numbers_again_and_another_one_others(recipe):
    case = problems.conv()
    first, again, other = (
        scores(case.problem, case.queries, recipe(0.02, fisher="sampled", seed=seed))
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert abs(first - other).max() > 1e-3 * abs(first).max()


@BOTH
def test_expected_slopes_do_not_depend_on_the_seed(recipe):
    case = problems.conv()
    first, other = (
        scores(case.problem, case.queries, recipe(0.02, fisher="expected", seed=seed))
        for seed in (0, 1)
    )
    assert_rows_close(other, first, 1e-10)


def test_base_weights_of_zero_leave_an_example_out_of_the_matrix():
    """Its gradients are in no moment of l; its inputs still turn the basis of r."""
    case = problems.ridge_weighted()
    exact = scores(case.problem, case.queries, Exact(matrix="ggn", damping=0.0))
    found = scores(case.problem, case.queries, EKFAC(0.0, tolerance=0.0))
    assert not found[:, 7].any()
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_effects_under_renormalize_sum_to_zero(name):
    case = ALL[name]()
    found = scores(case.renormalized().problem, case.queries, EKFAC(0.02, tolerance=0.0))
    fixed = scores(case.problem, case.queries, EKFAC(0.02, tolerance=0.0))
    assert_allclose(found.sum(1), 0, atol=1e-12 * abs(found).sum())
    assert_rows_close(found, fixed - fixed.mean(1, keepdims=True), 1e-10)


# ------------------------------------------------------------------ the report


def report(problem: Problem, **options: object) -> dict[str, object]:
    return dict(EKFAC(**options).fit(problem).report)


def test_automatic_damping_is_a_share_of_the_mean_eigenvalue_of_each_layer():
    for name in ("multinomial", "mlp", "conv", "tied"):
        problem = ALL[name]().problem
        fitted = EKFAC().fit(problem)
        matrix = CurvatureMatrix(problem, "ggn").dense()
        blocks = fitted.kronecker.structure.gather(problem, matrix.diagonal()[None])
        means = [float(block.mean()) for block in blocks]
        assert fitted.dampings == pytest.approx([LAYER_DAMPING * mean for mean in means], rel=1e-9)
        mean = float(matrix.trace()) / problem.size
        assert fitted.report["mean_eigenvalue"] == pytest.approx(mean, rel=1e-9)
        assert fitted.report["damping"] == pytest.approx(LAYER_DAMPING * mean, rel=1e-9)
        extremes = [LAYER_DAMPING * min(means), LAYER_DAMPING * max(means)]
        told = fitted.report["damping_of_layers"] or [fitted.report["damping"]] * 2
        assert told == pytest.approx(extremes, rel=1e-9)


def test_what_is_left_out_is_counted_with_the_damping_that_is_used():
    """A parameter whose input is always zero has no curvature of its own."""
    x = drawn(30, 3)
    x[:, 1] = 0
    model = nn.Linear(3, 2, bias=False).double().eval()
    problem = make_problem(model, (x, torch.arange(30) % 2), loss="cross_entropy")
    fitted = EKFAC(0.0).fit(problem)
    assert fitted.report["null_directions"] > 0
    assert fitted.damped(0.2).report["null_directions"] == 0
    assert Refined().fit(problem).report["null_directions"] == 0


def test_damping_by_multiples_keeps_what_the_layers_have_beside_each_other():
    case = ALL["mlp"]()
    fitted = EKFAC().fit(case.problem)
    thrice = fitted.damped_by(3.0)
    assert thrice.dampings == pytest.approx([3 * damping for damping in fitted.dampings])
    assert thrice.report["damping"] == pytest.approx(3 * fitted.report["damping"])
    even = fitted.damped(0.2)
    assert set(even.dampings) == {0.2}
    assert even.report["damping"] == 0.2
    assert even.report["damping_of_layers"] is None
    v = drawn(2, case.problem.size)
    assert_allclose(even.solve(v).vectors, EKFAC(0.2).fit(case.problem).solve(v).vectors)


def test_the_report_says_what_was_inverted():
    found = report(problems.multinomial_free_intercept().problem, damping=0.5)
    assert found["curvature"] == "ekfac"
    assert found["matrix"] == "ggn"
    assert found["damping"] == 0.5
    assert found["smallest_eigenvalue"] >= 0
    assert found["largest_eigenvalue"] > found["mean_eigenvalue"] > found["smallest_eigenvalue"]
    assert KFAC().fit(problems.ridge().problem).report["curvature"] == "kfac"


def test_coverage_is_a_number_of_parameters():
    assert report(problems.conv().problem)["covered_as"] == {"layer": 133, "single": 0}
    assert report(problems.branching().problem)["covered_as"] == {"layer": 0, "single": 16}


@pytest.mark.parametrize(("least", "fisher"), [(0, "expected"), (1, "sampled")])
def test_passes_for_all_outputs_are_made_where_they_are_cheap(least, fisher, monkeypatch):
    problem = problems.multinomial().problem
    passes = 60 * 3 * problem.size  # examples, outputs, multiplications of each
    monkeypatch.setattr(base, "FEW_OPERATIONS", passes - least)
    assert report(problem)["fisher"] == fisher
    assert report(problem, fisher="empirical")["fisher"] == "empirical"


def many(count: int = 600) -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    data = drawn(count, 4), torch.arange(count) % 2
    problem = make_problem(model, data, loss="cross_entropy", weight_decay=0.1)
    return Case(problem, (drawn(5, 4), torch.arange(5) % 2))


@BOTH
def test_fewer_examples_are_looked_at_where_accuracy_allows(recipe, monkeypatch):
    monkeypatch.setattr(kronecker, "FIRST_ROUND", 32)
    monkeypatch.setattr(base, "FEW_OPERATIONS", 0)
    case = many()
    everything = recipe(0.05, accuracy=0.0, tolerance=0.0)
    some = recipe(0.05, accuracy=0.15, tolerance=0.0)
    facts = some.fit(case.problem).report
    assert 32 <= facts["examples_used"] < 600
    assert facts["share_used"] == facts["examples_used"] / 600
    assert 0 < facts["moment_error"] <= 0.15
    assert everything.fit(case.problem).report["share_used"] == 1
    expected = scores(case.problem, case.queries, everything)
    found = scores(case.problem, case.queries, some)
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


@BOTH
@pytest.mark.parametrize("size", [1, 50])
def test_rounds_do_not_depend_on_batches_or_order(size, recipe, monkeypatch):
    monkeypatch.setattr(kronecker, "FIRST_ROUND", 32)
    monkeypatch.setattr(kronecker, "FEWEST", 32)
    monkeypatch.setattr(kronecker, "ROWS", 4)
    monkeypatch.setattr(base, "FEW_OPERATIONS", 0)
    case, own = many(150), recipe(0.05, accuracy=0.5, tolerance=0.0)
    expected = scores(case.problem, case.queries, own)
    used = own.fit(case.problem).report["examples_used"]
    assert used < 150
    for module in (kronecker, pairing):
        monkeypatch.setattr(module, "batch_size", lambda *_: size)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    shuffled = problems.rearranged(case, order)
    assert own.fit(shuffled).report["examples_used"] == used
    assert_rows_close(scores(shuffled, case.queries, own), expected[:, order.numpy()], 1e-10)


def test_scores_report_what_was_left_out():
    case = many()
    found = Influence(EKFAC(0.05, tolerance=0.1)).fit(case.problem).scores(case.queries)
    assert found.report["removal"] == "first_order"
    assert 0 < found.report.get("factored_error", 0.01) <= 0.1
    assert found.report["examples_used"] == 600


# ------------------------------------------------------------------ memory


def least(problem: Problem) -> int:
    """The memory below which `make_room` refuses; its own test asks where that is."""
    with pytest.raises(TooLarge) as refusal:
        EKFAC(memory=1).fit(problem)
    return int(refusal.value.remedy.split("memory=")[1].split()[0])


@BOTH
@pytest.mark.parametrize("times", [1, 1.2, 3])
@pytest.mark.parametrize("name", ["mlp", "conv", "tied"])
def test_scores_do_not_depend_on_the_memory_allowed(name, times, recipe):
    """With the least one example and one query at a time are looked at, and nothing is kept."""
    case = ALL[name]()
    expected = scores(case.problem, case.queries, recipe(0.02, tolerance=0.0))
    tight = recipe(0.02, tolerance=0.0, memory=int(times * least(case.problem)))
    fitted = tight.fit(case.problem)
    if times == 1:
        assert fitted.report["training_gradients"] == "made anew"
    assert_rows_close(scores(case.problem, case.queries, tight), expected, 1e-10)


@BOTH
@pytest.mark.parametrize("options", [{}, {"change": "finite"}, {"correct_nonconvergence": True}])
def test_scores_tell_how_far_the_optimum_is_whatever_is_kept(options, recipe):
    case = problems.mlp_untrained()
    kept = Influence(recipe(0.02), **options).fit(case.problem)
    tight = Influence(recipe(0.02, memory=least(case.problem)), **options).fit(case.problem)
    assert tight.report["training_gradients"] == "made anew"
    expected, found = (fitted.scores(case.queries).report for fitted in (kept, tight))
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-9)
    assert sum("not at an optimum" in text for text in expected["warnings"]) == 1
    assert sum("not at an optimum" in text for text in found["warnings"]) == 1
    assert_allclose(tight.gradient, kept.gradient, rtol=1e-9, atol=1e-12)
    again = Influence(recipe(0.02, memory=least(case.problem))).fit(case.problem)
    halved = again.weighing(case.problem.weights / 2)
    assert_allclose(halved.gradient, kept.gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["full", "float16"])
@pytest.mark.parametrize("name", ["mlp", "conv", "tied"])
def test_gradients_that_do_not_fit_go_to_disk_and_leave_nothing_there(name, precision, tmp_path):
    case = ALL[name]()
    options = {"tolerance": 0.0, "precision": precision}
    expected = scores(case.problem, case.queries, EKFAC(0.02, **options))
    tight = EKFAC(0.02, memory=least(case.problem), disk=str(tmp_path), **options)
    fitted = Influence(tight).fit(case.problem)
    assert fitted.report["training_gradients"] == "on disk"
    found = fitted.scores(case.queries).values
    assert_rows_close(found, expected, 1e-10)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_or_full_is_refused(tmp_path, monkeypatch):
    problem = problems.mlp().problem
    memory = least(problem)
    with pytest.raises(BadArgument, match="nowhere"):
        EKFAC(memory=memory, disk=str(tmp_path / "nowhere")).fit(problem)
    monkeypatch.setattr(pairing, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(TooLarge, match="100 bytes free"):
        EKFAC(memory=memory, disk=str(tmp_path)).fit(problem)


class Limited(nn.Module):
    """A network that has no memory for more than a few examples at a time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.most = model, 10**9

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return self.model(x)


@pytest.mark.parametrize(
    "recipe", [EKFAC(0.05), KFAC(0.05), Refined(1e-9, damping=0.05), CG(damping=0.05, rank=5)]
)
def test_batches_that_do_not_fit_are_halved(recipe):
    """Scores are the same, and the report says that memory was short."""
    case, method = problems.mlp(), Influence(recipe, removal="first_order")
    model = Limited(case.problem.model)
    data = case.problem.data.take(torch.arange(len(case.problem)))
    problem = make_problem(model, data, loss="mse", weight_decay=0.05)
    expected = method.fit(problem).scores(case.queries)
    model.most = 7
    fitted = method.fit(replace(problem))
    found = fitted.scores(case.queries)
    assert_rows_close(found.values, expected.values, 1e-7)
    assert not any("Memory" in text for text in expected.report["warnings"])
    for report in (fitted.report, found.report):
        assert any("Memory ran out" in text for text in report["warnings"])


# ------------------------------------------------------------------ precision


@BOTH
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied"])
def test_half_precision_ranks_as_full_precision_does(name, precision, recipe):
    """Eight bits of a number are two to three digits: 1 % of the spread of a query's effects."""
    case = problems.single(ALL[name]())
    expected = scores(case.problem, case.queries, recipe(0.02))
    found = scores(case.problem, case.queries, recipe(0.02, precision=precision))
    for one, other in zip(found, expected, strict=True):
        assert spearmanr(one, other).statistic > 0.98
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_two_bytes_a_number(precision):
    problem = problems.single(problems.mlp()).problem
    kept = EKFAC(precision=precision).fit(problem).kept
    assert {block.right.element_size() for block in kept.blocks} == {2}
    assert {block.right.element_size() for block in EKFAC().fit(problem).kept.blocks} == {4}


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_half_precision_knows_small_and_large_gradients(size):
    """float16 ends at 6e-8 and 65,504; slopes are at length one while they travel."""
    case = problems.single(problems.conv())
    problem, few = case.problem, {"precision": "float16", "tolerance": 0.0}
    small = replace(problem, loss=scaled_loss(problem.loss, size))
    queries = problem.queries(case.queries)
    slopes = torch.ones(len(queries), problem.output_size)
    expected = EKFAC(0.02, **few).fit(problem).pair(queries, slopes)[0]
    found = EKFAC(0.02, **few).fit(small).pair(queries, slopes)[0]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def scaled_loss(loss: Loss, size: float) -> Loss:
    return replace(loss, function=lambda outputs, targets: size * loss.function(outputs, targets))


# ------------------------------------------------------------------ refusals


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"damping": -0.1},
        {"damping": float("nan")},
        {"accuracy": -1.0},
        {"accuracy": float("nan")},
        {"tolerance": 1.0},
        {"tolerance": -0.1},
        {"fisher": "true"},
        {"memory": 0},
        {"precision": "half"},
    ],
)
def test_options_out_of_range_are_refused(options, recipe):
    with pytest.raises(BadArgument):
        recipe(**options).fit(problems.ridge().problem)


@BOTH
def test_a_loss_without_curvature_is_refused(recipe):
    model = nn.Linear(2, 1).double().eval()
    y = torch.tensor([1.0, -1.0] * 5).double()
    problem = make_problem(model, (drawn(10, 2), y), loss="hinge", weight_decay=0.1)
    with pytest.raises(Unsupported, match="no curvature"):
        recipe().fit(problem)
    recipe(fisher="empirical").fit(problem)


@BOTH
def test_a_regulariser_that_couples_parameters_is_refused(recipe):
    def coupled(named: dict[str, Tensor]) -> Tensor:
        return named["weight"].sum() ** 2

    model = nn.Linear(5, 1).double().eval()
    problem = make_problem(
        model, (drawn(10, 5), drawn(10)), loss="mse", weight_decay=0.1, regularizer=coupled
    )
    with pytest.raises(Unsupported, match="not diagonal"):
        recipe().fit(problem)


@BOTH
def test_numbers_that_are_none_are_refused(recipe):
    problem = problems.mlp().problem
    broken = replace(problem, parameters=problem.parameters * torch.nan)
    with pytest.raises(NonFinite):
        recipe(0.1).fit(broken)


@BOTH
def test_newton_removals_are_not_offered(recipe):
    with pytest.raises(Unsupported):
        Influence(recipe(), removal="newton").fit(problems.ridge().problem)
