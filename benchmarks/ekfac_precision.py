"""What half precision of EK-FAC does to scores: rank correlation with those of full precision.

OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/ekfac_precision.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ekfac_lds import make_problem, shortened
from measuring import circumstances, timed
from scipy.stats import spearmanr
from works import WORKS, Work, trained

import whence

HERE = Path(__file__).parent


def main() -> None:
    """All works; writes them with versions and load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--work", nargs="*", default=["digits-sgd", "mlp-small", "cnn-small"])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ["digits-sgd"] if arguments.short else arguments.work
    found: dict[str, Any] = {}
    for name in names:
        work = shortened(WORKS[name]()) if arguments.short else WORKS[name]()
        found[name] = compared(work)
        print(f"{name}: {json.dumps(found[name], indent=1)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found | {"circumstances": circumstances(__file__)}, indent=1)
    (arguments.out / "ekfac_precision.json").write_text(text + "\n")


def compared(work: Work) -> dict[str, Any]:
    """Each precision beside full precision."""
    problem = make_problem(work, trained(work, 0))
    full, found = None, {}
    for precision in ("full", "bfloat16", "float16"):
        recipe = whence.Influence(whence.EKFAC(precision=precision), removal="first_order")
        cost, scores = timed(lambda r=recipe: explained(work, problem, r))
        full = scores if full is None else full
        ranks = [spearmanr(*pair).statistic for pair in zip(full, scores, strict=True)]
        error = np.linalg.norm(scores - full) / np.linalg.norm(full)
        found[precision] = {
            "rank correlation, mean over queries": round(float(np.mean(ranks)), 5),
            "rank correlation, worst query": round(float(np.min(ranks)), 5),
            "relative error": round(float(error), 4),
            "core seconds": cost["core seconds"],
        }
    return found


def explained(work: Work, problem: Any, recipe: Any) -> np.ndarray:
    """(Q, N) effects."""
    return whence.fit(problem, recipe).scores(work.queries, work.measurement).values


if __name__ == "__main__":
    main()
