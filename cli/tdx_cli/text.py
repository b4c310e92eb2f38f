"""What commands print: lines, JSON objects and tables on the two outputs, sizes and durations in them."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Final

STDOUT: Final = "standard output"
"""What the filename of an OSError is that comes from writing there."""

# ASCII only: a name that is no valid Unicode must not end the command.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

_STEPS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def say(line: str, *, flush: bool = True) -> None:
    """One line on standard output, at once unless :func:`flush_said` is to follow."""
    try:
        print(line, flush=flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


def say_json(document: Mapping[str, object], *, flush: bool = True) -> None:
    """One JSON object, as :func:`say`."""
    say(_encode(document), flush=flush)


def columns(rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """The lines of a table, each column as wide as it needs to be. The first row is the heading; ``right``
    are the titles of columns that end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, rows[0], widths, right)).rstrip() for row in rows]


def _cells(
    row: Sequence[str], heading: Sequence[str], widths: Sequence[int], right: Collection[str]
) -> list[str]:
    return [
        text.rjust(width) if title in right else text.ljust(width)
        for title, text, width in zip(heading, row, widths, strict=True)
    ]


def flush_said() -> None:
    """Write what was said and not flushed."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


def warn(message: str) -> None:
    """One line ``tdx: message`` on standard error, as far as that can be written: the exit
    code tells the same, and must not become another because nobody can read why."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        print(f"tdx: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


def size_of(count: float) -> str:
    """Bytes in steps of 1024: ``3.0 GiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    power = 0
    count /= 1024
    while count >= 1023.95 and power < len(_STEPS) - 1:
        count /= 1024
        power += 1
    return f"{count:.1f} {_STEPS[power]}"


def count_of(count: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def rate_of(count: float, seconds: float) -> str:
    """Bytes per second: ``2.0 GiB/s``."""
    return f"{size_of(count / max(seconds, 1e-9))}/s"


def seconds_of(seconds: float) -> str:
    """``0.02 s``, ``1.5 s``, ``42 s``, ``4:05``, ``1:02:03``."""
    if seconds < 1:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "0 s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = math.floor(seconds + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
