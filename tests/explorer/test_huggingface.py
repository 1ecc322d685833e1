"""The cleaned data as a data set of Hugging Face: every feature, and every value, comes back."""

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import whence
from whence.errors import Unsupported
from whence.explorer import cleaning, huggingface
from whence.explorer.huggingface import FILE, as_bytes, package
from whence.explorer.review import Decision

N = 12
LABELS = np.arange(N) % 3


def decided(example: int, action: str, label: str | None = None) -> dict[int, Decision]:
    return {example: Decision(example, action, label, "2026-01-01")}


needs_arrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")

DECISIONS = decided(1, "drop") | decided(2, "relabel", "0")
KEPT = [i for i in range(N) if i != 1]


def arrays(inputs: np.ndarray, **options):
    """A problem of a network over arrays of any shape."""
    size = int(np.prod(inputs.shape[1:]))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 3))
    data = torch.from_numpy(inputs), torch.from_numpy(LABELS)
    options = {"loss": "cross_entropy", "weight_decay": 0.1} | options
    return whence.make_problem(model, data, **options)


def texts():
    words = ['a "good" one', "bad, very bad", "good\nlines", "bad"] * 3
    labels = ["ham", "spam", "ham", "spam"] * 3
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(words, labels)
    return whence.make_problem(model, (words, labels), name="mail:\n - x"), words, labels


def table():
    frame = pd.DataFrame({"id": range(N), "city": list("abca") * 3, "dose": np.arange(N) / 7})
    target = np.arange(N) / 3 + 1e-9
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    return whence.make_problem(make_pipeline(columns, Ridge()).fit(frame, target), (frame, target))


def opened(content: bytes):
    """The card, the table, and what it says of its features."""
    from pyarrow import parquet

    with zipfile.ZipFile(io.BytesIO(content)) as folder:
        assert folder.namelist() == ["README.md", FILE]
        card = folder.read("README.md").decode()
        read = parquet.read_table(io.BytesIO(folder.read(FILE)))
    told = json.loads(read.schema.metadata[b"huggingface"])
    return card, read, told["info"]["features"]


# ---------------------------------------------------------------------- as written


@needs_arrow
def test_texts_and_the_names_of_their_classes_are_kept():
    problem, words, labels = texts()
    made = decided(1, "drop") | decided(3, "relabel", "ham")
    _, read, features = opened(package(problem, made))
    assert features["text"] == {"dtype": "string", "_type": "Value"}
    assert features["label"] == {"names": ["ham", "spam"], "_type": "ClassLabel"}
    assert read["text"].to_pylist() == [words[i] for i in KEPT]
    expected = ["ham" if i == 3 else labels[i] for i in KEPT]
    assert [features["label"]["names"][i] for i in read["label"].to_pylist()] == expected
    assert read["id"].to_pylist() == KEPT


@needs_arrow
def test_columns_keep_their_types_and_targets_all_their_digits():
    problem = table()
    _, read, features = opened(package(problem, decided(1, "drop")))
    assert {name: told["dtype"] for name, told in features.items()} == {
        "whence_id": "int64",  # the user has a column of the name id
        "id": "int64",
        "city": "string",
        "dose": "float64",
        "label": "float64",
    }
    assert read["dose"].to_pylist() == [i / 7 for i in KEPT]
    assert read["label"].to_pylist() == [i / 3 + 1e-9 for i in KEPT]


@needs_arrow
@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((5,), {"feature": {"dtype": "float32", "_type": "Value"}, "length": 5}),
        ((2, 3), {"shape": [2, 3], "dtype": "float32", "_type": "Array2D"}),
        ((2, 3, 4), {"shape": [2, 3, 4], "dtype": "float32", "_type": "Array3D"}),
        ((1, 2, 1, 2, 1), {"shape": [1, 2, 1, 2, 1], "dtype": "float32", "_type": "Array5D"}),
    ],
)
@pytest.mark.parametrize("rows", [4, 1000])
def test_arrays_come_back_in_their_shape_whatever_the_row_groups(shape, told, rows, monkeypatch):
    monkeypatch.setattr(huggingface, "ROWS", rows)
    inputs = np.random.default_rng(0).normal(size=(N, *shape)).astype(np.float32)
    _, read, features = opened(package(arrays(inputs), DECISIONS))
    assert features["x"].items() >= told.items()
    assert np.array_equal(np.array(read["x"].to_pylist(), dtype=np.float32), inputs[KEPT])
    assert features["label"]["names"] == ["0", "1", "2"]
    assert read["label"].to_pylist() == [0 if i == 2 else i % 3 for i in KEPT]


@needs_arrow
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (6, 5, 3), (6, 5)])
def test_pictures_of_eight_bits_become_png_and_lose_nothing(shape):
    levels = np.random.default_rng(1).integers(0, 256, (N, *shape))
    inputs = (levels / 255).astype(np.float32)
    card, read, features = opened(package(arrays(inputs, label_names=list("abc")), DECISIONS))
    assert features["image"] == {"_type": "Image"}
    assert features["label"]["names"] == ["a", "b", "c", "0"]  # a label that is no class
    assert "Pixels are 255 times" in card
    for given, cell in zip(levels[KEPT], read["image"].to_pylist(), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
        expected = np.moveaxis(given, 0, 2) if shape == (3, 6, 5) else given.reshape(picture.shape)
        assert np.array_equal(picture, expected)


@needs_arrow
def test_the_card_names_the_file_and_holds_names_whatever_is_in_them():
    problem, *_ = texts()
    card, *_ = opened(package(problem, decided(1, "drop") | decided(3, "relabel", "ham")))
    lines = card.splitlines()
    assert lines[:2] == ["---", 'pretty_name: "mail: - x, reviewed"']
    assert f"    path: {FILE}" in lines[: lines.index("---", 1)]
    assert "11 of 12 training examples" in card
    assert "1 dropped, 1 relabelled" in card


# -------------------------------------------------------------------------- choices


def test_bytes_are_made_only_of_what_they_hold_exactly():
    picture = np.arange(64).reshape(1, 8, 8)
    for given, scale in (
        (picture, 1),
        (picture.astype(np.uint8), 1),
        (picture.astype(np.float32), 1),
        ((picture / 255).astype(np.float32), 255),
        ((picture > 9).astype(np.float64), 255),
    ):
        found, by = as_bytes(given, "image")
        assert by == scale
        assert np.array_equal((found / scale).astype(np.float32), given.astype(np.float32))
    for given in (picture / 16, picture - 1, picture * 5, np.full((1, 8, 8), np.nan)):
        assert as_bytes(given, "image") == (None, 1)


def test_flat_vectors_are_pictures_where_they_are_shown_so():
    flat = np.arange(24).reshape(2, 12)
    found, _ = as_bytes(flat, {"kind": "image", "shape": (3, 4)})
    assert np.array_equal(found, flat.reshape(2, 3, 4))
    for display in (None, "row", {"kind": "audio", "rate": 8000}, lambda inputs, target: "x"):
        assert as_bytes(flat, display) == (None, 1)


def test_without_pyarrow_the_remedy_names_the_extra(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(cleaning, "import_module", missing)
    with pytest.raises(Unsupported, match="pyarrow") as refused:
        package(texts()[0], {})
    assert "whence[parquet]" in refused.value.remedy


@needs_arrow
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 4)])
def test_arrays_of_many_axes_are_refused(shape):
    with pytest.raises(Unsupported, match="6 axes"):
        package(arrays(np.zeros((N, *shape), np.float32)), {})


# ----------------------------------------------------------------- as `datasets` reads


@needs_arrow
@pytest.mark.parametrize("kind", ["text", "table", "picture", "vector", "array"])
def test_the_library_itself_reads_the_folder(kind, tmp_path: Path):
    datasets = pytest.importorskip("datasets", reason="needs the library datasets")
    rng = np.random.default_rng(2)
    shapes = {"picture": (1, 6, 5), "vector": (7,), "array": (2, 6, 2)}
    if kind in shapes:
        levels = rng.integers(0, 256, (N, *shapes[kind]))
        problem = arrays((levels / 255).astype(np.float32))
    else:
        problem = texts()[0] if kind == "text" else table()
    with zipfile.ZipFile(io.BytesIO(package(problem, decided(1, "drop")))) as folder:
        folder.extractall(tmp_path / "data")
    cache = str(tmp_path / "cache")
    read = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=cache)
    file = str(tmp_path / "data" / FILE)
    assert datasets.Dataset.from_parquet(file, cache_dir=cache).features == read.features
    assert len(read) == N - 1
    features = {name: type(feature).__name__ for name, feature in read.features.items()}
    expected = {"text": ("text", "Value"), "picture": ("image", "Image"), "array": ("x", "Array3D")}
    if kind in expected:
        name, feature = expected[kind]
        assert features[name] == feature
    assert features["label"] == ("Value" if kind == "table" else "ClassLabel")
    if kind == "picture":
        assert np.array_equal(np.asarray(read[3]["image"]), levels[KEPT[3], 0])
    if kind in ("vector", "array"):
        assert np.allclose(np.array(read[3]["x"]) * 255, levels[KEPT[3]], rtol=1e-6)
