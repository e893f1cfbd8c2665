"""What the command-line tools share: one line for what the user can mend, exit codes, and nothing heavy imported."""

from __future__ import annotations

import errno
import io
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ezaudio.runtime.errors import EzAudioError

if TYPE_CHECKING:
    ListType = click.ParamType[list[Any]]
else:
    ListType = click.ParamType  # which takes a parameter since Click 8.4 alone

MAX_LINE = 1000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Command(click.Command):
    """What the user can mend is one line and exit code 2, Ctrl-C is 130, and a defect keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed by the caller: no reason to fail, nor for a file to take its number
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file name that the terminal cannot show is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.ClickException as error:
            message = error.format_message()
        except EzAudioError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            place = f" '{error.filename}'" if error.filename else ""
            message = f"no room to write{place} ({error.strerror}): free some, or write elsewhere"
        except MemoryError:
            message = "there is not enough memory for this: ask for less at once, or close other programs"
        except (click.Abort, ImportError) as error:
            # A module in C that is loading makes an ImportError of Ctrl-C.
            if isinstance(error, ImportError) and not isinstance(error.__cause__, KeyboardInterrupt):
                raise
            click.echo("Interrupted: no unfinished file was left.", err=True)
            sys.exit(130)
        line = one_line(message)
        if len(line) > MAX_LINE:  # such as every weight that a file lacks; at its end it says what to do
            line = f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"
        click.echo(f"Error: {line}", err=True)
        sys.exit(2)


class FloatRange(click.FloatRange):
    """Click's own takes what is no number: NaN is neither below nor above a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if number != number:
            self.fail(f"{value} is no number.", param, ctx)
        return number


class Group(Command, click.Group):
    """Subcommands that report errors as `Command` does."""


def errors_only(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Callback of a --quiet that promises it: what is logged goes to stderr as well."""
    if value:
        import logging

        logger = logging.getLogger("ezaudio")
        ctx.call_on_close(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
    return value


def one_line(text: str) -> str:
    """Without line breaks and control characters: what a file brings along must not steer the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Numbers(ListType):
    """An option's numbers, with commas between them."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> list[Any]:
        try:
            return [self._kind(part) for part in value.split(",")] if value else []
        except ValueError:
            self.fail(f"{value!r} is no list of numbers: expected some with commas between, such as 0.2,1")
