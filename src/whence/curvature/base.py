"""What every curvature is: a recipe that is fitted to a problem and then solves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.errors import Unsupported
from whence.numerics.linalg import Preconditioner, Product, block_cg

AUTO_DAMPING = 0.1
"""Share of the mean eigenvalue that is added to a Gauss-Newton matrix when damping is "auto"."""


@dataclass(frozen=True)
class Solution:
    """Solved vectors, with what the solve says about itself.

    Args:
        vectors: (K, P).
        report: residuals, steps and warnings, for `Scores.report`.
    """

    vectors: Tensor
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])


_CHANGED_TOLERANCE = 1e-9
"""Relative residual of solves with a changed matrix."""


def solve_by_steps(
    product: Product, vectors: Tensor, inverse: Preconditioner, *, rank: int
) -> Solution:
    """A changed matrix solved by conjugate gradients in float64, for curvatures that are exact.

    Preconditioned by the inverse of the unchanged matrix, they need as many products as the change
    has directions that matter.

    Args:
        product: the changed matrix.
        vectors: (K, P).
        inverse: of the unchanged matrix.
        rank: steps that exact arithmetic could need.

    Returns:
        (K, P) in the type of the vectors, with residual and steps.

    Raises:
        NegativeCurvature: the changed matrix is not positive.
    """
    found = block_cg(
        product,
        vectors.double(),
        tolerance=_CHANGED_TOLERANCE,
        max_steps=rank + 20,
        preconditioner=inverse,
    )
    report = {"changed_residual": float(found.residuals.max()), "changed_steps": found.steps}
    return Solution(found.solution.to(vectors), report)


def largest_residual(
    matrix: CurvatureMatrix,
    solved: Tensor,
    vectors: Tensor,
    *,
    damping: float,
    wanted: Tensor | None = None,
) -> float:
    """The largest |(H + damping I) x - v| / |v| over the rows of a stack, by one more product.

    Args:
        matrix: H as a linear map.
        solved: (K, P) x.
        vectors: (K, P) v, the right-hand sides as they were given.
        damping: added to every eigenvalue.
        wanted: (K, P) v less what was left out on purpose; default v.
    """
    product = matrix(solved.to(matrix.problem.parameters)).to(solved)
    rest = product + damping * solved - (vectors if wanted is None else wanted)
    norms = vectors.norm(dim=1).clamp_min(torch.finfo(rest.dtype).tiny)
    return float((rest.norm(dim=1) / norms).max())


class IHVP(ABC):
    """Inverse-Hessian-vector products of a fitted curvature; immutable."""

    @property
    @abstractmethod
    def report(self) -> Mapping[str, Any]:
        """Matrix, damping, smallest eigenvalue and whatever else the fit has measured."""

    @abstractmethod
    def solve(self, vectors: Tensor) -> Solution:
        """(H + damping I)^-1 v for each row of a stack.

        Args:
            vectors: (K, P).

        Returns:
            (K, P) with a report.

        Raises:
            NumericsError: the solve failed; the message says by how much and what to change.
        """

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (H + damping I)^-1 J_b^T for each example.

        Args:
            jacobians: (B, C, P).

        Returns:
            (B, C, C).

        Raises:
            Unsupported: the curvature's `offers_leverage` is False.
        """
        del jacobians
        raise Unsupported(
            found=f"{type(self).__name__} offers no leverage.",
            why="It solves for a few vectors, not for every output of every example.",
            remedy='Use curvature="exact".',
        )

    def solve_changed(self, vectors: Tensor, *, data_factor: float, change: Product) -> Solution:
        """(data_factor H_data + hess r + damping I + change)^-1 v: the matrix of changed data.

        Args:
            vectors: (K, P).
            data_factor: what the data part of the fitted matrix is multiplied with.
            change: a symmetric map that is added, such as minus the part of a removed group.

        Returns:
            (K, P) with a report.

        Raises:
            NegativeCurvature: the changed matrix is not positive: the group decides its own fit.
            Unsupported: the curvature's `offers_changes` is False.
        """
        del vectors, data_factor, change
        raise Unsupported(
            found=f"{type(self).__name__} cannot solve with a changed matrix.",
            why="It has no products with the matrix that it inverts.",
            remedy='Use curvature="exact" or "cg", or removal="first_order".',
        )


class Curvature(ABC):
    """Recipe for (H + damping I)^-1."""

    offers_leverage: ClassVar[bool] = False
    """Whether the fitted curvature answers `IHVP.leverage`."""

    offers_changes: ClassVar[bool] = False
    """Whether the fitted curvature answers `IHVP.solve_changed`."""

    def leverage_operations(self, problem: Problem) -> float:
        """Multiplications that the leverage of every training example takes: N C P^2."""
        return float(len(problem)) * problem.output_size * problem.size**2

    @abstractmethod
    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> IHVP:
        """Pays the cost that does not depend on the queries.

        Args:
            problem: what was trained.
            data_scale: s in s H_data + H_regulariser; 1, or N/(N-1) for one removal under
                `renormalize`.

        Raises:
            NumericsError: the matrix cannot be inverted as asked.
            TooLarge: it does not fit in memory.
        """
