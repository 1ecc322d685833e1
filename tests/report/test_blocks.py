import re

import pytest

from whence.report import blocks
from whence.report.blocks import MOST_BARS, MOST_POINTS, MOST_ROWS, bars, chart, grid, scatter
from whence.sections import Bars, Gallery, Lines, Scatter, Table

HOSTILE = '</svg><script>"&alert(1)</script>'


def head(svg):
    return svg[: svg.index(">")]


def marks(svg, role):
    return re.findall(rf'<path aria-label="([^"]*)" [^>]*aria-roledescription="{role}"', svg)


def shapes(svg):
    """The outlines of its points."""
    return set(re.findall(r'roledescription="point" transform="[^"]*" d="([^"]*)"', svg))


def points(count, **more):
    return [{"x": 0.1 * i, "y": 0.2 * i - 1, **more} for i in range(count)]


# -------------------------------------------------------------------------------- tables


def test_numbers_of_a_table_are_written_as_everywhere_and_stand_right():
    table = Table(["group", "size (examples)", "effect (logits)"], [("a", 1437, -0.00012345)])
    told = grid(table.to_json())
    assert told.rows == [["a", "1,437", "−1.2\xa0×\xa010⁻⁴"]]
    assert told.is_number == [False, True, True]


def test_ids_are_names_and_not_amounts():
    told = grid(Table(["query", "example"], [(1437, "scan 7")]).to_json())
    assert told.rows == [["1437", "scan 7"]]
    assert told.is_number == [False, False]


def test_cells_may_be_missing_and_a_column_of_words_and_numbers_is_one_of_words():
    told = grid(Table(["a", "b", "c"], [(None, 1.0, True), (2.0, "none", False)]).to_json())
    assert told.rows == [["", "1.00", "yes"], ["2.00", "none", "no"]]
    assert told.is_number == [True, False, False]


def test_a_huge_table_is_cut_and_says_so_and_its_json_keeps_all():
    table = Table(["n"], [(i,) for i in range(MOST_ROWS + 45)]).to_json()
    told = grid(table)
    assert (len(told.rows), told.left_out) == (MOST_ROWS, 45)
    assert len(table["rows"]) == MOST_ROWS + 45
    assert blocks.left_out(told.left_out, "row") == "45 more rows are not shown."
    assert blocks.left_out(1, "query") == "1 more query is not shown."
    assert blocks.left_out(0, "row") == ""


# ------------------------------------------------------------------------------- scatter


def test_every_point_of_a_scatter_tells_its_numbers_and_its_group():
    named = [
        {"x": 0.25, "y": -1.5, "words": "query 7", "group": "same label"},
        {"x": 2.0, "y": 3.0, "group": "another"},
    ]
    svg = scatter(Scatter(named, "predicted (logits)", "actual (logits)").to_json())
    assert marks(svg, "point") == [
        "query 7, same label: predicted (logits) 0.250, actual (logits) −1.50",
        "another: predicted (logits) 2.00, actual (logits) 3.00",
    ]
    assert "2 points in the groups another, same label" in head(svg)
    assert "from 0.250 to 2.00 across and from −1.50 to 3.00 upwards" in head(svg)


def test_groups_have_a_legend_and_a_shape_each_as_long_as_they_can_be_told_apart():
    for count, has_legend in ((1, False), (3, True), (7, False)):
        grouped = [p | {"group": f"group {i % count}"} for i, p in enumerate(points(14))]
        svg = scatter(Scatter(grouped, "x", "y").to_json())
        assert ("legend" in svg) == has_legend
        assert len(shapes(svg)) == (count if has_legend else 1)
        assert len(marks(svg, "point")) == 14


def test_a_group_has_the_same_colour_whatever_point_comes_first():
    grouped = [p | {"group": "ab"[i % 2]} for i, p in enumerate(points(4))]
    one, other = (
        scatter(Scatter(rows, "x", "y").to_json()) for rows in (grouped, list(reversed(grouped)))
    )
    for svg in (one, other):
        assert set(re.findall(r'label="a: [^>]*fill="([^"]*)"', svg)) == {"var(--series-1)"}
        assert set(re.findall(r'label="b: [^>]*fill="([^"]*)"', svg)) == {"var(--series-2)"}


def test_only_axes_of_one_unit_have_the_line_where_both_are_equal():
    assert 'd="M0,330L330,0"' in scatter(Scatter(points(9), "x", "y", is_identity=True).to_json())
    assert "stroke-dasharray" not in scatter(Scatter(points(9), "x", "y").to_json())


def test_very_many_points_are_thinned_and_the_caption_says_so():
    block = Scatter(points(2 * MOST_POINTS), "x", "y").to_json()
    assert len(marks(scatter(block), "point")) == MOST_POINTS
    assert blocks.chart_note(block) == "Drawn: 1,500 of 3,000 points."
    assert blocks.chart_note(Scatter(points(3), "x", "y").to_json()) == ""


# ---------------------------------------------------------------------------------- bars


def ends(svg):
    """Left and right end of each bar."""
    found = re.findall(r'roledescription="bar" d="M([\d.]+),[\d.]+h([\d.]+)v', svg)
    return [(float(left), float(left) + float(width)) for left, width in found]


def test_bars_stand_at_zero_on_their_side_with_their_number_beside_them():
    svg = bars(Bars([("up", 2.0), ("down", -1.0)], "effect (logits)").to_json())
    assert marks(svg, "bar") == ["up: 2.00", "down: −1.00"]
    assert "Bars of effect (logits): up 2.00, down −1.00." in head(svg)
    for text in ("up", "2.00", "down", "−1.00"):
        assert f">{text}<" in svg
    (up, down) = ends(svg)
    assert up[0] == pytest.approx(down[1], abs=0.02)
    assert up[1] - up[0] == pytest.approx(2 * (down[1] - down[0]), abs=0.05)


def test_bars_claim_no_side():
    """A sign says up or down; whether that helps depends on the measurement."""
    svg = bars(Bars([("up", 2.0), ("down", -1.0)], "effect").to_json())
    assert "--proponent" not in svg
    assert "--opponent" not in svg
    assert "--series-1" not in svg  # the blue of proponents


def test_bars_of_one_name_are_all_drawn_and_a_missing_number_is_said():
    svg = bars(Bars([("a", 1.0), ("a", 2.0), ("b", float("nan"))], "effect").to_json())
    assert marks(svg, "bar") == ["a: 1.00", "a: 2.00", "b: no number"]


def test_very_many_bars_are_cut_and_the_caption_says_so():
    block = Bars([(f"f{i}", float(i)) for i in range(MOST_BARS + 3)], "effect").to_json()
    assert len(marks(bars(block), "bar")) == MOST_BARS
    assert blocks.chart_note(block) == "3 more bars are not shown."


# ------------------------------------------------------------------------------ everything

EMPTY = [
    Table(["a"], []),
    Scatter([], "x", "y"),
    Scatter([{"x": float("nan"), "y": 1.0}], "x", "y", is_identity=True),
    Lines({}, "x", "y"),
    Lines({"a": {"x": [], "y": []}, "b": {"x": [1], "y": [None]}}, "x", "y"),
    Bars([], "effect"),
    Gallery([]),
]


@pytest.mark.parametrize("block", EMPTY)
def test_an_empty_block_is_known_to_be_empty(block):
    assert not blocks.has_content(block.to_json())
    if block.to_json()["kind"] in blocks.CHARTS:
        assert blocks.chart(block.to_json()) is None


ALL = [
    Scatter([{"x": 1.0, "y": 2.0, "words": HOSTILE, "group": HOSTILE}] * 2, HOSTILE, HOSTILE),
    Scatter([{"x": 1.0, "y": 2.0, "group": HOSTILE + str(i)} for i in range(2)], "x", "y"),
    Lines({HOSTILE: {"x": [1], "y": [2]}, "b": {"x": [1], "y": [2]}}, HOSTILE, HOSTILE),
    Bars([(HOSTILE, 1.0)], HOSTILE),
]


@pytest.mark.parametrize("block", ALL)
def test_hostile_names_stay_text_in_charts(block):
    svg = blocks.chart(block.to_json())
    assert "<script" not in svg
    assert svg.count("</svg>") == 1
    assert svg.endswith("</svg>")
    assert "&lt;/svg" in svg


@pytest.mark.parametrize("block", ALL)
def test_charts_scale_with_the_page_and_take_its_colours(block):
    svg = blocks.chart(block.to_json())
    assert "viewBox=" in head(svg)
    assert "width=" not in head(svg)
    assert "http" not in svg
    assert not re.search(r'(fill|stroke)="(#|rgb|black|white)', svg)


def test_a_long_title_of_an_axis_is_broken_and_not_cut():
    title = "derivative of the log-probability of the label (nats per unit of the feature)"
    texts = [
        scatter(Scatter(points(3), title, title).to_json()),
        chart(Lines({"a": {"x": [1], "y": [2]}}, title, title).to_json()),
        bars(Bars([("a", 1.0)], title).to_json()),
    ]
    for svg in texts:
        body = re.sub(r"<[^>]+>", " ", svg)
        assert "…" not in body
        assert set(title.split()) <= set(body.split())
