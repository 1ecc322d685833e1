"""How soon the explorer shows large runs.

pictures       10,000 images of MNIST, 1,000 queries; effects drawn at random with heavy tails
rows           1,000,000 rows of a linear model with four classes, 50 queries, explained exactly;
               saved by itself, and with its problem at hand
verification   the pictures, with 10,000 retrainings as if they had been made: 10 million points

Views do not depend on what the effects are. Each server is a process of its own and is asked for
views as a browser asks, the first view first; the middle one of several servers is told.

OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/explorer_views.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import circumstances, timed
from torch import nn

import whence
from whence import datasets
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run
from whence.verification import Verification
from whence.verification.removals import Removals
from whence.verification.truth import Truth

HERE = Path(__file__).parent

PICTURES = (
    "/",
    "/queries/0/picture.png",
    "/api/queries?sort=loss&size=500",
    "/?q=7&page=2",
    "/queries/10",
    "/queries/11",
    "/api/queries/3?top=100",
    "/examples/7",
    "/examples?page=100",
    "/verification",
)
ROWS = (
    "/",
    "/?q=7&sort=loss",
    "/queries/10",
    "/queries/11",
    "/api/queries/3?top=100",
    "/examples",
    "/examples?label=east&page=3000",
    "/examples?q=777777",
    "/api/examples?size=500&page=2000",
    "/examples/7",
    "/api/examples/999999",
    "/verification",
)
AT_HAND = ("/examples?page=9000", "/queries/12", "/queries/12/distances", "/examples/500000")
VERIFICATION = ("/", "/verification", "/api/verification")
"""In the order in which they are asked for."""

LABELS = ("north", "east", "south", "west")
WIDTH = 16
"""Columns of the rows."""

TRAIN = """
import numpy as np
import torch
import whence

def problem():
    data = np.load({data!r})
    model = torch.nn.Linear({width}, {classes}).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(data["weight"]))
        model.bias.zero_()
    return whence.make_problem(
        model,
        (torch.from_numpy(data["x"]), torch.from_numpy(data["y"])),
        loss="cross_entropy",
        weight_decay=1e-4,
        display="row",
        label_names={labels!r},
        name="rows",
    )
"""


def main() -> None:
    """Makes the runs, asks for views, and writes what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few examples of each")
    parser.add_argument("--servers", type=int, default=5, help="of which the middle one is told")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    servers = 1 if arguments.short else arguments.servers
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.short, servers)
    text = json.dumps({**circumstances(__file__), "servers": servers, **found}, indent=1)
    (arguments.out / "explorer_views.json").write_text(text + "\n")
    print(text)


def measure(folder: Path, is_short: bool, servers: int) -> dict[str, Any]:
    """Numbers of all runs."""
    problem, scores = pictures(*((60, 20) if is_short else (10_000, 1_000)), is_short)
    made = write_run(folder / "pictures", problem, scores)
    found = {"pictures": made | middle(folder / "pictures", PICTURES, servers)}
    checked = as_if_verified(problem, scores, 50 if is_short else 10_000)
    made = write_run(folder / "verified", problem, checked.scores, verification=checked)
    found["verification"] = made | middle(folder / "verified", VERIFICATION, servers)
    del problem, scores, checked
    train = write_rows(folder, 2_000 if is_short else 1_000_000)
    run = folder / "rows"
    made = explain_rows(run, train, queries=5 if is_short else 50)
    views = [view for view in ROWS if not is_short or "=2000" not in view]
    if is_short:
        views = ["/", "/queries/3", "/examples", "/examples?q=7", "/api/examples/7"]
    found["rows"] = made | middle(run, views, servers)
    at_hand = ["/examples?page=9", "/queries/2/distances"] if is_short else AT_HAND
    found["rows, with the problem"] = middle(run, at_hand, servers, problem=f"{train}:problem")
    return found


# ---------------------------------------------------------------------------------- runs


def pictures(examples: int, queries: int, is_short: bool) -> tuple[Problem, Scores]:
    """Pictures and a linear model, with effects drawn at random."""
    data = datasets.load("digits" if is_short else "mnist")
    x, y = (torch.from_numpy(data.x_train[:examples]), torch.from_numpy(data.y_train[:examples]))
    model = nn.Linear(x.shape[1], 10).to(x.dtype)
    display = {"kind": "image", "shape": data.shape}
    problem = whence.make_problem(
        model, (x, y), loss="cross_entropy", display=display, name="pictures"
    )
    asked = problem.queries((data.x_test[:queries], data.y_test[:queries]))
    rng = np.random.default_rng(0)
    scores = Scores(
        values=1e-3 * rng.standard_t(2, size=(queries, examples)),
        query_ids=np.arange(queries),
        train_ids=problem.data.ids,
        measurement=problem.measurement("margin"),
        baseline=rng.standard_normal(queries),
        queries=asked.arrays(),
        report={"fingerprint": problem.fingerprint(), "method": "random", "reason": "no method"},
    )
    return problem, scores


def as_if_verified(problem: Problem, scores: Scores, retrainings: int) -> Verification:
    """A verification whose retrainings found the predictions with noise.

    The intervals are set: drawing 10 million points a thousand times over takes an hour.
    """
    ids = scores.train_ids[: min(retrainings, len(scores.train_ids))]
    is_out = np.eye(len(ids), len(problem), dtype=bool)
    predicted = scores.values[:, : len(ids)]
    noise = np.random.default_rng(1).standard_normal(predicted.shape)
    truth = Truth(
        target="loo",
        removals=Removals("example", ids, problem.data.ids, is_out),
        runs=(predicted + 1e-3 * noise)[None],
        noise_variance=np.full(len(predicted), 1e-6),
        query_ids=scores.query_ids,
        baseline=scores.baseline,
        measurement=scores.measurement,
        training="none",
        seed=0,
        seconds=0.0,
        fingerprint=problem.fingerprint(),
    )
    checked = Verification(scores, truth)
    for name in ("interval", "spearman_interval", "slope_interval", "lds_interval"):
        vars(checked)[name] = (0.5, 0.9)
    return checked


def write_rows(folder: Path, examples: int) -> Path:
    """The data of a linear model, and a file that makes its problem."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((len(LABELS), WIDTH))
    x = rng.standard_normal((examples, WIDTH))
    y = (x @ weight.T + rng.gumbel(size=(examples, len(LABELS)))).argmax(1)
    np.savez(folder / "rows.npz", x=x, y=y, weight=weight)
    train = folder / "train.py"
    made_of = {"data": str(folder / "rows.npz"), "width": WIDTH, "labels": LABELS}
    train.write_text(TRAIN.format(**made_of, classes=len(LABELS)))
    return train


def explain_rows(run: Path, train: Path, *, queries: int) -> dict[str, Any]:
    """Explains new rows through the public API, and writes the run."""
    scope: dict[str, Any] = {}
    exec(compile(train.read_text(), str(train), "exec"), scope)
    problem: Problem = scope["problem"]()
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((queries, WIDTH)))
    y = problem.outputs(problem.parameters, x).argmax(1)
    taken, scores = timed(lambda: whence.explain(problem, (x, y), method="exact"))
    return {"explaining": taken} | write_run(run, problem, scores)


def write_run(
    folder: Path, problem: Problem, scores: Scores, *, verification: Verification | None = None
) -> dict[str, Any]:
    """What story, album and saving take, and the sizes on the disk."""
    telling, story = timed(lambda: tell(problem, scores, verification=verification))
    keeping, album = timed(lambda: make_album(problem, scores))
    saving, _ = timed(lambda: save_run(folder, scores, story, album=album, problem=None))
    return {
        "examples": len(scores.train_ids),
        "queries": len(scores.query_ids),
        "story": telling,
        "album": keeping,
        "saving": saving,
        "bytes": {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()},
    }


# --------------------------------------------------------------------------------- views


def middle(
    run: Path, views: "tuple[str, ...] | list[str]", servers: int, *, problem: str | None = None
) -> dict[str, Any]:
    """The middle of what several servers took for every view."""
    found = [measured(run, views, problem) for _ in range(servers)]
    first = found[0]
    for number, view in enumerate(first["views"]):
        view["seconds"] = median(one["views"][number]["seconds"] for one in found)
    names = [name for name in first if name != "views"]
    return {name: median(one[name] for one in found) for name in names} | {"views": first["views"]}


def measured(
    run: Path, views: "tuple[str, ...] | list[str]", problem: str | None = None
) -> dict[str, Any]:
    """Seconds and bytes of every view, and the memory of the server after them.

    What is mapped from files counts in the peak, although the system takes it back where others
    need memory; "own" is what the server holds itself.
    """
    command = [sys.executable, "-m", "whence", "explore", str(run), "--no-browser", "--json"]
    command += [] if problem is None else ["--problem", problem]
    started = time.perf_counter()
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        told = json.loads("".join(iter_lines(server)))
        found: dict[str, Any] = {"seconds until the address": time.perf_counter() - started}
        if problem is not None:
            wait_for_problem(told)
            found["seconds until the problem"] = time.perf_counter() - started
        first = asked_for(views[0], told)
        found["seconds until the first view"] = time.perf_counter() - started
        found["core seconds until the first view"] = core_seconds(server.pid)
        found["views"] = [first, *(asked_for(path, told) for path in views[1:])]
        status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        for name, kind in (("peak MiB", "VmHWM"), ("own MiB", "RssAnon")):
            found[name] = (
                next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1024
            )
        return found
    finally:
        server.terminate()
        server.wait()


def core_seconds(process: int) -> float:
    """What a process has used of all cores; others on the machine change it little."""
    numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_problem(told: dict[str, Any]) -> None:
    """Returns when the problem is there."""
    while asked(told, "/api/run")["live"]["state"] != "ready":
        time.sleep(0.1)


def iter_lines(server: "subprocess.Popen[str]") -> Any:
    """Lines of the first JSON document that the server prints."""
    for line in server.stdout or ():
        yield line
        if line == "}\n":
            return


def asked(told: dict[str, Any], path: str) -> Any:
    """The JSON at an address."""
    return json.loads(content(told, path))


def content(told: dict[str, Any], path: str) -> bytes:
    """What stands at an address."""
    address = f"http://127.0.0.1:{told['port']}{path}"
    request = urllib.request.Request(address, headers={"x-whence-token": told["token"]})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def asked_for(path: str, told: dict[str, Any]) -> dict[str, Any]:
    """One view: how long it took, and how large it is."""
    started = time.perf_counter()
    size = len(content(told, path))
    return {"path": path, "seconds": time.perf_counter() - started, "bytes": size}


if __name__ == "__main__":
    main()
