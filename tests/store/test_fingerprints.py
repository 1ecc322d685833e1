import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from whence.errors import BadData
from whence.store import fingerprint
from whence.store import fingerprints as source


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 7, 2))


def test_it_is_blake2b_over_type_shape_and_entries_in_c_order(table: np.ndarray):
    expected = hashlib.blake2b(digest_size=16)
    expected.update(b"([('', '<f8')], (30, 7, 2))\n")
    expected.update(table.tobytes())
    assert fingerprint(table) == expected.hexdigest()


def test_the_layout_in_memory_never_matters(table: np.ndarray):
    wide = np.zeros((30, 14, 6))
    wide[:, ::2, ::-3] = table
    frozen = table.copy()
    frozen.setflags(write=False)
    others = [
        np.asfortranarray(table),
        table.transpose(2, 0, 1).copy().transpose(1, 2, 0),
        wide[:, ::2, ::-3],
        table[::-1].copy()[::-1],
        table.astype(">f8"),
        np.asfortranarray(table.astype(">f8"))[:],
        frozen,
    ]
    for other in others:
        np.testing.assert_array_equal(other, table)
        assert fingerprint(other) == fingerprint(table)


@pytest.mark.parametrize("chunk", [1, 3, 64, 10**6])
def test_the_size_of_the_chunks_never_matters(
    table: np.ndarray, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    expected = [fingerprint(table), fingerprint(table.T)]
    monkeypatch.setattr(source, "_CHUNK", chunk)
    assert [fingerprint(table), fingerprint(table.T)] == expected


def test_everything_that_can_differ_makes_a_difference():
    flat = np.arange(6)
    different = [
        (),
        (flat,),
        (flat, flat),
        (flat.reshape(2, 3),),
        (flat.reshape(3, 2),),
        (flat.astype(np.int32),),
        (flat.astype(np.float64),),
        (flat.astype(np.uint64),),
        (flat[::-1],),
        (flat[:3], flat[3:]),
        (flat[:2], flat[2:]),
        (np.zeros((0, 3)),),
        (np.zeros((3, 0)),),
        (np.array(0),),
        (np.array([0]),),
        ("ab",),
        ("a", "b"),
        ("", "ab"),
        (["a", "b"],),
        (np.array(["a", "b"]),),
        (None,),
        ("None",),
        ({"a": 1, "b": 2},),
        ({"a": 2, "b": 1},),
    ]
    prints = [fingerprint(*pieces) for pieces in different]
    assert len(set(prints)) == len(different)


def test_nan_equals_itself_and_every_bit_counts():
    holes = np.array([1.0, np.nan, np.inf])
    assert fingerprint(holes) == fingerprint(holes.copy())
    assert fingerprint(np.array([0.0])) != fingerprint(np.array([-0.0]))
    assert fingerprint(np.array([1.0])) != fingerprint(np.array([1.0 + 2**-52]))


def test_the_order_of_the_pieces_counts_and_that_of_keys_does_not():
    a, b = np.arange(3), np.arange(4)
    assert fingerprint(a, b) != fingerprint(b, a)
    assert fingerprint({"x": 1, "y": [2]}) == fingerprint({"y": (2,), "x": np.int64(1)})


def test_it_is_the_same_in_another_process():
    code = "from whence.store import fingerprint; print(fingerprint('a', {'b': [1, None]}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == fingerprint("a", {"b": [1, None]}), done.stderr


def test_all_plain_types_of_arrays_are_hashed():
    kinds = ["?", "i1", "u8", "f2", "f4", "c16", "U3", "S3", "M8[s]", "m8[s]", "i4,f8"]
    arrays = [np.zeros(2, kind) for kind in kinds]
    for one, other in itertools.combinations(arrays, 2):
        assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("piece", [np.array([{}], dtype=object), b"bytes", object()])
def test_what_has_no_stable_bytes_is_refused(piece: object):
    with pytest.raises(BadData):
        fingerprint(piece)
