"""Queries come back from scores as they were asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence.core.kept import kept_queries
from whence.errors import BadArgument


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.map(torch.cat([left, right], 1))


def made():
    torch.manual_seed(0)
    data = ((torch.randn(12, 2), torch.randn(12, 1)), torch.arange(12) % 2)
    problem = whence.make_problem(Pair(), data, loss="cross_entropy", weight_decay=0.1)
    return problem, whence.explain(problem, ((data[0][0][:4], data[0][1][:4]), data[1][:4]))


@pytest.mark.parametrize("rows", [None, [2, 0]])
def test_explaining_them_again_gives_the_same_scores(rows):
    problem, scores = made()
    asked = kept_queries(problem, scores, rows)
    chosen = [0, 1, 2, 3] if rows is None else rows
    assert asked.ids.tolist() == scores.query_ids[chosen].tolist()
    again = whence.explain(problem, asked)
    assert np.allclose(again.values, scores.values[chosen], rtol=1e-5, atol=1e-7)  # float32


def test_scores_made_by_hand_have_no_queries():
    problem, scores = made()
    with pytest.raises(BadArgument, match="do not hold their queries"):
        kept_queries(problem, replace(scores, queries={}))
