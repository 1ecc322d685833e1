"""Derivatives of maps from tables to tables that are known only by their values.

A map is given as a function from (B, k) rows to (B, d) rows, each row by itself. Where it is affine
its Jacobian is taken once, without an error of approximation; elsewhere central differences are
taken at each row.
"""

from collections.abc import Callable

import numpy as np

from whence.errors import WhenceError

Map = Callable[[np.ndarray], np.ndarray]
"""(B, k) float64 rows to (B, d) rows."""

_PROBES = 4
_REACHES = (0.3, 3.0, 30.0)
"""How far probes go from the middle of the table, in spreads: a clipped map is affine nearby."""

_ROUNDING = 1e-9
"""Share of the numbers that enter a sum by which two sums may differ."""

_ROWS = 512
"""Rows that go through the map together."""


def affine_jacobian(function: Map, table: np.ndarray) -> np.ndarray | None:
    """The matrix of an affine map, or None if the map is not affine.

    With c the middle of the table, a map is taken for affine if on random probes x and y

        f(x) + f(y) = f(x + y - c) + f(c)

    Args:
        function: the map.
        table: (N, k) rows that show in which range it is used.

    Returns:
        (d, k), or None.
    """
    middle, spread = table.mean(0), spreads(table)
    generator = np.random.default_rng(0)
    moves = generator.standard_normal((len(_REACHES), 2, _PROBES, len(middle)))
    moves *= np.array(_REACHES)[:, None, None, None] * spread
    one, other = moves.swapaxes(0, 1).reshape(2, -1, len(middle))
    try:
        with np.errstate(all="ignore"):
            pieces = [function(middle + move) for move in (one, other, one + other, 0 * one)]
    except (WhenceError, ValueError):
        return None
    gap = pieces[0] + pieces[1] - pieces[2] - pieces[3]
    size = sum(np.abs(piece) for piece in pieces)
    if not bool((np.abs(gap) <= _ROUNDING * size).all()):
        return None
    columns: list[np.ndarray] = []
    for part in np.array_split(np.arange(len(middle)), -(-len(middle) // _ROWS)):
        steps = np.zeros((len(part), len(middle)))
        steps[np.arange(len(part)), part] = spread[part]
        moved = function(middle + steps) - function(middle - steps)
        columns.append(moved / (2 * spread[part, None]))
    return np.concatenate(columns).T


def pull_back(
    function: Map, rows: np.ndarray, slopes: np.ndarray, *, spread: np.ndarray
) -> np.ndarray:
    """Derivatives carried back through a map by central differences.

        out[q, b, j] = sum_i slopes[q, b, i] d f_i / d x_j (x_b) + O(h^2),    h = 6e-6 of a scale

    Args:
        function: the map.
        rows: (B, k) at which it is differentiated.
        slopes: (Q, B, d).
        spread: (k,) a scale for each column; a step is a share of it, or of the value if larger.

    Returns:
        (Q, B, k); NaN where the map has no value next to a row.
    """
    answer = np.empty((len(slopes), *rows.shape))
    width = rows.shape[1]
    for b, row in enumerate(rows):
        h = np.finfo(np.float64).eps ** (1 / 3) * np.maximum(np.abs(row), spread)
        for part in np.array_split(np.arange(width), -(-width // _ROWS)):
            above, below = np.tile(row, (len(part), 1)), np.tile(row, (len(part), 1))
            above[np.arange(len(part)), part] += h[part]
            below[np.arange(len(part)), part] -= h[part]
            width_of_step = (above - below)[np.arange(len(part)), part]
            with np.errstate(all="ignore"):
                change = (function(above) - function(below)) / width_of_step[:, None]
            answer[:, b, part] = slopes[:, b] @ change.T
    return answer


def spreads(table: np.ndarray) -> np.ndarray:
    """(k,) a scale for each column: its standard deviation; its size, or one, if it is constant."""
    spread, size = table.std(0), np.abs(table).max(0)
    is_constant = spread <= 1e-12 * size
    return np.where(is_constant, np.where(size > 0, size, 1.0), spread)
