"""``POST /uploads/ID/base``, ``blocks`` and ``patch`` as requests: what they answer, and whom they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, running
from support.uploading import Opened, open_upload
from support.wire import Answer, head
from tdx.integrity import BLOCK, MIN_EXTENT, block_digests, digest_of
from tdx.model import Span
from tdx.policy.rules import Policy, Rule
from tdx.proto import patch as wire

EXTENT = MIN_EXTENT
OLD = pattern(3 * EXTENT + 1000)
NEW = OLD[:EXTENT] + b"new!" + OLD[EXTENT + 4 :]
SIZE = len(NEW)
OVER = {"Tdx-Conflict": "overwrite", "Tdx-Base": "?1"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path) as started:
        (started.folder / "f").write_bytes(OLD)
        yield started


@pytest.fixture
def upload(receiver: RunningReceiver) -> Opened:
    return open_upload(receiver, "f", SIZE, OVER)


def extent(index: int, content: bytes = NEW) -> bytes:
    return content[index * EXTENT : (index + 1) * EXTENT]


def listed(*indices: int, content: bytes = NEW) -> bytes:
    return wire.encode_list((index, digest_of(extent(index, content))) for index in indices)


def blocks_of(*indices: int) -> bytes:
    return wire.encode_blocks((index, block_digests(memoryview(extent(index)))) for index in indices)


def ask(receiver: RunningReceiver, upload: Opened, step: str, body: bytes, **fields: object) -> Answer:
    given = {**upload.fields, **{name.replace("_", "-"): value for name, value in fields.items()}}
    return receiver.request("POST", f"{upload.target}/{step}", body, given)


def patch_of(indices: list[int], runs: list[Span], content: bytes = NEW) -> bytes:
    sent = b"".join(wire.encode_run(run) + content[run.start : run.end] for run in runs)
    return wire.COUNT.pack(len(indices)) + listed(*indices) + sent


def patch(receiver: RunningReceiver, upload: Opened, span: Span, body: bytes, **fields: object) -> Answer:
    stated = f"bytes {span.start}-{span.end - 1}/{SIZE}"
    return ask(receiver, upload, "patch", body, **{"Content_Range": stated, **fields})


SECOND = Span(EXTENT, 2 * EXTENT)
FIRST_BLOCK = Span(EXTENT, EXTENT + BLOCK)


def test_a_file_is_made_from_the_one_that_is_there(receiver: RunningReceiver, upload: Opened) -> None:
    assert upload.created.document["base"] == len(OLD)
    same = [[0, EXTENT], [2 * EXTENT, SIZE]]
    assert ask(receiver, upload, "base", listed(0, 1, 2, 3)).document == {"same": same}
    assert receiver.request("GET", upload.target).document["held"] == same
    needed = ask(receiver, upload, "blocks", blocks_of(1)).document
    assert needed == {"needed": [[EXTENT, EXTENT + BLOCK]]}
    answer = patch(receiver, upload, SECOND, patch_of([1], [FIRST_BLOCK]))
    assert answer.document["same"] == [[EXTENT, 2 * EXTENT]]
    assert receiver.visible() == {"f": OLD}
    assert upload.commit(receiver, NEW).status == 200
    assert receiver.visible() == {"f": NEW}


def test_each_step_may_come_again(receiver: RunningReceiver, upload: Opened) -> None:
    for _ in range(2):
        answer = ask(receiver, upload, "base", listed(0, 1))
        assert answer.document == {"same": [[0, EXTENT]]}
    for _ in range(2):
        answer = patch(receiver, upload, SECOND, patch_of([1], [FIRST_BLOCK]))
        assert answer.document["same"] == [[EXTENT, 2 * EXTENT]]
    assert ask(receiver, upload, "blocks", blocks_of(0, 1)).document == {"needed": []}
    assert receiver.metrics.discarded_bytes.value(("held",)) == BLOCK


def test_comparing_takes_nothing(receiver: RunningReceiver, upload: Opened) -> None:
    answer = ask(receiver, upload, "base", listed(0, 1, 3), Tdx_Check="?1")
    assert answer.document == {"same": [[0, EXTENT], [3 * EXTENT, SIZE]]}
    assert receiver.request("GET", upload.target).document["held"] == []
    (staged,) = receiver.staged()
    assert (staged / "data").stat().st_size == 0


def test_of_an_extent_most_of_which_differs_all_is_needed(receiver: RunningReceiver, upload: Opened) -> None:
    answer = ask(receiver, upload, "blocks", blocks_of(0, 2))  # nothing was taken
    assert answer.document == {"needed": [[0, EXTENT], [2 * EXTENT, 3 * EXTENT]]}


def test_a_lie_about_an_extent_is_not_recorded(receiver: RunningReceiver, upload: Opened) -> None:
    lie = wire.encode_list([(0, bytes(16))])
    assert ask(receiver, upload, "base", lie).document == {"same": []}
    assert receiver.request("GET", upload.target).document["held"] == []
    assert ask(receiver, upload, "base", listed(0)).document == {"same": [[0, EXTENT]]}
    assert ask(receiver, upload, "base", lie).document == {"same": []}  # held, and not what is said


def test_a_patch_that_leaves_blocks_out_is_not_recorded(receiver: RunningReceiver, upload: Opened) -> None:
    ask(receiver, upload, "base", listed(0, 1, 2, 3))
    answer = patch(receiver, upload, SECOND, patch_of([1], []))
    assert (answer.status, answer.document["same"]) == (200, [])
    assert receiver.metrics.digest_failures.value() == 1
    answer = upload.commit(receiver, NEW)
    assert (answer.status, answer.document["extents"]) == (409, [1])


@pytest.mark.parametrize(
    ("step", "body"),
    [
        ("base", b""),
        ("base", listed(0)[:-1]),
        ("base", listed(1, 0)),
        ("base", wire.encode_list([(4, bytes(16))])),
        ("blocks", b""),
        ("blocks", blocks_of(0)[:-1]),
        ("blocks", blocks_of(1, 0)),
        ("patch", b"\0"),
        ("patch", patch_of([], [])),
        ("patch", patch_of([0], [Span(0, BLOCK)])),
        ("patch", patch_of([1], [Span(0, BLOCK)])),
        ("patch", patch_of([1], [Span(2 * EXTENT - 5, 2 * EXTENT + 5)])),
        ("patch", patch_of([1], [FIRST_BLOCK, FIRST_BLOCK])),
        ("patch", patch_of([1], [FIRST_BLOCK])[:-1]),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_held(
    receiver: RunningReceiver, upload: Opened, step: str, body: bytes
) -> None:
    fields = {"Content_Range": f"bytes {EXTENT}-{2 * EXTENT - 1}/{SIZE}"} if step == "patch" else {}
    answer = ask(receiver, upload, step, body, **fields)
    assert (answer.status, answer.problem) == (400, "protocol")
    assert receiver.request("GET", upload.target).document["held"] == []


@pytest.mark.parametrize(
    ("content_range", "status"),
    [
        (None, 400),
        ("bytes 0-9/10", 416),
        (f"bytes 5-{EXTENT - 1}/{SIZE}", 416),
        (f"bytes 0-{EXTENT - 2}/{SIZE}", 416),
        (f"bytes 0-{EXTENT - 1}/*", 416),
    ],
)
def test_a_patch_lies_in_whole_extents(
    receiver: RunningReceiver, upload: Opened, content_range: str | None, status: int
) -> None:
    fields = {} if content_range is None else {"Content_Range": content_range}
    assert ask(receiver, upload, "patch", patch_of([0], []), **fields).status == status


def test_a_patch_tells_its_length(receiver: RunningReceiver, upload: Opened) -> None:
    fields = {
        **upload.fields,
        "Content-Range": f"bytes 0-{EXTENT - 1}/{SIZE}",
        "Transfer-Encoding": "chunked",
    }
    with receiver.connect() as connection:
        connection.send(head("POST", f"{upload.target}/patch", fields))
        assert connection.answer().status == 411


def test_more_than_is_listed_at_once_is_too_large(receiver: RunningReceiver, upload: Opened) -> None:
    assert ask(receiver, upload, "base", bytes(wire.LIST_LIMIT + 1)).status == 413
    assert ask(receiver, upload, "blocks", bytes(wire.BLOCKS_LIMIT + 1)).status == 413


@pytest.mark.parametrize("step", ["base", "blocks", "patch"])
class TestWhoMayAsk:
    def ask(self, receiver: RunningReceiver, upload: Opened, step: str) -> Answer:
        bodies = {"base": listed(0), "blocks": blocks_of(0), "patch": patch_of([0], [])}
        stated = {"Content_Range": f"bytes 0-{EXTENT - 1}/{SIZE}"} if step == "patch" else {}
        return ask(receiver, upload, step, bodies[step], **stated)

    def test_only_a_file_that_is_to_be_overwritten_is_made_from_another(
        self, receiver: RunningReceiver, step: str
    ) -> None:
        upload = open_upload(receiver, "f", SIZE, {"Tdx-Base": "?1"})
        assert "base" not in upload.created.document
        assert self.ask(receiver, upload, step).status == 400

    def test_not_one_whose_length_is_unknown(self, receiver: RunningReceiver, step: str) -> None:
        upload = open_upload(receiver, "f", None, OVER)
        assert "base" not in upload.created.document
        assert self.ask(receiver, upload, step).status == 400

    def test_not_an_older_run(self, receiver: RunningReceiver, upload: Opened, step: str) -> None:
        open_upload(receiver, "f", SIZE, {**OVER, "Tdx-Resume": "?1"})
        answer = self.ask(receiver, upload, step)
        assert (answer.status, answer.problem) == (409, "superseded")

    def test_not_whom_the_rules_forbid_it_by_now(
        self, receiver: RunningReceiver, upload: Opened, step: str
    ) -> None:
        (owner,) = {session.owner for session in receiver.running.sessions._open.values()}
        receiver.running.policy = Policy([Rule("less", key=owner, conflict=frozenset())])
        answer = self.ask(receiver, upload, step)
        assert (answer.status, answer.problem) == (403, "forbidden")


def test_without_a_file_there_is_no_base(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "other", SIZE, OVER)
    assert "base" not in upload.created.document
    assert ask(receiver, upload, "base", listed(0)).document == {"same": []}
    assert ask(receiver, upload, "base", listed(0), Tdx_Check="?1").document == {"same": []}


def test_a_file_whose_way_is_blocked_has_none(receiver: RunningReceiver, upload: Opened) -> None:
    (receiver.folder / "f").unlink()
    (receiver.folder / "f").mkdir()
    assert ask(receiver, upload, "base", listed(0)).document == {"same": []}


def test_an_extent_that_is_being_written_is_not_taken(receiver: RunningReceiver, upload: Opened) -> None:
    with receiver.connect() as connection:
        connection.send(upload.range_head(0, EXTENT, SIZE) + NEW[:10])
        receiver.has_bodies(1)
        answer = ask(receiver, upload, "base", listed(0, 1))
        assert (answer.status, answer.problem) == (409, "upload-busy")
        answer = patch(receiver, upload, Span(0, EXTENT), patch_of([0], []))
        assert (answer.status, answer.problem) == (409, "upload-busy")
        assert ask(receiver, upload, "base", listed(2)).document == {"same": [[2 * EXTENT, 3 * EXTENT]]}


def test_nobody_writes_where_a_patch_is_coming(receiver: RunningReceiver, upload: Opened) -> None:
    body = patch_of([1], [FIRST_BLOCK])
    fields = {**upload.fields, "Content-Range": f"bytes {EXTENT}-{2 * EXTENT - 1}/{SIZE}"}
    with receiver.connect() as connection:
        connection.send(head("POST", f"{upload.target}/patch", {**fields, "Content-Length": len(body)}))
        receiver.has_bodies(1)
        answer = upload.put(receiver, EXTENT, extent(1), SIZE)
        assert (answer.status, answer.problem) == (409, "upload-busy")
        assert ask(receiver, upload, "base", listed(0)).status == 200
        connection.send(body)
        assert connection.answer().status == 200


def test_a_commit_ends_a_patch_that_is_on_its_way(receiver: RunningReceiver, upload: Opened) -> None:
    fields = {**upload.fields, "Content-Range": f"bytes {EXTENT}-{2 * EXTENT - 1}/{SIZE}"}
    with receiver.connect() as connection:
        connection.send(head("POST", f"{upload.target}/patch", {**fields, "Content-Length": 1000}))
        receiver.has_bodies(1)
        assert upload.commit(receiver, NEW).status == 409
        receiver.has_bodies(0)


def test_the_beginning_that_an_append_left_is_forgotten_first(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, OVER, source=None)
    part = {"Upload-Offset": 0, "Upload-Complete": "?0", "Content-Type": "application/partial-upload"}
    assert receiver.request("PATCH", upload.target, b"z" * 100, part).status == 204
    assert ask(receiver, upload, "base", listed(0)).document == {"same": [[0, EXTENT]]}
    assert receiver.request("GET", upload.target).document["held"] == [[0, EXTENT]]
