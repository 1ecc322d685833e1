"""Effects of groups: one Newton step has the right size where first order has not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "koh2017_influence"


def pairs(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of first order and Newton of the same groups."""
    rows = result["rows"]
    return list(zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.slow
def test_the_short_mode_predicts_groups_with_slopes_nearer_to_one(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "groups.py", "--short", "--out", tmp_path]
    subprocess.run(command, check=True, timeout=300)
    result = json.loads((tmp_path / "groups.json").read_text())
    for first, newton in pairs(result):
        assert (first["form"], newton["form"]) == ("first order", "newton")
        assert abs(newton["slope"] - 1) < abs(first["slope"] - 1)


def test_the_committed_slopes_are_nearer_to_one_for_every_size_and_kind() -> None:
    result = json.loads((FOLDER / "results" / "groups.json").read_text())
    assert len(pairs(result)) == 18
    for first, newton in pairs(result):
        assert first["slope"] > 1  # first order under-estimates, without exception
        assert abs(newton["slope"] - 1) < abs(first["slope"] - 1)
    checks = result["largest difference of a cold refit, share of the largest effect"]
    assert max(checks.values()) < 1e-3
