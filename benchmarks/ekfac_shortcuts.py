"""What the short cuts of EK-FAC save, and what they cost in scores.

factored    scores of 200 queries and 10,000 images from factors of gradients, 784-512-256-10,
            against gradients that are written out (tolerance 0)
subsample   scores from a fit that looks at no more examples than it needs against one that looks at
            all: 55,338 parameters, 4,000 images; the perceptron; a small transformer
accuracy    what the fit says that looking at a part of the data costs, and what it costs
places      bases from an eighth of the places of every sequence against all of them, 112,512
            parameters, 64 places
compressed  refined solves for fewer combinations than 200 queries, 784-32-10, 1,000 images

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
from whence.calculus.gradients import measurement_slopes, pull_back
from whence.curvature import base
from whence.numerics.compression import compress

HERE = Path(__file__).parent


def main() -> None:
    """All measurements, or one of them; writes them with versions and load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--only", choices=tuple(MEASUREMENTS), help="one, beside earlier others")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "ekfac_shortcuts.json"
    found = json.loads(path.read_text()) if path.is_file() and arguments.only else {}
    for name, (measure, work) in MEASUREMENTS.items():
        if arguments.only in (None, name):
            chosen = shortened(WORKS["digits-sgd"]()) if arguments.short else WORKS[work]()
            found[name] = measure(chosen) | {"circumstances": circumstances(__file__)}
            print(f"{name}: {json.dumps(found[name], indent=1)}")
    path.write_text(json.dumps(found, indent=1) + "\n")


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
    """Bases and eigenvalues from as many examples as the default asks for, and from all of them."""
    fit(work, whence.EKFAC())  # imports, allocations
    dear, every = timed(lambda: fit(work, whence.EKFAC(accuracy=0.0)))
    before = base.FEW_OPERATIONS, kronecker.FIRST_ROUND, kronecker.FEWEST
    least = min(kronecker.FIRST_ROUND, len(work.train[1]) // 4)
    base.FEW_OPERATIONS, kronecker.FIRST_ROUND, kronecker.FEWEST = 0, least, least
    try:
        cost, few = timed(lambda: fit(work, whence.EKFAC()))
    finally:
        base.FEW_OPERATIONS, kronecker.FIRST_ROUND, kronecker.FEWEST = before
    some, full = (f.scores(work.queries, work.measurement) for f in (few, every))
    names = ("examples_used", "basis_examples", "moment_error")
    return {
        "examples": len(work.train[1]),
        **{name: some.report[name] for name in names},
        "core seconds of the fit, some": cost["core seconds"],
        "core seconds of the fit, all": dear["core seconds"],
        **compared(some.values, full.values),
    }


def accuracy(work: Work) -> dict[str, Any]:
    """How far scores are off for want of examples, and how far they are said to be."""
    work = replace(work, queries=tuple(part[:50] for part in work.queries))
    before = base.FEW_OPERATIONS, kronecker.FIRST_ROUND, kronecker.FEWEST
    base.FEW_OPERATIONS, kronecker.FEWEST = 0, 10**9  # the bases are those of all examples

    def looked_at(count: int) -> Any:
        kronecker.FIRST_ROUND = count
        return fit(work, whence.EKFAC(accuracy=1e9)).scores(work.queries, work.measurement)

    count = len(work.train[1])
    try:
        every = looked_at(count).values
        some = {part: looked_at(part) for part in (count // 8, count // 2)}
    finally:
        base.FEW_OPERATIONS, kronecker.FIRST_ROUND, kronecker.FEWEST = before
    return {
        f"{part} examples": {
            "said": round(scores.report["moment_error"], 4),
            **compared(scores.values, every),
        }
        for part, scores in some.items()
    }


def places(work: Work) -> dict[str, Any]:
    """Bases from some of the places at which an example uses a layer, and from all of them."""
    fit(work, whence.EKFAC())  # imports, allocations
    cost, few = timed(lambda: fit(work, whence.EKFAC()))
    share, kronecker.PLACES = kronecker.PLACES, 10**9
    try:
        dear, every = timed(lambda: fit(work, whence.EKFAC()))
    finally:
        kronecker.PLACES = share
    values, reference = (f.scores(work.queries, work.measurement).values for f in (few, every))
    return {
        "core seconds of the fit, some": cost["core seconds"],
        "core seconds of the fit, all": dear["core seconds"],
        **compared(values, reference),
    }


def compressed(work: Work) -> dict[str, Any]:
    """Refined scores of 200 queries, each solved for, and compressed."""
    queries = tuple(part[:200] for part in work.queries)
    cost, full = timed(lambda: refined(work, 0.0).scores(queries, "margin"))
    found: dict[str, Any] = {"solved one by one": {"core seconds": cost["core seconds"]}}
    problem = refined(work, 0.1).problem
    first, everyone = (
        measured_gradients(problem, queries),
        measured_gradients(problem, work.queries),
    )
    for share in (0.1, 0.3):
        cost, few = timed(lambda share=share: refined(work, share).scores(queries, "margin"))
        found[f"{share:.0%} asked"] = {
            "core seconds": cost["core seconds"],
            "rank": few.report.get("compressed_rank", len(queries[1])),
            "told": round(few.report.get("compressed_error", 0.0), 4),
            **compared(few.values, full.values),
        }
        packed = compress(refined(work, share).preview.expected_products(everyone), share)
        found[f"{share:.0%} asked"]["rank of all"] = packed.rank if packed else len(everyone)
        plain = compress(first @ first.T, share)  # the norm of gradients, not of effects
        if plain is not None:
            values = torch.tensor(full.values)
            made = plain.expand(plain.combine(values)).numpy()
            numbers = {"rank": plain.rank} | compared(made, full.values)
            found[f"{share:.0%} of the gradients"] = numbers
    return found | {"all": len(work.queries[1])}


def measured_gradients(problem: Any, queries: Any) -> torch.Tensor:
    """(Q, P) gradients of the margins."""
    asked = problem.queries(queries)
    slopes = measurement_slopes(problem, problem.measurement("margin"), asked)[1]
    return pull_back(problem, asked.inputs, slopes)


def refined(work: Work, share: float) -> Any:
    """A fitted method that may lose a share of the effects."""
    return fit(work, whence.Refined(tolerance=1e-2), compress=share)


def fit(work: Work, recipe: Any, **options: Any) -> Any:
    """A fitted method for the trained model of a work."""
    method = whence.Influence(recipe, removal="first_order", **options)
    return whence.fit(make_problem(work, trained(work, 0)), method)


def compared(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Relative error and correlation over all pairs."""
    error = np.linalg.norm(values - reference) / np.linalg.norm(reference)
    correlation = np.corrcoef(values.ravel(), reference.ravel())[0, 1]
    return {"relative error": round(float(error), 4), "correlation": round(float(correlation), 4)}


MEASUREMENTS = {
    "factored": (factored, "mlp"),
    "subsample": (subsample, "cnn"),
    "subsample, mlp": (subsample, "mlp"),
    "subsample, gpt-small": (subsample, "gpt-small"),
    "accuracy, digits": (accuracy, "digits-sgd"),
    "accuracy, mlp": (accuracy, "mlp"),
    "accuracy, cnn": (accuracy, "cnn"),
    "accuracy, gpt-small": (accuracy, "gpt-small"),
    "places": (places, "gpt-small"),
    "compressed": (compressed, "mlp-small"),
    "compressed, digits": (compressed, "digits-sgd"),
}
"""What is measured, and on which work."""


if __name__ == "__main__":
    main()
