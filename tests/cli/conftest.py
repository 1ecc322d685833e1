"""A user's folder with a training script, queries and the files that commands read."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from whence.cli import main

TRAIN = """
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import whence

print("the user's file talks")
images, labels = load_digits(return_X_y=True)
chosen = np.isin(labels, [3, 8])
images, labels = images[chosen] / 16, np.where(labels[chosen] == 8, "eight", "three")
X, y = images[:48], labels[:48]

def made(strength, **options):
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(X, y)
    return whence.make_problem(model, (X, y), name="digits", display="image", **options)

def problem():
    return made(1.0)

def other():
    return made(0.01)

def named():
    return made(1.0, ids=[f"scan {i}" for i in range(48)])

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(5, 2), torch.nn.Linear(2, 2)

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))

words = torch.arange(48).reshape(12, 4) * 7 % 5
kinds = words[:, 0] % 2
asked_words = (words[9:], kinds[9:])

def texts():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Words().double()
    display = {"kind": "text", "decode": lambda ids: " ".join("a b c d e"[2 * i] for i in ids)}
    data = (words[:9], kinds[:9])
    return whence.make_problem(model, data, loss="cross_entropy", weight_decay=1.0, display=display)

queries = (images[60:63], labels[60:63])
one = (images[60:61], labels[60:61])
groups = {"first half": list(range(24)), "second half": list(range(24, 48))}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the current one."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "ids.txt").write_text("7\n\n 12 \n")
    np.save(tmp_path / "ids.npy", np.array([7, 12]))
    np.save(tmp_path / "wrong.npy", np.arange(48) % 12 == 0)
    np.save(tmp_path / "sides.npy", np.repeat(["left", "right"], 24))
    np.savez(tmp_path / "blank.npz", x=np.zeros((1, 64)), y=["eight"])
    halves = {"first half": list(range(24)), "second half": list(range(24, 48))}
    (tmp_path / "halves.json").write_text(json.dumps(halves))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "train", raising=False)
    return tmp_path


@pytest.fixture
def call() -> Callable[[str], Result]:
    """Runs a command; a bug, which is any exception but an exit, fails the test."""

    def run(line: str) -> Result:
        result = CliRunner().invoke(main, shlex.split(line))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
