"""The commands there are; the module of one is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from tdx.version import VERSION

COMMANDS: Final = (
    "batch",
    "completion",
    "demo",
    "doctor",
    "gc",
    "get",
    "hash",
    "id",
    "inbox",
    "pair",
    "peers",
    "policy",
    "push",
    "serve",
    "status",
    "trust",
    "verify",
    "whois",
)
"""Each lives in the module of its name, and is called ``command`` there."""


class Commands(click.Group):
    """A group that looks a command up by importing its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"tdx_cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found


@click.group(
    "tdx", cls=Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(VERSION, message="tdx %(version)s")
def tdx() -> None:
    """Move files between your own machines: as fast as cp, verified, resumable.

    \b
    There:  tdx serve --dir ~/inbox
    Here:   tdx push disk.img HOST:PORT --resume
    """
