from dataclasses import replace

import numpy as np
import pytest

import problems
from whence.core.display import describe
from whence.core.places import find_places

PROBLEM = problems.multinomial().problem


def places_of(size: tuple[int, ...], picture: tuple[int, ...] | None = None, **hints: object):
    """Places of an input that a reader sees as a picture, or as a row."""
    problem = replace(PROBLEM, display=hints or None)
    shown = np.zeros(size if picture is None else picture)
    return find_places(
        problem, size, describe(shown, "row" if picture is None else "image"), is_prepared=False
    )


@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 6), None), ((1, 8, 6), 0), ((3, 8, 6), 0), ((8, 6, 3), 2)]
)
def test_the_channels_of_a_picture_share_their_pixel(shape, axis):
    values = np.random.default_rng(0).standard_normal(shape)
    places = places_of(shape, shape)
    assert (places.kind, places.grid) == ("pixel", (8, 6))
    expected = values if axis is None else values.sum(axis)
    np.testing.assert_allclose(places.gather(values), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("width", "hints", "picture", "grid"),
    [
        (48, {"shape": (6, 8)}, (6, 8), (6, 8)),
        (48, {"shape": (3, 4, 4)}, (4, 4), (4, 4)),
        (49, {}, (7, 7), (7, 7)),
        (48, {}, (4, 12), (4, 12)),
    ],
)
def test_a_flat_input_lies_as_its_display_says(width, hints, picture, grid):
    values = np.arange(float(width))
    places = places_of((width,), picture, **hints)
    assert places.grid == grid
    expected = values.reshape(-1, *grid).sum(0)
    np.testing.assert_array_equal(places.gather(values), expected)


def test_numbers_that_no_picture_can_hold_are_columns():
    assert places_of((50,), (7, 7)).kind == "column"


def test_a_sequence_of_vectors_has_positions():
    values = np.random.default_rng(1).standard_normal((5, 3))
    places = places_of((5, 3))
    assert places.kind == "position"
    assert places.names[4] == "position 4"
    np.testing.assert_allclose(places.gather(values), values.sum(1), rtol=1e-14)
    np.testing.assert_array_equal(places.parts(2), places.index)


def test_columns_have_the_names_that_the_display_gives():
    assert places_of((2,), feature_names=["age", "weight"]).names == ("age", "weight")
    assert places_of((2,)).names == ("feature 0", "feature 1")


@pytest.mark.parametrize(("regions", "cells"), [(1, 1), (2, 4), (3, 9), (50, 8 * 6)])
def test_a_picture_is_cut_into_rectangles_of_nearly_equal_size(regions, cells):
    parts = places_of((3, 8, 6), (3, 8, 6)).parts(regions)
    assert (parts == parts[0]).all()
    assert np.unique(parts).tolist() == list(range(cells))
    for part in range(cells):
        rows, columns = np.nonzero(parts[0] == part)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert height in (8 // min(regions, 8), -(-8 // min(regions, 8)))
        assert width in (6 // min(regions, 6), -(-6 // min(regions, 6)))


def test_features_that_were_made_out_of_a_picture_are_columns_without_its_names():
    problem = replace(PROBLEM, display={"feature_names": [f"pixel {i}" for i in range(16)]})
    display = describe(np.zeros((4, 4)))
    places = find_places(problem, (16,), display, is_prepared=True)
    assert (places.kind, places.names[3]) == ("column", "feature 3")
