"""The command line: thin commands over the library, each with an example in its help.

Nothing heavy is imported before a command needs it, so that `whence --help` answers at once.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from whence.cli import audits, explore, whatif
from whence.cli.answers import Answer, AnswerCommand, Guide, quiet_option
from whence.cli.values import given, without_pictures
from whence.version import __version__

_path = click.Path(path_type=Path)


@click.group(
    cls=Guide,
    examples=(
        "whence demo                                            a tour, in under a minute",
        "whence explain train.py:problem --query queries.npz    your own model",
        "whence verify runs/why                                 how far to believe it",
        "whence explore runs/why                                look closer, in the browser",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --help, and --json for programs. Exit codes: 0 done, 1 refused "
    "with a reason, 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, prog_name="whence")
def main() -> None:
    """Which training examples made the model say that?

    whence traces a prediction back to the training data, in the unit of the prediction, and
    checks itself by training again.

    A PROBLEM is written file.py:name, and names what whence.make_problem(model, data, ...)
    returned, or a function that returns it. QUERIES are an .npz file with the arrays x and y, or
    file.py:name again.
    """
    # Idle threads wait instead of spinning: where other programs run, the tour takes a third of the
    # time. Read when numerical libraries are first loaded, which is after this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "−" shows "?", no error


@main.command(cls=AnswerCommand, examples=("whence demo",))
@click.option(
    "--out",
    type=_path,
    metavar="FOLDER",
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.option("--examples", type=click.IntRange(min=2), help="Retrainings that verify it.")
@quiet_option
def demo(out: Path, examples: int | None) -> Answer:
    """A tour on handwritten digits, from training to report."""
    from whence import demo as tour
    from whence.cli import tables

    story = tour.run(out, **given(examples=examples))
    return _explained(story, tables.overview, out)


@main.command(
    cls=AnswerCommand,
    examples=(
        "whence explain train.py:problem --query queries.npz",
        "whence explain train.py:problem --query train.py:queries --verify 32 --out runs/why",
    ),
)
@click.argument("problem")
@click.option(
    "--query",
    "queries",
    required=True,
    metavar="QUERIES",
    help="What to explain: an .npz file with x and y, or file.py:name.",
)
@click.option("--measurement", help="margin, loss, logit, log_prob or prediction.")
@click.option("--method", help="A name from `whence methods`; by default the best affordable one.")
@click.option(
    "--top", type=click.IntRange(min=1), help="Proponents and opponents to show for each query."
)
@click.option(
    "--verify",
    "examples",
    type=click.IntRange(min=2),
    metavar="N",
    help="Also train again N times without some examples: on random halves where the problem has a "
    "Training, else without one example at a time.",
)
@click.option(
    "--out", type=_path, metavar="FOLDER", help="Write a run folder with scores, story and report."
)
@click.option("--show", is_flag=True, help="Show pictures and bars in the terminal.")
@quiet_option
def explain(
    problem: str,
    queries: str,
    measurement: str | None,
    method: str | None,
    top: int | None,
    examples: int | None,
    out: Path | None,
    show: bool,
) -> Answer:
    """Effect of removing each training example on each query."""
    import whence
    from whence.cli import showing, tables
    from whence.cli.references import absolute, load_problem, load_queries
    from whence.report import tell
    from whence.report.album import make_album
    from whence.report.runs import save_run
    from whence.verification import verify_some

    trained = load_problem(problem)
    asked = load_queries(queries)
    scores = whence.explain(trained, asked, **given(measurement=measurement, method=method))
    checked = None if examples is None else verify_some(trained, scores, examples)
    scores = scores if checked is None else checked.scores
    story = tell(trained, scores, verification=checked, **given(top=top))
    if out is not None:
        album = make_album(trained, scores)
        save_run(out, scores, story, album=album, problem=absolute(problem))
    return _explained(story, showing.queries if show else tables.explanation, out)


@main.command(
    cls=AnswerCommand,
    examples=(
        "whence verify runs/why --examples 50",
        "whence verify runs/why --subsets 64 --fraction 0.5 --seeds 2",
    ),
)
@click.argument("run", type=_path)
@click.option("--problem", help="Where the problem is now, if not where the run says.")
@click.option(
    "--examples",
    type=click.IntRange(min=2),
    help="How many training examples to leave out, one at a time.",
)
@click.option("--target", help="loo, subset or pbrf (proximal Bregman response function).")
@click.option("--subsets", type=int, help="Train on so many random subsets instead.")
@click.option("--fraction", type=float, help="Share of the data that every subset keeps.")
@click.option("--seeds", type=int, help="How often each removal is trained, with other seeds.")
@click.option("--damping", type=float, help="Of the proximal Bregman objective.")
@click.option("--seed", type=int, help="Of the choice of what is left out, and the first one.")
@quiet_option
def verify(run: Path, problem: str | None, **options: Any) -> Answer:
    """Train again, and compare with what was predicted.

    Some training examples are left out, one at a time, or random subsets are trained on. The
    verdict is written into the scores, the story and the report of the run.
    """
    import whence
    from whence.cli import tables
    from whence.cli.references import absolute, load_problem
    from whence.report import tell, with_sections
    from whence.report.album import make_album
    from whence.report.runs import SCORES, STORY, open_run, problem_of, save_run

    opened = open_run(run)
    old = opened.read_json(STORY)
    scores = whence.Scores.load(opened.path(SCORES))
    reference = absolute(problem) if problem else problem_of(opened)
    trained = load_problem(reference)
    checked = whence.verify(trained, scores, **given(**options))
    top = max(len(query[side]) for query in old["queries"] for side in ("proponents", "opponents"))
    story = tell(trained, checked.scores, verification=checked, top=max(top, 1), title=old["title"])
    story = with_sections(story, old.get("sections", ()))
    album = make_album(trained, checked.scores)
    save_run(run, checked.scores, story, album=album, problem=reference)
    return _explained(story, tables.verification, run)


@main.command(cls=AnswerCommand, examples=("whence report runs/why --out why.html",))
@click.argument("run", type=_path)
@click.option(
    "--out",
    type=_path,
    metavar="FILE",
    help="The file to write; by default report.html in the run.",
)
@quiet_option
def report(run: Path, out: Path | None) -> Answer:
    """Draw the report of a run again, as one HTML file."""
    from whence.report import render
    from whence.report.runs import EXPLANATION, STORY, USE, open_run, retell
    from whence.store import write_atomically

    opened = open_run(run, kinds=(EXPLANATION, USE))
    story = opened.read_json(STORY)
    if out is None:
        out = retell(opened, story)
    else:
        write_atomically(out, render(story).encode("utf-8"))
    return Answer({"report": str(out)}, path=out)


@main.command(
    cls=AnswerCommand, examples=("whence preflight train.py:problem --query queries.npz",)
)
@click.argument("problem")
@click.option(
    "--query",
    "queries",
    metavar="QUERIES",
    help="What would be explained: an .npz file with x and y, or file.py:name.",
)
@click.option("--measurement", help="margin, loss, logit, log_prob or prediction.")
@click.option("--method", help="A name from `whence methods`; by default the best affordable one.")
def preflight(
    problem: str, queries: str | None, measurement: str | None, method: str | None
) -> Answer:
    """What an explanation will take, before any cost.

    The method and why, memory, disk, time, and which parameters are covered.
    """
    import whence
    from whence.cli import tables
    from whence.cli.references import load_problem, load_queries

    trained = load_problem(problem)
    asked = None if queries is None else load_queries(queries)
    plan = whence.preflight(trained, asked, **given(measurement=measurement, method=method))
    return Answer(plan.to_json(), [tables.facts(plan.rows())])


@main.command(cls=AnswerCommand, examples=("whence methods",))
def methods() -> Answer:
    """The names that --method takes."""
    from whence.cli import tables
    from whence.methods import make_method, names

    described = [("auto", "The most faithful method that is affordable; says which, and why.")]
    described += [(name, _first_line(make_method(name))) for name in names()]
    document = [{"name": name, "description": words} for name, words in described]
    return Answer(document, [tables.listing(described, "name", "what it is")])


def _first_line(method: object) -> str:
    """Of the recipe's documentation; influence is told by its curvature."""
    return (inspect.getdoc(getattr(method, "curvature", method)) or "").splitlines()[0]


def _explained(
    story: dict[str, Any], show: Callable[[Any], Iterable[Any]], out: Path | None
) -> Answer:
    """A story, and where it was written; programs get it without the pictures."""
    from whence.report.texts import for_terminal

    run, page = (None, None) if out is None else (str(out), str(out / "report.html"))
    document = {**without_pictures(story), "run": run, "report": page}
    shown = [*show(for_terminal(story))]
    if run is not None:
        shown += ["", f"To look closer: whence explore {run}"]
    return Answer(document, shown, page)


for _command in (explore.explore, *whatif.COMMANDS, *audits.COMMANDS):
    main.add_command(_command)
