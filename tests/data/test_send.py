"""What the sending pumps guarantee."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.datakit import (
    STALL,
    Background,
    Over,
    Sent,
    collector,
    digests_of,
    end_stream,
    pattern,
    tcp_pair,
    tls_unix_pair,
    unix_pair,
)
from support.processes import wait_until
from tdx.data.port import BUFFER, Cancel, EarlyAnswer, SendPump
from tdx.data.send import WINDOW, BufferedSend, SendfileSend, send_buffer
from tdx.data.sockets import readable, shut
from tdx.errors import ConnectionLost, Interrupted, SourceChanged, SourceError, Stalled
from tdx.integrity import cut
from tdx.model import Span
from tdx.proto.head import PROCESSING

EXTENT = 4 * BUFFER


@pytest.fixture(params=["sendfile", "buffered"])
def pump(request: pytest.FixtureRequest) -> SendPump:
    return SendfileSend() if request.param == "sendfile" else BufferedSend()


class SourceFile:
    """A file of a pattern, open for reading."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.data = pattern(size)
        path.write_bytes(self.data)
        self.descriptor = os.open(path, os.O_RDONLY)

    def extents(self, start: int = 0) -> list[Span]:
        return list(cut(Span(start, len(self.data)), EXTENT)) if self.data else []


@pytest.fixture
def make_source(tmp_path: Path) -> Iterator[Callable[[int], SourceFile]]:
    made: list[SourceFile] = []

    def make(size: int) -> SourceFile:
        made.append(SourceFile(tmp_path / f"source{len(made)}", size))
        return made[-1]

    yield make
    for source in made:
        os.close(source.descriptor)


MakeSource = Callable[[int], SourceFile]


@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 2 * EXTENT + BUFFER + 77])
def test_every_byte_is_sent_and_every_extent_is_hashed(
    over: Over, pump: SendPump, make_source: MakeSource, size: int
) -> None:
    source, seen = make_source(size), Sent()
    with over.tcp() as (near, far):
        collecting = collector(far)
        hooks = seen.hooks()
        pump.send(near, source.descriptor, source.extents(), hooks, Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert seen.hashed == digests_of(source.data, EXTENT)
    assert seen.sent == size
    if size:
        assert min(hooks.stages.read, hooks.stages.hash, hooks.stages.send) > 0


def test_a_run_from_the_middle_of_the_file_is_sent(
    over: Over, pump: SendPump, make_source: MakeSource
) -> None:
    source, seen = make_source(3 * EXTENT), Sent()
    extents = source.extents()[1:2]
    with over.tcp() as (near, far):
        collecting = collector(far)
        pump.send(near, source.descriptor, extents, seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data[EXTENT : 2 * EXTENT]
    assert [span for span, _ in seen.hashed] == extents


def test_partial_sends_are_continued(over: Over, pump: SendPump, make_source: MakeSource) -> None:
    source, seen = make_source(EXTENT), Sent()
    with over.unix() as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        collecting = collector(far)
        pump.send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert seen.sent == EXTENT


def test_short_reads_of_the_source_are_continued(
    pump: SendPump, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, seen, real = make_source(BUFFER), Sent(), os.preadv

    def short(descriptor: int, views: list[memoryview], offset: int) -> int:
        return real(descriptor, [views[0][:100_001]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with tcp_pair() as (near, far):
        collecting = collector(far)
        pump.send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert seen.hashed == digests_of(source.data, EXTENT)


def test_a_source_cut_before_its_end_is_a_changed_source(
    over: Over, pump: SendPump, make_source: MakeSource
) -> None:
    source, seen = make_source(2 * EXTENT), Sent()
    os.truncate(source.path, EXTENT + 10)
    with over.tcp() as (near, far):
        collecting = collector(far)
        with pytest.raises(SourceChanged):
            pump.send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        collecting.join()
    assert seen.hashed == digests_of(source.data[:EXTENT], EXTENT)


def test_a_source_cut_between_hashing_and_sendfile_is_a_changed_source(make_source: MakeSource) -> None:
    source, seen = make_source(EXTENT), Sent()

    def pace(_: int) -> float:
        os.truncate(source.path, 5)
        return 0.0

    with tcp_pair() as (near, far):
        collecting = collector(far)
        with pytest.raises(SourceChanged):
            SendfileSend().send(near, source.descriptor, source.extents(), seen.hooks(pace), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data[:5]
    assert seen.hashed == []


def test_a_source_that_has_grown_is_sent_up_to_the_length_that_was_asked_for(
    pump: SendPump, make_source: MakeSource
) -> None:
    source, seen = make_source(1000), Sent()
    with source.path.open("ab") as file:
        file.write(b"more")
    with tcp_pair() as (near, far):
        collecting = collector(far)
        pump.send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data


def test_a_source_that_cannot_be_read_is_a_source_error(
    pump: SendPump, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    source = make_source(1000)
    monkeypatch.setattr(os, "preadv", fail)
    with tcp_pair() as (near, _), pytest.raises(SourceError):
        pump.send(near, source.descriptor, source.extents(), Sent().hooks(), Cancel(), STALL)


def test_a_reader_that_stops_reading_is_stalled(over: Over, pump: SendPump, make_source: MakeSource) -> None:
    source = make_source(2 * EXTENT)
    with over.unix() as (near, _), pytest.raises(Stalled):
        pump.send(near, source.descriptor, source.extents(), Sent().hooks(), Cancel(), 0.1)


def test_an_answer_before_the_end_of_the_body_stops_the_pump(pump: SendPump, make_source: MakeSource) -> None:
    source, seen = make_source(EXTENT), Sent()
    with unix_pair() as (near, far):
        collecting = collector(far)

        def pace(_: int) -> float:
            if seen.sent == BUFFER:
                far.send(b"HTTP/1.1 507 Insufficient Storage\r\n\r\n")
            return 0.0

        with pytest.raises(EarlyAnswer):
            pump.send(near, source.descriptor, source.extents(), seen.hooks(pace), Cancel(), STALL)
        assert near.recv(12) == b"HTTP/1.1 507"
        end_stream(near)
        assert collecting.join() == source.data[:BUFFER]


def test_an_answer_is_found_even_when_the_connection_was_reset_after_it(
    over: Over, pump: SendPump, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reset comes between the look at the socket and the send.
    monkeypatch.setattr("tdx.data.send.readable", lambda _: False)
    source, seen = make_source(EXTENT), Sent()
    with over.tcp() as (near, far):
        far.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert socket.socket.recv(near, 1, socket.MSG_PEEK)
        near.send(b"unread")
        socket.socket.recv(far, 1, socket.MSG_PEEK)
        far.close()
        with pytest.raises(EarlyAnswer):
            pump.send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)


def test_a_peer_that_goes_away_without_an_answer_is_connection_lost(
    over: Over, pump: SendPump, make_source: MakeSource
) -> None:
    source = make_source(EXTENT)
    with over.tcp() as (near, far):
        far.close()
        with pytest.raises(ConnectionLost):
            pump.send(near, source.descriptor, source.extents(), Sent().hooks(), Cancel(), STALL)


def test_a_cancel_while_the_send_is_blocked_ends_it_with_its_reason(
    over: Over, pump: SendPump, make_source: MakeSource
) -> None:
    source, cancel = make_source(2 * EXTENT), Cancel()
    with over.unix() as (near, _):

        def sent(_: int) -> None:
            cancel.set(Interrupted("stop"))
            shut(near)

        hooks = Sent().hooks()
        hooks.sent = sent
        with pytest.raises(Interrupted):
            pump.send(near, source.descriptor, source.extents(), hooks, cancel, STALL)


def test_a_cancel_cuts_the_pause_of_a_paced_send_short(pump: SendPump, make_source: MakeSource) -> None:
    source, cancel, seen = make_source(1000), Cancel(), Sent()

    def pace(_: int) -> float:
        cancel.set(Interrupted("stop"))
        return 3600.0

    with tcp_pair() as (near, _), pytest.raises(Interrupted):
        pump.send(near, source.descriptor, source.extents(), seen.hooks(pace), cancel, STALL)
    assert seen.sent == 0


def test_a_long_pause_is_spread_over_the_bytes_it_was_asked_for(
    pump: SendPump, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cancel, seen = make_source(WINDOW + 7), Cancel(), Sent()
    asked: list[int] = []
    slept: list[tuple[float, int]] = []

    def pace(n: int) -> float:
        asked.append(n)
        return 1.0 if n == WINDOW else 0.0

    monkeypatch.setattr(cancel, "sleep", lambda seconds: slept.append((seconds, seen.sent)))
    with tcp_pair() as (near, far):
        collecting = collector(far)
        pump.send(near, source.descriptor, source.extents(), seen.hooks(pace), cancel, STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert asked == [WINDOW, 7]
    assert sum(seconds for seconds, _ in slept) == pytest.approx(1.0)
    assert [at for _, at in slept] == [WINDOW * i // 10 for i in range(10)]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("after", [1, 2, 6])
def test_a_kernel_that_refuses_sendfile_costs_no_byte(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, error: int, after: int
) -> None:
    source, seen, real = make_source(2 * EXTENT + 77), Sent(), os.sendfile
    calls = 0

    def sendfile(out: int, descriptor: int, offset: int, count: int) -> int:
        nonlocal calls
        calls += 1
        if calls >= after:
            raise OSError(error, os.strerror(error))
        return real(out, descriptor, offset, min(count, 300_000))

    monkeypatch.setattr(os, "sendfile", sendfile)
    with tcp_pair() as (near, far):
        collecting = collector(far)
        SendfileSend().send(near, source.descriptor, source.extents(), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert calls == after
    assert seen.hashed == digests_of(source.data, EXTENT)
    assert seen.sent == len(source.data)


def test_what_a_slow_call_takes_is_asked_for_in_smaller_pieces(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = make_source(EXTENT), os.sendfile
    now = 0.0
    asked: list[int] = []

    def sendfile(out: int, descriptor: int, offset: int, count: int) -> int:
        nonlocal now
        asked.append(count)
        now += count / 500_000
        return real(out, descriptor, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)
    monkeypatch.setattr("tdx.data.send.perf_counter", lambda: now)
    with tcp_pair() as (near, far):
        collecting = collector(far)
        SendfileSend().send(near, source.descriptor, source.extents(), Sent().hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert asked[0] == WINDOW
    assert max(asked[1:]) <= WINDOW // 2


@pytest.mark.parametrize("size", [0, 1, BUFFER, 3 * BUFFER + 5])
def test_a_buffer_is_sent_whole_and_reported(over: Over, size: int) -> None:
    data, seen = pattern(size), Sent()
    with over.tcp() as (near, far):
        collecting = collector(far)
        send_buffer(near, memoryview(data), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == data
    assert seen.sent == size
    assert seen.hashed == []


def test_pumps_carry_the_names_that_force_them() -> None:
    assert SendfileSend().name == "sendfile"
    assert BufferedSend().name == "buffered"


class TestAReceiverThatHoldsBack:
    """It says from time to time that it goes on."""

    def test_is_not_taken_for_one_that_has_stalled(self, over: Over) -> None:
        content = pattern(8 * BUFFER)
        with over.unix() as (near, far):
            far.settimeout(30)
            told = 0

            def read() -> object:
                nonlocal told
                for _ in range(3):
                    far.sendall(PROCESSING)
                    told += 1
                    time.sleep(0.8)
                return collector(far).join()

            reading = Background(read)
            send_buffer(near, memoryview(content), Sent().hooks(), Cancel(), 2.0)
            end_stream(near)
            assert reading.join() == content
            assert told == 3

    def test_may_say_so_in_pieces(self) -> None:
        with unix_pair() as (near, far):
            far.send(PROCESSING[:7])
            send_buffer(near, memoryview(b"first"), Sent().hooks(), Cancel(), STALL)
            far.send(PROCESSING[7:])
            send_buffer(near, memoryview(b"second"), Sent().hooks(), Cancel(), STALL)
            far.send(PROCESSING + b"HTTP/1.1 507 ")
            send_buffer(near, memoryview(b"third"), Sent().hooks(), Cancel(), STALL)
            with pytest.raises(EarlyAnswer):
                send_buffer(near, memoryview(b"fourth"), Sent().hooks(), Cancel(), STALL)
            assert near.recv(100) == b"HTTP/1.1 507 "

    def test_is_not_whoever_sends_as_many_bytes_of_something_else(self) -> None:
        with tls_unix_pair() as (near, far):
            answer = b"x" * len(PROCESSING)
            far.sendall(answer)
            wait_until(lambda: readable(near), "it is there")
            with pytest.raises(EarlyAnswer) as early:
                send_buffer(near, memoryview(b"content"), Sent().hooks(), Cancel(), STALL)
            assert early.value.begun == answer


def test_a_pace_is_asked_about_as_much_as_it_wants_to_be(pump: SendPump, make_source: MakeSource) -> None:
    source, seen = make_source(EXTENT), Sent()
    asked: list[int] = []

    def pace(n: int) -> float:
        asked.append(n)
        return 0.0

    hooks = seen.hooks(pace)
    hooks.most = lambda n: min(n, 100_000)
    with unix_pair() as (near, far):
        collecting = collector(far)
        pump.send(near, source.descriptor, source.extents(), hooks, Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == source.data
    assert max(asked) == 100_000
    assert sum(asked) == EXTENT


def test_the_seconds_that_a_limit_takes_are_told(pump: SendPump, make_source: MakeSource) -> None:
    source = make_source(BUFFER)
    with unix_pair() as (near, far):
        collecting = collector(far)
        hooks = Sent().hooks(lambda _: 0.02)
        pump.send(near, source.descriptor, source.extents(), hooks, Cancel(), STALL)
        end_stream(near)
        collecting.join()
    assert hooks.stages.limit == pytest.approx(0.02 * (BUFFER // WINDOW))
