"""Charts as inline SVG: predicted against actual effects, and how the effects are spread.

Vega-Lite draws them once, when the page is written, so the page needs no library and no network.
Colours are CSS variables of the page (style.css), which makes every chart follow dark and light.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert
from markupsafe import Markup, escape

from whence.report.sentences import count, measurement_words, number, quantity

Json = dict[str, Any]
Spec = dict[str, Any]

MOST_POINTS = 1500
"""A scatter of more points is thinned evenly: nobody can tell more apart."""

MOST_COLORS = 6
"""More queries than this share one colour and have no legend."""

_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]

_SIDES = {
    "proponent": "var(--proponent)",
    "neither": "var(--ink-faint)",
    "opponent": "var(--opponent)",
}

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
        "labelLimit": 120,
        "title": None,
        "orient": "bottom",
        "columns": 3,
        "symbolSize": 70,
        "symbolOpacity": 1,
    },
}


def scatter(verification: Mapping[str, Any], measurement: Mapping[str, Any]) -> Markup:
    """Predicted against actual effects, one mark a retraining, with the line where they agree.

    Scores in arbitrary units have no such line and an axis of their own.

    Args:
        verification: block of a story.
        measurement: block of a story.

    Returns:
        An SVG that fills the width it is given.
    """
    points = _thinned(verification["points"])
    queries = list(dict.fromkeys(str(point["query"]) for point in points))
    marks = [
        {
            "predicted": point["predicted"],
            "actual": point["actual"],
            "query": f"query {point['query']}",
            "words": _point_words(point, verification["kind"], measurement["unit"]),
        }
        for point in points
    ]
    has_legend = 1 < len(queries) <= MOST_COLORS
    layers = [_points(marks, [f"query {query}" for query in queries] if has_legend else [])]
    if measurement["is_calibrated"]:
        domain = _common_domain(marks)
        layers.insert(0, _identity(domain))
        axes = _axes(measurement["unit"], measurement["unit"], domain)
    else:
        axes = _axes(
            "arbitrary units", f"change of the {measurement_words(measurement['name'])}", None
        )
    layers = [layer | {"encoding": axes | layer["encoding"]} for layer in layers]
    spec = {"width": 330, "height": 330, "layer": layers}
    return _svg(spec, _scatter_words(verification, len(points)), "scatter")


def distribution(query: Mapping[str, Any], measurement: Mapping[str, Any]) -> Markup:
    """How many training examples have which effect on one query; the counts grow tenfold upwards.

    Args:
        query: block of a story.
        measurement: block of a story.

    Returns:
        An SVG that fills the width it is given.
    """
    bars = _bars(query["distribution"], measurement)
    low, high = query["distribution"]["low"], query["distribution"]["high"]
    counts = query["distribution"]["counts"]
    reach = {"domain": [low, high], "nice": False}
    ticks = {"title": None, "grid": False, "format": ".6~g", "tickCount": 5}
    powers = {"title": None, "values": _powers_of_ten(max(counts)), "format": ",d"}
    sides = {"domain": list(_SIDES), "range": list(_SIDES.values())}
    spec = {
        "width": 300,
        "height": 80,
        "data": {"values": bars},
        "mark": {"type": "bar", "stroke": "var(--page)", "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "scale": reach, "axis": ticks},
            "x2": {"field": "to"},
            "y": {
                "field": "count",
                "type": "quantitative",
                "scale": {"type": "symlog"},
                "axis": powers,
            },
            "y2": {"datum": 0},
            "color": {"field": "side", "type": "nominal", "scale": sides, "legend": None},
            "description": {"field": "words"},
        },
    }
    words = (
        f"Histogram of the effects of {count(sum(counts), 'training example')} on query "
        f"{query['id']}, from {number(low)} to {number(high)} {measurement['unit']}; "
        f"{number(query['half_of_influence'])} of them carry half of all influence."
    )
    return _svg(spec, words, "distribution")


# ------------------------------------------------------------------- parts of the scatter


def _points(marks: list[Json], legend: list[str]) -> Spec:
    encoding: Spec = {"description": {"field": "words"}}
    mark: Spec = {"type": "point", "filled": True, "size": 46, "opacity": 0.75}
    if legend:
        colors = [f"var(--series-{i + 1})" for i in range(len(legend))]
        key = {"field": "query", "type": "nominal"}
        encoding["color"] = key | {"scale": {"domain": legend, "range": colors}}
        encoding["shape"] = key | {"scale": {"domain": legend, "range": _SHAPES[: len(legend)]}}
    else:
        mark["color"] = "var(--series-1)"
    return {"data": {"values": marks}, "mark": mark, "encoding": encoding}


def _identity(domain: list[float]) -> Spec:
    ends = [{"predicted": end, "actual": end} for end in domain]
    dashes = {"type": "line", "color": "var(--ink-faint)", "strokeDash": [5, 4], "strokeWidth": 1.5}
    return {"data": {"values": ends}, "mark": dashes, "encoding": {}}


def _axes(predicted_unit: str, actual_unit: str, domain: list[float] | None) -> Spec:
    def axis(field: str, title: str) -> Spec:
        scale = {"domain": domain, "nice": False} if domain else {"zero": False}
        shape = {"title": title, "format": ".6~g"}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": shape}

    return {
        "x": axis("predicted", f"predicted effect ({predicted_unit})"),
        "y": axis("actual", f"effect after retraining ({actual_unit})"),
    }


def _common_domain(marks: list[Json]) -> list[float]:
    """One range for both axes, so that the line of agreement runs from corner to corner."""
    values = [mark[name] for mark in marks for name in ("predicted", "actual")]
    low, high = min(values, default=0.0), max(values, default=0.0)
    margin = 0.05 * (high - low) or 1.0
    return [low - margin, high + margin]


def _thinned(points: Sequence[Json]) -> list[Json]:
    """All points that are numbers; of very many, evenly spaced ones."""
    drawn = [p for p in points if p["predicted"] is not None and p["actual"] is not None]
    step = -(-len(drawn) // MOST_POINTS) or 1
    return drawn[::step]


def _point_words(point: Json, kind: str, unit: str) -> str:
    without = (
        f"example {point['example']}" if kind == "leave-one-out" else f"set {point['example']}"
    )
    return (
        f"query {point['query']} without {without}: predicted {number(point['predicted'])}, "
        f"actual {number(point['actual'])} {unit}"
    )


def _scatter_words(verification: Mapping[str, Any], drawn: int) -> str:
    total = len(verification["points"])
    shown = (
        count(drawn, "point") if drawn == total else f"{number(drawn)} of {number(total)} points"
    )
    numbers = [
        f"{name} {number(verification[key])}"
        for key, name in (
            ("pearson", "Pearson correlation"),
            ("spearman", "Spearman correlation"),
            ("slope", "slope"),
        )
        if verification.get(key) is not None
    ]
    return f"Scatter plot of predicted against actual effects: {', '.join([shown, *numbers])}."


# ------------------------------------------------------------- parts of the distribution


def _bars(histogram: Mapping[str, Any], measurement: Mapping[str, Any]) -> list[Json]:
    low, counts = histogram["low"], histogram["counts"]
    width = (histogram["high"] - low) / len(counts)
    helps = -1 if measurement["higher_is_better"] else 1
    return [
        {
            "from": low + width * i,
            "to": low + width * (i + 1),
            "count": amount,
            "side": _side(i - len(counts) // 2, helps),
            "words": f"{count(amount, 'example')} near "
            f"{quantity(low + width * (i + 0.5), measurement['unit'])}",
        }
        for i, amount in enumerate(counts)
        if amount
    ]


def _side(offset: int, helps: int) -> str:
    if offset == 0:
        return "neither"
    return "proponent" if (offset > 0) == (helps > 0) else "opponent"


def _powers_of_ten(largest: int) -> list[int]:
    return [0, *(10**power for power in range(len(str(largest))))]


# --------------------------------------------------------------------------------- SVG


def _svg(spec: Spec, words: str, name: str) -> Markup:
    """An SVG for the inside of a page: named, without fixed size, coordinates short."""
    drawn = vl_convert.vegalite_to_svg({"config": _CONFIG, **spec}, allowed_base_urls=[])
    head, _, body = drawn.partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    body = re.sub(r'(?: d|transform)="[^"]+"', lambda place: _shortened(place[0]), body)
    start = f'<svg class="chart {name}" viewBox="{box}" role="img" aria-label="{escape(words)}">'
    return Markup(start + body)  # vl-convert has escaped every text


def _shortened(coordinates: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", coordinates)
