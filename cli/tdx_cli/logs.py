"""The log of a receiver on standard error: lines for people, or one JSON object a line (docs/logs.md)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import time
from typing import Any, Final

from tdx.model import shown

FORMATS: Final = ("text", "json")

PATIENCE: Final = 0.1
"""Seconds that a line waits for somebody to read those before it."""

LONGEST: Final = 4096
"""Bytes written at once: what a pipe that can be written to takes whole (PIPE_BUF of Linux)."""

_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00,123 INFO tdx.uploads: what happened``, in local time. One line for each record,
    whatever is in its message, but for a traceback, which follows it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        # Set in, so that no line of it can be taken for one of the log.
        return "\n".join(f"    {shown(line)}" for line in super().formatException(ei).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object, ASCII only: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, the record's
    ``fields`` and, of a failure that nobody expected, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, object] = {
            "time": f"{whole}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return _encode(said)


class Outlet(logging.Handler):
    """Writes lines to a descriptor, and never waits long for it: what nobody reads, or has no room, is left
    out and counted, and the next line that can be written is preceded by one with that count."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._left_out = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Raises nothing: what is logged about must not end because of the log."""
        try:
            line = self.format(record)
        except Exception as error:
            line = f"a line of the log cannot be written: {type(error).__name__}"
        if self._left_out and self._write(self._gap()):
            self._left_out = 0
        if self._left_out or not self._write(line):
            self._left_out += 1

    def _gap(self) -> str:
        text = "%d lines are missing here: they could not be written"
        return self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (self._left_out,), None))

    def _write(self, line: str) -> bool:
        """Whether all of it was written."""
        data = line.encode(errors="backslashreplace") + b"\n"
        rest = memoryview(b"\n" + data if self._torn else data)
        # Whoever has not read for that long is not waited for again until it does.
        patience = 0.0 if self._left_out else PATIENCE * 1000
        with contextlib.suppress(OSError):
            while rest:
                if not any(event & select.POLLOUT for _, event in self._poll.poll(patience)):
                    return False
                rest = rest[os.write(self._descriptor, rest[:LONGEST]) :]
                self._torn = bool(rest)
            return True
        return False


def log_to(descriptor: int, level: str, form: str) -> None:
    """From now on, what is logged at ``level`` or above goes there, as ``form`` says (:data:`FORMATS`)."""
    handler = Outlet(descriptor)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # Nobody looks at these, and asking for them costs at each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
