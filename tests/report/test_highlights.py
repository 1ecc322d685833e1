"""Tokens are coloured by their side and size, and every token says its number in words."""

import re

import pytest

from whence.report.highlights import LEVELS, MOST_TOKENS, highlights
from whence.report.html import render
from whence.report.story import tell_sections
from whence.sections import Section, Tokens

HOSTILE = '</span><script>"&alert(1)</script>'


def block(*effects, sign=-1):
    pieces = [(f"word{i} ", effect) for i, effect in enumerate(effects)]
    return Tokens(pieces, "logits", "it falls", "it rises", sign, "Example 7.")


@pytest.mark.parametrize(("sign", "sides"), [(-1, ["helps", "hurts"]), (1, ["hurts", "helps"])])
def test_the_side_is_that_of_proponents_and_opponents(sign, sides):
    found = highlights(block(-2.0, 1.0, sign=sign).to_json())
    assert [token.side for token in found] == sides


def test_the_strongest_colour_belongs_to_the_largest_effect_and_none_to_no_effect():
    found = highlights(block(-2.0, 0.01, 1.0, 0.0).to_json())
    assert [token.level for token in found] == [LEVELS, 1, LEVELS // 2, 0]
    assert [token.words for token in found] == [
        "−2.00 logits",
        "+0.0100 logits",
        "+1.00 logits",
        "no effect",
    ]


def test_a_number_that_is_none_and_a_text_without_effects_are_shown():
    found = highlights(block(float("nan"), float("inf"), 0.0).to_json())
    assert [(token.words, token.side, token.level) for token in found] == [
        ("no number", "", 0),
        ("no number", "", 0),
        ("no effect", "", 0),
    ]
    assert highlights(block().to_json()) == []


def test_a_long_text_is_cut_and_says_so():
    long = block(*[0.5] * MOST_TOKENS, 1.0)
    found = highlights(long.to_json())
    assert len(found) == MOST_TOKENS
    assert found[0].level == LEVELS // 2  # the largest effect is beyond
    assert "1 more token is not shown." in page_of(long)
    assert len(long.to_json()["pieces"]) == MOST_TOKENS + 1


def page_of(*blocks):
    section = Section("token_effects", "Tokens", "It falls.", blocks)
    return render(tell_sections([section]))


def test_a_page_shows_every_token_with_its_effect_and_what_the_sides_mean():
    page = page_of(block(-2.0, 1.0))
    assert '<span class="token helps level-4" title="−2.00 logits">word0 </span>' in page
    assert '<span class="token hurts level-2" title="+1.00 logits">word1 </span>' in page
    assert re.search(r"helps</span> it falls", page)
    assert re.search(r"hurts</span> it rises", page)
    assert "Nothing to show here" in page_of(block())


def test_tokens_of_users_stay_text():
    hostile = Tokens([(HOSTILE, 1.0), ("\x1b\n ", -1.0)], HOSTILE, HOSTILE, HOSTILE, -1, HOSTILE)
    page = page_of(hostile)
    assert HOSTILE not in page
    assert page.count("<script") == 1
    assert "\x1b" not in page
    assert "␛\n </span>" in page


def test_every_strength_stands_in_the_style_sheet():
    page = page_of(block(1.0))
    assert all(f".level-{level} {{ --share" in page for level in range(1, LEVELS + 1))
