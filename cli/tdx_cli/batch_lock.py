"""One run of a batch at a time: a lock that the kernel lets go of, however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tdx.errors import Busy, ConfigError
from tdx.identity.private import make_folder
from tdx.integrity import digest_of
from tdx.model import shown

FOLDER: Final = "batches"
MOST: Final = 4096
"""Bytes of what a holder says of itself, at most."""


@contextlib.contextmanager
def only_run_of(file: Path, state: Path) -> Generator[None]:
    """Inside, this process is the only one that runs the batch of ``file``, among those with this state
    directory. Busy, saying who else does, where another one is at it; ConfigError where that cannot be known.

    A batch goes by the path of its file, the symbolic links on the way to it followed.
    """
    folder = state / FOLDER
    make_folder(folder)
    path = folder / lock_name(file)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened to lock the batch: {error.strerror}") from error
    try:
        _take(descriptor, file, path)
        try:
            yield
        finally:
            # What is told of a holder is never that of an earlier one, unless it was killed.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, file: Path, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, MOST, 0).decode("utf-8", "replace").strip()
        raise Busy(
            f"{shown(str(file))}: is being run already by {holder or 'another process'}; "
            "run it again when that has ended"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a full disk keeps nobody from pushing what is on it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _oneself().encode(), 0)


def lock_name(file: Path) -> str:
    """The file of the lock, for that of a batch."""
    place = file.absolute().parent.resolve() / file.name
    return digest_of(os.fsencode(place)).hex() + ".lock"


def _oneself() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {os.uname().nodename} since {now}\n"
