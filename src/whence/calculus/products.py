"""Sums over all training data: gradient, Hessian and Gauss-Newton products.

    H v = (s/N) sum_i b_i (hess loss_i) v + (hess r) v
    G v = (s/N) sum_i b_i J_i^T S_i J_i v + (hess r) v

s is 1, or N/(N-1) for the matrix after one removal under `renormalize`. A stack of K vectors
shares every pass over the data. Batches only bound the memory: their sums are added, never their
inverses or averages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from whence.calculus.gradients import (
    gradients,
    is_vectorised,
    jacobian_batch,
    jacobians,
    output_hessians,
)
from whence.calculus.stacking import StackedLinear
from whence.core.batches import Batch
from whence.core.problem import Problem

MatrixName = Literal["hessian", "ggn"]
Product = Callable[[Tensor], Tensor]


def objective_gradient(problem: Problem) -> Tensor:
    """(P,) gradient of R at the problem's parameters: zero at an optimum."""
    total = torch.zeros_like(problem.parameters)
    with torch.no_grad():
        for _, part in problem.sweep(lambda batch: _data_gradient(problem, batch)):
            total += part
        return total / len(problem) + penalty_gradient(problem)


def _data_gradient(problem: Problem, batch: Batch) -> Tensor:
    """(P,) sum over a batch of b_i grad loss_i."""
    theta = problem.parameters.detach().requires_grad_(True)
    with torch.enable_grad():
        total = _weighted(problem, theta, batch)
        return torch.autograd.grad(total, theta, materialize_grads=True)[0]


def penalty_gradient(problem: Problem) -> Tensor:
    """(P,) gradient of the regulariser."""
    return _penalty_slope(problem, create_graph=False)[1]


def _penalty_slope(problem: Problem, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """The parameters as a leaf, and the gradient of the regulariser there."""
    theta = problem.parameters.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        penalty = problem.penalty(theta)
        if not penalty.requires_grad:
            return theta, torch.zeros_like(theta)
        (slope,) = torch.autograd.grad(
            penalty, theta, create_graph=create_graph, materialize_grads=True
        )
    return theta, slope


def example_pull(problem: Problem, lengths: Callable[[Batch], Tensor] | None = None) -> float:
    """Root mean square over examples of |b_i grad loss_i| / N: what one example does to grad R.

    The natural scale of a gradient norm: well below it, the model is at its optimum as far as the
    removal of one example is concerned. Estimated from at most 256 examples.

    Args:
        problem: model, loss and data.
        lengths: (B,) squared norms of the gradients of a batch, where there is a short way to them.
    """
    order = torch.randperm(len(problem), generator=torch.Generator().manual_seed(0))
    few = order[: max(8, min(256, 2**24 // problem.size))]

    def squares(batch: Batch) -> Tensor:
        found = lengths(batch) if lengths else gradients(problem, batch).square().sum(1)
        return found * batch.weights**2

    found = torch.cat([part for _, part in problem.sweep(squares, len(few), positions=few)])
    return float(found.mean().sqrt()) / len(problem)


@dataclass(frozen=True)
class CurvatureMatrix:
    """The Hessian or Gauss-Newton matrix of a problem as a linear map on stacks of vectors.

    Args:
        problem: model, loss, regulariser and data.
        kind: "hessian", or "ggn" for the generalised Gauss-Newton matrix, which is never negative.
        data_scale: s above.
        positions: rows of the training data to use, default all; the sum is then divided by their
            number instead of N.
        batch_size: examples a batch, default as many as fit the working memory.
    """

    problem: Problem
    kind: MatrixName = "hessian"
    data_scale: float = 1.0
    positions: Tensor | None = None
    batch_size: int | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """(K, P) products with a stack of vectors (K, P)."""
        problem = self.problem
        count = len(problem) if self.positions is None else len(self.positions)
        size = self.batch_size or problem.batch_size(stack=self._stack(len(vectors)))
        product = hessian_product if self.kind == "hessian" else _ggn_product
        total = torch.zeros_like(vectors)
        parts = problem.sweep(
            lambda batch: product(problem, vectors, batch), size, positions=self.positions
        )
        for _, part in parts:
            total += part
        return total.mul_(self.data_scale / count) + self.penalty_product(vectors)

    def _stack(self, vectors: int) -> int:
        """Tangents held at a time: the Gauss-Newton product has no tape to keep them on.

        Twice the batch makes it a fifth faster (7,840 parameters, 60 vectors: 474 against 379 ms
        for 8,000 examples on one core).
        """
        return vectors if self.kind == "ggn" else 2 * vectors

    def penalty_product(self, vectors: Tensor) -> Tensor:
        """(K, P) products with the Hessian of the regulariser."""
        theta, slope = _penalty_slope(self.problem, create_graph=True)
        if not slope.requires_grad:  # no regulariser, or a linear one
            return torch.zeros_like(vectors)
        rows = [
            torch.autograd.grad(slope, theta, v, retain_graph=True, materialize_grads=True)[0]
            for v in vectors
        ]
        return torch.stack(rows) if rows else torch.zeros_like(vectors)

    def dense(self) -> Tensor:
        """The whole matrix (P, P) in float64."""
        matrix = self._dense_ggn() if self.kind == "ggn" else self._by_columns(self)
        return (matrix + matrix.T) / 2

    def _by_columns(self, product: Product) -> Tensor:
        """(P, P) float64 from products with the unit vectors."""
        problem = self.problem
        columns: list[Tensor] = []
        for rows in torch.arange(problem.size).split(_COLUMNS):
            basis = torch.zeros(len(rows), problem.size, dtype=problem.dtype, device=problem.device)
            basis[torch.arange(len(rows)), rows] = 1
            columns.append(product(basis).double())
        return torch.cat(columns)

    def _dense_ggn(self) -> Tensor:
        """Sum of J_i^T S_i J_i from explicit Jacobians: N C P^2 operations, all in matmul."""
        problem = self.problem
        count = len(problem) if self.positions is None else len(self.positions)
        size = self.batch_size or jacobian_batch(problem)
        total = torch.zeros(problem.size, problem.size, dtype=torch.float64, device=problem.device)
        for batch in problem.batches(size, positions=self.positions):
            jac = jacobians(problem, batch).double()
            weighted = (
                output_hessians(problem, batch).double() * batch.weights.double()[:, None, None]
            )
            total += jac.flatten(0, 1).T @ (weighted @ jac).flatten(0, 1)
        return total.mul_(self.data_scale / count).add_(self._by_columns(self.penalty_product))


_COLUMNS = 256
"""Columns of a dense matrix that are made together."""


def hessian_is_ggn(problem: Problem) -> bool:
    """Whether the Hessian equals the Gauss-Newton matrix, as it does for linear models.

    Both are multiplied with two random vectors. Matrices that differ anywhere differ on a random
    vector with probability one, so agreement to rounding decides. Each problem is asked once.
    """
    if problem not in _ARE_EQUAL:
        _ARE_EQUAL[problem] = _agree(problem)
    return _ARE_EQUAL[problem]


_ARE_EQUAL: WeakKeyDictionary[Problem, bool] = WeakKeyDictionary()


def _agree(problem: Problem) -> bool:
    """Whether both matrices times two random vectors are equal."""
    few = torch.arange(min(256, len(problem)))
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2, problem.size, generator=generator, dtype=torch.float64).to(
        problem.parameters
    )
    try:
        full = CurvatureMatrix(problem, "hessian", positions=few)(probes)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return False  # fused attention, for one, has no second derivative: it is not linear
    ggn = CurvatureMatrix(problem, "ggn", positions=few)(probes)
    return bool((full - ggn).norm() <= 1e3 * torch.finfo(problem.dtype).eps * full.norm())


def decay_diagonal(problem: Problem) -> Tensor | None:
    """(P,) diagonal of the Hessian of the regulariser; None where it is not diagonal.

    A diagonal matrix times any vector is its row sums times that vector, entry by entry. Another
    matrix fails this on a random vector with probability one.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(problem.size, generator=generator, dtype=torch.float64)
    vectors = torch.stack([torch.ones_like(probe), probe]).to(problem.parameters)
    sums, found = CurvatureMatrix(problem).penalty_product(vectors).double()
    gap = (found - sums * vectors[1].double()).norm()
    is_diagonal = bool(gap <= 1e3 * torch.finfo(problem.dtype).eps * found.norm())
    return sums if is_diagonal else None


def _weighted(problem: Problem, parameters: Tensor, batch: Batch) -> Tensor:
    return (batch.weights * problem.losses(parameters, batch)).sum()


def hessian_product(problem: Problem, vectors: Tensor, batch: Batch) -> Tensor:
    """(K, P) sum over a batch of b_i (hess loss_i) v, for each v of a stack (K, P)."""
    if not is_vectorised(problem):
        return _looped_hessian_product(problem, vectors, batch)
    slope = grad(lambda theta: _weighted(problem, theta, batch))
    with torch.no_grad(), StackedLinear():
        return vmap(lambda v: jvp(slope, (problem.parameters,), (v,))[1])(vectors)


def _looped_hessian_product(problem: Problem, vectors: Tensor, batch: Batch) -> Tensor:
    """Reverse over reverse, one vector at a time: works wherever the model can be trained."""
    theta = problem.parameters.detach().clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(_weighted(problem, theta, batch), theta, create_graph=True)
    rows = [
        torch.autograd.grad(slope @ v, theta, retain_graph=True, materialize_grads=True)[0]
        for v in vectors
    ]
    return torch.stack(rows)


def _ggn_product(problem: Problem, vectors: Tensor, batch: Batch) -> Tensor:
    """Sum over a batch of b_i J_i^T S_i J_i v, for each v."""
    if not is_vectorised(problem):
        jac = jacobians(problem, batch)
        moved = torch.einsum("bcp,kp->kbc", jac, vectors)
        bent = torch.einsum("bcd,kbd->kbc", output_hessians(problem, batch), moved)
        return torch.einsum("bcp,kbc,b->kp", jac, bent, batch.weights)

    def function(theta: Tensor) -> Tensor:
        return problem.outputs(theta, batch.inputs)

    def loss_of_outputs(values: Tensor) -> Tensor:
        return (batch.weights * problem.loss(values, cast("Tensor", batch.targets))).sum()

    def one(v: Tensor, values: Tensor, back: Callable[[Tensor], tuple[Tensor]]) -> Tensor:
        moved = jvp(function, (problem.parameters,), (v,))[1]
        bent = jvp(grad(loss_of_outputs), (values,), (moved,))[1]
        return back(_examples_last(bent))[0]

    with torch.no_grad(), StackedLinear():
        values, back = vjp(function, problem.parameters)[:2]
        return vmap(lambda v: one(v, values, back))(vectors)


def _examples_last(tensor: Tensor) -> Tensor:
    """The same (B, C) values with the examples next to each other in memory.

    The backward pass of a linear layer sums over examples, and its product with a stack is 2.5
    times faster when they are contiguous (156 against 61 ms for K = 60, B = 2000, 784 inputs).
    """
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
