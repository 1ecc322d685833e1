"""Kernel models as linear models on explicit features.

With the eigenvalues L and eigenvectors U of the kernel matrix K of the training examples X,

    phi(x) = L^-1/2 U^T k(X, x),        phi(x_i) . phi(x_j) = K_ij

for training examples, and a dual solution a is the weight vector w = L^1/2 U^T a: w . phi(x) is
sum_i a_i k(x_i, x), and |w|^2 is a^T K a. Weights, labels and removals of training examples act on
the linear model as they act on the kernel model; what a *new* input has beyond the span of X is
lost, which no decision function of the training data can see. Which eigenvectors are found differs,
within what rounding leaves open, with the number of threads: features made in one process are not
those of another with more threads, and have another fingerprint.

Source: Koh & Liang 2017 (arXiv:1703.04730), figure 4, with eigenvectors in place of a Cholesky
factor, which a kernel matrix of deficient rank does not have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from whence.core.prepared import Preparation
from whence.errors import NonFinite, TooLarge, Unsupported
from whence.numerics.linalg import decompose

KERNEL_BYTES = 2 * 2**30
"""Kernel matrix, eigenvectors, basis and features may take this much memory: N up to 8,192."""

_INDEFINITE = 1e-8
"""Share of the largest eigenvalue that rounding may make of a zero one: half of the digits."""

PULL_BACK_REFUSAL = (
    "explicit kernel features hold what the training examples span together, and an example that "
    "moves leaves that span"
)
"""Why no derivative goes from explicit features back to raw examples."""

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows (A, d) and (B, d) to their kernel (A, B)."""


@dataclass(frozen=True, eq=False)
class KernelFeatures:
    """Explicit features of a kernel on a set of training examples.

    Args:
        table: how raw examples become the rows that the kernel compares.
        kernel: of two sets of rows.
        rows: (N, d) training examples X.
        values: (R,) eigenvalues of their kernel matrix that are not zero.
        vectors: (N, R) their eigenvectors.
    """

    table: Preparation
    kernel: Kernel
    rows: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @property
    def dropped(self) -> int:
        """How many eigenvalues rounding could not tell from zero."""
        return len(self.rows) - len(self.values)

    def __call__(self, raw: object) -> np.ndarray:
        """(B, R) features phi(x) of raw examples.

        Raises:
            NonFinite: NaN or infinity in an example.
        """
        rows = self.table.features(raw)
        check_rows(rows)
        return self.kernel(rows, self.rows) @ (self.vectors / np.sqrt(self.values))

    def weights(self, dual: np.ndarray) -> np.ndarray:
        """(C, R) weights of the linear model.

        Args:
            dual: (N, C) coefficients of the kernels k(x_i, .).
        """
        return (np.sqrt(self.values)[:, None] * (self.vectors.T @ dual)).T

    def preparation(self) -> Preparation:
        """How raw examples become explicit features, and labels codes."""
        return Preparation(
            width=len(self.values),
            transform=self,
            codes=self.table.codes,
            pull_back_refusal=PULL_BACK_REFUSAL,
        )


def explicit_features(table: Preparation, kernel: Kernel, rows: np.ndarray) -> KernelFeatures:
    """The explicit features of a kernel on its training examples.

    Eigenvalues are dropped up to N times the rounding of the largest, or up to the size of the
    most negative one.

    Args:
        table: how raw examples become such rows.
        kernel: of two sets of rows.
        rows: (N, d) training examples.

    Raises:
        TooLarge: the matrices would take more than `KERNEL_BYTES`.
        NonFinite: NaN or infinity in an example, or in the kernel.
        Unsupported: the kernel matrix has negative eigenvalues.
    """
    check_rows(rows)
    _check_size(len(rows))
    matrix = kernel(rows, rows)
    if not np.isfinite(matrix).all():
        raise NonFinite(
            found="The kernel of two training examples is NaN or infinite.",
            why="No prediction of this model is a number.",
            remedy="Scale the features, or fit with another gamma, coef0 or degree.",
        )
    eigen = decompose(torch.from_numpy(matrix), eps=float(np.finfo(np.float64).eps))
    values = eigen.values.numpy()
    smallest, largest = float(values[0]), float(values[-1])
    if smallest < -_INDEFINITE * largest:
        raise Unsupported(
            found=f"The kernel matrix has the eigenvalue {smallest:.3g} beside the largest, "
            f"{largest:.3g}.",
            why="Only a kernel without negative eigenvalues is an inner product of features, and "
            "only then has the fit one objective.",
            remedy="Fit with the rbf or poly kernel (coef0 >= 0); a sigmoid kernel is often "
            "indefinite.",
        )
    kept = values > max(eigen.threshold, -smallest)
    return KernelFeatures(table, kernel, rows, values[kept], eigen.vectors.numpy()[:, kept])


def check_rows(rows: np.ndarray) -> None:
    """Refuses NaN and infinity before a kernel hides where they were.

    Raises:
        NonFinite: naming the first such row.
    """
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        raise NonFinite(
            found=f"Example {int(bad.argmax())} holds NaN or infinity.",
            why="Its kernel with every other example would be NaN.",
            remedy="Remove or repair the example.",
        )


def _check_size(count: int) -> None:
    needed = 4 * 8 * count**2
    if needed > KERNEL_BYTES:
        raise TooLarge(
            found=f"The kernel matrix of {count:,} training examples, its eigenvectors and the "
            f"explicit features would take {needed / 2**30:.1f} GiB, with a limit of "
            f"{KERNEL_BYTES / 2**30:.1f} GiB.",
            why="A kernel model has as many parameters as training examples; their exact curvature "
            "takes as much again.",
            remedy="Fit on fewer examples, or on approximate features: a Pipeline of "
            "sklearn.kernel_approximation.Nystroem and LinearSVC, LogisticRegression or Ridge.",
        )
