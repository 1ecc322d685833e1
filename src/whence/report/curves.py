"""Curves over one axis, drawn as SVG with bands where their error is known."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from whence.report.sentences import number
from whence.report.svg import (
    MOST_COLORS,
    SHAPES,
    Spec,
    axis,
    draw,
    legend_of,
    on_lines,
    series_colors,
)

Json = dict[str, Any]

_FEW_POINTS = 25
"""A curve of at most so many points shows each of them."""

_WIDTH, _HEIGHT = 360, 240
"""Of the plot of curves."""

_DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 4])
"""Strokes of curves: one with each colour."""


def lines(block: Mapping[str, Any]) -> Markup:
    """Curves over one axis, with bands where their error is known.

    Args:
        block: of a section.
    """
    marks = [mark for name, parts in block["series"].items() for mark in _curve(name, parts, block)]
    names = list(block["series"])
    axes = {
        "x": axis("x", on_lines(block["x"], _WIDTH)),
        "y": axis("y", on_lines(block["y"], _HEIGHT)),
    }
    data = {"values": marks}
    layers: list[Spec] = [
        layer | {"data": data, "encoding": axes | layer["encoding"]}
        for layer in _strokes(names, block)
    ]
    banded = [mark for mark in marks if "low" in mark]
    if banded:
        around = {"x": axes["x"], "y": axes["y"] | {"field": "low"}, "y2": {"field": "high"}}
        band = {"type": "area", "opacity": 0.18}
        encoding = around | {"color": layers[0]["encoding"]["color"]}
        layers.insert(0, {"data": {"values": banded}, "mark": band, "encoding": encoding})
    spec = {"width": _WIDTH, "height": _HEIGHT, "layer": layers}
    return draw(spec, _lines_words(block), "lines")


def _curve(name: str, parts: Mapping[str, Sequence[Any]], block: Mapping[str, Any]) -> list[Json]:
    """The points of one curve that are numbers."""
    errors = parts.get("error") or [None] * len(parts["x"])
    marks: list[Json] = []
    for x, y, error in zip(parts["x"], parts["y"], errors, strict=False):
        if x is None or y is None:
            continue
        within = "" if error is None else f" ± {number(error)}"
        place = f"{name}: {block['y']} {number(y)}{within} at {block['x']} {number(x)}"
        band = {} if error is None else {"low": y - error, "high": y + error}
        marks.append({"series": name, "x": x, "y": y, "words": place} | band)
    return marks


def _strokes(names: list[str], block: Mapping[str, Any]) -> list[Spec]:
    """The curves, told apart by shapes where their points are few, and by dashes where not.

    Points that are not seen are still found by pointer and keyboard.
    """
    most = max((len(parts["x"]) for parts in block["series"].values()), default=0)
    are_seen = most <= _FEW_POINTS
    symbol = 70 if are_seen else 500
    color = _key(names, series_colors(len(names)), symbol=symbol)
    line: Spec = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"color": color}}
    words: Spec = {"description": {"field": "words"}}
    if not are_seen:
        dashes = [_DASHES[i % len(_DASHES)] for i in range(len(names))]
        line["encoding"]["strokeDash"] = _key(names, dashes, symbol=symbol)
        hidden = {"opacity": 0, "size": 30, "color": "var(--ink)"}
        return [line, {"mark": {"type": "point", "filled": True} | hidden, "encoding": words}]
    seen = {"type": "point", "filled": True, "opacity": 1, "size": 40}
    shapes = [SHAPES[i % MOST_COLORS] for i in range(len(names))]
    shape = _key(names, shapes, symbol=symbol)
    return [line, {"mark": seen, "encoding": words | {"color": color, "shape": shape}}]


def _key(names: list[str], values: Sequence[Any], *, symbol: int = 70) -> Spec:
    """What tells curves apart: a colour, dash or shape for each name, and one legend for all."""
    scale = {"domain": names, "range": list(values)}
    legend = legend_of(names) | {"symbolSize": symbol} if len(names) > 1 else None
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def _lines_words(block: Mapping[str, Any]) -> str:
    told: list[str] = []
    for name, parts in block["series"].items():
        places = [
            (x, y)
            for x, y in zip(parts["x"], parts["y"], strict=False)
            if x is not None and y is not None
        ]
        if places:
            (start, first), (end, last) = places[0], places[-1]
            told.append(
                f"{name} from {number(first)} at {number(start)} to {number(last)} at {number(end)}"
            )
    return f"Curves of {block['y']} over {block['x']}: {'; '.join(told) or 'none'}."
