"""From a problem and queries to scores: resolves the method, and says why it was chosen."""

from dataclasses import dataclass

from whence.calculus.layers import structure_of
from whence.calculus.products import decay_diagonal, hessian_is_ggn
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.curvature.base import make_fisher
from whence.curvature.cg import CG
from whence.curvature.dual import Dual, dual_bytes
from whence.curvature.ekfac import EKFAC
from whence.curvature.exact import Exact
from whence.curvature.refined import Refined
from whence.errors import Stale, WhenceError
from whence.methods import Fitted, Influence, Method, make_method
from whence.methods.base import MeasurementLike
from whence.verification import verify_some

MethodLike = str | Method | Fitted

EXACT_BYTES = 2 * 2**30
"""The exact curvature may take this much memory."""

EXACT_OPERATIONS = 6e12
"""The exact curvature may take this many multiplications: about two minutes on two cores."""

REFINED_OPERATIONS = 3e10
"""EK-FAC is refined where a query takes so many multiplications: about a second on two cores."""


def explain(
    problem: Problem,
    queries: object,
    *,
    measurement: MeasurementLike = None,
    method: MethodLike = "auto",
    verify: int | None = None,
) -> Scores:
    """How much each training example matters to each query.

        effect[q, i] = m_q(parameters trained without i) - m_q(parameters as trained)

    Positive: the measurement goes up without the example.

    Args:
        problem: what was trained; see `make_problem`.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone, which are
            measured at the model's own answer.
        measurement: "margin" (log p / (1 - p) of the target; the default for classes),
            "prediction" (the default for numbers), "loss", "logit", "log_prob", or a callable
            `(outputs, targets) -> one value per query`.
        method: "auto", a name from `whence methods`, a recipe such as
            `Influence(CG(tolerance=1e-8))`, or what `fit` returned.
        verify: how many removals are trained again, to tell how far to believe the effects: random
            halves of the data where the problem has a `Training`, single examples otherwise; see
            `whence.verify`. By default nothing is trained.

    Returns:
        (Q, N) effects that know their sign, unit and report; with `verify` the report carries the
        verdict.

    Raises:
        WhenceError: the problem, the queries or a solve failed; nothing is guessed.
    """
    scores = fit(problem, method).scores(queries, measurement)
    return scores if verify is None else verify_some(problem, scores, verify).scores


def fit(problem: Problem, method: MethodLike = "auto") -> Fitted:
    """The expensive part of a method, paid once for any number of queries.

    Args:
        problem: what was trained.
        method: as in `explain`.

    Returns:
        A fitted method, accepted wherever `method=` is.
    """
    if isinstance(method, Fitted):
        return _same_problem(problem, method)
    if isinstance(method, Method):
        return method.fit(problem).because("asked for")
    if method != "auto":
        return make_method(method).fit(problem).because("asked for")
    choice = choose(problem)
    return choice.method.fit(problem).because(choice.reason)


def _same_problem(problem: Problem, fitted: Fitted) -> Fitted:
    """The fitted method, if it was fitted to this very model and data.

    Raises:
        Stale: it was not.
    """
    other = fitted.problem
    is_same = other is problem or (
        other.loss == problem.loss
        and other.regularizer == problem.regularizer
        and other.fingerprint() == problem.fingerprint()
    )
    if is_same:
        return fitted
    raise Stale(
        found=f"The method was fitted to {other.name} with other parameters, data or objective.",
        why="Its curvature and gradients belong to that problem.",
        remedy="Fit it again: whence.fit(problem, method).",
    )


FAR_CHEAPER = 4
"""The dual form is taken before the exact curvature where it is so many times cheaper: `Exact`
tells more, such as the eigenvalues."""


@dataclass(frozen=True)
class Choice:
    """A method and the reason for it, in words."""

    method: Method
    reason: str


def choose(problem: Problem) -> Choice:
    """The method that `method="auto"` stands for.

    Exact curvature is the most faithful and, for a few thousand parameters, also the cheapest.
    With fewer outputs of training examples than parameters the same inverse is found through the
    examples: where the Hessian equals the Gauss-Newton matrix (linear models) and that is far
    cheaper, else where the exact curvature is too large; a network is then explained with its
    damped Gauss-Newton matrix. Where both are too large, conjugate gradients solve for the queries
    of a linear model, whose Hessian needs no damping. A network's layers are then taken one by one
    (EK-FAC); where a solve for one query takes about a second that is refined on the whole
    Gauss-Newton matrix. Losses whose Fisher information is not known fall back on conjugate
    gradients.
    """
    exact, dual = exact_cost(problem), dual_cost(problem)
    if dual is not None and not _is_affordable(dual):
        dual = None
    if dual is not None and dual.operations * FAR_CHEAPER <= exact.operations:
        reason = f"{_few_outputs(problem, dual)}, and the Hessian is inverted through them"
        if hessian_is_ggn(problem):
            return Choice(Influence(Dual()), reason)
    price = (
        f"P = {problem.size:,}, N = {len(problem):,}: about {exact.bytes / 2**20:,.1f} MB and "
        f"{exact.operations:.1g} multiplications"
    )
    if _is_affordable(exact):
        return Choice(Influence(Exact()), f"exact curvature is affordable ({price})")
    reason = f"exact curvature costs too much ({price}); "
    if dual is not None:
        matrix = "Hessian" if hessian_is_ggn(problem) else "damped Gauss-Newton matrix"
        reason += f"{_few_outputs(problem, dual)}, and the {matrix} is inverted through them"
        return Choice(Influence(Dual()), reason)
    obstacle = " (the model is linear)" if hessian_is_ggn(problem) else _no_layers(problem)
    if obstacle:
        return Choice(
            Influence(CG()), f"{reason}conjugate gradients solve for the queries{obstacle}"
        )
    operations = refined_operations(problem)
    price = f"about {operations:.1g} multiplications a query"
    if operations <= REFINED_OPERATIONS:
        return Choice(Influence(Refined()), f"{reason}EK-FAC is refined to a residual ({price})")
    reason += f"layers are taken one by one; refining them would cost too much ({price})"
    return Choice(Influence(EKFAC()), reason)


def refined_operations(problem: Problem) -> float:
    """Multiplications of `Refined` for one query: 30 Gauss-Newton products of four passes each."""
    return 30 * 4 * float(len(problem)) * structure_of(problem).operations


def _no_layers(problem: Problem) -> str:
    """Why the layers cannot be taken one by one, or nothing."""
    if decay_diagonal(problem) is None:
        return " (the regulariser couples parameters)"
    try:
        make_fisher(problem, "auto", seed=0).check(problem)
    except WhenceError as error:
        return f" ({error.found})"
    return ""


def _is_affordable(cost: "Cost") -> bool:
    return cost.bytes <= EXACT_BYTES and cost.operations <= EXACT_OPERATIONS


def _few_outputs(problem: Problem, cost: "Cost") -> str:
    return (
        f"the {len(problem) * problem.output_size:,} outputs of N = {len(problem):,} examples are "
        f"fewer than the P = {problem.size:,} parameters (about {cost.bytes / 2**20:,.1f} MB and "
        f"{cost.operations:.1g} multiplications)"
    )


@dataclass(frozen=True)
class Cost:
    """Bytes of memory and multiplications."""

    bytes: float
    operations: float


def exact_cost(problem: Problem) -> Cost:
    """What `Exact` takes: four P x P float64 matrices and a batch of Jacobians; 10 P^3 and making.

    Returns:
        Peak memory, and multiplications.
    """
    p, n, c = problem.size, len(problem), problem.output_size
    build = n * p * p * (c if hessian_is_ggn(problem) else 6)
    jacobians = min(8 * n * c * p, 2**26)
    return Cost(bytes=4 * 8 * p * p + 3 * jacobians, operations=10 * p**3 + build)


def dual_cost(problem: Problem) -> Cost | None:
    """What `Dual` takes, with the leverage of every example; None where it has no answer.

    It needs fewer outputs than parameters, a regulariser with a diagonal Hessian that, for a
    linear model, leaves no parameter without decay, and a loss that is known to be convex.
    """
    outputs = float(len(problem) * problem.output_size)
    if outputs >= problem.size or problem.loss.task == "unknown":
        return None
    decay = decay_diagonal(problem)
    if decay is None or float(decay.min()) < 0:
        return None
    if float(decay.min()) == 0 and hessian_is_ggn(problem):
        return None
    build = outputs**2 * problem.size + outputs**3 / 3
    return Cost(dual_bytes(problem), build + Dual().leverage_operations(problem))
