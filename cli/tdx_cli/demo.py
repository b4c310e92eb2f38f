"""``tdx demo``: the whole promise in one command, with real processes and an independent judge."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Final, NoReturn

import click

from tdx_cli.text import rate_of, say, seconds_of, size_of, warn
from tdx_cli.values import SIZE

NAME: Final = "demo.bin"
SMALLEST: Final = 32 << 20
"""Fewer bytes are too few extents to be killed among."""

KILL_AT: Final = 0.47
"""Share of the file after which the push is killed; what is on its way makes it half."""

BLOCK: Final = 8 << 20
MARGIN: Final = 512 << 20
"""Bytes of the disk beyond source and copy, so that the receiver's reserve is left alone."""

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0

_HASHLIB: Final = "import hashlib,sys;print(hashlib.file_digest(open(sys.argv[1],'rb'),'sha256').hexdigest())"


class DemoFailed(Exception):
    """The demonstration showed something else than it should."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one push told. ``event`` is its last; None where it was killed before. ``sent``: the
    bytes it had sent when last heard of; ``first_byte``: seconds from its start until it was
    heard to have sent any."""

    event: dict[str, object] | None
    sent: int
    first_byte: float | None
    seconds: float
    code: int

    def figure(self, key: str) -> int:
        value = None if self.event is None else self.event.get(key)
        if not isinstance(value, int):
            raise DemoFailed(f"the push did not tell its {key}: {self.event}")
        return value


@click.command("demo", short_help="Push, kill, resume, compare: the figures.")
@click.option("--size", type=SIZE, default="3G", show_default=True, help="How much to push.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Where the temporary folder is made.  [default: the system's]",
)
@click.option("--keep", is_flag=True, help="Leave the temporary folder behind.")
def command(size: int, folder: Path | None, keep: bool) -> int:
    """Start a receiver in a temporary folder, push random data to it, kill the push halfway, resume it,
    and compare source and copy with an independent hash program."""
    import tempfile

    from tdx.errors import UsageError

    if size < SMALLEST:
        raise UsageError(f"--size {size}: a demonstration needs at least {size_of(SMALLEST)}")
    signal.signal(signal.SIGTERM, _as_interrupt)
    with contextlib.ExitStack() as undo:
        root = Path(tempfile.mkdtemp(prefix="tdx-demo-", dir=folder))
        if keep:
            undo.callback(say, f"kept: {root}")
        else:
            undo.callback(shutil.rmtree, root, ignore_errors=True)
        _check_space(root, size)
        try:
            Demo(root, size, undo).run()
        except DemoFailed as failure:
            warn(f"the demonstration failed: {failure}")
            return 1
    return 0


class Demo:
    """One demonstration in ``root``. Every child is ended by ``undo``, whatever happens."""

    def __init__(self, root: Path, size: int, undo: contextlib.ExitStack) -> None:
        self._size = size
        self._undo = undo
        self._source = root / NAME
        self._inbox = root / "inbox"
        self._log = root / "serve.log"
        self._env = {**os.environ, "TDX_STATE_DIR": str(root / "state")}
        self._inbox.mkdir(mode=0o700)

    def run(self) -> None:
        """DemoFailed where anything is not as promised."""
        say(f"1. {size_of(self._size)} of random data in {self._source}")
        fill(self._source, self._size)
        peer = self._serve()
        say(f"2. tdx serve --dir {self._inbox}: listening on {peer}")
        first, second = self._push_kill_resume(peer)
        say("5. comparing with an independent hash program")
        self._compare()
        self._check_resumed(first, second)
        self._show(first, second)

    # --- children --------------------------------------------------------------

    def _start(self, *arguments: str, stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        return self._run([sys.executable, "-P", "-m", "tdx_cli", *arguments], stderr)

    def _run(self, command: Sequence[str], stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        # A session of its own: an interrupt from the terminal comes to the demonstration only. And one that
        # comes while a child is made would leave it to nobody.
        with _uninterrupted():
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env=self._env, start_new_session=True
            )
            self._undo.callback(_end, child)
        return child

    def _serve(self) -> str:
        with self._log.open("wb") as log:
            child = self._start("serve", "--dir", str(self._inbox), "--listen", "127.0.0.1:0", stderr=log)
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], START_SECONDS)
        line = (child.stdout.readline() if ready else b"").decode().split()
        if len(line) != 2 or line[0] != "listening":
            raise DemoFailed(f"the receiver did not start: {_tail(self._log)}")
        return line[1]

    def _push_kill_resume(self, peer: str) -> tuple[Pushed, Pushed]:
        for flags in ([], ["--limit-rate", str(self._size // 3)]):
            say(f"3. tdx push {' '.join([NAME, peer, *flags])}, to be killed near half")
            first = self._push(peer, flags, kill_at=int(self._size * KILL_AT))
            if first.code not in {0, -signal.SIGKILL}:
                raise DemoFailed(f"the first push ended with {first.code}: {first.event}")
            if not self._visible():
                say(f"   killed (SIGKILL) after {size_of(first.sent)}; nothing is visible in the folder")
                say(f"4. tdx push {NAME} {peer} --resume")
                second = self._push(peer, ["--resume"])
                if second.code or second.event is None or second.event.get("event") == "failed":
                    raise DemoFailed(f"the resumed push ended with {second.code}: {second.event}")
                if second.event.get("event") == "done":
                    return first, second
            # A push that was killed may have handed over everything just before.
            say("   the first push was done before it could be killed: once more, at a limited rate")
            (self._inbox / NAME).unlink()
        raise DemoFailed("no push could be killed before it was done")

    def _push(self, peer: str, flags: list[str], kill_at: int | None = None) -> Pushed:
        """Run one push to its end, or until it has sent ``kill_at`` bytes."""
        began = time.monotonic()
        child = self._start("push", str(self._source), peer, "--json", *flags)
        sent, first_byte, last = 0, None, None
        for event in _events(child):
            if event.get("event") != "progress":
                last = event if event.get("event") != "started" else last
                continue
            told = event.get("sent_bytes")
            sent = told if isinstance(told, int) else sent
            if sent and first_byte is None:
                first_byte = time.monotonic() - began
            if kill_at is not None and sent >= kill_at:
                child.kill()
                break
        code = child.wait()
        return Pushed(last, sent, first_byte, time.monotonic() - began, code)

    # --- what must be true -----------------------------------------------------

    def _visible(self) -> list[str]:
        return sorted(entry.name for entry in self._inbox.iterdir() if entry.name != ".tdx")

    def _compare(self) -> None:
        if self._visible() != [NAME]:
            raise DemoFailed(f"the folder should hold {NAME} alone, and holds {self._visible()}")
        program = shutil.which("sha256sum")
        command = [program] if program else [sys.executable, "-c", _HASHLIB]
        digests: list[str] = []
        children = [self._run([*command, str(path)]) for path in (self._source, self._inbox / NAME)]
        for child in children:
            output, _ = child.communicate()
            if child.returncode:
                raise DemoFailed(f"{command[0]} failed with {child.returncode}")
            digests.append(output.decode().split()[0])
        names = ("source", "copy")
        for name, digest in zip(names, digests, strict=True):
            say(f"   sha256 of the {name}: {digest}")
        if digests[0] != digests[1]:
            raise DemoFailed("source and copy differ")

    def _check_resumed(self, first: Pushed, second: Pushed) -> None:
        resumed, sent = second.figure("resumed_bytes"), second.figure("sent_bytes")
        if not resumed:
            raise DemoFailed(f"nothing was resumed, though {first.sent} bytes had been sent")
        if resumed + sent != self._size:
            raise DemoFailed(
                f"{resumed} bytes were held and {sent} were sent, which is not {self._size}: "
                "something that was held was sent again"
            )
        uploads = self._inbox / ".tdx" / "uploads"
        if uploads.is_dir() and any(uploads.iterdir()):
            raise DemoFailed(f"a partial is left in {uploads}")

    def _show(self, first: Pushed, second: Pushed) -> None:
        resumed, sent = second.figure("resumed_bytes"), second.figure("sent_bytes")
        rows = [
            ("size", size_of(self._size)),
            ("sent before the kill", f"{size_of(first.sent)} in {seconds_of(first.seconds)}"),
            ("held by the receiver at the resume", size_of(resumed)),
            (
                "sent by the resumed push",
                f"{size_of(sent)} in {seconds_of(second.seconds)} with start-up",
            ),
            ("held bytes that were sent again", size_of(resumed + sent - self._size)),
        ]
        seconds = second.event.get("seconds") if second.event else None
        if isinstance(seconds, float):
            rows.append(("rate of the resumed push", rate_of(sent, seconds)))
        if second.first_byte is not None:
            rows.append(("from its start to new bytes", f"at most {seconds_of(second.first_byte)}"))
        width = max(len(label) for label, _ in rows)
        say("6. identical; the figures:")
        for label, value in rows:
            say(f"   {label:{width}}  {value}")


def fill(path: Path, size: int) -> None:
    """Write ``size`` random bytes to ``path``, with as many threads as help."""
    from concurrent.futures import ThreadPoolExecutor

    def write(offset: int) -> None:
        data = memoryview(os.urandom(min(BLOCK, size - offset)))
        while data:
            done = os.pwrite(descriptor, data, offset)
            data, offset = data[done:], offset + done

    with path.open("wb") as file, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        descriptor = file.fileno()
        pending = [pool.submit(write, offset) for offset in range(0, size, BLOCK)]
        try:
            for each in pending:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_space(root: Path, size: int) -> None:
    from tdx.errors import NoSpace

    free, needed = shutil.disk_usage(root).free, 2 * size + MARGIN
    if free < needed:
        raise NoSpace(
            f"{root.parent}: {size_of(free)} are free and {size_of(needed)} are needed; "
            "choose another place with --dir, or a smaller --size"
        )


def _events(child: subprocess.Popen[bytes]) -> Iterator[dict[str, object]]:
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if isinstance(event, dict):
            yield event


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop a child that still runs, by its id, and collect it."""
    stops: tuple[Callable[[], None], ...] = (child.terminate, child.kill)
    for stop in stops:
        if child.poll() is None:
            stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
    if child.stdout is not None:
        child.stdout.close()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def _uninterrupted() -> Generator[None]:
    """Signals that ask for the end are heard afterwards."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _as_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
