"""Training examples as a reader wants to see them: a page at a time, of however many there are.

Only the examples of the page are looked at. Labels are compared without making words of them, and
words are searched in the looks that the run keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import unknown_name
from whence.explorer.catalog import Catalog, words_in
from whence.explorer.listing import MOST_CHOICES, MOST_PAGE, PAGE, whole
from whence.explorer.views import Parameters, Session, looked_up
from whence.report.texts import for_page

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

SORTS = {
    "given": "as they were given",
    "influence": "strongest influence first",
}
"""The second one lists those of which the run keeps the looks, as these are the strongest."""


@dataclass(frozen=True)
class WantedExamples:
    """Which training examples, and in which order.

    Args:
        label: only those with this label; "" = any.
        words: the id of one, or words in the text, row or label of those whose looks are kept.
        sort: one of `SORTS`.
        page: from 1.
        size: examples a page.
    """

    label: str = ""
    words: str = ""
    sort: str = "given"
    page: int = 1
    size: int = PAGE

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "WantedExamples":
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
            words=parameters.get("q", "").strip(),
            sort=sort,
            page=whole(parameters, "page", 1, least=1),
            size=whole(parameters, "size", PAGE, least=1, most=MOST_PAGE),
        )

    def choose(self, catalog: Catalog) -> Array:
        """(M,) columns of all examples that fit, in order."""
        kept = _kept(catalog)
        if self.words:
            columns = self._found(catalog, kept)
        else:
            columns = kept if self.sort == "influence" else np.arange(len(catalog.album.labels))
        if self.words and self.sort == "given":
            columns = np.sort(columns)
        if self.label:
            columns = columns[np.asarray(catalog.album.labels[columns] == self.label)]
        return columns

    def _found(self, catalog: Catalog, kept: Array) -> Array:
        """Columns of the examples that are named, or in whose looks the words stand."""
        words = self.words.casefold()
        found = [column for column in kept.tolist() if words in _looks(catalog, column)]
        found += [column for column in _named(catalog, self.words) if column not in found]
        return np.array(found, np.int64)


def examples(session: Session, parameters: Parameters) -> Json:
    """Training examples, filtered, a page at a time."""
    wanted = WantedExamples.read(parameters)
    catalog = session.catalog
    chosen = wanted.choose(catalog)
    start = (wanted.page - 1) * wanted.size
    answers = catalog.album.answers
    return {
        "wanted": {"label": wanted.label, "q": wanted.words, "sort": wanted.sort},
        "sorts": SORTS,
        "labels": list(answers) if len(answers) <= MOST_CHOICES else [],
        "count": len(chosen),
        "kept": len(catalog.album.displays),
        "page": wanted.page,
        "pages": max(1, -(-len(chosen) // wanted.size)),
        "examples": [
            looked_up(session, catalog.example(column))
            for column in chosen[start : start + wanted.size].tolist()
        ],
    }


def _kept(catalog: Catalog) -> Array:
    """(K,) columns of the examples whose looks the run keeps, the strongest influence first."""
    places = np.asarray(catalog.album.places)
    kept = np.flatnonzero(places >= 0)
    return kept[np.argsort(places[kept])]


def _looks(catalog: Catalog, column: int) -> str:
    """What a search looks at of an example whose looks are kept."""
    shown = for_page(catalog.album.example(column))
    return f"{shown['label'] or ''} {words_in(shown['display'])}".casefold()


def _named(catalog: Catalog, words: str) -> list[int]:
    """The column of the example of this id, which may be a number."""
    names = [words] + ([int(words)] if words.removeprefix("-").isdecimal() else [])
    places = [catalog.scores.place(name) for name in names]
    return [place for place in places if place is not None]
