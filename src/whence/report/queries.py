"""One query of a story: the prediction, the training examples that matter, how effects are spread.

Whoever shows examples answers for them (`Shown`): a problem at hand, or the album of a run.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whence.numerics.lookup import Lookup
from whence.report.sentences import predicts_number, says, without

if TYPE_CHECKING:  # a story is read and shown on machines without torch
    from whence.core.problem import Problem
    from whence.core.scores import Effect, Scores

Json = dict[str, Any]

BINS = 41
"""Of the histogram of all effects on a query; odd, so that one bin is centred on no effect."""


class Shown(Protocol):
    """What is known of queries and training examples, besides effects."""

    def query(self, position: int) -> Json:
        """{"display", "label", "is_labelled", "prediction"} of the query at this position."""
        ...

    def example(self, position: int) -> Json:
        """{"display", "label"} of the training example in this column of the scores."""
        ...


def tell_query(scores: "Scores", shown: Shown, position: int, *, top: int) -> Json:
    """The block of one query.

    Args:
        scores: (Q, N) effects.
        shown: the examples.
        position: of the query, 0 to Q - 1.
        top: how many proponents and opponents.
    """
    strongest = scores.top(top, query=position)
    query: Json = {
        "id": scores.query_ids[position],
        "position": position,
        **shown.query(position),
        "value": float(scores.baseline[position]),
        "half_of_influence": scores.half_of_influence(position),
        "distribution": histogram(scores.values[position]),
        "proponents": [
            _example(scores, shown, position, effect) for effect in strongest.proponents
        ],
        "opponents": [_example(scores, shown, position, effect) for effect in strongest.opponents],
    }
    query["predicts_number"] = predicts_number(query["prediction"])
    opening = says(query["prediction"], query["label"], is_labelled=query["is_labelled"])
    sentence = f"{opening} {without(query, tell_measurement(scores))}"
    return query | {"sentence": sentence.strip()}


def tell_measurement(scores: "Scores") -> Json:
    """What was measured, in which unit, and what the sign of an effect means."""
    return {
        "name": scores.measurement.name,
        "unit": scores.unit,
        "value_unit": scores.measurement.unit,
        "higher_is_better": bool(scores.measurement.higher_is_better),
        "is_calibrated": bool(scores.is_calibrated),
        "sign": scores.sign_sentence,
    }


def histogram(effects: np.ndarray) -> Json:
    """How many effects lie in each of `BINS` equal bins around zero.

    Args:
        effects: (N,) of one query.

    Returns:
        {"low", "high", "counts"}; low = -high.
    """
    reach = float(np.abs(effects).max(initial=0.0)) or 1.0
    counts, _ = np.histogram(effects, bins=BINS, range=(-reach, reach))
    return {"low": -reach, "high": reach, "counts": counts.tolist()}


class AtHand:
    """Shows queries and training examples by their problem; remembers what it has shown.

    Args:
        problem: what was explained.
        scores: effects of its training examples, in whatever order.
    """

    def __init__(self, problem: "Problem", scores: "Scores") -> None:
        self.problem = problem
        self.scores = scores
        self._is_labelled = bool(scores.report.get("are_labelled", True))
        self._rows = Lookup(problem.data.ids)
        self._remembered: dict[int, Json] = {}

    def query(self, position: int) -> Json:
        """How a query looks, its label, and what the model says."""
        inputs, target = query_arrays(self.scores.queries, position)
        label = None if target is None else self.problem.label_name(target)
        return {
            "display": self._display(position, inputs, target),
            "label": label,
            "is_labelled": self._is_labelled and label is not None,
            "prediction": self.problem.prediction_of(inputs),
        }

    def example(self, position: int) -> Json:
        """How a training example looks, and its label."""
        if position not in self._remembered:
            row = int(self._rows.places(self.scores.train_ids[[position]])[0])
            self._remembered[position] = {
                "display": self.problem.show(row),
                "label": self.problem.label_of(row),
            }
        return self._remembered[position]

    def _display(self, position: int, inputs: Any, target: Any) -> Json:
        """A query as the user gave it, where the model was given a prepared form of it."""
        if "displays" in self.scores.queries:
            return json.loads(str(self.scores.queries["displays"][position]))
        return self.problem.show_query(inputs, target)


def query_arrays(queries: Mapping[str, np.ndarray], position: int) -> tuple[Any, Any]:
    """Inputs and target of one query, in the structure that the model takes.

    They are copies: torch warns of the arrays of scores, which cannot be written to.
    """
    rows = {name: np.array(array[position]) for name, array in queries.items()}
    target = rows.get("targets")
    if "inputs" in rows:
        return rows["inputs"], target
    parts = {
        name.removeprefix("inputs/"): row
        for name, row in rows.items()
        if name.startswith("inputs/")
    }
    is_tuple = list(parts) == [str(i) for i in range(len(parts))]
    return tuple(parts.values()) if is_tuple else parts, target


def _example(scores: "Scores", shown: Shown, query: int, effect: "Effect") -> Json:
    """One training example and its effect, with its standard error where that is known."""
    position = scores.position(effect.id)
    told = {"id": effect.id, **shown.example(position), "effect": effect.effect}
    if scores.errors is None:
        return told
    return told | {"error": float(scores.errors[query, position])}
