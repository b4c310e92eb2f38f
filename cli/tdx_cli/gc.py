"""``tdx gc``: remove what was abandoned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx.model import shown
from tdx_cli.options import JSON, state_option
from tdx_cli.text import say, say_json, seconds_of, size_of
from tdx_cli.values import DURATION

if TYPE_CHECKING:
    from tdx.store.port import Partial

DAY: Final = 86400.0
DIGESTS_KEPT: Final = 30 * DAY
"""Seconds for which a sender's digests are worth keeping: longer than any receiver keeps a partial."""


@click.command("gc", short_help="Remove abandoned uploads and old digests.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of a receiver, running or not; without it only digests are looked at.",
)
@click.option(
    "--older-than",
    type=DURATION,
    metavar="TIME",
    help="Remove what was idle for longer.  [default: 7d for uploads, 30d for digests, 60d for roots]",
)
@JSON
@state_option("Where receipts and digests are kept.")
def command(folder: Path | None, older_than: float | None, as_json: bool, state: Path | None) -> None:
    """Remove the partials in DIR that nobody has continued for a while, and what is remembered of sources
    that were not pushed for long.

    An upload that is in use is never removed.
    """
    import os
    import time

    from tdx.config import load_state
    from tdx.store.digestlog import DigestLog
    from tdx.store.roots import KEPT_DAYS, Roots

    state = state or load_state(None, os.environ)
    now = time.time()
    removed = [] if folder is None else _expire(folder, state, now, older_than)
    logs = DigestLog.prune(state / "digests", now, DIGESTS_KEPT if older_than is None else older_than)
    roots = Roots.prune(state, now, KEPT_DAYS * DAY if older_than is None else older_than)
    freed = sum(partial.staged_bytes for partial in removed)
    for partial in removed:
        idle = now - partial.touched_at
        if as_json:
            event = {
                "event": "removed",
                "upload": partial.upload,
                "name": partial.spec.name,
                "bytes": partial.staged_bytes,
                "idle_seconds": round(idle),
            }
            say_json(event)
        else:
            say(
                f"removed {shown(partial.spec.name)}: {size_of(partial.staged_bytes)}, "
                f"idle for {seconds_of(idle) if idle < DAY else f'{idle / DAY:.1f} days'}"
            )
    if as_json:
        summary = {"event": "summary", "uploads": len(removed), "bytes": freed, "digest_logs": logs}
        say_json({**summary, "roots": roots})
    else:
        say(
            f"{len(removed)} uploads ({size_of(freed)}), the digests of {logs} sources"
            f" and the roots of {roots} files removed"
        )


def _expire(folder: Path, state: Path, now: float, older_than: float | None) -> list[Partial]:
    from tdx.errors import ConfigError
    from tdx.store.local import LocalStore

    if not folder.is_dir():
        raise ConfigError(f"{shown(str(folder))}: is no folder")
    if not (folder / ".tdx").is_dir():
        # Never received into: opening a store would make one of it.
        return []
    store = LocalStore(folder, state, exclusive=False)
    try:
        return store.expire(now, older_than)
    finally:
        store.close()
