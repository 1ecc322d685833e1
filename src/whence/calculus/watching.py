"""Every use of every parameter while a model runs, and the two factors of a gradient at each use.

The gradient of one example with respect to the weights of a layer is a sum of outer products over
the positions at which the layer was used,

    G = sum_t l_t r_t^T           linear, convolution, matrix product: l = output gradient, r = input
                                  embedding: l = unit vector of the token, r = output gradient
                                  scale or shift of single numbers: l = 1, r = the gradient itself

A `TorchFunctionMode` sees the functions that a model calls, so that layers of any class count:
`nn.Linear`, `nn.MultiheadAttention`, the `Conv1D` of language models, or a bare `x @ self.weight`.
What goes into a use is kept, and the place in the graph at which its output's gradient will come
by. Parameters take no gradients of their own: a backward pass costs one product a layer, not two.

Nothing is believed of a model: `whence.calculus.layers` compares the factors with plain gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Axis = Literal["first", "inner", "second", "shared", "unknown"]
"""Where a use has its examples: along the first axis, positions after them or, "inner", before
them; along the second axis (sequences first); nowhere, as it is the same for all, such as positions
that are embedded once; or it is not known."""


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
class Piece:
    """One parameter, or a weight with its bias, in one use.

    Args:
        weight: its name.
        bias: the name of the bias that is added to the same output, whose gradient is sum_t l_t.
        kind: "product" where r is what went in; "lookup" where l is a unit vector and r comes back
            from the loss; "single" where r is the whole gradient and l is 1.
        is_transposed: whether the weight is stored as (columns, rows).
        factors: from the gradient (B, ...) of the use's output to the factors of the weight.
    """

    weight: str
    bias: str | None
    kind: Literal["product", "lookup", "single"]
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
        return tensor._version != version  # noqa: SLF001


class Watch(TorchFunctionMode):
    """Inside this context uses of known parameters are written down.

    Args:
        names: of each parameter by the identity of its tensor.
        count: B, how many examples the model is called on.
        axes: where the uses of a parameter have their examples; None to go by shapes.
        keeps_copies: whether inputs are copied, for models that overwrite them.
        may_share: whether what is the same for all examples is repeated for each of them.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        count: int,
        axes: Mapping[str, Axis] | None,
        *,
        keeps_copies: bool,
        may_share: bool = True,
    ) -> None:
        super().__init__()
        self.names, self.count, self.is_known = names, count, axes is not None
        self.axes: dict[str, Axis] = dict(axes or {})
        self.keeps_copies, self.may_share = keeps_copies, may_share
        self.uses: list[Use] = []

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
        known = [a for a in (*args, *kwargs.values()) if id(a) in self.names]
        if describe is None or not known:
            return func(*args, **kwargs)
        return self._write_down(func, describe, args, kwargs, self.names[id(known[0])])

    def _write_down(
        self, func: Any, describe: "Describe", args: Any, kwargs: Any, first: str
    ) -> Any:
        place = 1 if func is torch.addmm or id(args[0]) in self.names else 0
        if len(args) <= place or not isinstance(args[place], Tensor) or args[place].ndim == 0:
            return func(*args, **kwargs)
        given = args[place]
        axis = self._axis(first, given)
        if axis == "unknown":
            return func(*args, **kwargs)
        if axis == "shared":
            given = given.expand(self.count, *given.shape[given.shape[0] == 1 and given.ndim > 1 :])
        kept = given.detach().clone() if self.keeps_copies else given.detach()
        pieces = tuple(describe(Call(self.names, kept, _Rows(self.count, axis), args, kwargs)))
        if pieces:
            args = (*args[:place], given, *args[place + 1 :])
        output = func(*args, **kwargs)
        if not pieces or not isinstance(output, Tensor):
            return output
        version = (kept, kept._version)  # noqa: SLF001
        if output.requires_grad:
            self.uses.append(Use(pieces, get_gradient_edge(output), version))
            return output
        leaf = output.detach().requires_grad_(True)
        self.uses.append(Use(pieces, leaf, version))
        return leaf.clone()  # the model may overwrite it; a leaf may not be overwritten


    def _axis(self, name: str, given: Tensor) -> Axis:
        """Where a parameter's uses have their examples, by what is known or by their shape."""
        if name in self.axes or self.is_known:
            return self.axes.get(name, "unknown")
        axis: Axis = "shared" if self.may_share else "unknown"
        if given.shape[0] % self.count == 0:
            axis = "first"
        elif given.ndim > 2 and given.shape[1] == self.count:
            axis = "second"
        self.axes[name] = axis
        return axis


def _opened(func: FunctionType) -> FunctionType:
    """A composite function that calls its parts in sight of the active mode."""
    seen = {**func.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(func.__code__, seen, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


# ------------------------------------------------------------------- kinds of use


@dataclass(frozen=True)
class _Rows:
    """How a tensor with B examples somewhere becomes (B, T, width)."""

    count: int
    axis: Axis

    def first(self, tensor: Tensor) -> Tensor:
        """Examples along the first axis."""
        if self.axis == "second":
            return tensor.movedim(1, 0)
        if len(tensor) == self.count:
            return tensor
        if self.axis == "inner":
            return tensor.reshape(-1, self.count, *tensor.shape[1:]).movedim(1, 0)
        return tensor.reshape(self.count, -1, *tensor.shape[1:])

    def matrix(self, tensor: Tensor) -> Tensor:
        """(B, 1, T, width)."""
        return self.first(tensor).reshape(self.count, 1, -1, tensor.shape[-1])


@dataclass(frozen=True)
class Call:
    """One call: names of parameters, the input that is kept, where examples are, and arguments."""

    names: Mapping[int, str]
    given: Tensor
    rows: _Rows
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def name(self, place: int, name: str) -> str | None:
        """The parameter that is an argument, by its name; None for anything else."""
        return self.names.get(id(self.argument(place, name)))


Describe = Callable[[Call], Sequence[Piece]]


def _linear(call: Call) -> Sequence[Piece]:
    return _product(call, call.name(1, "weight"), call.name(2, "bias"), is_transposed=False)


def _matmul(call: Call) -> Sequence[Piece]:
    weight = call.argument(1, "other" if "other" in call.kwargs else "mat2")
    if weight.ndim != 2:
        return ()
    return _product(call, call.names.get(id(weight)), None, is_transposed=True)


def _addmm(call: Call) -> Sequence[Piece]:
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        return ()
    return _product(call, call.name(2, "mat2"), call.name(0, "input"), is_transposed=True)


def _product(
    call: Call, weight: str | None, bias: str | None, *, is_transposed: bool
) -> Sequence[Piece]:
    if weight is None:
        return _shift(call, bias, -1)
    right = call.rows.matrix(call.given)
    return [Piece(weight, bias, "product", is_transposed, lambda g: (call.rows.matrix(g), right))]


def _convolution(call: Call) -> Sequence[Piece]:
    weight, bias = call.name(1, "weight"), call.name(2, "bias")
    if weight is None:
        return _shift(call, bias, 1)
    groups = call.argument(6, "groups", 1)

    right = cache(lambda: patches(call, groups))  # where several slopes ask, they are cut once

    def factors(slope: Tensor) -> Factors:
        left = slope.reshape(len(slope), groups, -1, slope[0, 0].numel()).mT  # (B, G, T, out / G)
        return left, right()

    return [Piece(weight, bias, "product", False, factors)]


def patches(call: Call, groups: int) -> Tensor:
    """(B, G, T, in / G * kernel): what a convolution sees at each of its T output positions."""
    given, weight = call.given, call.argument(1, "weight")
    kernel = weight.shape[2:]
    axes = len(kernel)
    stride = _each(call.argument(3, "stride", 1), axes)
    padding, dilation = call.argument(4, "padding", 0), _each(call.argument(5, "dilation", 1), axes)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        sides = [(extra // 2, extra - extra // 2) for extra in reach]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, axes)]
    padded = F.pad(given, [side for pair in reversed(sides) for side in pair]).contiguous()
    spread = zip(padded.shape[2:], reach, stride, strict=True)
    places = [(size - r - 1) // s + 1 for size, r, s in spread]
    example, channel, *steps = padded.stride()
    view = padded.as_strided(
        (*padded.shape[:2], *kernel, *places),
        (
            example,
            channel,
            *[step * d for step, d in zip(steps, dilation, strict=True)],
            *[step * s for step, s in zip(steps, stride, strict=True)],
        ),
    )
    count = view[0, 0].numel() // weight[0, 0].numel()
    return view.reshape(len(given), groups, -1, count).mT


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value) * (axes // len(value))


def _embedding(call: Call) -> Sequence[Piece]:
    weight = call.name(1, "weight")
    if weight is None or call.argument(3, "max_norm") is not None:
        return ()
    size, padding = call.argument(1, "weight").shape[0], call.argument(2, "padding_idx")
    tokens = call.rows.first(call.given).reshape(call.rows.count, 1, -1)

    def factors(slope: Tensor) -> Factors:
        right = call.rows.matrix(slope)
        if padding is not None:
            right = right * (tokens != padding % size)[..., None]
        return OneHot(tokens, size), right

    return [Piece(weight, None, "lookup", False, factors)]


def _layer_norm(call: Call) -> Sequence[Piece]:
    shape, eps = call.argument(1, "normalized_shape"), call.argument(4, "eps", 1e-5)
    plain = F.layer_norm(call.given, shape, eps=eps)
    return [*_scale(call, call.name(2, "weight"), plain), *_shift(call, call.name(3, "bias"), -1)]


def _rms_norm(call: Call) -> Sequence[Piece]:
    shape, eps = call.argument(1, "normalized_shape"), call.argument(3, "eps")
    return _scale(call, call.name(2, "weight"), F.rms_norm(call.given, shape, eps=eps))


def _batch_norm(call: Call) -> Sequence[Piece]:
    if call.argument(5, "training", False):
        return ()
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    eps = call.argument(7, "eps", 1e-5)
    plain = F.batch_norm(call.given, mean, variance, eps=eps)
    return _by_channel(call, call.name(3, "weight"), call.name(4, "bias"), plain)


def _group_norm(call: Call) -> Sequence[Piece]:
    groups, eps = call.argument(1, "num_groups"), call.argument(4, "eps", 1e-5)
    plain = F.group_norm(call.given, groups, eps=eps)
    return _by_channel(call, call.name(2, "weight"), call.name(3, "bias"), plain)


def _by_channel(
    call: Call, weight: str | None, bias: str | None, plain: Tensor
) -> Sequence[Piece]:
    """Scale and shift along the second axis."""

    def summed(product: Tensor) -> Factors:
        return _single(product.flatten(2).sum(2) if product.ndim > 2 else product)

    scale = [Piece(weight, None, "single", False, lambda g: summed(g * plain))] if weight else []
    return [*scale, *([Piece(bias, None, "single", False, summed)] if bias else [])]


def _multiply(call: Call) -> Sequence[Piece]:
    name, shape = _other(call)
    if name is None:
        return ()
    return [Piece(name, None, "single", False, lambda g: _broadcast(call.rows.first(g * call.given), shape))]


def _add(call: Call) -> Sequence[Piece]:
    name, shape = _other(call)
    if name is None or call.kwargs.get("alpha", 1) != 1:
        return ()
    return [Piece(name, None, "single", False, lambda g: _broadcast(call.rows.first(g), shape))]


def _other(call: Call) -> tuple[str | None, torch.Size]:
    """The parameter that a tensor is scaled or shifted by."""
    for argument in call.args[:2]:
        if id(argument) in call.names:
            return call.names[id(argument)], argument.shape
    return None, torch.Size()


def _scale(call: Call, weight: str | None, plain: Tensor) -> Sequence[Piece]:
    if weight is None:
        return ()
    shape = call.argument(2, "weight").shape
    return [Piece(weight, None, "single", False, lambda g: _broadcast(call.rows.first(g * plain), shape))]


def _shift(call: Call, bias: str | None, axis: int) -> Sequence[Piece]:
    """A bias along one axis of the output, whose weight is not asked about."""
    if bias is None:
        return ()

    def factors(slope: Tensor) -> Factors:
        moved = call.rows.first(slope).movedim(axis, -1)
        return _single(moved.reshape(call.rows.count, -1, moved.shape[-1]).sum(1))

    return [Piece(bias, None, "single", False, factors)]


def _broadcast(slope: Tensor, shape: torch.Size) -> Factors:
    """Gradients (B, ...) summed to the shape of a tensor that was broadcast to them."""
    inner = shape[1:] if len(shape) == slope.ndim and shape[0] == 1 else shape
    extra = slope.ndim - 1 - len(inner)
    summed = slope.flatten(1, extra).sum(1) if extra else slope
    axes = [1 + axis for axis, size in enumerate(inner) if size == 1 and summed.shape[1 + axis] > 1]
    return _single((summed.sum(axes) if axes else summed).flatten(1))


def _single(rows: Tensor) -> Factors:
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
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    torch.mul: _multiply,
    torch.Tensor.mul: _multiply,
    torch.add: _add,
    torch.Tensor.add: _add,
}
"""What is known of each function that takes parameters."""
