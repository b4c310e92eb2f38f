"""What every store must do where an upload is made from the file that it replaces; see ``conformance.py``."""

from __future__ import annotations

import pytest

from store.conformance import EXTENT, Harness, content, publish, send, spec
from tdx.integrity import digest_of
from tdx.model import Conflict, FileName, Span
from tdx.store.port import Base, Piece, Store, Upload

OLD = content(3 * EXTENT, seed=1)
NEW = OLD[: 2 * EXTENT] + content(EXTENT, seed=2)


def opened(store: Store, name: str = "disk.img") -> Base:
    base = store.open_base(FileName(name))
    assert base is not None
    return base


def stored(upload: Upload, span: Span) -> bytes:
    view = memoryview(bytearray(len(span)))
    return bytes(view[: upload.read_at(view, span.start)])


def nothing_ends() -> None:
    """Nobody wants it ended."""


class BaseConformance:
    """A test class derives from this one and gives a ``harness`` fixture."""

    def test_what_is_taken_is_there_and_not_held(self, harness: Harness) -> None:
        harness.put("disk.img", OLD)
        upload = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        base = opened(harness.store)
        assert base.size == len(OLD)
        upload.take(base, Span(EXTENT, 2 * EXTENT), nothing_ends)
        base.close()
        assert stored(upload, Span(EXTENT, 2 * EXTENT)) == OLD[EXTENT : 2 * EXTENT]
        assert not upload.held
        assert harness.published() == {"disk.img": OLD}

    def test_a_file_is_made_from_the_one_it_replaces(self, harness: Harness) -> None:
        harness.put("disk.img", OLD)
        upload = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        base = opened(harness.store)
        for index in (0, 1):
            span = Span(index * EXTENT, (index + 1) * EXTENT)
            upload.take(base, span, nothing_ends)
            upload.record(Piece(span, digest_of(stored(upload, span))))
        base.close()
        send(upload, NEW, range(2, 3))
        assert harness.published() == {"disk.img": OLD}
        publish(upload, NEW)
        assert harness.published() == {"disk.img": NEW}

    def test_of_a_shorter_file_what_there_is_is_taken(self, harness: Harness) -> None:
        harness.put("disk.img", OLD[: EXTENT + 7])
        upload = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        base = opened(harness.store)
        for index in range(3):
            upload.take(base, Span(index * EXTENT, (index + 1) * EXTENT), nothing_ends)
        assert stored(upload, Span(0, 3 * EXTENT)) == OLD[: EXTENT + 7]
        base.close()

    def test_it_may_be_replaced_meanwhile(self, harness: Harness) -> None:
        harness.put("disk.img", OLD)
        base = opened(harness.store)
        other = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        send(other, NEW)
        publish(other, NEW)
        upload = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        upload.take(base, Span(0, 3 * EXTENT), nothing_ends)
        assert stored(upload, Span(0, 3 * EXTENT)) in (OLD, NEW)
        base.close()

    def test_what_is_not_there_or_empty_is_no_help(self, harness: Harness) -> None:
        harness.put("empty", b"")
        harness.put("folder/file", b"content")
        for name in ("empty", "absent", "folder", "absent/file"):
            assert harness.store.open_base(FileName(name)) is None

    def test_whoever_wants_it_ended_is_heard(self, harness: Harness) -> None:
        harness.put("disk.img", OLD)
        upload = harness.store.create(spec(conflict=Conflict.OVERWRITE))
        base = opened(harness.store)

        def ends() -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            upload.take(base, Span(0, EXTENT), ends)
        base.close()
        upload.discard()
        assert harness.published() == {"disk.img": OLD}
