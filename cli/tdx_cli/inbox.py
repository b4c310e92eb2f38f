"""``tdx inbox``: what has arrived."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx.model import shown
from tdx_cli.options import JSON, config_option, state_option
from tdx_cli.text import columns, say, say_json, size_of, warn

if TYPE_CHECKING:
    from tdx.store.receipts import ArrivedFile

HEADING: Final = ("RECEIVED", "SIZE", "VERIFIED", "FROM", "PATH")
SHOWN_OF_OWNER: Final = 24

DIR: Final = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of a receiver, running or not.  [default: as the configuration says]",
)
CONFIG: Final = config_option("A TOML file that names the receiver's folder.")
STATE: Final = state_option("Where the receiver keeps its receipts.")


@click.command("inbox", short_help="List what has arrived.")
@DIR
@JSON
@CONFIG
@STATE
def command(folder: Path | None, as_json: bool, config: Path | None, state: Path | None) -> None:
    """List what was published in DIR and is still there, the newest last, with the owner of what
    arrived. What came there by other means is not in the list."""
    from tdx.control.getting import list_inbox

    folder, state = places(folder, config, state)
    files = list_inbox(folder, state)
    if as_json:
        for each in files:
            say_json(_document(each), flush=False)
    elif files:
        for line in columns([HEADING, *map(_row, files)], {"SIZE"}):
            say(line, flush=False)
    else:
        warn(f"nothing has arrived in {shown(str(folder))}, or all of it was moved on")


def places(folder: Path | None, config: Path | None, state: Path | None) -> tuple[Path, Path]:
    """The receiver's folder and its state directory: as flags say, else as the configuration does."""
    from tdx.config import default_config_file, load, load_state
    from tdx.errors import UsageError

    config = config or default_config_file(os.environ)
    if folder is None and config is not None:
        folder = load(config).get("folder")
    if folder is None:
        raise UsageError('no folder: give --dir DIR, or dir = "DIR" in the configuration')
    return folder, state or load_state(config, os.environ)


def _row(file: ArrivedFile) -> tuple[str, ...]:
    at = file.published_at
    owner = file.owner
    return (
        "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at)),
        size_of(file.size),
        {True: "yes", False: "no", None: "-"}[file.verified],
        shown(owner if len(owner) <= SHOWN_OF_OWNER else owner[:SHOWN_OF_OWNER] + "…"),
        shown(file.path),
    )


def _document(file: ArrivedFile) -> dict[str, object]:
    return {
        "event": "arrived",
        "path": file.path,
        "size": file.size,
        "published_at": file.published_at,
        "owner": file.owner,
        "verified": file.verified,
        "root": file.root,
    }
