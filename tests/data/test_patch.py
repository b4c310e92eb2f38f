"""A patch goes from a file into another one, over a plain socket and in TLS; what is none is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.datakit import STALL, Background, pattern, tcp_pair, tls_tcp_pair, unix_pair
from tdx.data.body import LengthBody
from tdx.data.patch import PatchReceive, send_patch
from tdx.data.port import Cancel, ReceiveHooks
from tdx.errors import ConnectionLost, ProtocolError, SourceChanged, SourceError
from tdx.integrity import digest_of
from tdx.model import Span, Stages
from tdx.proto import patch as wire
from tdx.proto.patch import Listed

EXTENT = 4 << 20
NEW = pattern(3 * EXTENT + 1000)
DIGEST = digest_of(b"")


class Target:
    """What a patch is written to."""

    def __init__(self) -> None:
        self.data = bytearray(len(NEW))
        self.received: list[int] = []
        self.dropped: list[int] = []

    def write_at(self, data: memoryview, offset: int) -> None:
        self.data[offset : offset + len(data)] = data

    def read_at(self, view: memoryview, offset: int) -> int:
        raise NotImplementedError

    def receive(
        self,
        sock: socket.socket,
        size: int,
        keep: Callable[[Span], bool] = lambda _: True,
        prefix: bytes = b"",
    ) -> Sequence[Listed]:
        cancel = Cancel()
        hooks = ReceiveHooks(
            self.received.append, lambda *_: None, lambda *_: None, discarded=self.dropped.append
        )
        body = LengthBody(sock, prefix, size, cancel, STALL)
        return PatchReceive(body, self, len(NEW), EXTENT, hooks).receive(lambda _: keep, cancel)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "new"
    path.write_bytes(NEW)
    return path


def sent(
    pair: AbstractContextManager[tuple[socket.socket, socket.socket]],
    source: Path,
    runs: Sequence[Span],
    keep: Callable[[Span], bool] = lambda _: True,
) -> tuple[Target, int]:
    target, told = Target(), list[int]()
    listed = [(index, DIGEST) for index in range(4)]
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with pair as (near, far):
            sending = Background(
                lambda: send_patch(
                    near, descriptor, listed, runs, told.append, lambda _: 0.0, Cancel(), STALL, Stages()
                )
            )
            assert target.receive(far, wire.patch_size(4, runs), keep) == listed
            sending.join()
    finally:
        os.close(descriptor)
    return target, sum(told)


@pytest.mark.parametrize("pair", [tcp_pair, tls_tcp_pair])
def test_the_runs_arrive_and_nothing_else_changes(
    source: Path, pair: Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]]
) -> None:
    needed = [
        Span(4096, 8192),
        Span(EXTENT - 4096, EXTENT),
        Span(EXTENT, 2 * EXTENT),
        Span(len(NEW) - 1000, len(NEW)),
    ]
    runs = list(wire.runs_of(needed))
    target, told = sent(pair(), source, runs)
    expected = bytearray(len(NEW))
    for run in needed:
        expected[run.start : run.end] = NEW[run.start : run.end]
    assert target.data == expected
    assert told == sum(target.received) == sum(map(len, needed))


@settings(max_examples=25)
@given(cuts=st.sets(st.integers(1, len(NEW) - 1), min_size=2, max_size=60).map(sorted))
def test_any_runs_arrive(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "patched"
    path.write_bytes(NEW)
    spans = [Span(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    target, _ = sent(unix_pair(), path, list(wire.runs_of(spans)))
    for span in spans:
        assert target.data[span.start : span.end] == NEW[span.start : span.end]
    assert target.data.count(0) >= len(NEW) - sum(map(len, spans))


def test_a_run_that_is_not_wanted_is_read_and_dropped(source: Path) -> None:
    runs = [Span(0, 4096), Span(EXTENT, EXTENT + 4096)]
    target, _ = sent(tcp_pair(), source, runs, keep=lambda run: run.start == EXTENT)
    assert (target.received, target.dropped) == ([4096, 4096], [4096])
    assert target.data[:4096] == bytes(4096)
    assert target.data[EXTENT : EXTENT + 4096] == NEW[EXTENT : EXTENT + 4096]


HEAD = wire.COUNT.pack(1) + wire.encode_list([(0, DIGEST)])


def run(offset: int, content: bytes) -> bytes:
    return wire.RUN.pack(offset, len(content)) + content


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0",
        wire.COUNT.pack(0),
        wire.COUNT.pack(wire.MAX_LISTED + 1) + bytes(100),
        HEAD[:-1],
        wire.COUNT.pack(2) + wire.encode_list([(1, DIGEST), (0, DIGEST)]),
        HEAD + b"\0",
        HEAD + run(0, b"abc")[:-1],
        HEAD + run(0, b""),
        HEAD + run(len(NEW) - 2, b"abc"),
        HEAD + run(8, b"abc") + run(8, b"abc"),
        HEAD + wire.RUN.pack(0, wire.MAX_RUN + 1) + bytes(wire.MAX_RUN + 1),
    ],
    ids=["count", "none", "many", "list", "order", "head", "content", "empty", "beyond", "backwards", "long"],
)
def test_what_is_no_patch_is_refused(body: bytes) -> None:
    with tcp_pair() as (_, far), pytest.raises(ProtocolError):
        Target().receive(far, len(body), prefix=body)


def test_a_patch_that_breaks_off_is_a_lost_connection() -> None:
    with tcp_pair() as (near, far):
        near.sendall(HEAD + run(0, b"abc")[:-1])
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionLost):
            Target().receive(far, len(HEAD) + 100)


def test_a_source_that_has_become_shorter_is_told(source: Path) -> None:
    os.truncate(source, EXTENT)
    with pytest.raises(SourceChanged):
        _send_alone(source, [Span(EXTENT - 10, EXTENT + 10)])


def test_a_source_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read the source"):
        _send_alone(tmp_path, [Span(0, 10)])


def _send_alone(source: Path, runs: Sequence[Span]) -> None:
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with tcp_pair() as (near, _):
            send_patch(
                near,
                descriptor,
                [(0, DIGEST)],
                runs,
                lambda _: None,
                lambda _: 0.0,
                Cancel(),
                STALL,
                Stages(),
            )
    finally:
        os.close(descriptor)
