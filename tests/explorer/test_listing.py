"""Filters, orders and pages of queries."""

from math import nan

import pytest

from whence.errors import BadArgument, UnknownName
from whence.explorer.catalog import Row
from whence.explorer.listing import SORTS, Page, Wanted, choices


def row(position: int, **changes) -> Row:
    fields = {
        "position": position,
        "id": f"q{position}",
        "label": "ham",
        "answer": "ham",
        "confidence": 0.5,
        "is_wrong": False,
        "value": float(position),
        "loss": 0.1,
        "words": "",
        "display": {"kind": "none", "text": ""},
    }
    return Row(**fields | changes)


ROWS = (
    row(0, words="Buy CHEAP pills", label="spam", answer="spam", loss=0.2, confidence=0.9),
    row(1, label="spam", is_wrong=True, loss=3.0, value=-2.0),
    row(2, confidence=None, loss=nan),
    row(3, answer="spam", is_wrong=True, loss=1.0, confidence=0.4),
)


def chosen(**parameters: str) -> list[int]:
    return [one.position for one in Wanted.read(parameters).choose(ROWS)]


def test_filters_narrow_the_list_together():
    assert chosen() == [0, 1, 2, 3]
    assert chosen(label="spam") == [0, 1]
    assert chosen(says="spam") == [0, 3]
    assert chosen(wrong="1") == [1, 3]
    assert chosen(wrong="1", label="spam") == [1]
    assert chosen(wrong="0") == [0, 1, 2, 3]
    assert chosen(label="eggs") == []


def test_a_search_looks_at_words_labels_and_ids_whatever_their_case():
    assert chosen(q="cheap PILLS") == [0]
    assert chosen(q="q3") == [3]
    assert chosen(q="spam") == [0, 1, 3]


def test_orders_put_what_is_not_known_last():
    assert chosen(sort="loss") == [1, 3, 0, 2]
    assert chosen(sort="confidence") == [3, 1, 0, 2]
    assert chosen(sort="value") == [1, 0, 2, 3]


def test_pages_hold_every_query_once():
    rows = [row(i) for i in range(23)]
    seen = []
    for page in range(1, 7):
        wanted = Page.read({"page": str(page), "size": "5"}, SORTS)
        assert wanted.count(len(rows)) == 5
        seen += [one.position for one in rows[wanted.lines]]
    assert seen == list(range(23))


@pytest.mark.parametrize("page", ["0", "-1", "x", "1e3", "", "٣", "9" * 20])
def test_a_page_that_is_no_number_is_refused(page: str):
    with pytest.raises(BadArgument):
        Wanted.read({"page": page})


def test_an_order_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UnknownName, match="confidence"):
        Wanted.read({"sort": "size"})


def test_choices_are_sorted_as_people_do_and_left_out_where_they_are_numbers():
    assert choices([row(i, label=name) for i, name in enumerate(["10", "9", "b", "a"])])[
        "labels"
    ] == ["9", "10", "a", "b"]
    assert choices([row(i, label=str(i)) for i in range(300)])["labels"] == []
