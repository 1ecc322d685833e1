"""What every curvature obeys, found by file name: a new file is tested without a word here."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import problems
from problems import ALL
from whence import curvature
from whence.calculus.gradients import jacobians
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature import IHVP, Curvature, make_curvature
from whence.curvature.cg import CG
from whence.curvature.lissa import LiSSA
from whence.curvature.refined import Refined
from whence.errors import BadArgument

ITERATIVE: dict[str, Curvature] = {
    "cg": CG(tolerance=1e-12),
    "refined": Refined(tolerance=1e-12),
    "lissa": LiSSA(samples=None, depth=20),
}
"""Recipes that iterate: to rounding, or a short series, for which every law but one holds too."""

ACCURATE = ITERATIVE | {"lissa": LiSSA(samples=None, depth=400)}
"""The same so long that they end at rounding on `CASES`."""

APPROXIMATE = {"diagonal", "ekfac", "kfac"}
"""Curvatures that never invert the matrix they report, only a part of it: no law says that their
solves undo its product. That their report tells the true residual holds for them as well, but for
`SILENT`."""

SILENT = {"ekfac", "kfac"}
"""Curvatures that claim no residual: it would take a pass over all the data for every solve, where
they take none."""

LOW_RANK = ["arnoldi", "nystrom"]
"""Curvatures that invert the matrix itself at full rank, as the default is for these problems."""

NEEDS_DECAY = {"dual"}
"""Curvatures that divide by the decay of each parameter: without any they ask for damping."""

CASES = ["multinomial", "class_weighted"]
NAMES = pytest.mark.parametrize("name", curvature.names())
INVERTING = pytest.mark.parametrize("name", [n for n in curvature.names() if n != "identity"])
"""Those that have a matrix and a damping."""
ON = pytest.mark.parametrize("case", CASES)


def recipe(name: str) -> Curvature:
    return ITERATIVE.get(name) or make_curvature(name)


@cache
def fitted(name: str, case: str) -> IHVP:
    return recipe(name).fit(ALL[case]().problem)


def vectors(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((actual - expected).norm() <= tolerance * expected.norm())


# ------------------------------------------------------------------ a linear map


@NAMES
@ON
def test_solving_is_linear(name, case):
    ihvp, v = fitted(name, case), vectors(ALL[case]().problem)
    parts = ihvp.solve(v).vectors
    whole = ihvp.solve(2 * v[:1] - 3 * v[1:2]).vectors
    assert close(whole, 2 * parts[:1] - 3 * parts[1:2], 1e-9)


@NAMES
@ON
def test_each_vector_is_solved_for_itself(name, case):
    ihvp, v = fitted(name, case), vectors(ALL[case]().problem)
    alone = torch.cat([ihvp.solve(row[None]).vectors for row in v])
    assert close(ihvp.solve(v).vectors, alone, 1e-9)


@NAMES
@ON
def test_the_inverse_is_symmetric(name, case):
    ihvp, v = fitted(name, case), vectors(ALL[case]().problem, 4)
    products = v @ ihvp.solve(v).vectors.T
    assert close(products, products.T, 1e-9)


@NAMES
@ON
def test_the_inverse_is_positive(name, case):
    ihvp, v = fitted(name, case), vectors(ALL[case]().problem, 8)
    assert bool(((v * ihvp.solve(v).vectors).sum(1) > 0).all())


@NAMES
@ON
def test_zero_is_solved_by_zero(name, case):
    problem = ALL[case]().problem
    v = vectors(problem, 2)
    v[1] = 0
    solved = fitted(name, case).solve(v).vectors
    assert bool((solved[1] == 0).all())
    assert bool(solved[0].isfinite().all())


@NAMES
@ON
def test_what_is_solved_keeps_shape_and_type_and_changes_nothing_given(name, case):
    v = vectors(ALL[case]().problem)
    kept = v.clone()
    solved = fitted(name, case).solve(v).vectors
    assert solved.shape == v.shape
    assert solved.dtype == v.dtype
    assert not solved.requires_grad
    assert torch.equal(v, kept)


# ------------------------------------------------------------------ the inverse of what is stated


def rest(own: Curvature, problem: Problem, data_scale: float = 1.0) -> tuple[Tensor, float | None]:
    """(K,) relative residuals for the matrix and damping in the report, and what it claims."""
    ihvp = own.fit(problem, data_scale=data_scale)
    v = vectors(problem)
    solution = ihvp.solve(v)
    product = CurvatureMatrix(problem, ihvp.report["matrix"], data_scale)(solution.vectors)
    gap = product + ihvp.report["damping"] * solution.vectors - v
    return gap.norm(dim=1) / v.norm(dim=1), solution.report.get("residual")


@pytest.mark.parametrize("name", [n for n in curvature.names() if n not in {"identity", *SILENT}])
@pytest.mark.parametrize("case", [*CASES, "mlp"])
def test_the_report_tells_the_true_residual(name, case):
    found, claimed = rest(recipe(name), ALL[case]().problem)
    assert claimed == pytest.approx(float(found.max()), rel=1e-3, abs=1e-13)


@pytest.mark.parametrize("name", ["exact", "cg", "dual", "lissa", "refined", *LOW_RANK])
@pytest.mark.parametrize("data_scale", [1.0, 60 / 59])
@ON
def test_solving_undoes_the_product_at_the_stated_damping(name, case, data_scale):
    own = ACCURATE.get(name) or make_curvature(name)
    found, _ = rest(own, ALL[case]().problem, data_scale)
    assert float(found.max()) < 1e-10


@pytest.mark.parametrize("name", ["exact", "cg", "dual", "refined", *LOW_RANK])
@pytest.mark.parametrize("case", ["mlp", "mlp_untrained", "tied", "branching"])
def test_networks_are_solved_at_the_stated_damping(name, case):
    found, _ = rest(recipe(name), ALL[case]().problem)
    assert float(found.max()) < 1e-10


FREE_INTERCEPT = pytest.mark.parametrize(
    "case", ["ridge_free_intercept", "multinomial_free_intercept"]
)


@pytest.mark.parametrize("name", sorted(NEEDS_DECAY))
@FREE_INTERCEPT
def test_a_parameter_without_decay_is_refused_with_what_to_do(name, case):
    with pytest.raises(BadArgument, match="3 of 15 parameters have neither") as refused:
        make_curvature(name).fit(ALL[case]().problem)
    assert "damping" in refused.value.remedy


@pytest.mark.parametrize(
    "name", [n for n in curvature.names() if n not in {"identity", *APPROXIMATE}]
)
@FREE_INTERCEPT
def test_with_damping_a_parameter_without_decay_is_solved_like_any_other(name, case):
    own = replace(ACCURATE.get(name) or make_curvature(name), damping=0.05)
    found, _ = rest(own, ALL[case]().problem)
    assert float(found.max()) < 1e-10


@pytest.mark.parametrize(
    "name",
    [n for n in curvature.names() if recipe(n).offers_leverage or n in {"diagonal", *LOW_RANK}],
)
@ON
def test_leverage_is_made_of_solves(name, case):
    problem = ALL[case]().problem
    jac = jacobians(problem, problem.batch(torch.arange(5)))
    solved = fitted(name, case).solve(jac.flatten(0, 1)).vectors.unflatten(0, jac.shape[:2])
    expected = jac @ solved.mT
    assert close(fitted(name, case).leverage(jac), expected, 1e-10)


# ------------------------------------------------------------------ what must not matter


@NAMES
@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("case", [*CASES, "mlp"])
def test_the_size_of_batches_never_changes_the_solution(name, size, case, monkeypatch):
    problem = ALL[case]().problem
    v = vectors(problem)
    own = recipe(name) if name != "lissa" else LiSSA(samples=None, depth=5, scale=10.0)
    expected = own.fit(problem).solve(v).vectors
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: min(size, len(self)))
    for module in ("calculus.products", "curvature.dual", "curvature.diagonal"):
        monkeypatch.setattr(f"whence.{module}.jacobian_batch", lambda problem: size)
    for module in ("calculus.kronecker", "calculus.pairing"):
        monkeypatch.setattr(f"whence.{module}.batch_size", lambda *_: size)
    actual = own.fit(problem).solve(v).vectors
    row = expected.abs().max(1, keepdim=True).values
    assert bool(((actual - expected).abs() <= 1e-10 * row).all())


@NAMES
@pytest.mark.parametrize("case", [*CASES, "mlp"])
def test_the_order_of_the_data_never_changes_the_solution(name, case):
    problem = ALL[case]().problem
    v = vectors(problem)
    shuffled = torch.randperm(len(problem), generator=torch.Generator().manual_seed(1))
    other = problems.rearranged(ALL[case](), shuffled)
    expected = recipe(name).fit(problem).solve(v).vectors
    assert close(recipe(name).fit(other).solve(v).vectors, expected, 1e-10)


@NAMES
@ON
def test_an_example_of_weight_zero_does_not_matter(name, case):
    """N is stretched so that the divisor stays what it was."""
    problem = ALL[case]().problem
    v = vectors(problem)
    count = len(problem)
    doubled = problems.rearranged(ALL[case](), torch.arange(2 * count) % count)
    weights = torch.cat([2 * problem.weights, torch.zeros(count, dtype=torch.float64)])
    actual = recipe(name).fit(replace(doubled, weights=weights)).solve(v).vectors
    assert close(actual, fitted(name, case).solve(v).vectors, 1e-9)


@INVERTING
@ON
def test_more_damping_shrinks_the_solution(name, case):
    own = recipe(name)
    problem = ALL[case]().problem
    v = vectors(problem, 4)
    sizes = [
        (v * replace(own, damping=damping).fit(problem).solve(v).vectors).sum(1)
        for damping in (0.0, 0.01, 0.1, 1.0)
    ]
    assert all(bool((small < large).all()) for large, small in pairwise(sizes))


# ------------------------------------------------------------------ nothing but the answer


def default(name: str) -> Curvature:
    """The recipe as users get it; a long series is cut short."""
    own = make_curvature(name)
    return replace(own, depth=30) if "depth" in getattr(own, "__dataclass_fields__", {}) else own


@NAMES
def test_the_same_seed_gives_the_same_numbers_and_global_seeds_do_not_matter(name):
    problem = problems.multinomial().problem
    v = vectors(problem)
    torch.manual_seed(1)
    first = default(name).fit(problem).solve(v).vectors
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(default(name).fit(problem).solve(v).vectors, first)
    assert torch.equal(torch.get_rng_state(), before)


@NAMES
@pytest.mark.parametrize("case", ["multinomial", "tied", "branching"])
def test_the_model_is_left_as_it_was(name, case):
    problem = ALL[case]().problem
    model = problem.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    own = default(name)
    if name == "lissa":
        own = replace(own, depth=20, samples=3, scale=10.0, matrix="ggn", damping=0.1)
    own.fit(problem).solve(vectors(problem))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(hooks(module) for module in model.modules())


def hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


@NAMES
def test_float32_problems_are_solved_to_float32(name):
    """1e-3: a tolerance of 1e-6 and rounding of 1e-7, times a condition number of about 100."""
    case = problems.multinomial()
    own = recipe(name)
    own = replace(own, tolerance=1e-6) if name in ("cg", "refined") else own
    v = vectors(case.problem)
    solved = own.fit(problems.single(case).problem).solve(v.float()).vectors
    assert solved.dtype == torch.float32
    assert close(solved.double(), fitted(name, "multinomial").solve(v).vectors, 1e-3)


@NAMES
def test_a_recipe_is_a_value(name):
    assert make_curvature(name) == make_curvature(name)
    assert hash(make_curvature(name)) == hash(make_curvature(name))
    assert make_curvature(make_curvature(name)) == make_curvature(name)
