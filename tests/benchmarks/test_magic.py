"""What the benchmark of derivatives through training claims."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMITTED = json.loads((BENCHMARKS / "results/magic_lds.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_a_short_run_predicts_training_again(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "magic_lds.py", "--work", "tanh", "--part", "own"]
    subprocess.run([*command, "--short", "--out", tmp_path], check=True, timeout=300)
    found = json.loads((tmp_path / "magic_lds.json").read_text())["tanh"]["own"]
    assert found["LDS, 10% dropped"]["lds"] > 0.9
    assert found["metasmoothness"] > 0.9


@pytest.mark.parametrize(
    ("work", "part", "number", "least"),
    [
        ("tanh", "own", "LDS, 50% dropped", 0.85),
        ("tanh", "own", "LDS, 10% dropped", 0.97),
        ("tanh", "own", "LDS, 1% dropped", 0.97),
        ("relu", "own", "LDS, 50% dropped", 0.73),
        ("cnn", "own", "LDS, 1% dropped", 0.95),
        ("gpt", "own", "LDS, 1% dropped", 0.95),
        ("tanh", "across", "10 half-subset runs", 0.88),
    ],
)
def test_the_committed_scores_are_as_good_as_is_said(
    work: str, part: str, number: str, least: float
) -> None:
    assert COMMITTED[work][part][number]["lds"] >= least


def test_the_committed_costs_are_those_that_are_said() -> None:
    assert COMMITTED["tanh"]["cost"]["explain, 64 queries"]["trainings"] <= 40
    assert COMMITTED["cnn"]["cost"]["explain, 8 queries"]["trainings"] <= 4 * 8


def test_states_that_are_kept_grow_far_slower_than_steps() -> None:
    memory = COMMITTED["tanh"]["memory"]
    few = [memory[f"{steps} steps, few states"]["states kept"] for steps in (285, 1140, 4560)]
    assert few == [10, 12, 14]
