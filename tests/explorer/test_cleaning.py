"""What a review leaves, in files that others read."""

import csv
import io
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import whence
from whence.errors import Unsupported
from whence.explorer.cleaning import clean
from whence.explorer.review import Decision

TEXTS = ['a "good" one', "bad, very bad", "good\nlines", "bad"] * 4
LABELS = ["ham", "spam", "ham", "spam"] * 4


def decided(example: int, action: str, label: str | None = None) -> dict[int, Decision]:
    return {example: Decision(example, action, label, "2026-01-01")}


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


@pytest.fixture(scope="module")
def messages():
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(TEXTS, LABELS)
    return whence.make_problem(model, (TEXTS, LABELS))


def test_texts_come_back_whatever_they_hold(messages):
    cleaned = clean(messages, decided(1, "drop") | decided(3, "relabel", "ham"))
    table = rows(cleaned.csv())
    kept = [i for i in range(16) if i != 1]
    assert [int(row["id"]) for row in table] == kept
    assert [row["text"] for row in table] == [TEXTS[i] for i in kept]
    assert [row["label"] for row in table] == ["ham" if i == 3 else LABELS[i] for i in kept]
    arrays = np.load(io.BytesIO(cleaned.npz()), allow_pickle=False)
    assert arrays["x"].tolist() == [TEXTS[i] for i in kept]


def test_what_was_kept_stays_as_it_was(messages):
    assert clean(messages, decided(1, "keep")).labels.tolist() == LABELS


def test_columns_of_a_table_keep_their_names_and_numbers():
    frame = pd.DataFrame({"age": [20.0, 31.5, 44.0, 52.0], "dose": [1.0, 2.0, 2.5, 0.0]})
    target = np.array([0.5, 1.0, 1.5, 2.25])
    model = make_pipeline(StandardScaler(), Ridge()).fit(frame, target)
    cleaned = clean(whence.make_problem(model, (frame, target)), decided(0, "drop"))
    table = rows(cleaned.csv())
    assert list(table[0]) == ["id", "age", "dose", "label"]
    assert [float(row["age"]) for row in table] == [31.5, 44.0, 52.0]
    assert [float(row["label"]) for row in table] == [1.0, 1.5, 2.25]


def test_parquet_holds_the_same_rows_or_says_what_is_missing(messages):
    cleaned = clean(messages, decided(1, "drop"))
    if find_spec("pyarrow") is None:
        with pytest.raises(Unsupported, match="pyarrow"):
            cleaned.parquet()
    else:
        frame = pd.read_parquet(io.BytesIO(cleaned.parquet()))
        assert frame["text"].tolist() == [row["text"] for row in rows(cleaned.csv())]


def test_columns_of_words_and_numbers_keep_their_types_and_targets_their_digits():
    frame = pd.DataFrame({"label": [3, 1, 2, 5], "city": ["a", "b", "007", "a"]})
    target = np.array([1 / 3, 1.0, 1.5, 1e-9])
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    model = make_pipeline(columns, Ridge()).fit(frame, target)
    problem = whence.make_problem(model, (frame, target))
    cleaned = clean(problem, decided(1, "relabel", "0.125"))
    assert {name: values.dtype.kind for name, values in cleaned.columns.items()} == {
        "label": "i",
        "city": "U",
    }
    table = rows(cleaned.csv())
    assert list(table[0]) == ["id", "label", "city", "whence_label"]  # theirs keep their names
    assert [row["city"] for row in table] == ["a", "b", "007", "a"]
    assert [float(row["whence_label"]) for row in table] == [1 / 3, 0.125, 1.5, 1e-9]


def test_vectors_have_the_names_under_which_they_are_shown():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2
    display = {"kind": "row", "feature_names": ["age", "dose"]}
    problem = whence.make_problem(LogisticRegression().fit(x, y), (x, y), display=display)
    assert list(rows(clean(problem, {}).csv())[0]) == ["id", "age", "dose", "label"]


def test_what_fits_no_table_is_refused(messages):
    everything = {i: decided(i, "drop")[i] for i in range(16)}
    with pytest.raises(Unsupported, match="none is left"):
        clean(messages, everything)
    model = torch.nn.Linear(2, 3)
    data = torch.zeros(4, 2), torch.zeros(4, 3)
    several = whence.make_problem(model, data, loss="mse", weight_decay=0.1)
    with pytest.raises(Unsupported, match="3 numbers each"):
        clean(several, {})
