"""The diagonal of the Gauss-Newton matrix: one number a parameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from whence.calculus.fisher import MOST_OUTPUTS, Fisher, FisherName
from whence.calculus.gradients import jacobian_batch, jacobians, output_hessians
from whence.calculus.kronecker import Basis, KroneckerBlock, Pass, sum_of_squares
from whence.calculus.layers import Block, structure_of
from whence.calculus.products import CurvatureMatrix, decay_diagonal, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import (
    IHVP,
    LAYER_DAMPING,
    Curvature,
    Solution,
    largest_residual,
    make_fisher,
)
from whence.errors import BadArgument, NegativeCurvature, NonFinite


@dataclass(frozen=True)
class Diagonal(Curvature):
    """(diag(H) + damping I)^-1: every parameter for itself.

        diag(H)_p = (s/N) sum_i b_i sum_cd J_i[c, p] S_i[c, d] J_i[d, p] + d^2 r / d theta_p^2

    H is the Gauss-Newton matrix, J_i the output Jacobian (C, P) of example i, S_i the Hessian of
    its loss with respect to its outputs, b_i its base weight. It is the sum of squared gradients
    under the Fisher information (`whence.calculus.fisher`), and exact where that is expected; that
    parameters act together is what it leaves out, and the residual of each solve says how much
    that matters.

    Args:
        damping: added to every entry; "auto" is 0 where the Hessian equals the Gauss-Newton matrix
            (linear models), else 0.3 times the mean entry. With a damping of zero entries that are
            zero are left out, and counted.
        fisher: "expected", "sampled" or "empirical"; "auto" is expected where a backward pass for
            every output takes a few seconds.
        seed: of the signs where it is sampled.

    Raises:
        Unsupported: on fitting, a loss with more than 100 outputs whose Fisher information has no
            form that whence knows.

    Cost: a forward pass and, expected, a backward pass for each output of an example, sampled, one
    alone; P numbers; for K vectors one product, for the residual.

    Source: Becker & LeCun 1988, "Improving the convergence of back-propagation learning with second
    order methods" (cited from memory).

    >>> from whence.adapters import make_problem
    >>> row, one = torch.tensor([[3.0, 4.0]]).double(), torch.ones(1).double()
    >>> line = torch.nn.Linear(2, 1, bias=False).double().eval()
    >>> problem = make_problem(line, (row, one), loss="mse", weight_decay=2.0)
    >>> Diagonal().fit(problem).diagonal                                    # 2 + 2 x^2
    tensor([20.0000, 34.0000], dtype=torch.float64)
    """

    damping: float | Literal["auto"] = "auto"
    fisher: FisherName | Literal["auto"] = "auto"
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "DiagonalIHVP":
        """Collects the squares of all gradients.

        Raises:
            BadArgument: a damping below zero, or an unknown `fisher`.
            Unsupported: many outputs, and a loss whose Fisher information is not known.
            NegativeCurvature: an entry with its damping is negative.
            NonFinite: an entry is not a number.
        """
        fisher = self._checked(problem)
        is_linear = hessian_is_ggn(problem)
        matrix = CurvatureMatrix(problem, "ggn", data_scale)
        diagonal = data_scale * _data_diagonal(problem, fisher) + _decay(matrix)
        _refuse_non_finite(diagonal)
        damping = self.damping
        if damping == "auto":
            damping = 0.0 if is_linear else LAYER_DAMPING * float(diagonal.mean())
        smallest = float(diagonal.min())
        if smallest + damping < 0:
            raise NegativeCurvature(
                found=f"The diagonal has the entry {smallest:.3g}, damping {damping:.3g}.",
                why="At a saddle the response to a removal is not a minimum of anything.",
                remedy=f"Give a damping above {-smallest:.3g}, or use a loss that is convex in the "
                "outputs.",
            )
        report = {
            "curvature": "diagonal",
            "matrix": "hessian" if is_linear else "ggn",
            "matrix_reason": _REASONS[is_linear],
            "fisher": fisher.kind,
            "damping": float(damping),
            "smallest_entry": smallest,
            "largest_entry": float(diagonal.max()),
            "null_entries": int((diagonal + damping == 0).sum()),
        }
        return DiagonalIHVP(matrix, diagonal, float(damping), report)

    def _checked(self, problem: Problem) -> Fisher:
        """The slopes whose squared gradients are summed."""
        if self.damping != "auto" and not (self.damping >= 0 and isfinite(self.damping)):
            raise BadArgument(
                found=f"{self}.",
                why="Damping is added to every entry; a negative one can make it zero.",
                remedy='Give a damping of zero or more, or "auto".',
            )
        fisher = make_fisher(problem, self.fisher, self.seed)
        fisher.check_kind()
        return fisher


_REASONS = {
    True: "the Hessian equals the Gauss-Newton matrix, as for every linear model",
    False: "the diagonal of a Hessian can be negative",
}


@dataclass(frozen=True)
class DiagonalIHVP(IHVP):
    """One number a parameter.

    Args:
        matrix: the whole matrix as a linear map, for the residual.
        diagonal: (P,) its diagonal, in float64.
        damping: added to every entry.
        facts: what the fit has found.
    """

    matrix: CurvatureMatrix
    diagonal: Tensor
    damping: float
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def solve(self, vectors: Tensor) -> Solution:
        """Each vector divided by the diagonal, with the residual of the whole matrix."""
        solved = vectors * self._inverse.to(vectors)
        residual = largest_residual(self.matrix, solved, vectors, damping=self.damping)
        return Solution(solved, {"residual": residual})

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (diag(H) + damping I)^-1 J_b^T for each example."""
        half = jacobians * self._inverse.sqrt().to(jacobians)
        return half @ half.mT

    @property
    def _inverse(self) -> Tensor:
        """(P,) in float64; zero where an entry is."""
        entries = self.diagonal + self.damping
        return torch.where(entries == 0, 0.0, 1 / entries)


def _data_diagonal(problem: Problem, fisher: Fisher) -> Tensor:
    """(P,) float64 (1/N) sum_i b_i diag(J_i^T S_i J_i)."""
    try:
        everyone = torch.arange(len(problem))
        return squared_gradients(problem, fisher, everyone) / len(problem)
    except NegativeCurvature:  # a loss that is not convex in the outputs: S_i has no root
        if problem.output_size > MOST_OUTPUTS:
            raise
    total = torch.zeros(problem.size, dtype=torch.float64, device=problem.device)
    for batch in problem.batches(jacobian_batch(problem)):
        jac = jacobians(problem, batch)  # (B, C, P)
        bend = output_hessians(problem, batch) * batch.weights[:, None, None]
        total += (jac * (bend @ jac)).sum((0, 1)).double()
    return total / len(problem)


def squared_gradients(problem: Problem, fisher: Fisher, positions: Tensor) -> Tensor:
    """(P,) float64 sum of squared gradients under the Fisher information, from their factors.

    Args:
        problem: model, loss and data.
        fisher: slopes of the outputs.
        positions: of the examples.
    """
    structure = structure_of(problem)
    blocks = [_coordinates(block, problem.parameters) for block in structure.blocks]
    run = Pass(problem, structure, fisher)
    totals = sum_of_squares(run, positions, blocks, label="Squaring gradients")
    return structure.scatter(problem, [total[None] for total in totals])[0]


def _coordinates(block: Block, like: Tensor) -> KroneckerBlock:
    """A block whose bases are the coordinates."""
    values = like.new_zeros(block.groups, block.rows, block.columns)
    return KroneckerBlock(Basis(None, values[:, :, 0]), Basis(None, values[:, 0]), values, 0.0)


def _decay(matrix: CurvatureMatrix) -> Tensor:
    """(P,) float64 diagonal of the Hessian of the regulariser."""
    problem = matrix.problem
    found = decay_diagonal(problem)
    if found is not None:
        return found
    parts: list[Tensor] = []  # it couples parameters: unit vectors pick the diagonal out
    for rows in torch.arange(problem.size, device=problem.device).split(_TOGETHER):
        units = torch.zeros(len(rows), problem.size).to(problem.parameters)
        units[torch.arange(len(rows)), rows] = 1
        parts.append((units * matrix.penalty_product(units)).sum(1).double())
    return torch.cat(parts)


_TOGETHER = 256
"""Unit vectors that are multiplied together."""


def _refuse_non_finite(diagonal: Tensor) -> None:
    if not bool(diagonal.isfinite().all()):
        raise NonFinite(
            found=f"{int((~diagonal.isfinite()).sum())} entries of the diagonal are NaN or "
            "infinite.",
            why="They cannot be divided by.",
            remedy="Look for overflow or square roots at zero in the model.",
        )
