"""``tdx hash``: the root of a file, by hand."""

from __future__ import annotations

import os

import click

from tdx.model import shown
from tdx_cli.text import say, warn


@click.command("hash", short_help="Print the roots of files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def command(files: tuple[str, ...]) -> int:
    """Print `ROOT  FILE` for every FILE: what `tdx push` proves and `tdx verify` checks."""
    from tdx.errors import TdxError
    from tdx.policy.exits import worst

    codes: list[int] = []
    for file in files:
        try:
            say(f"{root_of(file)}  {shown(file)}")
        except TdxError as error:
            warn(error.message)
            codes.append(error.exit_code)
    return worst(codes)


def root_of(file: str | os.PathLike[str], extent_size: int | None = None) -> str:
    """The written root of ``file``, in extents of ``extent_size`` or of what its length asks for.

    SourceError where it cannot be read, SourceChanged where it changed meanwhile.
    """
    from tdx.data.source import Source
    from tdx.integrity import Root, extent_count, extent_size_for

    with Source.open(file) as source:
        size = extent_size or extent_size_for(source.length)
        indices = range(extent_count(source.length, size))
        digests = [digest for _, digest in source.hash_extents(indices, size)]
        source.check_unchanged(digests, size)
        return str(Root.over(digests, source.length, size))
