"""Real processes: receivers, pushes and curl, started in a group, always reaped by their ids."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from support.received import below
from support.schemas import check_output

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 60.0
"""Seconds after which something that should have happened is held to be stuck."""

PROGRAM: Final = (sys.executable, "-m", "tdx_cli")
"""The command ``tdx``, with the interpreter of the tests."""

SHOWN: Final = 4000
"""Characters of a log that are shown after a failure."""

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """The first true value of ``condition``; AssertionError naming ``what`` when it never comes."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain until {what}"
        time.sleep(0.001)
    return value


def reserve_port(host: str = "127.0.0.1") -> socket.socket:
    """A socket bound to a free port that does not listen: while it is open, nobody but a server
    that asks for this port with SO_REUSEADDR gets it, however often that is restarted."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    return sock


class Running:
    """A started process whose output goes to files."""

    def __init__(self, group: Processes, name: str, command: Sequence[str], **options: Any) -> None:
        number = len(group.started)
        self.name = f"{number:03d}-{name}"
        self.command = list(command)
        self.out = group.logs / f"{self.name}.out"
        self.err = group.logs / f"{self.name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._process = subprocess.Popen(
                self.command,
                **{"stdin": subprocess.DEVNULL, "cwd": group.logs, **options},
                stdout=out,
                stderr=err,
            )
        group.started.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code (negative: the signal that ended it); None while it runs."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        return self.out.read_text("utf-8", "backslashreplace")

    @property
    def stderr(self) -> str:
        return self.err.read_text("utf-8", "backslashreplace")

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code; AssertionError where it does not end in time."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout:g} s\n{self.log()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has been reaped already: then the id may be another's."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        return self._process.wait()

    def terminate(self) -> int:
        """SIGTERM, and wait for the end."""
        self._process.terminate()
        return self.wait()

    def log(self) -> str:
        """What to show of it after a failure."""
        lines = [f"--- {self.name} (pid {self.pid}, {self._ending()}): {' '.join(self.command)}"]
        for label, text in (("out", self.stdout), ("err", self.stderr)):
            if text:
                lines.append(f"{label}: {text[-SHOWN:].rstrip()}")
        return "\n".join(lines)

    def _ending(self) -> str:
        return "running" if self.code is None else f"exit {self.code}"


class Push(Running):
    """``tdx push --json``, or another command that tells in the same way."""

    said_by = "push"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The complete lines so far."""
        return [json.loads(line) for line in self.stdout.split("\n")[:-1]]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    def ends(self, code: int, event: str | None = None) -> dict[str, Any]:
        """Wait for the end; its last event, once exit code and event are as expected, and its output is as
        docs/schema has it."""
        assert self.wait() == code, self.log()
        check_output((self.said_by, "--json"), self.stdout)
        if event is not None:
            assert self.last["event"] == event, self.log()
        return self.last


class Batch(Push):
    """``tdx batch --json``."""

    said_by = "batch"


class Receiver:
    """``tdx serve`` into a folder, which can be killed and started again on its port."""

    def __init__(
        self,
        group: Processes,
        folder: Path,
        state: Path,
        arguments: Sequence[str] = (),
        *,
        also: Sequence[str] = (),
        config: str | None = None,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        **options: Any,
    ) -> None:
        """``also``: further addresses to listen on; ``config``: the content of a configuration
        file; ``program``: the command ``tdx``; ``options``: those of Popen."""
        self.folder = folder
        self._group = group
        self._reserved = reserve_port()
        group.resources.callback(self._reserved.close)
        self.port = int(self._reserved.getsockname()[1])
        self._command = [
            *program,
            *("serve", "--dir", str(folder), "--state", str(state), "--listen", self.address),
            *("--metrics", "127.0.0.1:0", "--log-level", "debug"),
            *(part for address in also for part in ("--listen", address)),
            *arguments,
        ]
        if config is not None:
            file = state.with_name("tdx.toml")
            file.write_text(config)
            self._command += ["--config", str(file)]
        self._options = {"env": {**group.environment, **(environment or {})}, **options}
        self.process = self._launch()
        self.await_listening()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def published(self) -> list[str]:
        """What a user sees in the folder: relative paths of everything but ``.tdx``."""
        return sorted(path.relative_to(self.folder).as_posix() for path in below(self.folder))

    @property
    def partials(self) -> list[Path]:
        """Whatever lies in ``.tdx/uploads``."""
        try:
            return sorted((self.folder / ".tdx" / "uploads").iterdir())
        except FileNotFoundError:
            return []

    @property
    def staged(self) -> int:
        """Bytes of disk that partials take now."""
        total = 0
        for partial in self.partials:
            try:
                total += (partial / "data").stat().st_blocks * 512
            except OSError:  # published or removed meanwhile
                continue
        return total

    def await_staged(self, size: int) -> None:
        """Wait until partials take so many bytes."""
        wait_until(lambda: self.staged >= size, f"{size} bytes have been staged")

    # --- life ------------------------------------------------------------------

    def _launch(self) -> Running:
        return Running(self._group, "serve", self._command, **self._options)

    def await_listening(self) -> None:
        process = self.process

        def listening() -> bool:
            assert process.running, f"the receiver ended\n{process.log()}"
            return self._told("metrics") is not None

        wait_until(listening, "the receiver listens")
        assert self._told("listening") == self.address, process.log()

    def _told(self, what: str) -> str | None:
        """The address on the first complete line that begins with this word."""
        lines = self.process.stdout.split("\n")[:-1]
        return next((line.partition(" ")[2] for line in lines if line.startswith(what + " ")), None)

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM; it must end well."""
        assert self.process.terminate() == 0, self.process.log()

    def launch(self) -> None:
        """Start it again, on the same port; see :meth:`await_listening`."""
        assert not self.process.running
        self.process = self._launch()

    def restart(self) -> None:
        self.launch()
        self.await_listening()

    # --- asking it -------------------------------------------------------------

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, fields (lower case), body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, fields, answer.read()
        finally:
            connection.close()

    def held(self) -> int:
        """Bytes that the only partial holds, as the receiver tells; 0 where there is none."""
        if not self.partials:
            return 0
        (partial,) = self.partials
        status, _, body = self.ask("GET", f"/uploads/{partial.name}")
        assert status == 200, body
        return sum(end - start for start, end in json.loads(body)["held"])

    def await_silence(self) -> None:
        """Wait until no connection is open: what a dead sender left has been dealt with."""
        self.ask("GET", "/v1/hello")  # connections are accepted in turn
        wait_until(lambda: self.scrape()["tdx_connections_active"] == 0, "no connection is open")

    @property
    def metrics_address(self) -> tuple[str, int]:
        host, _, port = (self._told("metrics") or "").rpartition(":")
        return host, int(port)

    def scrape(self) -> dict[str, float]:
        """Every sample of ``--metrics`` by its name with labels."""
        connection = http.client.HTTPConnection(*self.metrics_address, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status == 200, text
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


class Processes:
    """Starts processes and sees to it that none outlives the test. Use inside ``with``."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.started: list[Running] = []
        self.resources = contextlib.ExitStack()
        self.environment = environment_of_tests(logs.parent / "state")

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
        self.resources.close()

    def run(self, name: str, command: Sequence[str], **options: Any) -> Running:
        options.setdefault("env", self.environment)
        return Running(self, name, command, **options)

    def receiver(self, folder: Path, state: Path, *arguments: str, **options: Any) -> Receiver:
        """A receiver that listens; ``options`` are those of :class:`Receiver`."""
        return Receiver(self, folder, state, arguments, **options)

    def push(self, *arguments: str | Path, prefix: Sequence[str] = (), **options: Any) -> Push:
        """``tdx push --json`` with these arguments."""
        options.setdefault("env", self.environment)
        given = [str(argument) for argument in arguments]
        return Push(self, "push", [*prefix, *PROGRAM, "push", "--json", *given], **options)

    def batch(self, *arguments: str | Path, **options: Any) -> Batch:
        """``tdx batch --json`` with these arguments."""
        options.setdefault("env", self.environment)
        given = [str(argument) for argument in arguments]
        return Batch(self, "batch", [*PROGRAM, "batch", "--json", *given], **options)

    def curl(self, *arguments: str | Path, prefix: Sequence[str] = (), **options: Any) -> Curl:
        """curl, heedless of the user's configuration and proxies."""
        options.setdefault("env", self.environment)
        return Curl(self, [str(argument) for argument in arguments], prefix, **options)

    def logs_of_all(self) -> str:
        return "\n".join(process.log() for process in self.started)


class Curl(Running):
    """One run of curl: :attr:`status`, :attr:`fields` and :attr:`body` once it has ended."""

    def __init__(self, group: Processes, arguments: list[str], prefix: Sequence[str], **options: Any) -> None:
        # Heads go to standard output: another user may write nowhere else.
        fixed = ["curl", "-q", "-sS", "-i", "--noproxy", "*", "--max-time", str(int(PATIENCE))]
        super().__init__(group, "curl", [*prefix, *fixed, *arguments], **options)

    @property
    def interim(self) -> list[tuple[int, dict[str, str]]]:
        """Status and fields of each interim answer, once it has ended by itself."""
        self.wait()
        heads = self.out.read_bytes().decode("latin-1").split("\r\n\r\n")[:-1]
        found = [(int(head.split(" ")[1]), _fields(head)) for head in heads if head.startswith("HTTP/")]
        return [each for each in found if each[0] < 200]

    def _answer(self) -> tuple[list[str], bytes]:
        """The lines of the final answer's head, and its body: interim heads come before it."""
        self.wait()
        head, rest = "", self.out.read_bytes()
        while rest.startswith(b"HTTP/"):
            found, _, rest = rest.partition(b"\r\n\r\n")
            head = found.decode("latin-1")
        assert head, self.log()
        return head.split("\r\n"), rest

    @property
    def status(self) -> int:
        return int(self._answer()[0][0].split(" ")[1])

    @property
    def fields(self) -> dict[str, str]:
        return _fields("\r\n".join(self._answer()[0]))

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        found = json.loads(self._answer()[1])
        assert isinstance(found, dict), self.log()
        return found


def _fields(head: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.split("\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}


def environment_of_tests(state: Path) -> dict[str, str]:
    """The environment of every process: this one's, without what would change how tdx or curl
    behave, with the code that is being tested, and ``state`` for what pushes remember."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TDX_", "COV_", "COVERAGE_", "STATE_DIRECTORY", "NOTIFY_SOCKET"))
    }
    path = os.pathsep.join(str(ROOT / part) for part in ("engine", "cli"))
    return {
        **kept,
        "PYTHONPATH": path,
        "PYTHONFAULTHANDLER": "1",
        "LC_ALL": "C.UTF-8",
        "TDX_STATE_DIR": str(state),
    }


def reaped(processes: Processes) -> Iterator[Processes]:
    """The body of a fixture: the processes, then their end and, for pytest to show after a failure,
    their logs."""
    with processes:
        yield processes
    sys.stdout.write(processes.logs_of_all() + "\n")
