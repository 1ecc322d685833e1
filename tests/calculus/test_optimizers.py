"""Every step is that of `torch.optim`, and can be differentiated."""

import pytest
import torch

from whence.calculus.optimizers import SGD, Adam, Optimizer, make_optimizer
from whence.errors import BadArgument, UnknownName

PAIRS = [
    (SGD(), torch.optim.SGD, {}),
    (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (SGD(momentum=0.8, nesterov=True), torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    (Adam(), torch.optim.Adam, {}),
    (Adam(betas=(0.8, 0.95), eps=1e-4), torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-4}),
]


def _gradients(steps: int, size: int) -> torch.Tensor:
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS, ids=lambda value: str(value)[:40])
def test_each_step_is_that_of_torch(ours: Optimizer, theirs: type, options: dict) -> None:
    theta = torch.arange(6).double()
    state = ours.start(theta)
    parameter = torch.nn.Parameter(theta.clone())
    optimizer = theirs([parameter], lr=0.1, **options)
    for count, gradient in enumerate(_gradients(30, 6), start=1):
        lr = 0.1 / count
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
        state = ours.step(state, gradient, lr=lr, count=count)
        assert torch.allclose(state[0], parameter, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [pair[0] for pair in PAIRS], ids=lambda o: o.name)
def test_a_stack_of_runs_takes_the_steps_of_each(optimizer: Optimizer) -> None:
    starts, (first, second) = torch.randn(2, 3, 5).double(), _gradients(2, 15).reshape(2, 3, 5)
    stack = optimizer.step(optimizer.start(starts[0]), first, lr=0.1, count=1)
    stack = optimizer.step(stack, second, lr=0.1, count=2)
    for row in range(3):
        single = optimizer.step(optimizer.start(starts[0, row]), first[row], lr=0.1, count=1)
        single = optimizer.step(single, second[row], lr=0.1, count=2)
        assert torch.equal(stack[row], single)


@pytest.mark.parametrize("optimizer", [*(pair[0] for pair in PAIRS), Adam(eps_root=1e-3)])
def test_a_step_in_place_is_the_same_step(optimizer: Optimizer) -> None:
    start, slopes = torch.randn(4, 5).double(), _gradients(3, 20).reshape(3, 4, 5)
    state = optimizer.start(start)
    written = state.clone()
    for count, slope in enumerate(slopes, start=1):
        state = optimizer.step(state, slope, lr=0.1, count=count)
        optimizer.step_(written, slope, lr=0.1, count=count)
        assert torch.allclose(written, state, rtol=1e-13, atol=1e-15)


def test_a_parameter_that_nothing_has_moved_has_a_finite_derivative() -> None:
    gradient = torch.tensor([0.0, 1.0], requires_grad=True)
    state = Adam().step(Adam().start(torch.zeros(2)), gradient, lr=0.1, count=1)
    (slope,) = torch.autograd.grad(state[0].sum(), gradient)
    assert bool(slope.isfinite().all())


def test_the_root_can_be_made_smooth() -> None:
    state = Adam().start(torch.zeros(1))
    plain = Adam().step(state, torch.tensor([1e-3]), lr=0.1, count=1)
    smooth = Adam(eps_root=1e-2).step(state, torch.tensor([1e-3]), lr=0.1, count=1)
    assert abs(float(plain[0])) > 50 * abs(float(smooth[0]))


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"momentum": 1.0}, {"nesterov": True}):
        with pytest.raises(BadArgument):
            SGD(**wrong)
    with pytest.raises(BadArgument):
        Adam(betas=(1.0, 0.9))
    with pytest.raises(UnknownName, match="adam"):
        make_optimizer("adm")
