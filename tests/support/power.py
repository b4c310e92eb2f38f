"""A machine whose power can be cut: a disk that remembers what reached it, and a boot id that changes.

Everything is mounted in a namespace of its own, and gone with the processes of the test.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from support.blocklog import DISK, Cut, Log
from support.processes import PROGRAM, ROOT, Processes, Receiver, wait_until
from support.spaces import inside, namespaces, needs, needs_root, or_skip

PARTS: Final = (256 << 20, 32 << 20)
"""Bytes of the disk's two partitions, each with a filesystem."""

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_QUICKLY: Final = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
"""The kernel writes nothing later that mkfs has left to it."""


class Machine:
    """Where one receiver runs, boot after boot, on one disk with ext4."""

    def __init__(self, processes: Processes, area: Path, *, apart: bool) -> None:
        """``apart``: the receiver keeps its state on another filesystem than its files, which are then
        not made durable by the way. Skips the test where this machine does not allow it."""
        needs_root()
        needs("mkfs.ext4", "e2fsck")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            pytest.skip("there is no /dev/fuse")
        try:
            importlib.import_module("mfusepy")
        except OSError as error:
            pytest.skip(f"no libfuse: {error}")
        self._processes = processes
        self._area = area
        self._mounted = (area / "first", area / "second")
        self._inbox = self._mounted[0] / "inbox"
        self._state = self._mounted[apart] / "state"
        self._recorder = area / "recorder"
        self._base, self._log, self._boot = area / "base", area / "log", area / "boot_id"
        self._config = area / "tdx.toml"
        for folder in (*self._mounted, self._recorder):
            folder.mkdir()
        self._log.touch()
        self._boot.touch()
        self._config.write_text("reserve = 0\n")
        holder = namespaces(processes, "mount")
        self._prefix = inside(holder, "mount")
        self._root = Path(f"/proc/{holder.pid}/root")
        or_skip([*self._prefix, "mount", "--bind", str(self._boot), _BOOT_ID])
        with self._base.open("wb") as file:
            file.truncate(sum(PARTS))
        for start, size in self._parts():
            where = ["-E", f"offset={start},{_QUICKLY}", str(self._base), f"{size >> 10}k"]
            subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", *where], check=True)

    @staticmethod
    def _parts() -> list[tuple[int, int]]:
        return [(sum(PARTS[:number]), size) for number, size in enumerate(PARTS)]

    @property
    def folder(self) -> Path:
        """The receiver's folder, seen from outside."""
        return self._root / self._inbox.relative_to("/")

    def position(self) -> int:
        """How much has reached the disk: see :meth:`support.blocklog.Log.moment_at`."""
        return self._log.stat().st_size

    def log(self) -> Log:
        return Log(self._log)

    def boot(self, processes: Processes) -> Receiver:
        """Start a receiver, under a boot id that no receiver before it had."""
        self._boot.write_text(f"{uuid.uuid4()}\n")
        receiver = processes.receiver(
            self._inbox,
            self._state,
            *("--config", str(self._config)),
            program=[*self._prefix, *PROGRAM],
        )
        receiver.folder = self.folder
        return receiver

    def collect_garbage(self, processes: Processes) -> None:
        """``tdx gc`` that waits for nothing."""
        folders = ("--dir", str(self._inbox), "--state", str(self._state))
        gc = processes.run("gc", [*self._prefix, *PROGRAM, "gc", *folders, "--older-than", "0s"])
        assert gc.wait() == 0, gc.log()

    def sync(self) -> None:
        """What the kernel, or some other program, may do at any time."""
        self._run("sync", "-f", self._mounted[0])

    @contextmanager
    def recording(self, options: str) -> Generator[None]:
        """The disk is new, and what reaches it recorded. The receiver is to be dead at the end."""
        content = self._area / "content"
        subprocess.run(["cp", "--sparse=always", self._base, content], check=True)
        environment = {**self._processes.environment, "PYTHONPATH": str(ROOT / "tests")}
        files = (self._recorder, content, self._log)
        recorder = self._processes.run(
            "recorder",
            [*self._prefix, sys.executable, "-m", "support.recording_disk", *map(str, files)],
            env=environment,
        )
        disk = self._recorder / DISK

        def recording() -> bool:
            assert recorder.running, recorder.log()
            return (self._root / disk.relative_to("/")).exists()

        wait_until(recording, "the disk records")
        try:
            with self._mount(disk, options):
                yield
        finally:
            self._run("umount", self._recorder)
            assert recorder.wait() == 0, recorder.log()
            content.unlink()

    @contextmanager
    def after(self, log: Log, cut: Cut, options: str) -> Generator[None]:
        """The disk is what a power cut has left; its filesystems themselves are whole."""
        image = self._area / "image"
        log.image(self._base, image, cut)
        with self._mount(image, options):
            pass  # ext4 replays its journal
        for start, _ in self._parts():
            check = ["e2fsck", "-fn", f"{image}?offset={start}"]
            checked = subprocess.run(check, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout + checked.stderr
        with self._mount(image, options):
            yield
        image.unlink()

    @contextmanager
    def _mount(self, disk: Path, options: str) -> Generator[None]:
        with ExitStack() as undo:
            for folder, (start, size) in zip(self._mounted, self._parts(), strict=True):
                part = f"loop,offset={start},sizelimit={size}"
                self._run("mount", "-t", "ext4", "-o", f"{part},{options}", disk, folder)
                undo.callback(self._run, "umount", folder)
            yield

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run([*self._prefix, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
