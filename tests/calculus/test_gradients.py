"""Per-example derivatives against numpy, autograd one example at a time, and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import problems
from oracles import central_difference
from problems import ALL, CONVEX
from whence.adapters import make_problem
from whence.calculus.gradients import (
    gradients,
    inner,
    input_gradients,
    is_vectorised,
    jacobians,
    measure,
    measure_many,
    measurement_gradients,
    output_hessians,
    outputs,
    residuals,
)
from whence.core.batches import Batch
from whence.core.measurements import make_measurement
from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.errors import NonFinite, NotPerExample, Unsupported

EVERY = pytest.mark.parametrize("name", ALL)


def whole(problem: Problem) -> Batch:
    return problem.batch(torch.arange(len(problem)))


def directions(problem: Problem, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, problem.size, generator=generator, dtype=torch.float64)


def plain_gradients(problem: Problem) -> Tensor:
    """One reverse pass an example through the module itself, which is set to the parameters."""
    rows = []
    for row in torch.arange(len(problem)).split(1):
        theta = problem.parameters.clone().requires_grad_(True)
        loss = problem.losses(theta, problem.batch(row)).sum()
        rows.append(torch.autograd.grad(loss, theta)[0])
    return torch.stack(rows)


@EVERY
def test_only_data_dependent_branches_stop_vmap(name):
    assert is_vectorised(ALL[name]().problem) == (name != "branching")


@EVERY
def test_gradients_are_those_of_one_example_at_a_time(name):
    problem = ALL[name]().problem
    assert_allclose(gradients(problem, whole(problem)), plain_gradients(problem), atol=1e-12)


@pytest.mark.parametrize("name", CONVEX)
def test_gradients_of_linear_models_are_those_written_out(name):
    case = CONVEX[name]()
    expected = case.oracle.flat(case.oracle.gradients(case.oracle.optimum()))
    assert_allclose(gradients(case.problem, whole(case.problem)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "tied", "branching"])
def test_jacobians_are_finite_differences_of_the_outputs(name):
    """Central differences of step 1e-5: error 1e-10, rounding 1e-11."""
    problem = ALL[name]().problem
    batch = problem.batch(torch.arange(3))

    def function(theta: np.ndarray) -> np.ndarray:
        return problem.outputs(torch.from_numpy(theta), batch.inputs).detach().flatten(1).numpy()

    expected = central_difference(function, problem.parameters.numpy(), 1e-5)
    assert_allclose(jacobians(problem, batch), expected, atol=1e-8)


@EVERY
def test_outputs_are_jacobians_times_directions(name):
    problem = ALL[name]().problem
    batch, psi = whole(problem), directions(problem)
    expected = torch.einsum("bcp,qp->qbc", jacobians(problem, batch), psi)
    assert_allclose(outputs(problem, psi, batch), expected, atol=1e-11)


@EVERY
def test_inner_is_directions_times_gradients(name):
    problem = ALL[name]().problem
    batch, psi = whole(problem), directions(problem)
    assert_allclose(inner(problem, psi, batch), psi @ plain_gradients(problem).T, atol=1e-11)


@EVERY
def test_a_gradient_is_the_jacobian_times_the_residual(name):
    problem = ALL[name]().problem
    batch = whole(problem)
    product = torch.einsum("bcp,bc->bp", jacobians(problem, batch), residuals(problem, batch))
    assert_allclose(product, plain_gradients(problem), atol=1e-12)


@pytest.mark.parametrize("name", CONVEX)
def test_residuals_and_output_hessians_are_those_written_out(name):
    case = CONVEX[name]()
    f = case.oracle.predict(case.oracle.optimum())
    batch = whole(case.problem)
    assert_allclose(
        residuals(case.problem, batch), case.oracle.loss.slope(f, case.oracle.y), atol=1e-12
    )
    assert_allclose(
        output_hessians(case.problem, batch), case.oracle.loss.bend(f, case.oracle.y), atol=1e-12
    )


def test_output_hessians_of_sequences_do_not_mix_positions():
    problem = problems.tied().problem
    bend = output_hessians(problem, problem.batch(torch.arange(2))).reshape(2, 7, 5, 7, 5)
    for t in range(5):
        for u in range(5):
            assert bool((bend[:, :, t, :, u] != 0).any()) == (t == u)


def test_a_loss_that_is_linear_in_the_outputs_has_no_output_hessian():
    def distance(f: Tensor, y: Tensor) -> Tensor:
        return (f.squeeze(1) - y).abs()

    x, y = torch.randn(6, 2).double(), torch.randn(6).double()
    problem = make_problem(nn.Linear(2, 1).double(), (x, y), loss=distance, weight_decay=0.1)
    assert not output_hessians(problem, whole(problem)).any()
    assert residuals(problem, whole(problem)).abs().eq(1).all()


# ------------------------------------------------------------------ measurements


@EVERY
def test_gradients_of_measurements_are_those_of_one_query_at_a_time(name):
    case = ALL[name]()
    problem = case.problem
    queries = problem.queries(case.queries)
    measured = make_measurement("loss", problem.loss)
    values, rows = measurement_gradients(problem, measured, queries)
    for q in range(len(queries)):
        one = problem.queries(
            ({k: v[q : q + 1] for k, v in case.queries[0].items()}, case.queries[1][q : q + 1])
            if isinstance(case.queries[0], dict)
            else (case.queries[0][q : q + 1], case.queries[1][q : q + 1])
        )
        theta = problem.parameters.clone().requires_grad_(True)
        value = measured.function(problem.outputs(theta, one.inputs), one.targets).squeeze()
        assert values[q].item() == pytest.approx(value.item(), rel=1e-12)
        assert_allclose(rows[q], torch.autograd.grad(value, theta)[0], atol=1e-12)


@EVERY
def test_many_models_are_measured_as_one_by_one(name, monkeypatch):
    case = ALL[name]()
    problem, queries = case.problem, case.problem.queries(case.queries)
    measured = make_measurement("loss", problem.loss)
    models = problem.parameters + 0.1 * directions(problem, 5)
    monkeypatch.setattr("whence.calculus.gradients._STACK_BYTES", 2 * len(queries) * 8 * 40)
    found = measure_many(problem, measured, queries, at=models)
    expected = [measure(problem.at(theta), measured, queries) for theta in models]
    assert_allclose(found, torch.stack(expected), rtol=1e-10, atol=1e-12)


def test_models_can_be_measured_before_anything_was_differentiated():
    model = nn.Linear(2, 1).double()
    data = torch.ones(3, 2).double(), torch.ones(3).double()
    problem = make_problem(model, data, loss="mse")
    measured, queries = problem.measurement("loss"), problem.queries(data)
    with torch.no_grad():
        found = measure_many(problem, measured, queries, at=problem.parameters[None])
    assert_allclose(found[0], measure(problem, measured, queries))


@pytest.mark.parametrize("name", CONVEX)
def test_gradients_of_default_measurements_are_those_written_out(name):
    case = CONVEX[name]()
    theta = case.oracle.optimum()
    measured = make_measurement(None, case.problem.loss)
    _, rows = measurement_gradients(case.problem, measured, case.problem.queries(case.queries))
    assert_allclose(rows, case.oracle.flat(case.measurement_gradients(theta)), atol=1e-12)


def test_one_measurement_for_all_queries_is_refused():
    case = problems.logistic()
    mean = Measurement("mean", "logits", True, lambda f, y: f.mean())
    with pytest.raises(NotPerExample, match="mean"):
        measure(case.problem, mean, case.problem.queries(case.queries))


def test_a_measurement_that_is_no_number_names_the_query():
    case = problems.logistic()
    broken = Measurement("root", "logits", True, lambda f, y: (f.squeeze(1) - f[2, 0]).log())
    with pytest.raises(NonFinite, match="root of query"):
        measure(case.problem, broken, case.problem.queries(case.queries))


def test_a_measurement_without_a_slope_names_the_query():
    case = problems.logistic()

    def root(f: Tensor, y: Tensor) -> Tensor:
        return (f - f[2].detach()).abs().squeeze(1).sqrt()

    measured = Measurement("root", "logits", True, root)
    with pytest.raises(NonFinite, match="gradient of root of query 2"):
        measurement_gradients(case.problem, measured, case.problem.queries(case.queries))


class Root(nn.Module):
    """sqrt(|w . x|): its slope at zero is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2).double())

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).abs().sqrt()


@pytest.mark.parametrize(
    "derive",
    [gradients, lambda problem, batch: inner(problem, torch.ones(1, 2).double(), batch)],
    ids=["gradients", "inner"],
)
def test_a_gradient_that_is_no_number_names_the_example(derive):
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, -1.0]]).double()
    ids = ["first", "second", "third"]
    problem = make_problem(Root(), (x, torch.ones(3).double()), loss="mse", ids=ids)
    with pytest.raises(NonFinite, match="third"):
        derive(problem, whole(problem))


# ------------------------------------------------------------------ inputs


@pytest.mark.parametrize("name", [*CONVEX, "mlp", "conv", "branching"])
def test_input_gradients_are_finite_differences(name):
    """d/dx of psi . grad loss by central differences of step 1e-5."""
    problem = ALL[name]().problem
    psi = directions(problem, 2)
    batch = problem.batch(torch.arange(2))
    shape = batch.inputs.shape[1:]

    def pull(x: np.ndarray) -> np.ndarray:
        moved = torch.from_numpy(x).reshape(1, *shape)
        one = Batch(moved, batch.targets[1:2], batch.positions[1:2], batch.weights[1:2])
        return (psi @ gradients(problem, one).T)[:, 0].numpy()

    expected = central_difference(pull, batch.inputs[1].flatten().numpy(), 1e-5)
    found = input_gradients(problem, psi, batch)
    assert found.shape == (2, 2, *shape)
    assert_allclose(found[:, 1].flatten(1), expected, atol=1e-7)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 1), nn.Linear(3, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.left(a)) * self.right(b)


def test_input_gradients_keep_the_structure_of_the_inputs():
    a, b, y = torch.randn(4, 2).double(), torch.randn(4, 3).double(), torch.randn(4).double()
    problem = make_problem(TwoInputs().double(), (a, b, y), loss="mse")
    psi = directions(problem, 2)
    found = input_gradients(problem, psi, whole(problem))
    assert [tuple(part.shape) for part in found] == [(2, 4, 2), (2, 4, 3)]
    step = 1e-5
    moved = make_problem(TwoInputs().double(), (a, b + step, y), loss="mse").at(problem.parameters)
    before = make_problem(TwoInputs().double(), (a, b - step, y), loss="mse").at(problem.parameters)
    change = inner(moved, psi, whole(moved)) - inner(before, psi, whole(before))
    assert_allclose(found[1].sum(2), change / (2 * step), atol=1e-7)


def test_tokens_cannot_be_moved_a_little():
    problem = problems.tied().problem
    with pytest.raises(Unsupported, match="integers"):
        input_gradients(problem, directions(problem), whole(problem))


# ------------------------------------------------------------------ precision and memory


def test_float32_gradients_are_float64_gradients_rounded():
    case = problems.mlp()
    single = problems.single(case).problem
    found = gradients(single, whole(single))
    assert found.dtype == torch.float32
    assert_allclose(found, gradients(case.problem, whole(case.problem)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["multinomial", "mlp", "tied", "branching"])
def test_nothing_that_is_returned_keeps_a_graph(name):
    problem = ALL[name]().problem
    batch, psi = whole(problem), directions(problem)
    found = [
        gradients(problem, batch),
        jacobians(problem, batch),
        outputs(problem, psi, batch),
        inner(problem, psi, batch),
        residuals(problem, batch),
    ]
    assert not any(part.requires_grad for part in found)


def test_parameters_that_were_not_chosen_have_no_gradient_and_still_count():
    case = problems.conv()
    inputs, targets = case.problem.data.take(torch.arange(24))
    head = make_problem(
        case.problem.model, (inputs, targets), loss="cross_entropy", parameters="head.*"
    )
    full = replace(case.problem)
    columns = gradients(full, whole(full))[:, -head.size :]
    assert head.size == 16 * 3 + 3
    assert_allclose(gradients(head, whole(head)), columns, atol=1e-13)
