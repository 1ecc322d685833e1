"""The matrix within a Krylov space, by Lanczos steps over all data."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from torch import Tensor

from whence.calculus.products import CurvatureMatrix, MatrixName, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import TRACE_PROBES, Curvature, LowRankIHVP, Trace, least_decay
from whence.errors import BadArgument
from whence.numerics.linalg import LowRank, RitzPairs, ritz_pairs, trace_outside

_CONVERGED = 0.01
"""A Ritz pair counts as an eigenpair where its residual is at most this share of its value."""


@dataclass(frozen=True)
class Arnoldi(Curvature):
    """(H + damping I)^-1 within a Krylov space, and a number beside it.

        H ~ Y^T diag(theta) Y + floor (I - Y^T Y)
        (H + damping I)^-1 v ~ Y^T diag(1 / (theta + damping)) Y v
                               + (I - Y^T Y) v / (floor + damping)

    Y (r, P) and theta (r,) are the Ritz pairs of H in the space that random vectors and their
    images under H span; floor is the smallest weight decay of a parameter, which no eigenvalue of a
    Gauss-Newton matrix is below. At rank P it is the inverse itself. The literature differs in
    three ways:

    1. It drops what lies beside the space. Here that is left out only where floor and damping are
       both zero, with a warning: a solution is longest in flat directions.
    2. It keeps the pairs of the largest |theta|, negative ones as well. Here a negative theta that
       damping does not make up for is an error, and "auto" takes the Gauss-Newton matrix.
    3. It multiplies with a part of the data. Here every product is over all of it.

    Args:
        rank: r, at most P.
        damping: added to every eigenvalue; "auto" is 0 for a Hessian and three times the mean
            eigenvalue for a Gauss-Newton matrix that differs from it.
        matrix: "hessian", "ggn", or "auto": the Hessian where it equals the Gauss-Newton matrix,
            as for linear models, else the Gauss-Newton matrix.
        block: random vectors that the space starts from; they share every pass over the data.
            Larger blocks are faster, and reach less far into the spectrum at the same rank.
        seed: of the random vectors.

    Cost: r / block products with a block over all data, one with 30 vectors, 6 r^2 P
    multiplications, 2 r P numbers; for K vectors one product and 4 K r P multiplications.

    Source: Schioppa, Zablotskaia, Vilar & Sokolov 2022 (arXiv:2112.03052).

    >>> import torch
    >>> from whence.adapters import make_problem
    >>> row, one = torch.tensor([[3.0, 4.0]]).double(), torch.ones(1).double()
    >>> line = torch.nn.Linear(2, 1, bias=False).double().eval()
    >>> problem = make_problem(line, (row, one), loss="mse", weight_decay=2.0)
    >>> Arnoldi(rank=2).fit(problem).solve(row).vectors * (2 + 2 * 25)     # (2 I + 2 x x^T)^-1 x
    tensor([[3.0000, 4.0000]], dtype=torch.float64)
    """

    rank: int = 100
    damping: float | Literal["auto"] = "auto"
    matrix: MatrixName | Literal["auto"] = "auto"
    block: int = 10
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> LowRankIHVP:
        """Builds the Krylov space, and estimates what lies beside it.

        Raises:
            BadArgument: an option outside its range.
            NegativeCurvature: a Ritz value with its damping is not positive.
        """
        self._check()
        is_linear = hessian_is_ggn(problem)
        # For a linear model both matrices are equal, and the Gauss-Newton one is cheaper to use.
        is_hessian = self.matrix == "hessian" and not is_linear
        matrix = CurvatureMatrix(problem, "hessian" if is_hessian else "ggn", data_scale)
        floor, like = least_decay(problem), problem.parameters

        def above_floor(stack: Tensor) -> Tensor:
            return matrix(stack) - floor * stack

        pairs = ritz_pairs(above_floor, like, rank=self.rank, block=self.block, seed=self.seed)
        outside = trace_outside(
            above_floor, pairs.vectors, like, probes=TRACE_PROBES, seed=self.seed
        )
        trace = Trace(float(pairs.values.sum()), *outside)
        known = LowRank(pairs.vectors, pairs.values + floor, floor)
        damping = self.damping
        if damping == "auto":
            is_damped = not (is_linear or is_hessian)
            damping = trace.damping(problem.size, floor) if is_damped else 0.0
        report = {
            "curvature": "arnoldi",
            "matrix": "hessian" if is_linear or is_hessian else "ggn",
            "matrix_reason": self._reason(is_linear),
            "damping": float(damping),
            "floor": floor,
            **trace.facts(),
            **_ritz_facts(pairs, known),
            "block": self.block,
            "seed": self.seed,
        }
        return LowRankIHVP(matrix, known, float(damping), report)

    def _check(self) -> None:
        is_damped = self.damping == "auto" or (self.damping >= 0 and isfinite(self.damping))
        is_known = self.matrix in ("hessian", "ggn", "auto")
        if not (is_damped and is_known and self.rank >= 1 and self.block >= 1):
            raise BadArgument(
                found=f"{self}.",
                why="Rank and block are one or more, damping is not negative, and matrix is "
                '"hessian", "ggn" or "auto".',
                remedy="Correct the option that is out of range.",
            )

    def _reason(self, is_linear: bool) -> str:
        if is_linear:
            return "the Hessian equals the Gauss-Newton matrix, as for every linear model"
        if self.matrix == "auto":
            return "a Krylov space cannot rule out negative eigenvalues of the Hessian"
        return "asked for"


def _ritz_facts(pairs: RitzPairs, known: LowRank) -> dict[str, Any]:
    """How far the pairs are from eigenpairs: |H y - theta y|."""
    largest = float(known.values[-1])
    share = float(pairs.residuals.max()) / largest if largest > 0 else None
    return {
        "rank": len(known.values),
        "smallest_ritz_value": float(known.values[0]),
        "largest_ritz_value": largest,
        "ritz_residual": share,
        "converged_pairs": int((pairs.residuals <= _CONVERGED * known.values.abs()).sum()),
    }
