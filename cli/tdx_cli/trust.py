"""``tdx trust``: the devices that this one knows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from tdx_cli.options import JSON, complete_peer, state_option
from tdx_cli.text import say, say_json, warn
from tdx_cli.values import Parsed

if TYPE_CHECKING:
    from tdx.identity.trust import Trusted, TrustStore

LARGEST: Final = 1 << 16
"""Bytes of a file that may be a certificate."""


def _address(text: str) -> str:
    from tdx.identity.trust import check_address

    return check_address(text)


STATE: Final = state_option("Where the trusted devices are kept.")


@click.group("trust", no_args_is_help=False, short_help="List, add and remove trusted devices.")
def command() -> None:
    """The devices that may push here and be pushed to over TLS. `tdx pair` adds one on both sides."""


@command.command("list", short_help="Show the trusted devices.")
@JSON
@STATE
def show(as_json: bool, state: Path | None) -> None:
    """Print the name, key and addresses of every trusted device."""
    entries = _store(state).entries()
    if as_json:
        for each in entries:
            say_device("trusted", each)
        return
    if not entries:
        warn("no device is trusted here; introduce two machines with `tdx pair`")
    width = max((len(each.name) for each in entries), default=0)
    for each in entries:
        day = time.strftime("%Y-%m-%d", time.localtime(each.added))
        say(f"{each.name:{width}}  {each.key}  {day}  {' '.join(each.addresses)}".rstrip())


@command.command("add", short_help="Trust a device by its certificate.")
@click.argument("name", metavar="NAME")
@click.argument("certificate", type=click.File("rb", lazy=True), metavar="CERTIFICATE")
@click.option(
    "--address",
    "addresses",
    type=Parsed("host[:port]", _address),
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where its receiver listens, the best first.",
)
@JSON
@STATE
def add(
    name: str, certificate: IO[bytes], addresses: tuple[str, ...], as_json: bool, state: Path | None
) -> None:
    """Trust the device whose CERTIFICATE (PEM, a file or -) `tdx id --certificate` printed there,
    and call it NAME here."""
    from tdx.identity.device import key_of
    from tdx.identity.trust import Trusted, check_name

    check_name(name)
    der = _certificate(certificate)
    trusted = Trusted(name, key_of(der), der, addresses, time.time())
    _store(state).add(trusted)
    if as_json:
        say_device("added", trusted)
    else:
        say(f"trusted: {trusted.name}, key {trusted.key}")


@command.command("remove", short_help="Trust a device no longer.")
@click.argument("name", metavar="NAME|KEY", shell_complete=complete_peer)
@JSON
@STATE
def remove(name: str, as_json: bool, state: Path | None) -> None:
    """Trust the device with this name or key no longer. What it is sending just now is cut off."""
    removed = _store(state).remove(name)
    if as_json:
        say_device("removed", removed)
    else:
        say(f"removed: {removed.name}, key {removed.key}")


def say_device(event: str, trusted: Trusted) -> None:
    """A device as an event."""
    facts = {
        "event": event,
        "name": trusted.name,
        "key": trusted.key,
        "addresses": trusted.addresses,
        "added": trusted.added,
    }
    say_json(facts)


def _store(state: Path | None) -> TrustStore:
    import os

    from tdx.config import load_state
    from tdx.identity.trust import TrustStore

    return TrustStore(state or load_state(None, os.environ))


def _certificate(file: IO[bytes]) -> bytes:
    """The one certificate (DER) in ``file``, and nothing that must stay secret."""
    import ssl

    from tdx.errors import ConfigError
    from tdx.identity.device import key_of

    data = file.read(LARGEST + 1)
    try:
        text = data.decode("ascii").strip()
        if len(data) > LARGEST or "PRIVATE KEY" in text or text.count("-----BEGIN") != 1:
            raise ValueError
        der = ssl.PEM_cert_to_DER_cert(text)
        key_of(der)
    except ValueError:
        raise ConfigError(
            f"{file.name}: is not one certificate in PEM; `tdx id --certificate` prints one"
        ) from None
    return der
