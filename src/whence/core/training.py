"""How a model is trained again, with a weight for every training example.

`verify` asks a `Trainer` for the parameters that weights w would have led to. A weight of zero
removes an example; N stays N unless the problem renormalises.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from whence.errors import BadData, CannotRetrain, NonFinite
from whence.progress import breathe, track

if TYPE_CHECKING:
    from whence.core.problem import Problem


@dataclass(frozen=True)
class Retrained:
    """What M trainings returned.

    Args:
        parameters: (M, P).
        report: numbers about the trainings: gradient norms, steps.
    """

    parameters: Tensor
    report: dict[str, Any] = field(default_factory=dict[str, Any])


class Trainer(ABC):
    """Training as a function of example weights and a seed."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How reports call it."""

    @property
    @abstractmethod
    def is_deterministic(self) -> bool:
        """Whether two calls with the same weights and different seeds agree."""

    @abstractmethod
    def retrain(self, problem: "Problem", weights: Tensor, *, seed: int = 0) -> Retrained:
        """Trains M times.

        Args:
            problem: what is trained.
            weights: (M, N) weights of the training examples, 1 = as it was, 0 = removed.
            seed: of everything random in the training.

        Returns:
            (M, P) parameters, with a report.
        """

    def retrain_each(
        self, problem: "Problem", weights: Tensor, *, seeds: Sequence[int]
    ) -> Retrained:
        """Trains M times, each time from a seed of its own.

        By one call of `retrain` for each seed, unless a training knows a faster way.

        Args:
            problem: what is trained.
            weights: (M, N).
            seeds: (M,), equal ones among them or not.

        Returns:
            (M, P) parameters. Seconds in the report are those of all calls, other entries those of
            the first.
        """
        if self.is_deterministic:
            return self.retrain(problem, weights, seed=seeds[0])
        rows: dict[int, list[int]] = {}
        for place, seed in enumerate(seeds):
            rows.setdefault(seed, []).append(place)
        label = f"Training from {len(rows)} seeds"
        found = [
            self.retrain(problem, weights[places], seed=seed)
            for seed, places in track(list(rows.items()), label)
        ]
        back = torch.tensor([place for places in rows.values() for place in places]).argsort()
        report = found[0].report | {"seed": list(rows)}
        if "seconds" in report:
            report["seconds"] = sum(one.report["seconds"] for one in found)
        return Retrained(torch.cat([one.parameters for one in found])[back], report)


@dataclass(frozen=True)
class CallableTraining(Trainer):
    """A user's own training loop.

    Where it can be ended at request (in the explorer), it ends between two steps of an optimizer of
    `torch.optim`; a loop without one runs to its end.

    Args:
        function: `function(weights (N,), seed) -> module, state dict or flat tensor`. It must
            start as the original training did and weight example i's loss by weights[i]. Where it
            takes `data=`, it can also be trained on examples with other contents: they are then
            passed as (inputs, targets), all N of them in order.
        is_deterministic: True if the seed changes nothing.
    """

    function: Callable[..., object]
    is_deterministic: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride, reportAssignmentType]

    @property
    def name(self) -> str:
        """The name of the user's function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def takes_data(self) -> bool:
        """Whether it can be trained on examples with other contents."""
        return "data" in inspect.signature(self.function).parameters

    def retrain(self, problem: "Problem", weights: Tensor, *, seed: int = 0) -> Retrained:
        """Calls the function once for each row of weights; see `Trainer.retrain`.

        Raises:
            CannotRetrain: examples have other contents, and the function takes no `data=`.
        """
        given = self._given(problem)
        with _breathing_between_steps():
            rows = [
                flat_parameters(problem, self.function(row, seed, **given))
                for row in track(weights, f"Training with {self.name}")
            ]
        return Retrained(torch.stack(rows), {"training": self.name, "seed": seed})

    def _given(self, problem: "Problem") -> dict[str, Any]:
        """`data=` where the examples are no longer those that the function knows."""
        if not problem.data.is_changed:
            return {}
        if not self.takes_data:
            raise CannotRetrain(
                found=f"Some training examples have other contents now; {self.name} takes only "
                "weights and a seed.",
                why="It would train on the examples as they were.",
                remedy="Give it a third parameter: def train(weights, seed, data=None), where data "
                "is (inputs, targets) of all training examples.",
            )
        return {"data": problem.data.take(torch.arange(len(problem)))}


@contextmanager
def _breathing_between_steps() -> Generator[None, None, None]:
    """A loop over an optimizer of torch can be ended between two of its steps."""
    hook = register_optimizer_step_post_hook(lambda *_: breathe())
    try:
        yield
    finally:
        hook.remove()


def flat_parameters(problem: "Problem", trained: object) -> Tensor:
    """(P,) from whatever a training loop hands back."""
    if isinstance(trained, nn.Module):
        trained = dict(trained.named_parameters())
    if isinstance(trained, Mapping):
        named = cast("Mapping[str, Tensor]", trained)
        flat = problem.layout.join({name: named[name] for name in named})
    elif isinstance(trained, Tensor) and trained.shape == problem.parameters.shape:
        flat = trained
    else:
        raise BadData(
            found=f"The training returned {type(trained).__name__}.",
            why=f"whence needs the {problem.size} parameters that training led to.",
            remedy="Return the trained module, its state_dict(), or a flat tensor of "
            "parameters in the problem's order.",
        )
    flat = flat.detach().to(problem.parameters).clone()
    if not bool(flat.isfinite().all()):
        raise NonFinite(
            found="The training returned NaN or infinite parameters.",
            why="An effect computed from them would be meaningless.",
            remedy="Lower the learning rate of the training, or check the weights it is given.",
        )
    return flat
