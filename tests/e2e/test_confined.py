"""The units' commands run as their units confine them: by system calls, as a user of their own, and with
nothing to write but their state directory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from ctypes.util import find_library
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, ROOT, Processes, Running, wait_until
from support.spaces import STRANGER, as_stranger, needs, needs_root
from support.supervisor import Supervisor
from support.units import UNITS, read_unit

CONFINED = [sys.executable, str(ROOT / "tests" / "support" / "confined.py")]


def confined(unit: Path, writable: Path) -> list[str]:
    """What to put before a command."""
    needs("systemd-analyze")
    if find_library("seccomp") is None and not list(Path("/usr/lib").glob("*/libseccomp.so.2")):
        pytest.skip("there is no libseccomp")
    return [*CONFINED, f"--write={writable}", *as_stranger(), *CONFINED, str(unit)]


def with_tests(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}


@pytest.fixture
def own(area: Path) -> Path:
    """The state directory of the user that the units are for."""
    needs_root()
    folder = area / "own"
    folder.mkdir(mode=0o700)
    os.chown(folder, STRANGER, STRANGER)
    return folder


def serving(
    processes: Processes, unit: Path, own: Path, supervisor: Supervisor, *flags: str, env: Mapping[str, str]
) -> tuple[Running, str]:
    """The receiver as its unit starts it, and where it listens."""
    _, *arguments = read_unit(unit).command(S=str(own), h=str(own))
    arguments = [each.replace(f"{own}/tdx/inbox", f"{own}/inbox") for each in arguments]
    command = [*confined(unit, own), *PROGRAM, *arguments, "--listen", "127.0.0.1:0", *flags]
    process = processes.run("serve", command, env=with_tests(env))
    wait_until(lambda: "listening" in process.stdout or not process.running, "it listens")
    assert process.running, process.log()
    supervisor.await_message("READY=1")
    return process, process.stdout.split()[1]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("unit", ["system/tdx.service", "user/tdx.service"])
def test_a_receiver_does_all_it_has_to_as_its_unit_confines_it(
    unit: str, loop: str, processes: Processes, own: Path, area: Path
) -> None:
    hook = 'sh -c "cp -- \\"$TDX_PATH\\" ../copy"'
    with Supervisor() as supervisor:
        env = {
            **processes.environment,
            **supervisor.env,
            "STATE_DIRECTORY": str(own),
            "TDX_LOOP": loop,
            "WATCHDOG_USEC": "1000000",
            "XDG_CONFIG_HOME": str(area / "etc"),
        }
        env.pop("TDX_STATE_DIR")
        (area / "etc" / "tdx").mkdir(parents=True)
        (area / "etc" / "tdx" / "config.toml").write_text('[[rule]]\nname = "root here"\nuser = "root"\n')
        flags = ("--on-receive", hook, "--metrics", "127.0.0.1:0")
        process, address = serving(processes, UNITS / unit, own, supervisor, *flags, env=env)
        large = random_file(area / "large", 9 * MIB)
        state = own / "sender"
        sender = {**processes.environment, "TDX_STATE_DIR": str(state)}
        processes.push(large, address, prefix=as_stranger(), env=sender).ends(0, "done")
        assert sha256_of(own / "inbox" / "large") == sha256_of(large)
        # Who calls is known (sock_diag), also another user of the machine: a rule can name it.
        assert processes.curl("-T", large, f"http://{address}/files/root", "-H", "Expect:").status == 201
        wait_until((own / "copy").exists, "the program has run")
        asked = [*as_stranger(), *PROGRAM, "status", "--socket", str(own / "receiver.sock"), "--json"]
        status = processes.run("status", asked)
        assert (status.wait(), f'"folder":"{own}/inbox"' in status.stdout) == (0, True), status.log()
        process.signal(signal.SIGHUP)
        supervisor.await_message("RELOADING=1")
        supervisor.await_message("READY=1")
        supervisor.await_message("WATCHDOG=1")
        assert process.terminate() == 0, process.log()
        assert supervisor.rest()[-1] == "STOPPING=1"
    assert "cannot" not in process.stderr, process.log()


def test_what_a_unit_forbids_is_noticed(processes: Processes, own: Path) -> None:
    unit = UNITS / "system" / "tdx.service"
    prefix, env = confined(unit, own), with_tests(processes.environment)

    def ends(code: str) -> int:
        return processes.run("python", [*prefix, sys.executable, "-c", code], env=env).wait()

    assert ends("open('/proc/self/status').read()") == 0
    assert ends(f"open({str(own / 'file')!r}, 'w')") == 0
    assert ends(f"open({str(own.parent / 'file')!r}, 'w')") == 1
    for forbidden in (
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
        "import os; os.chmod('/proc/self', 0o4755)",
        "import os; os.setuid(0)",
        "import ctypes; ctypes.CDLL(None).unshare(0x10000000)",
        "import ctypes; ctypes.CDLL(None).mount(b'a', b'b', b'c', 0, None)",
    ):
        assert ends(forbidden) == -signal.SIGSYS, forbidden


def test_a_push_as_the_batchs_unit_confines_it_also_reads_what_only_others_may_if_it_is_let(
    processes: Processes, own: Path, area: Path
) -> None:
    receiver_state = own / "receiver"
    prefix = as_stranger()
    receiver = processes.receiver(own / "inbox", receiver_state, program=[*prefix, *PROGRAM])
    secret = random_file(area / "secret", 9 * MIB)
    secret.chmod(0o600)  # root's
    env = with_tests({**processes.environment, "TDX_STATE_DIR": str(own / "sender")})
    unit = UNITS / "system" / "tdx-batch@.service"
    command = [*confined(unit, own), *PROGRAM, "push", str(secret), receiver.address, "--name", "copy"]
    assert processes.run("push", command, env=env).wait() == 0
    assert sha256_of(own / "inbox" / "copy") == sha256_of(secret)
