"""What a command answers, and the one place where answers and failures are printed.

A command returns an `Answer`. Standard output belongs to it alone: whatever a user's file prints
while it runs goes to standard error, as do progress bars and messages, so that `--json` is exactly
one document and a pipe sees nothing else.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from whence import progress
from whence.errors import WhenceError

if TYPE_CHECKING:  # rich is loaded when there is something to draw
    from rich.console import RenderableType

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it: 128 + SIGINT."""


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Args:
        document: for programs; printed by `--json`.
        shown: for people; printed one below the other.
        path: what was written, if anything: the last line, and the only one under `--quiet`.
        then: what goes on once the answer is printed, until it is interrupted.
    """

    document: Any
    shown: "Sequence[RenderableType]" = ()
    path: object = None
    then: Callable[[], None] | None = None


_QUIET = "Print only the path of what was written."

COMMANDS = "Commands"
"""The heading of a command that has no other."""


class Guide(click.Group):
    """The group of all commands, whose help begins with examples and lists them by headings."""

    def __init__(self, *args: Any, examples: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it is for, and how to start."""
        super().format_help_text(ctx, formatter)
        _write_examples(formatter, "Start here", self.examples)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with a line, in the order in which they are taught."""
        headings: dict[str, list[click.Command]] = {}
        for command in self.commands.values():
            headings.setdefault(getattr(command, "heading", COMMANDS), []).append(command)
        widest = max(map(len, self.commands), default=0)
        for heading, commands in headings.items():
            with formatter.section(heading):
                told = formatter.width - widest - 6
                rows = [(f"{c.name:<{widest}}", c.get_short_help_str(told)) for c in commands]
                formatter.write_dl(rows)


class AnswerCommand(click.Command):
    """A command that returns an `Answer`, and so knows `--json`; its help ends with examples."""

    def __init__(
        self, *args: Any, examples: Sequence[str], heading: str = COMMANDS, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.examples = examples
        self.heading = heading
        told = "Print one JSON document and nothing else."
        self.params.append(click.Option(["--json", "is_json"], is_flag=True, help=told))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lines that can be copied."""
        _write_examples(formatter, "Example", self.examples)

    def invoke(self, ctx: click.Context) -> None:
        """Runs the command and prints its answer, or why there is none."""
        is_json = ctx.params.pop("is_json")
        is_quiet = ctx.params.pop("is_quiet", False)
        try:
            answer = self._answer(ctx, is_quiet=is_quiet)
        except WhenceError as error:
            _print_error(error, is_json=is_json)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nInterrupted. Nothing was left half-written.", err=True)
            ctx.exit(INTERRUPTED)
        try:
            _print_answer(answer, is_json=is_json, is_quiet=is_quiet)
        except BrokenPipeError:  # the reader, such as `head -1`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if answer.then is not None:
            sys.stdout.flush()
            with redirect_stdout(sys.stderr):
                answer.then()

    def _answer(self, ctx: click.Context, *, is_quiet: bool) -> Answer:
        with redirect_stdout(sys.stderr):
            if not is_quiet:
                return super().invoke(ctx)
            with progress.quiet():
                return super().invoke(ctx)


def _write_examples(formatter: click.HelpFormatter, title: str, examples: Sequence[str]) -> None:
    """Each on a line of its own, however narrow the terminal is."""
    with formatter.section(title):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def quiet() -> click.Option:
    """The option `--quiet` of a command that writes something."""
    return click.Option(["--quiet", "is_quiet"], is_flag=True, help=_QUIET)


def quiet_option(command: Any) -> Any:
    """Adds `--quiet` to a command that is being decorated."""
    return click.option("--quiet", "is_quiet", is_flag=True, help=_QUIET)(command)


def _print_answer(answer: Answer, *, is_json: bool, is_quiet: bool) -> None:
    if is_json:
        _print_document(answer.document)
        return
    if not is_quiet:
        _draw(answer.shown)
    if answer.path is not None:
        click.echo(str(answer.path))


def _print_error(error: WhenceError, *, is_json: bool) -> None:
    if is_json:
        parts = {"found": error.found, "why": error.why, "remedy": error.remedy}
        _print_document({"error": {"type": type(error).__name__, **parts}})
    else:
        click.echo(f"{type(error).__name__}: {error}", err=True)


def _print_document(document: Any) -> None:
    from whence.store.jsonable import as_json, json_text

    click.echo(json_text(as_json(document, "the answer")))


def _draw(shown: "Sequence[RenderableType]") -> None:
    """Draws through click, which knows closed pipes, and without colours where nobody sees them."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for part in shown:
            console.print(part)
    click.echo(captured.get(), nl=False)
