"""System calls that fail on command: those of the store, and those by which the pumps move bytes."""

from __future__ import annotations

import errno
import functools
import os
import random
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from store.faulty import FaultySystem

SHORT: Final = "short"
"""The call does a part of what it was to do."""

_DISK: Final = ("EIO", "ENOSPC", "EDQUOT")
_WIRE: Final = ("EAGAIN", "ECONNRESET", "ETIMEDOUT")

STORE: Final[Mapping[str, tuple[str, ...]]] = {
    "open": ("EMFILE", "ENFILE", "EIO", "ENOSPC"),
    "flock": ("EIO", "ENOLCK"),
    "mkdir": _DISK,
    "rmdir": ("EIO",),
    "unlink": ("EIO",),
    "link": ("EIO", "ENOSPC", "EPERM"),
    "rename": ("EIO", "ENOSPC"),
    "rename_noreplace": ("EIO", "ENOSPC", "EINVAL"),
    "listdir": ("EIO", "EMFILE"),
    "stat": ("EIO",),
    "fstat": ("EIO",),
    "fstatvfs": ("EIO",),
    "read": ("EIO", SHORT),
    "write": (*_DISK, SHORT),
    "pwrite": (*_DISK, "EINTR", SHORT),
    "preadv": ("EIO", "EINTR", SHORT),
    "ftruncate": _DISK,
    "fallocate_keep_size": (*_DISK, "EINTR", "EOPNOTSUPP"),
    "fchmod": ("EIO", "EPERM"),
    "chmod": ("EIO", "EPERM"),
    "utime": ("EIO", "EPERM"),
    "start_writeback": ("EIO", "ENOSPC", "EINVAL"),
    "fdatasync": _DISK,
    "fsync": _DISK,
    "syncfs": ("EIO", "ENOSPC", "ENOSYS"),
}
"""What each call of the store can meet."""

PUMPS: Final[Mapping[str, tuple[str, ...]]] = {
    "sendfile": ("EIO", "EINVAL", SHORT, *_WIRE),
    "splice": ("EIO", "ENOSPC", "EINVAL", SHORT, *_WIRE),
    "pipe": ("EMFILE", "ENFILE"),
    "source preadv": ("EIO", SHORT),
    "source readv": ("EIO", SHORT),
    "recv_into": (SHORT, *_WIRE),
    "send": (SHORT, "EPIPE", *_WIRE),
}
"""And each call of a pump."""

ENDURED: Final = frozenset({"EAGAIN", "EINTR", SHORT})
"""What may come many times in a row."""


@dataclass(frozen=True)
class Strike:
    """What the calls of this name meet, from the one after ``skip`` others on, ``times`` times."""

    call: str
    kind: str
    skip: int
    times: int

    @classmethod
    def thrown(cls, dice: random.Random, catalogue: Mapping[str, tuple[str, ...]]) -> Strike:
        call = dice.choice(sorted(catalogue))
        kind = dice.choice(catalogue[call])
        most = 40 if kind in ENDURED else 3
        return cls(call, kind, int(dice.expovariate(0.3)), dice.randint(1, most))


@dataclass
class Storm:
    """Strikes that are still to come, from any thread. ``struck`` counts those that came."""

    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    _coming: dict[str, list[list[Any]]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def brew(self, strikes: Iterable[Strike]) -> None:
        for strike in strikes:
            self._coming[strike.call].append([strike.kind, strike.skip, strike.times])

    def calm(self) -> None:
        with self._lock:
            self._coming.clear()

    @property
    def unread(self) -> int:
        """How often the store could not read a file."""
        return sum(self.struck[call, "EIO"] for call in ("open", "stat", "fstat", "preadv"))

    @property
    def unseen(self) -> int:
        """How often it could not look at what there is."""
        looks = ("open", "stat", "fstat", "listdir", "flock", "read")
        return sum(count for (call, _), count in self.struck.items() if call in looks)

    def meets(self, call: str) -> bool:
        """One call: OSError where it fails, whether it is to be short otherwise."""
        with self._lock:
            for strike in self._coming.get(call, ()):
                kind, skip, times = strike
                if skip:
                    strike[1] -= 1
                elif times:
                    strike[2] -= 1
                    self.struck[call, kind] += 1
                    if kind == SHORT:
                        return True
                    code = getattr(errno, kind)
                    raise OSError(code, os.strerror(code))
        return False


class StormySystem(FaultySystem):
    """The store's calls in a storm."""

    def __init__(self, storm: Storm) -> None:
        super().__init__()
        self._short = threading.local()

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            self._short.now = name in STORE and storm.meets(name)

        self.before = before

    def read(self, fd: int, count: int) -> bytes:
        return os.read(fd, _part(count) if self._short.now else count)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data[: _part(len(data))] if self._short.now else data)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data[: _part(len(data))] if self._short.now else data, offset)

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view[: _part(len(view))] if self._short.now else view], offset)


def _part(count: int) -> int:
    return min(count, max(1, count // 3))


def over_pumps(storm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the calls of every pump in this process meet the storm: those of threads that move bodies."""

    def patch(owner: Any, name: str, call: str, shortened: Callable[..., tuple[Any, ...]]) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def stormy(*given: Any, **options: Any) -> Any:
            pumping = threading.current_thread().name.startswith("tdx-body")
            # A thread wakes the loop through a socket of its own, which cannot fail.
            inner = owner is socket.socket and given[0].family == socket.AF_UNIX
            if pumping and not inner and storm.meets(call):
                given = shortened(*given)
            return real(*given, **options)

        monkeypatch.setattr(owner, name, stormy)

    patch(os, "sendfile", "sendfile", lambda out, source, at, count: (out, source, at, _part(count)))
    patch(os, "splice", "splice", lambda source, target, count: (source, target, _part(count)))
    patch(os, "pipe", "pipe", lambda: ())
    patch(os, "preadv", "source preadv", lambda fd, views, at: (fd, [views[0][: _part(len(views[0]))]], at))
    patch(os, "readv", "source readv", lambda fd, views: (fd, [views[0][: _part(len(views[0]))]]))
    patch(socket.socket, "recv_into", "recv_into", lambda sock, view, count, *_: (sock, view, _part(count)))
    patch(socket.socket, "send", "send", lambda sock, data: (sock, memoryview(data)[: _part(len(data))]))
