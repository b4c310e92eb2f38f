from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.config import default_config_file, format_address, parse_address, state_directory
from tdx.errors import ConfigError

# --- addresses ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8390", ("127.0.0.1", 8390)),
        ("[::1]:8390", ("::1", 8390)),
        ("[fe80::1%eth0]:8390", ("fe80::1%eth0", 8390)),
        ("desk.example:1", ("desk.example", 1)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("a:65535", ("a", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert format_address(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "8390",
        "localhost",
        ":8390",
        "host:",
        "host:x",
        "host:-1",
        "host:+1",
        "host: 1",
        "host:65536",
        "host:000001",
        "host:٣",
        "::1:8390",
        "::1",
        "[]:8390",
        "[::1]",
        "[::1]8390",
        "[127.0.0.1]:8390",
        "[host]:8390",
        "[::1\0]:8390",
        "a b:1",
        "a/b:1",
        "user@host:1",
        "[host:1",
        "ho\nst:1",
    ],
)
def test_anything_else_is_not_an_address(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


@given(st.text())
def test_any_text_is_an_address_or_an_error_of_the_configuration(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ConfigError:
        return
    assert host
    assert 0 <= port <= 65535


# --- where state is kept -----------------------------------------------------


def test_our_own_variable_comes_before_systemds() -> None:
    assert state_directory({"TDX_STATE_DIR": "/a:b", "STATE_DIRECTORY": "/c"}) == Path("/a:b")


def test_the_first_of_systemds_folders_is_taken() -> None:
    assert state_directory({"TDX_STATE_DIR": "", "STATE_DIRECTORY": "/var/lib/tdx:/other"}) == Path(
        "/var/lib/tdx"
    )


def test_otherwise_it_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/home/ann/.state")
    assert state_directory({}) == Path("/home/ann/.state/tdx")


def test_a_user_without_a_home_is_told_how_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(uid)

    for variable in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match="--state, or with TDX_STATE_DIR"):
        state_directory({})


@pytest.mark.parametrize("variable", ["TDX_STATE_DIR", "STATE_DIRECTORY"])
def test_a_relative_folder_is_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        state_directory({variable: "state"})


# --- where the configuration is ----------------------------------------------


def test_the_configuration_is_where_the_environment_says_even_if_it_is_missing(tmp_path: Path) -> None:
    assert default_config_file({"TDX_CONFIG": "/etc/tdx.toml"}) == Path("/etc/tdx.toml")


def test_otherwise_it_is_the_users_own_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_config_file({"TDX_CONFIG": ""}) is None
    (tmp_path / "tdx").mkdir()
    (tmp_path / "tdx" / "config.toml").touch()
    assert default_config_file({}) == tmp_path / "tdx" / "config.toml"


def test_a_user_without_a_home_has_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(uid)

    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert default_config_file({}) is None


# --- what it costs ------------------------------------------------------------


def test_what_a_push_asks_loads_nothing_of_a_receivers_configuration() -> None:
    script = "import sys, tdx.config; sys.exit('tdx.config.serve' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_the_configuration_does_not_offer_is_an_error_of_attributes() -> None:
    import tdx.config

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(tdx.config, "nonsense")  # noqa: B009
