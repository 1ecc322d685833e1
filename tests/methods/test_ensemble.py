"""Ensembles against exact effects, and against their members one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import problems
from oracles import slope_through_origin
from problems import Case
from whence.calculus.optimizers import SGD
from whence.calculus.training import Training
from whence.core.problem import Problem
from whence.core.training import Retrained, Trainer
from whence.errors import BadArgument, CannotRetrain, Unsupported
from whence.methods.ensemble import (
    FIRST_SEED,
    Ensemble,
    Members,
    subsets,
    warnings_of_members,
)
from whence.methods.gradcos import GradCos
from whence.methods.influence import Influence
from whence.methods.magic import MAGIC
from whence.numerics import draws
from whence.numerics.stats import pearson


class ToTheOptimum(Trainer):
    """The optimum of a linear problem with example weights, from its reference in numpy."""

    def __init__(self, case: Case) -> None:
        self.oracle = case.oracle

    name = "optimum"
    is_deterministic = True

    def retrain(self, problem: Problem, weights: torch.Tensor, *, seed: int = 0) -> Retrained:
        del problem, seed
        rows = [self.oracle.flat(self.oracle.optimum(row.double().numpy())) for row in weights]
        return Retrained(torch.from_numpy(np.stack(rows)), {"training": self.name})


def solvable(case: Case) -> Problem:
    return replace(case.problem, training=ToTheOptimum(case))


def network(seed: int = 0) -> Case:
    """A small network and how it is trained."""
    case = problems.mlp_untrained()
    training = Training(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(),
        SGD(momentum=0.9),
        lr=0.05,
        epochs=4,
        batch_size=10,
        seed=seed,
    )
    return Case(replace(case.problem, training=training), case.queries)


# ------------------------------------------------------------------ the scale


@pytest.mark.parametrize("convention", ["fixed N", "renormalized"])
def test_the_mean_over_subsets_is_the_effect_of_one_removal_from_all_examples(convention):
    """One of 60 members would be off by its own chance; a missing factor n/N by two."""
    case = problems.multinomial()
    case = case.renormalized() if convention == "renormalized" else case
    exact = Influence("exact", removal="first_order").fit(case.problem).scores(case.queries)
    recipe = Ensemble(Influence("exact", removal="first_order"), subsets=60, fraction=0.8)
    found = recipe.fit(solvable(case)).scores(case.queries)
    assert pearson(found.values.ravel(), exact.values.ravel()) > 0.99
    assert abs(slope_through_origin(exact.values.ravel(), found.values.ravel()) - 1) < 0.1


def test_members_on_all_data_of_a_convex_problem_are_the_method_itself():
    case = problems.multinomial()
    exact = Influence("exact").fit(case.problem).scores(case.queries)
    found = Ensemble("exact", seeds=3).fit(solvable(case)).scores(case.queries)
    assert_allclose(found.values, exact.values, rtol=1e-6, atol=1e-9)
    assert_allclose(found.errors, 0, atol=1e-12)
    assert found.report["rank_stability"] == 1


def test_the_standard_error_says_how_far_another_ensemble_is():
    """Twenty ensembles scatter around their mean as far as each says of itself, within a fifth."""
    case = problems.multinomial()
    problem = solvable(case)
    runs = [
        Ensemble("exact", subsets=8, fraction=0.75, seed=seed).fit(problem).scores(case.queries)
        for seed in range(20)
    ]
    scatter = np.stack([run.values for run in runs]).std(0, ddof=1)
    told = np.sqrt(np.mean([run.errors**2 for run in runs], axis=0))
    assert abs(np.sqrt((scatter**2).mean() / (told**2).mean()) - 1) < 0.2


# ------------------------------------------------------------------ members


@pytest.mark.parametrize("scored_by", ["all", "seen"])
def test_scores_are_the_mean_of_members_fitted_by_hand(scored_by):
    case = network()
    problem = case.problem
    recipe = Ensemble("graddot", subsets=4, scored_by=scored_by)
    fitted = recipe.fit(problem)
    inside = subsets(draws.keys(problem.data.ids), 4, 15, seed=0)
    rows = []
    for place, row in enumerate(inside):
        trained = problem.retrain(row.double(), seed=FIRST_SEED + place).parameters[0]
        scores = Influence("identity").fit(problem.at(trained)).scores(case.queries)
        rows.append(scores.values)
    share = inside.numpy() if scored_by == "seen" else np.ones_like(inside)
    expected = (np.stack(rows) * share[:, None]).sum(0) / share.sum(0)
    found = fitted.scores(case.queries)
    assert_allclose(found.values, expected, rtol=1e-10, atol=1e-15)
    assert found.unit == "arbitrary"


def test_halves_come_in_pairs_that_share_no_example():
    inside = subsets(draws.keys(np.arange(10)), 6, 5, seed=3)
    assert (inside[::2] ^ inside[1::2]).all()
    assert len(inside.unique(dim=0)) == 6
    assert subsets(draws.keys(np.arange(10)), 5, 8, seed=3).sum(1).tolist() == [8] * 5


def test_members_keep_data_and_regulariser_in_proportion_and_know_their_training():
    case = network(seed=3)
    fitted = Ensemble(subsets=2).fit(case.problem)
    members = list(fitted.members)
    assert [member.weights.sum().item() for member in members] == [30, 30]
    assert set(members[0].weights.tolist()) == {0.0, 2.0}
    again = members[1].training.retrain(case.problem, fitted.members.inside[1:2].double())
    assert_allclose(again.parameters[0].numpy(), members[1].parameters.numpy(), rtol=1e-9)


def test_examples_keep_their_base_weights():
    case = problems.class_weighted()
    training = Training(case.problem.model, "sgd", lr=0.1, epochs=1, batch_size=16)
    problem = replace(case.problem, training=training)
    found = Ensemble("gradcos", seeds=2).fit(problem).scores(case.queries)
    assert not found.values[:, 3].any()
    members = Members(problem, problem.parameters[None], torch.ones(1, 50, dtype=bool), (1,))
    assert torch.equal(next(iter(members)).weights, problem.weights)


def test_a_recipe_can_be_held_by_name_or_as_it_is():
    case = network()
    by_name, own = (
        Ensemble(method, seeds=2).fit(case.problem).scores(case.queries)
        for method in ("gradcos", GradCos())
    )
    assert np.array_equal(by_name.values, own.values)
    assert by_name.report["member_method"] == "gradcos"


@pytest.mark.parametrize("method", ["tracin", "source"])
def test_a_method_that_follows_the_training_sees_the_run_that_led_to_its_member(method):
    fitted = Ensemble(method, subsets=2).fit(network(seed=3).problem)
    for member, theta in zip(fitted.members, fitted.members.parameters, strict=True):
        assert_allclose(member.retrain().parameters[0].numpy(), theta.numpy(), rtol=1e-9)
    assert fitted.scores(network().queries).values.any()


def test_exact_derivatives_are_averaged_over_seeds():
    case = network()
    found = Ensemble(MAGIC(directions=0), seeds=2).fit(case.problem).scores(case.queries)
    rows = []
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        training = replace(case.problem.training, seed=seed)
        one = replace(case.problem, training=training)
        one = one.at(one.retrain().parameters[0])
        rows.append(MAGIC(directions=0).fit(one).scores(case.queries).values)
    assert_allclose(found.values, np.mean(rows, axis=0), rtol=1e-8, atol=1e-12)
    with pytest.raises(Unsupported, match="MAGIC"):
        Ensemble("magic", subsets=2).fit(case.problem)


def test_what_members_warn_of_is_told_once_with_their_number():
    case = network()
    told = Ensemble("exact", seeds=3).fit(case.problem).scores(case.queries).report["warnings"]
    far = [text for text in told if "not at an optimum" in text]
    assert len(far) == 1
    assert far[0].startswith("3 of 3 members: The model is not at an optimum")


def test_warnings_that_differ_in_their_numbers_are_of_one_kind():
    reports = [
        {"warnings": ["A norm of 1,024.5.", "Of the problem."]},
        {"warnings": ["Of the problem."]},
        {"warnings": ["Small.", "A norm of 3.1e-05.", "A norm of 7."]},
    ]
    assert warnings_of_members(reports, known=("Of the problem.",)) == [
        "2 of 3 members: A norm of 1,024.5.",
        "1 of 3 members: Small.",
    ]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 3, "subsets": 3},
        {"seeds": 1},
        {"fraction": 0.0},
        {"fraction": 1.0},
        {"scored_by": "none"},
        {"scored_by": "seen", "subsets": 2},
    ],
)
def test_impossible_ensembles_are_refused(options):
    with pytest.raises(BadArgument):
        Ensemble(**options).fit(network().problem)


def test_a_problem_without_training_is_told_to_bring_one():
    with pytest.raises(CannotRetrain, match="training="):
        Ensemble(seeds=2).fit(problems.multinomial().problem)
