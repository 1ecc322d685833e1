"""A run over real digits with a few wrong labels, and clients of its explorer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import whence
from explored import HEADER, LABELS, PICTURES, client_of, make_problem, until_done
from whence.core.problem import Problem
from whence.explorer.catalog import Catalog
from whence.explorer.views import Session
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run


@pytest.fixture(scope="session")
def problem() -> Problem:
    return make_problem()


@pytest.fixture(scope="session")
def made(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified run of twelve queries."""
    scores = whence.explain(problem, (PICTURES[100:112], LABELS[100:112]))
    checked = whence.verify(problem, scores, examples=8)
    removed = whence.remove(problem, (PICTURES[100:112], LABELS[100:112]), group=[3])
    story = tell(problem, checked.scores, verification=checked, sections=[removed])
    folder = tmp_path_factory.mktemp("runs") / "why"
    album = make_album(problem, checked.scores)
    save_run(folder, checked.scores, story, album=album, problem=None)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same run, for one test alone."""
    return Path(shutil.copytree(made, tmp_path / "why"))


@pytest.fixture
def session(folder: Path, problem: Problem) -> Session:
    opened = Session.open(Catalog.open(folder), lambda: problem)
    opened.live.wait(30)
    return opened


@pytest.fixture
def client(session: Session) -> TestClient:
    """A client that knows the token."""
    return client_of(session, **HEADER)


@pytest.fixture
def ask(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Asks a question and waits for its end."""

    def run(**body: Any) -> dict[str, Any]:
        response = client.post("/api/questions", json=body)
        assert response.status_code == 202, response.text
        return until_done(client, response.json()["id"])

    return run
