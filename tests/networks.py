"""Small networks of every kind, float64, with random weights: what layers have to get right.

`NETWORKS` names a builder for each; `ROWS` says which parameters no layer can hold, so that their
gradients are taken example by example.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.adapters import make_problem
from whence.core.problem import Problem

COUNT, TOKENS, CLASSES = 12, 11, 3


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


def text(length: int = 6) -> Tensor:
    return torch.randint(0, TOKENS, (COUNT, length), generator=torch.Generator().manual_seed(2))


def problem_of(build: Callable[[], nn.Module], x: Any, **options: Any) -> Problem:
    """Outputs (B, C) or (B, C, T) with random labels."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about nested tensors
        torch.manual_seed(3)
        model = build().double().eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:  # ones and zeros hide mistakes
                nn.init.normal_(parameter, 0.5)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                nn.init.uniform_(buffer, 0.5, 1.5)
        with torch.no_grad():
            outputs = model(x)
        y = torch.randint(0, outputs.shape[1], outputs[:, 0].shape)
    return make_problem(model, (x, y), loss="cross_entropy", weight_decay=0.05, **options)


# ------------------------------------------------------------------ convolutions


def convolved(convolution: Callable[[], nn.Module], *shape: int) -> Problem:
    """A convolution, its outputs summed with weights that differ from place to place."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = convolution()
            self.head = nn.Linear(self.layer(torch.zeros(1, *shape)).numel(), CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.layer(x)).flatten(1))

    return problem_of(Net, drawn(COUNT, *shape))


CONVOLUTIONS: dict[str, Callable[[], Problem]] = {
    "conv1d": lambda: convolved(lambda: nn.Conv1d(3, 4, 3), 3, 8),
    "conv2d": lambda: convolved(lambda: nn.Conv2d(2, 3, (3, 2)), 2, 5, 6),
    "conv3d": lambda: convolved(lambda: nn.Conv3d(1, 2, 2, stride=(2, 1, 1)), 1, 4, 3, 3),
    "no bias": lambda: convolved(lambda: nn.Conv2d(2, 3, 3, bias=False), 2, 5, 5),
    "groups": lambda: convolved(lambda: nn.Conv2d(4, 6, 3, groups=2), 4, 5, 5),
    "depthwise": lambda: convolved(lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), 3, 4, 4),
    "stride": lambda: convolved(lambda: nn.Conv2d(2, 3, 3, stride=(2, 3)), 2, 8, 8),
    "dilation": lambda: convolved(lambda: nn.Conv2d(2, 3, 2, dilation=(2, 3)), 2, 6, 6),
    "padding": lambda: convolved(lambda: nn.Conv2d(2, 3, 3, padding=(1, 2)), 2, 4, 4),
    "all of them": lambda: convolved(
        lambda: nn.Conv2d(4, 4, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), groups=2),
        *(4, 6, 7),
    ),
    "transposed": lambda: convolved(lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), 2, 3, 3),
    "transposed, all of them": lambda: convolved(
        lambda: nn.ConvTranspose2d(
            *(4, 6, (3, 2)), stride=2, padding=1, output_padding=1, groups=2, dilation=(1, 2)
        ),
        *(4, 3, 3),
    ),
    "transposed in one axis": lambda: convolved(
        lambda: nn.ConvTranspose1d(2, 3, 3, bias=False), 2, 3
    ),
    "same": lambda: convolved(lambda: nn.Conv2d(2, 3, (3, 4), padding="same"), 2, 5, 5),
    "valid": lambda: convolved(lambda: nn.Conv1d(2, 3, 3, padding="valid"), 2, 5),
    "circular": lambda: convolved(
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), 2, 4, 4
    ),
    "reflect": lambda: convolved(
        lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="reflect"), 2, 5
    ),
    "replicate": lambda: convolved(
        lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), 1, 2, 3, 2
    ),
    "one place": lambda: convolved(lambda: nn.Conv2d(3, 4, 1), 3, 1, 1),
}


# ------------------------------------------------------------------ norms and bare parameters


class Between(nn.Module):
    """A middle between two linear layers."""

    def __init__(self, middle: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(3, width), middle
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(self.first(x))))


class OverPositions(nn.Module):
    """Tokens, a middle on (B, T, width), and their mean."""

    def __init__(self, middle: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.tokens, self.middle = nn.Embedding(TOKENS, width), middle
        self.last = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(self.tokens(tokens))).mean(1))


class OverChannels(nn.Module):
    """A middle on (B, 4, H, W)."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv, self.middle, self.last = nn.Conv2d(2, 4, 2), middle, nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(self.conv(x))).flatten(1))


class OwnRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5))


class Bare(nn.Module):
    """A function of x and one parameter."""

    def __init__(
        self, shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.p, self.function = nn.Parameter(torch.randn(shape)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p)


class Conv1DOfLanguageModels(nn.Module):
    """A linear layer with its weight the other way round, by `addmm` over flattened positions."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], -1)


def between(middle: Callable[[], nn.Module]) -> Problem:
    return problem_of(lambda: Between(middle()), drawn(COUNT, 3))


def over_positions(middle: Callable[[], nn.Module]) -> Problem:
    return problem_of(lambda: OverPositions(middle()), text())


def over_channels(middle: Callable[[], nn.Module]) -> Problem:
    return problem_of(lambda: OverChannels(middle()), drawn(COUNT, 2, 3, 3))


NORMS: dict[str, Callable[[], Problem]] = {
    "layer norm": lambda: over_positions(lambda: nn.LayerNorm(4)),
    "layer norm without bias": lambda: between(lambda: nn.LayerNorm(4, bias=False)),
    "layer norm of two axes": lambda: over_channels(lambda: nn.LayerNorm((2, 2))),
    "group norm": lambda: over_channels(lambda: nn.GroupNorm(2, 4)),
    "group norm of vectors": lambda: between(lambda: nn.GroupNorm(2, 4)),
    "batch norm": lambda: over_channels(lambda: nn.BatchNorm2d(4)),
    "batch norm of vectors": lambda: between(lambda: nn.BatchNorm1d(4)),
    "rms norm": lambda: over_positions(lambda: nn.RMSNorm(4)),
    "own rms norm": lambda: over_positions(lambda: OwnRMSNorm(4)),
}

BARE: dict[str, Callable[[], Problem]] = {
    name: partial(place, partial(Bare, shape, function))
    for name, place, shape, function in (
        ("scaled", between, (4,), lambda x, p: x * p),
        ("scaled from the left", over_positions, (4,), lambda x, p: p * x),
        ("scaled by one number", over_positions, (), lambda x, p: x * p),
        ("scaled by a vector of one", over_positions, (1,), lambda x, p: p * x),
        ("scaled by position", over_positions, (6, 1), lambda x, p: p * x),
        ("scaled by channel", over_channels, (4, 1, 1), lambda x, p: p * x),
        ("added", over_positions, (6, 4), lambda x, p: x + p),
        ("added to a batch of one", over_positions, (1, 6, 4), lambda x, p: x + p),
        ("subtracted", over_positions, (4,), lambda x, p: x - p),
        ("subtracted from", over_positions, (4,), lambda x, p: p - x),
        ("divided by", between, (4,), lambda x, p: x / p),
        ("matmul", over_positions, (4, 4), lambda x, p: x @ p),
        ("mm", between, (4, 4), torch.mm),
        ("turned", over_positions, (4, 4), lambda x, p: x @ p.T),
        ("linear", over_positions, (4, 4), lambda x, p: F.linear(x, p)),
        ("linear turned", over_positions, (4, 4), lambda x, p: F.linear(x, p.t())),
        ("a slice added", over_positions, (1, 9, 4), lambda x, p: x + p[:, : x.shape[1]]),
        ("with a new axis", over_channels, (4,), lambda x, p: x * p[:, None, None]),
        ("as a view", over_channels, (4,), lambda x, p: x + p.view(1, -1, 1, 1)),
        ("a slice of a weight", over_positions, (8, 4), lambda x, p: F.linear(x, p[2:6])),
        ("in place", over_positions, (4,), lambda x, p: x.mul_(p).add_(1.0)),
        ("exponentiated", over_positions, (), lambda x, p: p.exp() * x),
        ("used twice", over_positions, (4, 4), lambda x, p: torch.tanh(x @ p) @ p),
        ("used both ways", over_positions, (4, 4), lambda x, p: torch.tanh(x @ p) @ p.T),
        ("by einsum", over_positions, (4, 4), lambda x, p: torch.einsum("bti,oi->bto", x, p)),
        ("in two unlike ways", over_positions, (4, 4), lambda x, p: x @ p + p.sum(0)),
        ("with a vector", between, (4,), lambda x, p: (x @ p)[:, None].expand(-1, 4) * x),
        (
            "repeated",
            over_positions,
            (1, 2, 4),
            lambda x, p: torch.cat([p.repeat(len(x), 1, 1), x], 1),
        ),
        ("of both sides", between, (4, 4), lambda x, p: x @ (p @ p)),
        ("from the left", over_channels, (4, 4), lambda x, p: (p @ x.flatten(2)).view_as(x)),
    )
}


# ------------------------------------------------------------------ sequences


class LanguageModel(nn.Module):
    """Causal attention by hand, positions embedded once for all examples, (B, V, T) logits."""

    def __init__(self, *, is_tied: bool = False, length: int = 6) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, 4), nn.Embedding(length, 4)
        self.norm, self.last_norm = nn.LayerNorm(4), OwnRMSNorm(4)
        self.qkv, self.out = Conv1DOfLanguageModels(12, 4), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, TOKENS, bias=False)
        if is_tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(self.last_norm(h)).transpose(1, 2)


class Encoder(nn.Module):
    """torch's own transformer, examples or positions first."""

    def __init__(self, *, is_batch_first: bool) -> None:
        super().__init__()
        self.tokens, self.is_batch_first = nn.Embedding(TOKENS, 4), is_batch_first
        layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=is_batch_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens)
        if self.is_batch_first:
            return self.head(self.encoder(h).mean(1))
        return self.head(self.encoder(h.transpose(0, 1)).mean(0))


class Attention(nn.Module):
    """`nn.MultiheadAttention` from one sequence to another, positions first or not."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens, self.is_first = nn.Embedding(TOKENS, 4), options.get("batch_first", False)
        self.attention, self.head = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key = self.tokens(tokens[:, :2]), self.tokens(tokens[:, 1:])
        if not self.is_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        found, _ = self.attention(query, torch.tanh(key), key)
        return self.head(found.mean(1 if self.is_first else 0))


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.tokens, self.cell = nn.Embedding(TOKENS, 3), kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.tokens(tokens))[0][:, -1])


class Unrolled(nn.Module):
    """The same cell at every step."""

    def __init__(self, *, has_bias: bool) -> None:
        super().__init__()
        self.tokens, self.step = nn.Embedding(TOKENS, 3), nn.Linear(7, 4, bias=has_bias)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        state = x.new_zeros(len(x), 4)
        for place in range(x.shape[1]):
            state = torch.tanh(self.step(torch.cat([x[:, place], state], 1)))
        return self.head(state)


class Padded(nn.Module):
    def __init__(self, padding: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 4, padding_idx=padding)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(tokens)).sum(1))


class Patches(nn.Module):
    """A vision transformer's start: patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.kind = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 5, 4))
        self.mix, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.kind.expand(len(x), -1, -1), h], 1) + self.places
        h = h + self.mix(h, h, h, need_weights=False)[0]
        return self.head(h[:, 0])


class PositionsFirst(nn.Module):
    """Everything on (T, B, width), with a position embedding of shape (T, 1, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, 4), nn.Parameter(torch.randn(6, 1, 4))
        self.scale, self.mix = OwnRMSNorm(4), nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens.T) + self.places
        return self.head(torch.tanh(self.mix(self.scale(h))).mean(0))


SEQUENCES: dict[str, Callable[[], Problem]] = {
    "language model": lambda: problem_of(LanguageModel, text()),
    "tied language model": lambda: problem_of(lambda: LanguageModel(is_tied=True), text()),
    "sequences of seven": lambda: problem_of(lambda: LanguageModel(length=7), text(7)),
    "sequences of thirty-five": lambda: problem_of(lambda: LanguageModel(length=35), text(35)),
    "encoder, examples first": lambda: problem_of(lambda: Encoder(is_batch_first=True), text()),
    "encoder, positions first": lambda: problem_of(lambda: Encoder(is_batch_first=False), text()),
    "encoder of seven, positions first": lambda: problem_of(
        lambda: Encoder(is_batch_first=False), text(7)
    ),
    "attention": lambda: problem_of(lambda: Attention(batch_first=True), text()),
    "attention, positions first": lambda: problem_of(Attention, text()),
    "attention with own widths": lambda: problem_of(
        lambda: Attention(batch_first=True, kdim=4, vdim=4, add_bias_kv=True), text()
    ),
    "lstm": lambda: problem_of(lambda: Recurrent(nn.LSTM), text()),
    "gru": lambda: problem_of(lambda: Recurrent(nn.GRU), text()),
    "unrolled": lambda: problem_of(lambda: Unrolled(has_bias=True), text()),
    "unrolled without bias": lambda: problem_of(lambda: Unrolled(has_bias=False), text()),
    "padding": lambda: problem_of(lambda: Padded(0), text()),
    "padding from the end": lambda: problem_of(lambda: Padded(-2), text()),
    "patches": lambda: problem_of(Patches, drawn(COUNT, 1, 4, 4)),
    "positions first": lambda: problem_of(PositionsFirst, text()),
}


# ------------------------------------------------------------------ unusual models


class Shared(nn.Module):
    """One layer used at two depths, another bias at each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4) / 2)
        self.biases = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(2)])
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for bias in self.biases:
            h = torch.tanh(F.linear(h, self.weight, bias))
        return self.head(torch.tanh(F.linear(h, self.weight)))


class Residual(nn.Module):
    """In-place sums and in-place activations, as in residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(x), inplace=True))
        h += x
        h.mul_(0.5).clamp_(-1)
        return self.head(F.relu_(h))


class Unused(nn.Module):
    """One layer that never runs, one whose output counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.never, self.lost = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.lost(x)
        return self.used(x)


class Flattening(nn.Module):
    """Positions and examples in one axis, either first."""

    def __init__(self, *, are_examples_first: bool) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Embedding(TOKENS, 4), nn.Linear(4, 4)
        self.head, self.are_examples_first = nn.Linear(4, CLASSES), are_examples_first

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens)
        if not self.are_examples_first:
            h = h.transpose(0, 1)
        flat = torch.tanh(self.mix(h.reshape(-1, 4)))
        axis = 1 if self.are_examples_first else 0
        return self.head(flat.reshape(*h.shape).mean(axis))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(3, 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.tanh(x))


def frozen() -> Problem:
    """One weight and one bias of different layers are asked about."""
    build = partial(Between, nn.Linear(4, 4))
    return problem_of(build, drawn(COUNT, 3), parameters=["first.weight", "middle.bias"])


UNUSUAL: dict[str, Callable[[], Problem]] = {
    "shared": lambda: problem_of(Shared, drawn(COUNT, 3)),
    "residual": lambda: problem_of(Residual, drawn(COUNT, 3)),
    "unused": lambda: problem_of(Unused, drawn(COUNT, 3)),
    "flattening": lambda: problem_of(lambda: Flattening(are_examples_first=True), text()),
    "flattening, positions first": lambda: problem_of(
        lambda: Flattening(are_examples_first=False), text()
    ),
    "bilinear": lambda: problem_of(Bilinear, drawn(COUNT, 3)),
    "frozen": frozen,
}

NETWORKS: dict[str, Callable[[], Problem]] = {
    name: cache(build)
    for name, build in (CONVOLUTIONS | NORMS | BARE | SEQUENCES | UNUSUAL).items()
}

ROWS = {
    "divided by": {"middle.p"},
    "in place": {"middle.p"},
    "exponentiated": {"middle.p"},
    "used both ways": {"middle.p"},
    "by einsum": {"middle.p"},
    "in two unlike ways": {"middle.p"},
    "of both sides": {"middle.p"},
    "from the left": {"middle.p"},
    "lstm": {f"cell.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "gru": {f"cell.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "unused": {"never.weight", "never.bias", "lost.weight", "lost.bias"},
    "bilinear": {"layer.weight", "layer.bias"},
}
"""Parameters whose gradients are taken example by example; all others are held by layers."""
