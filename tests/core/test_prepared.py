"""Raw examples behind fixed steps: taken, prepared, and differentiated."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)

from whence.core.prepared import Preparation, PreparedData, numeric_table, take_rows
from whence.errors import NonFinite, Unsupported

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.standard_normal((50, 3)) * [1.0, 30.0, 0.01] + [2.0, -5.0, 0.5]
FRAME = pd.DataFrame(TABLE, columns=["age", "dose", "share"])
AFFINE = {
    "standard": StandardScaler(),
    "min and max": MinMaxScaler(),
    "largest": MaxAbsScaler(),
    "robust": RobustScaler(),
    "principal components": PCA(2, whiten=True),
}
BENT = {
    "clipped": MinMaxScaler(clip=True),
    "polynomial": PolynomialFeatures(2),
    "normal": Normalizer(),
    "power": PowerTransformer(),
}


def prepared(steps, raw) -> PreparedData:
    steps.fit(raw)
    width = steps.transform(raw[:1]).shape[1]
    return Preparation(width, transform=steps.transform)((raw, np.arange(raw.shape[0])))


def check_against_differences(data: PreparedData, position: int) -> None:
    raw = data.raw(torch.tensor([position]))
    numbers = numeric_table(raw)
    width = data.take(torch.arange(1))[0].shape[1]
    slopes = torch.from_numpy(RANDOM.standard_normal((2, 1, width)))
    found = data.pull_back(raw, slopes).numpy()
    for column in range(numbers.shape[1]):
        h = 1e-5 * max(abs(numbers[0, column]), 0.01)
        step = np.zeros_like(numbers)
        step[0, column] = h
        change = data.prepare(numbers + step) - data.prepare(numbers - step)
        expected = (slopes * change / (2 * h)).sum((1, 2)).numpy()
        size = np.abs(slopes.numpy() * change.numpy() / (2 * h)).sum((1, 2)) + 1e-9
        assert (np.abs(found[:, 0, column] - expected) <= 1e-5 * size).all()


@pytest.mark.parametrize("is_frame", [False, True])
@pytest.mark.parametrize("name", [*AFFINE, *BENT])
def test_slopes_are_carried_back_through_the_steps(name, is_frame) -> None:
    steps = (AFFINE | BENT)[name]
    data = prepared(steps, FRAME if is_frame else TABLE)
    check_against_differences(data, 7)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_steps_are_recognised_by_their_values(name) -> None:
    assert prepared(AFFINE[name], TABLE)._jacobian is not None


@pytest.mark.parametrize("name", BENT)
def test_steps_that_bend_are_not_taken_for_affine(name) -> None:
    assert prepared(BENT[name], TABLE)._jacobian is None


def test_bins_have_no_slope_inside() -> None:
    data = prepared(KBinsDiscretizer(4, encode="onehot-dense"), TABLE)
    raw = data.raw(torch.tensor([3]))
    assert (data.pull_back(raw, torch.ones(1, 1, 12)) == 0).all()


def test_sparse_tables_are_written_out_row_by_row() -> None:
    dense = np.where(RANDOM.random((20, 4)) < 0.5, 0.0, RANDOM.random((20, 4)))
    data = prepared(MaxAbsScaler(), sparse.csr_matrix(dense))
    np.testing.assert_allclose(data.raw(torch.tensor([5, 2])), dense[[5, 2]])
    check_against_differences(data, 5)


@pytest.mark.parametrize(
    "rows", [FRAME, FRAME["age"], TABLE, TABLE.tolist(), sparse.csr_matrix(TABLE), list("abc" * 9)]
)
def test_rows_are_taken_in_the_form_of_the_whole(rows) -> None:
    taken = take_rows(rows, torch.tensor([4, 1]))
    assert len(taken) == 2
    for mine, position in ((0, 4), (1, 1)):
        whole = take_rows(rows, torch.tensor([position]))
        assert np.array_equal(np.asarray(taken)[mine], np.asarray(whole)[0])


def test_preparing_the_raw_examples_gives_what_the_model_takes() -> None:
    data = prepared(StandardScaler(), FRAME)
    rows = torch.tensor([9, 0, 4])
    for raw in (data.raw(rows), TABLE[rows], torch.from_numpy(TABLE[rows])):
        torch.testing.assert_close(data.prepare(raw), data.take(rows)[0])


# ---------------------------------------------------------------------- refusals


def test_categories_are_named_in_the_refusal() -> None:
    frame = FRAME.assign(town=["a", "b"] * 25)
    steps = ColumnTransformer([("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(), ["town"])])
    data = prepared(steps, frame)
    with pytest.raises(Unsupported, match="The columns town are not numbers"):
        data.pull_back(data.raw(torch.tensor([0])), torch.ones(1, 1, 3))


@pytest.mark.parametrize(
    "raw", [["some", "texts"], np.array(["a", "b"]), np.array([[True], [False]])]
)
def test_texts_and_truth_values_are_no_numbers(raw) -> None:
    with pytest.raises(Unsupported, match="not numbers"):
        numeric_table(raw)


def test_whole_numbers_in_a_table_can_be_moved() -> None:
    assert numeric_table(np.array([[1, 2]])).dtype == np.float64


def test_a_preparation_can_refuse() -> None:
    data = PreparedData(
        prepared(StandardScaler(), TABLE).prepared,
        TABLE,
        Preparation(3, transform=lambda x: x, pull_back_refusal="features are kernel values"),
    )
    with pytest.raises(Unsupported, match="because features are kernel values"):
        data.pull_back(data.raw(torch.tensor([0])), torch.ones(1, 1, 3))


def test_missing_values_have_no_derivative() -> None:
    holes = TABLE.copy()
    holes[4, 1] = np.nan
    data = PreparedData(
        prepared(StandardScaler(), TABLE).prepared,
        holes,
        Preparation(3, StandardScaler().fit(TABLE).transform),
    )
    with pytest.raises(NonFinite, match="missing"):
        data.pull_back(data.raw(torch.tensor([4])), torch.ones(1, 1, 3))
    check_against_differences(data, 5)


def test_an_edge_of_the_steps_has_no_derivative() -> None:
    positive = np.abs(TABLE)
    positive[4, 0] = 0
    data = Preparation(3, transform=lambda x: np.log(np.asarray(x)))(
        (np.where(positive == 0, 1.0, positive), np.arange(50))
    )
    with pytest.raises(NonFinite, match="right beside"):
        data.pull_back(positive[4:5], torch.ones(1, 1, 3))
