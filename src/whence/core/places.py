"""Where the numbers of an input stand in front of a reader: pixels, positions or columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any, Literal

import numpy as np

from whence.core.display import Display
from whence.core.problem import Problem

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class Places:
    """The place of each number of an input; the channels of a picture share their pixel.

    Args:
        index: in the shape of one input, the place 0, 1, ... of each number.
        kind: what a place is.
        names: of positions and columns; empty for pixels.
        grid: (H, W) of a picture; None otherwise.
    """

    index: np.ndarray
    kind: Literal["pixel", "position", "column"]
    names: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Sums of what stands at each place: (H, W) for a picture, else one number a place.

        Args:
            values: in the shape of one input.
        """
        sums = np.bincount(self.index.ravel(), weights=values.ravel())
        return sums if self.grid is None else sums.reshape(self.grid)

    def parts(self, regions: int) -> np.ndarray:
        """In the shape of one input, the part 0, 1, ... that each number belongs to.

        Args:
            regions: a picture is cut into regions x regions cells, or fewer where it has fewer
                pixels; a position or column is a part by itself.
        """
        if self.grid is None:
            return self.index
        rows, columns = (np.arange(side) * min(regions, side) // side for side in self.grid)
        cells = rows[:, None] * (columns[-1] + 1) + columns
        return cells.ravel()[self.index]


def find_places(
    problem: Problem, shape: tuple[int, ...], display: Display, *, is_prepared: bool
) -> Places:
    """The places of inputs that are one tensor each.

    Args:
        problem: whose inputs they are; its display knows shapes and names.
        shape: of one input.
        display: of one example: where it is a picture, so are the numbers.
        is_prepared: whether fixed steps have made the numbers out of what is shown.
    """
    is_picture = display["kind"] == "image" and not is_prepared
    layout = _picture_layout(shape, display, _hints(problem).get("shape")) if is_picture else None
    if layout is not None:
        height, width, axis = layout
        pixels = np.arange(height * width).reshape(height, width)
        channels = prod(shape) // pixels.size
        index = pixels if axis is None else np.stack([pixels] * channels, axis)
        return Places(index.reshape(shape), "pixel", grid=(height, width))
    if len(shape) > 1:
        names = tuple(f"position {place}" for place in range(shape[0]))
        index = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return Places(np.broadcast_to(index, shape).copy(), "position", names)
    index = np.arange(prod(shape)).reshape(shape)
    return Places(index, "column", _column_names(problem, index.size, is_prepared))


def _hints(problem: Problem) -> Mapping[str, Any]:
    return problem.display if isinstance(problem.display, Mapping) else {}


def _picture_layout(
    shape: tuple[int, ...], display: Display, hint: Sequence[int] | None
) -> tuple[int, int, int | None] | None:
    """Height, width and axis of the channels; None for numbers that are no pixels."""
    size = prod(shape)
    if hint is not None and prod(hint) == size:
        shape = tuple(hint)
    elif len(shape) == 1:
        side = isqrt(size)
        shape = (side, side) if side**2 == size else (display["height"], display["width"])
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return shape[1], shape[2], 0
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return shape[0], shape[1], 2
    return (shape[0], shape[1], None) if len(shape) == 2 and prod(shape) == size else None


def _column_names(problem: Problem, width: int, is_prepared: bool) -> tuple[str, ...]:
    """Names of the features as they are looked at, where the problem knows them."""
    shown = None if is_prepared else _hints(problem).get("feature_names")
    for names in (shown, getattr(problem.read, "columns", None)):
        if names is not None and len(names) == width:
            return tuple(map(str, names))
    return tuple(f"feature {place}" for place in range(width))
