"""Data sets of any form become examples addressed by position."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from whence.core.batches import as_tensors, check_device, make_data, move, slices, split_target
from whence.errors import BadData, DeviceMismatch

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 0, 1, 1, 0])


class Items(Dataset):
    """Examples as dicts, made on demand."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": X[row], "label": Y[row]}


class Endless(IterableDataset):
    def __iter__(self):
        yield from X


def pad(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x * 10 for x, _ in items]), torch.stack([y for _, y in items])


FORMS = {
    "tensors": (X, Y),
    "list of tensors": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "lists": (X.tolist(), Y.tolist()),
    "frame and series": (pd.DataFrame(X.numpy(), index=list("abcdef")), pd.Series(Y.numpy())),
    "columns of objects": (pd.DataFrame(X.numpy()).astype(object), Y),
    "read-only array": (np.broadcast_to(X.numpy(), (6, 2)), Y),
    "backwards array": (X.numpy()[::-1].copy()[::-1], Y),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True),
    "loader without batches": DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(form):
    data = make_data(FORMS[form])
    rows = torch.tensor([4, 0, 3])
    inputs, targets = data.take(rows)
    assert len(data) == 6
    assert inputs.tolist() == X[rows].tolist()
    assert targets.tolist() == Y[rows].tolist()
    assert data.ids.tolist() == list(range(6))


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 4], [5], [2, 2, 2], [5, 4, 3], [0, 2, 4], []])
@pytest.mark.parametrize("form", ["tensors", "dataset"])
def test_any_rows_can_be_taken_in_any_order(form, rows):
    if form == "dataset" and not rows:
        pytest.skip("there is nothing to collate")
    inputs, targets = make_data(FORMS[form]).take(torch.tensor(rows, dtype=torch.int64))
    assert inputs.tolist() == X[rows].tolist()
    assert targets.tolist() == Y[rows].tolist()


def test_neighbouring_rows_of_tensors_are_views():
    data = make_data((X, Y))
    inputs, _ = data.take(torch.arange(2, 5))
    assert inputs.data_ptr() == X[2:].data_ptr()


def test_the_collate_function_of_a_loader_is_kept():
    data = make_data(DataLoader(TensorDataset(X, Y), collate_fn=pad))
    inputs, targets = data.take(torch.tensor([1, 3]))
    assert inputs.tolist() == (10 * X[[1, 3]]).tolist()
    assert targets.tolist() == [1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_what_the_model_takes_is_what_the_user_gave(form):
    data = make_data(FORMS[form])
    rows = torch.tensor([4, 0])
    assert not data.is_prepared
    assert data.raw(rows).tolist() == data.prepare(data.raw(rows)).tolist() == X[rows].tolist()
    slopes = torch.randn(3, 2, 2)
    assert torch.equal(data.pull_back(data.raw(rows), slopes), slopes)
    assert data.example(3).tolist() == X[3].tolist()


def test_one_raw_example_of_several_inputs_keeps_their_names():
    assert {k: v.tolist() for k, v in make_data(Items()).example(2).items()} == {"x": X[2].tolist()}
    first, second = make_data((X, 2 * X, Y)).example(2)
    assert (first.tolist(), second.tolist()) == (X[2].tolist(), (2 * X[2]).tolist())


@pytest.mark.parametrize("source", [{"x": X, "label": Y}, Items(), DataLoader(Items())])
def test_a_dict_keeps_its_inputs_and_gives_up_its_target(source):
    inputs, targets = make_data(source).take(torch.tensor([1, 2]))
    assert {name: value.tolist() for name, value in inputs.items()} == {"x": X[1:3].tolist()}
    assert targets.tolist() == [1, 0]


def test_the_target_of_a_dict_can_be_named():
    data = make_data({"x": X, "label": Y, "score": 2 * Y}, target="score")
    inputs, targets = data.take(torch.arange(6))
    assert set(inputs) == {"x", "label"}
    assert targets.tolist() == (2 * Y).tolist()
    with pytest.raises(BadData, match="'grade'; it has x, label"):
        make_data({"x": X, "label": Y}, target="grade")


def test_a_dict_without_a_known_target_has_inputs_only():
    inputs, targets = make_data({"left": X, "right": X}).take(torch.arange(2))
    assert set(inputs) == {"left", "right"}
    assert targets is None


def test_several_inputs_come_before_the_target():
    inputs, targets = make_data((X, 2 * X, Y)).take(torch.arange(3))
    assert [part.tolist() for part in inputs] == [X[:3].tolist(), (2 * X[:3]).tolist()]
    assert targets.tolist() == Y[:3].tolist()


@pytest.mark.parametrize("source", [X, X.numpy(), (X, None), (X,)])
def test_inputs_alone_have_no_targets(source):
    inputs, targets = make_data(source).take(torch.arange(6))
    assert inputs.tolist() == X.tolist()
    assert targets is None


def test_a_list_of_rows_is_one_table():
    assert make_data(X.tolist()).take(torch.arange(6))[0].tolist() == X.tolist()


def test_ids_name_the_examples():
    assert make_data((X, Y), ids=list("fedcba")).ids.tolist() == list("fedcba")
    assert make_data((X, Y), ids=pd.Index(list("fedcba"))).ids.dtype.kind == "U"


@pytest.mark.parametrize("ids", [list("aabcde"), [1, 2], np.zeros((6, 1))])
def test_ids_are_unique_and_one_for_each(ids):
    with pytest.raises(BadData, match="ids"):
        make_data((X, Y), ids=ids)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((X, Y[:5]), "unequal lengths: 5, 6"),
        ((X[:0], Y[:0]), "empty"),
        (TensorDataset(X[:0], Y[:0]), "empty"),
        (Endless(), "no length"),
        ((["a", "b"], [0, 1]), "as numbers"),
        (object(), "as numbers"),
        (torch.tensor(3.0), "single number"),
        ({}, "nothing"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), "as numbers"),
    ],
)
def test_what_holds_no_examples_is_refused(source, message):
    with pytest.raises(BadData, match=message):
        make_data(source)


def test_data_is_taken_as_it_is():
    data = make_data((X, Y))
    assert make_data(data) is data


# ------------------------------------------------------------------ fingerprints


@pytest.mark.parametrize("form", ["arrays", "dataset", "loader"])
def test_the_fingerprint_is_that_of_the_content(form):
    assert make_data(FORMS[form]).fingerprint() == make_data((X, Y)).fingerprint()


def test_any_change_changes_the_fingerprint():
    moved, flipped = X.clone(), Y.clone()
    moved[5, 1] += 1e-5
    flipped[0] = 1
    prints = [
        make_data(source, ids=ids).fingerprint()
        for source, ids in [
            ((X, Y), None),
            ((moved, Y), None),
            ((X, flipped), None),
            ((X, None), None),
            ((X.double(), Y), None),
            ((X[:, [1, 0]], Y), None),
            ((X.flip(0), Y.flip(0)), None),
            ((X, Y), list("abcdef")),
        ]
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_covers_every_example_of_a_large_set():
    x = torch.zeros(3000, 1)
    first = make_data((x, x)).fingerprint()
    x[2999] = 1
    assert make_data((x, x)).fingerprint() != first


# ------------------------------------------------------------------ small pieces


def test_slices_cover_all_positions_in_order():
    assert [part.tolist() for part in slices(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.tolist() for part in slices(2, 5)] == [[0, 1]]


def test_structures_are_kept_when_they_become_tensors_and_when_they_move():
    tree = as_tensors({"a": np.ones(2), "b": (np.zeros((2, 1)), None)})
    assert tree["b"][1] is None
    moved = move(tree, torch.device("meta"))
    assert moved["a"].device.type == "meta"
    assert moved["b"][0].shape == (2, 1)


def test_a_target_is_split_off_the_end():
    assert split_target((1, 2), None) == (1, 2)
    assert split_target((1, 2, 3), None) == ((1, 2), 3)
    assert split_target((1,), None) == (1, None)


def test_tensors_on_another_device_are_not_moved_behind_the_back():
    data = make_data((X.to("meta"), Y.to("meta")))
    with pytest.raises(DeviceMismatch, match=r"cpu.*meta"):
        check_device(data, torch.device("cpu"))
    check_device(make_data((X, Y)), torch.device("cpu"))
