"""Figure 1 runs, and shows what the train loss and the Hessian are there for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def check(result: dict[str, Any]) -> None:
    """What the figure claims."""
    numbers = result["numbers"]
    full, bare, flat = (numbers[name] for name in ("full", "without_train_loss", "without_hessian"))
    # Half of the examples have next to no loss; without it they seem to matter as much as others.
    assert full["low_loss_share"] < 0.2
    assert bare["low_loss_share"] > 0.4
    assert max(bare["pearson"], flat["pearson"]) < 0.7
    assert numbers["without_both"]["pearson"] < min(bare["pearson"], flat["pearson"])
    # Pixels are never negative, so x . x' has one sign; the regulariser's part is small beside it.
    for name in ("without_hessian", "without_both"):
        assert result["numbers, N fixed"][name]["same_label_helps"] == 1
        assert result["numbers, N fixed"][name]["other_label_harms"] == 1
    assert flat["same_label_helps"] > 0.85
    assert full["same_label_helps"] < 0.6

    seven = result["harmful seven"]
    assert seven["is a seven"]
    assert seven["full"] < 0 < seven["without_hessian"]
    assert seven["actual"] == pytest.approx(seven["full"], rel=0.1)
    assert result["model"]["query is a seven"]
    assert result["model"]["gradient norm"] < 1e-8


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_figure_already_shows_it(tmp_path: Path) -> None:
    script = FOLDER / "fig1_components.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    check(json.loads((tmp_path / "fig1_components.json").read_text()))
    assert (tmp_path / "fig1_components.svg").read_text().startswith("<svg")


def test_the_committed_figure_is_that_of_the_paper() -> None:
    result = json.loads((FOLDER / "results" / "fig1_components.json").read_text())
    check(result)
    assert result["data"] == {
        "training ones": 6179,
        "training sevens": 5715,
        "test images": 2163,
    }
    assert result["settings"]["query"] == 30
