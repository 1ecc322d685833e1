"""Two-column tables for terminals and notebooks."""

import html
from collections.abc import Sequence

Rows = Sequence[tuple[str, str]]
"""Names and texts."""


def plain_table(title: str, rows: Rows) -> str:
    """A title, and a line for each row with the names in a column of their own."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def html_table(title: str, rows: Rows) -> str:
    """The same as HTML, with everything escaped and no scripts."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
