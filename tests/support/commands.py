"""Running the real command in processes of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from support.received import files_below
from support.schemas import check_output

COMMAND = [sys.executable, "-P", "-m", "tdx_cli"]
PATIENCE = 60.0


class Tdx:
    """The command with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.env = {
            **os.environ,
            "TDX_STATE_DIR": str(state),
            "XDG_CONFIG_HOME": str(state / "no-configuration"),
            "PYTHONWARNINGS": "error",
            "TERM": "xterm-256color",
            "COLUMNS": "160",
        }
        for variable in (
            "NO_COLOR",
            "FORCE_COLOR",
            "NOTIFY_SOCKET",
            "TDX_DEBUG",
            "TDX_CONFIG",
            "STATE_DIRECTORY",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "LISTEN_FDS",
            "LISTEN_PID",
            "TDX_LOOP",
        ):
            self.env.pop(variable, None)

    def __call__(
        self, *arguments: object, through: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; output as text, which if JSON is as docs/schema has it. ``env`` is added to the
        environment; ``through`` is a command that runs the command."""
        env = self.env | options.pop("env", {})
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            **options,
        }
        if "input" in options:
            del options["stdin"]
        done = subprocess.run(
            [*through, *COMMAND, *map(str, arguments)],
            text=True,
            env=env,
            timeout=PATIENCE,
            check=False,
            **options,
        )
        if options["stdout"] is subprocess.PIPE:
            check_output(arguments, done.stdout)
        return done

    def start(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start it; ``env`` is added to the environment. Its pipes are not buffered, so that
        what select says about them holds."""
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=self.env | dict(env or {}),
            stdout=stdout,
            stderr=stderr,
            bufsize=0,
        )


class RunningReceiver:
    """A ``tdx serve`` process, from its first line to its exit status."""

    def __init__(self, tdx: Tdx, folder: Path, log: Path, flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self.log = log
        with log.open("ab") as errors:
            self.process = tdx.start(
                "serve",
                *("--dir", folder, "--listen", "127.0.0.1:0", *flags),
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            self.address = self.line("listening")
        except BaseException:
            self.stop()
            raise

    def line(self, word: str) -> str:
        """The rest of the next line of its output, which must begin with ``word``."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the receiver says nothing"
        begin, _, rest = self.process.stdout.readline().decode().strip().partition(" ")
        assert begin == word, self.log.read_text()
        return rest

    def visible(self) -> list[str]:
        """The files a user sees, by their paths."""
        return [str(path.relative_to(self.folder)) for path in files_below(self.folder)]

    def partials(self) -> list[str]:
        return sorted(entry.name for entry in (self.folder / ".tdx" / "uploads").iterdir())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.wait()
            self.process.stdout.close()


def events_of(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON events of a running push."""
    assert process.stdout is not None
    return map(json.loads, process.stdout)


def parsed(output: str) -> list[dict[str, Any]]:
    """The JSON events of a push that has ended."""
    return [json.loads(line) for line in output.splitlines()]
