"""What the benchmarks claim, as far as it does not depend on time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_a_loose_solve_gives_the_effects_of_a_tight_one(tmp_path: Path) -> None:
    script = BENCHMARKS / "influence_vs_refit.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    result = json.loads((tmp_path / "influence_vs_refit.json").read_text())

    assert result["reference"]["residual"] <= 1e-6
    for found in result["explain"].values():
        assert found["residual"] <= 1e-2  # what the method was asked for
        assert found["lowest correlation of a query"] > 0.9999
        assert found["largest error, share of the query's largest effect"] < 1e-2


def test_the_committed_memory_beyond_the_table_is_below_a_gibibyte_and_flat() -> None:
    result = json.loads((BENCHMARKS / "results/influence_vs_refit.json").read_text())

    beyond = [found["beyond the table"] for found in result["memory"].values()]
    assert max(beyond) < 1024
    # Four times the data, the same working memory: what is left is the noise of an allocator.
    assert beyond[-1] - beyond[0] < 0.25 * max(beyond)
