"""``tdx status``: what the receiver on this machine is doing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx_cli.options import JSON, config_option, socket_option, state_option
from tdx_cli.text import say, say_json
from tdx_cli.values import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, object]

WATCH: Final = click.option(
    "--watch",
    type=TIMEOUT,
    metavar="TIME",
    is_flag=False,
    flag_value="1s",
    help="Ask again after each TIME, until Ctrl-C.  [default with --watch: 1s]",
)


@click.command("status", short_help="Show what a receiver is doing.")
@JSON
@WATCH
@socket_option("The Unix socket of the receiver.")
@config_option("A TOML file that says where the receiver keeps its state, or has its socket.")
@state_option("Where the receiver keeps its state, and has its socket.")
def command(
    as_json: bool, watch: float | None, socket: Path | None, config: Path | None, state: Path | None
) -> None:
    """Show what the receiver on this machine is doing: each file that is on its way, how fast, and what holds
    it up. Only the receiver's own user and root may ask.

    Exits with 69 where no receiver runs.
    """
    from tdx.control.local_client import ask_status

    path = _socket_of(socket, config, state)
    if watch is None:
        _tell(ask_status(path), as_json)
    else:
        _watch(lambda: ask_status(path), watch, as_json)


def _socket_of(socket: Path | None, config: Path | None, state: Path | None) -> Path:
    from tdx.config import load_socket, local_socket

    if socket is not None:
        return socket
    return load_socket(config, os.environ) if state is None else local_socket(state)


def _tell(document: Document, as_json: bool) -> None:
    if as_json:
        say_json({"event": "status", **document})
        return
    from tdx_cli.status_view import lines_of

    for line in lines_of(document, _columns()):
        say(line)


def _columns() -> int | None:
    """What a line has room for; None where it is for no terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def _watch(ask: Callable[[], Document], interval: float, as_json: bool) -> None:
    """Until something ends it: Ctrl-C, SIGTERM, which is taken for the same, or the receiver's end."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    picture = None if as_json or not _can_redraw() else _Picture()
    began = time.monotonic()
    try:
        while True:
            document = ask()
            if picture is None:
                _tell(document, as_json)
            else:
                picture.show(document)
            # At its own times, however long an answer takes.
            passed = time.monotonic() - began
            time.sleep(interval - passed % interval)
    finally:
        if picture is not None:
            picture.close()


def _can_redraw() -> bool:
    return (
        sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    )


class _Picture:
    """The newest answer on a terminal, in the place of the one before."""

    def __init__(self) -> None:
        # NO_COLOR and narrow terminals are rich's to respect.
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop")

    def close(self) -> None:
        """Leave the last one where it is."""
        self._live.stop()

    def show(self, document: Document) -> None:
        from rich.text import Text

        from tdx_cli.status_view import lines_of

        first, *others = lines_of(document, self._live.console.width)
        text = Text(first, style="bold", no_wrap=True, overflow="ellipsis")
        text.append("".join(f"\n{line}" for line in others), style="not bold")
        if not self._live.is_started:
            self._live.start()
        self._live.update(text, refresh=True)
