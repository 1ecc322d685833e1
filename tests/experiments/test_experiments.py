"""The experiments run, and their short modes already show what the full ones are there to show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(script: str, out: Path) -> dict[str, Any]:
    """The results of the short mode of an experiment."""
    path = EXPERIMENTS / script
    subprocess.run([sys.executable, path, "--short", "--out", out], check=True, timeout=300)
    return json.loads((out / path.with_suffix(".json").name).read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_figure_2_predicts_what_retraining_does(tmp_path: Path) -> None:
    result = run("koh2017_influence/fig2_logistic.py", tmp_path)

    for name in ("CG", "CG, N fixed"):
        assert result["agreement"][name]["pearson"] > 0.99
        # Of 2,000 examples one weighs 27 times as much as of 55,000: first order is coarser here.
        assert 0.95 < result["agreement"][name]["slope"] < 1.1
    assert result["agreement"]["LiSSA"]["pearson"] > 0.8  # 800 random examples know this much
    checks = result["checks"]
    assert checks["largest gradient norm after retraining"] < 1e-9
    assert checks["largest difference of a cold refit, share of the effect"] < 1e-3
    assert (tmp_path / "fig2_logistic.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_newton_step_tells_every_leave_one_out_effect(tmp_path: Path) -> None:
    result = run("leave_one_out/logistic.py", tmp_path)

    for row in result["rows"]:
        if row["method"] != "first order":
            assert row["pearson"] >= 0.995
            assert 0.95 <= row["slope"] <= 1.05
    (check,) = result["checks"]
    # Both stop where rounding does, at gradients near 1e-12, or 1e-7 of what one example does.
    assert check["largest difference of a cold refit, share of the largest effect"] < 1e-6


def accepted(name: str) -> dict[str, Any]:
    return json.loads((EXPERIMENTS / name).read_text())


def test_the_committed_figure_2_meets_the_paper() -> None:
    result = accepted("koh2017_influence/results/fig2_logistic.json")

    assert result["settings"]["examples"] == 55_000
    assert result["settings"]["removals"] == len(result["points"]["actual"]) == 500
    assert result["agreement"]["CG"]["pearson"] >= 0.99
    assert 0.95 <= result["agreement"]["CG"]["slope"] <= 1.05
    assert result["checks"]["gradient norm of the optimum"] < 1e-8


def test_the_committed_table_meets_its_target_at_the_stronger_regulariser() -> None:
    rows = accepted("leave_one_out/results/logistic.json")["rows"]
    newton = [r for r in rows if r["method"] != "first order" and r["weight decay"] == 1e-2]

    assert len(newton) == 12
    assert all(row["pearson"] >= 0.995 and 0.95 <= row["slope"] <= 1.05 for row in newton)
