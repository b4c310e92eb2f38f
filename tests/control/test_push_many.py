"""Runs of many files against a real receiver: small and large, good and bad, stopped and cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.devices import introduce
from support.proxy import Fault, at_random, mistreating, once
from support.receiving import RunningReceiver, running
from support.runs import Seen, items_of, push_many
from support.vouching import Vouching
from tdx.control import routes
from tdx.control.items import BUNDLED_MOST, Item, LeftOut
from tdx.control.progress import PushResult, Tally
from tdx.control.push import PushOptions
from tdx.control.push_many import BUNDLE_FILES, BUNDLES_AT_ONCE, FILES_AT_ONCE, ManyPushes
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions
from tdx.control.sending import MOST_STREAMS
from tdx.errors import Interrupted, NotFound, SourceError
from tdx.metrics import Metrics
from tdx.model import Conflict

EXTENT = 4 << 20

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    """One that asks no kernel who is calling: a connection cut at once would be nobody's."""
    with running(tmp_path, providers=[Vouching(f"local:{os.getuid()}")]) as started:
        yield started


def files_in(folder: Path, sizes: dict[str, int]) -> list[Item]:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return items_of([folder / name for name in sizes], folder)


def contents(items: list[Item]) -> dict[str, bytes]:
    return {item.name: Path(item.path).read_bytes() for item in items}


@pytest.fixture
def many(tmp_path: Path) -> list[Item]:
    """More files than one bundle takes, in folders."""
    sizes = {f"d{n % 7}/f{n:04}": n % 50 for n in range(BUNDLE_FILES + 100)}
    return files_in(tmp_path / "source", sizes)


MIXED = {
    "a": 100,
    "b": EXTENT + 1,
    "c": 0,
    "d/e": BUNDLED_MOST,
    "d/f": BUNDLED_MOST + 1,
    "g": 3 * EXTENT,
    "h": 5,
    "i": 2 * EXTENT,
    "j": 70000,
}


@pytest.fixture
def mixed(tmp_path: Path) -> list[Item]:
    return files_in(tmp_path / "source", MIXED)


def test_many_small_files_arrive_in_a_few_requests(
    receiver: RunningReceiver, many: list[Item], tmp_path: Path
) -> None:
    seen = push_many(receiver.peer, many, tmp_path / "own")
    assert seen.errors() == {}
    assert receiver.visible() == contents(many)
    assert receiver.staged() == []
    assert receiver.metrics.requests.value(("POST", "bundle", "200")) == 2
    assert receiver.uploads_ended("tdx", "published") == len(many)


def test_small_and_large_files_share_a_run_and_begin_in_their_order(
    receiver: RunningReceiver, mixed: list[Item], tmp_path: Path
) -> None:
    metrics = Metrics("0")
    seen = push_many(receiver.peer, mixed, tmp_path / "own", metrics=metrics)
    assert seen.errors() == {}
    assert seen.names == list(MIXED)
    assert receiver.visible() == contents(mixed)
    assert {name: each.size for name, each in seen.endings.items()} == MIXED
    assert {name for name, each in seen.endings.items() if not each.together} >= {"b", "d/f", "g", "i"}
    assert metrics.sent_bytes.value() == sum(MIXED.values())
    assert metrics.uploads.value(("tdx", "published")) == len(MIXED)


def test_a_second_run_finds_everything_there(
    receiver: RunningReceiver, mixed: list[Item], tmp_path: Path
) -> None:
    push_many(receiver.peer, mixed, tmp_path / "own")
    again = push_many(receiver.peer, mixed, tmp_path / "own")
    outcomes = {name: each.result and each.result.outcome.value for name, each in again.endings.items()}
    assert outcomes == dict.fromkeys(MIXED, "identical")
    assert receiver.visible() == contents(mixed)


@pytest.mark.parametrize(
    ("conflict", "error", "there"),
    [
        (Conflict.RENAME, None, b"there"),
        (Conflict.OVERWRITE, None, None),
        (Conflict.SKIP, None, b"there"),
        (Conflict.ERROR, "exists", b"there"),
    ],
)
def test_a_name_that_is_taken_is_a_matter_of_that_file_alone(
    receiver: RunningReceiver,
    tmp_path: Path,
    conflict: Conflict,
    error: str | None,
    there: bytes | None,
) -> None:
    items = files_in(tmp_path / "source", {"a": 10, "b": 20, "c": 30})
    receiver.request("PUT", "/files/b", b"there")
    seen = push_many(receiver.peer, items, tmp_path / "own", conflict=conflict)
    assert seen.errors() == ({} if error is None else {"b": error})
    visible = receiver.visible()
    assert visible["b"] == (there or contents(items)["b"])
    assert {"a", "c"} <= visible.keys()
    assert ("b (1)" in visible) == (conflict is Conflict.RENAME)


def test_one_bad_file_among_many_fails_alone(
    receiver: RunningReceiver, many: list[Item], tmp_path: Path
) -> None:
    Path(many[500].path).unlink()
    Path(many[700].path).unlink()
    Path(many[700].path).mkdir()
    many[900].name = "../out"
    many[901].name = ".tdx/in"
    many.insert(3, Item("whatever", "known", error=SourceError("nobody may read it")))
    seen = push_many(receiver.peer, many, tmp_path / "own")
    assert seen.errors() == {
        "known": "source",
        many[501].name: "source",
        many[701].name: "source",
        "../out": "bad-name",
        ".tdx/in": "bad-name",
    }
    assert len(receiver.visible()) == len(many) - 5


def test_a_file_that_has_grown_since_it_was_seen_arrives_by_itself(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    items = files_in(tmp_path / "source", {"a": 10, "b": 20, "c": 30})
    Path(items[1].path).write_bytes(os.urandom(EXTENT + 7))
    seen = push_many(receiver.peer, items, tmp_path / "own")
    assert seen.errors() == {}
    assert receiver.visible() == contents(items)
    assert not seen.endings["b"].together


def test_one_small_file_goes_as_one_put(receiver: RunningReceiver, tmp_path: Path) -> None:
    items = files_in(tmp_path / "source", {"a": 10})
    push_many(receiver.peer, items, tmp_path / "own")
    assert receiver.metrics.requests.value(("PUT", "files", "201")) == 1
    assert receiver.metrics.requests.value(("POST", "bundle", "200")) == 0


def test_what_is_left_out_is_told_and_not_pushed(receiver: RunningReceiver, tmp_path: Path) -> None:
    items = files_in(tmp_path / "source", {"a": 10, "b": 10})
    seen = push_many(receiver.peer, [items[0], LeftOut("link", "is a link"), items[1]], tmp_path / "own")
    assert seen.left == ["link"]
    assert set(receiver.visible()) == {"a", "b"}


def test_an_older_receiver_is_sent_one_file_at_a_time(
    receiver: RunningReceiver, mixed: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = routes.route

    def older(method: str, target: str) -> routes.Handler:
        if target == "/files":
            raise NotFound(f"nothing is at {target}")
        return known(method, target)

    monkeypatch.setattr("tdx.control.conversations.route", older)
    seen = push_many(receiver.peer, mixed, tmp_path / "own")
    assert seen.errors() == {}
    assert receiver.visible() == contents(mixed)


class TestCuts:
    @pytest.mark.parametrize("seed", range(10))
    def test_a_run_survives_connections_cut_anywhere(
        self, receiver: RunningReceiver, many: list[Item], mixed: list[Item], tmp_path: Path, seed: int
    ) -> None:
        items = many + mixed
        kinds = ("cut", "reset", "half-close", "lose-answers")
        plan = at_random(seed, connections=6, within=EXTENT // 8, kinds=kinds)
        with mistreating(receiver.port, plan) as proxy:
            seen = push_many(proxy.peer, items, tmp_path / "own")
        assert seen.errors() == {}
        assert receiver.visible() == contents(items)
        assert receiver.staged() == []

    @pytest.mark.parametrize("after", [1, 200, 20_000, 100_000])
    def test_an_answer_that_gets_lost_makes_no_second_copy(
        self, receiver: RunningReceiver, many: list[Item], tmp_path: Path, after: int
    ) -> None:
        with mistreating(receiver.port, once(Fault("lose-answers", after))) as proxy:
            seen = push_many(proxy.peer, many, tmp_path / "own")
        assert seen.errors() == {}
        assert receiver.visible() == contents(many)

    def test_bytes_that_are_flipped_on_the_way_are_sent_again(
        self, receiver: RunningReceiver, tmp_path: Path
    ) -> None:
        items = files_in(tmp_path / "source", {"a": 50_000, "b": 50_000, "c": 50_000})
        with mistreating(receiver.port, once(Fault("flip", 75_000))) as proxy:
            seen = push_many(proxy.peer, items, tmp_path / "own")
        assert seen.errors() == {}
        assert receiver.visible() == contents(items)
        assert receiver.metrics.digest_failures.value() == 1

    def test_a_receiver_that_is_started_anew_gets_the_rest(
        self, receiver: RunningReceiver, many: list[Item], tmp_path: Path
    ) -> None:
        half = many[600].name

        def restart(item: Item) -> None:
            if item.name == half:
                receiver.restart()

        seen = push_many(receiver.peer, many, tmp_path / "own", seen=Seen(on_started=restart))
        assert seen.errors() == {}
        assert receiver.visible() == contents(many)


def stopped_in_the_middle(run: ManyPushes, receiver: RunningReceiver) -> None:
    """Stop it as soon as bytes have arrived."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if sum(receiver.metrics.received_bytes.value((each,)) for each in ("tdx", "http")):
            run.stop(Interrupted("enough"))
        else:
            loop.call_later(0.005, look)

    look()


def test_a_stop_leaves_whole_files_or_none_and_another_run_brings_the_rest(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    items = files_in(tmp_path / "source", {f"f{n:03}": 60_000 for n in range(200)})
    limited = SenderOptions(limit_rate=8e6)
    seen = push_many(
        receiver.peer,
        items,
        tmp_path / "own",
        sender=limited,
        during=lambda run: stopped_in_the_middle(run, receiver),
    )
    assert set(seen.errors().values()) == {"interrupted"}
    assert set(seen.endings) == set(seen.names)
    receiver.is_quiet()
    expected = contents(items)
    assert all(expected[name] == content for name, content in receiver.visible().items())
    again = push_many(receiver.peer, items, tmp_path / "own")
    assert again.errors() == {}
    assert receiver.visible() == expected
    assert receiver.staged() == []


def test_what_nobody_expected_ends_the_run_and_is_raised(
    receiver: RunningReceiver, mixed: list[Item], tmp_path: Path
) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        push_many(receiver.peer, mixed, tmp_path / "own", seen=Seen(on_ended=broken))
    with pytest.raises(BrokenPipeError):
        push_many(receiver.peer, mixed, tmp_path / "own", seen=Seen(on_started=broken))

    def items() -> Iterator[Item]:
        yield mixed[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        push_many(receiver.peer, items(), tmp_path / "own")


def test_a_peer_that_is_away_is_tried_once(tmp_path: Path) -> None:
    items = files_in(tmp_path / "source", {"a": 10, "b": EXTENT + 1, "c": 10, "d": EXTENT + 1})
    seen = push_many(Peer("no..such..peer"), items, tmp_path / "own")
    assert seen.errors() == dict.fromkeys("abcd", "unknown-peer")
    assert len({id(each.error) for each in seen.endings.values()}) == 1


def test_a_peer_that_has_gone_for_good_is_given_up_once_and_not_for_every_file(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    items = files_in(tmp_path / "source", {f"f{n}": BUNDLED_MOST + n + 1 for n in range(9)})
    items += files_in(tmp_path / "source", {f"g{n}": n for n in range(9)})
    stopped = False

    def stop(_: object) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            receiver.stop()

    seen = push_many(
        receiver.peer,
        items,
        tmp_path / "own",
        seen=Seen(on_ended=stop),
        sender=SenderOptions(retries=2, stall_timeout=10.0),
    )
    assert set(seen.endings) == {item.name for item in items}
    assert set(seen.errors().values()) == {"connection-lost"}
    failures = {id(each.error) for each in seen.endings.values() if each.error is not None}
    assert len(failures) <= FILES_AT_ONCE + BUNDLES_AT_ONCE
    receiver.start()
    assert push_many(receiver.peer, items, tmp_path / "own").errors() == {}
    assert receiver.visible() == contents(items)


def test_no_more_files_are_on_their_way_by_themselves_than_there_are_streams_for(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    items = files_in(tmp_path / "source", {f"f{n}": EXTENT + n for n in range(8)})
    most = 0

    def during(run: ManyPushes) -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            nonlocal most
            most = max(most, len(run.running))
            if not (run.whole.complete and run.whole.ended == len(items)):
                loop.call_later(0.001, look)

        look()

    push_many(receiver.peer, items, tmp_path / "own", during=during)
    assert 1 <= most <= FILES_AT_ONCE
    assert receiver.visible() == contents(items)


def test_what_has_ended_is_no_longer_on_its_way(receiver: RunningReceiver, tmp_path: Path) -> None:
    items = files_in(tmp_path / "source", {f"f{n}": EXTENT + n for n in range(6)})
    seen = Seen()
    both: list[str] = []

    def during(run: ManyPushes) -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            on_their_way = {item.name for each in run.running.values() for item in each.items}
            both.extend(on_their_way & seen.endings.keys())
            if len(seen.endings) < len(items):
                loop.call_soon(look)

        look()

    push_many(receiver.peer, items, tmp_path / "own", seen=seen, during=during)
    assert both == []


@pytest.mark.parametrize(
    ("count", "streams", "shares"),
    [
        (1, None, [MOST_STREAMS]),
        (3, None, [(MOST_STREAMS - 2) // 3] * 3),
        (2, MOST_STREAMS, [MOST_STREAMS - 2, MOST_STREAMS]),
    ],
)
def test_files_that_are_on_their_way_at_a_time_share_the_streams(
    receiver: RunningReceiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    streams: int | None,
    shares: list[int],
) -> None:
    items = files_in(tmp_path / "source", {f"f{n}": EXTENT + n for n in range(count)})
    most: list[int] = []
    push_file = Sender.push_file

    async def noted(sender: Sender, path: Path, options: PushOptions, tally: Tally) -> PushResult:
        most.append(options.most_streams)
        return await push_file(sender, path, options, tally)

    monkeypatch.setattr(Sender, "push_file", noted)
    push_many(receiver.peer, items, tmp_path / "own", streams=streams)
    assert most == shares


def test_a_body_that_is_on_its_way_never_waits_for_a_thread(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files that were to be sent together have grown large since they were looked at."""
    grown = files_in(tmp_path / "grown", {f"f{n:02}": BUNDLED_MOST + n + 1 for n in range(4)})
    for item in grown:
        item.size = 1
    large = files_in(tmp_path / "large", {f"g{n:02}": BUNDLED_MOST + n + 1 for n in range(4)})
    now, most = 0, 0
    push_file = Sender.push_file

    async def noted(sender: Sender, path: Path, options: PushOptions, tally: Tally) -> PushResult:
        nonlocal now, most
        bodies = min(options.streams or MOST_STREAMS, options.most_streams)
        now += bodies
        most = max(most, now)
        try:
            await asyncio.sleep(0.1)
            return await push_file(sender, path, options, tally)
        finally:
            now -= bodies

    monkeypatch.setattr(Sender, "push_file", noted)
    items = [each for pair in zip(large, grown, strict=True) for each in pair]
    seen = push_many(receiver.peer, items, tmp_path / "own")
    assert len(seen.endings) == len(items)
    assert seen.errors() == {}
    shares = (MOST_STREAMS - BUNDLES_AT_ONCE) // FILES_AT_ONCE * FILES_AT_ONCE + BUNDLES_AT_ONCE
    assert shares <= most <= MOST_STREAMS  # as many as MOST_STREAMS where the last one is alone


def test_over_tls_too(tmp_path: Path) -> None:
    mixed = files_in(tmp_path / "source", MIXED)
    with running(tmp_path) as receiver:
        introduce(receiver.state, tmp_path / "own", f"127.0.0.1:{receiver.port}")
        options = SenderOptions(state=tmp_path / "own", stall_timeout=10.0)
        seen = push_many(Peer("nas"), mixed, tmp_path / "own", sender=options)
        assert seen.errors() == {}
        assert receiver.visible() == contents(mixed)
