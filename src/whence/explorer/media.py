"""Pictures and sounds of queries and training examples, each under its own address."""

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from whence.explorer.live import READY
from whence.explorer.views import Session

KEPT = {"cache-control": "private, max-age=86400"}
"""An address is that of one run, on one port, and costs nothing to ask again."""

_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{0,12})")


def picture(session: Session, request: Request) -> Response:
    """The picture of an image, the spectrogram of a sound."""
    png = _content(session, request, "png")
    return Response(png, media_type="image/png", headers=KEPT)


def recording(session: Session, request: Request) -> Response:
    """The file of a sound, or the part of it that a player asks for when it is moved."""
    wav = _content(session, request, "wav")
    headers = KEPT | {"accept-ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None:
        return Response(wav, media_type="audio/wav", headers=headers)
    first, last = int(asked[1]), min(int(asked[2] or len(wav)), len(wav) - 1)
    if first > last:
        return Response(status_code=416, headers={"content-range": f"bytes */{len(wav)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(wav)}"
    return Response(wav[first : last + 1], 206, media_type="audio/wav", headers=headers)


def _content(session: Session, request: Request, part: str) -> bytes:
    """A part of a display: from the run, else from the problem where it is at hand.

    Raises:
        HTTPException: there is none.
    """
    kind, position = request.path_params["kind"], request.path_params["position"]
    counts = {
        "queries": len(session.catalog.scores.query_ids),
        "examples": len(session.catalog.scores.train_ids),
    }
    is_there = kind in counts and position.isascii() and position.isdigit() and len(position) < 12
    if is_there and int(position) < counts[kind]:
        content = _display(session, kind, int(position)).get(part)
        if content:
            return b64decode(content)
    raise HTTPException(404, f"There is no such {'picture' if part == 'png' else 'sound'}.")


def _display(session: Session, kind: str, position: int) -> Mapping[str, Any]:
    catalog, live = session.catalog, session.live
    is_missing = kind == "examples" and not catalog.is_kept(position)
    if is_missing and live.state == READY:
        return live.display(position)
    return catalog.display(kind, position)
