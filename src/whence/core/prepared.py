"""Examples that fixed steps turn into the numbers a model takes, as a table of (N, d) features.

Text becomes counts, columns are scaled, labels become codes. Effects belong to the raw example, and
the raw example is what people are shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whence.core.batches import Data, TensorData, Tree, make_data
from whence.errors import BadData, NonFinite, TooLarge, Unsupported
from whence.numerics.differences import affine_jacobian, pull_back, spreads

DENSE_BYTES = 2 * 2**30
"""A sparse table may take this much memory once its zeros are written out."""

_SAMPLE = 1000
"""Rows that show the range in which fixed steps are used."""


class PreparedData(Data):
    """Examples as the model takes them, with the raw ones kept.

    Args:
        prepared: what the model takes.
        rows: N raw examples as the user has them: a frame, a sparse or dense array, or a list.
        preparation: what made the ones of the others.
    """

    def __init__(self, prepared: TensorData, rows: object, preparation: "Preparation") -> None:
        self.prepared = prepared
        self.rows = rows
        self.preparation = preparation
        self.ids = prepared.ids

    @property
    def is_prepared(self) -> bool:
        """Raw examples and features differ."""
        return True

    @property
    def input_refusal(self) -> str | None:
        """What the preparation says."""
        return self.preparation.pull_back_refusal

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Features and codes of the examples at these positions."""
        return self.prepared.take(positions)

    def raw(self, positions: Tensor) -> Any:
        """The raw examples at these positions, in the form of the whole; sparse ones as arrays."""
        return take_rows(self.rows, positions)

    def prepare(self, raw: Tree) -> Tensor:
        """(B, d) features of raw examples; an array stands for a frame with the same columns."""
        return torch.from_numpy(self.preparation.features(self._shaped(raw)))

    def pull_back(self, raw: Tree, slopes: Tree) -> Tensor:
        """(Q, B, k) by the Jacobian of affine steps, else by central differences.

        Raises:
            Unsupported: the raw examples are texts or categories, or the preparation refuses.
            NonFinite: a raw example has missing values, or the steps no derivative there.
        """
        reason = self.preparation.pull_back_refusal
        if reason is not None:
            raise Unsupported(
                found=f"A derivative with respect to the raw examples has no meaning, because "
                f"{reason}.",
                why="To move a training example is to move what the user gave, not its features.",
                remedy="Remove or relabel it (remove, relabel), or use a model on the raw columns.",
            )
        rows, wanted = numeric_table(raw), slopes.detach().double().cpu().numpy()
        if not np.isfinite(rows).all():
            raise _no_derivative("the example has missing or infinite values")
        if self._jacobian is not None:
            answer = wanted @ self._jacobian
        else:
            answer = pull_back(self._map, rows, wanted, spread=self._spreads)
        if not np.isfinite(answer).all():
            raise _no_derivative("the steps give no number right beside the example")
        return torch.from_numpy(answer).to(slopes)

    @cached_property
    def _jacobian(self) -> np.ndarray | None:
        """(d, k) where the steps are affine."""
        return affine_jacobian(self._map, self._sample)

    @cached_property
    def _spreads(self) -> np.ndarray:
        return spreads(self._sample)

    @cached_property
    def _sample(self) -> np.ndarray:
        """Up to `_SAMPLE` complete rows, evenly from the whole, that show the range of the data."""
        places = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(int)
        table = numeric_table(take_rows(self.rows, torch.from_numpy(places)))
        complete = table[np.isfinite(table).all(1)]
        return complete if len(complete) else np.zeros((1, table.shape[1]))

    def _map(self, table: np.ndarray) -> np.ndarray:
        return self.preparation.features(self._shaped(table))

    def _shaped(self, raw: object) -> object:
        """Numbers in the form that the steps were fitted on."""
        raw = _on_cpu(raw)
        columns: Any = getattr(self.rows, "columns", None)
        if columns is None or hasattr(raw, "columns"):
            return raw
        return cast("Any", type(self.rows))(np.asarray(raw), columns=columns)

    def example(self, position: int) -> object:
        """The raw example: a text, a row of numbers, or a dict of the named cells of a row."""
        raw: Any = take_rows(self.rows, torch.tensor([position]))
        if not hasattr(raw, "iloc"):
            return raw[0]
        return raw.iloc[0] if raw.ndim == 1 else raw.to_dict("records")[0]


@dataclass(frozen=True)
class Preparation:
    """How raw examples become features, and labels codes.

    Args:
        width: d, the number of features the model takes.
        transform: the fixed steps, from N raw examples to (N, d) features; None where the raw
            examples are the features.
        codes: the number that stands for each label in the loss; None where targets are numbers.
        columns: names of the features in the order of the model, where it knows them.
        pull_back_refusal: why a derivative with respect to the features cannot be carried back to
            the raw examples, as the end of "..., because"; None where the transform decides.
    """

    width: int
    transform: Callable[[object], object] | None = None
    codes: Mapping[object, float] | None = None
    columns: tuple[str, ...] | None = None
    pull_back_refusal: str | None = None

    def __call__(self, source: object, *, ids: object = None) -> Data:
        """Prepared examples.

        Args:
            source: `(X, y)`, `X` alone, or data that is already prepared.
            ids: N unique names, default 0 to N - 1.

        Raises:
            BadData: not a table, another number of features, unknown labels, unequal lengths.
            TooLarge: the table is sparse, and too large to be written out.
        """
        if isinstance(source, Data):
            return source
        raw, labels = _split(source)
        features = self.features(raw)
        targets = None if labels is None else self._targets(labels)
        prepared = cast("TensorData", make_data((features, targets), ids=ids))
        return prepared if self.transform is None else PreparedData(prepared, raw, self)

    def features(self, raw: object) -> np.ndarray:
        """(N, d) what the model takes, of raw examples.

        Raises:
            BadData: not a table, or another number of features.
            TooLarge: the table is sparse, and too large to be written out.
        """
        if self.transform is None:
            self._check_columns(raw)
        table = _as_table(raw if self.transform is None else self.transform(raw))
        if table.ndim != 2 or table.shape[1] != self.width:
            raise BadData(
                found=f"The examples have the shape {table.shape}; the model takes "
                f"(examples, {self.width}).",
                why="Each feature belongs to one coefficient.",
                remedy="Pass the features the model was fitted on, one row per example; a single "
                "example is X[0:1].",
            )
        return table

    def _check_columns(self, raw: object) -> None:
        columns = column_names(raw)
        if self.columns is None or columns is None or columns == self.columns:
            return
        place, got, expected = next(
            (place, got, expected)
            for place, (got, expected) in enumerate(zip_longest(columns, self.columns))
            if got != expected
        )
        raise BadData(
            found=f"The columns differ from those of the fit, first at position {place}: "
            f"{got!r} instead of {expected!r}.",
            why="Each column belongs to one coefficient, in the order of the fit.",
            remedy="Select and order the columns as in X[model.feature_names_in_].",
        )

    def _targets(self, labels: object) -> np.ndarray:
        values = np.asarray(labels)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if self.codes is None:
            return _as_numbers(values, "targets")
        if values.ndim != 1:
            raise BadData(
                found=f"The labels have the shape {values.shape}.",
                why="A classifier has one label per example.",
                remedy="Pass y as a vector of labels.",
            )
        named = values.tolist()
        unknown = [row for row, label in enumerate(named) if label not in self.codes]
        if unknown:
            raise BadData(
                found=f"Example {unknown[0]} has the label {named[unknown[0]]!r}; {len(unknown)} "
                "labels here are unknown to the model.",
                why=f"It was fitted on the labels {', '.join(map(repr, self.codes))}.",
                remedy="Pass labels as they were at the fit, not their codes.",
            )
        return np.array([self.codes[label] for label in named])


def column_names(raw: object) -> tuple[str, ...] | None:
    """Names of the columns of a frame; None for anything else."""
    columns: Any = getattr(raw, "columns", None)
    return None if columns is None else tuple(str(name) for name in columns)


def take_rows(rows: object, positions: Tensor) -> Any:
    """Some raw examples, in the form of the whole; those of a sparse matrix as a dense array."""
    raw: Any = rows
    places = positions.cpu().numpy()
    if hasattr(raw, "toarray"):
        return raw.tocsr()[places].toarray()
    if hasattr(raw, "iloc"):
        return raw.iloc[places]
    if isinstance(raw, np.ndarray):
        return raw[places]
    return [raw[int(place)] for place in places]


def numeric_table(raw: object) -> np.ndarray:
    """(B, k) float64 raw examples, each column a number that can be moved a little.

    Raises:
        Unsupported: texts, categories, truth values or dates.
    """
    rows: Any = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw
    others: list[str] = []
    if hasattr(rows, "dtypes") and hasattr(rows, "columns"):
        kinds = zip(rows.columns, rows.dtypes, strict=True)
        others = [str(name) for name, kind in kinds if getattr(kind, "kind", "O") not in "iuf"]
    try:
        if not others:
            table = np.asarray(rows)
            if table.dtype.kind in "iufO" and table.ndim == 2:
                return table.astype(np.float64)
    except (TypeError, ValueError):
        pass
    what = f"The columns {', '.join(others)} are" if others else "The raw examples are"
    raise Unsupported(
        found=f"{what} not numbers but texts, categories, truth values or dates.",
        why="They cannot be moved a little, so a derivative with respect to them does not exist.",
        remedy="Compare whole replacements (replace), or encode them before the pipeline, so that "
        "make_problem is given numbers.",
    )


def _no_derivative(reason: str) -> NonFinite:
    return NonFinite(
        found=f"The steps before the model have no derivative here: {reason}.",
        why="The effect of a small move cannot be told.",
        remedy="Take another example, or fill missing values before the pipeline.",
    )


def _split(source: object) -> tuple[object, object]:
    """`(X, y)`, each as something that numpy can read; y is None where there is none."""
    if isinstance(source, Mapping | Dataset | DataLoader):
        raise BadData(
            found=f"The data is a {type(source).__name__}.",
            why="A scikit-learn model is fitted on a table X and targets y.",
            remedy="Pass the tuple (X, y).",
        )
    if not isinstance(source, tuple):
        return _on_cpu(source), None
    parts = cast("tuple[object, ...]", source)
    if len(parts) != 2:
        raise BadData(
            found=f"The data is a tuple of {len(parts)}.",
            why="A scikit-learn model is fitted on a table X and targets y.",
            remedy="Pass the tuple (X, y), or X alone for queries without labels.",
        )
    return _on_cpu(parts[0]), _on_cpu(parts[1])


def _on_cpu(source: object) -> object:
    return source.detach().cpu().numpy() if isinstance(source, Tensor) else source


def _as_table(source: object) -> np.ndarray:
    """Dense float64 from an array, a frame, a list or a sparse matrix."""
    sparse: Any = source
    if hasattr(sparse, "toarray"):
        needed = 8 * sparse.shape[0] * sparse.shape[1]
        if needed > DENSE_BYTES:
            raise TooLarge(
                found=f"The sparse table of {sparse.shape[0]:,} x {sparse.shape[1]:,} would take "
                f"{needed / 2**30:.1f} GiB written out, with a limit of "
                f"{DENSE_BYTES / 2**30:.1f} GiB.",
                why="The features are kept as a dense table of float64.",
                remedy="Use fewer features (max_features= or min_df= of the vectorizer, or a "
                "TruncatedSVD step), or fewer examples.",
            )
        source = sparse.toarray()
    return _as_numbers(source, "features")


def _as_numbers(source: object, what: str) -> np.ndarray:
    try:
        return np.asarray(source, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadData(
            found=f"The {what} cannot be read as numbers ({error}).",
            why="The model computes with numbers.",
            remedy="Encode them as at the fit; steps that do so belong in a Pipeline with the "
            "model.",
        ) from error
