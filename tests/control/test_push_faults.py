"""Pushing over connections that break, stall and corrupt, to receivers that come and go."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.datakit import pattern
from support.proxy import Fault, always, at_random, mistreating, once
from support.receiving import RunningReceiver, in_background, local_store, push, push_stream, running
from support.vouching import Vouching
from tdx.control.progress import Tally
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.errors import (
    ConnectionLost,
    NoSpace,
    Stalled,
    StorageError,
    Superseded,
    TdxError,
    Unreachable,
    UploadBusy,
    VerificationFailed,
)
from tdx.metrics import Metrics

EXTENT = 4 << 20
SIZE = 5 * EXTENT + 12345
CONTENT = pattern(SIZE)

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    """One that asks no kernel who is calling: a connection cut at once would be nobody's."""
    with running(tmp_path, providers=[Vouching(f"local:{os.getuid()}")]) as started:
        yield started


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


class TestCuts:
    @pytest.mark.parametrize("seed", range(12))
    def test_a_push_survives_connections_cut_anywhere(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path, seed: int
    ) -> None:
        plan = at_random(seed, connections=6, within=2 * EXTENT, kinds=("cut", "reset", "half-close"))
        tally = Tally()
        with mistreating(receiver.port, plan) as proxy:
            result = push(proxy.peer, source, tmp_path / "sender", tally=tally, streams=1 + seed % 3)
        assert tally.retries > 0
        assert result.size == SIZE
        assert receiver.visible() == {"disk.img": CONTENT}
        assert receiver.staged() == []

    @pytest.mark.parametrize("seed", range(6))
    def test_a_small_push_survives_too_and_makes_one_file(
        self, receiver: RunningReceiver, tmp_path: Path, seed: int
    ) -> None:
        source = tmp_path / "small"
        source.write_bytes(CONTENT[:100_000])
        plan = at_random(seed, connections=4, within=110_000, kinds=("cut", "reset", "lose-answers"))
        with mistreating(receiver.port, plan) as proxy:
            push(proxy.peer, source, tmp_path / "sender")
        assert receiver.visible() == {"small": CONTENT[:100_000]}

    @pytest.mark.parametrize("beyond", range(0, 1600, 100))
    def test_an_answer_that_gets_lost_costs_a_question_but_no_second_file(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path, beyond: int
    ) -> None:
        plan = once(Fault("lose-answers", SIZE + beyond))
        with mistreating(receiver.port, plan) as proxy:
            result = push(proxy.peer, source, tmp_path / "sender", streams=1)
        assert result.path == "disk.img"
        assert receiver.visible() == {"disk.img": CONTENT}
        assert receiver.metrics.received_bytes.value(("tdx",)) == SIZE

    def test_what_is_held_is_not_sent_again(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        with mistreating(receiver.port, once(Fault("half-close", 3 * EXTENT + 100_000))) as proxy:
            result = push(proxy.peer, source, tmp_path / "sender", streams=1)
        assert result.sent_bytes > SIZE
        assert receiver.metrics.received_bytes.value(("tdx",)) <= SIZE + EXTENT
        assert receiver.visible() == {"disk.img": CONTENT}

    def test_without_retries_the_first_cut_ends_the_push_and_keeps_the_partial(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        once_only = SenderOptions(retries=0, stall_timeout=10.0)
        metrics = Metrics("0")
        with (
            mistreating(receiver.port, once(Fault("cut", 2 * EXTENT + 100_000))) as proxy,
            pytest.raises(ConnectionLost),
        ):
            push(proxy.peer, source, tmp_path / "sender", sender=once_only, metrics=metrics, streams=1)
        assert metrics.uploads.value(("tdx", "failed")) == 1
        receiver.has_bodies(0)
        assert receiver.visible() == {}
        assert len(receiver.staged()) == 1
        tally = Tally()
        result = push(receiver.peer, source, tmp_path / "sender", resume=True, tally=tally)
        assert result.resumed_bytes == 2 * EXTENT
        assert result.sent_bytes == SIZE - 2 * EXTENT
        assert tally.checked == 0, "the digest log knows what was sent before"
        assert receiver.visible() == {"disk.img": CONTENT}
        assert receiver.metrics.resumes.value() == 1
        assert receiver.metrics.resumed_bytes.value() == 2 * EXTENT

    def test_without_resume_the_partial_is_replaced(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        once_only = SenderOptions(retries=0, stall_timeout=10.0)
        with (
            mistreating(receiver.port, once(Fault("cut", 2 * EXTENT + 100_000))) as proxy,
            pytest.raises(ConnectionLost),
        ):
            push(proxy.peer, source, tmp_path / "sender", sender=once_only, streams=1)
        assert push(receiver.peer, source, tmp_path / "sender").sent_bytes == SIZE
        assert receiver.staged() == []

    def test_retries_that_are_used_up_keep_the_partial(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        tally, metrics = Tally(), Metrics("0")
        few = SenderOptions(retries=3, stall_timeout=10.0)

        def plan(number: int) -> Fault:
            return Fault("cut", 2 * EXTENT + 100_000 if number == 0 else 1000)

        with mistreating(receiver.port, plan) as proxy, pytest.raises((ConnectionLost, UploadBusy)):
            push(proxy.peer, source, tmp_path / "sender", sender=few, tally=tally, metrics=metrics, streams=1)
        assert tally.retries >= 3
        assert sum(sample.value for sample in metrics.retries.family().samples) == tally.retries
        receiver.has_bodies(0)
        assert receiver.visible() == {}
        assert push(receiver.peer, source, tmp_path / "sender", resume=True).resumed_bytes == 2 * EXTENT
        assert receiver.visible() == {"disk.img": CONTENT}

    def test_progress_makes_the_next_failure_count_as_the_first(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        one = SenderOptions(retries=1, stall_timeout=10.0)
        with mistreating(receiver.port, always(Fault("half-close", EXTENT + 100_000))) as proxy:
            push(proxy.peer, source, tmp_path / "sender", sender=one, streams=1)
        assert receiver.visible() == {"disk.img": CONTENT}


class TestStalls:
    @pytest.fixture(autouse=True)
    def _soon_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tdx.control.writers.SILENT_SECONDS", 0.4)

    def test_a_link_that_stalls_ends_the_push_after_its_retries(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        impatient = SenderOptions(retries=1, stall_timeout=0.6)
        tally = Tally()
        with (
            mistreating(receiver.port, always(Fault("stall", EXTENT // 2))) as proxy,
            pytest.raises(Stalled),
        ):
            push(proxy.peer, source, tmp_path / "sender", sender=impatient, tally=tally, streams=1)
        assert tally.retries == 1
        assert receiver.visible() == {}
        assert len(receiver.staged()) == 1

    def test_a_receiver_that_never_answers_is_stalled(self, source: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            impatient = SenderOptions(retries=1, stall_timeout=0.2)
            with pytest.raises(Stalled):
                push(Peer(*deaf.getsockname()), source, tmp_path / "sender", sender=impatient)

    def test_a_connection_that_dies_without_a_word_is_soon_replaced(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        patient = SenderOptions(retries=1, stall_timeout=2.0)
        with mistreating(receiver.port, once(Fault("stall", EXTENT + 100_000))) as proxy:
            push(proxy.peer, source, tmp_path / "sender", sender=patient, streams=2)
        assert receiver.visible() == {"disk.img": CONTENT}


class TestCorruption:
    def test_a_flipped_byte_costs_its_extent_once_more(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        with mistreating(receiver.port, once(Fault("flip", EXTENT + EXTENT // 2))) as proxy:
            result = push(proxy.peer, source, tmp_path / "sender", streams=1)
        assert result.sent_bytes == SIZE + EXTENT
        assert receiver.metrics.digest_failures.value() == 1
        assert receiver.refusals() == {}
        assert receiver.visible() == {"disk.img": CONTENT}

    def test_a_small_file_that_arrives_corrupt_is_sent_again(
        self, receiver: RunningReceiver, tmp_path: Path
    ) -> None:
        small = tmp_path / "small"
        small.write_bytes(CONTENT[: EXTENT // 2])
        with mistreating(receiver.port, once(Fault("flip", 1 << 20))) as proxy:
            result = push(proxy.peer, small, tmp_path / "sender")
        assert result.sent_bytes == EXTENT
        assert receiver.visible() == {"small": CONTENT[: EXTENT // 2]}

    @pytest.mark.parametrize("size", [1 << 20, SIZE])
    def test_corruption_without_end_fails_and_publishes_nothing(
        self, receiver: RunningReceiver, tmp_path: Path, size: int
    ) -> None:
        path = tmp_path / "disk.img"
        path.write_bytes(CONTENT[:size])
        fault = Fault("flip", 500_000, every=1_000_000)
        with mistreating(receiver.port, always(fault)) as proxy, pytest.raises(VerificationFailed):
            push(proxy.peer, path, tmp_path / "sender", streams=1)
        assert (receiver.visible(), receiver.staged()) == ({}, [])
        assert receiver.metrics.digest_failures.value() >= 4


class TestRestarts:
    def test_a_receiver_that_is_restarted_in_the_middle_gets_the_whole_file(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        slowly = SenderOptions(limit_rate=30e6, stall_timeout=10.0, retries=1000)
        tally = Tally()
        with in_background(
            lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, tally=tally, streams=2)
        ) as pushing:
            receiver.has_received(EXTENT + EXTENT // 2)
            receiver.restart()
        assert pushing.result().path == "disk.img"
        assert tally.retries > 0
        assert receiver.visible() == {"disk.img": CONTENT}

    def test_a_receiver_that_does_not_come_back_leaves_a_partial_to_resume(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        slowly = SenderOptions(limit_rate=30e6, stall_timeout=10.0, retries=2)
        with in_background(
            lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, streams=1)
        ) as pushing:
            receiver.has_received(2 * EXTENT)
            receiver.stop()
        error = pushing.exception()
        assert isinstance(error, ConnectionLost)
        assert not isinstance(error, Unreachable)
        receiver.start()
        result = push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert result.resumed_bytes >= EXTENT
        assert receiver.visible() == {"disk.img": CONTENT}


class TestOverlap:
    @pytest.mark.parametrize("resume", [True, False])
    def test_of_two_runs_of_one_push_the_newer_ends_the_older(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path, resume: bool
    ) -> None:
        slowly = SenderOptions(limit_rate=10e6, stall_timeout=10.0)
        metrics = Metrics("0")
        with in_background(
            lambda: push(receiver.peer, source, tmp_path / "a", sender=slowly, metrics=metrics, streams=2)
        ) as older:
            receiver.has_received(1 << 20)
            newer = push(receiver.peer, source, tmp_path / "b", resume=resume)
        assert newer.path == "disk.img"
        assert isinstance(older.exception(), Superseded)
        assert metrics.uploads.value(("tdx", "superseded")) == 1
        assert receiver.visible() == {"disk.img": CONTENT}
        assert receiver.staged() == []


class TestDisk:
    def test_a_disk_that_fills_up_in_the_middle_says_so_and_keeps_the_partial(
        self, source: Path, tmp_path: Path
    ) -> None:
        system = FaultySystem()

        def full(name: str, arguments: tuple[object, ...]) -> None:
            offset = arguments[2] if name == "pwrite" else None
            if isinstance(offset, int) and offset >= 3 * EXTENT:
                raise OSError(28, "No space left on device")

        with running(tmp_path, make_store=local_store(system), pump="buffered") as receiver:
            system.before = full
            with pytest.raises(NoSpace):
                push(receiver.peer, source, tmp_path / "sender", streams=1)
            assert receiver.visible() == {}
            assert receiver.refusals() == {("no-space",): 1}
            system.before = lambda *_: None
            result = push(receiver.peer, source, tmp_path / "sender", resume=True)
            assert result.resumed_bytes == 3 * EXTENT
            assert receiver.visible() == {"disk.img": CONTENT}

    def test_a_sync_that_fails_once_is_mended_within_the_push(self, source: Path, tmp_path: Path) -> None:
        system = FaultySystem()
        failures = iter([True])

        with running(tmp_path, make_store=local_store(system)) as receiver:

            def fail_once(name: str, arguments: tuple[object, ...]) -> None:
                if (
                    name == "fsync"
                    and receiver.metrics.received_bytes.value(("tdx",))
                    and next(failures, False)
                ):
                    raise OSError(5, "Input/output error")

            system.before = fail_once
            push(receiver.peer, source, tmp_path / "sender")
            assert next(failures, None) is None
            assert receiver.visible() == {"disk.img": CONTENT}

    def test_a_disk_that_goes_on_failing_is_what_the_push_says_it_failed_for(
        self, source: Path, tmp_path: Path
    ) -> None:
        system = FaultySystem()
        with running(tmp_path, make_store=local_store(system)) as receiver:

            def fail(name: str, arguments: tuple[object, ...]) -> None:
                if name == "fsync" and os.readlink(f"/proc/self/fd/{arguments[0]}").endswith("/data"):
                    raise OSError(5, "Input/output error")

            system.before = fail
            with pytest.raises(StorageError, match=r"failed to make data durable: Input/output error"):
                push(receiver.peer, source, tmp_path / "sender")
            with (
                source.open("rb") as content,
                pytest.raises(StorageError, match=r"failed to make data durable: Input/output error"),
            ):
                push_stream(receiver.peer, content.fileno(), tmp_path / "sender", name="stream")
            assert receiver.visible() == {}


def test_an_error_of_the_wire_is_one_of_ours(source: Path, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        in_background(lambda: _answer(server, b"SSH-2.0\r\n\r\n")),
    ):
        with pytest.raises(TdxError) as caught:
            push(Peer(*server.getsockname()), source, tmp_path / "sender", sender=SenderOptions(retries=0))
        assert caught.value.exit_code == 76


def _answer(server: socket.socket, data: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(data)
