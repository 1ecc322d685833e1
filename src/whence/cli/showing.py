"""Queries and training examples on the terminal: pictures of half blocks, effects as bars."""

from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from whence.cli.tables import STYLES, excerpt, meaning, plain_table
from whence.report.sentences import signed, sound_words

Json = Mapping[str, Any]

LARGE, SMALL, WIDE = 28, 16, 60
"""Pixels of the longest side of a query, of a training example, and of a spectrogram; two of them
share a cell."""

BAR = 16
"""Cells of the longest bar."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HALVES = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}

Pixel = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A picture of half blocks: in colour, or light and dark where a terminal has no colours.

    Args:
        image: RGB, of an even height.
    """

    image: Image.Image

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line for every two rows of pixels."""
        del options
        has_colors = console.color_system is not None and not console.no_color
        for y in range(0, self.image.height, 2):
            for x in range(self.image.width):
                upper, lower = self._pixel(x, y), self._pixel(x, y + 1)
                if has_colors:
                    yield Segment("▀", Style(color=f"rgb{upper}", bgcolor=f"rgb{lower}"))
                else:
                    yield Segment(_HALVES[_is_light(upper), _is_light(lower)])
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Any:
        """As wide as it has pixels."""
        from rich.measure import Measurement

        del console, options
        return Measurement(self.image.width, self.image.width)

    def _pixel(self, x: int, y: int) -> Pixel:
        found: Any = self.image.getpixel((x, y))
        return tuple(found)


def queries(story: Json) -> Iterator[RenderableType]:
    """Every query with what helps and hurts it, and what the numbers mean."""
    for query in story["queries"]:
        yield Text(f"Query {query['id']}: {query['sentence']}", style="bold")
        yield from _looks(query["display"])
        yield effects(query, story["measurement"])
        yield ""
    yield from meaning(story)


def effects(query: Json, measurement: Json) -> Table:
    """Proponents and opponents of one query, with pictures or words, and bars."""
    entries = [(side, entry) for side in STYLES for entry in query[f"{side}s"]]
    largest = max((abs(entry["effect"]) for _, entry in entries), default=0) or 1.0
    table = plain_table("", "example", "label", f"effect ({measurement['unit']})", "", "")
    table.columns[3].justify, table.columns[3].no_wrap = "right", True
    table.columns[4].no_wrap = True
    for side, entry in entries:
        table.add_row(
            Text(side, STYLES[side]),
            str(entry["id"]),
            entry["label"] or "",
            signed(entry["effect"]),
            Text(bar(entry["effect"] / largest), STYLES[side]),
            excerpt(entry["display"]) or thumbnail(entry["display"], SMALL) or "",
        )
    return table


def thumbnail(display: Json, side: int) -> Picture | None:
    """A picture or spectrogram that fits a square; None for what has none.

    Args:
        display: of an example.
        side: pixels of the square.
    """
    if "png" not in display:
        return None
    image = Image.open(BytesIO(b64decode(display["png"]))).convert("RGB")
    image.thumbnail((side, side))
    even = Image.new("RGB", (image.width, image.height + image.height % 2))
    even.paste(image)
    return Picture(even)


def bar(share: float) -> str:
    """A bar of this share of the longest one, to an eighth of a cell.

    >>> bar(0.5)
    '████████'
    """
    eighths = round(8 * BAR * min(abs(share), 1.0))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _is_light(pixel: Pixel) -> int:
    return int(sum(pixel) > 3 * 96)


def _looks(display: Json) -> Iterator[RenderableType]:
    """A picture or words; of a sound both."""
    is_sound = display["kind"] == "audio"
    picture = thumbnail(display, WIDE if is_sound else LARGE)
    if picture is not None:
        yield picture
    if picture is None or is_sound:
        yield Text(_words(display))


def _words(display: Json) -> str:
    """A text or row, longer than in a table; what is to know of a sound."""
    if display["kind"] == "audio":
        return f"Sound: {sound_words(display)}"
    return display["text"] if display["kind"] == "text" else excerpt(display)
