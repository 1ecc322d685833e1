"""The problem behind a run: loaded beside the server, and asked when it is there.

A run can be looked at without its problem. What needs the model (what-ifs, retraining, suspects,
distances) waits for it, and says why where it cannot be had.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from whence.errors import Stale, Unsupported, WhenceError
from whence.explorer.catalog import Catalog

if TYPE_CHECKING:  # the first view does not wait for torch
    import numpy as np

    from whence.core.problem import Problem, Queries
    from whence.methods import Fitted

Json = dict[str, Any]

MISSING, LOADING, READY, REFUSED = "missing", "loading", "ready", "refused"
"""States: no problem was named; it is being loaded; it is there; it could not be had."""


class Live:
    """A problem that may be there.

    Args:
        catalog: the run that it belongs to.
        load: gives the problem, which may take its time; None where there is none to be had.
    """

    def __init__(self, catalog: Catalog, load: "Callable[[], Problem] | None") -> None:
        self.catalog = catalog
        self._lock = Lock()
        self._showing = Lock()  # displays are functions of the user: one at a time
        self._error: WhenceError | None = None
        self._problem: Problem | None = None
        self._load = load
        self._pending: Future[None] | None = None

    @property
    def state(self) -> str:
        """One of the states above."""
        if self._load is None:
            return MISSING
        if self._pending is None or not self._pending.done():
            return LOADING
        return REFUSED if self._error is not None else READY

    def to_json(self) -> Json:
        """The state, and why the problem could not be had."""
        error = self._error
        parts = ("found", "why", "remedy")
        told = None if error is None else {name: getattr(error, name) for name in parts}
        return {"state": self.state, "error": told}

    def begin(self) -> None:
        """Begins to load, once."""
        with self._lock:
            if self._pending is None and self._load is not None:
                loader = ThreadPoolExecutor(1, thread_name_prefix="whence-load")
                self._pending = loader.submit(self._try, self._load)

    def wait(self, seconds: float | None = None) -> None:
        """Returns when the problem is there, or known not to come."""
        self.begin()
        if self._pending is not None:
            self._pending.result(seconds)

    @property
    def problem(self) -> "Problem":
        """The problem; waits for it where it is being loaded.

        Raises:
            WhenceError: it could not be loaded, or is another than the run was made for.
            Unsupported: the run names none.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        if self._problem is None:
            raise Unsupported(
                found="The problem of this run is not at hand.",
                why="Its model and its training data are needed to answer this.",
                remedy="Start with its place: whence explore RUN --problem train.py:problem.",
            )
        return self._problem

    @cached_property
    def _queries(self) -> "Queries":
        from whence.core.kept import kept_queries

        return kept_queries(self.problem, self.catalog.scores)

    def queries(self, position: int | None = None) -> "Queries":
        """All queries of the run, or the one at a position."""
        if position is None:
            return self._queries
        from whence.core.kept import kept_queries

        return kept_queries(self.problem, self.catalog.scores, [position])

    @cached_property
    def responding(self) -> "Fitted":
        """The method that predicts changes; fitted once for all questions."""
        from whence.uses.base import fit_to_respond

        return fit_to_respond(self.problem, "auto")

    @cached_property
    def solving(self) -> "Fitted":
        """The method that explains; fitted once for all questions."""
        from whence.explanation import fit

        return fit(self.problem, "auto")

    @cached_property
    def has_tokens(self) -> bool:
        """Whether training examples are texts whose tokens can be told apart."""
        from whence.uses.tokens import has_tokens

        return has_tokens(self.problem)

    def row(self, column: int) -> int:
        """Where in the problem's data the training example of a column stands."""
        return int(self.problem.data.positions([self.catalog.scores.train_ids[column].item()])[0])

    def display(self, column: int) -> Json:
        """How a training example looks that the run has not kept."""
        problem, row = self.problem, self.row(column)
        with self._showing:
            return problem.show(row)

    def distances(self, position: int) -> "np.ndarray":
        """(N,) Euclidean distances of the raw inputs of a query to the training examples' columns.

        Raises:
            BadData: inputs are prepared, or are no numbers.
        """
        from whence.uses.comparison import raw_distances

        problem = self.problem
        rows = problem.data.positions(self.catalog.scores.train_ids)
        asked = self.queries(position)
        return raw_distances(problem, asked, asked)[0][rows]

    def _try(self, load: "Callable[[], Problem]") -> None:
        """Loads, and remembers what went wrong."""
        try:
            problem = load()
            self.catalog.scores.refuse_other(
                problem.fingerprint(),
                why="What it says would not belong to the effects that the run holds.",
            )
            self._problem = problem
        except Stale as error:
            self._error = Stale(
                found=f"The problem has changed since this run was made. {error.found}",
                why=error.why,
                remedy="Explain it anew, or name the one that this run was made from: "
                "whence explore RUN --problem train.py:problem.",
            )
        except WhenceError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  the user's own code: the run is still shown
            self._error = Unsupported(
                found=f"The problem could not be loaded: {type(error).__name__}: {error}",
                why="Its model and its training data are needed to answer questions.",
                remedy="Repair it, and start whence explore again.",
            )
