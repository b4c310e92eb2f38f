from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.commands import RunningReceiver, Tdx, parsed

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
KEY = "A" * 43 + "="

RULES = f"""
[limits]
max_file = 1024

[[wireguard]]
interface = "wg0"
[[wireguard.peer]]
name = "laptop"
key = "{KEY}"

[[rule]]
name = "no tags"
allow = false
tag = "tag:a"

[[rule]]
name = "guests"
provider = "tailscale"
user = "ann"
node = "desk"
capability = "c"
into = "guests"
conflict = ["skip"]
quota = "1k"
max_file = "1M"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tdx.toml"
    file.write_text(RULES)
    return file


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_who_is_allowed_is_told_by_which_rule_and_what(tdx: Tdx, config: Path) -> None:
    described = ("--user", "ann", "--node", "Desk", "--capability", "b", "--capability", "c")
    done = tdx("policy", "check", "tailscale:n1", "--config", config, *described, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert answer(done) == {
        "event": "policy",
        "identity": {
            "owner": "tailscale:n1",
            "provider": "tailscale",
            "user": "ann",
            "node": "Desk",
            "tags": [],
            "capabilities": ["b", "c"],
            "own": False,
        },
        "allowed": True,
        "rule": "guests",
        "rules": [
            {"rule": "no tags", "decides": False, "reason": "tag is none, not tag:a"},
            {"rule": "guests", "decides": True, "reason": "matches and allows"},
        ],
        "grant": {"into": "guests", "conflict": ["skip"], "quota": 1024, "max_file": 1024},
    }


def test_who_is_refused_is_told_what_would_allow_it(tdx: Tdx, config: Path) -> None:
    done = tdx("policy", "check", "tailscale:n1", "--config", config, "--user", "bob", "--json")
    assert done.returncode == 77
    assert done.stderr.startswith("tdx: rule `default`: no rule allows bob on n1 [tailscale:n1]; ")
    assert '[[rule]] with key = "tailscale:n1"' in done.stderr
    found = answer(done)
    assert (found["allowed"], found["rule"], found["grant"]) == (False, "default", None)
    assert [each["rule"] for each in found["rules"]] == ["no tags", "guests", "yourself", "default"]


def test_a_rule_that_refuses_beats_being_oneself(tdx: Tdx, config: Path) -> None:
    done = tdx(
        "policy", "check", "tailscale:n1", "--config", config, "--own", "--tag", "tag:b", "--tag", "tag:a"
    )
    assert done.returncode == 77
    assert done.stdout.splitlines()[-1] == "  rule `no tags`: matches and refuses"


def test_what_this_machine_knows_of_an_identity_is_filled_in(tdx: Tdx, config: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "desk.pem"
    certificate.write_text(Tdx(tmp_path / "desk")("id", "--certificate").stdout)
    tdx("trust", "add", "desk", certificate)
    key = answer(tdx("trust", "list", "--json"))["key"]
    for text, node in (
        (f"wireguard:{KEY}", "laptop"),
        (f"tls:{key}", "desk"),
        (f"local:{os.getuid()}", None),
    ):
        done = tdx("policy", "check", text, "--config", config, "--json")
        assert (done.returncode, answer(done)["rule"]) == (0, "yourself")
        assert node in (None, answer(done)["identity"]["node"])
    for text in ("wireguard:" + "B" * 43 + "=", "tls:" + "0" * 64, f"local:{os.getuid() + 1}"):
        done = tdx("policy", "check", text, "--config", config, "--json")
        assert (done.returncode, answer(done)["rule"]) == (77, "default")


def test_the_configuration_is_the_one_that_serve_would_read(tdx: Tdx, config: Path, tmp_path: Path) -> None:
    nowhere = {"XDG_CONFIG_HOME": str(tmp_path / "none")}
    stranger = ("policy", "check", "tailscale:n1")
    assert "there is no configuration" in tdx(*stranger, env=nowhere).stdout
    assert f"by {config}" in tdx(*stranger, env={"TDX_CONFIG": str(config)}).stdout
    (tmp_path / "tdx").mkdir()
    own = config.rename(tmp_path / "tdx" / "config.toml")
    assert f"by {own}" in tdx(*stranger, env={"XDG_CONFIG_HOME": str(tmp_path)}).stdout


def test_a_name_is_enough_for_who_has_one_here(tdx: Tdx, config: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "desk.pem"
    certificate.write_text(Tdx(tmp_path / "desk")("id", "--certificate").stdout)
    tdx("trust", "add", "desk", certificate, "--address", "192.0.2.9")
    for text, provider in (("laptop", "wireguard"), ("Desk", "tls"), ("192.0.2.9", "tls")):
        done = tdx("policy", "check", text, "--config", config, "--json")
        assert (done.returncode, answer(done)["identity"]["provider"]) == (0, provider)
    alone = tmp_path / "alone.toml"
    alone.write_text("")
    assert tdx("policy", "check", "nobody", "--config", alone).returncode == 68


@pytest.mark.parametrize("text", ["", ":", "tls:", "wg:x", "local:root", "local:-1", "tls:a\x1b"])
def test_what_is_no_identity_is_an_error_of_usage(tdx: Tdx, config: Path, text: str) -> None:
    done = tdx("policy", "check", text, "--config", config)
    assert (done.returncode, done.stdout) == (64, "")


def test_a_configuration_that_is_wrong_is_named(tdx: Tdx, config: Path) -> None:
    config.write_text('[[rule]]\nname = "everybody"\n')
    done = tdx("policy", "check", "tailscale:n1", "--config", config)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f'tdx: {config}: rule "everybody": matches nobody')


# --- a receiver with rules -----------------------------------------------------


def test_a_receiver_holds_its_callers_to_its_rules(tdx: Tdx, tmp_path: Path) -> None:
    folder, small, large = tmp_path / "in", tmp_path / "small", tmp_path / "large"
    folder.mkdir(mode=0o700)
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 5001)
    config = tmp_path / "tdx.toml"
    config.write_text(
        f'dir = "in"\n[[rule]]\nname = "me"\nkey = "local:{os.getuid()}"\ninto = "mine"\n'
        'conflict = ["rename", "skip"]\nquota = 2000\nmax_file = 5000\n'
    )
    receiver = RunningReceiver(tdx, folder, tmp_path / "log", ["--config", str(config)])
    try:
        done = tdx("push", small, receiver.address, "--json")
        assert (done.returncode, parsed(done.stdout)[-1]["path"]) == (0, "mine/small")
        again = tdx("push", small, receiver.address, "--json")
        assert (again.returncode, parsed(again.stdout)[-1]["event"]) == (0, "identical")
        for more, code, says in (
            ((small, receiver.address, "--conflict", "overwrite"), 77, "rule `me` does not allow --conflict"),
            ((large, receiver.address), 73, "at most 5000 are taken by rule `me`"),
            ((small, receiver.address, "--name", "copy"), 0, ""),
            ((small, receiver.address, "--name", "third"), 73, "rule `me` gives a quota of 2000 bytes: 2000"),
        ):
            done = tdx("push", *more, "-q")
            assert (done.returncode, says in done.stderr) == (code, True)
        assert receiver.visible() == ["mine/copy", "mine/small"]
    finally:
        assert receiver.stop() == 0


# --- the page ------------------------------------------------------------------

EXAMPLE = re.search(r"```toml\n(.*?)```", DOCS, re.DOTALL)
CHECKS = re.findall(r"    \$ (tdx policy check .*)\n((?:    [^$].*\n)+)", DOCS)


def test_the_page_shows_commands() -> None:
    assert len(CHECKS) == 3


@pytest.mark.parametrize(("command", "output"), CHECKS, ids=[command for command, _ in CHECKS])
def test_the_rules_of_the_page_do_what_it_says(tdx: Tdx, tmp_path: Path, command: str, output: str) -> None:
    assert EXAMPLE is not None
    (tmp_path / "tdx.toml").write_text(EXAMPLE[1])
    done = tdx(*command.split()[1:], "--config", "tdx.toml", cwd=tmp_path)
    assert done.stdout == re.sub(r"(?m)^    ", "", output)
    assert done.returncode == (77 if output.rstrip().endswith("refuses") else 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("tailscale:n1", "--tag", "backup"),
            "'backup' is not a tag; write it as the network has it: tag:backup",
        ),
        (("tailscal:n1",), "not an identity: 'tailscal:n1' (write PROVIDER:KEY with local, tailscale,"),
    ],
)
def test_what_can_be_no_tag_and_no_identity_says_how_to_write_one(
    tdx: Tdx, config: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = tdx("policy", "check", *arguments, "--config", config)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"tdx: {says}")
