"""Where names stand, against `list.index`."""

import numpy as np
import pytest

from whence.numerics.lookup import Lookup

NAMES = {
    "ascending integers": np.arange(3, 40),
    "shuffled integers": np.random.default_rng(0).permutation(50) - 20,
    "ascending texts": np.array(["a", "aa", "b", "ä"]),
    "shuffled texts": np.array(["7", "10", "b", "", "a"]),
    "one": np.array([5]),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_every_name_is_found_where_it_stands(names):
    lookup = Lookup(names)
    assert [lookup.place(name) for name in names.tolist()] == list(range(len(names)))
    backwards = names[::-1].copy()
    assert lookup.places(backwards).tolist() == list(range(len(names)))[::-1]
    assert lookup.places(names).tolist() == list(range(len(names)))


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("other", [-999, 999, 7.5, float("nan"), "zz", "aab", 2**70, None, (1,)])
def test_what_is_no_name_has_no_place(names, other):
    assert Lookup(names).place(other) is None


def test_a_number_and_its_text_are_different_names():
    assert Lookup(np.arange(10)).place("7") is None
    assert Lookup(np.array(["7"])).place(7) is None
    assert Lookup(np.arange(10)).place(np.int64(7)) == 7


def test_absent_names_among_many_have_the_place_minus_one():
    assert Lookup(np.array([4, 1, 9])).places(np.array([9, 2, 100])).tolist() == [2, -1, -1]


@pytest.mark.parametrize("names", [[1, 2, 3], [3, 1, 3], ["b", "a", "b", "b"], [2, 2]])
def test_different_names_are_counted(names):
    assert Lookup(np.array(names)).distinct == len(set(names))
