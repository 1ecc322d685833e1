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
    from whence.calculus.optimizers import SGD, Adam
    from whence.calculus.training import Training
    from whence.core.measurements import Contrast, contrast
    from whence.core.problem import Problem
    from whence.core.scores import Effect, Measurement, Scores
    from whence.core.training import CallableTraining, Trainer
    from whence.costs import Preflight, preflight
    from whence.curvature.arnoldi import Arnoldi
    from whence.curvature.cg import CG
    from whence.curvature.diagonal import Diagonal
    from whence.curvature.dual import Dual
    from whence.curvature.ekfac import EKFAC
    from whence.curvature.exact import Exact
    from whence.curvature.identity import Identity
    from whence.curvature.kfac import KFAC
    from whence.curvature.lissa import LiSSA
    from whence.curvature.nystrom import Nystrom
    from whence.curvature.refined import Refined
    from whence.errors import WhenceError
    from whence.explanation import explain, fit
    from whence.fits import load_fit, save_fit
    from whence.methods.bm25 import BM25
    from whence.methods.embedding import Embedding
    from whence.methods.ensemble import Ensemble
    from whence.methods.gradcos import GradCos
    from whence.methods.influence import Influence
    from whence.methods.loss import TrainLoss
    from whence.methods.magic import MAGIC
    from whence.methods.source import Source
    from whence.methods.tracin import TracIn
    from whence.report import write_report, write_sections
    from whence.sections import Section
    from whence.uses.ablation import RemovalCurve, removal_curve
    from whence.uses.comparison import Comparison, Views, compare
    from whence.uses.components import Components, components
    from whence.uses.damping import DampingScan, scan_damping
    from whence.uses.flipping import Brittleness, Flip, brittleness, smallest_flip
    from whence.uses.method_comparison import MethodComparison, compare_methods
    from whence.uses.mislabels import Mislabels, find_mislabels
    from whence.uses.mismatch import Mismatch, find_mismatch
    from whence.uses.perturbation import Perturbation, perturb
    from whence.uses.poisoning import Attack, Poisoning, poison
    from whence.uses.schools import Schools, other_schools
    from whence.uses.tokens import TokenEffects, token_effects
    from whence.uses.whatif import Outcome, relabel, remove, replace, revise, upweight
    from whence.verification import Verification, fit_datamodels, verify

_HOMES = {
    "make_problem": "whence.adapters",
    "Problem": "whence.core.problem",
    "Trainer": "whence.core.training",
    "Training": "whence.calculus.training",
    "SGD": "whence.calculus.optimizers",
    "Adam": "whence.calculus.optimizers",
    "CallableTraining": "whence.core.training",
    "fit": "whence.explanation",
    "save_fit": "whence.fits",
    "load_fit": "whence.fits",
    "explain": "whence.explanation",
    "Scores": "whence.core.scores",
    "Effect": "whence.core.scores",
    "Measurement": "whence.core.scores",
    "verify": "whence.verification",
    "fit_datamodels": "whence.verification",
    "Verification": "whence.verification",
    "preflight": "whence.costs",
    "Preflight": "whence.costs",
    "write_report": "whence.report",
    "write_sections": "whence.report",
    "Influence": "whence.methods.influence",
    "BM25": "whence.methods.bm25",
    "Embedding": "whence.methods.embedding",
    "Ensemble": "whence.methods.ensemble",
    "GradCos": "whence.methods.gradcos",
    "TrainLoss": "whence.methods.loss",
    "TracIn": "whence.methods.tracin",
    "Source": "whence.methods.source",
    "MAGIC": "whence.methods.magic",
    "Exact": "whence.curvature.exact",
    "EKFAC": "whence.curvature.ekfac",
    "KFAC": "whence.curvature.kfac",
    "Refined": "whence.curvature.refined",
    "CG": "whence.curvature.cg",
    "LiSSA": "whence.curvature.lissa",
    "Identity": "whence.curvature.identity",
    "Arnoldi": "whence.curvature.arnoldi",
    "Nystrom": "whence.curvature.nystrom",
    "Diagonal": "whence.curvature.diagonal",
    "WhenceError": "whence.errors",
    "Contrast": "whence.core.measurements",
    "contrast": "whence.core.measurements",
    "Dual": "whence.curvature.dual",
    "Section": "whence.sections",
    "components": "whence.uses.components",
    "Components": "whence.uses.components",
    "scan_damping": "whence.uses.damping",
    "DampingScan": "whence.uses.damping",
    "Views": "whence.uses.comparison",
    "compare": "whence.uses.comparison",
    "Comparison": "whence.uses.comparison",
    "removal_curve": "whence.uses.ablation",
    "RemovalCurve": "whence.uses.ablation",
    "brittleness": "whence.uses.flipping",
    "Brittleness": "whence.uses.flipping",
    "smallest_flip": "whence.uses.flipping",
    "Flip": "whence.uses.flipping",
    "compare_methods": "whence.uses.method_comparison",
    "MethodComparison": "whence.uses.method_comparison",
    "find_mislabels": "whence.uses.mislabels",
    "Mislabels": "whence.uses.mislabels",
    "find_mismatch": "whence.uses.mismatch",
    "Mismatch": "whence.uses.mismatch",
    "perturb": "whence.uses.perturbation",
    "Perturbation": "whence.uses.perturbation",
    "Attack": "whence.uses.poisoning",
    "poison": "whence.uses.poisoning",
    "Poisoning": "whence.uses.poisoning",
    "other_schools": "whence.uses.schools",
    "Schools": "whence.uses.schools",
    "token_effects": "whence.uses.tokens",
    "TokenEffects": "whence.uses.tokens",
    "Outcome": "whence.uses.whatif",
    "relabel": "whence.uses.whatif",
    "remove": "whence.uses.whatif",
    "replace": "whence.uses.whatif",
    "revise": "whence.uses.whatif",
    "upweight": "whence.uses.whatif",
}

__all__ = [
    "BM25",
    "CG",
    "EKFAC",
    "KFAC",
    "MAGIC",
    "SGD",
    "Adam",
    "Arnoldi",
    "Attack",
    "Brittleness",
    "CallableTraining",
    "Comparison",
    "Components",
    "Contrast",
    "DampingScan",
    "Diagonal",
    "Dual",
    "Effect",
    "Embedding",
    "Ensemble",
    "Exact",
    "Flip",
    "GradCos",
    "Identity",
    "Influence",
    "LiSSA",
    "Measurement",
    "MethodComparison",
    "Mislabels",
    "Mismatch",
    "Nystrom",
    "Outcome",
    "Perturbation",
    "Poisoning",
    "Preflight",
    "Problem",
    "Refined",
    "RemovalCurve",
    "Schools",
    "Scores",
    "Section",
    "Source",
    "TokenEffects",
    "TracIn",
    "TrainLoss",
    "Trainer",
    "Training",
    "Verification",
    "Views",
    "WhenceError",
    "__version__",
    "brittleness",
    "compare",
    "compare_methods",
    "components",
    "contrast",
    "explain",
    "find_mislabels",
    "find_mismatch",
    "fit",
    "fit_datamodels",
    "load_fit",
    "make_problem",
    "other_schools",
    "perturb",
    "poison",
    "preflight",
    "relabel",
    "removal_curve",
    "remove",
    "replace",
    "revise",
    "save_fit",
    "scan_damping",
    "smallest_flip",
    "token_effects",
    "upweight",
    "verify",
    "write_report",
    "write_sections",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
