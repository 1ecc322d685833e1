"""One fit at several dampings: the same as fitting again, and what is said of it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import problems
from whence.curvature.cg import CG
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.refined import Refined
from whence.errors import BadArgument, NegativeCurvature, Unsupported
from whence.explanation import explain, fit
from whence.methods.influence import Influence
from whence.uses.damping import scan_damping


def exact(damping):
    return Exact(matrix="ggn", damping=damping)


def ekfac(damping):
    return EKFAC(damping=damping)


def refined(damping):
    return Refined(damping=damping)


@pytest.mark.parametrize("recipe", [exact, ekfac, refined])
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_scan_gives_what_fitting_again_gives(recipe, renormalize):
    case = problems.mlp()
    problem = replace(case.problem, renormalize=renormalize)
    first = Influence(recipe(0.01), removal="first_order")
    scan = scan_damping(problem, case.queries, [0.001, 0.1], method=first)
    for damping, values in zip(scan.dampings, scan.values, strict=True):
        again = Influence(recipe(damping), removal="first_order")
        expected = explain(problem, case.queries, method=again).values
        assert_allclose(values, expected, rtol=2e-2, atol=2e-3 * np.abs(expected).max())
    assert scan.own == 0.01


def test_by_default_multiples_of_the_own_damping_are_scanned():
    case = problems.mlp()
    scan = scan_damping(case.problem, case.queries)
    own = fit(case.problem, "ekfac").report["damping"]
    assert_allclose(scan.dampings, own * np.array([0.01, 0.1, 1, 10, 100]))
    same = scan.numbers()[2]
    assert same["rank"] == pytest.approx(1)
    assert same["size"] == pytest.approx(1)
    assert [row["size"] for row in scan.numbers()] == sorted(
        (row["size"] for row in scan.numbers()), reverse=True
    )


def test_what_has_no_damping_to_change_is_refused():
    case = problems.multinomial()
    with pytest.raises(BadArgument, match="uses no damping"):
        scan_damping(case.problem, case.queries, method="exact")
    with pytest.raises(BadArgument, match="dampings"):
        scan_damping(case.problem, case.queries, [-1.0])
    with pytest.raises(BadArgument, match="dampings"):
        scan_damping(case.problem, case.queries, [])
    with pytest.raises(Unsupported, match="cannot change its damping"):
        scan_damping(case.problem, case.queries, [0.1], method=Influence(CG()))
    saddle = problems.mlp_untrained()
    at_saddle = Influence(Exact(matrix="hessian", damping=10.0))
    with pytest.raises(NegativeCurvature, match="Give a damping above"):
        scan_damping(saddle.problem, saddle.queries, [0.0], method=at_saddle)
