"""Small models of text, float64, and problems on them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from problems import Case
from whence.adapters import make_problem

WORDS = ["<pad>", "the", "old", "town", "by", "a", "river", "sleeps", "<b>", "\n", "wakes"]
VOCABULARY, LENGTH = len(WORDS), 7


def decode(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


DISPLAY = {"kind": "text", "decode": decode}


class TinyGPT(nn.Module):
    """One block of causal attention with learned positions, its table also the decoder."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 6), nn.Linear(6, width)
        self.decoder = nn.Linear(width, VOCABULARY, bias=False)
        self.decoder.weight = self.tokens.weight

    def states(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        parts = self.mix(self.first(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.states(tokens)).transpose(1, 2)  # (B, C, T)


class Classifier(nn.Module):
    """Weighted mean of the embeddings; a mask tells padding."""

    def __init__(self, width: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.attend, self.head = nn.Linear(width, 1), nn.Linear(width, classes)

    def pooled(self, embedded: Tensor, mask: Tensor) -> Tensor:
        weights = self.attend(torch.tanh(embedded)).squeeze(-1).exp() * mask
        return (weights[..., None] * embedded).sum(1) / (1 + weights.sum(1, keepdim=True))

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pooled(self.embedding(tokens), attention_mask)))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build().double().eval()


def drawn(count: int = 15) -> Tensor:
    """(count, LENGTH) tokens, none of them padding."""
    generator = torch.Generator().manual_seed(6)
    return torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)


def language_model(model: Callable[[], nn.Module] = TinyGPT, **options: Any) -> Case:
    """Next tokens; the last two positions of odd examples are padding."""
    text = drawn()
    text[1::2, -2:] = 0
    inputs, targets = text[:, :-1], text[:, 1:].masked_fill(text[:, 1:] == 0, -100)
    options = {"loss": "cross_entropy", "weight_decay": 0.1, "display": DISPLAY} | options
    problem = make_problem(seeded(model), (inputs[:12], targets[:12]), **options)
    return Case(problem, (inputs[12:], targets[12:]))


def classified(model: Callable[[], nn.Module] = Classifier, **options: Any) -> Case:
    """Texts of 3 to 7 words in two classes."""
    text, lengths = drawn(), 3 + torch.arange(15) % 5
    mask = (torch.arange(LENGTH) < lengths[:, None]).double()
    inputs = {"tokens": text * mask.long(), "attention_mask": mask}
    labels = (text[:, 0] + text[:, 1]) % 2

    def some(rows: slice) -> Any:
        return {name: value[rows] for name, value in inputs.items()}, labels[rows]

    options = {"loss": "cross_entropy", "weight_decay": 0.02, "display": DISPLAY} | options
    return Case(make_problem(seeded(model), some(slice(12)), **options), some(slice(12, 15)))
