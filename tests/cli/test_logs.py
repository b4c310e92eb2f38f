"""The log of a receiver: its two formats, and that nobody waits for it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.schemas import conform
from tdx.config.serve import LOG_FORMATS
from tdx_cli.logs import FORMATS, LONGEST, JsonFormatter, Outlet, TextFormatter

INJECTION = "x\n2026-01-01 00:00:00,000 INFO tdx.audit: forged\x1b[2J\u202e\r"


def record(message: str, level: int = logging.INFO, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("tdx.uploads", level, "", 0, "%s", (message,), None)
    vars(made).update(more)
    return made


def failed(message: str) -> logging.LogRecord:
    try:
        raise RuntimeError(message)
    except RuntimeError:
        return record("it failed", logging.ERROR, exc_info=sys.exc_info())


def test_the_formats_are_those_of_the_configuration() -> None:
    assert FORMATS == LOG_FORMATS


# --- formats -----------------------------------------------------------------------


def test_a_line_for_people_has_time_level_logger_and_message() -> None:
    line = TextFormatter().format(record("done"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO tdx\.uploads: done", line)


def test_whatever_is_in_a_message_it_is_one_line_that_drives_no_terminal() -> None:
    line = TextFormatter().format(record(INJECTION))
    assert line.isprintable()
    assert "forged" in line


def test_no_line_of_a_traceback_can_be_taken_for_one_of_the_log() -> None:
    first, *rest = TextFormatter().format(failed(INJECTION)).split("\n")
    assert first.endswith(" ERROR tdx.uploads: it failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_an_object_has_the_time_in_utc_and_the_fields_of_the_record() -> None:
    made = record("done", fields={"event": "held-back", "count": 2})
    made.created, made.msecs = 1_700_000_000.5, 500.0
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "logger": "tdx.uploads",
        "message": "done",
        "event": "held-back",
        "count": 2,
    }


def test_an_object_is_one_line_of_ascii_whatever_is_in_it() -> None:
    made = record(INJECTION + "\udc80ä", fields={"event": "held-back", "count": 1})
    line = JsonFormatter().format(made)
    assert (line.isascii(), line.isprintable()) == (True, True)
    assert json.loads(line)["message"] == INJECTION + "\udc80ä"


def test_a_failure_that_nobody_expected_has_its_traceback_in_one_key() -> None:
    line = json.loads(JsonFormatter().format(failed("boom")))
    conform("log", [line])
    assert line["exception"].endswith("RuntimeError: boom")


# --- where it goes -------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def outlet(descriptor: int) -> Outlet:
    made = Outlet(descriptor)
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def fill(descriptor: int) -> int:
    """Write until no more is taken; how much that was."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    size = 0
    for piece in (b"." * 4096, b"."):
        try:
            while True:
                size += os.write(descriptor, piece)
        except BlockingIOError:
            continue
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return size


def test_lines_arrive_in_their_order(pipe: tuple[int, int]) -> None:
    log = outlet(pipe[1])
    log.emit(record("one"))
    log.emit(record("two \udc80"))
    assert os.read(pipe[0], 100) == b"one\ntwo \\udc80\n"


def test_nobody_waits_for_who_does_not_read_and_what_is_missing_is_counted(pipe: tuple[int, int]) -> None:
    log, filled = outlet(pipe[1]), fill(pipe[1])
    for number in range(1000):
        log.emit(record(f"lost {number}"))
    while filled:
        filled -= len(os.read(pipe[0], filled))
    log.emit(record("heard"))
    log.emit(record("again"))
    said = os.read(pipe[0], 1000).decode().splitlines()
    assert said == ["1000 lines are missing here: they could not be written", "heard", "again"]


def test_a_line_that_breaks_off_is_no_part_of_the_next(pipe: tuple[int, int]) -> None:
    log = outlet(pipe[1])
    size = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    log.emit(record("x" * (size + LONGEST)))
    torn = os.read(pipe[0], size)
    log.emit(record("next"))
    assert set(torn.decode()) == {"x"}
    assert os.read(pipe[0], size) == b"\n1 lines are missing here: they could not be written\nnext\n"


@pytest.mark.parametrize("trouble", ["full", "closed", "nobody reads"])
def test_an_output_that_takes_nothing_is_no_failure(trouble: str) -> None:
    if trouble == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    log = outlet(descriptor)
    if trouble == "closed":
        os.close(descriptor)
    try:
        for _ in range(3):
            log.emit(record("lost"))
    finally:
        if trouble != "closed":
            os.close(descriptor)


def test_what_cannot_be_formatted_is_a_line_all_the_same(pipe: tuple[int, int]) -> None:
    log = outlet(pipe[1])
    log.emit(logging.LogRecord("tdx", logging.INFO, "", 0, "%d of %d", ("one",), None))
    assert os.read(pipe[0], 100) == b"a line of the log cannot be written: TypeError\n"


def test_what_json_does_not_know_is_written_as_text() -> None:
    fields: dict[str, Any] = {"event": "held-back", "count": Path("a")}
    assert json.loads(JsonFormatter().format(record("x", fields=fields)))["count"] == "a"
