"""How many streams a push begins with on what way to the peer, and of which extents it tells the digest."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from support.processes import wait_until
from tdx.control.client import Answer, Client
from tdx.control.pace import Pace
from tdx.control.progress import Tally
from tdx.control.sending import NEAR_STREAMS, OpenUpload, Sending, unacknowledged
from tdx.data.port import Cancel, SendHooks
from tdx.data.source import Source
from tdx.integrity import PART, cut
from tdx.model import Span, UploadId
from tdx.policy.retry import Retrier, RetryPolicy
from tdx.policy.schedule import RUN_LIMIT, StreamCount
from tdx.proto.head import Headers
from tdx.ranges import RangeSet

EXTENT = 4 << 20


class Way:
    """A client to a peer that takes everything, once as many bodies have come as are to come at once."""

    stall_timeout = 1.0

    def __init__(self, round_trip: float, congestion_control: str, together: int) -> None:
        self.round_trip = round_trip
        self.congestion_control = congestion_control
        self.runs: list[Span] = []
        self._together = together
        self._all_there = asyncio.Event()

    async def upload(
        self,
        method: str,
        target: str,
        fields: list[tuple[str, str]],
        length: int,
        pump: Callable[[object], None],
        cancel: Cancel,
        *,
        sealed: object,
    ) -> tuple[Answer, bool]:
        found = re.match(r"bytes (\d+)-(\d+)/", dict(fields)["Content-Range"])
        assert found is not None
        self.runs.append(Span(int(found[1]), int(found[2]) + 1))
        assert len(self.runs[-1]) == length
        if len(self.runs) == self._together:
            self._all_there.set()
        await self._all_there.wait()
        pump(None)
        return Answer(200, Headers([]), b"{}"), True

    def retrier(self) -> Retrier:
        return Retrier(RetryPolicy(), cast("object", None))  # type: ignore[arg-type]


class Pump:
    """Reads and hashes, and sends nowhere."""

    name = "test"

    def send(
        self,
        sock: object,
        descriptor: int,
        extents: list[Span],
        hooks: SendHooks,
        cancel: Cancel,
        stall_timeout: float,
        seal: bytes | None,
    ) -> None:
        for span in extents:
            hooks.sent(len(span))
            hooks.hashed(span, b"%d" % span.start)


async def first_runs(
    tmp_path: Path,
    way: Way,
    extents: int,
    streams: int | None = None,
    rate: float | None = None,
    alone: Callable[[], bool] = lambda: True,
) -> dict[Span, bytes]:
    """Send a file of so many extents: what was recorded."""
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(extents * EXTENT)
    upload = OpenUpload(UploadId("u"), 1, EXTENT, PART, extents * EXTENT, RangeSet(), 64, False, False, False)
    recorded: dict[Span, bytes] = {}
    with Source.open(path) as source:
        sending = Sending(
            cast("Client", way),
            upload,
            source,
            Pump(),  # type: ignore[arg-type]
            Pace(rate),
            Tally(),
            streams=streams,
            recorder=lambda: recorded.__setitem__,
            alone=alone,
        )
        async with asyncio.timeout(20):
            await sending.send(RangeSet([Span(0, extents * EXTENT)]))
    return recorded


@pytest.mark.parametrize(
    ("round_trip", "congestion_control", "first"),
    [
        (0.0005, "cubic", NEAR_STREAMS),
        (0.0005, "bbr", NEAR_STREAMS),
        (0.1, "bbr", 1),
        (0.1, "bbr2", 1),
        (0.1, "cubic", StreamCount.SEVERAL),
        (0.1, "", StreamCount.SEVERAL),
    ],
)
async def test_several_streams_at_once_where_the_peer_is_near_or_far_and_losses_slow_one_down(
    tmp_path: Path, round_trip: float, congestion_control: str, first: int
) -> None:
    way = Way(round_trip, congestion_control, first)
    await first_runs(tmp_path, way, 40)
    assert sum(len(run) for run in way.runs) == 40 * EXTENT


async def test_no_more_than_that_at_first(tmp_path: Path) -> None:
    way = Way(0.1, "bbr", 1)
    await first_runs(tmp_path, way, 40)
    assert way.runs[0].start == 0
    assert len(way.runs[0]) >= 2 * EXTENT


async def test_streams_to_a_near_peer_begin_with_their_share(tmp_path: Path) -> None:
    way = Way(0.0005, "cubic", NEAR_STREAMS)
    await first_runs(tmp_path, way, 40)
    assert {len(run) for run in way.runs[:NEAR_STREAMS]} == {10 * EXTENT, 7 * EXTENT}


async def test_one_stream_to_a_near_peer_under_a_rate_limit(tmp_path: Path) -> None:
    way = Way(0.0005, "cubic", 1)
    await first_runs(tmp_path, way, 40, rate=1e12)
    assert way.runs == [Span(0, 40 * EXTENT)]


async def test_one_stream_to_a_near_peer_for_each_of_several_files(tmp_path: Path) -> None:
    way = Way(0.0005, "cubic", 1)
    await first_runs(tmp_path, way, 40, alone=lambda: False)
    assert way.runs == [Span(0, 40 * EXTENT)]


async def test_a_second_stream_to_a_near_peer_once_the_other_files_have_ended(tmp_path: Path) -> None:
    extents = RUN_LIMIT // EXTENT + 40
    way = Way(0.0005, "cubic", NEAR_STREAMS)  # the first run ends once there is another
    await first_runs(tmp_path, way, extents, alone=lambda: bool(way.runs))
    assert way.runs[:2] == [Span(0, RUN_LIMIT), Span(RUN_LIMIT, RUN_LIMIT + 10 * EXTENT)]
    assert sum(len(run) for run in way.runs) == extents * EXTENT


async def test_a_file_of_one_extent_is_one_request(tmp_path: Path) -> None:
    way = Way(0.0005, "cubic", 1)
    await first_runs(tmp_path, way, 1)
    assert len(way.runs) == 1


async def test_an_extent_that_went_in_parts_is_not_reported(tmp_path: Path) -> None:
    way = Way(0.1, "cubic", 1)
    recorded = await first_runs(tmp_path, way, 3, streams=4)
    parts = [run for run in way.runs if len(run) < EXTENT]
    assert parts
    whole = {piece for run in way.runs if len(run) >= EXTENT for piece in cut(run, EXTENT)}
    assert set(recorded) == whole


async def test_a_near_peer_gets_no_parts(tmp_path: Path) -> None:
    way = Way(0.0005, "cubic", 1)
    recorded = await first_runs(tmp_path, way, 3, streams=4)
    assert all(len(run) % EXTENT == 0 for run in way.runs)
    assert len(recorded) == 3


def test_what_the_kernel_holds_is_not_taken_for_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            assert unacknowledged(near) == 0
            near.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += near.send(bytes(1 << 16))
            waiting = unacknowledged(near)
            assert 0 < waiting < sent
            left = sent
            while left:
                left -= len(far.recv(1 << 20))
            wait_until(lambda: unacknowledged(near) == 0, "everything is acknowledged")
    assert unacknowledged(near) == 0
