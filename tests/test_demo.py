"""The tour shows what it promises: a true minimum, real mistakes, and a verdict that holds."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from whence import datasets, demo
from whence.calculus.products import objective_gradient
from whence.cli import main
from whence.cli.references import load_problem
from whence.core.problem import Problem
from whence.store import Run


@pytest.fixture(scope="module")
def problem() -> Problem:
    return demo.problem()


def test_the_network_is_the_same_in_every_call_whatever_happened_before(problem: Problem):
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = load_problem("whence.demo:problem")
    assert again.fingerprint() == problem.fingerprint()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_network_is_at_a_minimum_of_its_objective(problem: Problem):
    """The Hessian is positive there, or exact curvature would have refused to be undamped."""
    assert float(objective_gradient(problem).abs().max()) <= demo.GRADIENT


def test_the_queries_are_the_worst_mistakes_on_the_test_images(problem: Problem):
    digits = datasets.load("digits")
    with torch.no_grad():
        probability = problem.outputs(problem.parameters, torch.from_numpy(digits.x_test)).softmax(
            1
        )
    of_the_label = probability.gather(1, torch.from_numpy(digits.y_test)[:, None])[:, 0]
    queries = demo.queries(problem)
    assert set(queries.ids) == set(of_the_label.argsort()[: demo.QUERIES].tolist())
    images, labels = queries.take(torch.arange(demo.QUERIES))
    assert torch.equal(images, torch.from_numpy(digits.x_test[queries.ids]))
    assert bool((problem.outputs(problem.parameters, images).argmax(1) != labels).all())
    is_right = probability.argmax(1) == torch.from_numpy(digits.y_test)
    assert float(is_right.double().mean()) > 0.95  # mistakes are the exception


@pytest.mark.slow
def test_the_tour_predicts_what_retraining_finds(tmp_path: Path):
    done = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo"), "--examples", "8"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "demo" / "report.html")
    run = Run.open(tmp_path / "demo", check_hashes=True)
    assert run.problem == "whence.demo:problem"
    story = run.read_json("story.json")
    assert story["verification"]["pearson"] > 0.95
    assert 0.9 < story["verification"]["slope"] < 1.1
    assert story["trust"]["level"] == "good"
    page = run.path("report.html").read_text(encoding="utf-8")
    for query in story["queries"]:
        assert query["prediction"]["label"] != query["label"]
        assert query["display"]["png"] in page
        strongest = query["proponents"][0]
        told = rf"^{query['id']} .* {strongest['id']} \({strongest['label']}\): −"
        assert re.search(told, done.stdout, re.MULTILINE)
