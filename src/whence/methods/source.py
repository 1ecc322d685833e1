"""SOURCE: training unrolled in segments, each with a curvature of its own."""

import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from whence.calculus.checkpoints import Checkpoint, checkpoints
from whence.calculus.fisher import FisherName
from whence.calculus.gradients import measurement_gradients
from whence.calculus.segments import Segment, make_segment
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.curvature.base import layer_decay, make_fisher
from whence.errors import BadArgument
from whence.methods.base import Fitted, MeasurementLike, Method, first_order, make_scores


@dataclass(frozen=True)
class Source(Method):
    """Unrolled training: what an example did in each segment, and what was left of it at the end.

        effect[q, i] = grad m_q^T sum_l S_L ... S_(l+1) R_l g_l,i / N
        S_l = exp(-t_l H_l),    R_l = (I - S_l) H_l^-1,    g_l,i = mean of b_i grad loss_i over l

    t_l is the learning rate times the steps of segment l, with momentum divided by one less the
    momentum; H_l is the mean curvature over the checkpoints of the segment, by layers (EK-FAC).
    With one segment it is `ekfac` with a damping that training itself brings along, about 1 / t.
    It needs no optimum: directions that training has not settled in yet count as far as it went.

    1. Adam divides each gradient by the root of its running square. A layer is then taken to have
       the mean of these factors over its parameters as learning rate.
    2. Weight decay beside the step (AdamW) is left out of H.

    Args:
        segments: L, of equally many steps.
        checkpoints: C, a multiple of L, each in the middle of an equal share of the steps.
        fisher: the Fisher information of the layers; see `EKFAC`.
        seed: of its draws.

    Raises:
        BadArgument: on fitting, C is no multiple of L, or larger than the number of steps.
        CannotRetrain: on fitting, the problem has no `Training`.
        Unsupported: on fitting, a regulariser that is not diagonal.

    Cost: one training; at each checkpoint the fit of `ekfac` on all data, and one pass over the
    data for all queries.

    Source: Bae et al. 2024 (arXiv:2405.12186), section 3.
    """

    follows_training: ClassVar[bool] = True

    segments: int = 3
    checkpoints: int = 6
    fisher: FisherName | Literal["auto"] = "auto"
    seed: int = 0

    def fit(self, problem: Problem) -> "FittedSource":
        """Runs the training once, and finds the curvature of every segment."""
        if self.segments < 1 or self.checkpoints < 1 or self.checkpoints % self.segments:
            raise BadArgument(
                found=f"segments={self.segments!r}, checkpoints={self.checkpoints!r}.",
                why="Every segment has as many checkpoints as any other.",
                remedy="Give a multiple, such as segments=3 with checkpoints=6.",
            )
        problem.check()
        fisher = make_fisher(problem, self.fisher, self.seed)
        fisher.check(problem)
        decay, started = layer_decay(problem), time.monotonic()
        each = self.checkpoints // self.segments
        seen = checkpoints(problem, self.checkpoints)
        parts = [seen[place : place + each] for place in range(0, len(seen), each)]
        segments = [
            make_segment(
                [problem.at(place.parameters) for place in part],
                [place.reach for place in part],
                fisher,
                decay=decay,
            )
            for part in parts
        ]
        pairs = zip(segments, parts, strict=True)
        stretches = tuple(Stretch(segment, tuple(part)) for segment, part in pairs)
        report = {
            "method": "source",
            "segments": self.segments,
            "checkpoints": self.checkpoints,
            "derived_damping": [1 / max(stretch.segment.times) for stretch in stretches],
            "fit_seconds": time.monotonic() - started,
        }
        return FittedSource(problem, report, stretches)


@dataclass(frozen=True, eq=False)
class Stretch:
    """A segment and the checkpoints in it.

    Args:
        segment: its curvature.
        checkpoints: where gradients are taken.
    """

    segment: Segment
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class FittedSource(Fitted):
    """The segments of a training.

    Args:
        problem: what was trained.
        report: how many there are.
        stretches: in the order of the training.
    """

    stretches: tuple[Stretch, ...]

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Effects added up over the segments, the last one first; see `Fitted.scores`."""
        started = time.monotonic()
        problem = self.problem
        asked = problem.queries(queries)
        measured = problem.measurement(measurement)
        baseline, left = measurement_gradients(problem, measured, asked)
        values = np.zeros((len(asked), len(problem)))
        for stretch in reversed(self.stretches):
            moved = stretch.segment.respond(left)
            found = [first_order(problem.at(c.parameters), moved) for c in stretch.checkpoints]
            values += np.mean(found, axis=0)
            left = stretch.segment.shrink(left)
        return make_scores(
            problem,
            asked,
            measured,
            values=values,
            baseline=baseline,
            report=self.report,
            started=started,
        )
