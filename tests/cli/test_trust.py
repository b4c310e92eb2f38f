from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.commands import Tdx, parsed
from support.devices import make
from tdx_cli.trust import command


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The certificate of another device."""
    file = tmp_path / "desk.pem"
    file.write_text(Tdx(tmp_path / "desk")("id", "--certificate").stdout)
    return file


def key(tmp_path: Path) -> str:
    facts = json.loads(Tdx(tmp_path / "desk")("id", "--json").stdout)
    assert isinstance(facts["key"], str)
    return facts["key"]


def test_a_device_is_added_listed_and_removed(tdx: Tdx, certificate: Path, tmp_path: Path) -> None:
    assert (tdx("trust", "list").returncode, tdx("trust", "list").stdout) == (0, "")
    done = tdx(
        "trust", "add", "desk", certificate, "--address", "192.0.2.1:9000", "--address", "desk.example"
    )
    assert (done.returncode, done.stdout) == (0, f"trusted: desk, key {key(tmp_path)}\n")
    (line,) = tdx("trust", "list").stdout.splitlines()
    name, shown_key, _, *addresses = line.split()
    assert (name, shown_key, addresses) == ("desk", key(tmp_path), ["192.0.2.1:9000", "desk.example"])
    done = tdx("trust", "remove", "desk")
    assert (done.returncode, done.stdout) == (0, f"removed: desk, key {key(tmp_path)}\n")
    assert tdx("trust", "list").stdout == ""


def test_scripts_get_events(tdx: Tdx, certificate: Path, tmp_path: Path) -> None:
    (added,) = parsed(tdx("trust", "add", "desk", certificate, "--json", "--address", "desk").stdout)
    assert list(added) == ["event", "name", "key", "addresses", "added"]
    facts = {"name": "desk", "key": key(tmp_path), "addresses": ["desk"], "added": added["added"]}
    assert added == {"event": "added", **facts}
    assert parsed(tdx("trust", "list", "--json").stdout) == [{"event": "trusted", **facts}]
    assert parsed(tdx("trust", "remove", key(tmp_path), "--json").stdout) == [{"event": "removed", **facts}]


def test_a_certificate_comes_from_standard_input_too(tdx: Tdx, certificate: Path) -> None:
    assert tdx("trust", "add", "desk", "-", input=certificate.read_text()).returncode == 0
    assert tdx("trust", "list").stdout.startswith("desk ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("add", "a b", "FILE"), 64, "cannot name a device"),
        (("add", "desk", "/no/such/file"), 64, "no such file"),
        (("add", "desk", "FILE", "--address", "a b"), 64, "not an address"),
        (("add", "desk"), 64, "missing argument"),
        (("add", "desk", os.devnull), 78, "is not one certificate in PEM"),
        (("remove", "desk"), 68, "no trusted device is called desk"),
        ((), 64, "missing command"),
        (("list", "desk"), 64, "unexpected extra argument"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tdx: Tdx, certificate: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = tdx("trust", *(str(certificate) if each == "FILE" else each for each in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr.lower().replace("PEM", "pem") or says in done.stderr


def test_a_key_is_no_certificate(tdx: Tdx, certificate: Path, tmp_path: Path) -> None:
    secret = (tmp_path / "desk" / "device" / "key.pem").read_text()
    for content in (secret, certificate.read_text() + secret, certificate.read_text() * 2):
        done = tdx("trust", "add", "desk", "-", input=content)
        assert done.returncode == 78
        assert "is not one certificate in PEM" in done.stderr
    assert tdx("trust", "list").stdout == ""


def test_a_certificate_that_could_vouch_for_others_is_78(tdx: Tdx) -> None:
    pem = make("evil", ca=True).certificate.public_bytes(Encoding.PEM).decode()
    done = tdx("trust", "add", "evil", "-", input=pem)
    assert (done.returncode, done.stdout) == (78, "")
    assert "it can vouch for other certificates" in done.stderr


def test_the_same_device_is_not_trusted_twice(tdx: Tdx, certificate: Path) -> None:
    assert tdx("trust", "add", "desk", certificate).returncode == 0
    done = tdx("trust", "add", "table", certificate)
    assert (done.returncode, done.stderr) == (64, "tdx: this device is trusted already, as desk\n")


def test_a_damaged_file_is_78_and_named(tdx: Tdx, certificate: Path, tmp_path: Path) -> None:
    tdx("trust", "add", "desk", certificate)
    (tmp_path / "state" / "trust.json").write_text("{")
    for arguments in (("list",), ("remove", "desk"), ("add", "other", str(certificate))):
        done = tdx("trust", *arguments)
        assert (done.returncode, done.stdout) == (78, "")
        assert "trust.json: is damaged" in done.stderr


def test_every_flag_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    for name, each in command.commands.items():
        assert f"tdx trust {name}" in text
        assert [
            flag for option in each.params for flag in option.opts if flag[0] == "-" and flag not in text
        ] == []


def test_who_is_trusted_by_hand_is_trusted_by_a_receiver_that_keeps_state_elsewhere(
    tdx: Tdx, tmp_path: Path
) -> None:
    config = tmp_path / "tdx.toml"
    config.write_text(f'state = "{tmp_path / "kept"}"\n')
    pem = Tdx(tmp_path / "other")("id", "--certificate").stdout
    here = {"TDX_CONFIG": str(config)}
    assert tdx("trust", "add", "laptop", "-", input=pem, env=here).returncode == 0
    assert tdx("id", env=here).returncode == 0
    assert {each.name for each in (tmp_path / "kept").iterdir()} >= {"trust.json", "device"}
    assert tdx("trust", "list").stdout == ""
    for asks in (("whois", "laptop"), ("policy", "check", "laptop")):
        assert tdx(*asks, "--config", config).returncode == 0, asks


def test_that_nobody_is_trusted_is_a_note_and_no_failure(tdx: Tdx) -> None:
    done = tdx("trust", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "tdx pair" in done.stderr
    assert tdx("trust", "list", "--json").stderr == ""
