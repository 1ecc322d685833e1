"""A change of the training data: some examples weigh less or more, or become others.

    R'(theta) = R(theta) + (1/N) sum_k [ w_k b_k loss(z'_k) - b_k loss(z_k) ]

over the changed examples k, where w_k is the weight that example k has afterwards (0 = removed,
1 = as before, 2 = as if it were there twice) and z'_k what it has become (z_k itself where only
weights change). Under `renormalize` the sum is divided by what the weights then add up to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from whence.core.batches import Batch, Data, Tree
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, Unsupported


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of M training examples.

    Args:
        positions: (M,) of the examples, each once.
        weights: (M,) their weight afterwards, a factor on the base weight.
        inputs: what they become, each (M, ...), as the model takes it; None where inputs stay.
        targets: (M, ...) their new targets; None where targets stay.
    """

    positions: Tensor
    weights: Tensor
    inputs: Tree | None = None
    targets: Tensor | None = None

    @property
    def is_replacement(self) -> bool:
        """Whether any example becomes another one."""
        return self.inputs is not None or self.targets is not None

    def __len__(self) -> int:
        return len(self.positions)

    def row(self, count: int) -> Tensor:
        """(N,) float64 weights of all examples afterwards, for `Trainer.retrain`."""
        weights = torch.ones(count, dtype=torch.float64)
        weights[self.positions] = self.weights.double()
        return weights

    def contents(self, problem: Problem) -> Problem:
        """The problem with the new contents of the changed examples; weights are as they were."""
        if not self.is_replacement:
            return problem
        return replace(problem, data=ChangedData(problem.data, self))

    def leaving(self, problem: Problem, size: int) -> Iterator[tuple[Batch, Tensor]]:
        """The changed examples as they were, in batches of `size`, with (B,) base weights."""
        for positions in self.positions.split(size):
            batch = problem.batch(positions)
            yield batch, batch.weights

    def coming(self, problem: Problem, size: int) -> Iterator[tuple[Batch, Tensor]]:
        """What is there instead, with (B,) base weights times new weights; nothing for removals."""
        contents = self.contents(problem)
        kept = torch.nonzero(self.weights > 0).flatten()
        for rows in kept.split(size) if len(kept) else ():
            batch = contents.batch(self.positions[rows])
            yield batch, batch.weights * self.weights[rows].to(batch.weights)


class ChangedData(Data):
    """Training examples of which some have other contents.

    Args:
        data: before the change.
        change: what becomes of some of them.
    """

    is_changed: ClassVar[bool] = True

    def __init__(self, data: Data, change: Change) -> None:
        self.data = data
        self.change = change
        self.ids = data.ids
        self._places = np.full(len(data), -1)
        self._places[change.positions.numpy()] = np.arange(len(change))

    @property
    def input_refusal(self) -> str | None:
        """What the data said before the change."""
        return self.data.input_refusal

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Examples at these positions after the change."""
        inputs, targets = self.data.take(positions)
        places = self._places[positions.numpy()]
        rows = torch.from_numpy(np.flatnonzero(places >= 0))
        if len(rows) == 0:
            return inputs, targets
        chosen = torch.from_numpy(places[places >= 0])

        def put(old: Tensor, new: Tensor) -> Tensor:
            changed = old.clone()
            changed[rows] = new.to(old)[chosen]
            return changed

        if self.change.inputs is not None:
            inputs = tree_map(put, inputs, self.change.inputs)
        if self.change.targets is not None:
            targets = put(cast("Tensor", targets), self.change.targets)
        return inputs, targets

    def example(self, position: int) -> Any:
        """The raw example; of one with new inputs these, as the model takes them."""
        is_new = self.change.inputs is not None and self._places[position] >= 0
        return super().example(position) if is_new else self.data.example(position)


def removal(positions: np.ndarray) -> Change:
    """These examples are left out."""
    return reweighting(positions, 0.0)


def reweighting(positions: np.ndarray, factor: float) -> Change:
    """These examples count `factor` times what they did.

    Raises:
        BadArgument: a negative or infinite factor.
    """
    if not (factor >= 0 and np.isfinite(factor)):
        raise BadArgument(
            found=f"Training examples were to be weighted by {factor}.",
            why="A weight counts how often an example is there: 0 = removed, 1 = as it is.",
            remedy="Give a finite number of zero or more.",
        )
    places = torch.as_tensor(positions)
    return Change(places, torch.full((len(places),), float(factor), dtype=torch.float64))


def replacement(
    problem: Problem,
    positions: np.ndarray,
    inputs: Tree | None = None,
    *,
    targets: Tensor | None = None,
) -> Change:
    """These examples become others.

    Args:
        problem: before the change.
        positions: (M,) of the examples.
        inputs: (M, ...) new inputs as the model takes them, or None.
        targets: (M, ...) new targets in the form of the training data, or None.

    Raises:
        BadData: shapes or labels that do not fit the training data.
        Unsupported: new inputs where the features are made of the training data themselves.
    """
    places = torch.as_tensor(positions)
    old_inputs, old_targets = problem.data.take(places)
    if inputs is not None:
        _refuse_fixed_inputs(problem.data)
        _check_alike(old_inputs, inputs)
    if targets is not None and old_targets is not None:
        _check_alike(old_targets, targets)
    change = Change(places, torch.ones(len(places), dtype=torch.float64), inputs, targets)
    batch = change.contents(problem).batch(places)
    with torch.no_grad():
        outputs = problem.outputs(problem.parameters, batch.inputs)
        names = problem.data.ids[positions].tolist()
        problem.loss.check_targets(cast("Tensor", batch.targets), outputs, names=names)
    return change


def _refuse_fixed_inputs(data: Data) -> None:
    if data.input_refusal is not None:
        raise Unsupported(
            found=f"No training example can get other inputs, because {data.input_refusal}.",
            why="The new example would be seen through features that cannot hold it.",
            remedy="Remove it, or give it another label; or fit a model on the raw columns.",
        )


def _check_alike(old: Tree, new: Tree) -> None:
    shapes = [[tuple(leaf.shape) for leaf in tree_leaves(tree)] for tree in (old, new)]
    if shapes[0] != shapes[1]:
        raise BadData(
            found=f"The new contents have the shapes {shapes[1]}, those of the training examples "
            f"are {shapes[0]}.",
            why="A training example can only become one of its own form.",
            remedy="Prepare what is put in its place like the training data, with a leading axis.",
        )
    if not all(leaf.isfinite().all() for leaf in tree_leaves(new) if leaf.is_floating_point()):
        raise BadData(
            found="The new contents hold NaN or infinity.",
            why="Every predicted effect would be NaN.",
            remedy="Repair them.",
        )
