from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tdx.config import Partial, ServeConfig, load, merge
from tdx.errors import ConfigError
from tdx.identity.settings import IdentitySettings, TailscaleSettings, WireguardPeer, WireguardSettings
from tdx.model import Conflict, FileName
from tdx.policy.admission import Limits
from tdx.policy.bandwidth import UNLIMITED, RateSchedule, Window
from tdx.policy.rules import Rule

KEY = "A" * 43 + "="

EVERYTHING = """
dir = "inbox"
listen = ["127.0.0.1:8390", "[::1]:0"]
metrics = "localhost:9390"
state = "/var/lib/tdx"
socket = "api.sock"
names = ["Files.Example", "b"]
allowed_origins = ["https://Files.Example", "http://localhost:3000"]
reserve = 1_000_000
log_level = "debug"
log_format = "json"
discover = true
announce = true
on_receive = ["bin/arrived", "--quiet"]
on_receive_timeout = "30s"
on_receive_at_once = 2
limit_rate = ["08:00-18:00 20M", "200M"]

[limits]
max_connections = 8
idle_timeout = 5
head_timeout = 2.5
max_file = 1_000_000_000_000

[tailscale]
enabled = false
socket = "ts.sock"

[[wireguard]]
interface = "wg0"
[[wireguard.peer]]
name = "laptop"
key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
allowed_ips = ["10.9.0.2/32", "fd00::2", "10.10.0.0/16"]
subnet = true

[[rule]]
name = "backup servers"
tag = "tag:backup"
into = "backups"
conflict = ["rename", "skip"]
quota = "50G"
max_file = 1000

[[rule]]
name = "not the kiosk"
allow = false
node = "Kiosk"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tdx.toml"


# --- the file ----------------------------------------------------------------


def test_a_file_may_say_everything(file: Path) -> None:
    file.write_text(EVERYTHING)
    config = merge(load(file), {})
    assert config == ServeConfig(
        folder=file.parent / "inbox",
        listen=(("127.0.0.1", 8390), ("::1", 0)),
        metrics=("localhost", 9390),
        state=Path("/var/lib/tdx"),
        socket=file.parent / "api.sock",
        names=frozenset({"files.example", "b"}),
        allowed_origins=frozenset({"https://files.example", "http://localhost:3000"}),
        reserve=1_000_000,
        log_level="debug",
        log_format="json",
        limits=Limits(max_connections=8, idle_timeout=5.0, head_timeout=2.5, max_file=10**12),
        identity=IdentitySettings(
            tailscale=TailscaleSettings(enabled=False, socket=file.parent / "ts.sock"),
            wireguard=(
                WireguardSettings(
                    "wg0",
                    (
                        WireguardPeer(
                            "laptop", KEY, ("10.9.0.2/32", "fd00::2/128", "10.10.0.0/16"), subnet=True
                        ),
                    ),
                ),
            ),
            discover=True,
        ),
        announce=True,
        on_receive=(str(file.parent / "bin" / "arrived"), "--quiet"),
        on_receive_timeout=30.0,
        on_receive_at_once=2,
        limit_rate=RateSchedule((Window(480, 1080, 20 * 2.0**20),), 200 * 2.0**20),
        rules=(
            Rule(
                "backup servers",
                tag="tag:backup",
                into=FileName("backups"),
                conflict=frozenset({Conflict.RENAME, Conflict.SKIP}),
                quota=50 << 30,
                max_file=1000,
            ),
            Rule("not the kiosk", allow=False, node="Kiosk"),
        ),
    )
    assert isinstance(config.limits.idle_timeout, float)


def test_a_file_may_say_nothing(file: Path) -> None:
    file.write_text("")
    assert load(file) == {}


def test_the_configuration_is_frozen() -> None:
    config = ServeConfig(folder=Path("/in"), state=Path("/state"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.reserve = 0  # type: ignore[misc]


def test_a_relative_path_is_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('dir = "in/box"\nstate = "../state"\n')
    monkeypatch.chdir(file.parent)
    found = load(Path(file.name))
    assert found.get("folder") == file.parent / "in" / "box"
    assert found.get("state") == file.parent / ".." / "state"


def test_a_program_without_a_slash_is_looked_for_on_the_path(file: Path) -> None:
    file.write_text('on_receive = ["arrived", "a/b"]\n')
    assert load(file).get("on_receive") == ("arrived", "a/b")


def test_a_tilde_is_the_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    file.write_text('dir = "~/inbox"\n')
    assert load(file).get("folder") == Path("/home/ann/inbox")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour = 1", "colour"),
        ("dir = 1", "dir"),
        ('dir = ""', "dir"),
        ('dir = "~no-such-user-at-all/x"', "dir"),
        ("state = []", "state"),
        ('listen = "127.0.0.1:1"', "listen"),
        ("listen = [1]", "listen"),
        ("listen = []", "listen"),
        ('listen = ["127.0.0.1"]', "listen"),
        ('metrics = ["127.0.0.1:1"]', "metrics"),
        ('metrics = "::1:9"', "metrics"),
        ('names = "a"', "names"),
        ('names = ["a", ""]', "names"),
        ("names = {a = 1}", "names"),
        ('allowed_origins = ["*"]', "allowed_origins"),
        ('allowed_origins = ["null"]', "allowed_origins"),
        ('allowed_origins = ["https://"]', "allowed_origins"),
        ('allowed_origins = ["https://a/b"]', "allowed_origins"),
        ('allowed_origins = ["https://*.example"]', "allowed_origins"),
        ('reserve = "1G"', "reserve"),
        ("reserve = -1", "reserve"),
        ("reserve = 1.5", "reserve"),
        ("reserve = true", "reserve"),
        ('log_level = "loud"', "log_level"),
        ("log_level = 1", "log_level"),
        ('log_format = "xml"', "log_format"),
        ("announce = 1", "announce"),
        ('discover = "yes"', "discover"),
        ('on_receive = "arrived"', "on_receive"),
        ("on_receive = []", "on_receive"),
        ('on_receive = [""]', "on_receive"),
        ("on_receive_timeout = 0", "on_receive_timeout"),
        ("on_receive_timeout = inf", "on_receive_timeout"),
        ("on_receive_timeout = true", "on_receive_timeout"),
        ('on_receive_timeout = "soon"', "on_receive_timeout"),
        ("on_receive_at_once = 0", "on_receive_at_once"),
        ("on_receive_at_once = 65", "on_receive_at_once"),
        ("on_receive_at_once = 1.5", "on_receive_at_once"),
        ("on_receive_at_once = true", "on_receive_at_once"),
        ("limits = 1", "limits"),
        ("[limits]\nmany = 1", "limits.many"),
        ("[limits]\nmax_connections = 0", "limits.max_connections"),
        ("[limits]\nmax_connections = 1.5", "limits.max_connections"),
        ("[limits]\nmax_connections = true", "limits.max_connections"),
        ("[limits]\nhead_timeout = -1", "limits.head_timeout"),
        ("[limits]\nhead_timeout = inf", "limits.head_timeout"),
        ("[limits]\nhead_timeout = nan", "limits.head_timeout"),
        ('[limits]\nhead_timeout = "10s"', "limits.head_timeout"),
        ("[limits]\nmax_file = 1e12", "limits.max_file"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_its_file(file: Path, text: str, key: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.message.startswith(f"{file}: {key} ")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "content",
    [b"dir = ", b"dir = 'a'\ndir = 'b'", b"\xff\xfe", b"a = " + b"[" * 100_000],
    ids=["cut short", "a key twice", "not UTF-8", "nested without end"],
)
def test_what_is_not_toml_is_an_error_of_the_configuration(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="not a TOML file") as caught:
        load(file)
    assert str(file) in caught.value.message


def test_a_file_that_is_not_there_or_a_folder_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


# --- merging -----------------------------------------------------------------

FOUND: Partial = {"folder": Path("/in"), "state": Path("/state")}


def test_the_defaults_are_the_usual_addresses_nobody_else_and_no_metrics() -> None:
    config = merge(FOUND, {})
    assert config == ServeConfig(folder=Path("/in"), state=Path("/state"))
    assert config.listen == ()
    assert config.rules == ()
    assert config.identity == IdentitySettings()
    assert not config.announce
    assert config.metrics is None
    assert config.limits == Limits()


def test_a_flag_beats_the_file() -> None:
    file: Partial = {**FOUND, "listen": (("a", 1), ("b", 2)), "reserve": 5, "names": frozenset({"a"})}
    flags: Partial = {"folder": Path("/other"), "listen": (("c", 3),), "reserve": 0, "metrics": ("d", 4)}
    config = merge(file, flags)
    assert config.folder == Path("/other")
    assert config.listen == (("c", 3),)
    assert config.reserve == 0
    assert config.metrics == ("d", 4)
    assert config.names == frozenset({"a"})


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    file: Partial = {**FOUND, "listen": (("a", 1),), "metrics": ("b", 2), "log_level": "error"}
    flags: Partial = {"folder": None, "listen": (), "metrics": None, "log_level": None, "names": frozenset()}
    assert merge(file, flags) == merge(file, {})


def test_limits_are_merged_field_by_field() -> None:
    file: Partial = {**FOUND, "limits": {"max_connections": 8, "max_file": 1000}}
    flags: Partial = {"limits": {"max_file": None, "streams_per_upload": 2}}
    assert merge(file, flags).limits == Limits(max_connections=8, max_file=None, streams_per_upload=2)


def test_a_folder_must_be_named() -> None:
    with pytest.raises(ConfigError, match="--dir"):
        merge({}, {})


def test_state_is_where_the_environment_says_when_nobody_else_does() -> None:
    assert merge({"folder": Path("/in")}, {}, {"TDX_STATE_DIR": "/s"}).state == Path("/s")
    assert merge(FOUND, {}, {"TDX_STATE_DIR": "/s"}).state == Path("/state")


def test_the_environment_is_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDX_STATE_DIR", "/mine")
    assert merge({"folder": Path("/in")}, {}).state == Path("/mine")


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    script = (
        "import sys, tdx.config\n"
        "print([name for name in ('tomllib', 'platformdirs', 'asyncio', 'base64') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "[]\n"


def test_a_flag_that_takes_the_limit_away_wins_over_the_file(file: Path) -> None:
    file.write_text('dir = "in"\nlimit_rate = "20M"\n')
    assert merge(load(file), {}).limit_rate == RateSchedule(rest=20 * 2.0**20)
    assert merge(load(file), {"limit_rate": None}).limit_rate == RateSchedule(rest=20 * 2.0**20)
    assert merge(load(file), {"limit_rate": UNLIMITED}).limit_rate == UNLIMITED


@pytest.mark.parametrize("value", ['"fast"', "-20", "true", '["1M", "2M"]', '["20M", 5]', '""'])
def test_what_is_no_rate_names_the_key(file: Path, value: str) -> None:
    file.write_text(f"limit_rate = {value}\n")
    with pytest.raises(ConfigError, match="limit_rate "):
        load(file)
