"""Progress bars that appear only when something takes longer than two seconds.

Bars go to standard error, only when that is a terminal, and never inside `quiet()`; piped output
stays clean. Loops anywhere in whence wrap their iterable in `track`. A program that shows progress
itself looks on (`watched`), and may end the work between two steps; inside a step that takes long,
where the work calls `breathe`.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_is_quiet: ContextVar[bool] = ContextVar("whence_is_quiet", default=False)
_is_inside: ContextVar[bool] = ContextVar("whence_is_inside_a_bar", default=False)

Watcher = Callable[[str, int, int | None], None]
"""Takes what is being done, how many steps of it are done, and of how many where that is known."""

_watcher: ContextVar[Watcher | None] = ContextVar("whence_watcher", default=None)
_pulse: ContextVar[Callable[[], None] | None] = ContextVar("whence_pulse", default=None)

PATIENCE = 2.0
"""Seconds before a bar is shown."""


@contextmanager
def quiet() -> Generator[None, None, None]:
    """No progress bars inside this block."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


@contextmanager
def watched(
    watcher: Watcher, pulse: Callable[[], None] | None = None
) -> Generator[None, None, None]:
    """Tells a watcher of every step inside this block; no bars are drawn.

    Args:
        watcher: what it raises ends the work before the next step.
        pulse: is called more often, and may end the work in the same way.
    """
    tokens = _watcher.set(watcher), _pulse.set(pulse)
    try:
        yield
    finally:
        _watcher.reset(tokens[0])
        _pulse.reset(tokens[1])


def breathe() -> None:
    """Lets whoever watches end the work here: between batches, or between steps of an optimizer."""
    pulse = _pulse.get()
    if pulse is not None:
        pulse()


@contextmanager
def breathing_inside(*packages: str) -> Generator[None, None, None]:
    """Breathes for loops of other packages, whenever one of their functions is called.

    Nothing is done where nobody watches. Elsewhere every call of a function in this thread costs a
    tenth of a microsecond, so the block should hold numerical work.

    Args:
        packages: names with which modules begin that may be ended anywhere.
    """
    if _pulse.get() is None:
        yield
        return

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith(packages):
            breathe()

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


def track(iterable: Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
    """The same items, with a bar once `PATIENCE` seconds have passed.

    A bar inside another bar is not drawn.

    Args:
        iterable: what is worked through.
        label: what is being done, in a few words.
        total: how many items there are, where `len` cannot tell.
    """
    count = total if total is not None else getattr(iterable, "__len__", lambda: None)()
    watcher = _watcher.get()
    if watcher is not None:
        yield from _told(iterable, label, count, watcher)
        return
    if _is_quiet.get() or _is_inside.get() or not sys.stderr.isatty():
        yield from iterable
        return
    token = _is_inside.set(True)
    try:
        yield from _with_bar(iterable, label, count)
    finally:
        _is_inside.reset(token)


def _told(iterable: Iterable[T], label: str, total: int | None, watcher: Watcher) -> Iterator[T]:
    watcher(label, 0, total)
    for done, item in enumerate(iterable, start=1):
        yield item
        watcher(label, done, total)


def _with_bar(iterable: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    try:
        for item in iterable:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - started > PATIENCE:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()
