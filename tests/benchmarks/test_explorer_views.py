"""The explorer stays fluent on large runs: what was measured, and that it still runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

RESULT = json.loads((BENCHMARKS / "results/explorer_views.json").read_text())

SIZES = {"pictures": (10_000, 1_000), "rows": (1_000_000, 50)}


@pytest.mark.parametrize("run", SIZES)
def test_the_committed_first_view_takes_less_than_a_second_and_no_view_is_large(run):
    found = RESULT[run]
    assert (found["examples"], found["queries"]) == SIZES[run]
    assert found["views"][0]["path"] == "/"
    assert found["views"][0]["seconds"] < 1
    assert all(view["bytes"] < 5e5 for view in found["views"])


def test_the_server_of_a_million_examples_holds_none_of_their_effects():
    effects = RESULT["rows"]["bytes"]["scores.npz"] / 2**20
    assert effects > 350
    assert RESULT["rows"]["own MiB"] < 200  # without any run it takes about 100


def test_a_verification_of_ten_million_points_is_shown_by_a_sample():
    assert all(view["bytes"] < 5e5 for view in RESULT["verification"]["views"])


def test_the_benchmark_runs_and_its_views_are_small(tmp_path: Path):
    script = BENCHMARKS / "explorer_views.py"
    command = [sys.executable, script, "--short", "--out", tmp_path]
    subprocess.run(command, check=True, timeout=180, capture_output=True)
    result = json.loads((tmp_path / "explorer_views.json").read_text())
    runs = [found for found in result.values() if isinstance(found, dict) and "views" in found]
    assert len(runs) == 4
    assert all(0 < view["bytes"] < 5e5 for found in runs for view in found["views"])
