"""Commands that look into the training data and the model behind some predictions."""

from typing import TYPE_CHECKING, Any

import click

from whence.cli.uses import (
    Asked,
    measurement_option,
    method_option,
    position_option,
    query_option,
    use,
)
from whence.cli.values import given, read_array, read_groups

if TYPE_CHECKING:  # `whence --help` answers without loading torch
    from whence.uses.base import Result

HEADING = "Look into data and model"


@use(
    "whence mislabels train.py:problem",
    "whence mislabels train.py:problem --by loss --out runs/mislabels",
    heading=HEADING,
)
@click.option("--by", help="self_influence, left_out_loss, loss, margin, confidence or random.")
@click.option(
    "--truth",
    metavar="FILE",
    help="An .npy file with the true labels, or true where a label is wrong: how much is found?",
)
@click.option("--seed", type=int, help="Of the random order.")
@method_option
def mislabels(asked: Asked, by: str | None, truth: str | None, seed: int | None) -> "Result":
    """Labels to review first, because they may be wrong."""
    from whence.uses.mislabels import find_mislabels

    known = None if truth is None else read_array(truth)
    options = given(by=by, truth=known, seed=seed)
    return find_mislabels(asked.problem, **options, **asked.options)


@use(
    "whence mismatch train.py:problem --query errors.npz --groups hospital.npy",
    "whence mismatch train.py:problem --query errors.npz --groups train.py:groups",
    heading=HEADING,
)
@query_option
@click.option(
    "--groups",
    required=True,
    help="An .npy file with a label for each training example, a .json file with ids by name of "
    "the group, file.py:name, or the name of a column.",
)
@click.option(
    "--strongest", type=int, metavar="N", help="Single training examples that are described."
)
@measurement_option
@method_option
def mismatch(asked: Asked, groups: str, strongest: int | None) -> "Result":
    """Groups of training data that drive some predictions."""
    from whence.uses.mismatch import find_mismatch

    options = given(groups=read_groups(groups), strongest=strongest)
    return find_mismatch(asked.problem, asked.queries, **options, **asked.options)


@use(
    "whence compare first.py:problem second.py:problem --query queries.npz",
    heading=HEADING,
)
@click.argument("other")
@query_option
@click.option("--query-other", metavar="QUERIES", help="The same queries as OTHER takes them.")
@click.option("--top", "k", type=int, metavar="K", help="Strongest proponents that are compared.")
@measurement_option
@method_option
def compare(asked: Asked, query_other: str | None, k: int | None) -> "Result":
    """How PROBLEM and OTHER use the same training data.

    Both were trained on the same examples, under the same ids and labels.
    """
    from whence.cli.references import load_queries
    from whence.uses.comparison import Views, compare

    views = Views(None if query_other is None else load_queries(query_other))
    options = given(k=k) | asked.options
    return compare(asked.problem, asked.other, asked.queries, views=views, **options)


@use(
    "whence compare-methods train.py:problem --query queries.npz --method ekfac --method magic",
    heading=HEADING,
)
@query_option
@click.option(
    "--method", "methods", multiple=True, help="One to try; repeat it. Baselines are added."
)
@click.option("--subsets", type=int, help="How many random subsets to train on.")
@click.option("--fraction", type=float, help="Share of the data that every subset keeps.")
@click.option("--seeds", type=int, help="How often each subset is trained, with other seeds.")
@click.option("--seed", type=int, help="Of the draw of subsets, and the first one of trainings.")
@measurement_option
def compare_methods(asked: Asked, methods: tuple[str, ...], **options: Any) -> "Result":
    """How well methods predict retraining, and at what cost.

    Models are trained on random subsets of the data, once for all methods.
    """
    from whence.uses.method_comparison import compare_methods

    tried = methods or ("auto",)
    return compare_methods(asked.problem, asked.queries, tried, **given(**options), **asked.options)


@use(
    "whence components train.py:problem --query queries.npz",
    heading=HEADING,
)
@query_option
@measurement_option
@method_option
def components(asked: Asked) -> "Result":
    """What train loss and curvature contribute to the effects."""
    from whence.uses.components import components

    return components(asked.problem, asked.queries, **asked.options)


@use(
    "whence damping train.py:problem --query queries.npz",
    "whence damping train.py:problem --query queries.npz --damping 1e-4 --damping 1e-2",
    heading=HEADING,
)
@query_option
@click.option(
    "--damping", "dampings", type=float, multiple=True, help="Look at this one; may be repeated."
)
@measurement_option
@method_option
def damping(asked: Asked, dampings: tuple[float, ...]) -> "Result":
    """How much the effects depend on the damping, from one fit.

    By default a hundredth to a hundred times the damping of the method, which is ekfac.
    """
    from whence.uses.damping import scan_damping

    return scan_damping(asked.problem, asked.queries, dampings or None, **asked.options)


@use(
    "whence schools train.py:problem --query queries.npz --position 0",
    heading=HEADING,
)
@query_option
@position_option
@click.option("--regions", type=int, help="LIME cuts a picture into so many cells a side.")
@click.option("--baseline", help="What the query is compared with: auto, zero or mean.")
@click.option("--seed", type=int, help="Of the inputs that LIME tries.")
@click.option("--no-captum", is_flag=True, help="Only the most activating training examples.")
@measurement_option
def schools(asked: Asked, no_captum: bool, **options: Any) -> "Result":
    """Other schools of explanation for the same prediction.

    The region that mattered, a simpler local model, the most activating training examples.
    """
    from whence.uses.schools import other_schools

    if no_captum and options["regions"] is not None:
        raise click.UsageError("Give --regions or --no-captum, not both.")
    looks = {"regions": None} if no_captum else {}
    return other_schools(asked.problem, asked.queries, **given(**options), **looks, **asked.options)


COMMANDS = (mislabels, mismatch, compare, compare_methods, components, damping, schools)
