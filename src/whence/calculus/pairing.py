"""Scores of all pairs of queries and training examples, from the factors of their gradients.

    score[q, i] = sum over blocks <B^-1 G_q, G_i>,      G = sum_t l_t r_t^T

Two ways, chosen for each block by its shape:

    whole     B^-1 G_q and G_i as matrices: rows x columns multiplications a pair
    factored  where both have one position, with 1 / (D + damping) ~ sum_k u_k v_k^T,
              sum_k ((l_q o u_k) . l_i) ((r_q o v_k) . r_i)         in the bases of the block
              R (rows + columns) a pair, and no gradient is ever written out

The reciprocal is smooth, so that few terms do. They are those of the singular value decomposition
of the reciprocal weighted by what meets it: with second moments a of the queries and b of the
training examples in the two bases, entry (j, k) of an error E counts E_jk^2 a_j a_k b_j b_k, which
is the mean squared error of a score where coordinates are independent. Terms are taken until the
root of it is below a tolerance of that of the scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from whence.calculus.kronecker import (
    Basis,
    Kronecker,
    KroneckerBlock,
    Visit,
    batch_size,
    loss_factors,
    rotated,
)
from whence.calculus.layers import Block, Structure, dense, whole
from whence.calculus.products import penalty_gradient
from whence.calculus.watching import Factors, OneHot
from whence.core.batches import Batch, slices
from whence.core.pieces import in_pieces
from whence.core.problem import Problem, Queries
from whence.errors import BadArgument, TooLarge
from whence.numerics.memory import in_words
from whence.progress import track

STACK_BYTES = 2**30
"""Memory of the solved gradients of the queries of one pass over the training data."""

_MOST_TERMS = 128
"""Terms of a reciprocal at the most; where more are needed, or where they cost more than gradients
that are written out, those are."""

_FLOOR = 1e-9
"""Coordinates that hardly anything meets count as if they had this share of the largest weight."""


# ------------------------------------------------------------------ the training side


@dataclass(frozen=True)
class KeptBlock:
    """Training gradients of one block.

    Args:
        left: (N, rows) factors, or None.
        right: (N, columns) factors, or (N, size) whole gradients.
        scale: (N,) what a gradient has been divided by, where the numbers kept are narrower than
            those of the model: half precision has no small ones.
    """

    left: Tensor | None
    right: Tensor
    scale: Tensor | None = None

    def put(self, rows: Tensor, left: Tensor | None, right: Tensor) -> None:
        """Fills in the factors (B, rows) and (B, columns) of some examples, or whole gradients."""
        place = _at(rows)
        sides = [right] if left is None else [left, right]
        if self.scale is not None:
            sizes = [_size_of(side) for side in sides]
            sides = [side / size[:, None] for side, size in zip(sides, sizes, strict=True)]
            self.scale[place] = torch.stack(sizes).prod(0)
        if self.left is not None:
            self.left[place] = sides[0]
        self.right[place] = sides[-1]

    def take(self, rows: Tensor, like: Tensor) -> Factors:
        """Those of some examples, as factors of one position; whole gradients as one row.

        Args:
            rows: rising positions.
            like: a tensor of the type and on the device that is wanted.
        """
        place = _at(rows)
        right = self.right[place].to(like)
        left = right.new_ones(len(rows), 1) if self.left is None else self.left[place].to(like)
        if self.scale is not None:
            left = left * self.scale[place, None].to(like)
        return left[:, None, None], right[:, None, None]


@dataclass(frozen=True)
class Kept:
    """Training gradients of all blocks.

    Args:
        blocks: each of them.
        is_on_disk: whether they are read from files.
    """

    blocks: tuple[KeptBlock, ...]
    is_on_disk: bool = False

    def gradient(self, problem: Problem, structure: Structure) -> Tensor:
        """(P,) gradient of the objective, regulariser included."""
        totals = [problem.parameters.new_zeros(block.size) for block in structure.blocks]
        for rows in slices(len(problem), _READ_TOGETHER):
            weights = problem.weights[rows.to(problem.device), None]
            for total, kept in zip(totals, self.blocks, strict=True):
                left, right = (side.flatten(1) for side in _plain(kept.take(rows, total)))
                total += ((left * weights).T @ right).flatten()
        return _mean_of(problem, structure, totals)

    def pull(self, problem: Problem) -> float:
        """Root mean square of |b_i grad loss_i| / N, over all examples."""
        total = 0.0
        for rows in slices(len(problem), _READ_TOGETHER):
            weights = problem.weights[rows.to(problem.device)]
            for kept in self.blocks:
                left, right = _plain(kept.take(rows, problem.parameters))
                squares = left.square().sum((1, 2, 3)) * right.square().sum((1, 2, 3))
                total += float((squares * weights**2).sum())
        return (total / len(problem)) ** 0.5 / len(problem)


def _mean_of(problem: Problem, structure: Structure, totals: Sequence[Tensor]) -> Tensor:
    """(P,) gradient of the objective from the sums (size,) of each block over all examples."""
    matrices = [
        total.reshape(1, block.groups, block.rows, -1)
        for total, block in zip(totals, structure.blocks, strict=True)
    ]
    return structure.scatter(problem, matrices)[0] / len(problem) + penalty_gradient(problem)


def _sum_of(block: Block, factors: Factors, weights: Tensor, written: Tensor | None) -> Tensor:
    """(size,) weighted sum of the gradients of a batch, which may be written out already."""
    left, right = factors
    if written is not None or isinstance(left, OneHot):
        return weights @ (whole(block, factors) if written is None else written)
    weighted = left * weights[:, None, None, None]
    rows, columns = (side.movedim(1, 0).flatten(1, 2) for side in (weighted, right))
    return (rows.mT @ columns).flatten()


_READ_TOGETHER = 1024
"""Kept gradients that are read and added up together."""


def _plain(factors: Factors) -> tuple[Tensor, Tensor]:
    return dense(*factors), factors[1]


def _size_of(rows: Tensor) -> Tensor:
    """(B,) the largest number of each row; one where all are zero."""
    size = rows.abs().amax(1)
    return size.where(size > 0, 1.0)


def _at(rows: Tensor) -> slice | Tensor:
    """Rising positions as an index: a slice where they are neighbours, which costs no copy."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _is_factored(block: Block) -> bool:
    return block.positions == 1 and block.groups == 1 and block.kind in ("product", "single")


def kept_size(block: Block) -> int:
    """Numbers of each training example that are kept of a block: factors, or the gradient."""
    return block.rows + block.columns if _is_factored(block) else block.size


def query_numbers(block: Block) -> int:
    """Numbers of one query's side of a block, and of what is made on its way."""
    return kept_size(block) * (4 if _is_factored(block) else 1)


def keeper(
    problem: Problem,
    structure: Structure,
    room: int,
    *,
    folder: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Kept, Visit] | None:
    """Room for the training gradients of every block, and what fills it batch by batch.

    Args:
        problem: what was trained.
        structure: the blocks of its model.
        room: bytes of memory that they may take.
        folder: where they go otherwise: files that are read through memory, without a name, so
            that they vanish with the last use of them.
        dtype: of the kept numbers, default that of the model.

    Returns:
        None where they do not fit and there is no folder.

    Raises:
        TooLarge: the folder has not enough free space.
    """
    count, like = len(problem), problem.parameters.new_empty(0, dtype=dtype)
    is_narrow = like.element_size() < problem.parameters.element_size()
    numbers = count * sum(kept_size(block) for block in structure.blocks)
    if numbers * like.element_size() <= room:
        new = like.new_empty
    elif folder is None:
        return None
    else:
        _refuse_full(folder, numbers * like.element_size())
        new = partial(_on_disk, folder, like.dtype)
    blocks = [_empty(new, count, block) for block in structure.blocks]
    if is_narrow:
        scales = problem.parameters.new_empty(len(blocks), count)
        blocks = [replace(block, scale=one) for block, one in zip(blocks, scales, strict=True)]
    kept = Kept(tuple(blocks), is_on_disk=new != like.new_empty)

    def visit(batch: Batch, found: list[Factors]) -> None:
        for place, block, factors in zip(kept.blocks, structure.blocks, found, strict=True):
            if place.left is None:
                place.put(batch.positions, None, whole(block, factors))
            else:
                left, right = _plain(factors)
                place.put(batch.positions, left.flatten(1), right.flatten(1))

    return kept, visit


def _empty(new: Callable[..., Tensor], count: int, block: Block) -> KeptBlock:
    if _is_factored(block):
        return KeptBlock(new(count, block.rows), new(count, block.columns))
    return KeptBlock(None, new(count, block.size))


def _on_disk(folder: str, dtype: torch.dtype, count: int, width: int) -> Tensor:
    """(count, width) numbers in a file that has lost its name: it lives as long as the tensor."""
    with TemporaryDirectory(dir=folder) as place:
        file = str(Path(place) / "gradients")
        return torch.from_file(file, shared=True, size=count * width, dtype=dtype).view(count, -1)


def _refuse_full(folder: str, size: int) -> None:
    try:
        free = disk_usage(folder).free
    except OSError as error:
        raise BadArgument(
            found=f"disk={folder!r} is no folder that can be used ({error}).",
            why="Training gradients that do not fit in memory are to go there.",
            remedy="Make the folder, or leave disk out: gradients are then made anew.",
        ) from error
    if size > free:
        raise TooLarge(
            found=f"The gradients of the training data take {in_words(size)} and {folder} has "
            f"{in_words(free)} free.",
            why="They do not fit in memory either.",
            remedy="Give another folder, or leave disk out: gradients are then made anew for "
            "every set of queries.",
        )


# ------------------------------------------------------------------ the query side


@dataclass(frozen=True)
class Factored:
    """Solved gradients of the queries for one block, as factors in a part of its bases.

    Args:
        left: (R, Q, k) l_q o u_k for the k coordinates that count.
        right: (R, Q, k') r_q o v_k.
        onto: (rows, k) and (columns, k'), which take factors of training gradients there.
        error: relative root mean square of what is left out, as it is expected.
    """

    left: Tensor
    right: Tensor
    onto: tuple[Tensor, Tensor]
    error: float

    def add_to(self, total: Tensor, block: Block, factors: Factors) -> Tensor | None:
        """Adds the block's part of the scores (Q, B); writes no gradients out."""
        del block
        left = dense(*factors).flatten(1) @ self.onto[0]
        right = factors[1].flatten(1) @ self.onto[1]
        for u, v in zip(self.left, self.right, strict=True):
            total.addcmul_(u @ left.T, v @ right.T)


@dataclass(frozen=True)
class Whole:
    """Solved gradients of the queries for one block, written out.

    Args:
        rows: (Q, size).
    """

    rows: Tensor

    def add_to(self, total: Tensor, block: Block, factors: Factors) -> Tensor | None:
        """Adds the block's part of the scores (Q, B); the gradients (B, size) if written out."""
        left, right = factors
        if isinstance(left, OneHot) and block.rows > 4 * right.shape[2]:
            self._look_up(total, block, left, right)
            return None
        rows = whole(block, factors)
        total.addmm_(self.rows, rows.T)
        return rows

    def _look_up(self, total: Tensor, block: Block, left: OneHot, right: Tensor) -> None:
        """Only the rows of the table that the tokens of the batch take."""
        tokens = left.indices.flatten(1)  # (B, T), one group
        table = self.rows.reshape(len(self.rows), block.rows, -1)
        for place in range(tokens.shape[1]):
            taken = table[:, tokens[:, place]]  # (Q, B, columns)
            total += (taken * right[:, 0, place]).sum(2)


Side = Factored | Whole


@dataclass(frozen=True)
class Pairing:
    """Scores with one curvature.

    Args:
        curvature: of all blocks.
        dampings: added to the eigenvalues of each block.
        scale: s in s F + hess r + damping.
        kept: training gradients, or None to make them anew for every set of queries.
        tolerance: relative root mean square of scores that the factored way may leave out.
        stack_bytes: memory of the solved gradients of the queries of one pass.
    """

    curvature: Kronecker
    dampings: tuple[float, ...]
    scale: float
    kept: Kept | None
    tolerance: float
    stack_bytes: int = STACK_BYTES

    def scores(self, queries: Queries, slopes: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
        """Products grad m_q^T H^-1 grad loss_i of all pairs.

        Args:
            queries: Q queries.
            slopes: (Q, C) derivatives of the measurement with respect to the outputs.

        Returns:
            (Q, N) float64, and the error and the terms of the factored way. Where training
            gradients are made anew, also "gradient": (P,) that of the objective.
        """
        problem = self.curvature.problem
        values = np.empty((len(queries), len(problem)))
        sums = [problem.parameters.new_zeros(block.size) for block in self._blocks]
        facts: dict[str, Any] = {}
        for rows in slices(len(queries), self._together(len(queries))):
            sides = self.sides(queries, slopes, rows)
            adds_up = self.kept is None and int(rows[0]) == 0
            for positions, (total, parts) in self._meet(sides, len(rows), adds_up=adds_up):
                values[rows[0] : rows[-1] + 1, positions.numpy()] = total.double().cpu().numpy()
                for into, part in zip(sums, parts, strict=False):  # no parts of later queries
                    into += part
            facts = _worst(facts, _facts(sides))
        if self.kept is None:
            facts["gradient"] = _mean_of(problem, self.curvature.structure, sums)
        return values, facts

    @property
    def _blocks(self) -> tuple[Block, ...]:
        return self.curvature.structure.blocks

    def _together(self, queries: int) -> int:
        """Queries whose solved gradients fit the memory of one pass."""
        numbers = sum(query_numbers(block) for block in self._blocks)
        size = numbers * self.curvature.problem.parameters.element_size()
        return max(1, min(queries, self.stack_bytes // size))

    def _meet(
        self, sides: Sequence["Side"], queries: int, *, adds_up: bool
    ) -> Iterator[tuple[Tensor, tuple[Tensor, list[Tensor]]]]:
        """Positions of training examples, with their part (Q, B) of the scores.

        Beside it the weighted sums of their gradients, where these are made and asked for.
        """
        problem, structure = self.curvature.problem, self.curvature.structure

        def scores(
            factors: Sequence[Factors], count: int, weights: Tensor | None = None
        ) -> tuple[Tensor, list[Tensor]]:
            total, sums = problem.parameters.new_zeros(queries, count), list[Tensor]()
            for side, block, part in zip(sides, self._blocks, factors, strict=True):
                written = side.add_to(total, block, part)
                if weights is not None:
                    sums.append(_sum_of(block, part, weights, written))
            return total, sums

        def anew(batch: Batch) -> tuple[Tensor, list[Tensor]]:
            watched = structure.watch(problem, batch.inputs, len(batch))
            weights = batch.weights if adds_up else None
            return scores(loss_factors(watched, batch), len(batch), weights)

        def kept(rows: Tensor) -> tuple[Tensor, list[Tensor]]:
            blocks, like = self.kept.blocks if self.kept else (), problem.parameters
            return scores([block.take(rows, like) for block in blocks], len(rows))

        if self.kept is None:
            size = batch_size(problem, structure, self.curvature.batch_bytes)
            parts = problem.sweep(anew, size)
        else:
            size = max(64, _TILE // queries)
            parts = in_pieces(torch.arange(len(problem)), size, kept)
        yield from track(parts, "Scoring training examples", total=-(-len(problem) // size))

    def sides(self, queries: Queries, slopes: Tensor, rows: Tensor) -> list[Side]:
        """The side of every block that some of the queries, by their rows, make."""
        problem, structure = self.curvature.problem, self.curvature.structure
        parts = zip(self.curvature.blocks, self.dampings, strict=True)
        reciprocals = [part.weights(damping, self.scale) for part, damping in parts]

        def solved(some: Tensor) -> list[Factors | Tensor]:
            inputs = tree_map(lambda leaf: leaf[some.to(leaf.device)], queries.inputs)
            watched = structure.watch(problem, inputs, len(some))
            factors = watched.factors(slopes[some.to(slopes.device)])
            each = zip(self._blocks, factors, self.curvature.blocks, reciprocals, strict=True)
            return [_half_solved(*one) for one in each]

        like = problem.parameters
        written = [
            None if _is_factored(block) else like.new_empty(len(rows), block.size)
            for block in self._blocks
        ]
        pairs: list[list[Factors]] = [[] for _ in self._blocks]
        size = batch_size(problem, structure, self.curvature.batch_bytes)
        for some, made in in_pieces(rows, size, solved):
            for stack, factors, part in zip(written, pairs, made, strict=True):
                if stack is None:
                    factors.append(cast("Factors", part))
                else:
                    stack[_at(some - rows[0])] = cast("Tensor", part)
        return [
            _side(block, curve, weight, pairs=found, tolerance=self.tolerance)
            if stack is None
            else Whole(stack)
            for block, curve, weight, stack, found in zip(
                self._blocks, self.curvature.blocks, reciprocals, written, pairs, strict=True
            )
        ]


_TILE = 2**21
"""Scores of kept gradients that are made together: they should stay in the cache."""


def _half_solved(
    block: Block, factors: Factors, curve: KroneckerBlock, weight: Tensor
) -> Factors | Tensor:
    """(B, size) solved gradients of a block, or their factors as they are where those are used."""
    if _is_factored(block):
        return factors
    if isinstance(factors[0], OneHot):
        matrix = curve.rotate(whole(block, factors).unflatten(1, (block.groups, block.rows, -1)))
    else:
        matrix = rotated(curve, factors[0], factors[1])
    return curve.back(matrix * weight).flatten(1)


def _side(
    block: Block,
    curve: KroneckerBlock,
    weight: Tensor,
    *,
    pairs: Sequence[Factors],
    tolerance: float,
) -> Side:
    """One block's side of the queries, in factors where that is cheaper."""
    left = curve.left.rotate(torch.cat([dense(*pair) for pair in pairs]))[:, 0, 0]  # (Q, rows)
    right = curve.right.rotate(torch.cat([pair[1] for pair in pairs]))[:, 0, 0]
    own = (_meets(left, curve.left.values[0]), _meets(right, curve.right.values[0]))
    rows, columns = counting(weight[0], own, tolerance / 2)
    u, v, error = terms(weight[0][rows][:, columns], (own[0][rows], own[1][columns]), tolerance / 2)
    onto = (_onto(curve.left, rows), _onto(curve.right, columns))
    if u.shape[1] * (len(rows) + len(columns)) < block.size and error <= tolerance / 2:
        lefts, rights = left[:, rows] * u.T[:, None], right[:, columns] * v.T[:, None]
        return Factored(lefts, rights, onto, (error**2 + tolerance**2 / 4) ** 0.5)
    solved = curve.back((left[:, :, None] * right[:, None] * weight)[:, None])
    return Whole(solved.flatten(1))


def _onto(basis: Basis, coordinates: Tensor) -> Tensor:
    """(d, k) vectors of a basis."""
    if basis.vectors is None:
        return torch.eye(basis.values.shape[1]).to(basis.values)[:, coordinates]
    return basis.vectors[0][:, coordinates].contiguous()


def counting(
    reciprocal: Tensor, weights: tuple[Tensor, Tensor], tolerance: float
) -> tuple[Tensor, Tensor]:
    """The rows and columns without which the weighted Frobenius norm loses no more than a share."""
    squares = (weights[0][:, None] * reciprocal * weights[1]).double() ** 2
    limit = tolerance**2 / 2 * float(squares.sum())
    return _largest(squares.sum(1), limit), _largest(squares.sum(0), limit)


def _largest(masses: Tensor, limit: float) -> Tensor:
    """Positions of the largest masses, in order; the others sum to the limit at most."""
    rising = masses.argsort()
    dropped = int((masses[rising].cumsum(0) <= limit).sum())
    return rising[min(dropped, len(masses) - 1) :].sort().values


def _meets(queries: Tensor, training: Tensor) -> Tensor:
    """(d,) weight of each coordinate: the root of the second moments of both sides."""
    weight = ((queries**2).mean(0) * training.clamp_min(0)).sqrt()
    return weight.clamp_min(_FLOOR * float(weight.max())).clamp_min(torch.finfo(weight.dtype).tiny)


def terms(
    reciprocal: Tensor, weights: tuple[Tensor, Tensor], tolerance: float
) -> tuple[Tensor, Tensor, float]:
    """Factors u (rows, R) and v (columns, R), u v^T ~ the reciprocal where it counts.

    Args:
        reciprocal: (rows, columns).
        weights: (rows,) and (columns,) how much each coordinate counts.
        tolerance: relative error in the weighted Frobenius norm.

    Returns:
        The terms, as few as reach the tolerance, at most `_MOST_TERMS`, and their error.
    """
    rows, columns = weights
    matrix = rows[:, None] * reciprocal * columns
    most = min(_MOST_TERMS, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], min(most + 8, *matrix.shape), generator=generator)
    basis = torch.linalg.qr(matrix @ start.to(matrix)).Q
    for _ in range(2):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    small, values, turned = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    total = float((matrix.double() ** 2).sum())
    left_out = (total - (values.double() ** 2).cumsum(0)).clamp_min(0)
    # A difference of squares tells no error below the root of the rounding of its terms.
    least = torch.finfo(matrix.dtype).eps ** 0.5
    errors = (left_out / max(total, 1e-300)).sqrt().clamp_min(least)
    enough = torch.nonzero(errors <= tolerance)
    count = min(most, int(enough[0, 0]) + 1 if len(enough) else most)
    u = (basis @ small[:, :count]) * values[:count] / rows[:, None]
    return u, turned[:count].T / columns[:, None], float(errors[count - 1])


def _facts(sides: Sequence[Side]) -> dict[str, Any]:
    """Expected error of the factored way, and how many terms it takes."""
    factored = [side for side in sides if isinstance(side, Factored)]
    if not factored:
        return {}
    return {
        "factored_error": max(side.error for side in factored),
        "factored_terms": max(len(side.left) for side in factored),
    }


def _worst(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}
