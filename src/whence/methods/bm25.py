"""Texts that share rare words."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from whence.core.batches import Tree
from whence.core.problem import Problem, Queries
from whence.errors import BadArgument, Unsupported
from whence.methods.base import Method, Ranking

Terms = Callable[[Tree], Sequence[Sequence[Any]]]
"""From B inputs to the B lists of their words or tokens."""

_MASKS = ("attention_mask", "mask")
_TOKENS = ("input_ids", "tokens")


@dataclass(frozen=True)
class BM25(Method):
    """Words in common, rare ones first: a baseline for text that knows no model.

        score[q, i] = sum over terms t of q of  idf_t f (k1 + 1) / (f + k1 (1 - b + b L_i / L))
        idf_t = log(1 + (N - n_t + 1/2) / (n_t + 1/2))

    f is how often t stands in text i, n_t in how many texts it stands, L_i the length of text i and
    L the mean length. A term that stands twice in the query counts twice. Texts are raw strings
    (of a query the first 2,000 characters), lower case, split into words; or token ids, without
    those that an attention mask leaves out. Examples of base weight zero get 0.

    Args:
        terms: `inputs -> a list of terms for each` to take instead.
        k1: how fast more of the same term stops to count.
        b: how much long texts are held back, 0 to 1.

    Raises:
        Unsupported: on fitting, the examples are neither strings nor token ids.
        BadArgument: on fitting, k1 or b outside its range.

    Source: Robertson & Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond";
    the idf that is never negative is that of Lucene.
    """

    is_calibrated: ClassVar[bool] = False

    terms: Terms | None = None
    k1: float = 1.2
    b: float = 0.75

    def fit(self, problem: Problem) -> Ranking:
        """Counts the terms of all training texts."""
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise BadArgument(
                found=f"k1={self.k1!r}, b={self.b!r}.",
                why="k1 is a number of terms, b a share.",
                remedy="Give k1 of zero or more and b from 0 to 1, or leave both out.",
            )
        texts = self._train_terms(problem)
        counter = CountVectorizer(analyzer=list)
        matrix = self._weighted(sparse.csr_array(counter.fit_transform(texts), dtype=np.float64))

        def helpfulness(queries: Queries) -> np.ndarray:
            asked = counter.transform(self._query_terms(queries))  # (Q, terms)
            return (sparse.csr_array(asked, dtype=np.float64) @ matrix.T).toarray()

        return Ranking(problem, {"method": "bm25", "terms": matrix.shape[1]}, helpfulness)

    def _weighted(self, counts: sparse.csr_array) -> sparse.csr_array:
        """(N, terms) what each term of each text adds to a query that has it once."""
        texts = counts.shape[0]
        lengths = counts.sum(1)
        held_back = self.k1 * (1 - self.b + self.b * lengths / lengths.mean())  # (N,)
        places = counts.tocoo()
        found = np.bincount(places.col, minlength=counts.shape[1])
        rarity = np.log1p((texts - found + 0.5) / (found + 0.5))
        frequency = places.data * (self.k1 + 1) / (places.data + held_back[places.row])
        return sparse.csr_array(
            (rarity[places.col] * frequency, (places.row, places.col)), shape=counts.shape
        )

    def _train_terms(self, problem: Problem) -> list[Sequence[Any]]:
        if problem.data.is_prepared and self.terms is None:
            return [_words(problem.data.example(row)) for row in range(len(problem))]
        terms = self.terms or _tokens
        return [text for batch in problem.batches() for text in terms(batch.inputs)]

    def _query_terms(self, queries: Queries) -> Sequence[Sequence[Any]]:
        if queries.displays and self.terms is None:
            return [_words(display.get("text")) for display in queries.displays]
        return (self.terms or _tokens)(queries.inputs)


def _words(text: object) -> list[str]:
    if not isinstance(text, str):
        raise _no_text(f"An example is of type {type(text).__name__}.")
    return re.findall(r"\w+", text.lower())


def _tokens(inputs: Tree) -> list[list[int]]:
    """The token ids of each example, without padding where a mask tells of it."""
    named: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {"tokens": inputs}
    tokens = next((named[name] for name in _TOKENS if name in named), None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
        kinds = {name: str(getattr(x, "dtype", type(x).__name__)) for name, x in named.items()}
        raise _no_text(f"The inputs are {kinds}.")
    mask = next((named[name] for name in _MASKS if name in named), None)
    if mask is None:
        return tokens.tolist()
    return [row[keep.bool()].tolist() for row, keep in zip(tokens, mask, strict=True)]


def _no_text(found: str) -> Unsupported:
    return Unsupported(
        found=found,
        why="BM25 compares texts: raw strings, or token ids (B, T).",
        remedy="Say what to compare: BM25(terms=...), from inputs to a list of terms for each.",
    )
