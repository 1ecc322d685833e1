"""Training again from the optimum, for any number of example weights at once.

A removal moves the optimum a little. From the old optimum, steps with the Hessian of the *full*
data as a fixed matrix (chord steps) shrink the gradient by about the leverage of what was removed;
a few remembered differences of gradients (L-BFGS on top of that matrix) learn what the removal
changed in it. Each step needs the gradients of M objectives at M parameter vectors, and these are
computed together.

    R_m(theta) = (1/D) sum_i w[m, i] b_i loss_i(theta) + r(theta)      D = N, or sum_i w[m, i]
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from whence.calculus.gradients import is_vectorised
from whence.calculus.products import CurvatureMatrix, MatrixName, example_pull
from whence.calculus.stacking import StackedLinear
from whence.core.batches import Batch
from whence.core.problem import Problem
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, NotConverged
from whence.progress import breathe, track

Preconditioner = Callable[[Tensor], Tensor]
"""An approximate inverse Hessian: (K, P) gradients to (K, P) steps."""

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(K, P) parameters of the runs in rows (K,) to their values (K,) and gradients (K, P)."""

USEFUL = 1e-2
"""A run whose gradient is below this share of one example's pull tells effects to about 1 %."""

DENSE_PARAMETERS = 4096
"""Up to this P the Hessian is built and decomposed: 10 s at most; beyond, L-BFGS starts bare."""

_HESSIAN_EXAMPLES = 4096
"""More examples would make the fixed matrix better, but no longer the run faster."""

_STATE_BYTES = 2**30
"""Memory for parameters, gradients and remembered differences of the runs that go together."""

_MEMORY = 20
"""Differences remembered per run; more than the rank of what one removal changes brings little."""

_LONG_MEMORY = 50
"""Differences remembered in the search for the optimum itself, where nothing is known yet."""

_ROUNDS, _ROUND_STEPS = 3, 100
"""The Hessian is made anew where this many steps with the last one have not reached the goal."""

_PATIENCE, _LATE = 100, 1e-6
"""A run that is still going after this many steps has left the neighbourhood in which the fixed
matrix is right, for another optimum; there this share of one example's pull ends it."""

_STRAY = 10
"""A run that ends this many first steps away is in another optimum: it would take a leverage of
0.9 to get so far in this one."""


@dataclass(frozen=True)
class NewtonTraining(Trainer):
    """The optimum near the problem's parameters, for each row of weights.

    First the optimum for weights of one is found from the parameters as they are; from there all
    runs start. Convex problems have one optimum; for a small network it is the one nearby, so that
    a trained model is compared with itself. Works in float64 where the model allows it. Objectives
    with kinks (hinge, ReLU) may have no point without a gradient; they are refused, not guessed.

    Args:
        tolerance: a run ends when its gradient is this small a part of one example's pull, the
            root mean square of |b_i grad loss_i| / N; not below what rounding leaves.
        max_steps: per run, and for the search of the first optimum.
        preconditioner: an approximate inverse Hessian; default that of the dense Hessian where P
            is at most `DENSE_PARAMETERS`, else none.

    Source: limited-memory quasi-Newton as in Nocedal & Wright 2006, algorithm 7.4; acceptance near
    rounding as in Hager & Zhang 2005, section 2 (both cited from memory).
    """

    tolerance: float = 1e-10
    max_steps: int = 2000
    preconditioner: Preconditioner | None = None

    @property
    def name(self) -> str:
        """How reports call it."""
        return "Newton steps from the optimum"

    @property
    def is_deterministic(self) -> bool:
        """Nothing in it is random."""
        return True

    def retrain(self, problem: Problem, weights: Tensor, *, seed: int = 0) -> Retrained:
        """Solves all runs together; see `Trainer.retrain`.

        Returns:
            (M, P) parameters. The report holds for each run `gradient_norm`, `remaining` (the
            same as a share of one example's pull) and `steps`; `strayed` counts those that ended
            far from where the first step pointed, in another optimum.

        Raises:
            NotConverged: a gradient stayed above `USEFUL` of one example's pull.
            BadArgument: weights of the wrong shape, or without any example under `renormalize`.
        """
        del seed
        started = time.monotonic()
        _check_weights(problem, weights)
        problem = problem.widened()
        pull = example_pull(problem) or 1 / len(problem)
        reachable = max(self.tolerance, 8 * torch.finfo(problem.dtype).eps * len(problem))
        goal = Goal(pull * reachable, pull * max(reachable, _LATE))
        optimum, precondition = self._find_optimum(problem, goal, pull)
        runs = self._run_all(problem.at(optimum.parameters[0]), weights, precondition, goal)
        _check_useful(runs.norms, pull, f"{len(weights)} retrained models")
        moved = (runs.parameters - optimum.parameters).norm(dim=1)
        has_strayed = moved > _STRAY * runs.first if precondition else torch.zeros(1)
        report = {
            "training": self.name,
            "gradient_norm": runs.norms.tolist(),
            "remaining": (runs.norms / pull).tolist(),
            "steps": runs.steps.tolist(),
            "strayed": int(has_strayed.sum()),
            "steps_to_optimum": int(optimum.steps.max()),
            "pull": pull,
            "tolerance": reachable,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "seconds": time.monotonic() - started,
        }
        return Retrained(runs.parameters, report)

    def _find_optimum(
        self, problem: Problem, goal: "Goal", pull: float
    ) -> "tuple[Minimum, Preconditioner | None]":
        """The optimum for weights of one: roughly by L-BFGS, then with the Hessian found there."""
        ones = torch.ones(1, len(problem), dtype=problem.dtype, device=problem.device)
        search = partial(minimise, Objectives(problem, ones), memory=_LONG_MEMORY)
        precondition = self.preconditioner
        is_dense = precondition is None and problem.size <= DENSE_PARAMETERS
        first_goal = Goal(USEFUL * pull, USEFUL * pull) if is_dense else goal
        start = problem.parameters.detach()[None]
        found = search(start, precondition, goal=first_goal, max_steps=self.max_steps)
        for _ in range(_ROUNDS if is_dense else 0):
            before = found
            precondition = hessian_preconditioner(problem.at(found.parameters[0]))
            found = search(before.parameters, precondition, goal=goal, max_steps=_ROUND_STEPS)
            found = replace(found, steps=before.steps + found.steps)
            if found.norms <= goal.norm or found.norms > 0.1 * before.norms:
                break
        _check_useful(found.norms, pull, "model as it is")
        return found, precondition

    def _run_all(
        self, problem: Problem, weights: Tensor, precondition: Preconditioner | None, goal: "Goal"
    ) -> "Minimum":
        """The optimum for each row of weights, as many rows at a time as fit `_STATE_BYTES`."""
        return minimise_rows(
            weights.to(problem.parameters),
            partial(Objectives, problem),
            partial(minimise, precondition=precondition, goal=goal, max_steps=self.max_steps),
            start=problem.parameters,
        )


# ---------------------------------------------------------------- many objectives


@dataclass(frozen=True)
class Objectives:
    """R_m and its gradient for M rows of weights.

    Args:
        problem: model, loss, regulariser and data.
        weights: (M, N) in the problem's dtype.
        tilt: (N, C) slopes t; sum_i t_i . f_i(theta) is taken off every objective.
    """

    problem: Problem
    weights: Tensor
    tilt: Tensor | None = None

    def __call__(self, parameters: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) values and (K, P) gradients of the runs in `rows` (K,), each at its parameters.

        So many runs go together that a batch still holds hundreds of examples: each pass over the
        data then is a few large matrix products.
        """
        together = _runs_together(self.problem, len(rows))
        pairs = [
            self._of_a_few(theta, part)
            for theta, part in zip(parameters.split(together), rows.split(together), strict=True)
        ]
        values, slopes = zip(*pairs, strict=True)
        return torch.cat(values), torch.cat(slopes)

    def _of_a_few(self, parameters: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        problem, weights = self.problem, self.weights[rows]
        total = weights.sum(1, keepdim=True) if problem.renormalize else float(len(problem))
        shares = weights / total
        with torch.no_grad():
            slopes, values = vmap(grad_and_value(problem.penalty))(parameters)
        for batch in problem.batches(problem.batch_size(stack=len(rows))):
            places = batch.positions.to(weights.device)
            tilt = None if self.tilt is None else self.tilt[places]
            value, slope = _sums(problem, parameters, shares[:, places], batch, tilt)
            values, slopes = values + value, slopes + slope
        return values, slopes


def _sums(
    problem: Problem, parameters: Tensor, shares: Tensor, batch: Batch, tilt: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums over a batch of share b loss - t . f (K,), and their gradients (K, P)."""

    def value_of(theta: Tensor, share: Tensor) -> Tensor:
        outputs = problem.outputs(theta, batch.inputs)
        losses = problem.loss(outputs, cast("Tensor", batch.targets))
        value = (share * batch.weights * losses).sum()
        return value if tilt is None else value - (tilt * outputs.reshape(tilt.shape)).sum()

    if is_vectorised(problem):
        with torch.no_grad(), StackedLinear():
            slopes, values = vmap(grad_and_value(value_of))(parameters, shares)
        return values, slopes
    pairs = [_plain_slope(value_of, *run) for run in zip(parameters, shares, strict=True)]
    values, slopes = zip(*pairs, strict=True)
    return torch.stack(values), torch.stack(slopes)


def _plain_slope(
    value_of: Callable[[Tensor, Tensor], Tensor], theta: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = theta.detach().clone().requires_grad_(True)
    value = value_of(leaf, weights)
    (slope,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return value.detach(), slope


def _runs_together(problem: Problem, runs: int) -> int:
    enough = min(len(problem), 512)
    while runs > 1 and problem.batch_size(stack=runs) < enough:
        runs = -(-runs // 2)
    return runs


# ------------------------------------------------------------- the fixed matrix


def hessian_preconditioner(
    problem: Problem, kind: MatrixName = "hessian", *, damping: float = 0.0
) -> Preconditioner:
    """The inverse Hessian (or damped Gauss-Newton matrix) at the parameters, made positive.

    Eigenvalues enter by their absolute value, so that a step goes down also where the Hessian is
    not positive. Directions that are flat to rounding are left alone. Of a large data set a fixed
    random sample makes the matrix.
    """
    positions = None
    if len(problem) > _HESSIAN_EXAMPLES:
        order = torch.randperm(len(problem), generator=torch.Generator().manual_seed(0))
        positions = order[:_HESSIAN_EXAMPLES].sort().values
    matrix = CurvatureMatrix(problem, kind, positions=positions).dense()
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    size = eigenvalues.abs() + damping
    is_flat = size <= problem.size * torch.finfo(problem.dtype).eps * size.max()
    inverse = torch.where(is_flat, 0.0, 1 / size).to(problem.dtype)
    vectors = vectors.to(problem.dtype)
    return lambda slopes: ((slopes @ vectors) * inverse) @ vectors.T


# ------------------------------------------------------- minimising many functions


@dataclass(frozen=True)
class Goal:
    """Norm of the gradient at which a run ends, and at which it ends after `_PATIENCE` steps."""

    norm: float
    late_norm: float


@dataclass(frozen=True)
class Minimum:
    """Where M runs ended.

    Args:
        parameters: (M, P).
        norms: (M,) norms of the gradients there.
        steps: (M,) steps taken.
        first: (M,) lengths of the first steps that were tried.
    """

    parameters: Tensor
    norms: Tensor
    steps: Tensor
    first: Tensor


def minimise_rows(
    weights: Tensor,
    objectives: Callable[[Tensor], Function],
    search: Callable[[Function, Tensor], Minimum],
    *,
    start: Tensor,
) -> Minimum:
    """The minimum for each row of weights, as many rows at a time as fit `_STATE_BYTES`.

    Args:
        weights: (M, N).
        objectives: makes the functions of some rows.
        search: `minimise` with its options.
        start: (P,) where every run begins.
    """
    numbers = (2 * _MEMORY + 8) * len(start)
    together = max(1, _STATE_BYTES // (numbers * start.element_size()))
    found = [
        search(objectives(rows), start.expand(len(rows), -1))
        for rows in track(weights.split(together), "Training again")
    ]
    parts = ("parameters", "norms", "steps", "first")
    return Minimum(*(torch.cat([getattr(part, name) for part in found]) for name in parts))


def minimise(
    function: Function,
    start: Tensor,
    precondition: Preconditioner | None = None,
    *,
    goal: Goal,
    max_steps: int,
    memory: int = _MEMORY,
) -> Minimum:
    """L-BFGS on M functions side by side, each with its own step length and memory.

    Runs that have reached the goal, or that no step improves any more, leave the computation.

    Args:
        function: values and gradients of chosen runs.
        start: (M, P).
        precondition: the initial inverse Hessian, default a multiple of the identity.
        goal: where a run ends.
        max_steps: per run.
        memory: differences of gradients remembered.
    """
    rows = torch.arange(len(start), device=start.device)
    now = _Point(start.clone(), *function(start, rows))
    known = _Memory(memory)
    parameters, norms = start.clone(), now.slope.norm(dim=1)
    first = torch.zeros_like(norms)
    steps = torch.zeros(len(start), dtype=torch.int64)
    is_stuck = torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    for step in range(max_steps + 1):
        breathe()
        parameters[rows], norms[rows] = now.theta, now.slope.norm(dim=1)
        steps[rows.cpu()] = step
        near = goal.norm if step < _PATIENCE else goal.late_norm
        is_going = (now.slope.norm(dim=1) > near) & ~is_stuck
        if step == max_steps or not bool(is_going.any()):
            break
        if not bool(is_going.all()):
            rows, now = rows[is_going], now.keep(is_going)
            known.keep(is_going)
        direction = known.direction(now.slope, precondition)
        if step == 0:
            first[rows] = direction.norm(dim=1)
        then, has_moved = _search(function, rows, now, direction)
        is_stuck = ~has_moved & known.is_empty(len(rows), start.device)
        known.add(then.theta - now.theta, then.slope - now.slope)
        known.forget(~has_moved)
        now = then
    return Minimum(parameters, norms, steps, first)


@dataclass(frozen=True)
class _Point:
    """Where K runs are: parameters (K, P), values (K,) and gradients (K, P)."""

    theta: Tensor
    value: Tensor
    slope: Tensor

    def keep(self, chosen: Tensor) -> "_Point":
        return _Point(self.theta[chosen], self.value[chosen], self.slope[chosen])


@dataclass
class _Memory:
    """The last steps and changes of gradient of K runs, oldest first.

    A pair with rate zero counts as absent: so runs forget, or skip a pair of negative curvature,
    one by one although the memory is shared.
    """

    length: int
    steps: list[Tensor] = field(default_factory=list[Tensor])  # (K, P) each
    changes: list[Tensor] = field(default_factory=list[Tensor])  # (K, P)
    rates: list[Tensor] = field(default_factory=list[Tensor])  # (K,) 1 / (step . change)
    scale: Tensor | None = None  # (K,) step . change / |change|^2 of the newest pair

    def add(self, step: Tensor, change: Tensor) -> None:
        product = (step * change).sum(1)
        is_curved = product > 1e-10 * step.norm(dim=1) * change.norm(dim=1)
        rate = torch.where(is_curved, 1 / product, 0.0)
        old = torch.ones_like(product) if self.scale is None else self.scale
        self.scale = torch.where(is_curved, product / (change**2).sum(1), old)
        self.steps = [*self.steps, step][-self.length :]
        self.changes = [*self.changes, change][-self.length :]
        self.rates = [*self.rates, rate][-self.length :]

    def forget(self, chosen: Tensor) -> None:
        self.rates = [torch.where(chosen, 0.0, rate) for rate in self.rates]

    def keep(self, chosen: Tensor) -> None:
        self.steps = [step[chosen] for step in self.steps]
        self.changes = [change[chosen] for change in self.changes]
        self.rates = [rate[chosen] for rate in self.rates]
        self.scale = None if self.scale is None else self.scale[chosen]

    def is_empty(self, runs: int, device: torch.device) -> Tensor:
        """(K,) whether a run remembers nothing."""
        if not self.rates:
            return torch.ones(runs, dtype=torch.bool, device=device)
        return (torch.stack(self.rates) == 0).all(0)

    def direction(self, slope: Tensor, precondition: Preconditioner | None) -> Tensor:
        """Minus the inverse Hessian, as far as it is known, times the gradients (K, P)."""
        pairs = list(zip(self.steps, self.changes, self.rates, strict=True))
        q = slope
        shares: list[Tensor] = []
        for step, change, rate in reversed(pairs):
            share = rate * (step * q).sum(1)
            q = q - share[:, None] * change
            shares.append(share)
        q = self._start(q, precondition)
        for (step, change, rate), share in zip(pairs, reversed(shares), strict=True):
            q = q + (share - rate * (change * q).sum(1))[:, None] * step
        return -q

    def _start(self, q: Tensor, precondition: Preconditioner | None) -> Tensor:
        if precondition is not None:
            return precondition(q)
        if self.scale is None:
            return q / q.norm(dim=1, keepdim=True).clamp_min(1)
        return q * self.scale[:, None]


_TRIALS = 20
_DECREASE = 1e-4


def _search(
    function: Function, rows: Tensor, now: _Point, direction: Tensor
) -> tuple[_Point, Tensor]:
    """Steps along each direction that go down enough, shortened where they do not.

    Close to an optimum the decrease drowns in the rounding of the values long before the gradient
    does: there the slope along the direction decides.

    Returns:
        The new points, and (K,) whether a step was found.
    """
    theta, value, slope = now.theta.clone(), now.value.clone(), now.slope.clone()
    descent = (now.slope * direction).sum(1)
    length = torch.ones_like(descent)
    rounding = 100 * torch.finfo(value.dtype).eps * now.value.abs()
    pending = torch.nonzero(descent < 0).flatten()
    has_moved = torch.zeros_like(descent, dtype=torch.bool)
    for _ in range(_TRIALS):
        if len(pending) == 0:
            break
        t, down, before = length[pending], descent[pending], now.value[pending]
        tried = now.theta[pending] + t[:, None] * direction[pending]
        v, g = function(tried, rows[pending])
        along = (g * direction[pending]).sum(1)
        is_lower = v <= before + _DECREASE * t * down
        is_flat = (v <= before + rounding[pending]) & (along <= (2 * _DECREASE - 1) * down)
        is_good = is_lower | is_flat
        good = pending[is_good]
        theta[good], value[good], slope[good] = tried[is_good], v[is_good], g[is_good]
        has_moved[good] = True
        best = -down * t**2 / (2 * (v - before - t * down))  # of the parabola through both values
        best = torch.where(best.isfinite(), best, 0.0)
        length[pending] = torch.minimum(torch.maximum(best, 0.1 * t), 0.5 * t)
        pending = pending[~is_good]
    return _Point(theta, value, slope), has_moved


# ------------------------------------------------------------ scales and refusals


def _check_weights(problem: Problem, weights: Tensor) -> None:
    is_shaped = weights.ndim == 2 and weights.shape[1] == len(problem)
    if not is_shaped or (problem.renormalize and not bool((weights.sum(1) > 0).all())):
        raise BadArgument(
            found=f"Weights of shape {tuple(weights.shape)} for {len(problem)} training examples.",
            why="A training needs one weight per example, and under renormalize they cannot all "
            "be zero.",
            remedy="Give weights of shape (M, N), 1 = as it was, 0 = removed.",
        )


def _check_useful(norms: Tensor, pull: float, what: str) -> None:
    remaining = norms / pull
    bad = ~(remaining <= USEFUL)
    if bool(bad.any()):
        raise NotConverged(
            found=f"{int(bad.sum())} of {len(norms)} trainings ({what}) found no optimum: the "
            f"gradient of the objective stayed at {remaining.max().item():.2g} times one example's "
            "pull.",
            why="The effect of a removal would drown in what the training left undone.",
            remedy="Pass training=..., your own training as a function (weights, seed) -> trained "
            "model. Without weight decay there may be no optimum; with a hinge or ReLU it may lie "
            "at a kink: smooth_hinge or tanh have none.",
        )
