"""What models say that were trained on random halves of the data: the truth of `ekfac_lds.py`.

    python benchmarks/ground_truth.py --work digits-sgd

For each of 60 random halves some models are trained from fresh seeds, and every query is measured.
The answers are kept under `runs/` as they come, in a folder named by a fingerprint of all that they
depend on, so that an interrupted run goes on where it stopped; a copy goes to `results/`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import works
from works import RUNS, WORKS, Work, measured, train_many

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """How often is trained.

    Args:
        subsets: random halves.
        seeds: models for each of them.
        together: models trained in one go.
        shares_seeds: whether all halves are trained from the same few seeds, so that what a seed
            does is no noise in the ranking of halves; else every model has a seed of its own.
    """

    subsets: int
    seeds: int
    together: int
    shares_seeds: bool = False


PLANS = {
    "digits-sgd": Plan(60, 3, together=60),
    "digits-adamw": Plan(60, 3, together=60),
    "digits-decay": Plan(60, 3, together=60, shares_seeds=True),
    "cnn-small": Plan(60, 2, together=1),
    "gpt-small": Plan(60, 1, together=1),
}
FIRST_SEED = 1000
"""Seeds below are those of the models to be explained: no model is both asked about and truth."""


def main() -> None:
    """Trains what is missing for one work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=PLANS, required=True)
    name = parser.parse_args().work
    truth(WORKS[name](), PLANS[name])


def halves(work: Work, plan: Plan) -> torch.Tensor:
    """(subsets, N) booleans: which training examples are in, exactly half of them."""
    count = len(work.train[1])
    drawn = np.random.default_rng(7).random((plan.subsets, count))
    kept = np.zeros((plan.subsets, count), dtype=bool)
    np.put_along_axis(kept, drawn.argsort(1)[:, : count // 2], values=True, axis=1)
    return torch.from_numpy(kept)


def truth(work: Work, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """What retrained models say.

    Returns:
        (subsets, N) booleans, (subsets, seeds, Q) measurements.
    """
    kept = halves(work, plan)
    key = fingerprint(work, plan, kept)
    committed = HERE / "results" / f"ground_truth_{work.name}.npz"
    if committed.is_file():
        found = np.load(committed)
        if str(found["fingerprint"]) == key:
            return kept.numpy(), found["measured"]
    values = _retrained(work, plan, kept, RUNS / "ground_truth" / f"{work.name}-{key[:16]}")
    if PLANS.get(work.name) == plan:
        np.savez_compressed(committed, fingerprint=key, measured=values)
    return kept.numpy(), values


def _retrained(work: Work, plan: Plan, kept: torch.Tensor, folder: Path) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    rows = kept.nonzero()[:, 1].view(plan.subsets, -1).repeat_interleave(plan.seeds, 0)
    cycle = plan.seeds if plan.shares_seeds else len(rows)
    seeds = [FIRST_SEED + place % cycle for place in range(len(rows))]
    parts = []
    for start in range(0, len(rows), plan.together):
        part = slice(start, start + plan.together)
        path = folder / f"{start:04}.npy"
        if not path.is_file():
            models = train_many(work, rows[part], seeds[part])
            np.save(path, torch.stack([measured(work, model) for model in models]).numpy())
            print(f"{work.name}: {min(part.stop, len(rows))} of {len(rows)} models", flush=True)
        parts.append(np.load(path))
    return np.concatenate(parts).reshape(plan.subsets, plan.seeds, -1)


def fingerprint(work: Work, plan: Plan, kept: torch.Tensor) -> str:
    """A digest of all that the measurements depend on."""
    told = {"subsets": plan.subsets, "seeds": plan.seeds, "first seed": FIRST_SEED}
    told |= {"shares seeds": True} if plan.shares_seeds else {}
    return works.fingerprint(work, told, kept)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
