"""A server on loopback, for one session, until it is interrupted."""

import errno
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_urlsafe
from threading import Thread

from whence.errors import BadArgument
from whence.explorer.app import make_app
from whence.explorer.views import Session

HEAD_START = 1.5
"""Seconds in which the first view has the processor to itself, before the model is loaded."""

HOST = "127.0.0.1"
"""Only programs on this machine reach it."""

PORT = 8765
"""Where it is, unless another one is there."""


@dataclass(frozen=True)
class Server:
    """A server that has its port.

    Args:
        session: what it shows.
        listening: socket, bound to loopback.
        token: that every request has to know.
    """

    session: Session
    listening: socket.socket
    token: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.listening.getsockname()[1]

    @property
    def address(self) -> str:
        """Of the first view, with the token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Answers until Ctrl-C."""
        import uvicorn

        Thread(target=self._get_ready, name="whence-get-ready", daemon=True).start()
        app = make_app(self.session, token=self.token, port=self.port)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        with suppress(KeyboardInterrupt):  # uvicorn has let open requests end
            uvicorn.Server(config).run(sockets=[self.listening])

    def _get_ready(self) -> None:
        """Draws a first chart, which takes a second longer than all others, and loads the model."""
        from whence.report.svg import draw

        time.sleep(HEAD_START)
        draw({"data": {"values": [{"x": 0}]}, "mark": "point"}, "", "first")
        self.session.live.begin()


def listen(session: Session, port: int | None = None) -> Server:
    """A server with a port of its own.

    Args:
        session: what it shows.
        port: 0 = any that is free; None = 8765, or any where that is taken.

    Raises:
        BadArgument: the port is taken, or may not be used.
    """
    try:
        listening = _bound(PORT if port is None else port)
    except BadArgument:
        if port is not None:
            raise
        listening = _bound(0)
    return Server(session, listening, token_urlsafe(24))


def _bound(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        is_taken = error.errno == errno.EADDRINUSE
        raise BadArgument(
            found=f"Port {port} {'is taken' if is_taken else f'is refused ({error.strerror})'}.",
            why="Only one program answers at a port, and low ones belong to the system.",
            remedy="Leave --port out for one that is free, or name another.",
        ) from error
    return listening
