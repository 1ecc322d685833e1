"""Sounds in a real page: they play, by keyboard too, and nothing is fetched before."""

from pathlib import Path

TONES = """
import numpy as np
from sklearn.linear_model import LogisticRegression

import whence

rate, labels = 8000, np.arange(40) % 2
rng = np.random.default_rng(0)
times = np.arange(1200) / rate
phases = np.outer(440 * (1 + labels), 2 * np.pi * times) + rng.uniform(0, 1, (40, 1))
sounds = 0.4 * np.sin(phases) + 0.02 * rng.normal(size=phases.shape)
queries = sounds[30:], labels[30:]

def problem():
    model = LogisticRegression(tol=1e-8).fit(sounds[:30], labels[:30])
    display = {"kind": "audio", "rate": rate}
    return whence.make_problem(model, (sounds[:30], labels[:30]), display=display, name="tones")
"""


def test_a_sound_is_fetched_when_it_is_played(page, start, tmp_path: Path):
    from playwright.sync_api import expect

    (tmp_path / "train.py").write_text(TONES)
    explorer = start("train.py:problem", "--query", "train.py:queries")
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(explorer.address)
    page.locator('.state[data-state="ready"]').wait_for()
    assert page.locator("audio").count() == 0  # tiles are links
    assert page.locator(".tile img").first.evaluate("img => img.decode().then(() => img.width)")

    page.goto(f"{explorer.base}/queries/3")
    page.wait_for_load_state("networkidle")
    assert not any("sound.wav" in url for url in fetched)
    player = page.get_by_label("Sound of query 3")
    player.evaluate("player => { player.muted = true }")
    player.focus()
    page.keyboard.press("Space")
    expect(player).to_have_js_property("ended", True)
    assert player.evaluate("player => player.duration") == 0.15
    page.keyboard.press("ArrowRight")  # moves in the sound, not to the next query
    assert page.url.endswith("/queries/3")
    assert {url for url in fetched if "sound.wav" in url} == {
        f"{explorer.base}/queries/3/sound.wav"
    }
    example = page.locator(".proponent audio").first
    seconds = example.evaluate(
        "player => new Promise(done => {"
        "  player.onloadedmetadata = () => done(player.duration);"
        "  player.preload = 'metadata';"
        "})"
    )
    assert seconds == 0.15


def test_a_saved_report_plays_its_sounds_without_a_server(page, start, tmp_path: Path):
    (tmp_path / "train.py").write_text(TONES)
    start("train.py:problem", "--query", "train.py:queries")  # explains into runs/explore
    page.goto((tmp_path / "runs" / "explore" / "report.html").as_uri())
    player = page.get_by_label("Sound of query 3")
    assert player.evaluate("player => player.play().then(() => player.duration)") == 0.15
    page.emulate_media(media="print")
    assert not player.is_visible()
    assert page.locator(".sound img").first.is_visible()
