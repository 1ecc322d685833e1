import inspect
import pickle

import pytest

from whence import errors

TREE = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and kind.__module__ == errors.__name__
]
PARTS = {"found": "3 of 4 losses are NaN.", "why": "A sum would be NaN.", "remedy": "Drop them."}


def drawn() -> dict[str, str]:
    """The tree in the docstring of the module, as child -> parent; four columns are one level."""
    parents, branch = {}, ["WhenceError"]
    for line in errors.__doc__.splitlines():
        if "── " in line:
            depth = line.index("──") // 4
            branch[depth:] = [line.split("── ")[1].split()[0]]
            parents[branch[depth]] = branch[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    real = {kind.__name__: kind.__base__.__name__ for kind in TREE}
    assert real.pop("WhenceError") == "Exception"
    assert drawn() == real


@pytest.mark.parametrize("kind", TREE)
def test_an_error_prints_what_was_found_why_it_matters_and_what_to_do(kind: type):
    error = kind(**PARTS)
    assert [line.strip() for line in str(error).splitlines()] == list(PARTS.values())


@pytest.mark.parametrize("kind", TREE)
def test_an_error_survives_the_way_between_processes(kind: type):
    error = pickle.loads(pickle.dumps(kind(**PARTS)))
    assert type(error) is kind
    assert (error.found, error.why, error.remedy) == tuple(PARTS.values())


@pytest.mark.parametrize("kind", TREE)
def test_no_part_of_an_error_can_be_left_out(kind: type):
    with pytest.raises(TypeError):
        kind("something is wrong")
    with pytest.raises(TypeError):
        kind(found="something", why="it matters")


def test_a_misspelt_name_is_answered_with_the_nearest_one():
    error = errors.unknown_name("measurement", "margni", ["loss", "margin"])
    assert isinstance(error, errors.UnknownName)
    assert "'margni' is not a measurement" in error.found
    assert "loss, margin" in error.why
    assert "'margin'" in error.remedy


def test_a_name_like_none_of_the_known_ones_gets_no_suggestion():
    assert "Did you mean" not in str(errors.unknown_name("loss", "zzz", ["margin"]))
