"""The benchmark of ensembles: its trainings are those of the truth, and its claims hold."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results/ensembles.json"


@pytest.mark.slow
def test_members_are_trained_as_the_models_of_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order and start, the same procedure: mean margins agree within four errors."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    works, ensembles = (importlib.import_module(name) for name in ("works", "ensembles"))
    work = works.digits("decay")
    work = replace(work, recipe=replace(work.recipe, epochs=5))
    half = torch.arange(600)
    models = works.train_many(work, half.expand(24, -1), list(range(24)))
    truth = torch.stack([works.measured(work, model) for model in models]).mean(1)

    problem = ensembles.Bench(work, np.ones((1, 1200)), np.ones((1, 1, 1))).halved()
    inside = torch.zeros(1200)
    inside[half] = 1
    ours = [
        works.measurement(
            work,
            problem.outputs(problem.retrain(inside, seed=seed).parameters[0], work.queries[0]),
            work.queries[1],
        ).mean()
        for seed in range(24)
    ]
    ours = torch.stack(ours).detach()
    error = float((truth.var() / 24 + ours.var() / 24).sqrt())
    assert abs(float(truth.mean() - ours.mean())) < 4 * error
    assert float(truth.std() / ours.std()) == pytest.approx(1, abs=0.6)


@pytest.mark.slow
def test_two_halves_predict_better_than_one(tmp_path: Path) -> None:
    script = BENCHMARKS / "ensembles.py"
    subprocess.run([sys.executable, script, "--short", "--out", tmp_path], check=True, timeout=300)
    found = json.loads((tmp_path / "ensembles.json").read_text())["short"]["methods"]
    for name, point in found.items():
        low, high = point["interval"]
        assert low <= point["LDS"] <= high, name
    assert found["ekfac over 2"]["LDS"] > found["ekfac over 1"]["LDS"]


def test_the_committed_ensembles_beat_the_method_on_one_model() -> None:
    for work, result in json.loads(RESULTS.read_text()).items():
        if "study" in work:
            continue
        methods = result["methods"]
        assert methods["ekfac over 8"]["interval"][0] > methods["ekfac"]["LDS"], work
        assert methods["ekfac over 8"]["LDS"] > methods["ekfac over 2"]["LDS"], work


@pytest.mark.parametrize("work", ["digits-decay", "digits-adamw"])
def test_eight_committed_members_beat_the_peer_in_less_time_than_it_takes(work: str) -> None:
    methods = json.loads(RESULTS.read_text())[work]["methods"]
    peers = [point for name, point in methods.items() if name.startswith("kronfluence")]
    best = max(peers, key=lambda point: point["LDS"])
    assert methods["ekfac over 8"]["interval"][0] > best["LDS"]
    assert methods["ekfac over 8"]["core seconds"] < best["core seconds"]
