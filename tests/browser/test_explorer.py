"""A user's whole story in a real page: on digits with wrong labels, and on text messages."""

import gzip
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from looks import check_access, check_widths, first_view

DIGITS = """
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import whence

images, labels = load_digits(return_X_y=True)
images = images / 16
x, y = images[:80], labels[:80].copy()
y[[4, 11]] = [7, 3]  # wrong labels
queries = images[1000:1040], labels[1000:1040]

def problem():
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(x, y)
    display = {"kind": "image", "shape": (8, 8)}
    return whence.make_problem(model, (x, y), display=display, name="digits")
"""

MESSAGES = """
import json
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import whence

texts, labels = json.loads((Path(__file__).parent / "messages.json").read_text())
queries = texts[300:340] + texts[:1], labels[300:340] + labels[:1]

def problem():
    steps = TfidfVectorizer(max_features=300), LogisticRegression(C=10, tol=1e-8)
    model = make_pipeline(*steps).fit(texts[:300], labels[:300])
    return whence.make_problem(model, (texts[:300], labels[:300]), name="messages")
"""

WORDS = """
import torch
import whence

words = ["<pad>", "the", "old", "town", "by", "a", "river", "sleeps", "<b>", "and", "wakes"]
drawn = torch.randint(1, 11, (30, 7), generator=torch.Generator().manual_seed(6))
kinds = (drawn == 6).any(1).long()
queries = drawn[24:], kinds[24:]


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(11, 3), torch.nn.Linear(3, 2)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens)).mean(1))


def problem():
    options = {"epochs": 30, "batch_size": 8, "weight_decay": 0.02}
    recipe = whence.Training(Classifier, "adam", lr=0.05, **options)
    display = {"kind": "text", "decode": lambda ids: " ".join(words[i] for i in ids)}
    data = (drawn[:24], kinds[:24])
    return whence.make_problem(recipe, data, loss="cross_entropy", display=display, name="words")
"""

ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def digits(tmp_path: Path, start: Callable) -> Any:
    (tmp_path / "train.py").write_text(DIGITS)
    return start("train.py:problem", "--query", "train.py:queries")


@pytest.fixture
def messages(tmp_path: Path, start: Callable, whence_data: Path) -> Any:
    with gzip.open(whence_data / "sms_spam.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(340)]
    texts = [row["text"] for row in rows]
    texts[0] = f"{ATTACK} {texts[0]}"
    labels = ["spam" if row["label"] else "ham" for row in rows]
    (tmp_path / "messages.json").write_text(json.dumps([texts, labels]))
    (tmp_path / "train.py").write_text(MESSAGES)
    return start("train.py:problem", "--query", "train.py:queries")


def press(page, key: str, words: str) -> None:
    """Decides by a key, and waits for what the page says then."""
    page.wait_for_load_state("load")  # keys are heard once the script has run
    page.keyboard.press(key)
    page.get_by_text(words).wait_for()


def test_digits_from_a_wrong_prediction_to_a_cleaned_data_set(page, digits):
    first_view(page, digits)
    check_access(page)
    check_widths(page)

    # A wrong prediction, found by its filters; the address holds them, and back works.
    page.get_by_label("wrong only").check()
    page.get_by_label("Order").select_option("loss")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**wrong=1**")
    assert page.locator(".differs").count() == page.locator(".tile").count() > 0
    page.locator(".tile a").first.click()
    page.wait_for_url("**/queries/*")
    assert page.locator(".proponent .effect").count() == 6
    picture = page.locator(".opponent .effect img").first
    picture.scroll_into_view_if_needed()  # pictures are loaded when they come into view
    assert picture.evaluate("img => img.decode().then(() => img.naturalWidth)") == 8
    assert page.locator("svg.distribution").count() == 1
    check_access(page)
    check_widths(page)
    page.go_back()
    assert "wrong=1" in page.url
    page.go_forward()

    # What if two of its opponents were gone, by keyboard alone.
    for row in (0, 1):
        page.locator(".opponent .tick input").nth(row).focus()
        page.keyboard.press("Space")
    assert page.locator("[data-ticked]").inner_text() == "2 ticked"
    page.get_by_role("button", name="Remove them").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/questions/*")
    page.get_by_role("button", name="Retrain to check").click()
    page.get_by_text("Right after retraining").wait_for()
    assert page.locator(".swing.actual").count() == page.locator(".swing.predicted").count() == 40
    check_access(page)
    check_widths(page)

    # The labels, one key each; the page may be closed in the middle.
    page.goto(f"{digits.base}/review")
    page.get_by_role("button", name="Find suspects").click()
    page.locator("#review").wait_for()
    check_access(page)
    check_widths(page)
    press(page, "d", "1 decision")
    press(page, "r", "2 decisions")
    page.goto(f"{digits.base}/review?at=0")
    press(page, "u", "1 decision")
    assert page.locator(".decision").inner_text() == "Not decided yet."
    press(page, "d", "2 decisions")
    with page.expect_download() as download:
        page.get_by_role("link", name="Cleaned data (csv)").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 80  # 79 and the names
    page.get_by_role("button", name="Retrain and compare").click()
    page.get_by_text("Right after retraining").wait_for()
    page.goto(f"{digits.base}/questions")
    assert page.locator(".asked-before li").count() == 4


def test_messages_stay_text_whatever_they_hold(page, messages):
    first_view(page, messages)
    page.get_by_label("Search").fill("<script>")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=%3Cscript%3E**")
    assert page.locator(".tile").count() == 1
    check_access(page)
    check_widths(page)
    page.locator(".tile a").first.click()
    page.wait_for_url("**/queries/40")
    assert ATTACK in page.locator(".subject").inner_text()
    assert page.locator(".effect .words").first.is_visible()
    assert page.locator("main script, main img").count() == 0
    page.locator(".proponent .tick input").first.check()
    page.get_by_role("button", name="Relabel them").click()
    page.wait_for_url("**/questions/*")
    page.get_by_role("button", name="Retrain to check").wait_for()
    check_widths(page)
    assert "taken" not in page.title()


def test_a_killed_server_loses_nothing_and_a_moved_problem_is_said(page, digits, start, tmp_path):
    first_view(page, digits)
    page.goto(f"{digits.base}/examples/7")
    page.get_by_role("button", name="Remove it").click()
    page.get_by_role("button", name="Retrain to check").wait_for()
    page.goto(f"{digits.base}/review")
    page.get_by_role("button", name="Find suspects").click()
    page.locator("#review").wait_for()
    press(page, "k", "1 decision")
    page.wait_for_load_state("networkidle")
    digits.process.send_signal(signal.SIGKILL)
    digits.process.wait()
    press(page, "k", "The server does not answer any more")

    (tmp_path / "train.py").rename(tmp_path / "moved.py")
    again = start("runs/explore")
    page.goto(again.address)
    page.get_by_text("The model of this run could not be had").wait_for()
    assert "There is no file" in page.locator("aside").inner_text()
    page.goto(f"{again.base}/review?at=0")
    assert page.locator(".decision").inner_text() == "Decided: keep"
    page.goto(f"{again.base}/questions")
    page.locator(".asked-before a").last.click()
    page.get_by_role("heading", name=re.compile("Without training example 7")).wait_for()
    assert page.locator(".swing.predicted").count() == 40
    check_access(page)


def test_tokens_of_a_text_by_keyboard_and_on_a_page_of_their_own(page, start, tmp_path):
    (tmp_path / "train.py").write_text(WORDS)
    explorer = start("train.py:problem", "--query", "train.py:queries")
    first_view(page, explorer)
    page.goto(f"{explorer.base}/queries/0")
    plain = page.locator(".effect .what").first.inner_text()

    # Beside the first proponent, by keyboard alone: the text, its effects, and back.
    page.locator("[data-tokens]").first.focus()
    page.keyboard.press("Enter")
    text = page.locator(".effect .tokens").first
    text.wait_for()
    assert text.inner_text().strip() == plain
    assert page.locator(".effect .what").first.is_hidden()
    assert text.locator(".token").count() == 7
    assert text.locator(".level-4").count() >= 1
    text.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    second = text.locator(".token").nth(1)
    assert page.locator(".tip").inner_text() == second.get_attribute("title")
    assert page.url.endswith("/queries/0")  # and not at its neighbour
    check_access(page)
    check_widths(page)
    page.emulate_media(color_scheme="dark")
    check_access(page)
    page.emulate_media(color_scheme="light")
    page.locator("[data-tokens]").first.focus()
    page.keyboard.press("Enter")
    assert text.is_hidden()
    assert page.locator(".effect .what").first.is_visible()
    page.keyboard.press("Enter")

    # The page of these tokens, and the other way to take the text apart.
    page.get_by_role("link", name="These tokens in a table").first.click()
    page.wait_for_url("**/queries/0/tokens/*")
    assert page.locator(".data").count() == 2
    check_access(page)
    check_widths(page)
    address = page.url
    page.goto(address.rpartition("/")[0] + "/3")
    page.get_by_role("button", name="Find out").click()
    page.locator(".tokens").wait_for()
    page.get_by_role("link", name="The same by the positions of its loss").click()
    page.get_by_role("button", name="Find out").click()
    page.get_by_text("is no sum over positions").wait_for()
    check_access(page)
    page.goto(f"{explorer.base}/questions")
    assert page.locator(".asked-before li").count() == 3
