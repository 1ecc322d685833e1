"""Principles of attribution, one a file."""

import sys

from whence import discovery
from whence.curvature import make_curvature
from whence.curvature import names as curvature_names
from whence.errors import unknown_name
from whence.methods.base import Fitted, Method
from whence.methods.influence import Influence

__all__ = ["Fitted", "Influence", "Method", "make_method", "names"]

ALIASES = {"graddot": "identity"}


def names() -> tuple[str, ...]:
    """Every name that `method=` takes, besides "auto"."""
    own = set(discovery.names(sys.modules[__name__])) - {"influence"}
    return tuple(sorted(own | set(curvature_names()) | set(ALIASES)))


def make_method(method: str | Method) -> Method:
    """The method of this name with its defaults, or the given one.

    The name of a curvature stands for `Influence` with that curvature.

    Raises:
        UnknownName: no such method.
    """
    if isinstance(method, Method):
        return method
    name = ALIASES.get(method, method)
    if name in curvature_names():
        return Influence(make_curvature(name))
    if name not in names():
        raise unknown_name("method", method, ("auto", *names()))
    return discovery.child(sys.modules[__name__], name, Method)()
