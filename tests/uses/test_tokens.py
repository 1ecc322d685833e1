"""Effects of tokens add up to those of examples, and are derivatives of training again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import problems
import stories
import texts
from problems import Case
from texts import Classifier, TinyGPT, classified, language_model, seeded
from whence.adapters import make_problem
from whence.calculus.gradients import measure
from whence.calculus.retraining import NewtonTraining
from whence.core.changes import replacement
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, NonFinite, UnknownName, Unsupported
from whence.explanation import explain, fit
from whence.methods.base import Fitted, Method
from whence.methods.influence import Influence
from whence.sections import Table, Tokens
from whence.uses.perturbation import perturb
from whence.uses.tokens import has_tokens, token_effects

EXACT = Influence("exact", removal="first_order")


class NoForward(torch.autograd.Function):
    """Identity with a reverse rule, and none for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope


class ReverseOnly(TinyGPT):
    def states(self, tokens: Tensor) -> Tensor:
        return NoForward.apply(super().states(tokens))


class TimesFirst(TinyGPT):
    """(B, T, C), as of Hugging Face."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).transpose(1, 2)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the positions that count."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.sum(1) / (targets >= 0).sum(1)


def shifting_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Positions last but one axis, and the target of a position one further."""
    return mean_loss(outputs[:, :-1].transpose(1, 2), targets[:, 1:])


def shifted() -> Case:
    """Targets are the tokens themselves."""
    text = texts.drawn()
    text[1::2, -2:] = 0
    labels = text.masked_fill(text == 0, -100)
    problem = make_problem(
        seeded(TimesFirst),
        (text[:12], labels[:12]),
        loss=shifting_loss,
        weight_decay=0.1,
        display=texts.DISPLAY,
    )
    return Case(problem, (text[12:], labels[12:]))


LANGUAGE_MODELS = {
    "tied": problems.tied,
    "attention": language_model,
    "mean over positions": lambda: language_model(loss=mean_loss),
    "shifted by the loss": shifted,
    "no forward mode": lambda: language_model(ReverseOnly),
    "weighted": lambda: language_model(sample_weight=1 + torch.arange(12).double() % 3),
}


def damped(name: str = "attention") -> tuple[Case, Fitted]:
    """No model here is at its optimum: the curvature is Gauss-Newton's, and positive."""
    case = LANGUAGE_MODELS[name]()
    return case, fit(case.problem, Influence("identity"))


# ------------------------------------------------------------------ by the loss


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_positions_add_up_to_the_first_order_effect(name: str, renormalize: bool) -> None:
    case = LANGUAGE_MODELS[name]()
    problem = replace(case.problem, renormalize=renormalize)
    method = Influence("identity", removal="first_order")
    effects = explain(problem, case.queries, method=method).values
    fixed = explain(case.problem, case.queries, method=method).values
    for example in (2, 3):
        found = token_effects(problem, case.queries, example=example, method=method)
        assert found.by == "loss"
        scale = np.abs(found.values).sum()
        np.testing.assert_allclose(found.effect, effects[:, example], atol=1e-10 * scale)
        np.testing.assert_allclose(found.sum, fixed[:, example], atol=1e-10 * scale)
        assert bool(found.report["warnings"]) >= renormalize


def test_a_curvature_enters_as_it_does_in_effects() -> None:
    case = problems.tied()
    effects = explain(case.problem, case.queries, method=EXACT).values
    found = token_effects(case.problem, case.queries, example=5)
    np.testing.assert_allclose(found.sum, effects[:, 5], rtol=1e-8)


@pytest.mark.parametrize("name", ["attention", "shifted by the loss"])
def test_a_position_has_the_effect_of_a_loss_without_it(name: str) -> None:
    """The loss is linear in positions: ignoring one takes its part out of psi . grad loss."""
    case, _ = damped(name)
    sums = case.problem.loss.function
    if name != "attention":  # a mean would be taken over fewer positions

        def sums(outputs: Tensor, targets: Tensor) -> Tensor:
            return shifting_loss(outputs, targets) * (targets[:, 1:] >= 0).sum(1)

    problem = replace(case.problem, loss=replace(case.problem.loss, function=sums))
    found = token_effects(problem, case.queries, example=2, method="identity")
    inputs, targets = problem.data.take(torch.arange(12))
    for column, place in enumerate(found.places):
        without = targets.clone()
        without[2, place] = -100
        data = problem.read((inputs, without))
        fewer = token_effects(
            replace(problem, data=data), case.queries, example=2, method="identity"
        )
        expected = found.values[:, column]
        np.testing.assert_allclose(found.sum - fewer.sum, expected, rtol=1e-8, atol=1e-14)


def test_padding_is_left_out_and_positions_stand_for_what_they_predict() -> None:
    case = language_model()
    _, targets = case.problem.data.take(torch.tensor([3]))
    found = token_effects(case.problem, case.queries, example=3, method="identity")
    counted = [int(token) for token in targets[0] if token >= 0]
    assert len(found.tokens) == len(counted) == 4
    assert "".join(found.tokens) == texts.decode(counted)
    assert found.places.tolist() == [0, 1, 2, 3]


def test_a_loss_that_shifts_by_itself_has_its_tokens_one_further() -> None:
    case = shifted()
    inputs, _ = case.problem.data.take(torch.tensor([3]))
    found = token_effects(case.problem, case.queries, example=3, method="identity")
    assert found.places.tolist() == [1, 2, 3, 4]
    assert "".join(found.tokens) == texts.decode(inputs[0, 1:5].tolist())


def test_tags_of_tokens_are_shown_as_the_tokens_that_they_judge() -> None:
    class Tagger(TinyGPT):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(4, 3)

    text = texts.drawn()
    problem = make_problem(
        seeded(Tagger),
        (text[:12], text[:12] % 3),
        loss="cross_entropy",
        display=texts.DISPLAY,
        label_names=["noun", "verb", "other"],
    )
    found = token_effects(problem, (text[12:], text[12:] % 3), example=0, method="identity")
    assert found.by == "loss"
    assert "".join(found.tokens) == texts.decode(text[0].tolist())


def test_a_small_llama_on_stories(whence_data: Path) -> None:
    """In float64 the sum is exact; the pieces are the text, spaces included."""
    tokenizer, model = stories.Tokenizer(whence_data), stories.load(whence_data).double()
    told = [tokenizer.encode(text[:200])[:33] for text in stories.texts(whence_data, 6)]
    ids = torch.tensor(told)
    display = {"kind": "text", "decode": tokenizer.decode}
    problem = make_problem(
        model, (ids[:4, :-1], ids[:4, 1:]), loss="cross_entropy", display=display
    )
    mean_loss = problem.check()["mean_loss"] / 32
    assert 0.5 < mean_loss < 2  # 1.27 nats a token are told of it: rotary positions are right
    queries = ids[4:, :-1], ids[4:, 1:]
    method = fit(problem, Influence("identity", removal="first_order"))
    found = token_effects(problem, queries, example=2, method=method)
    effects = method.scores(queries).values
    np.testing.assert_allclose(found.sum, effects[:, 2], rtol=1e-8)
    assert "".join(found.tokens) == tokenizer.decode(told[2][1:])
    by_input = token_effects(problem, queries, example=2, by="input", method=method)
    assert by_input.tokens[0] == "⟨1⟩"  # the beginning of a text has none itself
    assert "".join(by_input.tokens[1:]) == tokenizer.decode(told[2][1:32])


# ------------------------------------------------------------------ by the input


class Faded(Classifier):
    """With a factor on every embedding among its inputs."""

    def forward(self, tokens: Tensor, attention_mask: Tensor, factor: Tensor) -> Tensor:
        embedded = self.embedding(tokens) * factor[..., None]
        return self.head(torch.tanh(self.pooled(embedded, attention_mask)))


def at_optimum(problem: Problem) -> Problem:
    ones = torch.ones(1, len(problem))
    return problem.at(NewtonTraining(tolerance=1e-12).retrain(problem, ones).parameters[0])


@pytest.mark.parametrize("parameters", [None, ("attend.*", "head.*")])
def test_fading_a_token_is_the_derivative_of_training_again(parameters: Any) -> None:
    case = classified(parameters=parameters, weight_decay=0.02)
    problem = at_optimum(case.problem)
    found = token_effects(problem, case.queries, example=4)
    assert found.by == "input"
    assert np.abs(found.values).max() > 1e-3  # logits: the model has learned something

    inputs, labels = problem.data.take(torch.arange(12))
    factors = torch.ones(12, texts.LENGTH).double()
    asked = {**case.queries[0], "factor": torch.ones(3, texts.LENGTH).double()}, case.queries[1]
    faded = make_problem(
        seeded(Faded),
        ({**inputs, "factor": factors}, labels),
        loss="cross_entropy",
        weight_decay=0.02,
        parameters=parameters,
    ).at(problem.parameters)

    def measured(place: int, factor: float) -> np.ndarray:
        changed = {**{name: part[4:5] for name, part in inputs.items()}, "factor": factors[4:5]}
        changed["factor"] = changed["factor"].clone()
        changed["factor"][0, place] = factor
        other = replacement(faded, np.array([4]), changed).contents(faded)
        theta = NewtonTraining(tolerance=1e-12).retrain(other, torch.ones(1, 12)).parameters[0]
        return measure(faded.at(theta), faded.measurement(), faded.queries(asked)).numpy()

    h = 1e-4
    for column, place in enumerate(found.places):
        expected = (measured(place, 1 - h) - measured(place, 1 + h)) / (2 * h)
        # Differences err by h^2 of the third derivative and by what the retraining leaves undone.
        scale = np.abs(found.values).max()
        np.testing.assert_allclose(found.values[:, column], expected, rtol=1e-5, atol=1e-6 * scale)


def test_over_a_frozen_table_it_is_the_gradient_times_the_embedding() -> None:
    case = classified(parameters=("attend.*", "head.*"))
    found = token_effects(case.problem, case.queries, example=4, method="identity")

    class Embedded(Classifier):
        def forward(self, embedded: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(torch.tanh(self.pooled(embedded, attention_mask)))

    model = seeded(Embedded)

    def embed(part: tuple[dict[str, Tensor], Tensor]) -> Any:
        embedded = model.embedding(part[0]["tokens"]).detach()
        return {"embedded": embedded, "attention_mask": part[0]["attention_mask"]}, part[1]

    inputs = embed(case.problem.data.take(torch.arange(12)))
    other = make_problem(
        model, inputs, loss="cross_entropy", weight_decay=0.1, parameters=("attend.*", "head.*")
    )
    slopes = perturb(other, embed(case.queries), example=4, method="identity").values["embedded"]
    expected = -(slopes * inputs[0]["embedded"][4].numpy()).sum(2)[:, found.places]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)


def test_a_language_model_can_be_asked_by_its_input_as_well() -> None:
    """Causal: the last token of the input has no effect beyond the loss of the last position."""
    case = language_model()
    found = token_effects(case.problem, case.queries, example=3, by="input", method="identity")
    assert found.by == "input"
    assert found.places.tolist() == [0, 1, 2, 3]  # 4 has a target that does not count
    assert np.isfinite(found.values).all()


def test_tokens_that_are_equal_to_their_positions_are_not_taken_for_them() -> None:
    case = language_model()
    inputs, targets = case.problem.data.take(torch.arange(12))
    inputs = inputs.clone()
    inputs[0] = torch.arange(6)
    problem = replace(case.problem, data=case.problem.read((inputs, targets)))
    found = token_effects(problem, case.queries, example=0, by="input", method="identity")

    class Plain(TinyGPT):
        def states(self, tokens: Tensor) -> Tensor:
            x = (
                self.tokens(tokens)
                + F.one_hot(torch.arange(tokens.shape[1])).double()
                @ (self.places.weight[: tokens.shape[1]])
            )
            parts = self.mix(self.first(x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).flatten(2))
            return x + self.narrow(F.gelu(self.wide(self.second(x))))

    other = replace(problem, model=seeded(Plain))
    again = token_effects(other, case.queries, example=0, by="input", method="identity")
    np.testing.assert_allclose(found.values, again.values, rtol=1e-9)


@pytest.mark.parametrize("case", [classified, language_model])
def test_queries_stack(case: Any) -> None:
    problem, queries = case().problem, case().queries
    both = token_effects(problem, queries, example=1, method="identity").values
    one = problem.queries(queries).take([2])
    alone = token_effects(problem, one, example=1, method="identity").values
    np.testing.assert_allclose(alone[0], both[2], rtol=1e-9)


# ------------------------------------------------------------------ what readers see


def test_helpful_tokens_are_those_without_which_the_measurement_gets_worse() -> None:
    case = classified()
    case = Case(at_optimum(case.problem), case.queries)
    for measurement, sign in (("margin", -1), ("loss", 1)):
        found = token_effects(case.problem, case.queries, example=4, measurement=measurement)
        text = found.section().blocks[0]
        assert isinstance(text, Tokens)
        assert text.sign == sign
        assert text.helps.endswith("falls" if sign < 0 else "rises")
        assert [effect for _, effect in text.pieces] == found.values[0].tolist()
        assert text.unit == found.unit == ("logits" if sign < 0 else "nats")


def test_a_table_names_the_tokens_that_matter_most() -> None:
    case = language_model()
    found = token_effects(case.problem, case.queries, example=2, method="identity")
    table = next(block for block in found.section().blocks if isinstance(block, Table))
    told = [row[3] for row in table.rows if row[0] == str(found.query_ids[0])]
    assert told == sorted(found.values[0].tolist(), key=abs, reverse=True)[:8]


def test_every_number_is_in_the_json() -> None:
    case = language_model()
    found = token_effects(case.problem, case.queries, example=3, method="identity")
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    np.testing.assert_array_equal(plain["values"], found.values)
    assert plain["tokens"] == list(found.tokens)
    assert "Without training example 3" in repr(found)


def test_without_a_way_to_decode_tokens_are_their_ids() -> None:
    case = classified(display=None)
    found = token_effects(case.problem, case.queries, example=4, method="identity")
    inputs, _ = case.problem.data.take(torch.tensor([4]))
    assert [int(token) for token in found.tokens] == inputs["tokens"][
        0, : len(found.tokens)
    ].tolist()


# ------------------------------------------------------------------ refusals


class FailingToFit(Method):
    def fit(self, problem: Problem) -> Fitted:
        raise AssertionError("the refusal comes first")


def refused(case: Case, kind: type[Exception], words: str, **options: Any) -> None:
    options = {"example": 0, "method": FailingToFit()} | options
    with pytest.raises(kind, match=words):
        token_effects(case.problem, case.queries, **options)


def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
    """The square of the sum over positions: none can be taken out."""
    return F.cross_entropy(outputs, targets, reduction="none").sum(1) ** 2


class OneHot(Classifier):
    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = F.one_hot(tokens, texts.VOCABULARY).double() @ self.embedding.weight
        return self.head(torch.tanh(self.pooled(embedded, attention_mask)))


def test_what_cannot_be_taken_apart_is_refused_before_anything_is_fitted() -> None:
    refused(problems.ridge(), Unsupported, "no tokens")
    refused(problems.conv(), Unsupported, "no tokens")
    refused(classified(), Unsupported, "no sum over positions", by="loss")
    refused(language_model(loss=coupled), Unsupported, "no sum over positions", by="loss")
    refused(classified(OneHot), Unsupported, "in no table")
    refused(classified(), BadArgument, "no training example 99", example=99)
    refused(classified(), UnknownName, "'output' is not a decomposition", by="output")


def test_a_sum_of_positions_that_is_squared_is_asked_by_its_input() -> None:
    case = language_model(loss=coupled)
    found = token_effects(case.problem, case.queries, example=0, method="identity")
    assert found.by == "input"


def test_a_text_that_is_all_padding_is_refused() -> None:
    case = classified()
    inputs, labels = case.problem.data.take(torch.arange(12))
    inputs = {name: part.clone() for name, part in inputs.items()}
    inputs["attention_mask"][3] = 0
    problem = replace(case.problem, data=case.problem.read((inputs, labels)))
    with pytest.raises(BadData, match="7 tokens, and none that counts"):
        token_effects(problem, case.queries, example=3, method="identity")
    targets = torch.full((12, 6), -100)
    lm = language_model()
    silent = replace(
        lm.problem, data=lm.problem.read((lm.problem.data.take(torch.arange(12))[0], targets))
    )
    with pytest.raises(BadData, match="6 tokens, and none that counts"):
        token_effects(silent, lm.queries, example=3, method="identity")


def test_a_derivative_that_is_not_a_number_is_refused() -> None:
    class Rooted(Classifier):
        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            outputs = super().forward(tokens, attention_mask)
            return outputs + (0 * outputs).sqrt()  # 0, with a slope that is no number

    case = classified(Rooted)
    with pytest.raises(NonFinite):
        token_effects(case.problem, case.queries, example=3, method="identity")


def test_effects_that_are_corrected_are_not_taken_apart() -> None:
    case = problems.tied()
    with pytest.raises(Unsupported, match="corrected"):
        token_effects(
            case.problem,
            case.queries,
            example=0,
            method=Influence("exact", correct_nonconvergence=True),
        )
    with pytest.raises(Unsupported, match="does not solve"):
        token_effects(case.problem, case.queries, example=0, method="bm25")


def test_only_problems_of_tokens_have_tokens() -> None:
    assert has_tokens(language_model().problem)
    assert has_tokens(classified().problem)
    assert not has_tokens(classified(OneHot).problem)
    assert not has_tokens(problems.digits_one_seven().problem)
