"""Who may ask: only pages and programs on this machine that know the token.

A web page of somebody else, open in the same browser, can reach a server on loopback. It does not
know the token; its requests carry its own Origin; and where it has pointed a name of its own at
this machine (DNS rebinding), they carry that name as Host. Each of these is refused.
"""

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 2**20
"""Bytes that a request may bring."""

LONGEST_ADDRESS = 8192

TOKEN_HEADER = "x-whence-token"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere, and no script or style stands inside a page."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Guard:
    """Lets through what comes from this machine and knows the token.

    Args:
        app: what answers.
        token: that was printed when the server started.
        port: of the server.
    """

    app: ASGIApp
    token: str
    port: int

    @property
    def cookie(self) -> str:
        """Name of the cookie; servers on other ports share the cookies of this one."""
        return f"whence-{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names under which this server is asked."""
        names = ("127.0.0.1", "localhost", "[::1]")
        return tuple(f"{name}:{self.port}" for name in names) + (names if self.port == 80 else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, self._sender(scope, send))
            return
        await self.app(scope, _limited(receive), self._sender(scope, send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self.hosts:
            return _refused(scope, 421, "This server answers only under its own address.")
        if not self._is_own_origin(headers):
            return _refused(scope, 403, "Requests of other pages are not answered.")
        if len(scope["path"]) + len(scope["query_string"]) > LONGEST_ADDRESS:
            return _refused(scope, 414, "The address is too long.")
        if not self._is_known(scope, headers):
            words = "Open the address that whence explore has printed: it ends in a token."
            return _refused(scope, 403, words)
        return self._refusal_of_change(scope, headers)

    def _refusal_of_change(self, scope: Scope, headers: Headers) -> Response | None:
        """Changes bring the token in a header, which only a page of this server can set."""
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return _refused(scope, 405, "Only GET and POST are answered.")
        if not self._is_token(headers.get(TOKEN_HEADER)):
            return _refused(scope, 403, f"A change needs the token in the header {TOKEN_HEADER}.")
        length = headers.get("content-length", "")
        if not length.isdigit():
            return _refused(scope, 411, "A request with contents says how long they are.")
        if int(length) > LARGEST_BODY:
            return _refused(scope, 413, f"A request brings at most {LARGEST_BODY:,} bytes.")
        return None

    def _is_own_origin(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        is_own = origin is None or origin in {f"http://{host}" for host in self.hosts}
        is_navigation = headers.get("sec-fetch-mode") == "navigate" and origin is None
        return is_own and (site in (None, "same-origin", "none") or is_navigation)

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        given = (
            _token_in_address(scope),
            headers.get(TOKEN_HEADER),
            self._token_in_cookie(headers),
        )
        return any(self._is_token(token) for token in given)

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _token_in_cookie(self, headers: Headers) -> str | None:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return None if found is None else found.value

    def _sender(self, scope: Scope, send: Send) -> Send:
        """Adds what every answer carries, and the cookie to the first view."""
        is_first = self._is_token(_token_in_address(scope))

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if is_first:
                    value = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                    headers.append("set-cookie", value)
            await send(message)

        return add


def _limited(receive: Receive) -> Receive:
    """Ends a request that brings more than it has said."""
    left = LARGEST_BODY

    async def count() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return count


def _token_in_address(scope: Scope) -> str | None:
    given = parse_qs(scope["query_string"].decode("latin-1")).get("token", ())
    return given[0] if given else None


def _refused(scope: Scope, status: int, words: str) -> Response:
    if scope["path"].startswith("/api"):
        body: Iterable[Any] = {"error": {"found": words}}
        return Response(json.dumps(body), status, media_type="application/json")
    return PlainTextResponse(words, status)
