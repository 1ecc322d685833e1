"""Token ids as the pieces of a text that people read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Decode = Callable[[list[int]], str]

_MARKS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
"""What stands for a piece that nobody sees."""


def decoder(display: object) -> Decode | None:
    """The `decode` of a problem's display, where it has one."""
    hints: Mapping[str, Any] = display if isinstance(display, Mapping) else {}
    return hints.get("decode")


def pieces(ids: Sequence[int], decode: Decode | None) -> tuple[str, ...]:
    """The text of each token, with the space before it.

    Some tokenizers leave that space out where a token stands alone, so that a piece is what it adds
    to the text of the token before it. Without `decode`, or without a text, a piece is the id.

    >>> words = ["a", "small", "town"]
    >>> pieces([0, 1, 2], lambda ids: " ".join(words[i] for i in ids))
    ('a', ' small', ' town')
    """
    if decode is None:
        return tuple(f" {token}" for token in ids)
    alone = [str(decode([int(token)])) for token in ids]
    added = [
        str(decode([int(ids[i - 1]), int(ids[i])])) if i else alone[0] for i in range(len(ids))
    ]
    texts = [
        pair.removeprefix(alone[i - 1]) if i and pair.startswith(alone[i - 1]) else alone[i]
        for i, pair in enumerate(added)
    ]
    return tuple(text or f"⟨{token}⟩" for token, text in zip(ids, texts, strict=True))


def visible(piece: str) -> str:
    r"""A piece as it stands alone: without spaces around it, with a sign where it is nothing else.

    >>> visible(" town"), visible("\n"), visible(" ")
    ('town', '⏎', '␣')
    """
    return piece.strip() or "".join(_MARKS.get(c, "␣") for c in piece)
