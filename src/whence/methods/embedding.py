"""Similarity of the representations that a model makes of examples."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._pytree import tree_map

from whence.core.batches import Batch, Tree, slices
from whence.core.problem import Problem, Queries
from whence.errors import Unsupported
from whence.methods.base import Method, Ranking, stream
from whence.progress import track

Features = Callable[[Tree], Tensor]
"""From B inputs to (B, d) representations."""


@dataclass(frozen=True)
class Embedding(Method):
    """Cosine of the representations of query and training example: a baseline without gradients.

        score[q, i] = h_q . h_i / (|h_q| |h_i|),         h = what goes into the last layer

    The last layer is the last module with parameters that the model calls; positions of a sequence
    or of a picture are averaged. Similar examples count as proponents whatever their label.
    Examples of base weight zero get 0.

    Args:
        features: `inputs -> (B, d)` representations to compare instead, such as those of another
            network; it is called with inputs in the form that the model takes.

    Raises:
        Unsupported: on fitting, the model's last layer shows no representation of each example.

    Cost: a forward pass of every example; N d numbers are kept.

    Source: Hanawa et al. 2021 (arXiv:2006.04528) for similarity of representations as explanation.
    """

    is_calibrated: ClassVar[bool] = False

    features: Features | None = None

    def fit(self, problem: Problem) -> Ranking:
        """Makes the representations of the training examples."""
        problem.check()
        features = self.features or _features(problem)
        width = _unit(features(problem.batch(torch.arange(1)).inputs)).shape[1]

        def rows(batch: Batch) -> Tensor:
            return _unit(features(batch.inputs)).T

        train = stream(problem, rows, queries=width, size=problem.batch_size())  # (d, N)

        def helpfulness(queries: Queries) -> np.ndarray:
            parts = slices(len(queries), problem.batch_size())
            asked = [_unit(features(_rows(queries.inputs, part))) for part in parts]
            return torch.cat(asked).double().cpu().numpy() @ train

        return Ranking(problem, {"method": "embedding", "width": width}, helpfulness)


def _unit(rows: Tensor) -> Tensor:
    """(B, d) rows of length one; rows of zeros stay."""
    return normalize(rows.detach().flatten(1).double()).nan_to_num()


def _rows(inputs: Tree, rows: Tensor) -> Tree:
    return tree_map(lambda leaf: leaf[rows.to(leaf.device)], inputs)


def _features(problem: Problem) -> Features:
    """What goes into the last layer; one example at a time where batches do not show them apart."""

    def together(inputs: Tree) -> Tensor:
        return _into_last_layer(problem, inputs)

    def one_by_one(inputs: Tree) -> Tensor:
        count = len(problem.outputs(problem.parameters, inputs))
        rows = track(range(count), "Representing examples")
        alone = [_into_last_layer(problem, _rows(inputs, torch.tensor([row]))) for row in rows]
        return torch.cat([rows.reshape(1, -1) for rows in alone])

    with torch.no_grad():
        few = problem.batch(torch.arange(min(2, len(problem)))).inputs
        expected, found = one_by_one(few), together(few)
    is_batched = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3)
    return torch.no_grad()(together if is_batched else one_by_one)


def _into_last_layer(problem: Problem, inputs: Tree) -> Tensor:
    """(B, d) the input of the last module with parameters that is called, positions averaged.

    Raises:
        Unsupported: no module with parameters is called on a tensor.
    """
    with _watching(problem.model) as calls:
        problem.outputs(problem.parameters, inputs)
    if not calls:
        raise Unsupported(
            found=f"{type(problem.model).__name__} calls no module with parameters on a tensor.",
            why="What goes into the last layer is the representation that is compared.",
            remedy="Say what to compare: Embedding(features=...), from inputs to (B, d).",
        )
    module, into = calls[-1]
    if into.ndim < 3:
        return into
    is_convolution = isinstance(module, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
    channels = 1 if is_convolution else into.ndim - 1
    return into.mean([axis for axis in range(1, into.ndim) if axis != channels])


@contextmanager
def _watching(model: nn.Module) -> Generator[list[tuple[nn.Module, Tensor]]]:
    """Modules with parameters of their own, in the order of their calls, and their inputs."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def write_down(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].is_floating_point():
            calls.append((module, given[0]))

    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(write_down) for module in owners]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
