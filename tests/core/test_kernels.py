"""Explicit features against the kernel itself."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics.pairwise import linear_kernel, polynomial_kernel, rbf_kernel, sigmoid_kernel

from whence.core.kernels import KERNEL_BYTES, KernelFeatures, explicit_features
from whence.core.prepared import Preparation
from whence.errors import BadData, NonFinite, TooLarge, Unsupported

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((40, 3))
NEW = RANDOM.standard_normal((7, 3))
KERNELS = {"rbf": rbf_kernel, "poly": polynomial_kernel, "linear": linear_kernel}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def features_of(kernel, rows: np.ndarray = X) -> KernelFeatures:
    return explicit_features(Preparation(width=rows.shape[1]), kernel, rows)


@kernels
def test_inner_products_of_features_are_kernels(kernel):
    phi = features_of(kernel)
    assert_allclose(phi(X) @ phi(X).T, kernel(X, X), atol=1e-12 * kernel(X, X).max())
    assert_allclose(phi(NEW) @ phi(X).T, kernel(NEW, X), atol=1e-8 * kernel(X, X).max())


@kernels
def test_a_dual_solution_is_a_weight_vector_of_the_same_norm(kernel):
    phi, dual = features_of(kernel), RANDOM.standard_normal((40, 2))
    weights = phi.weights(dual)
    expected = kernel(NEW, X) @ dual
    assert_allclose(phi(NEW) @ weights.T, expected, rtol=1e-7, atol=1e-7 * abs(expected).max())
    for column, row in zip(dual.T, weights, strict=True):
        assert_allclose(row @ row, column @ kernel(X, X) @ column, rtol=1e-9)


def test_eigenvalues_that_are_zero_to_rounding_are_dropped_and_counted():
    assert features_of(linear_kernel).dropped == 37
    twice = np.vstack([X, X[:5]])
    phi = features_of(rbf_kernel, twice)
    assert phi.dropped == 5
    assert_allclose(phi(twice) @ phi(twice).T, rbf_kernel(twice), atol=1e-12)


def test_an_indefinite_kernel_is_refused_with_its_eigenvalues():
    with pytest.raises(Unsupported, match="eigenvalue -"):
        features_of(lambda a, b: sigmoid_kernel(a, b, gamma=1.0, coef0=-1.0))


def test_a_matrix_that_would_not_fit_is_refused_before_it_is_made():
    def fail(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        raise AssertionError

    count = int((KERNEL_BYTES / 32) ** 0.5)
    assert count == 8192
    with pytest.raises(TooLarge, match=r"8,193 training examples.*2\.0 GiB"):
        features_of(fail, np.zeros((count + 1, 1)))


def test_nan_is_found_in_examples_queries_and_kernels():
    broken = np.where(np.arange(40)[:, None] == 17, np.nan, X)
    with pytest.raises(NonFinite, match="Example 17"):
        features_of(rbf_kernel, broken)
    with pytest.raises(NonFinite, match="Example 17"):
        features_of(rbf_kernel)(broken)
    with pytest.raises(NonFinite, match="kernel of two"):
        features_of(lambda a, b: np.full((len(a), len(b)), np.inf))


def test_the_preparation_makes_features_and_leads_no_derivative_back():
    phi = features_of(rbf_kernel)
    data = phi.preparation()((NEW, np.zeros(7)))
    torch.testing.assert_close(data.take(torch.arange(7))[0], torch.from_numpy(phi(NEW)))
    assert data.example(3).tolist() == NEW[3].tolist()
    assert "leaves that span" in phi.preparation().pull_back_refusal
    with pytest.raises(Unsupported, match="leaves that span"):
        data.pull_back(torch.from_numpy(NEW), torch.ones(1, 7, 40).double())
    with pytest.raises(BadData, match="takes"):
        phi(NEW[:, :2])
