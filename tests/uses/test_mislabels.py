"""Suspicious labels: every ranking against formulas written out, and what rankings find."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import problems
from problems import ALL, CONVEX, Case
from whence import explanation
from whence.adapters import make_problem
from whence.core.problem import Problem
from whence.errors import BadArgument, BadData, UnknownName, Unsupported
from whence.explanation import fit
from whence.methods import Method
from whence.methods.base import Fitted
from whence.methods.influence import Influence
from whence.sections import Gallery, Lines, Table
from whence.uses.mislabels import RANKINGS, find_mislabels

CLASSIFIERS = ["logistic", "class_weighted", "multinomial", "multinomial_free_intercept"]


def blobs(*, names: bool = False) -> tuple[Problem, np.ndarray, np.ndarray]:
    """Two clouds far apart, six of eighty labels flipped: problem, wrong labels, true labels."""
    random = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = random.standard_normal((80, 3)) + 4 * y[:, None]
    is_wrong = np.zeros(80, dtype=bool)
    is_wrong[random.choice(80, 6, replace=False)] = True
    given, true = np.where(is_wrong, 1 - y, y), y
    if names:
        given, true = np.array(["ham", "spam"])[given], np.array(["ham", "spam"])[y]
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000).fit(x, given)
    return make_problem(model, (x, given)), is_wrong, true


# ------------------------------------------------------------------ rankings, written out


@pytest.mark.parametrize("name", ["logistic", "class_weighted"])
def test_self_influence_ranks_by_the_formula_of_the_paper_whatever_the_factor(name):
    """sigma(-y f)^2 x^T H^-1 x, without 1/N and with it; base weights come on top."""
    case = CONVEX[name]()
    oracle, theta = case.oracle, case.oracle.optimum()
    inverse = np.linalg.inv(oracle.hessian(theta))
    sigma = 1 - np.exp(-oracle.losses(theta))
    formula = oracle.base * sigma**2 * np.einsum("id,de,ie->i", oracle.x, inverse, oracle.x)
    method = Influence("exact", removal="first_order")
    found = find_mislabels(case.problem, by="self_influence", method=method)
    assert_allclose(found.suspicion["self_influence"], formula / len(oracle), rtol=1e-9)
    assert found.ranking.tolist() == np.argsort(-formula, kind="stable").tolist()
    assert found.units["self_influence"] == "nats"


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_self_influence_is_that_of_the_fitted_method(name, renormalize):
    case = CONVEX[name]()
    problem = (case.renormalized() if renormalize else case).problem
    fitted = fit(problem)
    found = find_mislabels(problem, method=fitted).suspicion["self_influence"]
    assert_allclose(found, fitted.self_influence(), rtol=1e-9, atol=1e-15)


def rest_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) outputs after one Newton step without each example, (N, C, C) what is open then."""
    oracle, start = case.oracle, case.oracle.optimum()
    thetas = oracle.newton_retrained()
    outputs = np.stack([oracle.predict(theta)[i] for i, theta in enumerate(thetas)])
    spreads = []
    for w, row in zip(oracle.removals(), oracle.x, strict=True):
        inverse = np.linalg.pinv(oracle.hessian(start, w), rcond=1e-10, hermitian=True)
        jac = np.kron(np.eye(oracle.outputs), row)
        spreads.append(jac @ inverse @ jac.T / oracle.divisor(w))
    return outputs, np.stack(spreads)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("name", ["logistic", "class_weighted"])
def test_the_left_out_loss_of_one_logit_divides_its_margin_by_what_is_open(name, renormalize):
    case = CONVEX[name]()
    case = case.renormalized() if renormalize else case
    outputs, spreads = rest_of(case)
    margins = (2 * case.oracle.y - 1) * outputs[:, 0]
    expected = np.log1p(np.exp(-margins / np.sqrt(1 + np.pi / 8 * spreads[:, 0, 0])))
    found = find_mislabels(case.problem, by="left_out_loss").suspicion["left_out_loss"]
    assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["multinomial", "multinomial_free_intercept"])
def test_the_left_out_loss_of_classes_compares_the_label_with_each_other_one(name):
    case = CONVEX[name]()
    outputs, spreads = rest_of(case)
    found = find_mislabels(case.problem, by="left_out_loss").suspicion["left_out_loss"]
    for i, label in enumerate(case.oracle.y):
        ahead = [0.0]
        for other in {0, 1, 2} - {int(label)}:
            contrast = np.zeros(3)
            contrast[[label, other]] = 1, -1
            variance = contrast @ spreads[i] @ contrast
            ahead.append(-contrast @ outputs[i] / np.sqrt(1 + np.pi / 8 * variance))
        assert found[i] == pytest.approx(logsumexp(ahead), rel=1e-7)


def test_the_left_out_loss_is_near_the_loss_after_training_without_the_example():
    """Tempering only draws margins towards zero: the order hardly changes on easy data."""
    case = problems.logistic()
    after = [case.oracle.losses(theta)[i] for i, theta in enumerate(case.oracle.retrained())]
    found = find_mislabels(case.problem).suspicion["left_out_loss"]
    assert np.corrcoef(np.argsort(np.argsort(found)), np.argsort(np.argsort(after)))[0, 1] > 0.99


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_loss_and_margin_are_those_of_the_trained_model_and_rank_alike(name):
    case = CONVEX[name]()
    oracle, theta = case.oracle, case.oracle.optimum()
    found = find_mislabels(case.problem).suspicion
    value = problems.MARGINS[type(oracle.loss)][0]
    assert_allclose(found["loss"], oracle.losses(theta), rtol=1e-9)
    assert_allclose(found["margin"], -value(oracle.predict(theta), oracle.y), rtol=1e-9, atol=1e-12)
    assert np.argsort(found["loss"]).tolist() == np.argsort(found["margin"]).tolist()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_confidence_compares_with_what_examples_of_a_label_mostly_get(name):
    case = CONVEX[name]()
    oracle = case.oracle
    outputs = oracle.predict(oracle.optimum())
    chances = softmax(outputs, axis=1) if outputs.shape[1] > 1 else expit(outputs * [-1, 1])
    usual = [chances[oracle.y == label, label].mean() for label in range(chances.shape[1])]
    found = find_mislabels(case.problem)
    for i, label in enumerate(oracle.y):
        excess = chances[i] - usual
        expected = max(np.delete(excess, label)) - excess[label]
        assert found.suspicion["confidence"][i] == pytest.approx(expected, rel=1e-9)
        assert found.probabilities[i] == pytest.approx(chances[i, label], rel=1e-9)


def test_the_random_order_depends_on_the_seed_and_the_ids_alone():
    case = problems.multinomial()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    plain = find_mislabels(case.problem).suspicion["random"]
    shuffled = find_mislabels(problems.rearranged(case, order)).suspicion["random"]
    other = find_mislabels(case.problem, seed=1).suspicion["random"]
    assert np.array_equal(shuffled, plain[order.numpy()])
    assert not np.array_equal(other, plain)
    assert ((plain >= 0) & (plain < 1)).all()


@pytest.mark.parametrize("by", RANKINGS)
def test_the_order_of_the_data_does_not_matter(by):
    case = problems.multinomial()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    found = find_mislabels(problems.rearranged(case, order), by=by)
    assert found.ranking.tolist() == find_mislabels(case.problem, by=by).ranking.tolist()


@pytest.mark.parametrize("name", ["conv", "tokens", "mlp_untrained", "branching"])
def test_networks_have_every_ranking(name):
    found = find_mislabels(ALL[name]().problem)
    assert tuple(found.suspicion) == RANKINGS
    assert all(np.isfinite(values).all() for values in found.suspicion.values())


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize("by", [name for name in RANKINGS if name != "random"])
def test_flipped_labels_of_separable_data_come_first(by):
    problem, is_wrong, _ = blobs()
    found = find_mislabels(problem, by=by, truth=is_wrong)
    assert set(found.ranking[:6]) == set(np.flatnonzero(is_wrong))
    assert found.average_precision[by] == pytest.approx(1)
    assert found.found()[5] == 1


def test_what_is_found_is_counted_along_each_ranking():
    problem, is_wrong, _ = blobs()
    found = find_mislabels(problem, truth=is_wrong)
    for by, values in found.suspicion.items():
        hits = is_wrong[np.argsort(-values, kind="stable")]
        assert_allclose(found.found(by), [hits[: k + 1].sum() / 6 for k in range(80)])
        assert found.average_precision[by] == pytest.approx(
            average_precision_score(is_wrong, values)
        )


def test_suspects_are_the_first_of_the_ranking_with_what_is_known_of_them():
    problem, is_wrong, true = blobs(names=True)
    found = find_mislabels(problem)
    suspects = found.suspects(6)
    assert [suspect.id for suspect in suspects] == found.ranking[:6].tolist()
    for suspect in suspects:
        assert is_wrong[suspect.id]
        assert suspect.answer == true[suspect.id] != suspect.given
        assert suspect.suspicion == found.suspicion[found.by][suspect.id]
        assert suspect.probability == pytest.approx(found.probabilities[suspect.id])
        assert suspect.probability < 0.5
    assert len(found.suspects(1000)) == 80


def test_of_a_hinge_no_probability_is_claimed():
    case = problems.smooth_hinge()
    found = find_mislabels(case.problem)
    assert found.by == "loss"
    assert "left-out loss needs probabilities" in found.reason
    assert set(found.suspicion) == set(RANKINGS) - {"confidence", "left_out_loss"}
    assert found.probabilities is None
    assert found.suspects(1)[0].probability is None
    assert found.units["margin"] == "units of the decision value"


# ------------------------------------------------------------------ which ranking


def test_auto_is_the_left_out_loss_and_says_that_it_was_measured():
    found = find_mislabels(problems.multinomial().problem)
    assert found.by == "left_out_loss"
    assert "measured" in found.reason
    assert find_mislabels(problems.multinomial().problem, by="loss").reason == "asked for"


@pytest.fixture
def expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no direct solve were affordable."""
    for limit in ("EXACT_BYTES", "EXACT_OPERATIONS"):
        monkeypatch.setattr(explanation, limit, 1)


@pytest.mark.usefixtures("expensive")
def test_where_removals_would_take_a_solve_each_auto_is_the_loss_and_says_why():
    problem = problems.multinomial().problem
    found = find_mislabels(problem)
    assert found.by == "loss"
    assert "N solves" in found.reason
    assert "self_influence" not in found.suspicion
    with pytest.raises(BadArgument, match="no ranking 'self_influence' here"):
        find_mislabels(problem, truth=np.arange(60) < 5).found("self_influence")


@pytest.mark.usefixtures("expensive")
@pytest.mark.parametrize("by", ["self_influence", "left_out_loss"])
def test_what_is_asked_for_is_computed_solve_by_solve(by):
    """To first order: conjugate gradients make no Newton step for single removals."""
    problem = problems.multinomial().problem
    exact = find_mislabels(problem, by=by, method=Influence("exact", removal="first_order"))
    found = find_mislabels(problem, by=by)
    assert_allclose(found.suspicion[by], exact.suspicion[by], rtol=1e-4)


def test_without_a_scale_only_the_order_of_self_influence_is_told():
    found = find_mislabels(problems.multinomial().problem, method="graddot")
    assert found.by == "loss"
    assert "left_out_loss" not in found.suspicion
    assert found.units["self_influence"] == "arbitrary"


@dataclass(frozen=True)
class Guess(Method):
    """A method that knows no self-influence."""

    def fit(self, problem: Problem) -> Fitted:
        """Nothing."""

        class Guessed(Fitted):
            def scores(self, queries: object, measurement: object = None) -> None: ...

        return Guessed(problem, {})


def test_a_method_without_self_influence_leaves_the_loss():
    problem = problems.multinomial().problem
    assert find_mislabels(problem, method=Guess()).by == "loss"
    with pytest.raises(Unsupported, match="knows no self-influence"):
        find_mislabels(problem, by="self_influence", method=Guess())


# ------------------------------------------------------------------ the truth


def test_the_truth_may_be_a_mask_labels_or_their_names():
    problem, is_wrong, true = blobs()
    named, _, names = blobs(names=True)
    for one, truth in [
        (problem, is_wrong),
        (problem, true),
        (problem, torch.from_numpy(true)),
        (problem, true.tolist()),
        (named, names),
        (named, true),
    ]:
        assert np.array_equal(find_mislabels(one, truth=truth).is_wrong, is_wrong)


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (np.zeros(79, dtype=bool), "shape"),
        (np.zeros((80, 2), dtype=bool), "shape"),
        (np.zeros(80, dtype=bool), "0 of 80"),
        (np.ones(80, dtype=bool), "80 of 80"),
        (np.full(80, 7), "does not know"),
        (np.full(80, "eggs"), "does not know"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(truth, words):
    with pytest.raises(BadData, match=words):
        find_mislabels(blobs()[0], truth=truth)


def test_a_truth_that_can_be_read_in_two_ways_is_refused():
    problem, _, true = blobs()
    crossed = replace(problem, label_names=("1", "0"))
    with pytest.raises(BadData, match="two ways"):
        find_mislabels(crossed, truth=true)


def test_without_the_truth_nothing_is_counted():
    found = find_mislabels(blobs()[0])
    with pytest.raises(BadArgument, match="not known which labels are wrong"):
        found.found()
    with pytest.raises(BadArgument, match="truth"):
        _ = found.average_precision
    assert not [block for block in found.section().blocks if isinstance(block, Lines)]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["ridge", "mlp", "tied"])
def test_numbers_and_sequences_are_no_labels(name):
    with pytest.raises(Unsupported, match="label") as refused:
        find_mislabels(ALL[name]().problem)
    assert "self_influence" in refused.value.remedy


def test_an_unknown_ranking_is_refused_with_all_names():
    with pytest.raises(UnknownName, match="left_out_loss"):
        find_mislabels(problems.logistic().problem, by="lost")


def test_a_ranking_by_probabilities_is_refused_for_a_hinge():
    with pytest.raises(Unsupported, match="'confidence' has no meaning"):
        find_mislabels(problems.smooth_hinge().problem, by="confidence")


@pytest.mark.parametrize("k", [0, -1])
def test_no_suspects_cannot_be_asked_for(k):
    with pytest.raises(BadArgument, match="k="):
        find_mislabels(problems.logistic().problem).suspects(k)


# ------------------------------------------------------------------ what is shown


def test_the_section_says_what_a_tenth_of_the_work_finds():
    problem, is_wrong, _ = blobs()
    section = find_mislabels(problem, truth=is_wrong).section()
    assert "Looking at the first 8 (10 %) finds 100% of the 6 wrong labels" in section.sentence
    curves, precisions, suspects, gallery = section.blocks
    assert isinstance(curves, Lines)
    for line in curves.series.values():
        assert (line["x"][0], line["y"][0], line["x"][-1], line["y"][-1]) == (0, 0, 1, 1)
    assert isinstance(precisions, Table)
    assert precisions.rows[-1][0] == "random order"
    assert isinstance(suspects, Table)
    assert len(suspects.rows) == 20
    assert isinstance(gallery, Gallery)
    assert "the model says" in gallery.pictures[0][1]


def test_json_holds_every_number():
    problem, is_wrong, _ = blobs()
    found = find_mislabels(problem, truth=is_wrong)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["by"] == "left_out_loss"
    assert told["ranking"] == found.ranking.tolist()
    assert told["is_wrong"] == is_wrong.tolist()
    assert_allclose(told["suspicion"]["loss"], found.suspicion["loss"])
    assert told["average_precision"] == found.average_precision
    assert_allclose(told["found"]["loss"], found.found("loss"))
