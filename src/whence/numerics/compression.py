"""Few combinations of many vectors, for maps that are linear in them.

    A V ~ scale W (W^T A V'),      V' = V / scale,      W (K, r) orthonormal

Of a linear map A only its products with the r + s rows of [W^T; O^T (I - W W^T)] V' are needed. W
holds the eigenvectors of the largest eigenvalues of the Gram matrix of A V', or of what is expected
of it. O (K, s) is Gaussian: s products with the part that W leaves out measure it,

    |(I - W W^T) A V'|^2 = E |O_j^T (I - W W^T) A V'|^2

and the mean of s of them is below the true square by more than `PROBED` in one case of a hundred at
most, whatever the map: the lower tail is longest for maps of rank one, where it is that of a
chi-squared variable (Roosta-Khorasani, Szekely & Ascher 2015; cited from memory).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PROBES = 8
"""Products that measure what is left out."""

PROBED = 4.859
"""`PROBES` over the first percentile of a chi-squared variable with so many degrees of freedom."""


@dataclass(frozen=True, eq=False)
class Compression:
    """Combinations of K vectors.

    Args:
        scale: (K,) lengths; vectors are divided by them, so that each counts alike.
        basis: (K, r) W, orthonormal columns.
        probes: (K, s) combinations of what W leaves out.
    """

    scale: Tensor
    basis: Tensor
    probes: Tensor

    @property
    def rank(self) -> int:
        """r, how many combinations stand for all vectors."""
        return self.basis.shape[1]

    def combine(self, vectors: Tensor) -> Tensor:
        """(r + s, P) from (K, P)."""
        rows = torch.cat([self.basis, self.probes], 1) / self.scale[:, None]
        return rows.T.to(vectors) @ vectors

    def expand(self, values: Tensor) -> Tensor:
        """(K, ...) what holds for the vectors, from (r + s, ...) for their combinations."""
        rows = self.basis * self.scale[:, None]
        return torch.tensordot(rows.to(values), values[: self.rank], 1)

    def squares(self, values: Tensor) -> Tensor:
        """(2,) float64 sums of squares, each vector at length one: of what is kept, of what is not.

        Args:
            values: (r + s, ...) for the combinations; sums over parts of a map may be added.
        """
        totals = values.flatten(1).double().square().sum(1)
        return torch.stack([totals[: self.rank].sum(), totals[self.rank :].mean()])


def left_out(squares: Tensor) -> float:
    """Relative root mean square of what was left out, with a chance of 99 % at most.

    Args:
        squares: (2,) the sum of `Compression.squares` over all parts.
    """
    kept, missed = float(squares[0]), PROBED * float(squares[1])
    return (missed / (kept + missed)) ** 0.5 if missed > 0 else 0.0


def compress(gram: Tensor, tolerance: float) -> Compression | None:
    """The fewest combinations that lose no more than a share of the vectors.

    Args:
        gram: (K, K) inner products of the vectors, in the norm in which they count.
        tolerance: relative root mean square, over vectors brought to the same length.

    Returns:
        None where combinations and probes would be as many as the vectors.
    """
    gram = gram.double()
    scale = gram.diagonal().clamp_min(0).sqrt()
    scale = scale.where(scale > 0, 1.0)
    values, vectors = torch.linalg.eigh(gram / scale[:, None] / scale)
    falling = values.clamp_min(0).flip(0)
    missed = (falling.sum() - falling.cumsum(0)).clamp_min(0)
    rank = int((missed > tolerance**2 * falling.sum()).sum()) + 1
    if rank + PROBES >= len(gram):
        return None
    basis = vectors.flip(1)[:, :rank]
    drawn = torch.randn(len(gram), PROBES, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(basis)
    return Compression(scale, basis, drawn - basis @ (basis.T @ drawn))
