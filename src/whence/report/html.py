"""A story as one HTML page that needs nothing else: no network, no library, no second file.

The page carries a content security policy that forbids it to load anything, and names its own
style and script by their hashes; a training text that looks like a script stays text.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whence.errors import WrongVersion
from whence.report import charts, sentences
from whence.report.story import FORMAT, VERSION, tell
from whence.store import write_atomically

if TYPE_CHECKING:  # a story is read and shown on machines without torch
    from whence.core.problem import Problem
    from whence.core.scores import Scores
    from whence.verification import Verification

OPEN_QUERIES = 12
"""A page with more queries than this folds each of them, and draws no histograms."""


def write_report(
    problem: "Problem",
    scores: "Scores",
    path: str | Path,
    *,
    verification: "Verification | None" = None,
    queries: Sequence[int] | None = None,
    top: int = 6,
    title: str | None = None,
) -> Path:
    """Writes the report of some scores as one HTML file.

    Args:
        problem: what was explained; shows the examples.
        scores: (Q, N) effects.
        path: of the file; one that exists is replaced.
        verification: what retraining said of these scores.
        queries: positions of the queries to tell of, default all.
        top: how many proponents and opponents of each query are shown.
        title: of the page.

    Returns:
        The path.

    Raises:
        WhenceError: what `tell` refuses, or a file that cannot be written.
    """
    story = tell(problem, scores, verification=verification, queries=queries, top=top, title=title)
    path = Path(path)
    write_atomically(path, render(story).encode("utf-8"))
    return path


def render(story: Mapping[str, Any]) -> str:
    """The page of a story.

    Args:
        story: from `tell`.

    Raises:
        WrongVersion: not a story, or one in a format that this version does not read.
    """
    if (story.get("format"), story.get("version")) != (FORMAT, VERSION):
        raise WrongVersion(
            found=f"format {story.get('format')!r}, version {story.get('version')!r}.",
            why=f"This version of whence shows {FORMAT!r}, version {VERSION}.",
            remedy="Tell the story anew with whence.report.tell(problem, scores).",
        )
    style, script = _static("style.css"), _static("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            story=story,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            is_folded=len(story["queries"]) > OPEN_QUERIES,
            sides=sentences.sides(story["measurement"]),
            count=sentences.count,
            scatter=charts.scatter,
            distribution=charts.distribution,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("whence.report", "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": sentences.number,
        "cell": sentences.cell,
        "signed": sentences.signed,
        "percent": sentences.percent,
        "words": sentences.measurement_words,
        "capitalize_first": sentences.capitalized,
    }
    return environment


def _static(name: str) -> str:
    return files("whence.report").joinpath("static", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded; only this very style and script, and pictures inside the page."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode('utf-8')).digest()).decode('ascii')}'"
