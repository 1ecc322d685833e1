"""The Gauss-Newton matrix inverted through the examples: few examples, many parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from whence.calculus.gradients import jacobian_batch, jacobians, output_hessians
from whence.calculus.products import CurvatureMatrix, decay_diagonal, hessian_is_ggn
from whence.core.problem import Problem
from whence.curvature.base import (
    AUTO_DAMPING,
    IHVP,
    Curvature,
    Solution,
    largest_residual,
    solve_by_steps,
)
from whence.errors import BadArgument, NegativeCurvature, NonFinite, TooLarge, Unsupported
from whence.numerics.linalg import Product

_SPARSE = 0.05
"""Rows with a smaller share of entries that are not zero, such as counts of words, are kept sparse:
products are twice as fast at this share, and six times at 0.01 (M = 1,000, P = 4,000, one core)."""

_ROUNDING = 1e-14
"""What rounding leaves of the second derivatives of a saturated loss, in units of the loss."""


@dataclass(frozen=True)
class Dual(Curvature):
    """(G + damping I)^-1 exactly, by solving one equation an output instead of one a parameter.

        G + damping I          = D + A^T A
        (D + A^T A)^-1         = D^-1 - D^-1 A^T (I + A D^-1 A^T)^-1 A D^-1
        A                      = the rows (s/N)^1/2 (b_i S_i)^1/2 J_i of all examples, (M, P)
        D                      = the diagonal of hess r, plus damping; (P,), positive

    G is the Gauss-Newton matrix, J_i the output Jacobian (C, P) of example i, S_i the Hessian of
    its loss with respect to its outputs, b_i its base weight, and M at most N C. Where N C < P the
    M x M matrix is smaller than the P x P matrix of `Exact`, and the answer is the same. Every
    parameter needs a decay of its own, or damping: without either D has no inverse.

    Args:
        damping: added to every eigenvalue; "auto" is 0 where the Hessian equals the Gauss-Newton
            matrix (linear models), else three times the mean eigenvalue.
        max_bytes: memory that it may take.

    Cost: M^2 P + M^3 / 3 multiplications, 8 M P + 16 M^2 bytes.

    Source: the matrix identity of Woodbury 1950, "Inverting modified matrices" (cited from memory).

    >>> from whence.adapters import make_problem
    >>> row, one = torch.tensor([[3.0, 4.0]]).double(), torch.ones(1).double()
    >>> line = torch.nn.Linear(2, 1, bias=False).double().eval()
    >>> problem = make_problem(line, (row, one), loss="mse", weight_decay=2.0)
    >>> Dual().fit(problem).solve(row).vectors * (2 + 2 * 25)      # (2 I + 2 x x^T)^-1 x
    tensor([[3.0000, 4.0000]], dtype=torch.float64)
    """

    offers_leverage: ClassVar[bool] = True
    offers_changes: ClassVar[bool] = True

    damping: float | Literal["auto"] = "auto"
    max_bytes: int = 4 * 2**30

    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> "DualIHVP":
        """Collects the Jacobians of all outputs and factorises the M x M matrix.

        Raises:
            BadArgument: a negative damping, or one that leaves a parameter flat.
            Unsupported: the Hessian of the regulariser is not diagonal.
            NegativeCurvature: the loss is not convex in the outputs, or the regulariser in theta.
            TooLarge: it would take more than `max_bytes`.
        """
        self._check(problem)
        problem = problem.widened()
        matrix = CurvatureMatrix(problem, "ggn", data_scale)
        decay = _diagonal(matrix)
        is_linear = hessian_is_ggn(problem)
        if self.damping != "auto" or is_linear:
            damping = 0.0 if self.damping == "auto" else float(self.damping)
            _refuse_flat(decay + damping)
            rows = _rows(matrix)
        else:
            rows = _rows(matrix)
            damping = AUTO_DAMPING * float(rows.square().sum() + decay.sum()) / problem.size
            _refuse_flat(decay + damping)
        root = (decay + damping).sqrt()
        rows /= root
        kept = Rows(rows if _is_dense(rows) else csr_array(rows.numpy()))
        report = {
            "curvature": "dual",
            "matrix": "hessian" if is_linear else "ggn",
            "matrix_reason": _REASONS[is_linear],
            "damping": damping,
            "smallest_eigenvalue_at_least": float(decay.min()),
            "rank": len(rows),
        }
        return DualIHVP(matrix, kept, root, _factor(kept.gram()), damping, report)

    def leverage_operations(self, problem: Problem) -> float:
        """Every output meets the M rows twice and their factor once: N C (2 M P + M^2)."""
        outputs = float(len(problem) * problem.output_size)
        return outputs * (2 * outputs * problem.size + outputs**2)

    def _check(self, problem: Problem) -> None:
        if self.damping != "auto" and not self.damping >= 0:
            raise BadArgument(
                found=f"{self}.",
                why="Damping is added to every eigenvalue; a negative one can make it singular.",
                remedy='Give a damping of zero or more, or "auto".',
            )
        needed = dual_bytes(problem)
        if needed > self.max_bytes:
            raise TooLarge(
                found=f"The Jacobians of {len(problem) * problem.output_size:,} outputs "
                f"(N = {len(problem):,}, C = {problem.output_size:,}) with respect to P = "
                f"{problem.size:,} parameters, and two matrices of the outputs, take "
                f"{needed / 2**30:,.1f} GiB; max_bytes is {self.max_bytes / 2**30:,.1f} GiB.",
                why="They are all in memory at the same time.",
                remedy='Use curvature="cg", which needs products only, or raise max_bytes.',
            )


_REASONS = {
    True: "the Hessian equals the Gauss-Newton matrix, as for every linear model",
    False: "only the Gauss-Newton matrix can be inverted through the examples",
}


@dataclass(frozen=True)
class Rows:
    """(M, P) W, dense or, where most entries are zero, sparse.

    Args:
        stored: a tensor, or a sparse array on the CPU.
    """

    stored: Tensor | csr_array

    def __len__(self) -> int:
        return self.stored.shape[0]

    def along(self, vectors: Tensor) -> Tensor:
        """(K, M) v W^T for vectors (K, P)."""
        if isinstance(self.stored, Tensor):
            return (self.stored @ vectors.T).T
        return _from_numpy(self.stored @ vectors.numpy().T).T

    def back(self, weights: Tensor) -> Tensor:
        """(K, P) c W for weights (K, M)."""
        if isinstance(self.stored, Tensor):
            return weights @ self.stored
        return _from_numpy(self.stored.T @ weights.numpy().T).T

    def gram(self) -> Tensor:
        """(M, M) W W^T."""
        if isinstance(self.stored, Tensor):
            return self.stored @ self.stored.T
        return _from_numpy((self.stored @ self.stored.T).toarray())


def _from_numpy(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def _is_dense(rows: Tensor) -> bool:
    return rows.device.type != "cpu" or int(rows.count_nonzero()) > _SPARSE * rows.numel()


@dataclass(frozen=True)
class DualIHVP(IHVP):
    """The rows of all outputs, and the factor of their M x M matrix.

    Args:
        matrix: the matrix as a linear map, for residuals that do not trust the factor.
        rows: W = A D^-1/2.
        root: (P,) D^1/2.
        factor: (M, M) Cholesky factor of I + W W^T.
        damping: added to every eigenvalue.
        facts: what the fit has found.
    """

    matrix: CurvatureMatrix
    rows: Rows
    root: Tensor
    factor: Tensor
    damping: float
    facts: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def solve(self, vectors: Tensor) -> Solution:
        """The damped inverse times each vector, with its residual by new products."""
        wide = vectors.double()
        solved = self._inverse(wide)
        # The identity takes the difference of two vectors that, under a weak decay, are nearly
        # equal. One step of refinement brings the residual back to rounding.
        solved = solved + self._inverse(wide - self._product(solved))
        residual = largest_residual(self.matrix, solved, wide, damping=self.damping)
        return Solution(solved.to(vectors), {"residual": residual})

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (G + damping I)^-1 J_b^T for each example.

        With z = J D^-1/2, c = (I + W W^T)^-1 W z^T and y = z - c^T W, it is y y^T + c^T c: a sum of
        squares, where the identity itself would subtract nearly equal numbers.
        """
        scaled = jacobians.double().flatten(0, 1) / self.root  # (B C, P)
        along = self._along(scaled)  # (B C, M)
        rest = scaled - self.rows.back(along)
        both = torch.cat([rest, along], 1).unflatten(0, jacobians.shape[:2])
        return (both @ both.mT).to(jacobians)

    def solve_changed(self, vectors: Tensor, *, data_factor: float, change: Product) -> Solution:
        """Conjugate gradients on the changed matrix, preconditioned by the inverse of this one.

        They need as many products as the change has directions that matter, and no pass over the
        data: this matrix is multiplied through its rows.
        """

        def product(stack: Tensor) -> Tensor:
            return self._product(stack, data_factor) + change(stack)

        return solve_by_steps(product, vectors, self._inverse, rank=len(self.rows))

    def _along(self, scaled: Tensor) -> Tensor:
        """(K, M) c = (I + W W^T)^-1 W z for each row z of (K, P)."""
        return torch.cholesky_solve(self.rows.along(scaled).T, self.factor).T

    def _inverse(self, vectors: Tensor) -> Tensor:
        scaled = vectors / self.root
        return (scaled - self.rows.back(self._along(scaled))) / self.root

    def _product(self, vectors: Tensor, data_factor: float = 1.0) -> Tensor:
        """(D + data_factor A^T A) v."""
        scaled = vectors * self.root
        return (scaled + data_factor * self.rows.back(self.rows.along(scaled))) * self.root


def dual_bytes(problem: Problem) -> float:
    """Peak memory of `Dual`: rows (M, P), two matrices (M, M), three arrays of Jacobians."""
    outputs = float(len(problem) * problem.output_size)
    batch = 3 * 8 * jacobian_batch(problem) * problem.output_size * problem.size
    return 8 * outputs * problem.size + 16 * outputs**2 + batch


def _diagonal(matrix: CurvatureMatrix) -> Tensor:
    decay = decay_diagonal(matrix.problem)
    if decay is None:
        raise Unsupported(
            found="The Hessian of the regulariser is not diagonal: it couples parameters.",
            why="It is divided by, entry by entry, before the examples come in.",
            remedy='Use curvature="exact", or "cg".',
        )
    return decay


def _refuse_flat(diagonal: Tensor) -> None:
    smallest = float(diagonal.min())
    if smallest < 0:
        raise NegativeCurvature(
            found=f"The regulariser has the second derivative {smallest:.3g}, damping included.",
            why="What the examples add to it is inverted as a correction of a positive matrix.",
            remedy=f'Add {-smallest:.3g} to the damping or more, or use curvature="exact".',
        )
    if smallest == 0:
        raise BadArgument(
            found=f"{int((diagonal == 0).sum()):,} of {len(diagonal):,} parameters have neither "
            "weight decay nor damping (a free intercept is such a parameter).",
            why="The dual form divides by the two together.",
            remedy='Give a damping, as in Dual(damping=1e-3), or use curvature="exact".',
        )


def _rows(matrix: CurvatureMatrix) -> Tensor:
    """(M, P) A: (s/N)^1/2 times the root of b_i S_i, times J_i, without rows that are zero."""
    problem = matrix.problem
    outputs = len(problem) * problem.output_size
    rows = torch.empty(outputs, problem.size, dtype=torch.float64, device=problem.device)
    filled, lowest, highest = 0, 0.0, 0.0
    for batch in problem.batches(jacobian_batch(problem)):
        bend = output_hessians(problem, batch).double() * batch.weights.double()[:, None, None]
        values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)  # (B, C), (B, C, C)
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        # A softmax bends along all but one direction: what rounding leaves there is no row.
        is_row = values > values.shape[1] * torch.finfo(problem.dtype).eps * values[:, -1:]
        sizes = (values.clamp_min(0) * (matrix.data_scale / len(problem))).sqrt()
        half = (vectors * sizes[:, None]).mT @ jacobians(problem, batch).double()  # (B, C, P)
        found = half[is_row & (values > 0)]
        rows[filled : filled + len(found)] = found
        filled += len(found)
    _refuse_bent(lowest, highest, torch.finfo(problem.dtype).eps)
    return rows[:filled]


def _refuse_bent(lowest: float, highest: float, eps: float) -> None:
    """Refuses negative second derivatives that are more than rounding."""
    if lowest < -max(eps**0.5 * highest, _ROUNDING):
        raise NegativeCurvature(
            found=f"The loss, with its base weight, has the second derivative {lowest:.3g} with "
            "respect to the outputs of an example.",
            why="The dual form takes the root of these derivatives, and a negative one has none.",
            remedy='Use curvature="exact", or a loss that is convex in the outputs.',
        )


def _factor(gram: Tensor) -> Tensor:
    """(M, M) Cholesky factor of I + W W^T, whose eigenvalues are one or more."""
    if not bool(gram.isfinite().all()):
        raise NonFinite(
            found="The products of the Jacobians hold NaN or infinity.",
            why="They cannot be inverted.",
            remedy="Look for overflow or square roots at zero in the model, or raise the damping.",
        )
    gram.diagonal().add_(1)
    return torch.linalg.cholesky(gram)
