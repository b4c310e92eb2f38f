"""A push that overwrites an earlier version sends what differs: the result, the bytes sent, the faults."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.faulty import FaultySystem
from support.datakit import pattern
from support.devices import introduce
from support.proxy import Fault, mistreating, once
from support.receiving import RunningReceiver, local_store, push, running
from support.vouching import Vouching
from tdx.control.progress import PushResult, Tally
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.errors import ConnectionLost, Forbidden, NoSpace
from tdx.integrity import BLOCK, MIN_EXTENT
from tdx.model import Conflict, FileName, Outcome
from tdx.policy.rules import Policy, Rule

EXTENT = MIN_EXTENT
SIZE = 6 * EXTENT + 12345
OLD = random.Random(1).randbytes(SIZE)
LONG_AGO = 1_600_000_000

pytestmark = pytest.mark.usefixtures("short_waits")


def changed(content: bytes, *places: tuple[int, int]) -> bytes:
    """With other bytes at these (offset, length)."""
    new = bytearray(content)
    for at, size in places:
        new[at : at + size] = bytes(byte ^ 0xFF for byte in new[at : at + size])
    return bytes(new)


def pages(*numbers: int) -> list[tuple[int, int]]:
    return [(number * BLOCK, BLOCK) for number in numbers]


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture
def receiver(tmp_path: Path, system: FaultySystem) -> Iterator[RunningReceiver]:
    with running(tmp_path, make_store=local_store(system)) as started:
        (started.folder / "disk.img").write_bytes(OLD)
        yield started
        system.heal()


def overwrite(
    receiver: RunningReceiver, folder: Path, new: bytes, peer: Peer | None = None, **options: Any
) -> PushResult:
    """Push ``new`` over what is there."""
    source = folder / "source"
    source.write_bytes(new)
    os.utime(source, (LONG_AGO, LONG_AGO))
    options = {"name": "disk.img", "conflict": Conflict.OVERWRITE, **options}
    return push(peer or receiver.peer, source, folder / "sender", **options)


@pytest.mark.parametrize(
    ("new", "sent"),
    [
        (changed(OLD, (EXTENT + 5, 1)), BLOCK),
        (changed(OLD, *pages(0, 1100, 1101, 5000)), 4 * BLOCK),
        (changed(OLD, (2 * EXTENT, EXTENT)), EXTENT),
        (OLD + b"appended", (SIZE + 8) % BLOCK),
        (OLD[: 5 * EXTENT], 0),
        (OLD[: 5 * EXTENT + 100], 0),
        (OLD[: EXTENT + 1], 0),
        (changed(OLD, (SIZE - 1, 1)), SIZE % BLOCK),
    ],
    ids=["a byte", "pages", "an extent", "grown", "cut", "cut in an extent", "cut short", "the last byte"],
)
def test_only_the_blocks_that_differ_are_sent(
    receiver: RunningReceiver, tmp_path: Path, new: bytes, sent: int
) -> None:
    tally = Tally()
    result = overwrite(receiver, tmp_path, new, tally=tally)
    assert receiver.visible() == {"disk.img": new}
    assert (result.outcome, result.path) == (Outcome.PUBLISHED, "disk.img")
    assert (result.sent_bytes, result.reused_bytes) == (sent, len(new) - sent)
    assert receiver.metrics.reused_bytes.value() == len(new) - sent
    assert receiver.metrics.received_bytes.value(("tdx",)) == sent
    assert receiver.staged() == []


EDITS = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK)), max_size=12)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, length=st.integers(EXTENT + 1, SIZE + EXTENT))
def test_of_any_change_the_result_is_the_new_file_and_little_is_sent(
    receiver: RunningReceiver, tmp_path: Path, edits: list[tuple[int, int]], length: int
) -> None:
    (receiver.folder / "disk.img").write_bytes(OLD)
    new = changed((OLD + pattern(EXTENT))[:length], *edits)
    result = overwrite(receiver, tmp_path, new)
    assert receiver.visible() == {"disk.img": new}
    touched = sum(size // BLOCK + 2 for _, size in edits) * BLOCK
    grown = max(0, length - SIZE)
    assert result.sent_bytes <= touched + grown + (BLOCK if grown else 0)
    if result.outcome is Outcome.PUBLISHED:
        assert result.sent_bytes + result.reused_bytes == length


def test_the_same_content_is_identical_and_nothing_is_written(
    receiver: RunningReceiver, tmp_path: Path, system: FaultySystem
) -> None:
    result = overwrite(receiver, tmp_path, OLD)
    assert (result.outcome, result.sent_bytes, result.reused_bytes) == (Outcome.IDENTICAL, 0, 0)
    assert "copy_file_range" not in system.log


def test_of_another_file_altogether_samples_are_enough(
    receiver: RunningReceiver, tmp_path: Path, system: FaultySystem
) -> None:
    (receiver.folder / "disk.img").write_bytes(OLD * 2)
    new = changed(OLD * 2, (0, 2 * SIZE))
    tally = Tally()
    result = overwrite(receiver, tmp_path, new, tally=tally)
    assert (result.sent_bytes, result.reused_bytes) == (2 * SIZE, 0)
    assert receiver.visible() == {"disk.img": new}
    assert tally.checked == 4 * EXTENT


def test_extents_that_differ_mostly_go_as_a_whole(receiver: RunningReceiver, tmp_path: Path) -> None:
    most = [page for page in range(1024) if page % 5]
    new = changed(OLD, *pages(*most))
    result = overwrite(receiver, tmp_path, new)
    assert result.sent_bytes == EXTENT
    assert receiver.visible() == {"disk.img": new}


@pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.OVERWRITE])
def test_all_is_sent_to_whom_wants_it_or_keeps_both(
    receiver: RunningReceiver, tmp_path: Path, conflict: Conflict
) -> None:
    new = changed(OLD, (5, 1))
    result = overwrite(receiver, tmp_path, new, conflict=conflict, whole=True)
    assert (result.sent_bytes, result.reused_bytes) == (SIZE, 0)
    result = overwrite(receiver, tmp_path, changed(OLD, (6, 1)), conflict=Conflict.RENAME)
    assert result.sent_bytes == SIZE


def test_a_receiver_that_does_not_know_of_it_gets_all(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def knows_nothing(*_: object) -> None:
        """The field means nothing to it."""

    monkeypatch.setattr("tdx.control.files.base_size", knows_nothing)
    new = changed(OLD, (5, 1))
    assert overwrite(receiver, tmp_path, new).sent_bytes == SIZE
    assert receiver.visible() == {"disk.img": new}


@pytest.mark.parametrize("size", [SIZE, SIZE - EXTENT])
def test_holes_stay_holes(receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(OLD[:EXTENT])
        file.truncate(size)
    result = push(receiver.peer, source, tmp_path / "sender", name="disk.img", conflict=Conflict.OVERWRITE)
    assert (result.sent_bytes, result.reused_bytes) == (0, EXTENT)
    assert receiver.visible() == {"disk.img": source.read_bytes()}


def test_over_tls_it_is_the_same(receiver: RunningReceiver, tmp_path: Path) -> None:
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    new = changed(OLD, *pages(0, 1100, 5000), (2 * EXTENT, EXTENT))
    options = SenderOptions(state=state, stall_timeout=10.0)
    result = overwrite(receiver, tmp_path, new, Peer("nas"), sender=options)
    assert result.sent_bytes == 3 * BLOCK + EXTENT
    assert receiver.visible() == {"disk.img": new}


# --- what may be taken ----------------------------------------------------------


def granting(tmp_path: Path, **bounds: Any) -> Any:
    provider = Vouching("tailscale:n1", name="tailscale", own=False)
    return running(tmp_path, providers=[provider]), Policy([Rule("guests", user="somebody", **bounds)])


def test_only_the_file_in_the_folder_granted_is_taken_from(tmp_path: Path) -> None:
    started, policy = granting(tmp_path, into=FileName("guests"))
    new = changed(OLD, (5, 1))
    with started as receiver:
        receiver.running.policy = policy
        (receiver.folder / "disk.img").write_bytes(OLD)
        assert overwrite(receiver, tmp_path, OLD).sent_bytes == SIZE
        assert overwrite(receiver, tmp_path, new).sent_bytes == BLOCK
        assert receiver.visible() == {"disk.img": OLD, "guests/disk.img": new}


def test_who_may_not_overwrite_takes_nothing(tmp_path: Path) -> None:
    started, policy = granting(tmp_path, conflict=frozenset({Conflict.RENAME}))
    with started as receiver:
        receiver.running.policy = policy
        (receiver.folder / "disk.img").write_bytes(OLD)
        with pytest.raises(Forbidden):
            overwrite(receiver, tmp_path, changed(OLD, (5, 1)))


# --- faults ---------------------------------------------------------------------


def replaced(path: Path) -> None:
    path.with_name("other").write_bytes(bytes(SIZE))
    path.with_name("other").rename(path)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def written_to(path: Path) -> None:
    path.write_bytes(changed(OLD, (0, SIZE)))


def cut(path: Path) -> None:
    os.truncate(path, EXTENT // 2)


@pytest.mark.parametrize("happen", [replaced, linked, written_to, cut, Path.unlink])
@pytest.mark.parametrize("call", ["copy_file_range", "pwrite"])
def test_an_old_file_that_changes_meanwhile_spoils_nothing(
    receiver: RunningReceiver,
    tmp_path: Path,
    system: FaultySystem,
    happen: Callable[[Path], None],
    call: str,
) -> None:
    """While the third extent is copied, or as blocks are written."""
    new, calls = changed(OLD, *pages(0, 1100, 5000)), 0

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if name == "clone_range":
            raise OSError(95, "not here")
        calls += name == call and (name != "pwrite" or len(arguments[1]) == BLOCK)
        if calls == (3 if call == "copy_file_range" else 1):
            calls = 1000
            happen(receiver.folder / "disk.img")

    system.before = before
    result = overwrite(receiver, tmp_path, new)
    assert calls >= 1000
    assert (receiver.folder / "disk.img").read_bytes() == new
    assert result.outcome is Outcome.PUBLISHED


def test_an_old_file_that_cannot_be_read_is_done_without(
    receiver: RunningReceiver, tmp_path: Path, system: FaultySystem
) -> None:
    device = (receiver.folder / "disk.img").stat().st_ino

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        broken = name in ("clone_range", "copy_file_range", "preadv")
        if broken and os.fstat(arguments[0]).st_ino == device:
            raise OSError(5, "the disk is dying")

    system.before = before
    new = changed(OLD, (5, 1))
    assert overwrite(receiver, tmp_path, new).sent_bytes == SIZE
    assert (receiver.folder / "disk.img").read_bytes() == new


def test_a_disk_that_gets_full_is_73_and_the_old_file_stays(
    receiver: RunningReceiver, tmp_path: Path, system: FaultySystem
) -> None:
    def before(name: str, _arguments: tuple[Any, ...]) -> None:
        if name in ("clone_range", "copy_file_range"):
            raise OSError(28, "full")

    system.before = before
    with pytest.raises(NoSpace):
        overwrite(receiver, tmp_path, changed(OLD, (5, 1)))
    assert receiver.visible() == {"disk.img": OLD}


SCATTERED = changed(OLD, *pages(*range(0, 6000, 40)))


@pytest.mark.parametrize("after", [1000, 3000, 40_000, 100_000, 300_000])
@pytest.mark.parametrize("kind", ["cut", "reset", "lose-answers"])
def test_a_connection_that_breaks_costs_little(
    receiver: RunningReceiver, tmp_path: Path, kind: str, after: int
) -> None:
    with mistreating(receiver.port, once(Fault(kind, after))) as proxy:
        result = overwrite(receiver, tmp_path, SCATTERED, proxy.peer)
    assert receiver.visible() == {"disk.img": SCATTERED}
    assert result.sent_bytes <= 2 * 150 * BLOCK
    assert result.outcome is Outcome.PUBLISHED


@pytest.mark.parametrize("after", [3000, 40_000, 300_000, 500_000])
def test_a_run_that_was_cut_short_is_resumed(receiver: RunningReceiver, tmp_path: Path, after: int) -> None:
    options = SenderOptions(retries=0, stall_timeout=10.0)
    with mistreating(receiver.port, lambda _: Fault("cut", after)) as proxy, pytest.raises(ConnectionLost):
        overwrite(receiver, tmp_path, SCATTERED, proxy.peer, sender=options)
    receiver.restart()
    assert receiver.visible() == {"disk.img": OLD}
    result = overwrite(receiver, tmp_path, SCATTERED, resume=True)
    assert result.sent_bytes <= 151 * BLOCK
    assert receiver.visible() == {"disk.img": SCATTERED}


def test_bytes_that_are_damaged_on_their_way_are_sent_again(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    """In the blocks of a patch: its extents are not recorded, and go as a whole."""
    with mistreating(receiver.port, once(Fault("flip", 200_000))) as proxy:
        result = overwrite(receiver, tmp_path, SCATTERED, proxy.peer)
    assert receiver.visible() == {"disk.img": SCATTERED}
    assert result.outcome is Outcome.PUBLISHED


def test_a_receiver_that_is_killed_holds_only_what_it_has_read_again(
    receiver: RunningReceiver, tmp_path: Path, system: FaultySystem
) -> None:
    """Spoilt behind its back after it was taken, and before it was recorded: it is not recorded."""
    spoilt = 0

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal spoilt
        if name == "clone_range":
            raise OSError(95, "not here")
        if name == "preadv" and not spoilt and arguments[2] == EXTENT:
            (staged,) = receiver.staged()
            with (staged / "data").open("r+b") as file:
                if file.seek(0, 2) > EXTENT:
                    file.seek(EXTENT + 10)
                    file.write(b"spoilt")
                    spoilt = 1

    system.before = before
    new = changed(OLD, (5 * EXTENT, 1))
    overwrite(receiver, tmp_path, new)
    assert spoilt
    assert receiver.visible() == {"disk.img": new}
