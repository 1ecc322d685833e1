"""Exact derivatives through training: of one run, or the median of runs on random subsets."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from whence.calculus.gradients import measure, measurement_gradients
from whence.calculus.metasmoothness import metasmoothness
from whence.calculus.replay import MEMORY, Recording, record, replay
from whence.calculus.training import Course, Training
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement, Scores
from whence.errors import BadArgument, CannotRetrain, Stale
from whence.methods.base import Fitted, MeasurementLike, Method, make_scores, merge_reports
from whence.numerics import draws

FIRST_SEED = 20_000
"""Subsets are trained from seeds far from those by which a verification trains."""

ROUGH = 0.9
"""A metasmoothness below this is warned about: perceptrons above 0.95 had rank correlations of 0.98
and more where 1 % of the data goes, those below 0.9 of 0.43 to 0.57
(`benchmarks/magic_smoothness.py`)."""

_ERROR = 1.2533 * 1.4826
"""Of normal numbers: standard error of the median over that of the mean, deviation over median
deviation."""


@dataclass(frozen=True)
class MAGIC(Method):
    """Derivative of the measurement with respect to the weight of every example, through training.

        effect[q, i] = -d m_q(theta_T(w)) / d w_i                                     at w = 1

    That is the effect of removing an example from this very training, with its seed, its batches
    and everything that its optimizer does, to first order in the weight. Nothing is assumed of the
    model: it need not be at an optimum.

    With `subsets` the question is what an example is worth to training, whatever the seed: the
    median of the derivatives at the weights of M random subsets, each trained from its own seed,

        effect[q, i] = median over k of -d m_q(theta_T(1_k)) / d w_i
        error[q, i]  = 1.25 * 1.48 * (median |effect_k - effect|) / sqrt(M)

    It is linearised where a removal of many examples leads. Every run answers for all examples:
    those of weight zero are in their batches too. The median, because derivatives have heavy tails
    where training is rough: the first gradient that a parameter of Adam ever meets is scaled to
    one, whatever the weight of the example that brings it. A mean is then that of a few runs.

    Args:
        subsets: M; 0 differentiates the problem's own run.
        fraction: share of the examples that a subset holds.
        seed: of the subsets and of their trainings.
        own_seed: trains the subsets from the problem's own seed: what an example is worth to this
            very run, linearised where a share of its data is gone. For a training that is rough in
            its weights, whose derivatives at one point mean little.
        directions: in which metasmoothness is measured, two trainings each; 0 leaves it out.
        memory: bytes for states and adjoints; with less, states are computed again.

    Raises:
        BadArgument: on fitting, a number outside its range, or more subsets than there are.
        CannotRetrain: on fitting, the problem has no `Training`.
        Stale: on fitting, the parameters are not what the training returns.

    Cost: a training and two for each direction for the fit; per call of `scores` a replay: one or
    two trainings for each query, much less for many queries of a small network. With subsets M
    trainings and M replays, and 8 M Q N bytes.

    Source: Ilyas & Engstrom 2025 (MAGIC), as far as its abstract tells. Subsets are ours: the mean
    of such derivatives is, to first order, the gradient of the multilinear extension of the
    measurement as a function of sets, at `fraction`; at one half that is the Banzhaf value. The
    error is that of a median of normal numbers, with their deviation from the median deviation.
    """

    follows_training: ClassVar[bool] = True
    scores_unseen: ClassVar[bool] = False

    subsets: int = 0
    fraction: float = 0.5
    seed: int = 0
    own_seed: bool = False
    directions: int = 1
    memory: int = MEMORY

    def fit(self, problem: Problem) -> "FittedMAGIC":
        """Runs the training, and looks whether it is smooth; see the class."""
        self._check()
        problem.check()
        started = time.monotonic()
        runs = self._runs(problem, _training_of(problem))
        first = record(*runs[0], memory=self.memory)
        report: dict[str, Any] = {
            "method": "magic",
            "training": first.course.training.name,
            "steps": first.course.steps,
            "states_kept": len(first.kept),
        }
        if self.subsets:
            report |= {"subsets": self.subsets, "fraction": self.fraction, "seed": self.seed}
            report["own_seed"] = self.own_seed
        if self.own_seed or not self.subsets:
            end = problem.retrain().parameters[0] if self.subsets else first.end[0]
            report["distance_to_training"] = _distance(problem, first.course, end)
        if self.directions:
            report |= _smoothness(first, self.directions)
        report["fit_seconds"] = time.monotonic() - started
        return FittedMAGIC(problem, report, runs, first, self.memory)

    def _check(self) -> None:
        is_share = 0 < self.fraction < 1
        if self.subsets < 0 or self.subsets == 1 or not is_share or self.directions < 0:
            raise BadArgument(
                found=f"subsets={self.subsets!r}, fraction={self.fraction!r}, "
                f"directions={self.directions!r}.",
                why="A median with an error is of two runs or more, on a share of the data.",
                remedy="Give subsets=0 for the problem's own run, or 2 and more, such as 10, with "
                "a fraction between 0 and 1.",
            )

    def _runs(self, problem: Problem, training: Training) -> "tuple[Run, ...]":
        """The trainings to be differentiated."""
        if not self.subsets:
            return ((Course(problem, training), torch.ones(len(problem))),)
        keys = draws.keys(problem.data.ids)
        size = max(1, round(self.fraction * len(problem)))
        inside = draws.subsets(self.seed, keys, count=self.subsets, size=size)
        first = FIRST_SEED + self.seed * self.subsets
        seeds = [0 if self.own_seed else first + place for place in range(self.subsets)]
        return tuple(
            (Course(problem, training, seed), row.to(problem.dtype))
            for seed, row in zip(seeds, inside, strict=True)
        )


Run = tuple[Course, Tensor]
"""A training, and the weights (N,) of its examples."""


def _training_of(problem: Problem) -> Training:
    """How the problem was trained.

    Raises:
        CannotRetrain: it does not say so step by step.
    """
    if isinstance(problem.training, Training):
        return problem.training
    known = problem.training.name if problem.training else "nothing"
    raise CannotRetrain(
        found=f"{problem.name} was trained by {known}, which is not a Training.",
        why="Derivatives go back through every step of it.",
        remedy="Write the training down as a recipe: make_problem(Training(make_model, "
        'optimizer="adamw", lr=1e-3, epochs=10), data, loss=...).',
    )


def _distance(problem: Problem, course: Course, end: Tensor) -> float:
    """How far the problem's parameters are from what the training returns, of its own way.

    Raises:
        Stale: further than rounding explains.
    """
    moved = float((end - course.start()[0]).double().norm())
    gap = float((end - problem.parameters).double().norm())
    # Rounding grows by some powers of ten on the way; another seed is as far as training moves.
    if gap > torch.finfo(problem.dtype).eps ** 0.5 * 10 * moved:
        raise Stale(
            found=f"The parameters are {gap:.3g} from what the training returns, which itself has "
            f"moved them by {moved:.3g}.",
            why="Derivatives through a training explain the model that it leads to, and no other.",
            remedy="Let make_problem train: make_problem(training, data, loss=...); or give the "
            "Training the seed, the data and the options that the model was trained with.",
        )
    return gap / moved if moved else gap


def _smoothness(recording: Recording, directions: int) -> dict[str, Any]:
    share = metasmoothness(
        recording.course, recording.weights, recording.end[0], directions=directions
    )
    warnings = []
    if share < ROUGH:
        warnings.append(
            f"Training is rough in its weights (metasmoothness {share:.2f}; 1 is smooth, 0.71 is "
            "what two unrelated halves of a way reach): removals will not be what derivatives "
            "through training say. A smooth activation, Adam(eps_root=1e-6) or a lower learning "
            "rate make it smoother, and MAGIC(subsets=10) asks another question; verify tells."
        )
    return {"metasmoothness": share, "warnings": warnings}


@dataclass(frozen=True)
class FittedMAGIC(Fitted):
    """Trainings that can be gone through backwards.

    Args:
        problem: what was trained.
        report: of the trainings.
        runs: what is differentiated.
        first: the recording of the first of them.
        memory: bytes for states and adjoints.
    """

    runs: tuple[Run, ...]
    first: Recording
    memory: int

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Derivatives of all queries, from one replay a run; see `Fitted.scores`.

        Raises:
            Diverged: a derivative is not finite.
        """
        started = time.monotonic()
        asked = self.problem.queries(queries)
        measured = self.problem.measurement(measurement)
        effects = np.stack([self._effects(run, asked, measured) for run in self._recordings()])
        values = np.median(effects, 0)
        scores = make_scores(
            self.problem,
            asked,
            measured,
            values=values,
            baseline=measure(self.problem, measured, asked),
            report=merge_reports(self.report),
            started=started,
        )
        if len(effects) == 1:
            return scores
        spread = np.median(abs(effects - values), 0)
        return replace(scores, errors=_ERROR * spread / len(effects) ** 0.5)

    def _effects(self, run: Recording, asked: Queries, measured: Measurement) -> np.ndarray:
        """(Q, N) those in one run."""
        _, slopes = measurement_gradients(run.problem, measured, asked)
        return -replay(run, slopes, memory=self.memory).numpy()

    def _recordings(self) -> Iterator[Recording]:
        """Each run in turn; the memory of one of them at a time, beside that of the first."""
        yield self.first
        for course, weights in self.runs[1:]:
            prepared = self.first.derivatives
            yield record(course, weights, memory=self.memory, derivatives=prepared)
