"""How well predicted effects agree with training again."""

from whence.verification.bench import Bench, choose_training
from whence.verification.changing import Retraining, retrain
from whence.verification.checking import verify, verify_some
from whence.verification.datamodels import fit_datamodels
from whence.verification.result import Verification

__all__ = [
    "Bench",
    "Retraining",
    "Verification",
    "choose_training",
    "fit_datamodels",
    "retrain",
    "verify",
    "verify_some",
]
