import json
import math
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from whence.errors import BadData
from whence.store.jsonable import as_json, json_text


def test_numbers_of_numpy_become_those_of_python():
    value = {
        "float": np.float32(0.5),
        "int": np.int16(3),
        "bool": np.bool_(True),
        "text": np.str_("a"),
        "scalar": np.array(2.0),
        "matrix": np.array([[1, 2]]),
    }
    plain = as_json(value, "report")
    assert plain == {
        "float": 0.5, "int": 3, "bool": True, "text": "a", "scalar": 2.0, "matrix": [[1, 2]],
    }  # fmt: skip
    assert [type(entry) for entry in plain.values()] == [float, int, bool, str, float, list]


def test_mappings_and_sequences_become_dicts_and_lists():
    value = OrderedDict(a=(1, [2, None]), b=MappingProxyType({"c": ()}))
    assert as_json(value, "report") == {"a": [1, [2, None]], "b": {"c": []}}


def test_the_result_shares_nothing_with_the_value():
    value = {"list": [1], "dict": {"a": [2]}}
    plain = as_json(value, "report")
    value["list"].append(9)
    value["dict"]["a"].append(9)
    assert plain == {"list": [1], "dict": {"a": [2]}}


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": [0, object()]}}, r"report\['a'\]\['b'\]\[1\] is of type object"),
        ({"path": Path("x")}, r"report\['path'\] is of type"),
        ({"bytes": b"x"}, r"report\['bytes'\] is of type bytes"),
        ({"z": np.complex128(1j)}, r"report\['z'\] is of type complex"),
        ({"array": np.array([None, {1}], dtype=object)}, r"report\['array'\]\[1\] is of type set"),
        ({"a": {3: "x"}}, r"report\['a'\] has the key 3, of type int"),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place(value: object, where: str):
    with pytest.raises(BadData, match=where):
        as_json(value, "report")


def test_nan_and_infinity_are_kept_in_memory_and_null_in_the_text():
    plain = as_json({"a": [np.nan, math.inf], "b": -math.inf, "c": 1.5}, "report")
    assert math.isnan(plain["a"][0])
    assert json.loads(json_text(plain)) == {"a": [None, None], "b": None, "c": 1.5}


def test_text_is_strict_ascii_and_comes_back_equal():
    value = {"unit": "µ ✓", "broken": "\ud800", "big": 2**80, "tiny": 5e-324, "third": 1 / 3}
    text = json_text(value)
    assert text.isascii()
    assert json.loads(text) == value
