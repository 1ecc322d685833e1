"""Training backwards: what the weight of every example has done to numbers at its end.

    adjoint_T = d m / d state_T                                      (Q, S, P), zero below row 0
    d m / d w_t, adjoint_t = adjoint_t+1 . d step_t / d (w_t, state_t)            for t = T-1 ... 0

A step is update(state, g) with g the gradient of the loss of a batch, and so is its derivative:

    adjoint', gamma = adjoint_t+1 . d update / d (state, g)                 knows no example
    adjoint_t       = adjoint' with H_t gamma added to row 0                (Q, P)
    d m / d w_b     = gamma . d g / d w_b                                   (Q, B)

Exact for any optimizer, schedule and clipping, to rounding. All queries share the states, which are
kept, or computed again from some that are.

Source: Ilyas & Engstrom 2025 (MAGIC) and Engstrom et al. 2025 (REPLAY), arXiv:2503.13751, both
cited from memory; the formulas are the chain rule.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.calculus.gradients import is_vectorised
from whence.calculus.stacking import StackedLinear
from whence.calculus.tracing import PATIENCE, Traced
from whence.calculus.training import Course
from whence.core.batches import Batch, Tree
from whence.core.problem import Problem
from whence.errors import Diverged, Unsupported
from whence.progress import track

MEMORY = 2**30
"""Bytes that a replay may take by default: half for states, half for the adjoints of queries."""

_CHUNK_BYTES = 48 * 2**20
"""Adjoints and activations that are worked on together; more leave the cache and are slower."""


@dataclass(frozen=True, eq=False)
class Step:
    """A step as it was taken.

    Args:
        at: its number, from 0.
        state: (S, P) before it.
        slope: (P,) the gradient of its batch.
    """

    at: int
    state: Tensor
    slope: Tensor


class Derivatives:
    """First and second derivatives of the loss of a step, for trainings on one problem.

    Args:
        course: any of them; they have the loss in common.
        patience: calls of a kind before they are served by a graph.
    """

    def __init__(self, course: Course, *, patience: int = PATIENCE) -> None:
        self._loss = course.loss
        self._slope = Traced(self._plain_slope, patience=patience)
        self._products = Traced(self._stacked_products, patience=patience)
        self._is_stacked = is_vectorised(course.problem)

    def slope(self, theta: Tensor, weights: Tensor, batch: Batch) -> Tensor:
        """(P,) the gradient of the loss of a batch with weights (B,)."""
        return self._slope(theta, weights, *batch.parts)

    def products(
        self, theta: Tensor, weights: Tensor, batch: Batch, *, gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What gamma (Q, P) makes of the derivatives of that gradient.

            out[0][q] = H gamma_q,    out[1][q, b] = gamma_q . d slope / d w_b

        Returns:
            (Q, P) and (Q, B).

        Raises:
            Unsupported: the model has no second derivative.
        """
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            if self._is_stacked:
                try:
                    return self._products(theta, weights, gamma, *batch.parts)
                except (RuntimeError, NotImplementedError, TypeError):
                    self._is_stacked = False
            try:
                return self._looped_products(theta, weights, batch, gamma=gamma)
            except (RuntimeError, NotImplementedError) as error:
                raise _no_second_derivative(error) from error

    def _plain_slope(self, theta: Tensor, weights: Tensor, *parts: Tree) -> Tensor:
        return grad(self._loss)(theta, Batch.of_parts(*parts), weights)

    def _stacked_products(
        self, theta: Tensor, weights: Tensor, gamma: Tensor, *parts: Tree
    ) -> tuple[Tensor, Tensor]:
        def slope(theta: Tensor, weights: Tensor) -> Tensor:
            return self._plain_slope(theta, weights, *parts)

        with StackedLinear():
            back = cast("Callable[..., tuple[Tensor, Tensor]]", vjp(slope, theta, weights)[1])
            if len(gamma) == 1:  # without a stack, convolutions stay what they are
                moved, shares = back(gamma[0])
                return moved[None], shares[None]
            return vmap(back)(gamma)

    def _looped_products(
        self, theta: Tensor, weights: Tensor, batch: Batch, *, gamma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by one reverse pass a query, which asks no more than training does twice."""
        leaves = theta.detach().requires_grad_(True), weights.detach().requires_grad_(True)
        with torch.enable_grad():
            total = self._loss(leaves[0], batch, leaves[1])
            (slope,) = torch.autograd.grad(total, leaves[0], create_graph=True)
        rows = [
            torch.autograd.grad(slope, leaves, row, retain_graph=True, materialize_grads=True)
            for row in gamma
        ]
        moved, shares = zip(*rows, strict=True)
        return torch.stack(moved), torch.stack(shares)


@dataclass(frozen=True, eq=False)
class Recording:
    """A training that was run, with enough of its states to go through it backwards.

    Args:
        course: of the training.
        weights: (N,) of its examples.
        kept: some of its steps, equally spaced, the first among them.
        end: (S, P) the state after the last step.
        room: how many steps may be held at a time, those above included.
        derivatives: of its loss.
    """

    course: Course
    weights: Tensor
    kept: tuple[Step, ...]
    end: Tensor
    room: int
    derivatives: Derivatives

    @property
    def problem(self) -> Problem:
        """The problem at the parameters that the training has led to."""
        return self.course.problem.at(self.end[0])

    def backwards(self) -> Iterator[Step]:
        """All steps, the last one first."""
        stop = self.course.steps
        for step in reversed(self.kept):
            yield from self._backwards(step, stop, self.room - len(self.kept))
            stop = step.at

    def _backwards(self, first: Step, stop: int, room: int) -> Iterator[Step]:
        """The steps from `first` to before `stop` in reverse, while `room` more are held.

        With room for 2 sqrt(n) of n steps two levels are enough, and every step is computed once
        more; below that halving them takes log2(n) rooms and n log2(n) / 2 steps.
        """
        count = stop - first.at
        if count <= room + 1:
            spacing = 1
        else:
            spacing = -(-count // (room // 2 if room >= 2 * math.sqrt(count) else 2))
        walk = Walk(self.course, self.weights, self.derivatives)
        held = walk.forwards(first, stop, spacing)
        while held:
            step = held.pop()
            if spacing == 1:
                yield step
            else:
                yield from self._backwards(step, stop, room - len(held))
                stop = step.at


@dataclass(frozen=True, eq=False)
class Walk:
    """Steps of one training, one after the other.

    Args:
        course: of the training.
        weights: (N,) of its examples.
        derivatives: of its loss.
    """

    course: Course
    weights: Tensor
    derivatives: Derivatives

    def step(self, at: int, state: Tensor) -> Step:
        """The step from this state."""
        batch = self.course.batch(at)
        return Step(at, state, self.derivatives.slope(state[0], self.of(batch), batch))

    def after(self, step: Step) -> Tensor:
        """(S, P) the state that it leads to."""
        with torch.no_grad():
            return self.course.update(step.state, step.slope, at=step.at)

    def of(self, batch: Batch) -> Tensor:
        """(B,) the weights of the examples of a batch."""
        return self.weights[batch.positions.to(self.weights.device)]

    def forwards(self, first: Step, stop: int, spacing: int) -> list[Step]:
        """Every `spacing`-th step from `first` to before `stop`."""
        held, step = [first], first
        for at in range(first.at + 1, first.at + (stop - 1 - first.at) // spacing * spacing + 1):
            step = self.step(at, self.after(step))
            if (at - first.at) % spacing == 0:
                held.append(step)
        return held

    def back(self, step: Step, adjoint: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoint before a step, from that after it, and derivatives for its weights.

        Args:
            step: as it was taken.
            adjoint: (Q, S, P) after it.

        Returns:
            (Q, S, P), and (Q, B) in the order of the batch.
        """
        batch = self.course.batch(step.at)
        before, gamma = self._through_update(step, adjoint)
        theta, gamma = step.state[0], gamma.to(step.state.dtype)
        moved, shares = self.derivatives.products(theta, self.of(batch), batch, gamma=gamma)
        before[:, 0] += moved
        return before, shares

    def _through_update(self, step: Step, adjoint: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoint times d update / d (state, slope): (Q, S, P) and (Q, P)."""
        leaves = tuple(
            tensor.to(adjoint.dtype, copy=True).requires_grad_(True)
            for tensor in (step.state, step.slope)
        )
        with torch.enable_grad():
            then = self.course.update(*leaves, at=step.at)
        if len(adjoint) > 2 * len(then) and self.is_elementwise:
            return _times_rows(adjoint, *_elementwise_rows(then, leaves))
        state, slope = stacked_grad(then, leaves, adjoint)
        return state, slope

    @cached_property
    def is_elementwise(self) -> bool:
        """Whether the update treats every parameter by itself, tried on random numbers."""
        if self.course.training.clip is not None:
            return False
        start = self.course.start()
        drawn = torch.randn(2, *start.shape, generator=torch.Generator().manual_seed(0))
        adjoint, state = drawn.to(start.device, torch.float64)
        leaves = (start.double() + state**2).requires_grad_(True), state[0].requires_grad_(True)
        then = self.course.update(*leaves, at=0)
        expected = stacked_grad(then, leaves, adjoint[None])
        found = _times_rows(adjoint[None], *_elementwise_rows(then, leaves))
        return all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def _elementwise_rows(then: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Derivatives of an elementwise update: [k, j] that of row k of the next state by row j.

    For many queries these S^2 rows are fewer than a derivative for each query.
    """
    ones = torch.eye(len(then)).to(then)[:, :, None].expand(-1, -1, then.shape[1])
    state, slope = stacked_grad(then, leaves, ones)
    return state, slope  # (S, S, P), (S, P)


def _times_rows(adjoint: Tensor, state: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k adjoint[q, k] J[k] for both; rows of zeros, as most are, cost nothing."""
    columns = [*state.unbind(1), slope]  # each (S, P)
    found = []
    for column in columns:
        total = torch.zeros_like(adjoint[:, 0])
        for place, row in enumerate(column):
            if bool(row.any()):
                total.addcmul_(adjoint[:, place], row)
        found.append(total)
    return torch.stack(found[:-1], 1), found[-1]


def stacked_grad(output: Tensor, leaves: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of the products of an output with each of a stack of rows.

    Args:
        output: any shape.
        leaves: what it depends on.
        rows: (Q, *shape of output).

    Returns:
        For each leaf (Q, *its shape).
    """
    options = {"retain_graph": True, "materialize_grads": True}
    if len(rows) > 1:
        try:
            return torch.autograd.grad(output, leaves, rows, is_grads_batched=True, **options)
        except RuntimeError:  # an optimizer of the user with an operation that has no such rule
            pass
    found = [torch.autograd.grad(output, leaves, row, **options) for row in rows]
    return tuple(torch.stack(column) for column in zip(*found, strict=True))


def record(
    course: Course,
    weights: Tensor,
    *,
    memory: int = MEMORY,
    derivatives: Derivatives | None = None,
) -> Recording:
    """Runs a training and keeps what a replay needs.

    Args:
        course: of the training.
        weights: (N,) of its examples.
        memory: bytes, of which half may go to states; a handful is kept in any case.
        derivatives: of an earlier recording of the same problem, whose preparation is shared.

    Raises:
        Unsupported: the model has no second derivative.
    """
    weights = weights.to(course.problem.parameters)
    walk, room = Walk(course, weights, derivatives or Derivatives(course)), rooms(course, memory)
    spacing = 1 if course.steps <= room else -(-course.steps // (room // 2))
    step = walk.step(0, course.start())
    if derivatives is None:
        check_second_derivative(course, weights)
    kept = [step]
    for at in track(range(1, course.steps), "Training", total=course.steps - 1):
        step = walk.step(at, walk.after(step))
        if at % spacing == 0:
            kept.append(step)
    return Recording(course, weights, tuple(kept), walk.after(step), room, walk.derivatives)


def check_second_derivative(course: Course, weights: Tensor) -> None:
    """Compares a product of the first step with the difference of two gradients, in float64.

    A model can cut its second derivative without a word, such as by an operation whose gradient
    counts as a constant; products are then zero, not an error. The difference is so small that it
    rarely meets the corner of a piecewise linear function, where the two may differ; models that
    know no float64 are not looked at.

    Args:
        course: of a training.
        weights: (N,) of its examples.

    Raises:
        Unsupported: they have little to do with each other.
    """
    wide = Course(course.problem.widened(), course.training, course.seed)
    theta, batch = wide.start()[0], wide.batch(0)
    if theta.dtype != torch.float64:
        return
    walk = Walk(wide, weights.to(theta), Derivatives(wide))
    drawn = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    move = 1e-7 * (1 + float(theta.norm())) * (drawn / drawn.norm()).to(theta)
    of = walk.of(batch)
    ahead, behind = (walk.derivatives.slope(theta + sign * move, of, batch) for sign in (1, -1))
    (found,) = 2 * walk.derivatives.products(theta, of, batch, gamma=move[None])[0]
    gap, size = float((ahead - behind - found).norm()), float((ahead - behind).norm())
    if gap > 0.5 * size + 100 * torch.finfo(theta.dtype).eps * float(ahead.norm()):
        raise _no_second_derivative(f"a product with it is {gap / size:.0%} off a difference")


def rooms(course: Course, memory: int) -> int:
    """How many steps half of the memory holds; never fewer than halving all of them needs."""
    fewest = 2 * math.ceil(math.log2(course.steps + 1)) + 2
    return max(memory // 2 // step_bytes(course), fewest)


def repeats(course: Course, memory: int) -> float:
    """How often a replay computes a step again, on the mean."""
    room = rooms(course, memory)
    if course.steps <= room:
        return 0.0
    return 1.0 if room >= 4 * math.sqrt(course.steps) else math.log2(course.steps) / 2


def step_bytes(course: Course) -> int:
    """A state and a gradient."""
    problem = course.problem
    return (course.optimizer.slots + 2) * problem.size * problem.parameters.element_size()


def replay(recording: Recording, slopes: Tensor, *, memory: int = MEMORY) -> Tensor:
    """Derivatives of numbers at the end of a training with respect to every weight in it.

        out[q, i] = d m_q(theta_T(w)) / d w_i

    Args:
        recording: the training.
        slopes: (Q, P) gradients of the numbers m_q at its last parameters.
        memory: bytes, of which half may go to adjoints; so many queries go back together.

    Returns:
        (Q, N) float64.

    Raises:
        Diverged: a derivative is not finite.
        Unsupported: the model has no second derivative.
    """
    course = recording.course
    values = torch.zeros(len(slopes), len(course.problem), dtype=torch.float64)
    together = max(1, memory // 2 // adjoint_bytes(course))
    for rows in torch.arange(len(slopes)).tensor_split(-(-len(slopes) // together)):
        values[rows] = _replay_together(recording, slopes[rows.to(slopes.device)])
    if not bool(values.isfinite().all()):
        raise _diverged(values)
    return values


def adjoint_bytes(course: Course) -> int:
    """The adjoint of one query, at least in float32."""
    problem = course.problem
    return (course.optimizer.slots + 1) * problem.size * max(4, problem.parameters.element_size())


def _replay_together(recording: Recording, slopes: Tensor) -> Tensor:
    """The same for queries whose adjoints are held at the same time."""
    course, wide = recording.course, torch.promote_types(slopes.dtype, torch.float32)
    walk = Walk(course, recording.weights, recording.derivatives)
    adjoint = slopes.new_zeros(len(slopes), *recording.end.shape, dtype=wide)  # (Q, S, P)
    adjoint[:, 0] = slopes
    values = torch.zeros(len(slopes), len(course.problem), dtype=torch.float64)
    size = chunk_size(course)
    chunks = torch.arange(len(slopes)).tensor_split(-(-len(slopes) // size))
    for step in track(recording.backwards(), "Replaying training", total=course.steps):
        positions = course.positions(step.at)
        for rows in chunks:
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            adjoint[part], shares = walk.back(step, adjoint[part])
            values[part, positions] += shares.double().cpu()
    return values


def chunk_size(course: Course) -> int:
    """How many queries are taken through a step together."""
    problem = course.problem
    batch = min(course.training.batch_size, len(problem))
    one = batch * problem.example_bytes(1) + 4 * adjoint_bytes(course)
    return max(1, _CHUNK_BYTES // one)


def _diverged(values: Tensor) -> Diverged:
    bad = int((~values.isfinite()).any(1).sum())
    return Diverged(
        found=f"Derivatives through training are not finite for {bad:,} of {len(values):,} "
        "queries.",
        why="They grow from step to step where training is chaotic, until they leave the range "
        "of the type of the parameters.",
        remedy="Lower the learning rate, use a smooth activation, clip gradients, or give Adam an "
        "eps_root such as 1e-8: Training(optimizer=Adam(eps_root=1e-8)).",
    )


def _no_second_derivative(error: object) -> Unsupported:
    return Unsupported(
        found=f"The gradient of this model cannot be differentiated again: {error}.",
        why="A weight acts on the end of training through every gradient after its step.",
        remedy="Use operations with second derivatives, such as plain attention in place of a "
        "fused kernel; or a method that needs one derivative only, such as tracin.",
    )
