"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tdx_cli.values import TIMEOUT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound="Callable[..., Any] | click.Command")

JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
ONE_JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
EVENTS: Final = click.option(
    "--json", "as_json", is_flag=True, help="Events on standard output, one JSON object a line."
)
QUIET: Final = click.option("-q", "--quiet", is_flag=True, help="Nothing but errors.")
CONFLICT: Final = click.option(
    "--conflict",
    type=click.Choice(("rename", "overwrite", "skip", "error")),
    default="rename",
    show_default=True,
    help="What to do where the name is taken.",
)


METRICS_TEXTFILE: Final = click.option(
    "--metrics-textfile",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write how it ended to FILE, a *.prom, for node_exporter.",
)
METRICS_PUSH: Final = click.option("--metrics-push", metavar="URL", help="Tell a Pushgateway how it ended.")
METRICS_INTERVAL: Final = click.option(
    "--metrics-interval",
    type=TIMEOUT,
    metavar="TIME",
    help="With either: how often this is meant to be run.",
)


def config_option(text: str = "A TOML file that says how peers are known.") -> Callable[[F], F]:
    """``--config FILE``; ``text`` says what is in it."""
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option("--config", type=kind, metavar="FILE", help=text)


def state_option(text: str) -> Callable[[F], F]:
    """``--state DIR``; ``text`` says what the command keeps or looks up there."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--state", type=kind, metavar="DIR", help=text)


def socket_option(text: str) -> Callable[[F], F]:
    """``--socket PATH``; ``text`` says whose it is."""
    kind = click.Path(path_type=Path, dir_okay=False)
    help = f"{text}  [default: receiver.sock where state is kept]"
    return click.option("--socket", type=kind, metavar="PATH", help=help)


def complete_peer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001  click's signature
    """For a shell: the names that this machine's own files know, without asking anybody."""
    from click.shell_completion import CompletionItem

    from tdx_cli.known import known_names

    names = known_names(ctx.params.get("config"), ctx.params.get("state"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_path_or_peer(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For a shell: of PATH... PEER the first word is a path, a further one may be either."""
    from click.shell_completion import CompletionItem

    before = ctx.params.get(param.name or "")
    # Paths come first: in bash they are what is left where no peer's name fits.
    return [CompletionItem(incomplete, "file"), *(complete_peer(ctx, param, incomplete) if before else [])]
