"""What can be seen of transfers while they are on their way."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from support import bundle_wire
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, push, running
from support.uploading import open_upload
from support.wire import head
from tdx.control import receiver as receivers
from tdx.control.live import Live
from tdx.control.progress import Tally
from tdx.model import Stages

EXTENT = 4 << 20
LENGTH = 2 * EXTENT
CONTENT = pattern(LENGTH)


def live(receiver: RunningReceiver) -> list[Live]:
    """As the loop sees it."""
    assert receiver._loop is not None

    async def look() -> list[Live]:
        return receiver.running.live()

    return asyncio.run_coroutine_threadsafe(look(), receiver._loop).result(30)


def gauges(receiver: RunningReceiver) -> tuple[float, float]:
    """Active and stalled, as a scrape has them."""
    families = {family.name: family for family in receiver.metrics.families()}
    return tuple(  # type: ignore[return-value]
        families[name].samples[0].value for name in ("tdx_transfers_active", "tdx_transfers_stalled")
    )


def test_an_upload_tells_what_it_has_got_so_far_and_where_the_time_went(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH, {"Tdx-Stages": "read=3.0, send=1"})
    (idle,) = live(receiver)
    assert (idle.upload, idle.name, idle.size, idle.protocol) == (upload.id, "f", LENGTH, "tdx")
    assert (idle.received, idle.held, idle.resumed) == (EXTENT, EXTENT, 0)
    assert (idle.streams, idle.active, idle.phase) == (0, False, "waiting")
    assert gauges(receiver) == (0, 0)
    with receiver.connect() as wire:
        fields = {**upload.range_fields(EXTENT, LENGTH, LENGTH), "Tdx-Stages": "read=2.5, send=1.5"}
        wire.send(head("PUT", upload.target, fields) + CONTENT[EXTENT : LENGTH - (1 << 20)])
        wait_until(lambda: live(receiver)[0].received >= LENGTH - (2 << 20), "bytes on their way are seen")
        (now,) = live(receiver)
        assert (now.streams, now.active, now.held) == (1, True, EXTENT)
        assert now.stages.write > idle.stages.write > 0
        # Of two streams the older word came last.
        assert now.sender_stages == Stages(read=3.0, send=1.5)
        assert now.bottleneck == "sender disk"
        assert gauges(receiver) == (1, 0)
        wire.send(CONTENT[LENGTH - (1 << 20) :])
        assert wire.answer().status == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert live(receiver) == []


def test_a_new_run_begins_anew(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH, {"Tdx-Stages": "read=3.0"})
    open_upload(receiver, "f", LENGTH, {"Tdx-Resume": "?1"})
    (now,) = live(receiver)
    assert (now.received, now.resumed, now.sender_stages) == (0, EXTENT, None)


def test_a_bundle_on_its_way_is_seen_too(receiver: RunningReceiver) -> None:
    body = bundle_wire.bundle({"a": bytes(2 << 20), "b": b"b"})
    with receiver.connect() as wire:
        wire.send(head("POST", "/files", {**bundle_wire.fields(), "Content-Length": len(body)}) + body[:-6])
        wait_until(lambda: bool(live(receiver)) and live(receiver)[0].received > 1 << 20, "it arrives")
        (now,) = live(receiver)
        assert (now.upload, now.name, now.streams) == (None, None, 1)
        assert gauges(receiver) == (1, 0)
        wire.send(body[-6:])
        assert wire.answer().status == 200
    assert live(receiver) == []
    assert gauges(receiver) == (0, 0)


def test_a_body_that_brings_nothing_for_long_has_stalled(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "STALLED_SECONDS", 0.5)
    upload = open_upload(receiver, "f", LENGTH)
    bundle = head("POST", "/files", {**bundle_wire.fields(), "Content-Length": 1000})
    with receiver.connect() as wire, receiver.connect() as another:
        wire.send(upload.range_head(0, EXTENT, LENGTH) + CONTENT[:1000])
        another.send(bundle + bytes(1))
        wait_until(lambda: gauges(receiver) == (2, 2), "both have stalled")
        wire.send(CONTENT[1000:EXTENT])
        assert wire.answer().status == 200
    receiver.is_quiet()
    assert gauges(receiver) == (0, 0)


def test_a_push_hears_all_of_the_receivers_time_at_its_end(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(CONTENT)
    with running(tmp_path) as receiver:
        tally = Tally()
        push(receiver.peer, source, tmp_path / "sender", tally=tally)
        counted = {stage: receiver.metrics.stage_seconds.value((stage,)) for stage in ("write", "sync")}
    assert tally.theirs.as_dict()["write"] == pytest.approx(counted["write"], abs=0.002)
    assert tally.theirs.as_dict()["sync"] == pytest.approx(counted["sync"], abs=0.002)
    spent = tally.spent()
    assert min(spent.read, spent.hash, spent.send) > 0
    assert tally.ours == spent


def test_the_seconds_of_a_body_count_while_it_is_on_its_way_and_if_it_fails() -> None:
    tally = Tally()
    with contextlib.suppress(OSError), tally.under_way() as one, tally.under_way() as two:
        one.read, two.send = 1.0, 2.0
        assert tally.spent() == Stages(read=1.0, send=2.0)
        assert tally.ours == Stages()
        assert tally.told() == [("Tdx-Stages", "read=1.000, send=2.000")]
        raise OSError("cut")
    assert tally.ours == tally.spent() == Stages(read=1.0, send=2.0)
    assert Tally().told() == []
