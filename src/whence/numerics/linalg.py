"""Damped solves with symmetric matrices: by eigenvalues, or by Krylov steps.

Vectors are the *rows* of a stack (K, P). A matrix that is too large to be written down is a
`Product`: a function that multiplies a whole stack, so that K vectors share its cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.errors import BadArgument, NegativeCurvature, NonFinite, NotConverged, NumericsError
from whence.progress import track

Product = Callable[[Tensor], Tensor]
"""(K, P) -> (K, P), the rows times a symmetric matrix."""

Preconditioner = Callable[[Tensor], Tensor]
"""(K, P) -> (K, P), the rows times an approximate inverse that is positive definite."""


# ------------------------------------------------------------------ dense matrices


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues and eigenvectors of a symmetric matrix, in float64.

    Args:
        values: (P,) ascending.
        vectors: (P, P), one eigenvector a column.
        threshold: eigenvalues of at most this size are null: rounding cannot tell them from zero.
    """

    values: Tensor
    vectors: Tensor
    threshold: float

    @cached_property
    def is_null(self) -> Tensor:
        """(P,) which eigenvalues count as zero."""
        return self.values.abs() <= self.threshold

    @property
    def null_count(self) -> int:
        """How many eigenvalues count as zero."""
        return int(self.is_null.sum())

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue that is not null; 0 if all are."""
        rest = self.values[~self.is_null]
        return float(rest.min()) if len(rest) else 0.0

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[-1])

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""
        return float(self.values.mean())

    def solve(self, stack: Tensor, damping: float = 0.0) -> Tensor:
        """(A + damping I)^-1 v for each row; without damping, null directions are left out.

        Args:
            stack: (K, P).
            damping: added to every eigenvalue.

        Returns:
            (K, P).
        """
        return (stack @ self.vectors * self._inverse(damping)) @ self.vectors.T

    def multiply(self, stack: Tensor) -> Tensor:
        """(K, P) A v for each row, null eigenvalues taken as zero."""
        values = torch.where(self.is_null, 0.0, self.values)
        return (stack @ self.vectors * values) @ self.vectors.T

    def half(self, stack: Tensor, damping: float = 0.0) -> Tensor:
        """Rows h with h_j . h_k = v_j (A + damping I)^-1 v_k, for a positive matrix.

        Args:
            stack: (K, P).
            damping: added to every eigenvalue.

        Returns:
            (K, P), in the basis of eigenvectors.
        """
        return stack @ self.vectors * self._inverse(damping).sqrt()

    def null_share(self, stack: Tensor) -> Tensor:
        """(K,) the share of each row's norm that lies in null directions."""
        inside = (stack @ self.vectors[:, self.is_null]).norm(dim=1)
        return inside / stack.norm(dim=1).clamp_min(torch.finfo(stack.dtype).tiny)

    def without_null(self, stack: Tensor) -> Tensor:
        """(K, P) the rows without their part in null directions."""
        null = self.vectors[:, self.is_null]
        return stack - (stack @ null) @ null.T

    def _inverse(self, damping: float) -> Tensor:
        values = torch.where(self.is_null, 0.0, self.values) + damping
        return torch.where(values == 0, 0.0, 1 / values)


def decompose(matrix: Tensor, *, eps: float) -> Eigen:
    """The eigenvalues and eigenvectors of a symmetric matrix.

    An eigenvalue is null where it is at most P * eps * the largest: the rounding of the entries
    could have made it.

    Args:
        matrix: (P, P), symmetric.
        eps: relative rounding of its entries, that of the type it was computed in.

    Raises:
        NonFinite: the matrix holds NaN or infinity.
        NumericsError: the matrix is not symmetric, or the decomposition did not converge.
    """
    if not bool(matrix.isfinite().all()):
        raise NonFinite(
            found="The curvature matrix holds NaN or infinity.",
            why="It cannot be inverted.",
            remedy="Look for square roots or logarithms at zero in the model; a float64 model "
            "(problem.to(dtype=torch.float64)) overflows later.",
        )
    _check_symmetry(matrix, eps)
    try:
        values, vectors = torch.linalg.eigh(matrix.double())
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise NumericsError(
            found=f"The eigenvalues of a {len(matrix)} x {len(matrix)} matrix did not converge "
            f"({error}).",
            why="Without them the matrix cannot be inverted exactly.",
            remedy='Use curvature="cg", which needs products only.',
        ) from error
    return Eigen(values, vectors, len(matrix) * eps * float(values.abs().max()))


_WIDE = 512
"""Rows up to which second moments are decomposed in float64."""


def eigenbasis(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising and at least zero, and eigenvectors of second moments.

    Up to 512 rows in float64, larger ones in their own type: a basis that is off by its rounding
    is as good a basis.

    Args:
        moments: (..., d, d) symmetric and never negative, up to rounding.

    Returns:
        (..., d) and (..., d, d), eigenvectors in columns.

    Raises:
        NonFinite: NaN or infinity.
        NumericsError: the decomposition did not converge.
    """
    if not bool(moments.isfinite().all()):
        raise NonFinite(
            found="A second moment of activations or gradients holds NaN or infinity.",
            why="It has no eigenvectors.",
            remedy="Look for overflow in the model; use float32 instead of half precision.",
        )
    wide = moments.double() if moments.shape[-1] <= _WIDE else moments
    found = _eigh(wide)
    if found is None:
        # Clusters of eigenvalues near zero can stop the iteration: a shift below rounding frees it.
        wide = moments.double()
        shift = torch.finfo(wide.dtype).eps * wide.diagonal(dim1=-2, dim2=-1).mean(-1)
        identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
        found = _eigh(wide + shift[..., None, None] * identity)
    if found is None:
        raise NumericsError(
            found=f"The eigenvalues of a {wide.shape[-1]} x {wide.shape[-1]} second moment did not "
            "converge, in float64 either.",
            why="The layer's basis is made of its eigenvectors.",
            remedy='Use curvature="diagonal" or "cg", which need none.',
        )
    values, vectors = found
    return values.clamp_min(0), vectors


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues and eigenvectors; None where they do not converge or are no numbers."""
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    is_finite = bool(values.isfinite().all()) and bool(vectors.isfinite().all())
    return (values, vectors) if is_finite else None


def _check_symmetry(matrix: Tensor, eps: float) -> None:
    """Half of the digits must agree: `eigh` reads one triangle and never looks at the other."""
    rows = 1024  # at a time, so that no second matrix is held
    pairs = ((matrix[i : i + rows], matrix[:, i : i + rows].T) for i in range(0, len(matrix), rows))
    apart = max((float((here - there).abs().max()) for here, there in pairs), default=0.0)
    if apart > eps**0.5 * float(matrix.abs().max() if len(matrix) else 0.0):
        raise NumericsError(
            found=f"Entries of the curvature matrix differ from their mirror images by up to "
            f"{apart:.2g}.",
            why="A matrix of second derivatives is symmetric; only one triangle would be used.",
            remedy="Look for a loss whose derivative is cut (detach, straight-through) or rounded.",
        )


# ------------------------------------------------------------------ block conjugate gradients


@dataclass(frozen=True)
class CGResult:
    """What `block_cg` found.

    Args:
        solution: (K, P).
        residuals: (K,) true relative residuals |A x - v| / |v|, from a product of their own.
        steps: products of a block with the matrix.
        smallest_ritz: smallest Rayleigh quotient met: an upper bound of the smallest eigenvalue.
        largest_ritz: largest Rayleigh quotient met: a lower bound of the largest eigenvalue.
    """

    solution: Tensor
    residuals: Tensor
    steps: int
    smallest_ritz: float
    largest_ritz: float


def block_cg(
    product: Product,
    rhs: Tensor,
    *,
    tolerance: float,
    max_steps: int,
    preconditioner: Preconditioner | None = None,
) -> CGResult:
    """A^-1 v for each row, all rows searching in one common Krylov space.

    A step minimises the energy error of every row over the span of the whole block of directions.
    Rows are brought to length one and replaced by an orthonormal basis of what they span, which is
    what is solved for: duplicate rows, zero rows and K > P cost no more than their rank. The block
    of directions loses those that become dependent. The recursive residual drifts from the true
    one by rounding: when it says "done", the true one is computed, and the iteration starts again
    from there until that one is small enough. Rounding the solution alone leaves a residual of
    about eps |A| |x| / |v|: a tolerance below that cannot be reached, and the error says so.

    Args:
        product: the symmetric positive definite matrix.
        rhs: (K, P).
        tolerance: relative residual that every row must reach.
        max_steps: products to spend before giving up; the last check comes on top.
        preconditioner: approximate inverse, positive definite.

    Raises:
        NegativeCurvature: a direction with v A v < 0 was met.
        NotConverged: the residual is above the tolerance after `max_steps`, or stopped falling.
        NonFinite: a right-hand side or a product is not a number.

    Source: O'Leary 1980, "The block conjugate gradient algorithm"; the rank-revealing block of
    directions as in Ji & Li 2017, "A breakdown-free block conjugate gradient method".
    """
    if not bool(rhs.isfinite().all()):
        raise NonFinite(
            found=f"{int((~rhs.isfinite()).any(dim=1).sum())} of {len(rhs)} right-hand sides hold "
            "NaN or infinity.",
            why="Rows share one search: a single bad one would spoil them all.",
            remedy="Look for overflow in the gradients of the measurement.",
        )
    search = _Search(product, preconditioner or (lambda stack: stack), max_steps)
    norms = _norms(rhs)
    scale = norms.where(norms > 0, 1.0)
    solution = torch.zeros_like(rhs)
    residual, worst = rhs / scale, 1.0
    while True:
        solution = solution + search.correct(residual, goal=tolerance) * scale
        residual = (rhs - search.multiply(solution)) / scale  # of just what is returned
        relative = residual.norm(dim=1)
        previous, worst = worst, float(relative.max()) if len(relative) else 0.0
        if worst <= tolerance:
            break
        if search.steps >= max_steps or worst > 0.5 * previous:
            raise _not_converged(search, relative, tolerance)
    return CGResult(solution, relative, search.steps, search.smallest, search.largest)


class _Search:
    """The steps of one solve, and what they met."""

    def __init__(self, product: Product, preconditioner: Preconditioner, max_steps: int) -> None:
        self.product = product
        self.precondition = preconditioner
        self.max_steps = max_steps
        self.steps = 0
        self.smallest = float("inf")
        self.largest = 0.0
        self.estimate = 1.0

    def multiply(self, stack: Tensor) -> Tensor:
        """One counted product.

        Raises:
            NonFinite: it holds NaN or infinity.
        """
        self.steps += 1
        answer = self.product(stack)
        if not bool(answer.isfinite().all()):
            raise NonFinite(
                found=f"Product {self.steps} with the curvature matrix is not a number.",
                why="The solve cannot go on.",
                remedy="Look for overflow in the model; try problem.to(dtype=torch.float64).",
            )
        return answer

    def correct(self, residual: Tensor, *, goal: float) -> Tensor:
        """(K, P) about A^-1 r for each row, until the recursive residuals are below the goal."""
        left, mixture = _orthonormal(residual, floor=0.1 * goal)  # residual = mixture @ left
        solved = torch.zeros_like(left)
        directions, _ = _orthonormal(self.precondition(left))
        while len(directions) and self.steps < self.max_steps:
            images = self.multiply(directions)
            inverse = self._invert(directions @ images.T)  # (D, D)
            move = left @ directions.T @ inverse
            solved = solved + move @ directions
            left = left - move @ images
            self.estimate = float((mixture @ left).norm(dim=1).max())
            if self.estimate <= 0.9 * goal:  # room for what the floor has left out
                break
            fresh = self.precondition(left)
            overlap = fresh @ images.T @ inverse
            directions, _ = _orthonormal(fresh - overlap @ directions)
        return mixture @ solved

    def _invert(self, gram: Tensor) -> Tensor:
        """Inverse of the curvature along orthonormal directions, which it also inspects."""
        values, vectors = torch.linalg.eigh((gram + gram.T).double() / 2)
        self.smallest = min(self.smallest, float(values[0]))
        self.largest = max(self.largest, float(values[-1]))
        rounding = len(values) * torch.finfo(gram.dtype).eps * max(self.largest, -self.smallest)
        if float(values[0]) < -10 * rounding:
            raise NegativeCurvature(
                found=f"Along a direction met at product {self.steps} the curvature is "
                f"{float(values[0]):.3g} (largest met: {self.largest:.3g}).",
                why="The matrix is not positive definite: conjugate gradients would return "
                "something that minimises nothing.",
                remedy=f'Use matrix="ggn", or raise damping by more than {-float(values[0]):.3g}.',
            )
        keep = values > rounding
        return ((vectors[:, keep] / values[keep]) @ vectors[:, keep].T).to(gram)


def _norms(stack: Tensor) -> Tensor:
    """(K, 1) lengths of the rows, also of those whose squares underflow."""
    if stack.numel() == 0:
        return stack.new_zeros(len(stack), 1)
    largest = stack.abs().amax(dim=1, keepdim=True)
    return largest * (stack / largest.where(largest > 0, 1.0)).norm(dim=1, keepdim=True)


def _orthonormal(stack: Tensor, *, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the row space, D <= K, and how the rows are mixed from it.

    By Householder reflections: the Gram matrix of the rows would square their condition number,
    and lose every direction below 1e-8 of the largest to rounding.

    Args:
        stack: (K, P).
        floor: directions that no row needs by more than this are left out, as are those that
            rounding has made.

    Returns:
        (D, P) the basis, and (K, D) with stack = mixture @ basis.
    """
    basis, upper = torch.linalg.qr(stack.T)
    turn, sizes, mixture = torch.linalg.svd(upper.double(), full_matrices=False)
    rounding = torch.finfo(stack.dtype).eps * float(sizes.sum())
    keep = sizes > max(floor, rounding)
    rows = (basis @ turn[:, keep].to(stack)).T.contiguous()
    return rows, (sizes[keep, None] * mixture[keep]).T.to(stack)


def _not_converged(search: _Search, relative: Tensor, tolerance: float) -> NotConverged:
    failed = int((relative > tolerance).sum())
    stopped = "the limit" if search.steps >= search.max_steps else "rounding lets it go no further"
    return NotConverged(
        found=f"CG stopped after {search.steps} products ({stopped}) at relative residual "
        f"{float(relative.max()):.1e} (asked {tolerance:.1e}); {failed} of {len(relative)} solves "
        f"are above it. Curvature met: {search.smallest:.2e} to {search.largest:.2e}.",
        why="Effects of those queries may be off by as much; the recursion itself believed in a "
        f"residual of {search.estimate:.1e}.",
        remedy="Raise damping, max_steps or tolerance; in float32 a tolerance below 1e-5 is "
        "rarely reached, so use problem.to(dtype=torch.float64).",
    )


# ------------------------------------------------------------------ matrices of low rank


@dataclass(frozen=True)
class LowRank:
    """A symmetric matrix that is known along a few directions: U^T diag(l) U + floor (I - U^T U).

    Args:
        basis: (r, P) U, orthonormal rows.
        values: (r,) l, in float64.
        floor: the eigenvalue along all directions that U leaves out.
    """

    basis: Tensor
    values: Tensor
    floor: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether U spans the whole space, so that the floor plays no part."""
        return self.basis.shape[0] == self.basis.shape[1]

    @cached_property
    def threshold(self) -> float:
        """Eigenvalues of at most this size are null: rounding cannot tell them from zero."""
        largest = float(self.values.abs().max()) if len(self.values) else 0.0
        return len(self.values) * torch.finfo(self.basis.dtype).eps * largest

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue that is not null, the floor included; 0 if all are null."""
        found: list[float] = self.values[self.values.abs() > self.threshold].tolist()
        if self.floor and not self.is_complete:
            found.append(self.floor)
        return min(found, default=0.0)

    def solve(self, stack: Tensor, damping: float = 0.0) -> Tensor:
        """(A + damping I)^-1 v for each row; directions whose eigenvalue is then 0 are left out.

            U^T diag(1 / (l + damping)) U v + (I - U^T U) v / (floor + damping)

        Args:
            stack: (K, P).
            damping: added to every eigenvalue.

        Returns:
            (K, P).
        """
        inside, outside = self.split(stack)
        share, rest = self._inverse(damping)
        return (inside * share.to(stack)) @ self.basis + rest * outside

    def leverage(self, rows: Tensor, damping: float = 0.0) -> Tensor:
        """K_b = J_b (A + damping I)^-1 J_b^T for each stack of rows.

        Args:
            rows: (B, C, P).
            damping: added to every eigenvalue.

        Returns:
            (B, C, C).
        """
        parts = self.split(rows.flatten(0, 1))
        inside, outside = (part.unflatten(0, rows.shape[:2]) for part in parts)
        share, rest = self._inverse(damping)
        return (inside * share.to(rows)) @ inside.mT + rest * (outside @ outside.mT)

    def split(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (K, r) along the basis, and what is left of each row (K, P)."""
        inside = stack @ self.basis.T
        return inside, stack - inside @ self.basis

    def is_left_out(self, damping: float) -> bool:
        """Whether a solve leaves out the directions beside the basis."""
        return not self.is_complete and self.floor + damping == 0

    def _inverse(self, damping: float) -> tuple[Tensor, float]:
        """(r,) along the basis, and the number beside it."""
        values = self.values.where(self.values.abs() > self.threshold, 0.0) + damping
        rest = self.floor + damping
        return torch.where(values == 0, 0.0, 1 / values), 1 / rest if rest else 0.0


@dataclass(frozen=True)
class RitzPairs:
    """What `ritz_pairs` found.

    Args:
        vectors: (r, P) orthonormal rows y.
        values: (r,) theta = y A y, ascending, in float64.
        residuals: (r,) |A y - theta y|, in float64.
    """

    vectors: Tensor
    values: Tensor
    residuals: Tensor


def ritz_pairs(
    product: Product, like: Tensor, *, rank: int, block: int = 1, seed: int = 0
) -> RitzPairs:
    """Approximate eigenpairs of a symmetric matrix from a Krylov space.

    The space is spanned by random vectors and their images, U; the pairs are the eigenpairs of
    U A U^T, which holds all there is to know of A within the space. Every image is made orthogonal
    to all that came before, twice. A direction of which rounding has made more than the fourth
    root of eps is replaced by a new random one: so a space that is complete too early, as with
    multiple eigenvalues, grows on, up to the whole one.

    Args:
        product: a symmetric matrix A.
        like: (P,) a vector of the size, type and device wanted.
        rank: dimension r of the space; at most P is taken.
        block: vectors that it starts from, which share every product.
        seed: of the start.

    Raises:
        NonFinite: a product is not a number.

    Cost: r / block products with a block, 6 r^2 P multiplications, r P numbers.

    Source: Lanczos 1950 with full reorthogonalisation, also known as Arnoldi's iteration; for
    blocks Golub & Underwood 1977, "The block Lanczos method for computing eigenvalues".
    """
    rank = min(rank, len(like))
    basis = like.new_zeros(rank, len(like))
    inside = torch.zeros(rank, rank, dtype=torch.float64, device=like.device)
    rest = before = like.new_zeros(0, len(like))
    largest = 0.0
    for start in track(range(0, rank, block), "Krylov space"):
        stop = min(start + block, rank)
        floor = torch.finfo(like.dtype).eps ** 0.75 * largest
        found, _ = _orthonormal(rest, floor=floor)
        basis[start:stop] = _filled_up(found[: stop - start], basis[:start], stop - start, seed)
        image = product(basis[start:stop])
        _refuse_non_finite(image, start // block + 1)
        largest = max(largest, float(image.norm(dim=1).max()))
        inside[:stop, start:stop] = (basis[:stop] @ image.T).double()
        before, rest = rest, _outside(image, basis[:stop])
    values, turn = torch.linalg.eigh(inside, UPLO="U")
    # Outside the space lie images of the last block, and of the one before if not all had room.
    rest = _outside(torch.cat([before, rest]), basis).double()
    last = turn[rank - len(rest) :]
    squares = (last * (rest @ rest.T @ last)).sum(0)
    return RitzPairs(turn.T.to(like) @ basis, values, squares.clamp_min(0).sqrt())


def _filled_up(found: Tensor, basis: Tensor, width: int, seed: int) -> Tensor:
    """(width, P) orthonormal rows beside the basis: those that were found, then random ones.

    Args:
        found: (b, P) orthonormal rows, b <= width.
        basis: (k, P) orthonormal rows; at least `width` directions are beside them.
        width: rows wanted.
        seed: of the random ones.
    """
    while len(found) < width:
        taken = torch.cat([basis, found])
        fresh = _gaussian(width - len(found), basis.new_empty(basis.shape[1]), seed + len(taken))
        found = torch.cat([found, _orthonormal(_outside(fresh, taken))[0]])
    # Bringing a short direction to length one has magnified what rounding left in the basis.
    return torch.linalg.qr(_outside(found, basis).T)[0].T


def _outside(stack: Tensor, basis: Tensor) -> Tensor:
    """(K, P) the rows without their part in the span of orthonormal rows."""
    for _ in range(2):  # one pass leaves what rounding has mixed in
        stack = stack - (stack @ basis.T) @ basis
    return stack


# ------------------------------------------------------------------ randomised sketches


@dataclass(frozen=True)
class NystromSketch:
    """What `nystrom` found: A is about U^T diag(l) U, and never less than that.

    Args:
        basis: (r, P) U, orthonormal rows, in float64.
        values: (r,) l, descending.
        inside: (r,) eigenvalues of W A W^T, ascending, for the rows W that A was multiplied with.
    """

    basis: Tensor
    values: Tensor
    inside: Tensor

    def multiply(self, stack: Tensor) -> Tensor:
        """(K, P) the rows times the sketch."""
        return ((stack.to(self.basis) @ self.basis.T * self.values) @ self.basis).to(stack)


def nystrom(product: Product, like: Tensor, *, rank: int, seed: int) -> NystromSketch:
    """The eigenpairs of a Nyström approximation, from one product with `rank` random vectors.

        A ~ (A W^T) (W A W^T)^-1 (W A),        W (r, P) random and orthonormal

    Args:
        product: a symmetric positive semi-definite matrix A.
        like: (P,) a vector of the size, type and device wanted.
        rank: r <= P of the sketch.
        seed: of the random vectors.

    Raises:
        NonFinite: the product is not a number.

    Cost: one product with r vectors, 10 r^2 P multiplications, 5 r P numbers in float64.

    Source: Frangella, Tropp & Udell 2021 (arXiv:2110.02820), algorithm 2.1 with the stabilising
    shift.
    """
    probes = _gaussian(min(rank, len(like)), like, seed)
    probes = torch.linalg.qr(probes.T.double())[0].T.contiguous()  # (r, P)
    image = product(probes.to(like)).double()
    _refuse_non_finite(image, 1)
    gram = image @ probes.T
    inside, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    shift = torch.finfo(like.dtype).eps * float(image.norm())
    image = image + shift * probes
    values = inside + shift
    keep = values > len(values) * torch.finfo(like.dtype).eps * values[-1]
    # B^T B = image^T gram^-1 image, the Nystrom approximation of A + shift
    rows = (vectors[:, keep] / values[keep].sqrt()).T @ image
    # Through its factor and not its Gram matrix, which would square the condition number.
    turned, upper = torch.linalg.qr(rows.T)
    turn, sizes, _ = torch.linalg.svd(upper)
    basis = (turned @ turn).T.contiguous()
    return NystromSketch(basis, (sizes**2 - shift).clamp_min(0), inside)


@dataclass(frozen=True)
class NystromPreconditioner:
    """P^-1 = U diag((l_r + damping) / (l_j + damping)) U^T + (I - U U^T).

    Args:
        basis: (P, r) U, orthonormal.
        factors: (r,) the diagonal minus one.
    """

    basis: Tensor
    factors: Tensor

    def __call__(self, stack: Tensor) -> Tensor:
        """(K, P) rows times P^-1."""
        return stack + (stack @ self.basis * self.factors) @ self.basis.T


def nystrom_preconditioner(
    product: Product, like: Tensor, *, rank: int, damping: float, seed: int
) -> NystromPreconditioner:
    """A preconditioner for A + damping I from one product with `rank` random vectors.

    Args:
        product: a symmetric positive semi-definite matrix A.
        like: (P,) a vector of the size, type and device wanted.
        rank: r <= P of the sketch.
        damping: that of the system.
        seed: of the random vectors.

    Source: Frangella, Tropp & Udell 2021 (arXiv:2110.02820), equation 1.3.
    """
    sketch = nystrom(product, like, rank=rank, seed=seed)
    approximate = sketch.values + damping
    floor = approximate.min().clamp_min(torch.finfo(like.dtype).eps * approximate.max())
    factors = floor / approximate.clamp_min(floor) - 1
    return NystromPreconditioner(sketch.basis.T.to(like).contiguous(), factors.to(like))


def trace_outside(
    product: Product, basis: Tensor, like: Tensor, *, probes: int, seed: int
) -> tuple[float, float]:
    """Trace of a symmetric matrix A beside a space, tr (I - U^T U) A, and its standard error.

    With the trace within the space, which is known once A U^T is, it makes an estimate of the
    whole trace that random signs alone reach with many more probes: the largest eigenvalues, which
    scatter most, are in the space.

    Args:
        product: the symmetric matrix A.
        basis: (r, P) U, orthonormal rows.
        like: (P,) a vector of the size, type and device wanted.
        probes: how many vectors of random signs, at least two.
        seed: of the signs.

    Returns:
        Two zeros where U spans the whole space.

    Raises:
        BadArgument: a standard error needs two probes.

    Source: Meyer, Musco, Musco & Woodruff 2021 (arXiv:2010.09649), "Hutch++".
    """
    if len(basis) == len(like):
        return 0.0, 0.0

    def beside(stack: Tensor) -> Tensor:
        image = product(_outside(stack.to(basis), basis).to(like))
        return _outside(image.to(basis), basis)

    # Signs of the numbers that the space was drawn from would be anything but independent of it.
    return trace(beside, like, probes=probes, seed=-1 - seed)


def trace(product: Product, like: Tensor, *, probes: int, seed: int) -> tuple[float, float]:
    """Trace of a symmetric matrix and its standard error, from random signs.

    Args:
        product: the symmetric matrix.
        like: (P,) a vector of the size, type and device wanted.
        probes: how many vectors of random signs, at least two.
        seed: of the signs.

    Raises:
        BadArgument: a standard error needs two probes.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    """
    if probes < 2:
        raise BadArgument(
            found=f"{probes} probes were asked for.",
            why="The spread of the estimates tells their standard error: one has no spread.",
            remedy="Ask for two or more.",
        )
    signs = _gaussian(probes, like, seed).sign()
    samples = (signs * product(signs)).double().sum(1)
    return float(samples.mean()), float(samples.std() / probes**0.5)


def extreme_eigenvalues(
    product: Product, like: Tensor, *, steps: int, seed: int
) -> tuple[float, float]:
    """The smallest and largest Ritz value after some Lanczos steps.

    Both lie inside the true range of eigenvalues, and approach its ends from within; the ends that
    stand apart from the rest are found first. After k steps an end is missed by more than a share
    s of the whole range with a probability of at most about sqrt(P) exp(-(2 k - 1) sqrt(s)), over
    the random start (Kuczynski & Wozniakowski 1992, as their abstract states it).

    Args:
        product: a symmetric matrix.
        like: (P,) a vector of the size, type and device wanted.
        steps: products.
        seed: of the start.

    Raises:
        NonFinite: a product is not a number.

    Source: Lanczos 1950, with full reorthogonalisation.
    """
    basis = _gaussian(1, like, seed)
    basis = basis / basis.norm()
    images: list[Tensor] = []
    for _ in range(min(steps, len(like))):
        images.append(product(basis[-1:])[0])
        rest = images[-1]
        _refuse_non_finite(rest, len(images))
        rest = _outside(rest[None], basis)[0]
        size = rest.norm()
        if float(size) <= torch.finfo(like.dtype).eps * float(images[-1].norm()):
            break  # the Krylov space is complete
        basis = torch.cat([basis, (rest / size)[None]])
    inside = (basis[: len(images)] @ torch.stack(images).T).double()
    ritz = torch.linalg.eigvalsh((inside + inside.T) / 2)
    return float(ritz[0]), float(ritz[-1])


def _refuse_non_finite(image: Tensor, count: int) -> None:
    if not bool(image.isfinite().all()):
        raise NonFinite(
            found=f"Product {count} with the curvature matrix is not a number.",
            why="Its eigenvalues cannot be estimated.",
            remedy="Look for overflow in the model; try problem.to(dtype=torch.float64).",
        )


def _gaussian(count: int, like: Tensor, seed: int) -> Tensor:
    """(count, P) normal numbers that are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, len(like), generator=generator, dtype=torch.float64)
    return numbers.to(like)
