"""What a reader needs to know about how the scores were made, each fact with a note."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class _Fact:
    """An entry of `Scores.report`, its name for readers, and what it means."""

    key: str
    name: str
    note: str
    unit: str = ""


_FACTS = (
    _Fact("method", "Method", "how the effects were estimated"),
    _Fact("reason", "Chosen because", "why this method, on this problem"),
    _Fact("removal", "Removal", "how an example is taken out: to first order, or by a Newton step"),
    _Fact("curvature", "Curvature", "how the matrix was inverted that moves the parameters"),
    _Fact("matrix", "Matrix", "which matrix that is"),
    _Fact(
        "damping",
        "Damping",
        "added to its diagonal; more of it makes the predicted movement smaller",
    ),
    _Fact("residual", "Residual of the solve", "relative error of the solve; 0.01 is one per cent"),
    _Fact("gradient_norm", "Gradient norm", "zero where training has reached its optimum"),
    _Fact("smallest_eigenvalue", "Smallest eigenvalue", "below zero, there is no minimum here"),
    _Fact("largest_leverage", "Largest leverage", "near one, an example decides its own fit"),
    _Fact("leverage_fallbacks", "Leverage fallbacks", "scored to first order instead", "examples"),
    _Fact("members", "Members", "models that were trained again and averaged over", "models"),
    _Fact("member_share", "Data of a member", "share of the training data that each has seen"),
    _Fact("metasmoothness", "Metasmoothness", "1 where training follows its weights smoothly"),
    _Fact(
        "rank_stability",
        "Rank stability",
        "share of a query's ten largest effects that are among the ten largest of one member",
    ),
    _Fact("fit_seconds", "Time for the fit", "paid once, whatever the number of queries", "s"),
    _Fact("seconds", "Time for the scores", "for all queries together", "s"),
)


def choose_facts(report: Mapping[str, Any]) -> list[Json]:
    """The facts of a report that stand in it, in reading order.

    Args:
        report: of the scores.

    Returns:
        Entries {"name", "value", "unit", "note"}; a value is a number or words.
    """
    facts = [
        {"name": fact.name, "value": _words(report[fact.key]), "unit": fact.unit, "note": fact.note}
        for fact in _FACTS
        if report.get(fact.key) is not None
    ]
    return facts + _coverage(report) + _fingerprints(report.get("fingerprint") or {})


def _coverage(report: Mapping[str, Any]) -> list[Json]:
    covered, total = report.get("parameters_covered"), report.get("parameters_total")
    if covered is None or total is None:
        return []
    left_out = "none is left out" if covered == total else "effects through the others are left out"
    return [
        {
            "name": "Parameters covered",
            "value": f"{covered:,} of {total:,}",
            "unit": "",
            "note": f"parameters that may move when an example is removed; {left_out}",
        }
    ]


def _fingerprints(fingerprint: Mapping[str, str]) -> list[Json]:
    return [
        {
            "name": f"Fingerprint of the {name}",
            "value": value[:12],
            "unit": "",
            "note": "the same letters on another page mean the same " + name,
        }
        for name, value in fingerprint.items()
    ]


def _words(value: Any) -> Any:
    """Names without underscores, the largest of several numbers; single numbers stay numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.replace("_", " ")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(entry)}" for name, entry in value.items())
    if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
        return _words(max(value))
    if isinstance(value, list):
        return ", ".join(str(_words(entry)) for entry in value)
    return value
