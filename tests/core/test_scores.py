import errno
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from whence.core.scores import Effect, Measurement, Scores, Top
from whence.errors import BadArgument, BadData, NonFinite, Stale, StoreError, WrongVersion

MARGIN = Measurement("margin", "logits", higher_is_better=True)
LOSS = Measurement("loss", "nats", higher_is_better=False)

VALUES = np.array(
    [
        [0.3, -0.1, 0.0, -0.4, 0.3, -0.1],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def make_scores(**changes: Any) -> Scores:
    facts: dict[str, Any] = {
        "values": VALUES,
        "query_ids": np.array([7, 8, 9]),
        "train_ids": np.arange(6),
        "measurement": MARGIN,
        "baseline": np.array([1.0, -2.0, 0.5]),
        "queries": {"inputs": np.ones((3, 2, 2), np.float32), "targets": np.array([0, 1, 1])},
        "report": {"method": "influence", "reason": "asked for", "warnings": []},
    }
    return Scores(**(facts | changes))


def assert_same(actual: Scores, expected: Scores) -> None:
    for name in ("values", "query_ids", "train_ids", "baseline"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), strict=True)
    assert actual.queries.keys() == expected.queries.keys()
    for name, array in expected.queries.items():
        np.testing.assert_array_equal(actual.queries[name], array, strict=True)
    assert actual.measurement == replace(expected.measurement, function=None)
    assert actual.report == expected.report
    assert actual.is_calibrated is expected.is_calibrated


# ------------------------------------------------------------ standard errors


def test_errors_are_kept_in_files_and_stand_beside_their_effects(tmp_path: Path):
    scores = make_scores(errors=abs(VALUES) / 10)
    saved = scores.save(tmp_path / "scores")
    for again in (Scores.load(saved), Scores.open(saved)):
        np.testing.assert_array_equal(again.errors, scores.errors)
    frame = scores.to_frame(top=2)
    assert list(frame.columns) == ["query", "train", "effect", "error", "unit"]
    np.testing.assert_allclose(frame["error"], abs(frame["effect"]) / 10)
    assert "3 (-0.4 ± 0.04)" in repr(scores)
    assert "3 (-0.4)" in repr(make_scores())
    assert make_scores().errors is None
    assert "error" not in make_scores().to_frame()


@pytest.mark.parametrize("errors", [np.ones((2, 6)), -np.ones((3, 6)), np.full((3, 6), np.nan)])
def test_errors_are_one_number_of_zero_or_more_for_each_effect(errors: np.ndarray):
    with pytest.raises((BadData, NonFinite), match="rror"):
        make_scores(errors=errors)


# ------------------------------------------------------------ proponents, opponents


def test_where_higher_is_better_a_proponent_lowers_the_measurement_when_it_goes():
    assert make_scores().top(k=2) == Top(
        proponents=(Effect(3, -0.4), Effect(1, -0.1)),
        opponents=(Effect(0, 0.3), Effect(4, 0.3)),
    )


def test_where_lower_is_better_a_proponent_raises_the_measurement_when_it_goes():
    assert make_scores(measurement=LOSS).top(k=2) == Top(
        proponents=(Effect(0, 0.3), Effect(4, 0.3)),
        opponents=(Effect(3, -0.4), Effect(1, -0.1)),
    )


@pytest.mark.parametrize("measurement", [MARGIN, LOSS])
@pytest.mark.parametrize("query", [0, 1, 2])
def test_every_example_with_an_effect_is_on_exactly_one_side(measurement: Measurement, query: int):
    scores = make_scores(measurement=measurement)
    top = scores.top(k=100, query=query)
    listed = [effect.id for effect in top.proponents + top.opponents]
    assert sorted(listed) == np.flatnonzero(VALUES[query]).tolist()
    better = 1 if measurement.higher_is_better else -1
    assert all(better * effect.effect < 0 for effect in top.proponents)
    assert all(better * effect.effect > 0 for effect in top.opponents)


def test_the_lists_are_the_definition_on_random_effects():
    values = np.random.default_rng(0).integers(-5, 6, size=(4, 200)).astype(float)  # many ties
    ids = np.array([f"example {i}" for i in range(200)])
    scores = make_scores(
        values=values, query_ids=np.arange(4), train_ids=ids, baseline=np.zeros(4), queries={}
    )
    for query, row in enumerate(values.tolist()):
        ranked = sorted((effect, i) for i, effect in enumerate(row))
        helping = [Effect(f"example {i}", effect) for effect, i in ranked if effect < 0]
        ranked = sorted((-effect, i) for i, effect in enumerate(row))
        hurting = [Effect(f"example {i}", -effect) for effect, i in ranked if effect < 0]
        for k in (1, 17, 500):
            assert scores.proponents(k, query) == tuple(helping[:k])
            assert scores.opponents(k, query) == tuple(hurting[:k])


def test_equal_effects_stand_in_the_order_of_the_training_data():
    scores = make_scores(train_ids=np.array([50, 40, 30, 20, 10, 0]))
    assert [effect.id for effect in scores.opponents()] == [50, 10]
    assert [effect.id for effect in scores.proponents()] == [20, 40, 0]


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_a_wrong_length_is_refused(k: Any):
    scores = make_scores()
    for ask in (scores.top, scores.proponents, scores.opponents):
        with pytest.raises(BadArgument, match="k="):
            ask(k=k)
    if k is not None:
        with pytest.raises(BadArgument, match="top="):
            scores.to_frame(top=k)


@pytest.mark.parametrize("query", [-1, 3, 7, 1.0, "7", None])
def test_a_query_is_named_by_its_position_only(query: Any):
    scores = make_scores()
    for ask in (
        lambda: scores.top(query=query),
        lambda: scores.half_of_influence(query),
        lambda: scores.effect(query, 0),
    ):
        with pytest.raises(BadArgument, match=re.escape(f"query={query!r}; there are 3 queries")):
            ask()


def test_numbers_of_numpy_are_as_good_as_those_of_python():
    scores = make_scores()
    assert scores.top(np.int64(2), np.int32(1)) == scores.top(2, 1)
    assert scores.effect(np.int8(1), np.int64(4)) == 5.0


# ---------------------------------------------------------------------- single effects


@pytest.mark.parametrize("ids", [np.arange(6) * 10, np.array(list("abcdéf"))])
def test_an_effect_is_found_by_the_id_of_its_example(ids: np.ndarray):
    scores = make_scores(train_ids=ids)
    for q in range(3):
        assert [scores.effect(q, one) for one in ids] == VALUES[q].tolist()
        assert [scores.effect(q, one) for one in ids.tolist()] == VALUES[q].tolist()


@pytest.mark.parametrize("example", ["1", 6, -1, None, [1], 0.5])
def test_an_unknown_example_is_refused(example: Any):
    with pytest.raises(BadArgument, match="There is no training example"):
        make_scores().effect(0, example)


def test_results_hold_plain_python_numbers_and_strings():
    for ids in (np.arange(6, dtype=np.uint8), np.array(list("abcdef"))):
        scores = make_scores(train_ids=ids)
        for effect in scores.proponents() + scores.opponents():
            assert type(effect.id) in (int, str)
            assert type(effect.effect) is float
            json.dumps(effect.id)
        assert type(scores.effect(0, ids[0])) is float


def test_half_of_influence_is_the_smallest_number_that_carries_half():
    effects = np.random.default_rng(1).normal(size=(5, 40)) ** 3
    scores = make_scores(
        values=effects,
        query_ids=np.arange(5),
        train_ids=np.arange(40),
        baseline=np.zeros(5),
        queries={},
    )
    for q, row in enumerate(np.abs(effects)):
        n = scores.half_of_influence(q)
        largest = sorted(row, reverse=True)
        assert sum(largest[:n]) >= row.sum() / 2 > sum(largest[: n - 1])


@pytest.mark.parametrize(
    ("row", "expected"),
    [([0, 0, 0, 0], 0), ([0, -3, 0, 0], 1), ([1, -1, 1, -1], 2), ([2, -1, -1, 0], 1), ([5], 1)],
)
def test_half_of_influence_by_hand(row: list[float], expected: int):
    scores = Scores(
        values=np.array([row]),
        query_ids=np.array([0]),
        train_ids=np.arange(len(row)),
        measurement=MARGIN,
        baseline=np.zeros(1),
    )
    assert scores.half_of_influence() == expected


def test_an_exact_half_is_not_missed_by_rounding():
    """Ten times 0.1 sums to less than one: five of ten are half all the same."""
    for count in range(2, 60, 2):
        scores = make_scores(
            values=np.full((3, count), 0.1), train_ids=np.arange(count), queries={}
        )
        assert scores.half_of_influence() == count // 2


# --------------------------------------------------------------------- sign and unit


def test_the_sign_sentence_names_measurement_and_unit():
    assert make_scores().sign_sentence == (
        "positive = the margin goes up when the example is removed (unit: logits)"
    )
    assert (
        "the log prob goes up"
        in make_scores(
            measurement=Measurement("log_prob", "nats", higher_is_better=True)
        ).sign_sentence
    )


def test_without_a_scale_the_unit_of_the_effects_is_arbitrary_everywhere():
    scores = make_scores(is_calibrated=False)
    assert scores.unit == "arbitrary"
    assert "(unit: arbitrary)" in scores.sign_sentence
    assert set(scores.to_frame()["unit"]) == {"arbitrary"}
    assert scores.measurement.unit == "logits"  # that of the baseline
    assert make_scores().unit == "logits"


# ---------------------------------------------------------------------- construction


def test_values_are_a_float64_copy_that_cannot_be_written_to():
    for dtype in (np.float32, np.float64, np.int32):
        source = VALUES.astype(dtype)
        scores = make_scores(values=source)
        source[0, 0] = 99
        assert scores.values.dtype == np.float64
        assert scores.values[0, 0] == VALUES.astype(dtype)[0, 0]
        with pytest.raises(ValueError, match="read-only"):
            scores.values[0, 0] = 1


def test_nothing_that_goes_in_can_be_changed_from_outside():
    inputs, ids, warnings = np.zeros((3, 2)), np.arange(6), ["first"]
    scores = make_scores(queries={"inputs": inputs}, train_ids=ids, report={"warnings": warnings})
    inputs[:], ids[:] = 1, 1
    warnings.append("second")
    assert scores.queries["inputs"].max() == 0
    assert scores.train_ids.tolist() == list(range(6))
    assert scores.report == {"warnings": ["first"]}
    for array in (scores.baseline, scores.query_ids, scores.train_ids, scores.queries["inputs"]):
        assert not array.flags.writeable
    with pytest.raises(FrozenInstanceError):
        scores.values = VALUES  # type: ignore[misc]


def test_a_read_only_view_of_what_others_can_write_is_copied():
    base = VALUES.copy()
    view = base[:]
    view.setflags(write=False)
    scores = make_scores(values=view)
    base[0, 0] = 99
    assert scores.values[0, 0] == VALUES[0, 0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"values": VALUES[0]}, r"values has shape \(6,\)"),
        ({"values": VALUES[None]}, r"values has shape \(1, 3, 6\)"),
        ({"values": VALUES[:0]}, r"values has shape \(0, 6\)"),
        ({"values": [["a"]]}, "values is not a plain array"),
        ({"values": VALUES[:2]}, r"query_ids has shape \(3,\)"),
        ({"values": VALUES[:, :5]}, r"train_ids has shape \(6,\)"),
        ({"train_ids": np.zeros(6, int)}, "1 distinct ids"),
        ({"query_ids": np.array(["a", "b", "a"])}, "2 distinct ids"),
        ({"train_ids": np.arange(6)[None]}, r"train_ids has shape \(1, 6\)"),
        ({"train_ids": np.arange(6) / 2}, "train_ids is of type float64"),
        ({"query_ids": np.array([1, None, "a"], dtype=object)}, "query_ids is of type object"),
        ({"query_ids": np.array([True, False, True])}, "query_ids is of type bool"),
        ({"baseline": np.zeros(2)}, r"baseline has shape \(2,\)"),
        ({"baseline": np.zeros((3, 1))}, r"baseline has shape \(3, 1\)"),
        ({"baseline": 1.0}, r"baseline has shape \(\)"),
        ({"queries": {"inputs": np.zeros((2, 3))}}, r"inputs has shape \(2, 3\)"),
        ({"queries": {"inputs": np.array([{}, {}, {}])}}, "inputs is not a plain array"),
        ({"report": {"solver": object()}}, r"report\['solver'\] is of type object"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], found: str):
    with pytest.raises(BadData, match=found):
        make_scores(**changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_effect_that_is_not_finite_is_named_with_its_query_and_example(bad: float):
    values = VALUES.copy()
    values[1, 4] = values[2, 0] = bad
    ids = np.array(list("abcdef"))
    with pytest.raises(NonFinite, match=rf"example e on query 8 is {bad}; of 18 effects 2 "):
        make_scores(values=values, train_ids=ids)
    with pytest.raises(NonFinite, match=f"measurement of query 9 is {bad}"):
        make_scores(baseline=np.array([0, 1, bad]))


def test_ids_of_pandas_become_strings_of_numpy():
    scores = make_scores(train_ids=np.array(list("abcdef"), dtype=object))
    assert scores.train_ids.dtype.kind == "U"
    assert scores.effect(1, "c") == 3.0


def test_the_report_is_plain_json():
    scores = make_scores(report={"residual": np.float32(0.5), "sizes": (np.int64(3),)})
    assert scores.report == {"residual": 0.5, "sizes": [3]}
    assert type(scores.report["residual"]) is float


def test_with_report_adds_entries_to_a_copy():
    scores = make_scores()
    more = scores.with_report(verdict="good", reason="changed")
    assert more.report == scores.report | {"verdict": "good", "reason": "changed"}
    assert scores.report["reason"] == "asked for"
    assert "verdict" not in scores.report
    assert more.values is scores.values  # frozen: a matrix of gigabytes is not copied again


# ---------------------------------------------------------------------------- table


def test_the_long_table_is_the_matrix_pair_by_pair():
    frame = make_scores(train_ids=np.array(list("abcdef"))).to_frame()
    assert frame.columns.tolist() == ["query", "train", "effect", "unit"]
    pivoted = frame.pivot(index="query", columns="train", values="effect")
    np.testing.assert_array_equal(pivoted.to_numpy(), VALUES)
    assert pivoted.index.tolist() == [7, 8, 9]
    assert pivoted.columns.tolist() == list("abcdef")


def test_the_short_table_keeps_the_largest_effects_of_either_sign():
    frame = make_scores().to_frame(top=3)
    expected = pd.DataFrame(
        {
            "query": np.repeat([7, 8, 9], 3),
            "train": [3, 0, 4, 5, 4, 3, 0, 1, 2],
            "effect": [-0.4, 0.3, 0.3, 6.0, 5.0, 4.0, 0.0, 0.0, 0.0],
            "unit": "logits",
        }
    )
    pd.testing.assert_frame_equal(frame, expected)
    assert len(make_scores().to_frame(top=99)) == VALUES.size


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"measurement": LOSS, "is_calibrated": False},
        {"query_ids": np.array(["é", "数据", "plain"]), "train_ids": np.array(list("abcdef"))},
        {"queries": {}},
        {"queries": {"inputs/0": np.zeros((3, 1)), "inputs/text ✓": np.array(["x", "yy", ""])}},
        {"queries": {"metadata": np.zeros(3), "values": np.ones(3), "a.npy": np.ones(3)}},
        {"report": {"nested": {"list": [1, 2.5, None, "ü", True]}, "third": 1 / 3}},
        {"values": VALUES * 1e-300, "baseline": np.array([1e300, -0.0, 5e-324])},
    ],
)
def test_scores_come_back_from_a_file_as_they_were(tmp_path: Path, changes: dict[str, Any]):
    scores = make_scores(**changes)
    scores.save(tmp_path / "Größe ✓.npz")
    assert_same(Scores.load(tmp_path / "Größe ✓.npz"), scores)
    opened = Scores.open(tmp_path / "Größe ✓.npz")
    assert_same(opened, scores)
    assert isinstance(opened.values, np.memmap)
    assert not opened.values.flags.writeable
    assert_same(pickle.loads(pickle.dumps(scores)), scores)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a.npz", "a.npz"),
        ("a", "a.npz"),
        ("a.b", "a.b.npz"),
        ("a.NPZ", "a.NPZ"),
        ("n/a", "n/a.npz"),
    ],
)
def test_save_and_load_agree_on_the_ending(tmp_path: Path, given: str, written: str):
    scores = make_scores()
    assert scores.save(str(tmp_path / given)) == tmp_path / written
    assert (tmp_path / written).is_file()
    assert_same(Scores.load(str(tmp_path / given)), scores)
    assert_same(Scores.load(tmp_path / written), scores)


def test_the_function_of_the_measurement_is_not_saved(tmp_path: Path):
    measured = replace(MARGIN, function=lambda outputs, targets: outputs)
    make_scores(measurement=measured).save(tmp_path / "a")
    assert Scores.load(tmp_path / "a").measurement == MARGIN
    assert Scores.load(tmp_path / "a").measurement.function is None


def test_numbers_of_the_report_that_are_not_finite_come_back_as_none(tmp_path: Path):
    scores = make_scores(report={"residual": np.nan, "list": [np.inf, 1.0]})
    assert np.isnan(scores.report["residual"])
    scores.save(tmp_path / "a")
    assert Scores.load(tmp_path / "a").report == {"residual": None, "list": [None, 1.0]}


def test_a_file_holds_nothing_pickled_and_strict_json(tmp_path: Path):
    make_scores(report={"residual": np.nan}).save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert {"values", "query_ids", "train_ids", "baseline", "queries/inputs"} < {*archive.files}
        assert not any(archive[name].dtype.hasobject for name in archive.files)
        metadata = json.loads(archive["metadata"].item(), parse_constant=pytest.fail)
    assert (metadata["format"], metadata["version"]) == ("whence-scores", 1)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_saving_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    old = make_scores()
    old.save(tmp_path / "a")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
        make_scores(values=2 * VALUES).save(tmp_path / "a")
    assert_same(Scores.load(tmp_path / "a"), old)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def rewrite(path: Path, **entries: Any) -> None:
    """Replaces arrays of a file, and entries of its metadata."""
    with np.load(path) as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays["metadata"].item())
    for name, value in entries.items():
        (arrays if name in arrays else metadata)[name] = value
    np.savez(path, **(arrays | {"metadata": np.array(json.dumps(metadata))}))


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_version_is_refused_by_name(tmp_path: Path, version: object):
    path = make_scores().save(tmp_path / "a")
    rewrite(path, version=version)
    with pytest.raises(WrongVersion, match=f"version {version} of the format whence-scores"):
        Scores.load(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"format": "whence-run"},
        {"measurement": None},
        {"measurement": {"name": "margin"}},
        {"report": ["a list"]},
        {"queries": ["inputs", "targets", "lost"]},
        {"values": np.zeros((2, 2))},
        {"values": np.full((3, 6), np.nan)},
        {"query_ids": np.zeros(3)},
        {"baseline": np.array(["a", "b", "c"])},
    ],
)
def test_contents_that_do_not_fit_together_are_refused(tmp_path: Path, entries: dict[str, Any]):
    path = make_scores().save(tmp_path / "a")
    rewrite(path, **entries)
    with pytest.raises(StoreError, match="holds no scores of whence, or only part"):
        Scores.load(path)


def test_foreign_files_are_refused(tmp_path: Path):
    np.savez(tmp_path / "foreign.npz", values=VALUES)
    np.savez(tmp_path / "array metadata.npz", metadata=VALUES)
    with (tmp_path / "one array.npz").open("wb") as file:
        np.save(file, VALUES)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(VALUES))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("metadata", "raw text")
    with zipfile.ZipFile(tmp_path / "empty zip.npz", "w"):
        pass
    files = sorted(tmp_path.iterdir())
    for path in files:
        with pytest.raises(StoreError, match="holds no scores of whence"):
            Scores.load(path)
    assert len(files) == 8


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    (tmp_path / "folder.npz").mkdir()
    for name in ("nothing", "folder"):
        with pytest.raises(StoreError, match=rf"{name}\.npz could not be read"):
            Scores.load(tmp_path / name)


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path):
    whole = make_scores().save(tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut.npz"
    for length in range(0, len(whole), 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(StoreError):
            Scores.load(cut)


def test_a_changed_byte_is_an_error_or_does_not_matter(tmp_path: Path):
    """Bytes that zip does not guard (times, padding) change nothing; all others are noticed."""
    scores = make_scores(report={})
    whole = scores.save(tmp_path / "whole").read_bytes()
    changed = tmp_path / "changed.npz"
    noticed = 0
    positions = range(0, len(whole), 7)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        changed.write_bytes(damaged)
        try:
            assert_same(Scores.load(changed), scores)
        except StoreError:
            noticed += 1
    assert noticed > len(positions) / 2


# ----------------------------------------------------------------------------- text


def test_the_text_says_what_a_reader_needs_first():
    assert repr(make_scores()) == (
        "Scores: 3 queries x 6 training examples\n"
        "  measurement            margin (unit: logits)\n"
        "  sign                   positive = the margin goes up when the example is removed "
        "(unit: logits)\n"
        "  method                 influence: asked for\n"
        "  proponents of query 7  3 (-0.4), 1 (-0.1), 5 (-0.1)\n"
        "  opponents of query 7   0 (+0.3), 4 (+0.3)"
    )


def test_the_text_does_without_a_report_and_without_effects():
    scores = make_scores(
        values=np.zeros((1, 1)),
        query_ids=np.array(["q"]),
        train_ids=np.array([0]),
        baseline=np.zeros(1),
        queries={},
        report={},
    )
    assert repr(scores).startswith("Scores: 1 query x 1 training example\n")
    assert "not reported" in repr(scores)
    assert "opponents of query q   none" in repr(scores)


def test_a_notebook_shows_the_same_table_and_runs_nothing():
    evil = "<script>alert('x')</script>"
    scores = make_scores(
        query_ids=np.array([evil, "b", "c"]),
        train_ids=np.array([evil + str(i) for i in range(6)]),
        measurement=Measurement(evil, evil, higher_is_better=True),
        report={"method": evil, "reason": evil},
    )
    shown = scores._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 10
    assert shown.startswith("<table>")
    plain = re.sub(r"<[^>]*>", " ", make_scores()._repr_html_())
    for word in repr(make_scores()).split():
        assert word in plain


# -------------------------------------------------------------------------- imports


def test_saved_scores_are_read_and_shown_without_torch(tmp_path: Path):
    path = make_scores().save(tmp_path / "a")
    code = (
        "import sys; from whence.core.scores import Scores; "
        f"print(Scores.load({str(path)!r})); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'sklearn')))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr(make_scores())


@pytest.mark.parametrize("part", ["parameters", "data", "objective"])
def test_scores_refuse_a_problem_that_differs_in_any_part_of_the_equation(part):
    made_for = {"parameters": "a" * 32, "data": "b" * 32, "objective": "c" * 32}
    scores = Scores(
        values=np.ones((1, 2)),
        query_ids=np.array([0]),
        train_ids=np.array([0, 1]),
        measurement=Measurement("margin", "logits", True),
        baseline=np.zeros(1),
        report={"fingerprint": made_for},
    )
    scores.refuse_other(made_for, why="Nothing differs.")
    with pytest.raises(Stale, match=f"made for {part}"):
        scores.refuse_other(made_for | {part: "d" * 32}, why="It is another problem.")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["heavy tails", "many ties", "all equal", "one", "mostly zero"])
def test_strongest_and_half_are_those_of_all_effects_in_order(kind, seed):
    """Only a few of many effects are sorted; the answer is that of sorting them all."""
    rng = np.random.default_rng(seed)
    effects = {
        "heavy tails": rng.standard_t(1, 5000),
        "many ties": rng.integers(-3, 4, 5000).astype(float),
        "all equal": np.full(4096, 0.1),
        "one": np.eye(1, 3000, 17)[0],
        "mostly zero": np.where(rng.random(5000) < 0.001, rng.standard_normal(5000), 0.0),
    }[kind]
    scores = Scores(
        values=effects[None],
        query_ids=np.arange(1),
        train_ids=np.arange(len(effects)),
        measurement=LOSS,
        baseline=np.zeros(1),
    )
    order = np.argsort(-effects, kind="stable")
    expected = [i for i in order.tolist() if effects[i] > 0]
    for k in (1, 10, 6000):
        assert [one.id for one in scores.proponents(k)] == expected[:k]
    sizes = sorted((Fraction(size) for size in np.abs(effects)), reverse=True)
    sums = list(accumulate(sizes))
    reach = sums[-1] / 2 * (1 - Fraction(1, 10**12))
    half = next(i for i, reached in enumerate(sums, 1) if reached >= reach)
    assert scores.half_of_influence() == half
