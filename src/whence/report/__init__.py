"""Results for readers: a story in plain JSON, and a page that stands alone."""

from whence.report.html import render, write_report
from whence.report.story import tell

__all__ = ["render", "tell", "write_report"]
