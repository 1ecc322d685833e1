"""Examples in batches, whatever the user's data set looks like.

A data set is N examples, each an input (a tensor, or a tuple or dict of tensors) and, mostly, a
target. `make_data` accepts tensors, arrays, frames, lists, dicts, `Dataset` and `DataLoader`; what
comes out is addressed by position and never shuffled.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from whence.errors import BadArgument, BadData, DeviceMismatch
from whence.numerics.lookup import Lookup
from whence.store import fingerprint

Tree = Any
"""A tensor, or a tuple or dict of tensors, each with one row per example."""

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Keys of a dict data set that are taken as the target, in this order."""


@dataclass(frozen=True)
class Batch:
    """B examples on the model's device.

    Args:
        inputs: tensor, tuple or dict of tensors, each (B, ...).
        targets: (B, ...), or None where the loss needs none.
        positions: (B,) rows of the data set, on the CPU.
        weights: (B,) base weights b_i of the examples.
    """

    inputs: Tree
    targets: Tensor | None
    positions: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def parts(self) -> tuple[Tree, Tensor | None, Tensor]:
        """What of it enters a loss, as arguments of a function of tensors; see `of_parts`."""
        return self.inputs, self.targets, self.weights

    @classmethod
    def of_parts(cls, inputs: Tree, targets: Tensor | None, weights: Tensor) -> "Batch":
        """The batch of which these are the `parts`; its positions are counted from 0."""
        return cls(inputs, targets, torch.arange(len(weights)), weights)


class Data(ABC):
    """N examples, addressed by position."""

    ids: np.ndarray
    """(N,) a stable name for each example: unique integers or strings."""

    is_changed: ClassVar[bool] = False
    """Whether some examples are others than those the model was trained on."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Inputs and targets of the examples at these positions, stacked."""

    def positions(self, ids: Sequence[int | str] | np.ndarray) -> np.ndarray:
        """(M,) positions of the examples with these ids, in the order given.

        Raises:
            BadArgument: an id that does not exist, the same one twice, or none at all.
        """
        return find_ids(self._lookup, ids)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.ids)

    @property
    def is_prepared(self) -> bool:
        """Whether the inputs were made from raw examples of another form."""
        return False

    @property
    def input_refusal(self) -> str | None:
        """Why no example can get other inputs, as the end of "..., because"; None if it can."""
        return None

    def raw(self, positions: Tensor) -> Tree:
        """The inputs of these examples as the user gave them: (B, *raw shape), or B rows."""
        return self.take(positions)[0]

    def prepare(self, raw: Tree) -> Tree:
        """What the model takes, made from raw inputs: (B, *input shape)."""
        return raw

    def pull_back(self, raw: Tree, slopes: Tree) -> Tree:
        """Derivatives with respect to inputs, carried back to the raw inputs by the chain rule.

            out[q, b, j] = sum_i slopes[q, b, i] d prepare(raw)[b, i] / d raw[b, j]

        Args:
            raw: B raw inputs, at which `prepare` is differentiated.
            slopes: for each input tensor (Q, B, *input shape).

        Returns:
            For each raw input (Q, B, *raw shape), in the type of the slopes.

        Raises:
            Unsupported: the raw inputs cannot be moved a little, or `prepare` has no derivative.
            NonFinite: the derivative is not a number.
        """
        del raw
        return slopes

    def example(self, position: int) -> Any:
        """One raw example without its leading axis, as people are shown it."""
        raw = self.raw(torch.tensor([position]))
        return tree_map(lambda leaf: leaf[0], raw)

    def fingerprint(self) -> str:
        """A hash over ids, inputs and targets, the same on every machine."""
        pieces: list[Any] = [self.ids]
        for start in range(0, len(self), 1024):
            rows = torch.arange(start, min(start + 1024, len(self)))
            pieces.append(fingerprint(*(leaf.cpu().numpy() for leaf in _tensors(self.take(rows)))))
        return fingerprint(*pieces)


class TensorData(Data):
    """Examples that lie in tensors."""

    def __init__(self, inputs: Tree, targets: Tensor | None, ids: np.ndarray) -> None:
        self.inputs = inputs
        self.targets = targets
        self.ids = ids

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Rows of the tensors; neighbouring positions are views and cost no memory."""
        rows = _as_slice(positions)

        def pick(tensor: Tensor) -> Tensor:
            if isinstance(rows, slice):
                return tensor[rows]
            return tensor.index_select(0, rows.to(tensor.device))  # five times as fast as [rows]

        targets = None if self.targets is None else pick(self.targets)
        return tree_map(pick, self.inputs), targets


class DatasetData(Data):
    """Examples that a map-style `torch.utils.data.Dataset` makes on demand."""

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        target: str | None,
        ids: np.ndarray,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.target = target
        self.ids = ids

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """The collated items at these positions."""
        items = [self.dataset[int(position)] for position in positions]
        return split_target(as_tensors(self.collate(items)), self.target)


def find_ids(known: Lookup, wanted: Sequence[int | str] | np.ndarray) -> np.ndarray:
    """(M,) positions among known ids of those that are wanted, in their order.

    Raises:
        BadArgument: an id that does not exist, the same one twice, or none at all.
    """
    ids = known.names
    if isinstance(wanted, np.ndarray) and wanted.dtype.kind == ids.dtype.kind:
        named = wanted.ravel()
        places = known.places(named)
    else:
        named = np.asarray(wanted, dtype=object).ravel()
        found = [known.place(name) for name in named]
        places = np.array([-1 if place is None else place for place in found], np.int64)
    missing = named[places < 0].tolist()
    if missing:
        raise BadArgument(
            found=f"There is no training example {missing[0]!r} ({len(missing)} are missing).",
            why=f"There are {len(ids):,} ids, {ids[0].item()!r} the first and "
            f"{ids[-1].item()!r} the last.",
            remedy="Use ids of the training data; 7 and '7' are different ids.",
        )
    distinct = len(set(places.tolist()))
    if distinct == 0 or distinct < len(named):
        raise BadArgument(
            found=f"{len(named)} training examples were named, {distinct} of them different.",
            why="What is asked speaks of at least one example, and of each only once.",
            remedy="Name each training example once.",
        )
    return places.astype(np.int64)


def make_data(source: object, *, target: str | None = None, ids: object = None) -> Data:
    """A data set from whatever holds one.

    Args:
        source: `(inputs, targets)`, `(input, input, ..., targets)`, `(inputs, None)`, a dict of
            arrays, a `Dataset`, a `DataLoader` (read in the order of its data set; its collate
            function is kept, its shuffling and batch size are not), or inputs alone.
        target: the key of a dict that holds the targets; by default one of `TARGET_NAMES`.
        ids: N unique names, default 0 to N - 1.

    Returns:
        The data set.

    Raises:
        BadData: empty, of unequal lengths, without a length, or of an unknown type.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, DataLoader):
        loader = cast("DataLoader[Any]", source)
        collate = loader.collate_fn if loader.batch_size is not None else default_collate
        return _from_dataset(loader.dataset, collate, target, ids)
    if isinstance(source, Dataset):
        return _from_dataset(cast("Dataset[Any]", source), default_collate, target, ids)
    inputs, targets = split_target(as_tensors(source), target)
    count = _common_length(inputs, targets)
    return TensorData(inputs, targets, _make_ids(ids, count))


def split_target(tree: Tree, target: str | None) -> tuple[Tree, Tensor | None]:
    """Separates inputs and target of a data set or a collated batch.

    Args:
        tree: a tensor (input only), a tuple whose last entry is the target, or a dict.
        target: key of the target in a dict.

    Returns:
        `(inputs, targets)`; a tuple of one input is unpacked.
    """
    if isinstance(tree, dict):
        named = cast("dict[str, Any]", tree)
        key = target or next((name for name in TARGET_NAMES if name in named), None)
        if key is None:
            return named, None
        if key not in named:
            raise BadData(
                found=f"The data has no entry {key!r}; it has {', '.join(map(str, named))}.",
                why="The loss needs to know which entry is the target.",
                remedy="Name one of these entries with target=...",
            )
        return {name: value for name, value in named.items() if name != key}, named[key]
    if isinstance(tree, tuple):
        items = cast("tuple[Any, ...]", tree)
        if len(items) == 1:
            return items[0], None
        inputs = items[0] if len(items) == 2 else items[:-1]
        return inputs, items[-1]
    return tree, None


def as_tensors(source: object) -> Tree:
    """The same structure with tensors in place of arrays, frames and lists.

    Raises:
        BadData: something that is not numeric, or a type that holds no examples.
    """
    if source is None or isinstance(source, Tensor):
        return source
    if isinstance(source, Mapping):
        named = cast("Mapping[str, object]", source)
        return {str(name): as_tensors(value) for name, value in named.items()}
    if isinstance(source, tuple) or (isinstance(source, list) and holds_arrays(source)):
        return tuple(as_tensors(item) for item in cast("Sequence[object]", source))
    return _tensor(source)


def move(tree: Tree, device: torch.device) -> Tree:
    """The same structure on another device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def check_device(data: Data, device: torch.device) -> None:
    """Refuses tensors that lie on another device than the model.

    A `Dataset` makes its examples anew and is moved batch by batch; tensors that the user put
    somewhere are not moved behind their back.

    Raises:
        DeviceMismatch: naming both devices.
    """
    if not isinstance(data, TensorData):
        return
    for leaf in _tensors((data.inputs, data.targets)):
        if leaf.device != device:
            raise DeviceMismatch(
                found=f"The model is on {device}, the data on {leaf.device}.",
                why="Both have to be on one device, and moving either without asking could "
                "fill its memory.",
                remedy=f"Move one of them: model.to({str(leaf.device)!r}), or the tensors "
                f".to({str(device)!r}). A Dataset or DataLoader is moved batch by batch.",
            )


def slices(count: int, size: int) -> Iterator[Tensor]:
    """Positions 0 .. count - 1 in runs of `size`."""
    for start in range(0, count, size):
        yield torch.arange(start, min(start + size, count))


def _as_slice(positions: Tensor) -> slice | Tensor:
    """A slice when the positions are neighbours, so that taking them copies nothing."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(positions) and bool((positions.diff() == 1).all()):
        return slice(first, last + 1)
    return positions


def _from_dataset(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Any], target: str | None, ids: object
) -> Data:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise BadData(
            found=f"{type(dataset).__name__} has no length, so its examples have no positions.",
            why="An effect belongs to one training example that can be found again.",
            remedy="Give a map-style Dataset (with __len__ and __getitem__), or the tensors.",
        )
    count = len(cast("Sequence[Any]", dataset))
    _refuse_empty(count)
    return DatasetData(dataset, collate, target, _make_ids(ids, count))


def holds_arrays(items: list[Any]) -> bool:
    """Whether a list is `[inputs, targets]` and not a list of numbers or rows."""
    return bool(items) and all(
        isinstance(item, Tensor | np.ndarray) and item.ndim > 0 for item in items
    )


def _tensor(source: object) -> Tensor:
    try:
        array = np.asarray(source)
        if array.dtype == object:
            array = array.astype(np.float64)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise BadData(
            found=f"Cannot read {type(source).__name__} as numbers ({error}).",
            why="A model is called with tensors.",
            remedy="Give tensors, numeric arrays, a dict of these, a Dataset or a DataLoader.",
        ) from error


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _common_length(inputs: Tree, targets: Tensor | None) -> int:
    leaves = _tensors((inputs, targets))
    if any(leaf.ndim == 0 for leaf in leaves) or not leaves:
        raise BadData(
            found="The data holds a single number, or nothing.",
            why="Each tensor needs one row per example.",
            remedy="Give tensors whose first axis counts the examples.",
        )
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise BadData(
            found=f"Inputs and targets have unequal lengths: {', '.join(map(str, lengths))}.",
            why="Row i of every tensor belongs to example i.",
            remedy="Check how the arrays were cut, and pass (inputs, targets) of one length.",
        )
    _refuse_empty(lengths[0])
    return lengths[0]


def _refuse_empty(count: int) -> None:
    if count == 0:
        raise BadData(
            found="The data set is empty.",
            why="There is nothing to explain, and nothing to explain it by.",
            remedy="Give at least one example.",
        )


def _make_ids(ids: object, count: int) -> np.ndarray:
    if ids is None:
        return np.arange(count, dtype=np.int64)
    names = np.asarray(ids)
    if names.dtype == object:
        names = names.astype(str)
    if names.shape != (count,) or Lookup(names.ravel()).distinct != count:
        raise BadData(
            found=f"{names.size} ids ({len(np.unique(names))} distinct) for {count} examples.",
            why="An id names one example, so that it can be found again in every result.",
            remedy="Give one unique id per example, or none to number them.",
        )
    return names
