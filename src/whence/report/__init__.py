"""Results for readers: a story in plain JSON, and a page that stands alone."""

from whence.report.html import render, write_report, write_sections
from whence.report.story import tell, tell_sections, with_sections

__all__ = ["render", "tell", "tell_sections", "with_sections", "write_report", "write_sections"]
