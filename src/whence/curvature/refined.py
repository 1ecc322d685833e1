"""Conjugate gradients on the Gauss-Newton matrix, with EK-FAC as their preconditioner."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from whence.calculus.fisher import FisherName
from whence.calculus.products import CurvatureMatrix
from whence.core.problem import Problem
from whence.curvature.base import (
    AUTO_DAMPING,
    IHVP,
    Curvature,
    KroneckerIHVP,
    LayerOptions,
    Solution,
    fit_layers,
)
from whence.errors import BadArgument
from whence.numerics.linalg import Product, block_cg


@dataclass(frozen=True)
class Refined(Curvature):
    """(G + damping I)^-1 to a stated residual: what EK-FAC is an approximation of.

    EK-FAC takes the layers one by one, each in a basis of Kronecker form; its inverse is a good
    preconditioner for conjugate gradients on the whole Gauss-Newton matrix G over all the data,
    which know nothing of layers. The first step of the iteration is EK-FAC with the same damping.

    Args:
        tolerance: relative residual |(G + damping I) x - v| / |v| that every query must reach.
        max_steps: passes over the data at the most.
        damping: added to every eigenvalue; "auto" is three times the mean eigenvalue, as EK-FAC
            finds it.
        fisher: of the preconditioner; see `EKFAC`.
        accuracy: of the preconditioner; see `EKFAC`.
        seed: of the preconditioner. It changes the number of steps, not the solution.

    Raises:
        BadArgument: on fitting, an option outside its range.
        NotConverged: on solving, above the tolerance after `max_steps`.

    Cost: that of EK-FAC, and one Gauss-Newton product with all queries a step.

    Source: the combination is that of Wang et al. 2025 (ASTRA), there with a stochastic iteration.
    """

    offers_changes: ClassVar[bool] = True

    tolerance: float = 1e-3
    max_steps: int = 200
    damping: float | Literal["auto"] = "auto"
    fisher: FisherName | Literal["auto"] = "auto"
    accuracy: float = 0.1
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "RefinedIHVP":
        """Fits the preconditioner and settles the damping."""
        if not (0 < self.tolerance < 1 and self.max_steps > 0):
            raise BadArgument(
                found=f"{self}.",
                why="The tolerance is a relative residual, and one step is the least.",
                remedy="Give a tolerance between 0 and 1, such as 1e-3, and max_steps of at least "
                "one.",
            )
        options = LayerOptions(self.damping, self.fisher, self.accuracy, seed=self.seed)
        inner = fit_layers(problem, options, name="ekfac", data_scale=data_scale, keeps=False)
        if self.damping == "auto":
            inner = inner.damped(AUTO_DAMPING * inner.kronecker.mean())
        facts = {
            **inner.report,
            "curvature": "refined",
            "matrix_reason": "all layers together, preconditioned by EK-FAC",
            "tolerance": self.tolerance,
        }
        matrix = CurvatureMatrix(problem, "ggn", data_scale)
        return RefinedIHVP(matrix, inner, self.tolerance, self.max_steps, facts)


@dataclass(frozen=True, eq=False)
class RefinedIHVP(IHVP):
    """The Gauss-Newton matrix with its preconditioner.

    Args:
        matrix: over all data.
        inner: EK-FAC, whose damping is that of the solve.
        tolerance: relative residual that every solve must reach.
        max_steps: products at the most.
        facts: what the fit has chosen and measured.
    """

    matrix: CurvatureMatrix
    inner: KroneckerIHVP
    tolerance: float
    max_steps: int
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    @property
    def layers(self) -> KroneckerIHVP:
        """The preconditioner."""
        return self.inner

    def damped(self, damping: float) -> "RefinedIHVP":
        """The same matrix and preconditioner with another damping."""
        facts = {**self.facts, "damping": damping}
        return replace(self, inner=self.inner.damped(damping), facts=facts)

    def solve(self, vectors: Tensor) -> Solution:
        """Solves for all vectors together, until the true residual of each is small enough."""
        return self._solve(self.matrix, vectors)

    def solve_changed(self, vectors: Tensor, *, data_factor: float, change: Product) -> Solution:
        """The same iteration on the changed matrix, with the preconditioner of this one."""

        def product(stack: Tensor) -> Tensor:
            whole = self.matrix(stack)
            if data_factor != 1:
                whole = data_factor * whole
                whole -= (data_factor - 1) * self.matrix.penalty_product(stack)
            return whole + change(stack)

        return self._solve(product, vectors)

    def _solve(self, matrix: Product, vectors: Tensor) -> Solution:
        damping = float(self.facts["damping"])
        found = block_cg(
            lambda stack: matrix(stack) + damping * stack,
            vectors,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            preconditioner=lambda stack: self.inner.solve(stack).vectors,
        )
        report = {"residual": float(found.residuals.max()), "steps": found.steps}
        return Solution(found.solution, report)
