"""Receipts in trouble: broken, locked, gone, or on a full disk of their own. Nothing that was acknowledged is
lost, and nothing is stored twice."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.spaces import small_disk


def test_broken_receipts_keep_no_receiver_from_starting_and_lose_no_file(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    large, small = random_file(area / "large", 12 * MIB), random_file(area / "small", 1000)
    half = random_file(area / "half", 24 * MIB)
    for source in (large, small):
        processes.push(source, receiver.address).ends(0, "done")
    push = processes.push(half, receiver.address, "--limit-rate", "24M")
    wait_until(lambda: receiver.staged > 9 * MIB, "the push is under way")
    push.kill()
    receiver.stop()
    database = area / "receiver-state" / "receipts.sqlite3"
    database.write_bytes(b"what is this?" * 1000)
    receiver.restart()
    assert "the receipts are broken (file is not a database): they begin anew" in receiver.process.stderr
    for source in (large, small):
        processes.push(source, receiver.address).ends(0, "identical")
    assert processes.push(half, receiver.address, "--resume").ends(0, "done")["resumed_bytes"] > 0
    assert receiver.published == ["half", "large", "small"]
    assert receiver.partials == []


def test_receipts_that_another_process_has_locked_are_waited_for(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = random_file(area / "source", 12 * MIB)
    database = sqlite3.connect(area / "receiver-state" / "receipts.sqlite3", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    push = processes.push(source, receiver.address)
    wait_until(lambda: receiver.published == ["source"], "it is at its final name")
    assert push.running, "and not acknowledged"
    assert receiver.ask("GET", "/v1/hello")[0] == 200
    database.execute("ROLLBACK")
    database.close()
    push.ends(0, "done")


def test_receipts_that_are_removed_under_a_receiver_cost_nothing_that_was_acknowledged(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    first, second = (random_file(area / name, 12 * MIB) for name in ("first", "second"))
    processes.push(first, receiver.address).ends(0, "done")
    shutil.rmtree(area / "receiver-state")
    processes.push(second, receiver.address).ends(0, "done")
    receiver.kill()
    receiver.restart()
    for source in (first, second):
        processes.push(source, receiver.address).ends(0, "identical")
    assert receiver.published == ["first", "second"]


def test_where_no_receipt_can_be_written_nothing_is_acknowledged_and_nothing_stored_twice(
    processes: Processes, area: Path
) -> None:
    disk = small_disk(processes, area / "disk", 2 * MIB)
    receiver = processes.receiver(area / "inbox", disk.path / "state", program=[*disk.prefix, *PROGRAM])
    large, small = random_file(area / "large", 12 * MIB), random_file(area / "small", 1000)
    filler = disk.fill()
    for source in (large, small):
        error = processes.push(source, receiver.address, "--retries", "0").ends(74, "failed")["error"]
        assert error["message"].startswith("the receipts cannot be read or written: ")
    filler.unlink()
    for source in (large, small):
        processes.push(source, receiver.address, "--resume").ends(0, "identical")
        assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    assert receiver.published == ["large", "small"]
    receiver.stop()
    receiver.restart()
    assert receiver.partials == [], "what had no receipt has it now"
