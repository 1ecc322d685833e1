"""A Nyström sketch of the Gauss-Newton matrix, inverted by the Woodbury identity."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import TRACE_PROBES, Curvature, LowRankIHVP, Trace, least_decay
from whence.errors import BadArgument, NegativeCurvature
from whence.numerics.linalg import LowRank, NystromSketch, nystrom, trace


@dataclass(frozen=True)
class Nystrom(Curvature):
    """(H + damping I)^-1 by a sketch of H from one product with `rank` vectors over all data.

        H ~ floor I + U^T diag(l) U = floor I + (A W^T) (W A W^T)^-1 (W A),    A = H - floor I
        (H + damping I)^-1 v ~ U^T diag(1 / (l + floor + damping)) U v
                               + (I - U^T U) v / (floor + damping)

    H is the Gauss-Newton matrix, W (r, P) random and orthonormal, U (r, P) orthonormal, and floor
    the smallest weight decay of a parameter, which no eigenvalue of H is below. The sketch is never
    larger than H, and equal to it at rank P. What it leaves out counts as flat: divided by floor +
    damping, or, where both are zero, left out of the solution, with a warning.

    Args:
        rank: r, at most P.
        damping: added to every eigenvalue; "auto" is 0 where the Hessian equals the Gauss-Newton
            matrix (linear models), else three times the mean eigenvalue.
        seed: of the random vectors.

    Cost: products with r and with 30 vectors over all data, 10 r^2 P multiplications, 5 r P numbers
    in float64 (r P in the type of the model are kept); for K vectors one product and 4 K r P
    multiplications.

    Source: the sketch as in Frangella, Tropp & Udell 2021 (arXiv:2110.02820), algorithm 2.1, there
    for preconditioning; the trace of what it leaves out as in Persson, Cortinovis & Kressner 2022
    (arXiv:2109.10659); the identity of Woodbury 1950 (all three cited from memory).

    >>> from whence.adapters import make_problem
    >>> row, one = torch.tensor([[3.0, 4.0]]).double(), torch.ones(1).double()
    >>> line = torch.nn.Linear(2, 1, bias=False).double().eval()
    >>> problem = make_problem(line, (row, one), loss="mse", weight_decay=2.0)
    >>> Nystrom(rank=1).fit(problem).solve(row).vectors * (2 + 2 * 25)     # (2 I + 2 x x^T)^-1 x
    tensor([[3.0000, 4.0000]], dtype=torch.float64)
    """

    rank: int = 100
    damping: float | Literal["auto"] = "auto"
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> LowRankIHVP:
        """Sketches the matrix, and estimates what the sketch leaves out.

        Raises:
            BadArgument: a rank below one, or a damping below zero.
            NegativeCurvature: the matrix is not positive: the loss is not convex in the outputs,
                or the regulariser in the parameters.
        """
        self._check()
        is_linear = hessian_is_ggn(problem)
        matrix = CurvatureMatrix(problem, "ggn", data_scale)
        floor, like = least_decay(problem), problem.parameters

        def above_floor(stack: Tensor) -> Tensor:
            return matrix(stack) - floor * stack

        sketch = nystrom(above_floor, like, rank=self.rank, seed=self.seed)
        _refuse_negative(sketch, eps=torch.finfo(problem.dtype).eps)

        def missed(stack: Tensor) -> Tensor:
            return above_floor(stack) - sketch.multiply(stack)

        # Signs of the numbers that the sketch was drawn from would not be independent of it.
        rest = trace(missed, like, probes=TRACE_PROBES, seed=-1 - self.seed)
        total = Trace(float(sketch.values.sum()), *rest)
        known = LowRank(sketch.basis.to(like).contiguous(), sketch.values + floor, floor)
        damping = self.damping
        if damping == "auto":
            damping = 0.0 if is_linear else total.damping(problem.size, floor)
        report = {
            "curvature": "nystrom",
            "matrix": "hessian" if is_linear else "ggn",
            "matrix_reason": _REASONS[is_linear],
            "damping": float(damping),
            "rank": len(known.values),
            **total.facts(),
            "largest_eigenvalue": max([floor, *known.values.tolist()]),
            "floor": floor,
            "seed": self.seed,
        }
        return LowRankIHVP(matrix, known, float(damping), report)

    def _check(self) -> None:
        is_damped = self.damping == "auto" or (self.damping >= 0 and isfinite(self.damping))
        if not (is_damped and self.rank >= 1):
            raise BadArgument(
                found=f"{self}.",
                why="The sketch has one direction or more, and damping is added to eigenvalues.",
                remedy='Give a rank of one or more, and a damping of zero or more, or "auto".',
            )


_REASONS = {
    True: "the Hessian equals the Gauss-Newton matrix, as for every linear model",
    False: "only a matrix that is never negative can be sketched",
}


def _refuse_negative(sketch: NystromSketch, eps: float) -> None:
    """Refuses a matrix with negative eigenvalues that are more than rounding."""
    lowest, highest = float(sketch.inside[0]), float(sketch.inside.abs().max())
    if lowest < -10 * len(sketch.inside) * eps * highest:
        raise NegativeCurvature(
            found=f"Among {len(sketch.inside)} random directions the Gauss-Newton matrix, less the "
            f"weight decay that all parameters share, has the eigenvalue {lowest:.3g}.",
            why="Only a matrix that is never negative can be sketched.",
            remedy='Use curvature="exact", or a loss that is convex in the outputs.',
        )
