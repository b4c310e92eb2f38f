"""Trees against a real receiver: what is in a folder is what arrives."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.devices import introduce
from support.proxy import at_random, mistreating
from support.receiving import RunningReceiver, running
from support.runs import Seen, push_many
from support.trees import described, make_tree
from support.vouching import Vouching
from tdx.control import routes
from tdx.control.items import Found, LeftOut
from tdx.control.push_many import ManyPushes
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.control.walk import walk
from tdx.errors import Interrupted, NotFound
from tdx.model import Conflict, Links

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    """One that asks no kernel who is calling: a connection cut at once would be nobody's."""
    with running(tmp_path, providers=[Vouching(f"local:{os.getuid()}")]) as started:
        yield started


@pytest.fixture
def top(tmp_path: Path) -> Path:
    make_tree(tmp_path / "source", 300, random.Random(3))
    return tmp_path / "source"


def found(top: Path, links: Links = Links.PRESERVE) -> Iterator[Found]:
    return walk(str(top), "t", links=links)


def contents(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def same(top: Path, receiver: RunningReceiver) -> None:
    copy = receiver.folder / "t"
    assert described(copy) == described(top)
    assert contents(copy) == contents(top)


def sent(seen: Seen) -> int:
    return sum(each.sent for each in seen.endings.values())


def roots(seen: Seen) -> dict[str, str | None]:
    return {name: each.result.root for name, each in seen.endings.items() if each.result is not None}


def problems(seen: Seen) -> dict[str, str]:
    return seen.errors() | {each.part.name: each.error.code for each in seen.parts if each.error}


def test_a_tree_arrives_and_a_second_run_sends_nothing(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    first = push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    assert problems(first) == {}
    same(top, receiver)
    again = push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    assert problems(again) == {}
    assert sent(again) == 0
    assert {each.result.outcome.value for each in again.endings.values() if each.result} == {"identical"}
    assert {each.outcome for each in again.parts} == {"same"}
    assert roots(again) == roots(first)
    same(top, receiver)


def test_a_tree_pushed_by_others_or_without_memory_is_read_and_not_sent(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    again = push_many(receiver.peer, found(top), tmp_path / "other", compare=True)
    assert problems(again) == {}
    assert sent(again) == 0


def test_what_was_changed_at_the_receiver_is_sent_again(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    copies = sorted(path for path in (receiver.folder / "t").rglob("file *") if path.stat().st_size)
    damaged, lost = copies[3], copies[5]
    before = damaged.stat()
    damaged.chmod(0o600)
    damaged.write_bytes(bytes(before.st_size))
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    damaged.chmod(before.st_mode & 0o777)
    lost.unlink()
    shutil.rmtree(receiver.folder / "t" / "folder 0", ignore_errors=True)
    again = push_many(receiver.peer, found(top), tmp_path / "own", compare=True, conflict=Conflict.OVERWRITE)
    assert problems(again) == {}
    assert sent(again) > 0
    same(top, receiver)


def test_only_attributes_need_no_sending_where_the_peer_is_to_have_the_same(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    for path in top.rglob("file *"):
        path.chmod(0o640)
        os.utime(path, ns=(7, 7))
    for path in [top, *top.rglob("folder *")]:
        path.chmod(0o711)
        os.utime(path, ns=(9, 9))
    again = push_many(receiver.peer, found(top), tmp_path / "own", compare=True, conflict=Conflict.OVERWRITE)
    assert problems(again) == {}
    assert sent(again) == 0
    same(top, receiver)


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_survives_connections_cut_anywhere(
    receiver: RunningReceiver, top: Path, tmp_path: Path, seed: int
) -> None:
    kinds = ("cut", "reset", "half-close", "lose-answers")
    plan = at_random(seed, connections=6, within=40_000, kinds=kinds)
    with mistreating(receiver.port, plan) as proxy:
        seen = push_many(proxy.peer, found(top), tmp_path / "own", compare=True)
    assert problems(seen) == {}
    same(top, receiver)
    assert receiver.staged() == []


def test_a_run_that_is_stopped_is_finished_by_another(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    runs: list[ManyPushes] = []
    seen = Seen(on_ended=lambda _: runs[0].stop(Interrupted("enough")))
    push_many(receiver.peer, found(top), tmp_path / "own", compare=True, seen=seen, during=runs.append)
    assert set(seen.endings) == set(seen.names)
    assert set(seen.errors().values()) <= {"interrupted"}
    receiver.is_quiet()
    there = len(receiver.visible())
    again = push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    assert problems(again) == {}
    outcomes = [each.result.outcome.value for each in again.endings.values() if each.result]
    assert outcomes.count("identical") >= there - 200
    same(top, receiver)


def test_a_receiver_that_is_started_anew_gets_the_rest(
    receiver: RunningReceiver, top: Path, tmp_path: Path
) -> None:
    restarted = False

    def restart(_: object) -> None:
        nonlocal restarted
        if not restarted:
            restarted = True
            receiver.restart()

    seen = push_many(receiver.peer, found(top), tmp_path / "own", compare=True, seen=Seen(on_ended=restart))
    assert problems(seen) == {}
    same(top, receiver)


def test_an_older_receiver_gets_the_files(
    receiver: RunningReceiver, top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = routes.route

    def older(method: str, target: str) -> routes.Handler:
        if target == "/v1/tree":
            raise NotFound(f"nothing is at {target}")
        return known(method, target)

    monkeypatch.setattr("tdx.control.conversations.route", older)
    (top / "empty").mkdir()
    many = [top / f"extra {number}" for number in range(3000)]  # so that the question is a long one
    for path in many:
        path.write_text(path.name)
    seen = push_many(receiver.peer, found(top), tmp_path / "own", compare=True)
    assert problems(seen) == {}
    assert contents(receiver.folder / "t") == contents(top)
    links = {str(path) for path in top.rglob("link *")}
    assert str(top / "empty") in seen.left
    assert links <= set(seen.left)
    assert seen.parts == []


def test_over_tls_too(top: Path, tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        introduce(receiver.state, tmp_path / "own", f"127.0.0.1:{receiver.port}")
        options = SenderOptions(state=tmp_path / "own", stall_timeout=10.0)
        runs = [
            push_many(Peer("nas"), found(top), tmp_path / "own", compare=True, sender=options)
            for _ in range(2)
        ]
        assert [problems(seen) for seen in runs] == [{}, {}]
        assert sent(runs[1]) == 0
        same(top, receiver)


# --- whatever the tree ------------------------------------------------------------

LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\x00")
NAMES = st.text(LETTERS, min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and name.casefold() != ".tdx" and len(name.encode()) <= 60
)
TIMES = st.integers(0, 2**33 * 10**9)
FILES = st.tuples(st.binary(max_size=200), st.integers(0, 0o777), TIMES)
LINKS = st.tuples(st.lists(st.one_of(NAMES, st.just("..")), min_size=1, max_size=4).map("/".join), TIMES)
TREES = st.recursive(
    st.dictionaries(NAMES, st.one_of(FILES, LINKS), max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(FILES, LINKS, inner), max_size=4),
    max_leaves=12,
)


def build(top: Path, tree: dict[str, object]) -> None:
    top.mkdir()
    for name, what in tree.items():
        path = top / name
        if isinstance(what, dict):
            build(path, what)
        elif isinstance(what, tuple) and len(what) == 3:
            content, mode, mtime = what
            path.write_bytes(content)
            path.chmod(mode | 0o400)
            os.utime(path, ns=(0, mtime))
        elif isinstance(what, tuple):
            target, mtime = what
            path.symlink_to(target)
            os.utime(path, ns=(0, mtime), follow_symlinks=False)
    os.utime(top, ns=(0, 10**18 + len(tree)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    with running(tmp_path_factory.mktemp("shared")) as started:
        yield started


@given(tree=TREES)
@settings(max_examples=40, deadline=None)
def test_any_tree_is_what_arrives(
    shared: RunningReceiver, tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    build(folder / "source", tree)
    shutil.rmtree(shared.folder / "t", ignore_errors=True)
    # Links that lead out.
    left = {each.path for each in found(folder / "source") if isinstance(each, LeftOut)}
    for outcome in ("published", "identical"):
        seen = push_many(shared.peer, found(folder / "source"), folder / "own", compare=True)
        assert problems(seen) == {}
        assert {each.result.outcome.value for each in seen.endings.values() if each.result} <= {outcome}
        assert set(seen.left) == left
    expected = described(folder / "source")
    for path in left:
        del expected[str(Path(path).relative_to(folder / "source"))]
    arrived = described(shared.folder / "t")
    # A target arrives without what says nothing in it.
    assert {path: facts[:2] for path, facts in arrived.items()} == {
        path: facts[:2] for path, facts in expected.items()
    }
    assert {p: f for p, f in arrived.items() if f[0] != "link"} == {
        p: f for p, f in expected.items() if f[0] != "link"
    }
    shutil.rmtree(folder)
