"""The proximal Bregman objective: what influence answers for models that are at no optimum.

    Q_w(theta) = (1/N) sum_i b_i D_i(f_i(theta), f_i(s)) + D_r(theta, s)
                 + (damping / 2) |theta - s|^2 + R(theta; w) - R(theta; 1)

s are the parameters as they are, f_i the outputs of example i, D_i the Bregman divergence of its
loss as a function of the outputs, D_r that of the regulariser. Without a removal, s itself is the
minimum. With one, the model gives up the example's loss while it keeps to its other outputs, and
stays close to where it is. To first order in the removal

    theta = s + (1/N) (G + r'' + damping I)^-1 grad loss_i            G = Gauss-Newton matrix

which is what influence with the damped Gauss-Newton matrix predicts. For a model that is linear in
its parameters and at its optimum, Q_w without damping is R(theta; w) plus a constant: the answer is
that of leave-one-out.

Source: Bae, Ng, Lo, Ghassemi & Grosse 2022 (arXiv:2209.05364), "If Influence Functions are the
Answer, Then What is the Question?" (cited from memory). Ours, beyond it: N fixed or renormalised as
the problem has it, base weights, and the regulariser as one more divergence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad

from whence.calculus.gradients import residuals
from whence.calculus.products import example_pull
from whence.calculus.retraining import (
    DENSE_PARAMETERS,
    USEFUL,
    Goal,
    Objectives,
    hessian_preconditioner,
    minimise,
    minimise_rows,
)
from whence.core.problem import Problem
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, NotConverged


@dataclass(frozen=True)
class BregmanTraining(Trainer):
    """The minimum of the proximal Bregman objective near the parameters, for each row of weights.

    Args:
        damping: weight of |theta - s|^2 / 2; that of the influence it is compared with.
        tolerance: a run ends when its gradient is this small a part of one example's pull.
        max_steps: per run.

    Raises:
        BadArgument: a negative damping.
    """

    damping: float
    tolerance: float = 1e-9
    max_steps: int = 2000

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise BadArgument(
                found=f"damping={self.damping!r}.",
                why="It is the weight of the distance from the parameters as they are.",
                remedy="Give a number of zero or more, such as the damping of the scores.",
            )

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"proximal Bregman objective, damping {self.damping:.3g}"

    @property
    def is_deterministic(self) -> bool:
        """Nothing in it is random."""
        return True

    def retrain(self, problem: Problem, weights: Tensor, *, seed: int = 0) -> Retrained:
        """Solves all runs together; see `Trainer.retrain`.

        Returns:
            (M, P) parameters. The report holds for each run `remaining`, the gradient that is left
            as a share of one example's pull, and `steps`.

        Raises:
            NotConverged: a gradient stayed above `USEFUL` of one example's pull.
        """
        del seed
        started = time.monotonic()
        problem = problem.widened()
        pull = example_pull(problem) or 1 / len(problem)
        reachable = max(self.tolerance, 8 * torch.finfo(problem.dtype).eps * len(problem))
        precondition = None
        if problem.size <= DENSE_PARAMETERS:
            precondition = hessian_preconditioner(problem, "ggn", damping=self.damping)
        goal = Goal(pull * reachable, pull * reachable)
        found = minimise_rows(
            weights.to(problem.parameters),
            _proximal(problem, self.damping),
            partial(minimise, precondition=precondition, goal=goal, max_steps=self.max_steps),
            start=problem.parameters.detach(),
        )
        remaining = found.norms / pull
        self._check(remaining)
        report = {
            "training": self.name,
            "remaining": remaining.tolist(),
            "steps": found.steps.tolist(),
            "seconds": time.monotonic() - started,
        }
        return Retrained(found.parameters, report)

    def _check(self, remaining: Tensor) -> None:
        is_bad = ~(remaining <= USEFUL)
        if bool(is_bad.any()):
            raise NotConverged(
                found=f"{int(is_bad.sum())} of {len(remaining)} minima of the proximal Bregman "
                f"objective were not found: a gradient of {remaining.max().item():.2g} times one "
                f"example's pull was left after {self.max_steps} steps or earlier.",
                why="The effect of a removal would drown in what is left undone.",
                remedy=f"Raise the damping (now {self.damping:.3g}); kinks, as of ReLU, may "
                "have no point without a gradient, where tanh or GELU have one.",
            )


def _proximal(problem: Problem, damping: float) -> "Callable[[Tensor], _Proximal]":
    """Makes Q_w around the parameters of a problem for rows of weights (M, N)."""
    start = problem.parameters.detach()
    slopes = [residuals(problem, batch) * batch.weights[:, None] for batch in problem.batches()]
    tilt = torch.cat(slopes) / len(problem)  # (N, C)
    penalty_slope = grad(problem.penalty)(start)
    return lambda weights: _Proximal(
        Objectives(problem, weights, tilt), penalty_slope, start, damping
    )


@dataclass(frozen=True)
class _Proximal:
    """Q_w up to a constant: the tilts turn R(theta; 1) into a sum of Bregman divergences.

    Args:
        objectives: R(theta; w), less what is linear in the outputs.
        penalty_slope: (P,) grad r(s).
        start: (P,) s.
        damping: weight of |theta - s|^2 / 2.
    """

    objectives: Objectives
    penalty_slope: Tensor
    start: Tensor
    damping: float

    def __call__(self, parameters: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) values and (K, P) gradients of the runs in `rows` (K,)."""
        values, slopes = self.objectives(parameters, rows)
        away = parameters - self.start
        pull = self.damping * away - self.penalty_slope
        values = values + ((pull - self.damping / 2 * away) * away).sum(1)
        return values, slopes + pull
