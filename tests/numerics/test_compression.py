"""Few combinations stand for many vectors within what was asked, and say what they lose."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from whence.numerics.compression import PROBED, PROBES, compress, left_out


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def falling(count: int, size: int, seed: int = 0) -> Tensor:
    """(count, size) vectors of all lengths, near a few directions."""
    vectors = drawn(count, size, seed=seed) * torch.logspace(0, -3, size).double()
    return vectors * torch.logspace(2, -2, count).double()[:, None]


def scaled_error(made: Tensor, wanted: Tensor, scale: Tensor) -> float:
    return float(((made - wanted) / scale[:, None]).norm() / (wanted / scale[:, None]).norm())


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_no_more_is_lost_than_was_asked_with_as_few_as_can_be(tolerance):
    vectors = falling(60, 40)
    packed = compress(vectors @ vectors.T, tolerance)
    made = packed.expand(packed.combine(vectors))
    assert scaled_error(made, vectors, packed.scale) <= tolerance
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    values = torch.linalg.svdvals(unit)
    assert float(values[packed.rank - 1 :].norm() / values.norm()) > tolerance


def test_short_vectors_are_kept_as_well_as_long_ones():
    """A query whose gradient is a millionth of another's is no less a question."""
    vectors = torch.cat([drawn(30, 5), 1e-6 * drawn(30, 3, seed=1) @ drawn(3, 5, seed=2)])
    packed = compress(vectors @ vectors.T, 1e-6)
    made = packed.expand(packed.combine(vectors))
    error = (made - vectors).norm(dim=1) / vectors.norm(dim=1)
    assert packed.rank == 5
    assert float(error.max()) < 1e-6


def test_vectors_of_zero_stay_zero():
    vectors = falling(40, 10)
    vectors[3] = 0
    packed = compress(vectors @ vectors.T, 1e-3)
    assert float(packed.expand(packed.combine(vectors))[3].abs().max()) < 1e-12


def test_what_gains_nothing_is_not_compressed():
    assert compress(torch.eye(30).double(), 0.1) is None
    few = drawn(PROBES + 1, 1)
    assert compress(few @ few.T, 0.5) is None


def maps(rank: int) -> list[Tensor]:
    return [drawn(40, rank, seed=n) @ drawn(rank, 25, seed=1000 + n) for n in range(300)]


@pytest.mark.parametrize("rank", [1, 4, 25])
def test_the_measured_loss_is_exceeded_in_one_case_of_a_hundred_at_most(rank):
    """Of 300 maps; eight or more of them exceed with a chance of 1 % where one in a hundred may.

    The maps know nothing of the norm in which the combinations were chosen.
    """
    vectors = falling(60, 40)
    packed = compress(vectors @ vectors.T, 0.3)
    exceeded, ratios = 0, []
    for a in maps(rank):
        wanted, values = vectors @ a, packed.combine(vectors) @ a
        told = left_out(packed.squares(values[:, :10]) + packed.squares(values[:, 10:]))
        true = scaled_error(packed.expand(values), wanted, packed.scale)
        exceeded += told < true
        ratios.append(told / true)
    assert exceeded < 9
    assert np.median(ratios) < 3, "a bound of no use"


def test_the_percentile_is_that_of_the_chi_squared_distribution():
    assert pytest.approx(PROBES / chi2.ppf(0.01, PROBES), abs=1e-3) == PROBED
