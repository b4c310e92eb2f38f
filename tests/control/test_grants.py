"""What a rule grants holds for every way of bringing a file: its folder, its conflict modes, its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, push, push_stream, running
from support.uploading import open_upload
from support.vouching import Vouching
from support.wire import Answer, chunked, head
from tdx.errors import Forbidden, NoSpace, TooLarge
from tdx.integrity import digest_of
from tdx.model import Conflict, FileName, Outcome
from tdx.policy.admission import Limits
from tdx.policy.rules import Policy, Rule
from tdx.proto.fields import format_digest

EXTENT = 4 << 20
BIG = pattern(2 * EXTENT + 1000)
"""More than an extent: an upload in parts."""


@contextmanager
def granting(folder: Path, rule: Rule, **settings: object) -> Iterator[RunningReceiver]:
    """A receiver to which everybody is a stranger for whom there is this rule."""
    provider = Vouching("tailscale:n1", name="tailscale", own=False)
    with running(folder, providers=[provider], **settings) as receiver:
        receiver.running.policy = Policy([rule])
        yield receiver


def rule(**bounds: object) -> Rule:
    return Rule("guests", user="somebody", **bounds)  # type: ignore[arg-type]


def source(folder: Path, content: bytes, name: str = "disk.img") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def refused_before_a_byte(receiver: RunningReceiver, method: str, target: str, **fields: object) -> Answer:
    """The answer to a request that asks first, and sends nothing."""
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    with receiver.connect() as wire:
        wire.send(head(method, target, {"Expect": "100-continue", **given}))
        return wire.message()


# --- the folder ---------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"small", BIG], ids=["empty", "one extent", "several"])
def test_a_push_goes_into_the_folder_granted(tmp_path: Path, content: bytes) -> None:
    with granting(tmp_path, rule(into=FileName("guests/new"))) as receiver:
        result = push(receiver.peer, source(tmp_path, content), tmp_path / "sender")
        assert result.path == "guests/new/disk.img"
        assert receiver.visible() == {"guests/new/disk.img": content}


@pytest.mark.parametrize("content", [b"small", BIG], ids=["one extent", "several"])
def test_a_second_push_finds_what_the_first_one_put_there(tmp_path: Path, content: bytes) -> None:
    file, state = source(tmp_path, content), tmp_path / "sender"
    with granting(tmp_path, rule(into=FileName("guests"))) as receiver:
        receiver.folder.joinpath("disk.img").write_bytes(content)  # the folder above is not theirs
        assert push(receiver.peer, file, state).outcome is Outcome.PUBLISHED
        again = push(receiver.peer, file, state)
        assert (again.outcome, again.path) == (Outcome.IDENTICAL, "guests/disk.img")


def test_a_push_that_broke_off_is_resumed_in_the_folder_granted(tmp_path: Path) -> None:
    with granting(tmp_path, rule(into=FileName("guests"))) as receiver:
        fields = {"Tdx-Resume": "?1"}
        upload = open_upload(receiver, "disk.img", len(BIG), fields)
        assert upload.put(receiver, 0, BIG[:EXTENT], len(BIG)).status == 200
        again = open_upload(receiver, "disk.img", len(BIG), fields)
        assert (again.id, again.created.document["held"]) == (upload.id, [[0, EXTENT]])
        assert again.put(receiver, EXTENT, BIG[EXTENT:], len(BIG)).status == 200
        assert again.commit(receiver, BIG).document["path"] == "guests/disk.img"


def test_a_plain_client_puts_and_goes_on_in_the_folder_granted(tmp_path: Path) -> None:
    with granting(tmp_path, rule(into=FileName("guests"))) as receiver:
        assert receiver.request("PUT", "/files/a", b"12").document["path"] == "guests/a"
        assert receiver.request("PUT", "/files/b", b"12", {"Content-Range": "bytes 0-1/4"}).status == 202
        assert receiver.request("HEAD", "/files/b").headers["upload-offset"] == "2"
        receiver.request("PUT", "/files/b", b"34", {"Content-Range": "bytes 2-3/4"})
        assert receiver.request("POST", "/files/c", b"56", {"Upload-Complete": "?1"}).status == 201
        assert receiver.visible() == {"guests/a": b"12", "guests/b": b"1234", "guests/c": b"56"}


def test_a_stream_goes_into_the_folder_granted(tmp_path: Path) -> None:
    with granting(tmp_path, rule(into=FileName("guests"))) as receiver, source(tmp_path, BIG).open() as file:
        result = push_stream(receiver.peer, file.fileno(), tmp_path / "sender", name="stream")
        assert result.path == "guests/stream"
        assert receiver.visible() == {"guests/stream": BIG}


def test_a_name_that_is_too_long_with_the_folder_is_refused(tmp_path: Path) -> None:
    name = "/".join(["x" * 250] * 16)
    with granting(tmp_path, rule(into=FileName("f" * 100))) as receiver:
        answer = receiver.request("PUT", f"/files/{name}", b"1")
        assert (answer.status, answer.problem) == (400, "bad-name")


# --- conflict modes -------------------------------------------------------------


@pytest.mark.parametrize("content", [b"small", BIG], ids=["one extent", "several"])
def test_a_conflict_mode_that_is_not_granted_is_refused_with_the_rule(tmp_path: Path, content: bytes) -> None:
    granted = frozenset({Conflict.RENAME, Conflict.SKIP})
    file, state = source(tmp_path, content), tmp_path / "sender"
    with granting(tmp_path, rule(conflict=granted)) as receiver:
        receiver.folder.joinpath("disk.img").write_bytes(b"theirs")
        for mode in (Conflict.OVERWRITE, Conflict.ERROR):
            with pytest.raises(
                Forbidden, match=f"rule `guests` does not allow --conflict {mode}; it allows rename, skip"
            ):
                push(receiver.peer, file, state, conflict=mode)
        assert (receiver.visible(), receiver.staged()) == ({"disk.img": b"theirs"}, [])
        assert push(receiver.peer, file, state, conflict=Conflict.SKIP).outcome is Outcome.SKIPPED
        assert push(receiver.peer, file, state).path == "disk (1).img"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("PUT", {"Content-Length": 10}),
        ("PUT", {"Content-Length": 10, "Content-Range": "bytes 0-9/20"}),
        ("PUT", {"Content-Length": 10, "If-None-Match": "*"}),
        ("POST", {"Content-Length": 10, "Upload-Complete": "?1"}),
        ("POST", {"Content-Length": 10, "Upload-Complete": "?0"}),
    ],
)
def test_a_mode_that_is_not_granted_is_refused_before_a_byte(
    tmp_path: Path, method: str, fields: dict[str, object]
) -> None:
    with granting(tmp_path, rule(conflict=frozenset({Conflict.SKIP}))) as receiver:
        answer = refused_before_a_byte(receiver, method, "/files/f", **fields)
        assert (answer.status, answer.problem) == (403, "forbidden")
        assert "rule `guests`" in answer.detail
        assert (receiver.visible(), receiver.staged()) == ({}, [])


def test_a_mode_that_was_taken_back_publishes_nothing(tmp_path: Path) -> None:
    with granting(tmp_path, rule()) as receiver:
        receiver.folder.joinpath("disk.img").write_bytes(b"theirs")
        overwriting = {"Tdx-Conflict": "overwrite"}
        ours = open_upload(receiver, "disk.img", 4, overwriting)
        plain = open_upload(receiver, "disk.img", 4, overwriting, source=None)
        assert ours.put(receiver, 0, b"1234", 4).status == 200
        receiver.running.policy = Policy([rule(conflict=frozenset({Conflict.RENAME}))])
        appended = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": 0,
            "Upload-Complete": "?1",
        }
        assert ours.commit(receiver, b"1234").status == 403
        assert receiver.request("PATCH", plain.target, b"1234", appended).status == 403
        assert receiver.visible() == {"disk.img": b"theirs"}


def test_what_was_begun_outside_the_folder_that_is_granted_by_now_is_not_published(tmp_path: Path) -> None:
    with granting(tmp_path, rule()) as receiver:
        ours = open_upload(receiver, "disk.img", 4)
        inside = open_upload(receiver, "guests/disk.img", 4, source="s2")
        plain = open_upload(receiver, "guests.img", 4, source=None)
        for upload in (ours, inside):
            assert upload.put(receiver, 0, b"1234", 4).status == 200
        receiver.running.policy = Policy([rule(into=FileName("guests"))])
        appended = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": 0,
            "Upload-Complete": "?1",
        }
        for refusal in (
            ours.commit(receiver, b"1234"),
            receiver.request("PATCH", plain.target, b"1234", appended),
        ):
            assert refusal.status == 403
            assert "rule `guests` puts files into guests/ by now" in str(refusal.document["detail"])
        assert inside.commit(receiver, b"1234").status == 200
        assert receiver.visible() == {"guests/disk.img": b"1234"}


# --- the largest file -------------------------------------------------------------


@pytest.mark.parametrize(("granted", "limit"), [(100, None), (100, 1000), (1000, 100)])
def test_the_smaller_of_the_receivers_and_the_rules_largest_file_counts(
    tmp_path: Path, granted: int, limit: int | None
) -> None:
    with granting(tmp_path, rule(max_file=granted), limits=Limits(max_file=limit)) as receiver:
        assert receiver.request("PUT", "/files/f", b"x" * 100).status == 201
        for method, fields in (
            ("PUT", {"Content-Length": 101}),
            ("PUT", {"Content-Length": 10, "Content-Range": "bytes 0-9/101"}),
            ("POST", {"Content-Length": 0, "Upload-Complete": "?0", "Upload-Length": 101}),
        ):
            answer = refused_before_a_byte(receiver, method, "/files/g", **fields)
            assert (answer.status, answer.problem) == (413, "too-large")
            assert ("rule `guests`" in answer.detail) == (granted == 100)
        assert receiver.staged() == []


def test_the_largest_file_bounds_what_has_no_length(tmp_path: Path) -> None:
    with granting(tmp_path, rule(max_file=1 << 20)) as receiver:
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Transfer-Encoding": "chunked"}))
            wire.send(chunked([bytes(1 << 20), b"1"]))
            assert wire.answer().status == 413
        with source(tmp_path, BIG).open() as file, pytest.raises(TooLarge):
            push_stream(receiver.peer, file.fileno(), tmp_path / "sender", name="stream")
        assert (receiver.visible(), receiver.staged()) == ({}, [])


# --- the quota ----------------------------------------------------------------------


def test_a_quota_is_for_all_files_that_are_there_together(tmp_path: Path) -> None:
    with granting(tmp_path, rule(quota=250)) as receiver:
        for name in "ab":
            assert receiver.request("PUT", f"/files/{name}", name.encode() * 100).status == 201
        answer = refused_before_a_byte(receiver, "PUT", "/files/c", Content_Length=100)
        assert (answer.status, answer.problem) == (507, "no-space")
        assert "rule `guests` gives a quota of 250 bytes: 200 are used" in answer.detail
        assert (answer.document["quota"], answer.document["used"]) == (250, 200)
        assert receiver.request("PUT", "/files/c", b"x" * 50).status == 201
        assert sorted(receiver.visible()) == ["a", "b", "c"]
        receiver.folder.joinpath("a").unlink()
        assert receiver.request("PUT", "/files/d", b"x" * 100).status == 201


def test_a_quota_holds_over_a_restart(tmp_path: Path) -> None:
    with granting(tmp_path, rule(quota=250)) as receiver:
        receiver.request("PUT", "/files/a", b"x" * 200)
        receiver.restart()
        receiver.running.policy = Policy([rule(quota=250)])
        assert receiver.request("PUT", "/files/b", b"x" * 100).status == 507


def test_every_owner_has_a_quota_of_its_own(tmp_path: Path) -> None:
    provider = Vouching("tailscale:n1", name="tailscale", own=False)
    with running(tmp_path, providers=[provider]) as receiver:
        receiver.running.policy = Policy([rule(quota=100)])
        assert receiver.request("PUT", "/files/a", b"x" * 100).status == 201
        assert receiver.request("PUT", "/files/b", b"x").status == 507
        provider.owner = "tailscale:n2"
        assert receiver.request("PUT", "/files/b", b"x" * 100).status == 201


def test_what_is_staged_counts_and_a_push_that_replaces_or_resumes_it_counts_once(tmp_path: Path) -> None:
    size = len(BIG)
    with granting(tmp_path, rule(quota=size + 10)) as receiver:
        first = open_upload(receiver, "disk.img", size)
        assert first.put(receiver, 0, BIG[:EXTENT], size).status == 200
        assert open_upload(receiver, "other", 11, source="s2").created.status == 507
        anew = open_upload(receiver, "disk.img", size)  # replaces
        assert anew.created.status == 201
        assert anew.put(receiver, 0, BIG[:EXTENT], size).status == 200
        receiver.restart()
        receiver.running.policy = Policy([rule(quota=size + 10)])
        on = open_upload(receiver, "disk.img", size, {"Tdx-Resume": "?1"})
        assert (on.id, on.created.document["held"]) == (anew.id, [[0, EXTENT]])
        assert on.put(receiver, EXTENT, BIG[EXTENT:], size).status == 200
        assert on.commit(receiver, BIG).status == 200
        assert receiver.request("PUT", "/files/rest", b"x" * 10).status == 201
        assert receiver.request("PUT", "/files/more", b"x").status == 507


def test_a_replacement_that_does_not_fit_leaves_what_it_would_have_replaced(tmp_path: Path) -> None:
    size = len(BIG)
    with granting(tmp_path, rule(quota=size)) as receiver:
        first = open_upload(receiver, "disk.img", size)
        assert first.put(receiver, 0, BIG[:EXTENT], size).status == 200
        assert open_upload(receiver, "disk.img", size + 1).created.status == 507
        assert open_upload(receiver, "disk.img", size, {"Tdx-Resume": "?1"}).id == first.id


def test_a_length_that_becomes_known_on_the_way_counts_as_a_whole(tmp_path: Path) -> None:
    fields = {"Content-Type": "application/partial-upload", "Upload-Complete": "?0"}
    with granting(tmp_path, rule(quota=1000)) as receiver:
        upload = open_upload(receiver, "f", None, source=None)

        def append(at: int, **more: object) -> int:
            return receiver.request(
                "PATCH", upload.target, b"12", {**fields, "Upload-Offset": at, **more}
            ).status

        assert append(0) == 204
        assert append(2, **{"Upload-Length": 2000}) == 507
        assert append(2) == 507
        receiver.running.policy = Policy([rule(quota=2000)])
        assert append(2) == 204
        assert receiver.request("PUT", "/files/g", b"x").status == 507


def test_holes_count_towards_a_quota(tmp_path: Path) -> None:
    with granting(tmp_path, rule(quota=10 * EXTENT)) as receiver:
        hole = {"Tdx-Holes": f"0-{11 * EXTENT - 1}"}
        assert open_upload(receiver, "sparse", 11 * EXTENT, hole).created.status == 507
        hole = {"Tdx-Holes": f"0-{10 * EXTENT - 1}"}
        assert open_upload(receiver, "sparse", 10 * EXTENT, hole).created.status == 201
        assert receiver.request("PUT", "/files/f", b"x").status == 507


@pytest.mark.parametrize("pump", ["splice", "buffered"])
def test_a_quota_bounds_what_has_no_length(tmp_path: Path, pump: str) -> None:
    quota = 3 << 20
    with granting(tmp_path, rule(quota=quota), pump=pump) as receiver:
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Transfer-Encoding": "chunked"}))
            wire.send(chunked([bytes(1 << 20)] * 3 + [b"1"]))
            assert wire.answer().problem == "no-space"
        with source(tmp_path, BIG).open() as file, pytest.raises(NoSpace, match="rule `guests`"):
            push_stream(receiver.peer, file.fileno(), tmp_path / "sender", name="stream")
        assert receiver.visible() == {}
        with source(tmp_path, BIG[:quota], "fits").open() as file:
            push_stream(receiver.peer, file.fileno(), tmp_path / "sender", name="stream")
        assert receiver.visible() == {"stream": BIG[:quota]}
        with source(tmp_path, b"x").open() as file, pytest.raises(NoSpace):
            push_stream(receiver.peer, file.fileno(), tmp_path / "sender", name="more")


@pytest.mark.parametrize("content", [b"small", BIG], ids=["one extent", "several"])
def test_pushing_again_what_is_there_works_with_a_full_quota(tmp_path: Path, content: bytes) -> None:
    files = [source(tmp_path, content, name) for name in ("a", "b")]
    with granting(tmp_path, rule(quota=2 * len(content))) as receiver:
        outcomes = [push(receiver.peer, file, tmp_path / "sender").outcome for file in [*files, *files]]
        assert outcomes == [Outcome.PUBLISHED] * 2 + [Outcome.IDENTICAL] * 2
        assert receiver.staged() == []
        with pytest.raises(NoSpace, match="rule `guests` gives a quota"):
            push(receiver.peer, source(tmp_path, content, "c"), tmp_path / "sender")


def test_another_file_of_the_name_and_size_that_is_there_gets_no_byte_in_at_a_full_quota(
    tmp_path: Path,
) -> None:
    size = len(BIG)
    with granting(tmp_path, rule(quota=size)) as receiver:
        push(receiver.peer, source(tmp_path, BIG), tmp_path / "sender")
        with pytest.raises(NoSpace, match="rule `guests` gives a quota"):
            push(receiver.peer, source(tmp_path, BIG[::-1]), tmp_path / "sender")
        assert (receiver.visible(), receiver.staged()) == ({"disk.img": BIG}, [])


def test_every_stream_of_an_upload_that_was_removed_for_the_quota_is_told_so(tmp_path: Path) -> None:
    size = len(BIG)
    with granting(tmp_path, rule(quota=size)) as receiver:
        push(receiver.peer, source(tmp_path, BIG), tmp_path / "sender")
        upload = open_upload(receiver, "disk.img", size)
        for start in (0, EXTENT):
            answer = upload.put(receiver, start, BIG[start : start + EXTENT], size)
            assert (answer.status, answer.problem) == (507, "no-space")
        assert receiver.staged() == []


def test_uploads_that_only_compare_cannot_pile_up(tmp_path: Path) -> None:
    size = len(BIG)
    with granting(tmp_path, rule(quota=2 * size)) as receiver:
        push(receiver.peer, source(tmp_path, BIG), tmp_path / "sender")
        opened = [open_upload(receiver, "disk.img", size, source=f"s{n}").created.status for n in range(5)]
        assert opened == [201, 201, 201, 507, 507]


def test_a_partial_of_before_the_quota_takes_no_more_bytes_than_it_allows(tmp_path: Path) -> None:
    size = len(BIG)
    with granting(tmp_path, rule()) as receiver:
        upload = open_upload(receiver, "disk.img", size)
        assert upload.put(receiver, 0, BIG[:EXTENT], size).status == 200
        receiver.restart()
        receiver.running.policy = Policy([rule(quota=size - 1)])
        answer = upload.put(receiver, EXTENT, BIG[EXTENT:], size)
        assert (answer.status, answer.problem) == (507, "no-space")
        receiver.running.policy = Policy([rule(quota=size)])
        assert upload.put(receiver, EXTENT, BIG[EXTENT:], size).status == 200
        assert upload.commit(receiver, BIG).status == 200


def test_a_whole_file_that_is_there_needs_no_quota(tmp_path: Path) -> None:
    digest = {"Content-Digest": format_digest("xxh3-128", digest_of(b"1234"))}
    with granting(tmp_path, rule(quota=4)) as receiver:
        assert receiver.request("PUT", "/files/f", b"1234", digest).status == 201
        assert receiver.request("PUT", "/files/f", b"1234", digest).document["outcome"] == "identical"
        assert receiver.request("PUT", "/files/f", b"5678").status == 507


def test_many_at_once_do_not_exceed_a_quota_and_can_fill_it(tmp_path: Path) -> None:
    with granting(tmp_path, rule(quota=1000)) as receiver:

        def put(number: int) -> int:
            if number % 2:
                with receiver.connect() as wire:
                    wire.send(head("PUT", f"/files/f{number}", {"Transfer-Encoding": "chunked"}))
                    return wire.send(chunked([b"x" * 70, b"x" * 30])).answer().status
            return receiver.request("PUT", f"/files/f{number}", b"x" * 100).status

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(put, range(24)))
        assert set(answers) <= {201, 507}
        assert sum(map(len, receiver.visible().values())) == 100 * answers.count(201) <= 1000
        for number in range(100, 110):
            put(number)
        assert sum(map(len, receiver.visible().values())) == 1000
        assert receiver.staged() == []
