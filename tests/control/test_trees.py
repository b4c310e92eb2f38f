"""POST /v1/tree: the entries of a tree, many at once, each of them answered for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from store.faulty import FaultySystem
from support.bundle_wire import END as END_OF_BUNDLE
from support.bundle_wire import bundle, entry, post
from support.processes import wait_until
from support.receiving import RunningReceiver, in_background, local_store, running
from support.uploading import open_upload
from support.vouching import Vouching
from support.wire import Answer, chunked, head
from tdx.control import messages
from tdx.control.tree_bodies import MOST_APIECE, TreeBodies
from tdx.errors import Busy
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, FileName, Owner
from tdx.policy.admission import Limits
from tdx.policy.rules import Policy, Rule
from tdx.proto.tree import MAX_BODY, MAX_ENTRIES

OLD = 10**18
EXTENT = 4 << 20


def root(content: bytes) -> str:
    digests = [digest_of(content[at : at + EXTENT]) for at in range(0, len(content), EXTENT)]
    return str(Root.over(digests, len(content), EXTENT))


def file(
    name: str, content: bytes, mtime: int = OLD, mode: int = 0o644, *, asked: bool = False
) -> list[object]:
    return ["file", name, len(content), mtime, mode, None if asked else root(content)]


def folder(name: str, mtime: int = OLD, mode: int = 0o755) -> list[object]:
    return ["folder", name, mtime, mode]


def link(name: str, target: str, mtime: int = OLD) -> list[object]:
    return ["link", name, mtime, target]


def ask(receiver: RunningReceiver, *entries: object, raw: bytes | None = None, **more: object) -> Answer:
    body = json.dumps({"entries": entries}).encode() if raw is None else raw
    given = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in more.items()
    }
    return receiver.request("POST", "/v1/tree", body, given)


def verdicts(answer: Answer) -> list[Any]:
    """What is said of each entry; of a refused one the code of its problem."""
    assert answer.status == 200, answer.body
    found = cast("list[Any]", answer.document["entries"])
    return [
        str(each["problem"]["type"]).rpartition(":")[2] if isinstance(each, dict) else each for each in found
    ]


def tell(receiver: RunningReceiver, *entries: object, **more: Any) -> list[Any]:
    return verdicts(ask(receiver, *entries, **more))


# --- the way of a tree -----------------------------------------------------------------------


def test_a_tree_is_made_and_only_what_is_needed_is_sent(receiver: RunningReceiver) -> None:
    large = os.urandom(EXTENT + 5)
    entries = [
        folder("t", OLD, 0o750),
        folder("t/d", OLD + 1, 0o500),
        link("t/d/l", "../a", OLD + 2),
        file("t/a", b"one"),
        file("t/d/b", b"two", OLD + 3, 0o600),
        file("t/large", large),
    ]
    assert tell(receiver, *entries) == ["made", "made", "made", "send", "send", "send"]
    body = entry("t/a", b"one", mtime=OLD, mode="644") + entry("t/d/b", b"two", mtime=OLD + 3, mode="600")
    assert post(receiver, body + END_OF_BUNDLE).status == 200
    upload = open_upload(receiver, "t/large", len(large), {"Tdx-Mtime": OLD, "Tdx-Mode": "644"})
    upload.put(receiver, 0, large, len(large))
    assert upload.commit(receiver, large).status == 200
    # Publishing has moved the times of the folders.
    assert tell(receiver, *reversed(entries[:2])) == ["made", "made"]
    assert tell(receiver, *entries) == ["same"] * 6
    receiver.restart()
    assert tell(receiver, *entries) == ["same"] * 6
    assert receiver.visible() == {"t/a": b"one", "t/d/b": b"two", "t/d/l": b"one", "t/large": large}
    top, inner = (receiver.folder / "t").stat(), (receiver.folder / "t" / "d").stat()
    assert (top.st_mode & 0o777, top.st_mtime_ns) == (0o750, OLD)
    assert (inner.st_mode & 0o777, inner.st_mtime_ns) == (0o700, OLD + 1)
    made = receiver.folder / "t" / "d" / "l"
    assert (os.readlink(made), made.lstat().st_mtime_ns) == ("../a", OLD + 2)
    assert os.listdir(receiver.folder / ".tdx" / "bundles") == []


def test_what_is_the_same_is_told_by_its_root_alone(receiver: RunningReceiver) -> None:
    (receiver.folder / "a").write_bytes(b"one")
    os.utime(receiver.folder / "a", ns=(OLD, OLD))
    assert tell(receiver, file("a", b"two"), file("a", b"one", asked=True)) == ["send", "ask"]
    assert tell(receiver, file("a", b"one", OLD + 5)) == ["same"]
    assert tell(receiver, file("a", b"one", OLD + 5), Tdx_Conflict="overwrite") == ["made"]
    assert (receiver.folder / "a").stat().st_mtime_ns == OLD + 5


def test_a_path_is_told_where_it_is_another_one(receiver: RunningReceiver) -> None:
    (receiver.folder / "t").mkdir()
    (receiver.folder / "t" / "f").write_bytes(b"another")
    (receiver.folder / "t" / "l").write_bytes(b"another")
    post(receiver, bundle({"t/f": b"mine"}))
    answer = tell(receiver, file("t/f", b"mine"), link("t/l", "f"))
    assert answer == [["same", "t/f (1)"], ["made", "t/l (1)"]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("rename", "send"), ("overwrite", "send"), ("skip", "skipped"), ("error", "exists")],
)
def test_a_taken_name_is_met_as_the_request_says(receiver: RunningReceiver, mode: str, expected: str) -> None:
    (receiver.folder / "a").write_bytes(b"other")
    assert tell(receiver, file("a", b"wants"), file("b", b""), Tdx_Conflict=mode) == [expected, "send"]


# --- entries that are refused alone ------------------------------------------------------------


def test_an_entry_that_is_refused_costs_the_others_nothing(receiver: RunningReceiver) -> None:
    (receiver.folder / "file").write_bytes(b"")
    (receiver.folder / "outside").symlink_to("/tmp")
    hostile = [
        folder("../up"),
        folder("/etc"),
        folder(".tdx/uploads/x"),
        folder("a/../../b"),
        link("t/l", "/etc/passwd"),
        link("t/l", "../../../etc/passwd"),
        link("t/l", ".."),
        link("l", "a"),
        link("t/l", "d/../../x"),
        link("t/../l", "a"),
        link("t/l", "../.tdx/id"),
        folder("file"),
        folder("file/below"),
        link("file/l", "x"),
        file("file/f", b"x"),
        folder("outside/d"),
        link("outside/l", "x"),
        file("outside/f", b"x"),
        folder("n" * 256),
    ]
    answer = ask(receiver, folder("first"), *hostile, folder("last"))
    assert verdicts(answer) == ["made", *["bad-name"] * len(hostile), "made"]
    problem = cast("list[Any]", answer.document["entries"])[1]["problem"]
    assert (problem["status"], problem["title"]) == (400, "bad name")
    assert sorted(os.listdir(receiver.folder)) == [".tdx", "file", "first", "last", "outside"]
    assert receiver.refusals()[("bad-name",)] == len(hostile)


def test_a_link_of_the_tree_is_no_way_for_its_other_entries(receiver: RunningReceiver) -> None:
    answer = tell(receiver, folder("t/d"), link("t/l", "d"), folder("t/l/x"), file("t/l/f", b""))
    # Folders are made before links.
    assert answer == ["made", ["made", "t/l (1)"], "made", "send"]
    assert tell(receiver, link("t/m", "d")) == ["made"]
    assert tell(receiver, folder("t/m/x"), file("t/m/f", b"")) == ["bad-name", "bad-name"]
    assert os.listdir(receiver.folder / "t" / "d") == []


def test_the_same_name_many_times_is_answered_each_time(receiver: RunningReceiver) -> None:
    entries = [file("a", b""), folder("a"), folder("a", OLD, 0o700), link("a", "b"), file("a", b"")]
    answer = tell(receiver, *entries)
    assert answer[1:3] == ["made", "made"]
    assert answer[3] == "bad-name"
    assert (receiver.folder / "a").is_dir()


# --- requests that are refused as a whole --------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status", "problem"),
    [
        pytest.param(b"", 400, "protocol", id="nothing"),
        pytest.param(b"{}", 400, "protocol", id="no entries"),
        pytest.param(
            b'{"entries": [["folder", "made", 1, 493], ["fifo", "x"]]}', 400, "protocol", id="a kind"
        ),
        pytest.param(b'{"entries": [["folder", "made", "1", 493]]}', 400, "protocol", id="a type"),
        pytest.param(b"[" * 10_000, 400, "protocol", id="brackets"),
        pytest.param(b'{"entries": [' + b"[]," * 99_999 + b"[]]}", 413, "too-large", id="lists"),
    ],
)
def test_a_malformed_request_is_refused_and_nothing_of_it_is_made(
    receiver: RunningReceiver, raw: bytes, status: int, problem: str
) -> None:
    answer = ask(receiver, raw=raw)
    assert (answer.status, answer.problem) == (status, problem)
    assert os.listdir(receiver.folder) == [".tdx"]


def test_more_entries_than_one_request_may_have_are_refused(receiver: RunningReceiver) -> None:
    entries = [file(f"f{number}", b"", asked=True) for number in range(MAX_ENTRIES)]
    assert tell(receiver, *entries) == ["send"] * MAX_ENTRIES
    answer = ask(receiver, *entries, folder("one more"))
    assert (answer.status, answer.problem) == (413, "too-large")


def test_a_body_that_is_too_large_is_refused_before_it_comes(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        given = {"Content-Type": "application/json", "Content-Length": MAX_BODY + 1, "Expect": "100-continue"}
        wire.send(head("POST", "/v1/tree", given))
        assert wire.message().status == 413


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json", "Tdx-Conflict": "merge"}, 400),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
    ],
)
def test_a_request_that_is_none_is_refused(
    receiver: RunningReceiver, given: dict[str, object], status: int
) -> None:
    assert receiver.request("POST", "/v1/tree", b'{"entries": []}', given).status == status


def test_a_request_says_how_long_it_is(receiver: RunningReceiver) -> None:
    given = {"Content-Type": "application/json"}
    with receiver.connect() as wire:
        assert wire.send(head("POST", "/v1/tree", given)).answer().problem == "length-required"
    coded = {**given, "Transfer-Encoding": "chunked"}
    answer = receiver.request("POST", "/v1/tree", chunked([b'{"entries": []}']), coded)
    assert answer.problem == "length-required"


def test_only_post_is_for_trees(receiver: RunningReceiver) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = receiver.request(method, "/v1/tree")
        assert (answer.status, answer.headers.get("allow")) == (405, "OPTIONS, POST")


def test_a_disk_that_fails_acknowledges_nothing(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        system.fail("syncfs", 5)
        answer = ask(receiver, *(folder(f"t/{each}") for each in range(5)))
        assert (answer.status, answer.problem) == (500, "storage")


# --- who may do what -----------------------------------------------------------------------------


@contextmanager
def granting(folder: Path, limits: Limits | None = None, **bounds: Any) -> Iterator[RunningReceiver]:
    provider = Vouching("tailscale:n1", name="tailscale", own=False)
    with running(folder, providers=[provider], limits=limits or Limits()) as receiver:
        receiver.running.policy = Policy([Rule("guests", user="somebody", **bounds)])
        yield receiver


def test_a_tree_goes_into_the_folder_granted(tmp_path: Path) -> None:
    with granting(tmp_path, into=FileName("guests/one")) as receiver:
        entries = [folder("t"), link("t/l", "a"), file("t/a", b"one")]
        made = [["made", "guests/one/t"], ["made", "guests/one/t/l"], "send"]
        assert tell(receiver, *entries) == made
        post(receiver, entry("t/a", b"one", mtime=OLD) + END_OF_BUNDLE)
        assert tell(receiver, *entries)[1:] == [
            ["same", "guests/one/t/l"],
            ["same", "guests/one/t/a"],
        ]
        assert os.listdir(receiver.folder / "guests") == ["one"]
        assert tell(receiver, link("l", "t"), folder("x/" * 2045 + "x")) == ["bad-name", "bad-name"]


def test_a_mode_that_is_not_granted_is_refused(tmp_path: Path) -> None:
    with granting(tmp_path, conflict=frozenset({Conflict.SKIP})) as receiver:
        answer = ask(receiver, folder("t"))
        assert (answer.status, answer.problem) == (403, "forbidden")
        assert tell(receiver, folder("t"), Tdx_Conflict="skip") == ["made"]


def test_a_file_larger_than_is_granted_is_refused_unless_it_is_there(tmp_path: Path) -> None:
    with granting(tmp_path, max_file=3) as receiver:
        (receiver.folder / "there").write_bytes(b"four")
        answer = tell(receiver, file("a", b"four"), file("b", b"one"), file("there", b"four"))
        assert answer == ["too-large", "send", "same"]


def test_folders_and_links_count_towards_no_quota(tmp_path: Path) -> None:
    with granting(tmp_path, quota=3) as receiver:
        assert tell(receiver, *(folder(f"t/{each}") for each in range(50)), link("t/l", "1")) == ["made"] * 51
        assert receiver.request("PUT", "/files/f", b"one").status == 201


def test_a_stranger_learns_nothing(tmp_path: Path) -> None:
    with running(tmp_path, providers=[Vouching(None)]) as receiver:
        assert ask(receiver, file("a", b"one")).status == 403


def test_a_rule_that_changes_while_the_body_comes_is_the_one_that_counts(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "FRESH_SECONDS", 0.0)
    body = json.dumps({"entries": [folder("t")]}).encode()
    with receiver.connect() as wire:
        given = {"Content-Type": "application/json", "Content-Length": len(body)}
        wire.send(head("POST", "/v1/tree", given) + body[:5])
        wait_until(receiver.running.tree_bodies.held, "the head is here")
        receiver.running.policy = Policy([Rule("closed", allow=False, provider="local")])
        wire.send(body[5:])
        assert wire.answer().status == 403
    assert not (receiver.folder / "t").exists()


# --- time and memory -----------------------------------------------------------------------------


class Slow(FaultySystem):
    """Reading waits until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        self.waiting.set()
        assert self.go_on.wait(60)
        return os.preadv(fd, [view], offset)


def test_a_sender_is_told_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PROCESSING_SECONDS", 0.05)
    system = Slow()
    with running(tmp_path, make_store=local_store(system)) as receiver, receiver.connect() as wire:
        (receiver.folder / "a").write_bytes(b"one")
        body = json.dumps({"entries": [file("a", b"one")]}).encode()
        given = {"Content-Type": "application/json", "Content-Length": len(body)}
        wire.send(head("POST", "/v1/tree", given) + body)
        assert wire.message().status == 102
        system.go_on.set()
        assert verdicts(wire.answer()) == ["same"]


def test_a_receiver_that_stops_does_not_read_all_that_it_was_asked_about(tmp_path: Path) -> None:
    system = Slow()
    with running(tmp_path, make_store=local_store(system)) as receiver, receiver.connect() as wire:
        for number in range(50):
            (receiver.folder / f"f{number}").write_bytes(b"one")
        body = json.dumps({"entries": [file(f"f{number}", b"one") for number in range(50)]}).encode()
        given = {"Content-Type": "application/json", "Content-Length": len(body)}
        wire.send(head("POST", "/v1/tree", given) + body)
        assert system.waiting.wait(30)
        with in_background(receiver.stop) as stopping:
            threading.Timer(0.5, system.go_on.set).start()
            stopping.result(60)
        assert system.log.count("preadv") < 50


def test_what_one_owner_has_on_its_way_is_bounded() -> None:
    bodies, me, you = TreeBodies(), Owner("local:1"), Owner("local:2")
    with bodies.room_for(me, MOST_APIECE), bodies.room_for(you, 1):
        with pytest.raises(Busy), bodies.room_for(me, 1):
            pass
        assert bodies.held() == MOST_APIECE + 1
    assert bodies.held() == 0
    with bodies.room_for(me, MOST_APIECE):
        pass


def test_entries_are_counted_as_they_end(receiver: RunningReceiver) -> None:
    (receiver.folder / "a").write_bytes(b"one")
    tell(receiver, file("a", b"one"), file("b", b""), folder("t"))
    tell(receiver, file("a", b"one"), Tdx_Conflict="skip")
    assert receiver.uploads_ended("tdx", "identical") == 1
    assert receiver.uploads_ended("tdx", "skipped") == 1
    assert receiver.metrics.requests.value(("POST", "tree", "200")) == 2
