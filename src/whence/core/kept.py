"""The queries that scores have kept, in the form that the model takes."""

from collections.abc import Sequence
from typing import Any

import torch

from whence.core.batches import TensorData
from whence.core.problem import Problem, Queries
from whence.core.scores import Scores
from whence.errors import BadArgument


def kept_queries(
    problem: Problem, scores: Scores, positions: Sequence[int] | None = None
) -> Queries:
    """Queries as they were explained, to be measured or asked about again.

    Args:
        problem: what was explained.
        scores: made for this problem; see `Scores.refuse_other`.
        positions: of the queries, default all.

    Raises:
        BadArgument: the scores were made by hand, without their queries.
    """
    rows = list(range(len(scores.query_ids)) if positions is None else positions)
    kept = {name: array[rows] for name, array in scores.queries.items() if name != "displays"}
    tensors = {name: torch.from_numpy(array) for name, array in kept.items()}
    if "targets" not in tensors:
        raise BadArgument(
            found="The scores do not hold their queries.",
            why="They have to be measured again.",
            remedy="Make them with whence.explain(problem, queries).",
        )
    targets = tensors.pop("targets")
    inputs: Any = {name.removeprefix("inputs/"): tensor for name, tensor in tensors.items()}
    if "inputs" in inputs:
        inputs = inputs["inputs"]
    elif all(name.isdigit() for name in inputs):
        inputs = tuple(inputs[name] for name in sorted(inputs, key=int))
    return problem.queries(TensorData(inputs, targets, scores.query_ids[rows]))
