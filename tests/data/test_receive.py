"""What both receiving pumps guarantee, and what only one of them does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from support.datakit import (
    STALL,
    Background,
    FileSink,
    MemorySink,
    Over,
    Received,
    body_on,
    digests_of,
    feeder,
    identity_body,
    pattern,
    slots_of,
    tcp_pair,
    unix_pair,
)
from support.processes import wait_until
from tdx.data.body import ChunkedBody
from tdx.data.port import BUFFER, Cancel, ReceivePump, Slot
from tdx.data.receive import BufferedReceive
from tdx.data.sockets import shut
from tdx.data.splice import SpliceReceive
from tdx.errors import ConnectionLost, DigestMismatch, Interrupted, NoSpace, Stalled, StorageError
from tdx.integrity import digest_of, new_hasher
from tdx.model import Span
from tdx.proto.chunked import ChunkedDecoder

EXTENT = 4 * BUFFER
AnySink = FileSink | MemorySink


@pytest.fixture(params=["buffered/memory", "buffered/file", "splice/file", "splice/memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ReceivePump, AnySink]]:
    pump, _, kind = str(request.param).partition("/")
    chosen: ReceivePump = SpliceReceive() if pump == "splice" else BufferedReceive()
    if kind == "memory":
        yield chosen, MemorySink()
        return
    sink = FileSink(tmp_path / "data")
    yield chosen, sink
    sink.close()


@pytest.fixture
def file_sink(tmp_path: Path) -> Iterator[FileSink]:
    sink = FileSink(tmp_path / "data")
    yield sink
    sink.close()


@pytest.mark.parametrize(
    "size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, EXTENT, EXTENT + 1, 2 * EXTENT + 3 * BUFFER + 77]
)
def test_every_byte_arrives_and_every_slot_is_completed_once(
    case: tuple[ReceivePump, AnySink], over: Over, size: int
) -> None:
    pump, sink = case
    data, seen = pattern(size), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        body = body_on(near, size)
        slots = slots_of(Span(0, size), EXTENT) if size else iter(())
        hooks = seen.hooks()
        pump.receive(body, sink, slots, hooks, Cancel())
        sending.join()
    assert sink.content() == data
    assert seen.completed == digests_of(data, EXTENT)
    assert seen.broke_off == []
    assert seen.received == size
    assert seen.discarded == 0
    if size > BUFFER:
        assert hooks.stages.receive > 0
        assert hooks.stages.hash > 0
        assert hooks.stages.write > 0


def test_an_odd_offset_a_prefix_and_a_carried_hasher_go_on_in_the_middle_of_an_extent(
    case: tuple[ReceivePump, AnySink],
    over: Over,
) -> None:
    pump, sink = case
    data, start, ahead = pattern(EXTENT + 5000), 1_234_567, 70_001
    sink.write_at(memoryview(data)[:start], 0)
    hasher = new_hasher()
    hasher.update(data[:start])
    first, second = Span(start, EXTENT), Span(EXTENT, len(data))
    seen = Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data[start + ahead :])
        body = body_on(near, len(data) - start, prefix=data[start : start + ahead])
        slots = iter([Slot(first, hasher=hasher), Slot(second)])
        pump.receive(body, sink, slots, seen.hooks(), Cancel())
        sending.join()
    assert sink.content() == data
    assert seen.completed == [(first, digest_of(data[:EXTENT])), (second, digest_of(data[EXTENT:]))]
    assert seen.received == len(data) - start


def test_a_prefix_longer_than_a_slot_is_cut_at_its_end(case: tuple[ReceivePump, AnySink], over: Over) -> None:
    pump, sink = case
    data, seen = pattern(3000), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data[2500:])
        slots = iter([Slot(Span(0, 1)), Slot(Span(1, 1000), keep=False), Slot(Span(1000, 3000))])
        pump.receive(body_on(near, 3000, prefix=data[:2500]), sink, slots, seen.hooks(), Cancel())
        sending.join()
    assert sink.content() == data[:1] + bytes(999) + data[1000:]
    assert [span for span, _ in seen.completed] == [Span(0, 1), Span(1000, 3000)]
    assert seen.discarded == 999


def test_held_extents_are_dropped_and_never_written(case: tuple[ReceivePump, AnySink], over: Over) -> None:
    pump, sink = case
    data, seen = pattern(3 * EXTENT), Received()
    spans = [Span(0, EXTENT), Span(EXTENT, 2 * EXTENT), Span(2 * EXTENT, 3 * EXTENT)]
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        slots = iter([Slot(spans[0]), Slot(spans[1], keep=False), Slot(spans[2])])
        pump.receive(body_on(near, len(data)), sink, slots, seen.hooks(), Cancel())
        sending.join()
    assert sink.content() == data[:EXTENT] + bytes(EXTENT) + data[2 * EXTENT :]
    assert not [span for span in sink.writes if span.start < 2 * EXTENT and span.end > EXTENT]
    assert [span for span, _ in seen.completed] == [spans[0], spans[2]]
    assert seen.discarded == EXTENT
    assert seen.received == 3 * EXTENT


def test_what_has_arrived_is_stored_in_turns_and_its_sender_waited_for_outside(
    case: tuple[ReceivePump, AnySink], over: Over
) -> None:
    pump, sink = case
    data, seen = pattern(2 * BUFFER), Received()
    in_turn, turns = threading.Event(), 0

    @contextmanager
    def turn() -> Iterator[None]:
        nonlocal turns
        before = len(sink.writes)
        in_turn.set()
        yield
        in_turn.clear()
        assert len(sink.writes) > before
        turns += 1

    hooks = replace(seen.hooks(), turn=turn)
    with over.tcp() as (near, far):
        body = body_on(near, len(data))
        receiving = Background(
            lambda: pump.receive(body, sink, slots_of(Span(0, len(data)), EXTENT), hooks, Cancel())
        )
        far.sendall(data[:BUFFER])
        wait_until(lambda: seen.received >= BUFFER and turns, "the first buffer is stored")
        wait_until(lambda: body.silent_for > 0, "the sender is waited for")
        assert not in_turn.is_set()
        far.sendall(data[BUFFER:])
        receiving.join()
    assert sink.content() == data


def test_the_pump_stops_where_the_slots_do(case: tuple[ReceivePump, AnySink], over: Over) -> None:
    pump, sink = case
    data, seen = pattern(EXTENT + 10), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        body = body_on(near, len(data))
        pump.receive(body, sink, slots_of(Span(0, EXTENT), EXTENT), seen.hooks(), Cancel())
        assert body.readinto(memoryview(bytearray(20))) == 10
        assert body.ended
        sending.join()
    assert sink.content() == data[:EXTENT]


def test_no_slot_is_asked_for_after_the_body_has_ended(case: tuple[ReceivePump, AnySink], over: Over) -> None:
    pump, sink = case
    asked: list[Span] = []

    def slots() -> Iterator[Slot]:
        for slot in slots_of(Span(0, 5 * EXTENT), EXTENT):
            asked.append(slot.span)
            yield slot

    with over.tcp() as (near, far):
        sending = feeder(far, pattern(EXTENT))
        pump.receive(body_on(near, EXTENT), sink, slots(), Received().hooks(), Cancel())
        sending.join()
    assert asked == [Span(0, EXTENT)]


def test_a_body_shorter_than_its_slot_breaks_off_without_an_error(
    case: tuple[ReceivePump, AnySink],
    over: Over,
) -> None:
    pump, sink = case
    data, seen = pattern(2 * BUFFER + 5), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        body = body_on(near, len(data))
        pump.receive(body, sink, slots_of(Span(0, EXTENT), EXTENT), seen.hooks(), Cancel())
        sending.join()
    assert seen.completed == []
    assert seen.broke_off == [(Span(0, len(data)), digest_of(data))]
    assert sink.content() == data


@pytest.mark.parametrize("arrived", [1, BUFFER, EXTENT, EXTENT + BUFFER + 3])
def test_a_connection_that_ends_early_leaves_what_arrived_and_says_so(
    case: tuple[ReceivePump, AnySink], over: Over, arrived: int
) -> None:
    pump, sink = case
    data, seen = pattern(arrived), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        slots = slots_of(Span(0, 2 * EXTENT), EXTENT)
        with pytest.raises(ConnectionLost):
            pump.receive(body_on(near, 2 * EXTENT), sink, slots, seen.hooks(), Cancel())
        sending.join()
    whole = arrived // EXTENT * EXTENT
    assert seen.completed == digests_of(data[:whole], EXTENT)
    rest = data[whole:]
    assert seen.broke_off == ([(Span(whole, arrived), digest_of(rest))] if rest else [])
    assert sink.content() == data


def test_a_body_of_one_buffer_that_breaks_off_says_so_too(
    case: tuple[ReceivePump, AnySink], over: Over
) -> None:
    pump, sink = case
    data, seen = pattern(1000), Received()
    with over.tcp() as (near, far):
        sending = feeder(far, data)
        with pytest.raises(ConnectionLost):
            pump.receive(body_on(near, 5000), sink, slots_of(Span(0, 5000), EXTENT), seen.hooks(), Cancel())
        sending.join()
    assert seen.broke_off == [(Span(0, 1000), digest_of(data))]
    assert sink.content() == data


def test_a_peer_that_falls_silent_is_stalled(case: tuple[ReceivePump, AnySink], over: Over) -> None:
    pump, sink = case
    seen = Received()
    with over.tcp() as (near, far):
        sending = feeder(far, pattern(10), close=False)
        body = body_on(near, EXTENT, stall=0.1)
        with pytest.raises(Stalled):
            pump.receive(body, sink, slots_of(Span(0, EXTENT), EXTENT), seen.hooks(), Cancel())
        sending.join()
    assert seen.broke_off == [(Span(0, 10), digest_of(pattern(10)))]


def test_a_cancel_during_a_blocked_receive_ends_the_pump_and_nothing_is_written_after_it(
    case: tuple[ReceivePump, AnySink],
    over: Over,
) -> None:
    pump, sink = case
    seen, cancel, data = Received(), Cancel(), pattern(EXTENT + BUFFER)
    first = threading.Event()
    hooks = seen.hooks()
    note = hooks.completed

    def completed(span: Span, digest: bytes) -> None:
        note(span, digest)
        first.set()

    hooks.completed = completed
    with over.tcp() as (near, far):
        sending = feeder(far, data, close=False)
        slots = slots_of(Span(0, 4 * EXTENT), EXTENT)
        body = body_on(near, 4 * EXTENT, cancel)
        pumping = Background(lambda: pump.receive(body, sink, slots, hooks, cancel))
        assert first.wait(30)
        sending.join()
        cancel.set(Interrupted("stop"))
        shut(near)
        with pytest.raises(Interrupted):
            pumping.join()
    assert seen.completed == digests_of(data[:EXTENT], EXTENT)
    assert seen.broke_off == []


def test_a_cancel_that_is_set_already_keeps_everything_from_the_sink(
    case: tuple[ReceivePump, AnySink],
    over: Over,
) -> None:
    pump, sink = case
    seen, cancel = Received(), Cancel()
    cancel.set(Interrupted("stop"))
    with over.tcp() as (near, _):
        body = body_on(near, 4000, cancel, prefix=pattern(4000))
        with pytest.raises(Interrupted):
            pump.receive(body, sink, slots_of(Span(0, 4000), EXTENT), seen.hooks(), cancel)
    assert sink.writes == []
    assert seen.completed == []
    assert seen.broke_off == []


@pytest.mark.parametrize("size", [1000, 3 * EXTENT])
def test_an_error_of_a_callback_ends_the_pump(
    case: tuple[ReceivePump, AnySink], over: Over, size: int
) -> None:
    pump, sink = case
    hooks = Received().hooks()

    def completed(span: Span, digest: bytes) -> None:
        raise DigestMismatch("not what came with it")

    hooks.completed = completed
    with over.tcp() as (near, far):
        sending = feeder(far, pattern(size), close=False)
        with pytest.raises(DigestMismatch):
            pump.receive(body_on(near, size), sink, slots_of(Span(0, size), EXTENT), hooks, Cancel())
        near.close()  # shut alone leaves a sender whose bytes no longer fit waiting for ever
        sending.join()


class FullSink(MemorySink):
    """Takes ``room`` bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write_at(self, data: memoryview, offset: int) -> None:
        if offset + len(data) > self.room:
            raise NoSpace("full")
        super().write_at(data, offset)


@pytest.mark.parametrize("close", [True, False], ids=["sending on", "falling silent"])
def test_a_full_disk_ends_the_pump_and_reports_only_what_is_there(close: bool) -> None:
    sink, seen = FullSink(EXTENT + BUFFER), Received()
    size = EXTENT + 2 * BUFFER
    with tcp_pair() as (near, far):
        sending = feeder(far, pattern(size), close=close)
        body = identity_body(near, 5 * EXTENT)
        with pytest.raises(NoSpace):
            BufferedReceive().receive(
                body, sink, slots_of(Span(0, 5 * EXTENT), EXTENT), seen.hooks(), Cancel()
            )
        sending.join()
    assert seen.completed == digests_of(pattern(size)[:EXTENT], EXTENT)
    [(span, digest)] = seen.broke_off
    assert span == Span(EXTENT, EXTENT + BUFFER)
    assert digest == digest_of(pattern(size)[EXTENT : EXTENT + BUFFER])


def test_a_chunked_body_of_unknown_length_is_received() -> None:
    data, sink, seen = pattern(2 * EXTENT + 12345), MemorySink(), Received()
    coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    with tcp_pair() as (near, far):
        sending = feeder(far, coded)
        body = ChunkedBody(near, b"", Cancel(), STALL, ChunkedDecoder())
        BufferedReceive().receive(body, sink, slots_of(Span(0, 1 << 40), EXTENT), seen.hooks(), Cancel())
        sending.join()
    assert sink.content() == data
    assert seen.completed == digests_of(data[: 2 * EXTENT], EXTENT)
    assert seen.broke_off == [(Span(2 * EXTENT, len(data)), digest_of(data[2 * EXTENT :]))]


# --- splice ------------------------------------------------------------------------


def splice_to(sink: FileSink, data: bytes, seen: Received, prefix: int = 0) -> None:
    with tcp_pair() as (near, far):
        sending = feeder(far, data[prefix:])
        body = identity_body(near, len(data), prefix=data[:prefix])
        try:
            SpliceReceive().receive(body, sink, slots_of(Span(0, len(data)), EXTENT), seen.hooks(), Cancel())
        finally:
            near.close()  # shut alone leaves a sender whose bytes no longer fit waiting for ever
            sending.join()


def test_splice_moves_everything_but_the_prefix_without_a_copy(file_sink: FileSink) -> None:
    data = pattern(EXTENT + 100)
    splice_to(file_sink, data, Received(), prefix=100)
    assert file_sink.spliced == EXTENT


def failing(real: Callable[..., int], error: int, when: Callable[[int, int], bool]) -> Callable[..., int]:
    """os.splice that fails with ``error`` when ``when(calls so far, dst)`` says so."""
    calls = 0

    def splice(src: int, dst: int, count: int, **offsets: int) -> int:
        nonlocal calls
        calls += 1
        if when(calls, dst):
            raise OSError(error, os.strerror(error))
        return real(src, dst, count, **offsets)

    return splice


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("after", [1, 2, 3, 8])
def test_a_kernel_that_refuses_to_splice_costs_no_byte(
    file_sink: FileSink, monkeypatch: pytest.MonkeyPatch, error: int, after: int
) -> None:
    monkeypatch.setattr(os, "splice", failing(os.splice, error, lambda calls, _: calls >= after))
    data, seen = pattern(2 * EXTENT + 77), Received()
    splice_to(file_sink, data, seen, prefix=1000)
    assert file_sink.content() == data
    assert seen.completed == digests_of(data, EXTENT)
    assert seen.broke_off == []
    assert seen.received == len(data)


def test_a_filesystem_that_refuses_to_be_spliced_into_gets_the_bytes_of_the_pipe(
    file_sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "splice", failing(os.splice, errno.EINVAL, lambda _, dst: dst == file_sink.descriptor)
    )
    data, seen = pattern(EXTENT), Received()
    splice_to(file_sink, data, seen)
    assert file_sink.content() == data
    assert seen.completed == digests_of(data, EXTENT)
    assert file_sink.spliced == 0


@pytest.mark.parametrize(
    ("error", "expected"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StorageError)]
)
def test_a_failed_splice_into_the_file_is_the_storage_s_error_and_its_bytes_are_not_held(
    file_sink: FileSink, monkeypatch: pytest.MonkeyPatch, error: int, expected: type[Exception]
) -> None:
    def when(calls: int, dst: int) -> bool:
        return dst == file_sink.descriptor and bool(file_sink.writes)

    monkeypatch.setattr(os, "splice", failing(os.splice, error, when))
    seen = Received()
    with pytest.raises(expected):
        splice_to(file_sink, pattern(EXTENT), seen)
    [(span, digest)] = seen.broke_off
    assert span == file_sink.writes[0]
    assert digest == digest_of(pattern(EXTENT)[: span.end])


def test_what_cannot_be_read_back_is_never_vouched_for(
    file_sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sink, "read_at", lambda *_: 0)
    seen = Received()
    with pytest.raises(StorageError):
        splice_to(file_sink, pattern(3 * EXTENT), seen)
    assert seen.completed == []
    assert seen.broke_off == []


def test_splice_leaves_no_descriptor_open(file_sink: FileSink) -> None:
    before = os.listdir("/proc/self/fd")
    splice_to(file_sink, pattern(BUFFER), Received())
    assert os.listdir("/proc/self/fd") == before


def test_a_digest_is_over_what_the_file_holds_not_over_what_came(
    file_sink: FileSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = pattern(BUFFER), Received()
    real = file_sink.wrote

    def damage(offset: int, length: int) -> None:
        real(offset, length)
        if offset == 0:
            os.pwrite(file_sink.descriptor, b"\xff", 0)

    monkeypatch.setattr(file_sink, "wrote", damage)
    splice_to(file_sink, data, seen)
    assert seen.completed == [(Span(0, BUFFER), digest_of(b"\xff" + data[1:]))]


def test_splice_works_from_a_unix_socket(file_sink: FileSink) -> None:
    data, seen = pattern(BUFFER + 1), Received()
    with unix_pair() as (near, far):
        sending = feeder(far, data)
        SpliceReceive().receive(
            identity_body(near, len(data)),
            file_sink,
            slots_of(Span(0, len(data)), EXTENT),
            seen.hooks(),
            Cancel(),
        )
        sending.join()
    assert file_sink.content() == data


def test_pumps_carry_the_names_that_force_them() -> None:
    assert BufferedReceive().name == "buffered"
    assert SpliceReceive().name == "splice"
