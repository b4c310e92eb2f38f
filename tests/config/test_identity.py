from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.config import load, load_identity, load_limit_rate, load_socket, load_state, merge
from tdx.errors import ConfigError
from tdx.identity.settings import IdentitySettings, TailscaleSettings, WireguardPeer, WireguardSettings
from tdx.policy.bandwidth import RateSchedule, Window

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER = base64.b64encode(bytes(range(1, 33))).decode()
PEER = f'[[wireguard]]\ninterface = "wg0"\n[[wireguard.peer]]\nname = "laptop"\nkey = "{KEY}"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tdx.toml"


def test_every_command_keeps_state_where_the_receivers_file_says(file: Path) -> None:
    file.write_text('dir = "in"\nstate = "kept"\n')
    elsewhere = {"TDX_STATE_DIR": "/elsewhere"}
    assert load_state(file, elsewhere) == file.parent / "kept"
    assert load_state(None, {**elsewhere, "TDX_CONFIG": str(file)}) == file.parent / "kept"
    assert load_state(file, elsewhere) == merge(load(file), {}, elsewhere).state


def test_without_a_word_about_state_in_the_file_the_environment_says_where_it_is(file: Path) -> None:
    file.write_text('dir = "in"\n')
    elsewhere = {"TDX_STATE_DIR": "/elsewhere", "XDG_CONFIG_HOME": str(file.parent)}
    assert load_state(file, elsewhere) == Path("/elsewhere")


def test_a_receiver_is_asked_at_the_socket_that_its_file_names(file: Path) -> None:
    file.write_text('socket = "here.sock"\nstate = "kept"\n')
    assert load_socket(file, {}) == file.parent / "here.sock"
    assert load_socket(file, {}) == merge({**load(file), "folder": Path("/in")}, {}).socket


def test_a_receiver_whose_file_names_no_socket_is_asked_where_its_state_is(file: Path) -> None:
    file.write_text('state = "kept"\n')
    assert load_socket(file, {}) == file.parent / "kept" / "receiver.sock"
    file.write_text("")
    assert load_socket(file, {"TDX_STATE_DIR": "/elsewhere"}) == Path("/elsewhere/receiver.sock")


def test_a_sender_reads_of_the_receivers_file_what_both_share(file: Path) -> None:
    file.write_text(
        f'dir = "in"\nlisten = ["a:1"]\ndiscover = true\n{PEER}[[rule]]\nname = "x"\nuser = "a"\n'
    )
    settings = load_identity(file, {})
    assert settings == IdentitySettings(
        wireguard=(WireguardSettings("wg0", (WireguardPeer("laptop", KEY),)),), discover=True
    )
    assert merge({**load(file), "state": Path("/s")}, {}).identity == settings


def test_a_sender_does_not_care_how_the_receiver_is_set_up(file: Path) -> None:
    file.write_text('listen = 1\nreserve = "much"\n')
    assert load_identity(file, {}) == IdentitySettings()


def test_a_sender_does_care_how_keys_are_spelled(file: Path) -> None:
    file.write_text("discovery = true")
    with pytest.raises(ConfigError, match=r"tdx\.toml: discovery is not a known key"):
        load_identity(file, {})


def test_a_sender_without_a_file_has_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_identity(None, {}) == IdentitySettings(
        TailscaleSettings(enabled=True, socket=None), (), False
    )


def test_a_sender_takes_the_file_that_the_environment_names_unless_it_is_given_one(file: Path) -> None:
    file.write_text("discover = true")
    empty = file.with_name("empty.toml")
    empty.touch()
    assert load_identity(None, {"TDX_CONFIG": str(file)}).discover
    assert not load_identity(empty, {"TDX_CONFIG": str(file)}).discover


def test_a_file_that_is_named_must_be_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_identity(None, {"TDX_CONFIG": str(file)})


def test_one_machine_may_be_reached_by_several_interfaces_under_several_names(file: Path) -> None:
    file.write_text(
        f'{PEER}[[wireguard]]\ninterface = "wg1"\n[[wireguard.peer]]\nname = "laptop-far"\nkey = "{KEY}"\n'
    )
    assert [each.interface for each in load_identity(file, {}).wireguard] == ["wg0", "wg1"]


WG = '[[wireguard]]\ninterface = "wg0"\n[[wireguard.peer]]\n'


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("tailscale = true", "tailscale must"),
        ("[tailscale]\nenabled = 1", "tailscale.enabled must"),
        ("[tailscale]\nsocket = 1", "tailscale.socket must"),
        ('[tailscale]\nsock = "a"', "tailscale.sock is not a known key"),
        ('"a\\u001b" = 1', "a\ufffd is not a known key"),
        ("wireguard = 1", "wireguard must be a list of tables"),
        ("[wireguard]", "wireguard must be a list of tables"),
        ("[[wireguard]]", "wireguard 1: interface is missing"),
        ("[[wireguard]]\ninterface = 1", "wireguard 1: interface must"),
        ('[[wireguard]]\ninterface = "a/b"', 'wireguard "a/b": interface is not'),
        ('[[wireguard]]\ninterface = "0123456789abcdef"', 'wireguard "0123456789abcdef": interface is not'),
        ('[[wireguard]]\ninterface = "a"\n' * 2, 'wireguard "a": interface is there twice'),
        ('[[wireguard]]\ninterface = "a"\npeers = 1', 'wireguard "a": peers is not a known key'),
        ('[[wireguard]]\ninterface = "a"\npeer = 1', 'wireguard "a": peer must be a list'),
        (WG + f'key = "{KEY}"', 'wireguard "wg0": peer 1: name is missing'),
        (WG + 'name = "b"', 'wireguard "wg0": peer "b": key is missing'),
        (WG + f'name = "b c"\nkey = "{KEY}"', 'wireguard "wg0": peer "b c": name may not'),
        (WG + f'name = "b:1"\nkey = "{KEY}"', 'wireguard "wg0": peer "b:1": name may not'),
        (PEER + "subnet = 1", 'wireguard "wg0": peer "laptop": subnet must'),
        (PEER + 'allowed_ips = "10.9.0.2/32"', 'wireguard "wg0": peer "laptop": allowed_ips must'),
        (PEER + 'allowed_ips = ["10.9.0.2/33"]', 'wireguard "wg0": peer "laptop": allowed_ips must'),
        (PEER + 'allowed_ips = ["10.9.0.2/24"]', 'wireguard "wg0": peer "laptop": allowed_ips must'),
        (PEER + 'allowed_ips = ["laptop"]', 'wireguard "wg0": peer "laptop": allowed_ips must'),
        (
            PEER + f'[[wireguard.peer]]\nname = "LAPTOP"\nkey = "{OTHER}"',
            'wireguard "wg0": peer "LAPTOP": name is there twice',
        ),
        (
            PEER + f'[[wireguard.peer]]\nname = "b"\nkey = "{KEY}"',
            'wireguard "wg0": peer "b": key is another',
        ),
        (
            PEER + 'allowed_ips = ["10.9.0.2"]\n[[wireguard.peer]]\nname = "b"\n'
            f'key = "{OTHER}"\nallowed_ips = ["10.9.0.2/32"]',
            'wireguard "wg0": peer "b": allowed_ips lists 10.9.0.2/32, which is another',
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_its_file(file: Path, text: str, where: str) -> None:
    file.write_text(text)
    for read in (load, lambda path: load_identity(path, {})):
        with pytest.raises(ConfigError) as caught:
            read(file)
        assert caught.value.message.startswith(f"{file}: {where}")


@pytest.mark.parametrize(
    "key",
    [KEY[:-1], KEY + "=", KEY[:-2] + "9=", "A" * 42 + "==", KEY.replace("=", "A"), " " + KEY, "é" * 44, "x"],
)
def test_a_key_is_32_bytes_written_in_the_one_way_in_which_wg_prints_them(file: Path, key: str) -> None:
    file.write_text(WG + f'name = "b"\nkey = "{key}"\n')
    with pytest.raises(ConfigError, match="key is not a WireGuard public key"):
        load_identity(file, {})


@given(st.binary(min_size=32, max_size=32))
def test_every_key_is_taken_as_it_is_printed(tmp_path_factory: pytest.TempPathFactory, key: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "keys.toml"
    printed = base64.b64encode(key).decode()
    file.write_text(WG + f'name = "b"\nkey = "{printed}"\n')
    assert load_identity(file, {}).wireguard[0].peers[0].key == printed


def test_a_sender_is_as_fast_as_the_file_says(file: Path) -> None:
    assert load_limit_rate(None, {"XDG_CONFIG_HOME": str(file.parent)}) is None
    file.write_text('dir = "in"\n')
    assert load_limit_rate(file, {}) is None
    file.write_text('limit_rate = "22:00-06:00 off, 1M"\n')
    expected = RateSchedule((Window(1320, 360, None),), 2.0**20)
    assert load_limit_rate(file, {}) == load_limit_rate(None, {"TDX_CONFIG": str(file)}) == expected
