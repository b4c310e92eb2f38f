"""The folders that are a receiver's own, DIR and ``DIR/.tdx``: made, checked, and taken for one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from typing import Final

from tdx.errors import ConfigError
from tdx.store.paths import BLOCKED, DIRECTORY, read_small, write_all, write_file
from tdx.store.syscalls import System

_STORE_ID: Final = re.compile(rb"[0-9a-f]{32}")


def open_folder(system: System, folder: str) -> int:
    """DIR, made if only its last component is missing; ConfigError unless it is ours alone to write."""
    try:
        fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        fd = _make_folder(system, folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be used as the folder to receive into: {error.strerror}"
        ) from error
    try:
        found = system.fstat(fd)
        _check_owner(system, folder, found)
        if found.st_mode & 0o022:
            raise ConfigError(f"{folder}: others may write to it; chmod go-w {folder}")
    except BaseException:
        system.close(fd)
        raise
    return fd


def _make_folder(system: System, folder: str) -> int:
    above, leaf = os.path.split(os.path.abspath(folder))
    try:
        parent = system.open(above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            system.mkdir(leaf, 0o755, dir_fd=parent)
            system.fsync(parent)
            return system.open(leaf, DIRECTORY, dir_fd=parent)
        finally:
            system.close(parent)
    except OSError as error:
        raise ConfigError(f"{folder}: does not exist and cannot be made: {error.strerror}") from error


def open_own(system: System, path: str, name: str, *, dir_fd: int, device: int) -> int:
    """A folder of the store's own, made if missing: a real directory, ours, 0700, on DIR's filesystem.

    ``path`` is for messages. ConfigError otherwise.
    """
    try:
        try:
            system.mkdir(name, 0o700, dir_fd=dir_fd)
            system.fsync(dir_fd)
        except FileExistsError:
            pass
        fd = system.open(name, DIRECTORY, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in BLOCKED:
            raise ConfigError(f"{path}: is not a directory; move it away") from error
        raise ConfigError(f"{path}: cannot be made or opened: {error.strerror}") from error
    try:
        found = system.fstat(fd)
        _check_owner(system, path, found)
        if found.st_mode & 0o077:
            raise ConfigError(f"{path}: others may enter it; chmod 700 {path}")
        if found.st_dev != device:
            raise ConfigError(f"{path}: is on another filesystem than the folder it lies in")
    except BaseException:
        system.close(fd)
        raise
    return fd


def _check_owner(system: System, path: str, found: os.stat_result) -> None:
    if found.st_uid != system.geteuid():
        raise ConfigError(
            f"{path}: belongs to uid {found.st_uid}, and the receiver runs as {system.geteuid()}"
        )


def lock(system: System, own: int, folder: str) -> int:
    """Take DIR for this process; the descriptor that holds it. ConfigError naming the holder."""
    try:
        fd = system.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, dir_fd=own)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be locked: {error.strerror}") from error
    try:
        try:
            system.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = system.read(fd, 100).decode("ascii", "replace").strip() or "another process"
            raise ConfigError(f"{folder}: is already being received into by {holder}") from error
        system.ftruncate(fd, 0)
        write_all(system, fd, f"process {os.getpid()}\n".encode("ascii"))
    except OSError as error:
        system.close(fd)
        raise ConfigError(f"{folder}: cannot be locked: {error.strerror}") from error
    except BaseException:
        system.close(fd)
        raise
    return fd


def store_id(system: System, own: int, path: str) -> str:
    """What this folder is called in the receipts: made once, and it moves with the folder."""
    try:
        try:
            found = read_small(system, "id", dir_fd=own, most=100)
        except FileNotFoundError:
            temporary = f"id.{secrets.token_hex(8)}"
            write_file(system, temporary, secrets.token_hex(16).encode("ascii"), dir_fd=own, sync=True)
            with contextlib.suppress(FileExistsError):
                system.link(temporary, "id", src_dir_fd=own, dst_dir_fd=own)
            system.unlink(temporary, dir_fd=own)
            system.fsync(own)
            found = read_small(system, "id", dir_fd=own, most=100)
    except OSError as error:
        raise ConfigError(f"{path}/id: cannot be read or made: {error.strerror or error}") from error
    if _STORE_ID.fullmatch(found) is None:
        raise ConfigError(
            f"{path}/id: is not 32 hexadecimal digits; restore it, or remove it to begin without receipts"
        )
    return found.decode("ascii")
