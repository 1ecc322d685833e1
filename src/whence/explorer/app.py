"""Addresses of the explorer: for each view a page and, under /api, the same as JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from whence.errors import BadArgument, StoreError, WhenceError
from whence.explorer import media, views
from whence.explorer.desk import DONE, OPEN, Question
from whence.explorer.examples import examples
from whence.explorer.exports import EXPORTS
from whence.explorer.guard import Guard
from whence.explorer.openapi import describe
from whence.explorer.pages import FILES, asset, draw_view
from whence.explorer.questions import WAYS, prepare
from whence.explorer.tokens import tokens
from whence.explorer.views import Parameters, Session
from whence.store.jsonable import as_json, json_text

Json = dict[str, Any]


@dataclass(frozen=True)
class View:
    """One view.

    Args:
        path: its address; that of the JSON begins with /api.
        answer: gives what it says.
        template: name of its page; None where there is only JSON.
        parameters: that its address may carry, with what they mean.
    """

    path: str
    answer: Callable[[Session, Parameters], Json]
    template: str | None
    parameters: Mapping[str, str]


_PAGING = {"page": "from 1", "size": "entries a page, at most 500"}
_FILTER = {
    "label": "only queries with this label",
    "says": "only queries of which the model says this",
    "wrong": "1: only queries on which model and label differ",
    "q": "words in text, row, label or id",
    "sort": "given, loss, value or confidence",
}
_EXAMPLES = {
    "label": "only training examples with this label",
    "q": "the id of one, or words in text, row or label of those whose looks the run keeps",
    "sort": "given or influence",
}
_TOP = {"top": "proponents and opponents, at most 100"}

VIEWS = (
    View("/", views.queries, "listing", _FILTER | _PAGING),
    View("/queries/{position}", views.query, "query", _TOP),
    View("/queries/{position}/distances", views.distances, "distances", {}),
    View(
        "/queries/{position}/tokens/{example}",
        tokens,
        "training_text",
        {"by": f"how the text is taken apart: {', '.join(WAYS)}"},
    ),
    View("/queries/{position}/comparison", views.comparison, "comparison", _TOP),
    View("/examples", examples, "examples", _EXAMPLES | _PAGING),
    View("/examples/{position}", views.example, "example", {}),
    View("/verification", views.verification, "verification", {}),
    View("/findings", views.findings, "findings", {}),
    View("/questions", views.questions, "questions", {}),
    View("/questions/{id}", views.question, "question", {}),
    View("/review", views.review, "review", {"at": "place of the suspect, from 0"}),
    View("/decisions", views.decisions, None, {}),
    View("/run", views.run, None, {}),
)


def make_app(session: Session, *, token: str, port: int) -> ASGIApp:
    """The explorer of one session, behind its guard.

    Args:
        session: what is shown.
        token: that every request has to know.
        port: under which it is asked.
    """
    pages = _Pages(session, token)
    routes = [Route(view.path, pages.page(view)) for view in VIEWS if view.template]
    routes += [Route(_api(view), pages.json(view)) for view in VIEWS]
    routes += [
        Route("/{kind}/{position}/picture.png", pages.picture),
        Route("/{kind}/{position}/sound.wav", pages.sound),
        Route("/static/{name}", _static),
        Route("/export/{name}", pages.export),
        Route("/api/openapi.json", lambda _: _as_json(describe(VIEWS, EXPORTS))),
        Route("/api/questions", pages.ask, methods=["POST"]),
        Route("/api/questions/{id}/cancel", pages.cancel, methods=["POST"]),
        Route("/api/questions/{id}/again", pages.again, methods=["POST"]),
        Route("/api/review", pages.decide, methods=["POST"]),
    ]
    handlers: Any = {WhenceError: pages.refuse, HTTPException: pages.refuse_address}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, port)


class _Pages:
    """Answers requests of one session."""

    def __init__(self, session: Session, token: str) -> None:
        self.session = session
        self.token = token

    # ------------------------------------------------------------------- views

    def page(self, view: View) -> Callable[[Request], Response]:
        """Answers with the page of a view."""

        def answer(request: Request) -> Response:
            told = view.answer(self.session, _parameters(request))
            return self._draw(view.template or "", told, request)

        return answer

    def json(self, view: View) -> Callable[[Request], Response]:
        """Answers with the JSON of a view."""
        return lambda request: _as_json(view.answer(self.session, _parameters(request)))

    def picture(self, request: Request) -> Response:
        """The picture of a query or a training example."""
        return media.picture(self.session, request)

    def sound(self, request: Request) -> Response:
        """The sound of a query or a training example."""
        return media.recording(self.session, request)

    def export(self, request: Request) -> Response:
        """Decisions, and the data as they leave it, to be saved as a file."""
        name = request.path_params["name"]
        if name not in EXPORTS:
            raise HTTPException(404, f"There are {', '.join(EXPORTS)}.")
        made = self.session.review.decisions()
        content = EXPORTS[name].make(lambda: self.session.live.problem, made)
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=EXPORTS[name].media_type, headers=disposition)

    # ----------------------------------------------------------------- changes

    async def ask(self, request: Request) -> Response:
        """Asks a question; answers at once with its address.

        {"kind": "change", "reviewed": true} asks what all decisions on labels would change.
        """
        return await self._asked(await _body(request))

    async def again(self, request: Request) -> Response:
        """Asks a question anew; {"retrain": true} also trains again."""
        found = self._question(request)
        changes = await _body(request)
        return await self._asked({"kind": found.kind, **found.asked, **changes})

    async def cancel(self, request: Request) -> Response:
        """Gives up on a question."""
        found = self._question(request)
        self.session.desk.cancel(found)
        return _as_json({"state": found.state, "href": f"/questions/{found.id}"})

    async def decide(self, request: Request) -> Response:
        """Keeps one decision: {"position", "action", "label"}."""
        body = await _body(request)
        ids, position = self.session.catalog.scores.train_ids, body.get("position")
        if not isinstance(position, int) or not 0 <= position < len(ids):
            raise BadArgument(
                found=f"position={str(position)[:40]}.",
                why=f"There are {len(ids):,} training examples, counted from 0.",
                remedy="Give the position of one.",
            )
        label = body.get("label")
        self.session.review.decide(
            ids[position].item(),
            str(body.get("action")),
            None if label is None else str(label),
        )
        return _as_json({"decided": len(self.session.review.decisions())})

    # ------------------------------------------------------------------- parts

    async def _asked(self, body: Json) -> Response:
        session = self.session
        if body.get("reviewed"):
            body |= session.review.as_change(session.catalog.scores.position)
        prepared = await run_in_threadpool(prepare, session.live, body)
        kept = session.desk.latest(prepared.kind, prepared.asked) if prepared.is_kept else None
        found = kept if kept is not None and kept.state in (DONE, *OPEN) else None
        found = found or session.desk.ask(prepared.kind, prepared.asked, prepared.work)
        return _as_json({"id": found.id, "href": f"/questions/{found.id}"}, 202)

    def _question(self, request: Request) -> Question:
        name = request.path_params["id"]
        found = self.session.desk.find(name)
        if found is None:
            raise HTTPException(404, f"There is no question {name[:20]}.")
        return found

    def _draw(self, template: str, told: Json, request: Request, status: int = 200) -> Response:
        frame = {
            "run": views.run(self.session, {}),
            "token": self.token,
            "path": request.url.path,
            "has_findings": bool(self.session.catalog.story.get("sections")),
        }
        return Response(draw_view(template, told, frame=frame), status, media_type="text/html")

    def refuse(self, request: Request, error: Exception) -> Response:
        """What was found, why it matters, what to do."""
        parts = {name: getattr(error, name) for name in ("found", "why", "remedy")}
        status = 500 if isinstance(error, StoreError) else 400
        return self._refusal(request, {"error": {"type": type(error).__name__, **parts}}, status)

    def refuse_address(self, request: Request, error: Exception) -> Response:
        """An address that does not exist."""
        status, words = getattr(error, "status_code", 404), str(getattr(error, "detail", ""))
        parts = {"found": words, "why": "", "remedy": ""}
        return self._refusal(request, {"error": {"type": "NoSuchView", **parts}}, status)

    def _refusal(self, request: Request, told: Json, status: int) -> Response:
        if request.url.path.startswith("/api") or request.method == "POST":
            return _as_json(told, status)
        return self._draw("refusal", told, request, status)


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise HTTPException(404, "There is no such file.")
    content, kind = asset(name)
    return Response(content, media_type=kind)


def _api(view: View) -> str:
    return "/api/queries" if view.path == "/" else f"/api{view.path}"


def _parameters(request: Request) -> dict[str, str]:
    return {**request.query_params, **request.path_params}


async def _body(request: Request) -> Json:
    """The JSON of a request.

    Raises:
        BadArgument: something else, or no object.
    """
    try:
        body = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadArgument(
            found="The body of the request is no JSON object.",
            why="A change says in JSON what is to be done.",
            remedy='Send for example {"kind": "suspects"}.',
        )
    return body


def _as_json(told: Json, status: int = 200) -> Response:
    text = json_text(as_json(told, "the answer"))
    return Response(text, status, media_type="application/json")
