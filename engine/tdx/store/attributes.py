"""The attributes of what is there already: permission bits and the time of the last change."""

from __future__ import annotations

import contextlib
import os

from tdx.store.syscalls import System

BITS = 0o7777


def differ(found: os.stat_result, mode: int, mtime_ns: int) -> bool:
    return found.st_mode & BITS != mode or found.st_mtime_ns != mtime_ns


def give(system: System, fd: int, found: os.stat_result, mode: int, mtime_ns: int) -> bool:
    """Give the open file or folder these, as far as its filesystem and its owner allow; whether anything has
    changed, which is not durable yet. ``found`` is what it was like. OSError."""
    # Not every filesystem has permission bits, or room for every date.
    if found.st_mode & BITS != mode:
        with contextlib.suppress(OSError):
            system.fchmod(fd, mode)
    if found.st_mtime_ns != mtime_ns:
        with contextlib.suppress(OSError, OverflowError):
            system.utime(fd, mtime_ns)
    now = system.fstat(fd)
    return (now.st_mode, now.st_mtime_ns) != (found.st_mode, found.st_mtime_ns)
