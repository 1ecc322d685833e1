"""What every use returns, and how it finds the examples that were named."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.errors import Unsupported
from whence.explanation import MethodLike, choose, fit
from whence.methods import Fitted, Influence, make_method
from whence.methods.influence import FittedInfluence
from whence.sections import Section
from whence.tables import html_table, plain_table


class Result(ABC):
    """What a use has found: numbers to compute with, and a section for readers."""

    @abstractmethod
    def section(self) -> Section:
        """The finding for the terminal and the report: a sentence, tables, charts, pictures."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""

    def __repr__(self) -> str:
        section = self.section()
        return plain_table(f"{type(self).__name__}: {section.title}", [("found", section.sentence)])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        section = self.section()
        return html_table(f"{type(self).__name__}: {section.title}", [("found", section.sentence)])


def unit_of_effects(measurement: Measurement, report: Mapping[str, Any]) -> str:
    """The unit of a measurement, or "arbitrary" where a method gives no scale."""
    return measurement.unit if report.get("is_calibrated", True) else "arbitrary"


def fit_to_respond(problem: Problem, method: MethodLike) -> Fitted:
    """A fitted method for predicting what one change of the data does.

    "auto" is the choice of `explain`, with measurements evaluated at the moved outputs: for a
    single change that costs nothing, and large changes need it.
    """
    if method != "auto":
        return fit(problem, method)
    choice = choose(problem)
    recipe = choice.method
    if isinstance(recipe, Influence):
        recipe = replace(recipe, change="finite")
    return recipe.fit(problem).because(choice.reason)


def fit_to_take_apart(problem: Problem, method: MethodLike) -> FittedInfluence:
    """A fitted method whose effects are psi . grad loss, to be taken apart: removal to first order.

    Raises:
        Unsupported: it does not solve with a curvature.
    """
    reason = "asked for"
    if method == "auto":
        choice = choose(problem)
        method, reason = choice.method, choice.reason
    elif isinstance(method, str):
        method = make_method(method)
    if isinstance(method, Influence):
        method = replace(method, removal="first_order", change="linear")
    fitted: Fitted = fit(problem, method).because(reason)
    if isinstance(fitted, FittedInfluence) and fitted.correction is None:
        return fitted
    found = f"{type(fitted).__name__} does not solve with a curvature."
    if isinstance(fitted, FittedInfluence):
        found = "The effects are corrected for what training has left undone."
    raise Unsupported(
        found=found,
        why="They are taken apart into the parts of the plain influence formula.",
        remedy='Use method="auto", or the name of a curvature such as "exact" or "cg".',
    )


def position_of(problem: Problem, example: int | str) -> int:
    """Position in the training data of the example with this id.

    Raises:
        BadArgument: there is no such training example.
    """
    return int(problem.data.positions([example])[0])


def positions_of(problem: Problem, examples: Sequence[int | str] | np.ndarray) -> np.ndarray:
    """(M,) positions of training examples, each named once.

    Raises:
        BadArgument: an id that does not exist, one named twice, none, or more than there are.
    """
    return problem.data.positions(examples)
