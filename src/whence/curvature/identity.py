"""No curvature: gradient dot products."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.core.problem import Problem
from whence.curvature.base import IHVP, Curvature, Solution


@dataclass(frozen=True)
class Identity(Curvature):
    """(H + damping I)^-1 replaced by I: one pass, no solve, and no calibrated scale.

    effect[q, i] ~ (1/N) grad m_q . grad loss_i, the first step of gradient descent. Only the order
    of such scores means something, so `Scores.unit` is "arbitrary".

    Source: the baseline "grad-dot"; Charpiat et al. 2019 (arXiv:2102.13262).
    """

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "IdentityIHVP":
        """Nothing to fit."""
        del problem, data_scale
        return IdentityIHVP()


class IdentityIHVP(IHVP):
    """Returns what it is given."""

    @property
    def report(self) -> Mapping[str, Any]:
        """That nothing was inverted, and that only the order means something."""
        return {"curvature": "identity", "damping": None, "is_calibrated": False}

    def solve(self, vectors: Tensor) -> Solution:
        """The vectors themselves."""
        return Solution(vectors)
