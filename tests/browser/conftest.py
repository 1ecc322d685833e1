"""A browser, and real servers."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import loads
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

EXPECTED = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET")
"""What the console may say where a server was killed."""


@dataclass
class Explorer:
    """A running `whence explore`."""

    process: subprocess.Popen[str]
    address: str
    base: str


@pytest.fixture
def start(tmp_path: Path, browser: object) -> Iterator[Callable[..., Explorer]]:
    """Starts `whence explore` with these words, in the folder of the test."""
    del browser  # without one the test is skipped before anything is computed
    started: list[Explorer] = []

    def run(*words: str) -> Explorer:
        command = [sys.executable, "-m", "whence", "explore", *words, "--no-browser", "--json"]
        process = subprocess.Popen(
            [*command, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        told = loads("".join(lines))
        explorer = Explorer(process, told["address"], f"http://127.0.0.1:{told['port']}")
        started.append(explorer)
        return explorer

    yield run
    for explorer in started:
        explorer.process.kill()
        explorer.process.communicate()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page on which an error of a script or of its policy fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    opened.set_default_timeout(40_000)
    yield opened
    context.close()
    assert [line for line in wrong if not any(words in line for words in EXPECTED)] == []
