"""Queries as a reader wants to see them: filtered, sorted, a page at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

from whence.errors import BadArgument, unknown_name
from whence.explorer.catalog import Row

PAGE, MOST_PAGE = 60, 500
"""Queries a page, and how many may be asked for at once."""

MOST_CHOICES = 200
"""Labels of which a filter lets choose."""

_KEYS: dict[str, Callable[[Row], float]] = {
    "given": lambda row: row.position,
    "loss": lambda row: inf if isnan(row.loss) else -row.loss,
    "value": lambda row: row.value,
    "confidence": lambda row: inf if row.confidence is None else row.confidence,
}

SORTS = {
    "given": "as they were given",
    "loss": "largest loss first",
    "value": "smallest measurement first",
    "confidence": "least confident first",
}


@dataclass(frozen=True)
class Wanted:
    """Which queries, and in which order.

    Args:
        label: only those with this label; "" = any.
        says: only those of which the model says this; "" = anything.
        is_wrong: only those on which the model and the label differ.
        words: only those in whose text, row, label or id these words stand.
        sort: one of `SORTS`.
        page: from 1.
        size: queries a page.
    """

    label: str = ""
    says: str = ""
    is_wrong: bool = False
    words: str = ""
    sort: str = "given"
    page: int = 1
    size: int = PAGE

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Wanted":
        """What the parameters of an address ask for.

        Raises:
            UnknownName: no such order.
            BadArgument: a page that is no number.
        """
        sort = parameters.get("sort", "given")
        if sort not in SORTS:
            raise unknown_name("order", sort, SORTS)
        return cls(
            label=parameters.get("label", ""),
            says=parameters.get("says", ""),
            is_wrong=parameters.get("wrong", "") not in ("", "0"),
            words=parameters.get("q", "").strip(),
            sort=sort,
            page=whole(parameters, "page", 1, least=1),
            size=whole(parameters, "size", PAGE, least=1, most=MOST_PAGE),
        )

    def choose(self, rows: Sequence[Row]) -> list[Row]:
        """All queries that fit, in order."""
        fitting = [row for row in rows if self._fits(row)]
        return sorted(fitting, key=_KEYS[self.sort])

    def cut(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Those of the page that was asked for."""
        start = (self.page - 1) * self.size
        return rows[start : start + self.size]

    def pages(self, count: int) -> int:
        """How many pages `count` queries take."""
        return max(1, -(-count // self.size))

    def _fits(self, row: Row) -> bool:
        words = self.words.casefold()
        looked_at = (str(row.id), row.label or "", row.answer or "", row.words)
        return (
            self.label in ("", row.label)
            and self.says in ("", row.answer)
            and (row.is_wrong or not self.is_wrong)
            and (not words or any(words in text.casefold() for text in looked_at))
        )


def choices(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Labels and answers that occur, for filters; none where they are many different numbers."""
    found = {
        "labels": _sorted({row.label for row in rows if row.label is not None}),
        "answers": _sorted({row.answer for row in rows if row.answer is not None}),
    }
    return {name: values if len(values) <= MOST_CHOICES else [] for name, values in found.items()}


def whole(
    parameters: Mapping[str, Any], name: str, default: int, *, least: int = 0, most: int = 2**31
) -> int:
    """A whole number among the parameters of an address.

    Raises:
        BadArgument: something else, or one that is too small or too large.
    """
    given = str(parameters.get(name, default))
    value = int(given) if given.isascii() and given.isdigit() and len(given) < 12 else None
    if value is None or not least <= value <= most:
        raise BadArgument(
            found=f"{name}={given[:40]!r}.",
            why=f"It is a whole number from {least:,} to {most:,}.",
            remedy="Write such a number, or leave it out.",
        )
    return value


def _sorted(names: set[str]) -> list[str]:
    """Numbers by their size, words by the alphabet."""
    return sorted(
        names, key=lambda name: (0, float(name), "") if _is_number(name) else (1, 0, name)
    )


def _is_number(text: str) -> bool:
    try:
        return not isnan(float(text))
    except ValueError:
        return False
