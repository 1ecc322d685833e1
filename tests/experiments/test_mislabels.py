"""The comparison of rankings runs, and the committed numbers bear out the default."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whence.uses.mislabels import BEST, NEXT_BEST

FOLDER = Path(__file__).parents[2] / "experiments" / "mislabels"
NAMES = {"left_out_loss": "left-out loss", "loss": "loss"}


def precision(row: dict[str, Any], ranking: str) -> float:
    return row["average precision"][ranking]["mean"]


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_comparison_is_far_from_chance(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab", reason="the comparison needs cleanlab")
    script = FOLDER / "four_datasets.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    rows = json.loads((tmp_path / "four_datasets.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        for ranking in ("left-out loss", "self-influence", "loss", "cleanlab, quality"):
            assert precision(row, ranking) > precision(row, "random") + 0.3
        assert precision(row, "margin") == pytest.approx(precision(row, "loss"))
    assert (tmp_path / "four_datasets.svg").read_text().startswith("<svg")


def committed() -> dict[str, Any]:
    return json.loads((FOLDER / "results" / "four_datasets.json").read_text())


def test_the_committed_comparison_is_the_whole_one() -> None:
    result = committed()
    assert result["settings"]["seeds"] == 10
    assert result["settings"]["flipped"] == 0.1
    assert [row["data"] for row in result["rows"][::3]] == list(result["data"])
    assert len(result["rows"]) == 4 * 3


def test_the_default_ranking_is_the_one_that_won() -> None:
    overall = committed()["mean over data sets and weight decays"]
    best = max(overall, key=lambda name: overall[name]["mean"])
    assert best == NAMES[BEST]
    safest = min(overall, key=lambda name: overall[name]["largest shortfall"])
    assert safest == NAMES[BEST]


def test_without_it_the_loss_of_the_model_is_the_best_that_whence_has() -> None:
    overall = committed()["mean over data sets and weight decays"]
    others = ("self-influence", "self-influence, first order", "confidence", "random")
    assert all(overall[NAMES[NEXT_BEST]]["mean"] > overall[name]["mean"] for name in others)


def test_where_the_left_out_loss_is_behind_it_is_behind_by_less_than_a_hundredth() -> None:
    for row in committed()["rows"]:
        assert min(gap["mean"] for gap in row["left-out loss less"].values()) > -0.01
