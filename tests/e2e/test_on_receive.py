"""``tdx serve --on-receive``: a real receiver runs a real program for what real senders sent."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from support.content import MIB, random_file
from support.processes import PROGRAM, Processes, wait_until

SEPARATOR = "|"
VARIABLES = ("PATH", "NAME", "SIZE", "OUTCOME", "USER", "UPLOAD")
NOTE = f"""printf '%s|%s|%s|%s|%s|%s\\n' {" ".join(f'"$TDX_{name}"' for name in VARIABLES)} >> ../notes"""


def notes(area: Path) -> list[list[str]]:
    try:
        return [line.split(SEPARATOR) for line in (area / "notes").read_text().splitlines()]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_program_runs_once_for_each_file_however_it_came(
    loop: str, processes: Processes, area: Path
) -> None:
    command = f"sh -c {shlex.quote(NOTE)}"
    receiver = processes.receiver(
        area / "inbox", area / "state", "--on-receive", command, environment={"TDX_LOOP": loop}
    )
    large = random_file(area / "large", 9 * MIB)
    tree = area / "tree"
    tree.mkdir()
    for name in ("one", "$(touch intruder)", "-rf \N{SNOWMAN}"):
        random_file(tree / name, 100)
    assert (
        processes.curl("-T", random_file(area / "small", 10), f"{receiver.url}/files/by%20curl").status == 201
    )
    processes.push(large, receiver.address).ends(0, "done")
    processes.push(large, receiver.address).ends(0, "identical")
    processes.push("-r", tree, receiver.address).ends(0, "summary")
    expected = {"by curl", "large", "tree/one", "tree/$(touch intruder)", "tree/-rf \N{SNOWMAN}"}
    wait_until(lambda: len(notes(area)) >= len(expected), "all have been told of")
    receiver.stop()
    told = notes(area)
    assert sorted(note[1] for note in told) == sorted(expected)
    for path, name, size, outcome, user, upload in told:
        assert path == str(receiver.folder / name)
        assert Path(path).stat().st_size == int(size)
        assert (outcome, len(upload), user != "") == ("published", 32, True)
    assert "intruder" not in {path.name for path in area.rglob("*")}


def test_programs_that_fail_and_hang_hold_up_no_transfer_and_are_counted_and_ended(
    processes: Processes, area: Path
) -> None:
    command = "sh -c 'echo $$ >> ../pids; case $TDX_NAME in bad*) exit 9;; esac; sleep 300'"
    config = "on_receive_timeout = 600\non_receive_at_once = 3\n"
    receiver = processes.receiver(area / "inbox", area / "state", "--on-receive", command, config=config)
    for number in range(6):
        source = random_file(area / f"{'bad' if number % 2 else 'slow'}{number}", 5 * MIB)
        processes.push(source, receiver.address).ends(0, "done")
    wait_until(
        lambda: receiver.scrape()['tdx_hooks_total{result="failed"}'] >= 2, "those that fail have failed"
    )
    assert "(exit 9)" in receiver.process.stderr
    running = [int(line) for line in (area / "pids").read_text().split()]
    assert len(receiver.published) == 6
    receiver.process.terminate()
    assert receiver.process.code == 0, receiver.process.log()
    assert not any(Path(f"/proc/{number}").exists() for number in running)


def test_a_program_that_is_not_there_is_78_before_anything_listens(processes: Processes, area: Path) -> None:
    process = processes.run(
        "serve", [*PROGRAM, "serve", "--dir", str(area / "inbox"), "--on-receive", "no-such-program x"]
    )
    assert (process.wait(), process.stdout) == (78, "")
    assert process.stderr == "tdx: on_receive: there is no program no-such-program that can be run\n"
