import math

import pytest

from whence.report.sentences import (
    answer,
    cell,
    duration,
    number,
    percent,
    says,
    sides,
    signed,
    sound_words,
    without,
)

NO_BREAK = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.31, "0.310"),
        (-0.31, "−0.310"),
        (12.345, "12.3"),
        (1437, "1,437"),
        (-1437, "−1,437"),
        (15230.4, "15,230"),
        (0.0, "0"),
        (0.00012, f"1.2{NO_BREAK}×{NO_BREAK}10⁻⁴"),
        (-2.5e9, f"−2.5{NO_BREAK}×{NO_BREAK}10⁹"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
        (None, "not finite"),
    ],
)
def test_numbers_read_as_people_write_them(value, words):
    assert number(value) == words


def test_signs_and_whole_cells():
    assert [signed(x) for x in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "0"]
    assert [cell(x) for x in (7.0, 7, 7.25)] == ["7", "7", "7.25"]


def test_certainty_is_only_claimed_where_it_is_exact():
    assert percent(0.614) == f"61{NO_BREAK}%"
    assert percent(0.99996) == f">{NO_BREAK}99{NO_BREAK}%"
    assert percent(1.0) == f"100{NO_BREAK}%"


def prediction(label, confidence=None, value=None):
    return {"label": label, "confidence": confidence, "value": value}


def test_what_the_model_says_stands_beside_the_label():
    assert says(prediction("3", 0.61), "8") == f"The model says 3 (61{NO_BREAK}%); the label is 8."
    assert says(prediction("8"), "8") == "The model says 8, and so does the label."
    assert says(prediction("8"), "8", is_labelled=False) == "The model says 8."
    assert says(prediction("8"), None) == "The model says 8."
    assert says(prediction(None), "8") == "The label is 8."
    assert says(prediction(None), None) == ""


def test_a_regression_predicts_and_a_decision_value_does_not():
    number_says = says(prediction("152.3", value=152.31), "141")
    assert number_says == "The model predicts 152.3; the target is 141."
    assert says(prediction("1", value=0.4), "-1") == "The model says 1; the label is -1."


def measurement(name="margin", unit="logits", *, is_calibrated=True, higher_is_better=True):
    return {
        "name": name,
        "unit": unit,
        "is_calibrated": is_calibrated,
        "higher_is_better": higher_is_better,
    }


def query(proponents, opponents, *, says="3", label="8"):
    def entries(effects):
        return [{"id": i, "effect": effect} for i, effect in effects]

    return {
        "id": 17,
        "label": label,
        "prediction": prediction(says),
        "half_of_influence": 5,
        "proponents": entries(proponents),
        "opponents": entries(opponents),
    }


def test_the_largest_effect_is_told_with_its_direction_and_unit():
    wrong = query([(4, -0.1)], [(812, 0.31)])
    expected = "Without training example 812 the margin of label 8 would rise by 0.310 logits."
    assert without(wrong, measurement()) == expected
    right = query([(4, -0.5)], [(812, 0.31)], says="8")
    expected = (
        "Without training example 4 the margin of this prediction would fall by 0.500 logits."
    )
    assert without(right, measurement()) == expected


def test_arbitrary_units_tell_no_size():
    sentence = without(query([(4, -123.0)], []), measurement(is_calibrated=False))
    assert "123" not in sentence
    assert "would fall the most" in sentence


def test_no_effect_at_all_is_said():
    expected = "No training example moves the loss on this query."
    assert without(query([], []), measurement("loss")) == expected


def test_the_answer_names_the_query_with_the_largest_effect():
    first, second = query([(1, -0.2)], []), query([(2, -0.9)], []) | {"id": 18}
    story = {
        "queries": [first, second],
        "problem": {"examples": 1437},
        "measurement": measurement(),
    }
    words = answer(story)
    assert "On each of 2 predictions, 5 of 1,437 training examples carry half" in words
    assert "on query 18: without training example 2" in words
    alone = answer(story | {"queries": [first]})
    assert alone.endswith("5 of 1,437 training examples carry half of all influence on it.")


def test_proponents_lower_a_loss_and_raise_a_margin():
    assert sides(measurement("margin"))[0] == "without it, the margin falls"
    assert sides(measurement("loss", higher_is_better=False))[0] == "without it, the loss rises"


def test_a_sound_is_told_with_what_its_picture_hides():
    display = {"kind": "audio", "seconds": 1.25, "rate": 44100}
    assert sound_words(display) == "1.25 s across, 0 to 22.1 kHz upwards"
    more = {"channels": 2, "silent": True, "missing": 1, "more": 3.5, "scaled": "scaled"}
    assert sound_words(display | more, is_played=False).split("; ")[1:] == [
        "silent",
        "2 channels mixed",
        "scaled",
        "1 sample missing, played as silence",
        "3.50 s more not kept",
        "not kept for playing: there are too many sounds",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1 / 16000, "0.0625 ms"), (0.25, "250 ms"), (1, "1.00 s"), (10, "10.0 s")],
)
def test_durations_are_told_in_the_unit_that_fits(seconds, words):
    assert duration(seconds) == words
