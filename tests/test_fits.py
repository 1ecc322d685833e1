"""A fit in a file answers as the fit itself, and for no other problem."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import problems
from whence.calculus import rooms
from whence.curvature.ekfac import EKFAC
from whence.curvature.kfac import KFAC
from whence.errors import Stale, StoreError, Unsupported, WrongVersion
from whence.explanation import explain, fit
from whence.fits import load_fit, save_fit
from whence.methods.influence import Influence


@pytest.mark.parametrize("case", ["mlp", "conv", "tokens", "tied", "multinomial_free_intercept"])
@pytest.mark.parametrize(
    "recipe",
    [EKFAC(), KFAC(damping=0.03), EKFAC(precision="bfloat16"), EKFAC(precision="float16")],
)
@pytest.mark.parametrize("keeps", [True, False])
def test_a_fit_from_a_file_gives_the_same_scores_and_report(
    case, recipe, keeps, tmp_path, monkeypatch
):
    monkeypatch.setattr(rooms, "KEPT_BYTES", rooms.KEPT_BYTES if keeps else 0)
    made = problems.ALL[case]()
    fitted = fit(made.problem, Influence(recipe))
    loaded = load_fit(made.problem, save_fit(fitted, tmp_path / "fit.npz"))
    one, other = (explain(made.problem, made.queries, method=m) for m in (fitted, loaded))
    assert np.array_equal(one.values, other.values)
    assert one.report["damping"] == other.report["damping"]
    assert (loaded.ihvp.kept is not None) == keeps
    torch.testing.assert_close(loaded.gradient, fitted.gradient, rtol=0, atol=0)


def test_kept_gradients_need_no_pass_over_the_training_data(tmp_path, monkeypatch):
    case = problems.mlp()
    path = save_fit(fit(case.problem, "ekfac"), tmp_path / "fit.npz")
    loaded = load_fit(case.problem, path)
    asked = case.problem.queries(case.queries)

    def refuse(*arguments, **options):
        raise AssertionError("the training data was read")

    monkeypatch.setattr(type(case.problem), "batches", refuse)
    assert loaded.scores(asked).values.shape == (len(asked), len(case.problem))


def test_a_fit_of_another_problem_is_refused(tmp_path):
    case = problems.mlp()
    path = save_fit(fit(case.problem, "ekfac"), tmp_path / "fit.npz")
    moved = case.problem.at(case.problem.parameters + 0.1)
    with pytest.raises(Stale, match="other parameters, data or objective"):
        load_fit(moved, path)
    with pytest.raises(Stale, match="other parameters, data or objective"):
        load_fit(replace(case.problem, weights=2 * case.problem.weights), path)


def test_what_is_no_fit_is_refused(tmp_path):
    case = problems.mlp()
    path = save_fit(fit(case.problem, "ekfac"), tmp_path / "fit.npz")
    whole = path.read_bytes()
    for name, content in (("half.npz", whole[: len(whole) // 2]), ("text.npz", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match="no fit of whence"):
            load_fit(case.problem, tmp_path / name)
    with pytest.raises(StoreError, match="could not be read"):
        load_fit(case.problem, tmp_path / "nowhere.npz")
    with np.load(path) as archive:
        some = {name: archive[name] for name in archive.files if not name.endswith("values")}
    np.savez(tmp_path / "lost.npz", **some)
    with pytest.raises(StoreError, match="no fit of whence"):
        load_fit(case.problem, tmp_path / "lost.npz")
    other = np.array('{"format": "whence fit", "version": 99}')
    np.savez(tmp_path / "new.npz", metadata=other)
    with pytest.raises(WrongVersion, match="version 99"):
        load_fit(case.problem, tmp_path / "new.npz")


def test_only_layers_are_saved(tmp_path):
    with pytest.raises(Unsupported, match="exact"):
        save_fit(fit(problems.mlp().problem, "exact"), tmp_path / "fit.npz")
