"""Metasmoothness tells a training that follows its weights from one that jumps."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from whence.calculus.metasmoothness import metasmoothness
from whence.core.training import Retrained

N, P = 40, 2000


@dataclass
class Fake:
    """A training whose parameters are a function of weights: all that is looked at."""

    function: object
    seed: int = 0
    asked: list[Tensor] = field(default_factory=list)

    @property
    def training(self) -> "Fake":
        return self

    @property
    def problem(self) -> "Fake":
        return self

    @property
    def data(self) -> "Fake":
        return self

    @property
    def ids(self):
        return torch.arange(N).numpy()

    def retrain(self, problem: object, rows: Tensor, *, seed: int) -> Retrained:
        self.asked.append(rows)
        return Retrained(torch.stack([self.function(row) for row in rows]))


def _measured(function: object, **options: int) -> float:
    weights = torch.ones(N).double()
    return metasmoothness(Fake(function), weights, function(weights), **options)


def _drawn(*seed: float) -> Tensor:
    word = int(abs(hash(seed)) % 2**31)
    return torch.randn(P, generator=torch.Generator().manual_seed(word)).double()


def test_parameters_that_go_straight_on_are_smooth() -> None:
    assert _measured(lambda w: torch.linspace(-1, 1, P) * w.double().sum()) == 1


def test_parameters_that_turn_back_are_not() -> None:
    def hill(weights: Tensor) -> Tensor:
        way = (N - weights.double().sum()) / 4  # 0, 1/2 and 1 for a tenth of forty
        return (0.5 - way).abs() * torch.ones(P) + 0.1 * way

    assert _measured(hill) == 0


@pytest.mark.parametrize(("steps", "expected"), [(False, 8**-0.5), (True, 2**-0.5)])
def test_noise_has_the_share_of_normal_numbers(steps: bool, expected: float) -> None:
    """Within 0.03, four standard errors of a mean over 2000 parameters in 3 directions."""

    def jumping(weights: Tensor) -> Tensor:
        removed = weights == 0
        key = weights.argmin().item()
        half, whole = _drawn(1, key), _drawn(2, key)
        if float(weights.min()) == 1:
            return torch.zeros(P).double()
        if not bool(removed.any()):
            return half
        return half + whole if steps else whole

    assert _measured(jumping, directions=3) == pytest.approx(expected, abs=0.03)


def test_a_direction_takes_a_tenth_of_what_has_weight_by_halves() -> None:
    fake = Fake(lambda w: w.double() + torch.arange(N))
    weights = torch.ones(N).double()
    weights[::2] = 0
    metasmoothness(fake, weights, fake.function(weights), directions=2, seed=1)
    (rows,) = fake.asked
    assert rows.shape == (4, N)
    for half, whole in (rows[:2], rows[2:]):
        taken = half == 0.5
        assert taken.sum() == 2  # a tenth of twenty
        assert torch.equal(whole[taken], torch.zeros(2).double())
        assert torch.equal(half[~taken], weights[~taken])
        assert torch.equal(whole[~taken], weights[~taken])
    assert not torch.equal(rows[0], rows[2])
