"""What preflight says beside what explain takes: seconds of fit and scores, and peak memory.

Every line is a process of its own, on one thread, with the seconds of the core in both columns, so
that others on the machine count in neither. Memory is what the process takes above model and data.
Models for EK-FAC have fresh weights, on which neither depends; refined solves take trained ones.

OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/preflight_accuracy.py
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ekfac_lds import make_problem, shortened
from measuring import circumstances, timed
from works import WORKS, Work, fresh, trained

import whence

HERE = Path(__file__).parent

LINES = [
    ("mlp", "ekfac", 200),
    ("mlp", "ekfac", 1),
    ("cnn-small", "ekfac", 100),
    ("gpt-small", "ekfac", 50),
    ("digits-sgd", "refined", 200),
    ("mlp-small", "refined", 20),
    ("cnn-small", "refined", 5),
]
"""Work, method and queries."""


def main() -> None:
    """All lines, or those of one work; writes them with versions and load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--line", nargs=3, help="measures one line in this process")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first line to do")
    parser.add_argument("--to", type=int, default=len(LINES), help="the line to stop before")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.line:
        name, method, queries = arguments.line
        work = shortened(WORKS["digits-sgd"]()) if arguments.short else WORKS[name]()
        print(json.dumps(measured(work, method, int(queries))))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "preflight_accuracy.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    lines = [("digits-sgd", "ekfac", 20)] if arguments.short else LINES
    for line in lines[arguments.first : arguments.to]:
        words = [sys.executable, __file__, "--line", *map(str, line)]
        words += ["--short"] if arguments.short else []
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        key = f"{line[0]}, {line[1]}, {line[2]} queries"
        found[key] = json.loads(done.stdout.splitlines()[-1])
        print(key, json.dumps(found[key]))
        found["circumstances"] = circumstances(__file__)
        path.write_text(json.dumps(found, indent=1) + "\n")


def measured(work: Work, method: str, count: int) -> dict[str, Any]:
    """Estimate, measurement and their ratio, for seconds and for memory."""
    time.perf_counter = time.process_time  # preflight times its trials by the clock
    queries = tuple(part[:count] for part in work.queries)
    recipe = whence.Influence(method, removal="first_order")
    few = replace(work, train=tuple(part[:60] for part in work.train))
    model = trained(work, 0) if method == "refined" else fresh(work, 0).eval()
    warm = make_problem(few, model)
    loose = whence.Refined(tolerance=0.9) if method == "refined" else method
    loose = whence.Influence(loose, removal="first_order")  # what is paid once in a process
    whence.fit(warm, loose).scores(tuple(part[:2] for part in queries), work.measurement)
    problem = make_problem(work, model)
    plan = whence.preflight(problem, queries, method=recipe, measurement=work.measurement)
    fit, fitted = timed(lambda: whence.fit(problem, recipe))
    scores, made = timed(lambda: fitted.scores(queries, work.measurement))
    peak = max(fit["peak MiB"], fit["held MiB"] + scores["peak MiB"])
    return {
        "fit": compared(plan.fit_seconds, fit["core seconds"]),
        "scores": compared(plan.scores_seconds, scores["core seconds"]),
        "together": compared(plan.seconds, fit["core seconds"] + scores["core seconds"]),
        "MiB": compared(plan.memory_bytes / 2**20, peak),
        "steps": made.report.get("steps"),
        "examples used": made.report.get("examples_used"),
    }


def compared(estimate: float, actual: float) -> dict[str, float]:
    """Both, and how many times too much was said."""
    ratio = estimate / max(actual, 1e-9)
    return {"said": round(estimate, 2), "took": round(actual, 2), "ratio": round(ratio, 2)}


if __name__ == "__main__":
    main()
