"""The objective, what is refused before any cost, queries, and what a problem says of itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.utils.data import Dataset

import problems
from problems import ALL, CONVEX
from whence.adapters import make_problem
from whence.core.problem import Problem
from whence.errors import (
    BadData,
    NonFinite,
    NotDeterministic,
    NotPerExample,
    ProblemError,
    TrainMode,
)

X = torch.arange(24.0).reshape(8, 3) / 10
Y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])


def logistic_problem(
    model: nn.Module | None = None, data: object = None, **options: Any
) -> Problem:
    options = {"loss": "cross_entropy"} | options
    return make_problem(model or nn.Linear(3, 2), (X, Y) if data is None else data, **options)


# ------------------------------------------------------------------ the objective


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", CONVEX)
def test_the_objective_is_the_equation(name, renormalize):
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    random = np.random.default_rng(0)
    theta = random.standard_normal(case.problem.size)
    w = random.uniform(0, 2, len(case.problem))
    flat = torch.from_numpy(case.oracle.flat(theta))
    value = case.problem.objective(flat, torch.from_numpy(w))
    assert value.item() == pytest.approx(case.oracle.objective(theta, w), rel=1e-12)
    ones = case.oracle.objective(theta, np.ones(len(w)))
    assert case.problem.objective(flat).item() == pytest.approx(ones, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_labels_of_all_examples_are_those_of_each(name, monkeypatch):
    monkeypatch.setattr("whence.core.problem._LABELS_AT_ONCE", 7)  # several pieces
    problem = ALL[name]().problem
    assert problem.labels().tolist() == [problem.label_of(i) or "" for i in range(len(problem))]


@pytest.mark.parametrize("name", CONVEX)
def test_losses_and_outputs_are_those_of_each_example(name):
    case = CONVEX[name]()
    problem = case.problem
    theta = case.oracle.optimum()
    batch = problem.batch(torch.arange(len(problem)))
    outputs = problem.outputs(problem.parameters, batch.inputs)
    assert_allclose(outputs, case.oracle.predict(theta), atol=1e-12)
    assert_allclose(
        problem.losses(problem.parameters, batch), case.oracle.losses(theta), atol=1e-12
    )
    assert_allclose(batch.weights, case.oracle.base)


@pytest.mark.parametrize("name", ALL)
def test_outputs_are_those_of_the_module_itself(name):
    problem = ALL[name]().problem
    inputs, _ = problem.data.take(torch.arange(5))
    expected = problem.model(**inputs) if isinstance(inputs, dict) else problem.model(inputs)
    assert_allclose(problem.outputs(problem.parameters, inputs).detach(), expected.detach())


@pytest.mark.parametrize("size", [1, 7, 64, None])
def test_batches_visit_every_example_once_and_in_order(size):
    problem = problems.class_weighted().problem
    batches = list(problem.batches(size))
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(50))
    assert torch.equal(torch.cat([batch.weights for batch in batches]), problem.weights)
    assert size is None or max(map(len, batches)) <= size
    rows = torch.tensor([9, 3, 30])
    found = torch.cat([batch.inputs for batch in problem.batches(2, positions=rows)])
    assert torch.equal(found, problem.data.take(rows)[0])


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens"])
def test_batches_fit_the_working_memory_whatever_goes_along(name, monkeypatch):
    problem = replace(ALL[name]().problem)
    assert problem.batch_size() == len(problem)
    assert problem.batch_size(stack=10**9) == 1
    monkeypatch.setattr("whence.core.problem._WORKING_BYTES", 40_000)
    sizes = [problem.batch_size(stack) for stack in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 1


def test_the_problem_keeps_the_parameters_that_the_model_had():
    model = nn.Linear(3, 2)
    problem = logistic_problem(model)
    expected = problem.outputs(problem.parameters, X)
    with torch.no_grad():
        model.weight += 1
    assert torch.equal(problem.outputs(problem.parameters, X), expected)


def test_tied_weights_are_one_parameter_and_move_together():
    problem = problems.tied().problem
    assert problem.layout.names == ("embedding.weight", "mix.weight", "mix.bias")
    inputs, _ = problem.data.take(torch.arange(2))
    zero = torch.zeros_like(problem.parameters)
    assert not problem.outputs(zero, inputs).any()
    theta = problem.parameters.clone().requires_grad_(True)
    problem.outputs(theta, inputs).sum().backward()
    copied = problems.TiedLanguageModel().double()
    copied.load_state_dict(problem.model.state_dict())
    copied(inputs).sum().backward()
    assert_allclose(theta.grad[:28].reshape(7, 4), copied.embedding.weight.grad, atol=1e-12)


def test_parameters_that_were_not_chosen_stay_where_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    problem = logistic_problem(model, parameters="2.*")
    assert problem.layout.names == ("2.weight", "2.bias")
    theta = problem.parameters + 1
    hidden = torch.tanh(model[0](X))
    expected = hidden @ (model[2].weight + 1).T + model[2].bias + 1
    assert_allclose(problem.outputs(theta, X).detach(), expected.detach(), rtol=1e-5)


class Masked(nn.Module):
    """Adds up the entries that a boolean mask does not hide."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return self.head(x * ~hidden)


def test_boolean_inputs_stay_boolean():
    """~ of an integer is another integer, and no error would tell."""
    model, hidden = Masked(), X > 1
    problem = logistic_problem(model, (X, hidden, Y))
    expected = model(X, hidden)
    inputs = problem.batch(torch.arange(8)).inputs
    assert_allclose(problem.outputs(problem.parameters, inputs).detach(), expected.detach())


# ------------------------------------------------------------------ what is refused


class Sampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.randn(x.shape))


class Centred(nn.Module):
    """Subtracts the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))


class Augmented(Dataset):
    """Draws another version of its images at every visit."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return X[row] + torch.randn(3), Y[row]


def with_dropout(rate: float) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(rate), nn.Linear(4, 2))


def with_norm(**options: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, **options), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_dropout(0.3), "1 .Dropout. drops units with probability 0.3"),
        (with_norm(), "statistics of its batch"),
        (with_norm(track_running_stats=False).eval(), "statistics of its batch"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.AlphaDropout(0.1)), nn.Linear(3, 2)), "1.0"),
    ],
)
def test_random_or_mixing_layers_are_refused_with_the_remedy(model, message):
    with pytest.raises(TrainMode, match=message) as refused:
        logistic_problem(model)
    assert "model.eval()" in refused.value.remedy


@pytest.mark.parametrize("model", [with_dropout(0.3).eval(), with_dropout(0.0), with_norm().eval()])
def test_the_same_layers_pass_when_they_are_switched_off(model):
    assert logistic_problem(model).size > 0


def test_switching_to_training_afterwards_is_noticed():
    model = with_dropout(0.3).eval()
    problem = logistic_problem(model)
    model.train()
    with pytest.raises(TrainMode):
        problem.check()
    model.eval()
    problem.check()


def test_a_loss_that_is_already_averaged_is_refused_with_the_remedy():
    with pytest.raises(NotPerExample, match=r"shape \(\) for a batch of 6") as refused:
        logistic_problem(loss=F.cross_entropy)
    assert 'reduction="none"' in refused.value.remedy
    logistic_problem(loss=partial(F.cross_entropy, reduction="none"))


def test_a_loss_for_each_output_is_refused():
    loss = partial(F.mse_loss, reduction="none")
    with pytest.raises(NotPerExample, match=r"shape \(6, 2\)"):
        logistic_problem(data=(X, torch.zeros(8, 2)), loss=loss)


def test_a_model_that_mixes_examples_is_refused():
    with pytest.raises(NotPerExample, match="alone in its batch"):
        logistic_problem(Centred())


@pytest.mark.parametrize(("model", "data"), [(Sampled(), None), (None, Augmented())])
def test_chance_in_model_or_data_is_refused(model, data):
    with pytest.raises((NotDeterministic, NotPerExample)):
        logistic_problem(model, data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [2, 7])
def test_a_number_that_is_none_names_its_example(bad, row):
    x = X.clone()
    x[row, 1] = bad
    with pytest.raises(NonFinite, match=f"Training example {'abcdefgh'[row]} "):
        logistic_problem(data=(x, Y), ids=list("abcdefgh"))
    y = torch.zeros(8)
    y[row] = bad
    with pytest.raises(NonFinite, match=f"Training example {row} "):
        logistic_problem(nn.Linear(3, 1), (X, y), loss="mse")


def test_a_loss_that_is_no_number_names_its_example():
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets == 1, outputs[:, 0], outputs[:, 1] / 0)

    with pytest.raises(NonFinite, match="loss of training example 0"):
        logistic_problem(loss=loss)


@pytest.mark.parametrize("row", [1, 7])
def test_a_label_out_of_range_names_its_example(row):
    y = Y.clone()
    y[row] = 2
    with pytest.raises(BadData, match=f"Example {row} has the label 2"):
        logistic_problem(data=(X, y))


def test_a_loss_that_needs_targets_does_not_go_without():
    with pytest.raises(BadData, match="no targets"):
        logistic_problem(data=X)


def test_a_loss_of_the_outputs_alone_does_without_targets():
    def energy(outputs: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is None
        return outputs.pow(2).sum(1)

    problem = logistic_problem(data=(X, None), loss=energy, weight_decay=0.1)
    assert torch.autograd.functional.hessian(problem.objective, problem.parameters).any()


def test_the_check_reports_the_mean_loss():
    problem = problems.class_weighted().problem
    expected = problem.objective(problem.parameters) - problem.penalty(problem.parameters)
    found = problem.check()
    assert found["mean_loss"] == pytest.approx(expected.item())
    assert found["examples"] == 50


# ------------------------------------------------------------------ queries


def test_queries_take_the_type_of_the_model_and_keep_their_labels():
    problem = logistic_problem()
    queries = problem.queries((X[:2].double().numpy(), [1, 0]))
    assert queries.inputs.dtype == torch.float32
    assert queries.targets.tolist() == [1, 0]
    assert queries.are_labelled
    assert len(queries) == 2
    assert problem.queries(queries) is queries


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("multinomial", lambda f: f.argmax(1)),
        ("logistic", lambda f: (f[:, 0] > 0).double()),
        ("smooth_hinge", lambda f: f[:, 0].sign()),
        ("ridge", lambda f: f),
    ],
)
def test_queries_without_labels_get_the_answer_of_the_model(name, answer: Callable):
    case = CONVEX[name]()
    queries = case.problem.queries(case.queries[0])
    outputs = case.problem.outputs(case.problem.parameters, case.queries[0])
    assert torch.equal(queries.targets, answer(outputs))
    assert not queries.are_labelled


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (X[:2, :2], BadData, r"shape \(2,\).*training example .*\(3,\)"),
        (X[0], BadData, "leading axis"),
        ((X[:2], X[:2], Y[:2]), BadData, r"\(3,\), \[1\] \(3,\)"),
        ({"x": X[:2], "y": Y[:2], "z": X[:2]}, BadData, "shape"),
        ((X[:2] / 0, Y[:2]), NonFinite, "Query 0"),
        ((X[:2], torch.tensor([0, 2])), BadData, "Example 1 has the label 2"),
        ((X[:0], Y[:0]), BadData, "empty"),
        ((X[:2], Y[:3]), BadData, "unequal"),
    ],
)
def test_queries_that_do_not_look_like_the_training_data_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        logistic_problem().queries(source)


def test_a_dict_of_queries_needs_the_names_of_the_training_data():
    problem = problems.tokens().problem
    inputs, targets = problems.tokens().queries
    wrong = {"tokens": inputs["tokens"], "msk": inputs["mask"]}
    with pytest.raises(ProblemError):
        problem.queries((wrong, targets))


def test_token_queries_may_be_longer_than_the_training_examples():
    problem = problems.tied().problem
    tokens = torch.randint(0, 7, (2, 9), generator=torch.Generator().manual_seed(0))
    assert len(problem.queries((tokens, tokens))) == 2


def test_queries_become_plain_arrays_by_name():
    case = problems.tokens()
    arrays = case.problem.queries(case.queries).arrays()
    assert set(arrays) == {"inputs/tokens", "inputs/mask", "targets"}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert set(logistic_problem().queries(X).arrays()) == {"inputs", "targets"}


# ------------------------------------------------------------------ variants


def test_the_same_problem_elsewhere():
    problem = problems.mlp().problem
    moved = problem.at(problem.parameters + 1)
    assert torch.equal(moved.parameters, problem.parameters + 1)
    assert moved.data is problem.data
    single = problem.to(dtype=torch.float32)
    assert single.dtype == torch.float32
    assert single.weights.dtype == torch.float32
    assert problem.dtype == torch.float64
    assert next(problem.model.parameters()).dtype == torch.float64
    assert single.objective(single.parameters).item() == pytest.approx(
        problem.objective(problem.parameters).item(), rel=1e-5
    )


# ------------------------------------------------------------------ words


def test_facts_are_plain_json():
    facts = problems.class_weighted().problem.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["parameters"] == facts["parameters_total"] == 4
    assert facts["examples"] == 50
    assert facts["loss"] == "binary_cross_entropy"
    assert facts["renormalize"] is False


def test_facts_tell_how_many_parameters_were_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    facts = logistic_problem(model, parameters="1.*").facts()
    assert (facts["parameters"], facts["parameters_total"]) == (10, 26)


def test_the_fingerprint_follows_parameters_and_data():
    problem = problems.logistic().problem
    again = replace(problem)
    assert again.fingerprint() == problem.fingerprint()
    moved = problem.at(problem.parameters + 1e-9).fingerprint()
    assert moved["parameters"] != problem.fingerprint()["parameters"]
    assert moved["data"] == problem.fingerprint()["data"]
    part = problems.rearranged(problems.logistic(), torch.arange(59)).fingerprint()
    assert part["data"] != problem.fingerprint()["data"]


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [("multinomial", 2, "2"), ("smooth_hinge", -1.0, "-1"), ("ridge", 0.25, "0.25")],
)
def test_labels_without_names_are_numbers(name, target, words):
    assert CONVEX[name]().problem.label_name(torch.tensor(target)) == words


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("multinomial", 2, "green"),
        ("logistic", 0, "red"),
        ("logistic", 1.0, "blue"),
        ("smooth_hinge", -1.0, "red"),
        ("smooth_hinge", 1.0, "blue"),
        ("ridge", 2.0, "2"),
    ],
)
def test_labels_have_names(name, target, words):
    named = replace(CONVEX[name]().problem, label_names=("red", "blue", "green"))
    assert named.label_name(torch.tensor(target)) == words


def test_labels_of_training_examples_and_predictions_in_words():
    case = problems.multinomial()
    named = replace(case.problem, label_names=("red", "blue", "green"))
    x, y = case.problem.data.take(torch.tensor([7]))
    assert named.label_of(7) == ("red", "blue", "green")[int(y)]
    logits = torch.from_numpy(case.oracle.predict(case.oracle.optimum())[7])
    found = named.prediction_of(x[0])
    assert found["label"] == ("red", "blue", "green")[int(logits.argmax())]
    assert found["confidence"] == pytest.approx(float(logits.softmax(0).max()))
    assert found["value"] is None


def test_predictions_of_one_number_have_a_value():
    case = problems.logistic()
    logit = float(case.oracle.predict(case.oracle.optimum())[3, 0])
    found = case.problem.prediction_of(case.problem.data.take(torch.tensor([3]))[0][0].numpy())
    assert found["value"] == pytest.approx(logit)
    assert found["confidence"] == pytest.approx(1 / (1 + np.exp(-abs(logit))))
    assert found["label"] == str(int(logit > 0))


def test_outputs_of_unknown_meaning_have_no_label():
    problem = logistic_problem(loss=partial(F.cross_entropy, reduction="none"))
    assert problem.prediction_of(X[0]) == {"label": None, "confidence": None, "value": None}


def test_examples_can_be_shown():
    problem = problems.conv().problem
    assert problem.show(3)["kind"] == "image"
    assert problem.show_query(problems.conv().queries[0][0])["kind"] == "image"
    shown = replace(problem, display=lambda inputs, target: f"class {int(target)}").show(3)
    assert shown["kind"] == "text"
    assert shown["text"].startswith("class ")
    row = replace(problems.ridge().problem, display={"feature_names": list("abcde")}).show(0)
    assert [name for name, _ in row["cells"]] == list("abcde")


def test_some_of_the_queries_keep_their_ids_and_targets():
    problem = make_problem(
        nn.Linear(2, 2).double(),
        (torch.eye(2).double(), torch.tensor([0, 1])),
        loss="cross_entropy",
    )
    asked = problem.queries((torch.arange(6).reshape(3, 2).double(), torch.tensor([0, 1, 1])))
    some = asked.take([2, 0])
    assert some.ids.tolist() == [2, 0]
    assert some.targets.tolist() == [1, 0]
    assert some.inputs.tolist() == [[4.0, 5.0], [0.0, 1.0]]
