"""Signed numbers painted over a picture: blue raises, orange lowers.

The two colours are those of proponents and opponents, told apart without red and green.
"""

from base64 import b64decode
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from whence.core.display import Display, describe

RAISES, LOWERS = (36, 103, 179), (184, 80, 15)
"""The tint of a positive and of a negative number, red, green and blue."""

_DARKEST, _LIGHTEST = 90, 235
"""Grey levels of black and white below the tints: neither hides a tint that lies on it."""


def heat_map(values: np.ndarray, display: Mapping[str, Any]) -> Display:
    """Signed numbers in two colours over the picture of a display, which becomes grey.

        colour = (1 - s) grey + s tint,    s = |value| / (largest |value|)

    Args:
        values: (H, W), stretched over the whole picture.
        display: an image, from `whence.core.display.describe`.

    Returns:
        A display of the same width and height.
    """
    grey = Image.open(BytesIO(b64decode(display["png"]))).convert("L")
    base = _DARKEST + (_LIGHTEST - _DARKEST) * np.asarray(grey, dtype=np.float64) / 255
    field = Image.fromarray(np.asarray(values, dtype=np.float32))
    is_smaller = field.width <= grey.width and field.height <= grey.height
    how = Image.Resampling.NEAREST if is_smaller else Image.Resampling.BOX
    stretched = np.asarray(field.resize(grey.size, how), dtype=np.float64)
    largest = float(abs(stretched).max()) or 1.0
    share = (abs(stretched) / largest)[:, :, None]
    tint = np.where(stretched[:, :, None] > 0, RAISES, LOWERS)
    painted = (1 - share) * base[:, :, None] + share * tint
    return describe(np.rint(painted).astype(np.uint8), "image")
