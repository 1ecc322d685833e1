"""The frame of the commands that ask one use of the library.

Each of them loads a problem (and queries), calls one function and shows the section that it
returned; `--out` writes a run of its own, `--add-to` adds the section to the report of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whence.cli.answers import Answer, AnswerCommand, quiet
from whence.cli.references import absolute, load_problem, load_queries
from whence.cli.values import given

if TYPE_CHECKING:  # `whence --help` answers without loading torch
    from whence.core.problem import Problem
    from whence.store import Run
    from whence.uses.base import Result


@dataclass(frozen=True)
class Asked:
    """What every command is given.

    Args:
        problem: what was trained.
        queries: in the form that `Problem.queries` takes; None where the command has none.
        other: a second problem; None where the command has none.
        options: `measurement`, `method` and `retrain`, where they were written.
    """

    problem: "Problem"
    queries: Any
    other: Any
    options: dict[str, Any]


Callback = Callable[..., "Result"]
"""Takes an `Asked` and the command's own options, and calls the library."""


def use(*examples: str, heading: str) -> Callable[[Callback], click.Command]:
    """Makes a command of a function that takes an `Asked` and returns what a use has found.

    Args:
        examples: lines for the end of the help.
        heading: under which the command stands in the list of all.
    """

    def make(callback: Callback) -> click.Command:
        @wraps(callback)
        def run(**words: Any) -> Answer:
            return _answer(callback, words)

        name = callback.__name__.rstrip("_").replace("_", "-")
        options: Any = {"cls": AnswerCommand, "examples": examples, "heading": heading}
        command = click.command(name, **options)(click.argument("problem")(run))
        command.params[-1:-1] = _places()  # before --json
        return command

    return make


def _places() -> list[click.Parameter]:
    """Where a result may be written."""
    path = click.Path(path_type=Path)
    told = "Write a run folder with numbers and report."
    added = "Add it to the report of this run of explain."
    return [
        click.Option(["--out"], type=path, metavar="FOLDER", help=told),
        click.Option(["--add-to"], type=path, metavar="RUN", help=added),
        quiet(),
    ]


query_option = click.option(
    "--query",
    "queries",
    required=True,
    metavar="QUERIES",
    help="An .npz file with x and y, or file.py:name.",
)

measurement_option = click.option(
    "--measurement", help="margin, loss, logit, log_prob, prediction or contrast:A:B."
)

method_option = click.option(
    "--method", help="A name from `whence methods`; by default the best affordable one."
)

retrain_option = click.option(
    "--retrain", is_flag=True, default=None, help="Also train again, for the actual effects."
)

group_option = click.option(
    "--group",
    required=True,
    metavar="IDS",
    help="Training examples: 1,2,3, or @file.txt with an id a line, or file.npy.",
)

example_option = click.option(
    "--example", required=True, metavar="ID", help="The training example."
)

position_option = click.option(
    "--position",
    type=click.IntRange(min=0),
    metavar="N",
    help="Which query, counted from 0, where there are several.",
)


def _answer(callback: Callback, words: dict[str, Any]) -> Answer:
    """Loads, asks, writes what was to be written, and shows the section."""
    from whence.cli.sections import draw_section

    reference, out, add_to = (words.pop(name) for name in ("problem", "out", "add_to"))
    if out is not None and add_to is not None:
        raise click.UsageError("Give --out or --add-to, not both.")
    problem = load_problem(reference)
    run = None if add_to is None else _open(add_to, problem)
    queries, other = words.pop("queries", None), words.pop("other", None)
    names = ("measurement", "method", "retrain")
    asked = Asked(
        problem,
        queries=None if queries is None else load_queries(queries),
        other=None if other is None else load_problem(other),
        options=given(**{name: words.pop(name, None) for name in names}),
    )
    result = callback(asked, **words)
    page = _keep(result, run or out, asked, absolute(reference))
    folder = out or add_to
    document = {
        **result.to_json(),
        "run": None if folder is None else str(folder),
        "page": None if page is None else str(page),
    }
    return Answer(document, tuple(draw_section(result.section().to_json())), page)


def _open(folder: Path, problem: "Problem") -> "Run":
    """The run of an explanation of this very problem; refused before anything is computed."""
    from whence.core.scores import Scores
    from whence.report.runs import SCORES, open_run

    run = open_run(folder)
    Scores.load(run.path(SCORES)).refuse_other(
        problem.fingerprint(), why="One report would speak of two problems."
    )
    return run


def _keep(
    result: "Result", place: "Run | Path | None", asked: Asked, reference: str
) -> Path | None:
    """Writes a run of its own into a folder, or a section into a run; the path of the page."""
    from whence.report import tell_sections, with_sections
    from whence.report.runs import STORY, retell, save_use

    if place is None:
        return None
    if isinstance(place, Path):
        problems = [problem for problem in (asked.problem, asked.other) if problem is not None]
        story = tell_sections([result], problems=problems)
        return save_use(place, result.to_json(), story, problem=reference)
    return retell(place, with_sections(place.read_json(STORY), [result]))
