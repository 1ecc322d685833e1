"""The pictures of the README, taken of the real pages: make screenshots.

Runs the demo, opens its report and its explorer in the chromium on the PATH, asks what if, and
reviews two labels. Everything is computed anew; docs/images/ is written over.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "digits"
        whence("demo", "--out", str(run), "--quiet")
        with chromium() as browser, explorer(run) as (address, base):
            report(browser, run)
            page = browser.new_page(viewport=WIDE)
            page.set_default_timeout(120_000)
            page.goto(address)
            page.locator('.state[data-state="ready"]').wait_for()
            take(page, "explorer-queries")
            what_if(page, base)
            review(page, base)
            phone(browser, address, base)


def report(browser: Browser, run: Path) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto((run / "report.html").resolve().as_uri())
    take(page, "report")


def what_if(page: Page, base: str) -> None:
    page.goto(f"{base}/queries/0")
    for row in (0, 1, 2):
        page.locator(".opponent .tick input").nth(row).check()
    take(page, "explorer-query")
    page.get_by_role("button", name="Remove them").click()
    page.get_by_role("button", name="Retrain to check").click()
    page.get_by_text("Right after retraining").wait_for()
    take(page, "explorer-what-if")


def review(page: Page, base: str) -> None:
    page.goto(f"{base}/review")
    page.get_by_role("button", name="Find suspects").click()
    page.locator("#review").wait_for()
    for key, words in (("k", "1 decision"), ("d", "2 decisions")):
        page.wait_for_load_state("load")  # keys are heard once the script has run
        page.keyboard.press(key)
        page.get_by_text(words).wait_for()
    take(page, "explorer-review")


def phone(browser: Browser, address: str, base: str) -> None:
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    page.goto(address)
    page.goto(f"{base}/queries/1")
    take(page, "explorer-phone")


def take(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"{name}.png")
    print(IMAGES / f"{name}.png")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@contextmanager
def explorer(run: Path) -> Iterator[tuple[str, str]]:
    """Its address with the token, and the base of all its addresses."""
    command = [sys.executable, "-m", "whence", "explore", str(run), "--no-browser", "--json"]
    server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    text = ""
    for line in server.stdout or ():
        text += line
        if line == "}\n":
            break
    told = json.loads(text)
    try:
        yield told["address"], f"http://127.0.0.1:{told['port']}"
    finally:
        server.terminate()
        server.wait()


def whence(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "whence", *words], check=True)


if __name__ == "__main__":
    main()
