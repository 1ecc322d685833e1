"""What every curvature is: a recipe that is fitted to a problem and then solves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from whence.calculus.fisher import Fisher, FisherName
from whence.calculus.kronecker import Kronecker, Plan, Visit, fit_kronecker
from whence.calculus.layers import Structure, structure_of
from whence.calculus.pairing import STACK_BYTES, Kept, Pairing, keeper
from whence.calculus.products import (
    CurvatureMatrix,
    decay_diagonal,
    example_pull,
    objective_gradient,
)
from whence.calculus.rooms import make_room
from whence.core.batches import Batch
from whence.core.problem import Problem, Queries
from whence.errors import BadArgument, NegativeCurvature, Unsupported
from whence.numerics.linalg import LowRank, Preconditioner, Product, block_cg

AUTO_DAMPING, LAYER_DAMPING = 3.0, 0.3
"""Times the mean eigenvalue that is added to a Gauss-Newton matrix when damping is "auto": to the
whole matrix, and to each layer where layers are taken one by one. The whole matrix of a network has
few large eigenvalues, so that its mean is small; along the others a training does not move as far
as the matrix allows. Both were chosen by models that were trained on halves of data that no other
benchmark uses (`benchmarks/damping_choice.py`), the second for EK-FAC; K-FAC and the diagonal take
it over."""


@dataclass(frozen=True)
class Solution:
    """Solved vectors, with what the solve says about itself.

    Args:
        vectors: (K, P).
        report: residuals, steps and warnings, for `Scores.report`.
    """

    vectors: Tensor
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])


_CHANGED_TOLERANCE = 1e-9
"""Relative residual of solves with a changed matrix."""


def solve_by_steps(
    product: Product, vectors: Tensor, inverse: Preconditioner, *, rank: int
) -> Solution:
    """A changed matrix solved by conjugate gradients in float64, for curvatures that are exact.

    Preconditioned by the inverse of the unchanged matrix, they need as many products as the change
    has directions that matter.

    Args:
        product: the changed matrix.
        vectors: (K, P).
        inverse: of the unchanged matrix.
        rank: steps that exact arithmetic could need.

    Returns:
        (K, P) in the type of the vectors, with residual and steps.

    Raises:
        NegativeCurvature: the changed matrix is not positive.
    """
    found = block_cg(
        product,
        vectors.double(),
        tolerance=_CHANGED_TOLERANCE,
        max_steps=rank + 20,
        preconditioner=inverse,
    )
    report = {"changed_residual": float(found.residuals.max()), "changed_steps": found.steps}
    return Solution(found.solution.to(vectors), report)


def largest_residual(
    matrix: CurvatureMatrix,
    solved: Tensor,
    vectors: Tensor,
    *,
    damping: float,
    wanted: Tensor | None = None,
) -> float:
    """The largest |(H + damping I) x - v| / |v| over the rows of a stack, by one more product.

    Args:
        matrix: H as a linear map.
        solved: (K, P) x.
        vectors: (K, P) v, the right-hand sides as they were given.
        damping: added to every eigenvalue.
        wanted: (K, P) v less what was left out on purpose; default v.
    """
    product = matrix(solved.to(matrix.problem.parameters)).to(solved)
    rest = product + damping * solved - (vectors if wanted is None else wanted)
    norms = vectors.norm(dim=1).clamp_min(torch.finfo(rest.dtype).tiny)
    return float((rest.norm(dim=1) / norms).max())


class IHVP(ABC):
    """Inverse-Hessian-vector products of a fitted curvature; immutable."""

    @property
    @abstractmethod
    def report(self) -> Mapping[str, Any]:
        """Matrix, damping, smallest eigenvalue and whatever else the fit has measured."""

    def optimum(self, problem: Problem) -> tuple[Tensor | None, float]:
        """How far the model is from its optimum, by a pass over the data or by what the fit knows.

        Args:
            problem: what it was fitted to.

        Returns:
            (P,) gradient of the objective, and the pull of one example; no gradient where `pair`
            finds it on its way.
        """
        return objective_gradient(problem), example_pull(problem)

    @abstractmethod
    def solve(self, vectors: Tensor) -> Solution:
        """(H + damping I)^-1 v for each row of a stack.

        Args:
            vectors: (K, P).

        Returns:
            (K, P) with a report.

        Raises:
            NumericsError: the solve failed; the message says by how much and what to change.
        """

    def damped(self, damping: float) -> "IHVP":
        """The same matrix with another damping, without fitting it again.

        Raises:
            Unsupported: what was fitted depends on the damping.
        """
        del damping
        raise Unsupported(
            found=f"{type(self).__name__} cannot change its damping.",
            why="It keeps no eigenvalues to which another one could be added.",
            remedy="Fit again with damping=..., or use curvature='ekfac', 'exact' or 'refined'.",
        )

    def damped_by(self, times: float) -> "IHVP":
        """The same matrix with so many times its damping.

        Raises:
            Unsupported: what was fitted depends on the damping.
        """
        return self.damped(times * float(self.report["damping"]))

    @property
    def layers(self) -> "KroneckerIHVP | None":
        """The same curvature layer by layer, where the fit has it: a preview of solutions."""
        return None

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (H + damping I)^-1 J_b^T for each example.

        Args:
            jacobians: (B, C, P).

        Returns:
            (B, C, C).

        Raises:
            Unsupported: the curvature only solves.
        """
        del jacobians
        raise Unsupported(
            found=f"{type(self).__name__} offers no leverage.",
            why="It solves for a few vectors, not for every output of every example.",
            remedy='Use curvature="exact".',
        )

    def pair(self, queries: Queries, slopes: Tensor) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Products grad m_q^T (H + damping I)^-1 grad loss_i, where there is a short cut.

        Args:
            queries: Q queries.
            slopes: (Q, C) derivatives of the measurement with respect to the outputs.

        Returns:
            (Q, N) float64 and what there is to report, with "gradient" where it was found on the
            way; None where the solved vectors meet the gradients of the training data one by one.
        """
        del queries, slopes
        return None

    def self_pair(self, batch: Batch) -> Tensor | None:
        """(B,) grad loss_i^T (H + damping I)^-1 grad loss_i, where there is a short cut; or None.

        Args:
            batch: B training examples.
        """
        del batch
        return None

    def solve_changed(self, vectors: Tensor, *, data_factor: float, change: Product) -> Solution:
        """(data_factor H_data + hess r + damping I + change)^-1 v: the matrix of changed data.

        Args:
            vectors: (K, P).
            data_factor: what the data part of the fitted matrix is multiplied with.
            change: a symmetric map that is added, such as minus the part of a removed group.

        Returns:
            (K, P) with a report.

        Raises:
            NegativeCurvature: the changed matrix is not positive: the group decides its own fit.
            Unsupported: the curvature's `offers_changes` is False.
        """
        del vectors, data_factor, change
        raise Unsupported(
            found=f"{type(self).__name__} cannot solve with a changed matrix.",
            why="It has no products with the matrix that it inverts.",
            remedy='Use curvature="exact" or "cg", or removal="first_order".',
        )


@dataclass(frozen=True, eq=False)
class KroneckerIHVP(IHVP):
    """Layers in Kronecker-factored eigenbases, for recipes that make them.

    Args:
        kronecker: bases and eigenvalues of every layer.
        dampings: added to the eigenvalues of each.
        data_scale: s in s F + hess r + damping.
        kept: training gradients in factors; None to make them anew for every set of queries.
        tolerance: relative root mean square of scores that may be left out for speed.
        facts: what the fit has chosen and measured.
        stack_bytes: memory of the solved gradients of the queries of one pass.
    """

    kronecker: Kronecker
    dampings: tuple[float, ...]
    data_scale: float
    kept: Kept | None
    tolerance: float
    facts: Mapping[str, Any]
    stack_bytes: int = STACK_BYTES

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def damped(self, damping: float) -> "KroneckerIHVP":
        """The same bases and eigenvalues with another damping, the same for all layers."""
        return self._with((damping,) * len(self.dampings))

    def damped_by(self, times: float) -> "KroneckerIHVP":
        """The same bases and eigenvalues with so many times the damping of each layer."""
        return self._with(tuple(times * damping for damping in self.dampings))

    def _with(self, dampings: tuple[float, ...]) -> "KroneckerIHVP":
        facts = {**self.facts, **_damping_facts(self.kronecker, dampings, self.data_scale)}
        return replace(self, dampings=dampings, facts=facts)

    def solve(self, vectors: Tensor) -> Solution:
        """The damped inverse of each layer's matrix times its part of each vector."""
        return Solution(self.kronecker.solve(vectors, self.dampings, self.data_scale))

    @property
    def layers(self) -> "KroneckerIHVP":
        """Itself."""
        return self

    def expected_products(self, vectors: Tensor) -> Tensor:
        """(K, K) E (x_k . g) (x_l . g) of solutions x over gradients g of training examples."""
        return self.kronecker.expected_products(vectors, self.dampings, self.data_scale)

    def optimum(self, problem: Problem) -> tuple[Tensor | None, float]:
        """Gradient of the objective and pull of one example, from what is kept if anything is."""
        if self.kept is None:
            return None, example_pull(problem, self.kronecker.squared_lengths)
        return self.kept.gradient(problem, self.kronecker.structure), self.kept.pull(problem)

    def self_pair(self, batch: Batch) -> Tensor:
        """Each gradient against itself, from its factors."""
        return self.kronecker.self_products(batch, self.dampings, self.data_scale)

    def pair(self, queries: Queries, slopes: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
        """Scores from the factors of the gradients; see `whence.calculus.pairing`."""
        pairing = Pairing(
            self.kronecker,
            self.dampings,
            self.data_scale,
            self.kept,
            self.tolerance,
            self.stack_bytes,
        )
        return pairing.scores(queries, slopes)


FEW_OPERATIONS = 3e9
"""Multiplications of backward passes that nothing is saved of: up to so many the Fisher information
is expected, not sampled, and all examples are looked at. They take a few seconds on one core."""


def make_fisher(problem: Problem, kind: FisherName | Literal["auto"], seed: int) -> Fisher:
    """The Fisher information of this name; "auto" is expected where that is cheap.

    It takes a backward pass for every output of every example.
    """
    if kind != "auto":
        return Fisher(kind, seed)
    is_cheap = problem.output_size * _pass_operations(problem) <= FEW_OPERATIONS
    return Fisher("expected" if is_cheap else "sampled", seed)


def _pass_operations(problem: Problem) -> float:
    """Multiplications of a backward pass over the training data."""
    return float(len(problem)) * structure_of(problem).operations


Precision = Literal["full", "bfloat16", "float16"]


@dataclass(frozen=True)
class LayerOptions:
    """How layers are looked at, for curvatures that are made of them.

    Args:
        damping, fisher, accuracy, tolerance, seed, memory, disk, precision: as in `EKFAC`.
    """

    damping: float | Literal["auto"] = "auto"
    fisher: FisherName | Literal["auto"] = "auto"
    accuracy: float = 0.1
    tolerance: float = 0.05
    seed: int = 0
    memory: int | Literal["auto"] = "auto"
    disk: str | None = None
    precision: Precision = "full"

    def check(self) -> None:
        """Refuses options outside their range.

        Raises:
            BadArgument: naming them.
        """
        is_damped = self.damping == "auto" or 0 <= self.damping < float("inf")
        if not is_damped or not self.accuracy >= 0 or not 0 <= self.tolerance < 1:
            raise BadArgument(
                found=f"damping={self.damping!r}, accuracy={self.accuracy!r}, "
                f"tolerance={self.tolerance!r}.",
                why="Damping is added to eigenvalues; accuracy and tolerance are relative errors.",
                remedy='Give a damping of zero or more or "auto", an accuracy of zero or more, and '
                "a tolerance from 0 to 1.",
            )
        if self.precision not in ("full", "bfloat16", "float16"):
            raise BadArgument(
                found=f"precision={self.precision!r}.",
                why='The choices are "full", "bfloat16" and "float16".',
                remedy="Give one of them, or leave precision out.",
            )

    @property
    def dtype(self) -> torch.dtype | None:
        """The narrower type; None for that of the model."""
        return None if self.precision == "full" else getattr(torch, self.precision)

    def plan(self, problem: Problem, *, is_corrected: bool) -> Plan:
        """How the moments of the layers are taken."""
        fisher = make_fisher(problem, self.fisher, self.seed)
        is_cheap = _pass_operations(problem) <= FEW_OPERATIONS
        return Plan(fisher, 0.0 if is_cheap else self.accuracy, is_corrected, self.dtype)


def layer_decay(problem: Problem) -> Tensor:
    """(P,) what the regulariser adds to every eigenvalue, in the type of the parameters.

    Raises:
        Unsupported: its Hessian is not diagonal.
    """
    decay = decay_diagonal(problem)
    if decay is None:
        raise Unsupported(
            found="The Hessian of the regulariser is not diagonal.",
            why="A layer adds one number to its eigenvalues.",
            remedy='Use a weight decay, or curvature="cg".',
        )
    return decay.to(problem.parameters)


def fit_layers(
    problem: Problem,
    options: LayerOptions,
    *,
    name: str,
    is_corrected: bool = True,
    data_scale: float = 1.0,
    keeps: bool = True,
) -> KroneckerIHVP:
    """Kronecker-factored layers with their damping and the training gradients that can be kept.

    Args:
        problem: what was trained.
        options: how it is looked at.
        name: of the curvature, for its report.
        is_corrected: whether eigenvalues are measured (EK-FAC) or products (K-FAC).
        data_scale: s in s F + hess r.
        keeps: whether training gradients are kept where they are small.

    Raises:
        BadArgument: an option outside its range.
        TooLarge: the memory that is allowed, or free, is not enough for anything.
        Unsupported: a loss without Fisher information, or a regulariser that is not diagonal.
    """
    options.check()
    plan = options.plan(problem, is_corrected=is_corrected)
    plan.fisher.check(problem)
    decay = layer_decay(problem)
    room = make_room(problem, structure_of(problem), options.memory, folder=options.disk)
    made: list[Kept] = []

    def keeps_gradients(structure: Structure) -> Visit | None:
        if not keeps:
            return None
        found = keeper(problem, structure, room.kept, folder=room.folder, dtype=options.dtype)
        made.extend(found[:1] if found else ())
        return found[1] if found else None

    kronecker = fit_kronecker(
        problem,
        plan,
        decay,
        keeps=keeps_gradients,
        batch_bytes=room.batch,
    )
    dampings = _dampings(kronecker, options.damping)
    report = {
        "curvature": name,
        "matrix": "ggn",
        "matrix_reason": "each layer by itself, in Kronecker-factored eigenbases",
        **_damping_facts(kronecker, dampings, data_scale),
        "mean_eigenvalue": kronecker.mean(),
        "smallest_eigenvalue": kronecker.smallest(),
        "largest_eigenvalue": kronecker.largest(),
        "precision": options.precision,
        **({"training_gradients": _where(made)} if keeps else {}),
        **kronecker.facts,
    }
    return KroneckerIHVP(
        kronecker,
        dampings,
        data_scale,
        made[0] if made else None,
        options.tolerance,
        report,
        room.stack,
    )


def _dampings(kronecker: Kronecker, wanted: float | Literal["auto"]) -> tuple[float, ...]:
    """That of each layer."""
    if wanted != "auto":
        return (float(wanted),) * len(kronecker.blocks)
    return tuple(LAYER_DAMPING * block.mean() for block in kronecker.blocks)


def _damping_facts(kronecker: Kronecker, dampings: Sequence[float], scale: float) -> dict[str, Any]:
    """The mean damping over all parameters, its range over layers, and what is left out."""
    sizes = [block.values.numel() for block in kronecker.blocks]
    total = sum(size * damping for size, damping in zip(sizes, dampings, strict=True))
    extremes = [min(dampings), max(dampings)]
    is_even = extremes[0] == extremes[1]
    return {
        "damping": extremes[0] if is_even else total / sum(sizes),
        "damping_of_layers": None if is_even else extremes,
        "null_directions": kronecker.null_count(dampings, scale),
    }


def _where(made: list[Kept]) -> str:
    """Where training gradients are kept."""
    if not made:
        return "made anew"
    return "on disk" if made[0].is_on_disk else "in memory"


class Curvature(ABC):
    """Recipe for (H + damping I)^-1."""

    offers_leverage: ClassVar[bool] = False
    """Whether removals may be Newton steps, with the leverages that `IHVP.leverage` answers.

    An approximation can answer and yet not offer it. Over all examples the leverages of the exact
    inverse sum to at most P, and to at most N C; those of an inverse that is too large where the
    approximation knows nothing have no such bound, and the step divides by 1 - leverage.
    """

    offers_changes: ClassVar[bool] = False
    """Whether the fitted curvature answers `IHVP.solve_changed`."""

    def leverage_operations(self, problem: Problem) -> float:
        """Multiplications that the leverage of every training example takes: N C P^2."""
        return float(len(problem)) * problem.output_size * problem.size**2

    @abstractmethod
    def fit(self, problem: Problem, *, data_scale: float = 1.0) -> IHVP:
        """Pays the cost that does not depend on the queries.

        Args:
            problem: what was trained.
            data_scale: s in s H_data + H_regulariser; 1, or N/(N-1) for one removal under
                `renormalize`.

        Raises:
            NumericsError: the matrix cannot be inverted as asked.
            TooLarge: it does not fit in memory.
        """


# ------------------------------------------------------------------ curvatures of low rank


TRACE_PROBES = 30
"""Vectors of random signs behind an estimated trace."""

_VISIBLE = 1e-6
"""Share of a vector's norm outside the captured space above which a solve without it says so."""


def least_decay(problem: Problem) -> float:
    """What the regulariser adds to every eigenvalue at least; 0 where it couples parameters."""
    decay = decay_diagonal(problem)
    return 0.0 if decay is None else float(decay.min())


@dataclass(frozen=True)
class Trace:
    """The trace of H - floor I, where floor is what the regulariser adds everywhere.

    Args:
        captured: the part that an approximation holds.
        rest: an estimate of what it leaves out.
        error: its standard error.
    """

    captured: float
    rest: float
    error: float

    def facts(self) -> dict[str, Any]:
        """The captured share with its standard error; None where there is nothing to capture."""
        total = self.captured + self.rest
        if not total > 0:
            return {"captured_trace": None, "captured_trace_error": None}
        share = self.captured / total
        return {"captured_trace": share, "captured_trace_error": abs(share) * self.error / total}

    def damping(self, size: int, floor: float) -> float:
        """Three times the mean eigenvalue of H."""
        return AUTO_DAMPING * ((self.captured + self.rest) / size + floor)


@dataclass(frozen=True)
class LowRankIHVP(IHVP):
    """A matrix that is known along a few directions, and by its floor along all others.

    Args:
        matrix: the whole matrix as a linear map, for residuals that do not trust the few.
        known: eigenvalues along the few directions, without damping.
        damping: added to every eigenvalue.
        facts: what the fit has found.

    Raises:
        NegativeCurvature: an eigenvalue with its damping is not positive.
    """

    matrix: CurvatureMatrix
    known: LowRank
    damping: float
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        smallest = self.known.smallest
        if not smallest + self.damping > 0:
            raise NegativeCurvature(
                found=f"The smallest eigenvalue found of the {self.matrix.kind} is "
                f"{smallest:.3g}, damping {self.damping:.3g}.",
                why="At a saddle the response to a removal is not a minimum of anything.",
                remedy=f'Use matrix="ggn" of a loss that is convex in the outputs, or damping '
                f"above {-smallest:.3g}.",
            )

    @property
    def report(self) -> Mapping[str, Any]:
        """What the fit has chosen and measured."""
        return self.facts

    def solve(self, vectors: Tensor) -> Solution:
        """The damped inverse of what is known times each vector, with the true residual.

        The residual is that of the whole matrix, which takes one product: it tells how far the
        approximation is from the inverse along these very vectors.
        """
        own = vectors.to(self.known.basis)
        solved = self.known.solve(own, self.damping)
        shares = self._outside_shares(own)
        report: dict[str, Any] = {
            "residual": largest_residual(self.matrix, solved, own, damping=self.damping),
            "outside_share": float(shares.max()) if len(shares) else 0.0,
        }
        count = int((shares > _VISIBLE).sum())
        if self.known.is_left_out(self.damping) and count:
            report["warnings"] = [
                f"{count} of {len(vectors)} query gradients reach out of the captured space (up "
                f"to {float(shares.max()):.1%} of their norm); that part is left out, for want of "
                "damping or of a weight decay of every parameter."
            ]
        return Solution(solved.to(vectors), report)

    def leverage(self, jacobians: Tensor) -> Tensor:
        """K_b = J_b (H + damping I)^-1 J_b^T for each example, by what is known of H."""
        return self.known.leverage(jacobians.to(self.known.basis), self.damping).to(jacobians)

    def _outside_shares(self, vectors: Tensor) -> Tensor:
        """(K,) the share of each row's norm that lies outside the captured space."""
        outside = self.known.split(vectors)[1].norm(dim=1)
        return outside / vectors.norm(dim=1).clamp_min(torch.finfo(outside.dtype).tiny)
