"""Eigenvalue-corrected Kronecker factors, layer by layer."""

from dataclasses import asdict, dataclass
from typing import Literal

from whence.calculus.fisher import FisherName
from whence.core.problem import Problem
from whence.curvature.base import Curvature, KroneckerIHVP, LayerOptions, Precision, fit_layers


@dataclass(frozen=True)
class EKFAC(Curvature):
    """(F + damping I)^-1 with each layer's part of F diagonal in a Kronecker-factored eigenbasis.

        F V ~ U_L [ D o (U_L^T V U_R) ] U_R^T,        D_jk = E (U_L^T G U_R)_jk^2

    U_L, U_R are the eigenvectors of the second moments of output gradients and inputs of a layer
    (`whence.calculus.kronecker`), G its gradients under the Fisher information, which for the
    losses of whence is the Gauss-Newton matrix. All parameters are covered: scales, biases and
    parameters outside layers have exact blocks up to 512 numbers, and the diagonal above.

    Args:
        damping: added to every eigenvalue; "auto" is 0.3 times the mean eigenvalue of each layer.
        fisher: "expected" over all classes, "sampled" by random signs, "empirical" from the labels;
            "auto" is expected where a backward pass for every output takes a few seconds.
        accuracy: relative root mean square by which scores may be off for want of examples, before
            more are looked at; 0 looks at all of them, as is done where that takes a few seconds.
        tolerance: relative root mean square of the scores that may be left out for speed.
        seed: of signs, and of the order in which examples are looked at.
        memory: bytes for fit and scores beside model and data; "auto" is half of what is free.
        disk: a folder for training gradients that do not fit in memory; without one they are made
            anew for every set of queries.
        precision: "full", "bfloat16" or "float16" for the products of the model and for training
            gradients that are kept; sums, eigenvectors and scores stay wide.

    Raises:
        BadArgument: on fitting, an option outside its range.
        TooLarge: on fitting, the memory that is allowed is not enough for one example.
        Unsupported: on fitting, a loss whose Fisher information cannot be found.

    Cost: two forward and backward passes over the examples that are looked at; rows^3 + columns^3
    for each layer; one pass over all examples. Layers that see one position per example keep
    4 (rows + columns) bytes of it, half of that with a narrower precision.

    Source: George et al. 2018 (arXiv:1806.03884); Grosse et al. 2023 (arXiv:2308.03296) for
    influence.
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
        return fit_layers(problem, options, name="ekfac", data_scale=data_scale)
