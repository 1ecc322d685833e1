"""Training images that flip predictions: the short mode attacks, the committed numbers hold up."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def attacks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every attack on a single test image."""
    kinds = ("strongest", "both", "second")
    return [facts[kind] for facts in result["single"] for kind in kinds if facts[kind]]


def check(result: dict[str, Any]) -> None:
    """What no attack may break."""
    for attack in attacks(result) + result["groups"]:
        assert attack["same bytes"]
        assert attack["largest change"] < result["settings"]["box"]
    for facts in result["single"]:
        assert facts["margin"] > 0
        for kind in ("strongest", "both", "second"):
            if facts[kind]:
                assert facts[kind]["flipped"] == (facts[kind]["margin"] < 0)
                assert facts[kind]["actual"] < 0
    found = result["counts"]
    assert found["attacked"] == len(result["single"])
    assert found["the strongest"] <= found["one, the strongest or the second"] <= found["two"]


@pytest.mark.slow
@pytest.mark.usefixtures("whence_data")
def test_the_short_mode_attacks_and_takes_up_what_it_has(tmp_path: Path) -> None:
    script = FOLDER / "fig5_attack.py"
    command = [sys.executable, script, "--short", "--out", tmp_path, "--work", tmp_path / "work"]
    subprocess.run(command, check=True, timeout=300)
    result = json.loads((tmp_path / "fig5_attack.json").read_text())

    check(result)
    for attack in attacks(result):  # three steps of a quarter grey level, a few pixels at the edge
        assert attack["actual"] == pytest.approx(attack["first order"], rel=0.3)
    for group in result["groups"]:
        assert group["mean loss after"] > group["mean loss before"]
    assert (tmp_path / "fig5_attack.svg").read_text().startswith("<svg")

    kept = tmp_path / "work" / "single.jsonl"
    lines = kept.read_text().splitlines()
    changed = json.loads(lines[1]) | {"margin": 123.0}  # tells what was kept from what is new
    kept.write_text("\n".join([lines[0], json.dumps(changed)]) + "\n")
    subprocess.run(command, check=True, timeout=300)
    again = json.loads((tmp_path / "fig5_attack.json").read_text())
    assert again["single"][0] == result["single"][0] | {"margin": 123.0}
    # A network in float32 rounds differently when it sees one image or two at a time.
    new, old = again["single"][1], result["single"][1]
    assert new["test image"] == old["test image"]
    assert new["strongest"]["margin"] == pytest.approx(old["strongest"]["margin"], rel=1e-3)


def test_the_committed_attacks_keep_their_bounds() -> None:
    result = json.loads((FOLDER / "results" / "fig5_attack.json").read_text())

    check(result)
    assert result["counts"]["attacked"] >= 100
    assert result["settings"]["side"] == 227
    assert result["settings"]["box"] == 0.5
    assert result["clean"]["test accuracy"] > 0.99
    assert len({facts["test image"] for facts in result["single"]}) == len(result["single"])
    for group in result["groups"]:
        assert len(group["test images"]) == 30
