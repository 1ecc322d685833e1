"""Kronecker factors, layer by layer."""

from dataclasses import asdict, dataclass
from typing import Literal

from whence.calculus.fisher import FisherName
from whence.core.problem import Problem
from whence.curvature.base import Curvature, KroneckerIHVP, LayerOptions, Precision, fit_layers


@dataclass(frozen=True)
class KFAC(Curvature):
    """(F + damping I)^-1 with each layer's part of F a Kronecker product.

        F ~ E[sum_t l_t l_t^T] x E[r_t r_t^T],        l = output gradient, r = input of a layer

    As `EKFAC` without its correction of the eigenvalues, which saves one of two passes. Damping is
    added to the eigenvalues of the product, not to the factors.

    Args:
        accuracy: relative standard error of the second moments at which no more training examples
            are looked at; 0 looks at all of them, as is done where that takes a few seconds.
        damping, fisher, tolerance, seed, memory, disk, precision: as in `EKFAC`.

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
    memory: int | Literal["auto"] = "auto"
    disk: str | None = None
    precision: Precision = "full"

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> KroneckerIHVP:
        """Looks at the layers, and keeps the training gradients where they are small."""
        options = LayerOptions(**asdict(self))
        return fit_layers(problem, options, name="kfac", is_corrected=False, data_scale=data_scale)
