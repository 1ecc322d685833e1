"""Named tensors laid out on one flat axis.

A parameter-shaped vector travels through whence as a flat tensor (P,), and a stack of them as
(K, P): dot products, solves and orthogonalisation are then plain matrix algebra. A `Layout` knows
which named tensor lies where, and gives views, never copies, when a model has to be called.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.errors import BadData


@dataclass(frozen=True)
class Layout:
    """How named tensors lie next to each other on one flat axis of length P.

    Args:
        shapes: shape of each tensor by name; the order of the mapping is the order on the axis.

    >>> layout = Layout({"weight": torch.Size([2, 3]), "bias": torch.Size([2])})
    >>> layout.size
    8
    >>> layout.split(torch.zeros(5, 8))["weight"].shape
    torch.Size([5, 2, 3])
    """

    shapes: Mapping[str, torch.Size]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in their order on the axis."""
        return tuple(self.shapes)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """How many numbers each tensor has."""
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def size(self) -> int:
        """P, how many numbers there are in all."""
        return sum(self.lengths)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector or stack by name.

        Args:
            flat: (..., P).

        Returns:
            For each name a view (..., *shape).
        """
        leading = flat.shape[:-1]
        pieces = flat.split(self.lengths, dim=-1)
        return {
            name: piece.reshape(leading + shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat vector or stack of named tensors; inverse of `split`.

        Args:
            named: a tensor (..., *shape) for each name, with equal leading axes.

        Returns:
            (..., P).

        Raises:
            BadData: a name is missing or has another shape.
        """
        pieces: list[Tensor] = []
        for name, shape in self.shapes.items():
            tensor = named.get(name)
            if tensor is None or tensor.shape[tensor.ndim - len(shape) :] != shape:
                got = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise BadData(
                    found=f"Parameter {name!r} should end in shape {tuple(shape)}; got {got}.",
                    why="Parameters are matched by name and shape.",
                    remedy=f"Give one tensor for each of: {', '.join(self.names)}.",
                )
            pieces.append(tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], shape.numel()))
        return torch.cat(pieces, dim=-1)


def layout_of(named: Mapping[str, Tensor]) -> Layout:
    """The layout of given tensors, in their order."""
    return Layout({name: tensor.shape for name, tensor in named.items()})
