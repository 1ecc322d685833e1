"""Every method of the library beside the same retrainings, on three kinds of network.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/all_methods.py --work perceptron         # convolutional, transformer
    python benchmarks/all_methods.py --work perceptron --match 'magic'   # some of the methods
    python benchmarks/all_methods.py --table                   # what is in the results

The question is that of the training procedure: models trained on random halves from seeds that no
method has seen, `whence.verify(..., subsets=..., seed=FRESH)`. One model is explained. Networks and
trainings are those of `magic_lds.py`, with fewer examples where training takes long; methods are as
they come, and none was chosen or set by what is found here. A method that fails, or takes longer
than `LIMIT`, is a row that says so. What was trained as truth is kept under `runs/`, so that some
methods can be run apart from others.
"""

import argparse
import json
import re
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import works
from magic_lds import FRESH, Setting, settings
from measuring import circumstances, timed

import whence
from whence.core.problem import Problem
from whence.errors import WhenceError
from whence.methods import Method, names

RESULTS = Path(__file__).parent / "results"
LIMIT = 150
"""Core seconds that a method may take."""

TWICE = ("identity", "ensemble")
"""Names of what is there under another one: `graddot`, `Ensemble("ekfac", subsets=8)`."""

RECIPES: dict[str, Method] = {
    'Ensemble("ekfac", subsets=8)': whence.Ensemble("ekfac", subsets=8),
    'Ensemble("refined", subsets=8)': whence.Ensemble("refined", subsets=8),
    "MAGIC(subsets=10)": whence.MAGIC(subsets=10),
}
METHODS: dict[str, str | Method] = {name: name for name in names() if name not in TWICE} | RECIPES

EMPIRICAL: dict[str, Method] = {
    'EKFAC(fisher="empirical")': whence.Influence(whence.EKFAC(fisher="empirical")),
    'Ensemble(EKFAC(fisher="empirical"), subsets=8)': whence.Ensemble(
        whence.Influence(whence.EKFAC(fisher="empirical")), subsets=8
    ),
    'Source(fisher="empirical")': whence.Source(fisher="empirical"),
}
"""For the transformer: its loss is a function of its own, of which labels cannot be drawn."""


@dataclass(frozen=True)
class Plan:
    """How much of a work of `magic_lds.py` is asked.

    Args:
        work: its name there.
        examples: that are trained on.
        queries: that are explained.
        subsets: random halves that are trained on.
        seeds: of each of them.
        left_out: methods that are not tried, as a pattern.
    """

    work: str
    examples: int
    queries: int
    subsets: int
    seeds: int
    left_out: str = "^$"

    def setting(self) -> Setting:
        """The work, cut to this size."""
        setting = settings()[self.work]()
        asked = works.gpt(small=True).queries if self.work == "gpt" else setting.queries
        train, queries = (
            tuple(part[:count] for part in pair)
            for pair, count in ((setting.train, self.examples), (asked, self.queries))
        )
        return replace(setting, train=train, queries=queries, subsets=self.subsets)


PLANS = {
    "perceptron": Plan("tanh", examples=1200, queries=30, subsets=64, seeds=3),
    "convolutional": Plan("cnn", 1000, queries=8, subsets=24, seeds=2),
    "transformer": Plan("gpt", 600, queries=8, subsets=24, seeds=2, left_out="^(exact|dual)$"),
}
SHORT = Plan("tanh", examples=300, queries=8, subsets=16, seeds=2)


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained model, and what training again on halves does to its queries.

    Args:
        setting: the work.
        problem: what methods get; whatever they train, they train themselves.
        check: the retrainings, beside the scores of some method.
    """

    setting: Setting
    problem: Problem
    check: Any

    @classmethod
    def of(cls, plan: Plan) -> "Bench":
        """Trains what is not kept from before."""
        setting = plan.setting()
        kept = setting.problem()
        options: dict[str, Any] = {"measurement": setting.measured, "method": "graddot"}
        scores = whence.explain(kept, setting.queries, **options)
        check = whence.verify(kept, scores, subsets=plan.subsets, seeds=plan.seeds, seed=FRESH)
        training = replace(cast("whence.Training", kept.training), cache=None)
        return cls(setting, replace(kept, training=training), check)

    def row(self, method: str | Method) -> dict[str, Any]:
        """Fidelity and cost of a method, or why it has none."""
        options: dict[str, Any] = {"measurement": self.setting.measured, "method": method}
        work = partial(whence.explain, self.problem, self.setting.queries, **options)
        try:
            self.refuse_slow(method)
            numbers, scores = timed(partial(limited, work))
        except (WhenceError, RuntimeError, TimeoutError) as error:
            reason = error.found if isinstance(error, WhenceError) else str(error)
            return {"failed because": f"{type(error).__name__}: {reason}"}
        return fidelity(self.check.against(scores)) | {"core seconds": numbers["core seconds"]}

    def refuse_slow(self, method: str | Method) -> None:
        """Raises `TimeoutError` where `whence.preflight` expects more than `LIMIT` seconds."""
        try:
            expected = whence.preflight(self.problem, self.setting.queries, method=method).seconds
        except WhenceError:  # the method itself tells why it does not apply, if it does not
            return
        if expected is not None and expected > LIMIT:
            raise TimeoutError(f"expected to take {expected:.0f} core seconds")

    def facts(self) -> dict[str, Any]:
        """What was trained, and what exact effects would reach."""
        return {
            "training": self.check.training,
            "parameters": self.problem.size,
            "examples": len(self.problem),
            "queries": len(self.setting.queries[1]),
            "subsets": self.check.examples,
            "seeds": self.check.truth.seeds,
            "noise ceiling": round(self.check.noise_ceiling, 4),
            "reliability": round(self.check.reliability, 4),
        }


def fidelity(check: Any) -> dict[str, Any]:
    """Of some scores against the retrainings, with 95 % intervals; no slope without a scale."""
    told = check.summary()
    kept = ("lds", "lds_interval", "pearson", "slope", "slope_interval")
    return {name: rounded(told[name]) for name in kept}


def rounded(found: Any) -> Any:
    """To four places; None stays."""
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return None if found is None else round(found, 4)


def limited(work: Any) -> Any:
    """What the work gives, unless it takes more than `LIMIT` seconds of the cores.

    Raises:
        TimeoutError: it does. A call of compiled code is waited for.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {LIMIT} core seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# ------------------------------------------------------------------------------- results


def main() -> None:
    """Some methods on one work, beside what other runs have found of the same."""
    asked = parse()
    path = asked.out / "all_methods.json"
    if asked.table:
        print(table(json.loads(path.read_text())))
        return
    name, plan = ("short", SHORT) if asked.short else (asked.work, PLANS[asked.work])
    bench = Bench.of(plan)
    for method, recipe in (METHODS | (EMPIRICAL if plan.work == "gpt" else {})).items():
        if re.search(asked.match, method) and not re.search(plan.left_out, method):
            row = bench.row(recipe)
            print(f"{method:32} {row}", flush=True)
            keep(path, name, bench.facts(), {method: row})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", choices=PLANS, default="perceptron")
    parser.add_argument("--match", default="", help="only methods whose name fits, as a pattern")
    parser.add_argument("--table", action="store_true", help="prints what is in the results")
    parser.add_argument("--short", action="store_true", help="few examples and retrainings")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def keep(path: Path, name: str, facts: dict[str, Any], rows: dict[str, Any]) -> None:
    """Adds rows to a work in the file of results."""
    results = json.loads(path.read_text()) if path.is_file() else {}
    methods = results.get(name, {}).get("methods", {}) | rows
    results[name] = {"settings": facts, "methods": methods}
    results[name]["circumstances"] = circumstances(__file__)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    """All works as a table in Markdown, methods in the order of the first one."""
    ranked = [sorted(found["methods"].items(), key=worst_last) for found in results.values()]
    methods = dict.fromkeys(name for rows in ranked for name, _ in rows)
    columns = "LDS | slope | core s"
    lines = ["| |" + "".join(f" {name}: {columns} |" for name in results)]
    lines += ["|---|" + "---|---|---|" * len(results)]
    for method in methods:
        cells = [cell(found["methods"].get(method)) for found in results.values()]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    ceilings = [f"{found['settings']['noise ceiling']:.3f} | | " for found in results.values()]
    return "\n".join([*lines, "| noise ceiling | " + " | ".join(ceilings) + "|"])


def worst_last(row: tuple[str, dict[str, Any]]) -> float:
    """A key by which to sort: failures at the end."""
    lds = row[1].get("lds")
    return 2.0 if lds is None else -lds


def cell(row: dict[str, Any] | None) -> str:
    """LDS with its interval, slope, and core seconds."""
    if row is None:
        return "| |"
    if row.get("lds") is None:
        return "failed | |"
    low, high = row["lds_interval"]
    slope = "" if row["slope"] is None else f"{row['slope']:.2f}"
    return f"{row['lds']:.2f} [{low:.2f}, {high:.2f}] | {slope} | {row['core seconds']:.1f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
