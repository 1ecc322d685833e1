"""How an example's part in an objective is shared by the tokens of its text.

By the positions of its loss, where the loss is a sum over them (or a mean with a fixed count): the
slope psi . grad loss is the sum of psi . grad loss_t. By the tokens that go in: how the slope
follows a factor s_t, here 1, on the embedding of token t.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path

from whence.calculus.gradients import residuals
from whence.core.batches import Batch, Tree
from whence.core.problem import Problem
from whence.errors import Unsupported

_PREFERRED = "input_ids"
"""Of several inputs that are whole numbers, the one of this name is the text."""

_FAILURES = (RuntimeError, NotImplementedError, TypeError)
"""What an operation without a rule for forward mode can raise."""


@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of one example, and where the model looks them up.

    Args:
        ids: (T,) of the tokens, padding included.
        is_padding: (T,) tokens that a mask among the inputs, or the table, declares to be none.
        lookups: which calls of `F.embedding`, counted in their order, look these tokens up.
        vocabulary: rows of the table; None where there is no lookup.
    """

    ids: Tensor
    is_padding: Tensor
    lookups: tuple[int, ...]
    vocabulary: int | None


@dataclass(frozen=True, eq=False)
class _Lookup:
    indices: Tensor
    rows: int
    padding: int | None


class _Lookups(TorchFunctionMode):
    """Inside this context lookups in tables are written down, and some of them scaled.

    Args:
        scaled: which, counted in their order.
        scale: (T,) a factor for each token.
    """

    def __init__(self, scaled: Sequence[int] = (), scale: Tensor | None = None) -> None:
        super().__init__()
        self.scaled, self.scale = scaled, scale
        self.heard: list[_Lookup] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function; of a lookup it keeps what was looked up."""
        del types
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is not F.embedding:
            return output
        named = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | kwargs
        rows, padding = named["weight"].shape[0], named.get("padding_idx")
        padding = padding + rows if padding is not None and padding < 0 else padding
        self.heard.append(_Lookup(named["input"], rows, padding))
        if self.scale is None or len(self.heard) - 1 not in self.scaled:
            return output
        return output * self.scale.reshape(*named["input"].shape, 1)


def find_text(problem: Problem, batch: Batch) -> Text:
    """The text of an example.

    Args:
        problem: model.
        batch: one example.

    Raises:
        Unsupported: no input is a row of whole numbers.
    """
    named = _named(batch.inputs)
    rows = {
        name: leaf[0]
        for name, leaf in named.items()
        if leaf.ndim == 2 and _is_whole(leaf) and "mask" not in name
    }
    if not rows:
        raise Unsupported(
            found="The inputs of the model are no tokens: none of them is a row of whole numbers.",
            why="Effects of tokens speak of a text, the ids of which go into the model.",
            remedy="Use whence.perturb for numbers; what a pipeline or a feature extractor makes "
            "of a text is no text any more.",
        )
    with torch.no_grad(), _Lookups() as lookups:
        problem.outputs(problem.parameters, batch.inputs)
    calls = {name: _calls_of(ids, lookups.heard) for name, ids in rows.items()}
    fitting = [name for name in rows if _PREFERRED in name] or [
        name for name in rows if calls[name]
    ]
    name = (fitting or list(rows))[0]
    first = lookups.heard[calls[name][0]] if calls[name] else None
    return Text(
        ids=rows[name],
        is_padding=_padding(rows[name], named, first),
        lookups=calls[name],
        vocabulary=None if first is None else first.rows,
    )


def _named(inputs: Tree) -> dict[str, Tensor]:
    leaves, _ = tree_flatten_with_path(inputs)
    return {keystr(path): leaf for path, leaf in leaves}


def _is_whole(leaf: Tensor) -> bool:
    return not (leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool)


def _calls_of(ids: Tensor, heard: Sequence[_Lookup]) -> tuple[int, ...]:
    """Lookups of the very tensor; where there is none, of equal numbers.

    The tokens of a text may happen to be 0, 1, 2, ..., which are also its positions.
    """
    alike = [i for i, one in enumerate(heard) if one.indices.numel() == ids.numel()]
    storage = ids.untyped_storage().data_ptr()
    own = [i for i in alike if heard[i].indices.untyped_storage().data_ptr() == storage]
    return tuple(own or [i for i in alike if torch.equal(heard[i].indices.flatten(), ids)])


def _padding(ids: Tensor, named: dict[str, Tensor], lookup: _Lookup | None) -> Tensor:
    """(T,) what is padding by a mask of the same shape, 0 there, or by the row of the table."""
    padding = torch.zeros_like(ids, dtype=torch.bool)
    if lookup is not None and lookup.padding is not None:
        padding |= ids == lookup.padding
    for name, leaf in named.items():
        if "mask" in name and leaf.shape == (1, len(ids)):
            is_inverted = "padding_mask" in name  # of nn.Transformer: true where there is none
            padding |= (leaf[0] != 0) == is_inverted
    return padding


# ------------------------------------------------------------------ positions of the loss


def position_axis(problem: Problem, batch: Batch) -> int | None:
    """The axis of the outputs over which the loss adds up, one position a target.

    The loss adds up over positions where its slope at one does not follow the outputs at another.
    Positions are moved in halves, by each binary digit of their place, so that any two of them are
    told apart.

    Args:
        problem: model and loss.
        batch: one example with a row of targets.

    Returns:
        None where no axis does.
    """
    targets = batch.targets
    if targets is None or targets.ndim != 2:
        return None
    with torch.no_grad():
        values = problem.outputs(problem.parameters, batch.inputs)
    axes = [a for a in range(values.ndim - 1, 0, -1) if values.shape[a] == targets.shape[1]]
    return next((axis for axis in axes if _adds_up(problem, batch, values, axis)), None)


def _adds_up(problem: Problem, batch: Batch, values: Tensor, axis: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
    at_rest = residuals(problem, batch, values=values).reshape(values.shape)
    places = torch.arange(values.shape[axis], device=values.device)
    tolerance = 1e4 * torch.finfo(values.dtype).eps * float(at_rest.abs().max())
    for digit in range(int(places[-1]).bit_length()):
        is_moved = (places >> digit) % 2 == 1
        step = noise * is_moved.reshape(-1, *[1] * (values.ndim - 1 - axis))
        slopes = residuals(problem, batch, values=values, shift=step.flatten(1))
        change = (slopes.reshape(values.shape) - at_rest).movedim(axis, -1)[..., ~is_moved]
        if not bool((change.abs() <= tolerance).all()):
            return False
    return True


def target_shift(problem: Problem, batch: Batch, axis: int) -> int:
    """How far the target of a position stands from it: 1 where the loss shifts by itself.

    The loss of many language models takes the tokens themselves as targets, and compares the
    outputs at t with token t + 1. Another last target changes the slope where it counts.

    Args:
        problem: model and loss.
        batch: one example with a row of targets.
        axis: of the positions.
    """
    targets = cast("Tensor", batch.targets)
    if not _is_whole(targets) or not bool((targets >= 0).any()):
        return 0
    last = int((targets[0] >= 0).nonzero().max())
    other = targets.clone()
    other[0, last] = abs(int(targets[0, last]) - 1)
    with torch.no_grad():
        values = problem.outputs(problem.parameters, batch.inputs)
    changed = Batch(batch.inputs, other, batch.positions, batch.weights)
    gap = residuals(problem, changed, values=values) - residuals(problem, batch, values=values)
    gaps = gap.reshape(values.shape).movedim(axis, -1).flatten(0, -2).abs().amax(0)
    return last - int(gaps.argmax()) if bool((gaps > 0).any()) else 0


def position_slopes(
    problem: Problem, psi: Tensor, batch: Batch, *, axis: int, total: Tensor
) -> Tensor:
    """What each position of the loss of one example pulls along directions of the parameters.

        out[q, t] = psi[q] . grad loss_t = sum_c (J psi[q])[c, t] d loss / d output[c, t]

    One pass in forward mode for each direction gives all positions at once. Where the model has no
    forward mode, or it does not add up to `total`, one reverse pass for each position does.

    Args:
        problem: model and loss.
        psi: (Q, P) directions.
        batch: one example.
        axis: of the positions, from `position_axis`.
        total: (Q,) psi . grad loss, known in another way.

    Returns:
        (Q, T).
    """
    slopes = residuals(problem, batch)

    def pulls(parameters: Tensor) -> Tensor:
        outputs = problem.outputs(parameters, batch.inputs)
        weighted = outputs * slopes.reshape(outputs.shape)
        return weighted.movedim(axis, -1).flatten(0, -2).sum(0)  # (T,)

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
        with suppress(*_FAILURES), torch.no_grad():
            rows = [jvp(pulls, (problem.parameters,), (direction,))[1] for direction in psi]
            found = torch.stack(rows)
            tolerance = 1e4 * torch.finfo(psi.dtype).eps * found.abs().sum(1)
            if bool(((found.sum(1) - total).abs() <= tolerance).all()):
                return found
        return _by_reverse_passes(problem, psi, pulls)


def _by_reverse_passes(problem: Problem, psi: Tensor, pulls: Callable[[Tensor], Tensor]) -> Tensor:
    """(Q, T) by the gradient of every position."""
    with torch.enable_grad():
        theta = problem.parameters.detach().clone().requires_grad_(True)
        columns = [
            psi @ torch.autograd.grad(pull, theta, retain_graph=True, materialize_grads=True)[0]
            for pull in pulls(theta)
        ]
    return torch.stack(columns, 1)


# ------------------------------------------------------------------ tokens that go in


def token_slopes(problem: Problem, psi: Tensor, batch: Batch, *, text: Text) -> Tensor:
    """How the pull of one example follows a factor on the embedding of each of its tokens.

        out[q, t] = d / d s_t  psi[q] . grad loss(s * z)   at s = 1,    z_t the embedding of t

    This is the gradient with respect to z_t times z_t and, where the table is among the parameters,
    one more term: a token that is faded out no longer trains its row.

    Args:
        problem: model and loss.
        psi: (Q, P) directions.
        batch: one example.
        text: its tokens, from `find_text`.

    Returns:
        (Q, T), unit of psi times the loss.

    Raises:
        Unsupported: no table is looked up, or an operation has no second derivative.
    """
    if not text.lookups:
        raise Unsupported(
            found="The model looks its tokens up in no table (F.embedding, nn.Embedding).",
            why="A token is faded out at its embedding.",
            remedy="Give the model an nn.Embedding; nn.EmbeddingBag and one-hot vectors hide the "
            "single tokens.",
        )
    scale = torch.ones(len(text.ids), dtype=psi.dtype, device=psi.device, requires_grad=True)
    theta = problem.parameters.detach().clone().requires_grad_(True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second one
        with _Lookups(text.lookups, scale):
            loss = problem.losses(theta, batch).sum()
        try:
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            if not slope.requires_grad:
                return psi.new_zeros(len(psi), len(scale))
            rows = [_follow(slope @ direction, scale) for direction in psi]
        except RuntimeError as error:
            raise Unsupported(
                found=f"The model has no second derivative ({error}).",
                why="How an effect follows a token is one: through the parameters and the token.",
                remedy="Look which operation it is; by='loss' needs first derivatives only.",
            ) from error
    return torch.stack(rows)


def _follow(pull: Tensor, scale: Tensor) -> Tensor:
    return torch.autograd.grad(pull, scale, retain_graph=True, materialize_grads=True)[0]
