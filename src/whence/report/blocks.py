"""The blocks of a section for readers: charts as SVG, tables as texts.

A block comes as plain JSON, from `to_json` of the classes in `whence.sections`. What is too much
for a reader is left out and counted; the JSON keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from whence.report.curves import lines
from whence.report.sentences import count, number
from whence.report.svg import (
    MOST_COLORS,
    SHAPES,
    Spec,
    axis,
    draw,
    legend_of,
    on_lines,
    series_colors,
    thinned,
)

Json = dict[str, Any]

MOST_ROWS = 200
"""Rows of a table that are shown."""

MOST_PICTURES = 120
"""Pictures of a gallery that are shown."""

MOST_BARS = 60
"""Bars that are drawn."""

MOST_POINTS = 1500
"""A scatter of more points is thinned evenly: nobody can tell more apart."""

_NAMES = ("query", "example", "training example")
"""Columns whose whole numbers are ids, not amounts: 1437 and not 1,437."""


# -------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Grid:
    """A table as texts.

    Args:
        columns: their names.
        is_number: of each column, whether all its cells are numbers.
        rows: as many texts each.
        left_out: rows that are not shown.
    """

    columns: list[str]
    is_number: list[bool]
    rows: list[list[str]]
    left_out: int


def grid(table: Mapping[str, Any]) -> Grid:
    """A table as people read it: numbers in words of three digits, the first `MOST_ROWS` rows.

    Args:
        table: block of a section.
    """
    columns, rows = table["columns"], table["rows"]
    is_id = [name in _NAMES for name in columns]
    kinds = [
        not is_id[i] and all(_is_number(row[i]) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    texts = [
        [_text(cell, is_id=named) for cell, named in zip(row, is_id, strict=True)]
        for row in rows[:MOST_ROWS]
    ]
    return Grid(list(columns), kinds, texts, max(0, len(rows) - MOST_ROWS))


def left_out(amount: int, noun: str) -> str:
    """'3 more rows are not shown.', or nothing where all are."""
    if amount == 0:
        return ""
    return f"{count(amount, 'more ' + noun)} {'is' if amount == 1 else 'are'} not shown."


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _text(cell: Any, *, is_id: bool) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    is_amount = isinstance(cell, float) or (isinstance(cell, int) and not is_id)
    return number(cell) if is_amount else str(cell)


# ------------------------------------------------------------------------------- scatter


def scatter(block: Mapping[str, Any]) -> Markup:
    """Points in a plane, with the line y = x where both axes have one unit.

    Args:
        block: of a section.
    """
    points = thinned(block["points"], MOST_POINTS)
    marks = [
        {"x": p["x"], "y": p["y"], "words": _point_words(p, block)}
        | ({"group": str(p["group"])} if p.get("group") is not None else {})
        for p in points
    ]
    groups = groups_of(block["points"])
    shown = shown_of(len(points), len(block["points"]))
    named = f" in the groups {', '.join(groups)}" if len(groups) > 1 else ""
    words = f"Scatter plot of {block['y']} against {block['x']}: {shown}{named}{_span(marks)}."
    axes = (block["x"], block["y"])
    spec = plane(marks, axes, groups=groups, is_identity=bool(block["is_identity"]))
    return draw(spec, words, "scatter")


def plane(
    marks: list[Json], titles: tuple[str, str], *, groups: list[str], is_identity: bool
) -> Spec:
    """The specification of a scatter.

    Args:
        marks: with "x", "y", "words" and possibly "group".
        titles: of the horizontal and of the vertical axis.
        groups: in the order of their colours.
        is_identity: whether y = x is drawn, and both axes run over one range.
    """
    domain = _common_domain(marks) if is_identity else None
    layers = [_points(marks, groups)]
    if domain is not None:
        layers.insert(0, _identity(domain))
    side = 330
    axes = {
        name: axis(name, on_lines(title, side), domain)
        for name, title in zip("xy", titles, strict=True)
    }
    layers = [layer | {"encoding": axes | layer["encoding"]} for layer in layers]
    return {"width": side, "height": side, "layer": layers}


def groups_of(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The groups of some points in alphabetical order, so that charts side by side agree."""
    return sorted({str(p["group"]) for p in points if p.get("group") is not None})


def shown_of(drawn: int, total: int) -> str:
    """'12 points', or '1,000 of 2,000 points' where some are left out."""
    return count(drawn, "point") if drawn == total else f"{number(drawn)} of {number(total)} points"


def _points(marks: list[Json], groups: list[str]) -> Spec:
    encoding: Spec = {"description": {"field": "words"}}
    mark: Spec = {"type": "point", "filled": True, "size": 46, "opacity": 0.75}
    if 1 < len(groups) <= MOST_COLORS:
        key = {"field": "group", "type": "nominal", "legend": legend_of(groups)}
        colors, shapes = series_colors(len(groups)), list(SHAPES[: len(groups)])
        encoding["color"] = key | {"scale": {"domain": groups, "range": colors}}
        encoding["shape"] = key | {"scale": {"domain": groups, "range": shapes}}
    else:
        mark["color"] = "var(--series-1)"
    return {"data": {"values": marks}, "mark": mark, "encoding": encoding}


def _identity(domain: list[float]) -> Spec:
    ends = [{"x": end, "y": end} for end in domain]
    dashes = {"type": "line", "color": "var(--ink-faint)", "strokeDash": [5, 4], "strokeWidth": 1.5}
    return {"data": {"values": ends}, "mark": dashes, "encoding": {}}


def _common_domain(marks: list[Json]) -> list[float]:
    """One range for both axes, so that the line of agreement runs from corner to corner."""
    values = [mark[name] for mark in marks for name in ("x", "y")]
    low, high = min(values, default=0.0), max(values, default=0.0)
    margin = 0.05 * (high - low) or 1.0
    return [low - margin, high + margin]


def _point_words(point: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    named = [str(point[name]) for name in ("words", "group") if point.get(name) is not None]
    place = f"{block['x']} {number(point['x'])}, {block['y']} {number(point['y'])}"
    return f"{', '.join(named)}: {place}" if named else place


def _span(marks: Sequence[Mapping[str, Any]]) -> str:
    if not marks:
        return ""
    (left, right), (low, high) = (
        (min(mark[name] for mark in marks), max(mark[name] for mark in marks)) for name in "xy"
    )
    return (
        f", from {number(left)} to {number(right)} across and from {number(low)} to "
        f"{number(high)} upwards"
    )


# ---------------------------------------------------------------------------------- bars


def bars(block: Mapping[str, Any]) -> Markup:
    """A bar for each name, to the right where its number is positive, with the number beside it.

    Args:
        block: of a section.
    """
    values = [(str(name), value) for name, value in block["values"]][:MOST_BARS]
    marks = [
        {"row": row, "name": name, "value": value or 0, "text": _bar_text(value)}
        | {"words": f"{name}: {_bar_text(value)}"}
        for row, (name, value) in enumerate(values)
    ]
    row = {"field": "row", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.3}}
    across = axis("value", on_lines(block["title"], 350)) | {"scale": {"zero": True}}
    named: Spec = {"type": "text", "limit": 180, "fontSize": 12, "baseline": "middle"}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "color": "var(--bar)"}, "encoding": _bar(across)},
        {
            "mark": named | {"align": "right", "color": "var(--ink)"},
            "encoding": {"x": {"value": -8}, "text": {"field": "name"}},
        },
        {
            "mark": named | {"align": "left", "color": "var(--ink-soft)"},
            "encoding": {"x": {"value": 183}, "text": {"field": "text"}},
        },
        {
            "mark": {"type": "rule", "color": "var(--ink-faint)"},
            "encoding": {"x": {"datum": 0, "type": "quantitative"}},
        },
    ]
    spec = {
        "width": 175,
        "height": {"step": 24},
        "data": {"values": marks},
        "encoding": {"y": row},
        "layer": layers,
    }
    return draw(spec, _bars_words(block, len(values)), "bars", least=440)


def _bar(across: Spec) -> Spec:
    return {"x": across, "description": {"field": "words"}}


def _bar_text(value: float | None) -> str:
    return "no number" if value is None else number(value)


def _bars_words(block: Mapping[str, Any], drawn: int) -> str:
    told = ", ".join(f"{name} {_bar_text(value)}" for name, value in block["values"][:drawn])
    rest = left_out(len(block["values"]) - drawn, "bar")
    return f"Bars of {block['title']}: {told}. {rest}".strip()


CHARTS = {"scatter": scatter, "lines": lines, "bars": bars}
"""Blocks that are drawn, by kind."""


def chart(block: Mapping[str, Any]) -> Markup | None:
    """The chart of a block; None where there is nothing to draw.

    Args:
        block: of a section; no table, gallery or text.
    """
    return CHARTS[block["kind"]](block) if has_content(block) else None


def chart_note(block: Mapping[str, Any]) -> str:
    """What of a block is not drawn; nothing where all is."""
    if block["kind"] == "bars":
        return left_out(max(0, len(block["values"]) - MOST_BARS), "bar")
    if block["kind"] == "scatter":
        drawn, total = len(thinned(block["points"], MOST_POINTS)), len(block["points"])
        return "" if drawn == total else f"Drawn: {shown_of(drawn, total)}."
    return ""


def has_content(block: Mapping[str, Any]) -> bool:
    """Whether a block has anything to show."""
    if block["kind"] == "lines":
        return any(
            x is not None and y is not None
            for parts in block["series"].values()
            for x, y in zip(parts["x"], parts["y"], strict=False)
        )
    parts = {
        "table": "rows",
        "scatter": "points",
        "bars": "values",
        "gallery": "pictures",
        "tokens": "pieces",
    }
    return bool(block[parts[block["kind"]]])
