"""``tdx whois``: who is at an address, or goes by a name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx.model import shown
from tdx_cli.options import JSON, complete_peer, config_option, state_option
from tdx_cli.text import say, say_json

if TYPE_CHECKING:
    from tdx.control.whois import Known


@click.command("whois", short_help="Say who is at an address.")
@click.argument("address", metavar="ADDR", shell_complete=complete_peer)
@JSON
@config_option()
@state_option("Where the trusted devices are kept.")
def command(address: str, as_json: bool, config: Path | None, state: Path | None) -> None:
    """Say whom this machine takes ADDR for: an IP address, IP:PORT or [IPV6]:PORT of a connection or a
    listener on this machine, or the name of a paired device or of a mesh's member.

    Exits with 68 where nobody can tell. What a receiver here lets them do, `tdx policy check` says.
    """
    import os

    from tdx.config import load_identity, load_state
    from tdx.control.whois import whois

    settings = load_identity(config, os.environ)
    found = whois(address, settings, state or load_state(config, os.environ))
    for number, each in enumerate(found):
        if as_json:
            say_json(_document(each))
            continue
        if number:
            say("")
        for label, text in _lines(each):
            say(f"{label:12}  {shown(text)}")


def _lines(known: Known) -> list[tuple[str, str]]:
    identity = known.identity
    return [
        ("provider", identity.provider),
        ("user", identity.user or "-"),
        ("node", identity.node),
        ("tags", ", ".join(identity.tags) or "-"),
        ("capabilities", ", ".join(identity.capabilities) or "-"),
        ("owner", identity.owner),
        ("own", "yes" if identity.own else "no"),
        ("because", known.basis),
        ("allowed", f"see: {shlex.join(('tdx', 'policy', 'check', identity.owner))}"),
    ]


def _document(known: Known) -> dict[str, object]:
    identity = known.identity
    return {
        "event": "identity",
        "provider": identity.provider,
        "user": identity.user,
        "node": identity.node,
        "tags": identity.tags,
        "capabilities": identity.capabilities,
        "owner": identity.owner,
        "own": identity.own,
        "because": known.basis,
    }
