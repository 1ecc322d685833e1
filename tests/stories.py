"""stories260k, a small Llama with its tokenizer, read from the data folder."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, KEYS, WIDTH, LAYERS = 8, 4, 64, 5
BOS = 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        narrow = WIDTH * KEYS // HEADS
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.attention = nn.ModuleDict(
            {
                name: nn.Linear(WIDTH, width, bias=False)
                for name, width in (("wq", WIDTH), ("wk", narrow), ("wv", narrow), ("wo", WIDTH))
            }
        )
        self.feed_forward = nn.ModuleDict(
            {
                "w1": nn.Linear(WIDTH, 172, bias=False),
                "w2": nn.Linear(172, WIDTH, bias=False),
                "w3": nn.Linear(WIDTH, 172, bias=False),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        h, f = self.attention_norm(x), self.feed_forward
        q, k, v = (
            self.attention[name](h).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name, heads in (("wq", HEADS), ("wk", KEYS), ("wv", KEYS))
        )
        k, v = (part.repeat_interleave(HEADS // KEYS, 1) for part in (rotated(k), v))
        seen = F.scaled_dot_product_attention(rotated(q), k, v, is_causal=True)
        x = x + self.attention["wo"](seen.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + f["w2"](F.silu(f["w1"](h)) * f["w3"](h))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs."""
    pairs = x.unflatten(-1, (-1, 2))
    rates = 10000.0 ** (-torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Llama(nn.Module):
    """(B, C, T) logits; the table of embeddings is also the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(512, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.RMSNorm(WIDTH, 1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tok_embeddings.weight).transpose(1, 2)


def load(folder: Path) -> Llama:
    """The model with its weights, float32."""
    raw = (folder / "weights" / "stories260k.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    weights = {
        name: torch.from_numpy(
            np.frombuffer(body[slice(*told["data_offsets"])], "<f4").reshape(told["shape"]).copy()
        )
        for name, told in header.items()
    }
    model = Llama()
    model.load_state_dict(weights)
    return model.eval()


class Tokenizer:
    """Pieces merged by score, as SentencePiece does."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "weights" / "stories260k_tokenizer.json").read_text("utf-8"))
        self.tokens = told["tokens"]
        self.scores = dict(zip(self.tokens, told["scores"], strict=True))
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        pieces = list(f" {text}")
        while True:
            pairs = [a + b for a, b in pairwise(pieces)]
            known = [(self.scores[pair], -i) for i, pair in enumerate(pairs) if pair in self.ids]
            if not known:
                return [BOS, *(self.ids[piece] for piece in pieces)]
            at = -max(known)[1]
            pieces[at : at + 2] = [pairs[at]]

    def decode(self, ids: list[int]) -> str:
        return "".join("" if i == BOS else self.tokens[i] for i in ids)


def texts(folder: Path, count: int) -> list[str]:
    """The first stories, each on one line of plain letters."""
    with gzip.open(folder / "tinystories.jsonl.gz", "rt", encoding="utf-8") as file:
        told = [json.loads(next(file))["text"] for _ in range(count)]
    return [" ".join(text.encode("ascii", "ignore").decode().split()) for text in told]
