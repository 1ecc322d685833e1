"""The exceptions of whence.

Every error that a user can cause or meet says three things: what was found (with numbers), why it
matters, and what to do about it.

    WhenceError
    ├── ProblemError            the model, loss or data cannot be used as given
    │   ├── BadData             lengths, shapes, label ranges, empty sets
    │   ├── NonFinite           NaN or infinity in the data, a loss or a gradient
    │   ├── NotPerExample       the loss mixes examples, or is already averaged
    │   ├── NotDeterministic    two identical calls gave different losses
    │   ├── TrainMode           dropout or batch statistics are switched on
    │   ├── DeviceMismatch      model and data are on different devices
    │   ├── NotFitted           a scikit-learn model without coefficients
    │   ├── Unsupported         a model, option or combination that has no exact translation
    │   └── CannotRetrain       verification was asked of a problem that has no training
    ├── UnknownName             a method, curvature, measurement or loss that does not exist
    ├── BadArgument             an option outside its range, or options that contradict each other
    ├── NumericsError           the linear algebra failed, and says how
    │   ├── NotConverged        an iteration stopped above its tolerance
    │   ├── NegativeCurvature   the matrix to be inverted is not positive definite
    │   └── Diverged            an iteration grew instead of shrinking
    ├── TooLarge                more memory or disk would be needed than allowed
    └── StoreError              a file or run folder cannot be written or read
        ├── NotARun             the path holds no (complete) run
        ├── WrongVersion        written by a version that this one cannot read
        └── Stale               scores belong to another model or other data
"""

from collections.abc import Iterable
from difflib import get_close_matches


class WhenceError(Exception):
    """Base of all errors of whence: what was found, why it matters, what to do.

    Args:
        found: what was observed, with numbers.
        why: the consequence for the result.
        remedy: the next step for the user.
    """

    def __init__(self, *, found: str, why: str, remedy: str) -> None:
        super().__init__(f"{found}\n  {why}\n  {remedy}")
        self.found = found
        self.why = why
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Lets the error travel between processes although its arguments are keyword-only."""
        return (_rebuild, (type(self), self.found, self.why, self.remedy))


def _rebuild(kind: type[WhenceError], found: str, why: str, remedy: str) -> WhenceError:
    return kind(found=found, why=why, remedy=remedy)


class ProblemError(WhenceError):
    """The model, loss or data cannot be used as given."""


class BadData(ProblemError):
    """Lengths, shapes, types or label ranges do not fit together."""


class NonFinite(ProblemError):
    """NaN or infinity where a number is needed."""


class NotPerExample(ProblemError):
    """The loss is not one value per example."""


class NotDeterministic(ProblemError):
    """The same call gave two different results."""


class TrainMode(ProblemError):
    """The module would drop units or use batch statistics."""


class DeviceMismatch(ProblemError):
    """Model and data are on different devices."""


class NotFitted(ProblemError):
    """A model that has not been fitted has no prediction to explain."""


class Unsupported(ProblemError):
    """There is no exact translation for this model or option."""


class CannotRetrain(ProblemError):
    """The problem does not say how it was trained."""


class UnknownName(WhenceError):
    """A name that is not in the list; see `unknown_name`."""


class BadArgument(WhenceError):
    """An option outside its range."""


class NumericsError(WhenceError):
    """The linear algebra failed."""


class NotConverged(NumericsError):
    """An iteration stopped above its tolerance."""


class NegativeCurvature(NumericsError):
    """The matrix to be inverted is not positive definite."""


class Diverged(NumericsError):
    """An iteration grew instead of shrinking."""


class TooLarge(WhenceError):
    """More memory or disk would be needed than is allowed."""


class StoreError(WhenceError):
    """A file or run folder cannot be written or read."""


class NotARun(StoreError):
    """The path holds no complete run."""


class WrongVersion(StoreError):
    """The file was written in a format that this version does not read."""


class Stale(StoreError):
    """Scores that belong to another model or to other data."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownName:
    """An error for a name that is not in a list, with the nearest one suggested.

    Args:
        kind: what was being named, for example "measurement".
        name: what the user wrote.
        known: the names that exist.

    Returns:
        The error, ready to be raised.
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return UnknownName(
        found=f"{name!r} is not a {kind}.",
        why=f"The names that exist are: {', '.join(names)}.",
        remedy=f"{guess}Use one of these names, or pass the object itself.",
    )
