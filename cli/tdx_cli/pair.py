"""``tdx pair``: two machines get to know each other."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx_cli.options import JSON, state_option
from tdx_cli.text import say, say_json
from tdx_cli.values import ADDRESS, TIMEOUT

if TYPE_CHECKING:
    from tdx.control.pairing import Terms
    from tdx.identity.tls import TlsIdentities
    from tdx.identity.trust import Trusted


@click.command("pair", short_help="Make two machines trust each other.")
@click.argument("where", nargs=-1, metavar="[HOST:PORT CODE]")
@click.option(
    "--listen", type=ADDRESS, metavar="HOST:PORT", help="Wait there.  [default: every address, any free port]"
)
@click.option(
    "--expires",
    type=TIMEOUT,
    metavar="TIME",
    default=600.0,
    help="How long the code is good for.  [default: 10m]",
)
@click.option(
    "--name", default="", metavar="NAME", help="What this machine calls itself.  [default: its host name]"
)
@click.option("--as", "alias", metavar="NAME", help="What to call the other one.  [default: as it says]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8390,
    show_default=True,
    help="Where `tdx serve` listens on this machine, for the other one to know.",
)
@JSON
@state_option("Where this device's key and the trusted devices are kept.")
def command(
    where: tuple[str, ...],
    *,
    listen: tuple[str, int] | None,
    expires: float,
    name: str,
    alias: str | None,
    port: int,
    as_json: bool,
    state: Path | None,
) -> None:
    """Without arguments: print a code, which is good for one try, and wait. With HOST:PORT and CODE as
    the other machine printed them: pair with it. Afterwards each may push to the other."""
    import os

    from tdx.config import load_state, parse_address
    from tdx.control.pairing import Terms, answer
    from tdx.errors import ConfigError, UsageError
    from tdx.identity.tls import TlsIdentities

    # A unit or a script that stops it gets the same as Ctrl-C: one line, and nothing trusted. Ctrl-C itself
    # has no handler where a shell started this in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if len(where) not in (0, 2):
        raise UsageError("tdx pair takes HOST:PORT and CODE, as the other machine printed them, or neither")
    if where and listen is not None:
        raise UsageError("--listen is for the machine that makes the code, which takes no arguments")
    tls = TlsIdentities(state or load_state(None, os.environ))
    terms = Terms(name, alias, port)
    if where:
        try:
            address = parse_address(where[0])
        except ConfigError as error:
            raise UsageError(error.message) from None
        paired = answer(tls, terms, address, where[1])
    else:
        paired = _wait(tls, terms, listen, expires, as_json=as_json)
    if as_json:
        from tdx_cli.trust import say_device

        say_device("paired", paired)
    else:
        say(f"paired with {paired.name}, key {paired.key}")


def _wait(
    tls: TlsIdentities, terms: Terms, listen: tuple[str, int] | None, expires: float, *, as_json: bool
) -> Trusted:
    from tdx.control.pairing import Invitation
    from tdx_cli.text import seconds_of

    with Invitation(tls, terms, listen) as invitation:
        if as_json:
            facts = {
                "event": "waiting",
                "addresses": invitation.addresses,
                "code": invitation.code,
                "expires_seconds": expires,
            }
            say_json(facts)
        else:
            for each in invitation.addresses:
                say(f"pair with: tdx pair {each} {invitation.code}")
            say(f"waiting for {seconds_of(expires)}; the code is good for one try")
        return invitation.wait(expires)
