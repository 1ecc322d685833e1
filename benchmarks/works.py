"""Models and data that the benchmarks of EK-FAC share, each with the way it is trained.

    digits-sgd, -adamw, -decay    perceptron 64-64-32-10, digits                 for agreement with
    cnn-small                     55,338 parameters, MNIST                       training again
    gpt-small                     two layers, width 64, context 64, Shakespeare

    mlp       784-512-256-10, MNIST, 10,000 images                               for time and memory
    mlp-small 784-32-10, MNIST, 1,000 images
    cnn       the small one on 4,000 images
    resnet    ResNet-20 with published weights, CIFAR-10, 4,000 images
    gpt       four layers, width 256, context 128, Shakespeare, 2,000 sequences

Everything random has a seed of its own, so that two processes see the same numbers.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from whence.datasets import load

CLASSES = 10
RUNS = Path(__file__).parent.parent / "runs"
"""What takes long to make and can be made again; not committed."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: what a user would write, with a constant learning rate."""

    optimizer: str
    rate: float
    weight_decay: float
    epochs: int
    batch: int


@dataclass(frozen=True, eq=False)
class Work:
    """A model to be trained and explained.

    Args:
        name: how results call it.
        build: makes the module with fresh weights from torch's generator.
        train: N inputs and targets.
        queries: Q inputs and targets.
        recipe: how it is trained.
        measurement: "margin" for classes, "log_prob" for text.
        batch: examples a batch of explaining, for both sides.
    """

    name: str
    build: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    recipe: Recipe
    measurement: str = "margin"
    batch: int = 500

    @property
    def penalty(self) -> float:
        """Weight decay that is part of the objective: that of AdamW is not."""
        return self.recipe.weight_decay if self.recipe.optimizer == "sgd" else 0.0


# ------------------------------------------------------------------------------- modules


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    """conv - conv - hidden - ten classes, for 28 x 28 grey images; 55,338 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
    )


class Block(nn.Module):
    """A layer of a transformer: attention to what came before, then a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> the same."""
        batch, length, width = x.shape
        split = self.qkv(self.norm_1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(F.gelu(self.wide(self.norm_2(x))))


class Transformer(nn.Module):
    """A small GPT on characters; its outputs are (B, characters, T) logits."""

    def __init__(self, characters: int, *, width: int, layers: int, heads: int, context: int):
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        for module in self.modules():  # as GPT-2 starts
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, characters: Tensor) -> Tensor:
        """(B, T) integers -> (B, characters, T) logits of the next one."""
        places = torch.arange(characters.shape[1], device=characters.device)
        x = self.token(characters) + self.place(places)
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.pad = stride, (planes - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Images -> images, at half the size where the stride is two."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, self.pad, self.pad)))


class ResNet(nn.Module):
    """ResNet-20 for 32 x 32 images (He et al. 2015, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Residual(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), *(Residual(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(Residual(32, 64, 2), *(Residual(64, 64, 1) for _ in range(2)))
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 10) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


# --------------------------------------------------------------------------------- works


def digits(kind: str) -> Work:
    """A perceptron on 1,200 of scikit-learn's digits; 200 of the rest are queries."""
    data = load("digits")
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    order = np.random.default_rng(0).permutation(len(y))
    recipes = {
        "sgd": Recipe("sgd", rate=0.05, weight_decay=1e-3, epochs=30, batch=32),
        "adamw": Recipe("adamw", rate=3e-3, weight_decay=1e-2, epochs=30, batch=32),
        "decay": Recipe("sgd", rate=0.01, weight_decay=1e-2, epochs=30, batch=32),
    }
    train, queries = (_tensors(x[part], y[part]) for part in (order[:1200], order[1200:1400]))
    name, build = f"digits-{kind}", lambda: perceptron(64, 64, 32, 10)
    return Work(name, build, train, queries, recipes[kind])


def mlp(queries: int = 200) -> Work:
    """A perceptron on 10,000 images of MNIST."""
    recipe = Recipe("adamw", rate=1e-3, weight_decay=1e-2, epochs=5, batch=64)
    train, asked = _mnist(10_000, queries)
    return Work("mlp", lambda: perceptron(784, 512, 256, 10), train, asked, recipe)


def small_mlp() -> Work:
    """A perceptron with 25,450 parameters on 1,000 images of MNIST."""
    recipe = Recipe("adamw", rate=1e-3, weight_decay=1e-2, epochs=20, batch=64)
    train, asked = _mnist(1000, 1000)
    return Work("mlp-small", lambda: perceptron(784, 32, 10), train, asked, recipe)


def cnn(count: int = 4000, queries: int = 200, name: str = "cnn") -> Work:
    """A convolutional network on images of MNIST."""
    recipe = Recipe("adamw", rate=1e-3, weight_decay=1e-2, epochs=15, batch=32)
    (x, y), (x_asked, y_asked) = _mnist(count, queries)
    shape = (-1, 1, 28, 28)
    return Work(name, convolutional, (x.view(shape), y), (x_asked.view(shape), y_asked), recipe)


def gpt(small: bool = False) -> Work:
    """A transformer on characters of tiny Shakespeare; sequences do not overlap."""
    text = (folder() / "tinyshakespeare.txt").read_text()
    letters = {letter: place for place, letter in enumerate(sorted(set(text)))}
    context, count, queries = (64, 1200, 50) if small else (128, 2000, 50)
    codes = torch.tensor([letters[letter] for letter in text])
    pieces = codes[: len(codes) // (context + 1) * (context + 1)].view(-1, context + 1)
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(pieces)))
    train, asked = pieces[chosen[:count]], pieces[chosen[count : count + queries]]
    width, layers, heads, epochs = (64, 2, 4, 15) if small else (256, 4, 8, 2)
    return Work(
        "gpt-small" if small else "gpt",
        lambda: Transformer(len(letters), width=width, layers=layers, heads=heads, context=context),
        (train[:, :-1].contiguous(), train[:, 1:].contiguous()),
        (asked[:, :-1].contiguous(), asked[:, 1:].contiguous()),
        Recipe("adamw", rate=1e-3, weight_decay=1e-1, epochs=epochs, batch=16),
        measurement="log_prob",
        batch=32,
    )


def resnet(queries: int = 100) -> Work:
    """ResNet-20 on the first 4,000 training images of CIFAR-10 with their original pixels.

    The queries are test images, which are there only as JPEG: their first ones by position.
    """
    known = np.load(folder() / "cifar10_lossless4k.npz")
    packed = np.load(folder() / "cifar10_jpeg.npz")
    header, data, ends = packed["header"].tobytes(), packed["data"].tobytes(), packed["offset"]
    places = range(int(packed["n_train"]), int(packed["n_train"]) + queries)
    files = [BytesIO(header + data[ends[place] : ends[place + 1]]) for place in places]
    pictures = [np.asarray(Image.open(file)) for file in files]
    labels = packed["label"][list(places)]
    nothing = Recipe("none", rate=0.0, weight_decay=0.0, epochs=0, batch=128)
    return Work(
        "resnet",
        ResNet,
        (_normalized(known["x"]), torch.from_numpy(known["y"].astype(np.int64))),
        (_normalized(np.stack(pictures)), torch.from_numpy(labels.astype(np.int64))),
        nothing,
        batch=100,
    )


WORKS: dict[str, Callable[[], Work]] = {
    "digits-sgd": lambda: digits("sgd"),
    "digits-adamw": lambda: digits("adamw"),
    "digits-decay": lambda: digits("decay"),
    "cnn-small": lambda: cnn(2000, 100, "cnn-small"),
    "gpt-small": lambda: gpt(small=True),
    "mlp": mlp,
    "mlp-small": small_mlp,
    "cnn": cnn,
    "resnet": resnet,
    "gpt": gpt,
}


def folder() -> Path:
    """Where real data lie."""
    return Path(os.environ["WHENCE_DATA"])


def _mnist(count: int, queries: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = load("mnist")
    chosen = np.random.default_rng(0).permutation(len(data.y_train))[:count]
    asked = np.random.default_rng(1).permutation(len(data.y_test))[:queries]
    return (
        _tensors(data.x_train[chosen], data.y_train[chosen]),
        _tensors(data.x_test[asked], data.y_test[asked]),
    )


def _tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def _normalized(images: np.ndarray) -> Tensor:
    """(B, 32, 32, 3) bytes as the published weights want them."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = ((images / 255 - mean) / deviation).astype(np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------------------ training


def fresh(work: Work, seed: int) -> nn.Module:
    """A module with the starting weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return work.build()


def optimizer(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """That of a recipe; both kinds work on every number by itself, so models can be stacked."""
    if recipe.optimizer == "sgd":
        options = {"lr": recipe.rate, "momentum": 0.9, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(parameters, **options)
    return torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss over examples, and over positions where there are any."""
    return F.cross_entropy(outputs, targets)


def trained(work: Work, seed: int = 0) -> nn.Module:
    """The model of a seed, trained on everything, in eval mode; trained once and then kept."""
    if work.recipe.optimizer == "none":
        return published()
    path = RUNS / "models" / f"{work.name}-{fingerprint(work)[:16]}-{seed}.pt"
    model = fresh(work, seed)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = train_many(work, torch.arange(len(work.train[1]))[None], [seed])[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def fingerprint(work: Work, told: dict[str, Any] | None = None, *tensors: Tensor) -> str:
    """A digest of model, training, data, and whatever else is told."""
    digest = hashlib.sha256()
    facts = {
        "model": str(work.build()),
        "recipe": asdict(work.recipe),
        "measurement": work.measurement,
        **(told or {}),
    }
    digest.update(json.dumps(facts).encode())
    for tensor in (*work.train, *work.queries, *tensors):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def published() -> nn.Module:
    """ResNet-20 with published weights; the parameters of its BatchNorm are frozen."""
    from safetensors.torch import load_file

    model = ResNet()
    weights = load_file(folder() / "weights/resnet20_cifar10.safetensors")
    model.load_state_dict(weights, strict=False)  # the file counts no batches
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return model.eval()


def train_many(work: Work, rows: Tensor, seeds: list[int]) -> list[nn.Module]:
    """Trains M models at once, each on its own rows and from its own seed.

    Args:
        work: what is trained.
        rows: (M, n) positions of the training examples of each model.
        seeds: M seeds of starting weights and order.

    Returns:
        M modules in eval mode.
    """
    modules = [fresh(work, seed) for seed in seeds]
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(modules) == 1:
        stacked, call = dict(modules[0].named_parameters()), _alone(modules[0])
    else:
        stacked, _ = torch.func.stack_module_state(modules)
        call = _together(modules[0])
    step = optimizer(work.recipe, list(stacked.values()))
    inputs, targets = work.train
    for _ in range(work.recipe.epochs):
        order = torch.stack([torch.randperm(rows.shape[1], generator=one) for one in orders])
        for batch in rows.gather(1, order).split(work.recipe.batch, dim=1):  # (M, batch)
            losses = call(stacked, inputs[batch], targets[batch])
            step.zero_grad()
            losses.sum().backward()
            step.step()
    if len(modules) > 1:
        with torch.no_grad():
            for place, module in enumerate(modules):
                for name, parameter in module.named_parameters():
                    parameter.copy_(stacked[name][place])
    return [module.eval() for module in modules]


def _alone(module: nn.Module) -> Callable[..., Tensor]:
    """The loss of a single model, without the cost of vmap."""

    def call(_: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(module(inputs[0]), targets[0])

    return call


def _together(module: nn.Module) -> Callable[..., Tensor]:
    """(M,) losses of stacked models."""

    def one(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(torch.func.functional_call(module, parameters, (inputs,)), targets)

    return torch.func.vmap(one)


def measured(work: Work, model: nn.Module) -> Tensor:
    """(Q,) the measurement of every query."""
    with torch.no_grad():
        return measurement(work, model(work.queries[0]), work.queries[1])


def measurement(work: Work, outputs: Tensor, targets: Tensor) -> Tensor:
    """(B,) margins log p - log(1 - p), or log-probabilities of whole sequences."""
    if work.measurement == "log_prob":
        return -F.cross_entropy(outputs, targets, reduction="none").sum(1)
    own = F.one_hot(targets, outputs.shape[1]).bool()
    others = outputs.masked_fill(own, -torch.inf).logsumexp(1)
    return outputs.gather(1, targets[:, None])[:, 0] - others
