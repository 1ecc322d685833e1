"""r(theta), written out."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from whence.core.regularizers import Regularizer, make_regularizer, matching
from whence.errors import BadArgument

NAMED = {
    "body.weight": torch.tensor([[1.0, 2.0], [3.0, -1.0]]),
    "body.bias": torch.tensor([2.0, 5.0]),
    "head.weight": torch.tensor([4.0]),
}


def lasso(named: Mapping[str, Tensor]) -> Tensor:
    return named["head.weight"].abs().sum()


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (None, 0.05 * (15 + 29 + 16)),
        ("*", 0.05 * (15 + 29 + 16)),
        ("*weight", 0.05 * (15 + 16)),
        (["body.bias", "head.*"], 0.05 * (29 + 16)),
        (lasso, 0.05 * (15 + 29 + 16) + 4),
    ],
)
def test_half_the_weight_decay_times_the_squares_of_the_matching_parameters(regularizer, expected):
    found = make_regularizer(NAMED, 0.1, regularizer)
    assert found(NAMED).item() == pytest.approx(expected)


@pytest.mark.parametrize("regularizer", [None, "*weight"])
def test_without_decay_it_is_zero_and_still_has_a_slope(regularizer):
    found = make_regularizer(NAMED, 0.0, regularizer)
    assert found(NAMED) == 0
    assert found.describe() == "none"
    slope = torch.func.grad(found)(NAMED)
    assert not any(part.any() for part in slope.values())


def test_a_callable_stands_alone_where_nothing_is_decayed():
    found = make_regularizer(NAMED, 0.0, lasso)
    assert found(NAMED) == 4
    assert found.describe() == "lasso"


def test_the_description_names_strength_and_function():
    assert Regularizer(0.01, frozenset({"a", "b"}), lasso).describe() == (
        "(0.01/2)|theta|^2 on 2 tensors + lasso"
    )


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan")])
def test_a_decay_below_zero_is_refused(weight_decay):
    with pytest.raises(BadArgument, match="weight_decay"):
        make_regularizer(NAMED, weight_decay, None)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(BadArgument, match=r"(?s)tail.*head\.weight"):
        make_regularizer(NAMED, 0.1, ["*weight", "tail.*"])


def test_matching_keeps_the_order_and_takes_no_name_twice():
    assert matching(NAMED, ["head.*", "*weight"]) == ["body.weight", "head.weight"]
