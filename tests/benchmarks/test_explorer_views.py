"""The explorer stays fluent on a large run: what was measured, and that it still runs."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_committed_first_view_takes_less_than_a_second_and_no_view_is_large():
    result = json.loads((BENCHMARKS / "results/explorer_views.json").read_text())
    assert (result["examples"], result["queries"]) == (10_000, 1_000)
    assert result["views"][0]["path"] == "/"
    assert result["views"][0]["seconds"] < 1
    assert all(view["bytes"] < 1e6 for view in result["views"])


def test_the_benchmark_runs_and_its_views_are_small(tmp_path: Path):
    script = BENCHMARKS / "explorer_views.py"
    command = [sys.executable, script, "--short", "--out", tmp_path]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    result = json.loads((tmp_path / "explorer_views.json").read_text())
    assert all(0 < view["bytes"] < 1e6 for view in result["views"])
