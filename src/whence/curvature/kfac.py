"""Kronecker factors, layer by layer."""

from dataclasses import dataclass
from typing import Literal

from whence.calculus.fisher import Fisher, FisherName
from whence.calculus.kronecker import Plan
from whence.core.problem import Problem
from whence.curvature.base import Curvature, KroneckerIHVP, fit_layers

FEW_OUTPUTS = 10
"""Up to so many outputs an example the Fisher information is expected exactly, not sampled."""


@dataclass(frozen=True)
class KFAC(Curvature):
    """Source: Martens & Grosse 2015 (arXiv:1503.05671); Grosse & Martens 2016 (arXiv:1602.01407)."""

    damping: float | Literal["auto"] = "auto"
    fisher: FisherName | Literal["auto"] = "auto"
    accuracy: float = 0.05
    tolerance: float = 0.01
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> KroneckerIHVP:
        """Measures the layers."""
        kind: FisherName = "sampled"
        if self.fisher != "auto":
            kind = self.fisher
        elif problem.output_size <= FEW_OUTPUTS and problem.output_size*len(problem)<=20000:
            kind = "expected"
        plan = Plan(Fisher(kind, self.seed), self.accuracy, is_corrected=False)
        return fit_layers(
            problem,
            plan,
            name="kfac",
            damping=self.damping,
            data_scale=data_scale,
            tolerance=self.tolerance,
        )
