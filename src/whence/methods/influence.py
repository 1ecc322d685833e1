"""Influence functions: one solve for the queries, one pass over the training data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from whence.calculus.changes import Pull
from whence.calculus.gradients import (
    gradients,
    jacobian_batch,
    jacobians,
    measurement_gradients,
    measurement_slopes,
    outputs,
    pull_back,
    refuse_infinite,
    residuals,
)
from whence.calculus.nonconvergence import Correction
from whence.calculus.products import objective_gradient, penalty_gradient
from whence.calculus.removal import Removal
from whence.core.batches import Batch
from whence.core.changes import Change
from whence.core.pieces import noticing
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement, Scores
from whence.curvature import IHVP, Curvature, Solution, make_curvature
from whence.curvature.base import KroneckerIHVP, LayerOptions, fit_layers
from whence.errors import BadArgument, NegativeCurvature, NotConverged, TooLarge, Unsupported
from whence.methods.base import (
    Fitted,
    MeasurementLike,
    Method,
    Response,
    make_scores,
    merge_reports,
    stream,
)
from whence.numerics.compression import Compression, compress, left_out
from whence.numerics.memory import free_bytes, in_words

NEWTON_OPERATIONS = 3e12
"""`removal="auto"` stays with first order where the leverage of all examples takes more than so
many multiplications (`Curvature.leverage_operations`), a minute on two cores."""

FAR_FROM_OPTIMUM = 1.0
"""A gradient norm above this many pulls of one example is warned about."""

NEWTON_OUTPUTS = 100
"""The Newton form solves a C x C system per example; above this C it is not offered."""

_STACKS = 2
"""Gradients of the queries and their solutions: the least that is held at a time."""

_FAR_OFF = 5.0
"""A loss above so many times what was asked for is warned about; at 2.2 the estimate is met."""

_SOLVED_TOGETHER = 64
"""Gradients of training examples that an iteration without leverage solves for together."""


_MOST_STEPS, _SETTLED = 50, 1e-6
"""Of the search for the minimum after a change: steps at the most, and the relative size of the
last one."""


@dataclass(frozen=True)
class Influence(Method):
    """Effect of removing each training example, through the curvature of the objective.

        effect[q, i] ~ (1/N) grad m_q^T (H + damping I)^-1 b_i grad loss_i        first order

    First order forgets that the matrix, too, loses example i; the Newton form takes that into
    account (`whence.calculus.removal`).

    Args:
        curvature: the matrix that is inverted, by name or as a recipe.
        removal: "first_order" or "newton"; "auto" takes newton where the curvature offers
            leverage that is affordable for all examples (N C P^2 for the exact curvature).
        change: "linear" multiplies the moved parameters with the measurement's gradient;
            "finite" evaluates the measurement at the moved outputs f_q + J_q dtheta, which is
            exact in the measurement where the outputs are linear in the parameters.
        correct_nonconvergence: for a model that is not at its optimum, take the first-order effect
            on the Newton step that training has left undone (`whence.calculus.nonconvergence`):
            grad loss_i becomes grad loss_i - (hess loss_i) (H + damping I)^-1 grad R. The step
            must be short, as one Newton step is exact for a quadratic objective only.
        compress: relative root mean square of the effects that may be lost by solving for fewer
            combinations of the queries than there are queries; 0 solves for each. The combinations
            are those that count for effects as EK-FAC expects them, each query brought to the same
            size; what they lose is measured with `PROBES` further solves and stands in the report
            as `compressed_error`, which is exceeded in one case of a hundred. Scores from factors
            of gradients ("ekfac", "kfac") solve at next to no cost and are not compressed.

    Source: Koh & Liang 2017 (arXiv:1703.04730), equations 1 and 2; section 4.2 and its appendix
    for a model that is not at its optimum, where the paper leaves the correction out.
    """

    curvature: str | Curvature = "exact"
    removal: Literal["auto", "first_order", "newton"] = "auto"
    change: Literal["linear", "finite"] = "linear"
    correct_nonconvergence: bool = False
    compress: float = 0.0

    def fit(self, problem: Problem) -> "FittedInfluence":
        """Fits the curvature and measures how far the model is from its optimum.

        Raises:
            BadArgument: an unknown `removal` or `change`, or `compress` outside its range.
            Unsupported: newton was asked of a curvature without leverage, or of too many outputs;
                or queries are to be compressed under a loss without Fisher information.
        """
        self._check()
        started = time.monotonic()
        problem.check()
        curvature = make_curvature(self.curvature)
        is_newton = self.takes_newton(problem, curvature)
        count = len(problem)
        scale = count / (count - 1) if is_newton and problem.renormalize else 1.0
        with noticing() as notes:
            ihvp = curvature.fit(problem, data_scale=scale)
            gradient, pull = ihvp.optimum(problem)
            if gradient is None and (self.correct_nonconvergence or self.change == "finite"):
                gradient = objective_gradient(problem)  # for want of the short cut that finds it
        facts = {
            "method": "influence",
            "removal": "newton" if is_newton else "first_order",
            "change": self.change,
            "example_pull": pull,
        }
        away = {} if gradient is None else _away_from_optimum(gradient, pull)
        seconds = {"fit_seconds": time.monotonic() - started}
        report = merge_reports(facts, ihvp.report, away, {"warnings": notes}, seconds)
        responds_by_newton = self.takes_newton_for_changes(curvature)
        fitted = FittedInfluence(
            problem, report, ihvp, is_newton, self.change, gradient, responds_by_newton
        )
        if self.compress:
            fitted = replace(fitted, preview=_preview(problem, ihvp), compress=self.compress)
        return fitted.corrected() if self.correct_nonconvergence else fitted

    def _check(self) -> None:
        _check_option("removal", self.removal, ("auto", "first_order", "newton"))
        _check_option("change", self.change, ("linear", "finite"))
        if not 0 <= self.compress < 1:
            raise BadArgument(
                found=f"compress={self.compress!r}.",
                why="It is the share of the effects that may be lost.",
                remedy="Give a number from 0 to 1, such as 0.1, or leave it out.",
            )

    def linear(self) -> "Influence":
        """The same with removals to first order, and linear in the measurement."""
        return replace(self, removal="first_order", change="linear")

    def takes_newton_for_changes(self, curvature: Curvature) -> bool:
        """Whether a change of the training data as a whole will be one Newton step.

        That is one solve, affordable wherever the curvature can make it.
        """
        is_first_order = self.removal == "first_order" or self.correct_nonconvergence
        return not is_first_order and curvature.offers_changes

    def takes_newton(self, problem: Problem, curvature: Curvature) -> bool:
        """Whether removals will be Newton steps.

        Raises:
            Unsupported: `removal="newton"` where it is not possible.
        """
        if self.removal == "first_order":
            return False
        outputs = problem.output_size
        obstacle = ""
        if not curvature.offers_leverage:
            obstacle = f"{type(curvature).__name__} has no leverage J H^-1 J^T to offer"
        elif outputs > NEWTON_OUTPUTS:
            obstacle = f"an example has {outputs} outputs, more than {NEWTON_OUTPUTS}"
        elif self.correct_nonconvergence:
            obstacle = "the correction for a model that is not at its optimum is of first order"
        elif problem.renormalize and len(problem) < 2:
            obstacle = "nothing remains when the only example is removed"
        if obstacle and self.removal == "newton":
            raise Unsupported(
                found=f"removal='newton' is not possible: {obstacle}.",
                why="The Newton form needs the leverage of each example.",
                remedy='Use curvature="exact", or removal="first_order".',
            )
        is_affordable = curvature.leverage_operations(problem) <= NEWTON_OPERATIONS
        return not obstacle and (is_affordable or self.removal == "newton")


@dataclass(frozen=True)
class FittedInfluence(Fitted):
    """Influence with a fitted curvature.

    Args:
        problem: what it was fitted to.
        report: what the fit has measured.
        ihvp: the fitted curvature.
        is_newton: whether a removal is one Newton step instead of first order.
        change: how the measurement follows the parameters.
        known_gradient: (P,) gradient of the objective, where the fit has found it.
        responds_by_newton: whether `respond` takes one Newton step for a whole change.
        correction: what it changes that the model is not at its optimum, where that is asked for.
        preview: the curvature layer by layer, where queries are compressed.
        compress: relative root mean square of the effects that this may lose.
    """

    ihvp: IHVP
    is_newton: bool
    change: Literal["linear", "finite"]
    known_gradient: Tensor | None
    responds_by_newton: bool = False
    correction: Correction | None = None
    preview: KroneckerIHVP | None = None
    compress: float = 0.0

    @cached_property
    def gradient(self) -> Tensor:
        """(P,) gradient of the objective that was fitted; a pass where the fit left it out."""
        if self.known_gradient is not None:
            return self.known_gradient
        layers = self.ihvp.layers  # their weights are those of the fit, whatever is asked about now
        return objective_gradient(self.problem if layers is None else layers.kronecker.problem)

    def corrected(self) -> "FittedInfluence":
        """The same, with first-order effects corrected for what training has left undone."""
        solution = self.ihvp.solve(self.gradient[None])
        step = solution.vectors[0]
        facts = {"nonconvergence_step": float(step.norm())}
        report = merge_reports(self.report, solution.report, facts)
        return replace(self, report=report, correction=Correction(self.problem, step))

    def damped(self, damping: float) -> "FittedInfluence":
        """The same fit with another damping, where the curvature can change it.

        Raises:
            Unsupported: it cannot, or a correction was made with the old damping.
        """
        return self._with(self.ihvp.damped(damping), self.preview and self.preview.damped(damping))

    def damped_by(self, times: float) -> "FittedInfluence":
        """The same fit with so many times its damping.

        Raises:
            Unsupported: as `damped`.
        """
        return self._with(
            self.ihvp.damped_by(times), self.preview and self.preview.damped_by(times)
        )

    def _with(self, ihvp: IHVP, preview: KroneckerIHVP | None) -> "FittedInfluence":
        if self.correction is not None:
            raise Unsupported(
                found="Another damping was asked of Influence(correct_nonconvergence=True).",
                why="The correction was solved for with the damping of the fit.",
                remedy="Fit again with the other damping.",
            )
        return replace(self, report={**self.report, **ihvp.report}, ihvp=ihvp, preview=preview)

    def scores(self, queries: object, measurement: MeasurementLike = None) -> Scores:
        """Effects of every training example on every query; see `Fitted.scores`."""
        started = time.monotonic()
        problem = self.problem
        asked = problem.queries(queries)
        measured = problem.measurement(measurement)
        baseline, slopes = measurement_slopes(problem, measured, asked)
        with noticing() as notes:
            values, facts = self._effects(asked, measured, slopes)
            gradient = facts.pop("gradient", None)
            if self.known_gradient is None and gradient is not None:
                away = _away_from_optimum(gradient, float(self.report["example_pull"]))
                facts = merge_reports(away, facts)
        return make_scores(
            problem,
            asked,
            measured,
            values=values,
            baseline=baseline,
            report=merge_reports(self.report, facts, {"warnings": notes}),
            started=started,
        )

    def _effects(
        self, asked: Queries, measured: Measurement, slopes: Tensor
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(Q, N) effects and what there is to report, by a short cut of the curvature if it can."""
        problem = self.problem
        pairs = self.ihvp.pair(asked, slopes) if self._is_bilinear else None
        if pairs is not None:
            effects = pairs[0] * (problem.weights.double().cpu().numpy() / len(problem))
            if problem.renormalize:  # examples pull as far as they differ from the mean
                effects -= effects.mean(1, keepdims=True)
            return effects, pairs[1]
        outputs = problem.output_size if self.change == "finite" else 1
        _refuse_too_large(problem, len(asked), outputs)
        if self.change == "finite":
            directions = jacobians(problem, asked)
        else:
            directions = pull_back(problem, asked.inputs, slopes)[:, None]
        refuse_infinite(directions, measured, asked)
        return self._of_solutions(asked, measured, directions)

    def _of_solutions(
        self, asked: Queries, measured: Measurement, directions: Tensor
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Effects from solved gradients of the queries, which meet the training data in turn.

        Args:
            asked: Q queries.
            measured: the measurement.
            directions: (Q, C, P) gradients of its outputs, or (Q, 1, P) of the measurement.

        Returns:
            (Q, N) and what there is to report.
        """
        stack = directions.flatten(0, 1)
        packed = self._packed(stack)
        solution = self.ihvp.solve(stack if packed is None else packed.combine(stack))
        removal = self._removal(solution.vectors)
        leverages: list[Tensor] = []
        squares: list[Tensor] = []

        def rows(batch: Batch) -> Tensor:
            if self.is_newton:
                kernel = self.ihvp.leverage(jacobians(self.problem, batch))
                moved, shares = removal.newton(batch, kernel)
                leverages.append(shares)
            else:
                moved = removal.first_order(batch)
                if self.correction is not None:
                    moved = moved - self.correction.along(solution.vectors, batch)
            if packed is not None:
                squares.append(packed.squares(moved))
                moved = packed.expand(moved)
            moved = moved.unflatten(0, directions.shape[:2])  # (Q, C, B)
            if self.change == "linear":
                return moved[:, 0]
            return _evaluate(self.problem, measured, asked, moved)

        size = self._batch_size(len(solution.vectors))
        values = stream(self.problem, rows, queries=len(asked), size=size)
        facts = _leverage_report(leverages) | _compression_report(packed, squares, self.compress)
        return values, merge_reports(solution.report, facts)

    def _packed(self, stack: Tensor) -> Compression | None:
        """Combinations of the right-hand sides, where fewer will do."""
        if self.preview is None:
            return None
        return compress(self.preview.expected_products(stack), self.compress)

    @property
    def _is_bilinear(self) -> bool:
        """Whether effects are gradients of queries times solved gradients, and no more."""
        return not self.is_newton and self.change == "linear" and self.correction is None

    def self_influence(self) -> np.ndarray:
        """Effect of removing each training example on its own loss.

            (1/N) b_i grad loss_i^T (H + damping I)^-1 grad loss_i         first order, N fixed

        The diagonal of the effects that `scores` finds for the training examples as queries, with
        the loss as measurement: with Newton steps, a finite change or a renewed mean where those
        are made. To first order, with N fixed, never negative: without itself an example fares
        worse. What was learnt by heart has much of it; so have wrong labels.

        Returns:
            (N,), unit of the loss.

        Raises:
            Unsupported: `correct_nonconvergence` is set.

        Source: Koh & Liang 2017 (arXiv:1703.04730), section 5.4, there without 1/N.
        """
        if self.correction is not None:
            raise Unsupported(
                found="Self-influence was asked of Influence(correct_nonconvergence=True).",
                why="The correction is made for effects on queries and is not part of it.",
                remedy="Leave correct_nonconvergence out, or score training examples as queries.",
            )
        problem = self.problem

        def rows(batch: Batch) -> Tensor:
            if self.is_newton or self.change == "finite":
                return self.own_change(batch, self.left_out(batch)[0])[None]
            mean = self._own_removal.solved_mean
            if mean is None and (found := self.ihvp.self_pair(batch)) is not None:
                return (found * batch.weights)[None] / len(problem)
            slopes = gradients(problem, batch)
            own = self._leverage(slopes[:, None])[:, 0, 0] * batch.weights
            return (own if mean is None else own - slopes @ mean[0])[None] / len(problem)

        return stream(problem, rows, queries=1, size=jacobian_batch(problem))[0]

    def left_out(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a model that never saw an example says of it: how its outputs move, and how surely.

        Each example is removed by itself, to first order or by a Newton step as the method does.
        The second part is the covariance of its outputs under the Gaussian that the objective of
        the rest, read as minus log probability over N, has around its optimum (Laplace):
        J_i A_i^-1 J_i^T / N, or J_i H^-1 J_i^T / N to first order.

        Args:
            batch: B training examples.

        Returns:
            (B, C) and (B, C, C).
        """
        kernel = self._leverage(jacobians(self.problem, batch))
        return self._own_removal.own(batch, kernel, is_newton=self.is_newton)

    @cached_property
    def _own_removal(self) -> Removal:
        """Removals seen by the removed example alone."""
        nothing = self.problem.parameters.new_zeros(0, self.problem.size)
        if not self.problem.renormalize:
            return Removal(self.problem, nothing)
        mean = self._mean_gradient()
        return Removal(self.problem, nothing, mean, self.ihvp.solve(mean[None]).vectors)

    def _leverage(self, rows: Tensor) -> Tensor:
        """(B, C, C) rows H^-1 rows^T of each example, by solving for them if need be."""
        try:
            return self.ihvp.leverage(rows)
        except Unsupported:
            parts = rows.flatten(0, 1).split(_SOLVED_TOGETHER)
            solved = torch.cat([self.ihvp.solve(part).vectors for part in parts])
            return rows @ solved.unflatten(0, rows.shape[:2]).mT

    def own_change(self, batch: Batch, moved: Tensor) -> Tensor:
        """(B,) change of each loss when its outputs move by (B, C), linear or finite."""
        if self.change == "linear":
            return (residuals(self.problem, batch) * moved).sum(1)
        targets = cast("Tensor", batch.targets)
        with torch.no_grad():
            before = self.problem.outputs(self.problem.parameters, batch.inputs)
            after = before + moved.reshape(before.shape)
            return self.problem.loss(after, targets) - self.problem.loss(before, targets)

    def respond(
        self, change: Change, queries: object, measurement: MeasurementLike = None
    ) -> Response:
        """One Newton step for the whole change, and first order beside it; see `Fitted.respond`.

        The step accounts for what the change does to the curvature, so that the effect of a large
        group is not under-estimated (`whence.calculus.changes`). Where the matrix of what remains
        is not positive, first order stands, and the report says so.
        """
        asked = self.problem.queries(queries)
        measured = self.problem.measurement(measurement)
        baseline, slopes = measurement_gradients(self.problem, measured, asked)
        moves, report = self._moves(change)
        if self.change == "finite":
            moved = outputs(self.problem, moves, asked).permute(1, 2, 0)  # (Q, C, 2)
            effects = _evaluate(self.problem, measured, asked, moved)
        else:
            effects = slopes @ moves.T  # (Q, 2)
        first, last = effects.detach().double().cpu().numpy().T
        report = merge_reports(self.report, report)
        return Response(last, first, baseline.double().cpu().numpy(), measured, asked, report)

    def moves(self, change: Change) -> Tensor:
        """(2, P) how the parameters move: to first order, and by one Newton step if possible."""
        return self._moves(change)[0]

    def _moves(self, change: Change) -> tuple[Tensor, dict[str, Any]]:
        pull = Pull(self.problem, change, self._mean_gradient())
        force = pull.force()
        if self.correction is not None:
            force = force - self.correction.of(change, pull.divisor)
        solution = self.solve(force[None] / len(self.problem))
        first, report = solution.vectors, dict(solution.report)
        if not self.responds_by_newton:
            return first.expand(2, -1), report | {"response": "first_order"}
        try:
            step, facts = self._newton(pull)
        except (NegativeCurvature, NotConverged) as error:
            words = f"The Newton step does not exist ({error.found}): first order stands."
            warnings = [*report.get("warnings", ()), words]
            return first.expand(2, -1), report | {"response": "first_order", "warnings": warnings}
        return torch.cat([first, step]), report | facts | {"response": "newton"}

    def solve(self, vectors: Tensor) -> Solution:
        """(H + damping I)^-1 v for a stack (K, P), with the matrix of all N examples.

        A curvature that was fitted for removals under `renormalize` has the data part of N - 1.
        """
        scale = self._data_scale()
        if scale == 1:
            return self.ihvp.solve(vectors)
        return self.ihvp.solve_changed(vectors, data_factor=1 / scale, change=torch.zeros_like)

    def _newton(self, pull: Pull) -> tuple[Tensor, dict[str, Any]]:
        """(1, P) the minimum of the changed objective (`whence.calculus.changes`).

        Steps that do not get shorter are halved: far from the minimum a loss can be flatter than
        its curvature says.

        Raises:
            NegativeCurvature: the matrix of what remains is not positive.
            NotConverged: the steps do not end.
        """
        factor = len(self.problem) / pull.divisor / self._data_scale()
        move, last, share = torch.zeros_like(self.problem.parameters), torch.inf, 1.0
        for count in range(1, _MOST_STEPS + 1):
            solution = self.ihvp.solve_changed(
                pull.force(move)[None] / pull.divisor, data_factor=factor, change=pull.bend(move)
            )
            step = solution.vectors[0] - move
            if pull.is_removal or float(step.norm()) <= _SETTLED * float(move.norm()):
                return solution.vectors, {**solution.report, "newton_steps": count}
            share = share / 2 if float(step.norm()) > 0.9 * last else min(1.0, 2 * share)
            move, last = move + share * step, float(step.norm())
        raise NotConverged(
            found=f"After {_MOST_STEPS} steps the parameters still move by {last:.2g}.",
            why="What comes in is too far from what the model knows.",
            remedy="Train again: retrain=True.",
        )

    def _data_scale(self) -> float:
        """What the data part of the fitted matrix was multiplied with."""
        count = len(self.problem)
        return count / (count - 1) if self.is_newton and self.problem.renormalize else 1.0

    def _mean_gradient(self) -> Tensor:
        """(P,) mean data gradient: that of the objective without the regulariser's."""
        return self.gradient - penalty_gradient(self.problem)

    def _removal(self, psi: Tensor) -> Removal:
        if not self.problem.renormalize:
            return Removal(self.problem, psi)
        mean = self._mean_gradient()
        solved = self.ihvp.solve(mean[None]).vectors if self.is_newton else None
        return Removal(self.problem, psi, mean, solved)

    def _batch_size(self, stack: int) -> int:
        """Examples a batch; for the Newton form so few that their Jacobians stay near 64 MB."""
        size = self.problem.batch_size(stack)
        return min(size, jacobian_batch(self.problem)) if self.is_newton else size


def _evaluate(problem: Problem, measured: Measurement, asked: Queries, moved: Tensor) -> Tensor:
    """m(f_q + change) - m(f_q) for every change of the outputs.

    Args:
        problem: for the outputs of the queries.
        measured: the measurement.
        asked: Q queries.
        moved: (Q, C, B) changes of the outputs, flattened to C numbers.

    Returns:
        (Q, B).
    """
    function = cast("Callable[[Tensor, Tensor], Tensor]", measured.function)
    with torch.no_grad():
        before = problem.outputs(problem.parameters, asked.inputs)  # (Q, ...)
        changes = moved.permute(2, 0, 1).reshape(-1, *before.shape)  # (B, Q, ...)
        after = (before + changes).flatten(0, 1)
        targets = asked.targets.repeat(len(changes), *[1] * (asked.targets.ndim - 1))
        values = function(after, targets).reshape(len(changes), len(asked))
        return (values - function(before, asked.targets)).T


def _refuse_too_large(problem: Problem, queries: int, outputs: int) -> None:
    """Refuses more right-hand sides than the machine has memory for.

    Raises:
        TooLarge: they and their solutions take more than what is free.
    """
    each = _STACKS * outputs * problem.size * problem.parameters.element_size()
    free = free_bytes(problem.device)
    if queries * each > free:
        raise TooLarge(
            found=f"{queries} queries need {in_words(queries * each)} for the gradients of "
            f"{problem.size:,} parameters and their solutions; {in_words(free)} are free.",
            why="All queries are solved for together.",
            remedy=f"Ask {max(1, int(free // each))} queries at a time, or use curvature='ekfac', "
            "which goes through them in parts.",
        )


def _away_from_optimum(gradient: Tensor, pull: float) -> dict[str, Any]:
    """The norm of the objective's gradient, and a warning where it is large."""
    norm = float(gradient.norm())
    if norm <= FAR_FROM_OPTIMUM * pull:
        return {"gradient_norm": norm}
    warnings = [
        f"The model is not at an optimum: the gradient of its objective is {norm:.2g}, and one "
        f"example pulls with {pull:.2g}. Effects describe a removal from the optimum nearby; train "
        "longer, or check that weight_decay and loss are those of the training (a smooth hinge for "
        "a model trained with the hinge is such a difference)."
    ]
    return {"gradient_norm": norm, "warnings": warnings}


def _leverage_report(leverages: list[Tensor]) -> dict[str, Any]:
    if not leverages:
        return {}
    shares = torch.cat(leverages)
    return {
        "largest_leverage": float(shares.max()),
        "leverage_fallbacks": int((shares >= 1).sum()),
    }


def _preview(problem: Problem, ihvp: IHVP) -> KroneckerIHVP:
    """The curvature layer by layer: part of the fit, or EK-FAC with one damping for all layers."""
    if ihvp.layers is not None:
        return ihvp.layers
    options = LayerOptions(damping=float(ihvp.report.get("damping", 0.0)))
    return fit_layers(problem, options, name="ekfac", keeps=False)


def _compression_report(
    packed: Compression | None, squares: list[Tensor], asked_for: float
) -> dict[str, Any]:
    if packed is None:
        return {}
    error = left_out(torch.stack(squares).sum(0))
    report: dict[str, Any] = {"compressed_rank": packed.rank, "compressed_error": error}
    if error > _FAR_OFF * asked_for:
        report["warnings"] = [
            f"Compressing the queries to {packed.rank} combinations loses up to {error:.0%} of the "
            f"effects (root mean square), and {asked_for:.0%} was asked for: these effects do not "
            "follow what EK-FAC expects of them. Lower compress, or leave it out."
        ]
    return report


def _check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadArgument(
            found=f"{name}={value!r}.",
            why=f"The choices are {', '.join(allowed)}.",
            remedy=f"Give one of them, or leave {name} out.",
        )
