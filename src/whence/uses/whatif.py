"""What if the training data were different: examples removed, weighted, relabelled or replaced.

Every function predicts the change of each query's measurement, and on request trains again to see
the actual one. Positive: the measurement goes up after the change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as renewed
from typing import Any, cast

import numpy as np
import torch

from whence.core.batches import Data
from whence.core.changes import Change, removal, replacement, reweighting
from whence.core.measurements import predicted_targets
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.core.training import Trainer
from whence.errors import BadArgument
from whence.explanation import MethodLike
from whence.methods.base import MeasurementLike, Response
from whence.numerics import stats
from whence.sections import Block, Gallery, Json, Scatter, Section, Table
from whence.uses.base import Result, fit_to_respond, position_of, positions_of
from whence.verification import Retraining
from whence.verification import retrain as train_again

Retrain = bool | Trainer | Callable[..., object]
"""False predicts only; True trains again as the problem says; a training does it its own way."""

MOST_SHOWN = 12
"""Changed examples of which a section shows pictures."""


def remove(
    problem: Problem,
    queries: object,
    *,
    group: Sequence[int | str] | np.ndarray,
    retrain: Retrain = False,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> "Outcome":
    """What happens to the queries without a group of training examples.

        effect[q] = m_q(theta without the group) - m_q(theta)
        first order: (1/N) grad m_q^T (H + damping I)^-1 sum_k b_k grad loss_k

    First order under-estimates the effect of a large group, because it keeps the curvature that
    the group brought in. The Newton form takes it out: H minus the group's part, in one solve.

    Args:
        problem: what was trained.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone.
        group: ids of the training examples to leave out.
        retrain: whether to train again without them, and how.
        measurement: as in `explain`.
        method: as in `explain`.

    Returns:
        Predicted and, on request, actual effects, in the unit of the measurement.

    Raises:
        BadArgument: an id that does not exist, or one named twice.
        CannotRetrain: `retrain=True`, and nothing says how the model was trained.

    Source: Koh, Ang, Teo & Liang 2019 (arXiv:1905.13289), cited from memory.
    """
    positions = positions_of(problem, group)
    words = f"without {_named(problem, positions)}"
    asked = Asked("remove", words, removal(positions), problem)
    return asked.answer(queries, measurement, method, retrain=retrain)


def upweight(
    problem: Problem,
    queries: object,
    *,
    example: int | str | Sequence[int | str],
    by: float,
    retrain: Retrain = False,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> "Outcome":
    """What happens when training examples count `by` times what they do.

        effect[q] ~ -(by - 1) / N grad m_q^T (H + damping I)^-1 sum_k b_k grad loss_k

    Args:
        problem: what was trained.
        queries: as for `remove`.
        example: id of the training example, or several ids.
        by: 2 = as if it were there twice, 1 = as it is, 0 = removed.
        retrain: as for `remove`.
        measurement: as in `explain`.
        method: as in `explain`.

    Raises:
        BadArgument: an id that does not exist, or a negative factor.
    """
    positions = positions_of(problem, [example] if isinstance(example, int | str) else example)
    words = f"with {_named(problem, positions)} weighted by {by:g}"
    asked = Asked("upweight", words, reweighting(positions, by), problem)
    return asked.answer(queries, measurement, method, retrain=retrain)


def relabel(
    problem: Problem,
    queries: object,
    *,
    example: int | str,
    label: object,
    retrain: Retrain = False,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> "Outcome":
    """What happens when a training example gets another label.

        effect[q] ~ (1/N) b grad m_q^T (H + damping I)^-1 (grad loss(x, y) - grad loss(x, label))

    Args:
        problem: what was trained.
        queries: as for `remove`.
        example: id of the training example.
        label: name or number of a class; a number for a regression.
        retrain: as for `remove`.
        measurement: as in `explain`.
        method: as in `explain`.

    Raises:
        BadArgument: there is no such training example.
        UnknownName: there is no such class.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 2.2, for any change of an example.
    """
    position = position_of(problem, example)
    old = problem.label_of(position)
    targets = problem.code_of(label)[None]
    change = replacement(problem, np.array([position]), targets=targets)
    new = problem.label_name(targets[0])
    words = f"with training example {example} labelled {new} instead of {old}"
    asked = Asked("relabel", words, change, problem)
    return asked.answer(queries, measurement, method, retrain=retrain)


def revise(
    problem: Problem,
    queries: object,
    *,
    remove: Sequence[int | str] | np.ndarray = (),
    relabel: Mapping[int | str, object] | None = None,
    retrain: Retrain = False,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> "Outcome":
    """What happens when some training examples are left out and others get other labels.

    One change, with one solve: what a review of the labels led to, for example.

    Args:
        problem: what was trained.
        queries: as for `remove`.
        remove: ids of the training examples to leave out.
        relabel: new labels by id of the training example.
        retrain: as for `remove`.
        measurement: as in `explain`.
        method: as in `explain`.

    Raises:
        BadArgument: nothing to change, an id that does not exist, or one named twice.
        UnknownName: there is no such class.
    """
    labels = dict(relabel or {})
    positions = positions_of(problem, [*np.asarray(remove).tolist(), *labels])
    left_out, kept = np.split(positions, [len(positions) - len(labels)])
    words = " and ".join(
        words
        for words, some in (
            (f"without {_named(problem, left_out)}", left_out),
            (f"with {_named(problem, kept)} relabelled", kept),
        )
        if len(some)
    )
    change = removal(positions)
    if labels:
        _, targets = problem.data.take(torch.as_tensor(positions))
        targets = cast("torch.Tensor", targets).clone()
        for row, label in enumerate(labels.values(), start=len(left_out)):
            targets[row] = problem.code_of(label).to(targets)
        change = replacement(problem, positions, targets=targets)
        weights = change.weights.clone()
        weights[: len(left_out)] = 0.0
        change = renewed(change, weights=weights)
    return Asked("revise", words, change, problem).answer(
        queries, measurement, method, retrain=retrain
    )


def replace(
    problem: Problem,
    queries: object,
    *,
    example: int | str,
    with_: object,
    retrain: Retrain = False,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> "Outcome":
    """What happens when a training example becomes another one.

        effect[q] ~ (1/N) b grad m_q^T (H + damping I)^-1 (grad loss(z) - grad loss(z'))

    Args:
        problem: what was trained.
        queries: as for `remove`.
        example: id of the training example.
        with_: what takes its place, in the form of the training data: inputs of the shape of one
            example, or `(inputs, target)` where the target changes too. A leading axis of one is
            accepted.
        retrain: as for `remove`.
        measurement: as in `explain`.
        method: as in `explain`.

    Raises:
        BadArgument: there is no such training example.
        BadData: what takes its place has another form.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 2.2.
    """
    position = position_of(problem, example)
    new = _read_one(problem, with_)
    inputs, targets = new.take(torch.arange(1))
    change = replacement(problem, np.array([position]), inputs, targets=targets)
    words = f"with another example in the place of training example {example}"
    asked = Asked("replace", words, change, problem, new)
    return asked.answer(queries, measurement, method, retrain=retrain)


# ----------------------------------------------------------------------- asking


@dataclass(frozen=True, eq=False)
class Asked:
    """A change in words, to be answered.

    Args:
        kind: name of the function that was called.
        words: as in "without training example 7".
        change: what becomes of the training data.
        problem: what was trained.
        new: the example that takes another's place.
    """

    kind: str
    words: str
    change: Change
    problem: Problem
    new: Data | None = None

    def answer(
        self,
        queries: object,
        measurement: MeasurementLike,
        method: MethodLike,
        *,
        retrain: Retrain,
    ) -> "Outcome":
        """Predicts, and trains again where that was asked for."""
        problem = self.problem
        fitted = fit_to_respond(problem, method)
        response = fitted.respond(self.change, queries, measurement)
        found: Retraining | None = None
        if retrain is not False:
            found = train_again(
                problem,
                self.change,
                response.queries,
                measurement=response.measurement,
                training=None if retrain is True else retrain,
            )
        return Outcome(
            kind=self.kind,
            words=self.words,
            response=response,
            retraining=found,
            train_ids=problem.data.ids[self.change.positions.numpy()],
            answers=_answers(problem, response.queries, None),
            answers_after=None if found is None else _answers(problem, response.queries, found),
            pictures=self._pictures(),
        )

    def _pictures(self) -> tuple[tuple[Json, str], ...]:
        """The first changed examples; what is relabelled with both labels, what is new beside."""
        problem, after = self.problem, self.change.contents(self.problem)
        shown: list[tuple[Json, str]] = []
        for position in self.change.positions[:MOST_SHOWN].tolist():
            words = f"example {problem.data.ids[position]}"
            old, new = problem.label_of(position), after.label_of(position)
            if old is not None:
                words += f", label {old}" if old == new else f", label {old} becomes {new}"
            shown.append((problem.show(position), words))
        if self.new is not None:
            shown.append((problem.show_query(self.new.example(0)), "what takes its place"))
        return tuple(shown)


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Result):
    """Predicted and actual effects of one change of the training data.

    Args:
        kind: which change: "remove", "upweight", "relabel", "revise" or "replace".
        words: the change in words.
        response: predicted effects, and how they were computed.
        retraining: actual effects; None where nothing was trained again.
        train_ids: (M,) changed training examples.
        answers: (Q,) what the model says, in words; empty where outputs have no known meaning.
        answers_after: (Q,) what it says after retraining.
        pictures: the first changed examples as they look, with words.
    """

    kind: str
    words: str
    response: Response
    retraining: Retraining | None
    train_ids: np.ndarray
    answers: tuple[str, ...]
    answers_after: tuple[str, ...] | None
    pictures: tuple[tuple[Json, str], ...]

    @property
    def predicted(self) -> np.ndarray:
        """(Q,) predicted effects, positive where the measurement goes up."""
        return self.response.values

    @property
    def first_order(self) -> np.ndarray:
        """(Q,) the same to first order: the sum of single effects."""
        return self.response.first_order

    @property
    def actual(self) -> np.ndarray | None:
        """(Q,) effects after retraining; None where nothing was trained again."""
        return None if self.retraining is None else self.retraining.actual

    @property
    def baseline(self) -> np.ndarray:
        """(Q,) measurements with the model as trained."""
        return self.response.baseline

    @property
    def query_ids(self) -> np.ndarray:
        """(Q,) queries that were asked about."""
        return self.response.queries.ids

    @property
    def measurement(self) -> Measurement:
        """What was measured."""
        return self.response.measurement

    @property
    def unit(self) -> str:
        """The unit of the predicted effects."""
        return self.response.unit

    @property
    def flipped(self) -> np.ndarray | None:
        """(Q,) whether the model answers otherwise after retraining; None where not retrained."""
        if self.answers_after is None:
            return None
        pairs = zip(self.answers, self.answers_after, strict=True)
        return np.array([before != after for before, after in pairs], dtype=bool)

    def section(self) -> Section:
        """The change in a sentence, a row for each query, and what was changed."""
        blocks: list[Block] = [self._table()]
        actual = self.actual
        if actual is not None and len(actual) > 2 and self.response.is_calibrated:
            blocks.append(self._scatter(actual))
        if self.pictures:
            blocks.append(Gallery(self.pictures, "What was changed."))
        title = self.words[:1].upper() + self.words[1:]
        return Section(self.kind, title, self.sentence, blocks, self.warnings)

    @property
    def sentence(self) -> str:
        """The largest effect in words."""
        strongest = int(np.abs(self.predicted).argmax())
        change, name = self.predicted[strongest], self.measurement.words
        subject = f"the {name} of query {self.query_ids[strongest]}"
        direction = "rise" if change > 0 else "fall"
        opening = self.words[:1].upper() + self.words[1:]
        most = " the most" if len(self.predicted) > 1 else ""
        if not self.response.is_calibrated:
            return f"{opening}, {subject} would {direction}{most}; this method has no scale."
        words = f"{opening}, {subject} would {direction}{most}: by {abs(change):.3g} {self.unit}"
        if self.actual is None:
            return f"{words}."
        return f"{words} as predicted, {self.actual[strongest]:+.3g} after retraining."

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know."""
        retrained = () if self.retraining is None else self.retraining.warnings
        return (*self.response.report.get("warnings", ()), *retrained)

    def to_json(self) -> dict[str, Any]:
        """Every number, with the words around them."""
        rows = [
            {
                "query": self.query_ids.tolist()[q],
                "before": float(self.baseline[q]),
                "predicted": float(self.predicted[q]),
                "first_order": float(self.first_order[q]),
                "actual": None if self.actual is None else float(self.actual[q]),
                "answer": self.answers[q] if self.answers else None,
                "answer_after": self.answers_after[q] if self.answers_after else None,
            }
            for q in range(len(self.predicted))
        ]
        return {
            "kind": self.kind,
            "change": self.words,
            "sentence": self.sentence,
            "measurement": self.measurement.name,
            "unit": self.unit,
            "train_ids": self.train_ids.tolist(),
            "response": self.response.report.get("response", "first_order"),
            "training": None if self.retraining is None else self.retraining.training,
            "queries": rows,
            "warnings": list(self.warnings),
        }

    def _table(self) -> Table:
        unit, name = self.unit, self.measurement.words
        columns = ["query", f"{name} now ({self.measurement.unit})", f"predicted change ({unit})"]
        cells = [self.query_ids.tolist(), self.baseline, self.predicted]
        if not np.array_equal(self.first_order, self.predicted):
            columns.append(f"to first order ({unit})")
            cells.append(self.first_order)
        if self.retraining is not None:
            columns.append(f"after retraining ({self.measurement.unit})")
            cells.append(self.retraining.actual)
            if self.retraining.noise.any():
                columns.append("standard error")
                cells.append(self.retraining.noise)
        if self.answers:
            columns.append("model says")
            cells.append(self.answers)
        if self.answers_after:
            columns.append("after retraining it says")
            cells.append(self.answers_after)
        return Table(columns, list(zip(*cells, strict=True)), "Positive: the measurement goes up.")

    def _scatter(self, actual: np.ndarray) -> Scatter:
        points = [
            {"x": p, "y": a, "words": f"query {q}"}
            for q, p, a in zip(self.query_ids.tolist(), self.predicted, actual, strict=True)
        ]
        fit = float(stats.pearson(self.predicted, actual))
        return Scatter(
            points,
            f"predicted change ({self.unit})",
            f"change after retraining ({self.unit})",
            f"One mark a query; correlation {fit:.3f}. On the line the prediction is exact.",
            is_identity=True,
        )


# ------------------------------------------------------------------- words and pictures


def _named(problem: Problem, positions: np.ndarray) -> str:
    """'training example 7' or '12 training examples'."""
    if len(positions) == 1:
        return f"training example {problem.data.ids[positions[0]]}"
    return f"{len(positions):,} training examples"


def _answers(problem: Problem, queries: Queries, found: Retraining | None) -> tuple[str, ...]:
    """What the model says to every query, as trained or as trained again."""
    if problem.loss.task == "unknown":
        return ()
    if found is not None:
        problem = problem.at(found.parameters)
    with torch.no_grad():
        outputs = problem.outputs(problem.parameters, queries.inputs)
    answers = predicted_targets(outputs, problem.loss).cpu()
    return tuple(problem.label_name(answer) for answer in answers)


def _read_one(problem: Problem, given: object) -> Data:
    """One example in the form of the training data, with or without a leading axis.

    Raises:
        BadArgument: more than one example.
    """
    shape = getattr(problem.data.example(0), "shape", None)
    parts: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    inputs, rest = parts[0], parts[1:]
    is_bare = isinstance(inputs, str) or (
        shape is not None and getattr(inputs, "shape", None) == tuple(shape)
    )
    if is_bare:
        inputs = [inputs] if isinstance(inputs, str) else inputs[None]
        rest = tuple(label if np.ndim(label) else [label] for label in rest)
    data = problem.read((inputs, *rest) if rest else inputs)
    if len(data) != 1:
        raise BadArgument(
            found=f"{len(data)} examples were given for the place of one.",
            why="Each training example is replaced by exactly one other.",
            remedy="Give one example, such as X_new[0:1], or (X_new[0:1], y_new[0:1]).",
        )
    return data
