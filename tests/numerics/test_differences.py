"""Maps known by their values: the matrix of affine ones, central differences of others."""

import numpy as np
import pytest

from whence.errors import BadData
from whence.numerics.differences import affine_jacobian, pull_back, spreads


def table(seed: int, count: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, width)) * 10.0 ** np.arange(width) + 3


def test_the_matrix_of_an_affine_map_is_found() -> None:
    x = table(0, 40, 4)
    A, c = np.random.default_rng(1).standard_normal((3, 4)), np.array([1e3, 0.0, -1.0])
    found = affine_jacobian(lambda rows: rows @ A.T + c, x)
    assert found is not None
    np.testing.assert_allclose(found, A, rtol=1e-9, atol=1e-11)


def test_a_constant_map_and_a_constant_column_are_affine() -> None:
    x = table(0, 20, 3)
    x[:, 1] = 7
    assert (affine_jacobian(lambda rows: np.ones((len(rows), 2)), x) == 0).all()
    found = affine_jacobian(lambda rows: 2 * rows, x)
    np.testing.assert_allclose(found, 2 * np.eye(3), atol=1e-9)


@pytest.mark.parametrize(
    "bend",
    [
        np.square,
        np.tanh,
        np.abs,
        lambda rows: np.clip(rows, -1e3, 1e4),  # the identity within the range of the table
        lambda rows: (rows > 0).astype(float),
        lambda rows: rows * rows[:, :1],
        np.log,  # has no value on some probes
    ],
)
def test_what_bends_anywhere_near_is_not_affine(bend) -> None:
    assert affine_jacobian(bend, table(2, 40, 3)) is None


def test_a_map_that_refuses_the_probes_is_not_taken_for_affine() -> None:
    def picky(rows: np.ndarray) -> np.ndarray:
        raise BadData(found="f", why="w", remedy="r")

    assert affine_jacobian(picky, table(3, 10, 2)) is None


def test_many_columns_are_taken_in_parts() -> None:
    x = np.random.default_rng(4).standard_normal((5, 1100))
    scale = np.linspace(1, 2, 1100)
    found = affine_jacobian(lambda rows: rows * scale, x)
    assert found is not None
    np.testing.assert_allclose(found, np.diag(scale), atol=1e-9)


def test_differences_of_a_smooth_map_are_its_derivative() -> None:
    x = table(5, 6, 3)
    slopes = np.random.default_rng(6).standard_normal((2, 6, 3))
    found = pull_back(lambda rows: np.sin(rows / 10) * rows[:, :1], x, slopes, spread=spreads(x))

    inner = np.cos(x / 10) / 10 * x[:, :1]
    expected = slopes * inner
    expected[:, :, 0] += (slopes * np.sin(x / 10)).sum(2)
    # Central differences err by about eps^(2/3) = 4e-11 of the size of the map.
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_where_the_map_has_no_value_the_derivative_is_not_a_number() -> None:
    found = pull_back(np.log, np.array([[2.0], [0.0]]), np.ones((1, 2, 1)), spread=np.ones(1))
    assert np.isclose(found[0, 0, 0], 0.5)
    assert not np.isfinite(found[0, 1, 0])


def test_spreads_are_never_zero() -> None:
    x = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])
    np.testing.assert_allclose(spreads(x), [1.0, 5.0, 1.0])
