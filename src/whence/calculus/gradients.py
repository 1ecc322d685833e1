"""Per-example derivatives, and the hot loop: directions times per-example gradients.

Everything is done by `torch.func` where the model allows it. Where vmap or forward mode cannot go
(data-dependent control flow, operations without a rule) the same numbers come from a plain loop
of reverse passes, one example at a time; `is_vectorised` tells which.
"""

from collections.abc import Callable
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from whence.calculus.stacking import StackedLinear
from whence.core.batches import Batch, Tree
from whence.core.problem import Forward, Problem, Queries
from whence.core.scores import Measurement
from whence.errors import NonFinite, NotPerExample, Unsupported
from whence.numerics.vectors import Layout

_STACK_BYTES = 64 * 2**20
"""Activations of the models that are measured at a time."""

_VECTORISED: WeakKeyDictionary[nn.Module, tuple[Forward, Layout, bool]] = WeakKeyDictionary()
"""What is known of each model, for one way to call it and one choice of parameters."""


def is_vectorised(problem: Problem) -> bool:
    """Whether vmap and forward mode work on this model: tried once, on two examples.

    The same problem with other data or at other parameters is not tried again.
    """
    forward, layout, answer = _VECTORISED.get(problem.model, (None, None, False))
    if forward is problem.forward and layout is problem.layout:
        return answer
    with torch.enable_grad():  # a caller may only want values, and the trial compares gradients
        return _know(problem, _try_vectorised(problem))


def _know(problem: Problem, answer: bool) -> bool:
    _VECTORISED[problem.model] = problem.forward, problem.layout, answer
    return answer


def gradients(problem: Problem, batch: Batch) -> Tensor:
    """Gradient of the loss of each example, without base weight and regulariser.

        out[b, p] = d loss_b / d theta_p

    Args:
        problem: model and loss.
        batch: B examples.

    Returns:
        (B, P).

    Raises:
        NonFinite: a gradient is not a number, naming the example.
    """
    rows = pull_back(problem, batch.inputs, residuals(problem, batch))
    _refuse_non_finite(problem, batch, rows)
    return rows


def jacobians(problem: Problem, examples: Batch | Queries) -> Tensor:
    """Jacobian of the outputs of each example, outputs flattened to C numbers.

        out[b, c, p] = d f_c(x_b) / d theta_p

    Returns:
        (B, C, P).
    """

    def outputs_of_one(parameters: Tensor, inputs: Tree) -> Tensor:
        return problem.outputs(parameters, _alone(inputs)).flatten()

    return _per_example(problem, outputs_of_one, (examples.inputs,))


def jacobian_batch(problem: Problem) -> int:
    """How many examples have Jacobians (B, C, P) of about 64 MB together."""
    return max(1, min(len(problem), 2**23 // max(1, problem.output_size * problem.size)))


def outputs(problem: Problem, psi: Tensor, batch: Batch | Queries) -> Tensor:
    """Change of the outputs when the parameters move along each direction.

        out[q, b, c] = sum_p J_b[c, p] psi[q, p]

    One forward-mode pass for all directions together; no (B, P) array is built.

    Args:
        problem: model.
        psi: (Q, P) directions.
        batch: B examples.

    Returns:
        (Q, B, C), outputs flattened to C numbers.
    """
    if not is_vectorised(problem):
        return torch.einsum("bcp,qp->qbc", jacobians(problem, batch), psi)

    def function(parameters: Tensor) -> Tensor:
        return problem.outputs(parameters, batch.inputs)

    with torch.no_grad(), StackedLinear():
        moved = vmap(lambda v: jvp(function, (problem.parameters,), (v,))[1])(psi)
    return moved.flatten(2) if moved.ndim > 2 else moved.unsqueeze(2)


def inner(problem: Problem, psi: Tensor, batch: Batch) -> Tensor:
    """Dot products of query directions with per-example gradients.

        out[q, b] = sum_p psi[q, p] d loss_b / d theta_p = sum_c outputs[q, b, c] r[b, c]

    Args:
        problem: model and loss.
        psi: (Q, P) directions, as returned by `IHVP.solve`.
        batch: B examples.

    Returns:
        (Q, B), unit of psi times the loss; base weights are not applied.

    Raises:
        NonFinite: a gradient is not a number, naming the example.
    """
    if not is_vectorised(problem):
        return psi @ gradients(problem, batch).T
    moved = outputs(problem, psi, batch)
    products = torch.einsum("qbc,bc->qb", moved, residuals(problem, batch))
    _refuse_non_finite(problem, batch, products.T)
    return products


def residuals(
    problem: Problem, batch: Batch, *, shift: Tensor | None = None, values: Tensor | None = None
) -> Tensor:
    """Derivative of each loss with respect to its outputs, flattened: r (B, C).

    Args:
        problem: model and loss.
        batch: B examples.
        shift: (B, C) added to the outputs before the derivative is taken.
        values: (B, ...) the outputs, where they are known.
    """
    _, slopes = _losses_of_outputs(problem, batch, shift, values)
    return slopes.detach()


def output_hessians(
    problem: Problem, batch: Batch, *, shift: Tensor | None = None, values: Tensor | None = None
) -> Tensor:
    """Hessian of each loss with respect to its outputs, flattened: S (B, C, C).

    Args:
        problem: model and loss.
        batch: B examples.
        shift: (B, C) added to the outputs before the derivative is taken.
        values: (B, ...) the outputs, where they are known.
    """
    values, slopes = _losses_of_outputs(problem, batch, shift, values)
    if not slopes.requires_grad:  # a loss that is linear in the outputs
        return slopes.new_zeros(*slopes.shape, slopes.shape[1])
    # Examples do not mix, so the gradient of a sum over them holds every row separately.
    rows = [
        torch.autograd.grad(column.sum(), values, retain_graph=True, materialize_grads=True)[0]
        for column in slopes.unbind(1)
    ]
    return torch.stack(rows, 1)


def _losses_of_outputs(
    problem: Problem, batch: Batch, shift: Tensor | None, values: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (B, C) as a leaf, and the derivative (B, C) of the losses with their graph."""
    if values is None:
        with torch.no_grad():
            values = problem.outputs(problem.parameters, batch.inputs)
    flat = values.reshape(len(batch), -1)
    leaf = (flat if shift is None else flat + shift).detach().requires_grad_(True)
    losses = problem.loss(leaf.reshape(values.shape), cast("Tensor", batch.targets))
    (slopes,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True, materialize_grads=True)
    return leaf, slopes


def measurement_slopes(
    problem: Problem, measurement: Measurement, queries: Queries
) -> tuple[Tensor, Tensor]:
    """Each query's measurement and its derivative with respect to the outputs.

    Args:
        problem: model.
        measurement: `(outputs, targets) -> one value per query`.
        queries: Q queries.

    Returns:
        (Q,) values and (Q, C) slopes, outputs flattened.

    Raises:
        NotPerExample: the measurement is not one value per query.
        NonFinite: a value or slope is not a number.
    """
    function = cast("Callable[[Tensor, Tensor], Tensor]", measurement.function)
    values = measure(problem, measurement, queries)
    with torch.no_grad():
        leaf = problem.outputs(problem.parameters, queries.inputs).requires_grad_(True)
    total = function(leaf, queries.targets).sum()
    (slopes,) = torch.autograd.grad(total, leaf, materialize_grads=True)
    slopes = slopes.reshape(len(queries), -1)
    refuse_infinite(slopes, measurement, queries)
    return values, slopes


def measurement_gradients(
    problem: Problem, measurement: Measurement, queries: Queries
) -> tuple[Tensor, Tensor]:
    """Each query's measurement and its gradient.

    Args:
        problem: model.
        measurement: `(outputs, targets) -> one value per query`.
        queries: Q queries.

    Returns:
        (Q,) values and (Q, P) gradients.

    Raises:
        NotPerExample: the measurement is not one value per query.
        NonFinite: a value or gradient is not a number.
    """
    values, slopes = measurement_slopes(problem, measurement, queries)
    rows = pull_back(problem, queries.inputs, slopes)
    refuse_infinite(rows, measurement, queries)
    return values, rows


def refuse_infinite(rows: Tensor, measurement: Measurement, queries: Queries) -> None:
    """Names the first query whose row (Q, ...) of derivatives is not finite."""
    bad = ~rows.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise NonFinite(
            found=f"The gradient of {measurement.name} of query "
            f"{queries.ids[int(torch.nonzero(bad)[0, 0])]} is not a number.",
            why="All its effects would be NaN.",
            remedy="Look at this query, or use another measurement.",
        )


def measure(problem: Problem, measurement: Measurement, queries: Queries) -> Tensor:
    """(Q,) values of the measurement at the problem's parameters.

    Raises:
        NotPerExample: the measurement is not one value per query.
        NonFinite: a value is not a number.
    """
    with torch.no_grad():
        return _measured(measurement, problem.outputs(problem.parameters, queries.inputs), queries)


def measure_many(
    problem: Problem, measurement: Measurement, queries: Queries, *, at: Tensor
) -> Tensor:
    """The measurement of every query under each of M models, all models together.

    Args:
        problem: model.
        measurement: `(outputs, targets) -> one value per query`.
        queries: Q queries.
        at: (M, P) parameters of the models.

    Returns:
        (M, Q).

    Raises:
        NotPerExample: the measurement is not one value per query.
        NonFinite: a value is not a number.
    """
    together = max(1, _STACK_BYTES // (len(queries) * problem.example_bytes()))
    rows: list[Tensor] = []
    with torch.no_grad():
        for parameters in at.split(together):
            outputs = _outputs_of_many(problem, parameters, queries.inputs)
            rows += [_measured(measurement, values, queries) for values in outputs]
    return torch.stack(rows)


def _outputs_of_many(problem: Problem, parameters: Tensor, inputs: Tree) -> Tensor:
    """(M, Q, ...) outputs of M models."""
    if not is_vectorised(problem):
        return torch.stack([problem.outputs(theta, inputs) for theta in parameters])
    with StackedLinear():
        return vmap(lambda theta: problem.outputs(theta, inputs))(parameters)


def _measured(measurement: Measurement, outputs: Tensor, queries: Queries) -> Tensor:
    """(Q,) values from the outputs (Q, ...) of one model."""
    function = cast("Callable[[Tensor, Tensor], Tensor]", measurement.function)
    values = function(outputs, queries.targets)
    if values.shape != (len(queries),):
        raise NotPerExample(
            found=f"The measurement {measurement.name!r} returned shape {tuple(values.shape)} "
            f"for {len(queries)} queries.",
            why="Every query needs a measurement of its own.",
            remedy="Return one value per query from (outputs, targets).",
        )
    if not bool(values.isfinite().all()):
        row = int(torch.nonzero(~values.isfinite())[0, 0])
        raise NonFinite(
            found=f"{measurement.name} of query {queries.ids[row]} is {values[row].item()}.",
            why="A change of it cannot be predicted.",
            remedy="Look at this query, or use another measurement, such as the margin.",
        )
    return values


def input_gradients(problem: Problem, psi: Tensor, batch: Batch) -> Tree:
    """Mixed derivatives: how psi . grad loss changes with every input of an example.

        out[q, b, ...] = d/dx_b  sum_p psi[q, p] d loss_b / d theta_p

    Args:
        problem: model and loss.
        psi: (Q, P) directions.
        batch: B examples with floating-point inputs.

    Returns:
        For each input tensor (B, ...) a tensor (Q, B, ...).

    Raises:
        Unsupported: an input is made of integers, which cannot be moved a little.
    """
    if not all(leaf.is_floating_point() for leaf in tree_leaves(batch.inputs)):
        raise Unsupported(
            found="The inputs are integers, such as tokens or categories.",
            why="A derivative with respect to them does not exist.",
            remedy="Use whence.token_effects for a text, give the model its embeddings as inputs, "
            "or compare whole replacements.",
        )

    def along(direction: Tensor) -> Tree:
        leaves = tree_map(lambda x: x.detach().clone().requires_grad_(True), batch.inputs)
        theta = problem.parameters.detach().clone().requires_grad_(True)
        moved = Batch(leaves, batch.targets, batch.positions, batch.weights)
        total = problem.losses(theta, moved).sum()
        (slope,) = torch.autograd.grad(total, theta, create_graph=True)
        flat = tree_leaves(leaves)
        found = torch.autograd.grad(slope @ direction, flat, materialize_grads=True)
        answers = iter(found)
        return tree_map(lambda _: next(answers), leaves)

    rows = [along(direction) for direction in psi]
    return tree_map(lambda *parts: torch.stack(parts), *rows)


def input_effects(problem: Problem, psi: Tensor, batch: Batch) -> Tree:
    """What moving each input of a training example does along directions of the parameters.

        out[q, b, ...] = -(b_b / N) d/dx_b  psi[q] . grad loss_b

    With psi = (H + damping I)^-1 grad m_q it is the derivative of the measurement m_q, after
    training again, with respect to the input. Weights stay, so N is N under `renormalize` too.

    Args:
        problem: model and loss.
        psi: (Q, P) solved directions.
        batch: B examples with floating-point inputs.

    Returns:
        For each input tensor (B, ...) a tensor (Q, B, ...).

    Raises:
        Unsupported: an input is made of integers, which cannot be moved a little.

    Source: Koh & Liang 2017 (arXiv:1703.04730), equation 5, here with 1/N; the sign of the
    parameter change is that of their equation 4.
    """

    def scaled(slopes: Tensor) -> Tensor:
        shares = -batch.weights / problem.total_weight()
        return slopes * shares.reshape(-1, *[1] * (slopes.ndim - 2))

    return tree_map(scaled, input_gradients(problem, psi, batch))


def _alone(tree: Tree) -> Tree:
    """One example as a batch of one."""
    return tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, tree)


def pull_back(
    problem: Problem, inputs: Tree, slopes: Tensor, *, only: Layout | None = None
) -> Tensor:
    """J_b^T s_b for each example: (B, P). Only the model is differentiated, never a loss.

    Args:
        problem: model.
        inputs: B inputs.
        slopes: (B, C) weights of the outputs, flattened.
        only: the parameters that are asked about, default all; P is then their number.
    """
    if only is not None:
        return _pull_back_some(problem, inputs, slopes, only)
    return _per_example(problem, _along_slopes(problem), (inputs, slopes))


def plain_pull_back(problem: Problem, inputs: Tree, slopes: Tensor) -> Tensor:
    """The same as `pull_back` by a loop of reverse passes that expects nothing of the model."""
    value, trees = _along_slopes(problem), (inputs, slopes)
    rows = range(len(slopes))
    return torch.stack([_plain_jacobian(problem.parameters, value, _take(trees, i)) for i in rows])


def _along_slopes(problem: Problem) -> Callable[[Tensor, Tree, Tensor], Tensor]:
    """The outputs of one example times its slopes, as a function of the parameters."""
    return lambda theta, one, slope: problem.outputs(theta, _alone(one)).flatten() @ slope


def _pull_back_some(problem: Problem, inputs: Tree, slopes: Tensor, only: Layout) -> Tensor:
    everything = problem.layout.split(problem.parameters)
    start = only.join({name: everything[name] for name in only.names})

    def along_slope(some: Tensor, one: Tree, slope: Tensor) -> Tensor:
        return problem.call(everything | only.split(some), _alone(one)).flatten() @ slope

    return _per_example(problem, along_slope, (inputs, slopes), at=start)


def _per_example(
    problem: Problem,
    value: Callable[..., Tensor],
    trees: tuple[Tree, ...],
    at: Tensor | None = None,
) -> Tensor:
    """Jacobian of `value(parameters, *example)` for every example, by vmap or one by one."""
    at = problem.parameters if at is None else at
    if is_vectorised(problem):
        axes = tuple(tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, trees))
        with torch.no_grad():
            return vmap(jacrev(value), in_dims=(None, *axes))(at, *trees)
    count = len(next(leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)))
    return torch.stack([_plain_jacobian(at, value, _take(trees, i)) for i in range(count)])


def _plain_jacobian(at: Tensor, value: Callable[..., Tensor], example: tuple[Tree, ...]) -> Tensor:
    """(P,) or (C, P) by one reverse pass for every number in `value`."""
    theta = at.detach().clone().requires_grad_(True)
    answer = value(theta, *example)
    rows = [
        torch.autograd.grad(entry, theta, retain_graph=True, materialize_grads=True)[0]
        for entry in answer.flatten()
    ]
    return torch.stack(rows).reshape(*answer.shape, -1)


def _take(trees: tuple[Tree, ...], row: int) -> tuple[Tree, ...]:
    return tree_map(lambda leaf: leaf[row] if isinstance(leaf, Tensor) else leaf, trees)


def _try_vectorised(problem: Problem) -> bool:
    """Whether per-example gradients and forward mode run, and agree with a plain reverse pass."""
    batch = problem.batch(torch.arange(min(2, len(problem))))
    _know(problem, False)
    plain = gradients(problem, batch)
    _know(problem, True)
    try:
        rows = gradients(problem, batch)
        dots = inner(problem, plain, batch)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    tolerance = 1e4 * torch.finfo(plain.dtype).eps
    scale = float((plain @ plain.T).abs().max()) + torch.finfo(plain.dtype).tiny
    gap = float((dots - plain @ plain.T).abs().max())
    return torch.allclose(rows, plain, rtol=tolerance, atol=tolerance) and gap <= tolerance * scale


def _refuse_non_finite(problem: Problem, batch: Batch, rows: Tensor) -> None:
    """Names the first example of a batch whose row of derivatives is not finite."""
    bad = ~rows.isfinite().all(1)
    if bool(bad.any()):
        row = int(batch.positions[int(torch.nonzero(bad)[0, 0])])
        raise NonFinite(
            found=f"The gradient of training example {problem.data.ids[row]} is not a number, "
            "although its loss is.",
            why="Every score that it enters would be NaN.",
            remedy="A square root or logarithm at zero is the usual cause: look at the model at "
            "this example.",
        )
