"""What a person's files say: the configuration, and the devices that are trusted."""

from __future__ import annotations

import base64
import functools
from pathlib import Path

from fuzz.target import Target, folder, is_for_people
from tdx.config import format_address, load, load_identity, load_state, merge, parse_address
from tdx.config.batch import load_batch
from tdx.errors import ConfigError, UsageError
from tdx.identity.device import load_or_make
from tdx.identity.trust import TRUST_FILE, Trusted, TrustStore, _written, check_address, check_name
from tdx.model import Conflict
from tdx.proto.names import check_name as check_file_name


def configuration(data: bytes) -> None:
    """A file is a configuration that makes sense, or one line that says where it does not."""
    path = folder() / "config.toml"
    path.write_bytes(data)
    try:
        found = load(path)
        config = merge(found, {"folder": Path("/inbox"), "state": Path("/state")})
    except ConfigError as error:
        is_for_people(error)
        return
    for host, port in (*config.listen, *([config.metrics] if config.metrics else [])):
        assert 0 <= port < 65536
        assert parse_address(format_address((host, port))) == (host, port)
    assert config.reserve >= 0
    assert len({rule.name for rule in config.rules}) == len(config.rules)
    for rule in config.rules:
        assert rule.name.isprintable()
        assert rule.conflict
        assert rule.into is None or check_file_name(rule.into) == rule.into
        assert all(most is None or most > 0 for most in (rule.quota, rule.max_file))
    for limit in (config.limits.max_connections, config.limits.stall_timeout, config.limits.head_timeout):
        assert limit > 0
    assert load_identity(path, {}) == config.identity
    assert load_state(path, {"TDX_STATE_DIR": "/state"}).is_absolute()


FILE = """
dir = "~/inbox"
listen = ["127.0.0.1:8390", "[::1]:8390"]
metrics = "localhost:0"
names = ["files.example"]
allowed_origins = ["https://files.example"]
reserve = 1_000
log_level = "info"
announce = false
discover = true
[limits]
max_connections = 512
stall_timeout = 1.5
"""
RULES = """
[[rule]]
name = "backup"
tag = "tag:backup"
into = "backups"
quota = "50G"
max_file = 5
conflict = ["rename", "skip"]
[[rule]]
name = "b"
key = "tls:00"
allow = false
"""
NETWORKS = f"""
state = "s"
[tailscale]
enabled = true
socket = "/run/t.sock"
[[wireguard]]
interface = "wg0"
[[wireguard.peer]]
name = "laptop"
key = "{base64.b64encode(bytes(32)).decode()}"
allowed_ips = ["10.9.0.2/32"]
subnet = false
"""


BATCH = """
name = "nightly"
parallel = 2
jitter = "15m"
timeout = 3600
[defaults]
peers = ["nas", "desk:8390"]
conflict = "overwrite"
limit_rate = "20M"
[[item]]
name = "a"
sources = ["~/x", "$DATA/**/*.jpg", "[[]y"]
into = "b/c"
recursive = true
retries = 3
digest = "sha-256"
[[item]]
name = "b"
sources = ["/z"]
as = "w"
streams = 4
stall_timeout = 1.5
"""


def batch(data: bytes) -> None:
    """A file is a batch of which every item says what goes where and how, or one line that says where it does
    not."""
    path = folder() / "batch.toml"
    path.write_bytes(data)
    try:
        found = load_batch(path, {"DATA": "/srv/*"})
    except ConfigError as error:
        is_for_people(error)
        return
    assert len({item.name for item in found.items}) == len(found.items) > 0
    assert 0 < found.parallel <= 64
    assert all(most is None or most > 0 for most in (found.jitter, found.timeout))
    for item in found.items:
        assert item.name.isprintable()
        assert item.conflict in Conflict
        assert item.peers
        assert item.sources
        assert all(source.startswith("/") and "\0" not in source for source in item.sources)
        for name in (item.into, item.called):
            assert name is None or check_file_name(name) == name
        assert all(most is None or most > 0 for most in (item.timeout, item.stall_timeout))
        slowest = None if item.limit_rate is None else item.limit_rate.slowest
        assert slowest is None or slowest > 0


def _configurations() -> list[bytes]:
    return [
        FILE.encode(),
        RULES.encode(),
        NETWORKS.encode(),
    ]


@functools.cache
def _device() -> Trusted:
    device = load_or_make(folder() / "device", "other")
    return Trusted("laptop", device.key, device.certificate, ("10.0.0.2:8390", "[::1]:1", "laptop"), 5.0)


def trust_file(data: bytes) -> None:
    """A file of trusted devices says whom to trust, without two of one name or key and in the words that
    could be written there, or nobody is trusted."""
    home = folder() / "trust"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / TRUST_FILE).write_bytes(data)
    try:
        found = TrustStore(home).entries()
    except ConfigError as error:
        is_for_people(error)
        return
    assert len({each.name.lower() for each in found}) == len({each.key for each in found}) == len(found)
    for each in found:
        assert check_name(each.name) == each.name
        assert len(each.key) == 64
        assert all(check_address(address) == address for address in each.addresses)
        assert TrustStore(home).find(each.key) == each
        assert TrustStore(home).find(each.name.upper()) == each
    (home / TRUST_FILE).write_bytes(_written(found))
    assert TrustStore(home).entries() == found


def device_name(data: bytes) -> None:
    """The name of a device cannot be mistaken for an address or a key, nor an address for anything else."""
    text = data.decode("utf-8", "surrogateescape")
    for check in (check_name, check_address):
        try:
            assert check(text) == text
        except UsageError as error:
            is_for_people(error)
        else:
            assert text.isprintable()
            assert not set(text) & set(" /@#?'\"")


TARGETS = {
    "configuration": Target(
        configuration,
        _configurations,
        [
            *(
                b"\n[",
                b"\n[[rule]]\n",
                b"\n[[wireguard.peer]]\n",
                b"\n[limits]\n",
                b"\ninto = ",
                b"\nquota = ",
            ),
            *rb"nan -inf 1979-05-27 99999999999999999999 ../x \u001b {} [] 0.0.0.0/0 ~nobody/ \u0000".split(),
        ],
    ),
    "batch": Target(
        batch,
        lambda: [BATCH.encode()],
        [
            *(b"\n[[item]]\n", b"\n[defaults]\n", b"\npeer = ", b"\nconflict = ", b"\nsources = "),
            *rb"nan -inf 1e999 1979-05-27 ${DATA} $$ $X ~nobody/ \u0000 .. {} []".split(),
        ],
    ),
    "trust_file": Target(
        trust_file,
        lambda: [_written([]), _written([_device()])],
        rb'null NaN 1e999 "localhost" "127.1" "trusted":[ \ud800 { [ true'.split(),
    ),
    "device_name": Target(
        device_name,
        lambda: [b"laptop", b"10.0.0.2:8390", b"[fd7a::1]:1", b"host.example:65535", b"0" * 64],
        [b"\n", *b": [ ] %eth0 . 0x7f :: 99999".split()],
    ),
}
