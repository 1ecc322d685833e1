"""Everything that other pages, other users and forged requests may try."""

import pytest

from explored import HEADER, PORT, TOKEN, client_of
from whence.explorer.guard import LARGEST_BODY

OWN = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def stranger(session):
    """A client without the token."""
    return client_of(session)


@pytest.mark.parametrize(
    "path", ["/", "/api/queries", "/examples/1/picture.png", "/static/page.js"]
)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
def test_without_the_token_nothing_is_shown(stranger, path, token):
    parameters = {} if token is None else {"token": token}
    response = stranger.get(path, params=parameters)
    assert response.status_code == 403
    assert "set-cookie" not in response.headers
    assert TOKEN not in response.text


def test_the_first_view_leaves_a_cookie_that_opens_the_next_ones(stranger):
    first = stranger.get("/", params={"token": TOKEN})
    assert first.status_code == 200
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/queries/1").status_code == 200


def test_the_cookie_alone_changes_nothing(stranger, session):
    stranger.get("/", params={"token": TOKEN})
    for path, body in (("/api/review", {"position": 1, "action": "drop"}), ("/api/questions", {})):
        assert stranger.post(path, json=body).status_code == 403
        assert stranger.post(f"{path}?token={TOKEN}", json=body).status_code == 403
    assert session.review.decisions() == {}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_get_and_post_are_answered(client, method):
    assert client.request(method, "/api/review").status_code == 405


@pytest.mark.parametrize(
    "path", ["/api/review", "/api/questions/1/cancel", "/api/questions/1/again"]
)
def test_nothing_is_changed_by_get(client, session, path):
    assert client.get(f"{path}?position=1&action=drop").status_code in (200, 404, 405)
    assert session.review.decisions() == {}


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "", "127.0.0.1:1"]
)
def test_another_host_is_refused_even_with_the_token(client, host):
    """A name that somebody points at this machine: DNS rebinding."""
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", [f"localhost:{PORT}", f"127.0.0.1:{PORT}"])
def test_the_names_of_this_machine_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"]
)
def test_another_origin_is_refused_even_with_the_token(client, session, origin):
    body = {"position": 1, "action": "drop"}
    assert client.post("/api/review", json=body, headers={"origin": origin}).status_code == 403
    assert client.get("/api/queries", headers={"origin": origin}).status_code == 403
    assert session.review.decisions() == {}


def test_requests_that_other_pages_send_are_refused(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/examples/1/picture.png", headers=headers).status_code == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=followed).status_code == 200  # a link that a person has clicked


def test_the_own_page_may_change(client):
    body = {"position": 1, "action": "drop"}
    own = {"origin": OWN, "sec-fetch-site": "same-origin"}
    assert client.post("/api/review", json=body, headers=own).status_code == 200


def test_a_request_that_is_too_large_is_refused_unread(client, session):
    large = b'{"position": 1, "action": "drop", "pad": "' + b"x" * LARGEST_BODY + b'"}'
    assert client.post("/api/review", content=large).status_code == 413
    assert client.post("/api/review", content=iter([b"{}"])).status_code == 411
    assert client.get("/?q=" + "x" * 9000).status_code == 414
    assert session.review.decisions() == {}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}']
)
def test_bodies_that_are_no_object_are_refused(client, body):
    response = client.post("/api/review", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["found"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/%2e%2e/errors.py",
        "/static//etc/passwd",
        "/static/frame.html",
        "/examples/..%2f..%2f/picture.png",
        "/queries/%2e%2e/picture.png",
        "/export/../manifest.json",
        "/export/scores.npz",
        "/export/%2e%2e%2fmanifest.json",
        "/questions/..%2f..%2fmanifest",
        "/api/questions/..%2fdecisions",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert "root:" not in response.text
    assert "whence-run" not in response.text


def test_every_answer_forbids_what_it_does_not_need(client, stranger):
    for response in (client.get("/"), client.get("/api/run"), stranger.get("/")):
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in response.headers


def test_the_header_is_as_good_as_the_address(stranger):
    assert stranger.get("/api/run", headers=HEADER).status_code == 200
