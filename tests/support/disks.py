"""Real filesystems on devices of the tests' own: small, with few inodes, with quotas, or on a device that
fails. They are mounted in a namespace of their own, and gone with it. Each skips the test, with a reason,
where this machine does not allow it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.content import MIB
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.spaces import SmallDisk, namespaces, needs, or_skip

OWN_STRUCTURES: Final = 12 * MIB
"""The beginning of a device where all of the filesystem's own structures lie, its journal too."""


@dataclass(frozen=True)
class LoopDisk(SmallDisk):
    """A filesystem in the file ``image``, on a loop device that goes with the mount."""

    image: Path

    @property
    def free(self) -> int:
        found = os.statvfs(self.seen)
        return found.f_bavail * found.f_frsize

    def fill(self) -> Path:
        """Also what ext4 had set aside for its own needs, and knows only afterwards that it does not need."""
        filler = super().fill()
        for _ in range(3):
            self.sync()
            with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1024))
        return filler

    def mount(self, options: str = "defaults") -> None:
        """Also again, after it was unmounted."""
        or_skip([*self.prefix, "mount", "-o", f"loop,{options}", str(self.image), str(self.path)])

    def unmount(self) -> None:
        subprocess.run([*self.prefix, "umount", str(self.path)], check=True)

    def sync(self) -> None:
        """What was freed is free."""
        subprocess.run(["sync", "-f", str(self.seen)], check=True)

    def trip(self) -> None:
        """What ext4 does when it finds itself damaged."""
        number = os.minor(self.seen.stat().st_dev)
        trigger = Path(f"/sys/fs/ext4/loop{number}/trigger_fs_error")
        if not os.access(trigger, os.W_OK):
            pytest.skip(f"there is no {trigger}")
        trigger.write_text("told to by a test of tdx")


@dataclass(frozen=True)
class FailingDisk(LoopDisk):
    """An ext4 filesystem that believes in more blocks than its device can store: its image lies on a
    small tmpfs, ``below``. While that is full, whatever goes to a block that was not written before
    fails, after ext4 has promised it."""

    below: SmallDisk

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """The device takes no more new blocks."""
        filler = self.below.fill()
        try:
            yield
        finally:
            filler.unlink()


def small_ext4(
    processes: Processes, path: Path, size: int, *make: str, options: str = "errors=remount-ro"
) -> LoopDisk:
    """An ext4 filesystem of ``size`` bytes, made with the further arguments ``make`` of mkfs.ext4 and
    mounted with these options."""
    return _on_loop(processes, path, size, ["mkfs.ext4", "-q", "-F", "-m", "0", *make], options)


def small_btrfs(processes: Processes, path: Path, size: int) -> LoopDisk:
    return _on_loop(processes, path, size, ["mkfs.btrfs", "-q", "-f"], "defaults")


def _on_loop(processes: Processes, path: Path, size: int, make: Sequence[str], options: str) -> LoopDisk:
    needs(make[0])
    path.mkdir()
    disk = LoopDisk(path, size, namespaces(processes, "mount"), path.with_name(f"{path.name}.image"))
    _sparse(disk.image, size)
    or_skip([*make, str(disk.image)])
    disk.mount(options)
    return disk


def failing_ext4(
    processes: Processes, path: Path, size: int, *, data_only: bool = True, options: str = "errors=remount-ro"
) -> FailingDisk:
    """``data_only``: the device always has room for the filesystem's own structures; otherwise its journal
    fails too."""
    needs("mkfs.ext4")
    below = path.with_name(f"{path.name}.below")
    for each in (path, below):
        each.mkdir()
    holder = namespaces(processes, "mount")
    disk = FailingDisk(path, size, holder, below / "image", SmallDisk(below, size, holder))
    or_skip([*disk.prefix, "mount", "-t", "tmpfs", "-o", f"size={size}", "tdx-test", str(below)])
    image = disk.below.seen / "image"
    _sparse(image, 2 * size)
    at_front = ["-E", "packed_meta_blocks=1,nodiscard", "-J", "size=4"]
    or_skip(["mkfs.ext4", "-q", "-F", "-m", "0", *at_front, str(image)])
    if data_only:
        or_skip(["fallocate", "-l", str(OWN_STRUCTURES), str(image)])
    disk.mount(options)
    return disk


@contextlib.contextmanager
def freezing(disk: LoopDisk) -> Iterator[Callable[[bool], None]]:
    """What is yielded makes every write to the disk wait in the kernel, as if a cable had fallen off, or lets
    it go on; at the end it goes on. Skips the test where that is not to be had."""
    needs("fsfreeze")

    def freeze(on: bool) -> None:
        or_skip([*disk.prefix, "fsfreeze", "-f" if on else "-u", str(disk.path)])

    try:
        yield freeze
    finally:
        # It may go on already, which is refused.
        subprocess.run([*disk.prefix, "fsfreeze", "-u", str(disk.path)], check=False, capture_output=True)


def receiver_on(disk: SmallDisk, processes: Processes, area: Path, *, reserve: int = 0) -> Receiver:
    """A receiver into a folder on the disk; its state is elsewhere."""
    receiver = processes.receiver(
        disk.path / "inbox",
        area / "receiver-state",
        program=[*disk.prefix, *PROGRAM],
        config=f"reserve = {reserve}\n",
    )
    receiver.folder = disk.seen / "inbox"
    return receiver


def await_held(receiver: Receiver) -> None:
    """Wait until its only partial holds something. (Looked for on the disk: to ask for an upload that is
    being made would be in its way.)"""

    def holds() -> bool:
        with contextlib.suppress(OSError):
            return any((partial / "journal").stat().st_size > 48 for partial in receiver.partials)
        return False

    wait_until(holds, "something of the push is held")


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as image:
        image.truncate(size)
