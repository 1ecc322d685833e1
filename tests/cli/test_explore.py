"""What `whence explore` opens, without a browser."""

import json
from pathlib import Path

import numpy as np
import pytest

from whence.cli.references import load_problem
from whence.core.scores import Scores
from whence.explorer.server import Server


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """Servers that would have run; their ports are free again."""
    served: list[Server] = []

    def run(server: Server) -> None:
        server.listening.close()
        served.append(server)

    monkeypatch.setattr(Server, "run", run)
    return served


def test_a_problem_is_explained_first_and_is_at_hand(call, no_server):
    result = call("explore train.py:problem --query train.py:queries --no-browser --json")
    told = json.loads(result.stdout)
    assert told["address"] == f"http://127.0.0.1:{told['port']}/?token={told['token']}"
    assert told["run"] == "runs/explore"
    (server,) = no_server
    assert len(server.session.catalog.rows) == 3
    expected = load_problem("train.py:problem").fingerprint()
    assert server.session.live.problem.fingerprint() == expected


def test_without_queries_the_training_examples_with_the_largest_loss_are_explained(call):
    call("explore train.py:named --out runs/worst --no-browser")
    problem = load_problem("train.py:named")
    scores = Scores.load("runs/worst/scores.npz")
    batch = next(problem.batches(48))
    losses = problem.losses(problem.parameters, batch).detach().numpy()
    order = np.argsort(-losses)
    assert scores.query_ids.tolist() == problem.data.ids[order].tolist()


def test_a_run_brings_its_problem_along(call, no_server):
    call("explain train.py:problem --query train.py:queries --out runs/why")
    result = call("explore runs/why --no-browser")
    assert result.stdout.splitlines()[-1].startswith("http://127.0.0.1:")
    (server,) = no_server
    assert server.session.live.state == "loading"
    assert server.session.live.problem.name == "digits"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("nowhere", "there is no such folder"),
        ("--port 70000 .", "70000"),
        ("--query q.npz .", "--query and --out belong to a problem"),
        ("train.py:problem --problem train.py:problem", "RUN is a problem already"),
        (".", "manifest.json"),
    ],
)
def test_what_cannot_be_explored_is_said_in_words(call, no_server, words, found):
    Path("q.npz").touch()
    result = call(f"explore --no-browser {words}")
    assert result.exit_code in (1, 2)
    assert found in result.output
    assert no_server == []
