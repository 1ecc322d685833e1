"""How soon the explorer shows a large run: 10,000 training images, 1,000 queries.

A server in a process of its own is asked for views as a browser asks, the first view first.
Pictures are those of MNIST; the effects are drawn at random with heavy tails, on which views do not
depend.

OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/explorer_views.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import circumstances
from torch import nn

import whence
from whence import datasets
from whence.core.scores import Scores
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run

HERE = Path(__file__).parent

VIEWS = (
    "/",
    "/queries/0/picture.png",
    "/api/queries?sort=loss&size=500",
    "/?q=7&page=2",
    "/queries/10",
    "/queries/11",
    "/api/queries/3?top=100",
    "/examples/7",
    "/verification",
)
"""In the order in which they are asked for."""


def main() -> None:
    """Makes a run, asks for views, and writes what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="60 images of digits, 20 queries")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    examples, queries = (60, 20) if arguments.short else (10_000, 1_000)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        made = make_run(run, "digits" if arguments.short else "mnist", examples, queries)
        found = {"examples": examples, "queries": queries, **made, **measured(run)}
    text = json.dumps({**circumstances(__file__), **found}, indent=1)
    (arguments.out / "explorer_views.json").write_text(text + "\n")
    print(text)


def make_run(folder: Path, name: str, examples: int, queries: int) -> dict[str, Any]:
    """Writes the run; its size on the disk, and the core seconds of story and album."""
    data = datasets.load(name)
    x, y = (torch.from_numpy(data.x_train[:examples]), torch.from_numpy(data.y_train[:examples]))
    display = {"kind": "image", "shape": data.shape}
    model = nn.Linear(x.shape[1], 10).to(x.dtype)
    problem = whence.make_problem(model, (x, y), loss="cross_entropy", display=display, name=name)
    asked = problem.queries((data.x_test[:queries], data.y_test[:queries]))
    measurement = problem.measurement("margin")
    rng = np.random.default_rng(0)
    scores = Scores(
        values=1e-3 * rng.standard_t(2, size=(queries, examples)),
        query_ids=np.arange(queries),
        train_ids=problem.data.ids,
        measurement=measurement,
        baseline=rng.standard_normal(queries),
        queries=asked.arrays(),
        report={"fingerprint": problem.fingerprint(), "method": "random", "reason": "no method"},
    )
    started = time.process_time()
    story, album = tell(problem, scores), make_album(problem, scores)
    seconds = time.process_time() - started
    save_run(folder, scores, story, album=album, problem=None)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"core seconds of story and album": seconds, "bytes of the run": size}


def measured(run: Path) -> dict[str, Any]:
    """Seconds and bytes of every view, and core seconds and memory of the server after them."""
    command = [sys.executable, "-m", "whence", "explore", str(run), "--no-browser", "--json"]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        told = json.loads("".join(iter_lines(server)))
        views = [asked_for(path, told) for path in VIEWS]
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return {"views": views, "peak MiB of the server": int(peak.split()[1]) / 1024}
    finally:
        server.terminate()
        server.wait()


def iter_lines(server: "subprocess.Popen[str]") -> Any:
    """Lines of the first JSON document that the server prints."""
    for line in server.stdout or ():
        yield line
        if line == "}\n":
            return


def asked_for(path: str, told: dict[str, Any]) -> dict[str, Any]:
    """One view: how long it took, and how large it is."""
    address = f"http://127.0.0.1:{told['port']}{path}"
    request = urllib.request.Request(address, headers={"x-whence-token": told["token"]})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as response:
        size = len(response.read())
    return {"path": path, "seconds": time.perf_counter() - started, "bytes": size}


if __name__ == "__main__":
    main()
