"""The rules of the code that neither ruff nor import-linter can check."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

import whence

SOURCE = Path(__file__).parents[1] / "src" / "whence"
TESTS = Path(__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "processor"}
WIDE = {"make_problem"}  # the one place where all facts about a trained model are told
PLAIN = ["whence.errors", "whence.datasets", "whence.core.scores", "whence.numerics.stats"]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, Function, bool]]:
    """Every function: where it stands, its tree, and whether it is a method with a first `self`."""
    for path in FILES:
        methods = {
            id(node)
            for owner in ast.walk(parsed(path))
            if isinstance(owner, ast.ClassDef)
            for node in owner.body
            if isinstance(node, Function) and "staticmethod" not in decorators(node)
        }
        for node in ast.walk(parsed(path)):
            if isinstance(node, Function):
                where = f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
                yield where, node, id(node) in methods


def decorators(node: Function) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def lines(node: Function) -> int:
    """Lines of a function from `def` to its end, without the docstring."""
    total = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        total -= node.body[0].end_lineno - node.body[0].lineno + 1
    return total


def modules() -> Iterator[ModuleType]:
    """Every module of the package but those whose optional library is not installed."""
    for found in pkgutil.walk_packages(whence.__path__, "whence."):
        if found.name == "whence.__main__":
            continue
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name.startswith("whence"):
                raise


def classes() -> Iterator[type]:
    for module in modules():
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                yield kind


def test_no_function_has_more_than_eighty_lines():
    long = {where: lines(node) for where, node, _ in functions() if lines(node) > 80}
    assert not long


def test_nine_functions_in_ten_have_at_most_thirty_lines():
    sizes = [lines(node) for _, node, _ in functions()]
    longest = sorted(((lines(node), where) for where, node, _ in functions()), reverse=True)
    assert sum(size > 30 for size in sizes) <= len(sizes) / 10, longest[:20]
    assert median(sizes) <= 10


def test_no_function_has_more_than_seven_parameters():
    crowded = {}
    for where, node, is_method in functions():
        arguments = node.args
        count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - is_method
        if count > 7 and node.name not in WIDE and not callbacks(node):
            crowded[where] = count
    assert not crowded


def test_public_parameters_after_the_third_are_keyword_only():
    positional = {}
    for where, node, is_method in functions():
        count = len(node.args.posonlyargs + node.args.args) - is_method
        if count > 3 and not node.name.startswith("_") and not callbacks(node):
            positional[where] = count
    assert not positional


def callbacks(node: Function) -> bool:
    """Whether another library fixes the order of the parameters, as click does."""
    return any("click" in name or "command" in name for name in decorators(node))


def test_classes_are_abstract_or_final_and_one_level_deep():
    wrong = []
    for kind in classes():
        parents = [base for base in kind.__mro__[1:] if base.__module__.startswith("whence")]
        if issubclass(kind, Exception):
            continue
        if len(parents) > 1:
            wrong.append(f"{kind.__name__} is {len(parents)} levels deep")
        wrong += [
            f"{kind.__name__} extends {base.__name__}, which is not abstract"
            for base in parents
            if not inspect.isabstract(base)
        ]
    assert not wrong


def test_files_are_named_for_what_they_hold():
    assert not [path for path in FILES if VAGUE & set(path.stem.split("_"))]


def test_every_test_file_stands_where_its_source_stands():
    """tests/core/test_scores.py tests src/whence/core/scores.py."""
    beside = {"laws", "browser", "experiments", "benchmarks"}  # what no single file answers for
    whole = {"architecture", "docs", "packaging", "api"}  # tests of the project, not of one file
    lost = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.parent.relative_to(TESTS)
        name = path.stem.removeprefix("test_")
        if (folder.parts and folder.parts[0] in beside) or (not folder.parts and name in whole):
            continue
        source = SOURCE / folder / name
        if not source.with_suffix(".py").exists() and not (source / "__init__.py").exists():
            lost.append(str(path.relative_to(TESTS)))
    assert not lost


def test_every_folder_of_the_package_can_be_imported():
    folders = {path.parent for path in FILES}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_global_random_generators_are_never_used():
    """Seeds are arguments; `torch.manual_seed` only where `fork_rng` puts the old state back."""
    allowed = {"default_rng", "Generator", "SeedSequence", "Philox", "PCG64", "BitGenerator"}
    used = []
    for path in FILES:
        calls = {ast.unparse(n.func) for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)}
        for call in calls:
            prefix, _, last = call.rpartition(".")
            is_global = prefix in {"np.random", "numpy.random", "random"} and last not in allowed
            if call in {"torch.manual_seed", "torch.seed"}:
                is_global = not any(other.endswith("fork_rng") for other in calls)
            if is_global:
                used.append(f"{path.relative_to(SOURCE)}: {call}")
    assert not used


@pytest.mark.parametrize("module", [*PLAIN, "whence.store"])
def test_plain_modules_do_not_load_torch(module: str):
    """A saved result opens quickly, and where torch does not work."""
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr or f"{module} loads torch"
