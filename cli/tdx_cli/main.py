"""From the process to an exit code: every failure is one line on standard error, never a traceback.

Next to nothing is imported until :func:`run` watches, so that also an interrupt during
start-up ends in a line.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

INTERRUPTED: Final = 75
IO_ERROR: Final = 74
INTERNAL: Final = 70
USAGE: Final = 64
YOUNG_OBJECTS: Final = 20_000
"""How many new objects the collector waits for: a start makes many and leaves no rubbish, so that looking
through them every few hundred, as is the interpreter's way, is a twentieth of the time it takes."""

COMPLETE: Final = "_TDX_COMPLETE"
"""Environment variable: set by the scripts of `tdx completion` where a shell asks how a word may go on."""

DEBUG: Final = "TDX_DEBUG"
"""Environment variable: anything but empty or 0 shows the traceback of what nobody expected."""


def main() -> NoReturn:
    """The console script: run the command line of this process and exit with its code."""
    _occupy_closed_outlets()
    gc.set_threshold(YOUNG_OBJECTS)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # one more, while the first was being explained
        code = INTERRUPTED
    _leave(code)


def _occupy_closed_outlets() -> None:
    """Who was started with 0, 1 or 2 closed would get a socket or a file of that number, and
    read or write there what was meant for a standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number: this one. A child shall find it open, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _leave(code: int) -> NoReturn:
    """Exit with ``code`` whatever happens. The interpreter's own end would make signals
    deadly again, and another code of an output that cannot be flushed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Writes at most one line about what ended it."""
    try:
        from tdx_cli.app import tdx

        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            # A file name that the terminal's encoding lacks must not end a push.
            reconfigure(errors="backslashreplace")
        if instruction := os.environ.get(COMPLETE):
            from click.shell_completion import shell_complete

            return shell_complete(tdx, {}, "tdx", COMPLETE, instruction)
        with tdx.make_context("tdx", list(arguments)) as context:
            code = tdx.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return _explain(error)
    return code or 0


def _explain(error: BaseException) -> int:
    """Say in a line what happened; the exit code for it."""
    try:
        import click

        from tdx.errors import TdxError
    except ImportError as missing:  # pragma: no cover - a broken installation
        return _complain(f"this installation is incomplete: {missing}", INTERNAL)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _complain("interrupted", INTERRUPTED)
    if isinstance(error, TdxError):
        return _complain(error.message, error.exit_code)
    if isinstance(error, click.ClickException):
        return _complain(_usage(error), USAGE)
    if isinstance(error, BrokenPipeError):
        return IO_ERROR
    if isinstance(error, OSError):
        about = f": {error.filename}" if error.filename is not None else ""
        return _complain(f"{error.strerror or error}{about}", IO_ERROR)
    return unexpected(error)


def _usage(error: object) -> str:
    import click

    assert isinstance(error, click.ClickException)
    message = " ".join(error.format_message().split()).removesuffix(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "tdx" if context is None else context.command_path
    return f"{message[:1].lower()}{message[1:]} (see {command} --help)"


def unexpected(error: BaseException) -> int:
    """Say in a line that this was no failure that anybody expected; the exit code for it."""
    if os.environ.get(DEBUG, "0") not in {"", "0"}:
        import traceback

        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    what = " ".join(str(error).split())
    message = f"{type(error).__name__}: {what}" if what else type(error).__name__
    return _complain(f"this should not happen: {message} ({DEBUG}=1 shows where)", INTERNAL)


def _complain(message: str, code: int) -> int:
    from tdx_cli.text import warn

    warn(message)
    return code
