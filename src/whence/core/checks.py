"""What is refused before any cost: the checks behind `Problem.check` and `Problem.queries`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from whence.core.batches import Batch, Tree, check_device
from whence.errors import BadData, NonFinite, NotDeterministic, NotPerExample, TrainMode

if TYPE_CHECKING:
    from whence.core.problem import Problem

_FEW = 6
"""Examples that are looked at one by one."""


def check_modes(model: nn.Module) -> None:
    """Refuses dropout and batch statistics.

    Raises:
        TrainMode: naming the first such module.
    """
    for name, module in model.named_modules():
        reason = _random_or_mixing(module)
        if reason:
            raise TrainMode(
                found=f"{name or 'The model'} ({type(module).__name__}) {reason}.",
                why="The loss of an example would depend on chance or on its batch.",
                remedy="Call model.eval() before make_problem; whence never changes the mode "
                "itself.",
            )


def check_problem(problem: "Problem") -> dict[str, Any]:
    """All checks that look at data; see `Problem.check`."""
    check_device(problem.data, problem.device)
    few = problem.batch(torch.arange(min(_FEW, len(problem))))
    _refuse_non_finite((few.inputs, few.targets), "Training example", _names(problem, few))
    with torch.no_grad():
        outputs = call(problem, few.inputs, "training examples")
        _check_targets(problem, few, outputs)
        _check_per_example(problem, few)
        parts = problem.sweep(lambda batch: _total_loss(problem, batch, outputs))
        total = sum(part for _, part in parts)
    return {"examples": len(problem), "mean_loss": total / len(problem)}


def call(problem: "Problem", inputs: Tree, what: str) -> Tensor:
    """Outputs of the model at its own parameters, for the first time.

    Args:
        problem: whose model is called.
        inputs: a batch.
        what: what the batch holds, for the message.

    Raises:
        BadData: the model itself raised an error.
    """
    try:
        return problem.outputs(problem.parameters, inputs)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise BadData(
            found=f"{type(problem.model).__name__} cannot be called on the {what}: {error}.",
            why=f"Each of them is {_shapes(_named(inputs))}, on {problem.device}.",
            remedy="Check the shapes and types of the inputs; forward=(model, inputs) -> outputs "
            "says how a model is called that does not take its inputs as they are.",
        ) from error


def blamed(problem: "Problem", parameters: Tensor, batch: Batch) -> str:
    """Which module answers the same call in two ways, as the end of a sentence.

    Args:
        problem: whose model is asked.
        parameters: (P,) where.
        batch: on what.
    """
    first, second = (_said(problem, parameters, batch.inputs) for _ in range(2))
    for (name, one), (_, other) in zip(first, second, strict=True):
        if not all(map(torch.equal, one, other)):
            return f"the first module that answers in two ways is {name}"
    return "the modules of the model agree with themselves, so it is the loss or a derivative"


def _said(problem: "Problem", parameters: Tensor, inputs: Tree) -> list[tuple[str, list[Tensor]]]:
    """What each module answers, in the order in which they finish."""
    said: list[tuple[str, list[Tensor]]] = []

    def listen(name: str, module: nn.Module) -> Any:
        def hear(module: nn.Module, args: object, output: object) -> None:
            del args
            label = f"{name or 'the model itself'} ({type(module).__name__})"
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            said.append((label, [leaf.detach().clone() for leaf in leaves]))

        return module.register_forward_hook(hear)

    handles = [listen(name, module) for name, module in problem.model.named_modules()]
    try:
        with torch.no_grad():
            problem.outputs(parameters, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return said


def check_query_shapes(problem: "Problem", inputs: Tree) -> None:
    """Refuses queries that do not look like training examples.

    Token sequences (integers) may be of another length; numbers may not.

    Raises:
        BadData: the structure or a shape differs.
        NonFinite: NaN or infinity in a query.
    """
    expected, got = _named(problem.batch(torch.arange(1)).inputs), _named(inputs)
    is_alike = expected.keys() == got.keys() and all(
        a.ndim == got[name].ndim
        and (a.shape[1:] == got[name].shape[1:] or not a.is_floating_point())
        for name, a in expected.items()
    )
    if not is_alike:
        raise BadData(
            found=f"A query has the shape {_shapes(got)}, a training example {_shapes(expected)}.",
            why="Queries go through the same model as the training examples.",
            remedy="Prepare the queries like the training data; a single example needs a "
            "leading axis, as in X[0:1].",
        )
    _refuse_non_finite(inputs, "Query", range(len(next(iter(got.values())))))


def _random_or_mixing(module: nn.Module) -> str:
    if isinstance(module, _BatchNorm):
        uses_batch = module.training or module.running_mean is None
        return "normalises by the statistics of its batch" if uses_batch else ""
    is_dropout = "Dropout" in type(module).__name__
    rate = getattr(module, "p" if is_dropout else "dropout", 0.0)
    is_on = module.training and isinstance(rate, float | int) and rate > 0
    return f"drops units with probability {rate}" if is_on else ""


def _names(problem: "Problem", batch: Batch) -> Sequence[Any]:
    return problem.data.ids[batch.positions.numpy()].tolist()


def _named(inputs: Tree) -> dict[str, Tensor]:
    """The input tensors by their key or place."""
    leaves, _ = tree_flatten_with_path(inputs)
    return {keystr(path): leaf for path, leaf in leaves}


def _shapes(named: dict[str, Tensor]) -> str:
    """Shapes of one example, as in "['tokens'] (9,)"."""
    return ", ".join(f"{key} {tuple(x.shape[1:])}".strip() for key, x in named.items())


def _refuse_non_finite(tree: Tree, what: str, names: Sequence[Any]) -> None:
    for leaf in tree_leaves(tree):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        bad = ~leaf.isfinite().flatten(1).all(1) if leaf.ndim > 1 else ~leaf.isfinite()
        if bool(bad.any()):
            row = int(torch.nonzero(bad)[0, 0])
            raise NonFinite(
                found=f"{what} {names[row]} holds NaN or infinity.",
                why="It would make every score NaN.",
                remedy="Remove or repair the example.",
            )


def _check_targets(problem: "Problem", batch: Batch, outputs: Tensor) -> None:
    if batch.targets is not None:
        problem.loss.check_targets(batch.targets, outputs, names=_names(problem, batch))
    elif problem.loss.task != "unknown":
        raise BadData(
            found=f"The training data has no targets; the loss {problem.loss.name!r} needs them.",
            why="Without targets there is no loss to take the gradient of.",
            remedy='Pass (inputs, targets), or name the entry of a dict with target="...".',
        )


def _check_per_example(problem: "Problem", few: Batch) -> None:
    losses = problem.losses(problem.parameters, few)
    if losses.shape != (len(few),):
        raise NotPerExample(
            found=f"The loss returned shape {tuple(losses.shape)} for a batch of {len(few)}.",
            why="Influence needs one value per example; an average has lost who contributed what.",
            remedy='Pass a loss with reduction="none", for example '
            'loss=functools.partial(F.cross_entropy, reduction="none"), or a name such as '
            '"cross_entropy".',
        )
    tolerance = 1e3 * torch.finfo(losses.dtype).eps
    again = problem.losses(problem.parameters, few)
    if not torch.allclose(losses, again, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise NotDeterministic(
            found="Two calls on the same examples gave losses that differ by "
            f"{(losses - again).abs().max():.3g}; {blamed(problem, problem.parameters, few)}.",
            why="The gradient of a random loss is noise.",
            remedy="Call model.eval(), and take sampling and augmentation out of model and data.",
        )
    alone = [
        problem.losses(problem.parameters, problem.batch(row)) for row in few.positions.split(1)
    ]
    gaps = (losses - torch.cat(alone)).abs()
    if not torch.allclose(losses, torch.cat(alone), rtol=tolerance, atol=tolerance, equal_nan=True):
        raise NotPerExample(
            found=f"The loss of example {_names(problem, few)[int(gaps.argmax())]} changes by "
            f"{gaps.max():.3g} when it is alone in its batch instead of one of {len(few)}.",
            why="A loss that mixes the examples of a batch belongs to no single example.",
            remedy="Use a loss and a model that treat each example by itself.",
        )


def _total_loss(problem: "Problem", batch: Batch, outputs: Tensor) -> float:
    """Weighted sum of the losses of a batch, after looking at every input, label and loss."""
    names = _names(problem, batch)
    _refuse_non_finite((batch.inputs, batch.targets), "Training example", names)
    _check_targets(problem, batch, outputs)
    losses = problem.losses(problem.parameters, batch)
    _refuse_non_finite(losses, "The loss of training example", names)
    return float((batch.weights * losses).double().sum())
