"""Examples that fixed steps turn into the numbers a model takes, as a table of (N, d) features.

Text becomes counts, columns are scaled, labels become codes. Effects belong to the raw example, and
the raw example is what people are shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whence.core.batches import Data, TensorData, Tree, make_data
from whence.errors import BadData, TooLarge

DENSE_BYTES = 2 * 2**30
"""A sparse table may take this much memory once its zeros are written out."""


class PreparedData(Data):
    """Examples as the model takes them, with the raw ones kept for display.

    Args:
        prepared: what the model takes.
        raw: N examples as the user has them: a frame, a sparse or dense array, or a list.
    """

    def __init__(self, prepared: TensorData, raw: object) -> None:
        self.prepared = prepared
        self.raw = raw
        self.ids = prepared.ids

    def take(self, positions: Tensor) -> tuple[Tree, Tensor | None]:
        """Features and codes of the examples at these positions."""
        return self.prepared.take(positions)

    def example(self, position: int) -> object:
        """The raw example: a text, a row of numbers, or a dict of the named cells of a row."""
        raw: Any = self.raw
        if hasattr(raw, "toarray"):
            return raw.tocsr()[[position]].toarray()[0]
        if not hasattr(raw, "iloc"):
            return raw[position]
        if raw.ndim == 1:
            return raw.iloc[position]
        return raw.iloc[[position]].to_dict("records")[0]


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
        features = self._features(raw)
        targets = None if labels is None else self._targets(labels)
        prepared = cast("TensorData", make_data((features, targets), ids=ids))
        return prepared if self.transform is None else PreparedData(prepared, raw)

    def _features(self, raw: object) -> np.ndarray:
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
