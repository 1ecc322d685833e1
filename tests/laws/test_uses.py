"""What every use obeys; a new public function of `whence.uses` has to be added to `USES`."""

import inspect
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import problems
from oracles import Logistic, Softmax, Squared
from problems import Case
from whence import uses
from whence.core.problem import Problem
from whence.explanation import explain
from whence.sections import Section
from whence.uses.ablation import removal_curve
from whence.uses.base import Result
from whence.uses.comparison import compare
from whence.uses.components import components
from whence.uses.damping import scan_damping
from whence.uses.flipping import brittleness, smallest_flip
from whence.uses.method_comparison import compare_methods
from whence.uses.mislabels import find_mislabels
from whence.uses.mismatch import find_mismatch
from whence.uses.perturbation import perturb
from whence.uses.poisoning import Attack, poison
from whence.uses.schools import other_schools
from whence.uses.tokens import token_effects
from whence.uses.whatif import relabel, remove, replace, revise, upweight


def problem_and_queries(case: Case) -> tuple[object, ...]:
    return case.problem, case.queries


@dataclass(frozen=True)
class Use:
    """A use of one problem.

    Args:
        function: the public function.
        case: builds the problem and its queries.
        options: of the function, by name.
        arguments: of the function, by place.
        needs: a package that it needs.
        tolerance: share by which numbers may differ when sums are taken in another order.
    """

    function: Callable[..., Result]
    case: Callable[[], Case]
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[Case], tuple[object, ...]] = problem_and_queries
    needs: str = "torch"
    tolerance: float = 1e-9

    def __call__(self) -> Result:
        """What it finds."""
        return self.function(*self.arguments(self.case()), **self.options)


def problem_alone(case: Case) -> tuple[object, ...]:
    return (case.problem,)


def one_query(case: Case) -> tuple[object, ...]:
    return case.problem, (case.queries[0][:1], case.queries[1][:1])


def explained(case: Case) -> tuple[object, ...]:
    return case.problem, explain(case.problem, case.queries)


def answered_queries(case: Case) -> tuple[object, ...]:
    """Those that the model answers as they are labelled."""
    with torch.no_grad():
        is_right = (case.problem.model(case.queries[0])[:, 0] > 0) == (case.queries[1] > 0)
    return case.problem, (case.queries[0][is_right], case.queries[1][is_right])


def two_problems(case: Case) -> tuple[object, ...]:
    """The second with a stronger regulariser."""
    return case.problem, two_classes(1.0).problem, case.queries


def inputs_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """19 rows of two numbers, and how far each lies from the line between the classes."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((19, 2))
    return x, x @ [1.0, -0.5] + 0.5 * random.standard_normal(19)


@cache
def two_classes(decay: float = 0.1) -> Case:
    """Sixteen examples: trained again dozens of times, one example a batch, in a second."""
    x, far = inputs_of(21)
    y = (far > 0).astype(np.int64)
    return problems.linear_case(
        x[3:], y[3:], Logistic(), weight_decay=decay, queries=(x[:3], y[:3])
    )


@cache
def three_classes() -> Case:
    x, far = inputs_of(22)
    y = np.digitize(far, [-0.6, 0.6])
    return problems.linear_case(x[3:], y[3:], Softmax(), weight_decay=0.1, queries=(x[:3], y[:3]))


@cache
def numbers() -> Case:
    x, far = inputs_of(23)
    return problems.linear_case(
        x[3:], far[3:], Squared(), weight_decay=0.1, queries=(x[:3], far[:3])
    )


GROUPS = {"odd": np.arange(1, 16, 2), "first": np.arange(5)}
WRONG = np.arange(16) % 4 == 1
WEAK = Attack(bounds=(-5.0, 5.0), iterations=2)
NEW = np.zeros((1, 2)), np.array([2])

SINGLE = 1e-5
"""captum fits its linear model in float32."""

ITERATED = 1e-5
"""A solve that iterates to 1e-6."""

USES: dict[str, Use] = {
    "compare": Use(compare, two_classes, arguments=two_problems),
    "compare_methods": Use(
        compare_methods,
        two_classes,
        {"subsets": 6},
        arguments=lambda case: (*problem_and_queries(case), ["exact", "bm25"]),
        tolerance=1e-6,  # retraining stops at a gradient of 1e-10 of one example's pull
    ),
    "components": Use(components, three_classes),
    "scan_damping": Use(scan_damping, three_classes, {"dampings": (0.01, 0.1)}, tolerance=SINGLE),
    "find_mislabels": Use(find_mislabels, three_classes, arguments=problem_alone),
    "find_mislabels, tested": Use(
        find_mislabels, two_classes, {"truth": WRONG}, arguments=problem_alone
    ),
    "find_mismatch": Use(find_mismatch, two_classes, {"groups": GROUPS}),
    "other_schools": Use(other_schools, three_classes, needs="captum", tolerance=SINGLE),
    "other_schools of a picture": Use(
        other_schools, problems.conv, needs="captum", tolerance=SINGLE
    ),
    "other_schools of tokens": Use(other_schools, problems.tokens, {"regions": None}),
    "perturb": Use(perturb, two_classes, {"example": 3}),
    "perturb a picture": Use(
        perturb, problems.conv, {"example": 3, "method": "cg"}, tolerance=ITERATED
    ),
    "poison": Use(poison, two_classes, {"attack": WEAK}, arguments=answered_queries),
    "relabel": Use(relabel, three_classes, {"example": 3, "label": 1}),
    "revise": Use(revise, three_classes, {"remove": [5, 11], "relabel": {3: 1}}),
    "relabel with a number": Use(relabel, numbers, {"example": 3, "label": 1.5}),
    "remove": Use(remove, three_classes, {"group": [3, 7, 11]}),
    "remove, retrained": Use(remove, two_classes, {"group": [3, 7], "retrain": True}),
    "replace": Use(replace, three_classes, {"example": 3, "with_": NEW}),
    "brittleness": Use(brittleness, two_classes, {"retrain": False}),
    "removal_curve": Use(
        removal_curve,
        three_classes,
        {"ks": (1, 3, 8)},
        arguments=explained,
        tolerance=1e-6,  # retraining stops at a gradient of 1e-10 of one example's pull
    ),
    "smallest_flip": Use(smallest_flip, two_classes, arguments=one_query),
    "smallest_flip, predicted": Use(
        smallest_flip, two_classes, {"retrain": False}, arguments=one_query
    ),
    "token_effects": Use(token_effects, problems.tied, {"example": 3}),
    "token_effects by the input": Use(token_effects, problems.tokens, {"example": 3}),
    "upweight": Use(upweight, two_classes, {"example": [3, 7], "by": 2.5}),
}

NAMES = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                find_spec(use.needs) is None, reason=f"{name} needs the package {use.needs}"
            ),
        )
        for name, use in USES.items()
    ],
)

OF_THE_MACHINE = {"seconds", "fit_seconds", "training_seconds", "memory_bytes"}
ROUNDING = {"report", "residual"}
"""What measures rounding itself, and is another number when sums are taken in another order."""


@cache
def found(name: str) -> Result:
    return USES[name]()


def public_uses() -> dict[str, Callable[..., Result]]:
    """Every public function of the folder that returns a result."""
    functions: dict[str, Callable[..., Result]] = {}
    for module in pkgutil.iter_modules(uses.__path__, f"{uses.__name__}."):
        for name, value in vars(import_module(module.name)).items():
            is_own = inspect.isfunction(value) and value.__module__ == module.name
            if is_own and not name.startswith("_"):
                answer = get_type_hints(value).get("return")
                if inspect.isclass(answer) and issubclass(answer, Result):
                    functions[name] = value
    return functions


def pruned(value: Any, without: set[str]) -> Any:
    """JSON without the entries of these names, wherever they stand."""
    if isinstance(value, dict):
        return {key: pruned(part, without) for key, part in value.items() if key not in without}
    return [pruned(part, without) for part in value] if isinstance(value, list) else value


def assert_same(actual: Any, expected: Any, tolerance: float, where: str = "result") -> None:
    """Equal but for numbers, which may differ by a share of the largest of their list."""
    assert type(actual) is type(expected), where
    numbers = flat_numbers(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key, part in expected.items():
            assert_same(actual[key], part, tolerance, f"{where}[{key!r}]")
    elif numbers is not None:
        size = np.abs(numbers).max(initial=0.0)
        own = flat_numbers(actual)
        assert_allclose(own, numbers, rtol=0, atol=tolerance * size, err_msg=where)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, part in enumerate(expected):
            assert_same(actual[i], part, tolerance, f"{where}[{i}]")
    else:
        assert actual == expected, where


def flat_numbers(value: Any) -> list[float] | None:
    """All numbers of a number or of lists of lists of numbers; None for anything else."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list):
        return None
    parts = [flat_numbers(part) for part in value]
    return None if None in parts else [number for part in parts for number in part]


# ------------------------------------------------------------------ the table


def test_every_public_use_stands_in_the_table():
    tested = {use.function.__name__ for use in USES.values()}
    assert set(public_uses()) == tested


# ------------------------------------------------------------------ results


@NAMES
def test_a_result_is_frozen(name):
    result = found(name)
    assert isinstance(result, Result)
    assert is_dataclass(result)
    with pytest.raises(AttributeError):
        setattr(result, fields(result)[0].name, None)


@NAMES
def test_numbers_are_strict_json(name):
    told = found(name).to_json()
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text) == told


@NAMES
def test_a_section_has_a_title_a_sentence_and_blocks_that_are_strict_json(name):
    section = found(name).section()
    assert isinstance(section, Section)
    assert section.kind in USES[name].function.__name__
    assert section.title
    assert section.sentence.endswith(".")
    assert "nan" not in section.sentence
    assert section.blocks
    for block in section.blocks:
        told = block.to_json()
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["kind"] in {"table", "scatter", "lines", "bars", "gallery", "tokens"}


@NAMES
def test_a_table_has_a_cell_for_every_column(name):
    for block in found(name).section().to_json()["blocks"]:
        if block["kind"] == "table":
            assert block["rows"]
            assert {len(row) for row in block["rows"]} == {len(block["columns"])}


@NAMES
def test_a_result_shows_its_sentence(name):
    result = found(name)
    shown = " ".join(repr(result).split())
    assert result.section().sentence.split()[0] in shown
    assert type(result).__name__ in shown


# ------------------------------------------------------------------ nothing but the answer


@NAMES
def test_the_problem_is_left_as_it_was(name):
    problem = USES[name].case().problem
    model: nn.Module = problem.model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    theta, weights = problem.parameters.clone(), problem.weights.clone()
    data = problem.data.fingerprint()
    USES[name]()
    assert torch.equal(problem.parameters, theta)
    assert torch.equal(problem.weights, weights)
    assert problem.data.fingerprint() == data
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not problem.parameters.requires_grad


@NAMES
def test_no_random_number_is_drawn_from_a_global_generator(name):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    USES[name]()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@NAMES
def test_calling_twice_gives_equal_numbers(name):
    torch.manual_seed(7)
    again = USES[name]().to_json()
    assert pruned(again, OF_THE_MACHINE) == pruned(found(name).to_json(), OF_THE_MACHINE)


@NAMES
@pytest.mark.parametrize("size", [1, 5])
def test_the_size_of_batches_changes_nothing_but_rounding(name, size, monkeypatch):
    expected = pruned(found(name).to_json(), OF_THE_MACHINE | ROUNDING)
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: min(size, len(self)))
    monkeypatch.setattr("whence.calculus.products.jacobian_batch", lambda problem: size)
    actual = pruned(USES[name]().to_json(), OF_THE_MACHINE | ROUNDING)
    assert_same(actual, expected, USES[name].tolerance)
