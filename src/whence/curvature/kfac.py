"""Kronecker factors, layer by layer."""

from dataclasses import dataclass
from typing import Literal

from whence.calculus.fisher import FisherName
from whence.core.problem import Problem
from whence.curvature.base import Curvature, KroneckerIHVP, fit_layers, make_plan


@dataclass(frozen=True)
class KFAC(Curvature):
    """(F + damping I)^-1 with each layer's part of F a Kronecker product.

        F ~ E[sum_t l_t l_t^T] x E[r_t r_t^T],        l = output gradient, r = input of a layer

    As `EKFAC` without its correction of the eigenvalues, which saves one of two passes. Damping is
    added to the eigenvalues of the product, not to the factors.

    Args:
        damping: added to every eigenvalue; "auto" is a tenth of the mean eigenvalue.
        fisher: "expected", "sampled", "empirical" or "auto"; see `EKFAC`.
        accuracy: relative standard error of the second moments; see `EKFAC`.
        tolerance: of the scores; see `EKFAC`.
        seed: of signs, and of the order in which examples are looked at.

    Raises:
        BadArgument: on fitting, an option outside its range.
        Unsupported: on fitting, a loss whose Fisher information cannot be found.

    Source: Martens & Grosse 2015 (arXiv:1503.05671); Grosse & Martens 2016 (arXiv:1602.01407).
    """

    damping: float | Literal["auto"] = "auto"
    fisher: FisherName | Literal["auto"] = "auto"
    accuracy: float = 0.1
    tolerance: float = 0.05
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> KroneckerIHVP:
        """Looks at the layers, and keeps the training gradients where they are small."""
        plan = make_plan(problem, self.fisher, self.accuracy, seed=self.seed, is_corrected=False)
        return fit_layers(
            problem,
            plan,
            name="kfac",
            damping=self.damping,
            data_scale=data_scale,
            tolerance=self.tolerance,
        )
