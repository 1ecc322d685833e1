"""What looking at the input says of a measurement: integrated gradients, Grad-CAM, LIME.

All three are computed by captum, an optional package; here stands what is measured, at which
parameters, and how well the answers fit. The model is called functionally and never changed.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from whence.core.problem import Problem, Queries
from whence.core.scores import Measurement
from whence.errors import NonFinite, Unsupported

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

RAW_BATCH = 16
"""Raw inputs that go through a feature extractor at once, with the graph of all its layers."""

FITS = 0.5
"""A local model that explains less of what happens nearby is warned about."""


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
            model was not fitted to; NaN where the measurement does not vary.
        samples: inputs that were tried.

    Source: Ribeiro, Singh & Guestrin 2016 (arXiv:1602.04938), section 3.
    """

    coefficients: np.ndarray
    intercept: float
    parts: np.ndarray
    r_squared: float
    samples: int

    @property
    def is_faithful(self) -> bool:
        """Whether it explains at least half of what happens nearby, or nothing happens there."""
        return not self.r_squared < FITS

    @property
    def values(self) -> np.ndarray:
        """The coefficient of each number's part, in the shape of one input; 0 for no part."""
        return np.where(self.parts < 0, 0.0, self.coefficients[self.parts])


@dataclass(frozen=True, eq=False)
class Measured:
    """The measurement of one query as a function of what is looked at, at fixed parameters.

    Args:
        problem: whose model is called functionally, at the problem's parameters.
        measurement: what is measured.
        asked: one query, whose target the measurement takes.
        raw: (1, ...) the raw query, where that is looked at and not the inputs of the model.
        enter: from raw inputs (B, ...) to inputs of the model, differentiably.
    """

    problem: Problem
    measurement: Measurement
    asked: Queries
    raw: Tensor | None = None
    enter: Callable[[Tensor], Tensor] | None = None

    @property
    def inputs(self) -> Any:
        """What is looked at, (1, ...)."""
        return self.asked.inputs if self.raw is None else self.raw

    def __call__(self, inputs: Any) -> Tensor:
        """(B,) for B of what is looked at."""
        entered = inputs if self.enter is None else self.enter(inputs)
        return self.of(self.problem.outputs(self.problem.parameters, entered), self.asked.targets)

    def of(self, outputs: Tensor, target: Tensor) -> Tensor:
        """(B,) for (B, ...) outputs and one target (1, ...) for all of them."""
        function = cast("Callable[[Tensor, Tensor], Tensor]", self.measurement.function)
        return function(outputs, target.expand(len(outputs), *target.shape[1:]))

    def batch_size(self) -> int:
        """How many are in memory at once; few on their way through a feature extractor."""
        return self.problem.batch_size() if self.enter is None else RAW_BATCH

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Every module that is run, with its name, the extractor's among them."""
        function = getattr(self.enter, "function", None)
        own = list(self.problem.model.named_modules())
        return [*function.named_modules(), *own] if isinstance(function, nn.Module) else own


def import_captum() -> ModuleType:
    """The library that computes what looks at the input, imported when it is first needed."""
    try:
        from captum import attr
    except ImportError as error:
        raise Unsupported(
            found=f"The package captum cannot be imported ({error}).",
            why="Integrated gradients, Grad-CAM and LIME are computed by it; whence does not "
            "bring its own.",
            remedy="pip install 'whence[schools]'; or pass regions=None, which asks for the most "
            "activating training examples alone.",
        ) from error
    return cast("ModuleType", attr)


def integrated_gradients(measured: Measured, start: Tensor) -> Attribution:
    """Integrated gradients by captum, with as many of `STEPS` as it takes until they add up.

    Args:
        measured: at one query.
        start: (1, ...) the baseline.

    Raises:
        Unsupported: captum is missing, or the model has no derivative with respect to its inputs.
        NonFinite: a derivative on the way from the baseline is not a number.
    """
    inputs = measured.inputs
    with torch.no_grad():
        at_start = float(measured(start)[0])
        difference = float(measured(inputs)[0]) - at_start
    chunk = measured.batch_size()
    method = import_captum().IntegratedGradients(measured)

    def take(steps: int) -> Attribution:
        with _differentiable():
            values = method.attribute(
                inputs, baselines=start, n_steps=steps, internal_batch_size=chunk
            )
        return Attribution(_array(values[0]), at_start, difference, steps)

    found = take(STEPS[0])
    for steps in STEPS[1:]:
        if not found.is_complete:
            found = take(steps)
    if not np.isfinite([*found.values.ravel(), difference]).all():
        raise NonFinite(
            found=f"Between the baseline and query {measured.asked.ids[0]} the "
            f"{measured.measurement.name} or its derivative is not a number.",
            why="Integrated gradients add up what happens on all of this way.",
            remedy='Give a baseline that is a possible input, for example baseline="mean".',
        )
    return found


@contextmanager
def _differentiable() -> Generator[None]:
    """Says in the words of whence that there is no derivative with respect to the inputs."""
    try:
        yield
    except RuntimeError as error:
        if "require grad" not in str(error) and "not have been used" not in str(error):
            raise
        raise Unsupported(
            found=f"The measurement has no derivative with respect to the inputs ({error}).",
            why="Integrated gradients and Grad-CAM are made of derivatives.",
            remedy="Look whether the model rounds or detaches its inputs; regions=None leaves "
            "these schools out.",
        ) from error


def grad_cam(measured: Measured, grid: tuple[int, int]) -> GradCam | None:
    """Grad-CAM by captum at the last convolution that runs.

    captum puts a hook on that layer and takes it away again.

    Args:
        measured: at one query, a picture.
        grid: (H, W) of the picture.

    Returns:
        None where the model runs no `nn.Conv2d`, or not on the picture as a whole.

    Raises:
        Unsupported: captum is missing.
    """
    library = import_captum()
    name, layer = _last_convolution(measured)
    if layer is None:
        return None
    with _differentiable():
        values = library.LayerGradCam(measured, layer).attribute(measured.inputs)
    if values.ndim != 4 or len(values) != 1:
        return None
    picture = library.LayerAttribution.interpolate(values, grid, "bilinear")
    return GradCam(name, _array(values[0, 0]), _array(picture[0, 0]))


def _last_convolution(measured: Measured) -> tuple[str, nn.Module | None]:
    """The last nn.Conv2d that the model runs on the query, with its name."""
    called: list[tuple[str, nn.Module | None]] = [("", None)]
    convolutions = [
        (name, module) for name, module in measured.modules() if isinstance(module, nn.Conv2d)
    ]
    handles = [
        module.register_forward_hook(lambda *_, own=(name, module): called.append(own))
        for name, module in convolutions
    ]
    try:
        with torch.no_grad():
            measured(measured.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return called[-1]


def local_model(
    measured: Measured, start: Tensor, parts: np.ndarray, *, seed: int
) -> LocalModel | None:
    """LIME by captum.

    Args:
        measured: at one query.
        start: (1, ...) the baseline that parts are replaced by.
        parts: in the shape of one input, the part that each number belongs to.
        seed: of the inputs that are tried.

    Returns:
        None where no part, or more than `MOST_FEATURES`, differ from the baseline.

    Raises:
        Unsupported: captum is missing.
    """
    library = import_captum()
    inputs = measured.inputs
    differs = _array(inputs[0] != start[0]).astype(bool)
    alive, index = np.unique(parts[differs], return_inverse=True)
    if not 0 < len(alive) <= MOST_FEATURES:
        return None
    own = np.full(parts.shape, -1)
    own[differs] = index
    samples = max(SAMPLES, SAMPLES_PER_FEATURE * len(alive))
    random = torch.Generator().manual_seed(seed)

    def draw(*_: object, **__: object) -> Tensor:
        return torch.randint(2, (1, len(alive)), generator=random).to(inputs.device)

    with torch.no_grad():
        at_start = float(measured(start)[0])
    surrogate = _Surrogate()
    # captum computes in float32: what is left after subtracting m(b) loses fewer digits.
    lime = library.Lime(lambda z: measured(z) - at_start, surrogate, _similarity, draw)
    mask = torch.from_numpy(own.clip(0))[None].to(inputs.device)
    with torch.random.fork_rng(devices=[]):  # captum's linear layer draws initial values
        coefficients = lime.attribute(
            inputs,
            baselines=start,
            feature_mask=mask,
            n_samples=samples,
            perturbations_per_eval=measured.batch_size(),
            return_input_shape=False,
        )
    return LocalModel(
        coefficients=_array(coefficients).ravel(),
        intercept=at_start + surrogate.intercept,
        parts=own,
        r_squared=surrogate.r_squared,
        samples=samples,
    )


def _similarity(_: Tensor, __: Tensor, kept: Tensor, **___: object) -> float:
    """The weight of a sample, by the cosine distance between its kept parts and all parts."""
    distance = 1 - float(kept.double().mean()) ** 0.5
    return float(np.exp(-(distance**2) / (2 * KERNEL_WIDTH**2)))


class _Surrogate:
    """Least squares of captum, fitted to three samples in four and judged by the fourth."""

    def __init__(self) -> None:
        from captum._utils.models.linear_model import SkLearnLinearRegression

        self.model: Any = SkLearnLinearRegression()
        self.r_squared = self.intercept = float("nan")

    def fit(self, train_data: Any) -> None:
        """What captum calls with all samples: kept parts, measurements, weights."""
        columns = train_data.dataset.tensors
        is_held = torch.arange(len(columns[0])) % 4 == 0
        fitted = TensorDataset(*[column[~is_held] for column in columns])
        self.model.fit(DataLoader(fitted, batch_size=len(fitted)))
        kept, values, weights = (column[is_held].double().cpu().numpy() for column in columns)
        own = self.representation().double().cpu().numpy().ravel()
        self.intercept = float(self.model.bias())
        errors = values - kept @ own - self.intercept
        spread = values - np.average(values, weights=weights)
        total = float(weights @ spread**2)
        self.r_squared = 1 - float(weights @ errors**2) / total if total > 0 else float("nan")

    def representation(self) -> Tensor:
        """The coefficients."""
        return self.model.representation()


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
