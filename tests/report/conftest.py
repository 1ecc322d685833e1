"""Scores of the digits, and stand-ins with what a report asks of a problem and a verification."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from whence.core.display import describe
from whence.core.scores import Measurement, Scores

PICTURES, LABELS = load_digits(return_X_y=True)


@dataclass
class Problem:
    """A classifier of the digits whose predictions are given instead of computed."""

    examples: int = 120
    show_input: Callable[[Any], dict[str, Any]] = lambda inputs: describe(inputs, "image")
    label_names: list[str] = field(default_factory=lambda: list("0123456789"))
    prediction: dict[str, Any] = field(
        default_factory=lambda: {"label": "3", "confidence": 0.61, "value": None}
    )
    ids: np.ndarray | None = None
    name: str = "digits"

    @property
    def data(self) -> SimpleNamespace:
        ids = np.arange(self.examples) if self.ids is None else self.ids
        return SimpleNamespace(ids=ids)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": "Linear",
            "parameters": 650,
            "examples": self.examples,
            "loss": "cross_entropy",
        }

    def fingerprint(self) -> dict[str, str]:
        return {"parameters": "9f3c" * 8, "data": "1b7e" * 8}

    def show(self, position: int) -> dict[str, Any]:
        return self.show_input(PICTURES[position])

    def show_query(self, inputs: Any, target: Any) -> dict[str, Any]:
        del target
        return self.show_input(inputs)

    def label_of(self, position: int) -> str | None:
        return self.label_names[LABELS[position]]

    def label_name(self, target: Any) -> str:
        return self.label_names[int(target)]

    def prediction_of(self, inputs: Any) -> dict[str, Any]:
        del inputs
        return self.prediction


@dataclass
class Verification:
    """Retraining that agrees with the scores, up to noise."""

    scores: Scores
    removed: int = 10

    def to_json(self, most_points: int | None = None) -> dict[str, Any]:
        del most_points  # there are few
        rng = np.random.default_rng(5)
        points = []
        for query, row in zip(self.scores.query_ids, self.scores.values, strict=True):
            for example in np.argsort(-np.abs(row))[: self.removed]:
                actual = 1.1 * row[example] + 0.02 * rng.standard_normal()
                points.append(
                    {
                        "query": query,
                        "example": self.scores.train_ids[example],
                        "predicted": row[example],
                        "actual": actual,
                    }
                )
        return {
            "kind": "leave-one-out",
            "points": points,
            "pearson": 0.982,
            "spearman": np.float64(0.951),
            "slope": 1.09,
            "interval": [0.97, 0.99],
            "noise_ceiling": float("nan"),
            "examples": self.removed,
            "verdict": "Predicts retraining well",
            "sentence": "Over 40 retrainings, predicted and actual effects correlate at 0.98.",
        }


@pytest.fixture
def make_problem() -> type[Problem]:
    return Problem


@pytest.fixture
def make_scores() -> Callable[..., Scores]:
    """Scores of a problem, with heavy tails as influence has them; `changes` replace fields."""
    return scores_of


def scores_of(problem: Problem, queries: int = 4, **changes: Any) -> Scores:
    rng = np.random.default_rng(0)
    rows = 1500 + np.arange(queries) % 200
    report = {
        "method": "influence",
        "reason": "650 parameters: the exact Hessian costs less than any approximation of it",
        "removal": "newton",
        "curvature": "exact",
        "damping": np.float32(0.0),
        "residual": [1e-12, 3e-12],
        "gradient_norm": 2.4e-7,
        "smallest_eigenvalue": float("nan"),
        "leverage_fallbacks": 0,
        "parameters_covered": 650,
        "parameters_total": 650,
        "fingerprint": problem.fingerprint() | {"queries": "77aa" * 8},
        "seconds": 1.42,
        "warnings": [],
    }
    fields = {
        "values": 0.05 * rng.standard_t(1.5, size=(queries, problem.examples)),
        "query_ids": 1500 + np.arange(queries),
        "train_ids": problem.data.ids,
        "measurement": Measurement("margin", "logits", True),
        "baseline": np.linspace(-1, 2, queries),
        "queries": {"inputs": PICTURES[rows], "targets": LABELS[rows]},
        "report": report,
    }
    return Scores(**fields | changes)


@pytest.fixture
def make_verification() -> type[Verification]:
    return Verification
