"""The other schools of explanation, beside effects, for the same prediction.

They freeze the model and look at the input: the region that mattered (integrated gradients,
Grad-CAM), a simpler model nearby (LIME), the training examples that excite the answer most. The
first three are computed by captum, an optional package; whence says what is measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt, prod
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from whence.core.batches import Batch
from whence.core.display import Display
from whence.core.heatmap import heat_map
from whence.core.measurements import make_measurement, predicted_targets
from whence.core.prepared import PreparedData
from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.errors import BadArgument, BadData, NonFinite, Unsupported
from whence.methods.base import MeasurementLike, stream
from whence.sections import Bars, Block, Gallery, Section, Table
from whence.store.jsonable import as_json
from whence.uses.base import Result

Baseline = Literal["auto", "zero", "mean"]

STEPS = (64, 256, 1024)
"""Points on the way from the baseline, taken until the attributions add up."""

ADDS_UP = 1e-3
"""Largest residual of integrated gradients that is not warned about, as a share of their sizes."""

SAMPLES, SAMPLES_PER_FEATURE = 1024, 8
"""Inputs that the local model is fitted to and judged by: the larger of the two."""

MOST_FEATURES = 1000
"""A linear model of more features is neither simple nor fitted in seconds."""

KERNEL_WIDTH = 0.25
"""Of the local model, the width that the authors of LIME take for pictures."""

FITS = 0.5
"""A local model that explains less of what happens nearby is warned about."""

SHOWN, BARS = 6, 12
"""Training examples, and columns, that a section shows."""


# ------------------------------------------------------------------------- what is found


@dataclass(frozen=True, eq=False)
class Attribution:
    """Integrated gradients: how much each number of the input adds to the measurement.

        values[j] = (x_j - b_j) integral_0^1 d m / d x_j (b + a (x - b)) da
        sum_j values[j] = m(x) - m(b)                                           (completeness)

    Args:
        values: in the shape of one input, in the unit of the measurement.
        at_baseline: m(b), the measurement of the baseline b.
        difference: m(x) - m(b).
        steps: points of the integral.

    Source: Sundararajan, Taly & Yan 2017 (arXiv:1703.01365), equation 1, proposition 1.
    """

    values: np.ndarray
    at_baseline: float
    difference: float
    steps: int

    @property
    def residual(self) -> float:
        """How far the attributions are from adding up: their sum minus m(x) - m(b)."""
        return float(self.values.sum()) - self.difference

    @property
    def is_complete(self) -> bool:
        """Whether the residual is at most a thousandth of the attributions."""
        return abs(self.residual) <= ADDS_UP * float(abs(self.values).sum())


@dataclass(frozen=True, eq=False)
class GradCam:
    """Grad-CAM: where the channels of a convolution are active that raise the measurement.

        values[h, w] = sum_c A[c, h, w] mean_{h', w'} d m / d A[c, h', w']

    Without the ReLU of the paper: a negative number speaks against the measurement.

    Args:
        layer: name of the convolution whose outputs are A.
        values: (h, w), as coarse as the layer.
        picture: (H, W), stretched over the input.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), equations 1 and 2.
    """

    layer: str
    values: np.ndarray
    picture: np.ndarray


@dataclass(frozen=True, eq=False)
class LocalModel:
    """LIME: a linear model of which parts of the input are there.

        m(z) ~ intercept + sum_k coefficients[k] z_k,       z_k = 0 where part k is the baseline

    Fitted by least squares to random z in {0, 1}^K, weighted by exp(-d^2 / (2 * 0.25^2)) with
    the cosine distance d = 1 - sqrt(share of parts that are there).

    Args:
        coefficients: (K,) in the unit of the measurement.
        intercept: of the model.
        parts: in the shape of one input, the part 0 to K - 1 that each number belongs to; -1
            where the query equals the baseline.
        r_squared: weighted share of the variance explained, on the fourth of the samples that the
            model was not fitted to.
        samples: inputs that were tried.

    Source: Ribeiro, Singh & Guestrin 2016 (arXiv:1602.04938), section 3.
    """

    coefficients: np.ndarray
    intercept: float
    parts: np.ndarray
    r_squared: float
    samples: int

    @property
    def values(self) -> np.ndarray:
        """The coefficient of each number's part, in the shape of one input; 0 for no part."""
        return np.where(self.parts < 0, 0.0, self.coefficients[self.parts])


@dataclass(frozen=True, eq=False)
class Activations:
    """How strongly each training example excites the answer that the model gave to the query.

    Args:
        name: what is measured, for example "logit of 7".
        values: (N,) of the training examples.
        ids: (N,) of the training examples.
    """

    name: str
    values: np.ndarray
    ids: np.ndarray

    def top(self, k: int = SHOWN) -> list[tuple[int | str, float]]:
        """The k most activating training examples with their values, the largest first."""
        order = np.argsort(-self.values, kind="stable")[:k]
        return [(self.ids[i].item(), float(self.values[i])) for i in order]


@dataclass(frozen=True)
class Asked:
    """The prediction that was explained, in words.

    Args:
        query: id of the query.
        measurement: what was measured, for example "margin of 9", and its unit.
        unit: of the measurement.
        value: m(x).
        answer: what the model says.
        label: of the query; None where it has none.
        baseline: what the input is compared with.
        display: how the query looks.
    """

    query: int | str
    measurement: str
    unit: str
    value: float
    answer: str
    label: str | None
    baseline: str
    display: Display


@dataclass(frozen=True, eq=False, repr=False)
class Schools(Result):
    """The other schools of explanation for one prediction.

    Args:
        asked: the prediction.
        attribution: integrated gradients, or None.
        grad_cam: Grad-CAM, or None where there is no picture or no convolution.
        local_model: LIME, or None.
        activations: of the training examples.
        examples: displays of the most activating training examples, with words.
        places: how the numbers of an input lie in front of a reader.
        warnings: what a reader should know.
    """

    asked: Asked
    attribution: Attribution | None
    grad_cam: GradCam | None
    local_model: LocalModel | None
    activations: Activations
    examples: tuple[tuple[Display, str], ...]
    places: "Places"
    warnings: tuple[str, ...]

    def section(self) -> Section:
        """Heat maps or bars, the most activating training examples, and how well each fits."""
        blocks = [*_regions(self), Gallery(self.examples, _examples_caption(self)), _checks(self)]
        title = f"Other schools: query {self.asked.query}"
        return Section("other_schools", title, _sentence(self), blocks, self.warnings)

    def to_json(self) -> dict[str, Any]:
        """Every number: attributions, coefficients, activations, and what they were made with."""
        asked, cam, local = self.asked, self.grad_cam, self.local_model
        found: dict[str, Any] = {
            "query": asked.query,
            "measurement": {"name": asked.measurement, "unit": asked.unit, "value": asked.value},
            "answer": asked.answer,
            "label": asked.label,
            "baseline": asked.baseline,
            "integrated_gradients": None,
            "grad_cam": None if cam is None else {"layer": cam.layer, "values": cam.values},
            "local_model": None,
            "activations": {
                "name": self.activations.name,
                "ids": self.activations.ids,
                "values": self.activations.values,
            },
            "warnings": self.warnings,
        }
        if self.attribution is not None:
            found["integrated_gradients"] = _fields(
                self.attribution, "values", "at_baseline", "difference", "residual", "steps"
            )
        if local is not None:
            found["local_model"] = _fields(
                local, "coefficients", "intercept", "parts", "r_squared", "samples"
            )
        return as_json(found, "the other schools")


@dataclass(frozen=True, eq=False)
class Places:
    """How the numbers of one input lie in front of a reader: pixels, positions or columns.

    Args:
        index: in the shape of one input, the place of each number; channels share their pixel.
        names: of the places; empty for pixels.
        grid: (H, W) of a picture; None otherwise.
        kind: what a place is called.
    """

    index: np.ndarray
    names: tuple[str, ...]
    grid: tuple[int, int] | None
    kind: Literal["pixel", "position", "column"]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """(number of places,) sums of what stands at each place."""
        return np.bincount(self.index.ravel(), weights=values.ravel())

    def parts(self, regions: int) -> np.ndarray:
        """(number of places,) the part of each: a cell of a grid over a picture, else itself."""
        if self.grid is None:
            return np.arange(int(self.index.max()) + 1)
        rows, columns = (
            np.arange(side) * min(regions, side) // side for side in self.grid
        )
        return (rows[:, None] * (columns.max() + 1) + columns).ravel()


# ------------------------------------------------------------------------- the question


def other_schools(
    problem: Problem,
    queries: object,
    *,
    position: int = 0,
    measurement: MeasurementLike = None,
    regions: int | None = 8,
    baseline: Baseline | object = "auto",
    seed: int = 0,
) -> Schools:
    """The region that mattered, a simpler local model, and the most activating training examples.

    Integrated gradients and LIME explain the measurement itself, m(x) - m(baseline); Grad-CAM the
    same measurement at the last convolution that the model runs. The most activating training
    examples are those on which the answer given to the query is strongest: the logit of its class,
    the margin of its side where there is one logit, the prediction of a regression.

    A pipeline is explained on the features that its last step takes.

    Args:
        problem: the model with its training data.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone.
        position: which of the queries is explained, counted from 0.
        measurement: what is measured on the query; see `whence.explain`.
        regions: LIME cuts a picture into regions x regions cells; a row has its columns for parts
            and a sequence its positions. None leaves out everything that looks at the input, and
            needs neither captum nor inputs that are numbers.
        baseline: what the input is compared with: "zero", "mean" (of the training inputs), or one
            input. "auto" takes zero for pictures and for rows that are mostly zeros, such as
            counts of words, else the mean.
        seed: of the inputs that LIME tries.

    Returns:
        Numbers in the unit of the measurement; positive numbers raise it.

    Raises:
        BadArgument: no such query, too few regions, a baseline of another shape.
        Unsupported: captum is missing, or the inputs are integers or several tensors.
        NonFinite: a gradient on the way from the baseline is not a number.

    Sources: see `Attribution`, `GradCam` and `LocalModel`; most activating inputs: Girshick et al.
    2014 (arXiv:1311.2524), section 3.1, there among held-out regions.
    """
    asked = _one(problem.queries(queries), position)
    measured = _Measured(problem, make_measurement(measurement, problem.loss), asked)
    places = _places(problem, asked) if regions is not None else _no_places()
    found: dict[str, Any] = {"attribution": None, "grad_cam": None, "local_model": None}
    words, warnings = "", []
    if regions is not None:
        _check_regions(regions)
        library = _captum()
        start, words = _baseline(problem, places, asked.inputs, baseline)
        found["attribution"] = _integrate(library, measured, start)
        found["grad_cam"] = _grad_cam(library, measured, places)
        found["local_model"] = _simplify(library, measured, start, places.parts(regions)[places.index], seed)
        warnings = _warnings(problem, found, words)
    activations = _activations(problem, measured)
    return Schools(
        asked=_in_words(measured, words),
        activations=activations,
        examples=_examples(problem, activations),
        places=places,
        warnings=tuple(warnings),
        **found,
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """The measurement of one query as a function of its inputs, at the problem's parameters."""

    problem: Problem
    measurement: Measurement
    asked: Queries

    def __call__(self, inputs: Any) -> Tensor:
        """(B,) for (B, ...) inputs."""
        outputs = self.problem.outputs(self.problem.parameters, inputs)
        return self.of(outputs, self.asked.targets)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """(B,) for (B, ...) outputs and one target for all of them."""
        function = cast("Callable[[Tensor, Tensor], Tensor]", self.measurement.function)
        return function(outputs, target.expand(len(outputs), *target.shape[1:]))
