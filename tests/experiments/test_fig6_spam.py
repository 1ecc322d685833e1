"""Figure 6 runs, and self-influence finds flipped labels sooner than the loss."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def means(result: dict[str, Any], ranking: str, what: str) -> np.ndarray:
    return np.array([value["mean"] for value in result["rankings"][ranking][what]])


def check(result: dict[str, Any]) -> None:
    """What the figure claims, and that the library computes what the formulas say."""
    for ranking in ("self-influence", "self-influence, first power", "left-out loss"):
        assert (means(result, ranking, "fixed") > means(result, "loss", "fixed")).all()
    assert (means(result, "loss", "fixed") > 1.5 * means(result, "random", "fixed")).all()
    checks = result["checks"]
    # The softplus of the loss is a straight line above 20, where its slope is one up to 2e-9.
    assert checks["find_mislabels against the formulas"] < 1e-6
    assert checks["largest residual of the solve"] < 1e-8
    assert checks["largest gradient norm"] < 1e-6
    assert result["data"]["test mails whose text is in the training set"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_figure_already_shows_it(tmp_path: Path) -> None:
    script = FOLDER / "fig6_spam.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    check(json.loads((tmp_path / "fig6_spam.json").read_text()))
    assert (tmp_path / "fig6_spam.svg").read_text().startswith("<svg")


def test_the_committed_figure_is_that_of_the_paper() -> None:
    result = json.loads((FOLDER / "results" / "fig6_spam.json").read_text())
    check(result)
    settings = result["settings"]
    assert (settings["train"], settings["test"], settings["flipped"]) == (4137, 1035, 412)
    assert (settings["repeats"], settings["weight_decay"]) == (40, 1e-4)
    assert len(result["checked"]) == 6


def test_in_the_committed_figure_influence_is_above_loss_at_every_share_beyond_the_noise() -> None:
    result = json.loads((FOLDER / "results" / "fig6_spam.json").read_text())
    for name in ("self-influence less loss", "self-influence, first power less loss"):
        for what in ("fixed", "accuracy"):
            assert len(result[name][what]) == 6
            assert all(gap["mean"] > 2 * gap["error"] > 0 for gap in result[name][what])
