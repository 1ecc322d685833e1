"""A training-set attack: training images move so little that nobody sees it, and an answer flips.

    X <- Pi(X + step sign(d m_q(theta trained again) / dX)),    towards a worse measurement m_q

Pi is the projection to a box around the original images and to the bounds of an image. After each
step the features of the moved images are computed again and the model is trained again; a grey
level is 1/255 of the bounds, so within half a grey level the image of 8 bits stays what it was.

Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from whence.calculus.following import RESIDUAL, Follower, make_follower
from whence.calculus.gradients import input_effects, measure, measurement_gradients
from whence.calculus.retraining import NewtonTraining
from whence.core.batches import Data, Tree
from whence.core.changes import Change, replacement
from whence.core.display import Display, describe
from whence.core.measurements import predicted_targets
from whence.core.prepared import numeric_table
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.core.training import CallableTraining
from whence.errors import BadArgument, CannotRetrain, Unsupported
from whence.methods.base import MeasurementLike
from whence.progress import track
from whence.sections import Block, Gallery, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result, positions_of

GREY_LEVELS = 255
"""Steps between black and white in an image of 8 bits."""

_INSIDE = 1 - 2**-10
"""Share of the box that is used: on its very edge rounding to 8 bits could go either way."""

_HALVINGS = 4
"""A step that makes nothing worse is halved so often before the attack gives up."""

_NEGLIGIBLE = 1e-2
"""An attack ends where a step does this small a part of what its best step did."""

_RENEWED, _RENEWED_PARAMETERS = 5, 1024
"""Accepted steps after which the inverse Hessian is made anew, and up to which P: the changed
examples, of large leverage, leave that of the clean data behind."""

_SHOWN = 4
"""Attacks that get pictures."""


@dataclass(frozen=True)
class Attack:
    """How far an attack may go.

    Args:
        bounds: smallest and largest value of a raw input; a grey level is 1/255 of their distance.
        target: "each": every query has an attack of its own; "together": one attack lowers the
            mean measurement of all queries.
        iterations: steps at the most.
        candidates: training examples whose derivative is carried back to the raw inputs in the
            choice of the best; the first choice is made by the derivative with respect to what
            the model takes. Where that is the raw input itself, all are compared.
    """

    bounds: tuple[float, float] = (0.0, 1.0)
    target: Literal["each", "together"] = "each"
    iterations: int = 100
    candidates: int = 16


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one attack has reached.

    Args:
        queries: (R,) positions of the queries that it was aimed at.
        examples: ids of the training examples that were changed.
        original: their raw inputs (M, *raw shape); arrays, or a dict or tuple of them.
        poisoned: the same after the attack.
        is_flipped: (R,) whether the prediction is another one than before.
        after: (R,) measurements.
        predicted: (T,) change of the (mean) measurement in each accepted step, to first order.
        actual: (T,) the same after training again.
        steps: steps that were tried, the accepted ones among them.
        largest_change: of any number, in grey levels.
        has_same_bytes: whether the images of 8 bits are the same.
        parameters: (P,) of the model trained on the poisoned data.
        ending: why the attack stopped.
    """

    queries: np.ndarray
    examples: tuple[int | str, ...]
    original: Tree
    poisoned: Tree
    is_flipped: np.ndarray
    after: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    steps: int
    largest_change: float
    has_same_bytes: bool
    parameters: np.ndarray
    ending: str


@dataclass(frozen=True, eq=False, repr=False)
class Poisoning(Result):
    """What attacks on the predictions of some queries have reached.

    Args:
        outcomes: one for each query that was attacked, or one for all of them together.
        query_ids: (Q,).
        was_right: (Q,) whether the query was predicted as labelled before; others are left alone.
        before: (Q,) measurements before the attack.
        measurement: what the attack makes worse.
        train_accuracy: before, and after each attack.
        rest_accuracy: the same on the queries that the attack was not aimed at; NaN without any.
        settings: how far the attack could go.
        pictures: displays of original, poisoned and difference of the first attacks, with words.
        report: how the attack was made.
    """

    outcomes: tuple[Outcome, ...]
    query_ids: np.ndarray
    was_right: np.ndarray
    before: np.ndarray
    measurement: Measurement
    train_accuracy: tuple[float, np.ndarray]
    rest_accuracy: tuple[np.ndarray, np.ndarray]
    settings: Mapping[str, Any]
    pictures: Sequence[tuple[Display, str]]
    report: Mapping[str, Any]

    @property
    def is_flipped(self) -> np.ndarray:
        """(Q,) whether the prediction of the query was flipped."""
        flipped = np.zeros(len(self.query_ids), dtype=bool)
        for outcome in self.outcomes:
            flipped[outcome.queries] = outcome.is_flipped
        return flipped

    @property
    def after(self) -> np.ndarray:
        """(Q,) measurements after the attack; those of queries left alone are as before."""
        after = self.before.copy()
        for outcome in self.outcomes:
            after[outcome.queries] = outcome.after
        return after

    def section(self) -> Section:
        """How many predictions flipped, a row for each query, and pictures."""
        blocks: list[Block] = [self._table()]
        if self.pictures:
            words = (
                "Original, poisoned, and their difference: grey is no change, black and white are "
                f"{self.settings['box']:g} grey levels down and up."
            )
            blocks.append(Gallery(self.pictures, words))
        return Section(
            kind="poison",
            title="Training images that flip a prediction",
            sentence=self.sentence,
            blocks=blocks,
            warnings=tuple(self.report.get("warnings", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Every number but the images as strict JSON; what is not a number is None."""
        outcomes = [
            {
                "queries": self.query_ids[outcome.queries],
                "examples": list(outcome.examples),
                "is_flipped": outcome.is_flipped,
                "after": outcome.after,
                "predicted": outcome.predicted,
                "actual": outcome.actual,
                "steps": outcome.steps,
                "largest_change": outcome.largest_change,
                "has_same_bytes": outcome.has_same_bytes,
                "ending": outcome.ending,
            }
            for outcome in self.outcomes
        ]
        values = {
            "query_ids": self.query_ids,
            "was_right": self.was_right,
            "is_flipped": self.is_flipped,
            "measurement": self.measurement.name,
            "unit": self.measurement.unit,
            "before": self.before,
            "after": self.after,
            "train_accuracy": list(self.train_accuracy),
            "rest_accuracy": list(self.rest_accuracy),
            "outcomes": outcomes,
            "settings": dict(self.settings),
            "report": dict(self.report),
        }
        return json.loads(json_text(as_json(values, "poisoning")))

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        count = max(len(outcome.examples) for outcome in self.outcomes)
        images = "one training image" if count == 1 else f"{count} training images"
        change = max(outcome.largest_change for outcome in self.outcomes)
        same = all(outcome.has_same_bytes for outcome in self.outcomes)
        return (
            f"{int(self.is_flipped.sum())} of {int(self.was_right.sum())} predictions flipped "
            f"when {images} changed by at most {change:.2g} grey levels"
            f"{' for each of them' if self.settings['target'] == 'each' else ''}; rounded to 8 "
            f"bits the images are {'the same as before' if same else 'different from before'}."
        )

    def _table(self) -> Table:
        name, unit = self.measurement.name, self.measurement.unit
        columns = (
            "query",
            "flipped",
            f"{name} before ({unit})",
            f"{name} after ({unit})",
            "steps",
            "training examples changed",
            "largest change (grey levels)",
        )
        rows = [
            (
                str(self.query_ids[q]),
                "yes" if flipped else "no",
                float(self.before[q]),
                float(after),
                len(outcome.actual),
                ", ".join(map(str, outcome.examples)),
                outcome.largest_change,
            )
            for outcome in self.outcomes
            for q, flipped, after in zip(
                outcome.queries, outcome.is_flipped, outcome.after, strict=True
            )
        ]
        return Table(columns, rows)


def poison(
    problem: Problem,
    queries: object,
    *,
    examples: int | Sequence[int | str] = 1,
    step: float = 0.02,
    box: float = 0.5,
    measurement: MeasurementLike = None,
    attack: Attack = Attack(),
) -> Poisoning:
    """Changes a few training images invisibly so that predictions flip.

        X <- Pi(X + step sign(d m_q(theta trained again) / dX)),    towards a worse m_q

    Args:
        problem: what was trained; a small or linear model, behind `features=` where images are
            large. It is trained again after every step, from where it was.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone. Those whose
            prediction is not their target already are left alone.
        examples: how many training examples may change, those of largest effect; or their ids.
        step: of each number in each iteration, in grey levels.
        box: largest change of a number, in grey levels.
        measurement: what the attack makes worse; see `whence.explain`.
        attack: the bounds of an image, one attack for all queries, limits.

    Returns:
        What flipped, with the poisoned images. Where the problem has a training of its own, the
        final model is trained by it; else by Newton steps.

    Raises:
        BadArgument: numbers outside their range, images outside the bounds, no query to flip.
        CannotRetrain: no optimum was found, or the model is too large to be trained so often.
        Unsupported: the inputs are integers or texts, or the model predicts numbers.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.2.
    """
    _check_numbers(step, box, attack)
    _check_model(problem)
    named = _named(problem, examples)
    follower = _follower(problem)
    aim = _Aim(follower.clean.queries(queries), problem.measurement(measurement))
    before, answers = aim.look(follower.clean)
    was_right = aim.are_right(answers)
    if not was_right.any():
        raise _nothing_to_flip(len(was_right))
    rows = np.flatnonzero(was_right)
    groups = [rows] if attack.target == "together" else list(rows[:, None])
    walk = _Walk(follower, named, step, box, attack)
    runs = [walk.run(aim.at(group)) for group in track(groups, "Attacking")]
    final = [_train_again(problem, run) for run in runs]
    settings = {"step": step, "box": box, **asdict(attack), "examples": named.count}
    return Poisoning(
        outcomes=tuple(
            _outcome(walk, aim.at(group), run, model, group)
            for group, run, model in zip(groups, runs, final, strict=True)
        ),
        query_ids=aim.queries.ids,
        was_right=was_right,
        before=before,
        measurement=aim.measurement,
        train_accuracy=(_accuracy(follower.clean), np.array([_accuracy(m) for m in final])),
        rest_accuracy=_rest_accuracy(aim, follower.clean, final, groups),
        settings=settings,
        pictures=_pictures(problem, runs[:_SHOWN], box * walk.grey_level),
        report={
            "trained_by": problem.training.name if problem.training else NewtonTraining().name,
            "residual_goal": RESIDUAL,
            "warnings": list(problem.notes),
        },
    )


# -------------------------------------------------------------- aim, training, steps


@dataclass(frozen=True, eq=False)
class _Aim:
    """What is to become worse: the mean of a measurement over R queries."""

    queries: Queries
    measurement: Measurement

    @property
    def sign(self) -> float:
        """The direction of worse."""
        return -1.0 if self.measurement.higher_is_better else 1.0

    def at(self, rows: np.ndarray) -> "_Aim":
        """The same for some of the queries."""
        return _Aim(self.queries.take(rows), self.measurement)

    def look(self, problem: Problem) -> tuple[np.ndarray, Tensor]:
        """(R,) measurements and the answers of the model."""
        values = measure(problem, self.measurement, self.queries)
        with torch.no_grad():
            outputs = problem.outputs(problem.parameters, self.queries.inputs)
        return values.double().cpu().numpy(), predicted_targets(outputs, problem.loss)

    def are_right(self, answers: Tensor) -> np.ndarray:
        """(R,) whether the answers are the targets."""
        return _agree(answers, self.queries.targets)

    def is_beyond(self, values: np.ndarray, reach: float) -> bool:
        """Whether a margin is so large that steps which bring `reach` in all cannot flip its query.

        The margin of a class is below zero where another one is predicted.
        """
        is_single_margin = self.measurement.name == "margin" and len(values) == 1
        return is_single_margin and float(values[0]) > reach

    def slope(self, problem: Problem) -> Tensor:
        """(1, P) gradient of the mean measurement."""
        return measurement_gradients(problem, self.measurement, self.queries)[1].mean(0)[None]


_FOLLOWERS: WeakKeyDictionary[Problem, Follower] = WeakKeyDictionary()
"""Making one takes two seconds for 512 parameters; the next attack on the problem saves them."""


def _follower(problem: Problem) -> Follower:
    if problem not in _FOLLOWERS:
        _FOLLOWERS[problem] = make_follower(problem.widened())
    return _FOLLOWERS[problem]


@dataclass(frozen=True, eq=False)
class _Point:
    """A state of the attack: what the examples have become, and the model trained on that.

    Args:
        follower: knows an inverse Hessian from nearby.
        problem: with the poisoned contents, at its optimum.
        change: from the clean contents.
        raw: (M, *raw shape) poisoned raw inputs.
        values: (R,) measurements.
        answers: of the model on the queries.
    """

    follower: Follower
    problem: Problem
    change: Change
    raw: Tree
    values: np.ndarray
    answers: Tensor


@dataclass(frozen=True, eq=False)
class _Run:
    """Where an attack started and ended; what each accepted step was to do, and did."""

    start: _Point
    end: _Point
    predicted: list[float]
    actual: list[float]
    steps: int
    ending: str

    @property
    def positions(self) -> np.ndarray:
        """(M,) of the training examples."""
        return self.end.change.positions.numpy()


@dataclass(frozen=True, eq=False)
class _Named:
    """The training examples that may change: so many, or just these."""

    count: int
    positions: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Walk:
    """Projected steps along signs, for any aim."""

    follower: Follower
    named: _Named
    step: float
    box: float
    attack: Attack

    @property
    def data(self) -> Data:
        """The clean training data, which knows how raw inputs are prepared."""
        return self.follower.clean.data

    @property
    def grey_level(self) -> float:
        """In the unit of the raw inputs."""
        low, high = self.attack.bounds
        return (high - low) / GREY_LEVELS

    def run(self, aim: _Aim) -> _Run:
        """Steps until every answer is another one, or no step makes anything worse."""
        start = now = self._start(aim)
        predicted: list[float] = []
        actual: list[float] = []
        step, tried, ending = self.step, 0, "the number of iterations was reached"
        limits = self._limits(start)
        while tried < self.attack.iterations:
            slope = self._slope(aim, now)
            then, looks = self._improved(aim, now, slope, limits, step)
            tried += looks
            if then is None:
                ending = "no further step inside the box made it worse"
                break
            step /= 2 ** (looks - 1)
            predicted.append(_inner(slope, then.raw, now.raw))
            actual.append(float(then.values.mean() - now.values.mean()))
            now = then
            if not _agree(now.answers, start.answers).any():
                ending = "every prediction flipped"
                break
            if now.problem.size <= _RENEWED_PARAMETERS and len(actual) % _RENEWED == 0:
                now = replace(now, follower=now.follower.renewed(now.problem))
            gain, best = abs(actual[-1]), max(map(abs, actual))
            if gain < _NEGLIGIBLE * best:
                ending = "steps bring next to nothing any more"
                break
            left = self.attack.iterations - tried
            has_crossed = tried * self.step >= self.box  # until then steps may bring more again
            if has_crossed and gain < best / 2 and aim.is_beyond(now.values, gain * left):
                ending = "out of reach: steps bring less and less, and too few are left"
                break
        return _Run(start, now, predicted, actual, tried, ending)

    def _improved(
        self, aim: _Aim, now: _Point, slope: Tree, limits: tuple[Tree, Tree], step: float
    ) -> tuple[_Point | None, int]:
        """The next state, from a step that was halved until it made the aim worse, if one did.

        Returns:
            The state, and how many steps were tried.
        """
        for halvings in range(_HALVINGS + 1):
            moved = self._moved(now.raw, slope, aim.sign * step / 2**halvings, limits)
            if not _differ(moved, now.raw):
                return None, halvings
            then = self._look(aim, now, moved)
            if aim.sign * float(then.values.mean() - now.values.mean()) > 0:
                return then, halvings + 1
        return None, _HALVINGS + 1

    def _start(self, aim: _Aim) -> _Point:
        clean = self.follower.clean
        positions = self.named.positions
        if positions is None:
            positions = self._choose(self.follower.solve(clean, aim.slope(clean)))
        raw = _numbers(self.data.raw(torch.from_numpy(positions)))
        self._check_inside(raw, positions)
        change = replacement(clean, positions, self.data.prepare(raw))
        return _Point(self.follower, clean, change, raw, *aim.look(clean))

    def _choose(self, psi: Tensor) -> np.ndarray:
        """(M,) positions of the examples with the largest sum of |derivatives|, largest first."""
        clean, count = self.follower.clean, self.named.count
        parts = [_sizes(input_effects(clean, psi, b), self.data) for b in clean.batches()]
        order = torch.cat(parts).argsort(descending=True, stable=True).cpu()
        if not self.data.is_prepared:
            return order[:count].numpy()
        kept = order[: max(count, self.attack.candidates)]
        sizes: list[float] = []
        for position in kept[:, None]:
            slopes = input_effects(clean, psi, clean.batch(position))
            pulled = self.data.pull_back(self.data.raw(position), slopes)
            sizes.append(sum(float(leaf.abs().sum()) for leaf in tree_leaves(pulled)))
        best = np.argsort(-np.array(sizes), kind="stable")[:count]
        return kept.numpy()[best]

    def _slope(self, aim: _Aim, now: _Point) -> Tree:
        """(M, *raw shape) derivative of the mean measurement, with the Hessian as it is now."""
        psi = now.follower.solve(now.problem, aim.slope(now.problem))
        effects = input_effects(now.problem, psi, now.problem.batch(now.change.positions))
        return tree_map(lambda leaf: leaf[0], self.data.pull_back(now.raw, effects))

    def _limits(self, start: _Point) -> tuple[Tree, Tree]:
        """The smallest and largest value of each number: of the box, and of an image."""
        low, high = self.attack.bounds
        reach = self.box * self.grey_level * _INSIDE
        return (
            tree_map(lambda x: (x - reach).clamp_min(low), start.raw),
            tree_map(lambda x: (x + reach).clamp_max(high), start.raw),
        )

    def _moved(self, raw: Tree, slope: Tree, step: float, limits: tuple[Tree, Tree]) -> Tree:
        length = step * self.grey_level

        def _move(x: Tensor, g: Tensor, low: Tensor, high: Tensor) -> Tensor:
            return torch.clamp(x + length * g.sign().to(x), low, high)

        return tree_map(_move, raw, slope, *limits)

    def _look(self, aim: _Aim, now: _Point, raw: Tree) -> _Point:
        """The state with these raw inputs, trained again from where the model is now."""
        inputs = self.data.prepare(raw)
        change = replace(now.change, inputs=inputs)
        contents = change.contents(self.follower.clean).at(now.problem.parameters)
        problem = now.follower.follow(contents)
        return _Point(now.follower, problem, change, raw, *aim.look(problem))

    def _check_inside(self, raw: Tree, positions: np.ndarray) -> None:
        low, high = self.attack.bounds
        for leaf in tree_leaves(raw):
            outside = ((leaf < low) | (leaf > high)).flatten(1).any(1)
            if bool(outside.any()):
                row = int(torch.nonzero(outside)[0, 0])
                name = self.data.ids[positions[row]]
                raise BadArgument(
                    found=f"Training example {name} has values from {float(leaf[row].min()):g} to "
                    f"{float(leaf[row].max()):g}, outside the bounds {low:g} to {high:g}.",
                    why="The box of the attack would not hold the image itself.",
                    remedy="Give the smallest and largest value that an image can have: "
                    "attack=Attack(bounds=(low, high)).",
                )


def _sizes(slopes: Tree, data: Data) -> Tensor:
    """(B,) size of the derivatives of each example: the sum of their sizes where they are raw."""
    rows = torch.cat([leaf[0].flatten(1) for leaf in tree_leaves(slopes)], dim=1)
    return rows.norm(dim=1) if data.is_prepared else rows.abs().sum(1)


def _inner(slope: Tree, moved: Tree, raw: Tree) -> float:
    pieces = zip(tree_leaves(slope), tree_leaves(moved), tree_leaves(raw), strict=True)
    return sum(float((g * (new.to(g) - old.to(g))).sum()) for g, new, old in pieces)


def _differ(one: Tree, other: Tree) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def _numbers(raw: Any) -> Tree:
    """Raw inputs as tensors of floating-point numbers."""
    if not isinstance(raw, Tensor | dict | tuple):
        return torch.from_numpy(numeric_table(raw))
    if all(leaf.is_floating_point() for leaf in tree_leaves(raw)):
        return tree_map(lambda leaf: leaf.detach().clone(), raw)
    raise Unsupported(
        found="The raw inputs are integers, such as images of bytes or tokens.",
        why="An attack moves them by less than one.",
        remedy="Give images as floating-point numbers, for example images.float() / 255.",
    )


def _agree(answers: Tensor, others: Tensor) -> np.ndarray:
    """(R,) whether two sets of answers are the same."""
    wanted = others.reshape(answers.shape).to(answers)
    return (answers == wanted).reshape(len(answers), -1).all(1).cpu().numpy()


# ------------------------------------------------------------------ what was reached


def _train_again(problem: Problem, run: _Run) -> Problem:
    """The poisoned problem as its own training leaves it; by Newton steps if it has none."""
    if problem.training is None:
        return run.end.problem
    weights = torch.ones(1, len(problem), dtype=torch.float64)
    found = problem.training.retrain(run.end.change.contents(problem), weights)
    return run.end.problem.at(found.parameters[0])


def _outcome(walk: _Walk, aim: _Aim, run: _Run, final: Problem, rows: np.ndarray) -> Outcome:
    after, answers = aim.look(final)
    grey = [
        ((new - old) / walk.grey_level, old / walk.grey_level, new / walk.grey_level)
        for old, new in zip(tree_leaves(run.start.raw), tree_leaves(run.end.raw), strict=True)
    ]
    low = walk.attack.bounds[0] / walk.grey_level
    return Outcome(
        queries=rows,
        examples=tuple(walk.data.ids[run.positions].tolist()),
        original=tree_map(_array, run.start.raw),
        poisoned=tree_map(_array, run.end.raw),
        is_flipped=~_agree(answers, run.start.answers),
        after=after,
        predicted=np.array(run.predicted),
        actual=np.array(run.actual),
        steps=run.steps,
        largest_change=max(float(change.abs().max()) for change, _, _ in grey),
        has_same_bytes=all(
            bool(((old - low).round() == (new - low).round()).all()) for _, old, new in grey
        ),
        parameters=_array(final.parameters),
        ending=run.ending,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _accuracy(problem: Problem) -> float:
    """Share of the training examples that are predicted as labelled."""
    right: list[np.ndarray] = []
    with torch.no_grad():
        for batch in problem.batches():
            answers = predicted_targets(
                problem.outputs(problem.parameters, batch.inputs), problem.loss
            )
            right.append(_agree(answers, cast("Tensor", batch.targets)))
    return float(np.concatenate(right).mean())


def _rest_accuracy(
    aim: _Aim, clean: Problem, final: Sequence[Problem], groups: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(A,) share of the other queries that are right, before and after each of A attacks."""

    def of_rest(problem: Problem, group: np.ndarray) -> float:
        rest = np.delete(aim.are_right(aim.look(problem)[1]), group)
        return float(rest.mean()) if len(rest) else float("nan")

    before = [of_rest(clean, group) for group in groups]
    after = [of_rest(problem, group) for problem, group in zip(final, groups, strict=True)]
    return np.array(before), np.array(after)


def _pictures(problem: Problem, runs: Sequence[_Run], reach: float) -> list[tuple[Display, str]]:
    """Original, poisoned and difference of the first changed example of some attacks."""
    shown: list[tuple[Display, str]] = []
    for run in runs:
        place = int(run.positions[0])
        old, new = (tree_map(lambda leaf: leaf[0], point.raw) for point in (run.start, run.end))
        pair = [problem.show_query(raw) for raw in (old, new)]
        if pair[0]["kind"] != "image" or callable(problem.display):
            return []
        hints = dict(problem.display) if isinstance(problem.display, Mapping) else {}
        hints |= {"kind": "image", "low": -reach, "high": reach}
        change = describe(tree_map(torch.sub, new, old), **hints)
        name = f"training example {problem.data.ids[place]}"
        shown += [(pair[0], name), (pair[1], "poisoned"), (change, "difference")]
    return shown


# ------------------------------------------------------------------------- refusals


def _check_numbers(step: float, box: float, attack: Attack) -> None:
    low, high = attack.bounds
    if not (np.isfinite([low, high]).all() and low < high):
        raise BadArgument(
            found=f"bounds={attack.bounds}.",
            why="They are the values of black and white; a grey level is 1/255 of their distance.",
            remedy="Give the smaller one first, for example (0.0, 1.0) or (-1.0, 1.0).",
        )
    if not 0 < step <= box < np.inf:
        raise BadArgument(
            found=f"A step of {step:g} grey levels in a box of {box:g}.",
            why="A step is positive, and one larger than the box would be cut off by it.",
            remedy="Give 0 < step <= box; 0.02 and 0.5 are those of the paper.",
        )
    is_known = attack.target in ("each", "together")
    if not is_known or attack.iterations < 1 or attack.candidates < 1:
        raise BadArgument(
            found=f"{attack}.",
            why='target is "each" or "together"; at least one step is made, and at least one '
            "candidate is looked at.",
            remedy="Correct the option that is out of range.",
        )


def _check_model(problem: Problem) -> None:
    if problem.loss.task not in ("classes", "binary", "signed"):
        raise Unsupported(
            found=f"The loss {problem.loss.name} is not one of a classifier.",
            why="An attack ends when the predicted class is another one.",
            remedy="Use perturb to see how far numbers can be moved.",
        )
    training = problem.training
    if isinstance(training, CallableTraining) and not training.takes_data:
        raise CannotRetrain(
            found=f"The training {training.name} takes weights and a seed, but no data.",
            why="What an attack has reached is confirmed by training on the poisoned examples.",
            remedy="Give it a third parameter, def train(weights, seed, data=None), where data is "
            "(inputs, targets); or make the problem without training=.",
        )


def _named(problem: Problem, examples: int | Sequence[int | str]) -> _Named:
    if not isinstance(examples, int):
        positions = positions_of(problem, examples)
        return _Named(len(positions), positions)
    if not 1 <= examples <= len(problem):
        raise BadArgument(
            found=f"examples={examples} of {len(problem)} training examples.",
            why="So many training examples may be changed, at least one.",
            remedy="Give a number from 1 to N, or the ids of the examples.",
        )
    return _Named(examples)


def _nothing_to_flip(count: int) -> BadArgument:
    return BadArgument(
        found=f"None of the {count} queries is predicted as its target.",
        why="An attack turns a right prediction into a wrong one.",
        remedy="Give queries that the model gets right, or leave the targets out: then its own "
        "answers are attacked.",
    )
