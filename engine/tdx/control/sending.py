"""Sending the missing extents of one upload over parallel streams."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import re
import socket
import sys
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from tdx.control.client import Client
from tdx.control.pace import Pace
from tdx.control.progress import Tally
from tdx.data.port import Cancel, SendHooks, SendPump
from tdx.data.source import Source
from tdx.errors import ProtocolError, TdxError
from tdx.integrity import cut
from tdx.model import Span, UploadId
from tdx.policy.retry import Retrier
from tdx.policy.schedule import StreamCount, StreamScheduler
from tdx.proto.fields import MAX_INTEGER, SEAL, ContentRange, format_content_range
from tdx.ranges import RangeSet

MOST_STREAMS: Final = 64
NEAR_SECONDS: Final = 0.002
"""A round trip under which no number of streams needs to be tried (docs/decisions/004-streams.md)."""

NEAR_STREAMS: Final = 2
"""To a near peer: two fill any such link, and give each end two cores' work
(docs/decisions/012-thread-for-each-stream.md)."""

FAR_SECONDS: Final = 0.005
"""A round trip from which on it takes too long to find out with one stream whether more are better."""

OBSERVE_SECONDS: Final = 0.25
MINDS_NO_LOSS: Final = "bbr"
"""A congestion control (all its versions begin so) with which one stream fills a link that loses packets."""

RUN_SECONDS: Final = 4.0
"""About how long a run takes while the number of streams is being found out."""

CAUTIOUS_SECONDS: Final = 2.0
"""The same, where each stream may become a tenth as fast meanwhile."""

PART_ROUND_TRIPS: Final = 4.0
"""How long a part of an extent takes at least: one of them goes by with nothing on its way."""

_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,128}")
"""What can stand in a target as it is."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """What the receiver said when it opened the upload. ``streams`` is its limit; an extent may travel
    in pieces that begin on a multiple of ``part``. ``seals``: it opens sealed bodies. ``base``: bytes of
    the file that is to be replaced, and that the new one may be made from; 0 where there is none."""

    id: UploadId
    epoch: int
    extent_size: int
    part: int
    length: int | None
    held: RangeSet
    streams: int
    existing: bool
    resumed: bool
    unchanged: bool
    seals: bool = False
    base: int = 0

    @property
    def target(self) -> str:
        return f"/uploads/{self.id}"

    @property
    def fields(self) -> list[tuple[str, str]]:
        return [("Tdx-Epoch", str(self.epoch))]

    @classmethod
    def parse(cls, document: dict[str, object], length: int | None) -> OpenUpload:
        """From the receiver's answer to a creation; ProtocolError where it is not one."""
        upload, epoch, size, streams = (
            document.get(key) for key in ("id", "epoch", "extent_size", "streams")
        )
        held, part, seals = document.get("held"), document.get("part"), document.get("seals")
        base = document.get("base")
        if not (
            isinstance(upload, str)
            and _ID.fullmatch(upload) is not None
            and isinstance(epoch, int)
            and 0 < epoch <= MAX_INTEGER
            and isinstance(size, int)
            and size > 0
        ):
            raise ProtocolError("the peer's answer names no upload; is it a tdx receiver?")
        return cls(
            id=UploadId(upload),
            epoch=epoch,
            extent_size=size,
            part=part if isinstance(part, int) and part > 0 and size % part == 0 else size,
            length=length,
            held=parse_held(held, length),
            streams=streams if isinstance(streams, int) and streams > 0 else 1,
            existing=document.get("existing") is True,
            resumed=document.get("resumed") is True,
            unchanged=document.get("unchanged") is True,
            seals=isinstance(seals, list) and SEAL in seals,
            base=base if isinstance(base, int) and base > 0 else 0,
        )


def parse_held(value: object, length: int | None) -> RangeSet:
    """Held ranges from JSON: a list of [start, end) pairs, in order and within the file."""
    held = RangeSet()
    before, most = 0, MAX_INTEGER if length is None else length
    if not isinstance(value, list):
        raise ProtocolError("the peer's held ranges are not a list")
    for pair in cast("list[object]", value):
        match pair:
            case [int(start), int(end)] if before <= start < end <= most:
                held.add(Span(start, end))
                before = end
            case _:
                raise ProtocolError(f"the peer's held ranges have {pair!r:.80} where that cannot be")
    return held


class Sending:
    """Sends what the scheduler hands out until every extent has been acknowledged.

    ``streams`` None uses two where the peer is near (one under a rate limit, and one while this file is
    not ``alone()``: each of several has its own), and elsewhere starts with one, or with several where it
    is far and a lost packet slows a stream down, and adds more while the measured rate grows.
    ``recorder()`` is called as each run begins; what it returns gets the digest of each
    extent of that run, from the bytes that were sent, in a pump's thread. An extent that went in
    parts is not reported.
    """

    def __init__(
        self,
        client: Client,
        upload: OpenUpload,
        source: Source,
        pump: SendPump,
        pace: Pace,
        tally: Tally,
        *,
        streams: int | None,
        recorder: Callable[[], Callable[[Span, bytes], None]],
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._upload = upload
        self._source = source
        self._pump = pump
        self._tally = tally
        self._round_trip = client.round_trip
        self._near = client.round_trip < NEAR_SECONDS
        self._several = client.round_trip >= FAR_SECONDS and not client.congestion_control.startswith(
            MINDS_NO_LOSS
        )
        # Where a limit makes the push last, two extents under way would be more to lose than one.
        self._near_streams = 1 if pace.limited else NEAR_STREAMS
        self._alone = alone
        self._streams = streams
        self._pace = pace
        self._recorder = recorder
        self._changed = asyncio.Event()
        self._numbers = itertools.count()
        self._wanted = 0
        self._active = 0
        self._held_bytes = upload.held.total()
        self._sockets: set[socket.socket] = set()
        """Those that may have bytes which the peer has not acknowledged yet."""

    async def send(self, missing: RangeSet) -> None:
        """Send these ranges (whole extents). Raises the first failure that cannot be mended."""
        bounds = (MOST_STREAMS, self._streams, self._pace.most_streams, self._upload.streams)
        most = min(each for each in bounds if each is not None)
        measured = self._streams is None and not self._near
        count = StreamCount(most, several=self._several)
        wanted = partial(self._measured, count) if measured else partial(self._given, most)
        self._wanted = count.wanted if measured else wanted()
        scheduler = StreamScheduler(
            missing,
            self._upload.extent_size,
            self._upload.length,
            self._wanted,
            part=None if self._near else self._upload.part,
            run_seconds=(CAUTIOUS_SECONDS if self._several else RUN_SECONDS) if measured else None,
            least_seconds=0.0 if self._near else PART_ROUND_TRIPS * self._round_trip,
            cautious=measured and self._several,
        )
        try:
            async with asyncio.TaskGroup() as group:
                self._start_streams(group, scheduler)
                if self._streams is None:
                    await self._widen(group, scheduler, wanted)
        except BaseExceptionGroup as failures:
            raise first_of(failures) from None

    def _measured(self, count: StreamCount) -> int:
        return count.observe(self._arrived(), self._now())

    def _given(self, most: int) -> int:
        if self._streams is None:
            most = min(most, self._near_streams if self._alone() else 1)
        return most

    async def _widen(
        self, group: asyncio.TaskGroup, scheduler: StreamScheduler, wanted: Callable[[], int]
    ) -> None:
        """Start and retire streams as ``wanted()`` says, until all is acknowledged."""
        while not scheduler.idle():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OBSERVE_SECONDS):
                    await self._changed.wait()
            self._wanted = scheduler.streams = wanted()
            self._start_streams(group, scheduler)

    def _arrived(self) -> int:
        """Bytes sent, without those that the kernel still holds: each new stream fills a buffer of several
        MiB at once, which says nothing of the link."""
        return self._tally.sent - sum(unacknowledged(sock) for sock in list(self._sockets))

    def _start_streams(self, group: asyncio.TaskGroup, scheduler: StreamScheduler) -> None:
        while self._active < self._wanted:
            self._active += 1
            group.create_task(self._stream(next(self._numbers), scheduler))

    async def _stream(self, number: int, scheduler: StreamScheduler) -> None:
        try:
            await self._send_runs(number, scheduler)
        finally:
            self._active -= 1

    async def _send_runs(self, number: int, scheduler: StreamScheduler) -> None:
        """Send run after run, until none is left or there are more streams than wanted."""
        retrier = self._client.retrier()
        while self._active <= self._wanted:
            span = scheduler.next_run(number, self._now())
            if span is None:
                if scheduler.idle():
                    self._wake()
                    return
                await self._changed.wait()
                continue
            try:
                await self._send_run(span)
            except TdxError as error:
                held = await self._held_after(error, retrier)
                scheduler.failed(number, self._now(), held)
            else:
                scheduler.acknowledged(number, self._now())
                retrier.progressed()
            self._wake()

    async def _send_run(self, span: Span) -> None:
        cancel = Cancel()
        size, record = self._upload.extent_size, self._recorder()

        def hashed(sent: Span, digest: bytes) -> None:
            if sent.start % size == 0 and (len(sent) == size or sent.end == self._upload.length):
                record(sent, digest)

        extents = list(cut(span, size))
        used: list[socket.socket] = []
        content_range = format_content_range(ContentRange(span, self._upload.length))
        fields = [*self._upload.fields, *self._tally.told(), ("Content-Range", content_range)]
        with self._tally.under_way() as stages:
            hooks = SendHooks(
                sent=self._tally.add_sent,
                hashed=hashed,
                pace=self._pace.wait_for,
                most=self._pace.most,
                stages=stages,
            )

            def pump(sock: socket.socket, seal: bytes | None = None) -> None:
                used.append(sock)
                self._sockets.add(sock)
                self._pump.send(
                    sock, self._source.descriptor, extents, hooks, cancel, self._client.stall_timeout, seal
                )

            try:
                answer, whole = await self._client.upload(
                    "PUT",
                    self._upload.target,
                    fields,
                    len(span),
                    pump,
                    cancel,
                    sealed=(lambda key: partial(pump, seal=key)) if self._upload.seals else None,
                )
            finally:
                self._sockets.difference_update(used)
        if not whole:
            raise ProtocolError("the peer answered before it had the whole range")
        self._tally.hear(answer.document().get("stages"))

    async def _held_after(self, error: TdxError, retrier: Retrier) -> RangeSet:
        """Wait as the policy says, then ask what the receiver holds; more than before
        counts as progress."""
        while True:
            await self._client.pause_after(error, retrier, self._tally)
            try:
                answer = await self._client.request("GET", self._upload.target, self._upload.fields)
                held = parse_held(answer.document().get("held"), self._upload.length)
            except TdxError as failure:
                error = failure
                continue
            if held.total() > self._held_bytes:
                self._held_bytes = held.total()
                retrier.progressed()
            return held

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes of a TCP connection that the kernel holds until the other end has them; 0 where it does not
    tell (tcp(7), SIOCOUTQ)."""
    try:
        told = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(told, sys.byteorder)


def first_of(failure: BaseException) -> BaseException:
    """The first plain exception in a group, however deep."""
    nested: Sequence[BaseException] = getattr(failure, "exceptions", ())
    return first_of(nested[0]) if nested else failure
