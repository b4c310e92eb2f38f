"""The order in which the receiver asks the kernel for things, as the kernel saw it: nothing is said before
what it rests on is durable."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.content import MIB, random_file
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.spaces import needs
from support.traces import Call, is_complete, read_trace, tracer
from tdx.model import Span
from tdx.ranges import RangeSet
from tdx.store.journal import RECORD_SIZE, Kind

pytestmark = pytest.mark.timeout(300)

CALLS = (
    "mkdirat,openat,pwrite64,pwritev,write,writev,splice,sendto,fsync,fdatasync,syncfs,"
    "renameat,renameat2,linkat,ftruncate,fchmod,utimensat"
)
WRITES = {"pwrite64", "pwritev", "write", "writev", "splice"}
ATTRIBUTES = {"ftruncate", "fchmod", "utimensat"}
RENAMES = {"renameat", "renameat2", "linkat"}

PUBLISHED = {
    *("one", "several", "stream", "plain", "parted", "killed"),
    *("page", "deep/er/one"),
    *(f"near/{number}" for number in range(5)),
    *(f"wide/{folder}/{number}" for folder in range(4) for number in range(2)),
}
"""What :func:`traced` publishes."""


@dataclass(frozen=True)
class Written:
    """A record of a journal, and the call that wrote it."""

    call: Call
    kind: Kind
    a: int
    b: int


@dataclass(frozen=True)
class Trace:
    """Of a receiver that was stopped once with a partial, and then started again."""

    inbox: str
    calls: list[Call]

    def named(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]

    @property
    def publications(self) -> list[Call]:
        """Every time that a final name was given."""
        return [
            call
            for call in self.named(*RENAMES)
            if call.target.startswith(self.inbox + "/") and not call.target.startswith(self.inbox + "/.tdx/")
        ]

    @property
    def journals(self) -> dict[str, list[Written]]:
        """The records of every upload's journal."""
        found: dict[str, list[Written]] = {}
        for call in self.named("pwrite64"):
            if call.path.endswith("/journal"):
                records = found.setdefault(call.path, [])
                assert call.offset == len(records) * RECORD_SIZE, call
                for at in range(0, call.result, RECORD_SIZE):
                    a, b = struct.unpack_from(">QQ", call.data, at + 8)
                    records.append(Written(call, Kind(call.data[at]), a, b))
        return found

    def synced(self, path: str, after: int, before: int, *, whole: bool = True) -> bool:
        """Whether ``path`` was made durable by a sync that began after one line and was over before another;
        ``whole`` with its attributes."""
        names = {"fsync"} if whole else {"fsync", "fdatasync"}
        return any(
            after < call.began
            and call.ended < before
            and (call.name == "syncfs" or (call.name in names and call.path == path))
            for call in self.named("syncfs", "fsync", "fdatasync")
        )

    @property
    def answers(self) -> list[Call]:
        """Heads of answers, with their bodies where these are small."""
        return [call for call in self.named("sendto") if call.arguments[1].startswith('"HTTP/1.1 ')]

    def answer(self, after: int, condition: Callable[[bytes], bool]) -> Call:
        """The first answer to a request that was begun after this line and is like that."""
        return next(call for call in self.answers if call.began > after and condition(call.data))

    def receipt(self, publication: Call) -> Call:
        """The answer that says that the file is there."""
        path = os.path.relpath(publication.target, self.inbox)
        mine = b'"path":"%s"' % path.encode()
        return self.answer(publication.began, lambda data: mine in data)

    def changes(self, path: str, names: set[str], before: int) -> list[Call]:
        """What was done to a file until then, since it was made."""
        made = max(
            call.ended
            for call in self.named("openat")
            if call.ended < before and "O_CREAT" in call.arguments[2] and call.target == path
        )
        return [call for call in self.named(*names) if made < call.ended < before and call.path == path]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    needs("strace")
    area = tmp_path_factory.mktemp("traced")
    with Processes(area / "logs") as processes:
        traced(processes, area)
    return Trace(str(area / "inbox"), read_trace(area / "trace"))


def traced(processes: Processes, area: Path) -> None:
    """Push a file of each kind, one after another."""
    file = area / "trace"
    receiver = processes.receiver(
        area / "inbox", area / "state", "--pump", "buffered", program=[*tracer(file, CALLS), *PROGRAM]
    )

    def push(*arguments: str | Path) -> None:
        processes.push(*arguments, receiver.address).ends(0)

    def curl(*arguments: str | Path) -> int:
        return processes.curl(*arguments, f"{receiver.url}/files/{Path(arguments[-1]).name}").status

    def stop() -> None:
        receiver.stop()
        wait_until(lambda: is_complete(file, receiver.process.pid), "the trace is complete")

    push(random_file(area / "one", MIB))
    several = random_file(area / "several", 9 * MIB)
    push(several)
    push("--name", "page", area / "one")
    push("--name", "page", "--conflict", "overwrite", several)
    push("--name", "deep/er/one", area / "one")
    with several.open("rb") as source:
        processes.push("-", receiver.address, "--name", "stream", stdin=source).ends(0)
    for name in sorted(each for each in PUBLISHED if each.startswith(("near/", "wide/"))):
        (area / name).parent.mkdir(parents=True, exist_ok=True)
        random_file(area / name, 1000)
    push("-r", area / "near")
    push("-r", area / "wide")
    assert curl("-T", random_file(area / "plain", MIB)) == 201
    parted = random_file(area / "parted", 5 * MIB)
    half = random_file(area / "half", 2 * MIB)
    with parted.open("r+b") as beginning:
        beginning.write(half.read_bytes())
    part = f"Content-Range: bytes 0-{2 * MIB - 1}/{5 * MIB}"
    target = f"{receiver.url}/files/parted"
    assert processes.curl("-T", half, "-H", part, target).status == 202
    assert curl("-C", str(2 * MIB), "-T", parted) == 201

    killed = random_file(area / "killed", 17 * MIB)
    cut_off = processes.push(killed, receiver.address, "--limit-rate", str(16 * MIB))
    # Its journal says two things at least: where it began, and an extent.
    wait_until(lambda: sizes_of_journals(receiver) >= 3 * RECORD_SIZE, "something of it is held")
    assert cut_off.kill() == -9
    stop()
    receiver.restart()
    push("--resume", killed)
    stop()
    assert set(receiver.published) >= PUBLISHED


def sizes_of_journals(receiver: Receiver) -> int:
    total = 0
    for partial in receiver.partials:
        with contextlib.suppress(FileNotFoundError):  # in the making, or being removed
            total += (partial / "journal").stat().st_size
    return total


def test_the_trace_shows_every_file_get_its_name(trace: Trace) -> None:
    given = [os.path.relpath(each.target, trace.inbox) for each in trace.publications]
    assert sorted(given) == sorted([*PUBLISHED, "page"])


def test_bytes_and_attributes_are_durable_before_a_file_gets_its_name(trace: Trace) -> None:
    for each in trace.publications:
        changes = trace.changes(each.source, WRITES | ATTRIBUTES, each.began)
        assert {call.name for call in changes} & WRITES, each
        assert trace.synced(each.source, max(call.ended for call in changes), each.began), each


def test_the_intent_and_the_folder_it_lies_in_are_durable_before_a_file_gets_its_name(trace: Trace) -> None:
    for each in trace.publications:
        folder, staged = os.path.split(each.source)
        intent = f"{folder}/intent" if staged == "data" else f"{folder}/intents"
        written = trace.changes(intent, WRITES, each.began)
        assert trace.synced(intent, max(call.ended for call in written), each.began), each
        # Its entry in the folder, and that of the folder in the one above.
        assert trace.synced(folder, written[0].began, each.began), each
        (made,) = [call for call in trace.named("mkdirat") if call.target == folder]
        assert trace.synced(os.path.dirname(folder), made.ended, each.began), each


def test_folders_made_on_the_way_are_durable_with_their_parents_before_a_file_gets_its_name(
    trace: Trace,
) -> None:
    made = [call for call in trace.named("mkdirat") if "/.tdx" not in call.target]
    made = [call for call in made if call.target.startswith(trace.inbox + "/")]
    assert len(made) == len({str(folder) for name in PUBLISHED for folder in Path(name).parents}) - 1
    for folder in made:
        inside = [each for each in trace.publications if each.target.startswith(folder.target + "/")]
        assert inside, folder
        for each in inside:
            assert trace.synced(folder.target, folder.ended, each.began), each
            assert trace.synced(os.path.dirname(folder.target), folder.ended, each.began), each


def test_a_file_is_acknowledged_once_its_name_and_its_receipt_are_durable(trace: Trace) -> None:
    for each in trace.publications:
        receipt = trace.receipt(each)
        assert trace.synced(os.path.dirname(each.target), each.ended, receipt.began), each
        written = [
            call
            for call in trace.named("pwrite64")
            if each.ended < call.began < receipt.began and call.path.endswith("/receipts.sqlite3-wal")
        ]
        assert written, each
        assert trace.synced(written[0].path, max(call.ended for call in written), receipt.began, whole=False)


def test_a_file_is_acknowledged_once(trace: Trace) -> None:
    receipts = [call for call in trace.answers if b'"published"' in call.data]
    assert {call.ended for call in receipts} == {trace.receipt(each).ended for each in trace.publications}


def test_a_journal_speaks_of_bytes_that_have_been_written(trace: Trace) -> None:
    pieces = 0
    for journal, records in trace.journals.items():
        data = journal.replace("/journal", "/data")
        for record in records:
            if record.kind is Kind.PIECE:
                written = [call for call in trace.named("pwrite64") if call.path == data]
                spans = RangeSet(
                    Span(call.offset, call.offset + call.result)
                    for call in written
                    if call.ended < record.call.began
                )
                assert spans.covers(Span(record.a, record.b)), record
                pieces += 1
    assert pieces >= 17


def test_a_mark_comes_after_the_sync_of_all_that_it_covers(trace: Trace) -> None:
    marks = 0
    for journal, records in trace.journals.items():
        for number, record in enumerate(records):
            if record.kind is Kind.MARK:
                assert 0 < record.a <= number
                covered = records[record.a - 1].call.ended
                data = journal.replace("/journal", "/data")
                assert trace.synced(data, covered, record.call.began, whole=False), record
                assert trace.synced(journal, record.call.ended, len(trace.calls) ** 2, whole=False), record
                marks += 1
    assert marks


def test_an_upload_that_is_gone_on_with_is_durable_before_its_sender_is_told(trace: Trace) -> None:
    epochs = 0
    for journal, records in trace.journals.items():
        for record in records:
            if record.kind is Kind.EPOCH:
                told = trace.answer(record.call.began, lambda data: data.startswith(b"HTTP/1.1 201 "))
                assert trace.synced(journal, record.call.ended, told.began, whole=False), record
                folder = os.path.dirname(journal)
                (made,) = [call for call in trace.named("mkdirat") if call.target == folder]
                for path in (f"{folder}/meta", folder, os.path.dirname(folder)):
                    assert trace.synced(path, made.ended, told.began), path
                epochs += 1
    assert epochs == 1
