"""Small problems with names: a few dozen examples, float64, at a minimum unless said otherwise.

`CONVEX` have a `LinearOracle` beside them; `DEEP` are small networks. Every builder is a function
that is called once; problems are immutable, so tests share them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn import datasets
from torch import Tensor, nn

from oracles import (
    Array,
    LinearOracle,
    Logistic,
    OutputLoss,
    SmoothHinge,
    Softmax,
    Squared,
    binary_margin,
    binary_margin_slope,
    margin,
    margin_slope,
    prediction,
    prediction_slope,
    signed_margin,
    signed_margin_slope,
)
from whence.adapters import make_problem
from whence.core.batches import make_data
from whence.core.problem import Problem

LOSSES = {Squared: "mse", Softmax: "cross_entropy", Logistic: "binary_cross_entropy"}
MARGINS: dict[type, tuple[Callable[..., Array], Callable[..., Array]]] = {
    Squared: (prediction, prediction_slope),
    Softmax: (margin, margin_slope),
    Logistic: (binary_margin, binary_margin_slope),
    SmoothHinge: (signed_margin, signed_margin_slope),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, queries for it, and for linear models the reference.

    Args:
        problem: what was trained.
        queries: `(inputs, targets)`.
        oracle: the same objective in numpy.
    """

    problem: Problem
    queries: tuple[Any, Tensor]
    oracle: LinearOracle | None = None

    def renormalized(self) -> "Case":
        """The same problem, asked under the other convention of removal."""
        oracle = None if self.oracle is None else self.oracle.renormalized()
        return Case(replace(self.problem, renormalize=True), self.queries, oracle)

    def query_design(self) -> tuple[Array, Array]:
        """The queries in the form of the oracle's x and y."""
        x, y = self.queries[0].double().numpy(), self.queries[1].numpy()
        if self.oracle.has_intercept:
            x = np.hstack([x, np.ones((len(x), 1))])
        return x, y

    def measured(self, theta: Array) -> Array:
        """(..., Q) the default measurement of every query at oracle parameters (..., P)."""
        x, y = self.query_design()
        value = MARGINS[type(self.oracle.loss)][0]
        rows = [value(self.oracle.predict(t, x), y) for t in np.atleast_2d(theta)]
        return np.stack(rows).reshape(*theta.shape[:-1], len(x))

    def measurement_gradients(self, theta: Array) -> Array:
        """(Q, P) gradient of the default measurement at oracle parameters (P,)."""
        x, y = self.query_design()
        slope = MARGINS[type(self.oracle.loss)][1](self.oracle.predict(theta, x), y)
        return (slope[:, :, None] * x[:, None, :]).reshape(len(x), -1)


def linear_case(
    x: Array,
    y: Array,
    loss: OutputLoss,
    *,
    weight_decay: float,
    queries: tuple[Array, Array],
    intercept: str = "decayed",
    base: Array | None = None,
) -> Case:
    """A linear model at its optimum.

    Args:
        x: (N, d) inputs.
        y: (N,) or (N, C) targets.
        loss: of the outputs.
        weight_decay: l of (l/2)|theta|^2.
        queries: `(inputs, targets)`.
        intercept: "none", "free", or "decayed" like the weights.
        base: (N,) base weights.
    """
    outputs = int(y.max()) + 1 if isinstance(loss, Softmax) else y.reshape(len(y), -1).shape[1]
    has_intercept = intercept != "none"
    design = np.hstack([x, np.ones((len(x), 1))]) if has_intercept else x
    decay = np.full((outputs, design.shape[1]), weight_decay)
    if intercept == "free":
        decay[:, -1] = 0
    weights = np.ones(len(x)) if base is None else base
    oracle = LinearOracle(design, y, loss, outputs, decay.ravel(), weights, has_intercept)
    model = nn.Linear(x.shape[1], outputs, bias=has_intercept).double().eval()
    solved = torch.from_numpy(oracle.flat(oracle.optimum()))
    nn.utils.vector_to_parameters(solved, model.parameters())
    name = LOSSES.get(type(loss)) or f"smooth_hinge:{loss.temperature}"
    problem = make_problem(
        model,
        (x, y),
        loss=name,
        weight_decay=weight_decay,
        regularizer="weight" if intercept == "free" else None,
        sample_weight=base,
    )
    return Case(problem, tuple(torch.from_numpy(part) for part in queries), oracle)


# ------------------------------------------------------------------ convex problems


def _inputs(seed: int, count: int, width: int) -> tuple[np.random.Generator, Array]:
    random = np.random.default_rng(seed)
    return random, random.standard_normal((count, width))


@cache
def ridge() -> Case:
    random, x = _inputs(1, 45, 5)
    y = x @ random.standard_normal(5) + 1 + 0.5 * random.standard_normal(45)
    return linear_case(x[:40], y[:40], Squared(), weight_decay=0.1, queries=(x[40:], y[40:]))


@cache
def ridge_free_intercept() -> Case:
    random, x = _inputs(2, 40, 4)
    y = (x @ random.standard_normal((4, 3)) + random.standard_normal((40, 3))).round(3)
    queries = (x[35:], y[35:])
    return linear_case(
        x[:35], y[:35], Squared(), weight_decay=0.05, queries=queries, intercept="free"
    )


@cache
def ridge_weighted() -> Case:
    random, x = _inputs(3, 34, 4)
    y = x @ random.standard_normal(4) + 0.3 * random.standard_normal(34)
    base = random.uniform(0.2, 3.0, 30)
    base[7] = 0
    queries = (x[30:], y[30:])
    return linear_case(x[:30], y[:30], Squared(), weight_decay=0.2, queries=queries, base=base)


@cache
def logistic() -> Case:
    random, x = _inputs(4, 66, 4)
    y = (random.random(66) < expit(2 * x @ random.standard_normal(4))).astype(np.int64)
    queries = (x[60:], y[60:])
    return linear_case(x[:60], y[:60], Logistic(), weight_decay=0.03, queries=queries)


@cache
def multinomial() -> Case:
    x, y = _three_classes(5, 66)
    queries = (x[60:], y[60:])
    return linear_case(x[:60], y[:60], Softmax(), weight_decay=0.05, queries=queries)


@cache
def multinomial_free_intercept() -> Case:
    """A shift of all intercepts changes nothing: the Hessian has one null direction."""
    x, y = _three_classes(6, 66)
    queries = (x[60:], y[60:])
    return linear_case(
        x[:60], y[:60], Softmax(), weight_decay=0.05, queries=queries, intercept="free"
    )


@cache
def class_weighted() -> Case:
    """Unequal classes with weights by class, times a weight per example, one of them zero."""
    random, x = _inputs(7, 56, 3)
    y = (random.random(56) < expit(x @ [1.0, -1.0, 0.5] - 1)).astype(np.int64)
    by_class = np.where(y[:50] == 1, 2.5, 0.7)
    base = by_class * random.uniform(0.5, 1.5, 50)
    base[3] = 0
    queries = (x[50:], y[50:])
    return linear_case(x[:50], y[:50], Logistic(), weight_decay=0.05, queries=queries, base=base)


@cache
def smooth_hinge() -> Case:
    random, x = _inputs(8, 56, 3)
    y = np.where(x @ [1.0, 1.0, -1.0] + 0.7 * random.standard_normal(56) > 0, 1.0, -1.0)
    queries = (x[50:], y[50:])
    return linear_case(
        x[:50], y[:50], SmoothHinge(0.5), weight_decay=0.1, queries=queries, intercept="none"
    )


CONVEX: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        ridge,
        ridge_free_intercept,
        ridge_weighted,
        logistic,
        multinomial,
        multinomial_free_intercept,
        class_weighted,
        smooth_hinge,
    )
}


def _three_classes(seed: int, count: int) -> tuple[Array, Array]:
    random, x = _inputs(seed, count, 4)
    logits = 1.5 * x @ random.standard_normal((4, 3))
    chances = softmax(logits, axis=1).cumsum(1)
    return x, (random.random((count, 1)) > chances).sum(1).astype(np.int64)


# ------------------------------------------------------------------ real data, bundled


@cache
def digits_one_seven() -> Case:
    """Digits 1 against 7: binary logistic regression."""
    x, y = _digits()
    chosen = (y == 1) | (y == 7)
    return _split(x[chosen], (y[chosen] == 7).astype(np.int64), Logistic(), weight_decay=1e-2)


@cache
def digits() -> Case:
    """All ten digits: multinomial logistic regression."""
    x, y = _digits()
    return _split(x, y, Softmax(), weight_decay=1e-2)


@cache
def breast_cancer() -> Case:
    """569 tumours with 30 standardised measurements each."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return _split(x, y.astype(np.int64), Logistic(), weight_decay=1e-2)


REAL = {case.__name__: case for case in (digits_one_seven, digits, breast_cancer)}


def _digits() -> tuple[Array, Array]:
    x, y = datasets.load_digits(return_X_y=True)
    return x / 16, y.astype(np.int64)


def _split(x: Array, y: Array, loss: OutputLoss, *, weight_decay: float) -> Case:
    """Ten queries, spread over the data; the rest is for training."""
    held = np.zeros(len(x), dtype=bool)
    held[np.linspace(0, len(x) - 1, 10).astype(int)] = True
    return linear_case(
        x[~held], y[~held], loss, weight_decay=weight_decay, queries=(x[held], y[held])
    )


# ------------------------------------------------------------------ networks


@cache
def mlp() -> Case:
    """Two tanh layers at a minimum found by Newton steps: the Hessian is positive definite."""
    random, x = _inputs(9, 45, 3)
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.2 * random.standard_normal(45)
    model = _seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    data = torch.from_numpy(x), torch.from_numpy(y)
    problem = trained(model, (data[0][:40], data[1][:40]), loss="mse", weight_decay=0.05)
    return Case(problem, (data[0][40:], data[1][40:]))


@cache
def mlp_untrained() -> Case:
    """A tanh network at its random start: the Hessian has negative eigenvalues."""
    x, y = _three_classes(10, 35)
    model = _seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    problem = make_problem(model, (x[:30], y[:30]), loss="cross_entropy", weight_decay=1e-3)
    return Case(problem, (torch.from_numpy(x[30:]), torch.from_numpy(y[30:])))


class ConvNet(nn.Module):
    """Two convolutions and a head, for images of 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 2, stride=2), nn.Tanh()
        )
        self.head = nn.Linear(4 * 2 * 2, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).flatten(1))


@cache
def conv() -> Case:
    random, x = _inputs(11, 29, 36)
    y = random.integers(0, 3, 29)
    images = torch.from_numpy(x).reshape(-1, 1, 6, 6)
    problem = trained(
        _seeded(ConvNet),
        (images[:24], torch.from_numpy(y[:24])),
        loss="cross_entropy",
        weight_decay=0.02,
        newton_steps=0,
    )
    return Case(problem, (images[24:], torch.from_numpy(y[24:])))


class BagOfTokens(nn.Module):
    """Mean embedding of the tokens that are not padding, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedded = torch.tanh(self.embedding(tokens)) * mask.unsqueeze(-1)
        return self.head(embedded.sum(1) / mask.sum(1, keepdim=True))


@cache
def tokens() -> Case:
    """Batches are dicts of tokens and a mask."""
    random = np.random.default_rng(12)
    tokens = torch.from_numpy(random.integers(0, 9, (25, 6)))
    mask = (torch.arange(6) < torch.from_numpy(random.integers(2, 7, (25, 1)))).double()
    y = torch.from_numpy(random.integers(0, 2, 25))
    data = ({"tokens": tokens[:20], "mask": mask[:20]}, y[:20])
    problem = trained(
        _seeded(BagOfTokens), data, loss="cross_entropy", weight_decay=0.02, newton_steps=0
    )
    return Case(problem, ({"tokens": tokens[20:], "mask": mask[20:]}, y[20:]))


class TiedLanguageModel(nn.Module):
    """Predicts the next token with the transposed embedding: one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.mix(self.embedding(tokens)))).transpose(1, 2)


@cache
def tied() -> Case:
    """(B, C, T) logits; the loss of an example is summed over its positions."""
    random = np.random.default_rng(13)
    text = torch.from_numpy(random.integers(0, 7, (21, 6)))
    problem = trained(
        _seeded(TiedLanguageModel),
        (text[:16, :-1], text[:16, 1:]),
        loss="cross_entropy",
        weight_decay=0.05,
        newton_steps=0,
    )
    return Case(problem, (text[16:, :-1], text[16:, 1:]))


class Branching(nn.Module):
    """Takes another path where an input is positive: no vmap can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(3, 2)
        self.high = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [torch.tanh((self.high if row[0].item() > 0 else self.low)(row)) for row in x]
        return torch.stack(rows)


class Selecting(Branching):
    """The same function without a branch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.where(x[:, :1] > 0, self.high(x), self.low(x)))


@cache
def branching() -> Case:
    return _branches(Branching)


@cache
def selecting() -> Case:
    """What `branching` computes, in a form that vmap can follow."""
    return _branches(Selecting)


def _branches(kind: Callable[[], nn.Module]) -> Case:
    random, x = _inputs(14, 19, 3)
    y = random.integers(0, 2, 19)
    problem = make_problem(_seeded(kind), (x[:15], y[:15]), loss="cross_entropy", weight_decay=0.1)
    return Case(problem, (torch.from_numpy(x[15:]), torch.from_numpy(y[15:])))


DEEP: dict[str, Callable[[], Case]] = {
    case.__name__: case for case in (mlp, mlp_untrained, conv, tokens, tied, branching)
}
ALL = CONVEX | DEEP


# ------------------------------------------------------------------ making and changing them


def trained(
    model: nn.Module, data: tuple[Any, Tensor], *, newton_steps: int = 8, **options: Any
) -> Problem:
    """A problem whose model was trained by L-BFGS and, where small enough, Newton steps."""
    start = make_problem(model, data, **options)
    theta = start.parameters.clone().requires_grad_(True)
    steps = torch.optim.LBFGS(
        [theta],
        max_iter=1500 if newton_steps else 60,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        steps.zero_grad()
        value = start.objective(theta)
        value.backward()
        return value

    steps.step(closure)
    solved = theta.detach()
    for _ in range(newton_steps):
        solved = solved - torch.linalg.solve(
            torch.autograd.functional.hessian(start.objective, solved),
            torch.autograd.functional.jacobian(start.objective, solved),
        )
    nn.utils.vector_to_parameters(solved, model.parameters())
    return make_problem(model, data, **options)


def rearranged(case: Case, positions: Tensor) -> Problem:
    """The problem with its examples in another order, some left out or twice; ids travel along."""
    problem = case.problem
    inputs, targets = problem.data.take(positions)
    ids = problem.data.ids[positions.numpy()]
    is_repeated = len(np.unique(ids)) < len(ids)
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    data = make_data((*parts, targets), ids=None if is_repeated else ids)
    return replace(problem, data=data, weights=problem.weights[positions])


def single(case: Case) -> Case:
    """The case in float32."""
    problem = case.problem.to(dtype=torch.float32)
    return Case(problem, case.queries, case.oracle)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(20)
        return build().double().eval()
