"""Charts of scores: predicted against actual effects, and how the effects are spread."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from whence.report.blocks import MOST_POINTS, plane, shown_of
from whence.report.sentences import count, measurement_words, number, quantity
from whence.report.svg import draw, thinned

Json = dict[str, Any]

_SIDES = {
    "proponent": "var(--proponent)",
    "neither": "var(--ink-faint)",
    "opponent": "var(--opponent)",
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
    whole = [p for p in verification["points"] if None not in (p["predicted"], p["actual"])]
    points = thinned(whole, MOST_POINTS)
    marks = [
        {
            "x": point["predicted"],
            "y": point["actual"],
            "group": f"query {point['query']}",
            "words": _point_words(point, verification["kind"], measurement["unit"]),
        }
        for point in points
    ]
    groups = list(dict.fromkeys(mark["group"] for mark in marks))
    is_calibrated = measurement["is_calibrated"]
    spec = plane(marks, _titles(measurement), groups=groups, is_identity=is_calibrated)
    return draw(spec, _scatter_words(verification, len(points)), "scatter")


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
    return draw(spec, words, "distribution")


def pairs(verification: Mapping[str, Any]) -> int:
    """How many pairs of predicted and actual effects there are, told or not."""
    return verification.get("points_total") or len(verification["points"])


def scatter_note(verification: Mapping[str, Any]) -> str:
    """What of the pairs is not drawn; nothing where all are."""
    drawn, total = len(thinned(verification["points"], MOST_POINTS)), pairs(verification)
    return "" if drawn >= total else f"Drawn: {shown_of(drawn, total)}, a sample."


# ------------------------------------------------------------------- parts of the scatter


def _titles(measurement: Mapping[str, Any]) -> tuple[str, str]:
    """Of the axes; scores in arbitrary units are compared with numbers of another unit."""
    if measurement["is_calibrated"]:
        unit = measurement["unit"]
        return f"predicted effect ({unit})", f"effect after retraining ({unit})"
    words = f"change of the {measurement_words(measurement['name'])}"
    return "predicted effect (arbitrary units)", f"effect after retraining ({words})"


def _point_words(point: Json, kind: str, unit: str) -> str:
    without = f"example {point['example']}" if kind != "subsets" else f"subset {point['example']}"
    return (
        f"query {point['query']} without {without}: predicted {number(point['predicted'])}, "
        f"actual {number(point['actual'])} {unit}"
    )


def _scatter_words(verification: Mapping[str, Any], drawn: int) -> str:
    shown = shown_of(drawn, pairs(verification))
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
