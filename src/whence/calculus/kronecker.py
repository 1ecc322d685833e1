"""Layer-wise curvature in Kronecker-factored eigenbases: K-FAC and EK-FAC.

A block of parameters has gradients G = sum_t l_t r_t^T (`whence.calculus.layers`). Its part of the
Gauss-Newton matrix is taken to be diagonal in the product of two small bases,

    F V ~ U_L [ D o (U_L^T V U_R) ] U_R^T,        U_L, U_R = eigenvectors of E sum_t l_t l_t^T and
                                                              of the mean of r_t r_t^T
    EK-FAC    D_jk = E (U_L^T G U_R)_jk^2          the diagonal itself, the best for these bases
    K-FAC     D_jk = (eigenvalue of l)_j (eigenvalue of r)_k

and blocks do not see each other. A parameter in one row (a scale, a bias) has U_L = 1, so that its
block is exact. E is over the slopes of the Fisher information (`whence.calculus.fisher`).

Nothing of this needs to see everything. Examples come in an order that depends on ids alone. Bases
are from the first of them, as many as give every side of a block rows enough for its eigenvectors:
whatever the basis, D is the best diagonal in it. D is from rounds, each as large as all before it
together; after every round two halves of the examples tell how far scores may be off, and that ends
the rounds once it is little. K-FAC has no D of its own: it takes its bases in rounds, until
|A - B| / |A + B| of the moments of both halves, the relative standard error of their mean, is small
for every block.

Source: Martens & Grosse 2015 (arXiv:1503.05671); George et al. 2018 (arXiv:1806.03884); for
convolutions Grosse & Martens 2016 (arXiv:1602.01407).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from whence.calculus.fisher import Fisher
from whence.calculus.gradients import residuals
from whence.calculus.layers import Block, Structure, Watched, dense, structure_of, whole
from whence.calculus.watching import Factors, Left, OneHot
from whence.core.batches import Batch
from whence.core.problem import Problem
from whence.errors import NonFinite, NumericsError
from whence.numerics import draws
from whence.numerics.linalg import eigenbasis
from whence.progress import track

T = TypeVar("T")

WIDEST_BASIS = 2048
"""Sides of a block that are longer, such as a vocabulary, keep their own coordinates as basis."""

WIDEST_ROW = 512
"""The same for a parameter in one row, whose matrix is not smaller than the square of this."""

FIRST_ROUND = 512
"""Examples of the first round, for eigenvalues."""

FEWEST, ROWS = 512, 16
"""Bases are made from no fewer examples, and rows for each coordinate of a side."""

PLACES, WIDE = 8, 256
"""Bases of layers with a side of 256 or more are made from an eighth of the places at which an
example uses the layer, and from no fewer than eight; more where a side would get too few rows. Each
example has its own places. Narrower layers gain nothing: taking some of the places costs as much as
the products that it saves."""

FACTOR_BYTES = 96 * 2**20
"""Memory of the factors and activations of one batch."""


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis for one side of a block.

    Args:
        vectors: (G, d, d) eigenvectors in columns; None for the coordinates themselves.
        values: (G, d) second moments along them.
    """

    vectors: Tensor | None
    values: Tensor

    def rotate(self, rows: Tensor) -> Tensor:
        """(..., G, T, d) rows in this basis."""
        return rows if self.vectors is None else _times(rows, self.vectors)

    def back(self, rows: Tensor) -> Tensor:
        """(..., G, T, d) rows out of this basis; inverse of `rotate`."""
        return rows if self.vectors is None else _times(rows, self.vectors.mT)


def _times(rows: Tensor, vectors: Tensor) -> Tensor:
    """(..., G, T, d) rows times (G, d, d); for one group one large product, not many small ones."""
    if len(vectors) > 1:
        return rows @ vectors
    return (rows.reshape(-1, rows.shape[-1]) @ vectors[0]).reshape(rows.shape)


@dataclass(frozen=True)
class KroneckerBlock:
    """The curvature of one block.

    Args:
        left, right: bases.
        values: (G, rows, columns) D, the second moments of the gradient in the two bases.
        decay: what the regulariser adds to each of them.
    """

    left: Basis
    right: Basis
    values: Tensor
    decay: float

    def rotate(self, matrices: Tensor) -> Tensor:
        """(K, G, rows, columns) matrices in the two bases."""
        return self.left.rotate(self.right.rotate(matrices).mT).mT

    def back(self, matrices: Tensor) -> Tensor:
        """Inverse of `rotate`."""
        return self.left.back(self.right.back(matrices).mT).mT

    @property
    def is_row(self) -> bool:
        """Whether its gradients are single rows, whose block of the matrix is known exactly."""
        return self.values.shape[:2] == (1, 1) and self.right.vectors is not None

    def mean(self) -> float:
        """The mean eigenvalue, regulariser included."""
        return float(self.values.double().mean()) + self.decay

    def weights(self, damping: float, scale: float = 1.0) -> Tensor:
        """(G, rows, columns) 1 / (s D + decay + damping); zero where that is zero."""
        total = scale * self.values + self.decay + damping
        return torch.where(total > 0, 1 / total, torch.zeros_like(total))


@dataclass(frozen=True, eq=False)
class Kronecker:
    """The curvature of all blocks.

    Args:
        problem: whose.
        structure: the blocks of its model.
        blocks: the curvature of each.
        facts: share of the data that was looked at, and how well it determines the moments.
        batch_bytes: memory of the factors and activations of one batch.
    """

    problem: Problem
    structure: Structure
    blocks: tuple[KroneckerBlock, ...]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    batch_bytes: int = FACTOR_BYTES

    def mean(self) -> float:
        """The mean eigenvalue over all parameters, regulariser included."""
        return sum(b.mean() * b.values.numel() for b in self.blocks) / self.problem.size

    def smallest(self) -> float:
        """The smallest eigenvalue, regulariser included."""
        return min(float(block.values.min()) + block.decay for block in self.blocks)

    def largest(self) -> float:
        """The largest eigenvalue, regulariser included."""
        return max(float(block.values.max()) + block.decay for block in self.blocks)

    def null_count(self, dampings: Sequence[float], scale: float = 1.0) -> int:
        """Directions in which everything is zero: they are left out of every solution."""
        pairs = zip(self.blocks, dampings, strict=True)
        return sum(int((block.weights(damping, scale) == 0).sum()) for block, damping in pairs)

    def solve(self, vectors: Tensor, dampings: Sequence[float], scale: float = 1.0) -> Tensor:
        """(K, P) solutions for a stack of vectors.

        Args:
            vectors: (K, P).
            dampings: what is added to the eigenvalues of each block.
            scale: s in s F + hess r.
        """
        matrices = self.structure.gather(self.problem, vectors)
        parts = zip(self.blocks, matrices, dampings, strict=True)
        solved = [b.back(b.rotate(m) * b.weights(damping, scale)) for b, m, damping in parts]
        return self.structure.scatter(self.problem, solved)

    def expected_products(
        self, vectors: Tensor, dampings: Sequence[float], scale: float = 1.0
    ) -> Tensor:
        """(K, K) x_k^T F x_l of the solutions: E (x_k . g) (x_l . g) over gradients g.

        What solved vectors say of training examples, before any of them is looked at.

        Args:
            vectors: (K, P).
            dampings: as for `solve`.
            scale: as for `solve`.
        """
        total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
        matrices = self.structure.gather(self.problem, vectors)
        for block, matrix, damping in zip(self.blocks, matrices, dampings, strict=True):
            weights = block.weights(damping, scale) * block.values.clamp_min(0).sqrt()
            said = (block.rotate(matrix) * weights).flatten(1)
            total += said @ said.T
        return total

    def squared_lengths(self, batch: Batch) -> Tensor:
        """(B,) |grad loss_i|^2, block by block.

        Args:
            batch: B training examples.
        """

        def own(some: Batch) -> Tensor:
            watched = self.structure.watch(self.problem, some.inputs, len(some))
            pairs = zip(self.structure.blocks, loss_factors(watched, some), strict=True)
            return torch.stack([whole(*pair).square().sum(1) for pair in pairs]).sum(0)

        return self._for_each(batch, own)

    def self_products(self, batch: Batch, dampings: Sequence[float], scale: float = 1.0) -> Tensor:
        """(B,) grad loss_i^T H^-1 grad loss_i, without the gradients being written out.

        Args:
            batch: B training examples.
            dampings: as for `solve`.
            scale: as for `solve`.
        """
        weights = [b.weights(d, scale) for b, d in zip(self.blocks, dampings, strict=True)]

        def own(some: Batch) -> Tensor:
            watched = self.structure.watch(self.problem, some.inputs, len(some))
            parts = zip(self.blocks, loss_factors(watched, some), weights, strict=True)
            return torch.stack([lengths(*part) for part in parts]).sum(0)

        return self._for_each(batch, own)

    def _for_each(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """(B,) what some work gives for the examples of a batch, by as many as fit."""
        size = batch_size(self.problem, self.structure, self.batch_bytes)
        parts = self.problem.sweep(work, size, positions=batch.positions)
        return torch.cat([found for _, found in parts])


# ------------------------------------------------------------------ making it


@dataclass(frozen=True)
class Plan:
    """How the moments are taken.

    Args:
        fisher: slopes of the outputs.
        accuracy: the error at which the rounds end (see above); 0 sees all data.
        is_corrected: whether D is the diagonal itself (EK-FAC) or a product (K-FAC).
        autocast: narrower type of the model's products; None for its own.
    """

    fisher: Fisher
    accuracy: float
    is_corrected: bool
    autocast: torch.dtype | None = None


Visit = Callable[[Batch, list[Factors]], None]
"""What is done with the factors of the gradients of the losses of a batch."""


def fit_kronecker(
    problem: Problem,
    plan: Plan,
    decay: Tensor,
    *,
    keeps: Callable[[Structure], Visit | None],
    only: Tensor | None = None,
    batch_bytes: int = FACTOR_BYTES,
) -> Kronecker:
    """Bases and eigenvalues of every block.

    Args:
        problem: what was trained.
        plan: how the moments are taken.
        decay: (P,) diagonal of the Hessian of the regulariser; should it differ within a block, its
            mean counts.
        keeps: what visits the gradients of all training examples, once the structure is known; they
            share a forward pass with the correction of the eigenvalues where that sees all data.
        only: positions of the examples to look at, for a trial; by default `plan` decides.
        batch_bytes: memory of the factors and activations of one batch.
    """
    structure = with_even_decay(problem, structure_of(problem), decay)
    structure = replace(structure, autocast=plan.autocast)
    visit = keeps(structure)
    run = Pass(problem, structure, plan.fisher, visit, batch_bytes)
    order = draws.order(plan.fisher.seed, draws.keys(problem.data.ids)) if only is None else only
    decays = [float(m.mean()) for m in structure.gather(problem, decay[None])]
    found, rounds = (_corrected if plan.is_corrected else _products)(run, plan, order, decays)
    rest = order[rounds.basis :] if visit is not None else order[:0]
    for _ in replace(run, fisher=None).over(rest.sort().values, "Keeping gradients", _nothing):
        pass
    facts = {
        "fisher": plan.fisher.kind,
        "examples_used": rounds.seen,
        "share_used": rounds.seen / len(problem),
        "moment_error": rounds.error,
        "basis_examples": rounds.basis,
        "covered_as": structure.coverage(),
    }
    return Kronecker(problem, structure, tuple(found), facts, batch_bytes)


def with_even_decay(problem: Problem, structure: Structure, decay: Tensor) -> Structure:
    """Biases that decay in another way than their weights stand in blocks of their own."""
    matrices = structure.gather(problem, decay[None])
    biases = {
        block.names[1]
        for block, matrix in zip(structure.blocks, matrices, strict=True)
        if len(block.names) == 2 and not torch.equal(matrix[..., -1], matrix[..., 0])
    }
    return structure.apart(biases)


def batch_size(problem: Problem, structure: Structure, room: int = FACTOR_BYTES) -> int:
    """Examples whose activations and factors fit the working memory."""
    return max(1, min(len(problem), room // example_bytes(problem, structure)))


def example_bytes(problem: Problem, structure: Structure) -> int:
    """Memory of the activations and factors of one example."""
    numbers = sum(_numbers(block) for block in structure.blocks)
    written = (block.size for block in structure.blocks if block.positions > 1)
    numbers += 3 * max(written, default=0)  # one block's gradients at a time, and their squares
    numbers += problem.input_size + 2 * problem.activation_size
    return numbers * problem.parameters.element_size()


def _numbers(block: Block) -> int:
    """Numbers of one example's factors."""
    rows = 1 if block.kind == "lookup" else block.rows
    return block.groups * block.positions * (rows + block.columns)


def loss_factors(watched: Watched, batch: Batch, *, is_last: bool = True) -> list[Factors]:
    """The factors of the gradient of each loss, for every block."""
    slopes = residuals(watched.problem, batch, values=watched.values)
    return watched.factors(slopes, is_last=is_last)


@dataclass(frozen=True)
class Pass:
    """One pass of the model over training examples, for one purpose or two.

    Args:
        problem: model and data.
        structure: of the model.
        fisher: whose slopes are wanted; None for none.
        visit: what is done with the gradients of the losses, on the same forward pass; the same
            again where a batch is done again, as for want of memory.
        batch_bytes: memory of the factors and activations of one batch.
    """

    problem: Problem
    structure: Structure
    fisher: Fisher | None
    visit: Visit | None = None
    batch_bytes: int = FACTOR_BYTES

    def over(
        self, positions: Tensor, label: str, work: Callable[[Batch, list[list[Factors]]], T]
    ) -> Iterator[tuple[Tensor, T]]:
        """The positions of each batch, with what some work gives.

        Args:
            positions: of the examples.
            label: of the progress bar.
            work: takes a batch and its factors for every set of slopes of the Fisher information;
                it must leave nothing behind where memory runs out (`Problem.sweep`).
        """

        def on(batch: Batch) -> T:
            watched = self.structure.watch(self.problem, batch.inputs, len(batch))
            if self.visit is not None:
                self.visit(batch, loss_factors(watched, batch, is_last=self.fisher is None))
            if self.fisher is None:
                return work(batch, [])
            slopes = list(self.fisher.slopes(self.problem, batch, watched.values))
            ends = [place == len(slopes) for place in range(1, len(slopes) + 1)]
            pairs = zip(slopes, ends, strict=True)
            return work(batch, [watched.factors(slope, is_last=end) for slope, end in pairs])

        size = batch_size(self.problem, self.structure, self.batch_bytes)
        parts = self.problem.sweep(on, size, positions=positions)
        yield from track(parts, label, total=-(-len(positions) // size))

    def moments(self) -> list["_Moments"]:
        """Room for those of every block."""
        return [_Moments(block, self.problem.parameters) for block in self.structure.blocks]


@dataclass(frozen=True)
class _Rounds:
    """How many examples were looked at.

    Args:
        seen: for the eigenvalues.
        basis: for the bases, and visited on the way.
        error: what is told of the examples that were not looked at.
    """

    seen: int
    basis: int
    error: float


_Found = tuple[list[KroneckerBlock], _Rounds]

_TENTH = 0.1
"""Share of the mean eigenvalue below which eigenvalues hardly matter."""


def _products(run: Pass, plan: Plan, order: Tensor, decays: Sequence[float]) -> _Found:
    """K-FAC: both bases of every block in rounds, and products of their eigenvalues."""
    halves = run.moments(), run.moments()

    def gap() -> float:
        return max(a.gap(b) for a, b in zip(*halves, strict=True))

    def look(rows: Tensor, half: int) -> None:
        _add(run, rows, halves[half])

    first = max(FIRST_ROUND, basis_examples(run.structure, len(order)))
    seen, error = _in_rounds(order, plan, look, gap, first=first)
    for one, other in zip(*halves, strict=True):
        one.take_in(other)
    return _curvatures(halves[0], decays), _Rounds(seen, seen, error)


def _corrected(run: Pass, plan: Plan, order: Tensor, decays: Sequence[float]) -> _Found:
    """EK-FAC: bases from as many examples as they need, then D = E (U_L^T G U_R)^2 in rounds."""
    moments = run.moments()
    few = order[: basis_examples(run.structure, len(order)) if plan.accuracy > 0 else None]
    _add(run, few.sort().values, moments)
    blocks = _curvatures(moments, decays)
    run = replace(run, visit=None)  # once is enough
    halves: list[list[Tensor]] = [[], []]
    sizes = [0, 0]

    def look(rows: Tensor, half: int) -> None:
        label = "Correcting eigenvalues"
        found = sum_of_squares(run, rows, blocks, label=label, each=_moments_or_squares)
        for total, part in zip(found, halves[half], strict=False):  # none in the first round
            total += part
        halves[half] = found
        sizes[half] += len(rows)

    def gap() -> float:
        means = [[total / n for total in half] for half, n in zip(halves, sizes, strict=True)]
        return _gap_of_scores(blocks, *means)

    seen, error = _in_rounds(order, plan, look, gap, first=FIRST_ROUND)
    totals = [_sum(parts) for parts in zip(*filter(None, halves), strict=True)]
    corrected = [_settled(block, total / seen) for block, total in zip(blocks, totals, strict=True)]
    return corrected, _Rounds(seen, len(few), error)


def _moments_or_squares(block: KroneckerBlock, factors: Sequence[Factors]) -> Tensor:
    """What the eigenvalues of a block follow from: of one row all of E G^T G, which is exact."""
    if not block.is_row:
        return squares(block, factors)
    rows = ((dense(left, right).mT @ right).flatten(0, 2) for left, right in factors)
    return _sum(row.mT @ row for row in rows)[None]


def _settled(block: KroneckerBlock, mean: Tensor) -> KroneckerBlock:
    """A block with the eigenvalues, and in one row also the basis, that follow from the data."""
    if not block.is_row:
        return replace(block, values=mean.to(block.values))
    right = _basis(mean, block.values)
    return replace(block, right=right, values=right.values[:, None])


def _gap_of_scores(
    blocks: Sequence[KroneckerBlock], first: Sequence[Tensor], second: Sequence[Tensor]
) -> float:
    """The relative root mean square by which scores may be off that are made with both halves.

        1/4 sqrt( sum D^2 (W_A - W_B)^2 / sum D^2 W^2 ),        W = 1 / (D + decay + damping)

    over all coordinates, as gradients of queries and of training examples both have second moments
    D. The mean of two halves is half as far off as they are apart. Coordinates of a gradient do not
    come independently, though, and what was found was half of that or less: hence the quarter,
    which is 0.95 to 4 times what is found on digits, MNIST and text
    (`benchmarks/ekfac_shortcuts.py`, "accuracy"). Damping is a tenth of the mean eigenvalue of each
    block.
    """
    apart, together = 0.0, 0.0
    for block, a, b in zip(blocks, first, second, strict=True):
        if block.is_row:  # in the basis of both
            vectors = eigenbasis(a + b)[1][0]
            a, b = (((vectors.T @ half[0]) * vectors.T).sum(1) for half in (a, b))
        mean = (a + b) / 2
        level = block.decay + _TENTH * mean.mean()
        weights = [1 / (d + level).clamp_min(torch.finfo(d.dtype).tiny) for d in (a, b, mean)]
        apart += float((mean * (weights[0] - weights[1])).square().sum())
        together += float((mean * weights[2]).square().sum())
    return (apart / together) ** 0.5 / 4 if together > 0 else 0.0


def _in_rounds(
    order: Tensor,
    plan: Plan,
    look: Callable[[Tensor, int], None],
    gap: Callable[[], float],
    *,
    first: int,
) -> tuple[int, float]:
    """Looks at examples until two halves of them agree; how many, and the error that is left.

    Args:
        order: of the examples.
        plan: with the error that ends the rounds.
        look: takes positions, and which half they count to.
        gap: between the two halves.
        first: examples of the first round.
    """
    count = len(order)
    if count <= first or plan.accuracy == 0:  # nothing to decide: no halves are compared
        look(order.sort().values, 0)
        return count, 0.0
    seen, error = 0, float("inf")
    while seen < count and error > plan.accuracy:
        upto = min(count, max(first, 2 * seen))
        for half in range(2):
            look(order[seen:upto][half::2], half)
        seen, error = upto, gap()
    return seen, 0.0 if seen == count else error


def basis_examples(structure: Structure, count: int) -> int:
    """How many of some examples give every side that has eigenvectors enough rows for them."""
    wanted = FEWEST
    for block in structure.blocks:
        if block.groups * block.rows > 1:  # the basis of a row comes with its eigenvalues
            sides = zip((block.rows, block.columns), _are_full(block), strict=True)
            widest = max((size for size, is_full in sides if is_full), default=0)
            wanted = max(wanted, -(-ROWS * widest // block.positions))
    return min(count, wanted)


def _curvatures(moments: Sequence["_Moments"], decays: Sequence[float]) -> list[KroneckerBlock]:
    return [one.curvature(decay) for one, decay in zip(moments, decays, strict=True)]


def _nothing(*_: object) -> None:
    """For passes that are made for what visits them."""


def _add(run: Pass, positions: Tensor, into: Sequence["_Moments"]) -> None:
    """The second moments of some examples."""
    ids = run.problem.data.ids

    def sums(batch: Batch, by_slope: list[list[Factors]]) -> list[_Sums]:
        places = Places(draws.keys(ids[batch.positions.numpy()]), len(positions))
        by_block = zip(into, zip(*by_slope, strict=True), strict=True)
        return [moments.sums(pairs, places) for moments, pairs in by_block]

    for rows, found in run.over(positions, "Measuring layers", sums):
        for moments, part in zip(into, found, strict=True):
            moments.add(part, examples=len(rows))


def _are_full(block: Block) -> tuple[bool, bool]:
    """Whether the moments of l and of r are matrices, and not diagonals of them."""
    widest = WIDEST_ROW if block.kind == "single" else WIDEST_BASIS
    return block.rows <= WIDEST_BASIS and block.kind != "lookup", block.columns <= widest


def moment_numbers(block: Block) -> int:
    """Numbers of the second moments of both sides of a block."""
    sides = zip((block.rows, block.columns), _are_full(block), strict=True)
    return block.groups * sum(size**2 if is_full else size for size, is_full in sides)


@dataclass(frozen=True)
class Places:
    """Which of the places at which an example uses a layer its bases are made from.

    They stand in equal steps, from a start of its own for each example: the same places for all,
    such as the borders of every image, would tell of those places alone.

    Args:
        keys: (B,) of the examples, from which the starts follow.
        count: how many examples are looked at in all.
    """

    keys: draws.Words
    count: int

    def of(self, length: int, widest: int) -> Tensor | None:
        """(B, n) places out of `length` for a layer with sides up to `widest`; None for all."""
        some = max(PLACES, length // PLACES, ROWS * widest // self.count)
        if some >= length or widest < WIDE:
            return None
        start = draws.starts(0, self.keys, length)
        return (start[:, None] + length // some * torch.arange(some)) % length


_Sums = tuple[Tensor, Tensor, int]
"""Sums of l l^T and r r^T, and how many r there were."""


class _Moments:
    """Sums of l l^T and r r^T over examples, positions and slopes, while they are added up.

    Products are made in the type of the model and added in float64.
    """

    def __init__(self, block: Block, like: Tensor) -> None:
        self.block, self.like = block, like
        is_left_full, is_right_full = _are_full(block)
        self.left = self._zeros(block.rows, is_full=is_left_full)
        self.right = self._zeros(block.columns, is_full=is_right_full)
        self.examples, self.places = 0, 0

    def _zeros(self, size: int, *, is_full: bool) -> Tensor:
        shape = (self.block.groups, size, size) if is_full else (self.block.groups, size)
        return torch.zeros(shape, dtype=torch.float64, device=self.like.device)

    def sums(self, pairs: Sequence[Factors], places: "Places") -> _Sums:
        """Those of a batch, from its factors for every set of slopes.

        What went into a layer is the same for all of them and is counted once.
        """
        length = pairs[0][1].shape[2]
        full = [side.shape[-1] for side in (self.left, self.right) if side.ndim == 3]
        chosen = places.of(length, max(full, default=0))
        lefts = (_at(left, chosen) for left, _ in pairs)
        left = _sum(_second_moment(left, is_full=self.left.ndim == 3) for left in lefts)
        if chosen is not None and not isinstance(pairs[0][0], OneHot):
            left = left * (length / chosen.shape[1])
        rights = [right for _, right in pairs]
        rights = rights[:1] if self.block.kind == "product" else rights
        at = (_at(right, chosen) for right in rights)
        right = _sum(_second_moment(right, is_full=self.right.ndim == 3) for right in at)
        used = length if chosen is None else chosen.shape[1]
        return left, right, sum(len(right) * used for right in rights)

    def add(self, sums: _Sums, *, examples: int) -> None:
        """Those of a batch of some examples."""
        self.left += sums[0]
        self.right += sums[1]
        self.places += sums[2]
        self.examples += examples

    def gap(self, other: "_Moments") -> float:
        """|A - B| / |A + B| for the means of two halves, the worse one of l and r."""
        if min(self.examples, other.examples) == 0:
            return float("inf")
        left = _gap(self.left / self.examples, other.left / other.examples)
        return max(left, _gap(self.right / self.places, other.right / other.places))

    def take_in(self, other: "_Moments") -> None:
        """Adds those of other examples."""
        self.add((other.left, other.right, other.places), examples=other.examples)

    def curvature(self, decay: float) -> KroneckerBlock:
        """Bases, and as D the product of their eigenvalues (K-FAC)."""
        try:
            left = _basis(self.left / self.examples, self.like)
            right = _basis(self.right / self.places, self.like)
        except (NonFinite, NumericsError) as error:
            raise type(error)(
                found=f"{' and '.join(self.block.names)}: {error.found}",
                why=error.why,
                remedy=error.remedy,
            ) from error
        product = left.values[:, :, None] * right.values[:, None, :]
        return KroneckerBlock(left, right, product, decay)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, of which no more than two are held."""
    return reduce(torch.add, tensors)


def _gap(a: Tensor, b: Tensor) -> float:
    scale = float((a + b).norm())
    return float((a - b).norm()) / scale if scale > 0 else 0.0


def _at(factor: Left, places: Tensor | None) -> Left:
    """(B, G, n, d) a factor at some places (B, n); unit vectors are counted at all of them."""
    if places is None or isinstance(factor, OneHot):
        return factor
    index = places.to(factor.device)[:, None, :, None]
    return factor.gather(2, index.expand(-1, factor.shape[1], -1, factor.shape[3]))


def _second_moment(factor: Left, *, is_full: bool) -> Tensor:
    """(G, d, d) sum of outer products over examples and positions, or (G, d) its diagonal."""
    if isinstance(factor, OneHot):
        rows = factor.indices.movedim(1, 0).flatten(1)
        return torch.stack([torch.bincount(row, minlength=factor.size) for row in rows]).double()
    rows = factor.movedim(1, 0).flatten(1, 2)
    return rows.mT @ rows if is_full else (rows**2).sum(1)


def _basis(moment: Tensor, like: Tensor) -> Basis:
    """Eigenvectors and eigenvalues of a mean second moment."""
    if moment.ndim == 2:
        return Basis(None, moment.to(like))
    values, vectors = eigenbasis(moment.to(like))
    return Basis(vectors.to(like), values.to(like))


def sum_of_squares(
    run: Pass,
    positions: Tensor,
    blocks: Sequence[KroneckerBlock],
    *,
    label: str,
    each: Callable[[KroneckerBlock, Sequence[Factors]], Tensor] | None = None,
) -> list[Tensor]:
    """(G, rows, columns) float64 squared gradients of each block in its bases, over examples.

    Args:
        run: of the model, with the Fisher information.
        positions: of at least one example.
        blocks: with their bases.
        label: of the progress bar.
        each: what is summed up of a block and its factors; default `squares`.
    """
    each = each or squares

    def work(batch: Batch, by_slope: list[list[Factors]]) -> list[Tensor]:
        del batch
        pairs = zip(blocks, zip(*by_slope, strict=True), strict=True)
        return [each(block, factors) for block, factors in pairs]

    totals: list[Tensor] = []
    for _, found in run.over(positions, label, work):
        if not totals:
            totals = [torch.zeros_like(part, dtype=torch.float64) for part in found]
        for total, part in zip(totals, found, strict=True):
            total += part
    return totals


def squares(block: KroneckerBlock, factors: Sequence[Factors]) -> Tensor:
    """(G, rows, columns) squared gradients in the bases of a block, summed over examples.

    Args:
        block: with its bases.
        factors: those of a batch for each set of slopes. Where an example has one position and r is
            what went in, the squares of all l are summed before they meet r.
    """
    first, right = factors[0]
    if isinstance(first, OneHot) and block.left.vectors is None:
        pairs = [(left, block.right.rotate(r)) for left, r in factors if isinstance(left, OneHot)]
        return torch.stack([_squares_of_tokens(left, r) for left, r in pairs]).sum(0)
    if right.shape[2] == 1 and all(r is right for _, r in factors):
        l2 = torch.stack([_squared(block.left, left, right) for left, _ in factors]).sum(0)
        return l2.mT @ _squared(block.right, right, right)
    if right.shape[2] == 1:
        return _sum(
            _squared(block.left, left, r).mT @ _squared(block.right, r, r) for left, r in factors
        )
    turn = cache(block.right.rotate)  # what went in is the same for every set of slopes
    return _sum((rotated(block, dense(left, r), r, turn=turn) ** 2).sum(0) for left, r in factors)


def lengths(block: KroneckerBlock, factors: Factors, weights: Tensor) -> Tensor:
    """(B,) sum_jk weights_jk (U_L^T G U_R)_jk^2 for the gradient of each example.

    Args:
        block: with its bases.
        factors: of the gradients.
        weights: (G, rows, columns).
    """
    left, right = dense(*factors), factors[1]
    if right.shape[2] == 1:
        l2, r2 = _squared(block.left, left, right), _squared(block.right, right, right)
        return ((l2 @ weights) * r2).sum((0, 2))
    return (rotated(block, left, right) ** 2 * weights).sum((1, 2, 3))


def _squared(basis: Basis, factor: Left, like: Tensor) -> Tensor:
    """(G, B, d) squared coordinates of factors of one position."""
    return basis.rotate(dense(factor, like)).squeeze(2).movedim(1, 0) ** 2


def rotated(
    block: KroneckerBlock,
    left: Tensor,
    right: Tensor,
    *,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, G, rows, columns) gradients in the bases of a block, by the cheaper of two ways.

    Rotating the factors costs T (rows^2 + columns^2) per example, rotating the gradient that they
    make rows columns (rows + columns).

    Args:
        block: with its bases.
        left: factors.
        right: factors.
        turn: rotates the right ones, where that is done once for several; default the block's.
    """
    rows, columns, positions = left.shape[3], right.shape[3], right.shape[2]
    if positions * (rows**2 + columns**2) < rows * columns * (rows + columns):
        return block.left.rotate(left).mT @ (turn or block.right.rotate)(right)
    return block.rotate(left.mT @ right)


def _squares_of_tokens(left: OneHot, right: Tensor) -> Tensor:
    """(G, V, columns): the gradient of each example in each row of a table, squared and summed."""
    count, groups, _ = left.indices.shape
    example = torch.arange(count * groups, device=right.device).reshape(count, groups, 1)
    rows, place = torch.unique(example * left.size + left.indices, return_inverse=True)
    sums = right.new_zeros(len(rows), right.shape[3])
    sums.index_add_(0, place.flatten(), right.flatten(0, 2))
    total = right.new_zeros(groups * left.size, right.shape[3])
    total.index_add_(0, rows % (groups * left.size), sums**2)
    return total.reshape(groups, left.size, -1)
