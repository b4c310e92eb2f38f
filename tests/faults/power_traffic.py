"""What a receiver gets to do before the power is cut: pushes of every kind, kills in the middle of them,
and an account of what was begun and what acknowledged when."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.content import MIB, sha256_of
from support.power import Machine
from support.processes import Curl, Processes, Push, wait_until
from tdx.store.journal import RECORD_SIZE

TRIES: Final = 8
"""How often a push is run again that the death of the receiver has ended."""

SLOWLY: Final = ("--limit-rate", str(24 * MIB))
AN_HOUR_AGO: Final = -3600


@dataclass(frozen=True)
class Version:
    """What a name may have. ``mtime_ns`` is None where it does not travel."""

    source: Path
    size: int
    digest: str
    mtime_ns: int | None

    def is_at(self, path: Path) -> bool:
        found = path.stat()
        same = found.st_size == self.size and sha256_of(path) == self.digest
        return same and self.mtime_ns in {None, found.st_mtime_ns}


@dataclass
class Name:
    """The versions of a name, each with what had reached the disk when it was begun; and how many of them
    had been acknowledged, with what had reached the disk by then."""

    versions: list[Version] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)

    @property
    def last(self) -> Version:
        return self.versions[-1]

    def allowed(self, position: int) -> tuple[list[Version], bool]:
        """What the name may have on a disk that this much had reached, and whether it must have it."""
        done = max((count for at, count in self.acknowledged if at <= position), default=0)
        begun = sum(at <= position for at in self.begun)
        return self.versions[max(done - 1, 0) : begun], done > 0


class Traffic:
    """:meth:`run` once; :attr:`names` is the account of it."""

    def __init__(self, processes: Processes, machine: Machine, area: Path, dice: random.Random) -> None:
        self.names: dict[str, Name] = {}
        self.tops: list[Path] = []
        """What was pushed under the names of its own and without replacing: files and folders."""
        self.journals_synced: list[int] = []
        """What had reached the disk when a journal had been made durable: by others, without what it speaks
        of; or by the receiver, with a mark."""
        self._processes = processes
        self._machine = machine
        self._area = area
        self._dice = dice
        self._starting = threading.Lock()

    def run(self) -> None:
        """All of it. The receiver is dead at the end."""
        self._receiver = self._machine.boot(self._processes)
        with self._synced_by_others(), ThreadPoolExecutor() as pool:
            for phase in (self._first, self._second, self._third, self._fourth, self._fifth):
                if phase in {self._second, self._fifth}:
                    self._receiver.stop()
                    self.journals_synced.append(self._machine.position())
                    self._receiver.restart()
                for each in [pool.submit(job) for job in phase()]:
                    each.result()
        self._receiver.kill()

    # --- what happens, four things at once ------------------------------------------

    def _first(self) -> list[Callable[[], None]]:
        """A sender is killed beside small files that get through."""
        self._killed, one, page = self._file("killed.bin", large=True), self._file("one"), self._file("page")
        plain = self._file("plain", plain=True)
        return [
            lambda: self._kill_sender(self._killed),
            lambda: self._push([one]),
            lambda: self._push([page], "--conflict", "overwrite"),
            lambda: self._put(plain),
        ]

    def _second(self) -> list[Callable[[], None]]:
        """The receiver, stopped in good order before, is killed in the middle of everything."""
        struck, tree = self._file("struck.bin", large=True), self._tree("tree", 30, 40 << 10)
        return [
            lambda: self._kill_receiver(struck),
            lambda: self._push([self._killed], *SLOWLY, "--resume"),
            lambda: self._push([tree], "-r"),
        ]

    def _third(self) -> list[Callable[[], None]]:
        """A large file takes the place of a small one; half of a file is put; another sender is killed."""
        self._parted, page = self._file("parted", large=True, plain=True), self._file("page", large=True)
        self._dropped, few = self._file("dropped.bin", large=True), self._tree("few", 2, 3 * MIB)
        return [
            lambda: self._push([page], *SLOWLY, "--conflict", "overwrite"),
            lambda: self._put_half(self._parted),
            lambda: self._kill_sender(self._dropped),
            lambda: self._push([few], "-r"),
        ]

    def _fourth(self) -> list[Callable[[], None]]:
        """A partial is given up for a new one, a stream has no length, one more sender is killed."""
        page, stream = self._file("page"), self._file("stream", large=True, plain=True)
        self._left = self._file("left.bin", large=True)
        return [
            lambda: self._put_rest(self._parted),
            lambda: self._push([self._dropped], *SLOWLY),
            lambda: self._push([page], "--conflict", "overwrite"),
            lambda: self._stream(stream),
            lambda: self._kill_sender(self._left),
        ]

    def _fifth(self) -> list[Callable[[], None]]:
        """Of what was left, some is marked now, and some is not when its sender is killed once more."""
        late = self._file("late.bin", large=True)
        return [
            lambda: self._kill_sender(self._left, "--resume"),
            lambda: self._push([late], *SLOWLY),
        ]

    # --- sources --------------------------------------------------------------------

    def _file(self, name: str, *, large: bool = False, plain: bool = False) -> Path:
        """A new version of ``name``, of one extent or several; ``plain`` if its sender tells no mtime."""
        low, high = (8 * MIB, 14 * MIB) if large else (100 << 10, 3 * MIB)
        path = self._area / f"sources-{len(self.names.get(name, Name()).versions)}" / name
        self._make(name, path, self._dice.randrange(low, high), plain=plain)
        if name != "page" and not plain:
            self.tops.append(path)
        return path

    def _tree(self, name: str, count: int, most: int) -> Path:
        folder = self._area / "sources-0" / name
        for number in range(count):
            path = folder / ("even" if number % 2 else "odd") / f"{number}"
            self._make(path.relative_to(folder.parent).as_posix(), path, self._dice.randrange(most))
        self.tops.append(folder)
        return folder

    def _make(self, name: str, path: Path, size: int, *, plain: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._dice.randbytes(size))
        then = time.time() + AN_HOUR_AGO
        os.utime(path, (then, then))
        mtime_ns = None if plain else path.stat().st_mtime_ns
        version = Version(path, size, sha256_of(path), mtime_ns)
        self.names.setdefault(name, Name()).versions.append(version)

    # --- the account ----------------------------------------------------------------

    def _names_of(self, paths: Sequence[Path]) -> list[Name]:
        found = [name for name in self.names.values() if _has_source_in(name, paths)]
        assert found, paths
        return found

    def _begin(self, paths: Sequence[Path]) -> None:
        position = self._machine.position()
        for name in self._names_of(paths):
            if len(name.begun) < len(name.versions):
                name.begun.append(position)

    def _acknowledged(self, paths: Sequence[Path]) -> None:
        position = self._machine.position()
        for name in self._names_of(paths):
            name.acknowledged.append((position, len(name.versions)))

    # --- senders --------------------------------------------------------------------

    def _start(self, paths: Sequence[Path], *flags: str) -> Push:
        self._begin(paths)
        with self._starting:
            return self._processes.push(*paths, self._receiver.address, *flags)

    def _curl(self, path: Path, *arguments: str | Path) -> Curl:
        with self._starting:
            return self._processes.curl(*arguments, f"{self._receiver.url}/files/{path.name}")

    def _push(self, paths: Sequence[Path], *flags: str) -> None:
        self._finish(self._start(paths, *flags), paths, *flags)

    def _finish(self, push: Push, paths: Sequence[Path], *flags: str) -> None:
        """Run it again until it is acknowledged."""
        again = [*flags, *(() if "--resume" in flags else ("--resume",))]
        for _ in range(TRIES):
            code = push.wait()
            if code == 0:
                break
            assert code in {69, 75}, push.log()
            push = self._start(paths, *again)
        assert push.wait() == 0, push.log()
        self._acknowledged(paths)

    def _kill_sender(self, path: Path, *flags: str) -> None:
        push = self._start([path], *SLOWLY, *flags)
        self._await_records(push, path)
        if push.kill() == 0:
            self._acknowledged([path])

    def _kill_receiver(self, path: Path) -> None:
        push = self._start([path], *SLOWLY)
        self._await_records(push, path)
        self._receiver.kill()
        with self._starting:
            self._receiver.launch()
        self._receiver.await_listening()
        self._finish(push, [path], *SLOWLY)

    def _await_records(self, push: Push, path: Path) -> None:
        """Wait until its journal has some records, or the push has ended."""
        count = self._dice.randrange(4)
        wait_until(
            lambda: not push.running or self._records(path.name) >= count, f"{path.name} has {count} records"
        )

    def _records(self, name: str) -> int:
        for partial in self._receiver.partials:
            try:
                if json.loads((partial / "meta").read_bytes())["name"] == name:
                    return (partial / "journal").stat().st_size // RECORD_SIZE
            except (OSError, ValueError):  # in the making, or removed meanwhile
                continue
        return -1

    def _put(self, path: Path) -> None:
        self._begin([path])
        assert self._curl(path, "-T", path).status == 201
        self._acknowledged([path])

    def _put_half(self, path: Path) -> None:
        self._begin([path])
        size = path.stat().st_size
        half = self._area / "half"
        half.write_bytes(path.read_bytes()[: size // 2])
        part = f"Content-Range: bytes 0-{size // 2 - 1}/{size}"
        assert self._curl(path, "-T", half, "-H", part).status == 202

    def _put_rest(self, path: Path) -> None:
        offset = str(path.stat().st_size // 2)
        assert self._curl(path, "-C", offset, "-T", path).status == 201
        self._acknowledged([path])

    def _stream(self, path: Path) -> None:
        self._begin([path])
        with path.open("rb") as source, self._starting:
            push = self._processes.push("-", self._receiver.address, "--name", path.name, stdin=source)
        push.ends(0, "done")
        self._acknowledged([path])

    @contextlib.contextmanager
    def _synced_by_others(self) -> Generator[None]:
        """Now and then the kernel writes back what it likes: mostly a file, sometimes everything."""
        over = threading.Event()
        dice = random.Random(self._dice.random())

        def sync() -> None:
            while not over.wait(dice.uniform(0.02, 0.3)):
                name = dice.choice([*["journal"] * 8, "data", "meta"])
                files = [partial / name for partial in self._receiver.partials]
                if files and dice.random() < 0.9:
                    with contextlib.suppress(FileNotFoundError), dice.choice(files).open("rb") as file:
                        os.fsync(file.fileno())
                        if name == "journal":
                            self.journals_synced.append(self._machine.position())
                elif dice.random() < 0.2:
                    self._machine.sync()

        thread = threading.Thread(target=sync)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _has_source_in(name: Name, paths: Sequence[Path]) -> bool:
    return any(name.last.source.is_relative_to(path) for path in paths)
