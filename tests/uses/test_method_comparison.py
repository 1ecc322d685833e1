"""Methods beside one set of retrainings: the better ones first, failures in rows of their own."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import problems
import whence
from whence import methods
from whence.errors import BadArgument, UnknownName
from whence.explanation import explain, fit
from whence.methods import Influence
from whence.uses.method_comparison import CHEAP, MethodComparison, compare_methods
from whence.verification import verify


@pytest.fixture(scope="module")
def compared() -> MethodComparison:
    case = problems.ridge()
    newton = Influence(removal="newton")
    return compare_methods(
        case.problem,
        case.queries,
        {"newton": newton, "fitted": fit(case.problem, newton), "bm25": "bm25"},
        subsets=20,
        fraction=0.8,
    )


def test_every_method_is_held_against_the_retrainings_of_verify(compared):
    case = problems.ridge()
    scores = explain(case.problem, case.queries, method=Influence(removal="newton"))
    expected = verify(case.problem, scores, subsets=20, fraction=0.8)
    assert compared["newton"].lds == pytest.approx(expected.lds)
    np.testing.assert_allclose(compared["newton"].actual, expected.actual, rtol=1e-9, atol=1e-12)
    assert compared["fitted"].lds == compared["newton"].lds


def test_the_most_faithful_stand_first_and_baselines_are_among_them(compared):
    reached = [one.lds for one in compared.methods if one.check is not None]
    assert reached == sorted(reached, reverse=True)
    assert compared.methods[0].name in ("newton", "fitted")
    added = {one.name for one in compared.methods if one.is_baseline}
    assert added | set(compared.left_out) == set(CHEAP) & set(methods.names()) - {"bm25"}
    assert {"graddot", "loss"} <= added


def test_a_method_that_fails_is_a_row_with_its_error(compared):
    failed = compared.methods[-1]
    assert (failed.name, failed.check, failed.is_baseline) == ("bm25", None, False)
    assert failed.error.split(":")[0] in ("Unsupported", "BadData", "BadArgument")
    table = compared.section().blocks[0]
    assert table.rows[-1][-1] == failed.error
    with pytest.raises(BadArgument, match=failed.error[:20]):
        compared["bm25"]


def test_whatever_goes_wrong_inside_a_method_is_told_in_its_row():
    case = problems.ridge()

    class Broken(methods.Method):
        def fit(self, problem):
            raise RuntimeError("out of memory")

    found = compare_methods(case.problem, case.queries, {"broken": Broken()}, subsets=8)
    assert found.methods[-1].error == "RuntimeError: out of memory"


def test_fidelity_stands_beside_its_cost(compared):
    told = compared.to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    newton = next(one for one in told["methods"] if one["name"] == "newton")
    assert newton["fit_seconds"] > 0
    assert newton["seconds"] > 0
    assert newton["memory_bytes"] > 0
    assert newton["unit"] == problems.ridge().problem.measurement().unit
    assert told["noise_ceiling"] == pytest.approx(1)
    assert "best: linear datamodeling score" in told["sentence"]
    table, cost = compared.section().blocks
    assert len(table.rows) == len(compared.methods)
    assert {point["group"] for point in cost.points} >= {"newton", "graddot"}


def test_networks_are_compared_under_several_seeds():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=random).double()
    recipe = whence.Training(lambda: nn.Linear(3, 2).double(), lr=0.05, epochs=5, batch_size=8)
    problem = whence.make_problem(recipe, (x, (x[:, 0] > 0).long()), loss="cross_entropy")
    found = compare_methods(problem, x[:3] + 1, ["exact"], subsets=10, measurement="loss")
    assert found.truth.seeds == 2
    assert 0 < found.noise_ceiling <= 1
    assert found.to_json()["measurement"] == "loss"


def test_a_method_that_does_not_exist_is_refused_before_anything_is_trained():
    case = problems.ridge()
    with pytest.raises(UnknownName, match="magick"):
        compare_methods(case.problem, case.queries, ["exact", "magick"])
    with pytest.raises(BadArgument, match="No method"):
        compare_methods(case.problem, case.queries, [])
