"""Figure 4 runs: the kernel machine looks at what is near, the network does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def check(result: dict[str, Any]) -> None:
    """What the figure claims, for the query and for all of them."""
    for title in ("one query", "all queries, medians"):
        kernel, network = result[title]["a"], result[title]["b"]
        assert kernel["spearman"] < min(-0.05, network["spearman"])
        assert abs(network["spearman"]) < 0.15
        assert kernel["near_share"] > 0.25  # a tenth of the examples is near
        assert network["near_share"] < 0.2
        assert kernel["distance_ratio"] < 0.9 < network["distance_ratio"] + 0.05
        assert result[title]["both"]["overlap"] <= 0.4
    assert result["share of queries where the network's top is farther"] > 0.85
    query = result["query"]
    assert query["label"] == "fish"
    assert 0 < query["margin of the kernel machine"] < 1
    assert query["probability by the network"] > 0.5


@pytest.mark.slow
def test_the_short_figure_already_shows_it(tmp_path: Path, whence_data: Path) -> None:
    if not (whence_data / "dogfish_jpeg.npz").is_file():
        pytest.skip("needs dogfish_jpeg.npz and dogfish_features.npz in WHENCE_DATA")
    script = FOLDER / "fig4_distance.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    check(json.loads((tmp_path / "fig4_distance.json").read_text()))
    assert (tmp_path / "fig4_distance.svg").read_text().startswith("<svg")


def test_the_committed_figure_is_of_all_photographs() -> None:
    result = json.loads((FOLDER / "results" / "fig4_distance.json").read_text())
    check(result)
    settings = result["settings"]
    assert (settings["train"], settings["test"], settings["side"]) == (1800, 600, 64)
    tops = result["proponents"]
    nearer = {
        name: sorted(one["share of examples that are nearer"] for one in top)[len(top) // 2]
        for name, top in tops.items()
    }
    assert nearer["kernel machine"] < 0.1
    assert nearer["network"] > 0.3
    # Among all queries a photograph of the other class helps the network early.
    medians = result["all queries, medians"]
    assert medians["b"]["first_other_label"] < medians["a"]["first_other_label"]


def test_the_figure_holds_no_photographs() -> None:
    drawing = (FOLDER / "results" / "fig4_distance.svg").read_text()
    assert "data:image" not in drawing
    assert "/pictures/" in (FOLDER / ".gitignore").read_text()
