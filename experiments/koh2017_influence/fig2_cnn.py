"""Figure 2, right, of Koh & Liang 2017: a convolutional network that is not at an optimum.

A tanh network of convolutions only, 2,616 parameters, on a tenth of MNIST: 5,500 examples of ten
classes (the first 5,000 training images are held out), weight decay 0.001 on the weights and none
on the biases. Training stops where the gradient is still larger than what one example adds to it.
For the test image at position 6558, a 6, the effect of removing each training example on its loss
is predicted with (H + 0.01 I)^-1, H the Hessian. The 100 examples of largest predicted effect are
then left out one at a time, and training goes on without each, and once with all of them: the
paired control, which is subtracted.

Training on is gradient descent in the limit of small steps, d theta / dt = -grad R, for a time (the
sum of the learning rates) of 1 / damping = 100: a direction of curvature c then answers a small
force by (1 - exp(-100 c)) / c, which is 1 / c where it is stiff and 100 where it is flat, as is
1 / (c + 0.01). It is integrated by linearly implicit steps of length h, which stay stable where
gradient descent would need thousands,

    theta <- theta - (1.5 G + I / h)^-1 grad R(theta),       G = Gauss-Newton matrix at the start

and as long again, to see what more training changes. It shares no code with whence.
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from inspect import getsource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lobpcg
from shared import (
    BLUE,
    GREY,
    RED,
    ROOT,
    Clock,
    axis,
    circumstances,
    parse,
    rounded,
    svg,
    write,
)
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

import whence
from whence.curvature.cg import CG
from whence.curvature.exact import Exact
from whence.datasets import load
from whence.methods.influence import Influence
from whence.numerics import stats

HELD_OUT = 5000
TRAINED_ON = 55_000
QUERY = 6558
WEIGHT_DECAY = 1e-3
PAPER = 0.86
NOTEBOOK = 0.8754


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        examples: N.
        epochs: passes of Adam over the data.
        batch: examples a step of Adam.
        rate: its first learning rate; it falls to zero by a cosine.
        damping: added to the Hessian for the predictions; 1 / damping is the time of a retraining.
        removals: how many examples are left out, one at a time.
        steps: of a retraining until 1 / damping.
        later_steps: as long again, to see what more training changes.
        checked: removals that are repeated with steps of half the length.
        rank: of the preconditioner of conjugate gradients.
        searches: steps towards the smallest eigenvalue of the Hessian.
        has_newton: whether Newton steps for removals are predicted, from the Gauss-Newton matrix.
        seed: of the first weights and of the order of examples.
    """

    examples: int = 5500
    epochs: int = 500
    batch: int = 250
    rate: float = 1e-2
    damping: float = 0.01
    removals: int = 100
    steps: int = 20
    later_steps: int = 10
    checked: int = 5
    rank: int = 100
    searches: int = 40
    has_newton: bool = True
    seed: int = 0

    @property
    def lengths(self) -> list[float]:
        """h of each step of a retraining."""
        time = 1 / self.damping
        first, later = [time / self.steps] * self.steps, [time / self.later_steps]
        return first + later * self.later_steps


SHORT = Settings(
    examples=80,
    epochs=20,
    batch=20,
    damping=1.0,
    removals=6,
    steps=3,
    later_steps=2,
    checked=1,
    rank=0,
    searches=2,
    has_newton=False,
)


def main() -> None:
    """Trains, predicts, retrains, compares; writes the numbers and the figure."""
    arguments = parse(__doc__ or "")
    settings = SHORT if arguments.short else Settings()
    torch.set_num_threads(1)
    clock = Clock()
    objective, query, test = a_tenth_of_mnist(settings)
    keep = Keep(None if arguments.short else ROOT / "runs" / "fig2_cnn", settings)
    clock.lap("load")
    theta = keep("training", lambda: train(objective, settings))
    clock.lap("train with Adam")
    matrix = keep("Gauss-Newton", lambda: objective.gauss_newton(theta))
    eigenvalue = keep("eigenvalue", lambda: smallest_eigenvalue(objective, theta, matrix, settings))
    clock.lap("Gauss-Newton matrix and smallest eigenvalue")
    predicted, reports = predict(objective, theta, query, settings)
    clock.lap("predict")
    chosen = np.argsort(-np.abs(predicted["first order"]), kind="stable")[: settings.removals]
    retraining = Retraining(objective, theta, query, matrix)
    control = keep("control", lambda: retraining.run(None, settings.lengths))
    tracks = [
        keep(f"removals {i}", lambda i=i: retraining.run(int(i), settings.lengths)) for i in chosen
    ]
    effects = np.stack(tracks) - control  # (removals, 1 + steps + later steps)
    clock.lap("retrain")
    finer = keep("half-steps", lambda: half_steps(retraining, chosen, settings))
    clock.lap("retrain some with steps of half the length")
    actual = effects[:, settings.steps]
    result = {
        "paper": "Koh & Liang 2017 (arXiv:1703.04730), figure 2, right",
        "pearson in the paper": PAPER,
        "pearson in the notebook of the authors": NOTEBOOK,
        "settings": asdict(settings) | {"weight_decay": WEIGHT_DECAY, "query": QUERY},
        "model": describe(objective, theta, query, test) | eigenvalue,
        "agreement": agreement(predicted, chosen, actual),
        "agreement after twice the time": agreement(predicted, chosen, effects[:, -1]),
        "over time": over_time(predicted, chosen, effects, settings),
        "checks": checks(effects, control, finer, settings),
        "predictions": reports,
        "points": {
            "position": chosen,
            **{f"predicted, {name}": values[chosen] for name, values in predicted.items()},
            "actual": actual,
            "actual after twice the time": effects[:, -1],
        },
        "circumstances": circumstances(__file__, clock.seconds)
        | {"processor seconds": keep.seconds},
    }
    write(arguments.out, "fig2_cnn", rounded(result), draw(rounded(result)))
    print_table(rounded(result))


class Keep:
    """Intermediate results in files, so that a run that was stopped goes on where it was.

    Args:
        folder: where; None keeps nothing.
        settings: of the run. Results of other settings, or of other code than that below, are not
            used. Predictions are never kept: they are what whence is being asked.
    """

    def __init__(self, folder: Path | None, settings: Settings) -> None:
        parts = (Network, First, Second, Layer, of_sigmoids, Objective, train, Retraining)
        code = [getsource(part) for part in parts]
        text = json.dumps([asdict(settings), *code])
        self.folder = folder and folder / sha256(text.encode()).hexdigest()[:12]
        self.seconds: dict[str, float] = {}  # of the processor, in whichever run it was

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, or has returned in an earlier run."""
        path = self.folder and self.folder / f"{name}.pt"
        if path is not None and path.exists():
            value, seconds = torch.load(path, weights_only=False)
        else:
            started = time.process_time()
            value, seconds = make(), time.process_time() - started
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save((value, seconds), path.with_suffix(".partial"))
                path.with_suffix(".partial").rename(path)
        part = name.split(" ")[0]
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        return value


# ------------------------------------------------------------------- the model and its data


class Network(nn.Module):
    """Six convolutions without padding and a linear head on the mean over positions, all tanh.

    It is arranged for speed: as tanh z = 2 sigmoid(2 z) - 1, every layer hands on the sigmoids, and
    the next one's weights make up for it; and because the second convolution takes every other
    position, the first one makes its outputs in blocks of 2 x 2, as 32 channels. `plain` is the
    same function written plainly.
    """

    def __init__(self) -> None:
        super().__init__()
        rest = [Layer(8, 8, 3, stride=stride) for stride in (1, 2, 1)]
        self.layers = nn.Sequential(First(1, 8, 3), Second(8, 8, 3), *rest, Layer(8, 10, 1))
        self.head = nn.Linear(10, 10)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (B, 10) from patches (B, 169, 16)."""
        return self.head(2 * self.layers(patches).mean((-2, -1)) - 1)

    def plain(self, images: Tensor) -> Tensor:
        """Logits (B, 10) from images (B, 1, 28, 28)."""
        x = images
        for layer, stride in zip(self.layers, (1, 2, 1, 2, 1, 1), strict=True):
            x = torch.tanh(F.conv2d(x, layer.weight, layer.bias, stride=stride))
        return self.head(x.mean((-2, -1)))


class First(nn.Conv2d):
    """sigmoid(2 z) for the convolution z of the pixels, in blocks of 2 x 2 positions."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, 32, 13, 13) from patches (B, 169, 16) of 4 x 4 pixels."""
        shifts = [(right, 1 - right, down, 1 - down) for down in (0, 1) for right in (0, 1)]
        weight = torch.cat([F.pad(self.weight, shift) for shift in shifts]).flatten(1)
        z = F.linear(input, 2 * weight, 2 * self.bias.repeat(4))
        return torch.sigmoid(z).unflatten(-2, (13, 13)).movedim(-1, -3)


class Second(nn.Conv2d):
    """sigmoid(2 z) for the convolution z of 2 x - 1 with stride 2, from blocks of 2 x 2."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, 8, 12, 12) from (B, 32, 13, 13)."""
        blocks = F.pad(self.weight, (0, 1, 0, 1)).view(8, 8, 2, 2, 2, 2)
        weight = blocks.permute(0, 3, 5, 1, 2, 4).reshape(8, 32, 2, 2)
        return of_sigmoids(input, weight, self.bias)


class Layer(nn.Conv2d):
    """sigmoid(2 z) for the convolution z of 2 x - 1."""

    def forward(self, input: Tensor) -> Tensor:
        """Sigmoids from sigmoids."""
        return of_sigmoids(input, self.weight, self.bias, self.stride)


def of_sigmoids(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int | tuple[int, ...] = 1
) -> Tensor:
    """sigmoid(2 z) for the convolution z of 2 x - 1."""
    shifted = bias - weight.flatten(1).sum(1)
    return torch.sigmoid(F.conv2d(x, 4 * weight, 2 * shifted, stride=stride))


def in_patches(images: np.ndarray) -> Tensor:
    """(B, 169, 16): the 13 x 13 patches of 4 x 4 pixels that begin at every other pixel."""
    pixels = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 28, 28)
    return F.unfold(pixels, 4, stride=2).transpose(1, 2).contiguous()


class Objective:
    """R = mean loss + (0.001 / 2) |weights|^2, and its derivatives at flat parameters (P,).

    Args:
        x: (N, 169, 16) patches.
        y: (N,) labels.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.network = Network()
        named = dict(self.network.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        decays = [float(p.ndim > 1) * torch.ones(p.numel()) for p in named.values()]
        self.decay = WEIGHT_DECAY * torch.cat(decays)

    def __len__(self) -> int:
        return len(self.y)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        pairs = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in pairs}

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """(B, 10)."""
        return functional_call(self.network, self.split(theta), (x,))

    def loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The sum over B examples."""
        return F.cross_entropy(self.logits(theta, x), y, reduction="sum")

    def initial(self, seed: int) -> Tensor:
        """Truncated normal weights, of deviation 2 / sqrt(inputs), the head's half; no biases."""
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for name, shape in self.shapes.items():
            part = torch.zeros(shape)
            if len(shape) > 1:
                deviation = (1 if name.startswith("head") else 2) / shape[1:].numel() ** 0.5
                reach = 2 * deviation
                nn.init.trunc_normal_(part, 0, deviation, -reach, reach, generator)
            parts.append(part.flatten())
        return torch.cat(parts)

    def gradient(self, theta: Tensor, without: int | None = None) -> Tensor:
        """(P,) gradient of R, or of the mean over all but one example and the decay."""
        leaf = theta.detach().requires_grad_(True)
        total = torch.zeros_like(theta)
        for x, y in zip(self.x.split(BATCH), self.y.split(BATCH), strict=True):
            total += torch.autograd.grad(self.loss(leaf, x, y), leaf)[0]
        if without is None:
            return total / len(self) + self.decay * theta
        own = self.loss(leaf, self.x[[without]], self.y[[without]])
        total -= torch.autograd.grad(own, leaf)[0]
        return total / (len(self) - 1) + self.decay * theta

    def hessian_product(self, theta: Tensor, vector: Tensor) -> Tensor:
        """(P,) the Hessian of R times a vector."""
        leaf = theta.detach().requires_grad_(True)
        total = torch.zeros_like(theta)
        for x, y in zip(self.x.split(BATCH), self.y.split(BATCH), strict=True):
            (slope,) = torch.autograd.grad(self.loss(leaf, x, y), leaf, create_graph=True)
            total += torch.autograd.grad(slope @ vector, leaf)[0]
        return total / len(self) + self.decay * vector

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """(P, P) Gauss-Newton matrix of R."""
        each = vmap(jacrev(lambda t, x: self.logits(t, x[None])[0]), in_dims=(None, 0))
        total = torch.zeros(len(theta), len(theta))
        with torch.no_grad():
            for x in self.x.split(50):
                jac, p = each(theta, x), self.logits(theta, x).softmax(1)[:, :, None]
                half = ((jac - (p * jac).sum(1, keepdim=True)) * p.sqrt()).flatten(0, 1)
                total.addmm_(half.T, half)  # sum_c p_c (J_c - J mean) (J_c - J mean)^T
        return total / len(self) + self.decay.diag()


BATCH = 250
"""Examples that go through the network together: their activations stay in the cache."""


def a_tenth_of_mnist(settings: Settings) -> tuple[Objective, tuple[Tensor, Tensor], Any]:
    """The objective, the query, and the test images in patches with their labels."""
    data = load("mnist")
    order = np.random.RandomState(0).permutation(TRAINED_ON)[: settings.examples]
    x = in_patches(data.x_train[HELD_OUT:][order])
    y = torch.from_numpy(data.y_train[HELD_OUT:][order].astype(np.int64))
    tests = slice(None) if settings.examples > 1000 else slice(QUERY, QUERY + 100)
    labels = torch.from_numpy(data.y_test.astype(np.int64))
    query = (in_patches(data.x_test[[QUERY]]), labels[[QUERY]])
    return Objective(x, y), query, (in_patches(data.x_test[tests]), labels[tests])


# ------------------------------------------------------------------- training and retraining


def train(objective: Objective, settings: Settings) -> Tensor:
    """Parameters (P,) after Adam, whose rate falls to zero."""
    theta = objective.initial(settings.seed).requires_grad_(True)
    optimizer = torch.optim.Adam([theta], lr=settings.rate)
    total = settings.epochs * -(-len(objective) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(objective), generator=generator).split(settings.batch):
            loss = objective.loss(theta, objective.x[rows], objective.y[rows]) / len(rows)
            theta.grad = torch.autograd.grad(loss, theta)[0] + objective.decay * theta.detach()
            optimizer.step()
            schedule.step()
    return theta.detach()


class Retraining:
    """Training goes on from the checkpoint, with one example left out or with none.

    Args:
        objective: what is trained.
        theta: (P,) the checkpoint.
        query: patches and label whose loss is followed.
        matrix: (P, P) the Gauss-Newton matrix G. It is taken 1.5 times, as the Hessian is up to
            twice as stiff as G along some directions.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, query: tuple[Tensor, Tensor], matrix: Tensor
    ) -> None:
        self.objective, self.theta, self.query = objective, theta, query
        self.matrix = STIFFNESS * matrix
        self.inverses: dict[float, Tensor] = {}

    def run(self, without: int | None, lengths: list[float]) -> np.ndarray:
        """(1 + steps,) the loss of the query before and after steps of these lengths."""
        theta, track = self.theta, [self.loss(self.theta)]
        for length in lengths:
            theta = theta - self.inverse(length) @ self.objective.gradient(theta, without)
            track.append(self.loss(theta))
        return np.array(track)

    def inverse(self, length: float) -> Tensor:
        """(1.5 G + I / length)^-1."""
        if length not in self.inverses:
            shifted = self.matrix + torch.eye(len(self.theta)) / length
            self.inverses[length] = torch.cholesky_inverse(torch.linalg.cholesky(shifted))
        return self.inverses[length]

    def loss(self, theta: Tensor) -> float:
        """The loss of the query."""
        with torch.no_grad():
            return float(
                F.cross_entropy(self.objective.logits(theta, self.query[0]), self.query[1])
            )


STIFFNESS = 1.5


def half_steps(
    retraining: Retraining, chosen: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Places in `chosen`, and their effects at time 1 / damping by twice as many steps."""
    places = np.linspace(0, len(chosen) - 1, settings.checked).astype(int)
    lengths = [0.5 / settings.damping / settings.steps] * (2 * settings.steps)
    control = retraining.run(None, lengths)[-1]
    ends = [retraining.run(int(i), lengths)[-1] for i in chosen[places]]
    return places, np.array(ends) - control


def smallest_eigenvalue(
    objective: Objective, theta: Tensor, matrix: Tensor, settings: Settings
) -> dict[str, Any]:
    """The smallest eigenvalue c of the Hessian, as far as found, and the residual |H v - c v|.

    No vector of length one has a smaller v H v than the smallest eigenvalue: it is at most c, and
    an eigenvalue lies within the residual of c.
    """
    size = len(theta)
    inverse = torch.linalg.inv(matrix + settings.damping * torch.eye(size)).numpy()

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(vector.astype(np.float32).ravel())
        return objective.hessian_product(theta, direction).numpy()

    hessian = LinearOperator((size, size), product, dtype=np.float32)
    start = np.random.default_rng(settings.seed).standard_normal((size, 1)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the residual tells how near it came
        values, vectors = lobpcg(
            hessian, start, M=inverse, largest=False, maxiter=settings.searches, tol=1e-5
        )
    vector = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    rest = np.linalg.norm(product(vector) - values[0] * vector)
    return {"smallest eigenvalue of the Hessian": values[0], "its residual": rest}


# ------------------------------------------------------------------------------ predictions


def predict(
    objective: Objective, theta: Tensor, query: tuple[Tensor, Tensor], settings: Settings
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Effects (N,) of every removal by name of the prediction, and what whence reports of it."""
    network = Network()
    network.load_state_dict(objective.split(theta))
    problem = whence.make_problem(
        network.eval(),
        (objective.x, objective.y),
        loss="cross_entropy",
        weight_decay=WEIGHT_DECAY,
        regularizer="*.weight",
        renormalize=True,
    )
    hessian = CG(matrix="hessian", damping=settings.damping, rank=settings.rank)
    first_order = whence.fit(problem, Influence(hessian, "first_order"))
    corrected = first_order.corrected()  # what correct_nonconvergence=True makes, without a new fit
    fitted = {
        "first order": first_order,
        "corrected": corrected,
        "no curvature": whence.fit(problem, Influence("identity", "first_order")),
    }
    if settings.has_newton:
        ggn = Exact(matrix="ggn", damping=settings.damping)
        for name, removal in (("first order", "first_order"), ("Newton step", "newton")):
            fitted[f"Gauss-Newton, {name}"] = whence.fit(problem, Influence(ggn, removal))
    scores = {name: method.scores(query, "loss") for name, method in fitted.items()}
    reports = {
        name: {key: found.report[key] for key in REPORTED if key in found.report}
        for name, found in scores.items()
    }
    return {name: found.values[0] for name, found in scores.items()}, reports


REPORTED = (
    "gradient_norm",
    "example_pull",
    "residual",
    "steps",
    "nonconvergence_step",
    "largest_leverage",
    "leverage_fallbacks",
)


# ------------------------------------------------------------------------------ the results


def compare(predicted: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    """How well predicted effects tell the actual ones."""
    low, high = stats.bootstrap_interval(stats.pearson, predicted[None], actual[None], seed=0)
    return {
        "pearson": stats.pearson(predicted, actual),
        "interval of 95 %": [low, high],
        "spearman": stats.spearman(predicted, actual),
        "slope": stats.slope(predicted, actual),
    }


def agreement(
    predicted: dict[str, np.ndarray], chosen: np.ndarray, actual: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The comparison for every prediction."""
    return {name: compare(predicted[name][chosen], actual) for name in predicted}


def over_time(
    predicted: dict[str, np.ndarray], chosen: np.ndarray, effects: np.ndarray, settings: Settings
) -> list[dict[str, float]]:
    """Correlation and slope of each prediction with the effects after each step."""
    rows = []
    for step, moment in enumerate(np.cumsum(settings.lengths), start=1):
        row = {"time": moment}
        for name in predicted:
            row[f"pearson, {name}"] = stats.pearson(predicted[name][chosen], effects[:, step])
            row[f"slope, {name}"] = stats.slope(predicted[name][chosen], effects[:, step])
        rows.append(row)
    return rows


def describe(
    objective: Objective, theta: Tensor, query: tuple[Tensor, Tensor], test: Any
) -> dict[str, Any]:
    """The checkpoint: losses, accuracies, its gradient, what it says of the query."""

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([objective.logits(theta, part) for part in x.split(BATCH)])

    seen, unseen, asked = logits(objective.x), logits(test[0]), logits(query[0])
    return {
        "parameters": len(theta),
        "train loss without decay": float(F.cross_entropy(seen, objective.y)),
        "decay": float((objective.decay * theta**2).sum() / 2),
        "train accuracy": float((seen.argmax(1) == objective.y).double().mean()),
        "test accuracy": float((unseen.argmax(1) == test[1]).double().mean()),
        "gradient norm": float(objective.gradient(theta).norm()),
        "label of the query": int(query[1]),
        "prediction for the query": int(asked.argmax()),
        "loss of the query": float(F.cross_entropy(asked, query[1])),
    }


def checks(
    effects: np.ndarray,
    control: np.ndarray,
    finer: tuple[np.ndarray, np.ndarray],
    settings: Settings,
) -> dict[str, Any]:
    """Whether the actual effects can be believed."""
    actual, later = effects[:, settings.steps], effects[:, -1]
    places, fine = finer
    gap = np.abs(fine - actual[places]).max()
    return {
        "drift of the control": control[settings.steps] - control[0],
        "drift of the control in twice the time": control[-1] - control[0],
        "median size of an actual effect": np.median(np.abs(actual)),
        "largest actual effect": np.abs(actual).max(),
        "pearson of effects after once and twice the time": stats.pearson(actual, later),
        "slope of effects after twice over once the time": stats.slope(actual, later),
        "largest difference with half the step, share of the largest effect": gap
        / np.abs(actual).max(),
    }


def draw(result: dict[str, Any]) -> str:
    """Predicted against actual, without and with the correction; the correlation over time."""
    points = result["points"]
    shown = ("first order", "corrected")
    columns = [points["actual"], *(points[f"predicted, {name}"] for name in shown)]
    reach = 1.1 * max(abs(value) for column in columns for value in column)

    def panel(name: str, color: str) -> dict[str, Any]:
        predicted = points[f"predicted, {name}"]
        marks = [{"x": a, "y": p} for a, p in zip(points["actual"], predicted, strict=True)]
        ends = [{"x": end, "y": end} for end in (-reach, reach)]
        domain = {"domain": [-reach, reach], "nice": False}
        line = {"type": "line", "color": GREY, "strokeDash": [5, 4], "strokeWidth": 1.5}
        dots = {"type": "point", "filled": True, "size": 30, "opacity": 0.6, "color": color}
        return {
            "title": f"{name}: r = {result['agreement'][name]['pearson']:.3f}",
            "width": 260,
            "height": 260,
            "encoding": {
                "x": axis("x", "change of the test loss after training on (nats)", **domain),
                "y": axis("y", "predicted change (nats)", **domain),
            },
            "layer": [
                {"data": {"values": ends}, "mark": line},
                {"data": {"values": marks}, "mark": dots},
            ],
        }

    lines = [
        {"t": row["time"], "r": row[f"pearson, {name}"], "name": name}
        for row in result["over time"]
        for name in shown
    ]
    course = {
        "title": "correlation",
        "width": 260,
        "height": 260,
        "data": {"values": lines},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": axis("t", "time of training on"),
            "y": axis("r", "Pearson correlation", domain=[0, 1]),
            "color": {
                "field": "name",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(shown), "range": [BLUE, RED]},
                "legend": {"orient": "bottom-left"},
            },
        },
    }
    return svg({"hconcat": [panel("first order", BLUE), panel("corrected", RED), course]})


def print_table(result: dict[str, Any]) -> None:
    """The model, the agreement and the checks."""
    for name, value in (result["model"] | result["checks"]).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    for title in ("agreement", "agreement after twice the time"):
        print(f"\n{title:28}{'Pearson':>10}{'Spearman':>10}{'slope':>10}")
        for name, numbers in result[title].items():
            row = [numbers[key] for key in ("pearson", "spearman", "slope")]
            print(f"{name:28}" + "".join(f"{float(value):10.4f}" for value in row))


if __name__ == "__main__":
    main()
