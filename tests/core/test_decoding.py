"""Pieces of tokens add up to the text, whatever a tokenizer does to a token that stands alone."""

import pytest

from whence.core.decoding import decoder, pieces, visible

WORDS = ["One", "day", "", "\n"]


def stripping(ids: list[int]) -> str:
    """As SentencePiece: the space before the first word of a text is left out."""
    return "".join(f" {WORDS[i]}" for i in ids).removeprefix(" ")


def keeping(ids: list[int]) -> str:
    """As GPT-2: a space is part of its word."""
    return "".join(f" {WORDS[i]}" for i in ids)


@pytest.mark.parametrize("decode", [stripping, keeping])
def test_pieces_add_up_to_the_text(decode) -> None:
    ids = [1, 0, 0, 3, 1]
    assert "".join(pieces(ids, decode)) == decode(ids)


def test_letters_of_several_tokens_are_shown_as_they_decode_alone() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    assert pieces([65, *"é".encode(), 66], decode) == ("A", "�", "�", "B")


def test_a_token_without_a_text_is_its_id() -> None:
    assert pieces([0, 2], lambda ids: "".join(WORDS[i] for i in ids)) == ("One", "⟨2⟩")
    assert pieces([5, 17], None) == (" 5", " 17")
    assert pieces([], stripping) == ()


def test_a_piece_that_nobody_sees_has_a_sign() -> None:
    assert [visible(piece) for piece in (" town", "\n", "\t", " ")] == ["town", "⏎", "⇥", "␣"]


def test_the_decoder_is_a_hint_of_the_display() -> None:
    assert decoder({"kind": "text", "decode": stripping}) is stripping
    assert decoder({"kind": "text"}) is None
    assert decoder("text") is None
    assert decoder(lambda inputs, target: "text") is None
