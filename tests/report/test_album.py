"""A run shows its examples as the problem would, without it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

import whence
from whence.errors import Stale, StoreError, WrongVersion
from whence.report import album as albums
from whence.report.album import NOT_KEPT, Album, make_album
from whence.report.queries import AtHand, tell_query
from whence.report.sounds import Room

PICTURES, LABELS = load_digits(return_X_y=True)
PICTURES = PICTURES / 16


def digits(examples: int = 60):
    x, y = PICTURES[:examples], LABELS[:examples]
    model = LogisticRegression(C=0.1, max_iter=500).fit(x, y)
    problem = whence.make_problem(model, (x, y), display={"kind": "image", "shape": (8, 8)})
    return problem, whence.explain(problem, (PICTURES[100:105], LABELS[100:105]))


def saved(problem, scores, folder: Path) -> Album:
    make_album(problem, scores).save(folder / "album.npz")
    return Album.open(folder / "album.npz")


def test_an_album_tells_queries_word_for_word_as_the_problem_does(tmp_path):
    problem, scores = digits()
    kept, at_hand = saved(problem, scores, tmp_path), AtHand(problem, scores)
    for position in range(5):
        expected = tell_query(scores, at_hand, position, top=7)
        assert tell_query(scores, kept, position, top=7) == expected
    assert kept.answers == tuple("0123456789")


def test_losses_are_those_of_the_model(tmp_path):
    problem, scores = digits()
    measured = whence.explain(problem, (PICTURES[100:105], LABELS[100:105]), measurement="loss")
    assert np.allclose(saved(problem, scores, tmp_path).losses, measured.baseline)


def test_texts_are_kept_as_the_user_gave_them(tmp_path):
    texts = ["good film", "bad film", "a good one", "<script>alert(1)</script> bad"] * 3
    labels = ["ham", "spam", "ham", "spam"] * 3
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, labels)
    problem = whence.make_problem(model, (texts, labels))
    scores = whence.explain(problem, (["a good film"], ["ham"]))
    kept = saved(problem, scores, tmp_path)
    assert kept.query(0)["display"] == {"kind": "text", "text": "a good film"}
    assert kept.example(3) == {
        "display": {"kind": "text", "text": "<script>alert(1)</script> bad"},
        "label": "spam",
    }
    assert kept.answers == ("ham", "spam")


def test_numbers_have_no_classes_to_choose_from(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 3))
    problem = whence.make_problem(Ridge().fit(x, x[:, 0]), (x, x[:, 0]))
    assert saved(problem, whence.explain(problem, (x[:2], x[:2, 0])), tmp_path).answers == ()


def test_of_many_examples_those_that_matter_most_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(albums, "MOST_EXAMPLES", 10)
    problem, scores = digits()
    kept = saved(problem, scores, tmp_path)
    shares = np.abs(scores.values) / np.abs(scores.values).sum(1, keepdims=True)
    wanted = np.argsort(-shares.max(0))[:10]
    for position in range(60):
        is_kept = kept.example(position)["display"] != NOT_KEPT
        assert is_kept == (position in wanted)
        assert kept.example(position)["label"] == str(LABELS[position])


def test_large_pictures_fill_their_space_and_no_more(monkeypatch):
    monkeypatch.setattr(albums, "MOST_BYTES", 1500)
    problem, scores = digits()
    made = make_album(problem, scores)
    assert 0 < len(made.displays) < 60
    assert made.displays.text.nbytes <= 1500


def test_scores_of_another_model_are_refused():
    problem, scores = digits()
    other, _ = digits(59)
    with pytest.raises(Stale):
        make_album(other, scores)
    assert make_album(problem, scores)


def test_damage_and_other_versions_are_refused(tmp_path, monkeypatch):
    problem, scores = digits()
    saved(problem, scores, tmp_path)
    path = tmp_path / "album.npz"
    with monkeypatch.context() as patch:
        patch.setattr(albums, "VERSION", 2)
        with pytest.raises(WrongVersion):
            Album.open(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            Album.open(path)
    np.savez(path, metadata=np.array([{}], dtype=object))  # pickled: never loaded
    with pytest.raises(StoreError):
        Album.open(path)


def test_an_album_is_read_without_torch(tmp_path):
    saved(*digits(), tmp_path)
    code = (
        "import sys; from pathlib import Path; from whence.report.album import Album; "
        "Album.open(Path(sys.argv[1])).example(0); sys.exit('torch' in sys.modules)"
    )
    path = str(tmp_path / "album.npz")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_sounds_have_a_limit_of_their_own_and_looks_stay(tmp_path, monkeypatch):
    x, y = PICTURES[:60], LABELS[:60]
    model = LogisticRegression(C=0.1, max_iter=500).fit(x, y)
    problem = whence.make_problem(model, (x, y), display={"kind": "audio", "rate": 8000})
    scores = whence.explain(problem, (PICTURES[100:105], LABELS[100:105]))
    size = len(problem.show(0)["wav"])
    monkeypatch.setattr(albums, "Room", lambda: Room(3 * size))
    kept = saved(problem, scores, tmp_path)
    looks = [kept.example(column)["display"] for column in range(60)]
    assert all(display["kind"] == "audio" for display in looks)
    assert sum("wav" in display for display in looks) == 3
    assert ["wav" in kept.query(q)["display"] for q in range(5)] == [True] * 3 + [False] * 2
