"""The smallest set of training examples without which a prediction is another one.

Which set is the smallest cannot be known without trying them all. This search ranks training
examples by their effect on the contrast between the model's answer and the runner-up, predicts how
many of the strongest it takes, and trains again without them. It then keeps the first half of what
it found, ranks the others anew on the model without that half, and tries to do with fewer; or,
where the first ranking led nowhere, to do it at all.

Source: the question, and the ranking by influence, as in Yang, Jain & Wallace 2023
(arXiv:2302.02169), cited from memory; the rounds of ranking anew and the check by retraining are
ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.core.changes import removal
from whence.core.measurements import contrast, predicted_targets
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.core.training import Trainer
from whence.errors import BadArgument, Unsupported
from whence.explanation import MethodLike
from whence.methods import Fitted
from whence.progress import track
from whence.sections import Block, Gallery, Json, Lines, Section, Table
from whence.uses.base import Result, fit_to_respond
from whence.verification import Bench, choose_training

ROUNDS = 4
"""How often the examples are ranked anew on the model without half of those found so far."""

_TOGETHER = 6
"""Sizes that are tried by retraining at a time."""

_SHOWN = 12


def smallest_flip(
    problem: Problem,
    query: object,
    *,
    most: int | None = None,
    retrain: bool | Trainer | Callable[..., object] = True,
    method: MethodLike = "auto",
    seed: int = 0,
) -> "Flip":
    """The fewest training examples found whose removal changes the model's answer to a query.

    Args:
        problem: what was trained; a classifier.
        query: one query, in the form of the training data with a leading axis of one.
        most: examples that may be removed, default half of the training data.
        retrain: True trains again as the problem says; a training does it its own way; False only
            predicts the size, and nothing is checked.
        method: ranks the examples; as in `explain`.
        seed: of the trainings.

    Returns:
        The set, checked by retraining, with every size that was tried.

    Raises:
        BadArgument: more than one query, or `most` outside 1 .. N - 1.
        Unsupported: the model predicts numbers, which do not flip.
        CannotRetrain: nothing says how the model was trained.
    """
    asked = problem.queries(query)
    return _find(problem, asked, None, most=most, retrain=retrain, method=method, seed=seed)


def _find(
    problem: Problem,
    asked: Queries,
    fitted: Fitted | None,
    *,
    most: int | None,
    retrain: bool | Trainer | Callable[..., object],
    method: MethodLike,
    seed: int,
) -> "Flip":
    """See `smallest_flip`; `fitted` ranks the examples of all data, where that is known already."""
    limit = _check(problem, asked, most)
    search = _Search(problem, asked, method, limit, seed)
    search.fitted = fitted
    if retrain is not False:
        how = choose_training(problem, None if retrain is True else retrain, _TOGETHER)
        search.bench = Bench(problem, how, search.measurement, asked)
    found, first = search.run()
    measured, values = search.measurement, search.baseline
    names = problem.data.ids[np.array(found.positions, dtype=np.int64)]
    return Flip(
        query=asked.ids.tolist()[0],
        answer=problem.label_name(search.answer),
        runner_up=problem.label_name(search.runner_up),
        new_answer=found.answer,
        measurement=measured,
        baseline=values,
        predicted=found.predicted,
        actual=found.actual,
        train_ids=names,
        tried=tuple(search.tried),
        predicted_sizes=first,
        examples=len(problem),
        training=None if search.bench is None else search.bench.training.name,
        pictures=_pictures(problem, asked, found.positions[:_SHOWN]),
    )


@dataclass(frozen=True)
class Attempt:
    """A set of training examples that was left out.

    Args:
        positions: of the examples in the training data.
        predicted: the contrast without them, as predicted; None where nothing was predicted.
        actual: the contrast after retraining; None where nothing was trained.
        answer: of the retrained model, in words; None where nothing was trained.
        is_flip: whether the answer is another one.
        parameters: (P,) of the retrained model.
    """

    positions: tuple[int, ...]
    predicted: float | None
    actual: float | None = None
    answer: str | None = None
    is_flip: bool = False
    parameters: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Flip(Result):
    """The smallest set found whose removal flips a prediction.

    Args:
        query: id of the query.
        answer: of the model as trained, in words.
        runner_up: the answer it gives second.
        new_answer: of the model retrained without the set; None where nothing was trained.
        measurement: the contrast of answer against runner-up.
        baseline: the contrast of the model as trained.
        predicted: the contrast without the set, as predicted.
        actual: the same after retraining; None where nothing was trained.
        train_ids: (M,) the set, the most influential first.
        tried: every set that was tried, in order.
        predicted_sizes: how many examples it takes, by first order and as predicted at first; None
            where the prediction is that no number does.
        examples: N.
        training: what trained again; None where nothing was.
        pictures: the query and the first examples of the set.
    """

    query: int | str
    answer: str
    runner_up: str
    new_answer: str | None
    measurement: Measurement
    baseline: float
    predicted: float | None
    actual: float | None
    train_ids: np.ndarray
    tried: tuple[Attempt, ...]
    predicted_sizes: dict[str, int | None]
    examples: int
    training: str | None
    pictures: tuple[tuple[Json, str], ...]

    @property
    def is_checked(self) -> bool:
        """Whether the set was left out in a real training."""
        return self.training is not None

    @property
    def flipped(self) -> bool | None:
        """Whether retraining without the set changes the answer; None where nothing was trained."""
        return self.new_answer != self.answer if self.is_checked else None

    @property
    def is_found(self) -> bool:
        """Whether the set flips the prediction, after retraining or, without one, as predicted."""
        if self.is_checked:
            return bool(self.flipped)
        return self.predicted_sizes["predicted"] is not None

    @property
    def size(self) -> int:
        """M, how many training examples are in the set."""
        return len(self.train_ids)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        share = f"{self.size:,} of {self.examples:,} training examples"
        if not self.is_checked:
            return (
                f"Without {share} the model is predicted to say {self.runner_up} instead of "
                f"{self.answer} to query {self.query}; nothing was trained to check it."
            )
        if self.flipped:
            return (
                f"Trained again without {share}, the model says {self.new_answer} instead of "
                f"{self.answer} to query {self.query}. Smaller sets may exist."
            )
        return (
            f"No set was found: without {share} the model still says {self.answer} to query "
            f"{self.query}."
        )

    def section(self) -> Section:
        """The set, the sizes that were tried, and pictures."""
        columns = (
            "examples left out",
            "contrast as predicted (logits)",
            "after retraining (logits)",
            "model says",
        )
        by_size: dict[int, Attempt] = {}
        for one in sorted(self.tried, key=lambda one: (len(one.positions), one.actual or 0.0)):
            by_size.setdefault(len(one.positions), one)  # of several sets of a size, the lowest
        rows = [(size, one.predicted, one.actual, one.answer) for size, one in by_size.items()]
        words = f"Contrast of {self.answer} against {self.runner_up}; now {self.baseline:.3g}."
        blocks: list[Block] = [Table(columns, rows, words)]
        if self.pictures:
            blocks.append(Gallery(self.pictures, "The query, and the strongest of the set."))
        title = f"What it takes to flip query {self.query}"
        return Section("smallest_flip", title, self.sentence, blocks)

    def to_json(self) -> dict[str, Any]:
        """The set and every attempt."""
        return {
            "query": self.query,
            "answer": self.answer,
            "runner_up": self.runner_up,
            "new_answer": self.new_answer,
            "flipped": self.flipped,
            "size": self.size,
            "examples": self.examples,
            "train_ids": self.train_ids.tolist(),
            "measurement": self.measurement.name,
            "unit": self.measurement.unit,
            "before": self.baseline,
            "predicted": self.predicted,
            "actual": self.actual,
            "predicted_sizes": self.predicted_sizes,
            "training": self.training,
            "tried": [
                {
                    "size": len(one.positions),
                    "predicted": one.predicted,
                    "actual": one.actual,
                    "answer": one.answer,
                }
                for one in self.tried
            ],
            "sentence": self.sentence,
        }


# --------------------------------------------------------------------- many predictions


def brittleness(
    problem: Problem,
    queries: object,
    *,
    most: int | None = None,
    retrain: bool | Trainer | Callable[..., object] = True,
    method: MethodLike = "auto",
    seed: int = 0,
) -> "Brittleness":
    """How few training examples hold each of several predictions.

    Args:
        problem: what was trained; a classifier.
        queries: in the form of the training data.
        most: examples that may be removed for one query, default half of the training data.
        retrain: as for `smallest_flip`, which is asked about every query.
        method: ranks the examples; as in `explain`.
        seed: of the trainings.

    Returns:
        The smallest set found for each query.

    Raises:
        WhenceError: what `smallest_flip` refuses.
    """
    asked = problem.queries(queries)
    options: Any = {"most": most, "retrain": retrain, "method": method, "seed": seed}
    each = [asked.take([row]) for row in range(len(asked))]
    _check(problem, each[0], most)
    fitted = fit_to_respond(problem, method)
    rows = track(each, "Looking for the sets that hold predictions")
    flips = [_find(problem, one, fitted, **options) for one in rows]
    return Brittleness(tuple(flips))


@dataclass(frozen=True, eq=False, repr=False)
class Brittleness(Result):
    """The smallest set found for each of several predictions.

    Args:
        flips: one for each query, in order.
    """

    flips: tuple[Flip, ...]

    @property
    def sizes(self) -> np.ndarray:
        """(Q,) examples whose removal flips each prediction; NaN where no set was found."""
        return np.array([one.size if one.is_found else np.nan for one in self.flips], dtype=float)

    def size_for(self, share: float = 0.5) -> int | None:
        """The smallest number of examples that suffices for this share of the predictions.

        Args:
            share: above 0, up to 1.

        Returns:
            None where no sets were found for so many predictions.

        Raises:
            BadArgument: a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise BadArgument(
                found=f"share={share!r}.",
                why="It is a part of the predictions.",
                remedy="Give a number above 0, and at most 1.",
            )
        found = np.sort(self.sizes)  # NaN last
        size = found[int(np.ceil(share * len(found))) - 1]
        return None if np.isnan(size) else int(size)

    def section(self) -> Section:
        """How many predictions flip by how many examples, and each query."""
        columns = ("query", "model says", "flips to", "training examples left out")
        rows = [
            (str(one.query), one.answer, one.new_answer, one.size if one.is_found else None)
            for one in self.flips
        ]
        found = np.sort(self.sizes[np.isfinite(self.sizes)])
        share = np.arange(len(found) + 1) / len(self.flips)
        curve = {"x": [0.0, *found.tolist()], "y": share.tolist()}
        caption = "Sets found for each prediction; smaller ones may exist."
        blocks: list[Block] = [
            Lines({"predictions": curve}, "training examples left out", "share flipped", caption),
            Table(columns, rows, "One row a prediction."),
        ]
        title = f"How few training examples hold {len(self.flips)} predictions"
        return Section("brittleness", title, self._sentence(), blocks)

    def to_json(self) -> dict[str, Any]:
        """The sizes, and every search."""
        sizes = [None if np.isnan(size) else int(size) for size in self.sizes]
        return {
            "sizes": sizes,
            "half": self.size_for(0.5),
            "flips": [one.to_json() for one in self.flips],
            "sentence": self._sentence(),
        }

    def _sentence(self) -> str:
        half, examples = self.size_for(0.5), self.flips[0].examples
        checked = "trained again" if self.flips[0].is_checked else "as predicted"
        found = [one for one in self.flips if one.is_found]
        if not found:
            return f"No set was found that flips any of {len(self.flips)} predictions."
        weakest = min(found, key=lambda one: one.size)
        words = f"The most fragile of {len(self.flips)} predictions, query {weakest.query}, flips "
        words += f"without {weakest.size:,} of {examples:,} training examples ({checked})"
        if half is None:
            return f"{words}; for {len(self.flips) - len(found)} of them no set was found."
        return f"{words}; for half of them at most {half:,} suffice."


# ------------------------------------------------------------------------ the search


class _Search:
    """Looks for a small set: ranks, predicts how many it takes, and trains again."""

    def __init__(
        self,
        problem: Problem,
        asked: Queries,
        method: MethodLike,
        most: int,
        seed: int,
    ) -> None:
        self.problem = problem
        self.asked = asked
        self.method = method
        self.most = most
        self.seed = seed
        self.answer, self.runner_up = _first_two(problem, asked)
        names = (problem.label_name(code) for code in (self.answer, self.runner_up))
        self.measurement = problem.measurement(contrast(*names))
        self.bench: Bench | None = None
        self.fitted: Fitted | None = None
        self.baseline = 0.0
        self.tried: list[Attempt] = []

    def run(self) -> tuple[Attempt, dict[str, int | None]]:
        """The best attempt, and the sizes that were predicted at first."""
        ranking = _Ranking(self, ())
        self.baseline = ranking.baseline
        first = {"first order": ranking.first_order_size(), "predicted": ranking.size()}
        best = self._flip(ranking, self.most)
        if self.bench is None:
            self.tried.append(best)
            return best, first
        for _ in track(range(ROUNDS), "Looking for a smaller set"):
            middle = (len(ranking.fixed) + min(len(best.positions), ranking.guess(self.most))) // 2
            if middle <= len(ranking.fixed):
                break
            half = ranking.first(middle)
            kept = next((one for one in self.tried if one.positions == half), None)
            kept = kept or self._train([half], [ranking.predict(middle)])[0]
            ranking = _Ranking(self, half, kept.parameters)
            limit = len(best.positions) - 1 if best.is_flip else self.most
            found = self._flip(ranking, limit)
            if best.is_flip and not found.is_flip:
                break
            best = found
        return best, first

    def _flip(self, ranking: "_Ranking", most: int) -> Attempt:
        """The smallest flipping set along one ranking, or the largest that was tried."""
        low, most = len(ranking.fixed), min(most, len(ranking.fixed) + len(ranking.order))
        guess = ranking.guess(most)
        best = last = ranking.attempt(guess)
        sizes = [] if self.bench is None else _around(guess, low + 1, most)
        while sizes:
            sets = [ranking.first(size) for size in sizes]
            tried = self._train(sets, [ranking.predict(size) for size in sizes])
            flips = [one for one in tried if one.is_flip]
            best, last = (flips[0] if flips else best), tried[-1]
            if not best.is_flip:  # the ranking may have grown old: its end decides
                sizes = [most] if sizes[-1] < most else []
                continue
            high = len(best.positions)
            low = max([low, *(n for one in tried if (n := len(one.positions)) < high)])
            sizes = _spread(low, high)
        return best if best.is_flip else last

    def _train(
        self, sets: list[tuple[int, ...]], predicted: Sequence[float | None]
    ) -> list[Attempt]:
        """Trains without each of several sets."""
        problem, bench = self.problem, cast("Bench", self.bench)
        rows = torch.stack(
            [removal(np.array(one, dtype=np.int64)).row(len(problem)) for one in sets]
        )
        parameters = bench.training.retrain(problem, rows, seed=self.seed).parameters
        values = bench.values(parameters)[0]
        found: list[Attempt] = []
        for one, guess, value, theta in zip(sets, predicted, values, parameters, strict=True):
            answer, _ = _first_two(problem.at(theta), self.asked)
            is_flip = bool(answer != self.answer)
            name = problem.label_name(answer)
            found.append(Attempt(one, guess, float(value), name, is_flip, theta))
        self.tried += found
        return found


class _Ranking:
    """Training examples by their effect on the contrast, on the model without a fixed set."""

    def __init__(
        self, search: _Search, fixed: tuple[int, ...], parameters: Tensor | None = None
    ) -> None:
        problem = search.problem
        if fixed:
            row = removal(np.array(fixed, dtype=np.int64)).row(len(problem))
            weights = problem.weights * row.to(problem.weights)
            problem = replace(problem, weights=weights).at(cast("Tensor", parameters))
        self.fixed = fixed
        self.search = search
        known = None if fixed else search.fitted
        self.fitted: Fitted = known or fit_to_respond(problem, search.method)
        scores = self.fitted.scores(search.asked, search.measurement)
        self.baseline, self.effects = float(scores.baseline[0]), scores.values[0].copy()
        self.effects[list(fixed)] = 0
        order = np.argsort(self.effects, kind="stable")
        self.order = order[self.effects[order] < 0]

    def first(self, size: int) -> tuple[int, ...]:
        """The fixed set and the strongest others, `size` in all."""
        return (*self.fixed, *self.order[: size - len(self.fixed)].tolist())

    def first_order_size(self) -> int | None:
        """How many it takes if effects add up; None where all together do not suffice."""
        totals = self.baseline + np.cumsum(self.effects[self.order])
        below = np.flatnonzero(totals < 0)
        return None if len(below) == 0 else len(self.fixed) + int(below[0]) + 1

    def size(self) -> int | None:
        """How many it takes as predicted for whole groups; found by halving."""
        low, high = len(self.fixed), self.first_order_size()
        high = len(self.fixed) + len(self.order) if high is None else high
        high = min(high, self.search.most)
        if high <= low or self.predict(high) >= 0:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.predict(middle) < 0 else (middle, high)
        return high

    def guess(self, most: int) -> int:
        """The predicted size, or `most` where no number is predicted to do."""
        return min(self.size() or most, most)

    def predict(self, size: int) -> float:
        """The contrast without the first `size`."""
        rest = np.array(self.first(size)[len(self.fixed) :], dtype=np.int64)
        if len(rest) == 0:
            return self.baseline
        response = self.fitted.respond(removal(rest), self.search.asked, self.search.measurement)
        return self.baseline + float(response.values[0])

    def attempt(self, size: int) -> Attempt:
        """The set of this size, predicted and not trained."""
        return Attempt(self.first(size), self.predict(size))


def _around(guess: int, low: int, high: int) -> list[int]:
    """Sizes from half the guess to twice it."""
    sizes = {round(guess * 2 ** (step / 2)) for step in range(-2, 3)}
    return sorted(size for size in {*sizes, guess} if low <= size <= high) or [min(low, high)]


def _spread(low: int, high: int) -> list[int]:
    """At most `_TOGETHER` sizes strictly between two, evenly spaced."""
    inside = np.linspace(low, high, _TOGETHER + 2)[1:-1].round().astype(int)
    return sorted({int(size) for size in inside if low < size < high})


def _first_two(problem: Problem, asked: Queries) -> tuple[Tensor, Tensor]:
    """The model's answer to the one query and its second, as the loss knows them."""
    with torch.no_grad():
        outputs = problem.outputs(problem.parameters, asked.inputs)
    answer = predicted_targets(outputs, problem.loss)[0].cpu()
    if problem.loss.task == "classes":
        return answer, outputs[0].flatten().argsort(descending=True)[1].cpu()
    return answer, -answer if problem.loss.task == "signed" else 1 - answer


def _check(problem: Problem, asked: Queries, most: int | None) -> int:
    """How many examples may be removed."""
    if problem.loss.task not in ("classes", "binary", "signed"):
        raise Unsupported(
            found=f"The model was trained with the loss {problem.loss.name!r}.",
            why="Only the answer of a classifier is one thing or another.",
            remedy="For numbers ask whence.remove what a group of examples changes.",
        )
    if len(asked) != 1:
        raise BadArgument(
            found=f"{len(asked)} queries were given.",
            why="Each prediction has a smallest set of its own.",
            remedy="Give one query, such as (X[0:1], y[0:1]).",
        )
    most = max(1, len(problem) // 2) if most is None else most
    if not 1 <= most < len(problem):
        raise BadArgument(
            found=f"most={most} of {len(problem)} training examples.",
            why="Something has to be removed, and something to remain.",
            remedy=f"Give a number from 1 to {len(problem) - 1}.",
        )
    return most


def _pictures(
    problem: Problem, asked: Queries, positions: tuple[int, ...]
) -> tuple[tuple[Json, str], ...]:
    shown = [(problem.show_asked(asked, 0), f"query {asked.ids.tolist()[0]}")]
    for position in positions:
        label = problem.label_of(position)
        shown.append((problem.show(position), f"example {problem.data.ids[position]}, {label}"))
    return tuple(shown)
