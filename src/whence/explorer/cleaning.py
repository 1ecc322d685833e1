"""A data set as a review has left it: examples dropped, labels replaced, in files others read."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
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
        columns: names of the numbers of a row; empty where there are none.
        labels: (M,) with the new ones where they were replaced.
    """

    ids: Array
    inputs: Array
    columns: tuple[str, ...]
    labels: Array

    def npz(self) -> bytes:
        """Arrays x, y and id, nothing pickled."""
        buffer = io.BytesIO()
        np.savez(buffer, x=self.inputs, y=self.labels, id=self.ids)
        return buffer.getvalue()

    def csv(self) -> bytes:
        """One row an example: id, its numbers or its text, and the label."""
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        named = self._named()
        writer.writerow(named)
        writer.writerows(zip(*(values.tolist() for values in named.values()), strict=True))
        return buffer.getvalue().encode("utf-8")

    def parquet(self) -> bytes:
        """The same rows as Apache Parquet.

        Raises:
            Unsupported: pyarrow is not installed.
        """
        import pandas as pd

        buffer = io.BytesIO()
        try:
            pd.DataFrame(self._named()).to_parquet(buffer, index=False)
        except ImportError as error:
            raise Unsupported(
                found="pyarrow is not installed.",
                why="It writes Parquet.",
                remedy="pip install pyarrow, or take csv or npz.",
            ) from error
        return buffer.getvalue()

    def _named(self) -> dict[str, Array]:
        flat = self.inputs.reshape(len(self.ids), -1)
        names = self.columns or (
            ("text",)
            if flat.dtype.kind == "U"
            else tuple(f"x{column}" for column in range(flat.shape[1]))
        )
        values = {name: flat[:, column] for column, name in enumerate(names)}
        return {"id": self.ids, **values, "label": self.labels}


def clean(problem: "Problem", decisions: Mapping[int | str, Decision]) -> Cleaned:
    """The training data with the decisions carried out.

    Args:
        problem: holds the data.
        decisions: by id of the training example.

    Raises:
        Unsupported: examples that are no texts, rows or arrays of one shape.
    """
    ids = problem.data.ids.tolist()
    dropped = {name for name, decision in decisions.items() if decision.action == DROP}
    kept = [position for position, name in enumerate(ids) if name not in dropped]
    new = {
        name: decision.label for name, decision in decisions.items() if decision.action == RELABEL
    }
    labels = [new.get(ids[position]) or problem.label_of(position) or "" for position in kept]
    inputs, columns = _as_table([problem.data.example(position) for position in kept])
    return Cleaned(problem.data.ids[kept], inputs, columns, _as_numbers(labels))


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


def _as_table(examples: list[Any]) -> tuple[Array, tuple[str, ...]]:
    """One array of all examples, and the names of their columns where they have any."""
    first = examples[0]
    if isinstance(first, Mapping):
        rows = [list(one.values()) for one in examples]
        table = np.array(rows) if _are_numbers(rows) else np.array(rows, dtype=str)
        return table, tuple(map(str, first))
    plain = [one.detach().cpu().numpy() if hasattr(one, "detach") else one for one in examples]
    try:
        table = np.array([np.asarray(one) for one in plain])
    except ValueError as error:
        raise _no_table(str(error)) from error
    if table.dtype.hasobject:
        raise _no_table("they are objects of Python")
    return table, ()


def _are_numbers(rows: list[list[Any]]) -> bool:
    return all(isinstance(value, int | float) for row in rows for value in row)


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
