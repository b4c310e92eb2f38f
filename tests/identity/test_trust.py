from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.devices import make
from support.together import together, with_a_start
from tdx.errors import ConfigError, UnknownPeer, UsageError
from tdx.identity.trust import TrustStore, check_address, check_name, name_fault

ONE = make("one").trusted("one")
TWO = replace(make("two").trusted("two"), addresses=("192.0.2.2", "two.example:9000"))


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "state")


def test_nobody_is_trusted_at_first(store: TrustStore) -> None:
    assert store.entries() == ()
    assert store.stamp() is None
    assert store.find("one") is None
    assert not store.path.parent.exists()


def test_what_was_added_is_there_for_others_too(store: TrustStore) -> None:
    store.add(ONE)
    store.add(TWO)
    assert store.entries() == TrustStore(store.path.parent).entries() == (ONE, TWO)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in store.path.parent.iterdir()] == ["trust.json"]


@pytest.mark.parametrize(
    "word",
    ["two", "TWO", TWO.key, TWO.key.upper(), f"tls:{TWO.key}"],
    ids=["name", "name in capitals", "key", "key in capitals", "owner"],
)
def test_a_device_goes_by_its_name_and_its_key(store: TrustStore, word: str) -> None:
    store.add(ONE)
    store.add(TWO)
    assert store.find(word) == TWO
    assert store.remove(word) == TWO
    assert store.entries() == (ONE,)


def test_to_remove_a_stranger_is_an_error(store: TrustStore) -> None:
    store.add(ONE)
    with pytest.raises(UnknownPeer, match="no trusted device is called two"):
        store.remove("two")
    assert store.entries() == (ONE,)


def test_a_name_belongs_to_one_key(store: TrustStore) -> None:
    store.add(ONE)
    for again in (False, True):
        with pytest.raises(UsageError, match=f"another device is called one already .*{ONE.key}"):
            store.add(replace(TWO, name="One"), replace=again)
    assert store.entries() == (ONE,)


def test_a_key_is_there_once_and_replaced_only_on_request(store: TrustStore) -> None:
    store.add(ONE)
    renamed = replace(ONE, name="uno", addresses=("192.0.2.7",), added=2.0)
    with pytest.raises(UsageError, match="trusted already, as one"):
        store.add(renamed)
    assert store.entries() == (ONE,)
    store.add(renamed, replace=True)
    assert store.entries() == (renamed,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a/b",
        "a:b",
        "-rf",
        ".hidden",
        "x" * 65,
        "127.0.0.1",
        "::1",
        "127.1",
        "0x7f000001",
        "1",
        "localhost",
        "f" * 64,
        "höst",
        "a\n",
    ],
)
def test_names_that_could_be_taken_for_something_else_are_refused(store: TrustStore, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a device"):
        store.add(replace(ONE, name=name))
    assert store.entries() == ()


@pytest.mark.parametrize(
    "address",
    ["192.0.2.1", "192.0.2.1:9000", "desk.example", "desk:1", "fd00::1", "[fd00::1]:9000", "[fe80::1%eth0]"],
)
def test_addresses_are_hosts_with_or_without_ports(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a b",
        "a/b",
        "desk:",
        ":8390",
        "desk:0",
        "desk:65536",
        "desk:x",
        "[desk]:1",
        "fd00::1:x",
        "a\n",
        "::%a\nb",
    ],
)
def test_what_is_no_address_is_refused(store: TrustStore, address: str) -> None:
    with pytest.raises(UsageError):
        store.add(replace(ONE, addresses=(address,)))
    assert store.entries() == ()


@given(st.text(max_size=80))
def test_a_name_that_passes_is_one_word_that_no_terminal_minds(name: str) -> None:
    if name_fault(name) is None:
        assert check_name(name) == name
        assert name.isprintable()
        assert not set(name) & set(" /:@[]%\\'\"$`")


def test_a_certificate_that_could_vouch_for_others_is_not_taken(store: TrustStore) -> None:
    with pytest.raises(ConfigError, match="certificate of evil cannot be trusted: it can vouch for other"):
        store.add(make("evil", ca=True).trusted("evil"))
    with pytest.raises(ConfigError, match=f"its key is not {TWO.key}"):
        store.add(replace(ONE, key=TWO.key))
    assert store.entries() == ()


def test_a_certificate_that_would_hide_another_is_not_taken(store: TrustStore) -> None:
    store.add(ONE)
    with pytest.raises(UsageError, match="same subject as the one of one"):
        store.add(make("one").trusted("copycat"))


def test_what_would_be_refused_can_be_asked_before(store: TrustStore) -> None:
    store.add(ONE)
    store.check(TWO)
    store.check(replace(ONE, name="uno"))
    with pytest.raises(UsageError, match="another device is called one already"):
        store.check(replace(TWO, name="one"))
    with pytest.raises(ConfigError, match="can vouch for other"):
        store.check(make("evil", ca=True).trusted("evil"))
    assert store.entries() == (ONE,)


def test_every_change_shows_in_the_stamp(store: TrustStore) -> None:
    entries = [replace(ONE, addresses=(f"192.0.2.{number}",)) for number in range(10, 40)]
    stamps = [store.stamp()]
    for entry in entries:
        store.add(entry, replace=True)
        stamps.append(store.stamp())
        assert store.entries() == (entry,)
    assert len(set(stamps)) == len(stamps)


def test_the_file_is_younger_than_the_one_before_whatever_the_clock_says(store: TrustStore) -> None:
    # A coarse clock, or one that was set back; size and inode may be those of an earlier file.
    store.add(ONE)
    ahead = store.path.stat().st_mtime_ns + 10**12
    os.utime(store.path, ns=(ahead, ahead))
    for expected in (1, 2):
        store.add(replace(ONE, added=float(expected)), replace=True)
        assert store.path.stat().st_mtime_ns == ahead + expected


def test_processes_that_add_at_once_lose_nothing(store: TrustStore) -> None:
    script = """
import os, sys
from pathlib import Path
from support.devices import make
from support.together import together, with_a_start
from tdx.identity.trust import TrustStore
store = TrustStore(Path(sys.argv[1]))
for number in range(10):
    name = f"device-{os.getpid()}-{number}"
    store.add(make(name).trusted(name))
"""
    together([sys.executable, "-c", with_a_start(script), str(store.path.parent)], 3)
    assert len(store.entries()) == 30


def damage(store: TrustStore, change: object) -> None:
    document = json.loads(store.path.read_text())
    assert isinstance(change, dict)
    document["trusted"][0] |= change
    store.path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 2, "trusted": []}',
        b'{"format": 1}',
        b'{"format":1,"trusted":{"a":1}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_named_and_trusts_nobody(store: TrustStore, content: bytes) -> None:
    store.add(ONE)
    store.path.write_bytes(content)
    for use in (
        store.entries,
        lambda: store.add(TWO),
        lambda: store.remove("one"),
        lambda: store.find("one"),
    ):
        with pytest.raises(ConfigError, match=r"trust\.json: is damaged"):
            use()
    assert store.path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a b"},
        {"name": 1},
        {"name": "two"},
        {"key": "abc"},
        {"key": TWO.key},
        {"key": "AB" * 32},
        {"key": None},
        {"certificate": "&&&&"},
        {"certificate": None},
        {"certificate": ""},
        {"addresses": "192.0.2.1"},
        {"addresses": [1]},
        {"addresses": [""]},
        {"addresses": ["a b"]},
        {"addresses": ["\x1b[31m"]},
        {"addresses": ["x" * 100_000 + " "]},
        {"added": "today"},
        {"added": True},
        {"added": -1},
        {"added": 1e300},
        {"added": 10**400},
        {"added": float("nan")},
        {"added": float("inf")},
    ],
)
def test_an_entry_that_was_never_written_like_that_is_damage(
    store: TrustStore, change: dict[str, object]
) -> None:
    store.add(ONE)
    store.add(TWO)
    damage(store, change)
    with pytest.raises(ConfigError, match=r"trust\.json: is damaged [^\n]{1,400}$"):
        store.entries()


def test_a_file_that_others_may_change_trusts_nobody(
    store: TrustStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(ONE)
    store.path.chmod(0o620)
    with pytest.raises(ConfigError, match="others may change it"):
        store.entries()
    store.path.chmod(0o644)
    assert store.entries() == (ONE,)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ConfigError, match="belongs to another user"):
        TrustStore(store.path.parent).entries()


def test_a_removed_file_is_noticed(store: TrustStore) -> None:
    store.add(ONE)
    store.path.unlink()
    assert store.entries() == ()
