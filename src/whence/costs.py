"""What an explanation will take, before any cost: memory, disk, time, and what it will cover.

Memory follows from counting the arrays that live at the same time. Time is measured: the products,
gradients and decompositions that a method consists of run once on a few examples, and are counted.
Both are meant to be right within a factor of two, as a basis for the decision to start.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whence.calculus.bulk import Group, group_size
from whence.calculus.gradients import gradients, inner, jacobians, pull_back
from whence.calculus.kronecker import (
    FIRST_ROUND,
    Kronecker,
    Pass,
    basis_examples,
    batch_size,
    example_bytes,
    fit_kronecker,
    loss_factors,
    sum_of_squares,
)
from whence.calculus.layers import Structure, structure_of
from whence.calculus.pairing import Pairing, kept_size
from whence.calculus.products import CurvatureMatrix, MatrixName, hessian_is_ggn
from whence.calculus.replay import (
    Derivatives,
    Walk,
    adjoint_bytes,
    chunk_size,
    repeats,
    rooms,
    step_bytes,
)
from whence.calculus.rooms import Room, fixed_bytes, make_room, query_bytes
from whence.calculus.training import Course, Training
from whence.calculus.watching import Factors
from whence.core.batches import Batch
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.curvature import Curvature, make_curvature
from whence.curvature.arnoldi import Arnoldi
from whence.curvature.base import (
    AUTO_DAMPING,
    LAYER_DAMPING,
    TRACE_PROBES,
    LayerOptions,
    make_fisher,
)
from whence.curvature.cg import CG
from whence.curvature.diagonal import Diagonal, squared_gradients
from whence.curvature.dual import Dual, dual_bytes
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.identity import Identity
from whence.curvature.kfac import KFAC
from whence.curvature.lissa import LiSSA
from whence.curvature.nystrom import Nystrom
from whence.curvature.refined import Refined
from whence.explanation import choose
from whence.methods import Influence, Method, make_method
from whence.methods.base import MeasurementLike
from whence.methods.embedding import Embedding
from whence.methods.ensemble import Ensemble
from whence.methods.gradcos import GradCos
from whence.methods.loss import TrainLoss
from whence.methods.magic import MAGIC
from whence.methods.source import Source
from whence.methods.tracin import TracIn
from whence.numerics.memory import in_words
from whence.tables import html_table, plain_table

CG_STEPS = 30
"""Steps that a preconditioned solve is assumed to take: what the default tolerance mostly needs."""

REFINED_STEPS, REFINED_BLOCK = 65, 10
"""EK-FAC as preconditioner is assumed to leave 65 / (1 + Q / 10) steps: all queries search in one
space. `benchmarks/preflight_accuracy.py` prints how many it takes on two perceptrons."""

_TRIAL_EXAMPLES, _TRIAL_VECTORS, _TRIAL_NUMBERS = 256, 64, 2**24
"""A trial takes at most so many examples and vectors, and numbers in its vectors together."""

_TRIAL_OPERATIONS = 3 * 10**8
"""Multiplications of a trial fit of layers: the more examples it sees, the truer the number of
terms in which their reciprocals are written."""

_FEW_QUERIES, _SOME_QUERIES = 16, 128
"""Queries of two trials, which tell what each takes from what all share."""

_JACOBIAN_BYTES = 3 * 64 * 2**20
"""A batch of Jacobians is held near 64 MB, and so are two products of it."""


@dataclass(frozen=True)
class Preflight:
    """What an explanation will take.

    Args:
        problem: its name.
        examples: N.
        queries: Q; one where none were given.
        parameters_covered: P, the parameters that may move.
        parameters_total: how many the model has.
        uncovered: names of the tensors that stay fixed; effects through them are left out.
        method: its name.
        reason: why this method.
        removal: "newton" or "first_order"; None for a method that has no such choice.
        damping: the number, or when it is decided.
        measurement: its name.
        unit: of the effects.
        sign: what a positive effect means.
        memory_bytes: peak on top of model and data; None where the method is not known here.
        disk_bytes: of the saved scores.
        fit_seconds: paid once for any number of queries; None where not known.
        scores_seconds: for these queries; None where not known.
    """

    problem: str
    examples: int
    queries: int
    parameters_covered: int
    parameters_total: int
    uncovered: tuple[str, ...]
    method: str
    reason: str
    removal: str | None
    damping: float | str
    measurement: str
    unit: str
    sign: str
    memory_bytes: int | None
    disk_bytes: int
    fit_seconds: float | None
    scores_seconds: float | None

    @property
    def seconds(self) -> float | None:
        """Fit and scores together."""
        if self.fit_seconds is None or self.scores_seconds is None:
            return None
        return self.fit_seconds + self.scores_seconds

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return asdict(self) | {"uncovered": list(self.uncovered), "seconds": self.seconds}

    def __repr__(self) -> str:
        return plain_table(self._title(), self.rows())

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        return html_table(self._title(), self.rows())

    def _title(self) -> str:
        queries = "1 query" if self.queries == 1 else f"{self.queries:,} queries"
        return f"Preflight: {queries} x {self.examples:,} training examples of {self.problem}"

    def rows(self) -> list[tuple[str, str]]:
        """The same in words: names and texts."""
        removal = f" ({self.removal.replace('_', ' ')} removal)" if self.removal else ""
        covered = f"{self.parameters_covered:,} of {self.parameters_total:,}"
        fixed = f"; fixed: {', '.join(self.uncovered)}" if self.uncovered else ""
        return [
            ("method", f"{self.method}{removal}: {self.reason}"),
            ("memory", _size(self.memory_bytes)),
            ("disk", _size(self.disk_bytes)),
            ("time", self._time()),
            ("parameters", f"{covered} covered{fixed}"),
            ("damping", f"{self.damping}"),
            ("measurement", f"{self.measurement} (unit: {self.unit})"),
            ("sign", self.sign),
        ]

    def _time(self) -> str:
        if self.fit_seconds is None or self.scores_seconds is None:
            return "not known for this method"
        parts = (f"fit {_duration(self.fit_seconds)}", f"scores {_duration(self.scores_seconds)}")
        return f"{_duration(self.fit_seconds + self.scores_seconds)} ({', '.join(parts)})"


def preflight(
    problem: Problem,
    queries: object = None,
    *,
    method: str | Method = "auto",
    measurement: MeasurementLike = None,
) -> Preflight:
    """What `explain` with these arguments will take; a second or two of trials, no more.

    Args:
        problem: what was trained.
        queries: as in `explain`; without any, the answer is for one query.
        method: "auto", a name, or a recipe.
        measurement: as in `explain`.

    Returns:
        Method, memory, disk, time, coverage, damping, sign and unit.

    Raises:
        WhenceError: the problem, the queries or a name would be refused by `explain` as well.
    """
    problem.check()
    asked = problem.queries(_one_example(problem) if queries is None else queries)
    asked_for, reason = _resolve(problem, method)
    recipe = asked_for.member if isinstance(asked_for, Ensemble) else asked_for
    measured = problem.measurement(measurement)
    curvature = make_curvature(recipe.curvature) if isinstance(recipe, Influence) else None
    is_calibrated = recipe.is_calibrated and not isinstance(curvature, Identity)
    is_newton = (
        isinstance(recipe, Influence)
        and curvature is not None
        and recipe.takes_newton(problem, curvature)
    )
    if curvature is None:
        takes = _plain(problem, recipe, len(asked))
    else:
        takes = _takes(problem, curvature, len(asked), is_newton=is_newton)
    if isinstance(asked_for, Ensemble):
        takes = _members(problem, asked_for.size, takes, queries=len(asked))
    facts = problem.facts()
    named = dict(problem.model.named_parameters())
    unit = measured.unit if is_calibrated else "arbitrary"
    return Preflight(
        problem=problem.name,
        examples=len(problem),
        queries=len(asked),
        parameters_covered=problem.size,
        parameters_total=facts["parameters_total"],
        uncovered=tuple(name for name in named if name not in problem.layout.shapes),
        method=_name(asked_for if recipe is not asked_for or curvature is None else curvature),
        reason=reason,
        removal=None if curvature is None else "newton" if is_newton else "first_order",
        damping=_damping(curvature),
        measurement=measured.name,
        unit=unit,
        sign=_sign(measured, unit),
        memory_bytes=takes.bytes,
        disk_bytes=_disk(problem, asked),
        fit_seconds=takes.fit_seconds,
        scores_seconds=takes.scores_seconds,
    )


# ------------------------------------------------------------------ what will be done


def _one_example(problem: Problem) -> tuple[Any, Tensor | None]:
    return problem.data.take(torch.arange(1))


def _resolve(problem: Problem, method: str | Method) -> tuple[Method, str]:
    if isinstance(method, str) and method == "auto":
        choice = choose(problem)
        return choice.method, choice.reason
    return make_method(method), "asked for"


def _name(recipe: Method | Curvature) -> str:
    """The name of its file, which is the name that users write."""
    return type(recipe).__module__.rpartition(".")[2]


def _damping(curvature: Curvature | None) -> float | str:
    damping: float | str | None = getattr(curvature, "damping", None)
    if damping is None:
        return "none"
    if damping != "auto":
        return float(damping)
    if isinstance(curvature, EKFAC | KFAC):
        return f"decided by the fit: {LAYER_DAMPING:g} times the mean eigenvalue of each layer"
    if isinstance(curvature, Refined):
        return f"decided by the fit: {AUTO_DAMPING:g} times the mean eigenvalue"
    return "decided by the fit: 0 where it is not needed"


def _sign(measured: Measurement, unit: str) -> str:
    words = measured.name.replace("_", " ")
    return f"positive = the {words} goes up when the example is removed (unit: {unit})"


# ------------------------------------------------------------------ what it will take


@dataclass(frozen=True)
class _Takes:
    """Bytes at the peak, seconds for the fit, and seconds for the scores of all queries."""

    bytes: int | None
    fit_seconds: float | None
    scores_seconds: float | None


def _plain(problem: Problem, recipe: Method, queries: int) -> _Takes:
    """Methods without a curvature."""
    table = 2 * 8 * queries * len(problem)
    if isinstance(recipe, GradCos):
        batch = problem.batch(torch.arange(min(8, len(problem))))
        once = _seconds(lambda: gradients(problem, batch)) / len(batch)
        products = queries * float(len(problem)) * problem.size / _rate()
        vectors = 2 * queries * problem.size * problem.parameters.element_size()
        return _Takes(
            table + vectors + _JACOBIAN_BYTES, 0.0, once * (queries + len(problem)) + products
        )
    if isinstance(recipe, TrainLoss | Embedding):
        batch = problem.batch(_trial_positions(problem, 1))
        once = _seconds(lambda: problem.losses(problem.parameters, batch)) / len(batch)
        working = _working_bytes(problem, 1)
        return _Takes(table + working, once * len(problem), once * queries)
    if isinstance(recipe, TracIn | Source):
        return _on_the_way(problem, recipe, queries)
    if isinstance(recipe, MAGIC) and isinstance(problem.training, Training):
        return _backwards(Course(problem, problem.training), recipe, queries)
    return _Takes(None, None, None)


def _on_the_way(problem: Problem, recipe: TracIn | Source, queries: int) -> _Takes:
    """A training, and at each checkpoint a pass over the data; for SOURCE a fit by layers too."""
    vector = problem.size * problem.parameters.element_size()
    working = _working_bytes(problem, queries) + 2 * queries * vector + 16 * queries * len(problem)
    training = _training_seconds(problem)
    if isinstance(recipe, TracIn):
        count = recipe.count if recipe.checkpoints is None else len(recipe.checkpoints)
        fit = training if recipe.checkpoints is None else 0.0
        memory = working + 2 * count * vector
    else:
        trial = _layer_trial(problem, LayerOptions(fisher=recipe.fisher, seed=recipe.seed))
        count = recipe.checkpoints
        fit = None if training is None else training + count * trial.fit_seconds()
        memory = working + 2 * count * vector + recipe.segments * trial.bytes()
    return _Takes(memory, fit, count * _stream(problem, queries))


def _backwards(course: Course, recipe: MAGIC, queries: int) -> _Takes:
    """Trainings, and a replay of each run; one step there and back is tried."""
    problem, memory = course.problem, recipe.memory
    walk = Walk(course, torch.ones_like(problem.weights), Derivatives(course, patience=1))
    step = walk.step(0, course.start())
    chunk = min(queries, chunk_size(course))
    adjoint = torch.randn(chunk, *step.state.shape, generator=_generator()).to(step.state)
    walk.back(step, adjoint)  # makes the graph, which the next one compares
    there = _seconds(lambda: walk.step(0, walk.after(step)))
    back = _seconds(lambda: walk.back(step, adjoint)) * queries / chunk
    runs = max(1, recipe.subsets)
    states = min(runs, 2) * min(course.steps, rooms(course, memory)) * step_bytes(course)
    adjoints = min(queries * adjoint_bytes(course), max(memory // 2, adjoint_bytes(course)))
    working = _working_bytes(problem, 1) + 4 * chunk * adjoint_bytes(course)
    return _Takes(
        states + adjoints + working + 8 * runs * queries * len(problem),
        course.steps * there * (1 + 2 * recipe.directions),
        course.steps * (runs * (back + there * repeats(course, memory)) + (runs - 1) * there),
    )


def _members(problem: Problem, count: int, one: _Takes, *, queries: int) -> _Takes:
    """M trainings for the fit; for the scores the fit and scores of M members in turn."""
    memory = None if one.bytes is None else one.bytes + 4 * 8 * queries * len(problem)
    if one.fit_seconds is None or one.scores_seconds is None:
        return _Takes(memory, None, None)
    explaining = count * (one.fit_seconds + one.scores_seconds)
    return _Takes(memory, _training_seconds(problem, count), explaining)


def _training_seconds(problem: Problem, count: int = 1) -> float | None:
    """Trainings from so many seeds, side by side; None where steps are not known one by one.

    The first step pays for what is prepared, the second one stands for all that follow.
    """
    if not isinstance(problem.training, Training):
        return None
    courses = [Course(problem, problem.training, seed) for seed in range(count)]
    together = courses[: group_size(courses[0])]
    rows = torch.ones(len(together), len(problem))
    steps = Group(together, rows, range(len(together))).steps(until=courses[0].steps)
    next(steps)
    laps = [_lap(steps) for _ in range(min(2, courses[0].steps))]
    return (laps[0] + (courses[0].steps - 1) * laps[-1]) * count / len(together)


def _lap(steps: Iterator[object]) -> float:
    start = time.perf_counter()
    next(steps)
    return time.perf_counter() - start


def _takes(problem: Problem, curvature: Curvature, queries: int, *, is_newton: bool) -> _Takes:
    estimates: dict[type, Callable[[Problem, Any, int], _Takes]] = {
        Exact: _exact,
        Dual: _dual,
        CG: _cg,
        LiSSA: _lissa,
        Arnoldi: _arnoldi,
        Nystrom: _nystrom,
        Diagonal: _diagonal,
        Refined: _refined,
        Identity: _identity,
    }
    if isinstance(curvature, EKFAC | KFAC):
        return _layers(problem, curvature, queries)
    estimate = estimates.get(type(curvature))
    if estimate is None:
        return _Takes(None, None, None)
    solve = estimate(problem, curvature, queries)
    stream = _stream(problem, queries)
    table = 2 * 8 * queries * len(problem)  # while it is filled, and as the scores keep it
    held = _held_bytes(problem, curvature)
    if is_newton:
        stream += _jacobian_seconds(problem) + curvature.leverage_operations(problem) / _rate()
        held += _jacobian_bytes(problem)
    passing = max(held, _working_bytes(problem, queries))
    return _Takes(
        bytes=int(max(solve.bytes or 0, passing) + table),
        fit_seconds=solve.fit_seconds,
        scores_seconds=(solve.scores_seconds or 0.0) + stream,
    )


def _exact(problem: Problem, recipe: Exact, queries: int) -> _Takes:
    """P^3 for the eigenvectors; N C P^2 for a Gauss-Newton matrix, P products for a Hessian."""
    del queries
    p = problem.size
    working = _working_bytes(problem, 2 * min(p, 256))
    if recipe.matrix == "ggn" or hessian_is_ggn(problem):
        working = _jacobian_bytes(problem)
        operations = float(len(problem)) * problem.output_size * p**2
        build = _jacobian_seconds(problem) + operations / _rate()
    else:
        build = _product_seconds(problem, "hessian", p)
        if recipe.matrix == "auto":  # a Hessian that is not positive gives way to Gauss-Newton
            working = max(working, _jacobian_bytes(problem))
    size = min(p, 256)
    trial = _square(size)
    decompose = _seconds(lambda: torch.linalg.eigh(trial + trial.T)) * (p / size) ** 3
    return _Takes(_dense_bytes(problem) + working, build + decompose, 0.0)


def _dual(problem: Problem, recipe: Dual, queries: int) -> _Takes:
    """M^2 P for the M x M matrix of all outputs, M^3 / 3 for its factor, six rows a query."""
    del recipe
    outputs = float(len(problem) * problem.output_size)
    build = outputs**2 * problem.size + outputs**3 / 3
    solve = queries * (6 * outputs * problem.size + 2 * outputs**2)
    return _Takes(
        bytes=int(dual_bytes(problem)) + 8 * 8 * queries * problem.size,
        fit_seconds=_jacobian_seconds(problem) + build / _rate(),
        scores_seconds=solve / _rate() + _product_seconds(problem, "ggn", queries),
    )


def _cg(problem: Problem, recipe: CG, queries: int) -> _Takes:
    """`CG_STEPS` products for all queries, and a sketch of some 5,000 examples before them."""
    is_linear = hessian_is_ggn(problem)
    matrix: MatrixName = "hessian" if recipe.matrix == "hessian" and not is_linear else "ggn"
    rank = min(recipe.rank, problem.size)
    vector = problem.size * problem.parameters.element_size()
    sketch = _product_seconds(problem, "ggn", rank) * min(1.0, 5000 / len(problem))
    sketch += 4 * problem.size * rank**2 / _rate()
    is_measured = recipe.damping == "auto" and not is_linear
    damping = _product_seconds(problem, "ggn", 30) if is_measured else 0.0
    steps = min(CG_STEPS, recipe.max_steps)
    return _Takes(
        bytes=5 * rank * vector + 8 * queries * vector + _working_bytes(problem, 2 * queries),
        fit_seconds=sketch + damping,
        scores_seconds=steps * _product_seconds(problem, matrix, queries),
    )


@dataclass(frozen=True)
class _LayerTrial:
    """Kronecker factors of a few examples, and what they have taken.

    Args:
        kronecker: bases and eigenvalues.
        room: memory of the parts of the fit.
        fixed: seconds that do not grow with the examples, such as those of the eigenvectors.
        looking: seconds for the examples that are looked at: those of the first round, which is
            the last one where it is accurate enough.
    """

    kronecker: Kronecker
    room: Room
    fixed: float
    looking: float

    @property
    def structure(self) -> Structure:
        """The blocks of the model."""
        return self.kronecker.structure

    def fit_seconds(self) -> float:
        """Without the pass that keeps the training gradients."""
        return self.fixed + self.looking

    def batch_bytes(self) -> int:
        """What a batch makes on its way."""
        problem = self.kronecker.problem
        size = batch_size(problem, self.structure, self.room.batch)
        return size * example_bytes(problem, self.structure)

    def bytes(self) -> int:
        """Moments in float64, bases, eigenvalues, and a batch."""
        return fixed_bytes(self.kronecker.problem, self.structure) + self.batch_bytes()


def _layer_trial(
    problem: Problem, options: LayerOptions, *, is_corrected: bool = True
) -> _LayerTrial:
    plan = options.plan(problem, is_corrected=is_corrected)
    room = make_room(problem, structure_of(problem), options.memory, folder=options.disk)
    decay = torch.zeros_like(problem.parameters)
    affordable = _TRIAL_OPERATIONS // structure_of(problem).operations
    few = torch.arange(min(len(problem), max(32, min(512, affordable))))
    everything = replace(plan, accuracy=0.0)
    made: list[Kronecker] = []

    def fit() -> None:
        made.append(
            fit_kronecker(problem, everything, decay, keeps=lambda structure: None, only=few)
        )

    once = _seconds(fit)
    kronecker = made[-1]
    run = Pass(problem, kronecker.structure, plan.fisher)
    some = torch.arange(min(_TRIAL_EXAMPLES, batch_size(problem, kronecker.structure, room.batch)))
    look = _seconds(lambda: sum_of_squares(run, some, kronecker.blocks, label="Trial"))
    seconds, count = look / len(some), len(problem)
    used = min(count, FIRST_ROUND) if plan.accuracy > 0 else count
    basis = 0
    if is_corrected:
        basis = basis_examples(kronecker.structure, count) if plan.accuracy > 0 else count
    fixed = max(0.0, once - seconds * len(few) * (2 if is_corrected else 1))
    return _LayerTrial(kronecker, room, fixed, seconds * (used + basis))


def _layers(problem: Problem, recipe: EKFAC | KFAC, queries: int) -> _Takes:
    """Passes over the data for the moments, and all pairs from the factors of the gradients."""
    options = LayerOptions(**asdict(recipe))
    trial = _layer_trial(problem, options, is_corrected=isinstance(recipe, EKFAC))
    structure, room = trial.structure, trial.room
    numbers = len(problem) * sum(kept_size(block) for block in structure.blocks)
    kept = numbers * (2 if options.dtype else problem.parameters.element_size())
    is_in_memory = kept <= room.kept
    passing = _factor_seconds(trial) * len(problem)
    stack = min(room.stack, queries * query_bytes(problem, structure))
    table = 2 * 8 * queries * len(problem)
    held = (kept if is_in_memory else 0) + table
    scoring = _pairing_seconds(trial, queries, recipe.tolerance)
    is_anew = not is_in_memory and room.folder is None
    return _Takes(
        bytes=int(held + max(trial.bytes(), stack + trial.batch_bytes())),
        fit_seconds=trial.fit_seconds() + (0.0 if is_anew else passing),
        scores_seconds=scoring + (passing if is_anew else 0.0),
    )


def _factor_seconds(trial: _LayerTrial) -> float:
    """The factors of the gradient of one training example."""
    problem, structure = trial.kronecker.problem, trial.structure
    batch = problem.batch(_trial_positions(problem, 1))
    return _seconds(lambda: _trial_factors(problem, structure, batch)) / len(batch)


def _pairing_seconds(trial: _LayerTrial, queries: int, tolerance: float) -> float:
    """All pairs, once the factors of the training gradients are there.

    What a pass costs for one query falls with their number, so that trials take many.
    """
    problem, structure = trial.kronecker.problem, trial.structure
    dampings = tuple(LAYER_DAMPING * block.mean() for block in trial.kronecker.blocks)
    pairing = Pairing(trial.kronecker, dampings, 1.0, None, tolerance)
    few, some = min(queries, _FEW_QUERIES), min(queries, _SOME_QUERIES)
    asked = problem.queries(problem.data.take(torch.arange(some) % len(problem)))
    slopes = torch.randn(some, problem.output_size, generator=_generator()).to(problem.parameters)
    little, more = (
        _seconds(lambda n=n: pairing.sides(asked, slopes, torch.arange(n))) for n in (few, some)
    )
    each = max(0.0, more - little) / max(1, some - few)
    solve = max(0.0, little - each * few) + each * queries if some > few else little
    sides = pairing.sides(asked, slopes, torch.arange(some))
    batch = problem.batch(_trial_positions(problem, 1))
    factors = _trial_factors(problem, structure, batch)
    total = problem.parameters.new_zeros(some, len(batch))

    def meet() -> None:
        for side, block, part in zip(sides, structure.blocks, factors, strict=True):
            side.add_to(total, block, part)

    return solve + _seconds(meet) / some / len(batch) * queries * len(problem)


def _trial_factors(problem: Problem, structure: Structure, batch: Batch) -> list[Factors]:
    return loss_factors(structure.watch(problem, batch.inputs, len(batch)), batch)


def _refined(problem: Problem, recipe: Refined, queries: int) -> _Takes:
    """EK-FAC without its scores, and a Gauss-Newton product with all queries for every step."""
    options = LayerOptions(recipe.damping, recipe.fisher)
    trial = _layer_trial(problem, options)
    steps = min(int(REFINED_STEPS / (1 + queries / REFINED_BLOCK)) + 1, recipe.max_steps)
    vectors = 8 * queries * problem.size * problem.parameters.element_size()
    return _Takes(
        bytes=trial.bytes() + vectors + _working_bytes(problem, 2 * queries),
        fit_seconds=trial.fit_seconds(),
        scores_seconds=steps * _product_seconds(problem, "ggn", queries),
    )


def _lissa(problem: Problem, recipe: LiSSA, queries: int) -> _Takes:
    """One product with a sampled matrix a step."""
    positions = torch.arange(min(recipe.samples or len(problem), len(problem)))
    sampled = CurvatureMatrix(problem, recipe.matrix, positions=positions)
    vectors = _trial_vectors(problem, queries)
    step = _seconds(lambda: sampled(vectors)) * queries / len(vectors)
    scale = 400 * _seconds(lambda: sampled(vectors[:1])) if recipe.scale == "auto" else 0.0
    residual = _product_seconds(problem, recipe.matrix, queries)
    return _Takes(
        bytes=6 * queries * problem.size * problem.parameters.element_size()
        + _working_bytes(problem, 2 * queries),
        fit_seconds=scale,
        scores_seconds=recipe.depth * recipe.repeats * step + residual,
    )


def _arnoldi(problem: Problem, recipe: Arnoldi, queries: int) -> _Takes:
    """A product for every block, one for the trace, and one for the residual."""
    is_linear = hessian_is_ggn(problem)
    matrix: MatrixName = "hessian" if recipe.matrix == "hessian" and not is_linear else "ggn"
    rank, vector = _rank(problem, recipe.rank), problem.size * problem.parameters.element_size()
    block = min(recipe.block, rank)
    steps = -(-rank // block) * _product_seconds(problem, matrix, block)
    steps += 6 * problem.size * rank**2 / _rate()
    working = _working_bytes(problem, 2 * max(block, TRACE_PROBES))
    return _Takes(
        bytes=(2 * rank + 4 * (block + TRACE_PROBES)) * vector + working,
        fit_seconds=steps + _product_seconds(problem, matrix, TRACE_PROBES),
        scores_seconds=_low_rank_seconds(problem, matrix, rank, queries),
    )


def _nystrom(problem: Problem, recipe: Nystrom, queries: int) -> _Takes:
    """A product with all probes, one for the trace, and one for the residual."""
    rank = _rank(problem, recipe.rank)
    products = sum(_product_seconds(problem, "ggn", count) for count in (rank, TRACE_PROBES))
    return _Takes(
        bytes=5 * rank * problem.size * 8 + _working_bytes(problem, 2 * rank),
        fit_seconds=products + 10 * problem.size * rank**2 / _rate(),
        scores_seconds=_low_rank_seconds(problem, "ggn", rank, queries),
    )


def _low_rank_seconds(problem: Problem, matrix: MatrixName, rank: int, queries: int) -> float:
    """Four multiplications a number of the basis for each query, and the product of a residual."""
    inside = 4 * queries * rank * problem.size / _rate()
    return inside + _product_seconds(problem, matrix, queries)


def _diagonal(problem: Problem, recipe: Diagonal, queries: int) -> _Takes:
    """A pass over the data for squared gradients, and the product of a residual."""
    fisher = make_fisher(problem, recipe.fisher, seed=0)
    structure = structure_of(problem)
    few = torch.arange(min(_TRIAL_EXAMPLES, batch_size(problem, structure)))
    each = _seconds(lambda: squared_gradients(problem, fisher, few)) / len(few)
    return _Takes(
        bytes=batch_size(problem, structure) * example_bytes(problem, structure)
        + 2 * (queries + 1) * problem.size * 8
        + _working_bytes(problem, 2 * queries),
        fit_seconds=each * len(problem),
        scores_seconds=_product_seconds(problem, "ggn", queries),
    )


def _rank(problem: Problem, rank: int) -> int:
    return min(rank, problem.size)


def _identity(problem: Problem, recipe: Identity, queries: int) -> _Takes:
    """Nothing to solve."""
    del recipe
    return _Takes(2 * queries * problem.size * problem.parameters.element_size(), 0.0, 0.0)


def _dense_bytes(problem: Problem) -> int:
    """Matrix, eigenvectors and twice P^2 of workspace, in float64."""
    return 4 * 8 * problem.size**2


def _held_bytes(problem: Problem, curvature: Curvature | None) -> int:
    """What a fitted curvature keeps while the training data streams by."""
    if isinstance(curvature, Exact):
        return _dense_bytes(problem) // 4
    if isinstance(curvature, Dual):
        outputs = len(problem) * problem.output_size
        return 8 * outputs * (problem.size + outputs)
    if isinstance(curvature, Arnoldi | Nystrom):
        vector = problem.size * problem.parameters.element_size()
        return _rank(problem, curvature.rank) * vector
    return 0


def _jacobian_bytes(problem: Problem) -> int:
    numbers = len(problem) * problem.output_size * problem.size
    return min(_JACOBIAN_BYTES, 3 * 8 * numbers)


def _working_bytes(problem: Problem, stack: int) -> int:
    """Activations of a batch with K = `stack` vectors beside them."""
    return problem.batch_size(stack) * problem.example_bytes(stack)


def _disk(problem: Problem, queries: Queries) -> int:
    """The effects, the queries as they were asked, and the ids."""
    arrays = [*queries.arrays().values(), queries.ids, problem.data.ids]
    return 8 * len(queries) * (len(problem) + 1) + sum(array.nbytes for array in arrays)


# ------------------------------------------------------------------------ trial runs


def _stream(problem: Problem, queries: int) -> float:
    """One pass over the training data with a direction for each query."""
    vectors = _trial_vectors(problem, queries)
    batch = problem.batch(_trial_positions(problem, len(vectors)))
    once = _seconds(lambda: inner(problem, vectors, batch))
    return once * len(problem) / len(batch) * queries / len(vectors)


def _jacobian_seconds(problem: Problem) -> float:
    """The Jacobians of all examples, some of which are tried; a row of one where that is large."""
    outputs = problem.output_size
    few = min(8, len(problem), _TRIAL_NUMBERS // (outputs * problem.size))
    batch = problem.batch(torch.arange(max(1, few)))
    if few:
        return _seconds(lambda: jacobians(problem, batch)) / few * len(problem)
    slopes = torch.ones(1, outputs).to(problem.parameters)
    once = _seconds(lambda: pull_back(problem, batch.inputs, slopes))
    return once * outputs * len(problem)


def _product_seconds(problem: Problem, matrix: MatrixName, vectors: int) -> float:
    """One product of the whole matrix with a stack of vectors."""
    if vectors == 0:
        return 0.0
    trial = _trial_vectors(problem, vectors)
    few = _trial_positions(problem, 2 * len(trial))
    product = CurvatureMatrix(problem, matrix, positions=few)
    once = _seconds(lambda: product(trial))
    return once * len(problem) / len(few) * vectors / len(trial)


def _rate() -> float:
    """Multiplications a second in float64 matrix products."""
    trial = _square(384)
    return len(trial) ** 3 / _seconds(lambda: trial @ trial)


def _trial_vectors(problem: Problem, wanted: int) -> Tensor:
    most = max(1, min(_TRIAL_VECTORS, _TRIAL_NUMBERS // problem.size))
    trial = torch.randn(min(wanted, most), problem.size, generator=_generator())
    return trial.to(problem.parameters)


def _square(size: int) -> Tensor:
    return torch.randn(size, size, dtype=torch.float64, generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _trial_positions(problem: Problem, stack: int) -> Tensor:
    """The examples of one batch, as it would be streamed, or some of them."""
    return torch.arange(min(_TRIAL_EXAMPLES, problem.batch_size(stack)))


def _seconds(code: Callable[[], object]) -> float:
    """The shorter of two runs: the first one may pay for what is made once."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        code()
        best = min(best, time.perf_counter() - start)
    return best


# ----------------------------------------------------------------------------- words


def _size(amount: int | None) -> str:
    return "not known for this method" if amount is None else f"about {in_words(amount)}"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    if seconds < 120:
        return f"about {seconds:.{1 if seconds < 10 else 0}f} s"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:.0f} h"
