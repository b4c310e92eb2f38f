"""What every store must do: the port's contract as tests, run on each implementation.

A test class derives from :class:`StoreConformance` and gives a ``harness`` fixture.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.received import files_below
from tdx.errors import BadName, Exists, NoSpace, NotFound, ProtocolError, StorageError, TooLarge, UploadBusy
from tdx.integrity import MAX_EXTENTS, Root, digest_of, extent_count, extent_span, zero_digest
from tdx.model import Conflict, FileName, Outcome, Owner, Receipt, Span, UploadId, UploadSpec
from tdx.store.port import Piece, Store, Upload

EXTENT = 4096
ME = Owner("local:1000")
YOU = Owner("local:1001")


class Harness(Protocol):
    """One store that tests can restart, and whose folder they can look into."""

    @property
    def store(self) -> Store: ...

    def restart(self, *, reboot: bool = False) -> None:
        """End the process that has the store without warning, and start another; after a
        ``reboot``, bytes that no mark covers may be gone."""
        ...

    def set_capacity(self, free: int) -> None:
        """Bytes that may still be stored."""
        ...

    def fail_syncs(self, *, failing: bool) -> None:
        """From now on the disk does, or does not, fail to make data durable."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """A file that a user put into the folder."""
        ...

    def published(self) -> dict[str, bytes]:
        """What a user sees in the folder."""
        ...

    def damage(self, upload: UploadId, offset: int) -> None:
        """Change a staged byte behind the store's back."""
        ...


def spec(name: str = "disk.img", length: int | None = 3 * EXTENT, **more: Any) -> UploadSpec:
    return UploadSpec(
        owner=more.pop("owner", ME), name=FileName(name), length=length, extent_size=EXTENT, **more
    )


def content(length: int, seed: int = 1) -> bytes:
    return (digest_of(bytes([seed])) * (length // 16 + 1))[:length]


def send(upload: Upload, data: bytes, extents: range | None = None) -> None:
    """Write and record whole extents of ``data``."""
    for index in range(extent_count(len(data), EXTENT)) if extents is None else extents:
        span = extent_span(index, len(data), EXTENT)
        part = data[span.start : span.end]
        upload.write_at(memoryview(part), span.start)
        upload.record(Piece(span, digest_of(part)))


def root_of(data: bytes) -> str:
    digests = [digest_of(data[at : at + EXTENT]) for at in range(0, len(data), EXTENT)]
    return str(Root.over(digests, len(data), EXTENT))


def publish(upload: Upload, data: bytes) -> Receipt:
    return upload.publish(root=root_of(data), verified=True)


def push(store: Store, data: bytes, name: str = "disk.img", **more: Any) -> Receipt:
    upload = store.create(spec(name, len(data), **more))
    send(upload, data)
    return publish(upload, data)


class StoreConformance:
    @pytest.fixture
    def harness(self) -> Harness:
        raise NotImplementedError

    # --- the way of a file ------------------------------------------------------------

    @pytest.mark.parametrize("length", [0, 1, EXTENT - 1, EXTENT, EXTENT + 1, 3 * EXTENT])
    def test_a_file_of_any_size_is_published_whole(self, harness: Harness, length: int) -> None:
        data = content(length)
        receipt = push(harness.store, data, key="k1")
        assert harness.published() == {"disk.img": data}
        assert (receipt.path, receipt.size, receipt.root) == ("disk.img", length, root_of(data))
        assert (receipt.outcome, receipt.verified) == (Outcome.PUBLISHED, True)
        assert harness.store.partials() == []
        assert harness.store.staged_bytes() == 0

    def test_nothing_is_visible_before_it_is_published(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        assert harness.published() == {}
        send(upload, data)
        assert harness.published() == {}
        assert harness.store.existing(FileName("disk.img")) is None
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_extents_arrive_in_any_order(self, harness: Harness) -> None:
        data = content(5 * EXTENT + 7)
        upload = harness.store.create(spec(length=len(data)))
        for index in (5, 2, 0, 4, 1, 3):
            send(upload, data, range(index, index + 1))
        assert list(upload.held) == [Span(0, len(data))]
        assert upload.digests == {i: digest_of(data[i * EXTENT : (i + 1) * EXTENT]) for i in range(6)}
        assert upload.tails == {}
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_what_was_written_is_read_back(self, harness: Harness) -> None:
        data = content(2 * EXTENT)
        upload = harness.store.create(spec(length=3 * EXTENT))
        send(upload, data)
        view = memoryview(bytearray(EXTENT))
        assert upload.read_at(view, EXTENT) == EXTENT
        assert bytes(view) == data[EXTENT:]
        assert upload.read_at(view, 2 * EXTENT - 10) == 10
        assert upload.read_at(view, 2 * EXTENT) == 0
        upload.discard()

    def test_an_upload_of_unknown_length_gets_its_length_at_the_end(self, harness: Harness) -> None:
        data = content(EXTENT + 5)
        upload = harness.store.create(spec(length=None, holes=(Span(0, EXTENT),)))
        assert list(upload.held) == []
        send(upload, data)
        assert set(upload.digests) == {0}
        assert upload.tails == {1: Piece(Span(EXTENT, EXTENT + 5), digest_of(data[EXTENT:]))}
        with pytest.raises(ProtocolError):
            publish(upload, data)
        with pytest.raises(ProtocolError):
            upload.set_length(EXTENT)
        upload.set_length(len(data))
        upload.set_length(len(data))
        with pytest.raises(ProtocolError):
            upload.set_length(len(data) + 1)
        assert upload.spec.length == len(data)
        assert set(upload.digests) == {0, 1}
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_the_length_stays_fixed_across_runs(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=None))
        upload.set_length(0)
        upload.close()
        harness.restart()
        again = harness.store.open(upload.id)
        assert again.spec.length == 0
        assert publish(again, b"").size == 0
        assert harness.published() == {"disk.img": b""}

    def test_bytes_beyond_the_length_are_refused(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=10))
        with pytest.raises(ProtocolError):
            upload.write_at(memoryview(bytes(11)), 0)
        with pytest.raises(ProtocolError):
            upload.write_at(memoryview(b"x"), 10)
        upload.discard()

    @pytest.mark.parametrize(
        "piece",
        [
            Piece(Span(1, EXTENT), bytes(16)),
            Piece(Span(0, EXTENT + 1), bytes(16)),
            Piece(Span(2 * EXTENT, 2 * EXTENT + 11), bytes(16)),
            Piece(Span(0, EXTENT), bytes(15)),
        ],
        ids=["start off the boundary", "longer than an extent", "beyond the length", "short digest"],
    )
    def test_a_piece_that_cannot_be_is_refused(self, harness: Harness, piece: Piece) -> None:
        upload = harness.store.create(spec(length=2 * EXTENT + 10))
        with pytest.raises(ValueError, match="not a piece"):
            upload.record(piece)
        assert list(upload.held) == []
        upload.discard()

    def test_an_incomplete_upload_is_not_published(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data, range(2))
        with pytest.raises(ProtocolError):
            publish(upload, data)
        assert harness.published() == {}
        send(upload, data, range(2, 3))
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    # --- pieces, tails, invalidation ------------------------------------------------------

    def test_the_beginning_of_an_extent_is_a_tail_until_a_later_piece_makes_it_whole(
        self, harness: Harness
    ) -> None:
        data = content(2 * EXTENT)
        upload = harness.store.create(spec(length=2 * EXTENT))
        upload.write_at(memoryview(data[:100]), 0)
        tail = Piece(Span(0, 100), digest_of(data[:100]))
        upload.record(tail)
        assert upload.tails == {0: tail}
        assert upload.digests == {}
        assert list(upload.held) == [Span(0, 100)]
        longer = Piece(Span(0, 200), digest_of(data[:200]))
        upload.write_at(memoryview(data[100:200]), 100)
        upload.record(longer)
        assert upload.tails == {0: longer}
        send(upload, data)
        assert upload.tails == {}
        assert set(upload.digests) == {0, 1}
        publish(upload, data)

    def test_a_shorter_piece_replaces_a_longer_one(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=2 * EXTENT))
        send(upload, content(EXTENT))
        upload.record(Piece(Span(0, 10), digest_of(content(10))))
        assert list(upload.held) == [Span(0, 10)]
        upload.discard()

    def test_invalidated_extents_are_held_no_more_and_can_be_sent_again(self, harness: Harness) -> None:
        data = content(4 * EXTENT)
        upload = harness.store.create(spec(length=len(data)))
        send(upload, content(4 * EXTENT, seed=2))
        upload.invalidate([3, 1, 0])
        assert list(upload.held) == [Span(2 * EXTENT, 3 * EXTENT)]
        assert set(upload.digests) == {2}
        upload.invalidate([])
        upload.invalidate([0, 77])
        upload.close()
        harness.restart(reboot=True)
        upload = harness.store.open(upload.id)
        assert list(upload.held) == [Span(2 * EXTENT, 3 * EXTENT)]
        upload.invalidate([2])
        send(upload, data)
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_a_damaged_extent_is_found_by_a_recheck_and_forgotten(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data)
        harness.damage(upload.id, EXTENT + 5)
        assert upload.recheck(range(5)) == {1}
        assert set(upload.digests) == {0, 2}
        send(upload, data, range(1, 2))
        assert upload.recheck(range(3)) == frozenset()
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    # --- holes ------------------------------------------------------------------------------

    def test_what_came_over_the_network_is_neither_holes_nor_what_was_reused(self, harness: Harness) -> None:
        data = content(2 * EXTENT) + bytes(2 * EXTENT)
        upload = harness.store.create(spec(length=len(data), holes=(Span(3 * EXTENT, 4 * EXTENT),)))
        send(upload, data, range(1))
        second = data[EXTENT : 2 * EXTENT]
        upload.write_at(memoryview(second), EXTENT)
        upload.record(Piece(Span(EXTENT, 2 * EXTENT), digest_of(second), reused=EXTENT - 100))
        upload.write_at(memoryview(bytes(12)), 2 * EXTENT)
        upload.record(Piece(Span(2 * EXTENT, 2 * EXTENT + 10), digest_of(bytes(10))))
        assert (upload.received, upload.held.total()) == (EXTENT + 100 + 10, 3 * EXTENT + 10)
        upload.close()
        harness.restart()
        upload = harness.store.open(upload.id)
        lost: list[int] = []
        upload.tell_lost(lost.append)
        assert upload.received == EXTENT + 100 + 10
        upload.invalidate([1, 3])
        upload.invalidate([1, 3])
        upload.record(Piece(Span(2 * EXTENT, 2 * EXTENT + 12), digest_of(bytes(12))))
        upload.record(Piece(Span(2 * EXTENT, 2 * EXTENT + 5), digest_of(bytes(5))))
        assert lost == [100, 7]
        assert upload.discard() == EXTENT + 5

    def test_a_piece_cannot_have_reused_more_than_it_is_long(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        with pytest.raises(ValueError, match="not a piece"):
            upload.record(Piece(Span(0, EXTENT), bytes(16), reused=EXTENT + 1))

    def test_whoever_opens_an_upload_is_told_what_a_reboot_has_cost(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data, range(1))
        upload.mark()
        send(upload, data, range(1, 3))
        harness.restart(reboot=True)
        again = harness.store.open(upload.id)
        lost: list[int] = []
        again.tell_lost(lost.append)
        assert (lost, again.received) == ([2 * EXTENT], EXTENT)
        harness.damage(again.id, 5)
        again.recheck([0])
        assert (sum(lost), again.received) == (3 * EXTENT, 0)

    def test_what_a_failed_sync_takes_back_is_told_but_not_the_beginning_that_stays(
        self, harness: Harness
    ) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        lost: list[int] = []
        upload.tell_lost(lost.append)
        send(upload, data, range(1))
        upload.mark()
        send(upload, data, range(1, 2))
        harness.fail_syncs(failing=True)
        with pytest.raises(StorageError):
            upload.mark()
        harness.fail_syncs(failing=False)
        assert (sum(lost), upload.received) == (EXTENT, EXTENT)

    def test_an_abandoned_upload_that_expires_tells_what_had_come(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        send(upload, content(3 * EXTENT), range(2))
        upload.close()
        (gone,) = harness.store.expire(1e12)
        assert gone.received == 2 * EXTENT

    def test_holes_are_held_from_the_start_as_far_as_they_cover_whole_extents(self, harness: Harness) -> None:
        length = 6 * EXTENT + 100
        holes = (Span(10, 2 * EXTENT), Span(3 * EXTENT, 5 * EXTENT - 1), Span(6 * EXTENT, length + 900))
        upload = harness.store.create(spec(length=length, holes=holes))
        assert list(upload.held) == [
            Span(EXTENT, 2 * EXTENT),
            Span(3 * EXTENT, 4 * EXTENT),
            Span(6 * EXTENT, length),
        ]
        assert upload.digests == {1: zero_digest(EXTENT), 3: zero_digest(EXTENT), 6: zero_digest(100)}
        data = b"".join(
            [content(EXTENT), bytes(EXTENT), content(EXTENT), bytes(EXTENT), content(2 * EXTENT), bytes(100)]
        )
        for index in (0, 2, 4, 5):
            send(upload, data, range(index, index + 1))
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_a_file_that_is_one_hole_needs_no_bytes(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=3 * EXTENT + 1, holes=(Span(0, 3 * EXTENT + 1),)))
        publish(upload, bytes(3 * EXTENT + 1))
        assert harness.published() == {"disk.img": bytes(3 * EXTENT + 1)}

    def test_a_file_of_too_many_extents_is_refused_before_anything_is_made(self, harness: Harness) -> None:
        length = MAX_EXTENTS * EXTENT + 1
        with pytest.raises(TooLarge):
            harness.store.create(spec(length=length, holes=(Span(0, length),)))
        assert harness.store.partials() == []

    def test_a_hole_that_turned_into_data_can_be_sent(self, harness: Harness) -> None:
        data = content(2 * EXTENT)
        upload = harness.store.create(spec(length=2 * EXTENT, holes=(Span(0, 2 * EXTENT),)))
        upload.invalidate([1])
        assert list(upload.held) == [Span(0, EXTENT)]
        upload.close()
        harness.restart(reboot=True)
        upload = harness.store.open(upload.id)
        assert list(upload.held) == [Span(0, EXTENT)]
        send(upload, data, range(1, 2))
        publish(upload, bytes(EXTENT) + data[EXTENT:])
        assert harness.published() == {"disk.img": bytes(EXTENT) + data[EXTENT:]}

    # --- claims, epochs, runs -----------------------------------------------------------------

    def test_a_claimed_upload_cannot_be_opened_a_second_time(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        with pytest.raises(UploadBusy):
            harness.store.open(upload.id)
        upload.close()
        upload.close()
        again = harness.store.open(upload.id)
        with pytest.raises(UploadBusy):
            harness.store.open(upload.id)
        again.discard()

    def test_taildrop_defect_2_a_second_opener_never_truncates_what_the_first_is_writing(
        self, harness: Harness
    ) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data, range(2))
        with pytest.raises(UploadBusy):
            harness.store.open(upload.id)
        rival = harness.store.create(spec(owner=YOU))
        send(rival, content(3 * EXTENT, seed=9), range(1))
        send(upload, data, range(2, 3))
        assert upload.recheck(range(3)) == frozenset()
        publish(upload, data)
        assert harness.published() == {"disk.img": data}
        rival.discard()

    def test_taildrop_defect_1_a_smaller_file_after_a_larger_partial_keeps_nothing_of_it(
        self, harness: Harness
    ) -> None:
        larger, smaller = content(3 * EXTENT), content(EXTENT + 1, seed=2)
        first = harness.store.create(spec(length=len(larger), source_id="s"))
        send(first, larger, range(2))
        first.close()
        assert harness.store.find(ME, FileName("disk.img"), len(smaller), "s") == []
        push(harness.store, smaller, source_id="s")
        assert harness.published() == {"disk.img": smaller}

    def test_taildrop_defect_3_an_upload_in_use_never_expires(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec(expires_after=1.0))
        send(upload, data, range(1))
        assert harness.store.expire(1e12) == []
        assert harness.store.expire(1e12, older_than=0) == []
        send(upload, data, range(1, 3))
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_an_epoch_only_ever_rises(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        assert upload.epoch == 1
        assert upload.raise_epoch() == 2
        upload.close()
        harness.restart(reboot=True)
        again = harness.store.open(upload.id)
        assert again.epoch == 2
        assert again.raise_epoch() == 3
        assert again.epoch == 3

    def test_a_refreshed_upload_keeps_what_its_source_is(self, harness: Harness) -> None:
        upload = harness.store.create(spec(source_id="s", fingerprint="f1", key="k1"))
        upload.refresh(
            spec(
                "other",
                5,
                owner=YOU,
                source_id="t",
                fingerprint="f2",
                key="k2",
                mtime_ns=7,
                mode=0o600,
                conflict=Conflict.SKIP,
            )
        )
        wanted = spec(
            source_id="s", fingerprint="f2", key="k2", mtime_ns=7, mode=0o600, conflict=Conflict.SKIP
        )
        assert upload.spec == wanted
        upload.close()
        harness.restart(reboot=True)
        assert harness.store.open(upload.id).spec == wanted

    def test_a_killed_run_is_resumed_with_all_that_was_recorded(self, harness: Harness) -> None:
        data = content(4 * EXTENT)
        upload = harness.store.create(spec(length=len(data)))
        send(upload, data, range(2))
        upload.write_at(memoryview(data[2 * EXTENT : 2 * EXTENT + 50]), 2 * EXTENT)
        tail = Piece(Span(2 * EXTENT, 2 * EXTENT + 50), digest_of(data[2 * EXTENT : 2 * EXTENT + 50]))
        upload.record(tail)
        upload.write_at(memoryview(data[3 * EXTENT :]), 3 * EXTENT)
        harness.restart()
        again = harness.store.open(upload.id)
        assert list(again.held) == [Span(0, 2 * EXTENT + 50)]
        assert again.tails == {2: tail}
        assert again.suspects == {0, 1, 2}
        assert again.recheck([0, 1]) == frozenset()
        send(again, data, range(2, 4))
        publish(again, data)
        assert harness.published() == {"disk.img": data}

    def test_after_a_reboot_only_what_a_mark_covers_is_held_and_that_is_suspect(
        self, harness: Harness
    ) -> None:
        data = content(4 * EXTENT)
        upload = harness.store.create(spec(length=len(data)))
        send(upload, data, range(2))
        upload.mark()
        send(upload, data, range(2, 4))
        harness.restart(reboot=True)
        again = harness.store.open(upload.id)
        assert list(again.held) == [Span(0, 2 * EXTENT)]
        assert again.suspects == {0, 1}
        send(again, data, range(2, 4))
        assert again.suspects == {0, 1}
        with pytest.raises(ProtocolError):
            publish(again, data)
        assert again.recheck([0]) == frozenset()
        assert again.suspects == {1}
        harness.damage(again.id, EXTENT)
        assert again.recheck([1]) == {1}
        assert again.suspects == frozenset()
        send(again, data, range(1, 2))
        publish(again, data)
        assert harness.published() == {"disk.img": data}

    def test_received_bytes_that_are_no_longer_held_are_told_also_those_that_a_reboot_took(
        self, harness: Harness
    ) -> None:
        data = content(4 * EXTENT)
        upload = harness.store.create(spec(length=len(data)))
        send(upload, data, range(2))
        upload.mark()
        send(upload, data, range(2, 3))
        part = data[3 * EXTENT :]
        upload.write_at(memoryview(part), 3 * EXTENT)
        upload.record(Piece(Span(3 * EXTENT, 4 * EXTENT), digest_of(part), reused=100))
        assert upload.received == 4 * EXTENT - 100
        harness.restart(reboot=True)
        again, lost = harness.store.open(upload.id), list[int]()
        again.tell_lost(lost.append)
        assert (again.received, sum(lost)) == (2 * EXTENT, 2 * EXTENT - 100)
        again.invalidate([0])
        assert (again.received, sum(lost)) == (EXTENT, 3 * EXTENT - 100)
        send(again, data, range(1))
        assert (again.discard(), sum(lost)) == (2 * EXTENT, 3 * EXTENT - 100)

    def test_after_a_kill_what_no_mark_covers_is_rechecked_and_what_one_covers_is_not(
        self, harness: Harness
    ) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data, range(1))
        upload.mark()
        send(upload, data, range(1, 3))
        harness.restart()
        harness.damage(upload.id, EXTENT)
        upload = harness.store.open(upload.id)
        assert list(upload.held) == [Span(0, 3 * EXTENT)]
        assert upload.suspects == {1, 2}
        upload.close()
        # A mark says that what is there is durable, not that it is right.
        upload = harness.store.open(upload.id)
        with pytest.raises(ProtocolError):
            publish(upload, data)
        assert upload.recheck(upload.suspects) == {1}
        assert upload.suspects == frozenset()
        send(upload, data, range(1, 2))
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_closing_makes_a_mark(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        send(upload, content(3 * EXTENT))
        upload.close()
        harness.restart(reboot=True)
        assert list(harness.store.open(upload.id).held) == [Span(0, 3 * EXTENT)]

    def test_what_was_rechecked_stays_so_across_runs_but_not_across_reboots(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=EXTENT))
        send(upload, content(EXTENT))
        upload.close()
        harness.restart(reboot=True)
        upload = harness.store.open(upload.id)
        assert upload.recheck([0]) == frozenset()
        upload.close()
        harness.restart()
        upload = harness.store.open(upload.id)
        assert upload.suspects == frozenset()
        upload.mark()
        upload.mark()
        harness.restart(reboot=True)
        upload = harness.store.open(upload.id)
        assert upload.suspects == {0}

    def test_an_ended_upload_takes_no_calls(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        upload = harness.store.create(spec())
        send(upload, data)
        publish(upload, data)
        with pytest.raises(NotFound):
            upload.write_at(memoryview(b"x"), 0)
        with pytest.raises(NotFound):
            upload.record(Piece(Span(0, EXTENT), bytes(16)))
        with pytest.raises(NotFound):
            upload.invalidate([0])
        with pytest.raises(NotFound):
            publish(upload, data)
        with pytest.raises(NotFound):
            upload.discard()
        with pytest.raises(NotFound):
            harness.store.open(upload.id)
        upload.close()

    def test_a_discarded_upload_leaves_nothing(self, harness: Harness) -> None:
        upload = harness.store.create(spec())
        send(upload, content(3 * EXTENT))
        assert harness.store.staged_bytes() >= 3 * EXTENT
        upload.discard()
        assert harness.store.partials() == []
        assert harness.store.staged_bytes() == 0
        assert harness.published() == {}
        with pytest.raises(NotFound):
            harness.store.open(upload.id)

    @pytest.mark.parametrize("upload", ["0" * 32, "..", "", "x/y"])
    def test_an_unknown_upload_is_not_found(self, harness: Harness, upload: str) -> None:
        with pytest.raises(NotFound):
            harness.store.open(UploadId(upload))
        assert harness.store.receipt(UploadId(upload)) is None

    # --- finding -------------------------------------------------------------------------------

    def test_a_partial_is_found_by_owner_name_length_and_source(self, harness: Harness) -> None:
        store = harness.store
        wanted = store.create(spec(source_id="s"))
        for other in (
            spec(source_id="s", owner=YOU),
            spec("other.img", source_id="s"),
            spec(length=3 * EXTENT + 1, source_id="s"),
            spec(source_id="t"),
            spec(),
        ):
            store.create(other).close()
        name = FileName("disk.img")
        assert [each.upload for each in store.find(ME, name, 3 * EXTENT, "s")] == [wanted.id]
        assert len(store.find(ME, name, None, "s")) == 2
        assert [each.spec.source_id for each in store.find(ME, name, None, None)] == [None]
        assert store.find(ME, name, 3 * EXTENT, "u") == []
        assert len(store.partials()) == 6
        wanted.close()
        assert [each.upload for each in store.find(ME, name, 3 * EXTENT, "s")] == [wanted.id]

    def test_the_partial_that_changed_last_is_found_first(self, harness: Harness) -> None:
        store = harness.store
        uploads = [store.create(spec()) for _ in range(3)]
        for each in (uploads[1], uploads[0], uploads[2]):
            # The clock of a filesystem ticks in milliseconds: write until it has moved on.
            before = max(partial.touched_at for partial in store.partials())
            while next(p for p in store.partials() if p.upload == each.id).touched_at <= before:
                send(each, content(EXTENT))
        found = store.find(ME, FileName("disk.img"), None, None)
        assert [each.upload for each in found] == [uploads[2].id, uploads[0].id, uploads[1].id]

    # --- names taken ---------------------------------------------------------------------------

    def test_a_taken_name_is_numbered_however_many_there_are(self, harness: Harness) -> None:
        files = {}
        for count in range(25):
            data = content(10, seed=count)
            path = push(harness.store, data, "foo.txt").path
            assert path == ("foo.txt" if count == 0 else f"foo ({count}).txt")
            files[path] = data
        assert harness.published() == files

    def test_numbers_stay_within_255_bytes_and_at_a_character(self, harness: Harness) -> None:
        name = "ü" * 125 + ".tgz1"
        assert len(name.encode()) == 255
        assert push(harness.store, b"1", name).path == name
        second = push(harness.store, b"2", name).path
        assert second != name
        assert len(second.encode()) <= 255
        assert second.endswith(" (1).tgz1")
        assert harness.published() == {name: b"1", second: b"2"}

    @pytest.mark.parametrize(
        "name", ["🎉 party 100%.mp4", "a/b/c.txt", "x" * 255, "d/" + "y" * 255, " ", "-rf"]
    )
    def test_odd_names_and_trees_are_published_as_they_are(self, harness: Harness, name: str) -> None:
        assert push(harness.store, b"hello", name).path == name
        assert harness.published() == {name: b"hello"}
        existing = harness.store.existing(FileName(name))
        assert existing is not None
        assert (existing.path, existing.size) == (name, 5)

    def test_files_of_a_tree_share_their_folders(self, harness: Harness) -> None:
        for each in ("a/b/1", "a/b/2", "a/3", "a/b/1"):
            push(harness.store, each.encode(), each)
        assert set(harness.published()) == {"a/b/1", "a/b/2", "a/3", "a/b/1 (1)"}

    def test_overwrite_replaces_the_file(self, harness: Harness) -> None:
        harness.put("disk.img", b"old and longer than the new one")
        assert push(harness.store, b"new", conflict=Conflict.OVERWRITE).path == "disk.img"
        assert harness.published() == {"disk.img": b"new"}

    def test_skip_leaves_what_is_there_and_ends_the_upload(self, harness: Harness) -> None:
        harness.put("disk.img", b"old!")
        receipt = push(harness.store, b"new", conflict=Conflict.SKIP)
        assert (receipt.outcome, receipt.path, receipt.size) == (Outcome.SKIPPED, "disk.img", 4)
        assert not receipt.verified
        assert harness.store.receipt(receipt.upload) == receipt
        assert harness.published() == {"disk.img": b"old!"}
        assert harness.store.partials() == []

    def test_skip_publishes_where_nothing_is(self, harness: Harness) -> None:
        assert push(harness.store, b"new", conflict=Conflict.SKIP).outcome is Outcome.PUBLISHED
        assert harness.published() == {"disk.img": b"new"}

    def test_error_refuses_a_taken_name_at_once(self, harness: Harness) -> None:
        harness.put("disk.img", b"old")
        with pytest.raises(Exists):
            harness.store.create(spec(length=4, conflict=Conflict.ERROR))
        with pytest.raises(Exists):
            harness.store.create(spec(length=None, conflict=Conflict.ERROR))
        assert harness.store.partials() == []

    def test_error_does_not_refuse_at_once_what_may_be_identical(self, harness: Harness) -> None:
        harness.put("disk.img", b"old")
        upload = harness.store.create(spec(length=3, conflict=Conflict.ERROR))
        receipt = upload.settle(Outcome.IDENTICAL, "disk.img", root=root_of(b"old"), verified=True)
        assert receipt.outcome is Outcome.IDENTICAL

    def test_error_refuses_a_name_taken_meanwhile_and_loses_nothing(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=3, conflict=Conflict.ERROR))
        send(upload, b"new")
        harness.put("disk.img", b"old")
        with pytest.raises(Exists):
            publish(upload, b"new")
        assert harness.published() == {"disk.img": b"old"}
        upload.refresh(spec(length=3, conflict=Conflict.RENAME))
        assert publish(upload, b"new").path == "disk (1).img"
        assert harness.published() == {"disk.img": b"old", "disk (1).img": b"new"}

    @pytest.mark.parametrize("conflict", [Conflict.OVERWRITE, Conflict.SKIP, Conflict.ERROR])
    def test_a_folder_in_the_way_is_left_alone_and_nothing_is_lost(
        self, harness: Harness, conflict: Conflict
    ) -> None:
        upload = harness.store.create(spec("thing", 3, conflict=conflict))
        send(upload, b"new")
        harness.put("thing/inner", b"kept")
        with pytest.raises(Exists):
            publish(upload, b"new")
        upload.refresh(spec("thing", 3))
        assert publish(upload, b"new").path == "thing (1)"
        assert harness.published() == {"thing/inner": b"kept", "thing (1)": b"new"}

    def test_a_file_where_a_folder_should_be_is_a_bad_name(self, harness: Harness) -> None:
        harness.put("a", b"file")
        with pytest.raises(BadName):
            harness.store.existing(FileName("a/b"))
        with pytest.raises(BadName):
            harness.store.existing_digests(FileName("a/b/c"), EXTENT)
        with pytest.raises(BadName):
            harness.store.create(spec("a/b"))
        assert harness.store.partials() == []

    def test_look_alikes_are_the_file_of_the_name_and_what_was_numbered(self, harness: Harness) -> None:
        harness.put("disk.img", b"theirs")
        store = harness.store
        paths = [push(store, data).path for data in (b"mine 1", b"mine 2", b"longer one")]
        assert paths == ["disk (1).img", "disk (2).img", "disk (3).img"]
        alike = {each.path: each.size for each in store.look_alikes(ME, FileName("disk.img"), 6)}
        assert alike == {"disk.img": 6, "disk (1).img": 6, "disk (2).img": 6}
        assert [each.path for each in store.look_alikes(ME, FileName("disk.img"), 10)] == ["disk (3).img"]
        somebody = Owner("local:4711")
        assert [each.path for each in store.look_alikes(somebody, FileName("disk.img"), 6)] == ["disk.img"]
        assert store.look_alikes(ME, FileName("other"), 6) == []

    def test_existing_tells_only_of_files(self, harness: Harness) -> None:
        harness.put("folder/file", b"12345")
        store = harness.store
        assert store.existing(FileName("folder")) is None
        assert store.existing(FileName("folder/none")) is None
        assert store.existing(FileName("none/none")) is None
        found = store.existing(FileName("folder/file"))
        assert found is not None
        assert found.size == 5
        assert store.existing_digests(FileName("folder"), EXTENT) is None
        assert store.existing_digests(FileName("none"), EXTENT) is None

    @pytest.mark.parametrize("length", [0, 1, EXTENT, 2 * EXTENT + 1])
    def test_digests_of_an_existing_file(self, harness: Harness, length: int) -> None:
        data = content(length)
        harness.put("f", data)
        wanted = [digest_of(data[at : at + EXTENT]) for at in range(0, length, EXTENT)]
        assert harness.store.existing_digests(FileName("f"), EXTENT) == wanted

    # --- receipts ----------------------------------------------------------------------------------

    def test_a_receipt_is_answered_again_by_id_and_by_key(self, harness: Harness) -> None:
        receipt = push(harness.store, b"data", key="k1")
        push(harness.store, b"data2", key="k2")
        harness.restart(reboot=True)
        assert harness.store.receipt(receipt.upload) == receipt
        assert harness.store.receipt_by_key(ME, "k1") == receipt
        assert harness.store.receipt_by_key(YOU, "k1") is None
        assert harness.store.receipt_by_key(ME, "k3") is None

    def test_the_newest_receipt_answers_for_a_key(self, harness: Harness) -> None:
        push(harness.store, b"1", key="k")
        newest = push(harness.store, b"2", key="k")
        found = harness.store.receipt_by_key(ME, "k")
        assert found is not None
        assert found.published_at == newest.published_at

    @pytest.mark.parametrize("verified", [True, False])
    def test_an_identical_file_settles_the_upload(self, harness: Harness, verified: bool) -> None:
        harness.put("disk.img", b"same")
        upload = harness.store.create(spec(length=4))
        receipt = upload.settle(Outcome.IDENTICAL, "disk.img", root=root_of(b"same"), verified=verified)
        assert (receipt.outcome, receipt.path, receipt.size) == (Outcome.IDENTICAL, "disk.img", 4)
        assert receipt.verified is verified
        assert harness.store.receipt(upload.id) == receipt
        assert harness.published() == {"disk.img": b"same"}
        assert harness.store.partials() == []

    @pytest.mark.parametrize("outcome", [Outcome.IDENTICAL, Outcome.SKIPPED])
    def test_nothing_is_settled_on_a_file_that_has_gone(self, harness: Harness, outcome: Outcome) -> None:
        upload = harness.store.create(spec(length=4))
        with pytest.raises(NotFound):
            upload.settle(outcome, "disk.img", root=root_of(b"same"), verified=True)
        send(upload, b"same")
        publish(upload, b"same")
        assert harness.published() == {"disk.img": b"same"}

    def test_a_published_file_is_made_durable_before_it_is_acknowledged(self, harness: Harness) -> None:
        harness.put("a/disk.img", b"same")
        assert harness.store.make_durable("a/disk.img") == 4
        harness.fail_syncs(failing=True)
        with pytest.raises(StorageError):
            harness.store.make_durable("a/disk.img")
        harness.fail_syncs(failing=False)
        with pytest.raises(NotFound):
            harness.store.make_durable("a/other.img")

    def test_a_failed_sync_spoils_the_upload_until_it_is_opened_anew(self, harness: Harness) -> None:
        data = content(3 * EXTENT)
        harness.put("same", b"same")
        upload = harness.store.create(spec())
        send(upload, data, range(1))
        upload.mark()
        send(upload, data, range(1, 3))
        before = upload.spoiled
        harness.fail_syncs(failing=True)
        with pytest.raises(StorageError):
            upload.mark()
        harness.fail_syncs(failing=False)
        assert (before, upload.spoiled) == (False, True)
        for call in (
            upload.mark,
            upload.raise_epoch,
            lambda: upload.set_length(3 * EXTENT),
            lambda: upload.refresh(spec()),
            lambda: upload.write_at(memoryview(b"x"), 0),
            lambda: upload.read_at(memoryview(bytearray(1)), 0),
            lambda: upload.record(Piece(Span(0, EXTENT), bytes(16))),
            lambda: upload.invalidate([0]),
            lambda: upload.recheck([0]),
            lambda: publish(upload, data),
            lambda: upload.settle(Outcome.IDENTICAL, "same", root="r", verified=True),
        ):
            with pytest.raises(StorageError):
                call()
        upload.close()
        again = harness.store.open(upload.id)
        assert not again.spoiled
        assert list(again.held) == [Span(0, EXTENT)]
        send(again, data, range(1, 3))
        publish(again, data)
        assert harness.published() == {"disk.img": data, "same": b"same"}

    # --- space -------------------------------------------------------------------------------------

    def test_what_cannot_be_stored_is_refused_before_anything_is_made(self, harness: Harness) -> None:
        harness.set_capacity(8 * EXTENT)
        with pytest.raises(NoSpace):
            harness.store.create(spec(length=9 * EXTENT))
        assert harness.store.partials() == []
        harness.store.create(spec(length=9 * EXTENT, holes=(Span(0, 4 * EXTENT),))).discard()
        harness.set_capacity(0)
        with pytest.raises(NoSpace):
            harness.store.create(spec(length=None))
        assert push(harness.store, b"").size == 0

    def test_running_uploads_are_promised_their_space(self, harness: Harness) -> None:
        harness.set_capacity(100 * EXTENT)
        first = harness.store.create(spec("1", 60 * EXTENT))
        assert harness.store.free_bytes() <= 40 * EXTENT
        with pytest.raises(NoSpace):
            harness.store.create(spec("2", 60 * EXTENT))
        first.discard()
        assert harness.store.free_bytes() > 60 * EXTENT
        harness.store.create(spec("2", 60 * EXTENT)).discard()

    # --- what counts towards a quota -----------------------------------------------------------------

    def test_an_owner_uses_what_it_has_staged_and_what_it_has_published(self, harness: Harness) -> None:
        store = harness.store
        assert store.used(ME) == 0
        push(store, content(100), "a")
        push(store, content(10), "b/c", owner=YOU)
        upload = store.create(spec("d", 3 * EXTENT))
        assert store.used(ME) == 100 + 3 * EXTENT
        assert store.used(ME, {upload.id}) == 100
        assert store.used(YOU) == 10

    def test_an_upload_counts_once_from_its_creation_to_its_publication(self, harness: Harness) -> None:
        store, data = harness.store, content(3 * EXTENT)
        upload = store.create(spec(length=len(data)))
        assert store.used(ME) == len(data)
        send(upload, data, range(1))
        assert store.used(ME) == len(data)
        upload.close()
        upload = store.open(upload.id)
        assert store.used(ME) == len(data)
        send(upload, data)
        publish(upload, data)
        assert store.used(ME) == len(data)

    def test_holes_count(self, harness: Harness) -> None:
        harness.store.create(spec(length=8 * EXTENT, holes=(Span(0, 7 * EXTENT),)))
        assert harness.store.used(ME) == 8 * EXTENT

    def test_while_a_length_is_unknown_what_has_been_written_counts(self, harness: Harness) -> None:
        store, data = harness.store, content(2 * EXTENT)
        upload = store.create(spec(length=None))
        assert store.used(ME) == 0
        send(upload, data)
        assert store.used(ME) == 2 * EXTENT
        upload.close()
        assert store.used(ME) == 2 * EXTENT
        harness.restart()
        assert harness.store.used(ME) == 2 * EXTENT

    def test_what_was_discarded_or_settled_does_not_count(self, harness: Harness) -> None:
        store = harness.store
        push(store, content(100), "a")
        store.create(spec("b", EXTENT)).discard()
        upload = store.create(spec("a", 100))
        upload.settle(Outcome.IDENTICAL, "a", root="", verified=True)
        assert store.used(ME) == 100

    def test_a_file_counts_for_as_long_as_it_is_there_whatever_becomes_of_its_receipt(
        self, harness: Harness
    ) -> None:
        receipt = push(harness.store, content(100), expires_after=1.0)
        harness.store.expire(receipt.published_at + 1e6)
        assert harness.store.receipt(receipt.upload) is None
        assert harness.store.used(ME) == 100
        harness.restart()
        assert harness.store.used(ME) == 100

    def test_a_file_that_was_replaced_by_another_one_does_not_count_and_is_forgotten(
        self, harness: Harness
    ) -> None:
        receipt = push(harness.store, content(100))
        harness.put("disk.img", b"mine")
        assert harness.store.used(ME) == 0
        harness.store.expire(receipt.published_at)
        harness.put("disk.img", content(100))
        assert harness.store.used(ME) == 0

    def test_what_came_of_an_upload_apart_is_apart(self, harness: Harness) -> None:
        receipt = push(harness.store, content(100))
        assert harness.store.used(ME, {receipt.upload}) == 0

    def test_a_file_counts_for_whoever_published_it_last(self, harness: Harness) -> None:
        data = content(100)
        push(harness.store, data)
        push(harness.store, data, owner=YOU, conflict=Conflict.OVERWRITE)
        assert (harness.store.used(ME), harness.store.used(YOU)) == (0, 100)
        push(harness.store, data[:50], owner=YOU, conflict=Conflict.OVERWRITE)
        assert harness.store.used(YOU) == 50

    # --- time --------------------------------------------------------------------------------------

    def test_an_idle_partial_expires_and_a_younger_one_does_not(self, harness: Harness) -> None:
        store = harness.store
        short, long = (
            store.create(spec("s", expires_after=100.0)),
            store.create(spec("l", expires_after=1000.0)),
        )
        short.close()
        long.close()
        touched = max(each.touched_at for each in store.partials())
        assert store.expire(touched) == []
        assert [each.upload for each in store.expire(touched + 500)] == [short.id]
        assert [each.upload for each in store.partials()] == [long.id]
        assert store.expire(touched + 500, older_than=600) == []
        assert [each.upload for each in store.expire(touched + 500, older_than=400)] == [long.id]
        assert store.partials() == []
        with pytest.raises(NotFound):
            store.open(short.id)

    def test_receipts_go_when_their_uploads_would_have(self, harness: Harness) -> None:
        receipt = push(harness.store, b"x", key="k", expires_after=100.0)
        harness.store.expire(receipt.published_at + 99)
        assert harness.store.receipt(receipt.upload) == receipt
        harness.store.expire(receipt.published_at + 101)
        assert harness.store.receipt(receipt.upload) is None
        assert harness.store.receipt_by_key(ME, "k") is None

    def test_recovery_of_a_store_at_rest_finds_nothing_and_keeps_partials(self, harness: Harness) -> None:
        push(harness.store, b"1")
        upload = harness.store.create(spec("2"))
        upload.close()
        harness.restart()
        assert harness.store.recover() == []
        assert [each.upload for each in harness.store.partials()] == [upload.id]

    # --- many at once ------------------------------------------------------------------------------

    def test_threads_that_look_at_once_all_see_every_upload(self, harness: Harness) -> None:
        store = harness.store
        uploads = {store.create(spec(f"f{number}", EXTENT)).id for number in range(30)}

        def look(_: int) -> bool:
            return {each.upload for each in store.partials()} == uploads and store.used(ME) == 30 * EXTENT

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(look, range(100)))

    def test_writers_markers_and_invalidations_at_once_end_in_the_right_file(self, harness: Harness) -> None:
        extents = 48
        data = content(extents * EXTENT)
        upload = harness.store.create(spec(length=len(data)))
        failures: list[BaseException] = []

        def run(work: Any) -> threading.Thread:
            def guarded() -> None:
                try:
                    work()
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=guarded)
            thread.start()
            return thread

        def writer(first: int) -> None:
            for index in range(first, extents, 4):
                send(upload, content(extents * EXTENT, seed=7), range(index, index + 1))
                upload.invalidate([index])
                send(upload, data, range(index, index + 1))

        def marker() -> None:
            for _ in range(20):
                upload.mark()
                upload.held.total()

        threads = [run(lambda first=first: writer(first)) for first in range(4)] + [run(marker)]
        for thread in threads:
            thread.join()
        assert failures == []
        digests = {i: digest_of(data[i * EXTENT : (i + 1) * EXTENT]) for i in range(extents)}
        assert upload.digests == digests
        harness.restart(reboot=False)
        upload = harness.store.open(upload.id)
        assert upload.digests == digests
        assert upload.recheck(upload.suspects) == frozenset()
        publish(upload, data)
        assert harness.published() == {"disk.img": data}

    def test_of_many_publishers_of_one_name_each_gets_a_name_of_its_own(self, harness: Harness) -> None:
        uploads = [harness.store.create(spec(length=2)) for _ in range(12)]
        for number, upload in enumerate(uploads):
            send(upload, b"%02d" % number)
        receipts: list[Receipt] = []
        threads = [
            threading.Thread(
                target=lambda upload=upload: receipts.append(upload.publish(root="r", verified=True))
            )
            for upload in uploads
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({each.path for each in receipts}) == 12
        assert sorted(harness.published().values()) == [b"%02d" % number for number in range(12)]

    def test_a_commit_answers_busy_to_whoever_comes_meanwhile(self, harness: Harness) -> None:
        upload = harness.store.create(spec(length=2))
        send(upload, b"ok")
        results: list[str] = []

        def commit() -> None:
            try:
                publish(upload, b"ok")
                results.append("published")
            except (UploadBusy, NotFound) as error:
                results.append(error.code)

        threads = [threading.Thread(target=commit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count("published") == 1
        assert set(results) <= {"published", "upload-busy", "not-found"}
        assert harness.published() == {"disk.img": b"ok"}


def visible(folder: Path) -> dict[str, bytes]:
    """The files a user sees in a folder on the disk, links left out."""
    paths = [path for path in files_below(folder) if not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
