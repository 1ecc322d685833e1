"""What a change of the training data does to the objective: its pull, and its curvature.

With delta_k the base weight with which example k leaves (negative for what comes in), D what the
sum of losses is divided by afterwards and g the mean data gradient,

    R'(theta) = (1/D) [N mean loss - sum_k delta_k loss_k] + r(theta)
    b  = -grad R'  = (sum_k delta_k grad loss_k - (N - D) g) / D          at the old optimum
    A  = (N/D) H_data + hess r - (1/D) sum_k delta_k J_k^T S_k J_k        its Gauss-Newton Hessian

One Newton step moves the parameters by A^-1 b; first order moves them by H^-1 b D / N. D is N, or
under `renormalize` what the weights add up to. For the removal of one example both are what
`whence.calculus.removal` computes for all examples at once.

Source: Koh, Ang, Teo & Liang 2019 (arXiv:1905.13289), the Newton step for groups (cited from
memory); groups, new contents and the renormalised mean derived here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.calculus.gradients import jacobian_batch, jacobians, output_hessians, residuals
from whence.core.changes import Change
from whence.core.problem import Problem
from whence.errors import BadArgument
from whence.numerics.linalg import Product


@dataclass(frozen=True)
class Pull:
    """The force of a change and what it takes from the curvature.

    Args:
        problem: before the change.
        change: what becomes of some examples.
        mean: (P,) mean data gradient g; needed under `renormalize`.
    """

    problem: Problem
    change: Change
    mean: Tensor

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

    def force(self) -> Tensor:
        """(P,) D b: the sum of the gradients that leave, less the mean for each that is missing."""
        total = torch.zeros_like(self.problem.parameters)
        for jac, slopes, _ in self._pieces():
            total += torch.einsum("bcp,bc->p", jac, slopes)
        return total - (len(self.problem) - self.divisor) * self.mean

    def bend(self) -> Product:
        """What leaves the matrix: v -> -(1/D) sum_k delta_k J_k^T S_k J_k v, for stacks (K, P).

        The Jacobians of a small group are kept; those of a large one are made again each time.
        """
        numbers = 2 * len(self.change) * self.problem.output_size * self.problem.size
        kept = list(self._pieces()) if numbers <= _KEPT else None
        divisor = self.divisor

        def product(vectors: Tensor) -> Tensor:
            total = torch.zeros_like(vectors)
            for jac, _, bend in self._pieces() if kept is None else kept:
                jac, bend = jac.to(vectors), bend.to(vectors)
                moved = torch.einsum("bcp,kp->kbc", jac, vectors)
                total -= torch.einsum("bcp,bcd,kbd->kp", jac, bend, moved)
            return total / divisor

        return product

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Jacobians (B, C, P), slopes delta r (B, C) and Hessians delta S (B, C, C)."""
        for batch, weights in self.change.departures(self.problem, jacobian_batch(self.problem)):
            slopes = residuals(self.problem, batch) * weights[:, None]
            bend = output_hessians(self.problem, batch) * weights[:, None, None]
            yield jacobians(self.problem, batch), slopes, bend


_KEPT = 2**26
"""Numbers of Jacobians that are kept between products: half a gigabyte in float64."""
