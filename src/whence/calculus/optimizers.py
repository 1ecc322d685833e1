"""Optimizers as pure functions: one step from a state and a gradient to the next state.

The state of a run is one tensor (S, P): the parameters in row 0, and what the optimizer remembers
below. A stack of runs is (..., S, P). Every step can be differentiated, which `torch.optim` cannot.
A step reads and writes the state as few times as possible: for many small models that is what it
costs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import BadArgument, unknown_name


@dataclass(frozen=True)
class Optimizer(ABC):
    """Recipe for one step. A child that is elementwise in P can train many models at once."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How reports call it."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """S - 1, how many vectors it remembers."""

    @property
    def is_decoupled(self) -> bool:
        """Whether weight decay shrinks the parameters beside the step, and is not part of R."""
        return False

    def start(self, parameters: Tensor) -> Tensor:
        """(..., S, P) the state before the first step, from parameters (..., P)."""
        memory = parameters.new_zeros(*parameters.shape[:-1], self.slots, parameters.shape[-1])
        return torch.cat([parameters.unsqueeze(-2), memory], -2)

    @abstractmethod
    def step(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> Tensor:
        """The next state.

        Args:
            state: (..., S, P).
            gradient: (..., P) at its parameters.
            lr: learning rate of this step.
            count: 1 for the first step.
        """

    def step_(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> None:
        """The same step, written over the state; without derivatives.

        Args:
            state: (..., S, P).
            gradient: (..., P) at its parameters.
            lr: learning rate of this step.
            count: 1 for the first step.
        """
        state.copy_(self.step(state, gradient, lr=lr, count=count))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD` with dampening 0.

        m = momentum m + g
        theta = theta - lr m                      or, nesterov, theta - lr (g + momentum m)

    Args:
        momentum: 0 remembers nothing.
        nesterov: looks ahead along the momentum.

    Raises:
        BadArgument: momentum outside [0, 1), or Nesterov's without any.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise BadArgument(
                found=f"momentum={self.momentum!r}, nesterov={self.nesterov!r}.",
                why="Momentum is the share of the last step that goes on; Nesterov looks along it.",
                remedy="Give a momentum from 0 to below 1, and above 0 with nesterov=True.",
            )

    @property
    def name(self) -> str:
        """With its momentum."""
        kind = "Nesterov momentum" if self.nesterov else "momentum"
        return f"SGD, {kind} {self.momentum:g}" if self.momentum else "SGD"

    @property
    def slots(self) -> int:
        """The momentum, if there is one."""
        return int(self.momentum > 0)

    def step(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> Tensor:
        """The next state; see `Optimizer.step`."""
        del count
        theta = state[..., 0, :]
        if not self.momentum:
            return torch.add(theta, gradient, alpha=-lr).unsqueeze(-2)
        velocity = torch.add(gradient, state[..., 1, :], alpha=self.momentum)
        along = velocity
        if self.nesterov:
            along = torch.add(gradient, velocity, alpha=self.momentum)
        return torch.stack([torch.add(theta, along, alpha=-lr), velocity], -2)

    def step_(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> None:
        """The same step, written over the state; see `Optimizer.step_`."""
        del count
        along = gradient
        if self.momentum:
            along = state[..., 1, :].mul_(self.momentum).add_(gradient)
        if self.nesterov:
            along = torch.add(gradient, along, alpha=self.momentum)
        state[..., 0, :].add_(along, alpha=-lr)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, as `torch.optim.Adam` and, decoupled, `torch.optim.AdamW`.

        m = b1 m + (1 - b1) g,      v = b2 v + (1 - b2) g^2
        theta = theta - lr m' / (sqrt(v' + eps_root) + eps),      x' = x / (1 - b^t)

    The square root has no derivative at v = 0, where it counts as a constant: the step of a
    parameter that no example has moved yet depends on weights through m alone. Where v is merely
    small the derivative is large, and
    an `eps_root` above zero makes training smoother in the weights.

    Args:
        betas: b1 and b2.
        eps: added to the root.
        eps_root: added below it; `torch.optim` has none.
        is_decoupled: as AdamW.

    Raises:
        BadArgument: a beta outside [0, 1), or a negative epsilon.

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019; eps_root as in optax.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    is_decoupled: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride, reportAssignmentType]

    def __post_init__(self) -> None:
        is_averaging = all(0 <= beta < 1 for beta in self.betas)
        if not is_averaging or min(self.eps, self.eps_root) < 0:
            raise BadArgument(
                found=f"betas={self.betas!r}, eps={self.eps!r}, eps_root={self.eps_root!r}.",
                why="Betas are shares of running means; the epsilons keep a division finite.",
                remedy="Give betas from 0 to below 1, and the others zero or more.",
            )

    @property
    def name(self) -> str:
        """With what differs from the usual."""
        kind = "AdamW" if self.is_decoupled else "Adam"
        return f"{kind}, eps_root {self.eps_root:g}" if self.eps_root else kind

    @property
    def slots(self) -> int:
        """Both running means."""
        return 2

    def step(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> Tensor:
        """The next state; see `Optimizer.step`."""
        theta, mean, square = state.unbind(-2)
        b1, b2 = self.betas
        mean = mean.lerp(gradient, 1 - b1)
        square = torch.addcmul(b2 * square, gradient, gradient, value=1 - b2)
        root = _safe_sqrt(square / (1 - b2**count) + self.eps_root)
        theta = theta.addcdiv(mean, root + self.eps, value=-lr / (1 - b1**count))
        return torch.stack([theta, mean, square], -2)

    def step_(self, state: Tensor, gradient: Tensor, *, lr: float, count: int) -> None:
        """The same step, written over the state; see `Optimizer.step_`."""
        theta, mean, square = state.unbind(-2)
        b1, b2 = self.betas
        mean.lerp_(gradient, 1 - b1)
        square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        root = _safe_sqrt(square / (1 - b2**count) + self.eps_root)
        theta.addcdiv_(mean, root.add_(self.eps), value=-lr / (1 - b1**count))


def _safe_sqrt(x: Tensor) -> Tensor:
    """The square root; its derivative at 0 counts as 0.

    The root of the smallest normal number stands for that of 0: 1e-19 in float32, which vanishes
    beside an epsilon.
    """
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


OPTIMIZERS = {"sgd": SGD(), "adam": Adam(), "adamw": Adam(is_decoupled=True)}
"""By the names that `Training` takes."""


def make_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer from its name, or as it is.

    Raises:
        UnknownName: no such optimizer.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer]
