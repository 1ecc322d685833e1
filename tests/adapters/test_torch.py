"""Any module: its parameters, its data in every form, and everything that is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from whence.adapters import make_problem
from whence.core.losses import LOSSES
from whence.core.problem import Problem
from whence.errors import (
    BadArgument,
    BadData,
    CannotRetrain,
    DeviceMismatch,
    NonFinite,
    NotDeterministic,
    NotPerExample,
    TrainMode,
    UnknownName,
    Unsupported,
    WhenceError,
)

N, D, C = 12, 5, 3
X = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % C


def network(*extra: nn.Module) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), *extra, nn.Linear(4, C))
    return layers.double().eval()


def problem_of(data: Any = None, model: nn.Module | None = None, **options: Any) -> Problem:
    data = (X, Y) if data is None else data
    return make_problem(model or network(), data, **({"loss": "cross_entropy"} | options))


def losses(problem: Problem) -> Tensor:
    return problem.losses(problem.parameters, problem.batch(torch.arange(len(problem)))).detach()


# ----------------------------------------------------------------------------- parameters


def test_all_parameters_that_require_a_gradient_are_chosen():
    model = network()
    model[0].bias.requires_grad_(False)
    problem = problem_of(model=model)
    assert problem.layout.names == ("0.weight", "2.weight", "2.bias")
    assert problem.size == 4 * D + 4 * C + C
    assert problem.facts()["parameters_total"] == problem.size + 4


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("2.*", ("2.weight", "2.bias")),
        (["0.bias", "*.bias"], ("0.bias", "2.bias")),
        (lambda name: name.endswith("weight"), ("0.weight", "2.weight")),
        ("*", ("0.weight", "0.bias", "2.weight", "2.bias")),
    ],
)
def test_parameters_are_chosen_by_pattern_or_predicate(chosen: Any, names: tuple[str, ...]):
    model = network()
    problem = problem_of(model=model, parameters=chosen)
    assert problem.layout.names == names
    named = dict(model.named_parameters())
    flat = torch.cat([named[name].flatten() for name in names])
    torch.testing.assert_close(problem.parameters, flat.detach(), rtol=0, atol=0)


def test_parameters_that_are_not_chosen_stay_and_have_no_gradient():
    model = network()
    part, whole = problem_of(model=model, parameters="2.*"), problem_of(model=model)
    torch.testing.assert_close(losses(part), losses(whole), rtol=0, atol=0)
    theta = part.parameters.clone().requires_grad_()
    part.objective(theta).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    whole_theta = whole.parameters.clone().requires_grad_()
    whole.objective(whole_theta).backward()
    torch.testing.assert_close(theta.grad, whole_theta.grad[-part.size :], rtol=0, atol=0)


def test_the_model_is_copied_in_value_and_never_changed():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    problem = problem_of(model=model)
    problem.objective(problem.parameters + 1)
    problem.outputs(torch.zeros(problem.size, dtype=torch.float64), X)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    with torch.no_grad():
        model[0].weight.zero_()
    assert problem.parameters[:5].abs().min() > 0


# ------------------------------------------------------------------ losses and the objective


def test_outputs_and_losses_are_those_of_the_module():
    model = network()
    problem = problem_of(model=model)
    torch.testing.assert_close(problem.outputs(problem.parameters, X), model(X))
    expected = F.cross_entropy(model(X), Y, reduction="none").detach()
    torch.testing.assert_close(losses(problem), expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_one_logit_may_have_an_axis_of_its_own(shape: tuple[int, ...]):
    model = nn.Sequential(nn.Linear(D, 1)).double()
    y = (torch.arange(N) % 2).reshape(shape)
    expected = F.binary_cross_entropy_with_logits(
        model(X).flatten(), y.flatten().double(), reduction="none"
    )
    problem = problem_of((X, y), model, loss="binary_cross_entropy")
    torch.testing.assert_close(losses(problem), expected.detach())


def test_the_objective_is_the_weighted_mean_loss_plus_the_decay():
    model = network()
    base = torch.rand(N, dtype=torch.float64)
    problem = problem_of(model=model, sample_weight=base, weight_decay=0.3)
    decay = 0.15 * sum((parameter**2).sum() for parameter in model.parameters())
    expected = (base * F.cross_entropy(model(X), Y, reduction="none")).sum() / N + decay
    torch.testing.assert_close(problem.objective(problem.parameters), expected.detach())
    w = torch.rand(N, dtype=torch.float64)
    weighted = (w * base * losses(problem)).sum()
    fixed = problem.objective(problem.parameters, w)
    torch.testing.assert_close(fixed, weighted / N + decay.detach())
    renormalised = problem_of(model=model, sample_weight=base, weight_decay=0.3, renormalize=True)
    torch.testing.assert_close(
        renormalised.objective(problem.parameters, w), weighted / w.sum() + decay.detach()
    )


def test_a_pattern_says_which_parameters_decay():
    model = network()
    problem = problem_of(model=model, weight_decay=2.0, regularizer="*weight")
    expected = (model[0].weight ** 2).sum() + (model[2].weight ** 2).sum()
    torch.testing.assert_close(problem.penalty(problem.parameters), expected.detach())


def test_a_callable_regulariser_is_added():
    model = network()
    problem = problem_of(model=model, regularizer=lambda named: named["2.bias"].exp().sum())
    torch.testing.assert_close(
        problem.penalty(problem.parameters), model[2].bias.exp().sum().detach()
    )


def test_balanced_classes_weigh_the_same():
    y = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    problem = problem_of((X, y), class_weight="balanced")
    sums = [float(problem.weights[y == c].sum()) for c in range(C)]
    assert sums == pytest.approx([N / C] * C)


def test_class_weights_multiply_sample_weights():
    base = np.linspace(0, 1, N)
    problem = problem_of(sample_weight=base, class_weight={1: 5.0})
    expected = base * np.where(Y == 1, 5.0, 1.0)
    np.testing.assert_allclose(problem.weights, expected, rtol=1e-15)


def test_a_loss_may_be_a_callable_a_name_or_a_loss():
    function = partial(F.cross_entropy, reduction="none", label_smoothing=0.0)
    model = network()
    alike = [problem_of(model=model, loss=loss) for loss in (function, LOSSES["cross_entropy"])]
    for problem in alike:
        torch.testing.assert_close(losses(problem), losses(problem_of(model=model)))
    assert alike[0].loss.name == "cross_entropy"


# ------------------------------------------------------------------------- forms of data


class Items(Dataset[tuple[Tensor, int]]):
    """Examples that are made one by one."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Named(Items):
    """The same, as dicts."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": X[index], "labels": int(Y[index])}


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "a list of two": lambda: [X, Y],
    "frames": lambda: (pd.DataFrame(X.numpy()), pd.Series(Y.numpy(), index=range(50, 50 + N))),
    "integers of another width": lambda: (X, Y.to(torch.int32)),
    "single precision": lambda: (X, Y.to(torch.uint8)),
    "a dict": lambda: {"input": X, "labels": Y},
    "a TensorDataset": lambda: TensorDataset(X, Y),
    "a Dataset": Items,
    "a Dataset of dicts": Named,
    "a DataLoader": lambda: DataLoader(Items(), batch_size=5),
    "a shuffling DataLoader": lambda: DataLoader(Items(), batch_size=5, shuffle=True),
    "a DataLoader of dicts": lambda: DataLoader(Named(), batch_size=4),
    "a DataLoader without batches": lambda: DataLoader(Items(), batch_size=None),
    "negative strides": lambda: (X.numpy()[::-1][::-1], Y.numpy()[::-1][::-1]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_the_data_is_the_same_problem(form: Callable[[], Any]):
    model = network()
    tensors, other = problem_of(model=model), problem_of(form(), model)
    torch.testing.assert_close(losses(other), losses(tensors), rtol=1e-12, atol=0)
    rows = torch.tensor([7, 2, 9])
    batch = other.batch(rows)
    torch.testing.assert_close(batch.targets, Y[rows])
    assert batch.positions.tolist() == [7, 2, 9]
    assert other.data.ids.tolist() == list(range(N))


def test_equal_data_have_equal_fingerprints_and_unequal_data_do_not():
    model = network()
    prints = [problem_of(form(), model).fingerprint() for form in (lambda: (X, Y), lambda: Items())]
    assert prints[0] == prints[1]
    changed = X.clone()
    changed[3, 3] += 1e-9
    other = problem_of((changed, Y), model).fingerprint()
    assert other["data"] != prints[0]["data"]
    assert other["parameters"] == prints[0]["parameters"]


class Pairs(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(2, C)
        self.right = nn.Linear(3, C)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)


def test_several_inputs_go_by_position_or_by_name():
    model = Pairs().double()
    a, b = X[:, :2], X[:, 2:]
    expected = F.cross_entropy(model(a, b), Y, reduction="none").detach()
    by_position = problem_of((a, b, Y), model)
    by_name = problem_of({"b": b, "y": Y, "a": a}, model)
    torch.testing.assert_close(losses(by_position), expected)
    torch.testing.assert_close(losses(by_name), expected)
    assert by_position.queries((a[:2], b[:2], Y[:2])).inputs[1].shape == (2, 3)
    assert set(by_name.queries({"b": b[:2], "a": a[:2], "y": Y[:2]}).arrays()) == {
        "inputs/a",
        "inputs/b",
        "targets",
    }


def test_a_target_of_any_name_can_be_named():
    problem = problem_of({"input": X, "species": Y}, target="species")
    torch.testing.assert_close(problem.batch(torch.arange(N)).targets, Y)


def test_forward_says_how_the_model_is_called():
    model = Pairs().double()
    problem = problem_of((X, Y), model, forward=lambda m, x: m(x[:, :2], x[:, 2:]))
    expected = F.cross_entropy(model(X[:, :2], X[:, 2:]), Y, reduction="none").detach()
    torch.testing.assert_close(losses(problem), expected)


def test_inputs_take_the_precision_of_the_model():
    model = network().float()
    problem = problem_of((X, Y), model)
    assert problem.batch(torch.arange(2)).inputs.dtype == torch.float32
    assert problem.dtype == torch.float32
    assert problem.queries(X[:2]).inputs.dtype == torch.float32


def test_token_ids_stay_integers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, C)).double().eval()
    tokens = torch.randint(0, 10, (N, 2), dtype=torch.int32)
    problem = problem_of((tokens, Y), model)
    assert problem.batch(torch.arange(2)).inputs.dtype == torch.int64


# --------------------------------------------------------------------------- ids and queries


def test_ids_name_the_examples_in_every_message():
    broken = X.clone()
    broken[4] = torch.inf
    with pytest.raises(NonFinite, match="example fig4 "):
        problem_of((broken, Y), ids=[f"fig{i}" for i in range(N)])


@pytest.mark.parametrize("ids", [range(N - 1), [0] * N, np.zeros((N, 2))], ids=str)
def test_ids_are_one_unique_name_for_each_example(ids: Any):
    with pytest.raises(BadData, match=f"ids .* for {N} examples"):
        problem_of(ids=ids)


def test_queries_without_labels_take_the_answer_of_the_model():
    problem = problem_of()
    queries = problem.queries(X[:4])
    assert not queries.are_labelled
    expected = problem.outputs(problem.parameters, X[:4]).argmax(1)
    torch.testing.assert_close(queries.targets, expected)
    assert problem.queries((X[:4], Y[:4])).are_labelled


@pytest.mark.parametrize(
    ("queries", "error", "words"),
    [
        ((X[:2, :4], Y[:2]), BadData, r"query has the shape \(4,\)"),
        (X[0], BadData, r"X\[0:1\]"),
        ((X[:2], torch.tensor([0, 3])), BadData, "label 3"),
        ((X[:0], Y[:0]), BadData, "empty"),
        ((X[:2], Y[:3]), BadData, "unequal lengths"),
        ((X[:2] * torch.nan, Y[:2]), NonFinite, "Query 0"),
        ("what?", BadData, "Cannot read str"),
    ],
)
def test_wrong_queries_are_refused(queries: Any, error: type[WhenceError], words: str):
    with pytest.raises(error, match=words):
        problem_of().queries(queries)


# ---------------------------------------------------------------------------------- training


def test_a_training_function_returns_a_module_a_state_or_a_vector():
    def module(weights: Tensor, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return network()

    def state(weights: Tensor, seed: int) -> dict[str, Tensor]:
        return module(weights, seed).state_dict()

    def flat(weights: Tensor, seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(module(weights, seed).parameters())

    weights = torch.ones(2, N)
    found = [
        problem_of(training=way).retrain(weights, seed=3).parameters
        for way in (module, state, flat)
    ]
    assert found[0].shape == (2, problem_of().size)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_without_a_training_there_is_nothing_to_retrain():
    with pytest.raises(CannotRetrain, match="training="):
        problem_of().retrain(torch.ones(N))


# ---------------------------------------------------------------------------------- refusals


def with_nan(row: int) -> Tensor:
    broken = X.clone()
    broken[row, 0] = torch.nan
    return broken


class Mixes(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out - out.mean(0)


class Noisy(nn.Module):
    """Adds noise even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out + torch.randn_like(out)


class Endless(IterableDataset[Tensor]):
    """Has no length."""

    def __iter__(self) -> Any:
        yield X[0], Y[0]


def untracked() -> nn.Module:
    return network(nn.BatchNorm1d(4, track_running_stats=False))


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def infinite() -> nn.Module:
    model = network()
    nn.init.constant_(model[2].bias, torch.inf)
    return model


def half_and_half() -> nn.Module:
    model = network()
    model[2].float()
    return model


REFUSALS: dict[str, tuple[Callable[[], Problem], type[WhenceError], str]] = {
    "no loss": (lambda: problem_of(loss=None), BadArgument, 'loss="cross_entropy"'),
    "unknown loss": (lambda: problem_of(loss="cross_entropi"), UnknownName, "Did you mean"),
    "averaged loss": (lambda: problem_of(loss=F.cross_entropy), NotPerExample, r"shape \(\)"),
    "mixing loss": (
        lambda: problem_of(loss=lambda f, y: F.cross_entropy(f, y, reduction="none") / len(y)),
        NotPerExample,
        "alone in its batch",
    ),
    "mixing model": (lambda: problem_of(model=Mixes().double()), NotPerExample, "alone in its"),
    "random model": (lambda: problem_of(model=Noisy().double()), NotDeterministic, "differ by"),
    "dropout": (
        lambda: problem_of(model=network(nn.Dropout(0.25)).train()),
        TrainMode,
        r"2 \(Dropout\) drops units with probability 0\.25",
    ),
    "batch norm in train mode": (
        lambda: problem_of(model=network(nn.BatchNorm1d(4)).train()),
        TrainMode,
        "BatchNorm1d",
    ),
    "batch norm without statistics": (
        lambda: problem_of(model=untracked()),
        TrainMode,
        "statistics of its batch",
    ),
    "NaN in a later example": (
        lambda: problem_of((with_nan(10), Y)), NonFinite, "Training example 10",
    ),
    "NaN in the target": (
        lambda: problem_of((X, with_nan(8)[:, :C]), loss="mse"), NonFinite, "example 8",
    ),
    "NaN in a Dataset": (
        lambda: problem_of(TensorDataset(with_nan(11), Y)), NonFinite, "example 11",
    ),
    "infinite loss": (
        lambda: problem_of((X.abs(), Y), loss=lambda f, y: (X.abs()[: len(f), 0] * 0 + 1) / 0),
        NonFinite,
        "loss of training example 0",
    ),
    "label too large": (
        lambda: problem_of((X, Y + (torch.arange(N) == 9) * 5)), BadData, "Example 9 .* label 5",
    ),
    "negative label": (lambda: problem_of((X, Y - 1)), BadData, "0 to 2"),
    "labels as numbers": (lambda: problem_of((X, Y.double())), BadData, "float64"),
    "labels of a hinge": (
        lambda: problem_of((X, Y % 2), nn.Linear(D, 1).double(), loss="hinge"), BadData, "-1 and 1",
    ),
    "unequal lengths": (lambda: problem_of((X, Y[:7])), BadData, "unequal lengths: 7, 12"),
    "no examples": (lambda: problem_of((X[:0], Y[:0])), BadData, "empty"),
    "an empty Dataset": (lambda: problem_of(TensorDataset(X[:0], Y[:0])), BadData, "empty"),
    "no targets": (lambda: problem_of(X), BadData, "has no targets"),
    "a single number": (lambda: problem_of((X, 3)), BadData, "single number"),
    "no length": (lambda: problem_of(Endless()), BadData, "Endless has no length"),
    "words": (lambda: problem_of((["a", "b"], [0, 1])), BadData, "Cannot read"),
    "missing target": (
        lambda: problem_of({"input": X, "labels": Y}, target="label"), BadData, "input, labels",
    ),
    "too few weights": (lambda: problem_of(sample_weight=[1.0]), BadData, "12 examples"),
    "negative weight": (
        lambda: problem_of(sample_weight=-np.ones(N)), BadData, "smallest -1",
    ),
    "class weight of numbers": (
        lambda: problem_of((X, X[:, :C]), loss="mse", class_weight="balanced"), BadData, "class",
    ),
    "unknown class weight": (lambda: problem_of(class_weight="even"), BadArgument, "balanced"),
    "negative decay": (lambda: problem_of(weight_decay=-1.0), BadArgument, "weight_decay is -1"),
    "pattern of nothing": (lambda: problem_of(parameters="head.*"), BadArgument, "0.weight"),
    "no parameters": (lambda: problem_of(parameters=lambda name: False), BadData, "None of"),
    "frozen model": (lambda: problem_of(model=frozen()), BadData, "None of the model's 4"),
    "meta device": (lambda: problem_of(model=network().to("meta")), DeviceMismatch, "meta"),
    "infinite parameter": (lambda: problem_of(model=infinite()), NonFinite, "2.bias"),
    "two precisions": (lambda: problem_of(model=half_and_half()), BadData, "float32, "),
    "data elsewhere": (lambda: problem_of((X.to("meta"), Y)), DeviceMismatch, "meta"),
    "not a model": (lambda: make_problem(len, (X, Y)), Unsupported, "builtin_function"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_would_make_scores_wrong_is_refused(
    make: Callable[[], Problem], error: type[WhenceError], words: str
):
    with pytest.raises(error, match=words) as caught:
        make()
    assert caught.value.found
    assert caught.value.why
    assert caught.value.remedy


def test_dropout_and_batch_statistics_are_fine_in_eval_mode():
    assert len(problem_of(model=network(nn.Dropout(0.5), nn.BatchNorm1d(4)))) == N


def test_the_mode_is_looked_at_again_at_every_check():
    model = network(nn.Dropout(0.5))
    problem = problem_of(model=model)
    model.train()
    with pytest.raises(TrainMode):
        problem.check()
