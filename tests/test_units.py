"""The systemd units: right by systemd's own judgement, confined as far as was promised, and shipped."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import click
import pytest

from support.spaces import needs
from support.units import EXPOSURE, SYSTEM, UNITS, USER, Unit, analyze, read_unit, stand_in
from tdx_cli.app import tdx

ALL = [*SYSTEM, *USER]
SERVICES = [path for path in ALL if path.suffix == ".service"]

NEEDS_ROOT = (
    "CapabilityBoundingSet",
    "AmbientCapabilities",
    "User",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
)
"""What a user's systemd cannot do, or only in a namespace where nobody else has a name."""


def called(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", ALL, ids=called)
def test_systemd_finds_nothing_wrong(path: Path, tmp_path: Path) -> None:
    stand_in(tmp_path / ".tdx" / "bin" / "tdx")
    siblings = tmp_path / "units"
    siblings.mkdir()
    for other in path.parent.iterdir():  # a timer is verified with its service
        text = other.read_text().replace("/opt/tdx/bin/tdx", str(stand_in(tmp_path / "opt" / "tdx")))
        (siblings / other.name).write_text(text)
    complaints, _ = analyze(tmp_path, path.name, path.read_text(), user=path.parent.name == "user")
    assert complaints == ""


def test_a_wrong_unit_is_noticed(tmp_path: Path) -> None:
    text = (UNITS / "system" / "tdx.service").read_text()
    assert "Typo" in analyze(tmp_path, "tdx.service", text.replace("User=", "Typo="), user=False)[0]
    _, level = analyze(tmp_path, "tdx.service", text.replace("ProtectSystem=strict\n", ""), user=False)
    assert level is not None


@pytest.mark.parametrize("path", [path for path in SYSTEM if path.suffix == ".service"], ids=called)
def test_a_service_of_the_system_is_exposed_no_more_than_was_promised(path: Path, tmp_path: Path) -> None:
    _, level = analyze(tmp_path, path.name, path.read_text(), user=False)
    assert level is not None
    assert level * 10 <= EXPOSURE


@pytest.mark.parametrize("path", USER, ids=called)
def test_a_users_unit_asks_for_nothing_that_only_root_can_give(path: Path) -> None:
    assert [name for name in NEEDS_ROOT if read_unit(path).settings[name]] == []


@pytest.mark.parametrize("path", SERVICES, ids=called)
def test_a_unit_calls_a_command_that_there_is_with_flags_that_it_has(path: Path) -> None:
    program, name, *arguments = shlex.split(read_unit(path)["ExecStart"])
    assert program in ("/opt/tdx/bin/tdx", "%h/.tdx/bin/tdx")
    command = tdx.get_command(click.Context(tdx), name)
    if command is None:
        pytest.skip(f"there is no tdx {name} in this tree")
    command.make_context(name, arguments)


@pytest.mark.parametrize("path", [path for path in SERVICES if path.name == "tdx.service"], ids=called)
def test_a_receiver_is_supervised(path: Path) -> None:
    unit = read_unit(path)
    assert (unit["Type"], unit["Restart"], unit["KillMode"]) == ("notify", "on-failure", "mixed")
    assert int(unit["WatchdogSec"]) >= 20  # two looks of the watchdog
    assert "78" in unit.words("RestartPreventExitStatus")


@pytest.mark.parametrize("path", [path for path in SERVICES if path.name != "tdx.service"], ids=called)
def test_a_batch_is_tried_again_for_what_mends_itself_and_for_nothing_else(path: Path) -> None:
    unit = read_unit(path)
    prevented = {int(word) for word in unit.words("RestartPreventExitStatus")}
    assert prevented == {64, 65, 66, 68, 70, 73, 74, 76, 77, 78}  # all but 0, 69 and 75
    assert (unit["Type"], unit["Restart"]) == ("oneshot", "on-failure")


@pytest.mark.parametrize("path", [path for path in ALL if path.suffix == ".timer"], ids=called)
def test_a_batch_that_was_slept_through_is_made_up_for_and_not_all_machines_start_at_once(path: Path) -> None:
    unit = read_unit(path)
    assert unit["Persistent"] == "true"
    assert unit["RandomizedDelaySec"]


@pytest.mark.parametrize("name", ["tdx.socket", "tdx-batch@.timer"])
def test_the_system_and_a_user_have_the_same_times_and_sockets(name: str) -> None:
    one, other = (Unit((UNITS / whose / name).read_text()).settings for whose in ("system", "user"))
    assert one == other


def test_a_unit_is_read_as_systemd_reads_it() -> None:
    unit = Unit("# a\n[Service]\nA=1\nA=2 \\\n  3\nB=\nExecStart=/x %h 'a b'\n")
    assert unit.settings["A"] == ["1", "2    3"]
    assert unit.words("A") == ["1", "2", "3"]
    assert unit["B"] == ""
    assert unit.command(h="/home/ann") == ["/x", "/home/ann", "a b"]


@pytest.mark.parametrize("path", [path for path in SYSTEM if path.suffix == ".service"], ids=called)
def test_the_user_of_a_service_is_made_by_what_is_shipped(path: Path, tmp_path: Path) -> None:
    needs("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    file = UNITS / "sysusers.d" / "tdx.conf"
    command = ["systemd-sysusers", f"--root={tmp_path}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    users = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    assert [(user[0], user[5]) for user in users] == [(read_unit(path)["User"], "/var/lib/tdx")]
