"""Following the optimum while the training data change a little at a time.

From the optimum before a small change, a few steps with an inverse Hessian from nearby lead to the
optimum after it. The same matrix preconditions the solves for the next change.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.calculus.products import CurvatureMatrix, MatrixName, example_pull, hessian_is_ggn
from whence.calculus.retraining import (
    DENSE_PARAMETERS,
    USEFUL,
    Goal,
    NewtonTraining,
    Objectives,
    Preconditioner,
    hessian_preconditioner,
    minimise,
)
from whence.core.problem import Problem
from whence.errors import CannotRetrain, NotConverged
from whence.numerics.linalg import block_cg

RESIDUAL = 1e-3
"""Of a solve, relative."""

_LEFT = 1e-6
"""Gradient that is left at an optimum, as a share of one example's pull: moving one image by 0.02
grey levels changes about a thousandth of that pull."""

_MOST_STEPS = 200
"""From one optimum to the next; after a small change it takes about five."""


@dataclass(frozen=True, eq=False)
class Follower:
    """Knows an optimum and an inverse Hessian near it.

    Args:
        clean: the problem as it was given, at its optimum.
        precondition: an inverse Hessian there, or at a later state.
        pull: what one example does to the gradient of the objective.
        kind: the cheaper matrix of those that equal the Hessian.
    """

    clean: Problem
    precondition: Preconditioner
    pull: float
    kind: MatrixName

    def follow(self, problem: Problem) -> Problem:
        """The problem at the optimum near its parameters.

        Raises:
            NotConverged: there is none within `_MOST_STEPS`.
        """
        ones = torch.ones(1, len(problem), dtype=problem.dtype, device=problem.device)
        found = minimise(
            Objectives(problem, ones),
            problem.parameters.detach()[None],
            self.precondition,
            goal=Goal(_LEFT * self.pull, _LEFT * self.pull),
            max_steps=_MOST_STEPS,
        )
        remaining = float(found.norms[0]) / self.pull
        if not remaining <= USEFUL:
            raise NotConverged(
                found=f"After a small change of the training data no optimum was found: the "
                f"gradient stayed at {remaining:.2g} times one example's pull.",
                why="What the next change does would drown in what this training left undone.",
                remedy="Use a model with an optimum nearby: smooth, and with weight decay.",
            )
        return problem.at(found.parameters[0])

    def solve(self, problem: Problem, vectors: Tensor) -> Tensor:
        """(K, P) H^-1 v with the Hessian at the present data and parameters, to `RESIDUAL`."""
        return block_cg(
            CurvatureMatrix(problem, self.kind),
            vectors,
            tolerance=RESIDUAL,
            max_steps=problem.size + 20,
            preconditioner=self.precondition,
        ).solution

    def renewed(self, problem: Problem) -> "Follower":
        """The same with the inverse Hessian of this state."""
        return replace(self, precondition=hessian_preconditioner(problem))


def make_follower(problem: Problem) -> Follower:
    """Finds the optimum near the parameters, and the inverse Hessian there.

    Raises:
        CannotRetrain: no optimum was found, or the model has more than `DENSE_PARAMETERS`.
    """
    if problem.size > DENSE_PARAMETERS:
        raise CannotRetrain(
            found=f"The model has {problem.size:,} parameters.",
            why="It would be trained again after every small change, with a dense Hessian of up "
            f"to {DENSE_PARAMETERS:,}.",
            remedy="Use the head alone: give the layers below it as features=.",
        )
    ones = torch.ones(1, len(problem), dtype=problem.dtype, device=problem.device)
    try:
        optimum = NewtonTraining().retrain(problem, ones).parameters[0]
    except NotConverged as error:
        raise CannotRetrain(
            found=f"The model as it is cannot be trained again: {error.found}",
            why="It would be trained to its optimum after every small change.",
            remedy="Use a model with an optimum: a head on frozen features=, with weight decay.",
        ) from error
    clean = problem.at(optimum)
    return Follower(
        clean=clean,
        precondition=hessian_preconditioner(clean),
        pull=example_pull(clean) or 1 / len(clean),
        kind="ggn" if hessian_is_ggn(clean) else "hessian",
    )
