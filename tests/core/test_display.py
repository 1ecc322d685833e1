import json
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from whence.core.display import LONGEST_SIDE, MOST_CELLS, MOST_CHARACTERS, describe
from whence.errors import BadArgument, UnknownName


def pixels(display: dict) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(display["png"]))))


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("shape", "painted"),
    [
        ((8, 6), (8, 6)),
        ((1, 8, 6), (8, 6)),
        ((8, 6, 1), (8, 6)),
        ((3, 8, 6), (8, 6, 3)),
        ((8, 6, 3), (8, 6, 3)),
    ],
)
def test_every_layout_of_a_picture_gives_the_same_pixels(shape, painted):
    flat = np.random.default_rng(0).integers(0, 256, int(np.prod(shape)), dtype=np.uint8)
    array = flat.reshape(shape)
    display = describe(array)
    assert (display["height"], display["width"]) == (8, 6)
    expected = np.moveaxis(array, 0, 2) if shape[0] == 3 else array.reshape(painted)
    np.testing.assert_array_equal(pixels(display), expected)


def test_a_tensor_shows_the_same_as_its_array():
    array = np.random.default_rng(1).random((3, 9, 9), dtype=np.float32)
    expected = describe(array)
    assert describe(torch.from_numpy(array).requires_grad_()) == expected
    assert describe(torch.ones(5, 5, dtype=torch.bfloat16)) == describe(np.ones((5, 5)))


def test_a_flat_vector_becomes_the_picture_that_was_asked_for():
    picture = np.arange(64.0).reshape(8, 8)
    assert describe(picture.ravel(), "image", shape=(8, 8)) == describe(picture)
    assert describe(picture.ravel(), "image") == describe(picture)
    assert describe(picture.ravel(), "image", shape=(4, 16))["width"] == 16


def test_a_flat_vector_that_fits_no_shape_is_refused():
    with pytest.raises(BadArgument, match="needs 81 numbers"):
        describe(np.zeros(64), "image", shape=(9, 9))
    with pytest.raises(BadArgument, match="channels first or last"):
        describe(np.zeros(65), "image")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, 255), (0.0, 0.5, 128), (0, 255, 255), (0, 200, 200), (0.0, 16.0, 255)],
)
def test_the_brightest_pixel_follows_the_range_of_the_values(low, high, expected):
    picture = np.full((5, 5), low)
    picture[2, 2] = high
    assert pixels(describe(picture)).max() == expected


def test_stretched_contrast_is_said_and_a_kept_range_is_not():
    assert "black is -2 and white is 3" in describe(np.linspace(-2, 3, 25).reshape(5, 5))["scaled"]
    assert "scaled" not in describe(np.linspace(0, 1, 25).reshape(5, 5))
    assert "scaled" not in describe(np.full((5, 5), 7, dtype=np.uint8))


def test_low_and_high_fix_black_and_white():
    display = describe(np.linspace(-1, 1, 25).reshape(5, 5), low=-2, high=2)
    assert pixels(display).min() == 64
    assert pixels(display).max() == 191
    assert "scaled" not in display


def test_missing_pixels_are_black_and_counted():
    picture = np.ones((5, 5))
    picture[0, 0], picture[1, 1] = np.nan, -np.inf
    display = describe(picture)
    assert display["missing"] == 2
    assert pixels(display)[0, 0] == pixels(display)[1, 1] == 0
    assert pixels(display)[2, 2] == 255
    assert describe(np.full((5, 5), np.nan))["missing"] == 25


def test_a_constant_picture_outside_the_unit_range_is_mid_grey():
    assert set(pixels(describe(np.full((5, 5), -3.0))).ravel()) == {128}


def test_large_pictures_are_reduced_and_keep_their_proportions():
    display = describe(np.zeros((800, 400, 3), dtype=np.uint8))
    assert (display["height"], display["width"]) == (LONGEST_SIDE, LONGEST_SIDE // 2)


def test_pictures_of_pillow_and_transparent_ones_are_shown():
    image = Image.fromarray(np.eye(6, dtype=np.uint8) * 255)
    assert describe(image) == describe(np.eye(6))
    assert pixels(describe(np.zeros((6, 6, 4), dtype=np.uint8), "image")).shape == (6, 6, 4)


# --------------------------------------------------------------------- rows and text


def test_a_short_vector_keeps_its_order_and_its_names():
    display = describe(np.array([1.5, -3.0]), feature_names=["age", "income"])
    assert display == {"kind": "row", "cells": [["age", 1.5], ["income", -3.0]]}


def test_a_long_vector_shows_its_largest_values_and_counts_the_rest():
    values = np.zeros(100)
    values[[7, 50]] = [2.0, -5.0]
    display = describe(values)
    assert display["cells"][:2] == [["50", -5.0], ["7", 2.0]]
    assert len(display["cells"]) == MOST_CELLS
    assert display["more"] == 100 - MOST_CELLS


def test_values_that_json_cannot_hold_become_words():
    display = describe(np.array([np.nan, np.inf, 1.0]))
    assert [value for _, value in display["cells"]] == [None, "inf", 1.0]
    json.dumps(display, allow_nan=False)


def test_names_have_to_fit_the_values():
    with pytest.raises(BadArgument, match="3 feature names for 2 values"):
        describe(np.zeros(2), feature_names=["a", "b", "c"])


def test_strings_are_text_and_long_ones_are_cut():
    assert describe("a <b>") == {"kind": "text", "text": "a <b>"}
    display = describe("x" * (MOST_CHARACTERS + 5))
    assert len(display["text"]) == MOST_CHARACTERS
    assert display["more"] == 5


def test_tokens_are_decoded_alone_and_within_a_batch():
    words = ["the", "cat", "sat"]

    def decode(ids):
        return " ".join(words[i] for i in ids)

    tokens = torch.tensor([1, 2])
    assert describe(tokens, decode=decode)["text"] == "cat sat"
    batch = {"attention_mask": torch.ones(2), "input_ids": tokens}
    assert describe(batch, decode=decode)["text"] == "cat sat"


def test_numbers_without_a_way_to_decode_them_are_not_text():
    with pytest.raises(BadArgument, match="cannot be shown as text"):
        describe(np.array([1, 2]), "text")


# ------------------------------------------------------------------- several parts


def test_the_picture_among_several_parts_is_shown():
    picture = np.eye(6)
    assert describe((np.zeros(3), picture)) == describe(picture)
    assert describe({"meta": np.zeros(3), "pixels": picture}) == describe(picture)


def test_parts_without_a_picture_become_one_row():
    display = describe({"age": np.float32(40), "scores": np.array([1, 2])})
    assert display["cells"] == [["age", 40.0], ["scores[0]", 1], ["scores[1]", 2]]


def test_what_has_no_form_is_summarised():
    display = describe(np.zeros((2, 3, 4, 5), dtype=np.float32))
    assert display == {"kind": "none", "text": "float32 array of shape (2, 3, 4, 5)"}
    assert describe(np.eye(9), "none")["kind"] == "none"


def test_a_finished_display_is_left_alone():
    display = {"kind": "text", "text": "mine"}
    assert describe(display) == display


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UnknownName, match=r"Did you mean 'image'\?"):
        describe(np.eye(5), "imag")
