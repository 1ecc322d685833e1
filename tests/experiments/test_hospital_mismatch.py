"""The hospital experiment runs, and finds the four children behind the wrong predictions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def check(result: dict[str, Any]) -> None:
    """What holds with the exact optimum, however long L-BFGS has run beside it."""
    data = result["data"]
    assert data["features"] == 127
    assert (data["training children"], data["of them readmitted"]) == (24, 3)
    assert data["training examples after the change"] == 19_980
    assert data["training children after the change"] == 4
    assert data["test children"] == 137

    found = result["one wrong child"]
    assert found["groups"][0]["age"] == "[0-10)"
    assert found["weakest child over the strongest other"] >= 20
    children = result["strongest"][:4]
    assert all(row["age"] == "[0-10)" for row in children)
    # Without a readmitted child the test child fares better, without the other one worse.
    assert all((row["effect"] < 0) == row["is readmitted"] for row in children)
    assert sum(row["is readmitted"] for row in children) == 3

    assert result["predicted against actual"]["pearson"] > 0.99
    together = result["all four children"]
    assert together["one newton step"] == pytest.approx(together["actual"], rel=1e-3)
    assert abs(together["sum of first-order effects"]) < abs(together["actual"])
    features = result["features of the child who was not readmitted"]
    assert min(features, key=features.get) == "age_[0-10)"
    assert result["models"]["after, newton"]["gradient norm"] < 1e-10


@pytest.mark.slow
def test_the_short_run_already_finds_the_children(tmp_path: Path, whence_data: Path) -> None:
    if not (whence_data / "diabetic_data.csv.gz").is_file():
        pytest.skip("needs diabetic_data.csv.gz in WHENCE_DATA")
    script = FOLDER / "hospital_mismatch.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    check(json.loads((tmp_path / "hospital_mismatch.json").read_text()))
    assert (tmp_path / "hospital_mismatch.svg").read_text().startswith("<svg")


def test_the_committed_run_agrees_with_the_paper() -> None:
    result = json.loads((FOLDER / "results" / "hospital_mismatch.json").read_text())
    check(result)
    # The paper's model was L-BFGS after 1,000 iterations: -.1189, -.1175, -.0826, +.0794, -.0029.
    early = result["one wrong child, after lbfgs"]["effects of the strongest eight"]
    assert sorted(early)[:3] == pytest.approx([-0.1189, -0.1175, -0.0826], abs=0.002)
    assert max(early) == pytest.approx(0.0794, abs=0.005)
    assert abs(early[4]) == pytest.approx(0.0029, abs=2e-4)
    flips = result["test children from right to wrong"]
    assert flips["lbfgs, 1000 iterations"]["right to wrong"] == 15  # 13 in the paper
    assert flips["newton"]["right to wrong"] == 30
