"""What a receiver says that it is doing, held against what it really does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.asking import ask, connected, status_at
from support.content import MIB, random_file, sha256_of
from support.disks import LoopDisk, freezing, small_ext4
from support.processes import PROGRAM, Processes, Receiver, Running, wait_until
from support.spaces import as_stranger, needs


@pytest.fixture
def path(receiver: Receiver, area: Path) -> Path:
    return area / "receiver-state" / "receiver.sock"


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", 48 * MIB)


def status(processes: Processes, state: Path, *flags: str) -> Running:
    return processes.run("status", [*PROGRAM, "status", "--state", str(state), *flags])


def only(found: dict[str, Any]) -> dict[str, Any]:
    assert len(found["transfers"]) == 1, found
    transfer = found["transfers"][0]
    assert isinstance(transfer, dict)
    return transfer


def under_way(path: Path, at_least: int) -> dict[str, Any]:
    """The only transfer, once it has brought so many bytes."""

    def come() -> dict[str, Any] | None:
        transfers = status_at(path)["transfers"]
        return transfers[0] if transfers and transfers[0]["received_bytes"] >= at_least else None

    found = wait_until(come, f"{at_least} bytes have come")
    assert found is not None
    return found


def test_a_transfer_grows_and_is_told_of_as_it_is(processes: Processes, area: Path, source: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--limit-rate", "6M")
    path = area / "state" / "receiver.sock"
    push = processes.push(source, receiver.address, "--name", "in/flight")
    first = under_way(path, 8 * MIB)
    assert (first["name"], first["size"], first["phase"]) == ("in/flight", 48 * MIB, "receiving")
    assert (first["peer"], first["protocol"]) == (os.uname().nodename, "tdx")
    assert first["streams"] >= 1
    second = under_way(path, first["received_bytes"] + 12 * MIB)
    assert second["upload"] == first["upload"]
    assert second["held_bytes"] > first["held_bytes"]
    assert second["bottleneck"] == "rate limit"
    assert second["stages"]["receiver"]["limit"] > 1
    assert 4 * MIB < second["bytes_per_second"] < 8 * MIB
    left = 48 * MIB - second["received_bytes"]
    assert second["eta_seconds"] == pytest.approx(left / second["bytes_per_second"], rel=0.1)
    end = push.ends(0, "done")
    found = status_at(path)
    assert (found["transfers"], found["waiting"]) == ([], 0)
    assert found["received_bytes"] == end["sent_bytes"]


def test_a_sender_that_holds_itself_back_is_not_taken_for_a_slow_receiver(
    processes: Processes, receiver: Receiver, path: Path, source: Path
) -> None:
    """It tells of its own time with each request, and one may bring the whole file."""
    push = processes.push(source, receiver.address, "--limit-rate", "6M")
    found = under_way(path, 16 * MIB)
    assert found["bottleneck"] in ("sender or network", "rate limit")
    assert found["stages"]["receiver"]["receive"] > 1
    push.terminate()


def test_the_receivers_own_limit_is_what_a_plain_client_waits_for(
    processes: Processes, area: Path, source: Path
) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--limit-rate", "8M")
    curl = processes.curl("-T", source, f"{receiver.url}/files/curled")
    found = under_way(area / "state" / "receiver.sock", 16 * MIB)
    assert (found["protocol"], found["bottleneck"]) == ("http", "rate limit")
    assert found["stages"]["sender"] == {}
    assert curl.status == 201


def test_people_see_the_same_and_curl_can_ask(
    processes: Processes, receiver: Receiver, path: Path, source: Path
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", "8M")
    under_way(path, 8 * MIB)
    table = status(processes, path.parent)
    assert table.wait() == 0
    row = table.stdout.splitlines()[-1].split()
    assert row[:3] == ["source.bin", os.uname().nodename, "receiving"]
    assert "48.0 MiB" in table.stdout
    assert f"listening on {receiver.address}" in table.stdout
    needs("curl")
    asked = processes.curl("--unix-socket", path, "http://localhost/v1/status")
    assert (asked.wait(), asked.status) == (0, 200)
    assert only(asked.body)["name"] == "source.bin"
    assert asked.body["metrics"] == ":".join(map(str, receiver.metrics_address))
    push.ends(0, "done")


def test_a_watch_sees_a_transfer_from_its_beginning_to_its_end(
    processes: Processes, receiver: Receiver, path: Path, source: Path
) -> None:
    watch = status(processes, path.parent, "--watch", "100ms", "--json")
    wait_until(lambda: watch.stdout.count("\n"), "it watches")
    processes.push(source, receiver.address, "--limit-rate", "24M").ends(0, "done")

    def seen() -> list[dict[str, Any]]:
        return [json.loads(line) for line in watch.stdout.split("\n")[:-1]]

    wait_until(lambda: not seen()[-1]["transfers"] and seen()[-1]["received_bytes"], "it has seen the end")
    counts = [only(each)["received_bytes"] for each in seen() if each["transfers"]]
    assert counts == sorted(counts)
    assert len(set(counts)) > 5
    receiver.stop()
    assert watch.wait() == 69
    assert "no receiver answers" in watch.stderr


def test_what_a_stopped_push_left_waits(
    processes: Processes, receiver: Receiver, path: Path, source: Path
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", "8M")
    under_way(path, 8 * MIB)
    push.terminate()
    wait_until(lambda: status_at(path)["waiting"] == 1, "it waits")
    found = only(status_at(path))
    assert (found["phase"], found["streams"], found["eta_seconds"]) == ("waiting", 0, None)


def test_a_receiver_that_was_killed_leaves_a_socket_that_the_next_one_replaces(
    processes: Processes, receiver: Receiver, path: Path
) -> None:
    receiver.kill()
    assert path.is_socket()
    dead = status(processes, path.parent)
    assert dead.wait() == 69
    receiver.restart()
    assert status_at(path)["pid"] == receiver.process.pid
    receiver.stop()
    assert not path.exists()


def test_of_two_receivers_with_one_state_the_first_is_told_of_and_both_receive(
    processes: Processes, receiver: Receiver, path: Path, area: Path, source: Path
) -> None:
    second = processes.receiver(area / "second", path.parent)
    assert status_at(path)["pid"] == receiver.process.pid
    assert "no `tdx status` for this receiver" in second.process.stderr
    assert "--socket" in second.process.stderr
    processes.push(source, second.address).ends(0, "done")
    second.stop()
    assert status_at(path)["pid"] == receiver.process.pid
    other = area / "other.sock"
    third = processes.receiver(area / "third", path.parent, "--socket", str(other))
    assert status_at(other)["pid"] == third.process.pid
    assert "no `tdx status`" not in third.process.stderr


def test_a_place_that_was_asked_for_and_is_taken_is_exit_78(
    processes: Processes, receiver: Receiver, path: Path, area: Path
) -> None:
    flags = ("--dir", str(area / "second"), "--listen", "127.0.0.1:0", "--socket", str(path))
    second = processes.run("second", [*PROGRAM, "serve", *flags])
    assert second.wait() == 78
    assert f"cannot listen on {path}: another process does" in second.stderr
    assert status_at(path)["pid"] == receiver.process.pid


def test_a_state_directory_with_a_long_path_is_no_trouble(processes: Processes, area: Path) -> None:
    state = area / ("long" * 30) / ("longer" * 30)
    receiver = processes.receiver(area / "inbox", state)
    asked = status(processes, state, "--json")
    assert asked.wait() == 0, asked.log()
    assert json.loads(asked.stdout)["state"] == str(state)
    assert "WARNING" not in receiver.process.stderr
    receiver.stop()
    assert not (state / "receiver.sock").exists()


def test_another_user_is_refused(processes: Processes, receiver: Receiver, path: Path) -> None:
    stranger = as_stranger()
    path.parent.chmod(0o755)
    curl = processes.curl("--unix-socket", path, "http://localhost/v1/status", prefix=stranger)
    assert curl.wait() == 7  # cannot connect
    path.chmod(0o666)
    curl = processes.curl("--unix-socket", path, "http://localhost/v1/status", prefix=stranger)
    assert curl.status == 403


def test_two_hundred_questions_disturb_no_transfer(
    processes: Processes, receiver: Receiver, path: Path, source: Path
) -> None:
    push = processes.push(source, receiver.address, "--limit-rate", "16M")
    under_way(path, MIB)

    def timed(_: int) -> float:
        began = time.monotonic()
        status_at(path)
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        took = sorted(pool.map(timed, range(200)))
    end = push.ends(0, "done")
    assert took[-1] < 10
    assert end["seconds"] < 10  # 3 s by its limit
    assert end["sent_bytes"] == 48 * MIB
    assert sha256_of(receiver.folder / "source.bin") == sha256_of(source)


def test_many_who_say_nothing_take_neither_threads_nor_the_answer(
    processes: Processes, receiver: Receiver, path: Path
) -> None:
    def threads() -> int:
        return len(os.listdir(f"/proc/{receiver.process.pid}/task"))

    status_at(path)
    before = threads()
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(connected(path))
        began = time.monotonic()
        assert status_at(path)["pid"] == receiver.process.pid
        assert time.monotonic() - began < 5
        assert threads() == before
    assert ask(path, target="/v1/none").status == 404


# --- a disk that hangs -----------------------------------------------------------


@pytest.fixture
def disk(processes: Processes, area: Path) -> LoopDisk:
    return small_ext4(processes, area / "disk", 160 * MIB)


@pytest.fixture
def hold(disk: LoopDisk) -> Iterator[Callable[[bool], None]]:
    with freezing(disk) as freeze:
        yield freeze


def test_a_disk_that_hangs_is_told_of_and_keeps_nobody_waiting_for_the_answer(
    processes: Processes, area: Path, disk: LoopDisk, hold: Callable[[bool], None]
) -> None:
    receiver = processes.receiver(disk.path / "inbox", area / "state", program=[*disk.prefix, *PROGRAM])
    path = area / "state" / "receiver.sock"
    source = random_file(area / "source", 48 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "12M", "--stall-timeout", "5m")
    under_way(path, 8 * MIB)
    hold(True)

    def told() -> bool:
        began = time.monotonic()
        found = status_at(path)
        assert time.monotonic() - began < 3
        return bool(found["disk_waiting_seconds"])

    wait_until(told, "it tells that the disk hangs")
    table = status(processes, path.parent)
    assert table.wait() == 0
    assert "THE DISK HAS NOT ANSWERED for" in table.stdout
    hold(False)
    push.ends(0, "done")
    wait_until(lambda: status_at(path)["disk_waiting_seconds"] == 0, "that is over")
    receiver.stop()
