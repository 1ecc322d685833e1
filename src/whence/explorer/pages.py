"""Views as HTML, from the same parts as the saved report."""

from functools import cache
from typing import Any

from whence.report.html import environment, static

Json = dict[str, Any]

FILES = {
    "style.css": ("report", "text/css"),
    "page.js": ("report", "text/javascript"),
    "explorer.css": ("explorer", "text/css"),
    "explorer.js": ("explorer", "text/javascript"),
    "icon.svg": ("explorer", "image/svg+xml"),
}
"""What pages load, by name, each with its package: no name from a request reaches the disk."""


@cache
def asset(name: str) -> tuple[bytes, str]:
    """A file that pages load, and its type.

    Args:
        name: one of `FILES`.
    """
    package, kind = FILES[name]
    return static(name, package).encode("utf-8"), kind


def draw_view(template: str, told: Json, *, frame: Json) -> str:
    """The page of a view.

    Args:
        template: its name, without the ending.
        told: what the view says.
        frame: what stands on every page: the run, the token, the current address.
    """
    templates = environment("report", "explorer")
    return templates.get_template(f"{template}.html").render(view=told, **frame)
