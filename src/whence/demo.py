"""The guided tour: a small network reads digits, and whence tells where its mistakes come from.

The network has 24 hidden units and is trained on scikit-learn's digits until its gradient is zero.
The six test images on which it is most wrong are explained; then it is trained again without some
of the training images, one at a time, which shows how far to believe the explanation.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import whence
from whence import datasets
from whence.calculus.gradients import measure
from whence.core.batches import Data, make_data
from whence.core.problem import Problem
from whence.errors import NotConverged
from whence.progress import track
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run

HIDDEN = 24
WEIGHT_DECAY = 1e-2
"""Strong enough for a sharp minimum, to which retraining comes back."""

GRADIENT = 1e-7
"""Largest entry of the gradient at which training ends."""

QUERIES = 6


def run(folder: str | Path, *, examples: int = 40) -> dict[str, Any]:
    """Trains, explains, verifies, and writes a run folder with a report.

    Args:
        folder: of the run; an earlier run in it is replaced.
        examples: how many training images are left out, one at a time, to verify.

    Returns:
        The story of the run.
    """
    digits = problem()
    scores = whence.explain(digits, queries(digits))
    verified = whence.verify(digits, scores, examples=examples)
    title = "Why a small network misreads these digits"
    story = tell(digits, verified.scores, verification=verified, title=title)
    album = make_album(digits, verified.scores)
    save_run(folder, verified.scores, story, album=album, problem="whence.demo:problem")
    return story


def problem() -> Problem:
    """The trained network with its training images: the same, to the bit, in every call."""
    digits = datasets.load("digits")
    x, y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)
    return whence.make_problem(
        train(x, y),
        (x, y),
        loss="cross_entropy",
        weight_decay=WEIGHT_DECAY,
        display={"kind": "image", "shape": digits.shape},
        label_names=digits.label_names,
        name="digits",
    )


def queries(problem: Problem) -> Data:
    """The test images with the lowest margin: those on which the network is most wrong.

    Returns:
        Images and labels; their ids are positions among the test images.
    """
    digits = datasets.load("digits")
    x, y = digits.x_test, digits.y_test
    margins = measure(problem, problem.measurement("margin"), problem.queries((x, y)))
    worst = margins.argsort()[:QUERIES].numpy()
    return make_data((x[worst], y[worst]), ids=worst)


def train(x: Tensor, y: Tensor) -> nn.Module:
    """A network at a minimum of mean cross-entropy + (WEIGHT_DECAY / 2)|theta|^2.

    Args:
        x: (N, 64) images.
        y: (N,) labels.

    Raises:
        NotConverged: the gradient did not vanish.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10)).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=100,
        history_size=100,
        tolerance_grad=GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = torch.stack([(p**2).sum() for p in model.parameters()]).sum()
        value = F.cross_entropy(model(x), y) + WEIGHT_DECAY / 2 * penalty
        value.backward()
        return value

    with _one_thread():
        for _ in track(range(50), "Training a small network on digits"):
            optimizer.step(objective)
            if _largest_gradient(model) <= GRADIENT:
                return model.eval()
    raise NotConverged(
        found=f"The gradient still has an entry of {_largest_gradient(model):.1e} after 50 rounds.",
        why="Effects describe a minimum of the objective.",
        remedy="Report this with the versions of whence and PyTorch and the name of the processor.",
    )


def _largest_gradient(model: nn.Module) -> float:
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


@contextmanager
def _one_thread() -> Generator[None, None, None]:
    """Sums in one order, so that the parameters have the same fingerprint in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
