"""The regulariser r(theta) that stands beside the mean loss."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from whence.errors import BadArgument

Penalty = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Regularizer:
    """r(theta) = (weight_decay / 2) sum of theta_j^2 over the named parameters + function(theta).

    Args:
        weight_decay: the l of (l/2)|theta|^2, beside the *mean* loss; what `torch.optim.SGD` calls
            `weight_decay` for a loss that is averaged.
        names: the parameters it decays.
        function: any further penalty, from named parameters to a scalar.
    """

    weight_decay: float = 0.0
    names: frozenset[str] = frozenset()
    function: Penalty | None = None

    def __call__(self, named: Mapping[str, Tensor]) -> Tensor:
        """The scalar r(theta)."""
        total = next(iter(named.values())).new_zeros(())
        if self.weight_decay:
            for name in named:
                if name in self.names:
                    total = total + 0.5 * self.weight_decay * (named[name] ** 2).sum()
        return total if self.function is None else total + self.function(named)

    def describe(self) -> str:
        """One line for reports."""
        parts: list[str] = []
        if self.weight_decay:
            parts.append(f"({self.weight_decay:g}/2)|theta|^2 on {len(self.names)} tensors")
        if self.function is not None:
            parts.append(getattr(self.function, "__name__", type(self.function).__name__))
        return " + ".join(parts) or "none"


def make_regularizer(
    names: Iterable[str], weight_decay: float, regularizer: str | Iterable[str] | Penalty | None
) -> Regularizer:
    """The regulariser as a user writes it.

    Args:
        names: all chosen parameters.
        weight_decay: l >= 0 of (l/2)|theta|^2.
        regularizer: None decays every chosen parameter, biases included, as `torch.optim.SGD`
            does; a name pattern (or several), as in `"*weight"`, decays the matching ones; a
            callable of the named parameters is added.

    Raises:
        BadArgument: a negative weight decay, or a pattern that matches nothing.
    """
    names = tuple(names)
    if not weight_decay >= 0:
        raise BadArgument(
            found=f"weight_decay is {weight_decay}.",
            why="It stands in the objective as (weight_decay / 2)|theta|^2.",
            remedy="Give 0 or a positive number.",
        )
    if callable(regularizer):
        return Regularizer(weight_decay, frozenset(names), regularizer)
    if regularizer is None:
        return Regularizer(weight_decay, frozenset(names))
    patterns = [regularizer] if isinstance(regularizer, str) else list(regularizer)
    return Regularizer(weight_decay, frozenset(matching(names, patterns)))


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the shell-style patterns, in their order.

    Raises:
        BadArgument: a pattern that matches nothing.
    """
    names = list(names)
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise BadArgument(
                found=f"The pattern {pattern!r} matches no parameter.",
                why=f"The parameters are: {', '.join(names)}.",
                remedy='Correct the pattern; "*" stands for any run of letters.',
            )
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
