"""Figure 2, right: the script computes what it says, its short mode runs, its numbers stand."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("fig2_cnn")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 28 * 28), dtype=np.float32)


def small_objective(script: ModuleType, rows: slice) -> Any:
    x = script.in_patches(images(6))[rows].double()
    objective = script.Objective(x, torch.tensor([3, 1, 4, 1, 5, 9])[rows])
    objective.decay = objective.decay.double()
    return objective


# ------------------------------------------------------------------ what the script computes


def test_the_network_for_patches_is_the_plain_one_for_images(script):
    network = script.Network().double()
    pixels = torch.from_numpy(images(5)).double().reshape(-1, 1, 28, 28)
    fast, plain = network(script.in_patches(images(5)).double()), network.plain(pixels)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2616
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_without_an_example_the_gradient_is_that_of_the_others(script):
    whole = small_objective(script, slice(None))
    theta = whole.initial(0).double()
    rest = small_objective(script, slice(1, None))
    torch.testing.assert_close(whole.gradient(theta, without=0), rest.gradient(theta))


def test_the_hessian_is_the_derivative_of_the_gradient(script):
    """Central differences of step 1e-6: their error is below 1e-6 of entries near one."""
    objective = small_objective(script, slice(None))
    theta = objective.initial(0).double()
    vector = torch.randn(2616, generator=torch.Generator().manual_seed(1)).double()
    ends = [objective.gradient(theta + step * vector) for step in (1e-6, -1e-6)]
    found = objective.hessian_product(theta, vector)
    torch.testing.assert_close(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def test_many_short_steps_of_retraining_are_gradient_descent(script):
    """With h to zero an implicit step is h grad R; 1e-3 is the curvature times h, and more."""
    objective = small_objective(script, slice(None))
    theta = objective.initial(0).double()
    query = (objective.x[:1], objective.y[:1])
    length = 1e-6
    matrix = torch.eye(2616).double() * 10
    retraining = script.Retraining(objective, theta, query, matrix)
    track = retraining.run(None, [length])
    leaf = theta.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(objective.loss(leaf, *query), leaf)
    expected = -length * float(slope @ objective.gradient(theta))
    assert track[1] - track[0] == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------ what it has shown


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_mode_predicts_what_training_on_does(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "fig2_cnn.py", "--short", "--out", tmp_path]
    subprocess.run(command, check=True, timeout=300)
    result = json.loads((tmp_path / "fig2_cnn.json").read_text())

    for name in ("first order", "corrected"):
        assert result["agreement"][name]["pearson"] > 0.9
    assert result["model"]["parameters"] == 2616
    assert (tmp_path / "fig2_cnn.svg").read_text().startswith("<svg")


def test_the_committed_figure_meets_the_paper() -> None:
    result = json.loads((FOLDER / "results" / "fig2_cnn.json").read_text())

    assert result["settings"]["examples"] == 5500
    assert len(result["points"]["actual"]) == result["settings"]["removals"] == 100
    for title in ("agreement", "agreement after twice the time"):
        assert result[title]["first order"]["pearson"] >= result["pearson in the paper"]
