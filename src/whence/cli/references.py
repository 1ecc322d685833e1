"""What a word on the command line refers to: an object in a Python file, or arrays in a file.

train.py:problem        `problem` in the file train.py
project.models:digits   `digits` in the module project.models
queries.npz             arrays x (or inputs) and, where there are labels, y (or targets, labels)
"""

import sys
import sysconfig
import traceback
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from whence.errors import BadArgument, BadData, ProblemError, StoreError, WhenceError

if TYPE_CHECKING:  # `whence --help` answers without loading torch
    from whence.core.problem import Problem

T = TypeVar("T")

INPUT_NAMES = ("x", "X", "inputs")
TARGET_NAMES = ("y", "targets", "labels")


def load_problem(reference: str) -> "Problem":
    """The problem that a reference names.

    Args:
        reference: to a `Problem`, or to a function without arguments that returns one.

    Raises:
        BadArgument: no such file, module or name, or it is not a problem.
        ProblemError: the user's own code failed; the message says in which line.
    """
    from whence.core.problem import Problem

    found = load_object(reference)
    if not isinstance(found, Problem):
        raise BadArgument(
            found=f"{reference} is of type {type(found).__name__}.",
            why="A problem says what was trained, on what, and how.",
            remedy="Name the result of whence.make_problem(model, data, loss=...), or a function "
            "that returns it.",
        )
    return found


def load_queries(reference: str) -> object:
    """The queries that a reference names, as `Problem.queries` takes them.

    Args:
        reference: to an .npz file, to `(inputs, targets)` or inputs in a Python file, or to a
            function without arguments that returns these.

    Raises:
        WhenceError: what `load_object` and `numpy.load` cannot read.
    """
    return _load_arrays(Path(reference)) if reference.endswith(".npz") else load_object(reference)


def load_object(reference: str) -> object:
    """The object that a reference names; a function is called.

    The folder of a file, and the current one for a module, stay on `sys.path`, as they do for a
    script that is run: a model may import its neighbours only when it is called.

    Args:
        reference: `file.py:name` or `module:name`.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise BadArgument(
            found=f"{reference!r} does not say which object in which file.",
            why="Models and data live in Python code, under a name.",
            remedy="Write file.py:name or module:name, for example train.py:problem.",
        )
    module = (
        _import_file(Path(source).resolve()) if source.endswith(".py") else _import_module(source)
    )
    if not hasattr(module, name):
        public = [
            own
            for own, value in vars(module).items()
            if not own.startswith("_") and not isinstance(value, ModuleType)
        ]
        raise BadArgument(
            found=f"{source} has no {name!r}.",
            why=f"It has: {', '.join(public) or 'nothing public'}.",
            remedy="Name one of these after the colon.",
        )
    found = getattr(module, name)
    return _run(found, source) if callable(found) else found


def absolute(reference: str) -> str:
    """The same reference, valid from every folder; that of a module stays as it is."""
    source, _, name = reference.rpartition(":")
    return f"{Path(source).resolve()}:{name}" if source.endswith(".py") else reference


@cache
def _import_file(path: Path) -> ModuleType:
    """The module in a file, run once also where both problem and queries are in it."""
    if not path.is_file():
        raise BadArgument(
            found=f"There is no file {path}.",
            why="It should hold the problem or the queries.",
            remedy="Check the path; it is read from the current folder.",
        )
    _add_to_path(path.parent)
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)  # pyright: ignore[reportArgumentType]  # a .py file has a spec
    # Dataclasses and pickle look for the module by its name; random.py must not hide the library's.
    sys.modules.setdefault(path.stem, module)
    try:
        _run(lambda: spec.loader.exec_module(module), str(path))  # pyright: ignore
    except BaseException:
        if sys.modules[path.stem] is module:
            del sys.modules[path.stem]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return _run(lambda: import_module(name), name)
    except ProblemError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and name.startswith(cause.name):
            raise BadArgument(
                found=f"There is no module {cause.name!r}.",
                why="It should hold the problem or the queries.",
                remedy="For a file write its ending, as in train.py:problem; for a module start "
                "where it can be imported.",
            ) from cause
        raise


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _run(code: Callable[[], T], source: str) -> T:
    """Calls the user's code; what it raises is told with the line, not with our own frames."""
    try:
        return code()
    except WhenceError:
        raise
    except (Exception, SystemExit) as error:
        raise ProblemError(
            found=f"{_place(error, source)}: {type(error).__name__}: {error}",
            why=f"whence runs {source} to get the object that was named.",
            remedy="Repair that line; the code must run from start to end without whence.",
        ) from error


def _place(error: BaseException, source: str) -> str:
    """File and line of the deepest frame in the user's own code, or the source."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    paths = sysconfig.get_paths()
    foreign = (str(Path(__file__).parents[1]), paths["stdlib"], paths["purelib"], "<")
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(foreign)
    ]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else source


def _load_arrays(path: Path) -> object:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise BadArgument(
            found=f"There is no file {path}.",
            why="It should hold the queries.",
            remedy="Write it with numpy.savez(path, x=inputs, y=labels).",
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            found=f"{path} cannot be read: {error}",
            why="Queries are plain arrays in an .npz file.",
            remedy="Write it with numpy.savez(path, x=inputs, y=labels).",
        ) from error
    return _queries_from(arrays, path)


def _queries_from(arrays: dict[str, Any], path: Path) -> object:
    """`(inputs, targets)`; several inputs are named `inputs/<name>`, as in saved scores."""
    several = {
        name.removeprefix("inputs/"): array
        for name, array in arrays.items()
        if name.startswith("inputs/")
    }
    inputs = next((arrays[name] for name in INPUT_NAMES if name in arrays), several or None)
    if inputs is None:
        raise BadData(
            found=f"{path} has the arrays {', '.join(arrays) or 'none'}.",
            why=f"The inputs of queries are called {' or '.join(INPUT_NAMES)}, their labels "
            f"{' or '.join(TARGET_NAMES)}.",
            remedy="Write it with numpy.savez(path, x=inputs, y=labels).",
        )
    targets = next((arrays[name] for name in TARGET_NAMES if name in arrays), None)
    return inputs if targets is None else (inputs, targets)
