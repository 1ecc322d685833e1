"""What a text is, over which axis a loss adds up, and one answer by forward and reverse mode."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import texts
from texts import LENGTH, VOCABULARY, TinyGPT, classified, language_model, seeded
from whence.adapters import make_problem
from whence.calculus import tokens
from whence.calculus.gradients import inner
from whence.calculus.tokens import find_text, position_axis, position_slopes, target_shift
from whence.core.problem import Problem

ONE = torch.tensor([3])


class OfInputs(nn.Module):
    """Any inputs by name, one of them looked up."""

    def __init__(self, looked_up: str, padding: int | None = None) -> None:
        super().__init__()
        self.looked_up = looked_up
        self.table = nn.Embedding(VOCABULARY, 3, padding_idx=padding)
        self.head = nn.Linear(3, 2)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.head(self.table(inputs[self.looked_up]).mean(1))


def problem_of(model: OfInputs, **inputs: Tensor) -> Problem:
    labels = torch.arange(5) % 2
    return make_problem(seeded(lambda: model), (inputs, labels), loss="cross_entropy")


def test_the_text_is_the_input_that_is_looked_up() -> None:
    text, other = texts.drawn(5), torch.ones(5, 4, dtype=torch.int64)
    problem = problem_of(OfInputs("b"), a=other, b=text)
    found = find_text(problem, problem.batch(ONE))
    assert torch.equal(found.ids, text[3])
    assert (found.lookups, found.vocabulary) == ((0,), VOCABULARY)


def test_input_ids_are_the_text_whatever_else_is_looked_up() -> None:
    text, kinds = texts.drawn(5), torch.zeros(5, LENGTH, dtype=torch.int64)
    problem = problem_of(OfInputs("kinds"), kinds=kinds, input_ids=text)
    found = find_text(problem, problem.batch(ONE))
    assert torch.equal(found.ids, text[3])
    assert (found.lookups, found.vocabulary) == ((), None)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("attention_mask", [1, 1, 1, 1, 0, 0, 0]),
        ("mask", [True, True, True, True, False, False, False]),
        ("src_key_padding_mask", [False, False, False, False, True, True, True]),
    ],
)
def test_a_mask_says_what_is_padding(name: str, values: list[Any]) -> None:
    mask = torch.tensor([values] * 5)
    problem = problem_of(OfInputs("tokens"), tokens=texts.drawn(5), **{name: mask})
    found = find_text(problem, problem.batch(ONE))
    assert found.is_padding.tolist() == [False] * 4 + [True] * 3


def test_a_table_says_which_token_is_padding() -> None:
    text = texts.drawn(5)
    text[:, 5:] = 2
    problem = problem_of(OfInputs("tokens", padding=2), tokens=text)
    found = find_text(problem, problem.batch(ONE))
    assert torch.equal(found.is_padding, text[3] == 2)


# ------------------------------------------------------------------ positions


def with_loss(function: Any, model: type = TinyGPT) -> Problem:
    return language_model(model, loss=function).problem


def first_two_coupled(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.sum(1) + losses[:, 0] * losses[:, 1]


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none").logsumexp(1)


@pytest.mark.parametrize("function", [first_two_coupled, worst])
def test_a_loss_that_couples_positions_is_no_sum_over_them(function: Any) -> None:
    problem = with_loss(function)
    assert position_axis(problem, problem.batch(ONE)) is None


def test_classes_are_not_taken_for_as_many_positions() -> None:
    """As many positions as words: softmax couples words, and so tells them from positions."""

    class TimesFirst(TinyGPT):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(4, LENGTH - 1)

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).transpose(1, 2)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets % 6, reduction="none").sum(1)

    problem = with_loss(loss, TimesFirst)
    assert position_axis(problem, problem.batch(torch.tensor([2]))) == 1


def test_one_label_a_text_has_no_positions() -> None:
    problem = classified().problem
    assert position_axis(problem, problem.batch(ONE)) is None


def test_forward_and_reverse_mode_give_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = language_model().problem
    batch = problem.batch(ONE)
    psi = torch.randn(3, problem.size, generator=torch.Generator().manual_seed(0)).double()
    total = inner(problem, psi, batch)[:, 0]
    axis = position_axis(problem, batch)
    assert (axis, target_shift(problem, batch, axis)) == (2, 0)
    reverse = tokens._by_reverse_passes  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(tokens, "_by_reverse_passes", None)  # forward mode has to do without it
    forward = position_slopes(problem, psi, batch, axis=axis, total=total)
    monkeypatch.setattr(tokens, "_by_reverse_passes", reverse)
    monkeypatch.setattr(tokens, "jvp", None)
    again = position_slopes(problem, psi, batch, axis=axis, total=total)
    torch.testing.assert_close(forward, again, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(forward.sum(1), total, rtol=1e-10, atol=1e-13)


def test_forward_mode_that_does_not_add_up_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = language_model().problem
    batch = problem.batch(ONE)
    psi = torch.ones(1, problem.size, dtype=torch.float64)
    total = inner(problem, psi, batch)[:, 0]
    right = position_slopes(problem, psi, batch, axis=2, total=total)
    monkeypatch.setattr(tokens, "jvp", lambda *_: (None, 2 * right[0]))
    found = position_slopes(problem, psi, batch, axis=2, total=total)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)
