"""Cleaned data as a folder that `datasets.load_dataset` reads: a card and one file of Parquet.

What columns mean stands in the schema of the file, as `datasets` writes it there: classes with
their names, pictures as PNG, arrays with their shape. `datasets` itself is not needed.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from whence.core.display import as_picture, describe
from whence.errors import BadArgument, Unsupported
from whence.explorer.cleaning import Cleaned, clean, load_arrow
from whence.explorer.review import DROP, RELABEL, Decision
from whence.version import __version__

if TYPE_CHECKING:
    from whence.core.problem import Problem

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

FILE = "data/train-00000-of-00001.parquet"

ROWS = 1000
"""Examples of a row group: as much as a reader loads at once."""

_MOST_AXES = 5
"""Of arrays whose shape `datasets` knows."""


@dataclass(frozen=True, eq=False)
class Feature:
    """One column.

    Args:
        told: what `datasets` calls a feature, as plain JSON.
        kind: its type of arrow.
        part: its values of some rows.
        extension: name and parameters of the type of `datasets` that a column of arrays has.
    """

    told: Json
    kind: Any
    part: Callable[[slice], Any]
    extension: Mapping[str, str] | None = None


def package(problem: "Problem", decisions: Mapping[int | str, Decision]) -> bytes:
    """A zip with README.md and the data as a review has left it.

    Args:
        problem: holds the data.
        decisions: by id of the training example.

    Raises:
        Unsupported: pyarrow is not installed, or the examples fit no table.
    """
    arrow, parquet = load_arrow()
    cleaned = clean(problem, decisions)
    pictures, scale = as_bytes(cleaned.inputs, problem.display)
    features = _features(arrow, cleaned, pictures)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as folder:
        card = _card(problem, cleaned, decisions, features, scale)
        folder.writestr(zipfile.ZipInfo("README.md"), card.encode("utf-8"))
        data = _table(arrow, parquet, features, len(cleaned.ids))
        folder.writestr(zipfile.ZipInfo(FILE), data)
    return buffer.getvalue()


def as_bytes(inputs: Array, display: object) -> tuple[Array | None, int]:
    """Pictures whose pixels 8 bits hold exactly, and what their numbers were multiplied by.

    Args:
        inputs: (M, ...).
        display: how the problem shows its examples.

    Returns:
        (M, H, W) or (M, H, W, channels) bytes with 255 or 1; None for what is no such picture.
    """
    if callable(display):
        return None, 1
    hints: Json = dict(display) if isinstance(display, Mapping) else {"kind": display or "auto"}
    if inputs.dtype.kind not in "biuf" or describe(inputs[0], **hints)["kind"] != "image":
        return None, 1
    try:
        pictures = np.stack([as_picture(one, hints.get("shape")) for one in inputs])
    except BadArgument:
        return None, 1
    if not np.isfinite(pictures).all() or pictures.min() < 0 or pictures.max() > 255:
        return None, 1
    is_unit = pictures.dtype != np.uint8 and pictures.max() <= 1
    scale = 255 if is_unit else 1
    levels = np.rint(pictures.astype(np.float64) * scale)
    kind = np.dtype(np.float64) if pictures.dtype.kind in "biu" else pictures.dtype
    is_exact = bool((levels.astype(kind) / kind.type(scale) == pictures).all())
    return (levels.astype(np.uint8), scale) if is_exact else (None, 1)


# -------------------------------------------------------------------------- features


def _features(arrow: Any, cleaned: Cleaned, pictures: Array | None) -> dict[str, Feature]:
    """Every column, the ids first and the labels last."""
    if cleaned.columns:
        values = {name: _value(arrow, column) for name, column in cleaned.columns.items()}
    elif pictures is not None:
        values = {"image": _image(arrow, pictures)}
    elif cleaned.inputs.ndim == 1:
        is_text = cleaned.inputs.dtype.kind == "U"
        values = {"text" if is_text else "x": _value(arrow, cleaned.inputs)}
    else:
        values = {"x": _array(arrow, cleaned.inputs)}
    named = cleaned.with_names(values)
    id_name, *_, label_name = named
    named[id_name] = _value(arrow, cleaned.ids)
    named[label_name] = _label(arrow, cleaned)
    if cleaned.labels.dtype.kind == "U" and not any(cleaned.labels):
        del named[label_name]  # no example has one
    return named


def _value(arrow: Any, values: Array) -> Feature:
    name, kind = _type(arrow, values)
    told = {"dtype": name, "_type": "Value"}
    return Feature(told, kind, lambda rows: arrow.array(values[rows].tolist(), kind))


def _label(arrow: Any, cleaned: Cleaned) -> Feature:
    """The place of each class among their names, or the number itself."""
    if not cleaned.classes:
        return _value(arrow, cleaned.labels)
    places = {name: place for place, name in enumerate(cleaned.classes)}
    labels = [places[str(label)] for label in cleaned.labels.tolist()]
    told = {"names": list(cleaned.classes), "_type": "ClassLabel"}
    return Feature(told, arrow.int64(), lambda rows: arrow.array(labels[rows], arrow.int64()))


def _image(arrow: Any, pictures: Array) -> Feature:
    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})

    def part(rows: slice) -> Any:
        files = [{"bytes": _png(picture), "path": None} for picture in pictures[rows]]
        return arrow.array(files, kind)

    return Feature({"_type": "Image"}, kind, part)


def _array(arrow: Any, values: Array) -> Feature:
    """Vectors of one length; arrays of two to five axes with their shape."""
    shape = values.shape[1:]
    name, kind = _type(arrow, values)
    if len(shape) > _MOST_AXES:
        raise Unsupported(
            found=f"Each example has {len(shape)} axes.",
            why=f"Data sets of Hugging Face hold arrays of at most {_MOST_AXES}.",
            remedy="Take npz.",
        )
    if len(shape) == 1:
        told = {"feature": {"dtype": name, "_type": "Value"}, "length": shape[0]}
        fixed = arrow.list_(kind, shape[0])
        return Feature(
            told | {"_type": "Sequence"},
            fixed,
            lambda rows: arrow.array(list(values[rows].tolist()), fixed),
        )
    type_name = f"Array{len(shape)}D"
    for _ in shape:
        kind = arrow.list_(kind)
    extension = {
        "ARROW:extension:name": f"datasets.features.features.{type_name}ExtensionType",
        "ARROW:extension:metadata": json.dumps([shape, name]),
    }
    told = {"shape": list(shape), "dtype": name, "_type": type_name}
    return Feature(told, kind, lambda rows: arrow.array(values[rows].tolist(), kind), extension)


def _type(arrow: Any, values: Array) -> tuple[str, Any]:
    """The name of a type in `datasets`, and the type in arrow."""
    if values.dtype.kind == "U":
        return "string", arrow.string()
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise Unsupported(
            found=f"The examples are numbers of the type {values.dtype}.",
            why="Data sets of Hugging Face do not hold them.",
            remedy="Take npz.",
        )
    return values.dtype.name, arrow.from_numpy_dtype(values.dtype)


def _png(picture: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


# ----------------------------------------------------------------------------- files


def _table(arrow: Any, parquet: Any, features: Mapping[str, Feature], count: int) -> bytes:
    told = {"info": {"features": {name: feature.told for name, feature in features.items()}}}
    schema = arrow.schema(
        [
            arrow.field(name, feature.kind, metadata=feature.extension)
            for name, feature in features.items()
        ],
        metadata={"huggingface": json.dumps(told)},
    )
    buffer = io.BytesIO()
    with parquet.ParquetWriter(buffer, schema) as writer:
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            parts = [feature.part(rows) for feature in features.values()]
            writer.write_table(arrow.table(parts, schema=schema))
    return buffer.getvalue()


def _card(
    problem: "Problem",
    cleaned: Cleaned,
    decisions: Mapping[int | str, Decision],
    features: Mapping[str, Feature],
    scale: int,
) -> str:
    """README.md: which file is which split, and what was done to the data."""
    title = f"{' '.join(problem.name.split())}, reviewed"
    made = [decision.action for decision in decisions.values()]
    pictures = {
        255: "Pixels are 255 times the numbers that the model was trained on.",
        1: "Pixels are the numbers that the model was trained on.",
    }
    lines = [
        "---",
        f"pretty_name: {json.dumps(title)}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {FILE}",
        "---",
        "",
        f"# {title}",
        "",
        f"{len(cleaned.ids):,} of {len(problem):,} training examples after a review of their "
        f"labels: {made.count(DROP):,} dropped, {made.count(RELABEL):,} relabelled.",
        *([pictures[scale]] if "image" in features and not cleaned.columns else []),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'data = load_dataset("the folder of this file", split="train")',
        "```",
        "",
        f"Written by whence {__version__}.",
        "",
    ]
    return "\n".join(lines)
