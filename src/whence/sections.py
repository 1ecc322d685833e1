"""What a use of whence has to say, as plain data that the terminal, JSON and the report all draw.

A `Section` has a title, a sentence and blocks: tables, charts, pictures and texts. Nothing here
knows how a block is drawn, and nothing that draws knows where its numbers came from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Args:
        columns: names, with their unit in brackets.
        rows: as many cells each; numbers stay numbers, None is an empty cell.
        caption: what the table shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def to_json(self) -> Json:
        """The table as plain JSON."""
        rows = [[_plain(cell) for cell in row] for row in self.rows]
        return {
            "kind": "table",
            "columns": list(self.columns),
            "rows": rows,
            "caption": self.caption,
        }


@dataclass(frozen=True)
class Scatter:
    """Points in a plane.

    Args:
        points: dicts with "x" and "y", and, where they exist, "group" (gives colour and shape) and
            "words" (for readers of the screen).
        x: title of the axis, with its unit.
        y: the same for the other one.
        caption: what the chart shows.
        is_identity: whether both axes have one unit and the line y = x is drawn.
    """

    points: Sequence[Mapping[str, Any]]
    x: str
    y: str
    caption: str = ""
    is_identity: bool = False

    def to_json(self) -> Json:
        """The chart as plain JSON; points that are not numbers are left out."""
        points = [{name: _plain(value) for name, value in point.items()} for point in self.points]
        return {
            "kind": "scatter",
            "points": [p for p in points if p["x"] is not None and p["y"] is not None],
            "x": self.x,
            "y": self.y,
            "caption": self.caption,
            "is_identity": self.is_identity,
        }


@dataclass(frozen=True)
class Lines:
    """Curves over one axis.

    Args:
        series: by name the "x" and "y" of its points, and "error" (half the height of a band)
            where it is known.
        x: title of the axis, with its unit.
        y: the same for the other one.
        caption: what the chart shows.
    """

    series: Mapping[str, Mapping[str, Sequence[float]]]
    x: str
    y: str
    caption: str = ""

    def to_json(self) -> Json:
        """The chart as plain JSON."""
        series = {
            name: {part: [_plain(value) for value in values] for part, values in parts.items()}
            for name, parts in self.series.items()
        }
        return {
            "kind": "lines",
            "series": series,
            "x": self.x,
            "y": self.y,
            "caption": self.caption,
        }


@dataclass(frozen=True)
class Bars:
    """One number a name, positive or negative.

    Args:
        values: names with their numbers, in the order of the chart.
        title: of the axis of the numbers, with its unit.
        caption: what the chart shows.
    """

    values: Sequence[tuple[str, float]]
    title: str
    caption: str = ""

    def to_json(self) -> Json:
        """The chart as plain JSON."""
        values = [[name, _plain(value)] for name, value in self.values]
        return {"kind": "bars", "values": values, "title": self.title, "caption": self.caption}


@dataclass(frozen=True)
class Gallery:
    """Examples beside each other: pictures, texts or rows.

    Args:
        pictures: displays (`whence.core.display.describe`), each with the words below it.
        caption: what the gallery shows.
    """

    pictures: Sequence[tuple[Mapping[str, Any], str]]
    caption: str = ""

    def to_json(self) -> Json:
        """The gallery as plain JSON."""
        pictures = [{"display": dict(display), "words": words} for display, words in self.pictures]
        return {"kind": "gallery", "pictures": pictures, "caption": self.caption}


@dataclass(frozen=True)
class Tokens:
    """A text in pieces, each with its effect: helpful and harmful ones stand out.

    Args:
        pieces: texts with their effects, in reading order.
        unit: of the effects.
        helps: what it means that a piece helps, in words.
        hurts: the same for one that hurts.
        sign: of an effect that helps: -1 where more of the measurement is better.
        caption: what the text is.
    """

    pieces: Sequence[tuple[str, float]]
    unit: str
    helps: str
    hurts: str
    sign: int
    caption: str = ""

    def to_json(self) -> Json:
        """The text as plain JSON."""
        return {
            "kind": "tokens",
            "pieces": [[text, _plain(effect)] for text, effect in self.pieces],
            "unit": self.unit,
            "helps": self.helps,
            "hurts": self.hurts,
            "sign": self.sign,
            "caption": self.caption,
        }


Block = Table | Scatter | Lines | Bars | Gallery | Tokens


@dataclass(frozen=True)
class Section:
    """What was asked, what was found, and the numbers and pictures behind it.

    >>> section = Section("remove", "Without example 3", "The margin falls by 0.2 logits.")
    >>> section.to_json()["sentence"]
    'The margin falls by 0.2 logits.'

    Args:
        kind: name of the function that found it.
        title: a heading.
        sentence: what was found, in plain words with units.
        blocks: tables, charts, galleries and texts, in reading order.
        warnings: what a reader should know.
    """

    kind: str
    title: str
    sentence: str
    blocks: Sequence[Block] = ()
    warnings: Sequence[str] = ()

    def to_json(self) -> Json:
        """The section as plain JSON: no NaN, no infinity, no types of numpy."""
        return {
            "kind": self.kind,
            "title": self.title,
            "sentence": self.sentence,
            "blocks": [block.to_json() for block in self.blocks],
            "warnings": list(self.warnings),
        }


def _plain(value: Any) -> Cell:
    """A number or text of Python; None for what is not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
