"""Commands that ask what would be said if the training data were different."""

from typing import TYPE_CHECKING, Any

import click

from whence.cli.uses import (
    Asked,
    example_option,
    group_option,
    measurement_option,
    method_option,
    position_option,
    query_option,
    retrain_option,
    use,
)
from whence.cli.values import given, one_query, read_id, read_ids, read_label

if TYPE_CHECKING:  # `whence --help` answers without loading torch
    from whence.uses.base import Result

HEADING = "What if the training data were different"


@use(
    "whence remove train.py:problem --query queries.npz --group 7,12,31 --retrain",
    "whence remove train.py:problem --query queries.npz --group @suspects.txt",
    heading=HEADING,
)
@query_option
@group_option
@retrain_option
@measurement_option
@method_option
def remove(asked: Asked, group: str) -> "Result":
    """Without a group of training examples.

    The predicted change of each query's measurement, and with --retrain the actual one.
    """
    from whence.uses.whatif import remove

    ids = read_ids(group, asked.problem)
    return remove(asked.problem, asked.queries, group=ids, **asked.options)


@use(
    "whence upweight train.py:problem --query queries.npz --example 7 --by 10",
    heading=HEADING,
)
@query_option
@click.option("--example", required=True, metavar="IDS", help="One training example or several.")
@click.option(
    "--by",
    type=float,
    required=True,
    help="2 counts it twice, 1 leaves it as it is, 0 removes it.",
)
@retrain_option
@measurement_option
@method_option
def upweight(asked: Asked, example: str, by: float) -> "Result":
    """With training examples that count more, or less."""
    from whence.uses.whatif import upweight

    ids = read_ids(example, asked.problem)
    return upweight(asked.problem, asked.queries, example=ids, by=by, **asked.options)


@use(
    "whence relabel train.py:problem --query queries.npz --example 7 --label spam --retrain",
    heading=HEADING,
)
@query_option
@example_option
@click.option("--label", required=True, help="Name or number of a class; a number of a regression.")
@retrain_option
@measurement_option
@method_option
def relabel(asked: Asked, example: str, label: str) -> "Result":
    """With another label on a training example."""
    from whence.uses.whatif import relabel

    problem = asked.problem
    change = {"example": read_id(example, problem), "label": read_label(label, problem)}
    return relabel(problem, asked.queries, **change, **asked.options)


@use(
    "whence replace train.py:problem --query queries.npz --example 7 --with other.npz",
    heading=HEADING,
)
@query_option
@example_option
@click.option(
    "--with",
    "with_",
    required=True,
    metavar="FILE",
    help="What takes its place: an .npz file with x (and y) of one example, or file.py:name.",
)
@retrain_option
@measurement_option
@method_option
def replace(asked: Asked, example: str, with_: str) -> "Result":
    """With another example in the place of a training example."""
    from whence.cli.references import load_queries
    from whence.uses.whatif import replace

    name, new = read_id(example, asked.problem), load_queries(with_)
    return replace(asked.problem, asked.queries, example=name, with_=new, **asked.options)


@use(
    "whence flip train.py:problem --query queries.npz --position 0",
    heading=HEADING,
)
@query_option
@position_option
@click.option("--most", type=int, help="Examples that may be removed; by default half of them.")
@click.option(
    "--predict-only", is_flag=True, help="Train nothing again: a prediction that nobody checked."
)
@click.option("--seed", type=int, help="Of the trainings.")
@method_option
def flip(
    asked: Asked, position: int | None, most: int | None, predict_only: bool, seed: int | None
) -> "Result":
    """The fewest examples without which the answer changes.

    Trains again to check every size that it tries.
    """
    from whence.uses.flipping import smallest_flip

    query = one_query(asked.queries, position, asked.problem)
    options = given(most=most, seed=seed, retrain=False if predict_only else None)
    return smallest_flip(asked.problem, query, **options, **asked.options)


@use(
    "whence brittleness train.py:problem --query queries.npz",
    heading=HEADING,
)
@query_option
@click.option("--most", type=int, help="Examples that may be removed; by default half of them.")
@click.option(
    "--predict-only", is_flag=True, help="Train nothing again: a prediction that nobody checked."
)
@click.option("--seed", type=int, help="Of the trainings.")
@method_option
def brittleness(asked: Asked, most: int | None, predict_only: bool, seed: int | None) -> "Result":
    """How few training examples hold each prediction."""
    from whence.uses.flipping import brittleness

    options = given(most=most, seed=seed, retrain=False if predict_only else None)
    return brittleness(asked.problem, asked.queries, **options, **asked.options)


@use(
    "whence removal-curve train.py:problem --query queries.npz --position 0",
    heading=HEADING,
)
@query_option
@position_option
@click.option("--k", "ks", type=int, multiple=True, help="Leave out so many; repeat it.")
@click.option("--seeds", type=int, help="How often each set is trained, with other seeds.")
@click.option("--seed", type=int, help="Of the random examples, and the first one of trainings.")
@measurement_option
@method_option
def removal_curve(
    asked: Asked, position: int | None, ks: tuple[int, ...], **options: Any
) -> "Result":
    """A prediction as its strongest examples go.

    Trains again without them, and without as many random ones.
    """
    from whence.explanation import explain
    from whence.uses.ablation import removal_curve

    query = one_query(asked.queries, position, asked.problem)
    scores = explain(asked.problem, query, **asked.options)
    return removal_curve(asked.problem, scores, ks=ks or None, **given(**options))


@use(
    "whence perturb train.py:problem --query queries.npz --example 7",
    heading=HEADING,
)
@query_option
@example_option
@measurement_option
@method_option
def perturb(asked: Asked, example: str) -> "Result":
    """Which numbers of a training example move the queries."""
    from whence.uses.perturbation import perturb

    name = read_id(example, asked.problem)
    return perturb(asked.problem, asked.queries, example=name, **asked.options)


@use(
    "whence tokens train.py:problem --query queries.npz --example 7",
    "whence tokens train.py:problem --query queries.npz --example 7 --by input",
    heading=HEADING,
)
@query_option
@example_option
@click.option(
    "--by", help="loss (by its positions), input (by the tokens that go in) or auto, the default."
)
@measurement_option
@method_option
def tokens(asked: Asked, example: str, by: str | None) -> "Result":
    """Which tokens of a training text carry its effect."""
    from whence.uses.tokens import token_effects

    name = read_id(example, asked.problem)
    options = given(by=by) | asked.options
    return token_effects(asked.problem, asked.queries, example=name, **options)


@use(
    "whence poison train.py:problem --query queries.npz --examples 2 --box 0.5",
    heading=HEADING,
)
@query_option
@click.option("--examples", type=int, metavar="N", help="How many training images may change.")
@click.option("--group", metavar="IDS", help="Which ones, instead: 1,2,3, @file.txt or file.npy.")
@click.option("--step", type=float, help="Of each number in each iteration, in grey levels.")
@click.option("--box", type=float, help="Largest change of a number, in grey levels.")
@click.option("--low", type=float, help="Smallest value of an image.")
@click.option("--high", type=float, help="Largest value of an image.")
@click.option("--together", is_flag=True, help="One attack on all queries, not one on each.")
@click.option("--iterations", type=int, help="Steps at the most.")
@measurement_option
def poison(asked: Asked, examples: int | None, group: str | None, **options: Any) -> "Result":
    """Training images changed until a prediction flips.

    An attack, to see how fragile a model is. A grey level is 1/255 of the distance from --low to
    --high.
    """
    from whence.uses.poisoning import Attack, poison

    if examples is not None and group is not None:
        raise click.UsageError("Give --examples or --group, not both.")
    ends = given(low=options.pop("low"), high=options.pop("high"))
    low, high = Attack.bounds
    target = "together" if options.pop("together") else None
    settings = given(target=target, iterations=options.pop("iterations"))
    named = examples if group is None else read_ids(group, asked.problem)
    return poison(
        asked.problem,
        asked.queries,
        attack=Attack((ends.get("low", low), ends.get("high", high)), **settings),
        **given(examples=named, **options),
        **asked.options,
    )


COMMANDS = (
    remove,
    upweight,
    relabel,
    replace,
    flip,
    brittleness,
    removal_curve,
    perturb,
    tokens,
    poison,
)
