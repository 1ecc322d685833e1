"""A story as one HTML page that needs nothing else: no network, no library, no second file.

The page carries a content security policy that forbids it to load anything, and names its own
style and script by their hashes; a training text that looks like a script stays text.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whence.errors import WrongVersion
from whence.report import blocks, charts, sentences
from whence.report.highlights import MOST_TOKENS, highlights
from whence.report.story import FORMAT, READ, tell, tell_sections
from whence.report.texts import for_page, in_common
from whence.store import write_atomically

if TYPE_CHECKING:  # a story is read and shown on machines without torch
    from whence.core.problem import Problem
    from whence.core.scores import Scores
    from whence.report.story import Told
    from whence.verification import Verification

OPEN_QUERIES = 12
"""A page with more queries than this folds each of them, and draws no histograms."""


class Options(TypedDict, total=False):
    """What `tell` takes besides a problem and its scores."""

    verification: "Verification | None"
    queries: Sequence[int] | None
    top: int
    title: str | None
    sections: "Sequence[Told]"


def write_report(
    problem: "Problem", scores: "Scores", path: str | Path, **options: Unpack[Options]
) -> Path:
    """Writes the report of some scores as one HTML file.

        whence.write_report(problem, scores, "why.html", verification=check, sections=[removed])

    Args:
        problem: what was explained; shows the examples.
        scores: (Q, N) effects.
        path: of the file; one that exists is replaced.
        options: `verification`, what retraining said of these scores; `queries`, positions of the
            queries to tell of, default all; `top`, how many proponents and opponents of each query
            are shown, default 6; `title` of the page; `sections`, what `remove` and the other uses
            returned.

    Returns:
        The path.

    Raises:
        WhenceError: what `tell` refuses, or a file that cannot be written.
    """
    return _write(tell(problem, scores, **options), path)


def write_sections(
    sections: "Sequence[Told]",
    path: str | Path,
    *,
    problems: "Sequence[Problem]" = (),
    title: str | None = None,
) -> Path:
    """Writes what one or several uses have found as one HTML file.

    Args:
        sections: what `remove`, `perturb` and the other uses returned.
        path: of the file; one that exists is replaced.
        problems: what they were asked about.
        title: of the page; by default that of the section, or how many there are.

    Returns:
        The path.

    Raises:
        WhenceError: what `tell_sections` refuses, or a file that cannot be written.
    """
    return _write(tell_sections(sections, problems=problems, title=title), path)


def render(story: Mapping[str, Any]) -> str:
    """The page of a story.

    Args:
        story: from `tell` or `tell_sections`.

    Raises:
        WrongVersion: not a story, or one in a format that this version does not read.
    """
    if story.get("format") != FORMAT or story.get("version") not in READ:
        raise WrongVersion(
            found=f"format {story.get('format')!r}, version {story.get('version')!r}.",
            why=f"This version of whence shows {FORMAT!r}, versions {READ[0]} to {READ[-1]}.",
            remedy="Tell the story anew with whence.report.tell(problem, scores).",
        )
    style, script = static("style.css"), static("page.js")
    return (
        environment("report")
        .get_template("page.html")
        .render(
            story=for_page(dict(story)),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
        )
    )


def _write(story: Mapping[str, Any], path: str | Path) -> Path:
    path = Path(path)
    write_atomically(path, render(story).encode("utf-8"))
    return path


@cache
def environment(*packages: str) -> Environment:
    """Templates with the words, numbers and charts of a report at hand; every value is escaped.

    Args:
        packages: of whence, in whose folders `static` templates are looked for.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"whence.{name}", "static") for name in packages]),
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
    names: dict[str, Any] = {
        "OPEN_QUERIES": OPEN_QUERIES,
        "MOST_PICTURES": blocks.MOST_PICTURES,
        "MOST_TOKENS": MOST_TOKENS,
        "count": sentences.count,
        "sides": sentences.sides,
        "left_out": blocks.left_out,
        "scatter": charts.scatter,
        "scatter_note": charts.scatter_note,
        "distribution": charts.distribution,
        "chart": blocks.chart,
        "chart_note": blocks.chart_note,
        "grid": blocks.grid,
        "highlights": highlights,
        "has_content": blocks.has_content,
        "in_common": in_common,
        "sound_words": sentences.sound_words,
    }
    environment.globals.update(names)
    return environment


def static(name: str, package: str = "report") -> str:
    """A file of the page itself, such as "style.css"."""
    return files(f"whence.{package}").joinpath("static", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded; only this very style and script, pictures and sounds of the page."""
    return (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode('utf-8')).digest()).decode('ascii')}'"
