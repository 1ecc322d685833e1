"""What the removal of one example does along given directions: first order, and one Newton step.

Without example i the objective has the gradient -b and the Hessian A_i at the old optimum:

    b   = (J_i^T r_i - mean) / D
    A_i = H - J_i^T S_i J_i / D        D = N,     mean = 0                   N fixed
                                       D = N - 1, mean = mean data gradient  renormalized

r_i and S_i are the first and second derivatives of loss i with respect to its outputs, base weight
included, J_i its output Jacobian. One Newton step moves the parameters by A_i^-1 b, which the
Woodbury identity gives through the leverage K_i = J_i H^-1 J_i^T, a C x C matrix:

    A_i^-1 b = H^-1 b + H^-1 J_i^T (D I - S_i K_i)^-1 S_i J_i H^-1 b

First order keeps only H^-1 b. Under `renormalize` H is the matrix of the N - 1 remaining examples
before the one is taken out: its data part is scaled by N / (N - 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.calculus.gradients import inner, output_hessians, outputs, residuals
from whence.core.batches import Batch
from whence.core.problem import Problem


@dataclass(frozen=True)
class Removal:
    """Removal of single examples, seen along K directions.

    Args:
        problem: what was trained.
        psi: (K, P) solved directions H^-1 v.
        mean: (P,) mean data gradient under `renormalize`, else None.
        solved_mean: (1, P) H^-1 mean, needed for the Newton step under `renormalize`.
    """

    problem: Problem
    psi: Tensor
    mean: Tensor | None = None
    solved_mean: Tensor | None = None

    @property
    def divisor(self) -> float:
        """D for the Newton step."""
        return len(self.problem) - float(self.problem.renormalize)

    def first_order(self, batch: Batch) -> Tensor:
        """V . H^-1 b for each direction and example.

        Returns:
            (K, B), divided by N under both conventions: the derivative with respect to w_i.
        """
        pull = inner(self.problem, self.psi, batch) * batch.weights
        return (pull - self._mean_along()) / len(self.problem)

    def newton(self, batch: Batch, leverage: Tensor) -> tuple[Tensor, Tensor]:
        """V . A_i^-1 b for each direction and example.

        Args:
            batch: B examples.
            leverage: (B, C, C) K_i.

        Returns:
            (K, B) effects, and (B,) the largest eigenvalue of S_i K_i / D. Where that reaches one,
            up to rounding, A_i is not positive definite and first order stands instead of a step
            that does not exist.
        """
        pull, drift = self._forces(batch, leverage)
        along = outputs(self.problem, self.psi, batch)  # (K, B, C)
        first = (torch.einsum("kbc,bc->kb", along, pull) - self._mean_along()) / self.divisor
        system, bend, shares = self._system(batch, leverage)
        force = torch.einsum("bcd,bd->bc", bend, drift / self.divisor)
        step = torch.linalg.solve(system, force)  # (B, C)
        return first + torch.einsum("kbc,bc->kb", along, step), shares

    def own(self, batch: Batch, leverage: Tensor, *, is_newton: bool) -> tuple[Tensor, Tensor]:
        """What the removal of each example does to its own outputs.

        J_i A_i^-1 b, how they move, and J_i A_i^-1 J_i^T / D = K_i (D I - S_i K_i)^-1, how far the
        rest of the data leaves them open; to first order J_i H^-1 b and K_i / N.

        Args:
            batch: B examples.
            leverage: (B, C, C) K_i.
            is_newton: whether the removal is a Newton step instead of first order.

        Returns:
            (B, C) and (B, C, C). Under `renormalize` both forms need `solved_mean`.
        """
        _, drift = self._forces(batch, leverage)
        if not is_newton:
            return drift / len(self.problem), leverage / len(self.problem)
        system, bend, _ = self._system(batch, leverage)
        both = torch.cat([drift[:, :, None], leverage], 2) / self.divisor
        ahead = both + leverage @ torch.linalg.solve(system, bend @ both)
        return ahead[:, :, 0], ahead[:, :, 1:]

    def _forces(self, batch: Batch, leverage: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) b_i r_i, and D J_i H^-1 b, what that force does to the outputs."""
        pull = residuals(self.problem, batch) * batch.weights[:, None]
        drift = torch.einsum("bcd,bd->bc", leverage, pull)
        if self.solved_mean is not None:
            drift = drift - outputs(self.problem, self.solved_mean, batch)[0]
        return pull, drift

    def _system(self, batch: Batch, leverage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, C) D I - S_i K_i and S_i, and (B,) the largest eigenvalue of S_i K_i / D.

        Where that reaches one there is no step: the system is then I, and S_i zero.
        """
        bend = output_hessians(self.problem, batch) * batch.weights[:, None, None]
        shares = _largest_eigenvalue(bend, leverage) / self.divisor
        # Rounding cannot tell a leverage of one, where the step is 0 / 0, from one just below it.
        is_possible = (shares < 1 - torch.finfo(shares.dtype).eps ** 0.5)[:, None, None]
        eye = torch.eye(bend.shape[1]).to(bend)
        system = torch.where(is_possible, self.divisor * eye - bend @ leverage, eye)
        return system, bend * is_possible, shares

    def _mean_along(self) -> Tensor:
        """(K, 1) the directions times the mean data gradient."""
        if self.mean is None:
            return self.psi.new_zeros(len(self.psi), 1)
        return (self.psi @ self.mean)[:, None]


def _largest_eigenvalue(bend: Tensor, leverage: Tensor) -> Tensor:
    """(B,) largest eigenvalue of S K, which is that of the symmetric K^1/2 S K^1/2."""
    values, vectors = torch.linalg.eigh(leverage)
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return torch.linalg.eigvalsh(root.mT @ bend @ root)[:, -1]
