"""Training examples as a reader wants to see them: a page at a time, of however many there are.

Only the examples of the page are looked at. Labels are compared without making words of them, and
words are searched in the looks that the run keeps.
"""

from typing import Any

import numpy as np

from whence.explorer.catalog import Catalog, words_in
from whence.explorer.listing import MOST_CHOICES, Page
from whence.explorer.views import Parameters, Session, looked_up
from whence.report.texts import for_page

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

SORTS = {
    "given": "as they were given",
    "influence": "strongest influence first",
}
"""The second one lists those of which the run keeps the looks, as these are the strongest."""


def examples(session: Session, parameters: Parameters) -> Json:
    """Training examples, filtered, a page at a time.

    Raises:
        UnknownName: no such order.
        BadArgument: a page that is no number.
    """
    page = Page.read(parameters, SORTS)
    catalog = session.catalog
    chosen = _chosen(catalog, page)
    answers = catalog.album.answers
    return {
        "wanted": {"label": page.label, "q": page.words, "sort": page.sort},
        "sorts": SORTS,
        "labels": list(answers) if len(answers) <= MOST_CHOICES else [],
        "count": len(chosen),
        "kept": len(catalog.album.displays),
        "page": page.number,
        "pages": page.count(len(chosen)),
        "examples": [
            looked_up(session, catalog.example(column)) for column in chosen[page.lines].tolist()
        ],
    }


def _chosen(catalog: Catalog, page: Page) -> Array:
    """(M,) columns of all examples that fit, in order."""
    kept = _kept(catalog)
    if page.words:
        columns = _found(catalog, kept, page.words)
        columns = np.sort(columns) if page.sort == "given" else columns
    else:
        columns = kept if page.sort == "influence" else np.arange(len(catalog.album.labels))
    if page.label:
        columns = columns[np.asarray(catalog.album.labels[columns] == page.label)]
    return columns


def _found(catalog: Catalog, kept: Array, words: str) -> Array:
    """Columns of the examples that are named, or in whose looks the words stand."""
    sought = words.casefold()
    found = [column for column in kept.tolist() if sought in _looks(catalog, column)]
    found += [column for column in _named(catalog, words) if column not in found]
    return np.array(found, np.int64)


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
