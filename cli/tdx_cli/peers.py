"""``tdx peers``: every machine that is known here, and whether it takes files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx.model import shown
from tdx_cli.options import JSON, config_option, state_option
from tdx_cli.text import columns, say, say_json, warn
from tdx_cli.values import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tdx.control.peers import Seen

HEADING: Final = ("NAME", "WHO", "FROM", "PATH", "STATE")
SHOWN_OF_KEY: Final = 16


@click.command("peers", short_help="List the machines that are known here.")
@JSON
@click.option(
    "--timeout",
    type=TIMEOUT,
    metavar="TIME",
    default=2.0,
    help="How long each of them may take to answer.  [default: 2s]",
)
@config_option()
@state_option("Where this device's key and the trusted devices are kept.")
def command(as_json: bool, timeout: float, config: Path | None, state: Path | None) -> None:
    """List the members of the meshes, the paired devices and, with `discover = true` in the
    configuration, what is announced on the local network; each is asked whether it takes files."""
    import asyncio
    import os

    from tdx.config import load_identity, load_state
    from tdx.control.peers import list_peers

    settings = load_identity(config, os.environ)
    seen = asyncio.run(list_peers(settings, state or load_state(config, os.environ), timeout, warn))
    if as_json:
        for each in seen:
            say_json(_document(each))
    elif seen:
        _say_table([HEADING, *map(_row, seen)])
    else:
        warn("nobody is known here: join a mesh, or introduce two machines with `tdx pair`")


def _row(seen: Seen) -> tuple[str, ...]:
    key = seen.identity is None or not (seen.identity.tags or seen.identity.user)
    who = seen.who[:SHOWN_OF_KEY] + "…" if key and len(seen.who) > SHOWN_OF_KEY else seen.who
    state = f"{seen.standing}: {seen.reason}" if seen.reason else str(seen.standing)
    return tuple(shown(text) for text in (seen.name, who, ", ".join(seen.sources), seen.path or "-", state))


def _say_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be. A terminal gets of each row what it has a line for."""
    most = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None
    for line in columns(rows):
        say(line if most is None or len(line) <= most else f"{line[: most - 1]}…")


def _document(seen: Seen) -> dict[str, object]:
    identity = seen.identity
    return {
        "event": "peer",
        "name": seen.name,
        "who": seen.who,
        "user": identity and identity.user,
        "node": identity and identity.node,
        "tags": identity and identity.tags,
        "owner": identity and identity.owner,
        "own": identity is not None and identity.own,
        "sources": seen.sources,
        "addresses": seen.addresses,
        "state": seen.standing,
        "reason": seen.reason or None,
        "path": seen.path or None,
    }
