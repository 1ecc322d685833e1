"""Children of a folder, found by file name.

A curvature, a method or an adapter is one file. Its module holds exactly one public class derived
from the folder's base class, and the name of the file is the name that users write.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def names(package: ModuleType) -> tuple[str, ...]:
    """The file names in a folder, without `base`, sorted."""
    found = [module.name for module in iter_modules(package.__path__) if module.name != "base"]
    return tuple(sorted(found))


@cache
def child(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """The class that a file of a folder holds.

    Args:
        package: the folder.
        name: the file, without its ending.
        base: the class that every child derives from.
    """
    module = import_module(f"{package.__name__}.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    return found
