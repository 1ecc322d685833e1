"""A problem: what was trained, on what, and how.

    R(theta; w) = (1/N) sum_i w_i b_i loss_i(theta) + r(theta)

The model is called functionally and never changed. Parameters travel as one flat vector (P,).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from whence.core.batches import Batch, Data, Tree, make_data, move, slices
from whence.core.checks import call, check_modes, check_problem, check_query_shapes
from whence.core.display import describe
from whence.core.losses import Loss
from whence.core.measurements import (
    Contrast,
    MeasurementFunction,
    class_index,
    make_measurement,
    predicted_targets,
)
from whence.core.pieces import in_pieces
from whence.core.regularizers import Regularizer
from whence.core.scores import Measurement
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, BadData, CannotRetrain
from whence.numerics.vectors import Layout
from whence.progress import breathe
from whence.store import fingerprint

T = TypeVar("T")

Forward = Callable[[nn.Module, Any], Tensor]
"""How the model is called on a batch of inputs: `forward(model, inputs) -> outputs`."""

_LABELS_AT_ONCE = 1024

_WORKING_BYTES = 48 * 2**20
"""Memory that one streamed batch may take; on a CPU larger ones leave the cache and are slower."""


@dataclass(frozen=True)
class Queries:
    """Q examples to be explained, all in memory.

    Args:
        inputs: tensor, tuple or dict of tensors, each (Q, ...).
        targets: (Q, ...) labels, or the model's own answers where none were given.
        ids: (Q,) a name for each.
        are_labelled: whether the targets came from the user.
        displays: (Q,) how the raw examples look, where the inputs were prepared from them.
    """

    inputs: Tree
    targets: Tensor
    ids: np.ndarray
    are_labelled: bool
    displays: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Queries":
        """Those at some positions, under their own ids."""
        places = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        return replace(
            self,
            inputs=tree_map(lambda leaf: leaf[places.to(leaf.device)], self.inputs),
            targets=self.targets[places.to(self.targets.device)],
            ids=self.ids[places.numpy()],
            displays=tuple(self.displays[row] for row in places.tolist()) if self.displays else (),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The queries as named numpy arrays, as `Scores` keeps them."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            named = {"inputs": inputs}
        else:
            items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
            named = {f"inputs/{name}": value for name, value in cast("Any", items)}
        arrays = {name: value.detach().cpu().numpy() for name, value in named.items()}
        arrays["targets"] = self.targets.detach().cpu().numpy()
        if self.displays:
            arrays["displays"] = np.array(
                [json.dumps(display, default=str) for display in self.displays]
            )
        return arrays


@dataclass(frozen=True, eq=False)
class Problem:
    """What was trained: model, parameters, loss per example, regulariser and data.

    `whence.make_problem` builds one from what a user has; its arguments are explained there.
    """

    model: nn.Module
    layout: Layout
    parameters: Tensor
    loss: Loss
    regularizer: Regularizer
    data: Data
    weights: Tensor
    forward: Forward
    renormalize: bool = False
    training: Trainer | None = None
    name: str = "problem"
    display: str | Mapping[str, Any] | Callable[..., Any] | None = None
    label_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    read: Callable[[object], Data] = make_data
    """Makes data of whatever the user gives as queries, prepared as the training data was."""

    # ---------------------------------------------------------------- sizes

    def __len__(self) -> int:
        return len(self.data)

    @property
    def size(self) -> int:
        """P, the number of chosen parameters."""
        return self.layout.size

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return self.parameters.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parameters.device

    # ---------------------------------------------------- the model, as a function

    @cached_property
    def _caller(self) -> "_Caller":
        return _Caller(self.model, self.forward)

    @cached_property
    def _fixed(self) -> dict[str, Tensor]:
        """Every parameter that was not chosen, without gradient."""
        return {
            f"model.{name}": parameter.detach()
            for name, parameter in self.model.named_parameters()
            if name not in self.layout.shapes
        }

    def outputs(self, parameters: Tensor, inputs: Tree) -> Tensor:
        """Outputs of the model at any parameters.

        Args:
            parameters: (P,).
            inputs: B inputs.

        Returns:
            (B, ...).
        """
        return self.call(self.layout.split(parameters), inputs)

    def call(self, chosen: Mapping[str, Tensor], inputs: Tree) -> Tensor:
        """Outputs of the model with the chosen parameters by name; tied ones are one tensor.

        Args:
            chosen: a tensor for each name in `layout`.
            inputs: B inputs.

        Returns:
            (B, ...).
        """
        named = self._fixed | {f"model.{name}": value for name, value in chosen.items()}
        return functional_call(self._caller, named, (inputs,))

    def losses(self, parameters: Tensor, batch: Batch) -> Tensor:
        """(B,) losses without base weights and without the regulariser."""
        return self.loss(self.outputs(parameters, batch.inputs), cast("Tensor", batch.targets))

    def penalty(self, parameters: Tensor) -> Tensor:
        """The scalar r(theta)."""
        return self.regularizer(self.layout.split(parameters))

    def total_weight(self, weights: Tensor | None = None) -> float:
        """What the sum of losses is divided by: N, or sum_i w_i under `renormalize`."""
        if weights is None or not self.renormalize:
            return float(len(self))
        return float(weights.sum())

    # ------------------------------------------------------------------ data

    def batches(
        self, size: int | None = None, *, positions: Tensor | None = None
    ) -> Iterator[Batch]:
        """All training examples, or those at some positions, in order.

        Args:
            size: examples a batch; by default as many as fit the working memory.
            positions: rows to be visited, default all.
        """
        count = len(self) if positions is None else len(positions)
        for rows in slices(count, size or self.batch_size()):
            breathe()
            yield self.batch(rows if positions is None else positions[rows])

    def sweep(
        self,
        work: Callable[[Batch], T],
        size: int | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, T]]:
        """What some work gives for each batch, with the batch's positions, in order.

        Args:
            work: is done again on halves of a batch for which there was not enough memory, so it
                must leave nothing behind where it fails.
            size: examples a batch; by default as many as fit the working memory.
            positions: rows to be visited, default all.
        """
        rows = torch.arange(len(self)) if positions is None else positions
        return in_pieces(rows, size or self.batch_size(), lambda piece: work(self.batch(piece)))

    def batch(self, positions: Tensor) -> Batch:
        """The training examples at these positions, on the model's device and in its dtype."""
        inputs, targets = self.data.take(positions)
        return Batch(
            inputs=self._prepare(inputs),
            targets=None if targets is None else self._prepare_targets(targets),
            positions=positions,
            weights=self.weights[positions.to(self.weights.device)],
        )

    def batch_size(self, stack: int = 1) -> int:
        """How many examples fit the working memory when K = `stack` vectors go along."""
        return max(1, min(len(self), _WORKING_BYTES // self.example_bytes(stack), 8192))

    def example_bytes(self, stack: int = 1) -> int:
        """Memory of one example on its way through the model when K vectors go along."""
        numbers = self.input_size + self.activation_size * (1 + 2 * stack)
        return numbers * self.parameters.element_size()

    @cached_property
    def input_size(self) -> int:
        """How many numbers the inputs of one example are."""
        return sum(leaf.numel() for leaf in tree_leaves(self.batch(torch.arange(1)).inputs))

    @cached_property
    def output_size(self) -> int:
        """C, how many numbers the model returns for one example."""
        with torch.no_grad():
            return self.outputs(self.parameters, self.batch(torch.arange(1)).inputs).numel()

    @cached_property
    def activation_size(self) -> int:
        """How many numbers one example makes on its way through the layers of the model."""
        inputs = self.batch(torch.arange(1)).inputs
        counted: list[int] = []

        def count(module: nn.Module, args: object, output: object) -> None:
            del module, args
            counted.append(sum(x.numel() for x in tree_leaves(output) if isinstance(x, Tensor)))

        leaves = [module for module in self.model.modules() if not list(module.children())]
        handles = [module.register_forward_hook(count) for module in leaves]
        try:
            with torch.no_grad():
                self.outputs(self.parameters, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return max(1, sum(counted))

    def queries(self, source: object) -> Queries:
        """A validated query set.

        Args:
            source: `(inputs, targets)` in the form of the training data, or inputs alone, whose
                targets are then the model's own answers.

        Raises:
            BadData: no queries, another shape than the training examples, labels out of range.
            NonFinite: NaN in a query.
        """
        if isinstance(source, Queries):
            return source
        data = self.read(source)
        inputs, targets = data.take(torch.arange(len(data)))
        inputs = self._prepare(move(inputs, self.device))
        check_query_shapes(self, inputs)
        with torch.no_grad():
            outputs = call(self, inputs, "queries")
        are_labelled = targets is not None
        if targets is None:
            targets = predicted_targets(outputs, self.loss)
        targets = self._prepare_targets(targets)
        self.loss.check_targets(targets, outputs, names=data.ids.tolist())
        displays = self._displays(data, targets) if data.is_prepared else ()
        return Queries(inputs, targets, data.ids, are_labelled, displays)

    def _displays(self, data: Data, targets: Tensor) -> tuple[dict[str, Any], ...]:
        rows = range(len(data))
        return tuple(self.show_query(data.example(row), targets[row]) for row in rows)

    def _prepare(self, tree: Tree) -> Tree:
        """Moves to the device; floats take the model's dtype, integers int64, booleans stay."""

        def convert(leaf: Tensor) -> Tensor:
            whole = leaf.dtype if leaf.dtype == torch.bool else torch.int64
            return leaf.to(self.device, self.dtype if leaf.is_floating_point() else whole)

        return tree_map(convert, tree)

    def _prepare_targets(self, targets: Tensor) -> Tensor:
        """As inputs, but True and False are the labels 1 and 0."""
        return self._prepare(targets.long() if targets.dtype == torch.bool else targets)

    def measurement(
        self, asked: str | MeasurementFunction | Measurement | Contrast | None = None
    ) -> Measurement:
        """What is measured on queries, by name, contrast or function; see `whence.explain`.

        Raises:
            UnknownName: no such measurement, or no such class in a contrast.
            Unsupported: the measurement has no meaning for this loss.
        """
        return make_measurement(asked, self.loss, self.label_names)

    def code_of(self, label: object) -> Tensor:
        """A label as the loss knows it: index of a class, 0 or 1, -1 or +1, or a number.

        Args:
            label: name or index of a class; a number for a regression.

        Raises:
            UnknownName: no such class.
            BadData: not a number.
        """
        if self.loss.task in ("classes", "binary", "signed"):
            index = class_index(label, self.label_names, self.loss.task)
            return torch.tensor(2 * index - 1 if self.loss.task == "signed" else index)
        try:
            return torch.as_tensor(label, dtype=self.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadData(
                found=f"The label {label!r} is no number.",
                why=f"The loss {self.loss.name!r} compares outputs with numbers.",
                remedy="Give a number, or as many as the model has outputs.",
            ) from error

    # ------------------------------------------------------- checking and retraining

    def check(self) -> dict[str, Any]:
        """Refuses what would make every score wrong, before any cost.

        The loss is one value per example and does not mix examples; two calls agree; no dropout
        and no batch statistics; every loss is finite; labels are in range. The pass over the data
        is made once for a problem, the mode of the modules is looked at every time.

        Returns:
            Mean loss, and the number of examples looked at.

        Raises:
            ProblemError: the first thing that is wrong, with a remedy.
        """
        check_modes(self.model)
        return self._checked

    @cached_property
    def _checked(self) -> dict[str, Any]:
        return check_problem(self)

    def objective(self, parameters: Tensor, weights: Tensor | None = None) -> Tensor:
        """R(theta; w), a scalar in float64.

        Args:
            parameters: (P,).
            weights: (N,) weights w, default all one.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.batches():
            w = batch.weights
            if weights is not None:
                w = w * weights[batch.positions].to(self.device)
            total += (w * self.losses(parameters, batch)).double().sum()
        return total / self.total_weight(weights) + self.penalty(parameters).double()

    def retrain(self, weights: Tensor | None = None, *, seed: int | Sequence[int] = 0) -> Retrained:
        """Parameters that training with these example weights leads to.

        Args:
            weights: (M, N) or (N,) weights, 0 = removed; default all one.
            seed: of everything random in the training; or M of them, one for each training.

        Raises:
            CannotRetrain: the problem has no training.
            BadArgument: another number of seeds than of trainings.
        """
        if self.training is None:
            raise CannotRetrain(
                found=f"{self.name} does not say how it was trained.",
                why="The effect of a removal can only be checked by training again.",
                remedy="Pass training=... to make_problem: a function (weights, seed) -> trained "
                "model.",
            )
        rows = torch.atleast_2d(torch.ones(len(self)) if weights is None else weights)
        if not isinstance(seed, Iterable):
            return self.training.retrain(self, rows, seed=seed)
        seeds = [int(own) for own in seed]
        rows = rows.expand(len(seeds), -1) if len(rows) == 1 else rows
        if not 0 < len(seeds) == len(rows):
            raise BadArgument(
                found=f"{len(seeds)} seeds for {len(rows)} rows of weights.",
                why="Each training starts from one of them.",
                remedy="Give as many seeds as rows, or one number for all of them.",
            )
        return self.training.retrain_each(self, rows, seeds=seeds)

    # --------------------------------------------------------------- variants

    def at(self, parameters: Tensor) -> "Problem":
        """The same problem at other parameters (P,)."""
        return replace(self, parameters=parameters.detach().to(self.parameters))

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "Problem":
        """The same problem in another precision or on another device; the model is copied."""
        model = deepcopy(self.model).to(dtype=dtype, device=device)
        parameters = self.parameters.to(dtype=dtype, device=device)
        weights = self.weights.to(dtype=dtype, device=device)
        return replace(self, model=model, parameters=parameters, weights=weights)

    def widened(self) -> "Problem":
        """The same problem in float64, or as it is where the model insists on its own precision."""
        if self.dtype == torch.float64:
            return self
        try:
            wide = self.to(dtype=torch.float64)
            with torch.no_grad():
                wide.losses(wide.parameters, wide.batch(torch.arange(1)))
        except (RuntimeError, TypeError):
            return self
        return wide

    # -------------------------------------------------------- words and pictures

    def facts(self) -> dict[str, Any]:
        """What a report says about the problem."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "name": self.name,
            "model": type(self.model).__name__,
            "parameters": self.size,
            "parameters_total": total,
            "examples": len(self),
            "loss": self.loss.name,
            "regularizer": self.regularizer.describe(),
            "renormalize": self.renormalize,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

    def fingerprint(self) -> dict[str, str]:
        """Hashes by which scores know the model, data and objective they belong to."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, str]:
        return {
            "parameters": fingerprint(self.parameters.cpu().numpy()),
            "data": self.data.fingerprint(),
            "objective": fingerprint(
                self.loss.name,
                self.regularizer.describe(),
                str(self.renormalize),
                self.weights.cpu().numpy(),
            ),
        }

    def show(self, position: int) -> dict[str, Any]:
        """A display of one training example: image, text or table row, as plain JSON."""
        _, targets = self.data.take(torch.tensor([position]))
        example = self.data.example(position)
        return self.show_query(example, None if targets is None else targets[0])

    def show_query(self, inputs: Tree, target: Any = None) -> dict[str, Any]:
        """A display of one example given by its inputs."""
        if callable(self.display):
            return describe(self.display(inputs, target))
        if isinstance(self.display, Mapping):
            return describe(inputs, **self.display)
        return describe(inputs, kind=self.display or "auto")

    def show_asked(self, asked: Queries, row: int) -> dict[str, Any]:
        """A display of one query, as the user gave it."""
        if asked.displays:
            return dict(asked.displays[row])
        inputs = tree_map(lambda leaf: leaf[row], asked.inputs)
        return self.show_query(inputs, asked.targets[row])

    def label_of(self, position: int) -> str | None:
        """The label of a training example in words."""
        _, targets = self.data.take(torch.tensor([position]))
        return None if targets is None else self.label_name(targets[0])

    def labels(self) -> np.ndarray:
        """(N,) the labels of all training examples in words; empty strings where there are none."""
        named: list[np.ndarray] = []
        for positions in torch.arange(len(self)).split(_LABELS_AT_ONCE):
            _, targets = self.data.take(positions)
            if targets is None:
                return np.full(len(self), "")
            named.append(self._label_names(targets.detach().cpu().numpy()))
        return np.concatenate(named)

    def _label_names(self, targets: np.ndarray) -> np.ndarray:
        """(B,) targets in words; what several have in common is put into words once."""
        if targets.ndim > 1 and targets[0].size > 1:
            return np.array([self.label_name(target) for target in targets])
        values, places = np.unique(targets.reshape(len(targets)), return_inverse=True)
        return np.array([self.label_name(value) for value in values])[places]

    def label_name(self, target: Any) -> str:
        """A target in words: the name of its class, or the number."""
        value = np.asarray(target)
        if value.ndim > 0 and value.size > 1:
            return "..."
        number = value.item()
        index = {-1: 0, 1: 1}.get(int(number), 0) if self.loss.task == "signed" else number
        if self.label_names is not None and self.loss.task != "regression":
            return str(self.label_names[int(index)])
        return f"{number:g}"

    def prediction_of(self, inputs: Tree) -> dict[str, Any]:
        """What the model says of one input: label, confidence and value, where they exist."""
        batch = tree_map(lambda leaf: torch.as_tensor(leaf).unsqueeze(0), inputs)
        with torch.no_grad():
            outputs = self.outputs(self.parameters, self._prepare(batch))
        if self.loss.task == "unknown":
            return {"label": None, "confidence": None, "value": None}
        answer = predicted_targets(outputs, self.loss)[0]
        confidence = None
        if self.loss.task == "classes":
            confidence = float(outputs.softmax(1).max())
        elif self.loss.task == "binary":
            confidence = float(torch.sigmoid(outputs.abs()).squeeze())
        value = float(outputs.squeeze()) if outputs.numel() == 1 else None
        return {"label": self.label_name(answer.cpu()), "confidence": confidence, "value": value}


class _Caller(nn.Module):
    """Lets `functional_call` reach the parameters of a model however the user calls it."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.call = forward

    def forward(self, inputs: Tree) -> Tensor:
        return self.call(self.model, inputs)


def call_plainly(model: nn.Module, inputs: Tree) -> Tensor:
    """The default way to call a model: a tensor, several tensors, or keyword arguments."""
    if isinstance(inputs, dict):
        return model(**cast("dict[str, Any]", inputs))
    if isinstance(inputs, tuple):
        return model(*cast("tuple[Any, ...]", inputs))
    return model(inputs)
