"""A text whose tokens are coloured by their effects: which side each is on, and how strongly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from whence.report.sentences import signed

LEVELS = 4
"""Strengths of colour: a style sheet holds each of them, as a page takes no styles of its own."""

MOST_TOKENS = 2000
"""Tokens of a text that are shown."""


@dataclass(frozen=True)
class Highlight:
    """One token.

    Args:
        text: of it.
        words: its effect, with the unit.
        side: whether it helps or hurts; "" where it does neither.
        level: strength of its colour, 1 to `LEVELS`; 0 without an effect.
    """

    text: str
    words: str
    side: Literal["helps", "hurts", ""]
    level: int


def highlights(block: Mapping[str, Any]) -> list[Highlight]:
    """The first `MOST_TOKENS` of a block, the largest effect of all in the strongest colour.

    Args:
        block: of a section, of the kind "tokens".
    """
    largest = max((abs(effect or 0.0) for _, effect in block["pieces"]), default=0.0)
    shown = block["pieces"][:MOST_TOKENS]
    return [_highlight(block, text, effect, largest) for text, effect in shown]


def _highlight(
    block: Mapping[str, Any], text: str, effect: float | None, largest: float
) -> Highlight:
    if not effect:
        return Highlight(text, "no effect" if effect == 0 else "no number", "", 0)
    side = "helps" if (effect > 0) == (block["sign"] > 0) else "hurts"
    words = f"{signed(effect)} {block['unit']}"
    return Highlight(text, words, side, math.ceil(LEVELS * abs(effect) / largest))
