"""What was trained is found under its key alone, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from whence.errors import StoreError
from whence.store.trainings import Trainings


def test_parameters_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Trainings(tmp_path / "new" / "folder")
    assert kept.find("a") is None
    for dtype in (np.float32, np.float64):
        numbers = np.random.default_rng(0).normal(size=7).astype(dtype)
        kept.keep("a", numbers)
        found = kept.find("a")
        assert found is not None
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, numbers)
    assert kept.find("b") is None


def test_an_interrupted_training_is_something_else_than_one_at_its_end(tmp_path: Path) -> None:
    kept = Trainings(tmp_path)
    states = np.arange(12.0).reshape(2, 3, 2)
    assert kept.find_interrupted("a") is None
    kept.keep_interrupted("a", 5, states / 2)
    kept.keep_interrupted("a", 6, states)
    assert kept.find("a") is None
    found = kept.find_interrupted("a")
    assert found is not None
    assert found[0] == 6
    np.testing.assert_array_equal(found[1], states)
    kept.forget_interrupted("a")
    kept.forget_interrupted("a")
    assert list(tmp_path.iterdir()) == []


def test_damage_and_foreign_files_are_told(tmp_path: Path) -> None:
    kept = Trainings(tmp_path)
    kept.keep("a", np.arange(1000.0))
    whole = (tmp_path / "a.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[:-40], b"", b"text"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(StoreError, match=r"a\.npz.*damaged"):
            kept.find("a")
    (tmp_path / "b.npz").write_bytes(whole)  # renamed by hand
    with pytest.raises(StoreError, match="written as a"):
        kept.find("b")
