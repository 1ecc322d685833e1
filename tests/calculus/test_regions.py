from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from problems import Case
from whence.adapters import make_problem
from whence.calculus.regions import (
    MOST_FEATURES,
    SAMPLES,
    STEPS,
    Measured,
    grad_cam,
    import_captum,
    integrated_gradients,
    local_model,
)
from whence.core.problem import Problem
from whence.errors import NonFinite, Unsupported

pytestmark = pytest.mark.skipif(
    find_spec("captum") is None, reason="needs captum: pip install 'whence[schools]'"
)

SINGLE = 1e-6
"""captum keeps the weights of the integral, and everything about LIME, in float32."""


def first(problem: Problem, queries: object, measurement: object = None) -> Measured:
    """The measurement of the first of some queries."""
    one = problem.queries(tuple(part[:1] for part in queries))
    return Measured(problem, problem.measurement(measurement), one)


def of_case(case: Case, measurement: object = None) -> Measured:
    return first(case.problem, case.queries, measurement)


def values(measured: Measured, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return measured(inputs)


def a_start(measured: Measured) -> Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(measured.asked.inputs.shape, generator=random, dtype=torch.float64)


# ------------------------------------------------------------------ integrated gradients


@pytest.mark.parametrize("case", [problems.mlp, problems.conv, problems.mlp_untrained])
@pytest.mark.parametrize("measurement", [None, "loss"])
def test_attributions_add_up_to_the_difference_from_the_baseline(case, measurement):
    measured = of_case(case(), measurement)
    start = a_start(measured)
    found = integrated_gradients(measured, start)
    difference = float(values(measured, measured.asked.inputs) - values(measured, start))
    size = abs(found.values).sum()
    assert found.is_complete
    assert_allclose(found.difference, difference, rtol=1e-12)
    assert_allclose(found.values.sum(), difference, atol=SINGLE * size)
    assert_allclose(found.residual, found.values.sum() - difference, atol=1e-12 * size)


def test_a_linear_measurement_is_shared_out_by_coefficient_times_difference():
    case = problems.multinomial()
    measured = of_case(case, "logit")
    start = a_start(measured)
    weight = case.problem.model.weight.detach()[case.queries[1][0]]
    expected = weight * (measured.asked.inputs - start)[0]
    found = integrated_gradients(measured, start)
    assert_allclose(found.values, expected, rtol=SINGLE)
    assert found.steps == STEPS[0]


def test_a_squared_measurement_is_shared_out_by_the_mean_slope_on_the_way():
    """m = f^2 with f linear: the integral of 2 f(b + a d) w d is (f(x) + f(b)) w d."""
    case = problems.ridge()
    measured = of_case(case, lambda outputs, targets: outputs[:, 0] ** 2)
    start = a_start(measured)
    with torch.no_grad():
        ends = case.problem.model(torch.cat([measured.asked.inputs, start])).sum()
        slope = ends * case.problem.model.weight[0]
    expected = slope * (measured.asked.inputs - start)[0]
    assert_allclose(integrated_gradients(measured, start).values, expected, rtol=SINGLE)


def halfway(case: Case, measured: Measured, start: Tensor) -> tuple[float, float]:
    """The output in the middle between the baseline and the query, and the way in between."""
    with torch.no_grad():
        ends = case.problem.model(torch.cat([start, measured.asked.inputs]))[:, 0]
    return float(ends.mean()), float(ends[1] - ends[0])


def test_a_steep_measurement_takes_more_steps_until_it_adds_up():
    case = problems.ridge()
    start = a_start(of_case(case))
    middle, way = halfway(case, of_case(case), start)
    measured = of_case(case, lambda outputs, _: torch.tanh(200 * (outputs[:, 0] - middle) / way))
    found = integrated_gradients(measured, start)
    assert found.steps > STEPS[0]
    assert found.is_complete


def test_a_measurement_that_jumps_does_not_add_up_and_says_so():
    case = problems.ridge()
    start = a_start(of_case(case))
    middle, way = halfway(case, of_case(case), start)
    measured = of_case(case, lambda outputs, _: outputs[:, 0] + way * (outputs[:, 0] > middle))
    found = integrated_gradients(measured, start)
    assert found.steps == STEPS[-1]
    assert not found.is_complete
    assert_allclose(abs(found.residual), abs(way), rtol=SINGLE)


def test_a_derivative_that_is_no_number_is_refused():
    case = problems.ridge()
    start = a_start(of_case(case))
    middle, _ = halfway(case, of_case(case), start)
    measured = of_case(case, lambda outputs, _: torch.log(outputs[:, 0] - middle))
    with pytest.raises(NonFinite, match="is not a number") as error:
        integrated_gradients(measured, start)
    assert "baseline" in error.value.remedy


def test_a_model_that_rounds_its_inputs_has_no_attributions():
    class Rounding(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.detach().round())

    data = torch.randn(8, 3), torch.arange(8) % 2
    problem = make_problem(Rounding(3, 2).eval(), data, loss="cross_entropy")
    measured = first(problem, data)
    with pytest.raises(Unsupported, match="no derivative with respect to the inputs"):
        integrated_gradients(measured, torch.zeros(1, 3))


# ------------------------------------------------------------------ Grad-CAM


def cam_by_hand(model: nn.Module, image: Tensor, layer: nn.Module, measured: Measured) -> Tensor:
    """Sum over channels of activation times mean derivative, by autograd on the model itself."""
    kept: list[Tensor] = []

    def keep(*args: object) -> None:
        kept.append(args[2])
        args[2].retain_grad()

    handle = layer.register_forward_hook(keep)
    outputs = model(image.clone().requires_grad_(True))
    handle.remove()
    measured.of(outputs, measured.asked.targets).sum().backward()
    (activation,) = kept
    mean = activation.grad.mean((2, 3), keepdim=True)
    return (activation * mean).sum(1)[0].detach()


def test_grad_cam_weighs_each_channel_by_its_mean_derivative():
    case = problems.conv()
    measured = of_case(case)
    found = grad_cam(measured, (6, 6))
    twin = problems._seeded(problems.ConvNet)
    twin.load_state_dict(case.problem.model.state_dict())
    expected = cam_by_hand(twin, measured.asked.inputs, twin.features[2], measured)
    assert found.layer == "features.2"
    assert_allclose(found.values, expected, rtol=1e-10)
    assert found.picture.shape == (6, 6)


def test_grad_cam_uses_the_parameters_of_the_problem_and_not_those_of_the_live_module():
    case = problems.conv()
    moved = case.problem.parameters * 1.3 + 0.1
    measured = first(case.problem.at(moved), case.queries)
    twin = problems._seeded(problems.ConvNet)
    nn.utils.vector_to_parameters(moved, twin.parameters())
    expected = cam_by_hand(twin, measured.asked.inputs, twin.features[2], measured)
    found = grad_cam(measured, (6, 6))
    assert_allclose(found.values, expected, rtol=1e-10)
    assert abs(found.values - grad_cam(of_case(case), (6, 6)).values).max() > 0.01


class Wiring(nn.Module):
    """Convolutions whose order in the module is not the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(2, 2, 3, padding=1)
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(2, 2)
        self.unused = nn.Conv2d(1, 1, 1)
        self.squash = nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.squash(self.second(self.squash(self.first(image))))
        return self.head(hidden.mean((2, 3)))


def test_the_layer_is_the_last_convolution_that_runs_also_before_an_in_place_step():
    model = problems._seeded(Wiring)
    data = torch.randn(8, 1, 5, 5, dtype=torch.float64), torch.arange(8) % 2
    measured = first(make_problem(model, data, loss="cross_entropy", parameters="*"), data)
    found = grad_cam(measured, (5, 5))
    model.squash.inplace = False
    expected = cam_by_hand(model, measured.asked.inputs, model.second, measured)
    assert found.layer == "second"
    assert_allclose(found.values, expected, rtol=1e-10)


def test_a_model_without_a_convolution_has_no_grad_cam():
    assert grad_cam(of_case(problems.digits_one_seven()), (8, 8)) is None


def test_the_hooks_are_gone_also_when_the_model_fails():
    model = problems._seeded(problems.ConvNet)
    data = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    problem = make_problem(model, data, loss="cross_entropy")

    def fail(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    measured = first(problem, data, fail)
    with pytest.raises(ZeroDivisionError):
        grad_cam(measured, (6, 6))
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------ LIME


def test_lime_recovers_the_coefficients_of_a_linear_model():
    case = problems.multinomial()
    measured = of_case(case, "logit")
    start = a_start(measured)
    found = local_model(measured, start, np.arange(4), seed=0)
    weight = case.problem.model.weight.detach()[case.queries[1][0]]
    expected = weight * (measured.asked.inputs - start)[0]
    assert_allclose(found.coefficients, expected, atol=1e-5)
    assert_allclose(found.values, found.coefficients)
    assert_allclose(found.intercept, values(measured, start), atol=1e-5)
    assert_allclose(found.r_squared, 1, atol=1e-10)
    assert found.samples == SAMPLES


def test_a_part_has_the_sum_of_the_coefficients_of_its_numbers():
    case = problems.multinomial()
    measured = of_case(case, "logit")
    start = a_start(measured)
    found = local_model(measured, start, np.array([1, 0, 1, 1]), seed=0)
    weight = case.problem.model.weight.detach()[case.queries[1][0]]
    each = (weight * (measured.asked.inputs - start)[0]).numpy()
    expected = [each[1], each[[0, 2, 3]].sum()]
    assert_allclose(found.coefficients, expected, atol=1e-5)
    assert_allclose(found.values, np.array(expected)[[1, 0, 1, 1]], atol=1e-5)


def test_parts_that_equal_the_baseline_have_no_coefficient():
    case = problems.multinomial()
    measured = of_case(case, "logit")
    start = a_start(measured)
    start[0, 2] = measured.asked.inputs[0, 2]
    found = local_model(measured, start, np.arange(4), seed=0)
    assert found.parts.tolist() == [0, 1, -1, 2]
    assert found.values[2] == 0
    weight = case.problem.model.weight.detach()[case.queries[1][0]]
    expected = (weight * (measured.asked.inputs - start)[0])[[0, 1, 3]]
    assert_allclose(found.coefficients, expected, atol=1e-5)


def test_no_part_and_too_many_parts_have_no_local_model():
    measured = of_case(problems.multinomial())
    assert local_model(measured, measured.asked.inputs, np.arange(4), seed=0) is None
    wide = torch.randn(4, MOST_FEATURES + 1), torch.arange(4) % 2
    problem = make_problem(nn.Linear(MOST_FEATURES + 1, 2), wide, loss="cross_entropy")
    measured = first(problem, wide)
    start, parts = torch.zeros(1, MOST_FEATURES + 1), np.arange(MOST_FEATURES + 1)
    assert local_model(measured, start, parts, seed=0) is None


def test_lime_is_the_weighted_regression_of_what_happens_on_all_subsets():
    """Four parts have 16 subsets: the exact weighted fit, and what random samples tell of it.

    With 768 samples drawn from 16 kinds, coefficients differ by sampling alone: 2 % of their size.
    """
    measured = of_case(problems.mlp_untrained())
    start = a_start(measured)
    kept = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(float)
    inputs = torch.from_numpy(kept) * (measured.asked.inputs - start) + start
    distance = 1 - np.sqrt(kept.mean(1))
    root = np.exp(-(distance**2) / (4 * 0.25**2))[:, None]
    design = np.hstack([kept, np.ones((16, 1))])
    happens = values(measured, inputs).numpy()[:, None]
    exact = np.linalg.lstsq(root * design, root * happens, rcond=None)[0].ravel()
    found = local_model(measured, start, np.arange(4), seed=0)
    size = abs(exact[:4]).max()
    assert_allclose(found.coefficients, exact[:4], atol=0.02 * size)
    assert_allclose(found.intercept, exact[4], atol=0.02 * size)


def test_the_share_explained_is_judged_on_samples_that_were_not_fitted():
    """A hash of the input is fitted by nothing; a fit of 4 to 768 would explain 1 % of its own."""
    case = problems.multinomial()
    measured = of_case(case, lambda outputs, targets: torch.cos(1e6 * outputs[:, 0]))
    found = local_model(measured, a_start(measured), np.arange(4), seed=0)
    assert not found.is_faithful
    smooth = local_model(of_case(case, "logit"), a_start(measured), np.arange(4), seed=0)
    assert smooth.is_faithful


def test_a_measurement_that_never_changes_has_no_share_to_explain():
    measured = of_case(problems.multinomial(), lambda outputs, targets: 0 * outputs[:, 0] + 2)
    found = local_model(measured, a_start(measured), np.arange(4), seed=0)
    assert np.isnan(found.r_squared)
    assert found.is_faithful
    assert_allclose(found.coefficients, 0, atol=1e-6)


def test_the_seed_alone_decides_what_is_tried():
    measured = of_case(problems.mlp_untrained())
    start = a_start(measured)
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    once = local_model(measured, start, np.arange(4), seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(6)
    again = local_model(measured, start, np.arange(4), seed=1)
    other = local_model(measured, start, np.arange(4), seed=2)
    assert np.array_equal(once.coefficients, again.coefficients)
    assert not np.array_equal(once.coefficients, other.coefficients)


@pytest.mark.parametrize("size", [1, 7])
def test_the_size_of_batches_changes_nothing_but_rounding(size, monkeypatch):
    case = problems.conv()
    measured = of_case(case)
    start, parts = torch.zeros_like(measured.asked.inputs), np.arange(36).reshape(1, 6, 6) // 4
    attribution, local = (
        integrated_gradients(measured, start).values,
        local_model(measured, start, parts, seed=0).coefficients,
    )
    monkeypatch.setattr(Problem, "batch_size", lambda self, stack=1: size)
    assert_allclose(integrated_gradients(measured, start).values, attribution, atol=1e-12)
    assert_allclose(local_model(measured, start, parts, seed=0).coefficients, local, atol=1e-5)


def test_the_library_is_captum():
    assert import_captum().__name__ == "captum.attr"
