"""The documentation says what is true: its examples run, its links and commands exist."""

import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import whence

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
MODULES = [found.name for found in pkgutil.walk_packages(whence.__path__, "whence.")]

SKIPPED = re.compile(r"<!-- not executed: \S.*-->\s*$")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str, bool]]:
    """Fenced blocks in these languages: first line number, text, and whether it is to be run."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, above = None, ""
    for number, line in enumerate(lines):
        if start is None and line.strip().startswith("```"):
            start = number
            language = line.strip().strip("`").split(" ")[0]
        elif start is not None and line.strip() == "```":
            if language in languages:
                text = dedent("\n".join(lines[start + 1 : number]))
                yield start + 2, text, not SKIPPED.search(above)
            start = None
            above = ""
        elif start is None and line.strip():
            above = line
    assert start is None, f"{name(page)}:{start} opens a block that is never closed"


def commands(page: Path, program: str) -> Iterator[tuple[int, list[str]]]:
    """The calls of one program in the shell blocks of a page, as words."""
    for first, text, _ in blocks(page, "console", "bash", "sh", "shell"):
        joined = text.replace("\\\n", " ")
        for line in joined.splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            while words and re.match(r"[A-Z_]+=", words[0]):  # VARIABLE=value in front
                words = words[1:]
            if words and words[0] == program:
                yield first, words[1:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_python_examples_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for first, text, is_run in blocks(page, "python", "py"):
        if is_run:  # the empty lines put the line numbers of a traceback right
            exec(compile("\n" * (first - 1) + text, str(page), "exec"), namespace)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_print_what_they_show(module: str):
    if module == "whence.__main__":
        return
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name.startswith("whence"):
            raise
        pytest.skip(f"{module} needs {error.name}, which is optional")
    assert doctest.testmod(loaded, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_project_lead_somewhere(page: Path):
    dead = []
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(found[0])
    assert not dead


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page: Path):
    cli = pytest.importorskip("whence.cli", reason="the command line is not written yet")
    wrong = []
    for first, words in commands(page, "whence"):
        if not words or words[0].startswith("-"):
            continue
        command = cli.main.commands.get(words[0])
        if command is None:
            wrong.append(f"{name(page)}:{first} whence {words[0]}")
            continue
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        known |= {option for parameter in command.params for option in parameter.secondary_opts}
        used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
        wrong += [f"{name(page)}:{first} {words[0]} {option}" for option in used - known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        word
        for _, words in commands(page, "make")
        for word in words
        if re.fullmatch(r"[a-z]+", word)
    }
    assert used <= targets
