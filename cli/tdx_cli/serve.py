"""``tdx serve``: the receiver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tdx_cli.logs import FORMATS, log_to
from tdx_cli.notify import notify, notify_reloading, notify_status, watchdog_seconds
from tdx_cli.options import config_option, socket_option, state_option
from tdx_cli.text import say
from tdx_cli.values import ADDRESS, COMMAND, SCHEDULE

if TYPE_CHECKING:
    from tdx.config import ServeConfig
    from tdx.identity.port import Endpoint
    from tdx.policy.bandwidth import RateSchedule

PUMPS: Final = ("auto", "splice", "buffered")
LEVELS: Final = ("debug", "info", "warning", "error")
STDERR: Final = 2


@click.command("serve", short_help="Receive files into a folder.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder to receive into.",
)
@click.option(
    "--listen",
    type=ADDRESS,
    metavar="HOST:PORT",
    multiple=True,
    help="An address to listen on; may be repeated.  [default: loopback and mesh addresses, port 8390]",
)
@click.option(
    "--on-receive",
    type=COMMAND,
    metavar="CMD",
    help="A program, with arguments, to run for each file once it is there. No shell; see docs/services.md.",
)
@click.option("--metrics", type=ADDRESS, metavar="HOST:PORT", help="Serve Prometheus metrics there.")
@click.option(
    "--limit-rate",
    type=SCHEDULE,
    metavar="RATE",
    help="Most bytes per second over everything that is received: 20M; '08:00-18:00 20M, 200M'.",
)
@config_option("A TOML file; flags win over it.")
@state_option("Where receipts, this device's key and the trusted devices are kept.")
@socket_option("The Unix socket of the local API.")
@click.option("--pump", type=click.Choice(PUMPS), help="Force the way in which bytes are moved.")
@click.option("--log-level", type=click.Choice(LEVELS), help="How much to log on standard error.")
@click.option("--log-format", type=click.Choice(FORMATS), help="How: lines for people, or JSON objects.")
def command(
    folder: Path | None,
    listen: tuple[tuple[str, int], ...],
    on_receive: tuple[str, ...] | None,
    metrics: tuple[str, int] | None,
    config: Path | None,
    state: Path | None,
    socket: Path | None,
    pump: str | None,
    log_level: str | None,
    log_format: str | None,
    limit_rate: RateSchedule | None,
) -> None:
    """Receive files into DIR until SIGTERM or Ctrl-C.

    Prints one line `listening HOST:PORT` for each address once it accepts connections, and
    `metrics HOST:PORT` with --metrics. Logs go to standard error. Sockets that systemd passes (socket
    activation) are used instead of the addresses.
    """
    from tdx.control.inherited import take_inherited

    inherited = take_inherited(os.environ, os.getpid())
    patience = watchdog_seconds(os.environ, os.getpid())
    from tdx.config import Partial, default_config_file, load, merge
    from tdx.errors import UsageError

    config = config or default_config_file(os.environ)
    if folder is None and config is None:
        raise UsageError("no folder to receive into: give --dir DIR, or --config FILE that names one")
    flags = Partial(
        folder=folder,
        listen=listen,
        metrics=metrics,
        state=state,
        socket=socket,
        log_level=log_level,
        log_format=log_format,
        on_receive=on_receive or (),
        limit_rate=limit_rate,
    )

    def configure() -> ServeConfig:
        return merge({} if config is None else load(config), flags)

    merged = configure()
    log_to(STDERR, merged.log_level, merged.log_format)
    from tdx.control import serve

    hooks = serve.Hooks(
        ready=_announce,
        stopping=_stopping,
        configure=configure,
        reloading=notify_reloading,
        reloaded=_ready,
        alive=_alive,
        status=notify_status,
        patience=patience,
    )
    serve.run(merged, hooks, pump, inherited)


def _announce(addresses: Sequence[Endpoint], metrics: Endpoint | None) -> None:
    from tdx.config import format_address

    for address in addresses:
        say(f"listening {format_address((address.host, address.port))}")
    if metrics is not None:
        say(f"metrics {format_address((metrics.host, metrics.port))}")
    _ready()


def _ready() -> None:
    notify("READY=1")


def _alive() -> None:
    notify("WATCHDOG=1")


def _stopping() -> None:
    notify("STOPPING=1")
