"""whence traces a prediction back to the training data it came from.

    problem = whence.make_problem(model, (X, y), loss="cross_entropy", weight_decay=1e-2)
    scores = whence.explain(problem, (Xq, yq))
    check = whence.verify(problem, scores)
    whence.write_report(problem, scores, "why.html", verification=check)

Names are imported when they are first used, so that reading saved `Scores` never loads a
deep-learning framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from whence.version import __version__

if TYPE_CHECKING:
    from whence.adapters import make_problem
    from whence.core.problem import Problem
    from whence.core.scores import Effect, Measurement, Scores
    from whence.core.training import CallableTraining, Training
    from whence.costs import Preflight, preflight
    from whence.curvature.cg import CG
    from whence.curvature.exact import Exact
    from whence.curvature.identity import Identity
    from whence.curvature.lissa import LiSSA
    from whence.errors import WhenceError
    from whence.explanation import explain, fit
    from whence.methods.influence import Influence
    from whence.report import write_report
    from whence.verification import Verification, verify

_HOMES = {
    "make_problem": "whence.adapters",
    "Problem": "whence.core.problem",
    "Training": "whence.core.training",
    "CallableTraining": "whence.core.training",
    "fit": "whence.explanation",
    "explain": "whence.explanation",
    "Scores": "whence.core.scores",
    "Effect": "whence.core.scores",
    "Measurement": "whence.core.scores",
    "verify": "whence.verification",
    "Verification": "whence.verification",
    "preflight": "whence.costs",
    "Preflight": "whence.costs",
    "write_report": "whence.report",
    "Influence": "whence.methods.influence",
    "Exact": "whence.curvature.exact",
    "CG": "whence.curvature.cg",
    "LiSSA": "whence.curvature.lissa",
    "Identity": "whence.curvature.identity",
    "WhenceError": "whence.errors",
}

__all__ = [
    "CG",
    "CallableTraining",
    "Effect",
    "Exact",
    "Identity",
    "Influence",
    "LiSSA",
    "Measurement",
    "Preflight",
    "Problem",
    "Scores",
    "Training",
    "Verification",
    "WhenceError",
    "__version__",
    "explain",
    "fit",
    "make_problem",
    "preflight",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
