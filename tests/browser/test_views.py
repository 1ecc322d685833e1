"""Views beside the main story in a real page: two runs, training data, findings, other schools."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from looks import check_view, first_view

DIGITS = """
import time
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import whence

images, labels = load_digits(return_X_y=True)
images = images / 16
x, y = images[:150], labels[:150].copy()
y[[4, 11]] = [7, 3]  # wrong labels
queries = images[1000:1012], labels[1000:1012]

def problem():
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(x, y)
    display = {"kind": "image", "shape": (8, 8)}
    return whence.make_problem(model, (x, y), display=display, name="digits")

def slow():
    data = torch.tensor(x), torch.tensor(y)

    def train(weights, seed):
        model = torch.nn.Linear(64, 10).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(60):
            losses = torch.nn.functional.cross_entropy(model(data[0]), data[1], reduction="none")
            optimizer.zero_grad()
            (losses * weights).mean().backward()
            optimizer.step()
            time.sleep(0.02)
        return model

    torch.manual_seed(0)
    display = {"kind": "image", "shape": (8, 8)}
    return whence.make_problem(
        train(torch.ones(150), 0),
        data,
        loss="cross_entropy",
        training=whence.CallableTraining(train, is_deterministic=True),
        display=display,
        name="slow",
    )
"""


def whence(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "whence", *words, "--quiet"]
    subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path, browser: object) -> Path:
    del browser  # without one nothing is computed
    (tmp_path / "train.py").write_text(DIGITS)
    return tmp_path


def explain(folder: Path, name: str, *words: str) -> None:
    problem = ("train.py:problem", "--query", "train.py:queries")
    whence(folder, "explain", *problem, "--out", f"runs/{name}", *words)


def test_two_runs_stand_side_by_side(page, start, folder):
    explain(folder, "exact")
    explain(folder, "cosine", "--method", "gradcos")
    explorer = start("runs/exact", "runs/cosine")
    first_view(page, explorer)
    page.locator(".tile a").nth(3).click()
    page.get_by_role("link", name="Compare with cosine").click()
    page.wait_for_url("**/queries/3/comparison")
    check_view(page)
    assert page.locator(".compared img").evaluate("img => img.decode().then(() => img.width)") > 0
    assert page.locator(".pair h2").all_inner_texts() == ["exact", "cosine"]
    told = json.loads(page.request.get(f"{explorer.base}/api/queries/3/comparison").text())
    marks = page.locator(".pair .query").first.locator(".proponent .name .note")
    assert marks.count() == told["shared"]
    exact, cosine = page.locator(".pair .query").all()
    assert exact.locator(".unit").first.inner_text() == "logits"
    assert "in arbitrary units" in cosine.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/queries/4/comparison")


def test_training_data_is_browsed_by_pages_labels_and_ids(page, start, folder):
    explain(folder, "exact")
    explorer = start("runs/exact")
    first_view(page, explorer)
    page.get_by_role("link", name="Training data").click()
    page.wait_for_url("**/examples")
    check_view(page)
    assert page.locator(".tile").count() == 60
    page.get_by_role("link", name="next page").click()
    page.wait_for_url("**page=2")
    assert page.locator(".tile .id").first.inner_text() == "example 60"
    page.get_by_label("Page", exact=True).fill("3")
    page.keyboard.press("Enter")
    page.wait_for_url("**page=3")
    assert page.locator(".tile").count() == 30
    page.get_by_label("Label").select_option("3")
    page.get_by_label("Order").select_option("influence")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**label=3**")
    assert set(page.locator(".tile b").all_inner_texts()) == {"3"}
    page.get_by_label("Search").fill("137")
    page.get_by_label("Label").select_option("")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=137**")
    page.locator(".tile a").click()
    page.wait_for_url("**/examples/137")
    check_view(page)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/examples/136")
    page.goto(f"{explorer.base}/examples?q=no+such+thing")
    page.get_by_text("No training example fits.").wait_for()
    check_view(page)


def test_findings_of_other_commands_are_a_view_of_their_own(page, start, folder):
    explain(folder, "exact")
    asked = ("train.py:problem", "--query", "train.py:queries", "--add-to", "runs/exact")
    whence(folder, "remove", *asked, "--group", "4,11", "--retrain")
    explorer = start("runs/exact")
    first_view(page, explorer)
    page.get_by_role("link", name="Findings").click()
    page.wait_for_url("**/findings")
    check_view(page)
    assert page.locator("main h2").all_inner_texts() == ["Without 2 training examples"]
    axes = page.locator("svg.scatter text").all_text_contents()
    assert "predicted change (logits)" in axes
    assert "change after retraining (logits)" in axes


def test_explanations_of_the_input_stand_beside_effects(page, start, folder):
    pytest.importorskip("captum", reason="needs captum")
    explain(folder, "exact")
    explorer = start("runs/exact")
    first_view(page, explorer)
    page.goto(f"{explorer.base}/queries/3")
    page.get_by_role("button", name="What in it mattered?").click()
    page.wait_for_url("**/questions/*")
    page.get_by_role("heading", name="What in query 3 mattered to the model").wait_for()
    page.get_by_text("integrated gradients; the deepest colour is").wait_for()
    check_view(page)
    page.get_by_role("link", name="query 3").click()
    page.wait_for_url("**/queries/3")


def test_a_page_that_is_closed_during_a_retraining_loses_nothing(page, start, folder):
    explorer = start("train.py:slow", "--query", "train.py:queries")
    first_view(page, explorer)
    other = page.context.new_page()
    other.goto(f"{explorer.base}/examples/7")
    other.get_by_role("button", name="Remove it").click()
    other.get_by_role("button", name="Retrain to check").click()
    other.locator("[data-question]").wait_for()
    where = other.url
    other.close()  # and its requests with it
    page.goto(where)
    page.get_by_role("columnheader", name="after retraining").wait_for()
    assert page.locator(".swing.actual").count() == 12
    check_view(page)


def test_cancel_ends_a_loop_of_the_users_own_between_two_steps(page, start, folder):
    explorer = start("train.py:slow", "--query", "train.py:queries")
    first_view(page, explorer)
    page.goto(f"{explorer.base}/verification")
    page.get_by_role("button", name="Check by retraining").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_text("Training with train").wait_for()
    started = time.monotonic()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Check by retraining").wait_for()
    page.goto(f"{explorer.base}/queries/3")
    page.get_by_role("button", name="Remove all opponents").click()
    page.get_by_role("button", name="Retrain to check").wait_for()  # answered: the desk is free
    assert time.monotonic() - started < 20  # thirty retrainings take 36 seconds
    page.goto(f"{explorer.base}/questions")
    assert "cancelled" in page.locator(".asked-before").inner_text()
    check_view(page)
