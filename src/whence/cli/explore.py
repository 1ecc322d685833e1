"""`whence explore`: a run, or a problem that is explained first, as pages in the browser."""

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from whence.cli.answers import Answer, AnswerCommand
from whence.cli.references import absolute, load_problem, load_queries

if TYPE_CHECKING:  # the first view does not wait for torch
    from whence.core.problem import Problem

WORST = 50
"""Training examples that are explained where no queries are given: those with the largest loss."""


@click.command(
    cls=AnswerCommand,
    examples=(
        "whence explore runs/why",
        "whence explore runs/cg runs/ekfac                      two runs of the same queries",
        "whence explore train.py:problem --query queries.npz    explains first",
    ),
)
@click.argument("run")
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--problem", help="Where the problem is now, if not where the run says.")
@click.option(
    "--query",
    "queries",
    metavar="QUERIES",
    help="What to explain, if RUN is a problem; by default the training examples with the largest "
    "loss.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the run that is made, if RUN is a problem; by default runs/explore.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="0 = any; by default 8765 if free.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def explore(
    run: str,
    other: Path | None,
    problem: str | None,
    queries: str | None,
    out: Path | None,
    port: int | None,
    no_browser: bool,
) -> Answer:
    """Look at a run in the browser, ask what if, review labels.

    RUN is the folder of a run, or a problem as in file.py:name, which is then explained first. The
    address that is printed works on this machine only. Ctrl-C ends it; nothing is lost.
    """
    from whence.explorer.catalog import Catalog
    from whence.explorer.server import listen
    from whence.explorer.views import Session

    folder, load = _opened(run, problem, queries, out)
    catalog = Catalog.open(folder)
    beside = None if other is None else Catalog.open(other)
    session = Session.open(catalog, load or _loader(catalog.run.problem), beside)
    server = listen(session, port)

    def serve() -> None:
        if not no_browser:
            webbrowser.open(server.address)
        server.run()

    told = [f"Exploring {folder}; Ctrl-C ends it.", server.address]
    document = {"address": server.address, "port": server.port, "token": server.token}
    return Answer(document | {"run": str(folder)}, told, then=serve)


def _opened(
    run: str, problem: str | None, queries: str | None, out: Path | None
) -> "tuple[Path, Callable[[], Problem] | None]":
    """The folder of a run, made first where a problem was named, and how its problem is loaded."""
    is_problem = ":" in run and not Path(run).exists()
    if not is_problem:
        if queries is not None or out is not None:
            raise click.UsageError("--query and --out belong to a problem; RUN is a folder.")
        return Path(run), _loader(problem)
    if problem is not None:
        raise click.UsageError("RUN is a problem already; leave --problem out.")
    folder = out or Path("runs/explore")
    trained = load_problem(run)
    _explain(trained, queries, folder, absolute(run))
    return folder, lambda: trained


def _explain(trained: "Problem", queries: str | None, folder: Path, reference: str) -> None:
    from whence.explanation import explain
    from whence.report import tell
    from whence.report.album import make_album
    from whence.report.runs import save_run

    asked = _worst(trained) if queries is None else load_queries(queries)
    scores = explain(trained, asked)
    story, album = tell(trained, scores), make_album(trained, scores)
    save_run(folder, scores, story, album=album, problem=reference)


def _worst(trained: "Problem") -> Any:
    """The training examples with the largest loss, as queries under their own ids."""
    import torch

    from whence.core.problem import Queries

    with torch.no_grad():
        losses = torch.cat([trained.losses(trained.parameters, b) for b in trained.batches()])
    worst = losses.argsort(descending=True)[:WORST].cpu()
    batch = trained.batch(worst)
    displays = tuple(trained.show(int(position)) for position in worst)
    ids, targets = trained.data.ids[worst.numpy()], cast("torch.Tensor", batch.targets)
    return Queries(batch.inputs, targets, ids, are_labelled=True, displays=displays)


def _loader(reference: str | None) -> "Callable[[], Problem] | None":
    return None if reference is None else lambda: load_problem(reference)
