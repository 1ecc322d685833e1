"""Approximations of the matrix that is inverted, one a file."""

import sys

from whence import discovery
from whence.curvature.base import IHVP, Curvature, Solution
from whence.errors import unknown_name

__all__ = ["IHVP", "Curvature", "Solution", "make_curvature", "names"]


def names() -> tuple[str, ...]:
    """The curvatures that exist."""
    return discovery.names(sys.modules[__name__])


def make_curvature(curvature: str | Curvature) -> Curvature:
    """The curvature of this name with its defaults, or the given one.

    Raises:
        UnknownName: no such curvature.
    """
    if isinstance(curvature, Curvature):
        return curvature
    if curvature not in names():
        raise unknown_name("curvature", curvature, names())
    return discovery.child(sys.modules[__name__], curvature, Curvature)()
