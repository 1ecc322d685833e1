"""Pictures and sounds are those of the examples, each under its address."""

from base64 import b64decode

import pytest

import whence
from explored import HEADER, LABELS, PICTURES, client_of
from explored import make_problem as make_digits
from whence.explorer.catalog import Catalog
from whence.explorer.views import Session
from whence.report import album as albums
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run

QUERIES = PICTURES[100:104], LABELS[100:104]


@pytest.fixture(scope="module")
def heard():
    """Digits that are listened to: 64 samples each."""
    model = make_digits().model
    display = {"kind": "audio", "rate": 8000}
    problem = whence.make_problem(
        model, (PICTURES[:80], LABELS[:80]), loss="cross_entropy", display=display
    )
    return problem, whence.explain(problem, QUERIES, method="gradcos")


@pytest.fixture
def client(heard, tmp_path):
    problem, scores = heard
    album = make_album(problem, scores)
    save_run(tmp_path / "run", scores, tell(problem, scores), album=album, problem=None)
    opened = Session.open(Catalog.open(tmp_path / "run"), lambda: problem)
    opened.live.wait(30)
    return client_of(opened, **HEADER)


def test_sounds_and_spectrograms_are_those_of_the_examples(client, heard):
    problem, _ = heard
    for kind, position, display in (
        ("examples", 7, problem.show(7)),
        ("queries", 3, problem.show_query(PICTURES[103])),
    ):
        for part, file, media in (
            ("wav", "sound.wav", "audio/wav"),
            ("png", "picture.png", "image/png"),
        ):
            response = client.get(f"/{kind}/{position}/{file}")
            assert response.headers["content-type"] == media
            assert response.content == b64decode(display[part])


def test_views_hold_addresses_and_no_sound(client):
    told = client.get("/api/queries/1").json()["query"]
    shown = [told["display"], told["proponents"][0]["display"]]
    position = told["proponents"][0]["position"]
    assert [display["sound"] for display in shown] == [
        "/queries/1/sound.wav",
        f"/examples/{position}/sound.wav",
    ]
    assert not any({"wav", "png"} & display.keys() for display in shown)
    page = client.get("/queries/1").text
    assert '<audio controls preload="none" src="/queries/1/sound.wav"' in page
    assert "base64" not in page
    assert "<audio" not in client.get("/").text  # a link holds no player


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=10-19", "bytes=100-99999"])
def test_a_player_may_ask_for_a_part(client, asked):
    whole = client.get("/queries/0/sound.wav").content
    first, last = asked.removeprefix("bytes=").split("-")
    part = client.get("/queries/0/sound.wav", headers={"range": asked})
    expected = whole[int(first) : int(last or len(whole)) + 1]
    assert part.status_code == 206
    assert part.content == expected
    end = int(first) + len(expected) - 1
    assert part.headers["content-range"] == f"bytes {first}-{end}/{len(whole)}"


def test_parts_that_are_not_there_are_refused_and_others_answered_whole(client):
    whole = client.get("/queries/0/sound.wav").content
    beyond = client.get("/queries/0/sound.wav", headers={"range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.content) == (416, b"")
    for odd in ("bytes=-5", "bytes=5-2,7-9", "lines=1-2", "bytes=x"):
        response = client.get("/queries/0/sound.wav", headers={"range": odd})
        assert (response.status_code, response.content) == (200, whole)


@pytest.mark.parametrize("path", ["/queries/4", "/examples/80", "/others/1", "/queries/-1"])
def test_what_is_not_there_is_said(client, path):
    assert client.get(f"{path}/sound.wav").status_code == 404
    assert client.get(f"{path}/picture.png").status_code == 404


def test_sounds_that_the_run_has_not_kept_come_from_the_problem(heard, tmp_path, monkeypatch):
    problem, scores = heard
    monkeypatch.setattr(albums, "MOST_BYTES", 0)
    album = make_album(problem, scores)
    save_run(tmp_path / "run", scores, tell(problem, scores), album=album, problem=None)
    opened = Session.open(Catalog.open(tmp_path / "run"), lambda: problem)
    opened.live.wait(30)
    response = client_of(opened, **HEADER).get("/examples/7/sound.wav")
    assert response.content == b64decode(problem.show(7)["wav"])
    alone = Session.open(Catalog.open(tmp_path / "run"), None)
    assert client_of(alone, **HEADER).get("/examples/7/sound.wav").status_code == 404
