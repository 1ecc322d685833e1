"""Records come back one by one as they were packed."""

import numpy as np
import pytest

from whence.errors import BadData
from whence.store.records import Records

VALUES = [{"kind": "text", "text": "Grüße 🙂 \x1b"}, [], None, {"cells": [["a", 1.5], ["b", None]]}]


def test_every_value_comes_back_without_the_others():
    records = Records.pack(VALUES)
    assert len(records) == len(VALUES)
    assert [records[i] for i in (3, 0, 2, 1)] == [VALUES[i] for i in (3, 0, 2, 1)]
    assert list(records) == VALUES


def test_no_values_are_records_too():
    assert list(Records.pack([])) == []


@pytest.mark.parametrize("position", [-1, 4])
def test_a_position_outside_is_refused(position: int):
    with pytest.raises(IndexError):
        Records.pack(VALUES)[position]


def test_they_are_two_plain_arrays(tmp_path):
    records = Records.pack(VALUES)
    np.savez(tmp_path / "r.npz", text=records.text, starts=records.starts)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as file:
        assert list(Records(file["text"], file["starts"])) == VALUES


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(BadData):
        Records.pack([{"of": object()}])
