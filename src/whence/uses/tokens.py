"""Which tokens of a training text carry its effect on a query.

By the positions of its loss, where that is a sum or mean over them, as of language models:

    values[q, t] = (b_i / N) psi_q . grad loss_{i,t}          psi_q = (H + damping I)^-1 grad m_q

what position t contributes to the effect of removing the example. It is exact: the sum over t is
the first-order effect. By the tokens that go in, for any model with a table of embeddings:

    values[q, t] = (b_i / N) d / d s_t psi_q . grad loss_i(s * z)      at s = 1

what fading token t out, its embedding z_t to zero, in this one example does to the measurement
after training again, to first order. Both have the sign of effects: positive where the measurement
goes up without the token.

Source: Grosse et al. 2023 (arXiv:2308.03296), attribution to tokens, for the first (cited from
memory); the second is the derivative of Koh & Liang 2017 (arXiv:1703.04730), equation 5, along the
embedding.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from whence.calculus.gradients import inner, measurement_gradients
from whence.calculus.products import penalty_gradient
from whence.calculus.tokens import (
    Text,
    find_text,
    position_axis,
    position_slopes,
    target_shift,
    token_slopes,
)
from whence.core.batches import Batch
from whence.core.decoding import decoder, pieces, visible
from whence.core.losses import IGNORED
from whence.core.problem import Problem
from whence.core.scores import Measurement
from whence.errors import BadData, NonFinite, Unsupported, unknown_name
from whence.explanation import MethodLike
from whence.methods.base import MeasurementLike, merge_reports
from whence.methods.influence import FittedInfluence
from whence.sections import Section, Table, Tokens
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result, fit_to_take_apart, position_of, unit_of_effects

By = Literal["loss", "input"]

_SHOWN = 4
"""Queries whose text is shown."""

_STRONGEST = 8
"""Tokens of each of them that a table names."""


_NAMES = {"loss": "the positions of its loss", "input": "what goes into the model"}


@dataclass(frozen=True, eq=False, repr=False)
class TokenEffects(Result):
    """The parts that the tokens of one training text have in its effect on every query.

    Args:
        values: (Q, T) in units of the measurement, positive where it goes up without the token.
        tokens: (T,) their texts, with the space before them; padding is left out.
        places: (T,) where they stand among the targets ("loss") or the inputs ("input"), from 0.
        effect: (Q,) of removing the whole example, to first order.
        baseline: (Q,) measurements with the model as trained.
        query_ids: (Q,).
        example: id of the training example.
        by: "loss" for the positions of its loss, "input" for the tokens that go in.
        measurement: what was measured.
        report: how the values were computed.
    """

    values: np.ndarray
    tokens: tuple[str, ...]
    places: np.ndarray
    effect: np.ndarray
    baseline: np.ndarray
    query_ids: np.ndarray
    example: int | str
    by: By
    measurement: Measurement
    report: Mapping[str, Any]

    @property
    def sum(self) -> np.ndarray:
        """(Q,) sums over the tokens; by "loss" the effect of the example, N being fixed."""
        return self.values.sum(1)

    @property
    def unit(self) -> str:
        """The unit of effects: that of the measurement, or "arbitrary" without a scale."""
        return unit_of_effects(self.measurement, self.report)

    def section(self) -> Section:
        """The text with its helpful and harmful tokens, and tables of them."""
        return Section(
            kind="token_effects",
            title=f"Tokens of training example {self.example}, by {_NAMES[self.by]}",
            sentence=self.sentence,
            blocks=(*map(self.text, self._shown), self._strongest(), self._sums()),
            warnings=tuple(self.report.get("warnings", ())),
        )

    def text(self, query: int) -> Tokens:
        """The text with the effects of its tokens on one query.

        Args:
            query: position, 0 to Q - 1.
        """
        words, is_better = self.measurement.words, self.measurement.higher_is_better
        falls, rises = (f"without it, the {words} {verb}" for verb in ("falls", "rises"))
        what = {
            "loss": "Each token stands for the loss of predicting it.",
            "input": "Each token stands for its embedding, as it goes into the model.",
        }
        return Tokens(
            list(zip(self.tokens, self.values[query].tolist(), strict=True)),
            unit=self.unit,
            helps=falls if is_better else rises,
            hurts=rises if is_better else falls,
            sign=-1 if is_better else 1,
            caption=f"Training example {self.example} for query {self.query_ids[query]}. "
            f"{what[self.by]}",
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values = {
            "example": self.example,
            "by": self.by,
            "query_ids": self.query_ids,
            "measurement": self.measurement.name,
            "unit": self.unit,
            "baseline": self.baseline,
            "tokens": list(self.tokens),
            "places": self.places,
            "values": self.values,
            "sum": self.sum,
            "effect": self.effect,
            "report": dict(self.report),
        }
        return json.loads(json_text(as_json(values, "token effects")))

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        query, token = np.unravel_index(np.abs(self.values).argmax(), self.values.shape)
        told, value = visible(self.tokens[token]), self.values[query, token]
        of = f"{self.measurement.words} of query {self.query_ids[query]}"
        others = f"more than any other of its {len(self.tokens)} tokens"
        if len(self.tokens) == 1:
            others = "it is the only token"
        if self.by == "loss":
            return (
                f"Without training example {self.example} the {of} changes by "
                f"{self.effect[query]:+.3g} {self.unit}, to first order; the loss of predicting "
                f"{told!r} carries {value:+.3g} of it, {others}."
            )
        return (
            f"Fading {told!r} out of training example {self.example} and training again changes "
            f"the {of} by {value:+.3g} {self.unit}, to first order, {others}."
        )

    @property
    def _shown(self) -> list[int]:
        """The queries that a token moves most, in their order."""
        order = np.argsort(-np.abs(self.values).max(1), kind="stable")
        return sorted(order[:_SHOWN].tolist())

    def _strongest(self) -> Table:
        """The tokens with the largest effects on each query that is shown."""
        rows: list[tuple[str, str, int, float]] = []
        for query in self._shown:
            values, name = self.values[query], str(self.query_ids[query])
            rows += [
                (name, visible(self.tokens[t]), int(self.places[t]), float(values[t]))
                for t in np.argsort(-np.abs(values), kind="stable")[:_STRONGEST]
            ]
        columns = ("query", "token", "place", f"effect ({self.unit})")
        shown = min(_STRONGEST, len(self.tokens))
        which = (
            "All tokens" if shown == len(self.tokens) else f"The {shown} tokens that matter most"
        )
        return Table(columns, rows, f"{which}, by query.")

    def _sums(self) -> Table:
        rows = [
            (str(query), float(base), float(effect), float(total))
            for query, base, effect, total in zip(
                self.query_ids, self.baseline, self.effect, self.sum, strict=True
            )
        ]
        columns = (
            "query",
            f"{self.measurement.name} ({self.measurement.unit})",
            f"effect of the example ({self.unit})",
            f"sum over its tokens ({self.unit})",
        )
        words = {
            "loss": "The sum over the positions of the loss is the effect of the example.",
            "input": "The sum speaks of all tokens faded out, which is not the example left out.",
        }
        return Table(columns, rows, f"{words[self.by]} Both to first order.")


def token_effects(
    problem: Problem,
    queries: object,
    *,
    example: int | str,
    by: By | Literal["auto"] = "auto",
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
) -> TokenEffects:
    """What each token of one training text contributes to its effect on every query.

        by "loss":    values[q, t] = (b / N) psi_q . grad loss_t
        by "input":   values[q, t] = (b / N) d / d s_t  psi_q . grad loss(s * embedding),  s = 1

    The first is exact: its sum over t is the first-order effect of removing the example, with N
    fixed. The second is what the measurement would change by, to first order, if the embedding of
    this token in this example went to zero and the model was trained again; where the table of
    embeddings is frozen it is the gradient of the effect times the embedding.

    Args:
        problem: what was trained, on inputs one of which is a row of token ids.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone.
        example: id of the training example.
        by: "loss" takes the loss of the example apart, position by position; "input" the tokens
            that go into the model; "auto" the loss where it has a position for each token.
        measurement: what is measured on a query; see `whence.explain`.
        method: an influence function, by name, recipe or fitted; see `whence.explain`.

    Returns:
        (Q, T) effects in units of the measurement, without padding.

    Raises:
        BadArgument: no such training example.
        UnknownName: no such `by`.
        BadData: the text has no token that counts.
        NonFinite: an effect is not a number.
        Unsupported: the inputs are no tokens, the loss is no sum over positions ("loss"), no table
            is looked up ("input"), or the method does not solve with a curvature.

    Source: Grosse et al. 2023 (arXiv:2308.03296) for "loss"; Koh & Liang 2017 (arXiv:1703.04730),
    equation 5, along the embedding for "input".
    """
    if by not in ("auto", "loss", "input"):
        raise unknown_name("decomposition", by, ("auto", "loss", "input"))
    position = torch.tensor([position_of(problem, example)])
    batch = problem.batch(position)
    text = find_text(problem, batch)
    parts = _choose(problem, batch, text, by)
    fitted = fit_to_take_apart(problem, method)
    asked = problem.queries(queries)
    measured = problem.measurement(measurement)
    baseline, slopes = measurement_gradients(problem, measured, asked)
    solution = fitted.solve(slopes)
    total = inner(problem, solution.vectors, batch)[:, 0]
    found = parts.slopes(solution.vectors, total) * float(batch.weights) / len(problem)
    values = _array(found)
    _refuse_non_finite(values, example)
    kept = parts.kept(values, example)
    return TokenEffects(
        values=values[:, kept],
        tokens=parts.texts(kept),
        places=kept + parts.shift,
        effect=_effect(fitted, solution.vectors, total * float(batch.weights)),
        baseline=_array(baseline),
        query_ids=asked.ids,
        example=example,
        by=parts.by,
        measurement=measured,
        report=merge_reports(
            {"warnings": [*problem.notes, *_warnings(problem, parts.by)]},
            fitted.report,
            solution.report,
        ),
    )


def has_tokens(problem: Problem) -> bool:
    """Whether training examples have tokens that can be told apart."""
    try:
        text = find_text(problem, batch := problem.batch(torch.tensor([0])))
        _choose(problem, batch, text, "auto")
    except Unsupported:
        return False
    return True


# ------------------------------------------------------------------ what is taken apart


@dataclass(frozen=True, eq=False)
class _Parts:
    """One training text, and how it is taken apart.

    Args:
        problem: whose it is.
        batch: the text alone.
        text: its tokens.
        axis: of the positions in the outputs; None for the tokens that go in.
        shift: how far the target of a position stands from it.
    """

    problem: Problem
    batch: Batch
    text: Text
    axis: int | None = None
    shift: int = 0

    @property
    def by(self) -> By:
        return "input" if self.axis is None else "loss"

    @property
    def targets(self) -> Tensor:
        """(T,) of the positions."""
        return cast("Tensor", self.batch.targets)[0]

    def slopes(self, psi: Tensor, total: Tensor) -> Tensor:
        """(Q, T) before the weight of the example."""
        if self.axis is None:
            return token_slopes(self.problem, psi, self.batch, text=self.text)
        return position_slopes(self.problem, psi, self.batch, axis=self.axis, total=total)

    def kept(self, values: np.ndarray, example: int | str) -> np.ndarray:
        """Positions that are shown: no padding, and nothing that has an effect is left out.

        Raises:
            BadData: there is none.
        """
        has_effect = (values != 0).any(0)
        kept = ~self._is_padding() | (has_effect if self.axis is not None else False)
        if has_effect.any():  # padding that nothing declares follows the last token with an effect
            kept[np.flatnonzero(has_effect)[-1] + 1 :] = False
        if not kept.any():
            raise BadData(
                found=f"Training example {example} has {len(kept)} tokens, and none that counts.",
                why="All of it is padding, so that there is nothing to tell apart.",
                remedy="Ask about another example, or look at its mask and its targets.",
            )
        return np.flatnonzero(kept)

    def texts(self, kept: np.ndarray) -> tuple[str, ...]:
        """What stands at some positions."""
        decode = decoder(self.problem.display)
        if self.axis is None or (not self._predicts_tokens() and self._is_aligned()):
            every = pieces(self.text.ids.tolist(), decode)
            return tuple(every[place] for place in kept)
        targets = self.targets[torch.from_numpy(kept + self.shift)]
        if self._predicts_tokens():
            return pieces(targets.tolist(), decode)
        return tuple(f" {self.problem.label_name(target)}" for target in targets.cpu())

    def _is_padding(self) -> np.ndarray:
        if self.axis is None:
            return self.text.is_padding.cpu().numpy()
        is_ignored = (self.targets == IGNORED).cpu().numpy()
        return np.append(is_ignored[self.shift :], np.ones(self.shift, dtype=bool))

    def _is_aligned(self) -> bool:
        return len(self.targets) == len(self.text.ids)

    def _predicts_tokens(self) -> bool:
        """Whether the targets are tokens of the vocabulary of the inputs, and not tags of them."""
        if self.targets.is_floating_point() or self.problem.label_names is not None:
            return False
        classes = self.problem.output_size // len(self.targets)
        return self.text.vocabulary in (None, classes)


def _choose(problem: Problem, batch: Batch, text: Text, by: str) -> _Parts:
    """How a text is taken apart, refused before anything is fitted.

    Raises:
        Unsupported: it cannot be, in the way that was asked for.
    """
    axis = None if by == "input" else position_axis(problem, batch)
    targets = batch.targets
    is_aligned = targets is not None and targets.shape[1:] == text.ids.shape
    if axis is not None and (by == "loss" or is_aligned):
        return _Parts(problem, batch, text, axis, target_shift(problem, batch, axis))
    if by == "loss":
        raise Unsupported(
            found=f"The loss {problem.loss.name!r} of an example is no sum over positions.",
            why="Only such a sum can be taken apart: here one number judges the whole text.",
            remedy='Use by="input", which asks for the tokens that go into the model.',
        )
    parts = _Parts(problem, batch, text)
    nothing = torch.zeros_like(problem.parameters)[None]
    parts.slopes(nothing, nothing[:, 0])
    return parts


def _effect(fitted: FittedInfluence, psi: Tensor, pulls: Tensor) -> np.ndarray:
    """(Q,) effects of removing the example; under `renormalize` it pulls as it differs from all."""
    problem = fitted.problem
    if problem.renormalize:
        pulls = pulls - psi @ (fitted.gradient - penalty_gradient(problem))
    return _array(pulls / len(problem))


def _warnings(problem: Problem, by: By) -> Sequence[str]:
    if by == "loss" and problem.renormalize:
        return [
            "Tokens are taken out of a sum that is divided by N as before; the effect of the "
            "example is that of a mean taken anew, and differs from the sum by that of the mean."
        ]
    return []


def _refuse_non_finite(values: np.ndarray, example: int | str) -> None:
    if not np.isfinite(values).all():
        raise NonFinite(
            found=f"The effect of a token of training example {example} is not a number.",
            why="The others could not be compared with it.",
            remedy="Look at the model at this example: a square root or logarithm at zero is the "
            "usual cause.",
        )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
