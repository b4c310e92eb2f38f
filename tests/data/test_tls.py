"""What TLS adds to bodies and pumps: records, what OpenSSL refuses, alerts, and the kernel's own TLS."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datakit import (
    QUICK,
    STALL,
    Background,
    FileSink,
    Sent,
    body_on,
    collector,
    contexts,
    digests_of,
    end_stream,
    pattern,
    tcp_pair,
    tls_tcp_pair,
    tls_unix_pair,
)
from tdx.data.body import ChunkedBody
from tdx.data.port import BUFFER, Body, Cancel, EarlyAnswer, RawBody
from tdx.data.probe import choose_receive
from tdx.data.records import PROVEN, RECORD, RecordReader, RecordWriter, kernel_encrypts
from tdx.data.send import MIN_CALL, WINDOW, BufferedSend, SendfileSend, send_buffer
from tdx.data.sockets import has_answer, readable, shut, to_loop, to_worker
from tdx.data.tls import TlsBody
from tdx.errors import ConnectionLost, Interrupted, Stalled
from tdx.integrity import cut
from tdx.model import Span
from tdx.proto.chunked import ChunkedDecoder

EXTENT = 4 * BUFFER


def read_all(body: Body, step: int = 50_000) -> bytes:
    found, buffer = bytearray(), memoryview(bytearray(step))
    while n := body.readinto(buffer):
        found += buffer[:n]
    return bytes(found)


# --- bodies ------------------------------------------------------------------------


def test_a_body_over_tls_is_nothing_to_splice(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "data")
    with tls_tcp_pair() as (near, _):
        body = TlsBody(near, b"", 10, Cancel(), STALL)
        assert not isinstance(body, RawBody)
        assert choose_receive("splice", sink, body).name == "buffered"
    sink.close()


def test_nothing_beyond_the_body_is_taken_whatever_the_records_are() -> None:
    data = pattern(100)
    with tls_unix_pair() as (near, far):

        @given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20), st.integers(5, 60))
        def check(ahead: int, length: int, step: int, record: int) -> None:
            for start in range(ahead, len(data), record):
                far.send(data[start : start + record])
            body = body_on(near, length, prefix=data[:ahead])
            assert read_all(body, step) == data[:length]
            assert body.ended
            assert body.leftover == data[length:ahead]
            rest = memoryview(bytearray(100 - max(ahead, length)))
            assert RecordReader(near).receive(rest, whole=True) == len(rest)
            assert bytes(rest) == data[max(ahead, length) :]

        check()


def test_a_body_in_many_small_records_fills_the_view() -> None:
    data = pattern(30_000)
    with tls_tcp_pair() as (near, far):

        def send() -> None:
            for start in range(0, len(data), 100):
                far.send(data[start : start + 100])

        sending = Background(send)
        view = memoryview(bytearray(len(data)))
        assert body_on(near, len(data)).readinto(view) == len(data)
        assert bytes(view) == data
        sending.join()


@contextmanager
def meddled_pair() -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket, socket.socket]]:
    """Two TLS sockets, and the descriptor below the second one for what it would not send itself."""
    with tls_tcp_pair() as (near, far), socket.socket(fileno=os.dup(far.fileno())) as raw:
        yield near, far, raw


def test_a_record_that_trickles_in_keeps_no_read_busy() -> None:
    # Every byte would start SO_RCVTIMEO anew, for a minute.
    with meddled_pair() as (near, _, raw):
        to_worker(near, 0.2)
        stop = Cancel()

        def trickle() -> None:
            for byte in b"\x17\x03\x03\x04\x00" + bytes(1024):
                raw.send(bytes([byte]))
                stop.sleep(0.05)

        trickling = Background(trickle)
        with pytest.raises(Stalled):
            body_on(near, 1000, stall=0.5).readinto(memoryview(bytearray(1000)))
        stop.set(Interrupted("enough"))
        with pytest.raises(Interrupted):
            trickling.join()


def test_a_chunked_body_does_not_wait_for_more_than_what_has_come() -> None:
    with tls_unix_pair() as (near, far):
        body = ChunkedBody(near, b"", Cancel(), STALL, ChunkedDecoder())
        far.send(b"5\r\nhello\r\n0\r\n\r\nNEXT")
        assert read_all(body) == b"hello"
        assert body.leftover == b"NEXT"


@pytest.mark.parametrize("polite", [True, False])
def test_the_end_of_the_stream_is_an_end_with_and_without_a_farewell(polite: bool) -> None:
    with tls_tcp_pair() as (near, far):
        far.send(b"some")
        if polite:
            far.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                far.unwrap()
        else:
            end_stream(far)
        body = body_on(near, 100)
        view = memoryview(bytearray(100))
        assert body.readinto(view) == 4
        with pytest.raises(ConnectionLost, match="ended"):
            body.readinto(view)


def test_the_end_of_the_stream_is_an_end_where_ssl_makes_an_error_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tls_tcp_pair() as (near, far):
        monkeypatch.setattr(near, "suppress_ragged_eofs", False)
        far.send(b"some")
        end_stream(far)
        body = body_on(near, 100)
        view = memoryview(bytearray(100))
        assert body.readinto(view) == 4
        with pytest.raises(ConnectionLost, match="closed"):
            body.readinto(view)


def test_a_record_that_was_damaged_on_its_way_is_worth_another_try() -> None:
    with meddled_pair() as (near, _, raw):
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        body = body_on(near, 100)
        with pytest.raises(ConnectionLost, match="bad record mac") as caught:
            body.readinto(memoryview(bytearray(100)))
        assert not caught.value.permanent


def test_what_is_no_tls_at_all_is_no_payload() -> None:
    with meddled_pair() as (near, _, raw):
        raw.sendall(b"PUT / HTTP/1.1\r\n\r\n" * 10)
        with pytest.raises(ConnectionLost):
            body_on(near, 100).readinto(memoryview(bytearray(100)))


def test_what_came_before_a_damaged_record_is_kept() -> None:
    with meddled_pair() as (near, far, raw):
        far.send(b"good")
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        body = body_on(near, 100)
        view = memoryview(bytearray(100))
        assert body.readinto(view) == 4
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="bad record mac"):
                body.readinto(view)


def test_a_reset_right_after_some_bytes_is_told_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)

    def read(*_: object) -> int:
        call = next(calls)
        if call == 2:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return 4 if call == 1 else 0

    with tls_tcp_pair() as (near, _):
        monkeypatch.setattr(near, "read", read)
        body = body_on(near, 100)
        view = memoryview(bytearray(100))
        assert body.readinto(view) == 4
        with pytest.raises(ConnectionLost, match="reset"):
            body.readinto(view)


def test_no_ciphertext_is_payload_and_no_payload_leaves_once_the_tls_layer_is_gone() -> None:
    with tls_tcp_pair() as (near, far):
        reader, writer = RecordReader(near), RecordWriter(near)
        far.send(b"secret")
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match="unwrapped"):
            reader.receive(memoryview(bytearray(100)), whole=True)
        with pytest.raises(ValueError, match="unwrapped"):
            writer.send(memoryview(b"secret"), 0, 6)


@pytest.mark.parametrize("whole", [True, False])
def test_the_kernel_s_own_timeout_is_a_broken_connection_and_no_tick(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    def timed_out(*_: object) -> int:
        raise TimeoutError(110, "Connection timed out")

    with tls_tcp_pair() as (near, _):
        monkeypatch.setattr(near, "read", timed_out)
        with pytest.raises(TimeoutError):
            RecordReader(near).receive(memoryview(bytearray(10)), whole=whole)
        monkeypatch.setattr(near, "write", timed_out)
        with pytest.raises(ConnectionLost, match="timed out"):
            send_buffer(near, memoryview(b"data"), Sent().hooks(), Cancel(), STALL)


# --- sending -----------------------------------------------------------------------


class Refusing:
    """Stands in for SSLSocket.write: takes what a script says, and insists on what it has refused."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers
        self.refused = b""
        self.calls: list[int] = []
        self.taken = bytearray()

    def __call__(self, data: memoryview) -> int:
        self.calls.append(len(data))
        given = bytes(data)
        assert given.startswith(self.refused), "OpenSSL says: bad write retry"
        if self.answers and not self.answers.pop(0):
            self.refused = given
            raise TimeoutError("The write operation timed out")
        self.refused = b""
        self.taken += given
        return len(given)


def test_what_was_refused_is_given_again_however_little_is_asked_for() -> None:
    whole = memoryview(pattern(10 * RECORD))
    with tls_unix_pair() as (near, _), pytest.MonkeyPatch.context() as patch:

        @given(st.lists(st.booleans(), max_size=40), st.integers(1, 10 * RECORD), st.data())
        def check(answers: list[bool], size: int, data: st.DataObject) -> None:
            content, peer, done = whole[:size], Refusing(answers), 0
            patch.setattr(near, "write", peer)
            writer = RecordWriter(near)
            while done < size:
                with suppress(BlockingIOError):
                    done += writer.send(content, done, data.draw(st.integers(1, size - done)))
            assert done == size
            assert bytes(peer.taken) == bytes(content)

        check()


def test_a_refusal_makes_what_is_given_at_once_small_again() -> None:
    content = memoryview(bytes(PROVEN + 3 * WINDOW))
    with tls_unix_pair() as (near, _), pytest.MonkeyPatch.context() as patch:
        peer = Refusing([])
        patch.setattr(near, "write", peer)
        writer = RecordWriter(near)
        done = 0
        while done < PROVEN:
            done += writer.send(content, done, WINDOW)
        assert set(peer.calls) == {RECORD}
        peer.calls.clear()
        done += writer.send(content, done, WINDOW)
        assert peer.calls == [WINDOW]
        peer.answers = [False]
        with pytest.raises(BlockingIOError):
            writer.send(content, done, WINDOW)
        peer.calls.clear()
        # Less is asked for than was refused: as much goes out as has to.
        done += writer.send(content, done, RECORD)
        assert done == PROVEN + 2 * WINDOW
        writer.send(content, done, WINDOW)
        assert set(peer.calls) == {WINDOW, RECORD}


@pytest.mark.parametrize("proven", [0, PROVEN])
def test_a_reader_slower_than_a_tick_gets_every_byte_in_calls_that_shrink(
    monkeypatch: pytest.MonkeyPatch, proven: int
) -> None:
    data, seen, refused, ended = pattern(2 * WINDOW), Sent(), threading.Event(), threading.Event()
    asked: list[int] = []
    ticking = itertools.count()
    monkeypatch.setattr("tdx.data.records.PROVEN", proven)
    monkeypatch.setattr("tdx.data.send.perf_counter", lambda: float(next(ticking)))
    with tls_unix_pair() as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        real = near.write

        def write(view: memoryview) -> int:
            asked.append(len(view))
            try:
                return real(view)
            except TimeoutError:
                refused.set()
                raise

        def read() -> bytes:
            found = bytearray()
            while refused.wait(30):
                if not ended.is_set():
                    refused.clear()
                for _ in range(4):
                    with suppress(TimeoutError):
                        part = far.recv(RECORD)
                        found += part
                        if not part:
                            return bytes(found)
            return bytes(found)

        monkeypatch.setattr(near, "write", write)
        reading = Background(read)
        send_buffer(near, memoryview(data), seen.hooks(), Cancel(), STALL)
        end_stream(near)
        ended.set()
        refused.set()
        assert reading.join() == data
    assert seen.sent == len(data)
    # What the first call refused was given again although less was asked for by then.
    first = WINDOW if proven == 0 else RECORD
    assert asked[:2] == [first, first]
    assert proven or MIN_CALL in asked


def test_nothing_taken_for_long_is_a_stall() -> None:
    with tls_unix_pair() as (near, _), pytest.raises(Stalled):
        send_buffer(near, memoryview(bytes(EXTENT)), Sent().hooks(), Cancel(), 0.1)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 507 Insufficient Storage\r\n\r\n", b"x" * 3 * RECORD])
def test_an_answer_in_the_middle_of_the_body_stops_the_pump(answer: bytes) -> None:
    with tls_unix_pair() as (near, far):

        def read_answer_and_read_on() -> None:
            left = BUFFER
            while left:
                with suppress(TimeoutError):
                    left -= len(far.recv(min(left, RECORD)))
            far.sendall(answer)
            collected = collector(far)
            collected.join()

        reading = Background(read_answer_and_read_on)
        with pytest.raises(EarlyAnswer):
            send_buffer(near, memoryview(bytes(8 * EXTENT)), Sent().hooks(), Cancel(), STALL)
        assert near.recv(12) == answer[:12]
        end_stream(near)
        reading.join()


def test_an_alert_in_the_middle_of_the_body_is_left_to_whoever_reads_the_answer() -> None:
    """A receiver that lets nobody in without a certificate says so once the client has begun to send."""
    client, server = contexts(mutual=True)
    with tcp_pair() as (near, far):
        near.settimeout(30)
        far.settimeout(30)
        outer = server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
        refusing = Background(outer.do_handshake)
        inner = client.wrap_socket(near)
        to_worker(inner, QUICK)
        with inner, outer:
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
                refusing.join()
            with pytest.raises(EarlyAnswer):
                send_buffer(inner, memoryview(bytes(100)), Sent().hooks(), Cancel(), STALL)
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                inner.recv(1)


def test_a_connection_that_breaks_while_sending_says_how() -> None:
    with tls_tcp_pair() as (near, far), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdx.data.send.readable", lambda _: False)
        far.close()
        with pytest.raises(ConnectionLost, match=r"closed|reset|pipe"):
            send_buffer(near, memoryview(bytes(8 * EXTENT)), Sent().hooks(), Cancel(), STALL)


# --- sockets -----------------------------------------------------------------------


def test_a_tls_socket_gives_up_after_a_tick_and_does_not_block_on_the_loop() -> None:
    with tls_unix_pair() as (near, _):
        to_worker(near, 0.01)
        with pytest.raises(TimeoutError):
            near.recv(1)
        to_loop(near)
        assert near.gettimeout() == 0.0
        with pytest.raises(ssl.SSLWantReadError):
            near.recv(1)


def test_what_openssl_holds_already_can_be_read_and_is_an_answer() -> None:
    with tls_tcp_pair() as (near, far):
        assert not readable(near)
        assert not has_answer(near)
        far.send(b"two")
        assert readable(near)
        assert has_answer(near)
        assert near.recv(1) == b"t"
        assert readable(near)
        assert has_answer(near)
        assert near.recv(2) == b"wo"
        assert not readable(near)
        end_stream(far)
        assert readable(near)
        assert not has_answer(near)


def test_shut_wakes_a_reader_that_waits_for_a_record() -> None:
    cancel = Cancel()
    with tls_tcp_pair() as (near, far):
        to_worker(near, 60.0)
        far.send(b"some")
        body = body_on(near, 100, cancel)
        reading = Background(lambda: body.readinto(memoryview(bytearray(100))))
        cancel.set(Interrupted("stop"))
        shut(near)
        with pytest.raises(Interrupted):
            reading.join()


# --- the kernel's TLS --------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").write_bytes(pattern(EXTENT + 77))
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


WHOLE = list(cut(Span(0, EXTENT + 77), EXTENT))


def kernel_tls(
    monkeypatch: pytest.MonkeyPatch, sock: ssl.SSLSocket, refuse_at: int | None = None
) -> list[int]:
    """Make ``sock`` look as if the kernel encrypted what os.sendfile moves; the offsets it moved."""
    offsets: list[int] = []

    def getsockopt(level: int, option: int, length: int) -> bytes:
        assert (level, option, length) == (282, 1, 4)
        return b"\x04\x03\x34\0"

    def sendfile(out: int, descriptor: int, offset: int, count: int) -> int:
        assert out == sock.fileno()
        assert os.get_blocking(out)
        if refuse_at is not None and offset >= refuse_at:
            raise OSError(errno.EINVAL, "Invalid argument")
        offsets.append(offset)
        return sock.send(os.pread(descriptor, min(count, RECORD), offset))

    monkeypatch.setattr(sock, "getsockopt", getsockopt)
    monkeypatch.setattr(os, "sendfile", sendfile)
    return offsets


def test_a_kernel_without_tls_is_not_asked_to_send_the_file(
    monkeypatch: pytest.MonkeyPatch, source: int
) -> None:
    def sendfile(*_: object) -> int:
        raise AssertionError("this would have sent the file in the clear")

    monkeypatch.setattr(os, "sendfile", sendfile)
    seen = Sent()
    with tls_tcp_pair() as (near, far):
        # Where this kernel knows TLS, the contexts have not asked for it.
        assert not kernel_encrypts(near)
        collecting = collector(far)
        SendfileSend().send(near, source, WHOLE, seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == pattern(EXTENT + 77)
    assert seen.hashed == digests_of(pattern(EXTENT + 77), EXTENT)


def test_where_the_kernel_encrypts_the_file_goes_by_sendfile(
    monkeypatch: pytest.MonkeyPatch, source: int
) -> None:
    seen = Sent()
    with tls_tcp_pair() as (near, far):
        offsets = kernel_tls(monkeypatch, near)
        collecting = collector(far)
        SendfileSend().send(near, source, WHOLE, seen.hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == pattern(EXTENT + 77)
    assert offsets == list(range(0, EXTENT + 77, RECORD))
    assert seen.hashed == digests_of(pattern(EXTENT + 77), EXTENT)


def test_where_the_kernel_encrypts_but_refuses_the_file_no_byte_is_lost(
    monkeypatch: pytest.MonkeyPatch, source: int
) -> None:
    with tls_tcp_pair() as (near, far):
        offsets = kernel_tls(monkeypatch, near, refuse_at=BUFFER + RECORD)
        collecting = collector(far)
        SendfileSend().send(near, source, WHOLE, Sent().hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == pattern(EXTENT + 77)
    assert offsets[-1] == BUFFER


def test_buffers_are_sent_from_where_they_are_wished_for_even_if_the_kernel_encrypts(
    monkeypatch: pytest.MonkeyPatch, source: int
) -> None:
    with tls_tcp_pair() as (near, far):
        offsets = kernel_tls(monkeypatch, near)
        collecting = collector(far)
        BufferedSend().send(near, source, WHOLE, Sent().hooks(), Cancel(), STALL)
        end_stream(near)
        assert collecting.join() == pattern(EXTENT + 77)
    assert offsets == []
