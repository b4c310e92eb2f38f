"""Trees as the sender sees them: what it asks, and what it makes of an answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support.judging import (
    FOLDERS,
    NAMES,
    all_there,
    found,
    judged_by,
    nothing_there,
    outcomes,
    parts,
    run,
    small_tree,
    trees,
)
from support.runs import push_many
from support.stub_receiver import Request, answer_of, receipt, refusal, stub_receiver
from tdx.control import compare, tree_requests
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source")


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

    def test_a_time_that_does_not_fit_costs_its_own_file_the_comparison(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree_requests, "MAX_TIME", 10**18)
        monkeypatch.setattr(compare, "MAX_TIME", 10**18)
        for path in top.rglob("*"):
            os.utime(path, ns=(0, 10**18), follow_symlinks=False)
        os.utime(top / "b", ns=(0, 10**18 + 1))
        os.utime(top / "d", ns=(0, 10**18 + 1))
        os.utime(top / "link", ns=(0, -(10**18) - 1), follow_symlinks=False)
        seen, requests = run(top, tmp_path / "own", nothing_there)
        told = {entry[1]: entry[2 if entry[0] != "file" else 3] for entry in trees(requests)[0]}
        assert "t/b" not in told
        assert (told["t/a"], told["t/d"], told["t/link"]) == (10**18, 10**18, -(10**18))
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")

    def test_only_the_first_request_asks_whether_it_may_come(self, top: Path, tmp_path: Path) -> None:
        _, requests = run(top, tmp_path / "own", all_there)
        assert [request.fields.get("expect") for request in requests] == ["100-continue", None]

    def test_more_entries_than_one_request_takes_are_several(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree_requests, "MAX_ENTRIES", 3)
        seen, requests = run(top, tmp_path / "own", nothing_there)
        assert all(len(tree) <= 3 for tree in trees(requests))
        assert outcomes(seen) == dict.fromkeys(NAMES, "published")

    def test_a_body_that_would_be_too_large_is_cut(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree_requests, "MAX_BODY", 120)
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
