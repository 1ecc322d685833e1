"""The listing of training examples, against the arrays that it lists."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import whence
from explored import HEADER, LABELS, PICTURES, client_of
from whence.explorer.catalog import Catalog
from whence.explorer.views import MOST_NAMED, Session
from whence.report import album as albums
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run


def listed(client, **parameters) -> list[int]:
    told = client.get("/api/examples", params=parameters).json()
    return [entry["position"] for entry in told["examples"]]


def test_pages_after_each_other_list_every_training_example_once(client):
    told = client.get("/api/examples?size=33").json()
    assert (told["count"], told["pages"]) == (80, 3)
    pages = [listed(client, size=33, page=page) for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [33, 33, 14, 0]
    assert [position for page in pages for position in page] == list(range(80))


def test_a_label_narrows_the_list_to_its_examples(client, session):
    labels = session.catalog.album.labels
    assert listed(client, label="3") == np.flatnonzero(labels == "3").tolist()
    assert listed(client, label="no such label") == []
    page = client.get("/examples?label=3").text
    assert 'href="/examples/3"' in page
    assert "<option selected>3</option>" in page


def test_the_strongest_influence_stands_first(client, session):
    values = np.abs(session.catalog.scores.values)
    shares = (values / values.sum(1, keepdims=True)).max(0)
    assert listed(client, sort="influence", size=80) == np.argsort(-shares, kind="stable").tolist()


def test_an_id_finds_its_example_and_words_those_that_have_them(client, folder, problem):
    assert 17 in listed(client, q="17")
    assert listed(client, q="zzz") == []
    named = ["wool", "steel wool", "stone"] + [f"thing {i}" for i in range(77)]
    x, y = PICTURES[:80], LABELS[:80]
    texts = whence.make_problem(
        LogisticRegression(C=0.1, max_iter=2000).fit(x, y),
        (x, y),
        ids=[f"doc-{i}" for i in range(80)],
        display=lambda inputs, _: named[int(np.abs(x - np.asarray(inputs)).sum(1).argmin())],
    )
    run = folder.parent / "texts"
    scores = whence.explain(texts, (x[:2], y[:2]))
    save_run(run, scores, tell(texts, scores), album=make_album(texts, scores), problem=None)
    client = client_of(Session.open(Catalog.open(run), None), **HEADER)
    assert listed(client, q="WOOL") == [0, 1]
    assert listed(client, q="doc-41") == [41]
    assert listed(client, q="41") == [44]  # "thing 41"
    assert "steel wool" in client.get("/examples?q=steel").text


def test_examples_whose_looks_are_not_kept_are_listed_and_those_of_a_page_shown(
    problem, folder, monkeypatch
):
    monkeypatch.setattr(albums, "MOST_EXAMPLES", 5)
    scores = whence.explain(problem, (PICTURES[100:103], LABELS[100:103]))
    run = folder.parent / "few"
    save_run(run, scores, tell(problem, scores), album=make_album(problem, scores), problem=None)
    saved = client_of(Session.open(Catalog.open(run), None), **HEADER)
    told = saved.get("/api/examples?size=80").json()
    assert (told["count"], told["kept"]) == (80, 5)
    looks = [entry["display"]["kind"] for entry in told["examples"]]
    assert (looks.count("image"), looks.count("none")) == (5, 75)
    assert len(listed(saved, sort="influence")) == 5
    assert "The run keeps how 5 of them look" in saved.get("/examples").text
    session = Session.open(Catalog.open(run), lambda: problem)
    session.live.wait(30)
    told = client_of(session, **HEADER).get("/api/examples?size=80").json()
    assert {entry["display"]["kind"] for entry in told["examples"]} == {"image"}


@pytest.mark.parametrize("words", ["page=0", "page=x", "size=501", "sort=best"])
def test_pages_and_orders_that_do_not_exist_are_refused(client, words):
    for path in ("/examples", "/api/examples"):
        assert client.get(f"{path}?{words}").status_code == 400


def test_a_change_of_very_many_examples_is_told_in_a_bounded_answer(client, session):
    many = list(range(5000))
    asked = {"remove": many, "relabel": {}, "retrain": False}
    found = session.desk.ask("change", asked, lambda: {"train_ids": many, "queries": []})
    while found.state != "done":
        pass
    told = client.get(f"/api/questions/{found.id}").json()
    assert told["changes"] == 5000
    assert told["asked"]["remove"] == told["answer"]["train_ids"] == many[:MOST_NAMED]
    (entry,) = client.get("/api/questions").json()["questions"]
    assert len(entry["asked"]["remove"]) == MOST_NAMED
    assert "A change of 5,000 training examples" in client.get("/questions").text
    assert found.asked["remove"] == many  # and is asked again as a whole
