"""``tdx id``: which device this is."""

from __future__ import annotations

from pathlib import Path

import click

from tdx.model import shown
from tdx_cli.options import ONE_JSON, state_option
from tdx_cli.text import say, say_json


@click.command("id", short_help="Show the key of this device.")
@click.option(
    "--certificate", is_flag=True, help="Print the certificate (PEM), for `tdx trust add` elsewhere."
)
@ONE_JSON
@state_option("Where the key of this device is kept.")
def command(certificate: bool, as_json: bool, state: Path | None) -> None:
    """Print the key of this device, which is made when it is first needed, and where its certificate is."""
    import os
    import ssl

    from tdx.config import load_state
    from tdx.errors import UsageError
    from tdx.identity.tls import TlsIdentities

    if certificate and as_json:
        raise UsageError("--json has the certificate in it already; leave --certificate out")
    device = TlsIdentities(state or load_state(None, os.environ)).device
    pem = ssl.DER_cert_to_PEM_cert(device.certificate)
    if certificate:
        say(pem.rstrip("\n"))
    elif as_json:
        facts = {
            "event": "id",
            "key": device.key,
            "certificate": pem,
            "certificate_file": str(device.certificate_file),
        }
        say_json(facts)
    else:
        say(f"key          {device.key}")
        say(f"certificate  {shown(str(device.certificate_file))}")
