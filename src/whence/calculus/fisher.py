"""The Fisher information through slopes of the outputs: (B, ...) tensors r_i with E r r^T = S_i.

For losses that are negative log-likelihoods the Fisher information is the Gauss-Newton matrix

    G = (1/N) sum_i b_i J_i^T S_i J_i,        S_i = Hessian of loss_i with respect to the outputs

so back-propagating any slopes r_i with E r_i r_i^T = b_i S_i gives gradients whose second moment
is G. Three choices:

    expected    the columns of M_i, M_i M_i^T = S_i, one backward pass for each: no noise. An
                example with more than 100 outputs at several positions takes one pass for each
                class: random signs keep the positions apart, and the only noise is between them
    sampled     r_i = M_i e with random signs e: one backward pass. Drawing labels from the model
                has the same mean; signs have less variance, as |r|^2 is tr S_i nearly always where
                a confident model draws a surprising label rarely, with a large gradient
    empirical   the gradient of the loss itself: G only where the model fits the labels' noise

For cross-entropy M = diag(sqrt p) - p sqrt(p)^T, at every position by itself, so that sequences
need no more than a few backward passes. A loss of the user's own that adds up cross-entropies over
positions, such as their mean over the tokens that count, is recognised by its derivatives and gets
the same. Losses that treat predicted numbers one by one, such as the squared error, have a diagonal
S_i. Others take the root of S_i, and need few outputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from whence.calculus.gradients import output_hessians, residuals
from whence.core.batches import Batch
from whence.core.losses import IGNORED
from whence.core.problem import Problem
from whence.errors import BadArgument, NegativeCurvature, NonFinite, Unsupported
from whence.numerics.draws import Words, keys, signs

FisherName = Literal["expected", "sampled", "empirical"]

MOST_OUTPUTS = 100
"""Up to so many outputs each has a backward pass of its own where slopes are expected ones; above,
S_i has to be diagonal, or of a form that is known."""

_NEGATIVE = 1e-4
"""Share of its largest eigenvalue by which an output Hessian may be negative, as by rounding."""


_LOOKED_AT = 256
"""Examples in which a loss has to show some curvature; a squared hinge has none at most of them."""


@dataclass(frozen=True)
class Fisher:
    """Slopes of the outputs whose second moment is that of the Fisher information.

    Args:
        kind: "expected", "sampled" or "empirical".
        seed: of the signs; an example draws the same ones in every batch.
        draws: how many sets of signs are drawn for each example.
    """

    kind: FisherName = "sampled"
    seed: int = 0
    draws: int = 1

    def check(self, problem: Problem) -> None:
        """Refuses a loss that has no Fisher information that whence could find.

        Raises:
            Unsupported: many outputs and no closed form, or no curvature at all.
            BadArgument: an unknown kind.
        """
        self.check_kind()
        if self.kind == "empirical":
            return
        count = min(_LOOKED_AT, len(problem), problem.batch_size())
        few = torch.linspace(0, len(problem) - 1, count).long()

        def is_bent(batch: Batch) -> bool:
            with torch.no_grad():
                values = problem.outputs(problem.parameters, batch.inputs)
            return any(bool(rows.any()) for rows in self.slopes(problem, batch, values))

        if not any(found for _, found in problem.sweep(is_bent, count, positions=few)):
            raise Unsupported(
                found=f"The loss {problem.loss.name!r} has no curvature at the outputs of "
                f"{count} examples.",
                why="Where a loss is piecewise linear its Gauss-Newton matrix is zero.",
                remedy='Use a smooth loss, such as "smooth_hinge:0.001", or fisher="empirical".',
            )

    def check_kind(self) -> None:
        """Refuses a choice that does not exist."""
        if self.kind not in ("expected", "sampled", "empirical") or self.draws < 1:
            raise BadArgument(
                found=f"fisher={self.kind!r}, draws={self.draws}.",
                why='The Fisher information is "expected", "sampled" or "empirical", from one draw '
                "or more.",
                remedy='Leave it out, or give fisher="sampled".',
            )

    def slopes(self, problem: Problem, batch: Batch, values: Tensor) -> Iterator[Tensor]:
        """Each (B, C): outputs flattened, base weights in; r r^T summed over them is b_i S_i.

        Args:
            problem: model and loss.
            batch: B examples.
            values: (B, ...) outputs of the model for them.

        Raises:
            NegativeCurvature: a loss that is not convex in the outputs.
            NonFinite: an output is not a number.
            Unsupported: many outputs and no closed form.
        """
        root = batch.weights.sqrt()[:, None]
        if self.kind == "empirical":
            yield residuals(problem, batch, values=values) * root
            return
        values = values.detach()
        if not bool(values.isfinite().all()):
            row = int(torch.nonzero(~values.isfinite().reshape(len(values), -1).all(1))[0, 0])
            raise NonFinite(
                found="An output of the model for training example "
                f"{problem.data.ids[int(batch.positions[row])]} is NaN or infinite.",
                why="The curvature of its loss is not a number.",
                remedy="Look for overflow or square roots at zero in the model.",
            )
        times, axis = _root(problem, batch, values)
        key = keys(problem.data.ids[batch.positions.numpy()])
        for vectors in self._vectors(values, key, axis):
            yield times(vectors.reshape(values.shape)).reshape(len(values), -1) * root

    def _vectors(self, values: Tensor, key: Words, axis: int | None) -> Iterator[Tensor]:
        """What M is multiplied with: random signs, or the unit vectors one after the other."""
        if self.kind == "sampled":
            for draw in range(self.draws):
                drawn = signs(self.seed + _APART * draw, key, values[0].numel())
                yield drawn.to(values) / self.draws**0.5
            return
        if axis is None or values[0].numel() <= MOST_OUTPUTS:
            for column in range(values[0].numel()):
                unit = values.new_zeros(len(values), values[0].numel())
                unit[:, column] = 1
                yield unit
            return
        # Labels at different positions are independent: signs keep them from adding up.
        sign = signs(self.seed, key, values[0].numel() // values.shape[axis]).to(values)
        for column in range(values.shape[axis]):
            unit = torch.zeros_like(values)
            chosen = unit.select(axis, column)
            chosen.copy_(sign.reshape(chosen.shape))
            yield unit


_APART = 1009
"""Seeds of the draws of one example are so far apart."""

_Root = Callable[[Tensor], Tensor]


def _root(problem: Problem, batch: Batch, values: Tensor) -> tuple[_Root, int | None]:
    """The map e -> M e for (B, ...) vectors in the shape of the outputs.

    Beside it stands the axis of the classes, where every position has its own.
    """
    if problem.loss.task == "classes":
        counted = (cast("Tensor", batch.targets) != IGNORED).to(values)
        return _softmax_root(values, counted.reshape(len(batch), 1, *values.shape[2:]), 1), 1
    count = values[0].numel()
    if count > 1 and (bend := _diagonal(problem, batch, values)) is not None:
        _refuse_negative(problem, float(bend.min()), float(bend.abs().max()))
        return lambda e: bend.clamp_min(0).sqrt() * e.reshape(len(e), -1), None
    if count > MOST_OUTPUTS and (found := _added_up(problem, batch, values)) is not None:
        return _softmax_root(values, *found), found[1]
    if count > MOST_OUTPUTS:
        raise Unsupported(
            found=f"The loss {problem.loss.name!r} on {count:,} outputs per example: whence does "
            "not know how to sample its labels.",
            why="The Fisher information needs a root of the loss's Hessian with respect to the "
            f"outputs; above {MOST_OUTPUTS} outputs that takes a closed form.",
            remedy="Use a loss that adds up cross-entropies over positions, such as "
            'loss="cross_entropy" with outputs (B, C, positions) and targets (B, positions), or '
            'fisher="empirical".',
        )
    bends = output_hessians(problem, batch, values=values)
    found, basis = torch.linalg.eigh(bends)
    _refuse_negative(problem, float(found.min()), float(found.abs().max()))
    half = basis * found.clamp_min(0).sqrt()[:, None]
    return lambda e: torch.einsum("bcd,bd->bc", half, e.reshape(len(e), -1)), None


def _softmax_root(values: Tensor, counts: Tensor, axis: int) -> _Root:
    """The map e -> M e for sums of cross-entropies over positions.

    Args:
        values: (B, ...) logits, with the classes along one axis.
        counts: what each position counts in the sum, of size 1 along that axis.
        axis: of the classes.
    """
    chance = values.softmax(axis)
    half = chance.sqrt() * counts.sqrt()
    return lambda e: half * e - chance * (half * e).sum(axis, keepdim=True)


def _added_up(problem: Problem, batch: Batch, values: Tensor) -> tuple[Tensor, int] | None:
    """What each position counts, and the axis of the classes, of a sum of cross-entropies.

    The derivative by the logits is then w (p - the unit vector of the label) at every position.
    Over p it is w for all classes but the label, where it is negative: so w is the larger one of
    the two likeliest classes. None for any other loss.
    """
    slopes = residuals(problem, batch, values=values).reshape(values.shape)
    for axis in dict.fromkeys((1, values.ndim - 1)):
        chance = values.softmax(axis)
        likely = chance.topk(min(2, values.shape[axis]), axis)
        counts = (slopes.gather(axis, likely.indices) / likely.values).amax(axis, keepdim=True)
        label = (slopes - counts * chance).argmin(axis, keepdim=True)
        expected = counts * chance.scatter_add(axis, label, -torch.ones_like(counts))
        error = float((slopes - expected).norm())
        is_one = error <= 1e3 * torch.finfo(values.dtype).eps * float(slopes.norm())
        if is_one and bool((counts >= 0).all() and counts.any()):
            return counts, axis
    return None


def _diagonal(problem: Problem, batch: Batch, values: Tensor) -> Tensor | None:
    """(B, C) diagonal of the output Hessians where they are diagonal, else None.

    A diagonal matrix times any vector is its row sums times that vector, entry by entry. Another
    matrix fails this on a random vector with probability one.
    """
    leaf = values.detach().requires_grad_(True)
    losses = problem.loss(leaf, cast("Tensor", batch.targets))
    (slopes,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True, materialize_grads=True)
    if not slopes.requires_grad:  # a loss that is linear in the outputs
        return torch.zeros_like(slopes).reshape(len(batch), -1)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(slopes.shape, generator=generator, dtype=torch.float64).to(slopes)
    sums, found = (
        torch.autograd.grad(slopes, leaf, along, retain_graph=True, materialize_grads=True)[0]
        for along in (torch.ones_like(slopes), probe)
    )
    gap = (found - sums * probe).norm()
    is_diagonal = bool(gap <= 1e3 * torch.finfo(values.dtype).eps * found.norm())
    return sums.reshape(len(batch), -1) if is_diagonal else None


def _refuse_negative(problem: Problem, smallest: float, largest: float) -> None:
    if smallest < -_NEGATIVE * largest:
        raise NegativeCurvature(
            found=f"The loss {problem.loss.name!r} bends downwards in the outputs: the smallest "
            f"eigenvalue of an output Hessian is {smallest:.2g}.",
            why="It is then no Fisher information, which is never negative.",
            remedy='Use fisher="empirical", or curvature="exact" or "cg".',
        )
