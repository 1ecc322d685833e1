"""Pictures and bars on terminals with and without colours."""

import io

import numpy as np
import pytest
from rich.console import Console

from whence.cli.showing import BAR, bar, effects, queries, thumbnail
from whence.core.display import describe


def drawn(what, **options) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120, **options).print(what)
    return screen.getvalue()


def test_a_picture_without_colours_is_light_and_dark_in_half_blocks():
    pixels = np.zeros((4, 4))
    pixels[0] = 1  # the upper half of the first line
    pixels[2:, :2] = 1  # both halves of the second, on the left
    picture = thumbnail(describe(pixels, "image"), 16)
    assert [line.rstrip() for line in drawn(picture).splitlines()] == ["▀▀▀▀", "██"]


def test_a_picture_in_colour_has_both_halves_of_a_cell():
    pixels = np.zeros((6, 6, 3), np.uint8)
    pixels[0] = (255, 0, 0)
    pixels[1] = (0, 0, 255)
    terminal = {"force_terminal": True, "color_system": "truecolor", "no_color": False}
    text = drawn(thumbnail(describe(pixels), 16), **terminal)
    assert "38;2;255;0;0" in text
    assert "48;2;0;0;255" in text


@pytest.mark.parametrize("shape", [(28, 28), (5, 9), (64, 20)])
def test_pictures_of_any_shape_fit_their_square(shape):
    picture = thumbnail(describe(np.ones(shape), "image"), 16)
    lines = drawn(picture).splitlines()
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 16


def test_bars_are_as_long_as_their_share():
    assert bar(1) == bar(-1) == bar(7) == "█" * BAR
    assert bar(0) == ""
    lengths = [len(bar(share)) for share in np.linspace(0, 1, 50)]
    assert lengths == sorted(lengths)
    assert bar(1 / 8 / BAR) == "▏"


def example(name: int, effect: float) -> dict:
    text = "a text that\x1b[31m repaints" if name % 2 else "plain"
    return {"id": name, "label": "ham", "effect": effect, "display": {"kind": "text", "text": text}}


def test_the_largest_effect_has_the_longest_bar_and_texts_stand_beside_it():
    query = {
        "proponents": [example(1, -0.4), example(2, -0.1)],
        "opponents": [example(3, 0.2)],
    }
    lines = drawn(effects(query, {"unit": "logits"})).splitlines()
    bars = [line.count("█") for line in lines if "ham" in line]
    assert bars == [BAR, BAR // 4, BAR // 2]
    assert "a text that" in "\n".join(lines)
    assert "\x1b[31m" not in "\n".join(lines)


def test_a_story_is_shown_query_by_query():
    query = {
        "id": 7,
        "sentence": "The model says ham.",
        "display": {"kind": "text", "text": "the whole message"},
        "proponents": [],
        "opponents": [example(3, 0.2)],
    }
    story = {
        "queries": [query],
        "measurement": {"unit": "logits", "sign": "up"},
        "method": {"name": "influence", "curvature": None, "reason": "asked for"},
        "warnings": [],
        "verification": None,
        "trust": {"title": "Not checked", "sentence": "Call verify."},
    }
    text = "".join(drawn(part) for part in queries(story))
    for words in ("Query 7: The model says ham.", "the whole message", "opponent", "Call verify."):
        assert words in text


def test_a_sound_is_shown_by_its_frequencies_and_in_words():
    falling = np.sin(
        2 * np.pi * (3500 * np.arange(8000) / 8000 - 0.19 * np.arange(8000) ** 2 / 8000)
    )
    heard = describe(falling, "audio", rate=8000)
    entry = {"id": 1, "label": "falling", "effect": 0.2, "display": heard}
    query = {"id": 7, "sentence": "", "display": heard, "proponents": [entry], "opponents": []}
    story = {"queries": [query], "measurement": {"unit": "logits", "sign": "up"}}
    shown = queries(story)
    next(shown)
    picture, words, table = (drawn(next(shown)) for _ in range(3))
    lines = picture.splitlines()
    assert len(lines) == 12
    first, last = (lines[i].strip() for i in (1, 5))
    assert lines[1].index(first[0]) < lines[5].index(last[0])
    assert words == "Sound: 1.00 s across, 0 to 4 kHz upwards\n"
    assert "sound of 1.00 s" in table
