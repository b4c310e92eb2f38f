"""``tdx push`` into ``tdx serve``: what people and scripts rely on, from the outside."""

from __future__ import annotations

import os
import signal
import urllib.parse
from itertools import product
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Push, Receiver, reserve_port, wait_until

EXTENT = 4 * MIB
SIZE = 40 * MIB + 4321
RATE = "32M"

NAMES = [
    "plain",
    "two words  and two spaces",
    "emoji \N{PARTY POPPER}\N{FAMILY}.bin",
    "100% %41 %2F %.bin",
    "-n",
    "'quoted' \"twice\" \\ $HOME `id`",
    "#fragment?query=1&x;y+z",
    "e\N{COMBINING ACUTE ACCENT} is not \N{LATIN SMALL LETTER E WITH ACUTE}",
    ".hidden",
    "trailing dot.",
    "x" * 251 + ".bin",
    "\N{PARTY POPPER}" * 63 + "end",
]


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", SIZE)


def has_begun(receiver: Receiver, push: Push, count: int = 2 * EXTENT) -> None:
    """Wait until ``count`` bytes of the push have arrived."""
    wait_until(lambda: receiver.staged > count or not push.running, "the push is under way")
    assert push.running, push.log()


def test_names_arrive_as_they_are_by_push_and_by_curl(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    folder = area / "names"
    folder.mkdir()
    sources = [random_file(folder / name, 100 + number) for number, name in enumerate(NAMES)]
    push = processes.push("--", *sources, receiver.address)
    end = push.ends(0, "summary")
    assert end["done"] == len(NAMES), push.log()
    assert receiver.published == sorted(NAMES)
    for source in sources:
        arrived = receiver.folder / source.name
        assert arrived.read_bytes() == source.read_bytes()
        arrived.unlink()
    for source in sources:
        url = f"{receiver.url}/files/{urllib.parse.quote(source.name, safe='')}"
        assert processes.curl("--globoff", "-T", source, url).status == 201, source.name
        assert (receiver.folder / source.name).read_bytes() == source.read_bytes()
    assert receiver.published == sorted(NAMES)


def test_a_taken_name_of_255_bytes_is_numbered_within_255_bytes(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    name = "\N{PARTY POPPER}" * 62 + "end.bin"
    for content in (b"first", b"another"):
        (area / "source").write_bytes(content)
        push = processes.push(area / "source", receiver.address, "--name", name)
        path = push.ends(0, "done")["path"]
        assert (receiver.folder / path).read_bytes() == content
    assert len(receiver.published) == 2
    assert all(len(path.encode()) <= 255 for path in receiver.published)


def test_every_size_around_an_extent_arrives_whole(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    sizes = [0, 1, EXTENT - 1, EXTENT, EXTENT + 1, 2 * EXTENT, 3 * EXTENT + 1]
    sources = [random_file(area / f"{size}.bin", size) for size in sizes]
    push = processes.push(*sources, receiver.address)
    push.ends(0, "summary")
    ends = [event for event in push.events if event["event"] == "done"]
    # Several are on their way at once, and end in any order.
    assert sorted((end["name"], end["sent_bytes"]) for end in ends) == sorted(
        (source.name, size) for source, size in zip(sources, sizes, strict=True)
    )
    for source in sources:
        put = processes.curl("-T", source, f"{receiver.url}/files/curl-{source.name}")
        # Two files of one content under different names are two files.
        assert put.status == 201
    for source in sources:
        for prefix in ("", "curl-"):
            assert sha256_of(receiver.folder / (prefix + source.name)) == sha256_of(source)
    assert len(receiver.published) == 2 * len(sizes)
    assert receiver.partials == []


def test_standard_input_of_every_size_arrives_whole(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    for size in (0, 1, EXTENT + 1, 16 * MIB, 16 * MIB + 1, 33 * MIB):
        source = random_file(area / "input", size)
        with source.open("rb") as content:
            push = processes.push("-", receiver.address, "--name", f"{size}.bin", stdin=content)
            end = push.ends(0, "done")
        assert (end["size"], end["sent_bytes"]) == (size, size), push.log()
        assert sha256_of(receiver.folder / f"{size}.bin") == sha256_of(source)
    assert receiver.partials == []


def test_time_and_permissions_travel(
    processes: Processes, receiver: Receiver, source: Path, area: Path
) -> None:
    small = random_file(area / "small", 10)
    for path in (source, small):
        path.chmod(0o6640)
        os.utime(path, ns=(1, 1234567890_987654321))
    push = processes.push(source, small, receiver.address)
    push.ends(0, "summary")
    for path in (source, small):
        found = (receiver.folder / path.name).stat()
        assert found.st_mtime_ns == 1234567890_987654321
        # What lets a file run as its owner stays behind.
        assert found.st_mode & 0o7777 == 0o640


def test_a_push_run_twice_finds_the_file_identical_and_sends_nothing(
    processes: Processes, receiver: Receiver, source: Path, area: Path
) -> None:
    small = random_file(area / "small", 1000)
    for path in (source, small):
        first = processes.push(path, receiver.address).ends(0, "done")
        again = processes.push(path, receiver.address).ends(0, "identical")
        assert (again["root"], again["path"]) == (first["root"], first["path"])
    assert receiver.published == sorted([source.name, small.name])
    assert receiver.partials == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_push_keeps_its_partial_and_the_next_run_sends_only_the_rest(
    processes: Processes, receiver: Receiver, source: Path, number: signal.Signals
) -> None:
    arguments = (source, receiver.address, "--resume")
    push = processes.push(*arguments, "--limit-rate", RATE)
    has_begun(receiver, push, 4 * EXTENT)
    push.signal(number)
    end = push.ends(75, "failed")
    assert end["error"]["exit_code"] == 75
    assert end["error"]["code"] == "interrupted"
    assert receiver.published == []
    assert len(receiver.partials) == 1
    receiver.await_silence()
    held = receiver.held()
    assert held >= 2 * EXTENT
    end = processes.push(*arguments).ends(0, "done")
    assert end["resumed_bytes"] == held
    assert end["sent_bytes"] == SIZE - held
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    assert receiver.partials == []


def test_without_resume_a_fresh_upload_replaces_the_partial(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", RATE)
    has_begun(receiver, push, 4 * EXTENT)
    push.kill()
    receiver.await_silence()
    end = processes.push(source, receiver.address).ends(0, "done")
    assert (end["resumed_bytes"], end["sent_bytes"]) == (0, SIZE)
    assert receiver.published == [source.name]
    assert receiver.partials == []


@pytest.mark.parametrize("gently", [True, False])
def test_a_receiver_restarted_in_the_middle_is_found_again(
    processes: Processes, receiver: Receiver, source: Path, gently: bool
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", RATE)
    has_begun(receiver, push, 4 * EXTENT)
    if gently:
        receiver.stop()
    else:
        receiver.kill()
    receiver.restart()
    end = push.ends(0, "done")
    # Sent again at most: an extent that was not whole, and what lay in the socket's buffers.
    assert SIZE <= end["sent_bytes"] <= SIZE + 5 * EXTENT
    assert receiver.published == [source.name]
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    assert receiver.partials == []


def test_standard_input_goes_on_after_a_receiver_was_killed_in_the_middle(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    with source.open("rb") as content:
        push = processes.push("-", receiver.address, "--name", "piped", "--limit-rate", RATE, stdin=content)
        has_begun(receiver, push, 5 * EXTENT)
        receiver.kill()
        receiver.restart()
        end = push.ends(0, "done")
    assert end["size"] == SIZE
    assert receiver.published == ["piped"]
    assert sha256_of(receiver.folder / "piped") == sha256_of(source)
    assert receiver.partials == []


def test_a_receiver_that_does_not_come_back_ends_the_push_with_75(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", RATE, "--retries", "1")
    has_begun(receiver, push)
    receiver.kill()
    assert push.ends(75, "failed")["error"]["exit_code"] == 75


def test_a_changed_source_of_the_same_size_is_sent_anew_where_it_differs(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    arguments = (source, receiver.address, "--resume")
    push = processes.push(*arguments, "--limit-rate", RATE)
    has_begun(receiver, push, 6 * EXTENT)
    push.kill()
    receiver.await_silence()
    held = receiver.held()
    assert held >= 4 * EXTENT
    with source.open("r+b") as file:
        file.seek(EXTENT + 17)
        file.write(b"changed")
    repaired = processes.push(*arguments)
    assert repaired.ends(0, "done")["sent_bytes"] == SIZE - held + EXTENT
    # That extents differ is an answer, not a failure to wait after.
    assert all(event.get("retries", 0) == 0 for event in repaired.events)
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)


@pytest.mark.parametrize("change", ["shrink", "grow", "rewrite"])
def test_a_source_that_changes_while_being_sent_is_never_published(
    processes: Processes, receiver: Receiver, source: Path, change: str
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", RATE)
    has_begun(receiver, push)
    if change == "shrink":
        os.truncate(source, SIZE // 2)
    elif change == "grow":
        with source.open("ab") as file:
            file.write(b"more")
    else:
        with source.open("r+b") as file:
            file.write(b"rewritten")
    end = push.ends(66, "failed")
    assert end["error"]["code"] == "source-changed"
    assert receiver.published == []


def test_the_metrics_count_what_was_sent(processes: Processes, receiver: Receiver, source: Path) -> None:
    received = 'tdx_received_bytes_total{protocol="tdx"}'
    assert receiver.scrape().get(received, 0) == 0
    arguments = (source, receiver.address, "--resume")
    push = processes.push(*arguments, "--limit-rate", RATE)
    seen = 0.0
    while push.running:
        sample = receiver.scrape()
        assert seen <= sample.get(received, 0) <= SIZE
        seen = sample.get(received, 0)
        if seen > 4 * EXTENT:
            assert sample["tdx_uploads_active"] == 1
            push.kill()
    receiver.await_silence()
    held, first = receiver.held(), receiver.scrape()[received]
    end = processes.push(*arguments).ends(0, "done")
    put = processes.curl("-T", source, f"{receiver.url}/files/by-curl")
    assert put.status == 201
    sample = receiver.scrape()
    assert sample[received] == first + end["sent_bytes"]
    assert sample['tdx_received_bytes_total{protocol="http"}'] == SIZE
    assert sample["tdx_resumes_total"] == 1
    assert sample["tdx_resumed_bytes_total"] == held == end["resumed_bytes"]
    assert sample["tdx_uploads_active"] == 0
    assert sample["tdx_staging_bytes"] == 0


FALLBACKS = [
    *(
        (sending, receiving, None)
        for sending, receiving in product(("sendfile", "buffered"), ("splice", "buffered"))
    ),
    ("auto", "auto", "asyncio"),
]


@pytest.mark.parametrize(("sending", "receiving", "loop"), FALLBACKS)
def test_every_pump_and_loop_carries_a_push_across_a_kill(
    processes: Processes,
    area: Path,
    source: Path,
    sending: str,
    receiving: str,
    loop: str | None,
) -> None:
    receiver = processes.receiver(
        area / "inbox",
        area / "receiver-state",
        *("--pump", receiving),
        environment={} if loop is None else {"TDX_LOOP": loop},
    )
    arguments = (source, receiver.address, "--resume", "--pump", sending)
    push = processes.push(*arguments, "--limit-rate", RATE)
    has_begun(receiver, push)
    push.kill()
    receiver.await_silence()
    held = receiver.held()
    end = processes.push(*arguments, "--streams", "3").ends(0, "done")
    assert 0 < held == end["resumed_bytes"]
    assert end["sent_bytes"] == SIZE - held
    with source.open("rb") as content:
        assert processes.curl("-T", "-", f"{receiver.url}/files/chunked", stdin=content).status == 201
    assert receiver.published == ["chunked", source.name]
    for path in receiver.published:
        assert sha256_of(receiver.folder / path) == sha256_of(source)
    receiver.stop()


def test_failures_have_their_exit_codes(processes: Processes, receiver: Receiver, area: Path) -> None:
    source = random_file(area / "source", 10)
    (receiver.folder / "taken").write_bytes(b"here before")
    with reserve_port() as nobody:
        absent = f"127.0.0.1:{nobody.getsockname()[1]}"
        cases: list[tuple[int, list[str | Path]]] = [
            (64, [area, receiver.address]),
            (64, ["--name", "x", "--resume", "-", receiver.address]),
            (66, [area / "missing", receiver.address]),
            (68, [source, "no-such-host.invalid"]),
            (69, [source, absent]),
            (73, [source, receiver.address, "--name", "taken", "--conflict", "error"]),
            (73, [source, receiver.address, "--name", "../escape"]),
            (73, [source, receiver.address, "--name", "x" * 256]),
        ]
        pushes = [(code, processes.push(*arguments)) for code, arguments in cases]
        for code, push in pushes:
            assert push.wait() == code, push.log()
            assert len(push.stderr.splitlines()) == 1, push.log()
    processes.push(source, receiver.address, "--name", "taken", "--conflict", "skip").ends(0, "skipped")
    assert (receiver.folder / "taken").read_bytes() == b"here before"
    assert receiver.published == ["taken"]
    processes.push(source, receiver.address, "--name", "taken", "--conflict", "overwrite").ends(0, "done")
    assert (receiver.folder / "taken").read_bytes() == source.read_bytes()
    assert receiver.published == ["taken"]
