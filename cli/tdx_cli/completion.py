"""``tdx completion``: how a shell learns to complete tdx's command lines."""

from __future__ import annotations

from typing import Final

import click

from tdx_cli.text import say

SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script that makes SHELL complete commands, options, their values, files and the names of
    paired and configured peers. No network is asked.

    \b
    bash: tdx completion bash > ~/.local/share/bash-completion/completions/tdx
    zsh:  tdx completion zsh > a file _tdx in a folder of $fpath
    fish: tdx completion fish > ~/.config/fish/completions/tdx.fish
    """
    from click.shell_completion import get_completion_class

    from tdx_cli.app import tdx
    from tdx_cli.main import COMPLETE

    kind = get_completion_class(shell)
    assert kind is not None
    # Not kind.source(): that asks which bash there is, and the script may be for another machine's.
    made = kind(tdx, {}, "tdx", COMPLETE)
    say((made.source_template % made.source_vars()).strip())
