"""Metasmoothness beside what derivatives through training are worth, with Adam's eps_root.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/magic_smoothness.py --work tanh        # or relu

The perceptrons and the training of `magic_lds.py`, own seed. `eps_root` stands under Adam's square
root; it also shortens steps, so the accuracy on the queries is told.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from magic_lds import RESULTS, Setting, settings
from measuring import circumstances

import whence
from whence.calculus.metasmoothness import metasmoothness
from whence.calculus.training import Course

EPS_ROOTS = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
SHARES = (0.5, 0.9, 0.99)


def measured(setting: Setting, eps_root: float, *, subsets: int) -> dict[str, Any]:
    """One training: how smooth it is, how good, and how well its derivatives predict."""
    adam = whence.Adam(is_decoupled=True, eps_root=eps_root)
    setting = replace(setting, options=setting.options | {"optimizer": adam})
    problem = setting.problem()
    course, weights = Course(problem, problem.training), torch.ones(len(problem))
    inputs, targets = setting.queries
    right = problem.outputs(problem.parameters, inputs).argmax(1) == targets
    found = {
        "metasmoothness": round(
            metasmoothness(course, weights, problem.parameters, directions=4), 3
        ),
        "accuracy": round(float(right.double().mean()), 3),
    }
    asked = setting.asking(30).queries
    scores = whence.explain(problem, asked, method=whence.MAGIC(directions=0))
    for share in SHARES:
        check = whence.verify(problem, scores, subsets=subsets, fraction=share, seeds=1)
        found[f"LDS, {1 - share:.0%} dropped"] = round(check.lds, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=["tanh", "relu"], required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    path = asked.out / "magic_smoothness.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    setting = settings()[asked.work]()
    found = {}
    for eps_root in EPS_ROOTS:
        found[f"eps_root {eps_root:g}"] = measured(setting, eps_root, subsets=48)
        print(asked.work, eps_root, found[f"eps_root {eps_root:g}"], flush=True)
    result[asked.work] = circumstances(__file__) | found
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
