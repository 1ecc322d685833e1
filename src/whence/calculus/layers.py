"""The layers of a model as blocks of parameters whose gradients are sums of outer products.

    grad of block = sum_t l_t r_t^T,      l (rows), r (columns), t = positions at which it was used

`structure_of` finds the blocks by watching the model once (`whence.calculus.watching`) and compares
every one of them with plain gradients on a few examples: a parameter whose gradient is not all in
what was seen, such as the weights of a recurrent kernel, becomes a block of its own, one row whose
gradient is taken example by example. So every parameter is covered, and none twice.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from whence.calculus.gradients import plain_pull_back, pull_back
from whence.calculus.watching import Axis, Factors, Left, OneHot, Piece, Use, Watch
from whence.core.batches import Tree
from whence.core.problem import Forward, Problem
from whence.errors import NotDeterministic
from whence.numerics.vectors import Layout

_TRIALS = ((7, True), (5, True), (7, False))
"""Examples that a model is watched on, and whether what is the same for all of them is repeated.
Shapes tell which axis has the examples; should a size of the model be a multiple of the first
number, the second one tells."""


@dataclass(frozen=True)
class Block:
    """Parameters whose gradient is one matrix for each group.

    Args:
        names: a weight, and its bias where that is the last column; or one parameter as one row.
        groups, rows, columns: G independent matrices of this size.
        is_transposed: whether the weight is stored as (columns, rows).
        shapes: of the parameters, by name.
        kind: "product" where r is what went into the layer; "lookup" where l is the unit vector of
            a token; "mixed" where a weight is used as both; "single" for one row that holds a whole
            parameter.
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
        axes: where the uses of a parameter have their examples.
        keeps_copies: whether the model overwrites inputs of its layers.
    """

    blocks: tuple[Block, ...]
    rest: Layout
    folded: Mapping[str, str]
    axes: Mapping[str, Axis]
    keeps_copies: bool

    def watch(self, problem: Problem, inputs: Tree, count: int) -> "Watched":
        """Calls the model on B = `count` inputs and keeps what gradients need."""
        named = problem.layout.split(problem.parameters.detach())
        identities = {id(value): name for name, value in named.items()}
        watch = Watch(identities, count, self.axes, keeps_copies=self.keeps_copies)
        with torch.enable_grad(), watch:
            outputs = problem.call(named, inputs)
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
        if self.uses and self.outputs.requires_grad:
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                self.outputs,
                [use.place for use in self.uses],
                slopes.reshape(self.outputs.shape).to(self.outputs),
                retain_graph=not is_last,
                allow_unused=True,
            )
        else:
            grads = [None] * len(self.uses)
        self._refuse_overwritten()
        found: dict[str, list[Factors]] = {}
        for use, grad in zip(self.uses, grads, strict=True):
            if grad is not None:
                _collect(found, use.pieces, grad, self.structure.folded, self.known)
        if self.structure.rest.size:
            rows = pull_back(self.problem, self.inputs, slopes, only=self.structure.rest)
            for name, part in self.structure.rest.split(rows).items():
                found[name] = [_single(part.flatten(1))]
        return [_joined(block, found.get(block.names[0], ()), slopes) for block in self._blocks]

    @property
    def _blocks(self) -> tuple[Block, ...]:
        return self.structure.blocks

    def _refuse_overwritten(self) -> None:
        if not self.structure.keeps_copies and any(use.is_overwritten for use in self.uses):
            raise NotDeterministic(
                found=f"{type(self.problem.model).__name__} overwrites inputs of its layers in "
                "place, and did not when it was first looked at.",
                why="The gradients of those layers would be wrong.",
                remedy="Write x = x + y instead of x += y.",
            )


def _collect(
    found: dict[str, list[Factors]],
    pieces: Sequence[Piece],
    grad: Tensor,
    folded: Mapping[str, str],
    known: dict[int, Tensor],
) -> None:
    """Adds what one use says of each of its parameters.

    Args:
        found: by parameter.
        pieces: of the use.
        grad: of its output.
        folded: the bias that is a column of each weight.
        known: inputs with that column, by piece: the same tensors for every set of slopes.
    """
    for piece in pieces:
        left, right = piece.factors(grad)
        if piece.weight in folded:
            if piece.kind != "product" or id(piece) not in known:
                column = torch.ones if piece.bias else torch.zeros
                edge = column(*right.shape[:3], 1, dtype=right.dtype, device=right.device)
                known[id(piece)] = torch.cat([right, edge], 3)
            right = known[id(piece)]
        elif piece.bias is not None:
            rows = dense(left, right).sum(2).flatten(1)
            found.setdefault(piece.bias, []).append(_single(rows))
        found.setdefault(piece.weight, []).append((left, right))


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


def _single(rows: Tensor) -> Factors:
    return rows.new_ones(len(rows), 1, 1, 1), rows[:, None, None]


# ------------------------------------------------------------------- finding the structure

_KNOWN: WeakKeyDictionary[nn.Module, tuple[Forward, Layout, Structure]] = WeakKeyDictionary()
"""The structure of each model, for one way to call it and one choice of parameters."""


def structure_of(problem: Problem) -> Structure:
    """The blocks of a problem's model: watched once, on a few examples."""
    forward, layout, known = _KNOWN.get(problem.model, (None, None, None))
    if known is not None and forward is problem.forward and layout is problem.layout:
        return known
    found = _find(problem)
    _KNOWN[problem.model] = problem.forward, problem.layout, found
    return found


def _find(problem: Problem) -> Structure:
    """Blocks for all parameters whose gradients are all in what is seen; rows for the rest."""
    nothing = Structure((), problem.layout, {}, {}, keeps_copies=True)
    best = _with_rest(problem, nothing, set(problem.layout.names))
    for count, may_share in _TRIALS:
        try:
            seen = _seen(problem, count, may_share=may_share)
            wrong = _wrong(problem, seen, count)
            if wrong:
                turned = _turned(seen, wrong)
                seen, wrong = turned, _wrong(problem, turned, count)
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue  # some use is described wrongly: the model is differentiated plainly
        found = _with_rest(problem, seen, wrong)
        if found.rest.size < best.rest.size:
            best = found
        if not wrong:
            break
    return best


def _turned(seen: Structure, wrong: set[str]) -> Structure:
    """Examples before positions instead of behind them, where the gradients were wrong."""
    turned = {name: "inner" for name, axis in seen.axes.items() if name in wrong and axis == "first"}
    return replace(seen, axes={**seen.axes, **turned})


def _few(problem: Problem, count: int) -> Any:
    return problem.batch(torch.arange(count) % len(problem))


def _watch(problem: Problem, count: int, *, keeps_copies: bool, may_share: bool) -> Watched:
    """The model on a few examples, nothing known of it."""
    named = problem.layout.split(problem.parameters.detach())
    identities = {id(value): name for name, value in named.items()}
    watch = Watch(identities, count, None, keeps_copies=keeps_copies, may_share=may_share)
    inputs = _few(problem, count).inputs
    with torch.enable_grad(), watch:
        outputs = problem.call(named, inputs)
    structure = Structure((), Layout({}), {}, watch.axes, keeps_copies=True)
    return Watched(structure, problem, inputs, outputs, tuple(watch.uses))


def _seen(problem: Problem, count: int, *, may_share: bool) -> Structure:
    """The structure as it shows itself, not yet compared with anything."""
    plain = _watch(problem, count, keeps_copies=False, may_share=may_share)
    overwrites = any(use.is_overwritten for use in plain.uses)
    watched = _watch(problem, count, keeps_copies=True, may_share=may_share)
    pieces = [piece for use in watched.uses for piece in use.pieces]
    folded = _folded(pieces)
    places = [use.place for use in watched.uses]
    grads = torch.autograd.grad(watched.outputs.sum(), places, allow_unused=True)
    found: dict[str, list[Factors]] = {}
    for use, grad in zip(watched.uses, grads, strict=True):
        if grad is not None:
            _collect(found, use.pieces, grad, folded, {})
    turned = {piece.weight: piece.is_transposed for piece in pieces}
    kinds: dict[str, str] = {}
    for piece in pieces:
        same = kinds.setdefault(piece.weight, piece.kind) == piece.kind
        kinds[piece.weight] = piece.kind if same else "mixed"
    blocks = tuple(
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
    return Structure(blocks, Layout({}), folded, watched.structure.axes, keeps_copies=overwrites)


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


def _wrong(problem: Problem, seen: Structure, count: int) -> set[str]:
    """Parameters whose gradients by blocks differ from plain ones."""
    batch = _few(problem, count)
    watched = seen.watch(problem, batch.inputs, count)
    expected = problem.outputs(problem.parameters, batch.inputs)
    tolerance = 1e4 * torch.finfo(problem.dtype).eps
    if watched.outputs.shape != expected.shape or not torch.allclose(
        watched.outputs, expected, rtol=tolerance, atol=tolerance
    ):
        return set(problem.layout.names)
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(count, problem.output_size, generator=generator).to(watched.outputs)
    plain = problem.layout.split(plain_pull_back(problem, batch.inputs, slopes))
    covered = {name for block in seen.blocks for name in block.names}
    wrong = set(problem.layout.names) - covered
    scale = max(float(rows.abs().max()) for rows in plain.values())
    for block, (left, right) in zip(seen.blocks, watched.factors(slopes), strict=True):
        if block.size != sum(math.prod(shape) for shape in block.shapes.values()):
            wrong |= set(block.names)
            continue
        matrix = dense(left, right).mT @ right
        for name, rows in block.scatter(matrix).items():
            own = float(plain[name].abs().max())
            if float((rows - plain[name]).abs().max()) > tolerance * (own + tolerance * scale):
                wrong |= set(block.names)
    return wrong


def _with_rest(problem: Problem, seen: Structure, wrong: set[str]) -> Structure:
    """The same, with the parameters that were seen wrongly as single rows."""
    shapes = {name: shape for name, shape in problem.layout.shapes.items() if name in wrong}
    singles = [_row(name, shape) for name, shape in shapes.items()]
    kept = [block for block in seen.blocks if not wrong & set(block.names)]
    folded = {w: b for w, b in seen.folded.items() if w not in wrong}
    return Structure((*kept, *singles), Layout(shapes), folded, seen.axes, seen.keeps_copies)


def _row(name: str, shape: torch.Size) -> Block:
    """One parameter as one row."""
    return Block((name,), 1, 1, math.prod(shape), False, {name: shape}, "single")
