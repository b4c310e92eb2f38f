"""``tdx batch``: many transfers from one file, for cron."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx_cli.options import (
    EVENTS,
    METRICS_INTERVAL,
    METRICS_PUSH,
    METRICS_TEXTFILE,
    QUIET,
    config_option,
    state_option,
)
from tdx_cli.values import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tdx.config.batch import Batch
    from tdx_cli.batching import Job
    from tdx_cli.measuring import BatchMeasuring

MACHINE_IDS: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")
"""Where a machine keeps an identifier that stays the same (machine-id(5))."""


@click.command("batch", short_help="Send what a file lists, for cron.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")
@click.option("--only", multiple=True, metavar="NAME", help="Run this item alone; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed, and push nothing.")
@click.option("--now", is_flag=True, help="Do not wait as jitter in FILE says.")
@click.option("--parallel", type=click.IntRange(1, 64), metavar="N", help="How many items at once.")
@click.option("--timeout", type=TIMEOUT, metavar="TIME", help="End the whole run after this long.")
@EVENTS
@QUIET
@METRICS_TEXTFILE
@METRICS_PUSH
@METRICS_INTERVAL
@config_option()
@state_option("Where digests, this device's key, the trusted devices and the batch's lock are kept.")
def command(
    file: Path,
    *,
    only: tuple[str, ...],
    dry_run: bool,
    now: bool,
    parallel: int | None,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    metrics_textfile: Path | None,
    metrics_push: str | None,
    metrics_interval: float | None,
    config: Path | None,
    state: Path | None,
) -> int:
    """Push every item of FILE to its peers and exit with 0 once all are there.

    One run of a FILE at a time: another one exits with 75 at once.
    """
    import os
    from dataclasses import replace

    from tdx.config.batch import load_batch

    batch = load_batch(file, os.environ)
    if parallel is not None:
        batch = replace(batch, parallel=parallel)
    jobs = _jobs(batch, only)
    if dry_run:
        from tdx_cli.batch_preview import Preview

        return Preview(batch.name, as_json=as_json, quiet=quiet).run(jobs)
    import asyncio
    from contextlib import ExitStack

    from tdx.config import load_identity, load_limit_rate, load_state
    from tdx_cli.batch_lock import only_run_of
    from tdx_cli.batching import BatchRun, Settings
    from tdx_cli.deadline import Deadline

    kept = state or load_state(config, os.environ)
    settings = Settings(
        state=kept,
        identity=load_identity(config, os.environ),
        limit_rate=load_limit_rate(config, os.environ),
        wait=0.0 if now else _wait_of(batch),
        timeout=batch.timeout if timeout is None else timeout,
        as_json=as_json,
        quiet=quiet,
    )
    limit = None if settings.timeout is None else settings.wait + settings.timeout
    measuring = _measuring(batch, jobs, metrics_textfile, metrics_push, metrics_interval)
    # Who does not run it, as another one does, has nothing to tell of it.
    with only_run_of(batch.path, kept), ExitStack() as stack:
        if measuring is not None:
            stack.enter_context(measuring)
        with Deadline(limit) as deadline, asyncio.Runner() as runner:
            code = runner.run(BatchRun(batch, jobs, settings).run())
            deadline.settle(code)
        if measuring is not None:
            measuring.code = code
    return code


def _measuring(
    batch: Batch, jobs: Sequence[Job], textfile: Path | None, url: str | None, interval: float | None
) -> BatchMeasuring | None:
    given = (textfile, url, interval, batch.metrics_textfile, batch.metrics_push)
    if all(each is None for each in given):
        return None
    from tdx_cli.measuring import batch_measuring

    return batch_measuring(batch, jobs, textfile, url, interval)


def _jobs(batch: Batch, only: Sequence[str]) -> list[Job]:
    """The items to run, in the file's order. UsageError for a name that none has; ConfigError for what
    cannot be a peer."""
    from tdx.control.resolve import Peer
    from tdx.errors import ConfigError, UsageError
    from tdx_cli.batch_plan import patterns_of
    from tdx_cli.batching import Job

    names = [item.name for item in batch.items]
    for name in only:
        if name not in names:
            raise UsageError(f"{batch.path}: no item is called {name!r} (there are {', '.join(names)})")
    jobs: list[Job] = []
    for item in batch.items:
        try:
            job = Job.of(item, [Peer.parse(peer) for peer in item.peers])
        except UsageError as error:
            raise ConfigError(f'{batch.path}: item "{item.name}": peer is {error.message}') from None
        try:
            patterns_of(item)
        except UsageError as error:
            raise ConfigError(f'{batch.path}: item "{item.name}": {error.message}') from None
        if len(job.peers) < len(item.peers):
            raise ConfigError(f'{batch.path}: item "{item.name}": peers lists one of them twice')
        if not only or item.name in only:
            jobs.append(job)
    return jobs


def _wait_of(batch: Batch) -> float:
    """Seconds before this run begins: always the same for this machine and this batch, so that runs stay as
    far apart as they are meant to be, and machines as well."""
    from tdx.policy.durations import fixed_share

    return 0.0 if batch.jitter is None else batch.jitter * fixed_share(_machine(), batch.name)


def _machine() -> str:
    import contextlib
    import os

    for path in MACHINE_IDS:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := Path(path).read_text("ascii").strip():
                return found
    return os.uname().nodename
