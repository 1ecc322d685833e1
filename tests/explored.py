"""A run over real digits with a few wrong labels, and clients of its explorer."""

import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from starlette.testclient import TestClient

import whence
from whence.core.problem import Problem
from whence.explorer.app import make_app
from whence.explorer.desk import OPEN
from whence.explorer.views import Session

PORT, TOKEN = 8765, "a-token-of-this-test"
HEADER = {"x-whence-token": TOKEN}

PICTURES, LABELS = load_digits(return_X_y=True)
PICTURES = PICTURES / 16
WRONG = (4, 11, 17)
"""Training examples whose label is wrong."""


def make_problem() -> Problem:
    x, y = PICTURES[:80], LABELS[:80].copy()
    y[list(WRONG)] = (y[list(WRONG)] + 1) % 10
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit(x, y)
    return whence.make_problem(
        model, (x, y), display={"kind": "image", "shape": (8, 8)}, name="digits"
    )


def client_of(session: Session, **headers: str) -> TestClient:
    app = make_app(session, token=TOKEN, port=PORT)
    base = f"http://127.0.0.1:{PORT}"
    return TestClient(app, base_url=base, headers=headers, raise_server_exceptions=False)


def until_done(client: TestClient, question: str) -> dict[str, Any]:
    for _ in range(600):
        told = client.get(f"/api/questions/{question}").json()
        if told["state"] not in OPEN:
            return told
        time.sleep(0.05)
    raise AssertionError("no answer in 30 s")


def proponents(values: np.ndarray, count: int) -> list[int]:
    """By definition: removal lowers the margin most."""
    return np.argsort(values, kind="stable")[:count].tolist()
