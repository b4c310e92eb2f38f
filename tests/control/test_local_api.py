"""The local API: who may ask, what, and that nobody keeps the others waiting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from support.asking import PATIENCE, answering, ask, connected, status_at
from support.receiving import RunningReceiver, running
from support.spaces import STRANGER, needs_root
from tdx.control import local_api

REQUEST = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def path(receiver: RunningReceiver) -> Iterator[Path]:
    with answering(receiver) as found:
        yield found


def said(path: Path, raw: bytes) -> bytes:
    """The whole answer to these bytes."""
    with connected(path) as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer


def test_a_question_gets_an_answer_that_nobody_keeps(path: Path) -> None:
    reply = ask(path)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert (reply.headers["cache-control"], reply.headers["connection"]) == ("no-store", "close")
    assert reply.document["pid"] == os.getpid()


def test_head_is_answered_without_a_body(path: Path) -> None:
    reply = ask(path, "HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 100


@pytest.mark.parametrize("target", ["/", "/v1/hello", "/v1/status/", "/v1/status?x=1", "/files/x"])
def test_nothing_else_is_there(path: Path, target: str) -> None:
    reply = ask(path, target=target)
    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")
    assert reply.document["type"] == "urn:tdx:problem:not-found"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done(path: Path, method: str) -> None:
    reply = ask(path, method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert reply.document["type"] == "urn:tdx:problem:method-not-allowed"


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01", b"GET /v1/status HTTP/1.1\n\n", b"GET /v1/status HTT", b"GET / SPDY/3\r\n\r\n"]
)
def test_what_is_no_request_is_told_so(path: Path, raw: bytes) -> None:
    assert said(path, raw).startswith(b"HTTP/1.1 400 ")


def test_a_head_without_an_end_is_not_read_for_ever(path: Path) -> None:
    raw = b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 70_000
    with connected(path) as sock:
        sock.sendall(raw)
        assert sock.recv(12) == b"HTTP/1.1 431"


def test_who_connects_and_goes_does_no_harm(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        connected(path).close()
        with connected(path) as sock:
            sock.sendall(REQUEST)
    assert status_at(path)["pid"] == os.getpid()
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_those_who_say_nothing_keep_nobody_waiting(path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(local_api.MOST_AT_ONCE + 64):
            stack.enter_context(connected(path))
            stack.enter_context(connected(path)).sendall(b"GET /v1/st")
        assert status_at(path)["pid"] == os.getpid()


def test_of_more_than_there_is_room_for_the_oldest_goes(path: Path) -> None:
    with connected(path) as oldest, ExitStack() as stack:
        others = [stack.enter_context(connected(path)) for _ in range(local_api.MOST_AT_ONCE)]
        assert oldest.recv(1) == b""
        others[-1].sendall(REQUEST)
        assert others[-1].recv(12) == b"HTTP/1.1 200"


def test_who_says_nothing_is_not_listened_to_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_api, "SECONDS", 0.05)
    with connected(path) as sock:
        assert sock.recv(1) == b""


def test_it_is_gone_with_its_receiver(receiver: RunningReceiver) -> None:
    with answering(receiver) as path, connected(path):
        status_at(path)
    assert not path.exists()


AS_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({STRANGER})
os.setuid({STRANGER})
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(sys.argv[1])
    except PermissionError:
        print("no way in")
        sys.exit()
    sock.sendall({REQUEST!r})
    answer = b""
    while data := sock.recv(65536):
        answer += data
    print(answer.decode())
"""


def as_nobody(path: Path) -> str:
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout


def test_another_user_has_no_way_in_and_where_the_file_is_opened_is_still_refused() -> None:
    needs_root()
    # Not below pytest's own folder, which each pytest of this user closes to others as it starts.
    with TemporaryDirectory() as folder, running(Path(folder)) as receiver, answering(receiver) as path:
        Path(folder).chmod(0o711)
        path.parent.chmod(0o711)
        assert as_nobody(path) == "no way in\n"
        path.chmod(0o666)
        answer = as_nobody(path)
    assert answer.startswith("HTTP/1.1 403 ")
    assert f"you are uid {STRANGER}" in answer
