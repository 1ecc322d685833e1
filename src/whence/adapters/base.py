"""What every adapter is: one kind of model, turned into a `Problem`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.batches import Data
from whence.core.extracted import Read, extracting
from whence.core.losses import Loss, LossFunction
from whence.core.problem import Forward, Problem
from whence.core.regularizers import Penalty
from whence.core.training import CallableTraining, Trainer
from whence.errors import BadArgument, BadData


@dataclass(frozen=True)
class Options:
    """What a user can say besides model and data; `whence.make_problem` explains each."""

    loss: str | LossFunction | Loss | None = None
    weight_decay: float | None = None
    regularizer: str | Iterable[str] | Penalty | None = None
    parameters: str | Iterable[str] | Callable[[str], bool] | None = None
    forward: Forward | None = None
    sample_weight: object = None
    class_weight: str | Mapping[int, float] | None = None
    renormalize: bool = False
    training: Trainer | Callable[[Tensor, int], object] | None = None
    ids: object = None
    target: str | None = None
    display: str | Mapping[str, Any] | Callable[..., Any] | None = None
    label_names: Sequence[str] | None = None
    name: str | None = None
    features: nn.Module | Callable[..., Any] | None = None

    def reader(self, read: Read) -> Read:
        """How examples are read: by the model's own `read`, behind the extractor if there is one.

        Args:
            read: `(source, *, ids=None) -> Data` of the kind of model.
        """
        return extracting(self.features, read, self.target)

    def complete(self, problem: Problem) -> Problem:
        """The problem with what was said of its names, its pictures and its training."""
        return replace(
            problem,
            renormalize=self.renormalize,
            training=make_training(self.training) or problem.training,
            name=self.name or problem.name,
            display=self.display or problem.display,
            label_names=self.label_names or problem.label_names,
        )

    def refuse(self, kind: str, **allowed: object) -> None:
        """Refuses options that a kind of model already answers by itself.

        Args:
            kind: of model, for the message.
            allowed: for each such option what the model says.

        Raises:
            BadArgument: one of them was given.
        """
        for option, answer in allowed.items():
            if getattr(self, option) is not None:
                raise BadArgument(
                    found=f"{option}= was given for a {kind}.",
                    why=f"The model itself says it: {answer}.",
                    remedy=f"Leave {option} out.",
                )


class Adapter(ABC):
    """Knows one kind of model."""

    @abstractmethod
    def recognises(self, model: object) -> bool:
        """Whether this adapter can read the model, without importing what is not loaded."""

    @abstractmethod
    def make_problem(self, model: Any, data: object, options: Options) -> Problem:
        """The problem that this model solved.

        Raises:
            ProblemError: the model or data cannot be used; the message says why.
        """


def make_training(training: Trainer | Callable[[Tensor, int], object] | None) -> Trainer | None:
    """A training from a user's function, or as it is."""
    if training is None or isinstance(training, Trainer):
        return training
    return CallableTraining(training)


def make_weights(data: Data, options: Options, like: Tensor) -> Tensor:
    """(N,) base weights b_i = sample weight times the weight of the example's class.

    Raises:
        BadData: a weight per example is missing, negative or not a number.
    """
    count = len(data)
    weights = torch.ones(count, dtype=like.dtype, device=like.device)
    if options.sample_weight is not None:
        weights = torch.as_tensor(options.sample_weight).to(like).clone()
    if options.class_weight is not None:
        weights = weights * class_weights(data, options.class_weight).to(like)
    if weights.shape != (count,) or not bool((weights >= 0).all() & weights.isfinite().all()):
        raise BadData(
            found=f"Base weights of shape {tuple(weights.shape)} for {count} examples, "
            f"smallest {weights.min().item():g}.",
            why="The objective weights every example by a number that is zero or positive.",
            remedy="Give one finite weight >= 0 per example.",
        )
    return weights


def class_weights(data: Data, weights: str | Mapping[int, float]) -> Tensor:
    """(N,) the weight of each example's class.

    Args:
        data: examples with integer targets.
        weights: by class, default 1; or "balanced", N / (classes x examples of the class).

    Raises:
        BadArgument: neither a mapping nor "balanced".
        BadData: the targets are not classes.
    """
    _, targets = data.take(torch.arange(len(data)))
    if targets is None or targets.ndim != 1:
        raise BadData(
            found="class_weight was given, but the targets are not one class per example.",
            why="A class weight is looked up by the class of the example.",
            remedy="Leave class_weight out, or pass sample_weight.",
        )
    classes, index, counts = torch.unique(targets.cpu(), return_inverse=True, return_counts=True)
    if weights == "balanced":
        table = len(data) / (len(classes) * counts.double())
    elif isinstance(weights, Mapping):
        table = torch.tensor([float(weights.get(int(c), 1.0)) for c in classes])
    else:
        raise BadArgument(
            found=f"class_weight is {weights!r}.",
            why="It is a weight for each class.",
            remedy='Give a dict from class to weight, or "balanced".',
        )
    return table[index]
