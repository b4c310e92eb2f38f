"""``tdx push``: files, folders or standard input to a peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx_cli.options import config_option, state_option
from tdx_cli.values import SCHEDULE, TIMEOUT

if TYPE_CHECKING:
    from tdx.policy.bandwidth import RateSchedule
    from tdx_cli.report import Report

CONFLICTS = ("rename", "overwrite", "skip", "error")
PUMPS = ("auto", "sendfile", "buffered")


@click.command("push", short_help="Send files to a peer.", no_args_is_help=False)
@click.argument("arguments", nargs=-1, metavar="PATH... PEER")
@click.option("--resume", is_flag=True, help="Continue a partial that an earlier run left.")
@click.option("-r", "--recursive", is_flag=True, help="Push what folders hold.")
@click.option("--name", metavar="NAME", help="The name at the peer, instead of PATH's own.")
@click.option(
    "--conflict",
    type=click.Choice(CONFLICTS),
    default="rename",
    show_default=True,
    help="What to do where the name is taken.",
)
@click.option(
    "--streams", type=click.IntRange(1, 64), help="Parallel connections.  [default: found by measuring]"
)
@click.option(
    "--limit-rate",
    type=SCHEDULE,
    metavar="RATE",
    help="Most bytes per second: 20M, 20MB, 160Mbit; '08:00-18:00 20M, 200M'.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    default=8,
    show_default=True,
    help="Failures in a row without progress that are borne.",
)
@click.option("--timeout", type=TIMEOUT, metavar="TIME", help="End the whole run after this long.")
@click.option(
    "--stall-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default=60.0,
    help="Give a connection up when nothing moves for this long.  [default: 60s]",
)
@click.option(
    "--digest",
    type=click.Choice(["sha-256", "sha-512"]),
    help="Have the whole file verified by this digest as well.",
)
@click.option("--pump", type=click.Choice(PUMPS), help="Force the way in which bytes are moved.")
@click.option("--json", "as_json", is_flag=True, help="Events on standard output, one JSON object a line.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing but errors.")
@config_option()
@state_option("Where digests, this device's key and the trusted devices are kept.")
def command(
    arguments: tuple[str, ...],
    *,
    resume: bool,
    recursive: bool,
    name: str | None,
    conflict: str,
    streams: int | None,
    limit_rate: RateSchedule | None,
    retries: int,
    timeout: float | None,
    stall_timeout: float,
    digest: str | None,
    pump: str | None,
    as_json: bool,
    quiet: bool,
    config: Path | None,
    state: Path | None,
) -> int:
    """Send every PATH to PEER and exit with 0 once all are there.

    PEER is the name of a paired device or of a machine on a mesh, HOST or HOST:PORT.

    PATH - reads standard input and needs --name. Exits with 75 where running it again with
    --resume would help.
    """
    from tdx.errors import UsageError

    if len(arguments) < 2:
        raise UsageError("push needs a PATH and a PEER, as in: tdx push FILE PEER")
    *paths, given_peer = arguments
    import asyncio
    import os

    from tdx_cli import plan

    plan.check(paths, name=name, resume=resume, digest=digest)
    from tdx.config import load_identity, load_limit_rate, load_state
    from tdx.control.resolve import Peer
    from tdx.control.sender import SenderOptions
    from tdx.model import Conflict
    from tdx_cli.pushing import Run, Wishes

    peer = Peer.parse(given_peer)
    kept = state or load_state(config, os.environ)
    several = len(paths) > 1 or (recursive and Path(paths[0]).is_dir())
    wishes = Wishes(
        peer=peer,
        sender=SenderOptions(
            limit_rate=load_limit_rate(config, os.environ) if limit_rate is None else limit_rate,
            retries=retries,
            stall_timeout=stall_timeout,
            identity=load_identity(config, os.environ),
            state=kept,
        ),
        state=kept,
        conflict=Conflict(conflict),
        resume=resume,
        streams=streams,
        digest=digest,
        pump=pump,
        timeout=timeout,
        quiet=quiet,
        several=several,
    )
    report = _report(str(peer), as_json=as_json, quiet=quiet, several=several)
    with asyncio.Runner() as runner:
        return runner.run(Run(wishes, report).push(plan.plan(paths, name=name, recursive=recursive)))


def _report(peer: str, *, as_json: bool, quiet: bool, several: bool) -> Report:
    import sys

    from tdx_cli.report import JsonReport, Report, Several, TextReport

    lines = JsonReport(peer) if as_json else Report() if quiet else TextReport(peer)
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        return lines
    from tdx_cli.progress import TerminalReport

    # The bar goes before the line that takes its place.
    return Several([TerminalReport(several=several), lines])
