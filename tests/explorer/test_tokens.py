"""Tokens of training texts in the explorer: asked once, kept with the run, and escaped."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import texts
import whence
from explored import HEADER, client_of, until_done
from whence.core.problem import Problem
from whence.explorer.catalog import Catalog
from whence.explorer.views import Session
from whence.report import tell
from whence.report.album import make_album
from whence.report.runs import save_run

EXAMPLE = 4


@pytest.fixture(scope="module")
def words() -> Problem:
    """Classified texts, one of whose words looks like markup."""
    return texts.classified(weight_decay=0.2).problem


@pytest.fixture(scope="module")
def written(words: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = whence.explain(words, texts.classified().queries)
    folder = tmp_path_factory.mktemp("runs") / "words"
    album = make_album(words, scores)
    save_run(folder, scores, tell(words, scores), album=album, problem=None)
    return folder


@pytest.fixture
def texts_session(written: Path, words: Problem, tmp_path: Path) -> Session:
    opened = Session.open(Catalog.open(shutil.copytree(written, tmp_path / "words")), lambda: words)
    opened.live.wait(30)
    return opened


@pytest.fixture
def reader(texts_session: Session) -> TestClient:
    return client_of(texts_session, **HEADER)


def asked(reader: TestClient, **more: Any) -> dict[str, Any]:
    body = {"kind": "tokens", "query": 1, "example": EXAMPLE, **more}
    response = reader.post("/api/questions", json=body)
    assert response.status_code == 202, response.text
    return until_done(reader, response.json()["id"])


def test_the_tokens_of_a_text_are_those_of_the_library(reader: TestClient, words: Problem) -> None:
    assert asked(reader)["state"] == "done"
    told = reader.get(f"/api/queries/1/tokens/{EXAMPLE}").json()
    asked_for = words.queries(texts.classified().queries).take([1])
    expected = whence.token_effects(words, asked_for, example=EXAMPLE)
    block = told["answer"]["section"]["blocks"][0]
    assert [text for text, _ in block["pieces"]] == list(expected.tokens)
    np.testing.assert_allclose([x for _, x in block["pieces"]], expected.values[0], rtol=1e-6)
    assert told["question"]["state"] == "done"
    assert told["answer"]["by"] == "input"


def test_an_answer_that_is_there_is_given_again(reader: TestClient, texts_session: Session) -> None:
    first = asked(reader)
    assert asked(reader)["id"] == first["id"]
    assert asked(reader, by="input")["id"] != first["id"]
    assert len(texts_session.desk.questions()) == 2
    again = Session.open(texts_session.catalog, None)  # another server, without the model
    told = client_of(again, **HEADER).get(f"/api/queries/1/tokens/{EXAMPLE}").json()
    assert told["answer"]["section"]["kind"] == "token_effects"


def test_a_question_that_failed_is_asked_anew(reader: TestClient, texts_session: Session) -> None:
    first = asked(reader, by="loss")
    assert first["state"] == "failed"
    assert 'by="input"' in first["error"]["remedy"]
    page = reader.get(f"/queries/1/tokens/{EXAMPLE}?by=loss").text
    assert "no sum over positions" in page
    assert asked(reader, by="loss")["id"] != first["id"]


def test_a_page_offers_to_ask_and_shows_the_answer(reader: TestClient) -> None:
    address = f"/queries/1/tokens/{EXAMPLE}"
    before = reader.get(address).text
    assert "Find out" in before
    assert reader.get(f"/api{address}").json()["answer"] is None
    told = asked(reader)
    page = reader.get(address).text
    assert page.count('class="token ') >= 3
    assert "Find out" not in page
    assert told["words"] == f"Tokens of training example {EXAMPLE} for query 1"
    assert "highlighted" in reader.get(told["href"]).text


def test_words_that_look_like_markup_stay_text(reader: TestClient, words: Problem) -> None:
    tokens = words.data.take(torch.arange(12))[0]["tokens"]
    row = next(i for i in range(12) if texts.WORDS.index("<b>") in tokens[i].tolist())
    asked(reader, example=row)
    page = reader.get(f"/queries/1/tokens/{row}").text
    shown = page.split('class="tokens"')[1].split("</table>")[0]
    assert shown.count("&lt;b&gt;") == 2 * tokens[row].tolist().count(texts.WORDS.index("<b>"))
    assert "<b>" not in shown


def test_a_query_offers_tokens_beside_every_text(
    reader: TestClient, client: TestClient, texts_session: Session
) -> None:
    told = reader.get("/api/queries/1").json()["query"]
    beside = [*told["proponents"], *told["opponents"]]
    assert [one["tokens"] for one in beside] == [
        f"/queries/1/tokens/{one['position']}" for one in beside
    ]
    assert reader.get("/queries/1").text.count("data-tokens=") == len(beside) > 0
    without = client_of(Session.open(texts_session.catalog, None), **HEADER)
    assert "data-tokens=" not in without.get("/queries/1").text
    assert "data-tokens=" not in client.get("/queries/1").text  # digits


@pytest.mark.parametrize("address", ["1/tokens/99", "99/tokens/1", "1/tokens/x", "1/tokens/-1"])
def test_tokens_of_what_does_not_exist_are_not_found(reader: TestClient, address: str) -> None:
    assert reader.get(f"/queries/{address}").status_code == 404
    assert reader.get(f"/api/queries/{address}").status_code == 404


def test_a_way_that_does_not_exist_is_refused(reader: TestClient, texts_session: Session) -> None:
    assert reader.get("/queries/1/tokens/1?by=output").status_code == 400
    for wrong in ({"by": "output"}, {"example": 12}, {"query": 3}, {"example": None}):
        body = {"kind": "tokens", "query": 1, "example": 1} | wrong
        assert reader.post("/api/questions", json=body).status_code == 400
    assert texts_session.desk.questions() == []


def test_tokens_of_numbers_are_refused_by_the_answer(client: TestClient) -> None:
    body = {"kind": "tokens", "query": 1, "example": 1}
    told = until_done(client, client.post("/api/questions", json=body).json()["id"])
    assert told["state"] == "failed"
    assert "no tokens" in told["error"]["found"]


def test_programs_find_it_described(reader: TestClient) -> None:
    paths = reader.get("/api/openapi.json").json()["paths"]
    told = paths["/api/queries/{position}/tokens/{example}"]["get"]
    assert [one["name"] for one in told["parameters"]] == ["position", "example", "by"]
    schema = paths["/api/questions"]["post"]["requestBody"]["content"]["application/json"]
    assert "tokens" in schema["schema"]["properties"]["kind"]["enum"]


def test_the_list_of_questions_names_them(reader: TestClient) -> None:
    told = asked(reader)
    page = reader.get("/questions").text
    assert f'<a href="/questions/{told["id"]}">Tokens of a training text</a>' in page
