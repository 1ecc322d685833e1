"""Children found by the names of their files."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from whence import adapters, curvature, discovery, methods
from whence.adapters.base import Adapter
from whence.curvature.base import Curvature
from whence.methods.base import Method


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A folder with a base, two children, and names that each of them only imports."""
    folder = tmp_path / "shapes_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("class Shape: ...\n")
    (folder / "square.py").write_text(
        "from shapes_of_a_test.base import Shape\n"
        "class Corner: ...\n"
        "class Square(Shape): ...\n"
        "unit = Square()\n"
    )
    (folder / "circle.py").write_text(
        "from shapes_of_a_test.base import Shape\n"
        "from shapes_of_a_test.square import Square\n"
        "class Circle(Shape): ...\n"
    )
    (folder / "notes.txt").write_text("not a child")
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("shapes_of_a_test")
    for name in [name for name in sys.modules if name.startswith("shapes_of_a_test")]:
        del sys.modules[name]


def test_names_are_those_of_the_files_without_the_base(shapes):
    assert discovery.names(shapes) == ("circle", "square")


def test_a_child_is_the_class_that_its_file_defines_and_not_one_it_imports(shapes):
    base = import_module("shapes_of_a_test.base").Shape
    assert discovery.child(shapes, "circle", base).__name__ == "Circle"
    assert discovery.child(shapes, "square", base).__name__ == "Square"


def test_a_new_file_is_found_by_itself(shapes):
    folder = Path(shapes.__path__[0])
    source = "from shapes_of_a_test.base import Shape\nclass Arc(Shape): ...\n"
    (folder / "arc.py").write_text(source)
    base = import_module("shapes_of_a_test.base").Shape
    assert discovery.names(shapes) == ("arc", "circle", "square")
    assert discovery.child(shapes, "arc", base).__name__ == "Arc"


@pytest.mark.parametrize(
    ("folder", "base"), [(curvature, Curvature), (methods, Method), (adapters, Adapter)]
)
def test_every_file_of_the_three_folders_holds_one_child(folder, base):
    names = discovery.names(folder)
    assert names
    assert "base" not in names
    for name in names:
        assert issubclass(discovery.child(folder, name, base), base)
