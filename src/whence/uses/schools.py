"""The other schools of explanation, beside effects, for the same prediction.

They freeze the model and look at the input: the region that mattered (integrated gradients,
Grad-CAM), a simpler model nearby (LIME), the training examples that excite the answer most. The
first three are computed by captum, an optional package; whence says what is measured.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from whence.calculus.gradients import measure
from whence.calculus.regions import (
    MOST_FEATURES,
    Attribution,
    GradCam,
    LocalModel,
    Measured,
    grad_cam,
    import_captum,
    integrated_gradients,
    local_model,
)
from whence.core.batches import Batch, Data, slices
from whence.core.display import Display
from whence.core.extracted import ExtractedData, Extractor
from whence.core.heatmap import heat_map
from whence.core.measurements import make_measurement, predicted_targets
from whence.core.places import Places, find_places
from whence.core.problem import Problem, Queries, call_plainly
from whence.core.scores import Measurement
from whence.errors import BadArgument, Unsupported, unknown_name
from whence.methods.base import MeasurementLike, stream
from whence.sections import Bars, Block, Gallery, Section, Table
from whence.store.jsonable import as_json, json_text
from whence.uses.base import Result

SHOWN, BARS = 6, 12
"""Training examples, and columns, that a section shows."""

MOSTLY_ZERO = 0.5
"""Rows of which a smaller share is not zero, such as counts of words, have zero for a baseline."""


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


@dataclass(frozen=True, eq=False)
class Regions:
    """What looking at the input has found.

    Args:
        places: where the numbers of the input stand.
        inputs: the query, as the model takes it.
        start: the baseline that it is compared with, in the same shape.
        baseline: words for the baseline.
        is_prepared: whether fixed steps have made the inputs from raw examples.
        attribution: integrated gradients.
        grad_cam: Grad-CAM; None where there is no picture, or no convolution.
        local_model: LIME; None where no part, or too many, differ from the baseline.
    """

    places: Places
    inputs: np.ndarray
    start: np.ndarray
    baseline: str
    is_prepared: bool
    attribution: Attribution
    grad_cam: GradCam | None
    local_model: LocalModel | None

    def fields(self) -> list[tuple[str, np.ndarray]]:
        """What each school says of each place, with its name."""
        size = self.places.gather(np.ones(self.places.index.shape))
        fields = [("integrated gradients", self.places.gather(self.attribution.values))]
        if self.grad_cam is not None:
            fields.append((f"Grad-CAM at the layer {self.grad_cam.layer}", self.grad_cam.picture))
        if self.local_model is not None:
            own = self.places.gather(self.local_model.values) / size
            fields.append(("local linear model, by parts", own))
        return fields

    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before believing the numbers."""
        made, local = self.attribution, self.local_model
        found: list[str] = []
        if self.is_prepared:
            found.append(
                "What is explained are the features that fixed steps make of the raw example; each "
                "means what its step says, which may be nothing by itself."
            )
        if not made.is_complete:
            found.append(
                f"Integrated gradients miss {_number(made.residual)} of what they have to add up "
                f"to, after {made.steps} steps: the model jumps between the baseline and the query."
            )
        if local is None:
            found.append(
                f"No local model was fitted: of the parts none, or more than {MOST_FEATURES}, "
                f"differ from {self.baseline}."
            )
        elif not local.is_faithful:
            found.append(
                f"The local model explains {_percent(local.r_squared)} of what happens nearby: "
                "its coefficients say little."
            )
        return tuple(found)


@dataclass(frozen=True)
class Asked:
    """The prediction that was explained, in words.

    Args:
        query: id of the query.
        display: how it looks.
        answer: the class that the model says; empty where its outputs are no classes.
        label: of the query; None where it has none.
        measurement: what was measured, for example "margin of 9".
        unit: of the measurement.
        value: m(x).
    """

    query: int | str
    display: Display
    answer: str
    label: str | None
    measurement: str
    unit: str
    value: float


@dataclass(frozen=True, eq=False, repr=False)
class Schools(Result):
    """The other schools of explanation for one prediction.

    Args:
        asked: the prediction.
        regions: what looking at the input has found; None where nothing looked at it.
        activations: of all training examples.
        examples: the most activating training examples: displays with words.
    """

    asked: Asked
    regions: Regions | None
    activations: Activations
    examples: tuple[tuple[Display, str], ...]

    def section(self) -> Section:
        """Heat maps or bars, the most activating training examples, and how well each fits."""
        caption = (
            "The training examples on which the answer is strongest; the number is their "
            f"{self.activations.name}."
        )
        blocks: list[Block] = [Gallery(self.examples, caption)]
        if self.regions is not None:
            blocks = [*_draw(self.asked, self.regions), *blocks, _checks(self.asked, self.regions)]
        return Section(
            kind="other_schools",
            title=f"Other schools: what they say of query {self.asked.query}",
            sentence=_sentence(self),
            blocks=blocks,
            warnings=() if self.regions is None else self.regions.warnings(),
        )

    def to_json(self) -> dict[str, Any]:
        """Every number: attributions, coefficients, activations, and what they were made with."""
        asked = {name: value for name, value in vars(self.asked).items() if name != "display"}
        found = {
            "kind": "other_schools",
            **asked,
            "activations": _fields(self.activations, "name", "ids", "values"),
            "regions": self.regions and _regions_json(self.regions),
        }
        return json.loads(json_text(as_json(found, "the other schools")))


def _regions_json(regions: Regions) -> dict[str, Any]:
    return {
        **(_fields(regions, "inputs", "start", "baseline", "is_prepared") or {}),
        "places": _fields(regions.places, "kind", "names", "grid"),
        "integrated_gradients": _fields(
            regions.attribution, "values", "at_baseline", "difference", "residual", "steps"
        ),
        "grad_cam": _fields(regions.grad_cam, "layer", "values"),
        "local_model": _fields(
            regions.local_model, "coefficients", "intercept", "parts", "r_squared", "samples"
        ),
        "warnings": regions.warnings(),
    }


def _fields(found: object, *names: str) -> dict[str, Any] | None:
    return None if found is None else {name: getattr(found, name) for name in names}


# ------------------------------------------------------------------------- the question


def other_schools(
    problem: Problem,
    queries: object,
    *,
    position: int = 0,
    measurement: MeasurementLike = None,
    regions: int | None = 8,
    baseline: object = "auto",
    seed: int = 0,
) -> Schools:
    """The region that mattered, a simpler local model, and the most activating training examples.

    Integrated gradients and LIME explain m(x) - m(baseline), the measurement itself; Grad-CAM the
    same measurement at the last convolution that the model runs. The most activating training
    examples are those on which the answer given to the query is strongest: the logit of its class,
    the margin of its side where there is one logit, the prediction of a regression.

    A pipeline is explained on the features that its last step takes. Behind a feature extractor the
    raw input is looked at, where it is a tensor of numbers and torch can follow it through the
    extractor; else its features are.

    Args:
        problem: the model with its training data.
        queries: `(inputs, targets)` in the form of the training data, or inputs alone.
        position: which of the queries is explained, counted from 0.
        measurement: what is measured on the query; see `whence.explain`.
        regions: LIME cuts a picture into regions x regions cells; of a row every column is a part
            by itself, of a sequence every position. None leaves out all that looks at the input,
            and needs neither captum nor inputs that are numbers.
        baseline: what the input is compared with: "zero", "mean" (of the training inputs), or one
            input. "auto" takes zero for pictures and for rows that are mostly zeros, such as
            counts of words, and the mean otherwise.
        seed: of the inputs that LIME tries.

    Returns:
        Numbers in the unit of the measurement; a positive one raises it.

    Raises:
        BadArgument: no such query, too few regions, a baseline of another shape.
        UnknownName: a baseline or measurement that does not exist.
        Unsupported: captum is missing; the inputs are integers, or several tensors; the model
            has no derivative with respect to them.
        NonFinite: a derivative on the way from the baseline is not a number.

    Sources: see `Attribution`, `GradCam` and `LocalModel`; most activating inputs: Girshick et al.
    2014 (arXiv:1311.2524), section 3.1, who looked among held-out regions.
    """
    problem.check()
    data = None if isinstance(queries, Queries) else problem.read(queries)
    asked = _one(problem.queries(queries if data is None else data), position)
    measured = Measured(problem, problem.measurement(measurement), asked)
    value = float(measure(problem, measured.measurement, asked)[0])
    way_in = None if data is None else _entrance(problem, data, position)
    if way_in is not None:
        measured = replace(measured, raw=way_in[0], enter=way_in[1])
    looked = None if regions is None else _look(measured, regions, baseline, seed)
    activations = _activations(measured)
    return Schools(_in_words(measured, value), looked, activations, _examples(problem, activations))


def _look(measured: Measured, regions: int, baseline: object, seed: int) -> Regions:
    problem, inputs = measured.problem, measured.inputs
    _check(inputs, regions)
    import_captum()  # before anything is computed
    is_prepared = problem.data.is_prepared and measured.raw is None
    places = find_places(
        problem, tuple(inputs.shape[1:]), _show(problem, measured.asked), is_prepared=is_prepared
    )
    start, words = _baseline(measured, places, baseline)
    return Regions(
        places=places,
        inputs=inputs[0].double().cpu().numpy(),
        start=start[0].double().cpu().numpy(),
        baseline=words,
        is_prepared=is_prepared,
        attribution=integrated_gradients(measured, start),
        grad_cam=None if places.grid is None else grad_cam(measured, places.grid),
        local_model=local_model(measured, start, places.parts(regions), seed=seed),
    )


@dataclass(frozen=True, eq=False)
class _Entrance:
    """The way from raw inputs through a feature extractor to the inputs of the model."""

    extractor: Extractor
    like: Tensor

    @property
    def function(self) -> object:
        return self.extractor.function

    def __call__(self, raw: Tensor) -> Tensor:
        made = call_plainly(cast("nn.Module", self.function), self.extractor.fitting(raw))
        return made.to(self.like)


def _entrance(problem: Problem, data: Data, position: int) -> tuple[Tensor, _Entrance] | None:
    """The raw query and the way in, where the derivative can follow it; None elsewhere."""
    if not isinstance(data, ExtractedData) or data.features.is_prepared:
        return None
    raw = data.raw(torch.tensor([position]))
    if not isinstance(raw, Tensor) or not raw.is_floating_point():
        return None
    enter = _Entrance(data.extractor, problem.parameters)
    raw = raw.detach().to(problem.device)
    try:
        with torch.enable_grad():
            leads_in = enter(raw.clone().requires_grad_(True)).requires_grad
    except (RuntimeError, TypeError, AttributeError):  # a function of numpy
        return None
    return (raw, enter) if leads_in else None


def _one(asked: Queries, position: int) -> Queries:
    if not 0 <= position < len(asked):
        raise BadArgument(
            found=f"Query {position} was asked for; there are {len(asked)} queries.",
            why="Queries are counted from 0, in the order in which they were given.",
            remedy=f"Give a position from 0 to {len(asked) - 1}.",
        )
    return asked.take([position])


def _check(inputs: Any, regions: int) -> None:
    if regions < 1:
        raise BadArgument(
            found=f"regions={regions}.",
            why="LIME cuts a picture into regions x regions cells.",
            remedy="Give a whole number from 1, or None to leave out what looks at the input.",
        )
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return
    raise Unsupported(
        found=f"The inputs are {inputs.dtype}, such as tokens or categories."
        if isinstance(inputs, Tensor)
        else f"An example has {len(inputs)} input tensors.",
        why="Integrated gradients move one tensor of numbers from a baseline to the query; "
        "integers cannot be moved a little.",
        remedy="Make a problem whose inputs are one tensor of numbers, for example the embeddings "
        "of the tokens, or pass regions=None for the most activating training examples alone.",
    )


# ------------------------------------------------------------------------- the input


def _show(problem: Problem, asked: Queries) -> Display:
    if asked.displays:
        return dict(asked.displays[0])
    example = tree_map(lambda leaf: leaf[0].cpu(), asked.inputs)
    return problem.show_query(example, asked.targets[0].cpu())


def _baseline(measured: Measured, places: Places, baseline: object) -> tuple[Tensor, str]:
    """What the input is compared with, (1, ...), and words for it."""
    inputs = measured.inputs
    if not isinstance(baseline, str):
        given = torch.as_tensor(np.asarray(baseline)).to(inputs)
        if given.shape not in (inputs.shape, inputs.shape[1:]):
            raise BadArgument(
                found=f"The baseline has the shape {tuple(given.shape)}, an input "
                f"{tuple(inputs.shape[1:])}.",
                why="The way from the baseline to the query moves every number of the input.",
                remedy='Give one input, or "auto", "zero" or "mean".',
            )
        return given.reshape(inputs.shape), "the given baseline"
    if baseline not in ("auto", "zero", "mean"):
        raise unknown_name("baseline", baseline, ("auto", "zero", "mean"))
    zero = torch.zeros_like(inputs), "an input of zeros"
    if baseline == "zero" or (baseline == "auto" and places.grid is not None):
        return zero
    mean, filled = _training_means(measured)
    if baseline == "auto" and filled < MOSTLY_ZERO:
        return zero
    return mean.to(inputs).reshape(inputs.shape), "the mean training input"


def _training_means(measured: Measured) -> tuple[Tensor, float]:
    """The mean training input in float64, and the share of its numbers that are not zero."""
    problem, total, filled = measured.problem, torch.zeros((), dtype=torch.float64), 0
    for positions in slices(len(problem), measured.batch_size()):
        if measured.raw is None:
            inputs = problem.batch(positions).inputs.cpu()
        else:
            inputs = problem.data.raw(positions).cpu()
        total = total + inputs.double().sum(0)
        filled += int(inputs.count_nonzero())
    return total / len(problem), filled / (total.numel() * len(problem))


def _activations(measured: Measured) -> Activations:
    """The answer that the model gave to the query, measured on every training example."""
    problem = measured.problem
    name, strength = _strength(problem, measured)

    def rows(batch: Batch) -> Tensor:
        with torch.no_grad():
            return strength(problem.outputs(problem.parameters, batch.inputs))[None]

    values = stream(problem, rows, queries=1, size=problem.batch_size())[0]
    return Activations(name, values, problem.data.ids)


def _strength(problem: Problem, measured: Measured) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A name and a function of outputs: how strongly they say what was answered to the query."""
    task = problem.loss.task
    if task == "unknown":
        sign = 1 if measured.measurement.higher_is_better else -1
        words = f"{measured.measurement.words} with the target of this query"
        return (
            words if sign > 0 else f"minus the {words}",
            lambda outputs: sign * measured.of(outputs, measured.asked.targets),
        )
    with torch.no_grad():
        outputs = problem.outputs(problem.parameters, measured.asked.inputs)
    answer = predicted_targets(outputs, problem.loss)
    kind = {"classes": "logit", "regression": "prediction"}.get(task, "margin")
    own = Measured(problem, make_measurement(kind, problem.loss), measured.asked)
    return _of_class(own.measurement, problem, answer), lambda outputs: own.of(outputs, answer)


def _examples(problem: Problem, activations: Activations) -> tuple[tuple[Display, str], ...]:
    order = np.argsort(-activations.values, kind="stable")[:SHOWN].tolist()
    names, values = problem.data.ids.tolist(), activations.values.tolist()
    words = [
        f"example {names[i]}, label {problem.label_of(i) or 'none'}: {_number(values[i])}"
        for i in order
    ]
    return tuple((problem.show(i), said) for i, said in zip(order, words, strict=True))


# ------------------------------------------------------------------------- in words


def _in_words(measured: Measured, value: float) -> Asked:
    problem, asked = measured.problem, measured.asked
    example = tree_map(lambda leaf: leaf[0].cpu(), asked.inputs)
    is_class = problem.loss.task in ("classes", "binary", "signed")
    return Asked(
        query=asked.ids[0].item(),
        display=_show(problem, asked),
        answer=problem.prediction_of(example)["label"] if is_class else "",
        label=problem.label_name(asked.targets[0].cpu()) if asked.are_labelled else None,
        measurement=_of_class(measured.measurement, problem, asked.targets),
        unit=measured.measurement.unit,
        value=value,
    )


def _of_class(measurement: Measurement, problem: Problem, targets: Tensor) -> str:
    """'margin of 9' where the measurement belongs to a class."""
    name, is_logit = measurement.words, measurement.name == "logit"
    is_of_class = measurement.name in ("margin", "log_prob") or (
        is_logit and problem.loss.task == "classes"
    )
    if not is_of_class or targets[0].numel() > 1:
        return name
    return f"{name} of {problem.label_name(targets[0].cpu())}"


def _sentence(found: Schools) -> str:
    asked, regions = found.asked, found.regions
    label = f"; the label is {asked.label}" if asked.label not in (None, asked.answer) else ""
    measured = f"{asked.measurement} is {_number(asked.value)} {asked.unit}"
    says = f"The model says {asked.answer}{label}: the {measured}."
    parts = [says if asked.answer else f"The {measured}{label}."]
    if regions is not None:
        difference = regions.attribution.difference
        more = "more" if difference >= 0 else "less"
        parts.append(
            f"That is {_number(abs(difference))} {more} than for {regions.baseline}; integrated "
            "gradients share the difference out over the input."
        )
        local = regions.local_model
        if local is not None and np.isfinite(local.r_squared):
            parts.append(
                f"A linear model of its {len(local.coefficients)} parts explains "
                f"{_percent(local.r_squared)} of what happens when some of them are taken from "
                f"{regions.baseline}."
            )
    name, value = found.activations.top(1)[0]
    parts.append(
        f"The answer is strongest on training example {name} ({found.activations.name}: "
        f"{_number(value)})."
    )
    parts.append("None of this says which training examples made the model so; effects do.")
    return " ".join(parts)


def _draw(asked: Asked, regions: Regions) -> list[Block]:
    """Heat maps of a picture; bars for positions and columns."""
    if regions.places.grid is None:
        title = f"change of the {asked.measurement} [{asked.unit}]"
        return [_bars(regions, values, title, name) for name, values in regions.fields()]
    pictures = [(asked.display, "the query")]
    for name, values in regions.fields():
        deepest = _number(float(abs(values).max()))
        words = f"{name}; the deepest colour is {deepest} {asked.unit}"
        pictures.append((heat_map(values, asked.display), words))
    colours = f"Blue raises the {asked.measurement}, orange lowers it"
    return [Gallery(pictures, f"{colours}; compared with {regions.baseline}.")]


def _bars(regions: Regions, values: np.ndarray, title: str, what: str) -> Bars:
    """The strongest places; columns beside the value that the query has there."""
    places, kind = regions.places, f"{regions.places.kind}s"
    order = np.argsort(-abs(values), kind="stable")[
        : max(1, min(BARS, np.count_nonzero(values)))
    ].tolist()
    names = [places.names[i] for i in order]
    if places.kind == "column":
        seen = regions.inputs.ravel()[order].tolist()
        names = [f"{name} = {_number(own)}" for name, own in zip(names, seen, strict=True)]
    if regions.is_prepared:
        kind += ", as they are prepared for the model"
    caption = f"{what[:1].upper()}{what[1:]}: the strongest {len(order)} of {len(values)} {kind}."
    if len(order) < np.count_nonzero(values):
        others = float(values.sum()) - float(values[order].sum())
        caption += f" The others together: {_number(others)}."
    elif len(order) < len(values):
        caption += " The others have no part in it."
    pairs = [(name, float(values[i])) for name, i in zip(names, order, strict=True)]
    return Bars(pairs, title, caption)


def _checks(asked: Asked, regions: Regions) -> Table:
    """What the regions and the local model were made with, and how well they fit."""
    made, cam, local = regions.attribution, regions.grad_cam, regions.local_model
    rows: list[tuple[str, str | float | int | None]] = [
        (f"{asked.measurement} of the query [{asked.unit}]", asked.value),
        (f"{asked.measurement} of {regions.baseline} [{asked.unit}]", made.at_baseline),
        (f"integrated gradients: sum [{asked.unit}]", float(made.values.sum())),
        (f"integrated gradients: error of the sum [{asked.unit}]", made.residual),
        ("integrated gradients: steps", made.steps),
    ]
    if cam is not None:
        rows.append(("Grad-CAM: layer", cam.layer))
    if local is not None:
        rows += [
            ("local linear model: parts", len(local.coefficients)),
            ("local linear model: inputs tried", local.samples),
            ("local linear model: share explained (R²)", local.r_squared),
        ]
    return Table(("check", "value"), rows, "How these were made, and how well they fit.")


def _number(value: float) -> str:
    words = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return words.replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "\N{MINUS SIGN}")
