"""``tdx get``: move on what has arrived."""

from __future__ import annotations

from pathlib import Path

import click

from tdx_cli.inbox import CONFIG, DIR, STATE, places
from tdx_cli.options import CONFLICT, EVENTS, QUIET
from tdx_cli.values import TIMEOUT


@click.command("get", short_help="Move on what has arrived.", no_args_is_help=False)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@DIR
@click.option(
    "--to",
    "destination",
    type=click.Path(path_type=Path),
    metavar="DEST",
    default=Path(),
    help="The folder to move to.  [default: the current one]",
)
@click.option("--wait", is_flag=True, help="Wait until something, or each NAME, is there.")
@click.option("--loop", is_flag=True, help="Go on for ever, moving what arrives.")
@click.option("--timeout", type=TIMEOUT, metavar="TIME", help="End after this long.")
@CONFLICT
@EVENTS
@QUIET
@CONFIG
@STATE
def command(
    names: tuple[str, ...],
    *,
    folder: Path | None,
    destination: Path,
    wait: bool,
    loop: bool,
    timeout: float | None,
    conflict: str,
    as_json: bool,
    quiet: bool,
    config: Path | None,
    state: Path | None,
) -> int:
    """Move what `tdx inbox` lists, or the files and folders with these NAMEs, from the receiver's folder
    to DEST, with the paths that they have there.

    Whole files only, each by one of several that run at once. The receiver may run meanwhile, or not.
    """
    from tdx.control.getting import GetOptions
    from tdx.model import Conflict
    from tdx_cli.getting import Run

    folder, state = places(folder, config, state)
    options = GetOptions(folder, state, destination, names, Conflict(conflict), wait=wait, loop=loop)
    return Run(options, timeout, as_json=as_json, quiet=quiet).get()
