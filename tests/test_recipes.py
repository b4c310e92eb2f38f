"""The recipes of README.md for cron and systemd are run as they are written there."""

from __future__ import annotations

import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.commands import COMMAND, PATIENCE
from support.content import random_file
from support.devices import introduce
from support.processes import ROOT, Processes, environment_of_tests
from support.received import files_below
from support.spaces import namespaces, needs, needs_root
from support.supervisor import Supervisor, activated
from support.units import SYSTEM, UNITS, Unit, analyze, read_unit
from tdx.config import load

README = (ROOT / "README.md").read_text()
(SECTION,) = re.findall(r"(?ms)^## From cron and systemd\n(.*?)^## ", README)


SERVICES = (ROOT / "docs" / "services.md").read_text()


def blocks(text: str = SECTION) -> list[str]:
    """The indented blocks, without their indentation."""
    found = re.findall(r"(?m)(?:^ {4}.*\n(?:\n(?= {4}))?)+", text)
    return [re.sub(r"(?m)^ {4}", "", block) for block in found]


def block(beginning: str) -> str:
    (found,) = [each for each in blocks() if each.startswith(beginning)]
    return found


CRONTAB = [line for line in block("# every night").splitlines() if not line.startswith("#")]
BATCH = block("[defaults]")
FOR_A_USER = block("mkdir -p ~/.config/systemd/user").splitlines()
FOR_THE_MACHINE = block("sudo python3 -m venv /opt/tdx").splitlines()


def test_these_are_all_there_are() -> None:
    assert len(blocks()) == 4
    assert len(CRONTAB) == 4


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "logs") as found:
        yield found


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def install(venv: Path) -> None:
    """What `pip install .` puts into a virtual environment, as far as a recipe calls for it."""
    words = " ".join(f"'{word}'" for word in COMMAND)
    path = environment_of_tests(venv)["PYTHONPATH"]
    program(venv / "bin" / "tdx", f'export PYTHONPATH={path} PYTHONWARNINGS=error\nexec {words} "$@"')
    shutil.copytree(UNITS, venv / "share" / "tdx" / "systemd")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of somebody who has installed tdx as the README says."""
    found = tmp_path / "home"
    install(found / ".tdx")
    return found


# --- cron ---------------------------------------------------------------------------------


def from_crontab(line: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a crontab as cron(8) does."""
    command = re.split(r"\s+", line, maxsplit=5)[5]
    command, *given = re.split(r"(?<!\\)%", command)  # crontab(5): the rest is standard input
    environment = ["HOME=" + str(home), "LOGNAME=ann", "PATH=/usr/bin:/bin", "SHELL=/bin/sh"]
    environment += [f"{name}={value}" for name, value in more.items()]
    return subprocess.run(
        ["env", "-i", *environment, "/bin/sh", "-c", command.replace("\\%", "%")],
        input="\n".join(given),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def nas(processes: Processes, home: Path, tmp_path: Path) -> Path:
    """The folder of a receiver that is paired with whoever lives in that home, as `nas`."""
    receiver = processes.receiver(tmp_path / "inbox", tmp_path / "nas")
    introduce(tmp_path / "nas", home / ".local" / "state" / "tdx", receiver.address)
    random_file(home / "backup.tar", 5 << 20)
    (home / "Documents" / "letters").mkdir(parents=True)
    (home / "Documents" / "letters" / "one").write_text("Dear")
    (home / "Documents" / "two").write_text("Sir")
    (home / "metrics").mkdir()
    (home / ".config" / "tdx").mkdir(parents=True)
    (home / ".config" / "tdx" / "nightly.toml").write_text(BATCH)
    return receiver.folder


@pytest.mark.parametrize("line", CRONTAB)
def test_a_line_of_the_crontab_sends_and_is_quiet_twice(line: str, home: Path, nas: Path) -> None:
    for _ in range(2):
        done = from_crontab(line, home)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    received = {str(path.relative_to(nas)) for path in files_below(nas)}
    if "batch" in line:
        assert received == {"Documents/letters/one", "Documents/two"}
    elif "--name" in line:
        assert {re.sub(r"-\d{4}-\d\d-\d\d\.", "-DATE.", name) for name in received} == {"backup-DATE.tar"}
    else:
        assert received == {"backup.tar"}
    assert all((nas / name).stat().st_size for name in received)
    told = "tdx_push_last_exit_code{" in "".join(path.read_text() for path in (home / "metrics").iterdir())
    assert told == ("--metrics" in line)


@pytest.mark.parametrize("line", CRONTAB)
def test_a_line_of_the_crontab_that_fails_says_so_for_the_mail(line: str, home: Path) -> None:
    done = from_crontab(line, home)
    assert done.returncode != 0
    assert done.stderr != ""


def test_cron_takes_a_percent_sign_for_the_end_of_the_line(home: Path) -> None:
    assert from_crontab("0 0 * * * cat; echo \\%%one%two", home).stdout == "one\ntwo%\n"
    assert not any(re.search(r"(?<!\\)%", line) for line in CRONTAB)


# --- systemd ------------------------------------------------------------------------------


def shell(lines: list[str], home: Path, path: Path, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    """Run lines of a recipe one after the other, as a person would."""
    env = {"HOME": str(home), "PATH": f"{path}:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [*prefix, "sh", "-euc", "\n".join(lines)],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def called(tmp_path: Path) -> Callable[[], list[str]]:
    """Where systemctl and loginctl only note what they were told: what that was."""
    notes = tmp_path / "called"
    for name in ("systemctl", "loginctl"):
        program(tmp_path / "path" / name, f'echo {name} "$@" >> {notes}')
    return lambda: notes.read_text().splitlines()


def test_a_users_recipe_installs_units_that_systemd_takes(
    home: Path, tmp_path: Path, called: Callable[[], list[str]]
) -> None:
    done = shell(FOR_A_USER, home, tmp_path / "path", [])
    assert (done.returncode, done.stderr) == (0, "")
    assert called() == [line for line in FOR_A_USER if line.startswith(("systemctl", "loginctl"))]
    units = home / ".config" / "systemd" / "user"
    enabled = {word.replace("@nightly", "@") for line in called() for word in line.split() if "tdx" in word}
    assert enabled <= {path.name for path in units.iterdir()}
    for unit in units.iterdir():
        complaints, _ = analyze(home, unit.name, unit.read_text(), user=True)
        assert complaints == ""


def test_what_a_users_recipe_starts_receives_and_what_its_timer_starts_sends(
    home: Path, tmp_path: Path, called: Callable[[], list[str]], nas: Path
) -> None:
    """The very ExecStart lines, with systemd's part played by a socket, a descriptor and an environment."""
    assert shell(FOR_A_USER, home, tmp_path / "path", []).returncode == 0
    units = home / ".config" / "systemd" / "user"
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)}
    specifiers = {"h": str(home), "E": str(home / ".config"), "i": "nightly"}
    with Supervisor(tmp_path / "notify") as supervisor, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        unit = read_unit(units / "tdx.service")
        told = {**env, **supervisor.env, "WATCHDOG_USEC": f"{int(unit['WatchdogSec']) * 1000000}"}
        process = activated(unit.command(**specifiers), [listener], told, stdout=subprocess.PIPE)
        try:
            assert supervisor.next() == "READY=1"
            supervisor.await_message("WATCHDOG=1")
            done = subprocess.run(
                [home / ".tdx" / "bin" / "tdx", "push", home / "backup.tar", f"127.0.0.1:{port}"],
                env=env,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert (home / "inbox" / "backup.tar").read_bytes() == (home / "backup.tar").read_bytes()
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, f"listening 127.0.0.1:{port}\n".encode())
    batch = read_unit(units / "tdx-batch@.service").command(**specifiers)
    ran = subprocess.run(batch, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (nas / "Documents" / "two").read_text() == "Sir"


def test_the_machines_recipe_makes_the_user_and_installs_units_that_systemd_takes(
    processes: Processes, home: Path, tmp_path: Path, called: Callable[[], list[str]]
) -> None:
    needs_root()
    needs("systemd-sysusers", "systemd-analyze", "setpriv")
    apart = namespaces(processes, "mount")
    inside = ["nsenter", "-t", str(apart.pid), "--mount", "--"]
    places = {name: tmp_path / "root" / name for name in ("opt", "etc", "var")}
    for name, place in places.items():
        place.mkdir(parents=True)
        Path("/", name).mkdir(exist_ok=True)
    (places["etc"] / "systemd" / "system").mkdir(parents=True)
    (places["var"] / "lib").mkdir(parents=True)
    for file in ("passwd", "group"):
        (places["etc"] / file).write_text(
            "root:x:0:0:root:/root:/bin/sh\n" if file == "passwd" else "root:x:0:\n"
        )
    install(tmp_path / "made")
    program(tmp_path / "made" / "bin" / "pip", f"cp -r {UNITS.parent}/systemd /opt/tdx/share/tdx/")
    shutil.rmtree(tmp_path / "made" / "share" / "tdx" / "systemd")
    path = tmp_path / "path"
    program(path / "python3", f'test "$*" = "-m venv /opt/tdx" && cp -r {tmp_path}/made /opt/tdx')
    program(
        path / "sudo",
        'if [ "$1" != -u ]; then exec "$@"; fi; user=$2; shift 2\n'
        'mkdir -p /var/lib/tdx; chown "$user" /var/lib/tdx\n'  # as systemd does for StateDirectory=
        'exec setpriv --reuid="$user" --clear-groups --inh-caps=-all,+dac_read_search '
        '--ambient-caps=-all,+dac_read_search -- "$@"',
    )
    mounts = [f"mount --bind {place} /{name}" for name, place in places.items()]
    done = shell([*mounts, *FOR_THE_MACHINE], home, path, inside)
    assert done.returncode == 0, done.stderr
    assert re.match(r"[0-9a-f]{64}\b", done.stdout.splitlines()[-1].split()[-1]) or "key" in done.stdout
    assert called() == [line.removeprefix("sudo ") for line in FOR_THE_MACHINE if "systemctl" in line]
    owner = (places["var"] / "lib" / "tdx").stat().st_uid
    assert owner != 0
    assert stat.S_IMODE((places["var"] / "lib" / "tdx").stat().st_mode) & 0o022 == 0
    for unit in SYSTEM:
        installed = places["etc"] / "systemd" / "system" / unit.name
        assert installed.read_bytes() == unit.read_bytes()
    for name in ("tdx.service", "tdx.socket", "tdx-batch@nightly.service", "tdx-batch@nightly.timer"):
        judged = shell([f"systemd-analyze verify --man=no {name}"], home, path.with_name("none"), inside)
        about_it = [line for line in judged.stderr.splitlines() if "tdx" in line]
        assert about_it == []


def test_the_readme_says_of_the_units_what_is_in_them(tmp_path: Path) -> None:
    text = (UNITS / "system" / "tdx.service").read_text()
    _, level = analyze(tmp_path, "tdx.service", text, user=False)
    assert f"gives it {level} of 10" in SECTION
    timer = Unit((UNITS / "user" / "tdx-batch@.timer").read_text())
    assert "02:30:00" in timer["OnCalendar"]
    assert timer["RandomizedDelaySec"] == "30min"
    assert "between 2:30 and 3:00" in SECTION


# --- docs/services.md ---------------------------------------------------------------------


DROP_INS = [each for each in blocks(SERVICES) if each.startswith("[Service]")]


@pytest.mark.parametrize("drop_in", DROP_INS)
@pytest.mark.parametrize("name", ["tdx.service", "tdx-batch@.service"])
def test_a_drop_in_goes_with_its_unit(drop_in: str, name: str, tmp_path: Path) -> None:
    text = (UNITS / "system" / name).read_text()
    assert analyze(tmp_path, name, text + drop_in, user=False)[0] == ""


def test_the_socket_of_a_mesh_is_one(tmp_path: Path) -> None:
    (socket_unit,) = [each for each in blocks(SERVICES) if each.startswith("[Socket]")]
    analyze(tmp_path, "tdx.service", (UNITS / "system" / "tdx.service").read_text(), user=False)
    assert analyze(tmp_path, "tdx.socket", socket_unit, user=False)[0] == ""


def test_the_configuration_of_a_program_is_one(tmp_path: Path) -> None:
    (text,) = [each for each in blocks(SERVICES) if each.startswith("on_receive")]
    file = tmp_path / "config.toml"
    file.write_text(text)
    found = load(file)
    assert found.get("on_receive") == ("/usr/local/bin/arrived", "--quiet")
    assert (found.get("on_receive_timeout"), found.get("on_receive_at_once")) == (300.0, 2)


def test_every_unit_is_listed() -> None:
    files = [path for path in UNITS.rglob("*") if path.is_file()]
    assert [
        str(path.relative_to(UNITS)) for path in files if f"`{path.relative_to(UNITS)}`" not in SERVICES
    ] == []
    assert len(DROP_INS) == 2


def test_every_variable_of_a_program_is_listed() -> None:
    source = (ROOT / "engine" / "tdx" / "control" / "on_receive.py").read_text()
    assert set(re.findall(r'"(TDX_[A-Z]+)"', source)) == set(re.findall(r"`(TDX_[A-Z]+)`", SERVICES)) - {
        "TDX_STATE_DIR"
    }
