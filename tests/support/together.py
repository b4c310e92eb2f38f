"""Several processes that do the same at the same moment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_PATH: Final = os.pathsep.join(str(_ROOT / part) for part in ("engine", "tests"))
_PATIENCE: Final = 60.0


def with_a_start(script: str) -> str:
    """``script`` after its imports have been made and it was told to go; for :func:`together`."""
    imports = "\n".join(line for line in script.splitlines() if line.startswith(("import ", "from ")))
    return f"{imports}\nprint(flush=True)\nsys.stdin.readline()\n{script}"


def together(command: Sequence[str], count: int) -> list[str]:
    """Run ``count`` processes that wait for each other as :func:`with_a_start` has it; what each
    printed. All must end well."""
    children = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _PATH},
        )
        for _ in range(count)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        printed = [child.communicate(timeout=_PATIENCE)[0] for child in children]
        assert [child.returncode for child in children] == [0] * count
        return printed
    finally:
        for child in children:
            child.kill()
            child.communicate()
