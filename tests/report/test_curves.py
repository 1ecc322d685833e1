import re

import pytest

from whence.report.curves import lines
from whence.sections import Lines


def head(svg):
    return svg[: svg.index(">")]


def marks(svg, role):
    return re.findall(rf'<path aria-label="([^"]*)" [^>]*aria-roledescription="{role}"', svg)


def shapes(svg):
    """The outlines of its points."""
    return set(re.findall(r'roledescription="point" transform="[^"]*" d="([^"]*)"', svg))


def curves(count=2, length=5, **parts):
    return {
        f"curve {k}": {"x": list(range(length)), "y": [k + 0.5 * i for i in range(length)], **parts}
        for k in range(count)
    }


@pytest.mark.parametrize("length", [5, 101])
def test_every_place_of_a_curve_is_a_mark_with_its_numbers(length):
    svg = lines(Lines(curves(2, length), "checked (share)", "found (share)").to_json())
    told = marks(svg, "point")
    assert len(told) == 2 * length
    assert "curve 1: found (share) 1.50 at checked (share) 1" in told
    assert "curve 0 from 0 at 0 to 2.00 at 4" in head(svg) or length > 5


def test_curves_are_told_apart_by_more_than_colour():
    few, many = (lines(Lines(curves(2, n), "x", "y").to_json()) for n in (5, 101))
    assert (len(shapes(few)), len(shapes(many))) == (2, 1)
    assert "stroke-dasharray" in many
    for svg in (few, many):
        assert ">curve 1<" in svg


def test_one_curve_has_no_legend():
    assert "legend" not in lines(Lines(curves(1), "x", "y").to_json())


def test_an_error_is_a_band_and_is_told():
    svg = lines(Lines(curves(1, error=[0.25] * 5), "x", "y").to_json())
    assert 'aria-roledescription="area mark container"' in svg or "mark-area" in svg
    assert "curve 0: y 0.500 ± 0.250 at x 1" in marks(svg, "point")
    assert "mark-area" not in lines(Lines(curves(1), "x", "y").to_json())


def test_places_of_a_curve_that_are_no_numbers_are_left_out():
    series = {"a": {"x": [0, 1, 2], "y": [1.0, float("nan"), 3.0]}}
    told = marks(lines(Lines(series, "x", "y").to_json()), "point")
    assert told == ["a: y 1.00 at x 0", "a: y 3.00 at x 2"]


def test_more_curves_than_colours_are_all_drawn():
    svg = lines(Lines(curves(9), "x", "y").to_json())
    assert len(marks(svg, "point")) == 45
    assert ">curve 8<" in svg
