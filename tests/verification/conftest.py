"""Problems whose effects are known, or can be trained again in no time."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import problems
import whence
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.core.training import CallableTraining
from whence.explanation import explain
from whence.methods.influence import Influence


@pytest.fixture(scope="session")
def ridge() -> tuple[Problem, Scores]:
    """Ridge regression, and its leave-one-out effects: one Newton step is exact."""
    case = problems.ridge()
    return case.problem, explain(case.problem, case.queries, method=Influence(removal="newton"))


@pytest.fixture(scope="session")
def multinomial() -> tuple[Problem, Scores]:
    case = problems.multinomial()
    return case.problem, explain(case.problem, case.queries, method=Influence(removal="newton"))


@pytest.fixture(scope="session")
def network() -> tuple[Problem, Scores]:
    """A network with a recipe, and its influence through the damped Gauss-Newton matrix."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=random).double()
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    recipe = whence.Training(make, lr=0.02, epochs=12, batch_size=16)
    problem = whence.make_problem(recipe, (x, y), loss="cross_entropy")
    query = torch.randn(5, 4, generator=random).double()
    return problem, explain(problem, (query, torch.tensor([0, 1, 2, 1, 0])), method="exact")


class Additive:
    """A training whose parameters are linear in the weights, so that effects add up exactly.

    Args:
        problem: ridge regression, whose prediction is linear in the parameters.
        noise: standard deviation of what every training adds by chance.
    """

    def __init__(self, problem: Problem, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.problem, self.noise = problem, noise
        self.pulls = torch.randn(len(problem), problem.size, generator=generator).double()

    def __call__(self, weights: Tensor, seed: int) -> Tensor:
        theta = self.problem.parameters + (weights - 1) @ self.pulls
        places = torch.arange(1.0, 1 + len(weights)).double()
        key = 1000 * seed + int(1e4 * ((weights * places).sum().sin() + 2))
        random = torch.randn(len(theta), generator=torch.Generator().manual_seed(key)).double()
        return theta + self.noise * random

    @property
    def training(self) -> CallableTraining:
        return CallableTraining(self, is_deterministic=self.noise == 0)

    def scores(self, scores: Scores) -> Scores:
        """The scores with the effects of this training in their place."""
        inputs = np.hstack([scores.queries["inputs"], np.ones((len(scores.values), 1))])
        values = -inputs @ self.pulls.numpy().T
        return Scores(
            values=values,
            query_ids=scores.query_ids,
            train_ids=scores.train_ids,
            measurement=scores.measurement,
            baseline=scores.baseline,
            queries=scores.queries,
            report=scores.report,
        )


@pytest.fixture(scope="session")
def additive() -> type[Additive]:
    return Additive
