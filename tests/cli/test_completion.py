"""Shells complete tdx's command lines: asked of the shells themselves, where they are installed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from support.commands import COMMAND, PATIENCE, Tdx
from support.devices import trust
from support.spaces import needs
from tdx.identity.trust import TRUST_FILE
from tdx_cli.app import COMMANDS
from tdx_cli.known import known_names

WIREGUARD = """
[[wireguard]]
interface = "wg0"
[[wireguard.peer]]
name = "nestor"
key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
"""


@pytest.fixture
def place(tdx: Tdx, tmp_path: Path) -> Path:
    """A folder with some files, where `tdx` is on the PATH and knows a paired device and a WireGuard peer."""
    folder = tmp_path / "place"
    folder.mkdir()
    for name in ("disk.img", "disk 2.img", "notes"):
        (folder / name).touch()
    (folder / "photos").mkdir()
    program = tmp_path / "bin" / "tdx"
    program.parent.mkdir()
    words = " ".join(f"'{word}'" for word in COMMAND)
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    config = tmp_path / "config.toml"
    config.write_text(WIREGUARD)
    state = Path(tdx.env["TDX_STATE_DIR"])
    trust(state, "nas", tmp_path / "other")
    tdx.env |= {"PATH": f"{program.parent}:{tdx.env['PATH']}", "TDX_CONFIG": str(config), "TERM": "dumb"}
    tdx.env.pop("PROMPT_COMMAND", None)
    return folder


def script(tdx: Tdx, shell: str) -> str:
    done = tdx("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def in_bash(tdx: Tdx, place: Path, *words: str) -> tuple[list[str], bool]:
    """What bash is told for these words, and whether files go with it where none of that fits."""
    needs("bash")
    program = f"""
        {script(tdx, "bash")}
        compopt() {{ files=1; }}  # works only while a person completes
        files=0; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _tdx_completion "$1"
        printf '%s\\n' "$files" "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", program, "bash", *words],
        env=tdx.env,
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    files, *found = done.stdout.splitlines()
    return [each for each in found if each], files == "1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tdx", ""], [*COMMANDS]),
        (["tdx", "pe"], ["peers"]),
        (["tdx", "push", "--lim"], ["--limit-rate"]),
        (["tdx", "push", "--conflict", ""], ["rename", "overwrite", "skip", "error"]),
        (["tdx", "trust", "re"], ["remove"]),
        (["tdx", "trust", "remove", "n"], ["nas", "nestor"]),
        (["tdx", "policy", "check", "ne"], ["nestor"]),
        (["tdx", "doctor", ""], ["nas", "nestor"]),
        (["tdx", "whois", "na"], ["nas"]),
        (["tdx", "completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_is_told_what_fits(words: list[str], expected: list[str], tdx: Tdx, place: Path) -> None:
    found, files = in_bash(tdx, place, *words)
    assert (sorted(found), files) == (sorted(expected), False)


def test_paths_come_first_and_then_peers_too(tdx: Tdx, place: Path) -> None:
    assert in_bash(tdx, place, "tdx", "push", "") == ([], True)
    assert in_bash(tdx, place, "tdx", "push", "disk.img", "") == (["nas", "nestor"], True)
    assert in_bash(tdx, place, "tdx", "push", "--resume", "disk.img", "dis") == ([], True)
    assert in_bash(tdx, place, "tdx", "serve", "--config", "") == ([], True)


def test_the_configuration_and_the_state_of_the_line_are_looked_at(
    tdx: Tdx, place: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(WIREGUARD.replace("nestor", "vault"))
    line = ["tdx", "push", "--config", str(other), "--state", str(tmp_path / "none"), "disk.img", ""]
    assert in_bash(tdx, place, *line) == (["vault"], True)


def test_what_cannot_be_read_knows_nobody(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[[[")
    (tmp_path / TRUST_FILE).write_text("{")
    assert known_names(broken, tmp_path) == []
    assert known_names(tmp_path / "none.toml", tmp_path / "none") == []


class Terminal:
    """An interactive shell."""

    def __init__(self, tdx: Tdx, place: Path, *command: str) -> None:
        self.process, self._descriptor = pty.fork()
        if not self.process:
            try:
                os.chdir(place)
                os.execvpe(command[0], command, tdx.env | {"PS1": "$ ", "HOME": str(place)})
            finally:
                os._exit(1)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def await_text(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self._descriptor], [], [], deadline - time.monotonic())
            assert ready, f"waited in vain for {text!r} in {self.seen!r}"
            self.seen += os.read(self._descriptor, 65536)
        self.seen = self.seen.partition(text.encode())[2]

    def close(self) -> None:
        os.close(self._descriptor)  # SIGHUP
        os.waitpid(self.process, 0)


def test_a_person_completes_in_bash(tdx: Tdx, place: Path, tmp_path: Path) -> None:
    needs("bash")
    (tmp_path / "script").write_text(script(tdx, "bash"))
    terminal = Terminal(tdx, place, "bash", "--norc", "--noprofile", "-i")
    try:
        terminal.await_text("$ ")
        terminal.type(f". {tmp_path}/script\nbind 'set bell-style none'\necho rea''dy\n")
        terminal.await_text("ready")
        terminal.type("tdx pus\t")
        terminal.await_text("tdx push ")
        terminal.type("not\t")
        terminal.await_text("notes ")
        terminal.type("nes\t")
        terminal.await_text("nestor ")
        terminal.type("--resu\t")
        terminal.await_text("--resume ")
    finally:
        terminal.close()


def test_zsh_takes_the_script_and_completes(tdx: Tdx, place: Path, tmp_path: Path) -> None:
    needs("zsh")
    (tmp_path / "script").write_text(script(tdx, "zsh"))
    terminal = Terminal(tdx, place, "zsh", "-f", "-i")
    try:
        terminal.type(f"autoload -Uz compinit; compinit -D -u; . {tmp_path}/script; echo rea''dy\n")
        terminal.await_text("ready")
        terminal.type("tdx doctor nes\t")
        terminal.await_text("nestor ")
    finally:
        terminal.close()


def test_fish_takes_the_script_and_completes(tdx: Tdx, place: Path) -> None:
    needs("fish")
    program = f"{script(tdx, 'fish')}\ncomplete -C 'tdx doctor ne'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program],
        env=tdx.env | {"HOME": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["nestor"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_a_script_that_asks_tdx(shell: str, tdx: Tdx) -> None:
    assert f"_TDX_COMPLETE={shell}_complete" in script(tdx, shell)
