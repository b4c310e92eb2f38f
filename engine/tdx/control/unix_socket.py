"""A Unix socket at a path in the filesystem: put there, connected to, taken away, however long the path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tdx.errors import ConfigError

BACKLOG: Final = 512
LONGEST: Final = 107
"""Bytes of a path that an address has room for (unix(7)): 108 with the final NUL."""

LOCK_SECONDS: Final = 2.0
PROBE_SECONDS: Final = 2.0
_CREDENTIALS: Final = struct.Struct("=3i")  # struct ucred: pid, uid, gid


class UnixListener:
    """A listening socket at ``path`` that only its own user and root may connect to."""

    def __init__(self, path: Path) -> None:
        """Blocks briefly. What a killed process left there is replaced; ConfigError where another one answers
        there, or no socket can be put there."""
        self.path = path
        self._mine: tuple[int, int] | None = None
        """The file that was put there: device and inode."""
        self._folder = _open_folder(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with _alone(self._folder):
                self._clear()
                # The mode that the file is made with: there is no moment at which it is open to others.
                os.fchmod(self.sock.fileno(), 0o600)
                self.sock.bind(_address(path, self._folder))
                self._mine = self._look()
                self.sock.listen(BACKLOG)
        except OSError as error:
            self.close()
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(f"cannot listen on {path}: {reason}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take it away, if it is still the one that was put there. Idempotent."""
        if self._folder < 0:
            return
        with contextlib.suppress(OSError):
            if self._mine is not None and self._look() == self._mine:
                os.unlink(self.path.name, dir_fd=self._folder)
        self.sock.close()
        os.close(self._folder)
        self._folder = -1

    def _look(self) -> tuple[int, int]:
        found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
        return found.st_dev, found.st_ino

    def _clear(self) -> None:
        try:
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(f"cannot listen on {self.path}: a file is there that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_SECONDS)
            try:
                probe.connect(_address(self.path, self._folder))
            except ConnectionRefusedError:
                os.unlink(self.path.name, dir_fd=self._folder)
                return
            except FileNotFoundError:  # it has gone just now
                return
            except (BlockingIOError, TimeoutError):  # its queue is full
                pass
        raise ConfigError(
            f"cannot listen on {self.path}: another process does; give each receiver its own with --socket"
        )


def connect(path: Path, timeout: float) -> socket.socket:
    """A socket that is connected to ``path``. OSError."""
    with contextlib.ExitStack() as undo:
        folder = -1
        if not _fits(path):
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, folder)
        deadline = time.monotonic() + timeout
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect(_address(path, folder))
            except BlockingIOError:  # its queue is full just now
                sock.close()
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            except BaseException:
                sock.close()
                raise
            else:
                return sock


def uid_of(sock: socket.socket) -> int:
    """The user that has made this connection, as the kernel vouches."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1])


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST


def _address(path: Path, folder: int) -> str:
    """What to bind or connect to; where the path is too long for an address, by its ``folder``, which is
    open."""
    return os.fspath(path) if _fits(path) else f"/proc/self/fd/{folder}/{path.name}"


def _open_folder(path: Path) -> int:
    if len(os.fsencode(path.name)) > LONGEST - len("/proc/self/fd/1048576/"):
        raise ConfigError(f"cannot listen on {path}: the name of a socket has no room for so much")
    try:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: its folder cannot be opened: {error.strerror}") from None


@contextlib.contextmanager
def _alone(folder: int) -> Generator[None]:
    """While another process puts a socket into ``folder`` in this way, wait; not for ever, and not where the
    filesystem has no locks: it is for two that would find the same socket stale at the same moment."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK and time.monotonic() < deadline:
                time.sleep(0.005)
                continue
        break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
