"""What is known of scikit-learn's estimators by their names alone."""

import subprocess
import sys
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVR
from sklearn.utils import all_estimators

from whence import adapters, discovery
from whence.adapters import make_problem, sklearn, sklearn_kernel
from whence.adapters.base import Adapter
from whence.core.estimators import FAMILIES, REMEDIES, family_of, open_estimator, told
from whence.errors import NotFitted, Unsupported

KNOWN = sorted(name for names in FAMILIES.values() for name in names)
CLASSES = dict(all_estimators())


def unfitted(name: str) -> Any:
    if name.endswith("SearchCV"):
        return CLASSES[name](Ridge(), {})
    return CLASSES[name](Ridge()) if name.startswith("OneVs") else CLASSES[name]()


def recognising(model: object) -> list[str]:
    kinds = {kind: discovery.child(adapters, kind, Adapter)() for kind in adapters.names()}
    return [kind for kind, adapter in kinds.items() if adapter.recognises(model)]


def test_each_family_is_read_by_the_adapter_that_says_so():
    assert set(sklearn.TRANSLATORS) == set(FAMILIES["linear"])
    assert set(sklearn_kernel.KINDS) == set(FAMILIES["kernel"])
    assert set(REMEDIES).isdisjoint(KNOWN)
    assert set(REMEDIES) <= set(CLASSES)


@pytest.mark.parametrize("name", sorted({*KNOWN, *REMEDIES, "KMeans", "PCA", "LogisticRegression"}))
def test_every_estimator_is_read_by_one_adapter_alone_or_refused(name: str):
    model = unfitted(name)
    for whole in (model, make_pipeline(StandardScaler(), model)):
        assert len(recognising(whole)) == 1
        with pytest.raises(NotFitted if name in KNOWN else Unsupported) as caught:
            make_problem(whole, ([[0.0], [1.0]], [0, 1]))
        if name in REMEDIES:
            assert caught.value.remedy == REMEDIES[name]


def test_families_are_known_by_name_and_home():
    class Own(SVC):
        pass

    assert family_of(SVC()) == "kernel"
    assert family_of(make_pipeline(StandardScaler(), LinearSVR())) == "linear"
    assert family_of(MLPRegressor()) == "network"
    assert family_of(Own()) == ""
    assert family_of(StandardScaler()) == ""
    assert family_of(object()) is None
    assert family_of("Pipeline") is None


def test_scikit_learn_is_not_loaded_to_recognise_something_else():
    code = (
        "import sys; from whence.core.estimators import family_of; family_of(object()); "
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_pipeline_is_opened_and_one_without_other_steps_is_its_model():
    model = LogisticRegression()
    opened = open_estimator(make_pipeline(StandardScaler(), model))
    assert opened.estimator is model
    assert [name for name, _ in opened.steps.steps] == ["standardscaler"]
    assert open_estimator(make_pipeline(model)).steps is None
    assert open_estimator(model).kind == "LogisticRegression"


def test_only_a_loss_with_kinks_may_be_chosen():
    assert "loss" not in told("hinge")
    assert told("mse")["loss"] == "it minimised mse"
