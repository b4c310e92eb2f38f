"""``python -m tdx_cli.manual FOLDER``: manual pages (man(7)), made from the commands' own help."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from tdx.version import VERSION
from tdx_cli.app import tdx

EXIT_CODES: Final = {
    0: "Done; also where everything was there already, or was skipped as asked.",
    64: "Usage: the command line makes no sense.",
    65: "Verification failed; nothing was published.",
    66: "The source is missing, unreadable, or changed while it was sent.",
    68: "The peer's name does not resolve.",
    69: "The peer cannot be reached.",
    70: "A defect of tdx.",
    73: "The destination refuses: the name is taken or impossible, no space, too large.",
    74: "A disk, or an output of the command, failed.",
    75: "Interrupted or temporary; what arrived of a file is kept. Run again, with --resume.",
    76: "The other end does not speak the protocol.",
    77: "Not permitted.",
    78: "The configuration, or the receiver's folder, cannot be used.",
}

VARIABLES: Final = {
    "TDX_STATE_DIR": "Where state is kept, unless --state says.",
    "TDX_CONFIG": "The configuration, unless --config says.",
    "STATE_DIRECTORY": "Set by systemd: where state is kept, unless the above say.",
    "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID": "Set by systemd: what `tdx serve` tells it, and how often.",
    "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES": "Set by systemd: sockets for `tdx serve` to listen on.",
    "NO_COLOR": "Anything but empty: no colours.",
    "TDX_DEBUG": "1: tracebacks of what nobody expected.",
    "TDX_LOOP": "asyncio: the receiver does without uvloop.",
}

FILES: Final = {
    "~/.config/tdx/config.toml": "The configuration.",
    "~/.local/state/tdx": "State: this device's key, the trusted devices, receipts, digests of sources,"
    " the socket of a running receiver.",
    "DIR/.tdx": "In a receiver's folder: what is on its way, and nothing that is needed once it is there.",
}

_BOLD: Final = re.compile(r"`([^`]+)`")
_PLACES: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "~": r"\(ti", "^": r"\(ha"}


def escaped(text: str) -> str:
    """Text as roff takes it for itself; what stands in backquotes is bold."""
    plain = "".join(
        _PLACES.get(char) or (char if char.isascii() else f"\\[u{ord(char):04X}]") for char in text
    )
    plain = _BOLD.sub(r"\\fB\1\\fR", plain)
    return rf"\&{plain}" if plain.startswith(".") else plain


def body(text: str) -> Iterator[str]:
    """Paragraphs as click reads them: one that begins with a line of ``\\b`` keeps its lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip() == "\b":
            yield from (".PP", ".EX", *map(escaped, lines[1:]), ".EE")
        else:
            yield from (".PP", escaped(" ".join(line.strip() for line in lines)))


def listed(heading: str, entries: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A section of tagged paragraphs; nothing where there is nothing to list."""
    for number, (tag, text) in enumerate(entries):
        if not number:
            yield f".SH {heading}"
        yield from (".TP", rf"\fB{escaped(tag)}\fR", escaped(" ".join(text.split())) or r"\&")


def page(command: click.Command, context: click.Context) -> str:
    """The manual page of one command."""
    path = context.command_path
    name = path.replace(" ", "-")
    short = command.get_short_help_str(limit=200).rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    options = (param for param in command.get_params(context) if isinstance(param, click.Option))
    records = (option.get_help_record(context) for option in options)
    lines = [
        f'.TH {name.upper()} 1 "" "tdx {VERSION}" "tdx"',
        *(".SH NAME", rf"{escaped(name)} \- {escaped(short)}"),
        *(".SH SYNOPSIS", rf"\fB{escaped(path)}\fR {escaped(usage)}"),
        *(".SH DESCRIPTION", *body(command.help or short)),
        *listed("OPTIONS", (record for record in records if record is not None)),
        *listed(
            "COMMANDS",
            ((child.command_path, of.get_short_help_str(200)) for of, child in below(command, context)),
        ),
        *listed("EXIT STATUS", ((str(code), text) for code, text in EXIT_CODES.items())),
        *listed("ENVIRONMENT", iter(VARIABLES.items())),
        *listed("FILES", iter(FILES.items())),
        *(".SH SEE ALSO", ", ".join(rf"\fB{escaped(other)}\fR(1)" for other in related(command, context))),
    ]
    return "\n".join(lines) + "\n"


def below(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """The commands of a group, each with a context of its own."""
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None
        yield found, click.Context(found, context, name)


def related(command: click.Command, context: click.Context) -> list[str]:
    """The pages of what stands above and below."""
    above = [] if context.parent is None else [context.parent.command_path]
    return [
        path.replace(" ", "-")
        for path in (*above, *(each.command_path for _, each in below(command, context)))
    ]


def pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The name of each file, and what is in it, of a command and all below it."""
    yield f"{context.command_path.replace(' ', '-')}.1", page(command, context)
    for found, child in below(command, context):
        yield from pages(found, child)


def main(folder: str) -> None:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.1"):
        old.unlink()
    for name, text in pages(tdx, click.Context(tdx, info_name="tdx", **tdx.context_settings)):
        (place / name).write_text(text, "ascii")


if __name__ == "__main__":
    main(sys.argv[1])
