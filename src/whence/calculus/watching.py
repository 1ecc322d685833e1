"""Every use of every parameter while a model runs, and the two factors of a gradient at each use.

The gradient of one example with respect to the weights of a layer is a sum of outer products over
the positions at which the layer was used,

    G = sum_t l_t r_t^T         linear, convolution, matrix product: l = output gradient, r = input
                                embedding: l = unit vector of the token, r = output gradient
                                scale or shift of single numbers: l = 1, r = the gradient itself

A `TorchFunctionMode` sees the functions that a model calls, so that layers of any class count:
`nn.Linear`, `nn.MultiheadAttention`, the `Conv1D` of language models, or a bare `x @ self.weight`.
Parameters are known by their place in memory, so that a slice or a transpose of one is seen too.
What goes into a use is kept, and the place in the graph at which its output's gradient will come
by. Parameters take no gradients of their own: a backward pass costs one product a layer, not two.

Nothing is believed of a model: `whence.calculus.layers` compares the factors with plain gradients.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from whence.errors import Unsupported
from whence.numerics.vectors import Layout

Axis = Literal["first", "inner", "second", "shared"]
"""Where a use has its examples: along the first axis, positions after them or, "inner", before
them; along the second axis (sequences first); nowhere, as it is the same for all, such as positions
that are embedded once."""


@dataclass(frozen=True)
class OneHot:
    """Unit vectors that are never written out.

    Args:
        indices: (B, G, T) the place of the one.
        size: length of the vectors.
    """

    indices: Tensor
    size: int

    def dense(self, like: Tensor) -> Tensor:
        """(B, G, T, size) written out."""
        empty = like.new_zeros(*self.indices.shape, self.size)
        return empty.scatter_(3, self.indices[..., None], 1.0)


Left = Tensor | OneHot
Factors = tuple[Left, Tensor]
"""l (B, G, T, rows) and r (B, G, T, columns): B examples, G independent groups, T positions."""


@dataclass(frozen=True)
class Part:
    """A parameter, or a view of it such as a slice or a transpose, that a function was given.

    Args:
        name: of the parameter.
        shape: of the parameter.
        view: what the function was given.
        start: where the view begins in the parameter.
    """

    name: str
    shape: torch.Size
    view: Tensor
    start: int

    @property
    def is_whole(self) -> bool:
        """Whether the view is the parameter itself."""
        return self.view.shape == self.shape and self.view.is_contiguous()

    def spread(self, rows: Tensor) -> Tensor:
        """(B, n) gradients of the parameter from those (B, ...) of the view."""
        rows = rows.reshape(len(rows), -1)
        if self.is_whole:
            return rows
        size = math.prod(self.shape)
        places = torch.arange(size, device=rows.device)
        index = places.as_strided(self.view.shape, self.view.stride(), self.start).flatten()
        return rows.new_zeros(len(rows), size).index_add_(1, index, rows)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the parameter; a vector is one row."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], self.shape[1])

    def is_transposed(self, view: Tensor) -> bool:
        """Whether a view of this part as a matrix runs along the parameter's other axis."""
        shape, stride = tuple(view.shape), view.stride()
        if shape == self.matrix:
            return shape[0] == shape[1] and stride[0] < stride[1]
        return shape == self.matrix[::-1] or stride[0] < stride[1]


@dataclass(frozen=True)
class Piece:
    """One parameter, or a weight with its bias, in one use.

    Args:
        weight: its name.
        bias: the name of the bias that is added to the same output, whose gradient is sum_t l_t.
        kind: "product" where r is what went in; "lookup" where l is a unit vector and r comes back
            from the loss; "mixed" where l is what went in; "single" where r is the whole gradient
            and l is 1.
        is_transposed: whether the weight is stored as (columns, rows).
        factors: from the gradient (B, ...) of the use's output to the factors of the weight.
    """

    weight: str
    bias: str | None
    kind: Literal["product", "lookup", "mixed", "single"]
    is_transposed: bool
    factors: Callable[[Tensor], Factors]


@dataclass(frozen=True)
class Use:
    """One call of a function with parameters.

    Args:
        pieces: what it says of each parameter.
        place: where the gradient of its output comes by.
        inputs: what went in, and the version of its contents at that time.
    """

    pieces: tuple[Piece, ...]
    place: Tensor | GradientEdge
    inputs: tuple[Tensor, int]

    @property
    def is_overwritten(self) -> bool:
        """Whether the model has changed the input in place since."""
        tensor, version = self.inputs
        return tensor._version != version


FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, Unsupported)
"""What a use that is described wrongly can raise, or a model that meets an axis too many."""


class Watch(TorchFunctionMode):
    """Inside this context uses of parameters are written down.

    Args:
        layout: names and shapes of the parameters.
        flat: (P,) their values; the model is called with views of it.
        count: B, how many examples the model is called on.
        axes: where the uses of a parameter have their examples; parameters without are passed over.
        guesses: whether the axes of others are guessed by shapes.
        may_share: whether a guess may be that something is the same for all examples. It is then
            repeated for each of them, which not every model takes.
    """

    def __init__(
        self,
        layout: Layout,
        flat: Tensor,
        count: int,
        *,
        axes: Mapping[str, Axis],
        guesses: bool = False,
        may_share: bool = True,
    ) -> None:
        super().__init__()
        self.flat, self.count = flat, count
        self.axes: dict[str, Axis] = dict(axes)
        self.guesses, self.may_share = guesses, may_share
        self.uses: list[Use] = []
        self._storage = flat.untyped_storage().data_ptr()
        ends = list(accumulate(layout.lengths))
        self._ends = torch.tensor(ends)
        self._shapes = list(zip(layout.shapes.items(), [0, *ends], strict=False))

    def part(self, argument: Any) -> Part | None:
        """The parameter that an argument is, in whole or in part."""
        if not isinstance(argument, Tensor) or argument.layout is not torch.strided:
            return None
        if not argument.numel() or argument.untyped_storage().data_ptr() != self._storage:
            return None
        place = int(argument.storage_offset()) - int(self.flat.storage_offset())
        (name, shape), start = self._shapes[int(torch.searchsorted(self._ends, place, right=True))]
        return Part(name, shape, argument, place - start)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function, and writes down what parameters it was given."""
        del types
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        describe = _KINDS.get(func)
        if describe is None:
            return func(*args, **kwargs)
        parts = {id(a): part for a in (*args, *kwargs.values()) if (part := self.part(a))}
        if not parts:
            return func(*args, **kwargs)
        return self._write_down(func, describe, args, kwargs, parts)

    def _write_down(
        self, func: Any, describe: "Describe", args: Any, kwargs: Any, parts: dict[int, Part]
    ) -> Any:
        place = 1 if func is torch.addmm or id(args[0]) in parts else 0
        given = args[place] if len(args) > place else None
        if describe is _hand_out:  # there is no input: the output has the examples
            place, given = len(args), func(*args, **kwargs)
            if self.guesses and len(given) != self.count:
                return given
        elif not isinstance(given, Tensor) or given.ndim == 0 or id(given) in parts:
            return func(*args, **kwargs)
        axis = self._axis([part.name for part in parts.values()], given)
        if axis is None:
            return func(*args, **kwargs)
        if axis == "shared":
            given = given.expand(self.count, *given.shape[given.shape[0] == 1 and given.ndim > 1 :])
        kept = given.detach()
        try:
            pieces = tuple(describe(Call(parts, kept, Rows(self.count, axis), args, kwargs)))
        except FAILURES:
            if not self.guesses:
                raise
            for part in parts.values():
                self.axes.pop(part.name, None)
            return func(*args, **kwargs)
        if pieces and axis == "shared":
            args = (*args[:place], given, *args[place + 1 :])
        output = func(*args, **kwargs)
        if not pieces or not isinstance(output, Tensor):
            return output
        version = (kept, kept._version)
        if output.requires_grad:
            self.uses.append(Use(pieces, get_gradient_edge(output), version))
            return output
        leaf = output.detach().requires_grad_(True)
        self.uses.append(Use(pieces, leaf, version))
        return leaf.clone()  # the model may overwrite it; a leaf may not be overwritten

    def _axis(self, names: Sequence[str], given: Tensor) -> Axis | None:
        """Where a use has its examples, by what is known of its parameters or by its shape."""
        axis: Axis | None = next((self.axes[name] for name in names if name in self.axes), None)
        if axis is not None or not self.guesses:
            return axis
        axis = "shared" if self.may_share else None
        if given.shape[0] % self.count == 0:
            axis = "first"
        elif given.ndim > 2 and given.shape[1] == self.count:
            axis = "second"
        if axis is not None:
            self.axes.update(dict.fromkeys(names, axis))
        return axis


def _opened(func: FunctionType) -> FunctionType:
    """A composite function that calls its parts in sight of the active mode."""
    seen = {**func.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(func.__code__, seen, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


# ------------------------------------------------------------------- kinds of use


@dataclass(frozen=True)
class Rows:
    """How a tensor with B examples somewhere becomes (B, ...).

    Args:
        count: B.
        axis: where the examples are.
    """

    count: int
    axis: Axis

    def first(self, tensor: Tensor) -> Tensor:
        """Examples along the first axis, positions that shared it with them along the second.

        Raises:
            Unsupported: the rows are no multiple of the examples.
        """
        if self.axis == "second":
            return tensor.movedim(1, 0)
        if len(tensor) == self.count:
            return tensor
        if len(tensor) % self.count:
            raise Unsupported(
                found=f"A layer was given {len(tensor)} rows for {self.count} examples, and was "
                "given all of them when it was first looked at.",
                why="It cannot be known which rows belong to which example.",
                remedy='Use curvature="cg" or "arnoldi", which take a model as a whole.',
            )
        if self.axis == "inner":
            return tensor.reshape(-1, self.count, *tensor.shape[1:]).movedim(1, 0)
        return tensor.reshape(self.count, -1, *tensor.shape[1:])

    def matrix(self, tensor: Tensor) -> Tensor:
        """(B, 1, T, width)."""
        return self.first(tensor).reshape(self.count, 1, -1, tensor.shape[-1])

    def summed(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """(B, ...) tensor summed over the axes along which something of a shape was broadcast."""
        aligned = [1] * (tensor.ndim - len(shape)) + list(shape)
        moved = self.first(tensor)
        del aligned[1 if self.axis == "second" else 0]
        inner = [1] * (moved.ndim - tensor.ndim) + aligned
        axes = [1 + axis for axis, size in enumerate(inner) if size == 1]
        return moved.sum(axes, keepdim=True) if axes else moved


@dataclass(frozen=True)
class Call:
    """One call.

    Args:
        parts: arguments that are parameters, by identity.
        given: the input that is kept.
        rows: where the examples are.
        args, kwargs: all arguments.
    """

    parts: Mapping[int, Part]
    given: Tensor
    rows: Rows
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def part(self, place: int, name: str) -> Part | None:
        """The parameter that is an argument; None for anything else."""
        return self.parts.get(id(self.argument(place, name)))

    def whole(self, place: int, name: str) -> str | None:
        """The name of a parameter that is an argument as a whole."""
        part = self.part(place, name)
        return part.name if part is not None and part.is_whole else None


Describe = Callable[[Call], Iterator[Piece]]


def _linear(call: Call) -> Iterator[Piece]:
    weight = call.part(1, "weight")
    view = None if weight is None else weight.view.reshape(-1, weight.view.shape[-1])
    return _product(call, weight, view, call.part(2, "bias"))


def _matmul(call: Call) -> Iterator[Piece]:
    weight = call.part(1, "other" if "other" in call.kwargs else "mat2")
    if weight is None or weight.view.ndim > 2:
        return iter(())
    view = weight.view.mT if weight.view.ndim == 2 else weight.view[None]
    return _product(call, weight, view, None)


def _addmm(call: Call) -> Iterator[Piece]:
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        return iter(())
    weight = call.part(2, "mat2")
    view = None if weight is None else weight.view.mT
    return _product(call, weight, view, call.part(0, "input"))


def _product(
    call: Call, weight: Part | None, view: Tensor | None, bias: Part | None
) -> Iterator[Piece]:
    """Output rows are a matrix times input rows, and a bias.

    Args:
        call: the call.
        weight: the parameter that the matrix is, or is a part of.
        view: (out, in) the matrix.
        bias: of the output.
    """
    if weight is None or view is None or len(weight.shape) > 2:
        yield from _shift(call, bias)
        return
    is_transposed = weight.is_transposed(view)
    starts, sizes = divmod(weight.start, weight.matrix[1]), weight.matrix
    if is_transposed:
        starts, sizes = starts[::-1], sizes[::-1]
    right = _among(call.rows.matrix(call.given), starts[1], sizes[1])
    is_row = weight.view.ndim == 1  # a product with a vector has no axis for its one output

    def factors(slope: Tensor) -> Factors:
        rows = call.rows.matrix(slope[..., None] if is_row else slope)
        return _among(rows, starts[0], sizes[0]), right

    along = bias is not None and (bias.start, bias.shape) == (starts[0], torch.Size(sizes[:1]))
    name = bias.name if along and bias is not None else None
    yield Piece(weight.name, name, "product", is_transposed, factors)
    if not along:
        yield from _shift(call, bias)


def _among(factor: Tensor, start: int, size: int) -> Tensor:
    """The factor of a slice as one of the whole, with zeros around it."""
    width = factor.shape[-1]
    return factor if width == size else F.pad(factor, (start, size - start - width))


def _convolution(call: Call) -> Iterator[Piece]:
    weight, bias = call.whole(1, "weight"), call.part(2, "bias")
    window = Window(
        tuple(call.argument(1, "weight").shape[2:]),
        stride=call.argument(3, "stride", 1),
        padding=call.argument(4, "padding", 0),
        dilation=call.argument(5, "dilation", 1),
        groups=call.argument(6, "groups", 1),
    )
    right = cache(lambda: window.patches(call.given))  # where several slopes ask, cut once
    is_whole = bias is not None and bias.is_whole
    if weight is not None:
        name = bias.name if is_whole and bias is not None else None
        yield Piece(weight, name, "product", False, lambda g: (window.pixels(g), right()))
    if weight is None or not is_whole:
        yield from _shift(call, bias, call.given.ndim - 2)


def _transposed_convolution(call: Call) -> Iterator[Piece]:
    """A convolution from outputs to inputs: the patches are those of the output's gradient."""
    weight = call.whole(1, "weight")
    window = Window(
        tuple(call.argument(1, "weight").shape[2:]),
        stride=call.argument(3, "stride", 1),
        padding=call.argument(4, "padding", 0),
        dilation=call.argument(7, "dilation", 1),
        groups=call.argument(6, "groups", 1),
    )
    if weight is not None:
        left = window.pixels(call.given)
        yield Piece(weight, None, "mixed", False, lambda g: (left, window.patches(g)))
    yield from _shift(call, call.part(2, "bias"), call.given.ndim - 2)


@dataclass(frozen=True)
class Window:
    """How a convolution looks at an image.

    Args:
        kernel: size of the window along each axis.
        stride, padding, dilation: of the convolution; one number for all axes, or one for each.
        groups: of channels that do not mix.
    """

    kernel: tuple[int, ...]
    stride: int | Sequence[int]
    padding: int | str | Sequence[int]
    dilation: int | Sequence[int]
    groups: int

    def pixels(self, image: Tensor) -> Tensor:
        """(B, G, T, channels / G) of an image (B, channels, ...)."""
        return image.reshape(len(image), self.groups, -1, image[0, 0].numel()).mT

    def patches(self, image: Tensor) -> Tensor:
        """(B, G, T, channels / G * kernel): what is seen at each of T places."""
        axes = len(self.kernel)
        stride, dilation = _each(self.stride, axes), _each(self.dilation, axes)
        reach = [d * (k - 1) for d, k in zip(dilation, self.kernel, strict=True)]
        if self.padding == "same":
            sides = [(extra // 2, extra - extra // 2) for extra in reach]
        else:
            width = 0 if isinstance(self.padding, str) else self.padding
            sides = [(p, p) for p in _each(width, axes)]
        padded = F.pad(image, [side for pair in reversed(sides) for side in pair]).contiguous()
        spread = zip(padded.shape[2:], reach, stride, strict=True)
        places = [(size - r - 1) // s + 1 for size, r, s in spread]
        example, channel, *steps = padded.stride()
        view = padded.as_strided(
            (*padded.shape[:2], *self.kernel, *places),
            (
                example,
                channel,
                *[step * d for step, d in zip(steps, dilation, strict=True)],
                *[step * s for step, s in zip(steps, stride, strict=True)],
            ),
        )
        return view.reshape(len(image), self.groups, -1, math.prod(places)).mT


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value) * (axes // len(value))


def _embedding(call: Call) -> Iterator[Piece]:
    weight = call.whole(1, "weight")
    if weight is None or call.argument(3, "max_norm") is not None:
        return
    size, padding = call.argument(1, "weight").shape[0], call.argument(2, "padding_idx")
    tokens = call.rows.first(call.given).reshape(call.rows.count, 1, -1)

    def factors(slope: Tensor) -> Factors:
        right = call.rows.matrix(slope)
        if padding is not None:
            right = right * (tokens != padding % size)[..., None]
        return OneHot(tokens, size), right

    yield Piece(weight, None, "lookup", False, factors)


def _layer_norm(call: Call) -> Iterator[Piece]:
    shape, eps = call.argument(1, "normalized_shape"), call.argument(4, "eps", 1e-5)
    yield from _scale(call, call.part(2, "weight"), F.layer_norm(call.given, shape, eps=eps))
    yield from _shift(call, call.part(3, "bias"))


def _rms_norm(call: Call) -> Iterator[Piece]:
    shape, eps = call.argument(1, "normalized_shape"), call.argument(3, "eps")
    return _scale(call, call.part(2, "weight"), F.rms_norm(call.given, shape, eps=eps))


def _batch_norm(call: Call) -> Iterator[Piece]:
    if call.argument(5, "training", False):
        return
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    plain = F.batch_norm(call.given, mean, variance, eps=call.argument(7, "eps", 1e-5))
    yield from _scale(call, call.part(3, "weight"), plain, plain.ndim - 2)
    yield from _shift(call, call.part(4, "bias"), plain.ndim - 2)


def _group_norm(call: Call) -> Iterator[Piece]:
    groups, eps = call.argument(1, "num_groups"), call.argument(4, "eps", 1e-5)
    plain = F.group_norm(call.given, groups, eps=eps)
    yield from _scale(call, call.part(2, "weight"), plain, plain.ndim - 2)
    yield from _shift(call, call.part(3, "bias"), plain.ndim - 2)


def _multiply(call: Call) -> Iterator[Piece]:
    for part in call.parts.values():
        yield from _scale(call, part, call.given)


def _add(call: Call) -> Iterator[Piece]:
    if call.kwargs.get("alpha", 1) == 1:
        for part in call.parts.values():
            yield from _shift(call, part)


def _subtract(call: Call) -> Iterator[Piece]:
    if call.kwargs.get("alpha", 1) == 1:
        for part in call.parts.values():
            yield from _shift(call, part, sign=1 if part.view is call.args[0] else -1)


def _scale(call: Call, part: Part | None, plain: Tensor, after: int = 0) -> Iterator[Piece]:
    """A parameter that something is multiplied with, whose last axes come before `after` others."""
    if part is not None:
        shape = (*part.view.shape, *[1] * after)
        yield _single(part, lambda slope: call.rows.summed(slope * plain, shape))


def _shift(call: Call, part: Part | None, after: int = 0, *, sign: int = 1) -> Iterator[Piece]:
    """A parameter that is added, or a bias whose weight is not asked about."""
    if part is not None:
        shape = (*part.view.shape, *[1] * after)
        yield _single(part, lambda slope: call.rows.summed(slope if sign == 1 else -slope, shape))


def _hand_out(call: Call) -> Iterator[Piece]:
    """A parameter that is repeated for every example, such as the first token of each sequence."""
    for part in call.parts.values():
        yield from _shift(call, part)


def _single(part: Part, gradient: Callable[[Tensor], Tensor]) -> Piece:
    """A piece whose gradient is written out."""
    return Piece(part.name, None, "single", False, lambda g: single(part.spread(gradient(g))))


def single(rows: Tensor) -> Factors:
    """Whole gradients (B, n) as the right factor of one position."""
    return rows.new_ones(len(rows), 1, 1, 1), rows[:, None, None]


_KINDS: dict[Any, Describe] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mm: _matmul,
    torch.addmm: _addmm,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.conv_transpose1d: _transposed_convolution,
    F.conv_transpose2d: _transposed_convolution,
    F.conv_transpose3d: _transposed_convolution,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    torch.mul: _multiply,
    torch.Tensor.mul: _multiply,
    torch.add: _add,
    torch.Tensor.add: _add,
    torch.sub: _subtract,
    torch.Tensor.sub: _subtract,
    torch.Tensor.expand: _hand_out,
    torch.Tensor.repeat: _hand_out,
}
"""What is known of each function that takes parameters."""
