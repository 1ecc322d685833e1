"""Results in plain words: numbers as people write them, and sentences around them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from whence.core.scores import spoken

Json = dict[str, Any]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NO_BREAK = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"

_MEASUREMENTS = {
    "log_prob": "log-probability",
    "loss": "loss",
    "margin": "margin",
    "logit": "logit",
    "prediction": "prediction",
}
_OF_A_CLASS = ("margin", "logit", "log_prob")
"""Measurements that belong to one class; of which, has to be said where model and label differ."""


# ------------------------------------------------------------------------------- numbers


def number(value: float | int | None) -> str:
    """Three significant digits, a real minus sign, powers of ten for the very large and small."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}".replace("-", _MINUS)
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = str(int(exponent)).translate(_SUPERSCRIPT)
        return f"{mantissa}{_NO_BREAK}×{_NO_BREAK}10{power}".replace("-", _MINUS)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", _MINUS)


def cell(value: float | int) -> str:
    """A value of a data row: whole numbers as they are, others like every number."""
    return number(int(value)) if float(value).is_integer() else number(value)


def signed(value: float) -> str:
    """A number with its sign, also when it is positive."""
    return f"+{number(value)}" if value > 0 else number(value)


def percent(share: float) -> str:
    """A share in per cent; certainty is only claimed where it is exact."""
    if 0.995 <= share < 1:
        return f">{_NO_BREAK}99{_NO_BREAK}%"
    return f"{100 * share:.0f}{_NO_BREAK}%"


def quantity(value: float | None, unit: str) -> str:
    """A number and its unit."""
    return f"{number(value)} {unit}" if unit else number(value)


def count(amount: int, noun: str) -> str:
    """'1 query', '2 queries', '1,437 training examples'."""
    if amount == 1:
        return f"1 {noun}"
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number(amount)} {plural}"


def duration(seconds: float) -> str:
    """'1.20 s', and '50.0 ms' for what is shorter than a second."""
    return f"{number(1000 * seconds)} ms" if seconds < 1 else f"{number(float(seconds))} s"


def capitalized(sentence: str) -> str:
    """The same sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]


# ----------------------------------------------------------------------------- sentences


def measurement_words(name: str) -> str:
    """'log-probability' for 'log_prob'; the user's own names without underscores."""
    return _MEASUREMENTS.get(name) or spoken(name)


def sound_words(display: Mapping[str, Any], *, is_played: bool = True) -> str:
    """What its picture does not tell of a sound: '1.20 s across, 0 to 8 kHz upwards; silent'.

    Args:
        display: of the kind "audio".
        is_played: False where a player was left out for want of room.
    """
    highest = cell(display["rate"] / 2000)
    words = [f"{duration(display['seconds'])} across, 0 to {highest} kHz upwards"]
    words += ["silent"] if display.get("silent") else []
    words += [f"{display['channels']} channels mixed"] if display.get("channels") else []
    words += [display["scaled"]] if display.get("scaled") else []
    if display.get("missing"):
        words.append(f"{count(display['missing'], 'sample')} missing, played as silence")
    words += [f"{duration(display['more'])} more not kept"] if display.get("more") else []
    words += [] if is_played else ["not kept for playing: there are too many sounds"]
    return "; ".join(words)


def says(prediction: Mapping[str, Any], label: str | None, *, is_labelled: bool = True) -> str:
    """What the model says, and what the label says: 'The model says 3 (61 %); the label is 8.'.

    Args:
        prediction: label, confidence and value, each possibly None.
        label: of the query, None where it has none.
        is_labelled: False where the label is only the model's own answer.
    """
    is_labelled = is_labelled and label is not None
    answer, confidence = prediction["label"], prediction["confidence"]
    if answer is None:
        return f"The label is {label}." if is_labelled else ""
    if confidence is not None:
        model = f"The model says {answer} ({percent(confidence)})"
    elif predicts_number(prediction):
        model = f"The model predicts {answer}"
        return f"{model}; the target is {label}." if is_labelled else f"{model}."
    else:
        model = f"The model says {answer}"
    if not is_labelled:
        return f"{model}."
    return (
        f"{model}, and so does the label." if answer == label else f"{model}; the label is {label}."
    )


def predicts_number(prediction: Mapping[str, Any]) -> bool:
    """Whether the answer is a number itself (a regression), and not the name of a class."""
    if prediction["value"] is None or prediction["confidence"] is not None:
        return False
    return number(prediction["value"]) == number(_float(prediction["label"]))


def without(query: Mapping[str, Any], measurement: Mapping[str, Any]) -> str:
    """The largest effect: 'Without training example 812 the margin would rise by 0.31 logits.'.

    Args:
        query: of a story; its first proponent or opponent has the largest effect.
        measurement: of a story.
    """
    subject = _subject(query, measurement["name"])
    strongest = strongest_effect(query)
    if strongest is None:
        return f"No training example moves {subject}."
    direction = "rise" if strongest["effect"] > 0 else "fall"
    change = f"Without training example {strongest['id']} {subject} would {direction}"
    if not measurement["is_calibrated"]:
        return f"{change} the most; by how much, scores in arbitrary units do not say."
    return f"{change} by {quantity(abs(strongest['effect']), measurement['unit'])}."


def strongest_effect(query: Mapping[str, Any]) -> Json | None:
    """The proponent or opponent with the largest |effect|, or None where there are none."""
    leaders = [*query["proponents"][:1], *query["opponents"][:1]]
    return max(leaders, key=lambda entry: abs(entry["effect"]), default=None)


def answer(story: Mapping[str, Any]) -> str:
    """One sentence for the whole report: how concentrated the influence is, and its peak."""
    queries: Sequence[Json] = story["queries"]
    examples = count(story["problem"]["examples"], "training example")
    most = max(queries, key=lambda query: abs((strongest_effect(query) or {"effect": 0})["effect"]))
    peak = without(most, story["measurement"])
    if len(queries) == 1:
        carriers = number(most["half_of_influence"])
        verb = "carries" if most["half_of_influence"] == 1 else "carry"
        return f"{peak} {carriers} of {examples} {verb} half of all influence on it."
    halves = [query["half_of_influence"] for query in queries]
    few, many = number(min(halves)), number(max(halves))
    spread = few if few == many else f"between {few} and {many}"
    return (
        f"On each of {count(len(queries), 'prediction')}, {spread} of {examples} carry half of all "
        f"influence. The largest single effect is on query {most['id']}: "
        f"{peak[0].lower()}{peak[1:]}"
    )


def sides(measurement: Mapping[str, Any]) -> tuple[str, str]:
    """What removing a proponent, and removing an opponent, does to the measurement."""
    words = measurement_words(measurement["name"])
    down = f"without it, the {words} falls"
    up = f"without it, the {words} rises"
    return (down, up) if measurement["higher_is_better"] else (up, down)


def _subject(query: Mapping[str, Any], measurement: str) -> str:
    words = measurement_words(measurement)
    if measurement == "prediction":
        return "the prediction"
    if measurement == "loss":
        return "the loss on this query"
    label = query["label"]
    if measurement in _OF_A_CLASS and label is not None and query["prediction"]["label"] != label:
        return f"the {words} of label {label}"
    return f"the {words} of this prediction"


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
