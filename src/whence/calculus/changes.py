"""What a change of the training data does to the objective: its pull, and its curvature.

Examples k leave with their base weight b_k, and others (or the same with another weight) come in
with a weight c_k. With D what the sum of losses is divided by afterwards, g the mean data gradient
and a movement d of the parameters, everything that stays is taken to second order at the old
optimum, and what comes in as it is, through outputs that are linear in d:

    R'(d) ~ (N/D) d^T H_data d / 2 + r(d) + (N/D - 1) g^T d
            - (1/D) sum_leaving b_k [ r_k^T J_k d + d^T J_k^T S_k J_k d / 2 ]
            + (1/D) sum_coming  c_k loss(f_k + J_k d)

A removal brings nothing in: R' is quadratic, and one Newton step ends at its minimum, which for a
single example is what `whence.calculus.removal` computes for all examples at once. Otherwise a few
steps do, of which the first is the Newton step of the whole objective. First order moves the
parameters by H^-1 times the force at d = 0, divided by N.

Source: Koh, Ang, Teo & Liang 2019 (arXiv:1905.13289), the Newton step for groups (cited from
memory); new contents, other weights and the renormalised mean are derived here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.calculus.gradients import jacobian_batch, jacobians, output_hessians, residuals
from whence.core.batches import Batch
from whence.core.changes import Change
from whence.core.problem import Problem
from whence.errors import BadArgument
from whence.numerics.linalg import Product

_KEPT = 2**26
"""Numbers of Jacobians that are kept between steps: half a gigabyte in float64."""


@dataclass(frozen=True)
class Pull:
    """The force of a change, and what it does to the curvature.

    Args:
        problem: before the change.
        change: what becomes of some examples.
        mean: (P,) mean data gradient g; needed under `renormalize`.
    """

    problem: Problem
    change: Change
    mean: Tensor

    @property
    def is_removal(self) -> bool:
        """Whether nothing comes in."""
        return not bool((self.change.weights > 0).any())

    @property
    def divisor(self) -> float:
        """D: N, or under `renormalize` what the weights add up to afterwards.

        Raises:
            BadArgument: nothing would remain.
        """
        count = float(len(self.problem))
        if not self.problem.renormalize:
            return count
        rest = count + float((self.change.weights - 1).sum())
        if rest <= 0:
            raise BadArgument(
                found=f"All {len(self.problem)} training examples would be left out.",
                why="Under renormalize the objective is the mean over what remains.",
                remedy="Leave out fewer.",
            )
        return rest

    def force(self, move: Tensor | None = None) -> Tensor:
        """(P,) -D grad R' at d, plus D times its curvature times d; at d = 0 just the pull.

        Args:
            move: (P,) d, default zero.
        """
        total = -(len(self.problem) - self.divisor) * self.mean
        for example in self._pieces:
            shift = None if move is None else example.shift(move)
            slopes = residuals(self.problem, example.batch, shift=shift)
            if shift is not None:
                bend = output_hessians(self.problem, example.batch, shift=shift)
                slopes = slopes - torch.einsum("bcd,bd->bc", bend, shift)
            weighted = slopes * example.weights[:, None]
            total = total + torch.einsum("bcp,bc->p", example.jacobians(), weighted)
        return total

    def bend(self, move: Tensor | None = None) -> Product:
        """What is added to the matrix at d, as a map of stacks (K, P).

            v -> (1/D) [ sum_coming c_k J_k^T S_k(d) J_k v - sum_leaving b_k J_k^T S_k J_k v ]

        Args:
            move: (P,) d, default zero.
        """
        bends = [
            output_hessians(
                self.problem, example.batch, shift=None if move is None else example.shift(move)
            )
            * example.weights[:, None, None]
            for example in self._pieces
        ]
        divisor = self.divisor

        def product(vectors: Tensor) -> Tensor:
            total = torch.zeros_like(vectors)
            for example, bend in zip(self._pieces, bends, strict=True):
                jac = example.jacobians().to(vectors)
                moved = torch.einsum("bcp,kp->kbc", jac, vectors)
                total -= torch.einsum("bcp,bcd,kbd->kp", jac, bend.to(vectors), moved)
            return total / divisor

        return product

    @cached_property
    def _pieces(self) -> "list[_Piece]":
        """What leaves, and what comes in with a negative weight."""
        numbers = 2 * len(self.change) * self.problem.output_size * self.problem.size
        return [
            _Piece(self.problem, batch, weights, is_coming, numbers <= _KEPT)
            for batch, weights, is_coming in self._batches()
        ]

    def _batches(self) -> Iterator[tuple[Batch, Tensor, bool]]:
        size = jacobian_batch(self.problem)
        for batch, weights in self.change.leaving(self.problem, size):
            yield batch, weights, False
        for batch, weights in self.change.coming(self.problem, size):
            yield batch, -weights, True


@dataclass(frozen=True)
class _Piece:
    """A batch of examples that leave, or come in with negative weights (B,)."""

    problem: Problem
    batch: Batch
    weights: Tensor
    is_coming: bool
    is_kept: bool

    def jacobians(self) -> Tensor:
        """(B, C, P), made once where there is room to keep them."""
        return self._kept if self.is_kept else jacobians(self.problem, self.batch)

    @cached_property
    def _kept(self) -> Tensor:
        return jacobians(self.problem, self.batch)

    def shift(self, move: Tensor) -> Tensor | None:
        """(B, C) how the outputs of what comes in move; what leaves is as it was."""
        if not self.is_coming:
            return None
        return torch.einsum("bcp,p->bc", self.jacobians(), move)
