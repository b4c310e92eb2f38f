"""What is sent of a tree and what need not be, what is remembered of it, and which folders are told again."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
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
    root_of,
    run,
    small_tree,
    trees,
)
from support.runs import Seen, push_many
from support.stub_receiver import Request, answer_of, refusal, stub_receiver
from tdx.control import compare, push_trees
from tdx.control.push_many import ManyPushes
from tdx.control.sender import SenderOptions
from tdx.errors import Interrupted
from tdx.integrity import MIN_EXTENT, Root, digest_of
from tdx.metrics import Metrics
from tdx.store.roots import Roots

pytestmark = pytest.mark.usefixtures("short_waits")

OLD = 1_600_000_000


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source")


def settled(monkeypatch: pytest.MonkeyPatch, since: float = 10) -> None:
    """As if the files had been there for ``since`` seconds, and no time went by."""
    now = time.time() + since
    monkeypatch.setattr("tdx.control.hashing.time.time", lambda: now)
    monkeypatch.setattr("tdx.data.entries.time", lambda: now)


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
        settled(monkeypatch)
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
        settled(monkeypatch)
        run(top, tmp_path / "own", all_there)
        _, requests = run(top, tmp_path / "own", all_there)
        assert len(requests) == 1

    def test_a_change_is_seen_also_under_the_old_size_and_mtime(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(monkeypatch)
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
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in NAMES:  # an mtime of long ago says nothing of when it was written
            os.utime(top / name.removeprefix("t/"), (OLD, OLD))
        settled(monkeypatch, since=0)
        run(top, tmp_path / "own", nothing_there)
        run(top, tmp_path / "own", all_there)
        _, requests = run(top, tmp_path / "own", all_there)
        assert [entry[-1] for entry in trees(requests)[0] if entry[0] == "file"] == [None] * 4

    def test_a_run_that_is_stopped_remembers_what_it_had_sent(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settled(monkeypatch)
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
        settled(monkeypatch)
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
        settled(monkeypatch)
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


class TestStopping:
    def test_a_stop_does_not_wait_for_an_answer(self, top: Path, tmp_path: Path) -> None:
        ended = threading.Event()
        stopping: list[Callable[[], object]] = []

        def judge(entry: list[Any]) -> str:
            if not ended.is_set():
                stopping[0]()
            ended.wait(20)
            return all_there(entry)

        def during(run: ManyPushes) -> None:
            loop = asyncio.get_running_loop()
            stopping.append(lambda: loop.call_soon_threadsafe(run.stop, Interrupted("enough")))

        with stub_receiver(judged_by(judge)) as stub:
            seen = push_many(stub.peer, found(top), tmp_path / "own", compare=True, during=during)
            ended.set()
        # Nothing had begun.
        assert (seen.names, seen.parts) == ([], [])

    def test_what_is_being_read_at_a_stop_has_not_been_pushed(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[ManyPushes] = []

        async def hash_all(*_: object) -> dict[object, object]:
            runs[0].stop(Interrupted("enough"))
            await asyncio.sleep(20)
            return {}

        monkeypatch.setattr(compare, "hash_all", hash_all)
        monkeypatch.setattr(push_trees, "READ_FILES", 2)
        seen, _ = run(top, tmp_path / "own", all_there, during=runs.append)
        assert seen.errors() == dict.fromkeys(NAMES, "interrupted")

    def test_what_was_read_and_differs_is_not_sent_after_a_stop(
        self, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[ManyPushes] = []
        settle = compare.Comparison.settle

        async def settled_and_stopped(*arguments: Any) -> Any:
            steps = await settle(*arguments)
            asyncio.get_running_loop().call_soon(runs[0].stop, Interrupted("enough"))
            return steps

        monkeypatch.setattr(compare.Comparison, "settle", settled_and_stopped)
        seen, requests = run(
            top, tmp_path / "own", lambda entry: "send" if entry[-1] else "ask", during=runs.append
        )
        assert seen.errors() == dict.fromkeys(NAMES, "interrupted")
        assert not any(request.entries for request in requests)


def test_much_that_has_to_be_read_is_asked_about_on_the_way(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_trees, "READ_FILES", 3)
    seen, requests = run(top, tmp_path / "own", all_there)
    assert [len(tree) for tree in trees(requests)] == [8, 3, 1]
    assert outcomes(seen) == dict.fromkeys(NAMES, "identical")
