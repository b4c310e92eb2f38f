"""A receiver's status as lines for people. It may be of another version: what it lacks is not shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from tdx.model import shown
from tdx_cli.progress import percentage
from tdx_cli.text import columns, count_of, seconds_of, size_of

HEADING: Final = ("NAME", "FROM", "PHASE", "DONE", "SIZE", "RATE", "LEFT", "LIMITED BY")
RIGHT: Final = frozenset({"DONE", "SIZE", "RATE", "LEFT"})
SHOWN_OF_NAME: Final = 48
LEAST_OF_NAME: Final = 12
IDLE_SECONDS: Final = 10.0
"""After so long without a byte, a transfer that should bring some is said to be silent."""

Document = dict[str, object]


def lines_of(document: Document, width: int | None) -> list[str]:
    """The receiver, then a line for each transfer; none longer than ``width``."""
    transfers, bundles = _objects(document, "transfers"), _objects(document, "bundles")
    lines = _receiver(document)
    rows = [*map(_transfer, transfers), *map(_bundle, bundles)]
    if rows:
        lines += ["", *_table(rows, width)]
    else:
        lines.append("no transfer under way")
    if waiting := _number(document, "waiting"):
        lines += ["", f"{count_of(int(waiting), 'partial')} on disk that nobody is sending"]
    return lines if width is None else [_cut(line, width) for line in lines]


def _table(rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    """Where there is too little room, names give way to figures."""
    longest = min(SHOWN_OF_NAME, max(len(name) for name, *_ in rows))
    lines = columns([HEADING, *((_end(name, longest), *others) for name, *others in rows)], RIGHT)
    excess = 0 if width is None else max(map(len, lines)) - width
    if excess <= 0:
        return lines
    least = max(LEAST_OF_NAME, longest - excess)
    return columns([HEADING, *((_end(name, least), *others) for name, *others in rows)], RIGHT)


def _end(name: str, most: int) -> str:
    """The end of a name tells files apart that lie in one folder."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(0, width - 1)]}…"


def _receiver(document: Document) -> list[str]:
    up = seconds_of(_number(document, "seconds") or 0.0)
    listening = document.get("listening")
    addresses = map(str, cast("list[object]", listening)) if isinstance(listening, list) else ()
    where = shown(", ".join(addresses)) or "nothing"
    free, staged, received = (_number(document, f"{what}_bytes") for what in ("free", "staged", "received"))
    figures = [
        "" if received is None else f"{size_of(received)} received",
        "" if staged is None else f"{size_of(staged)} staged",
        "free space unknown" if free is None else f"{size_of(free)} free",
        count_of(int(_number(document, "connections") or 0), "connection"),
    ]
    lines = [
        f"tdx {_text(document, 'version')} (pid {_text(document, 'pid')}), up {up}, listening on {where}",
        f"into {_text(document, 'folder')}: {', '.join(filter(None, figures))}",
    ]
    if hangs := _number(document, "disk_waiting_seconds"):
        lines.append(f"THE DISK HAS NOT ANSWERED for {seconds_of(hangs)}")
    return lines


def _transfer(each: Document) -> tuple[str, ...]:
    size, done = _number(each, "size"), int(_number(each, "done_bytes") or 0)
    phase, idle = _text(each, "phase"), _number(each, "idle_seconds") or 0.0
    rate, left = _number(each, "bytes_per_second"), _number(each, "eta_seconds")
    return (
        _text(each, "name"),
        _text(each, "peer"),
        phase if phase != "receiving" or idle < IDLE_SECONDS else f"silent for {seconds_of(idle)}",
        size_of(done) if size is None else percentage(done, int(size)),
        "-" if size is None else size_of(size),
        f"{size_of(rate)}/s" if rate and phase == "receiving" else "-",
        "-" if left is None else seconds_of(left),
        _text(each, "bottleneck"),
    )


def _bundle(each: Document) -> tuple[str, ...]:
    received, seconds = _number(each, "received_bytes") or 0, _number(each, "seconds") or 0.0
    size = _number(each, "size")
    rate = f"{size_of(received / seconds)}/s" if received and seconds else "-"
    return (
        f"({count_of(int(_number(each, 'files') or 0), 'small file')})",
        _text(each, "peer"),
        _text(each, "phase"),
        size_of(received) if size is None else percentage(int(min(received, size)), int(size)),
        "-" if size is None else size_of(size),
        *(rate, "-", _text(each, "bottleneck")),
    )


def _text(document: Document, key: str) -> str:
    value = document.get(key)
    return "-" if value is None else shown(str(value))


def _number(document: Document, key: str) -> float | None:
    value = document.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _objects(document: Document, key: str) -> list[Document]:
    value = document.get(key)
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Document", each) for each in items if isinstance(each, dict)]
