"""``tdx peers``: who is known, from every source, and whether they take files."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import localapi
from support.commands import RunningReceiver, Tdx, parsed
from support.devices import introduce, trust
from support.localapi import ALICE, BOB, NONSENSE, LocalApiServer, peer_of, status_of
from tdx.identity.tls import TlsIdentities


@pytest.fixture
def tailscaled() -> Iterator[LocalApiServer]:
    with localapi.serving() as server:
        own = peer_of("n0", "here", ALICE, "100.64.0.1")
        server.status = status_of(
            own,
            peer_of("n3", "zoo", BOB, "100.64.0.4", Online=False),
            peer_of("n1", "desk", ALICE, "100.64.0.2", Online=False),
            peer_of("n2", "vm", ALICE, "100.64.0.3", tags=("tag:backup",), Online=False),
        )
        yield server


@pytest.fixture
def config(tmp_path: Path, tailscaled: LocalApiServer) -> Path:
    file = tmp_path / "tdx.toml"
    file.write_text(
        f'[tailscale]\nsocket = "{tailscaled.path}"\n'
        '[[wireguard]]\ninterface = "tdx-absent"\n[[wireguard.peer]]\nname = "office"\n'
        f'key = "{"A" * 43}="\nallowed_ips = ["127.0.0.99/32"]\n'
    )
    return file


def test_nobody_is_a_note_and_no_failure(tdx: Tdx, tmp_path: Path) -> None:
    (tmp_path / "tdx.toml").write_text("[tailscale]\nenabled = false\n")
    done = tdx("peers", "--config", tmp_path / "tdx.toml")
    assert (done.returncode, done.stdout) == (0, "")
    assert "tdx pair" in done.stderr


def test_everybody_is_listed_once_for_each_provider_in_a_stable_order(
    tdx: Tdx, config: Path, receiver: RunningReceiver, tmp_path: Path
) -> None:
    here = tmp_path / "laptop"
    introduce(tmp_path / "state", here, receiver.address)
    trust(here, "gone", tmp_path / "gone", "127.0.0.1:1")
    trust(here, "another", tmp_path / "another", receiver.address)
    done = tdx("peers", "--json", "--config", config, "--state", here)
    assert done.returncode == 0
    rows = parsed(done.stdout)
    assert [(row["name"], row["sources"], row["state"]) for row in rows] == [
        ("desk", ["tailscale"], "offline"),
        ("vm", ["tailscale"], "offline"),
        ("zoo", ["tailscale"], "offline"),
        ("office", ["wireguard tdx-absent"], "no answer"),
        ("another", ["paired"], "refuses"),
        ("gone", ["paired"], "no answer"),
        ("nas", ["paired"], "reachable"),
    ]
    by_name = {row["name"]: row for row in rows}
    assert [by_name[name]["who"] for name in ("desk", "vm", "zoo")] == [ALICE, "tag:backup", BOB]
    assert by_name["nas"]["who"] == TlsIdentities(tmp_path / "state").device.key
    assert (by_name["desk"]["own"], by_name["zoo"]["own"], by_name["nas"]["own"]) == (True, False, True)
    assert by_name["nas"]["reason"] is None
    assert "connection refused" in by_name["gone"]["reason"]
    assert "key" in by_name["another"]["reason"]
    again = tdx("peers", "--json", "--config", config, "--state", here)
    assert again.stdout == done.stdout


def test_the_table_is_aligned(tdx: Tdx, config: Path, receiver: RunningReceiver, tmp_path: Path) -> None:
    here = tmp_path / "laptop"
    introduce(tmp_path / "state", here, receiver.address)
    done = tdx("peers", "--config", config, "--state", here)
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["NAME", "WHO", "FROM", "PATH", "STATE"]
    assert len(lines) == 5
    column = heading.index("STATE")
    assert {line[column - 1] for line in lines} == {" "}
    assert [line[column:].partition(":")[0] for line in lines] == [
        *["offline"] * 3,
        "no answer",
        "reachable",
    ]
    assert TlsIdentities(tmp_path / "state").device.key[:16] + "…" in lines[-1]


def test_a_receiver_that_refuses_says_why(
    tdx: Tdx, receiver: RunningReceiver, config: Path, tmp_path: Path
) -> None:
    here = tmp_path / "laptop"
    trust(here, "nas", tmp_path / "state", receiver.address)
    (row,) = (
        row
        for row in parsed(tdx("peers", "--json", "--config", config, "--state", here).stdout)
        if row["name"] == "nas"
    )
    assert row["state"] == "refuses"
    assert "tdx pair" in row["reason"]


@pytest.mark.parametrize("trouble", ["no JSON", "mute"])
def test_a_silent_provider_is_a_line_and_the_others_are_listed(
    tdx: Tdx, config: Path, tailscaled: LocalApiServer, tmp_path: Path, trouble: str
) -> None:
    tailscaled.trouble["status"] = NONSENSE[trouble]
    trust(tmp_path / "state", "gone", tmp_path / "gone", "127.0.0.1:1")
    done = tdx("peers", "--json", "--config", config)
    assert done.returncode == 0
    assert [row["name"] for row in parsed(done.stdout)] == ["office", "gone"]
    assert len(done.stderr.splitlines()) == 1
    assert "tailscale" in done.stderr


def test_the_path_is_that_of_the_mesh(tdx: Tdx, config: Path, tailscaled: LocalApiServer) -> None:
    own = peer_of("n0", "here", ALICE, "100.64.0.1")
    moving = peer_of("n1", "desk", ALICE, "100.64.0.2", Active=True, CurAddr="192.0.2.1:41641", Online=False)
    tailscaled.status = status_of(own, moving)
    (desk, _) = parsed(tdx("peers", "--json", "--config", config).stdout)
    assert desk["path"] == "direct 192.0.2.1:41641"


def test_a_damaged_trust_store_is_78(tdx: Tdx, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "trust.json").write_text("{")
    done = tdx("peers")
    assert (done.returncode, done.stdout) == (78, "")
    assert "trust.json" in done.stderr


def test_a_timeout_of_nothing_is_64(tdx: Tdx) -> None:
    assert tdx("peers", "--timeout", "0").returncode == 64


def test_a_terminal_gets_one_line_of_its_width_for_each_peer(tdx: Tdx, config: Path, tmp_path: Path) -> None:
    trust(tmp_path / "state", "gone", tmp_path / "gone", "127.0.0.1:1")
    whole = tdx("peers", "--config", config).stdout.splitlines()
    ours, theirs = pty.openpty()
    try:
        done = tdx("peers", "--config", config, stdout=theirs, env={"COLUMNS": "60"})
        assert done.returncode == 0
        seen = os.read(ours, 65536).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert max(map(len, whole)) > 60
    assert seen == [line if len(line) <= 60 else f"{line[:59]}…" for line in whole]


def test_a_key_of_ones_own_that_cannot_be_used_is_78_and_no_refusal_of_theirs(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    state = tmp_path / "own"
    introduce(tmp_path / "theirs", state, receiver.address)
    (state / "device" / "key.pem").chmod(0o644)
    done = tdx("peers", "--state", state)
    assert (done.returncode, done.stdout) == (78, "")
    assert "key.pem" in done.stderr
