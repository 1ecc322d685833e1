"""Sections on the terminal: the numbers are there, nothing is cut, nothing repaints the screen."""

import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from whence.cli.sections import FEW, HEIGHT, WIDTH, draw_section
from whence.core.display import describe
from whence.report.blocks import MOST_BARS, MOST_PICTURES, MOST_ROWS
from whence.sections import Bars, Gallery, Lines, Scatter, Section, Table, Tokens

PICTURE = describe(np.eye(8), "image")
HOSTILE = "\x1b[31mred\x07\nnext \u202eback"


def shown(*blocks, width=80, sentence="The margin falls.", warnings=()):
    """What a terminal of this width shows below the sentence."""
    section = Section("remove", "Without example 3", sentence, blocks, warnings)
    console = Console(width=width, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as captured:
        for part in draw_section(section.to_json()):
            console.print(part)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert all(cell_len(line) <= width for line in lines)
    return "\n".join(lines)


def test_a_section_begins_with_its_title_its_sentence_and_its_warnings():
    lines = shown(warnings=["careful"]).splitlines()
    assert lines == ["Without example 3", "The margin falls.", "Warning: careful"]


# -------------------------------------------------------------------------------- tables


def test_a_table_has_its_numbers_to_the_right_and_its_caption_above():
    table = Table(["query", "margin (logits)", "says"], [(1437, -0.5, "three"), (7, 12.0, "x")])
    captioned = Table(table.columns, table.rows, "Positive: it goes up.")
    lines = shown(captioned).splitlines()[3:]
    assert lines[0] == "Positive: it goes up."
    assert lines[1].split() == ["query", "margin", "(logits)", "says"]
    assert lines[3].split() == ["1437", "−0.500", "three"]
    assert (
        lines[3].index("−0.500") + 6 == lines[4].index("12.0") + 4 == len("query   margin (logits)")
    )


WIDE = Table(
    ["query", *[f"the number called {name} (logits)" for name in "abcdef"]],
    [(i, *[-1.5e-4 * (i + 1)] * 5, "a label of three words") for i in range(3)],
)


@pytest.mark.parametrize("width", [300, 100, 80, 60, 40])
def test_a_table_breaks_no_number_and_loses_no_column_however_narrow_the_terminal(width):
    text = shown(WIDE, width=width)
    for number in ("−1.5\xa0×\xa010⁻⁴", "−3.0\xa0×\xa010⁻⁴", "−4.5\xa0×\xa010⁻⁴"):
        assert text.count(number) == 5
    assert "…" not in text
    words = text.split()
    assert all(words.count(f"{name}") >= 1 for name in "abcdef")


def test_a_table_that_does_not_fit_is_told_row_by_row():
    lines = shown(WIDE, width=50).splitlines()[3:]
    assert lines[0].split() == ["-", "query", "0"]
    assert lines[1].split()[-3:] == ["−1.5", "×", "10⁻⁴"]  # split at no-break spaces
    assert sum(line.startswith("-") for line in lines) == 3


def test_a_huge_table_is_cut_with_a_count_of_what_is_left_out():
    text = shown(Table(["n"], [(i,) for i in range(MOST_ROWS + 45)]))
    assert "45 more rows are not shown." in text
    assert len(text.splitlines()) == MOST_ROWS + 3 + 2 + 1


# -------------------------------------------------------------------------------- charts


def test_bars_grow_to_both_sides_of_zero_with_their_numbers():
    text = shown(Bars([("up", 2.0), ("down", -1.0), ("none", 0.0)], "effect (logits)"))
    _, up, down, none = text.splitlines()[3:]
    assert "effect (logits)" in text
    assert up.count("█") == 2 * down.count("█") == 20
    assert down.rindex("█") < up.index("█")
    assert (up.split()[-1], down.split()[-1], none.split()[-1]) == ("2.00", "−1.00", "0")


def test_bars_without_a_number_or_all_alike_are_drawn_too():
    text = shown(Bars([("a", float("nan")), ("b", 0.0)], "effect"))
    assert "no number" in text
    assert "█" not in text
    text = shown(Bars([(f"f{i}", 1.0) for i in range(MOST_BARS + 2)], "effect"))
    assert "2 more bars are not shown." in text


def test_a_scatter_puts_every_point_in_its_place_and_tells_the_ends_of_its_axes():
    corners = [
        {"x": x, "y": y, "group": g} for x, y, g in [(0, -1, "a"), (2.5, 7, "b"), (0, 7, "b")]
    ]
    lines = shown(Scatter(corners, "distance", "effect (logits)")).splitlines()[3:]
    plot = [line.partition("|")[2].ljust(WIDTH) for line in lines[1 : HEIGHT + 1]]
    assert (plot[0][0], plot[0][-1], plot[-1][0]) == ("x", "x", "o")
    assert sum(c in "ox" for row in plot for c in row) == 3
    assert lines[0] == "effect (logits)"
    assert lines[1].split()[0] == "7"
    assert lines[HEIGHT].split()[0] == "−1"
    assert lines[-2] == "from left to right: distance, 0 to 2.50"
    assert lines[-1] == "o a   x b"


def test_the_line_of_a_scatter_runs_from_corner_to_corner():
    points = [{"x": 0.0, "y": 2.0}, {"x": 1.0, "y": 2.0}]
    lines = shown(Scatter(points, "x", "y", is_identity=True)).splitlines()[3:]
    plot = [line.partition("|")[2].ljust(WIDTH) for line in lines[1 : HEIGHT + 1]]
    assert (plot[0][-1], plot[-1][0]) == (".", ".")
    assert plot[0][0] == plot[0][WIDTH // 2] == "o"
    assert lines[-1] == ". where both are equal"


def test_a_single_point_makes_a_scatter():
    assert shown(Scatter([{"x": 1.0, "y": 1.0}], "x", "y")).count("o") >= 1


def test_curves_over_the_same_places_share_a_table():
    places = list(range(101))
    series = {name: {"x": places, "y": [k * x for x in places]} for k, name in enumerate("ab")}
    lines = shown(Lines(series, "checked", "found")).splitlines()[3:]
    assert lines[0] == "found"
    assert lines[1].split() == ["checked", "a", "b"]
    rows = [line.split() for line in lines[3:]]
    assert len(rows) == FEW
    assert (rows[0], rows[-1]) == (["0", "0", "0"], ["100", "0", "100"])


def test_curves_over_places_of_their_own_are_told_one_after_the_other():
    series = {
        "a": {"x": [1, 2], "y": [0.5, None], "error": [0.1, None]},
        "b": {"x": [7], "y": [3.0]},
    }
    rows = [line.split() for line in shown(Lines(series, "step", "loss")).splitlines()[5:]]
    assert rows == [["a", "1", "0.500", "±", "0.100"], ["b", "7", "3.00"]]


def test_a_gallery_is_told_in_words():
    texts = [
        ({"kind": "text", "text": "free money " * 20}, "example 5"),
        ({"kind": "row", "cells": [["age", 41.5]]}, "example 6"),
        (PICTURE, "example 7, label eight"),
    ]
    text = shown(Gallery(texts, "What was changed."))
    for words in ("What was changed.", "example 5", "free money", "age 41.5", "label eight"):
        assert words in text
    assert "--out" in text  # where the pictures are
    assert "--out" not in shown(Gallery(texts[:2]))
    many = shown(Gallery([(PICTURE, f"example {i}") for i in range(MOST_PICTURES + 1)]))
    assert "1 more picture is not shown." in many


# -------------------------------------------------------------------------------- safety

HARMFUL = [
    Table([HOSTILE], [(HOSTILE,)], HOSTILE),
    Table([HOSTILE * 9] * 9, [[HOSTILE] * 9], HOSTILE),
    Bars([(HOSTILE, 1.0)], HOSTILE, HOSTILE),
    Lines({HOSTILE: {"x": [1], "y": [1]}}, HOSTILE, HOSTILE, HOSTILE),
    Scatter([{"x": 1, "y": 2, "group": HOSTILE, "words": HOSTILE}], HOSTILE, HOSTILE, HOSTILE),
    Gallery([({"kind": "text", "text": HOSTILE}, HOSTILE)], HOSTILE),
    Gallery([({"kind": "row", "cells": [[HOSTILE, HOSTILE]]}, HOSTILE)], HOSTILE),
]


@pytest.mark.parametrize("block", HARMFUL, ids=lambda block: block.to_json()["kind"])
def test_control_characters_of_the_data_never_reach_the_terminal(block):
    text = shown(block, sentence=HOSTILE, warnings=[HOSTILE])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "␛[31m" in text


def test_markup_of_the_terminal_library_stays_text():
    assert "[bold]x[/bold]" in shown(Table(["a"], [("[bold]x[/bold]",)]))


@pytest.mark.parametrize(
    "block",
    [Table(["a"], []), Scatter([], "x", "y"), Lines({}, "x", "y"), Bars([], "e"), Gallery([])],
    ids=lambda block: block.to_json()["kind"],
)
def test_an_empty_block_says_so(block):
    assert shown(block).splitlines()[3:] == ["Nothing to show here."]


# -------------------------------------------------------------------------------- tokens


def test_a_text_of_tokens_stays_text_and_says_what_its_letters_mean():
    pieces = [(" a", -0.5), (f" {HOSTILE}", 1.0), (" end", 0.0)]
    block = Tokens(pieces, "nats", "without it, it falls", "without it, it rises", -1, "Example 3.")
    lines = shown(block).splitlines()[3:]
    assert lines == [
        "Example 3.",
        " a ␛[31mred␇ next �back end",
        "bold: without it, it falls   underlined: without it, it rises",
    ]


def test_helpful_tokens_are_bold_and_harmful_ones_underlined():
    pieces = [("good", -1.0), ("bad", 1.0), ("weak", 0.1), ("none", 0.0)]
    section = Section("k", "t", "s", (Tokens(pieces, "", "x", "y", -1),))
    text = list(draw_section(section.to_json()))[3]
    assert [(str(span.style), span.start, span.end) for span in text.spans] == [
        ("bold blue", 0, 4),
        ("bold underline dark_orange3", 4, 7),
    ]
