"""``tdx verify``: whether a file is what a root says."""

from __future__ import annotations

import click

from tdx.model import shown
from tdx_cli.hash import root_of
from tdx_cli.text import say


@click.command("verify", short_help="Check a file against a root.")
@click.argument("file", metavar="FILE")
@click.argument("root", metavar="ROOT")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where they agree.")
def command(file: str, root: str, quiet: bool) -> None:
    """Check that FILE has this ROOT (as `tdx hash` and `tdx push --json` give it).

    Exits with 0 if it has, with 65 if not.
    """
    from tdx.errors import UsageError, VerificationFailed
    from tdx.integrity import Root

    try:
        wanted = Root.parse(root)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = root_of(file, wanted.extent_size)
    if found != str(wanted):
        raise VerificationFailed(f"{shown(file)}: does not match: its root is {found}, not {wanted}")
    if not quiet:
        say(f"{shown(file)}: OK")
