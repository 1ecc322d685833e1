"""The dense Hessian, inverted exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix, MatrixName, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import (
    AUTO_DAMPING,
    IHVP,
    Curvature,
    Solution,
    largest_residual,
    solve_by_steps,
)
from whence.errors import BadArgument, NegativeCurvature, TooLarge
from whence.numerics.linalg import Eigen, Product, decompose
from whence.numerics.memory import free_bytes, in_words

_VISIBLE = 1e-6
"""Share of a vector's norm in a null direction above which the solve says so."""


@dataclass(frozen=True)
class Exact(Curvature):
    """(H + damping I)^-1 from the eigenvalues of the whole matrix, in float64.

    Directions in which loss and regulariser are both flat, such as a shift of all logits, change
    no output: they are left out (pseudo-inverse) and counted. "auto" takes the Hessian without
    damping where every other eigenvalue is positive, and otherwise the Gauss-Newton matrix, which
    is never negative, with three times its mean eigenvalue as damping.

    Args:
        matrix: "hessian", "ggn" or "auto".
        damping: added to every eigenvalue, or "auto". With a damping of zero null directions are
            left out, with any other they count as flat.

    Cost: N C P^2 for a Gauss-Newton matrix, P products for a Hessian; 10 P^3; 32 P^2 bytes.
    """

    offers_leverage: ClassVar[bool] = True
    offers_changes: ClassVar[bool] = True

    matrix: MatrixName | Literal["auto"] = "auto"
    damping: float | Literal["auto"] = "auto"

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "ExactIHVP":
        """Builds and decomposes the matrix.

        Raises:
            NegativeCurvature: the matrix that was asked for, with its damping, is not positive.
            BadArgument: a negative damping, or an unknown matrix.
            TooLarge: matrix and eigenvectors do not fit in the memory that is free.
        """
        self._check(problem)
        problem = problem.widened()
        if self.matrix != "auto":
            return self._fitted(_decompose(problem, self.matrix, data_scale), "asked for")
        is_linear = hessian_is_ggn(problem)
        # For a linear model both matrices are equal, and the Gauss-Newton one is cheaper to make.
        found = _decompose(problem, "ggn" if is_linear else "hessian", data_scale)
        damping = 0.0 if self.damping == "auto" else self.damping
        if is_linear or found.eigen.smallest + damping > 0:
            found = replace(found, name="hessian")
            return self._fitted(found, "every eigenvalue that is not null is positive")
        why = f"the Hessian has the eigenvalue {found.eigen.smallest:.2g}"
        fitted = self._fitted(_decompose(problem, "ggn", data_scale), why)
        facts = {**fitted.facts, "hessian_smallest_eigenvalue": found.eigen.smallest}
        return replace(fitted, facts=facts)

    def _check(self, problem: Problem) -> None:
        if self.matrix not in ("hessian", "ggn", "auto") or (
            self.damping != "auto" and not self.damping >= 0
        ):
            raise BadArgument(
                found=f"Exact(matrix={self.matrix!r}, damping={self.damping!r}).",
                why='matrix is "hessian", "ggn" or "auto"; damping is added to every eigenvalue.',
                remedy='Give a damping of zero or more, or "auto".',
            )
        needed, free = 32 * problem.size**2, free_bytes(problem.device)
        if needed > free:
            raise TooLarge(
                found=f"The dense matrix of P = {problem.size:,} parameters, with eigenvectors "
                f"and what comes up on the way, takes {in_words(needed)}; {in_words(free)} free.",
                why="It grows with the square of the number of parameters.",
                remedy='Use curvature="refined" or "ekfac", which need no such matrix, or fewer '
                "parameters: make_problem(..., parameters=...).",
            )

    def _fitted(self, found: "_Decomposed", why: str) -> "ExactIHVP":
        eigen, damping = found.eigen, self.damping
        if damping == "auto":
            damping = AUTO_DAMPING * eigen.mean if found.name == "ggn" else 0.0
        if not eigen.smallest + damping > 0:
            raise NegativeCurvature(
                found=f"The smallest eigenvalue of the {found.name} is {eigen.smallest:.3g}, "
                f"damping {damping:.3g}.",
                why="At a saddle the response to a removal is not a minimum of anything.",
                remedy=f'Use matrix="ggn", or damping above {-eigen.smallest:.3g}.',
            )
        report = {
            "curvature": "exact",
            "matrix": found.name,
            "matrix_reason": why,
            "damping": damping,
            "smallest_eigenvalue": eigen.smallest,
            "largest_eigenvalue": eigen.largest,
            "null_directions": eigen.null_count,
        }
        return ExactIHVP(found.matrix, eigen, damping, report)


@dataclass(frozen=True)
class ExactIHVP(IHVP):
    """A decomposed matrix.

    Args:
        matrix: the matrix as a linear map, for residuals that do not trust the decomposition.
        eigen: eigenvalues and eigenvectors.
        damping: added to every eigenvalue.
        facts: what the fit has found.
    """

    matrix: CurvatureMatrix
    eigen: Eigen
    damping: float
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def damped(self, damping: float) -> "ExactIHVP":
        """The same eigenvalues with another damping.

        Raises:
            NegativeCurvature: an eigenvalue stays negative with it.
        """
        if not self.eigen.smallest + damping > 0:
            raise NegativeCurvature(
                found=f"The smallest eigenvalue is {self.eigen.smallest:.3g}, damping "
                f"{damping:.3g}.",
                why="At a saddle the response to a removal is not a minimum of anything.",
                remedy=f"Give a damping above {-self.eigen.smallest:.3g}.",
            )
        return replace(self, damping=damping, facts={**self.facts, "damping": damping})

    def solve(self, vectors: Tensor) -> Solution:
        """The damped inverse times each vector, null directions left out, with its residual."""
        wide = vectors.double()
        solved = self.eigen.solve(wide, self.damping)
        lost = self.eigen.null_share(wide) if self.damping == 0 else torch.zeros(len(wide))
        wanted = self.eigen.without_null(wide) if self.damping == 0 else wide
        report: dict[str, Any] = {
            "residual": largest_residual(
                self.matrix, solved, wide, damping=self.damping, wanted=wanted
            ),
            "null_share": float(lost.max()),
        }
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

    def solve_changed(self, vectors: Tensor, *, data_factor: float, change: Product) -> Solution:
        """Conjugate gradients on the changed matrix, preconditioned by the inverse of this one.

        They need as many products as the change has directions that matter, and no pass over the
        data: this matrix is multiplied by its eigenvalues.
        """

        def product(stack: Tensor) -> Tensor:
            own = self.eigen.multiply(stack)
            total = own + self.damping * stack + change(stack)
            if data_factor != 1:
                total += (data_factor - 1) * (own - self.matrix.penalty_product(stack))
            return total

        wide = vectors.double()
        wanted = self.eigen.without_null(wide) if self.damping == 0 else wide
        found = solve_by_steps(
            product,
            wanted,
            lambda stack: self.eigen.solve(stack, self.damping),
            rank=self.matrix.problem.size,
        )
        return Solution(found.vectors.to(vectors), found.report)


@dataclass(frozen=True)
class _Decomposed:
    """A matrix by name, as a linear map and by its eigenvalues."""

    name: MatrixName
    matrix: CurvatureMatrix
    eigen: Eigen


def _decompose(problem: Problem, name: MatrixName, data_scale: float) -> _Decomposed:
    matrix = CurvatureMatrix(problem, name, data_scale)
    eigen = decompose(matrix.dense(), eps=torch.finfo(problem.dtype).eps)
    return _Decomposed(name, matrix, eigen)
