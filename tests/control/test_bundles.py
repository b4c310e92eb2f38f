"""POST /files: many small files in one body, each of them answered for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.bundle_wire import END, bundle, entry, fields, post, post_chunked, results, said
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, in_background, local_store, running
from support.vouching import Vouching
from support.wire import Wire, chunked, head
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, FileName
from tdx.policy.admission import Limits
from tdx.policy.rules import Policy, Rule

EXTENT = 4 << 20
FILES = {"a.txt": b"one", "d/b": pattern(20_000), "d/e/ü🎉": b"", "large": pattern(3 << 20)}


def unfinished(receiver: RunningReceiver) -> list[Path]:
    return list((receiver.folder / ".tdx" / "bundles").iterdir())


def begin(wire: Wire, data: bytes, length: int | None = None) -> None:
    """Send a bundle's beginning, of a body that is so long, or in chunks."""
    given = fields()
    if length is None:
        wire.send(head("POST", "/files", {**given, "Transfer-Encoding": "chunked"}))
        wire.send(chunked([data])[: -len(b"0\r\n\r\n")])
    else:
        wire.send(head("POST", "/files", {**given, "Content-Length": length}) + data)


MORE = entry("more", pattern(3 << 20), "more")[: 2 << 20]
"""The beginning of an entry, large enough for what came before it to be looked at."""


def on_its_way(receiver: RunningReceiver, count: int) -> None:
    """Wait until so many entries have been looked at."""
    wait_until(lambda: len(receiver.running.replays._keys) >= count, f"{count} entries are here")


# --- what arrives ---------------------------------------------------------------


@pytest.mark.parametrize("coding", ["length", "chunked", "dripping"])
def test_every_file_is_published_and_answered_for_in_order(receiver: RunningReceiver, coding: str) -> None:
    body = bundle(FILES)
    if coding == "length":
        answer = post(receiver, body)
    else:
        size = 100_001 if coding == "chunked" else 997
        answer = post_chunked(receiver, [body[at : at + size] for at in range(0, len(body), size)])
    assert results(answer) == [
        {
            "outcome": "published",
            "name": name,
            "path": name,
            "size": len(content),
            "root": str(Root.over([digest_of(content)] if content else [], len(content), EXTENT)),
            "verified": True,
        }
        for name, content in FILES.items()
    ]
    assert receiver.visible() == FILES
    assert unfinished(receiver) == []
    assert receiver.uploads_ended("tdx", "published") == len(FILES)
    assert receiver.metrics.received_bytes.value(("tdx",)) == sum(map(len, FILES.values()))


def test_a_connection_goes_on_after_a_bundle(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        for number in range(3):
            answer = wire.request("POST", "/files", bundle({f"f{number}": b"x"}), fields())
            assert said(answer) == [("published", f"f{number}")]
            coded = chunked([bundle({f"g{number}": b"x"})])
            answer = wire.request("POST", "/files", coded, {**fields(), "Transfer-Encoding": "chunked"})
            assert said(answer) == [("published", f"g{number}")]


def test_a_bundle_of_nothing_is_answered_with_nothing(receiver: RunningReceiver) -> None:
    assert results(post(receiver, END)) == []


def test_mode_and_time_travel(receiver: RunningReceiver) -> None:
    body = entry("f", b"x", mode="100640", mtime=-1_000_000_001) + END
    assert said(post(receiver, body)) == [("published", "f")]
    found = (receiver.folder / "f").stat()
    assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o640, -1_000_000_001)


# --- entries that are refused alone ------------------------------------------------


def test_an_entry_that_is_refused_costs_the_others_nothing(receiver: RunningReceiver) -> None:
    (receiver.folder / "file").write_bytes(b"")
    wrong = digest_of(b"something else").hex()
    body = [
        entry("a", b"1"),
        entry("../up", b"2"),
        entry("b", b"3" * 100_000, digest=wrong),
        entry("c", b"4"),
        entry(".tdx/id", b"5"),
        entry("file/below", b"6"),
        entry("n" * 256, b"7"),
        entry("z", b"", digest=wrong),
        entry("d", b"8", key="twice"),
        entry("e", b"9", key="twice"),
        entry("f", pattern(EXTENT)),
    ]
    answer = post(receiver, b"".join(body) + END)
    assert said(answer) == [
        ("published", "a"),
        ("bad-name", ""),
        ("digest-mismatched-values", ""),
        ("published", "c"),
        ("bad-name", ""),
        ("bad-name", ""),
        ("bad-name", ""),
        ("digest-mismatched-values", ""),
        ("published", "d"),
        ("protocol", ""),
        ("published", "f"),
    ]
    problem = results(answer)[2]["problem"]
    assert problem["status"] == 400
    assert problem["mismatched-digests"][0]["algorithm"] == "xxh3-128"
    assert digest_of(b"3" * 100_000).hex() not in str(problem)
    assert receiver.visible() == {"a": b"1", "c": b"4", "d": b"8", "f": pattern(EXTENT), "file": b""}
    assert receiver.metrics.digest_failures.value() == 2
    assert (receiver.uploads_ended("tdx", "published"), receiver.uploads_ended("tdx", "failed")) == (4, 7)
    assert receiver.refusals()[("bad-name",)] == 4


def test_each_entry_meets_a_taken_name_as_the_bundle_says(receiver: RunningReceiver) -> None:
    (receiver.folder / "same").write_bytes(b"same")
    (receiver.folder / "other").write_bytes(b"old")
    expected = {
        "skip": [("skipped", "same"), ("skipped", "other")],
        "error": [("identical", "same"), ("exists", "")],
        "rename": [("identical", "same"), ("published", "other (1)")],
        "overwrite": [("identical", "same"), ("published", "other")],
    }
    for mode, outcome in expected.items():
        body = (
            entry("same", b"same", f"{mode} 1".replace(" ", "-")) + entry("other", b"new", f"{mode}-2") + END
        )
        answer = post(receiver, body, Tdx_Conflict=mode)
        assert said(answer) == outcome, mode
        assert results(answer)[0]["verified"] is (mode != "skip")
    assert receiver.visible() == {"same": b"same", "other": b"new", "other (1)": b"new"}


def test_a_file_larger_than_the_receiver_takes_is_refused_alone(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(max_file=100)) as receiver:
        answer = post(receiver, bundle({"a": b"x" * 101, "b": b"x" * 100}))
        assert said(answer) == [("too-large", ""), ("published", "b")]


# --- bundles that are refused as a whole ----------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        pytest.param(bundle({"a": b"1"})[:-4], 400, "protocol", id="no end mark"),
        pytest.param(bundle({"a": b"1"})[:-6], 400, "protocol", id="cut in the content"),
        pytest.param(bundle({"a": b"1"}) + b"x", 400, "protocol", id="more after the end"),
        pytest.param(b"", 400, "protocol", id="empty"),
        pytest.param(b"\xff" * 5000, 400, "protocol", id="a head that is too long"),
        pytest.param(b"\0\0\0\x05hello" + END, 400, "protocol", id="a head that is none"),
        pytest.param(entry("a", b"12", size=3) + END, 400, "protocol", id="a size that lies"),
        pytest.param(entry("a", b"12", size=1) + END, 400, "protocol", id="a size that lies low"),
        pytest.param(entry("a", b"", size=EXTENT + 1) + END, 413, "too-large", id="an entry too large"),
        pytest.param(entry("a", b"", size=2**63) + END, 413, "too-large", id="an entry without measure"),
        pytest.param(
            b"".join(entry(str(number), b"") for number in range(4097)) + END,
            413,
            "too-large",
            id="4,097 entries",
        ),
        pytest.param(
            b"".join(entry(str(number), bytes(EXTENT)) for number in range(16)) + entry("one", b"1") + END,
            413,
            "too-large",
            id="64 MiB and a byte",
        ),
    ],
)
def test_a_malformed_bundle_is_refused_and_nothing_of_it_is_published(
    receiver: RunningReceiver, body: bytes, status: int, problem: str
) -> None:
    answer = post(receiver, entry("first", b"whole") + body)
    assert (answer.status, answer.problem) == (status, problem)
    assert receiver.visible() == {}
    receiver.is_quiet()
    assert unfinished(receiver) == []


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"Content-Type": "application/octet-stream"}, 415),
        ({"Content-Type": "application/vnd.tdx.bundle", "Tdx-Replay": "yes"}, 400),
        ({"Content-Type": "application/vnd.tdx.bundle", "Tdx-Conflict": "replace"}, 400),
        ({}, 415),
    ],
)
def test_a_request_that_is_none_is_refused(
    receiver: RunningReceiver, given: dict[str, object], status: int
) -> None:
    assert receiver.request("POST", "/files", bundle({"a": b"1"}), given).status == status
    assert receiver.visible() == {}


def test_a_bundle_says_how_it_ends(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        wire.send(head("POST", "/files", fields()))
        assert wire.answer().problem == "length-required"


def test_only_post_is_for_bundles(receiver: RunningReceiver) -> None:
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        answer = receiver.request(method, "/files")
        assert (answer.status, answer.headers.get("allow")) == (405, "OPTIONS, POST")


# --- broken off, and sent again ---------------------------------------------------------


@pytest.mark.parametrize("length", [None, 1 << 20])
@pytest.mark.parametrize("end", ["reset", "end"])
def test_what_arrived_whole_is_published_and_never_twice(
    receiver: RunningReceiver, end: str, length: int | None
) -> None:
    (receiver.folder / "a").write_bytes(b"another")
    first = entry("a", b"one") + entry("b", b"two")
    with receiver.connect() as wire:
        if end == "reset":
            begin(wire, first + MORE, length and 4 << 20)
            on_its_way(receiver, 3)
            wire.reset()
        else:
            begin(wire, first + entry("c", b"three")[:-2], length)
            wait_until(lambda: unfinished(receiver), "it has begun")
            wire.end()
    wait_until(lambda: not unfinished(receiver), "it has ended")
    assert receiver.visible() == {"a": b"another", "a (1)": b"one", "b": b"two"}
    receiver.restart()
    answer = post(receiver, first + entry("c", b"three") + END, replay=True)
    assert said(answer) == [("published", "a (1)"), ("published", "b"), ("published", "c")]
    assert receiver.visible() == {"a": b"another", "a (1)": b"one", "b": b"two", "c": b"three"}


def test_a_replay_is_answered_from_the_receipts(receiver: RunningReceiver) -> None:
    first = post(receiver, bundle(FILES))
    for name in FILES:
        (receiver.folder / name).unlink()
    assert results(post(receiver, bundle(FILES), replay=True)) == results(first)
    assert receiver.visible() == {}
    assert said(post(receiver, bundle(FILES))) == [("published", name) for name in FILES]


def test_the_keys_of_another_owner_say_nothing(tmp_path: Path) -> None:
    provider = Vouching("tailscale:n1", name="tailscale")
    with running(tmp_path, providers=[provider]) as receiver:
        assert said(post(receiver, bundle({"a": b"1"}))) == [("published", "a")]
        provider.owner = "tailscale:n2"
        assert said(post(receiver, bundle({"a": b"2"}), replay=True)) == [("published", "a (1)")]


def test_a_bundle_that_comes_again_while_the_first_still_hangs_is_not_stored_twice(
    receiver: RunningReceiver,
) -> None:
    files = {"a": b"1", "b": b"2"}
    with receiver.connect() as hanging:
        begin(hanging, bundle(files)[:-4] + MORE)
        on_its_way(receiver, 3)
        assert said(post(receiver, bundle(files), replay=True)) == [("published", "a"), ("published", "b")]
        assert hanging.answer().problem == "superseded"
    assert receiver.visible() == files
    receiver.is_quiet()
    assert receiver.running.replays._keys == {}


def test_a_bundle_that_is_read_only_after_its_own_replay_is_not_stored_twice(
    receiver: RunningReceiver,
) -> None:
    files = {"a": b"1", "b": b"2"}
    with receiver.connect() as hanging:
        begin(hanging, bundle(files)[:-4])
        wait_until(lambda: unfinished(receiver), "it has begun")
        assert said(post(receiver, bundle(files), replay=True)) == [("published", "a"), ("published", "b")]
        for name in files:
            (receiver.folder / name).rename(receiver.folder / f"moved {name}")
        hanging.send(chunked([END]))
        assert said(hanging.answer()) == [("published", "a"), ("published", "b")]
    assert receiver.visible() == {"moved a": b"1", "moved b": b"2"}


def test_a_bundle_that_comes_again_while_the_first_is_published_waits_for_it(tmp_path: Path) -> None:
    system = FaultySystem()
    reached = tmp_path / "reached"
    gate = tmp_path / "gate"
    gate.touch()

    def slow(called: str, arguments: tuple[object, ...]) -> None:
        if called == "syncfs":
            reached.touch()
            wait_until(lambda: not gate.exists(), "the disk goes on")

    system.before = slow
    files = {"a": b"1", "b": b"2"}
    with running(tmp_path, make_store=local_store(system)) as receiver:
        with receiver.connect() as wire:
            begin(wire, bundle(files), len(bundle(files)))
            wait_until(reached.exists, "the disk is asked to sync")
            wire.reset()
        with in_background(lambda: post(receiver, bundle(files), replay=True)) as again:
            replays = receiver.running.replays
            wait_until(lambda: any(each.cancel.reason for each in replays._keys.values()), "it waits")
            assert not again.done()
            gate.unlink()
            assert said(again.result(30)) == [("published", "a"), ("published", "b")]
        assert receiver.visible() == files


def test_a_receiver_that_stops_keeps_nothing_of_a_bundle_on_its_way(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        begin(wire, entry("a", b"1") + MORE)
        on_its_way(receiver, 2)
        receiver.stop()
        assert wire.is_closed()
    assert receiver.visible() == {}
    assert unfinished(receiver) == []
    receiver.start()
    assert said(post(receiver, bundle({"a": b"1"}), replay=True)) == [("published", "a")]


def test_a_bundle_from_which_nothing_comes_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(stall_timeout=0.2)) as receiver, receiver.connect() as wire:
        begin(wire, entry("a", b"1"))
        assert wire.answer().problem == "stalled"
        assert receiver.visible() == {"a": b"1"}


def test_a_receiver_that_is_killed_answers_from_what_it_had_published(tmp_path: Path) -> None:
    """SIGKILL between the renames and the receipts: the next start finds them."""
    script = tmp_path / "receiver.py"
    script.write_text(
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from support.receiving import running\n"
        "from tdx.store.receipts import Receipts\n"
        "if len(sys.argv) > 2:\n"
        "    Receipts.put_many = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with running(Path(sys.argv[1])) as receiver:\n"
        "    print(receiver.port, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    here = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here / 'engine'}:{here / 'tests'}"}
    files = {"a": b"1", "d/b": b"2"}
    command = [sys.executable, str(script), str(tmp_path), "die"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        with Wire(int(process.stdout.readline())) as wire:
            begin(wire, bundle(files), len(bundle(files)))
            assert process.wait(30) == -signal.SIGKILL
    with running(tmp_path) as receiver:
        assert receiver.visible() == files
        assert said(post(receiver, bundle(files), replay=True)) == [("published", "a"), ("published", "d/b")]
        assert receiver.visible() == files
        assert unfinished(receiver) == []


# --- a disk that is full or fails ---------------------------------------------------------


def test_a_bundle_for_which_there_is_no_room_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver, receiver.connect() as wire:
        system.free = 999
        wire.send(head("POST", "/files", {**fields(), "Content-Length": 1000, "Expect": "100-continue"}))
        assert (found := wire.message()).status == 507
        assert found.problem == "no-space"
        assert unfinished(receiver) == []


def test_a_disk_that_fills_up_midway_refuses_what_does_not_fit(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        system.fail("pwrite", errno.ENOSPC, skip=1)
        answer = post(receiver, bundle({"a": b"1", "b": b"2", "c": b"3"}))
        assert said(answer) == [("published", "a"), ("no-space", ""), ("published", "c")]
        assert results(answer)[1]["problem"]["status"] == 507
        assert receiver.visible() == {"a": b"1", "c": b"3"}


def test_a_disk_that_cannot_sync_gets_nothing_acknowledged(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        system.fail("syncfs", errno.EIO)
        answer = post(receiver, bundle({"a": b"1"}))
        assert (answer.status, answer.problem) == (500, "storage")
        assert (receiver.visible(), unfinished(receiver)) == ({}, [])
        assert said(post(receiver, bundle({"a": b"1"}), replay=True)) == [("published", "a")]


# --- what the rules allow -----------------------------------------------------------------


@contextmanager
def granting(folder: Path, **bounds: object) -> Iterator[RunningReceiver]:
    provider = Vouching("tailscale:n1", name="tailscale", own=False)
    with running(folder, providers=[provider], limits=Limits(recheck_interval=0.01)) as receiver:
        receiver.running.policy = Policy([Rule("guests", user="somebody", **bounds)])  # type: ignore[arg-type]
        yield receiver


def test_entries_go_into_the_folder_granted(tmp_path: Path) -> None:
    with granting(tmp_path, into=FileName("guests"), max_file=10) as receiver:
        long = "/".join([*["n" * 200] * 20, "n" * 70])
        answer = post(receiver, bundle({"a": b"1", "d/b": b"2" * 11, long: b"", "d/c": b"3"}))
        assert said(answer)[0] == ("published", "guests/a")
        assert said(answer)[1] == ("too-large", "")
        assert "rule `guests`" in results(answer)[1]["problem"]["detail"]
        assert said(answer)[2] == ("bad-name", "")  # with the folder it is too long
        assert said(answer)[3] == ("published", "guests/d/c")
        assert set(receiver.visible()) == {"guests/a", "guests/d/c"}


def test_a_conflict_mode_that_is_not_granted_is_refused_before_a_byte(tmp_path: Path) -> None:
    with granting(tmp_path, conflict=frozenset({Conflict.SKIP})) as receiver:
        answer = post(receiver, bundle({"a": b"1"}))
        assert (answer.status, answer.problem) == (403, "forbidden")
        assert said(post(receiver, bundle({"a": b"1"}), Tdx_Conflict="skip")) == [("published", "a")]


def test_entries_beyond_the_quota_are_refused_and_what_is_there_is_identical(tmp_path: Path) -> None:
    with granting(tmp_path, quota=10) as receiver:
        files = {"a": b"1" * 6, "b": b"2" * 4}
        assert said(post(receiver, bundle(files))) == [("published", "a"), ("published", "b")]
        again = post(receiver, bundle({**files, "c": b"3", "d": b"4"}))
        assert said(again) == [("identical", "a"), ("identical", "b"), ("no-space", ""), ("no-space", "")]
        assert "rule `guests` gives a quota of 10 bytes" in results(again)[2]["problem"]["detail"]
        (receiver.folder / "a").unlink()
        assert said(post(receiver, bundle({"e": b"5" * 6}))) == [("published", "e")]
        account = receiver.running.sessions.quotas._accounts
        assert [each.growing for each in account.values()] == [{}]


def test_a_policy_that_changes_on_the_way_holds_for_what_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdx.control.messages.FRESH_SECONDS", 0.0)
    changes = {
        "refused": (Rule("guests", user="somebody", allow=False), 403),
        "another folder": (Rule("guests", user="somebody", into=FileName("elsewhere")), 403),
        "another mode": (Rule("guests", user="somebody", conflict=frozenset({Conflict.SKIP})), 403),
        "a larger quota": (Rule("guests", user="somebody", quota=1 << 30), 200),
    }
    for number, (rule, status) in enumerate(changes.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with granting(folder) as receiver, receiver.connect() as wire:
            begin(wire, entry("a", b"1") + MORE)
            on_its_way(receiver, 2)
            receiver.running.policy = Policy([rule])
            wire.send(chunked([entry("more", pattern(3 << 20), "more")[2 << 20 :] + END]))
            assert wire.answer().status == status
            assert set(receiver.visible()) == (set() if status == 403 else {"a", "more"})
            assert unfinished(receiver) == []
