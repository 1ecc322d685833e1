"""The JSON of the explorer, described for programs as OpenAPI."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from whence.explorer.guard import TOKEN_HEADER
from whence.version import __version__

Json = dict[str, Any]


class Described(Protocol):
    """What has to be known of a view."""

    @property
    def path(self) -> str:
        """Its address, without /api."""
        ...

    @property
    def answer(self) -> Any:
        """The function that answers, which says in its documentation what."""
        ...

    @property
    def parameters(self) -> Any:
        """Names of parameters, with what they mean."""
        ...


class File(Protocol):
    """What has to be known of a file that is exported."""

    @property
    def media_type(self) -> str:
        """Of its content."""
        ...

    @property
    def words(self) -> str:
        """What it holds."""
        ...


_CHANGES: dict[str, tuple[str, Json]] = {
    "/api/questions": (
        "Asks a question; its answer is found at the address that comes back.",
        {
            "kind": {"enum": ["change", "verification", "suspects", "pixels", "tokens", "schools"]},
            "remove": {"type": "array", "items": {"type": "integer"}},
            "relabel": {"type": "object", "additionalProperties": {"type": "string"}},
            "side_of": {"type": "array", "description": '["opponents", position of the query]'},
            "reviewed": {"type": "boolean", "description": "the change that was decided on"},
            "retrain": {"type": "boolean"},
            "examples": {"type": "integer", "description": "retrainings of a verification"},
            "query": {"type": "integer"},
            "by": {"type": "string", "description": "auto, loss or input, of tokens; or a ranking"},
            "example": {"type": "integer"},
        },
    ),
    "/api/questions/{id}/again": ("Asks it anew.", {"retrain": {"type": "boolean"}}),
    "/api/questions/{id}/cancel": ("Gives up on a question.", {}),
    "/api/review": (
        "Keeps a decision on the label of a training example.",
        {
            "position": {"type": "integer"},
            "action": {"enum": ["keep", "relabel", "drop", "undo"]},
            "label": {"type": "string"},
        },
    ),
}


def describe(views: Iterable[Described], files: Mapping[str, File]) -> Json:
    """The OpenAPI document.

    Args:
        views: that have JSON.
        files: that are exported, by name.
    """
    paths: Json = {}
    for view in views:
        path = "/api/queries" if view.path == "/" else f"/api{view.path}"
        paths.setdefault(path, {})["get"] = _read(path, view)
    for path, (summary, properties) in _CHANGES.items():
        paths.setdefault(path, {})["post"] = _change(path, summary, properties)
    for name, file in files.items():
        paths[f"/export/{name}"] = {"get": _file(file)}
    header = {"type": "apiKey", "in": "header", "name": TOKEN_HEADER}
    query = {"type": "apiKey", "in": "query", "name": "token"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "whence explorer", "version": __version__},
        "components": {"securitySchemes": {"header": header, "address": query}},
        "security": [{"header": []}, {"address": []}],
        "paths": paths,
    }


def _read(path: str, view: Described) -> Json:
    optional = [
        {"name": name, "in": "query", "description": words, "schema": {"type": "string"}}
        for name, words in view.parameters.items()
    ]
    return {
        "summary": (inspect.getdoc(view.answer) or "").splitlines()[0],
        "parameters": [*_in_path(path), *optional],
        "responses": {"200": {"description": "JSON"}, "404": {"description": "no such thing"}},
    }


def _file(file: File) -> Json:
    refused = {"description": "the problem is not at hand, or its data do not fit this file"}
    return {
        "summary": f"A file with {file.words}.",
        "responses": {
            "200": {"description": "the file", "content": {file.media_type: {}}},
            "400": refused,
        },
    }


def _change(path: str, summary: str, properties: Json) -> Json:
    schema = {"type": "object", "properties": properties}
    return {
        "summary": summary,
        "security": [{"header": []}],
        "parameters": _in_path(path),
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "done"}, "400": {"description": "refused"}},
    }


def _in_path(path: str) -> list[Json]:
    names = re.findall(r"\{(\w+)\}", path)
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
