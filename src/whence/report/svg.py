"""Vega-Lite drawn to inline SVG, for the inside of a page.

A chart is drawn once, when the page is written, so the page needs no library and no network.
Colours are CSS variables of the page (style.css), which makes every chart follow dark and light.
"""

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import vl_convert
from markupsafe import Markup, escape

Spec = dict[str, Any]

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Marks of groups: a shape with each colour, because colours are not for everybody."""

MOST_COLORS = len(SHAPES)
"""More groups than this share one colour and have no legend."""

_LETTER = 7.5
"""Width of a letter of a title; fonts differ, and a title that is too long is cut."""

_CONFIG: Spec = {
    "background": "transparent",
    "font": "inherit",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink-soft)",
        "labelFontSize": 12,
        "titleColor": "var(--ink)",
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "var(--line)",
        "domain": False,
        "tickColor": "var(--line)",
        "tickCount": 5,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "labelLimit": 330,
        "title": None,
        "orient": "bottom",
        "symbolSize": 70,
        "symbolOpacity": 1,
    },
}


def draw(spec: Spec, words: str, name: str, *, least: float = 0) -> Markup:
    """An SVG that fills the width it is given: named, without fixed size, coordinates short.

    Args:
        spec: of Vega-Lite, without config.
        words: what a reader of the screen hears.
        name: class of the chart, for the style of the page.
        least: width that the drawing has at least, so that charts of one kind have one scale.
    """
    drawn = vl_convert.vegalite_to_svg({"config": _CONFIG, **spec}, allowed_base_urls=[])
    head, _, body = drawn.partition(">")
    left, top, width, height = head.partition('viewBox="')[2].partition('"')[0].split(" ")
    more = max(0.0, least - float(width))
    box = f"{float(left) - more:g} {top} {float(width) + more:g} {height}"
    body = re.sub(r'(?: d|transform)="[^"]+"', lambda place: _shortened(place[0]), body)
    start = f'<svg class="chart {name}" viewBox="{box}" role="img" aria-label="{escape(words)}">'
    return Markup(start + body)  # vl-convert has escaped every text


def on_lines(title: str, width: int) -> list[str]:
    """The title of an axis of this length, on as many lines as it takes."""
    return wrap(title, int(width / _LETTER)) or [""]


def axis(field: str, title: list[str], domain: list[float] | None = None) -> Spec:
    """An axis of numbers.

    Args:
        field: of the marks.
        title: on as many lines as it takes.
        domain: its two ends; by default those of the numbers.
    """
    scale = {"domain": domain, "nice": False} if domain else {"zero": False}
    shape = {"title": title, "format": ".6~g"}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": shape}


def legend_of(names: Sequence[str]) -> Spec:
    """A legend with as many names beside each other as there is room for."""
    longest = max(map(len, names), default=0)
    return {"columns": 3 if longest <= 12 else 2 if longest <= 22 else 1}


def series_colors(count: int) -> list[str]:
    """As many colours of the page, from the first on and round again."""
    return [f"var(--series-{i % MOST_COLORS + 1})" for i in range(count)]


def thinned(points: Sequence[Any], most: int) -> Sequence[Any]:
    """The points, or of more than `most` evenly spaced ones."""
    step = -(-len(points) // most) or 1
    return points[::step]


def _shortened(coordinates: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", coordinates)
