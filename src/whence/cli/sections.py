"""A section on the terminal: its sentence, tables, and charts of letters and blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from whence.cli.tables import excerpt, plain_table, warning_line
from whence.report.blocks import (
    MOST_BARS,
    MOST_PICTURES,
    Grid,
    grid,
    groups_of,
    has_content,
    left_out,
)
from whence.report.highlights import MOST_TOKENS, highlights
from whence.report.sentences import number
from whence.report.texts import for_terminal

Json = Mapping[str, Any]

WIDTH, HEIGHT = 48, 12
"""Characters of a scatter."""

BAR = 30
"""Characters of the longest bar, or of all bars to both sides."""

LONGEST_WORD = 16
"""A longer word of a text may be broken, to make room for other columns."""

FEW = 9
"""Points of a curve whose numbers are told."""

MARKS = "ox+*#%"
"""Letters of the groups of a scatter; a further group has the last."""


def draw_section(section: Json) -> Iterator[RenderableType]:
    """What a use has found, from top to bottom.

    Args:
        section: from `Section.to_json`; its texts may hold anything.
    """
    section = for_terminal(section)
    yield Text(section["title"], style="bold")
    yield section["sentence"]
    for warning in dict.fromkeys(section["warnings"]):
        yield warning_line(warning)
    for block in section["blocks"]:
        yield ""
        yield from draw_block(block)


def draw_block(block: Json) -> Iterator[RenderableType]:
    """One block, with its caption above.

    Args:
        block: of a section, its texts made safe.
    """
    if block["caption"]:
        yield Text(block["caption"], style="italic")
    if not has_content(block):
        yield "Nothing to show here."
        return
    yield from _DRAWN[block["kind"]](block)


@dataclass(frozen=True)
class Cells:
    """A table that is drawn as one where it fits the terminal, else row by row.

    Args:
        grid: names and texts.
    """

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich, which knows how wide the terminal is."""
        del console
        for padding in (1, 0):
            room = options.max_width - (2 + padding) * (len(self.grid.columns) - 1)
            widths = self._widths(room)
            if sum(widths) <= room:
                yield self._table(widths, padding)
                return
        yield self._records()

    def _widths(self, room: int) -> list[int]:
        """Of the columns: what each needs, and more where lines would break, as far as it goes."""
        columns = range(len(self.grid.columns))
        widths = [self._least(i) for i in columns]
        wanted = [max(map(cell_len, self._texts(i))) for i in columns]
        for _ in range(room - sum(widths)):
            tightest = max(columns, key=lambda i: wanted[i] / widths[i])
            if wanted[tightest] <= widths[tightest]:
                break
            widths[tightest] += 1
        return widths

    def _texts(self, column: int) -> list[str]:
        return [self.grid.columns[column], *(row[column] for row in self.grid.rows)]

    def _least(self, column: int) -> int:
        """The width at which no number, and no word that is not very long, is broken."""
        title, *cells = self._texts(column)
        if self.grid.is_number[column]:
            return max(1, _longest_word([title]), *map(cell_len, cells))
        return max(1, min(LONGEST_WORD, _longest_word([title, *cells])))

    def _table(self, widths: list[int], padding: int) -> Table:
        table = plain_table(*self.grid.columns)
        table.padding = (0, 1, 0, padding)
        for i, column in enumerate(table.columns):
            column.width, column.overflow = widths[i], "fold"
            column.justify = "right" if self.grid.is_number[i] else "left"
        for row in self.grid.rows:
            table.add_row(*row)
        return table

    def _records(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for row in self.grid.rows:
            for i, (name, text) in enumerate(zip(self.grid.columns, row, strict=True)):
                table.add_row("-" if i == 0 else "", Text(name, "bold"), text)
        return table


def _longest_word(texts: Sequence[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split(" ")), default=0)


def _draw_table(block: Json) -> Iterator[RenderableType]:
    cells = grid(block)
    yield Cells(cells)
    yield from _rest(cells.left_out, "row")


def _draw_bars(block: Json) -> Iterator[RenderableType]:
    values = [(name, value or 0.0, value) for name, value in block["values"][:MOST_BARS]]
    low = min(0.0, *(size for _, size, _ in values))
    high = max(0.0, *(size for _, size, _ in values))
    scale = BAR / ((high - low) or 1.0)
    zero = round(-low * scale)
    yield Text(block["title"])
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=28)
    table.add_column(min_width=BAR)
    table.add_column(justify="right", no_wrap=True)
    for name, size, value in values:
        length = round(abs(size) * scale)
        bar = " " * (zero if size >= 0 else zero - length) + "█" * length
        table.add_row(name, Text(bar), "no number" if value is None else number(value))
    yield table
    yield from _rest(len(block["values"]) - len(values), "bar")


def _draw_scatter(block: Json) -> Iterator[RenderableType]:
    points = block["points"]
    across, upwards = _ranges(points, is_common=bool(block["is_identity"]))
    field = [[" "] * WIDTH for _ in range(HEIGHT)]
    if block["is_identity"]:
        for column in range(WIDTH):
            field[HEIGHT - 1 - column * HEIGHT // WIDTH][column] = "."
    groups = groups_of(points)
    letters = {group: MARKS[min(i, len(MARKS) - 1)] for i, group in enumerate(groups)}
    for point in points:
        column, row = _place(point["x"], across, WIDTH), _place(point["y"], upwards, HEIGHT)
        field[HEIGHT - 1 - row][column] = letters.get(str(point.get("group")), MARKS[0])
    yield Text(block["y"])
    yield _framed(field, upwards)
    yield Text(_axis_words(block["x"], across))
    key = [f"{letter} {group}" for group, letter in letters.items()]
    if block["is_identity"]:
        key.append(". where both are equal")
    if key:
        yield Text("   ".join(key))


def _framed(field: list[list[str]], ends: tuple[float, float]) -> Text:
    """The plot with the two ends of its vertical axis."""
    labels = [number(ends[1]), *[""] * (HEIGHT - 2), number(ends[0])]
    margin = max(map(len, labels))
    rows = [f"{label:>{margin}} |{''.join(row)}" for label, row in zip(labels, field, strict=True)]
    return Text("\n".join([*rows, f"{'':>{margin}} +{'-' * WIDTH}"]), no_wrap=True)


def _axis_words(title: str, ends: tuple[float, float]) -> str:
    return f"from left to right: {title}, {number(ends[0])} to {number(ends[1])}"


def _ranges(
    points: list[Json], *, is_common: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of the horizontal and of the vertical axis."""
    (left, right), (low, high) = (
        (min(point[name] for point in points), max(point[name] for point in points))
        for name in "xy"
    )
    if is_common:
        left = low = min(left, low)
        right = high = max(right, high)
    return (left, right), (low, high)


def _place(value: float, ends: tuple[float, float], cells: int) -> int:
    low, high = ends
    share = (value - low) / (high - low) if high > low else 0.5
    return min(cells - 1, int(share * cells))


def _draw_lines(block: Json) -> Iterator[RenderableType]:
    """The numbers of each curve at a few of its places."""
    curves = {name: _points(parts) for name, parts in block["series"].items()}
    curves = {name: points for name, points in curves.items() if points}
    places = [[x for x, _ in points] for points in curves.values()]
    if all(own == places[0] for own in places):
        yield Text(block["y"])
        rows = [
            [number(places[0][i]), *(points[i][1] for points in curves.values())]
            for i in _spread(len(places[0]))
        ]
        yield Cells(Grid([block["x"], *curves], [True] * (len(curves) + 1), rows, 0))
    else:
        rows = [
            [name, number(points[i][0]), points[i][1]]
            for name, points in curves.items()
            for i in _spread(len(points))
        ]
        yield Cells(Grid(["curve", block["x"], block["y"]], [False, True, True], rows, 0))


def _points(parts: Json) -> list[tuple[float, str]]:
    """Where a curve has numbers, and what they are, with their error."""
    errors = parts.get("error") or [None] * len(parts["x"])
    return [
        (x, number(y) if error is None else f"{number(y)} ± {number(error)}")
        for x, y, error in zip(parts["x"], parts["y"], errors, strict=False)
        if x is not None and y is not None
    ]


def _spread(count: int) -> list[int]:
    """At most `FEW` positions, the first and the last among them."""
    if count <= FEW:
        return list(range(count))
    return [round(i * (count - 1) / (FEW - 1)) for i in range(FEW)]


def _draw_gallery(block: Json) -> Iterator[RenderableType]:
    """What the pictures are; of texts and rows also how they begin."""
    shown = block["pictures"][:MOST_PICTURES]
    excerpts = [excerpt(picture["display"]) for picture in shown]
    table = Table.grid(padding=(0, 2))
    longest = max(cell_len(picture["words"]) for picture in shown)
    table.add_column(min_width=min(longest, LONGEST_WORD))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for picture, words in zip(shown, excerpts, strict=True):
        table.add_row(picture["words"], words)
    yield table
    yield from _rest(len(block["pictures"]) - len(shown), "picture")
    if any(picture["display"]["kind"] in ("image", "audio") for picture in shown):
        yield Text("The pictures themselves are in the report: --out FOLDER.", style="dim")


_STYLES = {"helps": "bold blue", "hurts": "bold underline dark_orange3"}
"""Of tokens with large effects."""


def _draw_tokens(block: Json) -> Iterator[RenderableType]:
    """The text, with tokens of large effects in the colours of proponents and opponents."""
    text = Text()
    for token in highlights(block):
        text.append(token.text, _STYLES.get(token.side, "") if token.level > 1 else "")
    yield text
    yield from _rest(max(0, len(block["pieces"]) - MOST_TOKENS), "token")
    yield Text.assemble(
        ("bold", _STYLES["helps"]),
        f": {block['helps']}   ",
        ("underlined", _STYLES["hurts"]),
        f": {block['hurts']}",
    )


def _rest(amount: int, noun: str) -> Iterator[RenderableType]:
    if amount:
        yield left_out(amount, noun)


_DRAWN = {
    "table": _draw_table,
    "bars": _draw_bars,
    "scatter": _draw_scatter,
    "lines": _draw_lines,
    "gallery": _draw_gallery,
    "tokens": _draw_tokens,
}
