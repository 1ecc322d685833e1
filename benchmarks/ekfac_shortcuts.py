"""What the short cuts of EK-FAC save, and what they cost in scores.

factored    scores of 200 queries and 10,000 images from factors of gradients, 784-512-256-10,
            against gradients that are written out (tolerance 0)
subsample   scores from moments of half of 4,000 images against those of all, 55,338 parameters

OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/ekfac_shortcuts.py
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ekfac_lds import make_problem, shortened
from measuring import circumstances, timed
from works import WORKS, Work, trained

import whence
from whence.calculus import kronecker

HERE = Path(__file__).parent


def main() -> None:
    """Both measurements; writes them with versions and load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("digits-sgd", "digits-sgd") if arguments.short else ("mlp", "cnn")
    works = [shortened(WORKS[n]()) if arguments.short else WORKS[n]() for n in names]
    found = {"factored": factored(works[0]), "subsample": subsample(works[1])}
    for name, numbers in found.items():
        print(f"{name}: {json.dumps(numbers)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found | {"circumstances": circumstances(__file__)}, indent=1)
    (arguments.out / "ekfac_shortcuts.json").write_text(text + "\n")


def factored(work: Work) -> dict[str, Any]:
    """One fit, scored with the default tolerance and with none."""
    fitted = fit(work, whence.EKFAC())
    whole = replace(fitted, ihvp=replace(fitted.ihvp, tolerance=0.0))
    cost, short = timed(lambda: fitted.scores(work.queries, work.measurement))
    dear, full = timed(lambda: whole.scores(work.queries, work.measurement))
    return {
        "core seconds, factored": cost["core seconds"],
        "core seconds, written out": dear["core seconds"],
        "expected error": short.report.get("factored_error"),
        "terms": short.report.get("factored_terms"),
        **compared(short.values, full.values),
    }


def subsample(work: Work) -> dict[str, Any]:
    """Moments of half of the data, as they would be without a least number of examples."""
    full = fit(work, whence.EKFAC(accuracy=0.0)).scores(work.queries, work.measurement).values
    least, kronecker.FIRST_ROUND = kronecker.FIRST_ROUND, len(work.train[1]) // 2
    try:
        some = fit(work, whence.EKFAC(accuracy=1e9)).scores(work.queries, work.measurement)
    finally:
        kronecker.FIRST_ROUND = least
    facts = {name: some.report[name] for name in ("examples_used", "moment_error")}
    return facts | compared(some.values, full)


def fit(work: Work, recipe: Any) -> Any:
    """A fitted method for the trained model of a work."""
    method = whence.Influence(recipe, removal="first_order")
    return whence.fit(make_problem(work, trained(work, 0)), method)


def compared(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Relative error and correlation over all pairs."""
    error = np.linalg.norm(values - reference) / np.linalg.norm(reference)
    correlation = np.corrcoef(values.ravel(), reference.ravel())[0, 1]
    return {"relative error": round(float(error), 4), "correlation": round(float(correlation), 4)}


if __name__ == "__main__":
    main()
