"""The store's system calls, counted, made to fail, or stopped for good as by SIGKILL."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from tdx.store.syscalls import System

CALLS = frozenset(name for name in vars(System) if not name.startswith("_"))


class Stopped(BaseException):
    """The process is dead: no handler of errors may run, no call succeeds any more."""


def nothing(name: str, arguments: tuple[Any, ...]) -> None:
    """The hook of a healthy system."""


class FaultySystem(System):
    """``before(name, arguments)`` runs ahead of every call and may raise; ``log`` names them all.

    ``free``: bytes the disk has left, whatever is written to it; None for the truth.
    """

    def __init__(self, boot: bytes = bytes(range(16))) -> None:
        self.log: list[str] = []
        self.fds: set[int] = set()
        self.boot = boot
        self.free: int | None = None
        self.before: Callable[[str, tuple[Any, ...]], None] = nothing

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in CALLS:
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self.log.append(name)
            self.before(name, arguments)
            result = attribute(*arguments, **options)
            if name == "open":
                self.fds.add(result)
            elif name == "close":
                self.fds.discard(arguments[0])
            return result

        return call

    def boot_id(self) -> bytes:
        return self.boot

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        found = list(os.fstatvfs(fd))
        if self.free is not None:
            found[1], found[4] = 1, self.free
        return os.statvfs_result(found)

    def fail(self, name: str, code: int, *, times: int = 1, skip: int = 0) -> None:
        """Let ``skip`` calls pass and the next ``times`` fail with this errno."""
        self.spoil(name, OSError(code, os.strerror(code)), times=times, skip=skip)

    def spoil(self, name: str, error: BaseException, *, times: int = 1, skip: int = 0) -> None:
        left = [skip, times]

        def before(called: str, arguments: tuple[Any, ...]) -> None:
            if called != name:
                return
            if left[0]:
                left[0] -= 1
            elif left[1]:
                left[1] -= 1
                raise error

        self.before = before

    def fail_step(self, step: int, calls: Sequence[str], code: int) -> None:
        """The ``step``-th call from now fails, of those whose names are among ``calls``, with this errno."""
        left = [step]

        def before(called: str, arguments: tuple[Any, ...]) -> None:
            left[0] -= called in calls
            if left[0] == -1:
                raise OSError(code, os.strerror(code))

        self.before = before

    def heal(self) -> None:
        self.before = nothing

    def stop_at(self, step: int) -> None:
        """The process dies before its ``step``-th call from now."""
        left = [step]

        def before(called: str, arguments: tuple[Any, ...]) -> None:
            if left[0] == 0:
                raise Stopped
            left[0] -= 1

        self.before = before

    def die(self) -> None:
        """What the kernel does for a dead process: close everything."""

        def dead(called: str, arguments: tuple[Any, ...]) -> None:
            raise Stopped

        self.before = dead
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class HalfWriting(FaultySystem):
    """Every write and read is short, and interrupted every other time."""

    def __init__(self, boot: bytes = bytes(range(16))) -> None:
        super().__init__(boot)
        self._interrupt = False

    def _maybe_interrupt(self) -> None:
        self._interrupt = not self._interrupt
        if self._interrupt:
            raise InterruptedError(errno.EINTR, "interrupted")

    def read(self, fd: int, count: int) -> bytes:
        return os.read(fd, max(1, count // 1000))

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data[: max(1, len(data) // 2)])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._maybe_interrupt()
        return os.pwrite(fd, data[: max(1, len(data) // 2)], offset)

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        self._maybe_interrupt()
        return os.preadv(fd, [view[: max(1, len(view) // 2)]], offset)

    def fallocate_keep_size(self, fd: int, offset: int, length: int) -> None:
        self._maybe_interrupt()
        super().fallocate_keep_size(fd, offset, length)


class WithoutRenameat2(FaultySystem):
    """A filesystem or C library without RENAME_NOREPLACE."""

    def rename_noreplace(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        raise OSError(errno.EINVAL, "not here")


class WithoutSyncfs(FaultySystem):
    """A system that cannot sync a whole filesystem, or would not tell what failed."""

    def syncfs(self, fd: int) -> None:
        raise OSError(errno.ENOSYS, "not here")
