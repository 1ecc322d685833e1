"""BM25 against its formula term by term."""

from math import log

import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import problems
from whence.adapters import make_problem
from whence.errors import BadArgument, Unsupported
from whence.methods.bm25 import BM25

K1, B = 1.2, 0.75


def by_hand(query: list, texts: list[list]) -> list[float]:
    mean = sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        total = 0.0
        for term in query:
            holding = sum(term in other for other in texts)
            rarity = log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            often = text.count(term)
            total += rarity * often * (K1 + 1) / (often + K1 * (1 - B + B * len(text) / mean))
        found.append(total)
    return found


def test_token_ids_without_their_padding_are_scored_by_the_formula():
    case = problems.tokens()

    def kept(inputs):
        return [
            [token for token, keep in zip(*row, strict=True) if keep]
            for row in zip(inputs["tokens"].tolist(), inputs["mask"].tolist(), strict=True)
        ]

    train = kept(case.problem.data.take(torch.arange(20))[0])
    scores = BM25().fit(case.problem).scores(case.queries)
    expected = [by_hand(query, train) for query in kept(case.queries[0])]
    assert_allclose(scores.values, [[-x for x in row] for row in expected], rtol=1e-12)


def test_raw_strings_are_split_into_words():
    texts = ["A cat sat.", "The dog sat down", "the CAT and the dog", "Birds fly"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(texts, [0, 1, 0, 1])
    problem = make_problem(model, (texts, [0, 1, 0, 1]))
    scores = BM25().fit(problem).scores((["The cat, a dog"], [0]))
    words = [text.lower().replace(".", "").split() for text in texts]
    assert_allclose(-scores.values[0], by_hand(["the", "cat", "a", "dog"], words), rtol=1e-12)


def test_a_term_that_no_training_text_has_adds_nothing():
    recipe = BM25(terms=lambda inputs: [["seen"] if x > 0 else ["new"] for x in inputs[:, 0]])
    case = problems.multinomial()
    kept = case.problem.data.take(torch.arange(60))[0][:, 0] > 0
    values = recipe.fit(problems.rearranged(case, kept.nonzero()[:, 0])).scores(case.queries).values
    asked = case.queries[0][:, 0].numpy() > 0
    assert (values[asked] != 0).all()
    assert (values[~asked] == 0).all()


def test_numbers_are_no_text():
    with pytest.raises(Unsupported, match="terms="):
        BM25().fit(problems.multinomial().problem)
    with pytest.raises(Unsupported, match="terms="):
        BM25().fit(problems.conv().problem)


@pytest.mark.parametrize("options", [{"k1": -1}, {"b": 1.5}])
def test_constants_outside_their_range_are_refused(options):
    with pytest.raises(BadArgument):
        BM25(**options).fit(problems.tokens().problem)
