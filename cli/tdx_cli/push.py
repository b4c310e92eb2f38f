"""``tdx push``: files, folders or standard input to a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx_cli.options import (
    CONFLICT,
    EVENTS,
    METRICS_INTERVAL,
    METRICS_PUSH,
    METRICS_TEXTFILE,
    QUIET,
    complete_path_or_peer,
    config_option,
    state_option,
)
from tdx_cli.values import SCHEDULE, TIMEOUT

if TYPE_CHECKING:
    from tdx.control.patterns import Patterns
    from tdx.policy.bandwidth import RateSchedule
    from tdx_cli.measuring import PushMeasuring
    from tdx_cli.report import Report

LINKS = ("skip", "follow", "preserve")
PUMPS = ("auto", "sendfile", "buffered")
UNABLE = ("", "dumb", "unknown")
"""Terminals that cannot draw a line anew."""
ORDER = "tdx.push.patterns"


class _InOrder(click.Command):
    """Keeps in which order the patterns stand on the command line: of those that match, the last counts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[ORDER] = [each.name for each in order if each.name in ("exclude", "include", "exclude_from")]
        return super().parse_args(ctx, args)


@click.command("push", cls=_InOrder, short_help="Send files to a peer.", no_args_is_help=False)
@click.argument("arguments", nargs=-1, metavar="PATH... PEER", shell_complete=complete_path_or_peer)
@click.option("--resume", is_flag=True, help="Continue a partial that an earlier run left.")
@click.option("-r", "--recursive", is_flag=True, help="Push what folders hold.")
@click.option(
    "--links",
    type=click.Choice(LINKS),
    default="skip",
    show_default=True,
    help="What to do about symbolic links in folders.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches in folders, as gitignore does.",
)
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Take back in what an earlier one left out."
)
@click.option(
    "--exclude-from",
    multiple=True,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Read patterns from a file like .gitignore.",
)
@click.option("--name", metavar="NAME", help="The name at the peer, instead of PATH's own.")
@CONFLICT
@click.option(
    "--whole", is_flag=True, help="Send all of a file that overwrites another, not what has changed."
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
@EVENTS
@click.option("-v", "--verbose", is_flag=True, help="A line also for what is there already.")
@QUIET
@METRICS_TEXTFILE
@METRICS_PUSH
@click.option("--metrics-task", metavar="NAME", help="With either: what this is called at every run.")
@METRICS_INTERVAL
@config_option()
@state_option("Where digests, this device's key and the trusted devices are kept.")
@click.pass_context
def command(
    context: click.Context,
    arguments: tuple[str, ...],
    *,
    resume: bool,
    recursive: bool,
    links: str,
    exclude: tuple[str, ...],
    include: tuple[str, ...],
    exclude_from: tuple[str, ...],
    name: str | None,
    conflict: str,
    whole: bool,
    streams: int | None,
    limit_rate: RateSchedule | None,
    retries: int,
    timeout: float | None,
    stall_timeout: float,
    digest: str | None,
    pump: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    metrics_textfile: Path | None,
    metrics_push: str | None,
    metrics_task: str | None,
    metrics_interval: float | None,
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
    from contextlib import ExitStack

    from tdx_cli import plan

    wanted = (metrics_textfile, metrics_push, metrics_task, metrics_interval)
    measuring: PushMeasuring | None = None
    with ExitStack() as stack:
        if any(each is not None for each in wanted):
            from tdx_cli.measuring import push_measuring

            measuring = stack.enter_context(push_measuring(*wanted, given_peer))
        plan.check(paths, name=name, resume=resume, digest=digest)
        from tdx.config import load_identity, load_limit_rate, load_state
        from tdx.control.resolve import Peer
        from tdx.control.sender import SenderOptions
        from tdx.model import Conflict, Links
        from tdx_cli.deadline import Deadline
        from tdx_cli.pushing import Run, Wishes

        peer = Peer.parse(given_peer)
        if measuring is not None:
            measuring.peer = str(peer)
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
            whole=whole,
            streams=streams,
            digest=digest,
            pump=pump,
            timeout=timeout,
            quiet=quiet,
            several=several,
        )
        report = _report(str(peer), as_json=as_json, quiet=quiet, several=several, verbose=verbose)
        given = {"exclude": exclude, "include": include, "exclude_from": exclude_from}
        patterns = _patterns(context.meta[ORDER], given)
        items = plan.plan(paths, name=name, recursive=recursive, links=Links(links), patterns=patterns)
        with Deadline(timeout) as deadline, asyncio.Runner() as runner:
            run = Run(wishes, report)
            if measuring is not None:
                measuring.totals = run.totals
            code = runner.run(run.push(items))
            deadline.settle(code)
        if measuring is not None:
            measuring.code = code
        return code


def _patterns(order: Sequence[str], given: Mapping[str, Sequence[str]]) -> Patterns | None:
    if not order:
        return None
    from tdx.control.patterns import Patterns, excluding, including, lines_of

    left = {option: iter(values) for option, values in given.items()}
    lines: list[str] = []
    for option in order:
        value = next(left[option])
        if option == "exclude_from":
            lines += lines_of(value)
        else:
            lines.append(including(value) if option == "include" else excluding(value))
    return Patterns(lines)


def _report(peer: str, *, as_json: bool, quiet: bool, several: bool, verbose: bool) -> Report:
    import os
    import sys

    from tdx_cli.report import JsonReport, Report, Several, TextReport

    lines = (
        JsonReport(peer)
        if as_json
        else Report()
        if quiet
        else TextReport(peer, brief=several and not verbose)
    )
    if quiet or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "") in UNABLE:
        return lines
    from tdx_cli.progress import TerminalReport

    # The bar goes before the line that takes its place.
    return Several([TerminalReport(several=several), lines])
