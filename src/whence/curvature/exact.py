"""The dense Hessian, inverted exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix, MatrixName, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import IHVP, Curvature, Solution
from whence.errors import BadArgument, NegativeCurvature
from whence.numerics.linalg import Eigen, decompose

AUTO_DAMPING = 0.1
"""Share of the mean eigenvalue that is added to a Gauss-Newton matrix when damping is "auto"."""

_VISIBLE = 1e-6
"""Share of a vector's norm in a null direction above which the solve says so."""


@dataclass(frozen=True)
class Exact(Curvature):
    """(H + damping I)^-1 from the eigenvalues of the whole matrix, in float64.

    Directions in which loss and regulariser are both flat, such as a shift of all logits, change
    no output: they are left out (pseudo-inverse) and counted. "auto" takes the Hessian without
    damping where every other eigenvalue is positive, and otherwise the Gauss-Newton matrix, which
    is never negative, with a tenth of its mean eigenvalue as damping.

    Args:
        matrix: "hessian", "ggn" or "auto".
        damping: added to every eigenvalue that is not null, or "auto".

    Cost: N C P^2 for a Gauss-Newton matrix, P products for a Hessian; 10 P^3; 24 P^2 bytes.
    """

    offers_leverage: ClassVar[bool] = True

    matrix: MatrixName | Literal["auto"] = "auto"
    damping: float | Literal["auto"] = "auto"

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "ExactIHVP":
        """Builds and decomposes the matrix.

        Raises:
            NegativeCurvature: the matrix that was asked for, with its damping, is not positive.
            BadArgument: a negative damping, or an unknown matrix.
        """
        self._check()
        if self.matrix != "auto":
            eigen = _decompose(problem, self.matrix, data_scale)
            return self._fitted(eigen, self.matrix, "asked for")
        is_linear = hessian_is_ggn(problem)
        eigen = _decompose(problem, "ggn" if is_linear else "hessian", data_scale)
        damping = 0.0 if self.damping == "auto" else self.damping
        if eigen.smallest + damping > 0:
            why = "every eigenvalue that is not null is positive"
            return self._fitted(eigen, "hessian", why)
        why = f"the Hessian has the eigenvalue {eigen.smallest:.2g}"
        return self._fitted(
            _decompose(problem, "ggn", data_scale), "ggn", why, hessian_smallest=eigen.smallest
        )

    def _check(self) -> None:
        if self.matrix not in ("hessian", "ggn", "auto") or (
            self.damping != "auto" and not self.damping >= 0
        ):
            raise BadArgument(
                found=f"Exact(matrix={self.matrix!r}, damping={self.damping!r}).",
                why='matrix is "hessian", "ggn" or "auto"; damping is added to every eigenvalue.',
                remedy='Give a damping of zero or more, or "auto".',
            )

    def _fitted(
        self, eigen: Eigen, matrix: str, why: str, hessian_smallest: float | None = None
    ) -> "ExactIHVP":
        damping = self.damping
        if damping == "auto":
            damping = AUTO_DAMPING * eigen.mean if matrix == "ggn" else 0.0
        if not eigen.smallest + damping > 0:
            raise NegativeCurvature(
                found=f"The smallest eigenvalue of the {matrix} is {eigen.smallest:.3g}, damping "
                f"{damping:.3g}.",
                why="At a saddle the response to a removal is not a minimum of anything.",
                remedy=f'Use matrix="ggn", or damping above {-eigen.smallest:.3g}.',
            )
        report = {
            "curvature": "exact",
            "matrix": matrix,
            "matrix_reason": why,
            "damping": damping,
            "smallest_eigenvalue": eigen.smallest,
            "largest_eigenvalue": eigen.largest,
            "null_directions": eigen.null_count,
        }
        if hessian_smallest is not None:
            report["hessian_smallest_eigenvalue"] = hessian_smallest
        return ExactIHVP(eigen, damping, report)


@dataclass(frozen=True)
class ExactIHVP(IHVP):
    """A decomposed matrix.

    Args:
        eigen: eigenvalues and eigenvectors.
        damping: added to every eigenvalue that is not null.
        facts: what the fit has found.
    """

    eigen: Eigen
    damping: float
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def solve(self, vectors: Tensor) -> Solution:
        """The damped pseudo-inverse times each vector, with the true relative residual."""
        wide = vectors.double()
        solved = self.eigen.solve(wide, self.damping)
        lost = self.eigen.null_share(wide)
        report: dict[str, Any] = {"null_share": float(lost.max())}
        if bool((lost > _VISIBLE).any()):
            report["warnings"] = [
                f"{int((lost > _VISIBLE).sum())} of {len(vectors)} query gradients reach into "
                f"null directions of the matrix (up to {float(lost.max()):.1%} of their norm); "
                "that part is left out."
            ]
        return Solution(solved.to(vectors), report)

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (H + damping I)^-1 J_b^T for each example."""
        half = self.eigen.half(jacobians.double().flatten(0, 1), self.damping)
        half = half.unflatten(0, jacobians.shape[:2])
        return (half @ half.mT).to(jacobians)


def _decompose(problem: Problem, matrix: MatrixName, data_scale: float) -> Eigen:
    dense = CurvatureMatrix(problem, matrix, data_scale).dense()
    return decompose(dense, eps=torch.finfo(problem.dtype).eps)
