"""One example as a picture, a text, a row of numbers or a sound, in plain JSON.

    {"kind": "image", "png": base64, "width": w, "height": h}     [+ "scaled": words, "missing": n]
    {"kind": "text", "text": words}                               [+ "more": characters left out]
    {"kind": "row", "cells": [[name, value], ...]}                [+ "more": cells left out]
    {"kind": "audio", ...}                                        a sound, as in `core/audio.py`
    {"kind": "none", "text": a short summary}

Arrays of numpy, tensors of torch and pictures of pillow are read alike; torch is not imported.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from math import isqrt
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image

from whence.core.audio import sound
from whence.errors import BadArgument, unknown_name

Display = dict[str, Any]
"""Plain JSON, one of the five forms above."""

KINDS = ("auto", "image", "text", "row", "audio", "none")

LONGEST_SIDE = 160
"""Pixels; a report shows no picture larger, and a hundred photographs have to fit one page."""

MOST_CELLS = 12
MOST_CHARACTERS = 2000

_SHORTEST_SIDE, _CHANNELS = 4, (1, 3)
"""What `auto` takes for a picture: a (2, 9) array is more likely a pair of measurements."""

_DIMMEST_BYTES = 64
"""Whole numbers that stay below are counts (such as the 0 to 16 of the digits) and not bytes."""


class Hints(TypedDict, total=False):
    """What `describe` may be told of an example besides its kind.

    Args:
        shape: of the picture, for a flat vector; by default a square.
        low: the value painted black.
        high: the value painted white. Without both, values in [0, 1] and bytes keep their range;
            anything else runs from the smallest to the largest of this picture, and says so.
        feature_names: of the cells of a row.
        decode: from token ids to text.
        rate: of a sound, in samples a second.
    """

    shape: Sequence[int] | None
    low: float | None
    high: float | None
    feature_names: Sequence[str] | None
    decode: Callable[[list[int]], str] | None
    rate: int | None


def describe(example: object, kind: str = "auto", **hints: Unpack[Hints]) -> Display:
    """The display of one example.

    `auto` takes (H, W), (1, H, W), (3, H, W), (H, W, 1) and (H, W, 3) for pictures, strings (and,
    with `decode`, whole numbers) for text, single numbers and vectors for a row; of a dict or a
    tuple it shows the first picture or text, else all numbers as one row. It never takes numbers
    for a sound.

    Args:
        example: an array, tensor, picture, string, number, or a dict or tuple of these. A finished
            display is returned as it is.
        kind: one of `KINDS`.
        hints: any of `Hints`.

    Raises:
        UnknownName: no such kind, or no such hint.
        BadArgument: the example cannot be shown in the kind that was asked for.
    """
    if kind not in KINDS:
        raise unknown_name("display kind", kind, KINDS)
    for name in hints:
        if name not in Hints.__annotations__:
            raise unknown_name("display hint", name, tuple(Hints.__annotations__))
    return _describe(example, kind, hints)


def _describe(example: object, kind: str, hints: Hints) -> Display:
    if isinstance(example, Mapping) and example.get("kind") in KINDS[1:]:
        return dict(example)
    if kind == "none":
        return {"kind": "none", "text": _summary(example)}
    if isinstance(example, str):
        return _text(example)
    if isinstance(example, Mapping | tuple):
        return _describe_parts(example, kind, hints)
    array = _as_array(example)
    kind = _choose(array, hints) if kind == "auto" else kind
    if kind == "image":
        return _image(as_picture(array, hints.get("shape")), hints)
    if kind == "text":
        return _text(_decoded(array, hints))
    if kind == "row":
        return _row(_cells(array, hints.get("feature_names")))
    if kind == "audio":
        return sound(array, hints.get("rate"))
    return {"kind": "none", "text": _summary(array)}


def _describe_parts(
    example: Mapping[Any, object] | tuple[object, ...], kind: str, hints: Hints
) -> Display:
    """The first picture, text or sound among the parts; without one, a row of all numbers."""
    named = example if isinstance(example, Mapping) else dict(enumerate(example))
    parts = {str(name): value for name, value in named.items()}
    if "input_ids" in parts and hints.get("decode") is not None:
        return _text(_decoded(_as_array(parts["input_ids"]), hints))
    if kind != "row":
        for part in parts.values():
            display = _describe(part, kind, hints)
            if display["kind"] in ("image", "text", "audio"):
                return display
    cells = [cell for name, part in parts.items() for cell in _part_cells(name, part)]
    return _row(cells) if cells else {"kind": "none", "text": _summary(example)}


def _part_cells(name: str, part: object) -> list[list[Any]]:
    array = _as_array(part)
    if array.ndim == 0:
        return _cells(array, [name])
    return _cells(array, [f"{name}[{i}]" for i in range(array.size)])


def _choose(array: np.ndarray, hints: Hints) -> str:
    if array.dtype.kind in "US" and array.ndim == 0:
        return "text"
    if array.dtype.kind in "iu" and array.ndim == 1 and hints.get("decode") is not None:
        return "text"
    if array.ndim <= 1:
        return "row"
    return "image" if array.dtype.kind in "biuf" and _is_picture(array.shape) else "none"


def _is_picture(shape: tuple[int, ...]) -> bool:
    if len(shape) == 3:
        shape = next((_sides(shape, axis) for axis in (0, 2) if shape[axis] in _CHANNELS), ())
    return len(shape) == 2 and min(shape) >= _SHORTEST_SIDE


def _sides(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    return shape[1:] if channels == 0 else shape[:2]


def _as_array(example: object) -> np.ndarray:
    """An array from an array, a tensor on any device and in any precision, a list or a number."""
    tensor: Any = example
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if "bfloat16" in str(tensor.dtype):  # numpy has no such type
            tensor = tensor.float()
        return tensor.numpy()
    return np.asarray(example)


# ------------------------------------------------------------------------- pictures


def as_picture(array: np.ndarray, shape: Sequence[int] | None) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4) from any of the layouts a picture comes in.

    Args:
        array: its numbers.
        shape: of the picture, for a flat vector; by default a square.

    Raises:
        BadArgument: numbers that are no picture.
    """
    if shape is None and array.ndim == 1 and isqrt(array.size) ** 2 == array.size:
        shape = (isqrt(array.size),) * 2
    if shape is not None:
        if int(np.prod(shape)) != array.size:
            raise _no_picture(array, f"shape={tuple(shape)} needs {int(np.prod(shape))} numbers")
        array = array.reshape(shape)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_color = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype.kind not in "biuf" or array.size == 0 or not (array.ndim == 2 or is_color):
        raise _no_picture(array, "a picture is (H, W), or has 1, 3 or 4 channels first or last")
    return array


def _no_picture(array: np.ndarray, reason: str) -> BadArgument:
    return BadArgument(
        found=f"{_summary(array)} cannot be shown as a picture: {reason}.",
        why="A report shows each example in a form that a person recognises.",
        remedy='Give the layout, as in display={"kind": "image", "shape": (28, 28)}, or choose '
        'the kind "row", "text" or "none".',
    )


def _image(picture: np.ndarray, hints: Hints) -> Display:
    missing = int(picture.size - np.isfinite(picture).sum())
    low, high = hints.get("low"), hints.get("high")
    scaled = ""
    if low is None or high is None:
        low, high, scaled = _range(picture)
    image = Image.fromarray(_as_bytes(picture, low, high))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    display: Display = {
        "kind": "image",
        "png": b64encode(buffer.getvalue()).decode("ascii"),
        "width": image.width,
        "height": image.height,
    }
    if scaled:
        display["scaled"] = scaled
    if missing:
        display["missing"] = missing
    return display


def _range(picture: np.ndarray) -> tuple[float, float, str]:
    """The values of black and white, and words when they belong to this picture alone."""
    if picture.dtype == np.uint8:
        return 0.0, 255.0, ""
    finite = picture[np.isfinite(picture)].astype(np.float64)
    if finite.size == 0:
        return 0.0, 1.0, ""
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0, ""
    is_whole = bool((finite == np.rint(finite)).all())
    if is_whole and low >= 0 and _DIMMEST_BYTES <= high <= 255:
        return 0.0, 255.0, ""
    return low, high, f"black is {low:.3g} and white is {high:.3g} in this picture"


def _as_bytes(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey levels 0 to 255; a constant picture is mid-grey, a missing pixel is black."""
    values = np.nan_to_num(picture.astype(np.float64), nan=low, posinf=high, neginf=low)
    share = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


# --------------------------------------------------------------------- text and rows


def _text(text: str) -> Display:
    if len(text) <= MOST_CHARACTERS:
        return {"kind": "text", "text": text}
    more = len(text) - MOST_CHARACTERS
    return {"kind": "text", "text": text[:MOST_CHARACTERS], "more": more}


def _decoded(array: np.ndarray, hints: Hints) -> str:
    if array.dtype.kind in "US" and array.ndim == 0:
        return str(array)
    decode = hints.get("decode")
    if decode is None or array.dtype.kind not in "iu":
        raise BadArgument(
            found=f"{_summary(array)} cannot be shown as text.",
            why="Only strings, or whole numbers with a way to decode them, are words.",
            remedy='Pass display={"kind": "text", "decode": tokenizer.decode}.',
        )
    return str(decode(array.ravel().tolist()))


def _cells(array: np.ndarray, names: Sequence[str] | None) -> list[list[Any]]:
    values = [_cell(value) for value in array.ravel().tolist()]
    if names is not None and len(names) != len(values):
        raise BadArgument(
            found=f"{len(names)} feature names for {len(values)} values.",
            why="Each value of a row stands beside its name.",
            remedy="Give one name per feature, in the order of the columns.",
        )
    if names is None:
        names = [str(i) for i in range(len(values))] if array.ndim else ["value"]
    return [[str(name), value] for name, value in zip(names, values, strict=True)]


def _cell(value: Any) -> float | int | str | None:
    """A value that JSON can hold: a missing number is None, an infinite one a word."""
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None if np.isnan(value) else str(value)
    return None if value is None else str(value)


def _row(cells: list[list[Any]]) -> Display:
    """All cells when they are few; else those with the largest |value|, largest first."""
    if len(cells) <= MOST_CELLS:
        return {"kind": "row", "cells": cells}

    def size(cell: list[Any]) -> float:
        return abs(cell[1]) if isinstance(cell[1], int | float) else 0.0

    largest = sorted(cells, key=size, reverse=True)[:MOST_CELLS]
    return {"kind": "row", "cells": largest, "more": len(cells) - MOST_CELLS}


def _summary(example: object) -> str:
    if isinstance(example, str):
        return f"text of {len(example)} characters"
    if isinstance(example, Mapping):
        return "; ".join(f"{name}: {_summary(value)}" for name, value in example.items())
    if isinstance(example, tuple):
        return "; ".join(_summary(value) for value in example)
    array = _as_array(example)
    return f"{array.dtype} array of shape {tuple(array.shape)}"
