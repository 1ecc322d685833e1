"""The table of all methods: a short run makes it, and the committed one says what is claimed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMITTED = json.loads((BENCHMARKS / "results/all_methods.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_a_short_run_tells_methods_from_what_does_not_apply(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "all_methods.py", "--short", "--out", tmp_path]
    subprocess.run([*command, "--match", "^(ekfac|loss|bm25)$"], check=True, timeout=300)
    methods = json.loads((tmp_path / "all_methods.json").read_text())["short"]["methods"]
    assert methods["ekfac"]["lds_interval"][0] > methods["loss"]["lds_interval"][1]
    assert methods["bm25"]["failed because"].startswith("Unsupported")


@pytest.mark.parametrize("work", COMMITTED)
def test_no_committed_method_is_above_the_noise_ceiling(work: str) -> None:
    """By more than chance: the lower end of its interval is below it."""
    found = COMMITTED[work]
    rows = [row for row in found["methods"].values() if "lds" in row]
    assert len(rows) >= 8
    for row in rows:
        low, high = row["lds_interval"]
        assert low <= high
        assert low < found["settings"]["noise ceiling"]


def test_runs_on_halves_predict_the_procedure_best_and_in_its_unit() -> None:
    methods = COMMITTED["perceptron"]["methods"]
    best = methods["MAGIC(subsets=10)"]
    others = [row["lds"] for row in methods.values() if "lds" in row and row is not best]
    assert best["lds_interval"][0] > max(others)
    assert best["slope"] == pytest.approx(1, abs=0.1)
    assert methods['Ensemble("ekfac", subsets=8)']["lds"] > methods["ekfac"]["lds"]
