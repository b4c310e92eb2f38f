"""Trees as the sender sees them: what it asks, what it believes of an answer, what it sends in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.runs import Seen, push_many
from support.stub_receiver import Request, answer_of, receipt, refusal, stub_receiver
from tdx.control import compare, push_tree, push_trees
from tdx.control.items import Found
from tdx.control.push_many import ManyPushes
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.control.walk import Links, walk
from tdx.errors import Interrupted
from tdx.integrity import MIN_EXTENT, Root, digest_of
from tdx.metrics import Metrics
from tdx.store.roots import Roots

pytestmark = pytest.mark.usefixtures("short_waits")

NAMES = ["t/a", "t/b", "t/d/c", "t/d/e"]
FOLDERS = ["t", "t/d", "t/empty"]
OLD = 1_600_000_000

Judge = Callable[[list[Any]], Any]
"""The verdict on an entry."""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "d").mkdir(parents=True)
    (top / "empty").mkdir()
    for number, name in enumerate(NAMES):
        (top / name.removeprefix("t/")).write_bytes(bytes([number]) * 100 * number)
    (top / "link").symlink_to("d/c")
    return top


def found(top: Path) -> list[Found]:
    return list(walk(str(top), "t", links=Links.PRESERVE))


def root_of(path: Path) -> str:
    content = path.read_bytes()
    return str(Root.over([digest_of(content)] if content else [], len(content), MIN_EXTENT))


def judged_by(judge: Judge) -> Callable[[int, Request], Any]:
    def answering(_: int, request: Request) -> Any:
        if request.tree is not None:
            return {"entries": [judge(entry) for entry in request.tree]}
        return [receipt(entry) for entry, _ in request.entries]

    return answering


def run(top: Path, state: Path, judge: Judge, **options: Any) -> tuple[Seen, list[Request]]:
    """One run against a receiver that judges so: what was told, and what was asked."""
    with stub_receiver(judged_by(judge)) as stub:
        seen = push_many(stub.peer, found(top), state, compare=True, **options)
    return seen, stub.requests


def outcomes(seen: Seen) -> dict[str, str]:
    return {name: each.result.outcome.value for name, each in seen.endings.items() if each.result is not None}


def parts(seen: Seen) -> dict[str, str]:
    return {each.part.name: each.outcome for each in seen.parts}


def trees(requests: list[Request]) -> list[list[list[Any]]]:
    return [tree for request in requests if (tree := request.tree) is not None]


def nothing_there(entry: list[Any]) -> str:
    return "send" if entry[0] == "file" else "made"


def all_there(entry: list[Any]) -> str:
    return "ask" if entry[0] == "file" and entry[-1] is None else "same"


def settled(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files had been there for a while."""
    now = time.time() + 10
    monkeypatch.setattr("tdx.control.hashing.time.time", lambda: now)
    monkeypatch.setattr("tdx.data.entries.time", lambda: now)


class TestAsking:
    def test_every_entry_is_told_with_what_stat_tells(self, top: Path, tmp_path: Path) -> None:
        (top / "a").chmod(0o6640)
        (top / "d").chmod(0o710)
        os.utime(top / "d", ns=(1, -5))
        os.utime(top / "link", ns=(1, 1234567890_987654321), follow_symlinks=False)
        _, requests = run(top, tmp_path / "own", all_there)
        first, *_ = trees(requests)
        a = (top / "a").stat()
        assert ["file", "t/a", 0, a.st_mtime_ns, 0o640, None] in first
        assert ["folder", "t/d", -5, 0o710] in first
        assert ["link", "t/link", 1234567890_987654321, "d/c"] in first
        assert [entry[1] for entry in first] == [
            *("t", "t/a", "t/b", "t/link", "t/d", "t/d/c", "t/d/e", "t/empty")
        ]
        assert requests[0].line == "POST /v1/tree HTTP/1.1"
        assert requests[0].fields["content-type"] == "application/json"
        assert requests[0].fields["tdx-conflict"] == "rename"

    def test_only_the_first_request_asks_whether_it_may_come(self, top: Path, tmp_path: Path) -> None:
        _, requests = run(top, tmp_path / "own", all_there)
        assert [request.fields.get("expect") for request in requests] == ["100-continue", None]

    def test_more_entries_than_one_request_takes_are_several(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(push_tree, "MOST_ENTRIES", 3)
        seen, requests = run(top, tmp_path / "own", nothing_there)
        assert all(len(tree) <= 3 for tree in trees(requests))
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")

    def test_a_body_that_would_be_too_large_is_cut(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(push_tree, "MOST_BYTES", 120)
        seen, requests = run(top, tmp_path / "own", nothing_there)
        asked = [request for request in requests if request.tree]
        assert all(len(request.body) <= 120 or len(request.tree or []) == 1 for request in asked)
        assert any(len(request.tree or []) > 1 for request in asked)
        assert {entry[1] for tree in trees(requests) for entry in tree} == {*NAMES, *FOLDERS, "t/link"}
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")

    def test_a_slow_walk_is_not_waited_for(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compare, "COLLECTED_FOR", 0.0)
        monkeypatch.setattr("tdx.control.push_many.LOOKED_AT", 2)
        seen, requests = run(top, tmp_path / "own", nothing_there)
        assert len(trees(requests)) > 2
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "made")

    def test_a_run_without_files_asks_too(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        seen, requests = run(tmp_path / "empty", tmp_path / "own", nothing_there)
        assert parts(seen) == {"t": "made"}
        assert len(requests) == 1

    def test_a_run_of_nothing_asks_nothing(self, top: Path, tmp_path: Path) -> None:
        with stub_receiver(judged_by(nothing_there)) as stub:
            push_many(stub.peer, [], tmp_path / "own", compare=True)
        assert stub.requests == []

    def test_a_connection_that_breaks_is_made_again(self, top: Path, tmp_path: Path) -> None:
        good = judged_by(nothing_there)
        with stub_receiver(lambda number, request: None if number < 2 else good(number, request)) as stub:
            seen = push_many(stub.peer, found(top), tmp_path / "own", compare=True)
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "made")


class TestFiles:
    def test_what_is_not_there_is_sent(self, top: Path, tmp_path: Path) -> None:
        seen, requests = run(top, tmp_path / "own", nothing_there)
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        (bundle,) = [request for request in requests if request.entries]
        assert [entry.name for entry, _ in bundle.entries] == NAMES

    def test_what_may_be_there_is_read_and_asked_about_again_in_one_request(
        self, top: Path, tmp_path: Path
    ) -> None:
        metrics = Metrics("0")
        seen, requests = run(top, tmp_path / "own", all_there, metrics=metrics)
        first, second = trees(requests)
        assert [entry[-1] for entry in first if entry[0] == "file"] == [None] * 4
        assert {entry[1]: entry[-1] for entry in second} == {
            name: root_of(top / name.removeprefix("t/")) for name in NAMES
        }
        assert outcomes(seen) == dict.fromkeys(NAMES, "identical")
        assert seen.names == NAMES
        assert sum(each.sent for each in seen.endings.values()) == 0
        assert {each.result.root for each in seen.endings.values() if each.result} == {
            entry[-1] for entry in second
        }
        assert metrics.uploads.value(("tdx", "identical")) == 4
        assert metrics.sent_bytes.value() == 0

    def test_what_differs_is_sent_after_all(self, top: Path, tmp_path: Path) -> None:
        def judge(entry: list[Any]) -> str:
            return "send" if entry[1] in ("t/b", "t/d/c") and entry[-1] else all_there(entry)

        seen, requests = run(top, tmp_path / "own", judge)
        expected = dict.fromkeys(NAMES, "identical") | {"t/b": "published", "t/d/c": "published"}
        assert outcomes(seen) == expected
        (bundle,) = [request for request in requests if request.entries]
        assert [entry.name for entry, _ in bundle.entries] == ["t/b", "t/d/c"]

    @pytest.mark.parametrize("verdict", ["same", "made", ["same", "t/x"]])
    def test_nobody_is_believed_to_have_what_was_not_read(
        self, top: Path, tmp_path: Path, verdict: object
    ) -> None:
        seen, requests = run(top, tmp_path / "own", lambda _: verdict)
        assert all(entry[-1] for entry in trees(requests)[1])
        assert outcomes(seen) == dict.fromkeys(NAMES, "identical")

    def test_an_answer_that_asks_on_and_on_has_it_sent(self, top: Path, tmp_path: Path) -> None:
        seen, requests = run(top, tmp_path / "own", lambda entry: "ask" if entry[0] == "file" else "same")
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        assert [len(tree) for tree in trees(requests)] == [8, 4, 2]

    def test_where_it_lies_there_is_told(self, top: Path, tmp_path: Path) -> None:
        def judge(entry: list[Any]) -> object:
            return all_there(entry) if all_there(entry) == "ask" else ["same", "in/" + entry[1]]

        seen, _ = run(top, tmp_path / "own", judge)
        paths = {name: each.result.path for name, each in seen.endings.items() if each.result}
        assert paths == {name: "in/" + name for name in NAMES}
        assert {each.part.name: each.path for each in seen.parts}["t/d"] == "in/t/d"

    def test_what_is_skipped_is_skipped(self, top: Path, tmp_path: Path) -> None:
        seen, requests = run(top, tmp_path / "own", lambda _: "skipped")
        assert outcomes(seen) == dict.fromkeys(NAMES, "skipped")
        assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "skipped")
        assert len(requests) == 1
        assert {each.result.root for each in seen.endings.values() if each.result} == {None}

    def test_what_is_refused_for_good_fails_and_nothing_of_it_is_sent(
        self, top: Path, tmp_path: Path
    ) -> None:
        seen, requests = run(top, tmp_path / "own", lambda _: refusal("exists", 409))
        assert seen.errors() == dict.fromkeys(NAMES, "exists")
        assert {each.error.code for each in seen.parts if each.error} == {"exists"}
        assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "failed")
        assert len(requests) == 1

    def test_what_is_refused_just_now_is_asked_again_and_then_left_to_the_files_own_tries(
        self, top: Path, tmp_path: Path
    ) -> None:
        seen, requests = run(
            top, tmp_path / "own", lambda _: refusal("busy", 503), sender=SenderOptions(retries=2)
        )
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        assert {each.error.code for each in seen.parts if each.error} == {"busy"}
        assert len(trees(requests)[0]) == len(trees(requests)[2]) == 8

    def test_one_that_goes_away_before_it_is_read_fails_alone(self, top: Path, tmp_path: Path) -> None:
        def judge(entry: list[Any]) -> str:
            (top / "b").unlink(missing_ok=True)
            return all_there(entry)

        seen, _ = run(top, tmp_path / "own", judge)
        assert seen.errors() == {"t/b": "source"}
        assert outcomes(seen) == dict.fromkeys(["t/a", "t/d/c", "t/d/e"], "identical")

    def test_where_another_digest_is_to_be_verified_files_are_not_asked_about(
        self, top: Path, tmp_path: Path
    ) -> None:
        requests: list[Request] = []

        def answering(number: int, request: Request) -> Any:
            requests.append(request)
            if request.tree is not None:
                return {"entries": ["made"] * len(request.tree)}
            return answer_of("422 Unprocessable", {"detail": "enough"}, "application/problem+json")

        with stub_receiver(answering) as stub:
            push_many(stub.peer, found(top), tmp_path / "own", compare=True, digest="sha-256")
        assert {entry[0] for tree in trees(requests) for entry in tree} == {"folder", "link"}
        assert sum(request.line.startswith("PUT /files/") for request in requests) == 4

    def test_files_of_several_extents_are_read_too_and_their_digests_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        top = tmp_path / "large"
        top.mkdir()
        with (top / "a").open("wb") as file:
            file.write(os.urandom(MIN_EXTENT + 1))
            file.truncate(5 * MIN_EXTENT)
        for path in (top / "a", top / "b"):
            path.touch()
            os.utime(path, (OLD, OLD))
        with (top / "a").open("rb") as file:
            digests = [digest_of(file.read(MIN_EXTENT)) for _ in range(5)]
        seen, requests = run(top, tmp_path / "own", all_there)
        assert trees(requests)[1][0][-1] == str(Root.over(digests, 5 * MIN_EXTENT, MIN_EXTENT))
        assert outcomes(seen) == dict.fromkeys(["t/a", "t/b"], "identical")
        (log,) = (tmp_path / "own" / "digests").iterdir()
        # What lies in the hole needs no reading.
        assert len(log.read_text().splitlines()) == 3
        monkeypatch.setattr("tdx.data.source.Source.hash_extents", lambda *_: iter(()))
        seen, _ = run(top, tmp_path / "own", all_there)
        assert outcomes(seen) == dict.fromkeys(["t/a", "t/b"], "identical")


class TestRemembering:
    def test_what_has_been_sent_need_not_be_read_again(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        run(top, tmp_path / "own", nothing_there)
        seen, requests = run(top, tmp_path / "own", all_there)
        (only,) = trees(requests)
        assert {entry[1]: entry[-1] for entry in only if entry[0] == "file"} == {
            name: root_of(top / name.removeprefix("t/")) for name in NAMES
        }
        assert outcomes(seen) == dict.fromkeys(NAMES, "identical")

    def test_what_has_been_read_need_not_be_read_again(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        run(top, tmp_path / "own", all_there)
        _, requests = run(top, tmp_path / "own", all_there)
        assert len(requests) == 1

    def test_a_change_is_seen_also_under_the_old_size_and_mtime(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        run(top, tmp_path / "own", nothing_there)
        before = (top / "b").stat()
        (top / "b").write_bytes(b"x" * 100)
        os.utime(top / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
        _, requests = run(top, tmp_path / "own", all_there)
        assert [entry[1] for entry in trees(requests)[0] if entry[0] == "file" and not entry[-1]] == ["t/b"]
        assert trees(requests)[1] == [
            ["file", "t/b", 100, before.st_mtime_ns, before.st_mode & 0o777, root_of(top / "b")]
        ]

    def test_nothing_is_remembered_of_what_may_have_changed_in_the_same_moment(
        self, top: Path, tmp_path: Path
    ) -> None:
        for name in NAMES:  # an mtime of long ago says nothing of when it was written
            os.utime(top / name.removeprefix("t/"), (OLD, OLD))
        run(top, tmp_path / "own", nothing_there)
        run(top, tmp_path / "own", all_there)
        _, requests = run(top, tmp_path / "own", all_there)
        assert [entry[-1] for entry in trees(requests)[0] if entry[0] == "file"] == [None] * 4

    def test_a_run_that_is_stopped_remembers_what_it_had_sent(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        monkeypatch.setattr("tdx.control.push_many.BUNDLE_FILES", 2)
        runs: list[ManyPushes] = []
        seen = Seen(on_ended=lambda _: runs[0].stop(Interrupted("enough")))
        run(top, tmp_path / "own", nothing_there, during=runs.append, seen=seen)
        roots = Roots(tmp_path / "own", time.time())
        statuses = [(top / name.removeprefix("t/")).stat() for name in NAMES]
        assert [each is not None for each in roots.known(statuses)][:2] == [True, True]
        roots.close()

    def test_roots_are_written_down_on_the_way(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        monkeypatch.setattr(push_trees, "SAVED_AT", 1)
        monkeypatch.setattr(compare, "SAVED_AT", 1)
        saved: list[int] = []
        save = Roots.save

        def noted(roots: Roots) -> None:
            saved.append(roots.unsaved)
            save(roots)

        monkeypatch.setattr(Roots, "save", noted)
        run(top, tmp_path / "own", all_there)
        assert saved[0] == 4

    def test_a_broken_memory_ends_no_push(self, top: Path, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "roots.sqlite3").write_text("garbage " * 1000)
        seen, _ = run(top, tmp_path / "own", all_there)
        assert outcomes(seen) == dict.fromkeys(NAMES, "identical")


class TestFolders:
    def test_those_in_which_something_was_made_are_told_again_deepest_first(
        self, top: Path, tmp_path: Path
    ) -> None:
        (top / "d" / "deep").mkdir()
        (top / "d" / "deep" / "f").write_text("f")
        seen, requests = run(top, tmp_path / "own", nothing_there)
        assert [entry[1] for entry in trees(requests)[-1]] == ["t/d/deep", "t/d", "t"]
        assert requests[-1].tree is not None
        assert parts(seen) == dict.fromkeys([*FOLDERS, "t/d/deep", "t/link"], "made")
        assert len(seen.parts) == 5

    def test_only_those_are(self, top: Path, tmp_path: Path) -> None:
        def judge(entry: list[Any]) -> str:
            return "send" if entry[1] == "t/d/c" else all_there(entry)

        _, requests = run(top, tmp_path / "own", judge)
        assert [entry[1] for entry in trees(requests)[-1]] == ["t/d"]

    def test_a_link_that_was_made_disturbs_its_folder_too(self, top: Path, tmp_path: Path) -> None:
        def judge(entry: list[Any]) -> str:
            return "made" if entry[0] == "link" else all_there(entry)

        _, requests = run(top, tmp_path / "own", judge)
        assert [entry[1] for entry in trees(requests)[-1]] == ["t"]

    def test_where_nothing_was_made_nothing_is_told_again(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(top, monkeypatch)
        run(top, tmp_path / "own", nothing_there)
        _, requests = run(top, tmp_path / "own", all_there)
        assert len(requests) == 1

    def test_one_that_cannot_be_given_its_time_in_the_end_is_told_as_failed(
        self, top: Path, tmp_path: Path
    ) -> None:
        told: list[str] = []

        def judge(entry: list[Any]) -> object:
            told.append(entry[1])
            return refusal("forbidden", 403) if told.count("t/d") == 2 else nothing_there(entry)

        seen, _ = run(top, tmp_path / "own", judge)
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")
        assert [each.outcome for each in seen.parts if each.part.name == "t/d"] == ["made", "failed"]


@pytest.mark.parametrize(
    "answer",
    [
        {"entries": []},
        {"entries": ["same"] * 9},
        {"entries": "same"},
        {},
        answer_of("200 OK", ["same"] * 8),
        answer_of("400 Bad Request", {"detail": "what?"}, "application/problem+json"),
        answer_of("411 Length Required", {}, "application/problem+json"),
    ],
)
def test_an_answer_that_means_nothing_leaves_files_to_be_sent(top: Path, tmp_path: Path, answer: Any) -> None:
    def answering(_: int, request: Request) -> Any:
        return answer if request.tree is not None else [receipt(entry) for entry, _ in request.entries]

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, found(top), tmp_path / "own", compare=True)
    assert outcomes(seen) == dict.fromkeys(NAMES, "published")
    assert {each.error and each.error.code for each in seen.parts} == {"protocol"}
    assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "failed")


@pytest.mark.parametrize(
    "verdict", ["perhaps", 7, None, ["same"], ["same", 7], ["send", "x", "y"], [], {}, {"problem": 7}]
)
def test_a_verdict_that_means_nothing_is_that_of_no_receiver(
    top: Path, tmp_path: Path, verdict: object
) -> None:
    seen, _ = run(top, tmp_path / "own", lambda _: verdict)
    assert seen.errors() == dict.fromkeys(NAMES, "protocol")
    assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "failed")


@pytest.mark.parametrize("verdict", ["send", "ask"])
def test_folders_and_links_have_nothing_that_could_be_sent(top: Path, tmp_path: Path, verdict: str) -> None:
    seen, _ = run(top, tmp_path / "own", lambda _: verdict)
    assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "failed")


@pytest.mark.parametrize(
    ("status", "code"), [("404 Not Found", "not-found"), ("405 Method Not Allowed", "method-not-allowed")]
)
@pytest.mark.parametrize("refuses_first", [True, False])
def test_an_older_receiver_gets_the_files_and_what_it_cannot_take_is_left_out(
    top: Path, tmp_path: Path, status: str, code: str, refuses_first: bool
) -> None:
    (top / "empty" / "too").mkdir()
    refused = answer_of(status, refusal(code, int(status[:3]))["problem"], "application/problem+json")
    requests: list[Request] = []

    def answering(_: int, request: Request) -> Any:
        requests.append(request)
        if request.line.startswith("POST /v1/tree"):
            return refused
        return [receipt(entry) for entry, _ in request.entries]

    with stub_receiver(answering, refuses_first=refuses_first) as stub:
        seen = push_many(stub.peer, found(top), tmp_path / "own", compare=True)
    assert outcomes(seen) == dict.fromkeys(NAMES, "published")
    assert sorted(seen.left) == [str(top / name) for name in ("empty", "empty/too", "link")]
    assert seen.parts == []
    assert sum(request.line.startswith("POST /v1/tree") for request in requests) == 1


def test_a_peer_that_is_away_is_tried_once(top: Path, tmp_path: Path) -> None:
    seen = push_many(Peer("no..such..peer"), found(top), tmp_path / "own", compare=True)
    assert seen.errors() == dict.fromkeys(NAMES, "unknown-peer")
    assert {each.error.code for each in seen.parts if each.error} == {"unknown-peer"}
    assert len({id(each.error) for each in seen.endings.values()}) == 1


def test_a_receiver_that_always_hangs_up_ends_it(top: Path, tmp_path: Path) -> None:
    with stub_receiver(lambda *_: None) as stub:
        options = SenderOptions(retries=1)
        seen = push_many(stub.peer, found(top), tmp_path / "own", compare=True, sender=options)
    assert seen.errors() == dict.fromkeys(NAMES, "connection-lost")
    assert parts(seen) == dict.fromkeys([*FOLDERS, "t/link"], "failed")
