"""What has arrived: of the receipts, what is still there."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.inboxes import ME, ArrivedIn, root_of
from tdx.errors import ConfigError, StorageError
from tdx.store.inbox import Inbox


@pytest.fixture
def arrived(tmp_path: Path) -> ArrivedIn:
    return ArrivedIn(tmp_path / "inbox", tmp_path / "state")


def test_what_arrived_is_listed_with_what_its_receipt_says_the_newest_last(arrived: ArrivedIn) -> None:
    arrived.arrive("z", b"one")
    arrived.arrive("deep/a", b"two!")
    with arrived.inbox() as inbox:
        first, second = inbox.files()
    assert (first.path, first.size, first.owner, first.verified) == ("z", 3, ME, True)
    assert (second.path, second.size, second.root) == ("deep/a", 4, root_of(b"two!"))
    assert (first.published_at, second.published_at) == (1001.0, 1002.0)


def test_what_is_gone_changed_or_came_by_other_means_is_not_listed(arrived: ArrivedIn) -> None:
    for name in ("gone", "grown", "a link now", "a folder now", "there"):
        arrived.arrive(name, b"content")
    (arrived.folder / "by hand").write_bytes(b"content")
    (arrived.folder / "gone").unlink()
    with (arrived.folder / "grown").open("ab") as file:
        file.write(b"more")
    for name in ("a link now", "a folder now"):
        (arrived.folder / name).unlink()
    (arrived.folder / "a link now").symlink_to("there")
    (arrived.folder / "a folder now").mkdir()
    assert arrived.paths() == ["there"]


def test_a_file_whose_receipt_has_expired_is_listed_with_the_time_of_its_inode(arrived: ArrivedIn) -> None:
    arrived.arrive("old", b"content")
    receipts = arrived.receipts()
    receipts.expire(1e12)
    receipts.close()
    with arrived.inbox() as inbox:
        (file,) = inbox.files()
    assert (file.root, file.verified, file.owner) == (None, None, ME)
    assert file.published_at == (arrived.folder / "old").stat().st_ctime


def test_what_cannot_be_looked_at_is_listed_without_a_time(
    arrived: ArrivedIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived.arrive("old", b"content")
    receipts = arrived.receipts()
    receipts.expire(1e12)
    receipts.close()
    with arrived.inbox(FaultySystem()) as inbox:
        assert isinstance(inbox.system, FaultySystem)
        inbox.system.fail("stat", 5, times=10)
        (file,) = inbox.files()
    assert file.published_at is None


def test_where_nothing_was_received_there_is_no_inbox_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert Inbox.find(tmp_path / "plain", tmp_path / "state") is None
    assert [path.name for path in tmp_path.rglob("*")] == ["plain"]


def test_a_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Inbox.find(tmp_path / "nowhere", tmp_path / "state")


def test_a_place_for_claims_that_is_a_link_is_refused(arrived: ArrivedIn) -> None:
    (arrived.folder / ".tdx" / "moving").symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="moving: cannot be opened"):
        arrived.inbox()


def test_a_file_is_claimed_by_one_at_a_time(arrived: ArrivedIn) -> None:
    for name in ("a", "b"):
        arrived.arrive(name, b"content")
    with arrived.inbox() as one, arrived.inbox() as other:
        first, second = one.files()
        with one.claimed(first) as mine:
            assert mine
            with other.claimed(first) as again, other.claimed(second) as another:
                assert (again, another) == (False, True)
        with other.claimed(first) as mine:
            assert mine


def test_what_has_been_forgotten_or_published_anew_cannot_be_claimed(arrived: ArrivedIn) -> None:
    for name in ("a", "b"):
        arrived.arrive(name, b"content")
    with arrived.inbox() as inbox:
        first, second = inbox.files()
        arrived.arrive("b", b"anew")
        inbox.forget([first.file])
        for each in (first, second):
            with inbox.claimed(each) as mine:
                assert not mine
    assert arrived.paths() == ["b"]


def _claim_and_die(arrived: ArrivedIn) -> None:
    with arrived.inbox() as inbox, inbox.claimed(inbox.files()[0]) as mine:
        os._exit(17 if mine else 1)


def test_the_claim_of_a_killed_process_is_nobodys(arrived: ArrivedIn) -> None:
    arrived.arrive("a", b"content")
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(arrived,))
    process.start()
    process.join(60)
    assert process.exitcode == 17
    with arrived.inbox() as inbox, inbox.claimed(inbox.files()[0]) as mine:
        assert mine


def test_a_claim_that_the_filesystem_cannot_make_is_a_storage_error(arrived: ArrivedIn) -> None:
    arrived.arrive("a", b"content")
    system = FaultySystem()
    with arrived.inbox(system) as inbox:
        file = inbox.files()[0]
        system.fail("lock_byte", 37)
        with pytest.raises(StorageError, match="cannot be claimed"), inbox.claimed(file):
            pass
        system.spoil("lock_byte", BlockingIOError(11, "held"))
        with inbox.claimed(file) as mine:
            assert not mine


def test_the_version_changes_with_what_others_write_and_not_with_what_this_one_does(
    arrived: ArrivedIn,
) -> None:
    arrived.arrive("a", b"content")
    with arrived.inbox() as inbox:
        before = inbox.version()
        inbox.forget([each.file for each in inbox.files()])
        assert inbox.version() == before
        arrived.arrive("b", b"content")
        assert inbox.version() != before


def test_receipts_that_were_put_aside_for_new_ones_are_opened_anew(arrived: ArrivedIn) -> None:
    arrived.arrive("a", b"content")
    with arrived.inbox() as inbox:
        before = inbox.version()
        for suffix in ("", "-wal", "-shm"):
            file = arrived.state / f"receipts.sqlite3{suffix}"
            if file.exists():
                file.rename(arrived.state / f"aside{suffix}")
        assert inbox.version() == before  # there are none just now
        arrived.arrive("b", b"content")
        assert inbox.version() != before
        assert [each.path for each in inbox.files()] == ["b"]
