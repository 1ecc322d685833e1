"""Figure 3 runs, and shows that a smooth hinge is needed and is enough."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_figure_shows_that_the_raw_hinge_over_estimates(tmp_path: Path) -> None:
    script = FOLDER / "fig3_hinge.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    result = json.loads((tmp_path / "fig3_hinge.json").read_text())

    rows = result["agreement"]["first order"]
    assert rows["t = 0"]["predicted size"] > 5
    assert 0.5 < rows["t = 0.001"]["predicted size"] < 2
    assert rows["t = 0.001"]["pearson"] > rows["t = 0"]["pearson"]
    # sqrt(2 gap) stays near the square root of rounding, with a refit as exact as it can be.
    checks = result["checks"]
    assert checks["largest possible error of an actual effect"] < 1e-5
    assert checks["median size of an actual effect"] > 1e-3
    assert (tmp_path / "fig3_hinge.svg").read_text().startswith("<svg")


def test_the_committed_figure_meets_the_paper() -> None:
    result = json.loads((FOLDER / "results" / "fig3_hinge.json").read_text())

    assert result["settings"]["examples"] == 11_800
    assert result["settings"]["removals"] == len(result["points"]["actual"]) == 100
    assert result["model"]["query is a seven"]
    rows = result["agreement"]["first order"]
    assert rows["t = 0.001"]["pearson"] >= 0.95
    assert rows["t = 0.1"]["pearson"] >= 0.91
    assert rows["t = 0"]["pearson"] < 0.7
    for name, number in result["pearson in the paper"].items():
        assert rows[name]["pearson"] == pytest.approx(number, abs=0.005)
    # Without curvature the predictions are twenty times too large.
    assert rows["t = 0"]["predicted size"] > 20
    assert 0.8 < rows["t = 0.001"]["slope"] < 1.25
    checks = result["checks"]
    error = checks["largest possible error of an actual effect"]
    assert error < 1e-3 * checks["median size of an actual effect"]
