"""Pages and their JSON: everything a user does, without a browser."""

import csv
import io
import time
from base64 import b64decode
from threading import Event

import numpy as np
import pytest

import whence
from explored import HEADER, LABELS, PICTURES, client_of, proponents, until_done
from whence.errors import BadArgument
from whence.explorer.app import VIEWS
from whence.explorer.catalog import Catalog
from whence.explorer.exports import EXPORTS
from whence.explorer.guard import POLICY
from whence.explorer.views import Session
from whence.numerics import stats
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run

PAGES = ["/", "/queries/3", "/queries/3/distances", "/examples", "/examples/7"]


@pytest.mark.parametrize("path", [*PAGES, "/verification", "/findings", "/questions", "/review"])
def test_every_page_has_a_title_a_policy_and_a_twin_in_json(client, path):
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == POLICY
    assert "<title>" in page.text
    assert 'id="main"' in page.text
    assert "style=" not in page.text.replace("font-style=", "")
    assert "<script>" not in page.text
    twin = client.get("/api/queries" if path == "/" else f"/api{path}")
    assert twin.status_code == 200
    assert isinstance(twin.json(), dict)


def test_a_query_shows_the_effects_of_the_scores(client, session):
    scores = session.catalog.scores
    told = client.get("/api/queries/3?top=5").json()["query"]
    row = scores.values[3]
    assert [entry["position"] for entry in told["proponents"]] == proponents(row, 5)
    assert [entry["effect"] for entry in told["proponents"]] == sorted(row)[:5]
    assert [entry["position"] for entry in told["opponents"]] == proponents(-row, 5)
    assert told["half_of_influence"] == scores.half_of_influence(3)
    page = client.get("/queries/3?top=5").text
    assert "logits" in page
    for entry in told["proponents"]:
        assert f'href="/examples/{entry["position"]}"' in page


def test_effects_that_were_measured_stand_beside_the_predicted_ones(client, session):
    points = session.catalog.story["verification"]["points"]
    ids = session.catalog.scores.query_ids.tolist()
    told = client.get("/api/queries/0?top=100").json()["query"]
    known = {p["example"]: p["actual"] for p in points if p["query"] == ids[0]}
    shown = {e["id"]: e["actual"] for e in told["proponents"] + told["opponents"]}
    assert {name: actual for name, actual in shown.items() if actual is not None} == known


def test_influence_stands_against_the_distance_of_the_pictures(client, session, monkeypatch):
    measured = ((PICTURES[:80] - PICTURES[103]) ** 2).sum(1) ** 0.5
    effects = session.catalog.scores.values[3]
    told = client.get("/api/queries/3/distances").json()
    points = {(point["x"], point["y"]) for point in told["block"]["points"]}
    assert len(points) == 80
    assert {y for _, y in points} == set(effects.tolist())
    assert sorted(x for x, _ in points) == pytest.approx(sorted(measured))
    assert told["correlation"] == pytest.approx(stats.spearman(abs(effects), measured))
    near = [entry["position"] for entry in told["nearest"]]
    assert near == np.argsort(measured)[:6].tolist()
    monkeypatch.setattr("whence.explorer.views.MOST_POINTS", 30)
    few = client.get("/api/queries/3/distances").json()["block"]["points"]
    assert len(few) == 27  # every third, the largest effect first
    assert few[0]["y"] == effects[abs(effects).argmax()]


def test_pictures_are_those_of_the_examples(client, problem):
    for kind, position, display in (
        ("examples", 7, problem.show(7)),
        ("queries", 3, problem.show_query(PICTURES[103].reshape(-1))),
    ):
        response = client.get(f"/{kind}/{position}/picture.png")
        assert response.headers["content-type"] == "image/png"
        assert response.content == b64decode(display["png"])
    assert client.get("/examples/80/picture.png").status_code == 404
    assert client.get("/others/1/picture.png").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/queries/12", "/queries/-1", "/queries/x", "/examples/80", "/questions/zz", "/nothing"],
)
def test_what_does_not_exist_is_said_in_words(client, path):
    for address in (path, f"/api{path}"):
        response = client.get(address)
        assert response.status_code == 404
    assert response.json()["error"]["found"]


@pytest.mark.parametrize("wrong", ["page=0", "page=x", "size=100000", "sort=name"])
def test_parameters_that_make_no_sense_are_refused_with_a_remedy(client, wrong):
    response = client.get(f"/api/queries?{wrong}")
    assert response.status_code == 400
    assert response.json()["error"]["remedy"]


def test_filters_stand_in_the_address(client):
    told = client.get("/api/queries?label=3&sort=loss").json()
    assert {query["label"] for query in told["queries"]} == {"3"}
    page = client.get("/?label=3").text
    assert "<option selected>3</option>" in page


def test_a_removal_is_predicted_then_checked_by_retraining(client, ask, problem):
    queries = (PICTURES[100:112], LABELS[100:112])
    predicted = ask(kind="change", remove=[4, 11])
    expected = whence.remove(problem, queries, group=[4, 11])
    rows = predicted["answer"]["queries"]
    assert np.allclose([row["predicted"] for row in rows], expected.predicted)
    assert all(row["actual"] is None for row in rows)
    again = client.post(f"/api/questions/{predicted['id']}/again", json={"retrain": True})
    checked = until_done(client, again.json()["id"])
    actual = [row["actual"] for row in checked["answer"]["queries"]]
    trained = whence.remove(problem, queries, group=[4, 11], retrain=True)
    assert np.allclose(actual, trained.actual, atol=1e-6)
    assert checked["answer"]["score"]["queries"] == 12
    page = client.get(checked["href"]).text
    assert "after retraining" in page
    assert "Without 2 training examples" in page


def test_other_labels_are_predicted(ask, problem):
    told = ask(kind="change", relabel={"4": "4"})
    expected = whence.relabel(problem, (PICTURES[100:112], LABELS[100:112]), example=4, label=4)
    rows = told["answer"]["queries"]
    assert np.allclose([row["predicted"] for row in rows], expected.predicted)


def test_all_opponents_of_a_query_are_one_change(ask, session):
    told = ask(kind="change", side_of=["opponents", 5])
    assert told["asked"]["remove"] == np.flatnonzero(session.catalog.scores.values[5] > 0).tolist()
    assert told["answer"]["queries"][5]["predicted"] > 0


def test_a_check_by_retraining_becomes_the_verdict_of_the_run(ask, client, session, problem):
    told = ask(kind="verification", examples=9)
    expected = whence.verify(problem, session.catalog.scores, examples=9)
    assert told["answer"]["examples"] == 9
    assert told["answer"]["pearson"] == pytest.approx(expected.pearson)
    trust = client.get("/api/verification").json()
    assert trust["verification"]["examples"] == 9
    assert trust["trust"]["sentence"] == told["answer"]["sentence"]
    assert client.get(told["href"]).text.count("svg") >= 1


def test_a_question_that_is_cancelled_says_so_and_can_be_asked_again(client, session, monkeypatch):
    go_on = Event()
    monkeypatch.setattr("whence.explorer.questions.answer_change", lambda *_: go_on.wait(20) and {})
    asked = client.post("/api/questions", json={"kind": "change", "remove": [4]}).json()
    page = client.get(asked["href"]).text
    assert "<progress" in page
    assert "Cancel" in page
    told = client.post(f"/api/questions/{asked['id']}/cancel").json()
    assert told["state"] == "cancelled"
    go_on.set()
    page = client.get(asked["href"]).text
    assert "Nothing was changed" in page
    assert f"/api/questions/{asked['id']}/again" in page
    assert session.desk.find(asked["id"]).answer is None


def test_a_question_of_a_server_that_was_ended_says_so(folder, session, monkeypatch):
    go_on, begun = Event(), Event()
    monkeypatch.setattr(
        "whence.explorer.questions.answer_change", lambda *_: begun.set() or go_on.wait(20) or {}
    )
    asked = client_of(session, **HEADER).post(
        "/api/questions", json={"kind": "change", "remove": [4]}
    )
    assert begun.wait(10)
    after = Session.open(Catalog.open(folder), None)  # as the next server opens it
    go_on.set()
    page = client_of(after, **HEADER).get(asked.json()["href"]).text
    assert "The server was ended before the answer was there" in page


def test_parts_of_an_example_are_shown_as_a_section(ask, client):
    told = ask(kind="pixels", query=3, example=7)
    assert told["answer"]["section"]["kind"] == "perturb"
    assert client.get(told["href"]).text.count('class="picture"') >= 2


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "change"},
        {"kind": "change", "remove": ["../../etc/passwd"]},
        {"kind": "change", "remove": [80]},
        {"kind": "change", "remove": [-1]},
        {"kind": "change", "remove": [True]},
        {"kind": "change", "remove": "12"},
        {"kind": "change", "relabel": {"4": "eleven"}},
        {"kind": "change", "relabel": [1]},
        {"kind": "change", "side_of": ["others", 1]},
        {"kind": "pixels", "query": 3, "example": None},
        {"kind": "schools", "query": 99},
        {"kind": "verification", "examples": 0},
        {"kind": "verification", "examples": "many"},
        {"kind": "os.system"},
        {"kind": ["change"]},
        {},
    ],
)
def test_questions_that_make_no_sense_are_refused_before_any_work(client, session, body):
    response = client.post("/api/questions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["remedy"]
    assert session.desk.questions() == []


def test_a_review_from_suspects_to_the_cleaned_data(client, ask, session, problem, monkeypatch):
    told = ask(kind="suspects")
    listed = [suspect["id"] for suspect in told["answer"]["suspects"]]
    assert listed == whence.find_mislabels(problem).ranking.tolist()
    assert f"Training example {listed[0]} " in client.get("/review").text

    def decide(position: int, action: str, label: str | None = None) -> None:
        body = {"position": position, "action": action, "label": label}
        assert client.post("/api/review", json=body).status_code == 200

    decide(4, "relabel", "4")
    decide(11, "drop")
    decide(17, "drop")
    decide(17, "undo")
    decide(20, "keep")
    made = client.get("/api/decisions").json()["decisions"]
    assert [(d["id"], d["action"], d["label"]) for d in made] == [
        (4, "relabel", "4"),
        (11, "drop", None),
        (20, "keep", None),
    ]
    monkeypatch.setattr("whence.explorer.views.writes_parquet", lambda: True)
    assert 'href="/export/cleaned.hf.zip"' in client.get("/review").text
    monkeypatch.setattr("whence.explorer.views.writes_parquet", lambda: False)
    page = client.get("/review").text
    assert "cleaned.hf.zip" not in page
    assert "whence[parquet]" in page
    cleaned = np.load(io.BytesIO(client.get("/export/cleaned.npz").content), allow_pickle=False)
    kept = [i for i in range(80) if i != 11]
    assert cleaned["id"].tolist() == kept
    assert np.array_equal(cleaned["x"].reshape(79, -1), PICTURES[kept])
    given = [int(problem.label_of(i)) for i in kept]
    given[4] = 4
    assert cleaned["y"].tolist() == given
    rows = list(csv.DictReader(io.StringIO(client.get("/export/decisions.csv").text)))
    assert [row["action"] for row in rows] == ["relabel", "drop", "keep"]
    retrained = client.post(
        "/api/questions", json={"kind": "change", "reviewed": True, "retrain": True}
    )
    answer = until_done(client, retrained.json()["id"])
    assert answer["asked"]["remove"] == [11]
    assert answer["asked"]["relabel"] == {"4": "4"}
    assert answer["answer"]["score"]["right_after"] >= answer["answer"]["score"]["right_before"]


@pytest.mark.parametrize(
    "body",
    [
        {"position": 4, "action": "explode"},
        {"position": 4, "action": "relabel"},
        {"position": 4, "action": "relabel", "label": "eleven"},
        {"position": 80, "action": "keep"},
        {"position": "4", "action": "keep"},
        {"action": "keep"},
    ],
)
def test_decisions_that_make_no_sense_are_refused(client, session, body):
    assert client.post("/api/review", json=body).status_code == 400
    assert session.review.decisions() == {}


def test_a_saved_run_without_its_problem_shows_all_but_what_needs_the_model(folder):
    alone = client_of(Session.open(Catalog.open(folder), None), **HEADER)
    for path in PAGES:
        assert alone.get(path).status_code == 200, path
    assert "Saved run only" in alone.get("/").text
    refused = alone.post("/api/questions", json={"kind": "change", "remove": [1]})
    assert refused.status_code == 400
    assert "--problem" in refused.json()["error"]["remedy"]
    assert alone.post("/api/review", json={"position": 1, "action": "drop"}).status_code == 200
    assert alone.get("/export/decisions.json").json()[0]["action"] == "drop"


def test_two_runs_of_the_same_queries_are_compared(folder, problem, tmp_path):
    queries = (PICTURES[100:112], LABELS[100:112])
    scores = whence.explain(problem, queries, method="identity")
    other = tmp_path / "plain"
    album = make_album(problem, scores)
    save_run(other, scores, tell(problem, scores), album=album, problem=None)
    both = Session.open(Catalog.open(folder), None, Catalog.open(other))
    told = client_of(both, **HEADER).get("/api/queries/3/comparison?top=4").json()
    first, second = both.catalog.scores.values[3], scores.values[3]
    assert [run["name"] for run in told["runs"]] == ["why", "plain"]
    assert told["spearman"] == pytest.approx(stats.spearman(first, second))
    assert told["shared"] == len({*proponents(first, 4)} & {*proponents(second, 4)})
    page = client_of(both, **HEADER).get("/queries/3/comparison").text
    assert "plain" in page
    alone = client_of(Session.open(Catalog.open(folder), None), **HEADER)
    assert alone.get("/queries/3/comparison").status_code == 400


def test_runs_of_other_queries_are_not_compared(folder, problem, tmp_path):
    scores = whence.explain(problem, (PICTURES[100:103], LABELS[100:103]))
    album = make_album(problem, scores)
    save_run(tmp_path / "few", scores, tell(problem, scores), album=album, problem=None)
    with pytest.raises(BadArgument, match="other queries"):
        Session.open(Catalog.open(folder), None, Catalog.open(tmp_path / "few"))


def test_the_openapi_document_tells_of_every_address(client):
    paths = client.get("/api/openapi.json").json()["paths"]
    read = [path for path in paths if "get" in paths[path]]
    assert len(read) == len(VIEWS) + len(EXPORTS)
    for name in EXPORTS:
        answer = client.get(f"/export/{name}")
        content = paths[f"/export/{name}"]["get"]["responses"]["200"]["content"]
        assert answer.status_code == 400 or answer.headers["content-type"].split(";")[0] in content
    assert "post" in paths["/api/review"]
    assert all(entry["get"]["summary"] for entry in paths.values() if "get" in entry)


def test_a_check_of_very_many_retrainings_is_shown_by_a_sample_that_says_so(session, client):
    points = [
        {"query": q, "example": i, "predicted": q - i / 100, "actual": q + i / 100}
        for q in range(100)
        for i in range(200)
    ]
    whole = session.catalog.story["verification"]
    session.catalog.story["verification"] = {**whole, "points": points, "points_total": 10**7}
    told = client.get("/api/verification").json()["verification"]
    assert (len(told["points"]), told["points_total"]) == (1429, 10**7)  # every 14th
    assert len({point["query"] for point in told["points"]}) == 100
    assert told["pearson"] == whole["pearson"]
    page = client.get("/verification").text
    assert "Drawn: 1,429 of 10,000,000 points, a sample." in page
    session.catalog.story["verification"] = whole
    assert "a sample" not in client.get("/verification").text


def test_work_that_cannot_be_ended_says_that_it_goes_on(session, client):
    is_inside, go_on = Event(), Event()

    def work() -> dict:
        is_inside.set()
        assert go_on.wait(20)
        return {}

    asked = {"remove": [1], "relabel": {}, "retrain": True}
    question = session.desk.ask("change", asked, work)
    assert is_inside.wait(10)
    client.post(f"/api/questions/{question.id}/cancel", json={})
    assert client.get(f"/api/questions/{question.id}").json()["is_ending"]
    assert "goes on to its end" in client.get(f"/questions/{question.id}").text
    go_on.set()
    for _ in range(500):
        if not session.desk.is_ending(question):
            break
        time.sleep(0.01)
    assert "goes on to its end" not in client.get(f"/questions/{question.id}").text
    assert "Cancelled" in client.get(f"/questions/{question.id}").text
