"""How far EK-FAC of whence and of kronfluence are the same matrix: scores with one damping.

Kronfluence draws one label for each example; whence can take the expectation over all classes. So
the peer is fitted on data that show every example many times, each time with a new label, and
compared with the expectation; two of its own fits with one label tell how much chance is in one.

    python benchmarks/ekfac_agreement.py
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ekfac_lds import make_problem, shortened
from ekfac_speed import correlations, recipe
from measuring import circumstances
from peers import IS_INSTALLED, MISSING, Kronfluence
from works import RUNS, WORKS, Work, fingerprint, trained

import whence

HERE = Path(__file__).parent
DAMPINGS = (1e-2, 1e-3)
REPEATS = {"digits-sgd": 30, "cnn-small": 10, "short": 10}


def main() -> None:
    """Agreement on the given works; writes and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # about names that the peer takes from torch
    if not IS_INSTALLED:
        raise SystemExit(MISSING)
    names = ["digits-sgd", "cnn-small"]
    works = [shortened(WORKS["digits-sgd"]())] if arguments.short else [WORKS[n]() for n in names]
    result = {work.name: agreement(work) for work in works}
    arguments.out.mkdir(parents=True, exist_ok=True)
    result["circumstances"] = circumstances(__file__)
    (arguments.out / "ekfac_agreement.json").write_text(json.dumps(result, indent=1) + "\n")


def agreement(work: Work) -> dict[str, Any]:
    """Correlations of scores, by damping."""
    repeats = REPEATS[work.name]
    work = replace(work, batch=250)
    once, again = by_peer(work, 1, seed=0), by_peer(work, 1, seed=1)
    often = by_peer(work, repeats, seed=2)
    found: dict[str, Any] = {"labels drawn for each example": repeats}
    for place, damping in enumerate(DAMPINGS):
        pairs = {
            "kronfluence, one label, against another fit": (once[place], again[place]),
            "kronfluence, one label, against many": (once[place], often[place]),
        }
        if hasattr(whence, "EKFAC"):
            own = by_whence(work, damping)
            pairs["kronfluence, many labels, against whence"] = (often[place], own)
            pairs["kronfluence, one label, against whence"] = (once[place], own)
        found[f"damping {damping:g}"] = {name: correlations(*pair) for name, pair in pairs.items()}
    print(json.dumps({work.name: found}, indent=1), flush=True)
    return found


def by_peer(work: Work, repeats: int, *, seed: int) -> np.ndarray:
    """(dampings, Q, N) effects by kronfluence with so many labels for each example; kept."""
    key = f"{work.name}-{fingerprint(work)[:16]}-{repeats}-{seed}.npy"
    path = RUNS / "agreement" / key
    if path.is_file():
        return np.load(path)
    with TemporaryDirectory() as folder:
        peer = Kronfluence(work, trained(work), folder, batch=work.batch, repeats=repeats)
        peer.fit(seed)
        found = np.stack([peer.scores(damping) for damping in DAMPINGS])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, found)
    return found


def by_whence(work: Work, damping: float) -> np.ndarray:
    """(Q, N) effects with the Fisher as an expectation; without weight decay, as the peer."""
    problem = make_problem(
        replace(work, recipe=replace(work.recipe, optimizer="none")), trained(work)
    )
    method = recipe(damping=damping, fisher="expected")
    return whence.explain(problem, work.queries, measurement=work.measurement, method=method).values


if __name__ == "__main__":
    main()
