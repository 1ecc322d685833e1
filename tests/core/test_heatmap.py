from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from whence.core.display import describe
from whence.core.heatmap import LOWERS, RAISES, heat_map


def pixels(display: dict) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(display["png"]))))


def picture(height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def test_the_largest_numbers_are_painted_in_the_pure_tints():
    values = np.zeros((6, 5))
    values[1, 2], values[4, 0] = 3.0, -3.0
    painted = pixels(heat_map(values, describe(picture())))
    np.testing.assert_array_equal(painted[1, 2], RAISES)
    np.testing.assert_array_equal(painted[4, 0], LOWERS)


def test_zeros_leave_the_picture_grey_and_its_order_of_brightness():
    painted = pixels(heat_map(np.zeros((6, 5)), describe(picture()))).astype(int)
    assert (painted == painted[:, :, :1]).all()
    steps = np.diff(painted[:, :, 0].ravel()[np.argsort(picture().ravel(), kind="stable")])
    assert (steps >= 0).all()


def test_only_the_ratios_of_the_numbers_show():
    values = np.random.default_rng(1).standard_normal((6, 5))
    assert heat_map(values, describe(picture())) == heat_map(1e-9 * values, describe(picture()))


@pytest.mark.parametrize("shape", [(2, 2), (24, 20), (300, 400)])
def test_numbers_of_any_shape_are_stretched_over_the_picture(shape):
    values = -np.ones(shape)
    values[: shape[0] // 2] = 1.0
    painted = pixels(heat_map(values, describe(picture(12, 10))))
    assert painted.shape == (12, 10, 3)
    assert (painted[:6] == RAISES).all()
    assert (painted[6:] == LOWERS).all()


def test_a_picture_in_colour_becomes_grey():
    colours = np.random.default_rng(2).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    painted = pixels(heat_map(np.zeros((6, 5)), describe(colours)))
    assert (painted == painted[:, :, :1]).all()
