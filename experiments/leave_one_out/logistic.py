"""Logistic regression, every training example left out once: predicted effects against retraining.

Three small data sets, two strengths of the regulariser, two measurements, three estimates:

    first order     grad m . H^-1 grad loss_i / N
    Newton          one Newton step on the objective without example i, leverage included
    Newton, finite  the same step, and the measurement evaluated there instead of linearised

All N models are trained side by side from the optimum; scikit-learn trains a few again from zero.
The queries are test examples at evenly spaced positions; a number in the table is the median over
them of the correlation, or slope, over all training examples.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import whence
from whence.calculus.gradients import measure
from whence.calculus.retraining import NewtonTraining
from whence.core.measurements import make_measurement
from whence.core.problem import Problem
from whence.datasets import RealData, load
from whence.methods.influence import Influence
from whence.numerics import stats

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = {
    "digits 1 v 7": ("digits", (1, 7)),
    "breast cancer": ("breast_cancer", None),
    "digits, 10 classes": ("digits", None),
}
WEIGHT_DECAYS = (1e-2, 1e-3)
MEASUREMENTS = ("loss", "margin")
METHODS = {
    "first order": Influence("exact", removal="first_order"),
    "Newton": Influence("exact", removal="newton"),
    "Newton, finite": Influence("exact", removal="newton", change="finite"),
}
QUERIES = 20
COLD_REFITS = 3


def main() -> None:
    """All problems; writes the numbers and prints them as a table."""
    arguments = parse()
    started = time.perf_counter()
    problems = list(product(DATA, WEIGHT_DECAYS))[: 1 if arguments.short else None]
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for name, weight_decay in problems:
        found, check = examine(name, weight_decay)
        rows += found
        checks.append(check)
    result = {
        "settings": {"queries": QUERIES, "curvature": "exact", "objective": "N fixed"},
        "rows": rows,
        "checks": checks,
        "circumstances": circumstances(time.perf_counter() - started),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "logistic.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    for check in checks:
        print(
            f"{check['data']}, l = {check['weight decay']:g}: a cold refit differs by "
            f"{check['largest difference of a cold refit, share of the largest effect']:.1e} of "
            f"the largest effect; {check['seconds']} s"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the first problem alone")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


def examine(name: str, weight_decay: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One data set with one regulariser: rows of the table, and what the retraining reports."""
    started = time.perf_counter()
    source, classes = DATA[name]
    data = load(source, classes=classes)
    problem, without, report = leave_out_each(data, weight_decay)
    chosen = np.linspace(0, len(data.y_test) - 1, QUERIES).astype(int)
    queries = (data.x_test[chosen], data.y_test[chosen])
    some = np.linspace(0, len(problem) - 1, COLD_REFITS).astype(int)
    cold = problem.retrain(1 - torch.eye(len(problem), dtype=torch.float64)[some]).parameters
    rows, differences = [], []
    for measurement in MEASUREMENTS:
        actual = effects(problem, without, queries, measurement)  # (Q, N)
        from_zero = effects(problem, cold, queries, measurement)
        differences.append(np.abs(from_zero - actual[:, some]).max() / np.abs(actual).max())
        for method, recipe in METHODS.items():
            scores = whence.explain(problem, queries, measurement=measurement, method=recipe)
            row = {"data": name, "weight decay": weight_decay, "measurement": measurement}
            rows.append(row | {"method": method} | compare(scores.values, actual))
    check = {
        "data": name,
        "weight decay": weight_decay,
        "examples": len(problem),
        "parameters": problem.size,
        "largest gradient norm after retraining": max(report["gradient_norm"]),
        "most steps": max(report["steps"]),
        "largest difference of a cold refit, share of the largest effect": float(max(differences)),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return rows, check


def leave_out_each(data: RealData, weight_decay: float) -> tuple[Problem, Tensor, dict[str, Any]]:
    """The problem at its optimum, and (N, P) optima without each example."""
    model = LogisticRegression(C=1 / (len(data.y_train) * weight_decay), tol=1e-8, max_iter=10_000)
    model.fit(data.x_train, data.y_train)
    problem = whence.make_problem(model, (data.x_train, data.y_train))
    count = len(problem)
    everything = torch.ones(1, count, dtype=torch.float64)
    removals = 1 - torch.eye(count, dtype=torch.float64)
    retrained = NewtonTraining().retrain(problem, torch.cat([everything, removals]))
    return problem.at(retrained.parameters[0]), retrained.parameters[1:], dict(retrained.report)


def effects(
    problem: Problem, without: Tensor, queries: tuple[np.ndarray, np.ndarray], measurement: str
) -> np.ndarray:
    """(Q, M) change of a measurement from the problem's parameters to others (M, P)."""
    measured = make_measurement(measurement, problem.loss)
    asked = problem.queries(queries)
    before = measure(problem, measured, asked)
    after = [measure(problem.at(theta), measured, asked) for theta in without]
    return (torch.stack(after, 1) - before[:, None]).numpy()


def compare(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Medians over queries, and the query that is told worst."""
    correlations = stats.pearson(predicted, actual)
    return {
        "pearson": stats.median(correlations),
        "slope": stats.median(stats.slope(predicted, actual)),
        "spearman": stats.median(stats.spearman(predicted, actual)),
        "lowest pearson": float(correlations.min()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: Pearson / slope of each method."""
    lines = [
        "| data | l | measurement | " + " | ".join(METHODS) + " |",
        "|---|---|---|" + "---|" * len(METHODS),
    ]
    for start in range(0, len(rows), len(METHODS)):
        group = rows[start : start + len(METHODS)]
        cells = [f"{row['pearson']:.4f} / {row['slope']:.3f}" for row in group]
        first = group[0]
        head = [first["data"], f"{first['weight decay']:g}", first["measurement"]]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return "\n".join(lines)


def circumstances(seconds: float) -> dict[str, Any]:
    """Versions, threads, command and seconds."""
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return {
        "command": " ".join(["python", str(Path(__file__).relative_to(ROOT)), *sys.argv[1:]]),
        "versions": {"whence": whence.__version__} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
