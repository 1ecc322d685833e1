"""LiSSA: a truncated Neumann series on sampled Hessians."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix, MatrixName
from whence.core.problem import Problem
from whence.curvature.base import IHVP, Curvature, Solution, largest_residual
from whence.errors import BadArgument, Diverged
from whence.numerics.linalg import extreme_eigenvalues
from whence.progress import track


@dataclass(frozen=True)
class LiSSA(Curvature):
    """(H + damping I)^-1 v by a recursion that needs one small batch a step.

        h <- v + h - (H_B h + damping h) / scale,      result = h / scale, averaged over repeats

    The fixed point is (H + damping I)^-1 v with the same damping as everywhere. Truncation after
    t steps leaves the factor 1 - (1 - (mu + damping) / scale)^(t+1) on a direction of curvature mu.

    Args:
        samples: examples drawn for each step; None takes all of them, which is deterministic. It
            has nothing to do with the batches in which data is streamed.
        depth: steps t.
        repeats: independent recursions that are averaged.
        damping: added to every eigenvalue.
        scale: must exceed the largest eigenvalue of every sampled H_B; "auto" measures it.
        matrix: "hessian" or "ggn".
        seed: of the sampling; a draw depends on the seed and on the ids, not on their order.

    Source: Agarwal, Bullins & Hazan 2017 (arXiv:1602.03943); Koh & Liang 2017, section 3. Here,
    unlike in the paper's code, damping stands inside the division by scale.
    """

    samples: int | None = 1
    depth: int = 5000
    repeats: int = 1
    damping: float = 0.0
    scale: float | Literal["auto"] = "auto"
    matrix: MatrixName = "hessian"
    seed: int = 0

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "LiSSAIHVP":
        """Chooses the scale.

        Raises:
            BadArgument: an option outside its range.
        """
        self._check(len(problem))
        matrix = CurvatureMatrix(problem, self.matrix, data_scale)
        scale = self._measure_scale(matrix) if self.scale == "auto" else float(self.scale)
        report = {
            "curvature": "lissa",
            "matrix": self.matrix,
            "damping": self.damping,
            "scale": scale,
            "depth": self.depth,
            "repeats": self.repeats,
            "samples": self.samples or len(problem),
            "seed": self.seed,
        }
        return LiSSAIHVP(self, matrix, scale, report)

    def _check(self, count: int) -> None:
        samples = count if self.samples is None else self.samples
        is_counted = 1 <= samples <= count and self.depth >= 1 and self.repeats >= 1
        is_scaled = self.scale == "auto" or self.scale > 0
        is_known = self.matrix in ("hessian", "ggn")
        if not (is_counted and is_scaled and is_known and self.damping >= 0):
            raise BadArgument(
                found=f"{self} on {count} examples.",
                why="It draws 1 to N examples a step and takes at least one step; scale is "
                'positive, damping not negative, matrix "hessian" or "ggn".',
                remedy="Correct the option; samples=None takes all examples in every step.",
            )

    def _measure_scale(self, matrix: CurvatureMatrix) -> float:
        """Above the largest eigenvalue that a sampled Hessian is likely to have.

        For the full batch that is the largest eigenvalue itself. Sampled batches scatter around
        it, so the largest of several trial batches is doubled.
        """
        if self.samples is None:
            return 1.1 * (_largest(matrix, self.seed) + self.damping)
        draws = _Draws(matrix.problem, self.samples, self.seed, repeat=-1)
        trials = [_largest(_on(matrix, next(draws)), self.seed) for _ in range(20)]
        return 2.0 * (max(trials) + self.damping)


@dataclass(frozen=True)
class LiSSAIHVP(IHVP):
    """The recursion with its scale chosen.

    Args:
        recipe: the options.
        matrix: the curvature matrix over all data.
        scale: the divisor.
        facts: what the fit has chosen.
    """

    recipe: LiSSA
    matrix: CurvatureMatrix
    scale: float
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def solve(self, vectors: Tensor) -> Solution:
        """Runs the recursion for all vectors together.

        Raises:
            Diverged: an iterate outgrew every possible solution.
        """
        runs = [self._run(vectors, repeat) for repeat in range(self.recipe.repeats)]
        solved = torch.stack(runs).mean(0)
        residual = largest_residual(self.matrix, solved, vectors, damping=self.recipe.damping)
        return Solution(solved, {"residual": residual})

    def _run(self, vectors: Tensor, repeat: int) -> Tensor:
        recipe = self.recipe
        draws = _Draws(self.matrix.problem, recipe.samples, recipe.seed, repeat)
        limit = 1e6 * recipe.depth * vectors.norm(dim=1).max()
        h = vectors.clone()
        for step in track(range(recipe.depth), f"LiSSA, repeat {repeat + 1} of {recipe.repeats}"):
            product = _on(self.matrix, next(draws))(h) + recipe.damping * h
            h = vectors + h - product / self.scale
            if step % 50 == 0 and not bool(h.norm(dim=1).max() <= limit):
                raise self._diverged(step)
        if not bool(h.isfinite().all()):
            raise self._diverged(recipe.depth)
        return h / self.scale

    def _diverged(self, step: int) -> Diverged:
        return Diverged(
            found=f"LiSSA grew without bound by step {step} with scale {self.scale:.3g}.",
            why="The recursion shrinks only while scale exceeds the largest eigenvalue of every "
            "sampled Hessian, and none is negative.",
            remedy=f"Raise scale (try {10 * self.scale:.3g}), draw more samples a step, or take "
            'matrix="ggn" with some damping if the Hessian is indefinite.',
        )


class _Draws:
    """Positions drawn for each step: by seed, repeat and id, so that data order changes nothing."""

    def __init__(self, problem: Problem, samples: int | None, seed: int, repeat: int) -> None:
        self.samples = samples
        self.by_id = np.argsort(problem.data.ids, kind="stable")
        digest = hashlib.blake2b(f"lissa {seed} {repeat}".encode(), digest_size=8).digest()
        self.random = np.random.default_rng(int.from_bytes(digest))

    def __next__(self) -> Tensor | None:
        if self.samples is None:
            return None
        chosen = self.random.choice(len(self.by_id), self.samples, replace=False)
        return torch.from_numpy(np.sort(self.by_id[chosen]))


def _on(matrix: CurvatureMatrix, positions: Tensor | None) -> CurvatureMatrix:
    return CurvatureMatrix(matrix.problem, matrix.kind, matrix.data_scale, positions)


def _largest(matrix: CurvatureMatrix, seed: int) -> float:
    problem = matrix.problem
    _, largest = extreme_eigenvalues(matrix, problem.parameters, steps=20, seed=seed)
    return max(largest, torch.finfo(problem.dtype).tiny)
