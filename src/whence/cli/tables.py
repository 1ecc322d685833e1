"""A story on the terminal: the same numbers and sentences as on the page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from whence.report.sentences import (
    capitalized,
    duration,
    measurement_words,
    number,
    percent,
    signed,
)

Json = Mapping[str, Any]

LONGEST_EXCERPT = 48
"""Characters of a text or a row that stand beside its effect."""

STYLES = {"proponent": "green", "opponent": "red"}
"""The side is always written out as well: colours are not for everybody."""


VERIFIED = {
    "examples": "removals trained again",
    "left_out": "each without",
    "seeds": "seeds",
    "lds": "linear datamodeling score",
    "lds_interval": "  95 % interval",
    "pearson": "correlation",
    "interval": "  95 % interval",
    "spearman": "rank correlation",
    "slope": "slope",
    "noise_ceiling": "noise ceiling",
    "reliability": "agreement with other seeds",
}
"""Entries of a verification that are shown, and what they are called."""


def explanation(story: Json) -> Iterator[RenderableType]:
    """Every query with its proponents and opponents, and what the numbers mean."""
    for query in story["queries"]:
        yield Text(f"Query {query['id']}: {query['sentence']}", style="bold")
        yield effects(query, story["measurement"])
        yield ""
    yield from meaning(story)


def overview(story: Json) -> Iterator[RenderableType]:
    """One line a query: what the model says, and who helped and who hurt it most."""
    measurement = story["measurement"]
    words, unit = measurement_words(measurement["name"]), measurement["value_unit"]
    table = plain_table(
        "query", "model says", "label", words, *(f"strongest {side}" for side in STYLES)
    )
    for query in story["queries"]:
        table.add_row(
            str(query["id"]),
            _says(query["prediction"]),
            query["label"] or "",
            number(query["value"]),
            *(_strongest(query, side) for side in STYLES),
        )
    yield table
    yield Text(
        f"{capitalized(words)} in {unit}; training examples with their label in brackets and their "
        f"effect in {measurement['unit'] if measurement['is_calibrated'] else 'arbitrary units'}."
    )
    yield ""
    yield from meaning(story)


def effects(query: Json, measurement: Json) -> Table:
    """Proponents and opponents of one query, the strongest first."""
    entries = [(side, entry) for side in STYLES for entry in query[f"{side}s"]]
    excerpts = [excerpt(entry["display"]) for _, entry in entries]
    table = plain_table("", "example", "label", f"effect ({measurement['unit']})")
    table.columns[3].justify, table.columns[3].no_wrap = "right", True
    if any(excerpts):
        table.add_column("", no_wrap=True, overflow="ellipsis")
    for (side, entry), words in zip(entries, excerpts, strict=True):
        error = f" ± {number(entry['error'])}" if "error" in entry else ""
        cells = [str(entry["id"]), entry["label"] or "", signed(entry["effect"]) + error]
        table.add_row(Text(side, STYLES[side]), *cells, *([words] if any(excerpts) else []))
    return table


def meaning(story: Json) -> Iterator[RenderableType]:
    """The sign, the method with its reason, what to be careful about, and how far to trust it."""
    method = story["method"]
    curvature = f" ({method['curvature']})" if method["curvature"] else ""
    yield _line("Sign", story["measurement"]["sign"])
    yield _line("Method", f"{method['name']}{curvature}: {method['reason']}")
    for warning in story["warnings"]:
        yield warning_line(warning)
    yield from verdict(story)


def verdict(story: Json) -> Iterator[RenderableType]:
    """What retraining said, in a sentence that ends in the verdict."""
    checked = story["verification"] or {}
    for warning in checked.get("warnings", ()):
        yield warning_line(warning)
    yield _line("Verdict" if checked else story["trust"]["title"], story["trust"]["sentence"])


def verification(story: Json) -> Iterator[RenderableType]:
    """What retraining said, in numbers and in a sentence."""
    checked = story["verification"]
    rows = [(words, checked.get(name)) for name, words in VERIFIED.items()]
    known = [(words, value) for words, value in rows if value not in (None, [None, None])]
    yield facts([(words, _numbers(value)) for words, value in known])
    yield from verdict(story)


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Names with their texts, each text in a column of its own."""
    table = Table.grid(padding=(0, 2))
    for name, words in rows:
        table.add_row(Text(name, "bold"), words)
    return table


def listing(rows: Sequence[Sequence[str]], *titles: str) -> Table:
    """A plain table."""
    table = plain_table(*titles)
    for row in rows:
        table.add_row(*row)
    return table


def excerpt(display: Json) -> str:
    """The beginning of a text or of a row on one line, a sound in words; nothing for a picture."""
    if display["kind"] == "text":
        words = display["text"]
    elif display["kind"] == "row":
        words = ", ".join(f"{name} {_cell(value)}" for name, value in display["cells"])
    elif display["kind"] == "audio":
        words = f"sound of {duration(display['seconds'])}"
    else:
        return ""
    # Training data may hold anything: a control character could repaint the terminal.
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return words if len(words) <= LONGEST_EXCERPT else f"{words[: LONGEST_EXCERPT - 1]}…"


def plain_table(*titles: str) -> Table:
    """An empty table under these titles."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title)
    return table


def warning_line(words: str) -> Text:
    """What a reader should know."""
    return _line("Warning", words, "yellow")


def _line(title: str, words: str, style: str = "bold") -> Text:
    return Text.assemble((f"{title}: ", style), words)


def _says(prediction: Json) -> str:
    if prediction["confidence"] is None:
        return prediction["label"] or ""
    return f"{prediction['label']} ({percent(prediction['confidence'])})"


def _strongest(query: Json, side: str) -> Text:
    """'1203 (5): −0.226'."""
    if not query[f"{side}s"]:
        return Text("none")
    entry = query[f"{side}s"][0]
    label = f" ({entry['label']})" if entry["label"] else ""
    return Text(f"{entry['id']}{label}: {signed(entry['effect'])}", STYLES[side])


def _numbers(value: Any) -> str:
    """A number, words, or the two ends of an interval."""
    if isinstance(value, str):
        return value
    return " to ".join(number(end) for end in value) if isinstance(value, list) else number(value)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)
