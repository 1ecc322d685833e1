"""An example draws the same numbers wherever it stands; intervals are of five standard errors."""

from math import comb

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor

from whence.errors import BadArgument
from whence.numerics.draws import Words, keys, order, signs, starts, subsets

COUNT = 2000
"""Examples, and with a hundred signs each the draws behind every interval."""


def numbered(count: int = COUNT) -> Words:
    return keys(np.arange(count))


def drawn(seed: int = 0, count: int = 100) -> Tensor:
    return signs(seed, numbered(), count).double()


# ------------------------------------------------------------------ keyed by id


def test_an_example_draws_the_same_signs_in_every_batch():
    whole = signs(3, numbered(), 130)
    parts = [signs(3, keys(np.arange(COUNT))[rows : rows + 7], 130) for rows in range(0, COUNT, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_an_example_draws_the_same_signs_in_every_order():
    shuffled = np.random.default_rng(0).permutation(COUNT)
    assert torch.equal(signs(3, keys(shuffled), 70), signs(3, numbered(), 70)[shuffled])


def test_the_first_signs_do_not_depend_on_how_many_are_drawn():
    assert torch.equal(signs(3, numbered(), 200)[:, :65], signs(3, numbered(), 65))


def test_names_are_hashed_and_numbers_are_themselves_in_every_type():
    names = np.array(["b", "a", "b", "älter"])
    found = keys(names)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3
    assert_array_equal(keys(names.astype(object)), found)
    assert_array_equal(keys(np.arange(5, dtype=np.int16)), keys(np.arange(5, dtype=np.uint64)))
    assert len(set(keys(np.array([-1, 0, 1])).tolist())) == 3


def test_names_draw_as_numbers_do():
    found = signs(0, keys(np.array([f"image {i}" for i in range(COUNT)])), 100).double()
    assert abs(found.mean()) < 5 / (COUNT * 100) ** 0.5


def test_another_seed_draws_other_signs():
    equal = [float((drawn(seed) == drawn(seed + 1)).double().mean()) for seed in (-1, 0, 7)]
    assert max(abs(share - 0.5) for share in equal) < 5 * 0.5 / (COUNT * 100) ** 0.5


# ------------------------------------------------------------------ as good as random


def test_signs_are_plus_or_minus_one():
    found = signs(0, numbered(), 100)
    assert found.dtype == torch.int8
    assert found.shape == (COUNT, 100)
    assert set(found.unique().tolist()) == {-1, 1}


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_means_are_zero(seed):
    found = drawn(seed)
    assert abs(found.mean()) < 5 / found.numel() ** 0.5
    assert found.mean(0).abs().max() < 5 / COUNT**0.5
    spread = (found.sum(1) ** 2 / 100).mean()  # of a sum of independent signs it is 1
    assert abs(spread - 1) < 5 * (2 / COUNT) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_signs_of_an_example_are_independent_of_each_other(seed):
    found = drawn(seed)
    products = (found.T @ found) / COUNT - torch.eye(100)
    assert products.abs().max() < 5 / COUNT**0.5


def test_the_signs_of_two_examples_are_independent():
    found = drawn(count=3000)[:200]
    products = (found @ found.T) / 3000 - torch.eye(200)
    assert products.abs().max() < 5 / 3000**0.5


def test_triples_of_signs_are_independent():
    """Bits of a weak generator can be sums of two others."""
    found = drawn(count=40)
    pairs = torch.einsum("ni,nj->nij", found, found).flatten(1)
    products = (pairs.T @ found) / COUNT  # (i, j, k)
    i, j, k = np.ogrid[:40, :40, :40]
    distinct = torch.from_numpy((i < j) & (j < k)).reshape(-1, 40)
    assert products[distinct].abs().max() < 5 / COUNT**0.5


# ------------------------------------------------------------------ orders


def test_an_order_depends_on_ids_alone():
    shuffled = np.random.default_rng(1).permutation(COUNT)
    assert_array_equal(shuffled[order(5, keys(shuffled))], order(5, numbered()))


def test_an_order_holds_every_position_once():
    assert_array_equal(order(5, numbered()).sort().values, np.arange(COUNT))


def test_an_order_is_not_that_of_the_ids_nor_of_another_seed():
    """Rank correlations of independent orders have the standard error N^-1/2."""
    place = torch.arange(COUNT).double()
    first, second = (torch.empty(COUNT).double() for _ in range(2))
    first[order(0, numbered())], second[order(1, numbered())] = place, place
    for one, other in ((first, place), (second, place), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / COUNT**0.5


@pytest.mark.parametrize("seed", [0, 3])
def test_the_order_of_examples_tells_nothing_of_their_signs(seed):
    """What is looked at first must not be what draws alike."""
    first = order(seed, numbered())[: COUNT // 4]
    found = drawn(seed, 128)[first]
    assert found.mean(0).abs().max() < 5 / len(first) ** 0.5


# ------------------------------------------------------------------ subsets


def test_subsets_are_of_the_same_ids_in_every_order_of_the_data():
    shuffled = np.random.default_rng(1).permutation(COUNT)
    found = subsets(5, keys(shuffled), count=3, size=700)
    assert torch.equal(found, subsets(5, numbered(), count=3, size=700)[:, shuffled])


def test_subsets_have_the_size_that_was_asked_for_and_differ():
    found = subsets(0, numbered(7), count=comb(7, 3), size=3)
    assert (found.sum(1) == 3).all()
    assert len({tuple(row) for row in found.tolist()}) == comb(7, 3)


def test_the_first_subsets_do_not_depend_on_how_many_are_drawn():
    few, many = (subsets(2, numbered(50), count=count, size=20) for count in (4, 30))
    assert torch.equal(many[:4], few)


def test_examples_are_in_subsets_equally_often_and_independently():
    """Of 400 halves an example is in 200 +- 10; two examples share 100 +- 8.7."""
    found = subsets(3, numbered(200), count=400, size=100).double()
    assert (found.sum(0) - 200).abs().max() < 5 * 10
    shared = (found.T @ found)[~torch.eye(200, dtype=torch.bool)]
    assert (shared - 400 * 100 * 99 / (200 * 199)).abs().max() < 5.5 * 8.7  # 20,000 pairs


@pytest.mark.parametrize(("count", "size"), [(11, 9), (2, 10), (1, 11), (0, 5)])
def test_more_subsets_than_there_are_cannot_be_drawn(count, size):
    with pytest.raises(BadArgument, match="of that size"):
        subsets(0, numbered(10), count=count, size=size)


# ------------------------------------------------------------------ numbers


def test_starts_are_even_and_belong_to_the_example():
    """Of 7,000 each number comes up 1,000 +- 29 times."""
    found = starts(0, numbered(7000), 7)
    assert (torch.bincount(found, minlength=7) - 1000).abs().max() < 5 * 29
    assert torch.equal(starts(0, numbered(7000)[40:50], 7), found[40:50])
    assert not torch.equal(starts(1, numbered(7000), 7), found)
