"""A data set as a review has left it: examples dropped, labels replaced, in files others read."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.errors import Unsupported
from whence.explorer.review import DROP, RELABEL, Decision

if TYPE_CHECKING:  # decisions are exported without torch
    from whence.core.problem import Problem

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Cleaned:
    """The examples that stay.

    Args:
        ids: (M,) of the examples.
        inputs: as the user gave them: texts, rows or arrays of one shape, (M, ...).
        labels: (M,) with the new ones where they were replaced.
        columns: (M,) each, the values of rows whose numbers have names.
        classes: names of the labels, in their order, where they are classes.
    """

    ids: Array
    inputs: Array
    labels: Array
    columns: Mapping[str, Array] = field(default_factory=dict[str, Array])
    classes: tuple[str, ...] = ()

    def npz(self) -> bytes:
        """Arrays x, y and id, nothing pickled."""
        buffer = io.BytesIO()
        np.savez(buffer, x=self.inputs, y=self.labels, id=self.ids)
        return buffer.getvalue()

    def csv(self) -> bytes:
        """One row an example: id, its numbers or its text, and the label."""
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        named = self.with_names(self._flat())
        writer.writerow(named)
        writer.writerows(zip(*(values.tolist() for values in named.values()), strict=True))
        return buffer.getvalue().encode("utf-8")

    def parquet(self) -> bytes:
        """The same rows as Apache Parquet.

        Raises:
            Unsupported: pyarrow is not installed.
        """
        arrow, parquet = load_arrow()
        buffer = io.BytesIO()
        parquet.write_table(arrow.table(dict(self.with_names(self._flat()))), buffer)
        return buffer.getvalue()

    def with_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name between the ids and the labels, which give way to names of the user."""
        id_name, label_name = (
            name if name not in values else f"whence_{name}" for name in ("id", "label")
        )
        return {id_name: self.ids, **values, label_name: self.labels}

    def _flat(self) -> Mapping[str, Array]:
        """Every number of an example under its name."""
        if self.columns:
            return self.columns
        flat = self.inputs.reshape(len(self.ids), -1)
        is_text = flat.dtype.kind == "U" and flat.shape[1] == 1
        names = ["text"] if is_text else [f"x{column}" for column in range(flat.shape[1])]
        return {name: flat[:, column] for column, name in enumerate(names)}


def clean(problem: "Problem", decisions: Mapping[int | str, Decision]) -> Cleaned:
    """The training data with the decisions carried out.

    Args:
        problem: holds the data.
        decisions: by id of the training example.

    Raises:
        Unsupported: examples that are no texts, rows or arrays of one shape, labels of several
            numbers, or nothing that is left.
    """
    ids = problem.data.ids.tolist()
    dropped = {name for name, decision in decisions.items() if decision.action == DROP}
    kept = [position for position, name in enumerate(ids) if name not in dropped]
    if not kept:
        raise _no_table("none is left")
    new = {
        place: str(decisions[ids[position]].label)
        for place, position in enumerate(kept)
        if ids[position] in decisions and decisions[ids[position]].action == RELABEL
    }
    inputs, columns = _as_table([problem.data.example(position) for position in kept])
    labels = _labels(problem, kept, new)
    classes = _classes(problem, labels) if _are_classes(problem) else ()
    return Cleaned(
        problem.data.ids[kept], inputs, labels, columns or _named(problem, inputs), classes
    )


def writes_parquet() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def load_arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        Unsupported: they are not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise Unsupported(
            found="pyarrow is not installed.",
            why="It writes Parquet.",
            remedy="pip install 'whence[parquet]', or take csv or npz.",
        ) from error


def decisions_csv(decisions: Mapping[int | str, Decision]) -> bytes:
    """One row a decision: id, action, label, at."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("id", "action", "label", "at"))
    writer.writerows((d.id, d.action, d.label or "", d.at) for d in decisions.values())
    return buffer.getvalue().encode("utf-8")


def decisions_json(decisions: Mapping[int | str, Decision]) -> bytes:
    """A list of decisions."""
    told = [decision.to_json() for decision in decisions.values()]
    return json.dumps(told, indent=1).encode("ascii")


def _as_table(examples: list[Any]) -> tuple[Array, dict[str, Array]]:
    """One array of all examples, and their columns where they have names."""
    first = examples[0]
    if isinstance(first, Mapping):
        columns = {str(name): _column([one[name] for one in examples]) for name in first}
        are_numbers = all(column.dtype.kind != "U" for column in columns.values())
        wanted = columns if are_numbers else {n: c.astype(str) for n, c in columns.items()}
        return np.stack(list(wanted.values()), axis=1), columns
    plain = [one.detach().cpu().numpy() if hasattr(one, "detach") else one for one in examples]
    try:
        table = np.array([np.asarray(one) for one in plain])
    except ValueError as error:
        raise _no_table(str(error)) from error
    if table.dtype.hasobject:
        raise _no_table("they are objects of Python")
    return table, {}


def _column(values: list[Any]) -> Array:
    """One value an example; words where any is no number."""
    if any(np.ndim(value) for value in values):
        raise _no_table("they have several parts")
    are_numbers = all(isinstance(value, Number | np.number | np.bool_) for value in values)
    return np.array(values) if are_numbers else np.array(values, dtype=str)


def _named(problem: "Problem", inputs: Array) -> dict[str, Array]:
    """Columns of vectors whose numbers have names where they are shown."""
    hints = problem.display if isinstance(problem.display, Mapping) else {}
    names: Sequence[str] = hints.get("feature_names") or ()
    if inputs.ndim != 2 or len(set(names)) != inputs.shape[1]:
        return {}
    return {str(name): inputs[:, column] for column, name in enumerate(names)}


def _are_classes(problem: "Problem") -> bool:
    task = problem.loss.task
    is_named = problem.label_names is not None and task != "regression"
    return task in ("classes", "binary", "signed") or is_named


def _labels(problem: "Problem", kept: list[int], new: Mapping[int, str]) -> Array:
    """Labels in words, or as they were given where they are no classes."""
    import torch

    _, targets = problem.data.take(torch.tensor(kept))
    if targets is None or _are_classes(problem):
        words = problem.labels()[kept].tolist()
        return _as_numbers([new.get(place, word) for place, word in enumerate(words)])
    numbers = targets.detach().cpu().numpy().reshape(len(kept), -1).copy()
    if numbers.shape[1] != 1:
        raise _no_table(f"their targets have {numbers.shape[1]:,} numbers each")
    for place, word in new.items():
        numbers[place] = float(word)
    return numbers[:, 0]


def _classes(problem: "Problem", labels: Array) -> tuple[str, ...]:
    """All classes; a label that counts from 0 is its own place among them."""
    found = np.unique(labels)
    if problem.label_names is not None:
        names = [str(name) for name in problem.label_names]
        return (*names, *(str(label) for label in found if str(label) not in names))
    if found.dtype.kind in "iu" and found[0] >= 0:
        return tuple(map(str, range(int(found[-1]) + 1)))
    return tuple(map(str, found))


def _as_numbers(labels: list[str]) -> Array:
    """Labels as numbers where all of them are, so that they are read back as they were given."""
    for kind in (int, float):
        try:
            return np.array([kind(label) for label in labels])
        except ValueError:
            continue
    return np.array(labels)


def _no_table(reason: str) -> Unsupported:
    return Unsupported(
        found=f"The examples do not fit one array: {reason}.",
        why="A file holds texts, rows or arrays of one shape.",
        remedy="Export the decisions, and carry them out on your own data.",
    )
