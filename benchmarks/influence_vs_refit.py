"""Sixty queries explained on MNIST against one cold refit: seconds, agreement, memory.

The model is multinomial logistic regression on 55,000 images (7,840 parameters, no intercept,
weight decay 0.01). One method gives the effect of every training example on every query; a single
removal by training again gives one column of that table. The claims:

    time        all 60 x 55,000 first-order effects take less time than one cold refit
    agreement   they are those of a solve that is ten thousand times tighter
    memory      beyond the data and the table itself, it is below 1 GiB and does not grow with N

Each measurement is made in a process of its own, with the same number of threads; `--short` makes
them in one process and is there for agreement, not for seconds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import whence
from whence.core.problem import Problem
from whence.core.scores import Scores
from whence.curvature.cg import CG
from whence.datasets import load
from whence.methods.influence import Influence
from whence.numerics import stats

HERE = Path(__file__).parent
ROOT = HERE.parent
HELD_OUT = 5000
WEIGHT_DECAY = 0.01
CLASSES = 10
MEASUREMENT = "margin"
METHOD = Influence(CG(tolerance=1e-2, rank=100), removal="first_order")
REFERENCE = Influence(CG(tolerance=1e-6), removal="first_order")


def main() -> None:
    """All measurements; writes the numbers and prints them."""
    arguments = parse()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    sizes = [1500, 3000] if arguments.short else [13_750, 27_500, 55_000]
    queries = 5 if arguments.short else 60
    arguments.out.mkdir(parents=True, exist_ok=True)
    scratch = TemporaryDirectory()

    def measure(part: str, count: int) -> dict[str, Any]:
        options = {"part": part, "count": count, "queries": queries, "scratch": scratch.name}
        found = measure_here(options) if arguments.short else measure_alone(options)
        print(f"{part:10} N = {count:6,}: {found}", flush=True)
        return found

    refits = [measure("refit", sizes[-1])]  # also leaves the coefficients that are explained
    reference = measure("reference", sizes[-1])
    explained = {kind: measure(kind, sizes[-1]) for kind in ("float32", "float64")}
    refits.append(measure("refit", sizes[-1]))  # the machine may have been busy the first time
    refit = min(refits, key=lambda found: found["seconds"])
    memory = {count: measure("memory", count) for count in sizes}
    scratch.cleanup()
    result = {
        "settings": {
            "examples": sizes[-1],
            "parameters": 784 * CLASSES,
            "queries": queries,
            "measurement": MEASUREMENT,
            "method": str(METHOD),
            "reference": str(REFERENCE),
        },
        "refits": refits,
        "explain": explained,
        "reference": reference,
        "seconds, share of the faster refit": {
            kind: round(found["seconds"] / refit["seconds"], 3) for kind, found in explained.items()
        },
        "memory": memory,
        "circumstances": circumstances(),
    }
    (arguments.out / "influence_vs_refit.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"explain / refit: {result['seconds, share of the faster refit']}")


def parse() -> argparse.Namespace:
    """The command line; one measurement in a process of its own calls itself with --part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_alone(options: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own: nothing is warm, no memory is left over."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, __file__, *words]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def measure_here(options: dict[str, Any]) -> dict[str, Any]:
    """One measurement in this process, whose seconds and memory mean little."""
    scratch = Path(options["scratch"])
    return PARTS[options["part"]](argparse.Namespace(**options | {"scratch": scratch}))


# ------------------------------------------------------------------------- what is measured


def refit(arguments: argparse.Namespace) -> dict[str, Any]:
    """One cold fit by scikit-learn, float64, with the settings of the paper's experiment."""
    x, y = training_data(arguments.count, np.float64)
    model = unfitted(len(x))
    found = timed(lambda: model.fit(x, y))
    np.save(arguments.scratch / "coefficients.npy", model.coef_)
    return found | {"iterations": int(model.n_iter_[0])}


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """All effects by the tight solve in float64, left for the others to compare with."""
    x, y = training_data(arguments.count, np.float64)
    problem = whence.make_problem(fitted(len(x), arguments.scratch), (x, y))
    queries = query_data(arguments.queries)
    scores = whence.explain(problem, queries, measurement=MEASUREMENT, method=REFERENCE)
    np.save(arguments.scratch / "effects.npy", scores.values)
    return {name: scores.report[name] for name in ("residual", "steps", "gradient_norm")}


def explain_in(dtype: torch.dtype) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """All effects in one precision, and how far they are from the tight solve."""

    def explain(arguments: argparse.Namespace) -> dict[str, Any]:
        x, y = training_data(arguments.count, np.float64)
        queries = query_data(arguments.queries)
        model = fitted(len(x), arguments.scratch)
        found: list[Scores] = []

        def work() -> None:
            problem = whence.make_problem(model, (x, y)).to(dtype=dtype)
            found.append(whence.explain(problem, queries, measurement=MEASUREMENT, method=METHOD))

        seconds = timed(work)
        scores, tight = found[0], np.load(arguments.scratch / "effects.npy")
        error = np.abs(scores.values - tight).max(1) / np.abs(tight).max(1)
        return seconds | {
            "residual": scores.report["residual"],
            "steps": scores.report["steps"],
            "lowest correlation of a query": float(stats.pearson(scores.values, tight).min()),
            "largest error, share of the query's largest effect": float(error.max()),
        }

    return explain


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of explaining above that of data and model, in MiB."""
    x, y = training_data(arguments.count, np.float32)
    queries = query_data(arguments.queries)
    problem = linear_problem(x, y, np.load(arguments.scratch / "coefficients.npy"))
    warm_up(problem)
    table = arguments.queries * len(x) * 8 / 2**20
    with PeakMemory() as peak:
        whence.explain(problem, queries, measurement=MEASUREMENT, method=METHOD)
    return {
        "peak above data and model": round(peak.mebibytes, 1),
        "of which the table of effects": round(table, 1),
        "beyond the table": round(peak.mebibytes - table, 1),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "refit": refit,
    "reference": reference,
    "float32": explain_in(torch.float32),
    "float64": explain_in(torch.float64),
    "memory": memory,
}


# ------------------------------------------------------------------------ data and model


def training_data(count: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images after those held out."""
    data = load("mnist")
    kept = slice(HELD_OUT, HELD_OUT + count)
    return data.x_train[kept].astype(dtype), data.y_train[kept].copy()


def query_data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Test images at evenly spaced positions."""
    data = load("mnist")
    chosen = np.linspace(0, len(data.y_test) - 1, count).astype(int)
    return data.x_test[chosen], data.y_test[chosen]


def unfitted(count: int) -> LogisticRegression:
    """The estimator of the paper's experiment."""
    return LogisticRegression(
        C=1 / (count * WEIGHT_DECAY), fit_intercept=False, tol=1e-8, max_iter=1000
    )


def fitted(count: int, scratch: Path) -> LogisticRegression:
    """The same as after fitting, from the coefficients that the fit has left."""
    model = unfitted(count)
    model.coef_ = np.load(scratch / "coefficients.npy")
    model.intercept_ = np.zeros(CLASSES)
    model.classes_ = np.arange(CLASSES)
    model.n_features_in_ = model.coef_.shape[1]
    return model


def linear_problem(x: np.ndarray, y: np.ndarray, coefficients: np.ndarray) -> Problem:
    """The model as a float32 layer, which shares its memory with the data."""
    layer = torch.nn.Linear(x.shape[1], CLASSES, bias=False)
    layer.weight.data = torch.from_numpy(coefficients).float()
    data = (torch.from_numpy(x), torch.from_numpy(y))
    return whence.make_problem(
        layer.eval(), data, loss="cross_entropy", weight_decay=WEIGHT_DECAY, renormalize=False
    )


def warm_up(problem: Problem) -> None:
    """Makes libraries load what they need, so that it does not count as memory of the method."""
    inputs, targets = problem.data.take(torch.arange(2))
    few = Influence(CG(tolerance=0.5, rank=1), removal="first_order")
    whence.explain(problem, (inputs, targets), measurement=MEASUREMENT, method=few)


# ------------------------------------------------------------------------------- measuring


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds on the clock, and of all cores together, which others on the machine change less."""
    wall, cores = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": round(time.perf_counter() - wall, 2),
        "core seconds": round(time.process_time() - cores, 2),
    }


class PeakMemory:
    """The highest resident memory inside a block above that at its start, looked at every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.highest = resident()
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.is_done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.is_done.wait(0.005):
            self.highest = max(self.highest, resident())

    @property
    def mebibytes(self) -> float:
        """The difference."""
        return (self.highest - self.before) / 2**20


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def circumstances() -> dict[str, Any]:
    """Versions, threads, machine and command."""
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return {
        "command": " ".join(["python", str(Path(__file__).relative_to(ROOT)), *sys.argv[1:]]),
        "versions": {"whence": whence.__version__} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load at the end": [round(load, 1) for load in os.getloadavg()],
        "system": platform.system(),
    }


if __name__ == "__main__":
    main()
