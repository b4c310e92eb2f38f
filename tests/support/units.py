"""Unit files: what is in them, and what systemd's own tools say of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Final

from support.processes import ROOT
from support.spaces import needs

UNITS: Final = ROOT / "docs" / "systemd"
SYSTEM: Final = sorted((UNITS / "system").iterdir())
USER: Final = sorted((UNITS / "user").iterdir())
PROGRAM_OF_SYSTEM: Final = "/opt/tdx/bin/tdx"
EXPOSURE: Final = 15
"""Tenths of what `systemd-analyze security` calls exposure, at most."""


class Unit:
    """A unit file: its settings by their names, each with all its values in order."""

    def __init__(self, text: str) -> None:
        self.settings: dict[str, list[str]] = defaultdict(list)
        for line in re.sub(r"\\\n", " ", text).splitlines():
            name, sign, value = line.partition("=")
            if sign and not line.startswith(("#", ";")):
                self.settings[name].append(value.strip())

    def __getitem__(self, name: str) -> str:
        (value,) = self.settings[name]
        return value

    def words(self, name: str) -> list[str]:
        return [word for value in self.settings[name] for word in value.split()]

    def command(self, **specifiers: str) -> list[str]:
        """ExecStart with %-specifiers replaced, as an argument list."""
        return [
            re.sub("%(.)", lambda found: specifiers[found[1]], word)
            for word in shlex.split(self["ExecStart"])
        ]


def read_unit(path: Path) -> Unit:
    return Unit(path.read_text())


def stand_in(program: Path) -> Path:
    """Something that can be run, where a unit wants a program."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return program


def analyze(folder: Path, name: str, text: str, *, user: bool) -> tuple[str, float | None]:
    """What `systemd-analyze verify` complains about in a unit of that name, empty where it is right, and the
    exposure of a service. A user's has ``folder`` as its home; a system's program is put there."""
    needs("systemd-analyze")
    placed = folder / "units" / name.replace("@.", "@test.")
    placed.parent.mkdir(parents=True, exist_ok=True)
    if not user:
        text = text.replace(PROGRAM_OF_SYSTEM, str(stand_in(folder / "opt" / "tdx")))
    placed.write_text(text)
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(runtime),
        "LC_ALL": "C.UTF-8",
    }
    manager = "--user" if user else "--system"
    # A timer or a socket is verified with the service that it is for.
    path = f"{placed.parent}:"
    verified = run(["verify", manager, "--man=no", str(placed)], env | {"SYSTEMD_UNIT_PATH": path})
    complaints = "\n".join(
        line for line in verified.stderr.splitlines() if placed.stem.partition("@")[0] in line
    )
    if not complaints and verified.returncode:
        complaints = verified.stderr
    if not name.endswith(".service"):
        return complaints, None
    judged = run(
        ["security", manager, "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(placed)], env
    )
    level = re.search(r"Overall exposure level .*: ([0-9.]+)", judged.stdout)
    assert level, judged.stdout + judged.stderr
    assert (judged.returncode == 0) == (float(level[1]) * 10 <= EXPOSURE)
    return complaints, float(level[1])


def run(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )


@cache
def system_calls(name: str) -> frozenset[str]:
    """What a name of SystemCallFilter stands for: a call, or a set of them (``@file-system``)."""
    if not name.startswith("@"):
        return frozenset({name})
    assert shutil.which("systemd-analyze")
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True
    )
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return frozenset().union(*(system_calls(word) for word in words if word and not word.startswith("#")))


def allowed_calls(unit: Unit) -> frozenset[str]:
    """The calls that SystemCallFilter lets through."""
    allowed = system_calls("@default")
    for value in unit.settings["SystemCallFilter"]:
        names = frozenset().union(*(system_calls(word) for word in value.removeprefix("~").split()))
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed
