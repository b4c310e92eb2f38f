"""The log of the real receiver: as the schema has it, the same for people, and never in the way."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.schemas import conform
from support.spaces import as_stranger

HOSTILE = "x\u2028\u202e2026-01-01 00:00:00,000 INFO tdx.audit: forged"
TEXT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [a-z_.]+: \S")


def lines_of(receiver: Receiver) -> list[dict[str, Any]]:
    """The whole log, each line of which is JSON as the schema has it."""
    lines = [json.loads(line) for line in receiver.process.stderr.splitlines()]
    conform("log", lines)
    return lines


def events_of(receiver: Receiver) -> list[str]:
    return [line["event"] for line in lines_of(receiver) if "event" in line and line["level"] != "debug"]


def uploads_in(receiver: Receiver) -> list[dict[str, Any]]:
    return [line for line in lines_of(receiver) if line["logger"] == "tdx.uploads"]


def traffic(processes: Processes, receiver: Receiver, area: Path) -> None:
    """What a receiver meets in its life, good and bad."""
    large, folder = random_file(area / "large", 9 * MIB), area / "folder"
    folder.mkdir()
    for name in ("a", "b", HOSTILE):
        random_file(folder / name, 10)
    processes.push(large, receiver.address).ends(0, "done")
    processes.push(large, receiver.address).ends(0, "identical")
    processes.push("-r", folder, receiver.address).ends(0, "summary")
    processes.push(folder / HOSTILE, receiver.address).ends(0, "done")
    processes.push(large, receiver.address, "--name", ".tdx").ends(73, "failed")
    assert processes.curl("-T", large, f"{receiver.url}/files/.tdx").status == 400
    assert processes.curl("-T", large, f"{receiver.url}/files/a%0Ab").status == 400


def test_every_line_is_as_the_schema_has_it(processes: Processes, area: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--log-format", "json")
    traffic(processes, receiver, area)
    receiver.stop()
    expected = ["created", "published", "created", "identical", "bundle", "created", "published"]
    assert events_of(receiver) == [*expected, "refused", "refused"]
    named = [line["name"] for line in lines_of(receiver) if line.get("event") == "published"]
    assert HOSTILE in named


def test_the_configuration_may_ask_for_it_too(processes: Processes, area: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", config='log_format = "json"')
    processes.push(random_file(area / "f", 10), receiver.address).ends(0, "done")
    assert events_of(receiver) == ["created", "published"]
    receiver.stop()


def test_people_get_the_same_a_line_each(processes: Processes, receiver: Receiver, area: Path) -> None:
    traffic(processes, receiver, area)
    receiver.stop()
    log = receiver.process.stderr
    assert log.split("\n")[-1] == ""
    for line in log.split("\n")[:-1]:
        assert TEXT.match(line), line
        assert line.isprintable()
    for said in (
        " created: large of ",
        " published: large, ",
        " identical: large, ",
        "bundle: 3 published from",
    ):
        assert log.count(said) in {1, 2}, said
    assert "\n2026-01-01 00:00:00,000" not in log


def test_an_upload_can_be_followed_from_a_kill_to_its_end(processes: Processes, area: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--log-format", "json")
    large = random_file(area / "large", 24 * MIB)
    push = processes.push(large, receiver.address, "--limit-rate", "10M")
    receiver.await_staged(8 * MIB)
    push.kill()
    receiver.await_silence()
    receiver.stop()
    created, kept = uploads_in(receiver)
    receiver.restart()
    processes.push(large, receiver.address, "--resume").ends(0, "done")
    resumed, published = uploads_in(receiver)
    assert [each["event"] for each in (created, kept, resumed, published)] == [
        *("created", "kept", "resumed", "published")
    ]
    assert len({each["upload"] for each in (created, kept, resumed, published)}) == 1
    assert kept["held_bytes"] == resumed["resumed_bytes"] == published["resumed_bytes"] > 0
    assert published["received_bytes"] == 24 * MIB - kept["held_bytes"]
    receiver.stop()


def test_who_is_not_let_in_is_in_it(processes: Processes, area: Path) -> None:
    stranger = as_stranger()
    receiver = processes.receiver(area / "inbox", area / "state", "--log-format", "json")
    assert processes.curl(f"{receiver.url}/v1/hello", prefix=stranger).status == 403
    (refused,) = [line for line in lines_of(receiver) if line.get("event") == "refused"]
    assert (refused["logger"], refused["level"]) == ("tdx.audit", "warning")
    assert (refused["error"], refused["request"]) == ("forbidden", "GET /v1/hello")
    receiver.stop()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_log_that_nobody_reads_holds_no_transfer_up(processes: Processes, area: Path, kind: str) -> None:
    """Standard error is a pipe that takes 64 KiB and is never read."""
    inbox = area / "inbox"
    inbox.mkdir(mode=0o700)
    reader, writer = os.pipe()
    flags = [
        "--dir",
        str(inbox),
        "--state",
        str(area / "state"),
        "--log-level",
        "debug",
        "--log-format",
        kind,
    ]
    shell = ["sh", "-c", 'exec "$@" 2>$0', f"/proc/self/fd/{writer}", *PROGRAM, "serve", *flags]
    try:
        serving = processes.run("serve", [*shell, "--listen", "127.0.0.1:0"], pass_fds=[writer])
        wait_until(lambda: "listening" in serving.stdout or not serving.running, "it listens")
        address = serving.stdout.split()[1]
        folder = area / "many"
        folder.mkdir()
        for number in range(1500):
            (folder / f"{number:0200}").write_bytes(b"%d" % number)
        large = random_file(area / "large", 9 * MIB)
        processes.push("-r", folder, address).ends(0, "summary")
        processes.push(large, address).ends(0, "done")
        assert serving.terminate() == 0, serving.log()
    finally:
        os.close(reader)
        os.close(writer)
    assert sha256_of(inbox / "large") == sha256_of(large)
    assert len(list((inbox / "many").iterdir())) == 1500


def test_a_log_on_a_full_disk_holds_no_transfer_up(processes: Processes, area: Path) -> None:
    inbox = area / "inbox"
    shell = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *PROGRAM]
    receiver = processes.receiver(inbox, area / "state", "--log-format", "json", program=shell)
    large = random_file(area / "large", 9 * MIB)
    processes.push(large, receiver.address).ends(0, "done")
    receiver.stop()
    assert sha256_of(inbox / "large") == sha256_of(large)


def test_a_failure_that_ends_the_receiver_is_its_last_line(processes: Processes, area: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--log-format", "json")
    shutil.rmtree(receiver.folder)
    assert receiver.process.wait() == 78
    assert receiver.process.stderr.splitlines()[-1].startswith("tdx: ")
