"""What each factor of an effect contributes: the train loss, the curvature, the inner product.

To first order an effect is a product of factors,

    effect[q, i] ~ (1/N) grad m_q^T (H + damping I)^-1 b_i J_i^T r_i

with r_i the derivative of the loss of example i with respect to its outputs and J_i the Jacobian of
these outputs. Leaving a factor out shows what it was there for.

Source: Koh & Liang 2017 (arXiv:1703.04730), section 2.3 and figure 1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.calculus.gradients import measurement_gradients, outputs, residuals
from whence.core.batches import Batch
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.explanation import MethodLike
from whence.methods.base import MeasurementLike, merge_reports, stream
from whence.methods.influence import FittedInfluence
from whence.numerics import stats
from whence.sections import Scatter, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result, fit_to_take_apart

VARIANTS = {
    "full": "the effect",
    "without_train_loss": "without the train loss",
    "without_hessian": "without H",
    "without_both": "without both",
}
"""The effect and what remains of it when factors are left out, with their names in words."""

_DRAWN = 1000
"""Points a chart: the strongest effects, and the others spread over the whole range."""


@dataclass(frozen=True, eq=False, repr=False)
class Components(Result):
    """Effects with and without each of their factors.

    Args:
        full: (Q, N) first-order effects, in the unit of the measurement.
        without_train_loss: (Q, N) with r_i / |r_i|_inf in the place of r_i, arbitrary unit.
        without_hessian: (Q, N) with I in the place of (H + damping I)^-1, arbitrary unit.
        without_both: (Q, N) with both replaced, arbitrary unit.
        losses: (N,) train losses.
        is_same_label: (Q, N) whether an example has the label of the query; None without labels.
        query_ids: (Q,).
        train_ids: (N,).
        measurement: what was measured.
        report: how the effects were computed.
    """

    full: np.ndarray
    without_train_loss: np.ndarray
    without_hessian: np.ndarray
    without_both: np.ndarray
    losses: np.ndarray
    is_same_label: np.ndarray | None
    query_ids: np.ndarray
    train_ids: np.ndarray
    measurement: Measurement
    report: Mapping[str, Any]

    def numbers(self, query: int = 0) -> dict[str, dict[str, float]]:
        """What can be said of each variant on one query.

        | number | is |
        |---|---|
        | pearson, spearman | correlation with the full effect over all training examples |
        | same_label_helps | share of the examples with the query's label that look helpful |
        | other_label_harms | share of the examples with another label that look harmful |
        | low_loss_share | share of sum abs(effect) on the half of the examples of lowest loss |

        An example looks helpful if the measurement gets worse without it. A low-loss share above
        that of the full effect is the over-estimation of examples that the model fits well.

        Args:
            query: position of the query, 0 to Q - 1.

        Returns:
            For each of `VARIANTS` its numbers; NaN where there are no labels or no effects.
        """
        full = self.full[query]
        return {
            name: {
                "pearson": float(stats.pearson(values, full)),
                "spearman": float(stats.spearman(values, full)),
                **self._signs(values, query),
                "low_loss_share": _low_loss_share(values, self.losses),
            }
            for name, values in self._values(query).items()
        }

    def medians(self) -> dict[str, dict[str, float]]:
        """Each of the `numbers`, the median over the queries where it is one."""
        found = [self.numbers(query) for query in range(len(self.query_ids))]
        return {
            variant: {
                name: stats.median([numbers[variant][name] for numbers in found])
                for name in found[0][variant]
            }
            for variant in VARIANTS
        }

    def section(self) -> Section:
        """A table of the numbers, medians over the queries, and charts for the first query."""
        numbers = self.medians()
        count = len(self.query_ids)
        return Section(
            kind="components",
            title="What the factors of an effect contribute",
            sentence=_sentence(numbers, count),
            blocks=(_table(numbers, count), *self._charts()),
            warnings=tuple(self.report.get("warnings", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Every number as strict JSON; what is not a number is None."""
        values = {
            "query_ids": self.query_ids,
            "train_ids": self.train_ids,
            "measurement": self.measurement.name,
            "unit": self.measurement.unit,
            **{name: getattr(self, name) for name in VARIANTS},
            "losses": self.losses,
            "is_same_label": self.is_same_label,
            "numbers": [self.numbers(query) for query in range(len(self.query_ids))],
            "report": dict(self.report),
        }
        return json.loads(json_text(as_json(values, "components")))

    def _values(self, query: int) -> dict[str, np.ndarray]:
        return {name: getattr(self, name)[query] for name in VARIANTS}

    def _signs(self, values: np.ndarray, query: int) -> dict[str, float]:
        if self.is_same_label is None:
            return {"same_label_helps": float("nan"), "other_label_harms": float("nan")}
        helps = -values if self.measurement.higher_is_better else values
        same = self.is_same_label[query]
        return {
            "same_label_helps": _share(helps[same] > 0),
            "other_label_harms": _share(helps[~same] < 0),
        }

    def _charts(self) -> list[Scatter]:
        effect = f"effect ({self.measurement.unit})"
        about = f"Query {self.query_ids[0]}"
        pairs = [
            (VARIANTS[name], f"{VARIANTS[name]} (arbitrary units)", getattr(self, name)[0])
            for name in list(VARIANTS)[1:]
        ]
        pairs.append(("and the loss of the example", "train loss", self.losses))
        return [
            Scatter(self._points(values), x=x, y=effect, caption=f"{about}: the effect {words}.")
            for words, x, values in pairs
        ]

    def _points(self, x: np.ndarray) -> list[dict[str, Any]]:
        """The strongest fifth of what is drawn, and examples from the whole range of x."""
        y = self.full[0]
        strongest = np.argsort(-np.abs(y), kind="stable")[: _DRAWN // 5]
        drawn = np.union1d(strongest, stats.spread(x, _DRAWN - len(strongest)))
        return [
            {"x": x[i], "y": y[i], "words": f"example {self.train_ids[i]}", **self._group(int(i))}
            for i in drawn
        ]

    def _group(self, example: int) -> dict[str, str]:
        if self.is_same_label is None:
            return {}
        is_same = self.is_same_label[0, example]
        return {"group": "label of the query" if is_same else "another label"}


def components(
    problem: Problem,
    queries: object,
    *,
    method: MethodLike = "auto",
    measurement: MeasurementLike = "loss",
) -> Components:
    """What each factor of the effects contributes, by leaving it out.

        full                (1/N) grad m_q^T (H + damping I)^-1 b_i J_i^T r_i
        without_train_loss  r_i / |r_i|_inf stands for r_i
        without_hessian     I stands for (H + damping I)^-1
        without_both        both

    r_i, the derivative of loss i with respect to its C outputs, says how wrong the model is on the
    example and in which direction. Divided by its largest entry only the direction remains. For
    binary logistic regression r_i = -sigma(-y f) y with y in {-1, 1}, and what remains is -y: the
    factor sigma(-y f) = 1 - p_y is dropped, and grad loss_i becomes -y x as in the paper. For a
    softmax |r_i|_inf is 1 - p_y as well. An example whose r_i is exactly zero stays at zero and is
    counted in `report["zero_residuals"]`.

    Effects are to first order, N as the problem has it: under `renormalize` the mean gradient is
    subtracted in `full` and `without_hessian`. The two variants without the train loss are without
    the regulariser's part too, as in the paper. The variants are divided by N like the effect, but
    their unit is arbitrary: compare shapes, not sizes.

    Args:
        problem: what was trained.
        queries: `(inputs, targets)` in the form of the training data.
        method: an influence method: "auto", the name of a curvature, a recipe, or what `fit`
            returned. Removal is taken to first order whatever the recipe says.
        measurement: as for `explain`; the loss by default, as in the paper.

    Returns:
        Four (Q, N) arrays with their numbers.

    Raises:
        Unsupported: the method is none that solves with a curvature.
        WhenceError: the problem, the queries or a solve failed.

    Source: Koh & Liang 2017 (arXiv:1703.04730), section 2.3 and figure 1.
    """
    fitted = fit_to_take_apart(problem, method)
    asked = problem.queries(queries)
    measured = problem.measurement(measurement)
    _, slopes = measurement_gradients(problem, measured, asked)
    solution = fitted.ihvp.solve(slopes)
    rows = _Rows(fitted, torch.cat([solution.vectors, slopes]))
    count = len(asked)
    size = problem.batch_size(stack=2 * count)
    values = stream(problem, rows, queries=4 * count + 3, size=size)
    full, flat, bare, bare_flat = values[:-3].reshape(4, count, -1)
    losses, norms, labels = values[-3:]
    found = {"zero_residuals": int((norms == 0).sum()), "removal": "first_order"}
    return Components(
        full=full,
        without_train_loss=bare,
        without_hessian=flat,
        without_both=bare_flat,
        losses=losses,
        is_same_label=_same_label(problem, asked, labels),
        query_ids=asked.ids,
        train_ids=problem.data.ids,
        measurement=measured,
        report=merge_reports({"warnings": problem.notes}, fitted.report, solution.report, found),
    )


# ------------------------------------------------------------------------ the four products


@dataclass(frozen=True)
class _Rows:
    """All that is needed of a batch of training examples, one row each.

    Args:
        fitted: the method.
        directions: (2Q, P) psi_q = (H + damping I)^-1 grad m_q for every query, then grad m_q.
    """

    fitted: FittedInfluence
    directions: Tensor

    def __call__(self, batch: Batch) -> Tensor:
        """Products of both directions with grad loss_i, then with what remains of it without |r_i|.

        Returns:
            (4Q + 3, B); the last rows are losses, |r_i|_inf, and targets that are single numbers.
        """
        problem = self.fitted.problem
        moved = outputs(problem, self.directions, batch) * batch.weights[:, None]  # (2Q, B, C)
        slopes = residuals(problem, batch)  # (B, C)
        norms = slopes.abs().amax(1)
        alone = torch.where(norms[:, None] > 0, slopes / norms[:, None], 0.0)
        whole = torch.einsum("qbc,bc->qb", moved, slopes) - self._mean_along()
        bare = torch.einsum("qbc,bc->qb", moved, alone)
        with torch.no_grad():
            losses = problem.losses(problem.parameters, batch)
        effects = torch.cat([whole, bare]) / len(problem)
        return torch.cat([effects, torch.stack([losses, norms, _numbers(batch, losses)])])

    def _mean_along(self) -> Tensor:
        """(2Q, 1) the directions times the mean data gradient, zero where N is fixed."""
        problem = self.fitted.problem
        if not problem.renormalize:
            return self.directions.new_zeros(len(self.directions), 1)
        mean = self.fitted.gradient - torch.func.grad(problem.penalty)(problem.parameters)
        return (self.directions @ mean)[:, None]


def _numbers(batch: Batch, like: Tensor) -> Tensor:
    """(B,) targets that are one number each, else NaN."""
    targets = batch.targets
    if targets is None or targets.numel() != len(batch):
        return torch.full_like(like, torch.nan)
    return targets.reshape(-1).to(like)


def _same_label(problem: Problem, asked: Queries, labels: np.ndarray) -> np.ndarray | None:
    """(Q, N) whether example and query have one label; None where there is no single label."""
    is_single = asked.targets.numel() == len(asked) and not np.isnan(labels).any()
    if problem.loss.task not in ("classes", "binary", "signed") or not is_single:
        return None
    return asked.targets.reshape(-1, 1).cpu().numpy() == labels


# ------------------------------------------------------------------------ numbers and words


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _low_loss_share(values: np.ndarray, losses: np.ndarray) -> float:
    """Share of sum |values| on the half of the examples with the lowest loss."""
    sizes = np.abs(values)
    lowest = np.argsort(losses, kind="stable")[: len(losses) // 2]
    total = sizes.sum()
    return float(sizes[lowest].sum() / total) if total > 0 else float("nan")


_COLUMNS = {
    "pearson": "Pearson with the effect",
    "spearman": "Spearman with the effect",
    "same_label_helps": "same label looks helpful (share)",
    "other_label_harms": "other label looks harmful (share)",
    "low_loss_share": "on the half of lowest loss (share of all |effect|)",
}


def _table(numbers: dict[str, dict[str, float]], queries: int) -> Table:
    rows = [
        [words, *(numbers[variant][name] for name in _COLUMNS)]
        for variant, words in VARIANTS.items()
    ]
    about = "One query." if queries == 1 else f"Medians over {queries:,} queries."
    return Table(["variant", *_COLUMNS.values()], rows, caption=about)


def _sentence(numbers: dict[str, dict[str, float]], queries: int) -> str:
    full, bare, flat = (numbers[name] for name in ("full", "without_train_loss", "without_hessian"))
    where = "" if queries == 1 else f"Medians over {queries:,} queries: "
    words = (
        f"{where}without the train loss the half of the training examples that the model fits best "
        f"carries {bare['low_loss_share']:.0%} of all |effect| instead of "
        f"{full['low_loss_share']:.0%}"
    )
    if np.isfinite(flat["same_label_helps"]):
        words += (
            f"; without the Hessian {flat['same_label_helps']:.0%} of the examples with the "
            f"query's label look helpful and {flat['other_label_harms']:.0%} of the others harmful "
            f"({full['same_label_helps']:.0%} and {full['other_label_harms']:.0%} with it)"
        )
    return f"{words[0].upper()}{words[1:]}."
