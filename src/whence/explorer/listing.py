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
class Page:
    """A page of a list, and what every list can be filtered and sorted by.

    Args:
        label: only what has this label; "" = any.
        words: only what they are found in, or the id of one.
        sort: name of the order.
        number: of the page, from 1.
        size: lines a page.
    """

    label: str = ""
    words: str = ""
    sort: str = "given"
    number: int = 1
    size: int = PAGE

    @classmethod
    def read(cls, parameters: Mapping[str, str], sorts: Mapping[str, str]) -> "Page":
        """What the parameters of an address ask for.

        Args:
            parameters: of the address.
            sorts: orders by name.

        Raises:
            UnknownName: no such order.
            BadArgument: a page that is no number.
        """
        sort = parameters.get("sort", "given")
        if sort not in sorts:
            raise unknown_name("order", sort, sorts)
        return cls(
            label=parameters.get("label", ""),
            words=parameters.get("q", "").strip(),
            sort=sort,
            number=whole(parameters, "page", 1, least=1),
            size=whole(parameters, "size", PAGE, least=1, most=MOST_PAGE),
        )

    @property
    def lines(self) -> slice:
        """Which lines of a list stand on it."""
        return slice((self.number - 1) * self.size, self.number * self.size)

    def count(self, lines: int) -> int:
        """How many pages so many lines take."""
        return max(1, -(-lines // self.size))


@dataclass(frozen=True)
class Wanted:
    """Which queries, and in which order.

    Args:
        page: filters of every list, order and page; words are looked for in text, row, label and
            id.
        says: only those of which the model says this; "" = anything.
        is_wrong: only those on which the model and the label differ.
    """

    page: Page = Page()
    says: str = ""
    is_wrong: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Wanted":
        """What the parameters of an address ask for; raises as `Page.read` does."""
        return cls(
            page=Page.read(parameters, SORTS),
            says=parameters.get("says", ""),
            is_wrong=parameters.get("wrong", "") not in ("", "0"),
        )

    def choose(self, rows: Sequence[Row]) -> list[Row]:
        """All queries that fit, in order."""
        fitting = [row for row in rows if self._fits(row)]
        return sorted(fitting, key=_KEYS[self.page.sort])

    def _fits(self, row: Row) -> bool:
        words = self.page.words.casefold()
        looked_at = (str(row.id), row.label or "", row.answer or "", row.words)
        return (
            self.page.label in ("", row.label)
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
