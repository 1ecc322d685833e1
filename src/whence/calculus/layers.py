"""The layers of a model as blocks of parameters whose gradients are sums of outer products.

    grad of block = sum_t l_t r_t^T,      l (rows), r (columns), t = positions at which it was used

`structure_of` finds the blocks by watching the model once (`whence.calculus.watching`) and compares
every one of them with plain gradients on a few examples: a parameter whose gradient is not all in
what was seen, such as the weights of a recurrent kernel, becomes a block of its own, one row whose
gradient is taken example by example. So every parameter is covered, and none twice.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from whence.calculus.gradients import plain_pull_back, pull_back
from whence.calculus.watching import (
    FAILURES,
    Axis,
    Factors,
    Left,
    OneHot,
    Piece,
    Use,
    Watch,
    single,
)
from whence.core.batches import Batch, Tree
from whence.core.problem import Forward, Problem
from whence.errors import NotDeterministic
from whence.numerics.vectors import Layout

_EXAMPLES = 7
"""How many a model is watched on to find its layers; rarely a size of anything in a model."""

_MOST_ALONE = 16
"""Parameters whose axes are looked for one by one, where looking for all at once fails."""


@dataclass(frozen=True)
class Block:
    """Parameters whose gradient is one matrix for each group.

    Args:
        names: a weight, and its bias where that is the last column; or one parameter as one row.
        groups, rows, columns: G independent matrices of this size.
        is_transposed: whether the weight is stored as (columns, rows).
        shapes: of the parameters, by name.
        kind: "product" where r is what went into the layer; "lookup" where l is the unit vector of
            a token; "mixed" where a weight is used as both, or l is what went in; "single" for one
            row that holds a whole parameter.
        positions: T when the model was watched; sequences may vary.
    """

    names: tuple[str, ...]
    groups: int
    rows: int
    columns: int
    is_transposed: bool
    shapes: Mapping[str, torch.Size]
    kind: str
    positions: int = 1

    @property
    def size(self) -> int:
        """How many parameters it holds."""
        return self.groups * self.rows * self.columns

    def gather(self, named: Mapping[str, Tensor]) -> Tensor:
        """(K, G, rows, columns) matrices from stacks (K, *shape) by name."""
        weight = named[self.names[0]]
        stack = len(weight)
        if self.is_transposed:
            matrix = weight.mT.reshape(stack, self.groups, self.rows, -1)
        else:
            matrix = weight.reshape(stack, self.groups, self.rows, -1)
        if len(self.names) == 1:
            return matrix
        column = named[self.names[1]].reshape(stack, self.groups, self.rows, 1)
        return torch.cat([matrix, column], 3)

    def scatter(self, matrices: Tensor) -> dict[str, Tensor]:
        """Stacks (K, *shape) by name from (K, G, rows, columns); inverse of `gather`."""
        stack = len(matrices)
        named: dict[str, Tensor] = {}
        weight = matrices
        if len(self.names) == 2:
            weight = matrices[..., :-1]
            name = self.names[1]
            named[name] = matrices[..., -1].reshape(stack, *self.shapes[name])
        name = self.names[0]
        weight = weight[:, 0].mT if self.is_transposed else weight
        return {name: weight.reshape(stack, *self.shapes[name])} | named


@dataclass(frozen=True, eq=False)
class Structure:
    """The blocks of a model, and how to watch it.

    Args:
        blocks: all parameters, each in one block.
        rest: parameters whose gradients are taken example by example.
        folded: the bias of each weight that is a column of its block.
        axes: where the uses of a parameter have their examples; of those that are not `rest`.
        autocast: narrower type of the model's products; None for its own.
    """

    blocks: tuple[Block, ...]
    rest: Layout
    folded: Mapping[str, str]
    axes: Mapping[str, Axis]
    autocast: torch.dtype | None = None

    @property
    def operations(self) -> int:
        """Multiplications that one example's way back through the model takes, about."""
        return sum(block.size * block.positions for block in self.blocks)

    def watch(self, problem: Problem, inputs: Tree, count: int) -> "Watched":
        """Calls the model on B = `count` inputs and keeps what gradients need."""
        is_narrow = self.autocast is not None
        with torch.autocast(problem.device.type, self.autocast, enabled=is_narrow):
            watch, outputs = _run(problem, inputs, count, axes=self.axes)
        return Watched(self, problem, inputs, outputs, tuple(watch.uses))

    def apart(self, biases: Collection[str]) -> "Structure":
        """The same with some biases as blocks of their own."""
        blocks: list[Block] = []
        for block in self.blocks:
            if len(block.names) == 2 and block.names[1] in biases:
                weight, bias = block.names
                shapes = {weight: block.shapes[weight]}
                alone = replace(block, names=(weight,), columns=block.columns - 1, shapes=shapes)
                blocks += [alone, _row(bias, block.shapes[bias])]
            else:
                blocks.append(block)
        folded = {weight: bias for weight, bias in self.folded.items() if bias not in biases}
        return replace(self, blocks=tuple(blocks), folded=folded)

    def gather(self, problem: Problem, vectors: Tensor) -> list[Tensor]:
        """The matrices (K, G, rows, columns) of each block, from flat vectors (K, P)."""
        named = problem.layout.split(vectors)
        return [block.gather(named) for block in self.blocks]

    def scatter(self, problem: Problem, matrices: Sequence[Tensor]) -> Tensor:
        """(K, P) flat vectors from the matrices of each block; inverse of `gather`."""
        named: dict[str, Tensor] = {}
        for block, matrix in zip(self.blocks, matrices, strict=True):
            named |= block.scatter(matrix)
        return problem.layout.join(named)

    def coverage(self) -> dict[str, int]:
        """Parameters by how their gradients are found: in "layer"s, or as "single" rows."""
        counts = {"layer": 0, "single": 0}
        for block in self.blocks:
            counts["single" if block.kind == "single" else "layer"] += block.size
        return counts


@dataclass(frozen=True, eq=False)
class Watched:
    """A model that has been called on B examples.

    Args:
        structure: of the model.
        problem: model and parameters.
        inputs: B inputs.
        outputs: (B, ...) with their graph.
        uses: of the parameters.
        known: inputs of layers with a column for the bias, made when they are first needed.
    """

    structure: Structure
    problem: Problem
    inputs: Tree
    outputs: Tensor
    uses: tuple[Use, ...]
    known: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def factors(self, slopes: Tensor, *, is_last: bool = True) -> list[Factors]:
        """The factors of each example's gradient of slopes . outputs, for every block.

        Args:
            slopes: (B, C), outputs flattened.
            is_last: whether the graph may be freed.

        Returns:
            For each block l (B, G, T, rows) and r (B, G, T, columns).

        Raises:
            NotDeterministic: the model overwrites what it did not overwrite when it was first seen.
        """
        scale = None
        if self.structure.autocast is not None:  # small gradients would be zeros in half precision
            scale = slopes.abs().amax(1).clamp_min(torch.finfo(slopes.dtype).tiny)
            slopes = slopes / scale[:, None]
        grads = _backward(self.outputs, self.uses, slopes, is_last=is_last)
        if any(use.is_overwritten for use in self.uses):
            raise NotDeterministic(
                found=f"{type(self.problem.model).__name__} overwrites inputs of its layers in "
                "place, and did not when it was first looked at.",
                why="The gradients of those layers would be wrong.",
                remedy="Write x = x + y instead of x += y.",
            )
        found: dict[str, list[Factors]] = {}
        for use, grad in zip(self.uses, grads, strict=True):
            if grad is not None:
                _collect(
                    found,
                    use.pieces,
                    grad.to(slopes),
                    self.structure.folded,
                    self.known,
                    scale=scale,
                )
        if self.structure.rest.size:
            rows = pull_back(self.problem, self.inputs, slopes, only=self.structure.rest)
            for name, part in self.structure.rest.split(rows).items():
                found[name] = [single(part.reshape(len(part), -1))]
        return [_joined(block, found.get(block.names[0], ()), slopes) for block in self._blocks]

    @property
    def values(self) -> Tensor:
        """(B, ...) the outputs as numbers in the type of the parameters."""
        return self.outputs.detach().to(self.problem.parameters)

    @property
    def _blocks(self) -> tuple[Block, ...]:
        return self.structure.blocks


def _run(
    problem: Problem, inputs: Tree, count: int, *, axes: Mapping[str, Axis], **options: bool
) -> tuple[Watch, Tensor]:
    """The model called on B = `count` inputs in sight of a watch, and its outputs."""
    flat = problem.parameters.detach()
    watch = Watch(problem.layout, flat, count, axes=axes, **options)
    with torch.enable_grad(), watch:
        return watch, problem.call(problem.layout.split(flat), inputs)


def _backward(
    outputs: Tensor, uses: Sequence[Use], slopes: Tensor, *, is_last: bool
) -> Sequence[Tensor | None]:
    """The gradient of slopes . outputs with respect to the output of every use."""
    if not uses or not outputs.requires_grad:
        return [None] * len(uses)
    return torch.autograd.grad(
        outputs,
        cast("Any", [use.place for use in uses]),
        slopes.reshape(outputs.shape).to(outputs),
        retain_graph=not is_last,
        allow_unused=True,
    )


def _collect(
    found: dict[str, list[Factors]],
    pieces: Sequence[Piece],
    grad: Tensor,
    folded: Mapping[str, str],
    known: dict[int, Tensor],
    *,
    scale: Tensor | None = None,
) -> None:
    """Adds what one use says of each of its parameters.

    Args:
        found: by parameter.
        pieces: of the use.
        grad: of its output.
        folded: the bias that is a column of each weight.
        known: inputs with that column, by piece: the same tensors for every set of slopes.
        scale: (B,) how many times the gradients of each example are as large; None for once.
    """
    for piece in pieces:
        left, right = _factors(piece, grad, scale)
        if piece.weight in folded:
            if piece.kind != "product" or id(piece) not in known:
                column = torch.ones if piece.bias else torch.zeros
                edge = column(*right.shape[:3], 1, dtype=right.dtype, device=right.device)
                known[id(piece)] = torch.cat([right, edge], 3)
            right = known[id(piece)]
        elif piece.bias is not None:
            rows = dense(left, right).sum(2).flatten(1)
            found.setdefault(piece.bias, []).append(single(rows))
        found.setdefault(piece.weight, []).append((left, right))


def _factors(piece: Piece, grad: Tensor, scale: Tensor | None) -> Factors:
    """Those of a piece, in the type of the gradient and times the scale of each example."""
    left, right = piece.factors(grad)
    left = left if isinstance(left, OneHot) else left.to(grad)
    right = right.to(grad)
    if scale is None:
        return left, right
    if isinstance(left, OneHot) or piece.kind != "product":
        return left, right * scale[:, None, None, None]
    return left * scale[:, None, None, None], right


def _joined(block: Block, parts: Sequence[Factors], like: Tensor) -> Factors:
    """One pair of factors out of those of several uses."""
    if not parts:
        shape = (len(like), block.groups, 1)
        return like.new_zeros(*shape, block.rows), like.new_zeros(*shape, block.columns)
    if len(parts) == 1:
        return parts[0]
    if block.kind == "single":
        return parts[0][0], torch.stack([right for _, right in parts]).sum(0)
    rights = torch.cat([right for _, right in parts], 2)
    lefts = [left for left, _ in parts]
    if all(isinstance(left, OneHot) for left in lefts):
        tokens = torch.cat([left.indices for left in lefts if isinstance(left, OneHot)], 2)
        return OneHot(tokens, block.rows), rights
    return torch.cat([dense(left, rights) for left in lefts], 2), rights


def dense(left: Left, like: Tensor) -> Tensor:
    """A left factor written out, in the type of a tensor."""
    return left.dense(like) if isinstance(left, OneHot) else left


def whole(block: Block, factors: Factors) -> Tensor:
    """(B, size) gradients written out."""
    left, right = factors
    if not isinstance(left, OneHot):
        return (left.mT @ right).flatten(1)
    count, groups, _ = left.indices.shape
    table = right.new_zeros(count * groups * block.rows, right.shape[3])
    start = torch.arange(count * groups, device=right.device) * block.rows
    table.index_add_(
        0,
        (start.reshape(count, groups, 1) + left.indices).flatten(),
        right.reshape(-1, right.shape[3]),
    )
    return table.reshape(count, -1)


# ------------------------------------------------------------------- finding the structure

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Forward, Layout, Structure]] = WeakKeyDictionary()
"""The structure of each model, for one way to call it and one choice of parameters."""


def structure_of(problem: Problem) -> Structure:
    """The blocks of a problem's model: watched once, on a few examples.

    Parameters that are no numbers tell nothing of a model, which others may share: what is found
    with them is not remembered.
    """
    forward, layout, known = _KNOWN.get(problem.model, (None, None, None))
    if known is not None and forward is problem.forward and layout is problem.layout:
        return known
    found = _find(problem)
    if bool(problem.parameters.isfinite().all()):
        _KNOWN[problem.model] = problem.forward, problem.layout, found
    return found


def _find(problem: Problem) -> Structure:
    """Blocks for all parameters whose gradients are all in what is seen; rows for the rest.

    Shapes tell where a use has its examples as a rule. Where gradients come out wrong, the other
    axes are tried.
    """
    trial = _Trial(problem)
    best = min((trial.of({}, guesses=True, may_share=it) for it in (True, False)), key=_rest)
    for axis in _AXES:
        best = min((best, *_with_axis(trial, best, axis)), key=_rest)
    return replace(
        best, axes={n: axis for n, axis in best.axes.items() if n not in best.rest.names}
    )


_AXES: tuple[Axis, ...] = ("first", "inner", "second", "shared")


def _rest(structure: Structure) -> int:
    return structure.rest.size


def _with_axis(trial: "_Trial", best: Structure, axis: Axis) -> Iterator[Structure]:
    """What is found with another axis for the parameters whose gradients were wrong."""
    wrong = [name for name in best.rest.names if best.axes.get(name) != axis]
    if not wrong:
        return
    together = trial.of({**best.axes, **dict.fromkeys(wrong, axis)})
    yield together
    if together.rest.size <= best.rest.size or not 1 < len(wrong) <= _MOST_ALONE:
        return
    for name in wrong:  # an axis that is wrong for one of them has stopped the model
        other = trial.of({**best.axes, name: axis})
        if other.rest.size < best.rest.size:
            best = other
    yield best


class _Trial:
    """A few examples, on which gradients in blocks are compared with plain ones."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        batch = problem.batch(torch.arange(_EXAMPLES) % len(problem))
        generator = torch.Generator().manual_seed(0)
        slopes = torch.randn(_EXAMPLES, problem.output_size, generator=generator)
        self.batch: Batch = batch
        self.slopes = slopes.to(problem.parameters)
        self.tolerance = min(1e4 * torch.finfo(problem.dtype).eps, 0.1)

    @cached_property
    def outputs(self) -> Tensor:
        """(B, ...) outputs of the model that nobody watches."""
        with torch.no_grad():
            return self.problem.outputs(self.problem.parameters, self.batch.inputs)

    @cached_property
    def plain(self) -> dict[str, Tensor]:
        """(B, *shape) gradients of every parameter."""
        rows = plain_pull_back(self.problem, self.batch.inputs, self.slopes)
        return self.problem.layout.split(rows)

    def of(self, axes: Mapping[str, Axis], **options: bool) -> Structure:
        """The structure for these axes, with everything as rows that comes out wrong."""
        try:
            watch, outputs = _run(self.problem, self.batch.inputs, _EXAMPLES, axes=axes, **options)
            is_same = outputs.shape == self.outputs.shape and torch.allclose(
                outputs, self.outputs, rtol=self.tolerance, atol=self.tolerance
            )
            grads = _backward(outputs, watch.uses, self.slopes, is_last=True) if is_same else ()
        except FAILURES:
            is_same, grads, watch = False, (), None
        if not is_same or watch is None:
            return _with_rest(self.problem, Structure((), Layout({}), {}, axes), set(self.plain))
        pieces = [piece for use in watch.uses for piece in use.pieces]
        folded = _folded(pieces)
        found, wrong = self._collected(watch.uses, grads, folded)
        blocks = _blocks(self.problem, pieces, found, folded)
        seen = Structure(blocks, Layout({}), folded, watch.axes)
        wrong |= set(self.plain) - {name for block in blocks for name in block.names}
        for block in blocks:
            if not wrong & set(block.names) and not self._is_right(block, found[block.names[0]]):
                wrong |= set(block.names)
        return _with_rest(self.problem, seen, wrong)

    def _collected(
        self, uses: Sequence[Use], grads: Sequence[Tensor | None], folded: Mapping[str, str]
    ) -> tuple[dict[str, list[Factors]], set[str]]:
        """Factors by parameter, and the parameters whose description does not work at all."""
        found: dict[str, list[Factors]] = {}
        wrong: set[str] = set()
        for use, grad in zip(uses, grads, strict=True):
            for piece in use.pieces if grad is not None else ():
                try:
                    _collect(found, [piece], cast("Tensor", grad), folded, {})
                except FAILURES:
                    wrong |= {piece.weight} | ({piece.bias} if piece.bias else set())
        return found, wrong

    def _is_right(self, block: Block, parts: Sequence[Factors]) -> bool:
        """Whether the gradients of a block are those of its parameters."""
        if block.size != sum(math.prod(shape) for shape in block.shapes.values()):
            return False
        try:
            left, right = _joined(block, parts, self.slopes)
            named = block.scatter(dense(left, right).mT @ right)
            gaps = {
                name: float((rows - self.plain[name]).abs().max()) for name, rows in named.items()
            }
        except FAILURES:
            return False
        scale = self.tolerance * max(float(rows.abs().max()) for rows in self.plain.values())
        sizes = {name: float(self.plain[name].abs().max()) + scale for name in named}
        return all(gap <= self.tolerance * sizes[name] for name, gap in gaps.items())


def _blocks(
    problem: Problem,
    pieces: Sequence[Piece],
    found: Mapping[str, Sequence[Factors]],
    folded: Mapping[str, str],
) -> tuple[Block, ...]:
    """A block for every parameter that was seen, with its bias where that is used with it alone."""
    turned = {piece.weight: piece.is_transposed for piece in pieces}
    kinds: dict[str, str] = {}
    for piece in pieces:
        same = kinds.setdefault(piece.weight, piece.kind) == piece.kind
        kinds[piece.weight] = piece.kind if same else "mixed"
    return tuple(
        _block(
            problem,
            (name, folded[name]) if name in folded else (name,),
            parts,
            kind=kinds.get(name, "single"),
            is_transposed=turned.get(name, False),
        )
        for name, parts in found.items()
        if name not in folded.values()
    )


def _folded(pieces: Sequence[Piece]) -> dict[str, str]:
    """Weights whose bias is used with them alone, and they with no other."""
    alone = {piece.weight for piece in pieces}
    biases: dict[str, set[str]] = {}
    owners: dict[str, set[str]] = {}
    for piece in pieces:
        if piece.bias is not None:
            biases.setdefault(piece.weight, set()).add(piece.bias)
            owners.setdefault(piece.bias, set()).add(piece.weight)
    pairs = {weight: min(names) for weight, names in biases.items() if len(names) == 1}
    return {w: b for w, b in pairs.items() if len(owners[b]) == 1 and b not in alone}


def _block(
    problem: Problem,
    names: tuple[str, ...],
    parts: Sequence[Factors],
    *,
    kind: str,
    is_transposed: bool,
) -> Block:
    left, right = parts[0]
    rows = left.size if isinstance(left, OneHot) else left.shape[3]
    shapes = {name: problem.layout.shapes[name] for name in names}
    positions = 1 if kind == "single" else sum(part.shape[2] for _, part in parts)
    return Block(
        names, right.shape[1], rows, right.shape[3], is_transposed, shapes, kind, positions
    )


def _with_rest(problem: Problem, seen: Structure, wrong: set[str]) -> Structure:
    """The same, with the parameters that were seen wrongly as single rows."""
    shapes = {name: shape for name, shape in problem.layout.shapes.items() if name in wrong}
    singles = [_row(name, shape) for name, shape in shapes.items()]
    kept = [block for block in seen.blocks if not wrong & set(block.names)]
    folded = {w: b for w, b in seen.folded.items() if w not in wrong}
    return Structure((*kept, *singles), Layout(shapes), folded, seen.axes)


def _row(name: str, shape: torch.Size) -> Block:
    """One parameter as one row."""
    return Block((name,), 1, 1, math.prod(shape), False, {name: shape}, "single")
