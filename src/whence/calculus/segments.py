"""The curvature of a stretch of training, layer by layer, and what it does to a gradient.

    S = exp(-t H)                        what is left of a move of the parameters after the stretch
    R = (I - exp(-t H)) H^-1             what a constant force has moved them by at its end

t is the learning rate times the number of steps, H the mean of the curvature at several
checkpoints: the second moments of the factors of gradients are averaged before they are decomposed
(EK-FAC). Both are functions of the eigenvalues, as the damped inverse is.

Source: Bae et al. 2024 (arXiv:2405.12186), there written for one learning rate for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.calculus.fisher import Fisher
from whence.calculus.kronecker import (
    Basis,
    Kronecker,
    KroneckerBlock,
    Pass,
    Plan,
    fit_kronecker,
    sum_of_squares,
)
from whence.core.problem import Problem
from whence.numerics.linalg import eigenbasis


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of training.

    Args:
        kronecker: its mean curvature, block by block.
        times: t of each block.
    """

    kronecker: Kronecker
    times: tuple[float, ...]

    def shrink(self, vectors: Tensor) -> Tensor:
        """(K, P) S v."""
        return self._apply(vectors, [(-t * x).exp() for t, x in self._exponents()])

    def respond(self, vectors: Tensor) -> Tensor:
        """(K, P) R v; t v where there is no curvature."""
        factors = [
            torch.where(x > 0, -torch.expm1(-t * x) / x.clamp_min(_TINY), t)
            for t, x in self._exponents()
        ]
        return self._apply(vectors, factors)

    def _exponents(self) -> list[tuple[float, Tensor]]:
        """Of each block, t and the eigenvalues."""
        pairs = zip(self.times, self.kronecker.blocks, strict=True)
        return [(t, block.values.clamp_min(0) + block.decay) for t, block in pairs]

    def _apply(self, vectors: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """(K, P) vectors with their coordinates multiplied."""
        problem, structure = self.kronecker.problem, self.kronecker.structure
        matrices = structure.gather(problem, vectors)
        parts = zip(self.kronecker.blocks, matrices, factors, strict=True)
        return structure.scatter(problem, [b.back(b.rotate(m) * f) for b, m, f in parts])


_TINY = 1e-30


def make_segment(
    problems: Sequence[Problem], reaches: Sequence[Tensor], fisher: Fisher, *, decay: Tensor
) -> Segment:
    """A stretch of training seen at some checkpoints.

    Args:
        problems: the problem at the parameters of each.
        reaches: (P,) for each, how far the steps it stands for go for a unit of gradient; a block
            has the mean of its parameters, which is exact for plain gradient descent.
        fisher: the slopes of the outputs whose second moment is the curvature.
        decay: (P,) diagonal of the Hessian of the regulariser.
    """
    mean = mean_curvature(problems, fisher, decay)
    total = torch.stack(list(reaches)).sum(0)
    matrices = mean.structure.gather(mean.problem, total[None])
    return Segment(mean, tuple(float(matrix.double().mean()) for matrix in matrices))


def mean_curvature(problems: Sequence[Problem], fisher: Fisher, decay: Tensor) -> Kronecker:
    """The mean over several parameters of one model, with bases of its own (EK-FAC).

    Args:
        problems: the same one at several parameters.
        fisher: the slopes of the outputs whose second moment is the curvature.
        decay: (P,) diagonal of the Hessian of the regulariser.
    """
    plan = Plan(fisher, accuracy=0.0, is_corrected=False)
    fits = [fit_kronecker(one, plan, decay, keeps=lambda structure: None) for one in problems]
    by_block = zip(*(fit.blocks for fit in fits), strict=True)
    blocks = [_with_mean_bases(blocks) for blocks in by_block]
    structure, everyone = fits[0].structure, torch.arange(len(problems[0]))
    sums = [
        sum_of_squares(
            Pass(one, structure, fisher), everyone, blocks, label="Correcting eigenvalues"
        )
        for one in problems
    ]
    share = 1 / (len(problems) * len(everyone))
    corrected = [
        replace(block, values=(torch.stack(parts).sum(0) * share).to(block.values))
        for block, parts in zip(blocks, zip(*sums, strict=True), strict=True)
    ]
    return Kronecker(problems[-1], structure, tuple(corrected), fits[-1].facts)


def _with_mean_bases(blocks: Sequence[KroneckerBlock]) -> KroneckerBlock:
    """The eigenvectors of mean second moments; eigenvalues are yet to come."""
    left = _mean_basis([block.left for block in blocks])
    right = _mean_basis([block.right for block in blocks])
    return replace(blocks[0], left=left, right=right)


def _mean_basis(bases: Sequence[Basis]) -> Basis:
    values = torch.stack([basis.values for basis in bases])
    vectors = [basis.vectors for basis in bases if basis.vectors is not None]
    if len(vectors) < len(bases):
        return Basis(None, values.mean(0))
    moments = [(u * x[:, None]) @ u.mT for u, x in zip(vectors, values, strict=True)]
    found, turned = eigenbasis(torch.stack(moments).mean(0))
    return Basis(turned.to(values), found.to(values))
