"""Influence against closed forms, dense algebra and training again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from oracles import ridge_closed_form, slope_through_origin
from problems import ALL, CONVEX, REAL, Case
from whence.adapters import make_problem
from whence.calculus.gradients import measurement_gradients
from whence.core.batches import Batch
from whence.core.changes import removal
from whence.core.problem import Problem
from whence.curvature.cg import CG
from whence.curvature.dual import Dual
from whence.curvature.exact import Exact
from whence.curvature.identity import Identity
from whence.curvature.lissa import LiSSA
from whence.curvature.refined import Refined
from whence.errors import BadArgument, UnknownName, Unsupported
from whence.methods.influence import Influence

RIDGES = ["ridge", "ridge_free_intercept", "ridge_weighted"]
CONVENTIONS = pytest.mark.parametrize("renormalize", [False, True], ids=["fixed N", "renormalized"])


def case_of(name: str, renormalize: bool) -> Case:
    case = CONVEX[name]()
    return case.renormalized() if renormalize else case


def effects(case: Case, method: Influence, measurement: object = None) -> np.ndarray:
    return method.fit(case.problem).scores(case.queries, measurement).values


# ------------------------------------------------------------------ one removal, exactly


@CONVENTIONS
@pytest.mark.parametrize("name", RIDGES)
@pytest.mark.parametrize("change", ["linear", "finite"])
def test_the_prediction_of_ridge_changes_as_in_closed_form(name, renormalize, change):
    case = case_of(name, renormalize)
    theta = ridge_closed_form(case.oracle, np.ones(len(case.oracle)))
    without = np.stack([ridge_closed_form(case.oracle, w) for w in case.oracle.removals()])
    expected = (case.measured(without) - case.measured(theta)).T
    actual = effects(case, Influence("exact", removal="newton", change=change))
    assert_allclose(actual, expected, rtol=1e-9, atol=1e-10 * abs(expected).max())


@CONVENTIONS
@pytest.mark.parametrize("name", RIDGES)
def test_the_squared_error_of_ridge_changes_as_in_closed_form(name, renormalize):
    case = case_of(name, renormalize)
    x, y = case.query_design()
    oracle = case.oracle

    def errors(theta: np.ndarray) -> np.ndarray:
        return oracle.loss.value(oracle.predict(theta, x), y)

    before = errors(ridge_closed_form(oracle, np.ones(len(oracle))))
    after = [errors(ridge_closed_form(oracle, w)) for w in oracle.removals()]
    expected = np.stack(after, 1) - before[:, None]
    actual = effects(case, Influence("exact", removal="newton", change="finite"), "loss")
    assert_allclose(actual, expected, rtol=1e-9, atol=1e-10 * abs(expected).max())


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_newton_is_one_explicit_newton_step_without_the_example(name, renormalize):
    case = case_of(name, renormalize)
    theta = case.oracle.optimum()
    moved = case.oracle.newton_retrained() - theta
    expected = case.measurement_gradients(theta) @ moved.T
    actual = effects(case, Influence("exact", removal="newton"))
    assert_allclose(actual, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_a_finite_change_evaluates_the_measurement_after_the_newton_step(name, renormalize):
    case = case_of(name, renormalize)
    after = case.measured(case.oracle.newton_retrained())
    expected = (after - case.measured(case.oracle.optimum())).T
    actual = effects(case, Influence("exact", removal="newton", change="finite"))
    assert_allclose(actual, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_first_order_is_the_derivative_of_the_optimum(name, renormalize):
    """Minus d m / d w_i; 1e-6 is the error of central differences of step 1e-4."""
    case = case_of(name, renormalize)
    slopes = case.measurement_gradients(case.oracle.optimum())
    expected = -slopes @ case.oracle.derivative().T
    actual = effects(case, Influence("exact", removal="first_order"))
    assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * abs(expected).max())


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_newton_is_nearer_to_training_again_than_first_order(name, renormalize):
    case = case_of(name, renormalize)
    retrained = case.measured(case.oracle.retrained())
    actual = (retrained - case.measured(case.oracle.optimum())).T
    gaps = {
        removal: abs(effects(case, Influence("exact", removal=removal)) - actual).sum()
        for removal in ("first_order", "newton")
    }
    assert gaps["newton"] < 0.5 * gaps["first_order"]


@pytest.mark.parametrize("name", REAL)
def test_real_data_are_predicted_as_training_again_has_it(name):
    """Twenty removals of each: for ten queries the strongest example, and ten others."""
    case = REAL[name]()
    predicted = effects(case, Influence("exact"))
    others = np.random.default_rng(0).choice(len(case.problem), 10, replace=False)
    rows = np.union1d(abs(predicted).argmax(1), others)
    after = case.measured(case.oracle.retrained(rows))
    actual = (after - case.measured(case.oracle.optimum())).T
    pearson = np.corrcoef(predicted[:, rows].ravel(), actual.ravel())[0, 1]
    assert pearson >= 0.995
    assert 0.95 <= slope_through_origin(predicted[:, rows], actual) <= 1.05


# ------------------------------------------------------------------ beyond linear models


def tanh_network(theta: Tensor, x: Tensor) -> Tensor:
    """The network of `problems.mlp`, written out: 3 inputs, 4 tanh units, 1 output."""
    hidden = torch.tanh(x @ theta[:12].reshape(4, 3).T + theta[12:16])
    return hidden @ theta[16:20] + theta[20]


def tanh_objective(theta: Tensor, w: Tensor, *, renormalize: bool) -> Tensor:
    x, y = problems.mlp().problem.data.take(torch.arange(40))
    divisor = w.sum() if renormalize else len(w)
    data = (w * (tanh_network(theta, x) - y) ** 2).sum() / divisor
    return data + 0.5 * 0.05 * (theta**2).sum()


def tanh_slope(theta: Tensor, w: Tensor, renormalize: bool) -> Tensor:
    return torch.autograd.functional.jacobian(
        lambda t: tanh_objective(t, w, renormalize=renormalize), theta
    )


def tanh_hessian(theta: Tensor, w: Tensor, renormalize: bool) -> Tensor:
    return torch.autograd.functional.hessian(
        lambda t: tanh_objective(t, w, renormalize=renormalize), theta
    )


def tanh_optimum(w: Tensor, renormalize: bool) -> Tensor:
    theta = problems.mlp().problem.parameters
    for _ in range(6):
        slope = tanh_slope(theta, w, renormalize)
        theta = theta - torch.linalg.solve(tanh_hessian(theta, w, renormalize), slope)
    assert tanh_slope(theta, w, renormalize).norm() < 1e-12
    return theta


@CONVENTIONS
def test_first_order_is_the_derivative_of_the_optimum_of_a_network(renormalize):
    """Differences of step 1e-4 on a bent function: their error is about 1e-6."""
    case = problems.mlp()
    case = case.renormalized() if renormalize else case
    actual = effects(case, Influence(Exact(matrix="hessian"), removal="first_order"))
    for i in (0, 11, 39):
        nudge = torch.zeros(40, dtype=torch.float64)
        nudge[i] = 1e-4
        up = tanh_network(tanh_optimum(1 + nudge, renormalize), case.queries[0])
        down = tanh_network(tanh_optimum(1 - nudge, renormalize), case.queries[0])
        expected = -(up - down) / 2e-4
        assert_allclose(actual[:, i], expected, rtol=1e-5, atol=1e-6 * abs(actual).max())


@CONVENTIONS
def test_newton_on_a_network_takes_out_the_gauss_newton_part_of_the_example(renormalize):
    case = problems.mlp()
    case = case.renormalized() if renormalize else case
    theta = case.problem.parameters
    count = len(case.problem) - renormalize
    x, y = case.problem.data.take(torch.arange(40))
    jac = torch.autograd.functional.jacobian(lambda t: tanh_network(t, x), theta)
    gradients = 2 * (tanh_network(theta, x) - y)[:, None] * jac
    mean = gradients.mean(0) if renormalize else 0
    eye = torch.eye(21).double()
    data = tanh_hessian(theta, torch.ones(40).double(), False) - 0.05 * eye
    full = 40 / count * data + 0.05 * eye
    rows = [
        torch.linalg.solve(full - 2 * torch.outer(j, j) / count, (g - mean) / count)
        for j, g in zip(jac, gradients, strict=True)
    ]
    slopes = torch.autograd.functional.jacobian(lambda t: tanh_network(t, case.queries[0]), theta)
    expected = (slopes @ torch.stack(rows).T).numpy()
    actual = effects(case, Influence(Exact(matrix="hessian"), removal="newton"))
    assert_allclose(actual, expected, rtol=1e-9, atol=1e-11 * abs(expected).max())


# ------------------------------------------------------------------ leverage


class Bent(nn.Module):
    """f = x theta + 3/4 theta^2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.theta + 0.75 * self.theta**2


def test_where_the_newton_step_does_not_exist_first_order_stands_and_is_counted():
    """At theta = 0 the third example bends R downwards: H = (2 + 2 - 3) / 3 = 1/3.

    Each of the first two has the leverage (2/3) / (1/3) = 2, so that without it R has no minimum.
    """
    x, y = torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([0.1, -0.1, 1.0]).double()
    problem = make_problem(Bent(), (x, y), loss="mse")
    fitted = Influence(Exact(matrix="hessian"), removal="newton").fit(problem)
    scores = fitted.scores((torch.ones(1).double(), torch.zeros(1).double()))
    assert scores.report["leverage_fallbacks"] == 2
    assert scores.report["largest_leverage"] == pytest.approx(2, rel=1e-12)
    first_order = [-0.2, 0.2, 0.0]  # (1/3) * 1 * 3 * gradient of the loss
    assert_allclose(scores.values[0], first_order, atol=1e-14)


def test_examples_that_alone_carry_a_feature_have_no_wild_effects():
    """Without decay their leverage is one and their residual zero: 0 / 0, but for rounding."""
    random = np.random.default_rng(3)
    x = np.hstack([random.standard_normal((20, 3)), np.zeros((20, 12))])
    x[np.arange(12), np.arange(3, 15)] = random.uniform(0.1, 3, 12)
    y = random.standard_normal(20)
    model = nn.Linear(15, 1, bias=False).double()
    model.weight.data[:] = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0])
    problem = make_problem(model, (x, y), loss="mse")
    scores = Influence("exact", removal="newton").fit(problem).scores((x[:12], y[:12]))
    assert scores.report["largest_leverage"] == pytest.approx(1)
    assert_allclose(scores.values[:, :12], 0, atol=1e-8)


def test_leverages_of_a_convex_problem_stay_below_one():
    scores = (
        Influence("exact")
        .fit(problems.multinomial().problem)
        .scores(problems.multinomial().queries)
    )
    assert scores.report["leverage_fallbacks"] == 0
    assert 0 < scores.report["largest_leverage"] < 1


# ------------------------------------------------------------------ self-influence

OWN_RECIPES = {
    "exact, first order": Influence("exact", removal="first_order"),
    "exact, newton": Influence("exact", removal="newton"),
    "exact, finite": Influence("exact", removal="newton", change="finite"),
    "exact, first order, finite": Influence("exact", removal="first_order", change="finite"),
    "dual, newton": Influence(Dual(damping=0.01), removal="newton"),
    "dual, first order": Influence(Dual(damping=0.01), removal="first_order"),
    "cg": Influence(CG(tolerance=1e-12)),
    "cg, finite": Influence(CG(tolerance=1e-12), change="finite"),
    "identity": Influence("identity"),
}


@CONVENTIONS
@pytest.mark.parametrize("recipe", OWN_RECIPES)
@pytest.mark.parametrize(
    "name", ["ridge_weighted", "ridge_free_intercept", "class_weighted", "multinomial", "tied"]
)
def test_self_influence_is_the_diagonal_of_explaining_the_training_data(name, recipe, renormalize):
    case = problems.ALL[name]()
    problem = (case.renormalized() if renormalize else case).problem
    fitted = OWN_RECIPES[recipe].fit(problem)
    everything = problem.data.take(torch.arange(len(problem)))
    expected = np.diag(fitted.scores(everything, "loss").values)
    actual = fitted.self_influence()
    assert actual.shape == (len(problem),)
    assert_allclose(actual, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize("recipe", ["exact, first order", "dual, first order", "cg"])
@pytest.mark.parametrize("name", ["ridge", "multinomial", "class_weighted"])
def test_first_order_self_influence_is_never_negative(name, recipe):
    assert (OWN_RECIPES[recipe].fit(CONVEX[name]().problem).self_influence() >= 0).all()


def test_self_influence_of_a_logistic_regression_is_the_formula_of_the_paper():
    """(1/N) sigma(-y f)^2 x^T H^-1 x, for labels y in {-1, +1}."""
    case = problems.logistic()
    oracle, theta = case.oracle, case.oracle.optimum()
    inverse = np.linalg.inv(oracle.hessian(theta))
    sigma = 1 - np.exp(-oracle.losses(theta))
    expected = sigma**2 * np.einsum("id,de,ie->i", oracle.x, inverse, oracle.x) / 60
    actual = Influence("exact", removal="first_order").fit(case.problem).self_influence()
    assert_allclose(actual, expected, rtol=1e-9)


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_self_influence_is_what_training_without_the_example_does_to_its_loss(name, renormalize):
    """Exactly for a squared error; for the others within what one Newton step leaves."""
    case = case_of(name, renormalize)
    before = case.oracle.losses(case.oracle.optimum())
    after = np.diag([case.oracle.losses(theta) for theta in case.oracle.retrained()])
    method = Influence("exact", removal="newton", change="finite")
    predicted = method.fit(case.problem).self_influence()
    if name in RIDGES:
        assert_allclose(predicted, after - before, rtol=1e-8, atol=1e-12)
    assert np.corrcoef(predicted, after - before)[0, 1] > 0.995
    assert 0.95 <= slope_through_origin(predicted, after - before) <= 1.05


@CONVENTIONS
@pytest.mark.parametrize("name", RIDGES)
def test_outputs_move_as_training_without_the_example_moves_them(name, renormalize):
    case = case_of(name, renormalize)
    oracle = case.oracle
    before = oracle.predict(oracle.optimum())
    after = [oracle.predict(theta)[i] for i, theta in enumerate(oracle.retrained())]
    problem = case.problem
    moves, _ = Influence("exact", removal="newton").fit(problem).left_out(everything(problem))
    assert_allclose(moves, np.stack(after) - before, rtol=1e-8, atol=1e-12)


def everything(problem: Problem) -> Batch:
    return problem.batch(torch.arange(len(problem)))


@CONVENTIONS
@pytest.mark.parametrize("name", CONVEX)
def test_what_the_rest_leaves_open_is_its_own_inverse_hessian(name, renormalize):
    """J_i (D A_i)^+ J_i^T, with the Hessian of the objective without example i written out."""
    case = case_of(name, renormalize)
    oracle, theta = case.oracle, case.oracle.optimum()
    count = len(oracle)
    _, spreads = (
        Influence("exact", removal="newton").fit(case.problem).left_out(everything(case.problem))
    )
    for i in (0, 5, count - 1):
        w = oracle.removals()[i]
        inverse = np.linalg.pinv(oracle.hessian(theta, w), rcond=1e-10, hermitian=True)
        jac = np.kron(np.eye(oracle.outputs), oracle.x[i])
        expected = jac @ inverse @ jac.T / (count - renormalize)
        if name == "multinomial_free_intercept":  # a shift of all outputs is open to any size
            centre = np.eye(3) - 1 / 3
            expected, found = centre @ expected @ centre, centre @ spreads[i].numpy() @ centre
        else:
            found = spreads[i]
        assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * abs(expected).max())


def test_an_example_of_base_weight_zero_has_no_self_influence():
    for recipe in ("exact, newton", "exact, first order", "cg"):
        own = OWN_RECIPES[recipe].fit(problems.class_weighted().problem).self_influence()
        assert own[3] == 0
        assert own[4] != 0


# ------------------------------------------------------------------ the choices


def test_exact_conjugate_gradients_and_full_batch_lissa_agree():
    case = problems.multinomial()
    exact = effects(case, Influence("exact", removal="first_order"))
    cg = effects(case, Influence(CG(tolerance=1e-11)))
    lissa = effects(case, Influence(LiSSA(samples=None, depth=400)))
    scale = abs(exact).max(1, keepdims=True)
    assert (abs(cg - exact) <= 1e-6 * scale).all()
    assert (abs(lissa - exact) <= 1e-4 * scale).all()


def test_identity_is_the_dot_product_of_gradients():
    case = problems.multinomial()
    theta = case.oracle.optimum()
    expected = case.measurement_gradients(theta) @ case.oracle.gradients(theta).T / 60
    scores = Influence("identity").fit(case.problem).scores(case.queries)
    assert_allclose(scores.values, expected, rtol=1e-9, atol=1e-14)
    assert not scores.is_calibrated


def test_auto_takes_newton_where_the_curvature_offers_leverage():
    problem = problems.ridge().problem
    assert Influence("exact").fit(problem).report["removal"] == "newton"
    assert Influence(Identity()).fit(problem).report["removal"] == "first_order"


def test_auto_stays_with_first_order_where_newton_costs_too_much(monkeypatch):
    monkeypatch.setattr("whence.methods.influence.NEWTON_OPERATIONS", 10.0)
    problem = problems.ridge().problem
    assert Influence("exact").fit(problem).report["removal"] == "first_order"
    assert Influence("exact", removal="newton").fit(problem).report["removal"] == "newton"


@pytest.mark.parametrize("outputs", [3, 101])
def test_newton_is_refused_with_its_reason(outputs, monkeypatch):
    monkeypatch.setattr("whence.methods.influence.NEWTON_OUTPUTS", 2)
    problem = problems.multinomial().problem
    with pytest.raises(Unsupported, match="outputs"):
        Influence("exact", removal="newton").fit(problem)
    with pytest.raises(Unsupported, match="leverage"):
        Influence("identity", removal="newton").fit(problem)


def test_newton_without_anything_left_is_refused():
    problem = problems.rearranged(problems.ridge(), torch.tensor([0]))
    alone = replace(problem, renormalize=True)
    with pytest.raises(Unsupported, match="nothing remains"):
        Influence("exact", removal="newton").fit(alone)


@pytest.mark.parametrize("option", [{"removal": "second"}, {"change": "big"}])
def test_an_unknown_choice_is_refused(option):
    with pytest.raises(BadArgument, match="choices"):
        Influence(**option).fit(problems.ridge().problem)


def test_an_unknown_curvature_is_refused():
    with pytest.raises(UnknownName, match="exact"):
        Influence("exakt").fit(problems.ridge().problem)


# ------------------------------------------------------------------ what the scores say


def test_the_baseline_is_the_measurement_as_trained():
    case = problems.multinomial()
    scores = Influence("exact").fit(case.problem).scores(case.queries)
    assert_allclose(scores.baseline, case.measured(case.oracle.optimum()), rtol=1e-12)


def test_the_report_tells_how_far_the_model_is_from_its_optimum():
    case = problems.logistic()
    moved = case.problem.at(case.problem.parameters + 0.1)
    theta = case.oracle.optimum() + 0.1
    expected = np.linalg.norm(case.oracle.gradient(theta, np.ones(60)))
    report = Influence("exact").fit(moved).scores(case.queries).report
    assert report["gradient_norm"] == pytest.approx(expected, rel=1e-10)


def test_scores_know_their_examples_and_where_they_come_from():
    case = problems.logistic()
    scores = Influence("exact").fit(case.problem).scores(case.queries)
    assert scores.values.shape == (6, 60)
    assert scores.values.dtype == np.float64
    assert list(scores.train_ids) == list(case.problem.data.ids)
    assert scores.report["fingerprint"]["data"] == case.problem.fingerprint()["data"]
    assert scores.report["parameters_covered"] == scores.report["parameters_total"] == 5


# ------------------------------------------------------------------ away from the optimum


def case_away(name: str, renormalize: bool) -> Case:
    """Problems away from their optimum; the parameters are off by a tenth, or never trained."""
    case = {"mlp_untrained": problems.mlp_untrained, **CONVEX, "conv": problems.conv}[name]()
    if name != "mlp_untrained":
        noise = torch.randn(case.problem.size, generator=torch.Generator().manual_seed(1))
        case = replace(case, problem=case.problem.at(case.problem.parameters * (1 + 0.1 * noise)))
    return replace(case, problem=replace(case.problem, renormalize=renormalize))


def newton_step(problem: Problem, w: Tensor, damping: float) -> Tensor:
    """-(H + damping I)^-1 grad R with the weights w, from the derivatives of one scalar."""
    slope, hessian = (
        derivative(lambda theta: problem.objective(theta, w), problem.parameters)
        for derivative in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian)
    )
    return -torch.linalg.solve(hessian + damping * torch.eye(problem.size).double(), slope)


def corrected(damping: float = 2.0) -> Influence:
    """With a damping that makes the Hessian positive also where training has not begun."""
    curvature = Exact(matrix="hessian", damping=damping)
    return Influence(curvature, "first_order", correct_nonconvergence=True)


@CONVENTIONS
@pytest.mark.parametrize("name", ["mlp_untrained", "conv", "class_weighted"])
def test_corrected_effects_are_the_derivative_of_the_newton_step(name, renormalize):
    """Minus d (grad m . N) / d w_i, by central differences of step 1e-4: their error is 1e-8."""
    case = case_away(name, renormalize)
    problem = case.problem
    actual = effects(case, corrected())
    measured = problem.measurement(None)
    slopes = measurement_gradients(problem, measured, problem.queries(case.queries))[1]
    for i in (0, 4, 7):
        nudge = 1e-4 * (torch.arange(len(problem)) == i).double()
        up, down = (newton_step(problem, w, damping=2.0) for w in (1 + nudge, 1 - nudge))
        expected = -slopes @ (up - down) / 2e-4
        assert_allclose(actual[:, i], expected, rtol=1e-6, atol=1e-6 * abs(actual).max())


@CONVENTIONS
def test_nothing_is_corrected_at_an_optimum(renormalize):
    case = case_of("multinomial", renormalize)  # its gradient is rounding
    expected = effects(case, Influence(Exact(matrix="hessian", damping=0.1), "first_order"))
    assert_allclose(effects(case, corrected(0.1)), expected, rtol=1e-7, atol=1e-10)


@CONVENTIONS
def test_correction_of_ridge_finds_its_effects_from_anywhere(renormalize):
    """For a quadratic objective one Newton step leads to the optimum, wherever it begins."""
    case = case_of("ridge", renormalize)
    away = replace(case, problem=case.problem.at(case.problem.parameters + 1))
    expected = effects(case, Influence(Exact(matrix="hessian"), "first_order"))
    assert_allclose(effects(away, corrected(0.0)), expected, rtol=1e-9, atol=1e-12)
    plain = effects(away, Influence(Exact(matrix="hessian"), "first_order"))
    assert abs(plain - expected).max() > 0.5 * abs(expected).max()


@CONVENTIONS
def test_a_corrected_removal_of_two_is_the_sum_of_their_effects(renormalize):
    case = case_away("mlp_untrained", renormalize)
    fitted = corrected().fit(case.problem)
    both = fitted.respond(removal(np.array([2, 9])), case.queries)
    singles = fitted.scores(case.queries).values
    assert_allclose(both.values, singles[:, 2] + singles[:, 9], rtol=1e-9, atol=1e-13)
    assert both.report["response"] == "first_order"


def test_the_correction_says_how_far_training_would_have_gone():
    case = case_away("mlp_untrained", False)
    report = corrected().fit(case.problem).report
    step = newton_step(case.problem, torch.ones(len(case.problem)).double(), damping=2.0)
    assert report["nonconvergence_step"] == pytest.approx(float(step.norm()), rel=1e-9)


def test_what_is_not_corrected_is_refused():
    problem = problems.multinomial().problem
    with pytest.raises(Unsupported, match="of first order"):
        Influence("exact", removal="newton", correct_nonconvergence=True).fit(problem)
    fitted = Influence("exact", correct_nonconvergence=True).fit(problem)
    assert fitted.report["removal"] == "first_order"
    with pytest.raises(Unsupported, match="correct_nonconvergence"):
        fitted.self_influence()


# ------------------------------------------------------------------ fewer solves than queries


def many(case: Case) -> tuple[Tensor, Tensor]:
    """The training examples as queries, half of them a little moved, so that they differ."""
    x, y = case.problem.data.take(torch.arange(len(case.problem)))
    return torch.cat([x, x + 0.05 * x.roll(1, 0)]), torch.cat([y, y])


COMPRESSED = [
    ("mlp", Exact(damping=0.05, matrix="ggn"), "linear", "first_order"),
    ("mlp", Exact(damping=0.05, matrix="ggn"), "finite", "newton"),
    ("mlp", CG(damping=0.05, tolerance=1e-9), "linear", "first_order"),
    ("mlp", Refined(damping=0.05, tolerance=1e-9), "linear", "first_order"),
    ("mlp", Refined(damping=0.05, tolerance=1e-9), "finite", "first_order"),
    ("mlp", LiSSA(damping=0.05, matrix="ggn", depth=30, repeats=1), "linear", "first_order"),
]


@pytest.mark.parametrize("share", [0.3, 0.05])
@pytest.mark.parametrize(("name", "curvature", "change", "removal"), COMPRESSED)
def test_compressed_queries_lose_no_more_than_the_report_says(
    name, curvature, change, removal, share
):
    """The loss is of effects over the length that EK-FAC expects of each query's."""
    case = ALL[name]()
    whole = Influence(curvature, removal=removal, change=change).fit(case.problem)
    few = Influence(curvature, removal=removal, change=change, compress=share).fit(case.problem)
    expected, found = whole.scores(many(case)), few.scores(many(case))
    rank, told = found.report["compressed_rank"], found.report["compressed_error"]
    assert rank < len(expected.values) / 2
    sizes = np.sqrt((expected.values**2).mean(1, keepdims=True))
    error = np.sqrt((((found.values - expected.values) / sizes) ** 2).mean())
    assert 0 < error <= 1.5 * told, "half as much again for the other lengths"
    assert told <= 5 * share
    assert not found.report["warnings"]


def test_queries_asked_many_times_are_solved_for_once():
    case = ALL["mlp"]()
    x, y = (part.repeat(30, *[1] * (part.ndim - 1)) for part in case.queries)
    few = Influence(CG(tolerance=1e-9), compress=1e-5).fit(case.problem).scores((x, y))
    assert few.report["compressed_rank"] == len(case.queries[1])
    expected = Influence(CG(tolerance=1e-9)).fit(case.problem).scores(case.queries).values
    assert_allclose(few.values, np.tile(expected, (30, 1)), atol=1e-6 * abs(expected).max())


def test_few_queries_are_not_compressed():
    case = ALL["mlp"]()
    few = Influence(CG(), compress=0.5).fit(case.problem).scores(case.queries)
    assert "compressed_rank" not in few.report
    assert np.array_equal(few.values, effects(case, Influence(CG())))


def test_a_loss_that_nobody_expected_is_warned_about():
    """A preview that knows nothing of the scale of directions chooses the wrong ones."""
    case = ALL["mlp"]()
    fitted = Influence(Exact(damping=1e-6, matrix="ggn"), removal="first_order", compress=0.1)
    found = fitted.fit(case.problem)
    blind = replace(found, preview=found.preview.damped(1e6))
    scores = blind.scores(many(case))
    assert scores.report["compressed_error"] > 0.5
    assert "Lower compress" in scores.report["warnings"][-1]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(BadArgument, match="compress"):
        Influence("cg", compress=share).fit(ALL["mlp"]().problem)


@pytest.mark.parametrize("renormalize", [False, True])
def test_a_group_leaves_a_model_without_a_regulariser(renormalize):
    """Least squares: one Newton step is the refit."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((30, 3)), random.standard_normal(30)
    queries = random.standard_normal((2, 3))
    model = torch.nn.Linear(3, 1, bias=False).double()
    whole = np.linalg.lstsq(x, y, rcond=None)[0]
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(whole[None]))
    problem = make_problem(model, (x, y), loss="mse", renormalize=renormalize)
    response = Influence(Exact()).fit(problem).respond(removal(np.array([1, 5, 6])), queries)
    rest = np.delete(np.arange(30), [1, 5, 6])
    refit = np.linalg.lstsq(x[rest], y[rest], rcond=None)[0]
    assert_allclose(response.values, queries @ (refit - whole), rtol=1e-8)
