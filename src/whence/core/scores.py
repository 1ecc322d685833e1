"""The result of an attribution: what removing each training example does to each query."""

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from whence.errors import (
    BadArgument,
    BadData,
    NonFinite,
    ProblemError,
    Stale,
    StoreError,
)
from whence.numerics.lookup import Lookup
from whence.store.archives import DAMAGE, read_archive
from whence.store.files import cannot_read, write_atomically
from whence.store.jsonable import as_json, json_text
from whence.tables import html_table, plain_table
from whence.version import __version__

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "whence-scores", 1


@dataclass(frozen=True)
class Measurement:
    """A number that is measured on a query.

    Args:
        name: for example "margin".
        unit: of the number, for example "logits".
        higher_is_better: False for a loss.
        function: `(outputs, targets) -> (Q,)`; None where the measurement was read from a file.
    """

    name: str
    unit: str
    higher_is_better: bool
    function: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def words(self) -> str:
        """The name in words, as in "log prob" and "logit of 7 less that of 1"."""
        return spoken(self.name)


def spoken(name: str) -> str:
    """The name of a measurement in words."""
    kind, _, classes = name.partition(":")
    if kind == "contrast" and classes.count(":") == 1:
        return "logit of {} less that of {}".format(*classes.split(":"))
    return name.replace("_", " ")


@dataclass(frozen=True)
class Effect:
    """What removing one training example does to the measurement of one query.

    Args:
        id: of the training example.
        effect: change of the measurement; positive when it goes up.
    """

    id: int | str
    effect: float


@dataclass(frozen=True)
class Top:
    """The training examples that matter most to a query, the strongest first.

    Args:
        proponents: they help; without one of them the measurement gets worse.
        opponents: they hurt; without one of them it gets better.
    """

    proponents: tuple[Effect, ...]
    opponents: tuple[Effect, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Effects of removing each training example, as a labelled (Q, N) matrix.

        values[q, i] = m_q(parameters trained without i) - m_q(parameters as trained)

    Positive: the measurement goes up without the example. The arrays are copies that cannot be
    written to. The mean of three numbers, whose leave-one-out changes are (mean - y_i) / (N - 1):

    >>> y = np.array([1.0, 2.0, 6.0])
    >>> scores = Scores(
    ...     values=(y.mean() - y)[None] / (len(y) - 1),
    ...     query_ids=np.array(["mean"]),
    ...     train_ids=np.arange(3),
    ...     measurement=Measurement("prediction", "units of the target", higher_is_better=True),
    ...     baseline=y.mean()[None],
    ... )
    >>> scores.top(k=1)
    Top(proponents=(Effect(id=2, effect=-1.5),), opponents=(Effect(id=0, effect=1.0),))

    Args:
        values: (Q, N) effects.
        query_ids: (Q,) a unique integer or string for each query.
        train_ids: (N,) the same for each training example.
        measurement: what was measured on the queries.
        baseline: (Q,) the measurement of each query with the model as trained.
        queries: the queries as arrays with Q rows: "inputs" (or "inputs/<name>" for each of
            several) and "targets".
        report: how the effects were computed: plain values, kept as a copy.
        is_calibrated: False where only the order of effects has a meaning.
        errors: (Q, N) standard error of each effect, where the method is a mean over several
            trainings; None where nothing is known of it.

    Raises:
        BadData: shapes, ids or types do not fit together.
        NonFinite: an effect, its error or a baseline is NaN or infinite.
    """

    values: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray
    measurement: Measurement
    baseline: np.ndarray
    queries: Mapping[str, np.ndarray] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    is_calibrated: bool = True
    errors: np.ndarray | None = None

    def __post_init__(self) -> None:
        values = _checked_values(self.values)
        count, examples = values.shape
        checked = {
            "values": values,
            "query_ids": _checked_ids("query_ids", self.query_ids, count),
            "train_ids": _checked_ids("train_ids", self.train_ids, examples),
            "baseline": _checked_baseline(self.baseline, count),
            "queries": {
                name: _checked_rows(name, array, count) for name, array in self.queries.items()
            },
            "report": as_json({**self.report}, "report"),
            "is_calibrated": bool(self.is_calibrated),
            "errors": _checked_errors(self.errors, values),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_finite(self)

    # ---------------------------------------------------------------- sign and unit

    @property
    def unit(self) -> str:
        """The unit of the effects: that of the measurement, or "arbitrary" without a scale."""
        return self.measurement.unit if self.is_calibrated else "arbitrary"

    @property
    def sign_sentence(self) -> str:
        """What a positive effect means, in words."""
        words = self.measurement.words
        return f"positive = the {words} goes up when the example is removed (unit: {self.unit})"

    # ---------------------------------------------------------------- single effects

    def top(self, k: int = 10, query: int = 0) -> Top:
        """The k strongest proponents and the k strongest opponents of a query.

        Removing a proponent makes the measurement worse, removing an opponent makes it better;
        which sign that is depends on `measurement.higher_is_better`. An example without effect is
        neither, so either list may be shorter than k. Equal effects stand in the order of the
        training data.

        Args:
            k: length of each list, at least 1.
            query: position of the query, 0 to Q - 1.

        Raises:
            BadArgument: there is no such query, or k is below 1.
        """
        return Top(self.proponents(k, query), self.opponents(k, query))

    def proponents(self, k: int = 10, query: int = 0) -> tuple[Effect, ...]:
        """The k training examples that help a query most; see `top`."""
        return self._strongest(k, query, -1 if self.measurement.higher_is_better else 1)

    def opponents(self, k: int = 10, query: int = 0) -> tuple[Effect, ...]:
        """The k training examples that hurt a query most; see `top`."""
        return self._strongest(k, query, 1 if self.measurement.higher_is_better else -1)

    def effect(self, query: int, example_id: int | str) -> float:
        """The effect of one training example on one query.

        Args:
            query: position of the query, 0 to Q - 1.
            example_id: one of `train_ids`.

        Raises:
            BadArgument: there is no such query or no such training example.
        """
        return float(self._row(query)[self.position(example_id)])

    def position(self, example_id: int | str) -> int:
        """The column of a training example, 0 to N - 1.

        Args:
            example_id: one of `train_ids`.

        Raises:
            BadArgument: there is no such training example.
        """
        place = self.place(example_id)
        if place is None:
            first, last = self.train_ids[0].item(), self.train_ids[-1].item()
            raise BadArgument(
                found=f"There is no training example {example_id!r}.",
                why=f"There are {len(self.train_ids):,} ids, {first!r} the first and {last!r} the "
                "last.",
                remedy="Use an id from scores.train_ids; 7 and '7' are different ids.",
            )
        return place

    def place(self, example_id: int | str) -> int | None:
        """The column of a training example; None where there is none of this id."""
        return self._lookup.place(example_id)

    def half_of_influence(self, query: int = 0) -> int:
        """The smallest number of training examples that carry half of sum_i |effect[q, i]|.

        Args:
            query: position of the query, 0 to Q - 1.

        Returns:
            Between 1 and N; 0 where every effect is zero.
        """
        sizes = np.abs(self._row(query))  # (N,)
        half = sizes.sum() / 2 * (1 - 1e-12)  # an exact half must not be missed by rounding
        return _how_many_reach(sizes, half)

    # ---------------------------------------------------------------- other forms

    def with_report(self, **entries: Any) -> "Scores":
        """The same scores, with entries of the report added or replaced."""
        return replace(self, report={**self.report, **entries})

    def to_frame(self, top: int | None = None) -> "pd.DataFrame":
        """A pandas table with one row a pair: the columns query, train, effect and unit.

        Where effects have a standard error it stands in a column "error" after them.

        Args:
            top: keeps this many training examples of each query, the largest |effect| first;
                None keeps all, in the order of the training data.

        Raises:
            BadArgument: `top` is below 1.
        """
        import pandas as pd

        if top is None:
            order = np.broadcast_to(np.arange(len(self.train_ids)), self.values.shape)  # (Q, N)
        else:
            ranked = np.argsort(-np.abs(self.values), axis=1, kind="stable")
            order = ranked[:, : _checked_size("top", top)]  # (Q, top)
        columns = {
            "query": np.repeat(self.query_ids, order.shape[1]),
            "train": self.train_ids[order.ravel()],
            "effect": np.take_along_axis(self.values, order, axis=1).ravel(),
        }
        if self.errors is not None:
            columns["error"] = np.take_along_axis(self.errors, order, axis=1).ravel()
        return pd.DataFrame(columns | {"unit": self.unit})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one .npz file: arrays, and the rest as JSON; nothing pickled.

        The function of the measurement is not kept, and NaN or infinity in the report become None.

        Args:
            path: ".npz" is added where the name does not end in it.

        Returns:
            Where the file is.

        Raises:
            StoreError: it cannot be written; an earlier file is as it was.
        """
        target = _with_suffix(path)
        measured = self.measurement
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "whence": __version__,
            "measurement": {
                "name": measured.name,
                "unit": measured.unit,
                "higher_is_better": measured.higher_is_better,
            },
            "is_calibrated": self.is_calibrated,
            "has_errors": self.errors is not None,
            "queries": list(self.queries),  # a damaged archive can lose members without a word
            "report": self.report,
        }
        arrays: dict[str, Any] = {
            "metadata": np.array(json_text(as_json(metadata, "metadata"))),
            "values": self.values,
            "query_ids": self.query_ids,
            "train_ids": self.train_ids,
            "baseline": self.baseline,
            **({} if self.errors is None else {"errors": self.errors}),
            **{f"queries/{name}": array for name, array in self.queries.items()},
        }
        write_atomically(target, lambda file: np.savez(file, **arrays))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Reads what `save` wrote.

        Args:
            path: as it was given to `save`, with or without ".npz".

        Raises:
            WrongVersion: written in a format that this version does not read.
            StoreError: no such file, a damaged one, or one that holds something else.
        """
        return cls._read(_with_suffix(path))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Scores":
        """The same with the effects left in their file, and read a query at a time.

        The file has to stay where it is, and as it is. Effects are not looked through for NaN, nor
        ids for doubles, which `save` has no way to write.

        Args:
            path: as it was given to `save`, with or without ".npz".

        Raises:
            WrongVersion: written in a format that this version does not read.
            StoreError: no such file, a damaged one, or one that holds something else.
        """
        return cls._read(_with_suffix(path), mapped=("values", "errors", "train_ids"))

    @classmethod
    def _read(cls, source: Path, *, mapped: tuple[str, ...] = ()) -> "Scores":
        try:
            metadata, arrays = read_archive(source, kind=FORMAT, version=VERSION, mapped=mapped)
            measured = metadata["measurement"]
            return cls(
                values=arrays["values"],
                query_ids=arrays["query_ids"],
                train_ids=arrays["train_ids"],
                measurement=Measurement(
                    measured["name"], measured["unit"], measured["higher_is_better"]
                ),
                baseline=arrays["baseline"],
                queries={name: arrays[f"queries/{name}"] for name in metadata["queries"]},
                report=metadata["report"],
                is_calibrated=metadata["is_calibrated"],
                errors=arrays["errors"] if metadata.get("has_errors") else None,
            )
        except OSError as error:
            raise cannot_read(source, error) from error
        except (*DAMAGE, ProblemError) as error:
            raise _unreadable(source, error) from error

    def refuse_other(self, fingerprint: Mapping[str, str], *, why: str) -> None:
        """Refuses to be used with other parameters, other data or another objective.

        Args:
            fingerprint: of the problem at hand; scores made by hand have none to compare with.
            why: what would be wrong, for the message.

        Raises:
            Stale: naming the first part that differs.
        """
        made_for = self.report.get("fingerprint") or {}
        for name, own in fingerprint.items():
            theirs = made_for.get(name, own)
            if theirs != own:
                raise Stale(
                    found=f"The scores were made for {name} {theirs[:8]}..., this problem has "
                    f"{own[:8]}....",
                    why=why,
                    remedy="Pass the problem that the scores came from, or explain this one anew.",
                )

    def __repr__(self) -> str:
        return plain_table(self._title(), self._summary())

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        return html_table(self._title(), self._summary())

    def _title(self) -> str:
        count, examples = self.values.shape
        queries = "1 query" if count == 1 else f"{count:,} queries"
        return f"Scores: {queries} x {examples:,} training example{'s' * (examples != 1)}"

    def _summary(self) -> list[tuple[str, str]]:
        """What a reader needs first: names and texts."""
        method = str(self.report.get("method") or "not reported")
        reason = self.report.get("reason")
        top = self.top(3)
        first = self.query_ids.tolist()[0]
        return [
            ("measurement", f"{self.measurement.name} (unit: {self.measurement.unit})"),
            ("sign", self.sign_sentence),
            ("method", f"{method}: {reason}" if reason else method),
            (f"proponents of query {first}", self._listed(top.proponents)),
            (f"opponents of query {first}", self._listed(top.opponents)),
        ]

    def _listed(self, effects: tuple[Effect, ...]) -> str:
        """Effects on the first query in words, with their standard errors where they are known."""
        if self.errors is None:
            return ", ".join(f"{one.id} ({one.effect:+.3g})" for one in effects) or "none"
        errors = [float(self.errors[0, self.position(one.id)]) for one in effects]
        told = [f"{x.id} ({x.effect:+.3g} ± {e:.1g})" for x, e in zip(effects, errors, strict=True)]
        return ", ".join(told) or "none"

    # ---------------------------------------------------------------- look-up

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.train_ids)

    def _row(self, query: int) -> np.ndarray:
        """(N,) effects on the query at this position."""
        count = len(self.values)
        try:
            position = operator.index(query)
        except TypeError:
            position = -1
        if not 0 <= position < count:
            raise BadArgument(
                found=f"query={query!r}; there are {count:,} queries.",
                why="A query is named by its position, counted from 0.",
                remedy=f"Use a whole number from 0 to {count - 1}.",
            )
        return self.values[position]

    def _strongest(self, k: int, query: int, sign: int) -> tuple[Effect, ...]:
        """The k largest effects of one sign; no more of them are sorted than that."""
        effects, k = sign * self._row(query), _checked_size("k", k)
        least = np.partition(effects, -k)[-k] if k < len(effects) else -np.inf
        able = np.flatnonzero((effects >= least) & (effects > 0))
        order = able[np.argsort(-effects[able], kind="stable")[:k]]
        ids, values = self.train_ids[order].tolist(), (sign * effects[order]).tolist()
        return tuple(Effect(name, value) for name, value in zip(ids, values, strict=True))


def _how_many_reach(sizes: np.ndarray, sum_wanted: float) -> int:
    """The smallest number of the largest of N sizes that reach a sum; 0 where it is zero.

    Parts the sizes about their median, and goes on in the half where the sum is reached: of a
    million numbers fewer are sorted than are looked at.
    """
    if sum_wanted == 0:
        return 0
    taken = 0
    while len(sizes) > _SORTED_AT_ONCE:
        middle = len(sizes) // 2
        parted = np.partition(sizes, middle)
        upper = parted[middle:].sum()
        if upper >= sum_wanted:
            sizes = parted[middle:]
        else:
            taken, sum_wanted = taken + len(sizes) - middle, sum_wanted - upper
            sizes = parted[:middle]
    shares = np.cumsum(np.sort(sizes)[::-1])
    return taken + min(int(np.searchsorted(shares, sum_wanted)), len(shares) - 1) + 1


_SORTED_AT_ONCE = 1000


# -------------------------------------------------------------------- what is checked


def _is_unwritable(source: object) -> TypeGuard[np.ndarray]:
    """Whether an array owns memory, or maps a file, that nobody can write to."""
    if not isinstance(source, np.ndarray) or source.flags.writeable:
        return False
    return source.base is None or isinstance(source, np.memmap)


def _frozen(name: str, source: object, dtype: type | None = None) -> np.ndarray:
    """An array that nobody else can write to: a copy, unless it is such an array already."""
    if _is_unwritable(source):
        is_ours = dtype is None or source.dtype == dtype
        if is_ours and not source.dtype.hasobject:
            return source
    try:
        array = np.array(source, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise _not_plain(name, str(error)) from error
    if array.dtype.hasobject:
        raise _not_plain(name, "it holds Python objects")
    array.setflags(write=False)
    return array


def _checked_ids(name: str, source: object, count: int) -> np.ndarray:
    """(count,) unique integers or strings."""
    ids = np.asarray(source)
    if ids.dtype == object and all(isinstance(one, str) for one in ids.flat):
        ids = ids.astype(str)  # as pandas keeps them
    if ids.dtype.kind not in "iuU":
        raise BadData(
            found=f"{name} is of type {ids.dtype}.",
            why="An id is an integer or a string, so that it is the same in every file.",
            remedy=f"Convert them: np.asarray({name}).astype(str).",
        )
    is_mapped = isinstance(source, np.memmap)  # checked before it was saved
    distinct = count if is_mapped else Lookup(ids.ravel()).distinct
    if ids.shape != (count,) or distinct != count:
        raise BadData(
            found=f"{name} has shape {ids.shape} and {distinct:,} distinct ids.",
            why=f"Each of the {count:,} needs one id that no other has.",
            remedy="Give one unique id each, for example np.arange(...).",
        )
    return _frozen(name, ids)


def _checked_values(source: object) -> np.ndarray:
    values = _frozen("values", source, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise BadData(
            found=f"values has shape {values.shape}.",
            why="Scores have one row a query and one column a training example, and one at least.",
            remedy="Give a (Q, N) matrix; one query is a matrix of one row.",
        )
    return values


def _checked_baseline(source: object, count: int) -> np.ndarray:
    baseline = _checked_rows("baseline", _frozen("baseline", source, np.float64), count)
    if baseline.ndim != 1:
        raise BadData(
            found=f"baseline has shape {baseline.shape}.",
            why="The measurement of a query is a single number.",
            remedy=f"Give {count:,} numbers: baseline.reshape({count}).",
        )
    return baseline


def _checked_errors(source: object, values: np.ndarray) -> np.ndarray | None:
    """(Q, N) standard errors, none of them negative, or None."""
    if source is None:
        return None
    errors = _frozen("errors", source, np.float64)
    if errors.shape != values.shape:
        raise BadData(
            found=f"errors has shape {errors.shape}; values has {values.shape}.",
            why="Every effect has one standard error.",
            remedy="Give a matrix of the same shape, or leave errors out.",
        )
    if not isinstance(errors, np.memmap) and not (np.isfinite(errors) & (errors >= 0)).all():
        raise NonFinite(
            found=f"The largest error is {errors.max()}, the smallest {errors.min()}.",
            why="A standard error is a number of zero or more.",
            remedy="Leave errors out where they are not known.",
        )
    return errors


def _checked_rows(name: str, source: object, count: int) -> np.ndarray:
    array = _frozen(name, source)
    if array.shape[:1] != (count,):
        raise BadData(
            found=f"{name} has shape {array.shape}; there are {count:,} queries.",
            why="Row q of every array belongs to query q.",
            remedy="Give one row a query.",
        )
    return array


def _check_finite(scores: Scores) -> None:
    values, baseline = scores.values, scores.baseline
    is_mapped = isinstance(values, np.memmap)  # checked before it was saved; may be very large
    broken = np.zeros((1, 1), bool) if is_mapped else ~np.isfinite(values)
    if broken.any():
        q, i = (int(position) for position in np.argwhere(broken)[0])
        what = (
            f"The effect of training example {scores.train_ids[i]} on query "
            f"{scores.query_ids[q]} is {values[q, i]}; of {values.size:,} effects "
            f"{int(broken.sum()):,} are not finite."
        )
    elif not np.isfinite(baseline).all():
        q = int(np.flatnonzero(~np.isfinite(baseline))[0])
        what = f"The measurement of query {scores.query_ids[q]} is {baseline[q]}."
    else:
        return
    raise NonFinite(
        found=what,
        why="It has no place in a ranking, and spoils every sum that it enters.",
        remedy="Look at this example and this query; if the solve overflowed, raise the damping.",
    )


def _checked_size(name: str, size: int) -> int:
    try:
        checked = operator.index(size)
    except TypeError:
        checked = 0
    if checked < 1:
        raise BadArgument(
            found=f"{name}={size!r}.",
            why="It counts training examples.",
            remedy="Use a whole number of at least 1.",
        )
    return checked


def _not_plain(name: str, reason: str) -> BadData:
    return BadData(
        found=f"{name} is not a plain array: {reason}.",
        why="Scores are kept as numbers and strings, which every machine reads alike.",
        remedy="Give an array of numbers, or nested lists of equal lengths.",
    )


# -------------------------------------------------------------------- files and text


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    where = Path(path)
    if where.suffix.lower() == ".npz":
        return where
    return where.with_name(where.name + ".npz")


def _unreadable(path: Path, error: Exception) -> StoreError:
    reason = error.found if isinstance(error, ProblemError) else f"{error}."
    return StoreError(
        found=f"{path} holds no scores of whence, or only part of them: {reason}",
        why="What cannot be read as a whole is not shown at all.",
        remedy="Check the path; if the file was cut off or changed, explain anew and save again.",
    )
