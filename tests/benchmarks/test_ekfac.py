"""The benchmarks of EK-FAC: what they measure is what they say, as far as time is not in it."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import whence

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

needs_the_peer = pytest.mark.skipif(
    find_spec("kronfluence") is None, reason="needs kronfluence: pip install -e '.[bench]'"
)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return imported("works", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the folder, whose files import each other by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


def test_models_trained_together_are_those_trained_alone(works: ModuleType) -> None:
    work = works.digits("adamw")
    work = replace(work, recipe=replace(work.recipe, epochs=2))
    rows = torch.stack([torch.arange(start, start + 90) for start in (0, 40, 200)])
    seeds = [5, 6, 7]

    together = works.train_many(work, rows, seeds)
    alone = [works.train_many(work, rows[i : i + 1], seeds[i : i + 1])[0] for i in range(3)]

    for first, second in zip(together, alone, strict=True):
        assert_close(first.state_dict(), second.state_dict(), atol=1e-5, rtol=1e-4)


def test_each_half_of_the_data_is_one_half_and_no_two_are_the_same(
    monkeypatch: pytest.MonkeyPatch, works: ModuleType
) -> None:
    truth = imported("ground_truth", monkeypatch)
    kept = truth.halves(works.digits("sgd"), truth.Plan(60, 3, together=60))

    assert kept.sum(1).tolist() == [600] * 60
    assert len(kept.unique(dim=0)) == 60


@pytest.mark.parametrize("kind", ["sgd", "adamw", "decay"])
def test_the_committed_truth_is_that_of_the_present_settings(
    monkeypatch: pytest.MonkeyPatch, works: ModuleType, kind: str
) -> None:
    truth = imported("ground_truth", monkeypatch)
    work = works.digits(kind)
    plan = truth.PLANS[work.name]
    committed = np.load(BENCHMARKS / f"results/ground_truth_{work.name}.npz")

    assert committed["measured"].shape == (plan.subsets, plan.seeds, len(work.queries[1]))
    kept = truth.halves(work, plan)
    assert str(committed["fingerprint"]) == truth.fingerprint(work, plan, kept)


@needs_the_peer
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scores_of_the_peer_have_the_sign_and_the_unit_of_ours(
    monkeypatch: pytest.MonkeyPatch, works: ModuleType, tmp_path: Path
) -> None:
    peers = imported("peers", monkeypatch)
    work = works.digits("sgd")
    train, queries = ((x[:n], y[:n]) for (x, y), n in ((work.train, 50), (work.queries, 5)))
    work = replace(work, train=train, queries=queries)
    model = works.fresh(work, 0).eval()
    peer = peers.Kronfluence(work, model, tmp_path, batch=20, strategy="identity")
    peer.fit()

    problem = whence.make_problem(model, work.train, loss="cross_entropy")
    ours = whence.explain(problem, work.queries, method=whence.Influence("identity"))

    np.testing.assert_allclose(peer.scores(None), ours.values, rtol=1e-3, atol=1e-8)


@pytest.mark.slow
def test_every_method_predicts_models_trained_on_halves(tmp_path: Path) -> None:
    run("ekfac_lds.py", tmp_path)
    result = json.loads((tmp_path / "ekfac_lds.json").read_text())["short"]

    for name, found in result["methods"].items():
        low, high = found["interval"]
        assert low <= found["LDS"] <= high, name
        assert found["LDS"] > 0.1, name  # by chance it is zero


@pytest.mark.slow
def test_dampings_are_compared_by_layer_and_as_a_whole(tmp_path: Path) -> None:
    run("damping_choice.py", tmp_path)
    rules = json.loads((tmp_path / "damping_choice.json").read_text())["short"]["rules"]

    assert {name.split()[0] for name in rules} == {"global", "layer", "whole"}
    sizes = [rules[f"layer {share}"]["slope"] for share in ("10", "1", "0.1")]
    assert sizes == sorted(sizes, reverse=True)  # more damping, smaller effects, larger slope


@pytest.mark.slow
@needs_the_peer
@pytest.mark.usefixtures("whence_data")
def test_both_sides_are_measured_and_agree(tmp_path: Path) -> None:
    run("ekfac_speed.py", tmp_path)
    result = json.loads((tmp_path / "ekfac_speed.json").read_text())["short"]

    assert result["kronfluence"]["fit"]["core seconds"] > 0
    assert result["settings"]["of which kronfluence covers"] == result["settings"]["parameters"]
    if result["agreement"] is not None:
        assert result["agreement"]["all"] > 0.9


@pytest.mark.slow
@needs_the_peer
def test_with_many_labels_the_peer_comes_close_to_the_expectation(tmp_path: Path) -> None:
    run("ekfac_agreement.py", tmp_path)
    result = json.loads((tmp_path / "ekfac_agreement.json").read_text())["short"]["damping 0.01"]

    if "kronfluence, many labels, against whence" in result:
        many = result["kronfluence, many labels, against whence"]["all"]
        assert many > result["kronfluence, one label, against another fit"]["all"]
        assert many > 0.95


def run(script: str, folder: Path) -> None:
    """The short form of a script."""
    command = [sys.executable, BENCHMARKS / script, "--short", "--out", folder]
    subprocess.run(command, check=True, timeout=600)


@pytest.mark.slow
def test_short_cuts_are_measured_and_lose_little(tmp_path: Path) -> None:
    run("ekfac_shortcuts.py", tmp_path)
    result = json.loads((tmp_path / "ekfac_shortcuts.json").read_text())

    found = result["factored"]
    assert 0 < found["relative error"] <= 1.5 * found["expected error"]
    assert found["correlation"] > 0.99
    some = result["subsample"]
    assert some["moment_error"] <= 0.1
    assert some["relative error"] < 0.5
    few = result["compressed"]["30% asked"]
    assert few["relative error"] <= few["told"]


@pytest.mark.slow
def test_half_precision_is_measured(tmp_path: Path) -> None:
    run("ekfac_precision.py", tmp_path)
    result = json.loads((tmp_path / "ekfac_precision.json").read_text())["digits-sgd"]
    assert result["float16"]["relative error"] < result["bfloat16"]["relative error"] < 0.1
    assert result["bfloat16"]["rank correlation, mean over queries"] > 0.95


@pytest.mark.slow
def test_preflight_is_compared_with_what_happens(tmp_path: Path) -> None:
    """Within ten: a tenth of a second is not much of a measurement."""
    run("preflight_accuracy.py", tmp_path)
    result = json.loads((tmp_path / "preflight_accuracy.json").read_text())
    found = result["digits-sgd, ekfac, 20 queries"]
    assert 0.1 < found["together"]["ratio"] < 10
    assert found["MiB"]["said"] > 0
