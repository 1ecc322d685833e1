"""What every method obeys, found by name: a new file is tested without a word here."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

import problems
from problems import ALL, Case
from whence import curvature, methods
from whence.calculus.gradients import measurement_gradients
from whence.calculus.training import Training
from whence.core.measurements import make_measurement
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.curvature.cg import CG
from whence.curvature.ekfac import EKFAC
from whence.curvature.kfac import KFAC
from whence.curvature.lissa import LiSSA
from whence.curvature.refined import Refined
from whence.methods import Method, make_method
from whence.methods.bm25 import BM25
from whence.methods.ensemble import Ensemble
from whence.methods.influence import Influence
from whence.methods.magic import MAGIC
from whence.methods.source import Source
from whence.methods.tracin import TracIn


def signs(inputs: dict[str, Tensor] | Tensor) -> list[list[tuple[int, bool]]]:
    """Words for examples that are no texts: which of their numbers are positive."""
    rows = inputs["tokens"] - 4 if isinstance(inputs, dict) else inputs
    return [list(enumerate((row > 0).tolist())) for row in rows]


ITERATIVE: dict[str, Method] = {
    "cg": Influence(CG(tolerance=1e-11)),
    "refined": Influence(Refined(tolerance=1e-11)),
    "lissa": Influence(LiSSA(samples=None, depth=20)),
    "ekfac": Influence(EKFAC(tolerance=0.0)),
    "kfac": Influence(KFAC(tolerance=0.0)),
}
"""Recipes that iterate: to rounding, or a short series, for which every law holds too; and those
that may leave out a small part of the scores for speed, told not to."""

RECIPES: dict[str, Method] = {
    **{name: ITERATIVE.get(name) or make_method(name) for name in methods.names()},
    "bm25": BM25(terms=signs),
    "ensemble": Ensemble("exact", subsets=2),
    "source": Source(2, 2),
    "tracin": TracIn(2),
    "magic": MAGIC(subsets=2, directions=0),
    "exact, first order": Influence("exact", removal="first_order"),
    "exact, finite": Influence("exact", change="finite"),
    "cg, finite": Influence(CG(tolerance=1e-11), change="finite"),
}
BASELINES = {"bm25", "embedding", "gradcos", "loss"}
"""They rank: a scale of the measurement does not reach them, nor are they linear in it."""

TRAINED = {"ensemble", "magic", "source", "tracin"}
"""They train again, which another scale of the objective changes."""

BILINEAR = [name for name in RECIPES if name not in BASELINES]
NAMES = pytest.mark.parametrize("name", RECIPES)
ON = pytest.mark.parametrize("case", ["multinomial", "class_weighted", "renormalized"])


@cache
def case_of(name: str) -> Case:
    own = {"renormalized": lambda: problems.multinomial().renormalized()}
    case = (ALL | own | {"selecting": problems.selecting})[name]()
    # All examples in a batch: equal ones then have equal parts in every step.
    training = Training(case.problem.model, "sgd", lr=0.1, epochs=4, batch_size=100)
    return replace(case, problem=replace(case.problem, training=training))


def scores(recipe: str | Method, problem: Problem, queries: object, **options: object) -> Scores:
    method = RECIPES[recipe] if isinstance(recipe, str) else recipe
    return method.fit(problem).scores(queries, **options)


@cache
def plain(recipe: str, case: str) -> np.ndarray:
    return scores(recipe, case_of(case).problem, case_of(case).queries).values


def assert_rows_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Within `tolerance` times the largest effect of each query."""
    gaps = abs(actual - expected) / abs(expected).max(1, keepdims=True)
    assert gaps.max() <= tolerance


# ------------------------------------------------------------------ what must not matter


@NAMES
@ON
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_size_of_batches_never_changes_the_scores(name, case, size, monkeypatch):
    own = RECIPES[name]
    if name == "lissa":
        own = Influence(LiSSA(samples=None, depth=5, scale=10.0))
    expected = scores(own, case_of(case).problem, case_of(case).queries).values
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: min(size, len(self)))
    for module in ("calculus.products", "curvature.dual", "methods.influence"):
        monkeypatch.setattr(f"whence.{module}.jacobian_batch", lambda problem: size)
    for module in ("calculus.kronecker", "calculus.pairing"):
        monkeypatch.setattr(f"whence.{module}.batch_size", lambda *_: size)
    actual = scores(own, case_of(case).problem, case_of(case).queries).values
    assert_rows_close(actual, expected, 1e-10)


@NAMES
@ON
def test_permuting_the_training_examples_permutes_the_columns(name, case):
    problem = case_of(case).problem
    order = torch.randperm(len(problem), generator=torch.Generator().manual_seed(1))
    shuffled = scores(name, problems.rearranged(case_of(case), order), case_of(case).queries)
    assert list(shuffled.train_ids) == order.tolist()
    assert_rows_close(shuffled.values, plain(name, case)[:, order.numpy()], 1e-10)


@NAMES
@ON
def test_asking_several_queries_stacks_the_rows(name, case):
    """A block of queries shares its solve; each ends below the tolerance of 1e-11."""
    inputs, targets = case_of(case).queries
    fitted = RECIPES[name].fit(case_of(case).problem)
    rows = [fitted.scores((inputs[i : i + 1], targets[i : i + 1])).values[0] for i in range(3)]
    assert_rows_close(np.stack(rows), plain(name, case)[:3], 1e-9)


@NAMES
@ON
def test_the_same_query_twice_gets_the_same_row_twice(name, case):
    """Equal right-hand sides make the block of a solver singular."""
    inputs, targets = case_of(case).queries
    twice = torch.tensor([0, 1, 0, 0])
    values = scores(name, case_of(case).problem, (inputs[twice], targets[twice])).values
    assert_rows_close(values, plain(name, case)[twice.numpy()], 1e-9)


@NAMES
@ON
def test_equal_training_examples_have_equal_effects(name, case):
    positions = torch.cat([torch.arange(len(case_of(case).problem)), torch.tensor([5, 5, 11])])
    problem = problems.rearranged(case_of(case), positions)
    values = scores(name, problem, case_of(case).queries).values
    assert_rows_close(values[:, -3:], values[:, [5, 5, 11]], 1e-10)


@NAMES
@ON
def test_the_same_call_gives_the_same_numbers(name, case):
    torch.manual_seed(7)
    again = scores(name, case_of(case).problem, case_of(case).queries).values
    assert np.array_equal(again, plain(name, case))


@NAMES
def test_fitting_once_serves_any_number_of_calls(name):
    case = case_of("multinomial")
    fitted = RECIPES[name].fit(case.problem)
    fitted.scores(case.queries, "loss")
    assert np.array_equal(fitted.scores(case.queries).values, plain(name, "multinomial"))


# ------------------------------------------------------------------ scales


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in TRAINED])
@ON
def test_scaling_the_objective_leaves_effects_alone(name, case):
    """Gradient and inverse cancel; scores without an inverse grow with the loss, cosines do not."""
    problem = case_of(case).problem
    decay = replace(problem.regularizer, weight_decay=3 * problem.regularizer.weight_decay)
    scaled = replace(problem, weights=3 * problem.weights, regularizer=decay)
    found = scores(name, scaled, case_of(case).queries)
    factor = 1.0 if found.is_calibrated or name in BASELINES - {"loss"} else 3.0
    assert_rows_close(found.values, factor * plain(name, case), 1e-9)


@NAMES
@ON
def test_scaling_the_measurement_scales_the_effects(name, case):
    problem = case_of(case).problem
    measured = make_measurement(None, problem.loss)

    def tripled(outputs: Tensor, targets: Tensor) -> Tensor:
        return 3 * measured.function(outputs, targets)

    found = scores(name, problem, case_of(case).queries, measurement=tripled)
    factor = 1 if name in BASELINES else 3
    assert_rows_close(found.values, factor * plain(name, case), 1e-9)
    assert_allclose(
        found.baseline, 3 * scores(name, problem, case_of(case).queries).baseline, rtol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in BILINEAR if not name.endswith("finite")])
def test_effects_on_a_sum_of_measurements_are_sums_of_effects(name):
    case = case_of("multinomial")
    parts: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda outputs, targets: outputs[:, 0],
        lambda outputs, targets: outputs[:, 1] ** 2,
        lambda outputs, targets: outputs[:, 0] + outputs[:, 1] ** 2,
    ]
    first, second, both = (
        scores(name, case.problem, case.queries, measurement=part).values for part in parts
    )
    assert_rows_close(first + second, both, 1e-9)


@NAMES
@pytest.mark.parametrize(("case", "position"), [("class_weighted", 3), ("ridge_weighted", 7)])
def test_removing_an_example_of_base_weight_zero_does_nothing(name, case, position):
    assert not plain(name, case)[:, position].any()
    assert plain(name, case)[:, position - 1].any()


# ------------------------------------------------------------------ sums


@pytest.mark.parametrize("name", curvature.names())
@pytest.mark.parametrize("case", ["multinomial", "class_weighted", "smooth_hinge"])
def test_all_first_order_effects_together_undo_the_data(name, case):
    """At an optimum sum_i effect_i = -grad r . (H + damping)^-1 grad m, under fixed N."""
    own = replace(RECIPES[name], removal="first_order")
    problem = case_of(case).problem
    fitted = own.fit(problem)
    queries = problem.queries(case_of(case).queries)
    measured = make_measurement(None, problem.loss)
    _, slopes = measurement_gradients(problem, measured, queries)
    decay = torch.func.grad(problem.penalty)(problem.parameters)
    expected = -(fitted.ihvp.solve(slopes).vectors @ decay).numpy()
    values = fitted.scores(case_of(case).queries).values
    assert_allclose(values.sum(1), expected, atol=1e-10 * abs(values).max() * len(problem))


@pytest.mark.parametrize("name", curvature.names())
@pytest.mark.parametrize("case", ["multinomial", "class_weighted", "smooth_hinge"])
def test_all_first_order_effects_together_are_zero_when_renormalized(name, case):
    own = replace(RECIPES[name], removal="first_order")
    values = scores(own, case_of(case).renormalized().problem, case_of(case).queries).values
    assert_allclose(values.sum(1), 0, atol=1e-12 * abs(values).max() * values.shape[1])


# ------------------------------------------------------------------ nothing but the answer


@NAMES
@pytest.mark.parametrize("case", ["multinomial", "tokens", "branching"])
def test_the_model_and_the_data_are_left_as_they_were(name, case):
    recipe = RECIPES[name]
    if name == "lissa":
        recipe = Influence(LiSSA(samples=3, depth=20, scale=10.0, matrix="ggn", damping=0.1))
    problem = case_of(case).problem
    model, queries = problem.model, case_of(case).queries
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    prints = problem.fingerprint()
    scores(recipe, problem, queries)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in kept.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert problem.data.fingerprint() == prints["data"]
    assert not problem.parameters.requires_grad


@NAMES
def test_no_random_number_is_drawn_from_a_global_generator(name):
    case = case_of("multinomial")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    scores(name, case.problem, case.queries)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@NAMES
@ON
def test_scores_are_complete(name, case):
    found = scores(name, case_of(case).problem, case_of(case).queries)
    assert found.values.shape == (len(found.query_ids), len(found.train_ids))
    assert np.isfinite(found.values).all()
    assert {"method", "fingerprint", "seconds", "version"} <= set(found.report)
    assert "gradient_norm" in found.report or name in BASELINES | TRAINED


LAYERED = {"ekfac", "embedding", "kfac", "source"}
"""They go by layers; in `branching`, where each call of a layer sees one example without a batch,
none are found and parameters are rows, and the last layer is that of the branch."""


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in LAYERED])
def test_networks_without_vmap_get_the_scores_of_the_same_function(name):
    """`branching` goes the slow way, `selecting` the fast one."""
    recipe = RECIPES[name]
    if name == "lissa":
        recipe = Influence(LiSSA(samples=None, depth=20, matrix="ggn", damping=0.1))
    slow, fast = case_of("branching"), case_of("selecting")
    expected = scores(recipe, fast.problem, fast.queries).values
    assert_rows_close(scores(recipe, slow.problem, slow.queries).values, expected, 1e-9)


@NAMES
def test_float32_scores_agree_with_float64(name):
    """1e-3: rounding of 1e-7 and a tolerance of 1e-6, times a condition number of about 100."""
    recipe = Influence("cg", change=RECIPES[name].change) if "cg" in name else RECIPES[name]
    recipe = Influence(Refined(tolerance=1e-6)) if name == "refined" else recipe
    case = case_of("multinomial")
    actual = scores(recipe, problems.single(case).problem, case.queries).values
    assert actual.dtype == np.float64
    assert_rows_close(actual, plain(name, "multinomial"), 1e-3)
