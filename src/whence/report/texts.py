"""Texts that come from users, as they may be shown: nothing in them controls page or terminal.

Training data may hold anything. A control character becomes the sign that stands for it (the one
that begins terminal commands is shown as ␛), and half a surrogate pair, which no file can hold,
becomes �.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_WORD, _WORD_OR_REST = re.compile(r"\w+"), re.compile(r"\w+|\W+")
_SHORTEST = 4
_PICTURES, _DELETE = 0x2400, "\N{SYMBOL FOR DELETE}"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def for_page(value: Any) -> Any:
    """A copy of plain JSON whose texts have no control characters but tabs and ends of lines."""
    return _each_text(value, lambda text: _CONTROLS.sub(lambda found: _sign(found[0]), text))


def for_terminal(value: Any) -> Any:
    """A copy of plain JSON whose texts stay on their line and cannot repaint a terminal.

    Ends of lines become spaces; marks that change the direction of writing become �.
    """
    return _each_text(value, _on_one_line)


def in_common(text: str, other: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a word that the other text has too.

    Words of fewer than `_SHORTEST` letters, which most texts share, do not count.

    >>> in_common("Claim the PRIZE!", "a prize to claim")
    [('Claim', True), (' the ', False), ('PRIZE', True), ('!', False)]
    """
    known = {word.casefold() for word in _WORD.findall(other)}
    pieces: list[tuple[str, bool]] = []
    for piece in _WORD_OR_REST.findall(text):
        is_common = len(piece) >= _SHORTEST and piece.casefold() in known
        if pieces and not is_common and not pieces[-1][1]:
            pieces[-1] = (pieces[-1][0] + piece, False)
        else:
            pieces.append((piece, is_common))
    return pieces


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(name)): _each_text(entry, change) for name, entry in value.items()}
    if isinstance(value, list):
        return [_each_text(entry, change) for entry in value]
    return value


def _on_one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else _in_line(c) for c in text)


def _in_line(character: str) -> str:
    is_space = character in "\t\n\r" or unicodedata.category(character).startswith("Z")
    return " " if is_space else _sign(character)


def _sign(character: str) -> str:
    """What stands for a character that is not shown itself."""
    code = ord(character)
    if code == 0x7F:
        return _DELETE
    return chr(_PICTURES + code) if code < 0x20 else _UNKNOWN
