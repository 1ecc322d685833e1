"""Examples that a frozen network turns into features, once, for a model on top of it.

The features are what the model is trained on and what its derivatives are taken of. The raw
examples are kept: people are shown them, and derivatives are carried back to them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from whence.core.batches import Data, Tree, as_tensors, holds_arrays, make_data, slices
from whence.core.checks import check_modes
from whence.core.prepared import take_rows
from whence.core.problem import call_plainly
from whence.errors import (
    BadData,
    NonFinite,
    NotDeterministic,
    NotPerExample,
    Unsupported,
    WhenceError,
)
from whence.progress import track

Read = Callable[..., Data]
"""`(source, *, ids=None) -> Data`: how a kind of model reads examples, as `Problem.read` does."""

_BATCH_BYTES, _MOST = 2**24, 256
"""Raw examples that are in memory on their way through the network, in bytes and in number."""

_AGREEMENT = 1e-3
"""Share of the largest feature by which two calls may differ: far above the rounding of float32."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A frozen function from raw inputs to features.

    Args:
        function: a module in eval mode, or a callable; tensors for numbers, else rows as they are.
    """

    function: nn.Module | Callable[..., Any]

    @property
    def name(self) -> str:
        """How messages call it."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, raw: Tree) -> Tensor:
        """(B, ...) features of B raw inputs, without a graph.

        Raises:
            BadData: not one row of numbers for each raw input, or the function itself failed.
            TrainMode: dropout or batch statistics are switched on.
        """
        with torch.no_grad():
            return self._call(self.fitting(raw), count=_count(raw)).detach()

    def fitting(self, raw: Tree) -> Tree:
        """The raw inputs on the device of the module, floats in its type."""
        if not isinstance(self.function, nn.Module):
            return raw
        tensors = [*self.function.parameters(), *self.function.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        if like is None:
            return raw

        def fit(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

        return tree_map(fit, raw)

    def pull_back(self, raw: Tree, slopes: Callable[[Tensor], Tensor]) -> Tree:
        """Derivatives carried back through the function.

        Args:
            raw: B raw inputs.
            slopes: from the features (B, ...) to Q derivatives with respect to them (Q, B, ...).

        Returns:
            For each raw input (Q, B, *raw shape).

        Raises:
            Unsupported: the raw inputs are not floating-point tensors, or torch did not see how
                the features were made of them.
        """
        _refuse_immovable(raw)
        with torch.enable_grad():
            leaves = tree_map(lambda x: x.detach().clone().requires_grad_(True), self.fitting(raw))
            flat = tree_leaves(leaves)
            features = self._call(leaves, count=_count(raw))
            if not features.requires_grad:
                raise _no_derivative(self.name)
            wanted = slopes(features.detach()).to(features)
            rows = [
                torch.autograd.grad(
                    features, flat, slope, retain_graph=True, materialize_grads=True
                )
                for slope in wanted
            ]
        stacked = iter([torch.stack(parts) for parts in zip(*rows, strict=True)])
        return tree_map(lambda _: next(stacked), leaves)

    def _call(self, raw: Tree, *, count: int) -> Tensor:
        if isinstance(self.function, nn.Module):
            check_modes(self.function)
        try:
            made = call_plainly(cast("nn.Module", self.function), raw)
        except WhenceError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise BadData(
                found=f"The feature extractor {self.name} failed on {_words(raw)}: {error}",
                why="Training examples and queries go through it before the model.",
                remedy="Check the shapes and types of the raw inputs, as the extractor takes them.",
            ) from error
        features = _as_features(made, self.name)
        if features.ndim == 0 or len(features) != count:
            raise BadData(
                found=f"The feature extractor {self.name} returned the shape "
                f"{tuple(features.shape)} for {count} raw inputs.",
                why="Each training example needs a row of features of its own.",
                remedy="Return a tensor whose first axis counts the inputs.",
            )
        return features


class ExtractedData(Data):
    """Features of raw examples, with the raw ones kept.

    Args:
        source: the raw examples.
        features: what the model on top takes, made of the features.
        extractor: what made the features.
    """

    def __init__(self, source: Data, features: Data, extractor: Extractor) -> None:
        self.source = source
        self.features = features
        self.extractor = extractor
        self.ids = features.ids

    @property
    def is_prepared(self) -> bool:
        """Raw examples and features differ."""
        return True

    @property
    def input_refusal(self) -> str | None:
        """What the features say."""
        return self.features.input_refusal

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Features and targets of the examples at these positions."""
        return self.features.take(positions)

    def raw(self, positions: Tensor) -> Tree:
        """The raw inputs at these positions."""
        return self.source.take(positions)[0]

    def prepare(self, raw: Tree) -> Tree:
        """Features of raw inputs, as the model takes them."""
        return self.features.prepare(self.extractor(raw))

    def pull_back(self, raw: Tree, slopes: Tree) -> Tree:
        """By reverse passes through the extractor, one for each query; see `Data.pull_back`."""
        pulled = self.extractor.pull_back(raw, lambda made: self.features.pull_back(made, slopes))
        return tree_map(lambda leaf: leaf.to(slopes), pulled)

    def example(self, position: int) -> Any:
        """One raw example."""
        return self.source.example(position)


@dataclass(frozen=True, eq=False)
class Extraction:
    """Reads raw examples for a model on top of a frozen network.

    Args:
        extractor: makes the features.
        read: how the model on top reads `(features, targets)`.
        target: key of the target where the raw examples are a dict.
    """

    extractor: Extractor
    read: Read
    target: str | None = None

    def __call__(self, source: object, *, ids: object = None) -> Data:
        """Features of all raw examples, computed once and kept in memory.

        Args:
            source: `(raw inputs, targets)`, or any other form that `make_data` takes.
            ids: N unique names.

        Raises:
            ProblemError: the extractor is random, mixes examples, or returns NaN or a wrong shape.
        """
        if isinstance(source, ExtractedData):
            return source
        raw, labels = self._split(source)
        batches = list(slices(len(raw), _batch_size(raw)))
        features: list[Tensor] = []
        targets: list[Tensor] = []
        for positions in track(batches, "Extracting features"):
            inputs, own = raw.take(positions)
            made = self.extractor(inputs)
            if not features:
                _check_alone(self.extractor, raw, made)
            _refuse_non_finite(made, positions, self.extractor.name)
            features.append(made)
            targets += [] if own is None else [own]
        if labels is None and targets:
            labels = torch.cat(targets)
        made = self.read((torch.cat(features), labels), ids=ids)
        return ExtractedData(raw, made, self.extractor)

    def _split(self, source: object) -> tuple[Data, object]:
        """Raw examples, and labels that lie beside them; a Dataset holds its own."""
        if isinstance(source, Mapping | Dataset | DataLoader | Data):
            return make_data(source, target=self.target), None
        parts: tuple[Any, ...] = (source, None)
        if isinstance(source, tuple) or (isinstance(source, list) and holds_arrays(source)):
            parts = tuple(cast("Sequence[Any]", source))
            parts = (parts[0], None) if len(parts) == 1 else parts
        inputs = parts[0] if len(parts) == 2 else parts[:-1]
        return self._rows(inputs), parts[-1]

    def _rows(self, inputs: object) -> Data:
        """Numbers as tensors; for a callable anything else with rows as it is."""
        try:
            tensors = as_tensors(inputs)
        except BadData:
            if isinstance(self.extractor.function, nn.Module) or not hasattr(inputs, "__len__"):
                raise
            return _RowData(inputs)
        return make_data((tensors, None))


class _RowData(Data):
    """Raw examples that are no numbers: texts, or rows of a frame."""

    def __init__(self, rows: object) -> None:
        self.rows = rows
        self.ids = np.arange(len(cast("Any", rows)))

    def take(self, positions: Tensor) -> tuple[Any, None]:
        return take_rows(self.rows, positions), None

    def example(self, position: int) -> Any:
        row = take_rows(self.rows, torch.tensor([position]))
        if not hasattr(row, "iloc"):
            return row[0]
        return row.iloc[0] if row.ndim == 1 else row.to_dict("records")[0]


def _count(raw: Tree) -> int:
    leaves = [leaf for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)]
    return len(leaves[0]) if leaves else len(raw)


def _batch_size(raw: Data) -> int:
    first = [x for x in tree_leaves(raw.raw(torch.arange(1))) if isinstance(x, Tensor)]
    size = sum(leaf.numel() * leaf.element_size() for leaf in first)
    return max(1, min(_MOST, _BATCH_BYTES // max(1, size)))


def _as_features(made: object, name: str) -> Tensor:
    features: Any = made
    if hasattr(features, "toarray"):
        features = features.toarray()
    if not isinstance(features, Tensor):
        try:
            features = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise BadData(
                found=f"The feature extractor {name} returned {type(made).__name__}.",
                why="The model on top takes numbers.",
                remedy="Return a tensor or an array, one row for each raw input.",
            ) from error
    return features if features.is_floating_point() else features.to(torch.get_default_dtype())


def _check_alone(extractor: Extractor, raw: Data, made: Tensor) -> None:
    """The features of the first example, made twice and alone, against those of its batch."""
    first = raw.take(torch.arange(1))[0]
    once, again = extractor(first)[0], extractor(first)[0]
    allowed = _AGREEMENT * float(made.abs().max())
    if float((once - again).abs().max()) > allowed:
        raise NotDeterministic(
            found=f"The feature extractor {extractor.name} returned two different rows of "
            "features for the same input.",
            why="Features are computed once and stand for the example from then on.",
            remedy="Switch off what is random in it: call eval() on the network it uses.",
        )
    if float((once - made[0]).abs().max()) > allowed:
        raise NotPerExample(
            found=f"The feature extractor {extractor.name} returned other features for an input "
            "alone than in its batch.",
            why="The features of one example would depend on others.",
            remedy="Switch off batch statistics: call eval() on the network it uses.",
        )


def _refuse_non_finite(made: Tensor, positions: Tensor, name: str) -> None:
    bad = ~made.isfinite().flatten(1).all(1) if made.ndim > 1 else ~made.isfinite()
    if bool(bad.any()):
        row = int(positions[int(torch.nonzero(bad)[0, 0])])
        raise NonFinite(
            found=f"The feature extractor {name} returned NaN or infinity for the raw input at "
            f"position {row}.",
            why="Every prediction and every effect would be NaN.",
            remedy="Look at this input, and at the scale in which the extractor wants its inputs.",
        )


def _refuse_immovable(raw: Tree) -> None:
    leaves = tree_leaves(raw)
    if all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
        return
    raise Unsupported(
        found="The raw inputs are integers, texts or categories.",
        why="They cannot be moved a little, so a derivative with respect to them does not exist.",
        remedy="Give floating-point inputs, for example images.float() / 255, and let the "
        "extractor scale them; or compare whole replacements (replace).",
    )


def _no_derivative(name: str) -> Unsupported:
    return Unsupported(
        found=f"The features of the extractor {name} have no derivative with respect to its "
        "inputs.",
        why="torch follows only what it computes itself; numpy, no_grad and detach hide it.",
        remedy="Let the extractor compute with torch from its input on, without no_grad.",
    )


def _words(raw: Tree) -> str:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)]
    return f"inputs of shape {', '.join(map(str, shapes))}" if shapes else f"{len(raw)} raw inputs"


def extracting(
    function: nn.Module | Callable[..., Any] | None, read: Read, target: str | None = None
) -> Read:
    """How a kind of model reads examples: through the extractor where there is one.

    Args:
        function: the feature extractor, or None.
        read: how the model itself reads `(inputs, targets)`.
        target: key of the target where the raw examples are a dict.
    """
    return read if function is None else Extraction(Extractor(function), read, target)
