"""Training examples whose label is worth a second look, the most suspicious first.

    left_out_loss    -log of the probability that the label gets from the rest of the data
    self_influence   effect of removing an example on its own loss: what it had to be taught
    loss             its loss as trained
    margin           minus its margin as trained; for probabilities the same order as the loss
    confidence       probability of another label, above what examples of that label mostly get,
                     less the same for its own label
    random           an order that knows nothing

Only the first two ask what the model would say had it not seen the label: a model that learns wrong
labels by heart has a small loss on them. The left-out loss also asks how sure it would be,

    left_out_loss = log sum_k exp(-d_k),        d_k = (f_y - f_k) / (1 + pi v_k / 8)^1/2
    f = outputs without the example,            v_k = variance of f_y - f_k

with the variance that the rest of the data leaves (`FittedInfluence.left_out`): the margin of a
strange example, on which the others say little, counts less. With N fixed and a common 1/N, the
order by self-influence is that of Koh & Liang 2017 (section 5.4), who leave 1/N out.

Source: the tempered margin as in MacKay 1992, "The evidence framework applied to classification
networks" (cited from memory); left-out outputs and variances derived in `whence.calculus.removal`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from whence.calculus.gradients import jacobian_batch
from whence.core.display import Display
from whence.core.measurements import make_measurement, predicted_targets
from whence.core.problem import Problem
from whence.curvature import make_curvature
from whence.errors import BadArgument, BadData, Unsupported, unknown_name
from whence.explanation import MethodLike, choose, fit
from whence.methods import Influence
from whence.methods.influence import FittedInfluence
from whence.numerics import stats
from whence.sections import Block, Gallery, Lines, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result

RANKINGS = ("left_out_loss", "self_influence", "loss", "margin", "confidence", "random")
"""Every `by`, besides "auto"."""

BEST, NEXT_BEST = "left_out_loss", "loss"
"""What "auto" stands for, and where that does not exist: see `experiments/mislabels`."""

_WORDS = {
    "self_influence": "self-influence",
    "left_out_loss": "left-out loss",
    "loss": "loss",
    "margin": "margin",
    "confidence": "confidence",
    "random": "random order",
}

_SHOWN = 12
"""Suspects with a picture in the section."""

_LISTED = 20
"""Suspects in the table of the section."""

_DRAWN = 100
"""Points of a curve."""


@dataclass(frozen=True)
class Suspect:
    """One training example to be looked at.

    Args:
        id: of the training example.
        given: its label.
        answer: what the model says.
        probability: that the model gives to the label; None where it knows no probabilities.
        suspicion: by the ranking that was asked for; larger is more suspicious.
    """

    id: int | str
    given: str
    answer: str
    probability: float | None
    suspicion: float


@dataclass(frozen=True, eq=False, repr=False)
class Mislabels(Result):
    """How suspicious every training label is, by several rankings.

    Args:
        by: the ranking that is meant where none is named.
        reason: why.
        ids: (N,) of the training examples.
        given: (N,) their labels in words.
        answers: (N,) what the model says of them, in words.
        probabilities: (N,) of the given labels; None where the model knows no probabilities.
        suspicion: (N,) numbers of each ranking; larger is more suspicious.
        units: of these numbers.
        is_wrong: (N,) which labels are known to be wrong; None where nothing is known.
        pictures: how the first suspects look.
        warnings: what a reader should know.
    """

    by: str
    reason: str
    ids: np.ndarray
    given: tuple[str, ...]
    answers: tuple[str, ...]
    probabilities: np.ndarray | None
    suspicion: Mapping[str, np.ndarray]
    units: Mapping[str, str]
    is_wrong: np.ndarray | None
    pictures: tuple[Display, ...]
    warnings: tuple[str, ...] = ()

    @property
    def ranking(self) -> np.ndarray:
        """(N,) ids, the most suspicious first."""
        return self.ids[self._order()]

    def suspects(self, k: int = _LISTED) -> tuple[Suspect, ...]:
        """The k most suspicious training examples, or all N where there are fewer.

        Raises:
            BadArgument: k is less than one.
        """
        if k < 1:
            raise BadArgument(
                found=f"k={k!r}.",
                why="It counts training examples.",
                remedy="Give a whole number of one or more.",
            )
        chances = self.probabilities
        return tuple(
            Suspect(
                self.ids[i].item(),
                self.given[i],
                self.answers[i],
                None if chances is None else float(chances[i]),
                float(self.suspicion[self.by][i]),
            )
            for i in self._order()[:k]
        )

    def found(self, by: str | None = None) -> np.ndarray:
        """(N,) share of the wrong labels among the 1, 2, ..., N most suspicious examples.

        Args:
            by: a ranking, default the one that was asked for.

        Raises:
            BadArgument: it is not known which labels are wrong, or there is no such ranking.
        """
        is_wrong = self._truth()
        return np.cumsum(is_wrong[self._order(by)]) / is_wrong.sum()

    @property
    def average_precision(self) -> dict[str, float]:
        """For each ranking the share of wrong labels among those checked, averaged over the finds.

        One: all wrong labels come first. About the share of wrong labels: no better than chance.

        Raises:
            BadArgument: it is not known which labels are wrong.
        """
        is_wrong = self._truth()
        return {
            name: stats.average_precision(values, is_wrong)
            for name, values in self.suspicion.items()
        }

    def section(self) -> Section:
        """The suspects as a table and as pictures; what was found against what was checked."""
        return Section(
            kind="find_mislabels",
            title="Labels worth a second look",
            sentence=self._sentence(),
            blocks=tuple(self._blocks()),
            warnings=self.warnings,
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values: dict[str, Any] = {
            "by": self.by,
            "reason": self.reason,
            "ids": self.ids,
            "given": list(self.given),
            "answers": list(self.answers),
            "probabilities": self.probabilities,
            "suspicion": dict(self.suspicion),
            "units": dict(self.units),
            "ranking": self.ranking,
            "is_wrong": self.is_wrong,
            "warnings": list(self.warnings),
        }
        if self.is_wrong is not None:
            values["found"] = {name: self.found(name) for name in self.suspicion}
            values["average_precision"] = self.average_precision
        return json.loads(json_text(as_json(values, "mislabels")))

    def _order(self, by: str | None = None) -> np.ndarray:
        name = by or self.by
        if name not in self.suspicion:
            raise BadArgument(
                found=f"There is no ranking {name!r} here.",
                why=f"Those that were made are: {', '.join(self.suspicion)}.",
                remedy="Name one of them, or ask find_mislabels for this one: by=...",
            )
        return np.argsort(-self.suspicion[name], kind="stable")

    def _truth(self) -> np.ndarray:
        if self.is_wrong is None:
            raise BadArgument(
                found="It is not known which labels are wrong.",
                why="What a ranking finds can only be counted against the truth.",
                remedy="Pass truth= to find_mislabels: the true labels, or a mask of wrong ones.",
            )
        return self.is_wrong

    def _sentence(self) -> str:
        first = self.suspects(1)[0]
        words = (
            f"Of {len(self.ids):,} training examples, {first.id} is the most suspicious by "
            f"{_WORDS[self.by]}: labelled {first.given}, the model says {first.answer}."
        )
        if self.is_wrong is None:
            return words
        tenth = -(-len(self.ids) // 10)
        share = self.found()[tenth - 1]
        return (
            f"{words} Looking at the first {tenth:,} (10 %) finds {share:.0%} of the "
            f"{int(self.is_wrong.sum()):,} wrong labels."
        )

    def _blocks(self) -> list[Block]:
        suspects = self.suspects(_LISTED)
        columns = (
            "example",
            "label",
            "the model says",
            "probability of the label",
            f"{_WORDS[self.by]} ({self.units[self.by]})",
        )
        rows = [(str(s.id), s.given, s.answer, s.probability, s.suspicion) for s in suspects]
        blocks: list[Block] = []
        if self.is_wrong is not None:
            blocks += [self._curves(), self._precisions()]
        blocks.append(Table(columns, rows, "The most suspicious labels, the first to look at."))
        pictures = [
            (display, f"{s.id}: labelled {s.given}, the model says {s.answer}")
            for display, s in zip(self.pictures, suspects, strict=False)
        ]
        return [*blocks, Gallery(pictures, "The most suspicious training examples.")]

    def _curves(self) -> Lines:
        count = len(self.ids)
        places = np.unique(np.linspace(1, count, min(_DRAWN, count)).round().astype(int))
        checked = [0.0, *(places / count).tolist()]
        series = {
            _WORDS[name]: {"x": checked, "y": [0.0, *self.found(name)[places - 1].tolist()]}
            for name in self.suspicion
        }
        return Lines(
            series,
            "share of the training examples checked",
            "share of the wrong labels found",
            "How soon a reader who goes down each list meets the wrong labels.",
        )

    def _precisions(self) -> Table:
        rows = sorted(self.average_precision.items(), key=lambda item: -item[1])
        return Table(
            ("ranking", "average precision"),
            [(_WORDS[name], value) for name, value in rows],
            "One: all wrong labels stand first.",
        )


def find_mislabels(
    problem: Problem,
    *,
    by: str = "auto",
    method: MethodLike = "auto",
    truth: object = None,
    seed: int = 0,
) -> Mislabels:
    """Training examples to review first, because their labels may be wrong.

    Every ranking that the model allows is made, and `by` says which one is meant. "auto" is the
    left-out loss where the curvature tells it for all examples together (exact, dual), else the
    loss. Removals are Newton steps where the method takes them.

    Args:
        problem: what was trained, wrong labels included.
        by: "auto", or one of `RANKINGS`.
        method: how removals are computed; see `whence.explain`.
        truth: for tests of a ranking: (N,) true labels, in the form of the training labels or by
            name, or an (N,) boolean mask of the wrong ones.
        seed: of the random order.

    Returns:
        Suspicions of all N examples, the ranking, and with `truth` how soon wrong labels are found.

    Raises:
        UnknownName: no such ranking.
        Unsupported: the targets are numbers or sequences, or the ranking has no meaning here.
        BadData: `truth` does not fit the training examples.

    Source: self-influence for wrong labels as in Koh & Liang 2017 (arXiv:1703.04730), section 5.4;
    thresholds by class as in Northcutt, Jiang & Chuang 2021 (arXiv:1911.00068), section 3 (cited
    from memory).
    """
    if by not in ("auto", *RANKINGS):
        raise unknown_name("ranking", by, ("auto", *RANKINGS))
    problem.check()
    seen = _look(problem)
    is_wrong = None if truth is None else _wrong_labels(problem, seen.targets, truth)
    fitted, obstacle = _fitted(problem, method, by)
    suspicion = _suspicions(problem, seen, fitted, seed)
    by, reason = _resolve(by, suspicion, fitted, obstacle)
    if by not in suspicion:
        raise Unsupported(
            found=f"by={by!r} has no meaning for the loss {problem.loss.name!r}.",
            why=f"Without probabilities there are: {', '.join(suspicion)}.",
            remedy="Take one of these.",
        )
    first = np.argsort(-suspicion[by], kind="stable")[:_SHOWN]
    report = {} if fitted is None else fitted.report
    return Mislabels(
        by=by,
        reason=reason,
        ids=problem.data.ids,
        given=_in_words(problem, seen.targets),
        answers=_in_words(problem, seen.answers),
        probabilities=seen.own,
        suspicion=suspicion,
        units=_units(problem, fitted),
        is_wrong=is_wrong,
        pictures=tuple(problem.show(int(i)) for i in first),
        warnings=(*problem.notes, *report.get("warnings", ())),
    )


# ------------------------------------------------------------------ what the model says


@dataclass(frozen=True)
class _Seen:
    """What the model says of every training example, all on the CPU in float64.

    Args:
        outputs: (N, ...) of the model.
        targets: (N,) given labels.
        answers: (N,) its own.
        losses: (N,) as trained.
        margins: (N,) as trained.
        chances: (N, C) probability of each label; None for a loss that knows none.
        columns: (N,) column of the given label in `chances`.
    """

    outputs: Tensor
    targets: Tensor
    answers: Tensor
    losses: Tensor
    margins: Tensor
    chances: Tensor | None
    columns: Tensor

    @property
    def own(self) -> np.ndarray | None:
        """(N,) probability of the given label."""
        if self.chances is None:
            return None
        return self.chances.gather(1, self.columns[:, None])[:, 0].numpy()


def _look(problem: Problem) -> _Seen:
    """One pass over the training data.

    Raises:
        Unsupported: the examples have no labels that could be wrong.
    """
    task = problem.loss.task
    if task not in ("classes", "binary", "signed"):
        raise _no_labels(f"The targets of the loss {problem.loss.name!r} are no labels")
    with torch.no_grad():
        batches = [(problem.outputs(problem.parameters, b.inputs), b) for b in problem.batches()]
        outputs = torch.cat([values.cpu() for values, _ in batches]).double()
        targets = torch.cat([cast("Tensor", b.targets).cpu() for _, b in batches])
        if outputs.ndim > 2 or (task == "classes" and bool((targets < 0).any())):
            raise _no_labels("An example has several labels, or none")
        targets = targets.reshape(len(outputs))
        margin = make_measurement("margin", problem.loss).function
        return _Seen(
            outputs=outputs,
            targets=targets,
            answers=predicted_targets(outputs, problem.loss),
            losses=problem.loss(outputs, targets),
            margins=cast("Callable[[Tensor, Tensor], Tensor]", margin)(outputs, targets),
            chances=_chances(outputs, task),
            columns=targets.long().clamp_min(0),
        )


def _chances(outputs: Tensor, task: str) -> Tensor | None:
    if task == "classes":
        return outputs.softmax(1)
    if task == "binary":
        logit = outputs.reshape(-1, 1)
        return torch.cat([torch.sigmoid(-logit), torch.sigmoid(logit)], 1)
    return None


def _no_labels(found: str) -> Unsupported:
    return Unsupported(
        found=f"{found}.",
        why="A label is wrong or right; each training example needs one, of one class.",
        remedy="For numbers and sequences look at whence.fit(problem).self_influence(): large "
        "values are examples that only their own presence explains.",
    )


def _in_words(problem: Problem, targets: Tensor) -> tuple[str, ...]:
    return tuple(problem.label_name(target) for target in targets)


# --------------------------------------------------------------------------- rankings


def _fitted(problem: Problem, method: MethodLike, by: str) -> tuple[FittedInfluence | None, str]:
    """The fitted influence function, or why there is none."""
    is_needed = by in ("self_influence", "left_out_loss")
    if isinstance(method, str) and method == "auto":
        choice = choose(problem)
        recipe = choice.method
        is_cheap = isinstance(recipe, Influence) and (
            make_curvature(recipe.curvature).offers_leverage
        )
        if not (is_cheap or is_needed):
            return None, f"self-influence of all N examples would take N solves ({choice.reason})"
        fitted = recipe.fit(problem).because(choice.reason)
    else:
        fitted = fit(problem, method)
    if isinstance(fitted, FittedInfluence):
        return fitted, ""
    if is_needed:
        raise Unsupported(
            found=f"{type(fitted).__name__} knows no self-influence.",
            why=f"by={by!r} is computed from it.",
            remedy='Use method="exact" or another curvature, or by="loss".',
        )
    return None, f"{type(fitted).__name__} knows no self-influence"


def _resolve(
    by: str, made: Mapping[str, np.ndarray], fitted: FittedInfluence | None, obstacle: str
) -> tuple[str, str]:
    if by != "auto":
        return by, "asked for"
    if BEST in made:
        return BEST, "the best on the data sets where it was measured"
    needs = "the left-out loss needs probabilities and effects with a scale"
    return NEXT_BEST, needs if fitted is not None else obstacle


def _suspicions(
    problem: Problem, seen: _Seen, fitted: FittedInfluence | None, seed: int
) -> dict[str, np.ndarray]:
    """(N,) for each ranking that exists here, in the order of `RANKINGS`."""
    found = {
        "loss": seen.losses.numpy(),
        "margin": -seen.margins.numpy(),
        "random": _random(problem.data.ids, seed),
    }
    if seen.chances is not None:
        found["confidence"] = _confidence(seen.chances, seen.columns)
    if fitted is not None and (seen.chances is None or not _is_calibrated(fitted)):
        found["self_influence"] = fitted.self_influence()
    elif fitted is not None:
        found["self_influence"], found["left_out_loss"] = _left_out(problem, fitted)
    return {name: found[name] for name in RANKINGS if name in found}


def _left_out(problem: Problem, fitted: FittedInfluence) -> tuple[np.ndarray, np.ndarray]:
    """(N,) self-influence and left-out loss, in one pass."""
    pieces: list[tuple[Tensor, Tensor]] = []
    for batch in problem.batches(jacobian_batch(problem)):
        moved, spread = fitted.left_out(batch)
        with torch.no_grad():
            outputs = problem.outputs(problem.parameters, batch.inputs).reshape(moved.shape)
        targets = cast("Tensor", batch.targets).reshape(len(batch)).long()
        losses = _tempered_loss(outputs + moved, spread, targets)
        pieces.append((fitted.own_change(batch, moved), losses))
    own, losses = (torch.cat(part).double().cpu().numpy() for part in zip(*pieces, strict=True))
    return own, losses


def _tempered_loss(outputs: Tensor, spread: Tensor, targets: Tensor) -> Tensor:
    """(B,) losses with each difference of logits divided by what is not known of it.

    Args:
        outputs: (B, C) logits, or (B, 1) logit of label 1.
        spread: (B, C, C) their covariance.
        targets: (B,) labels.
    """
    if outputs.shape[1] == 1:
        margin = outputs * (2 * targets[:, None] - 1)  # (B, 1)
        variance = spread[:, 0]
        return torch.nn.functional.softplus(-_tempered(margin, variance))[:, 0]
    own = targets[:, None]
    margin = outputs.gather(1, own) - outputs  # (B, C)
    each = spread.diagonal(dim1=1, dim2=2)
    mixed = spread.gather(1, own[:, :, None].expand(-1, 1, spread.shape[2]))[:, 0]
    variance = each + each.gather(1, own) - 2 * mixed  # zero for the label itself
    return torch.logsumexp(-_tempered(margin, variance), 1)


def _tempered(margin: Tensor, variance: Tensor) -> Tensor:
    return margin / (1 + torch.pi / 8 * variance.clamp_min(0)).sqrt()


def _is_calibrated(fitted: FittedInfluence) -> bool:
    return bool(fitted.report.get("is_calibrated", True))


def _confidence(chances: Tensor, columns: Tensor) -> np.ndarray:
    """(N,) the largest excess of another label's probability, less that of the given one.

    The excess is over the mean probability of a label among the examples that carry it: a class
    of which the model is never sure is not suspected as a whole.
    """
    carried = torch.nn.functional.one_hot(columns, chances.shape[1]).to(chances)
    usual = (carried * chances).sum(0) / carried.sum(0)  # (C,); NaN for a label nobody carries
    excess = (chances - usual).nan_to_num(nan=-torch.inf)
    own = excess.gather(1, columns[:, None])[:, 0]
    return (excess.masked_fill(carried.bool(), -torch.inf).max(1).values - own).numpy()


def _random(ids: np.ndarray, seed: int) -> np.ndarray:
    """(N,) numbers in [0, 1) that depend on the seed and the id alone, not on the order."""
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in ids.tolist()]
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])


def _units(problem: Problem, fitted: FittedInfluence | None) -> dict[str, str]:
    is_calibrated = fitted is None or _is_calibrated(fitted)
    unit = problem.loss.unit
    return {
        "self_influence": unit if is_calibrated else "arbitrary",
        "left_out_loss": unit,
        "loss": unit,
        "margin": make_measurement("margin", problem.loss).unit,
        "confidence": "difference of probabilities",
        "random": "arbitrary",
    }


# ------------------------------------------------------------------------------ truth


def _wrong_labels(problem: Problem, given: Tensor, truth: object) -> np.ndarray:
    """(N,) which labels are wrong, from a mask, from true labels or from their names.

    Raises:
        BadData: another length, unknown labels, no wrong label or no right one.
    """
    values = np.asarray(truth.detach().cpu() if isinstance(truth, Tensor) else truth)
    if values.shape != (len(problem),):
        raise BadData(
            found=f"truth has the shape {values.shape}; there are {len(problem)} examples.",
            why="Every training example has one true label.",
            remedy="Give (N,) true labels, or an (N,) mask that is True where a label is wrong.",
        )
    is_wrong = values if values.dtype == bool else _differs(problem, given, values)
    if is_wrong.all() or not is_wrong.any():
        raise BadData(
            found=f"{int(is_wrong.sum())} of {len(problem)} labels are wrong by this truth.",
            why="A ranking separates wrong labels from right ones; one kind is missing.",
            remedy="Check that truth belongs to this data, or leave it out.",
        )
    return is_wrong


def _differs(problem: Problem, given: Tensor, values: np.ndarray) -> np.ndarray:
    """(N,) where true labels differ from the given ones, as numbers of the loss or as names."""
    named = np.array(_in_words(problem, given))
    known = set(map(str, problem.label_names or ())) | set(named)
    by_name = values.astype(str) != named if set(values.astype(str)) <= known else None
    codes = set(range(problem.output_size)) if problem.loss.task == "classes" else {-1, 0, 1}
    is_number = values.dtype.kind in "iuf" and set(values.tolist()) <= codes
    by_code = values != given.numpy() if is_number else None
    found = [answer for answer in (by_code, by_name) if answer is not None]
    if not found or not (found[0] == found[-1]).all():
        meant = "can be read in two ways" if found else "has labels that the model does not know"
        raise BadData(
            found=f"truth {meant}: {', '.join(map(str, np.unique(values)[:6]))}; the labels are "
            f"called {', '.join(sorted(known)[:6])}.",
            why="True labels are compared with the given ones.",
            remedy="Give them by name, or pass a mask: truth=(y_given != y_true).",
        )
    return found[0]
