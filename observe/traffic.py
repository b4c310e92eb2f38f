"""What goes on between a receiver and those who push: all that a dashboard has a panel for."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Final

from observe.stack import Stack
from support.content import MIB, random_file
from support.processes import Push, wait_until
from support.received import below

PEER: Final = "nas"
SIZES: Final = {"note": 4 << 10, "photo": 3 * MIB, "album": 12 * MIB, "film": 48 * MIB}
DIGEST: Final = "sha-256=:" + "A" * 43 + "=:"
"""One that content hardly has."""


class Traffic:
    """Each method lets one thing happen and returns once it has, unless it says otherwise."""

    def __init__(self, stack: Stack, files: Path) -> None:
        self._stack = stack
        self._files = files
        self._silent: list[socket.socket] = []
        files.mkdir()

    def push(self, name: str, size: int, *flags: str, code: int = 0) -> None:
        """A file of this name and size, with other content each time."""
        self.begin(name, size, *flags).ends(code)

    def begin(self, name: str, size: int, *flags: str) -> Push:
        """The same, and only begin it."""
        source = random_file(self._files / name, size)
        return self._stack.processes.push(source, PEER, "--conflict", "overwrite", *flags)

    def sizes(self) -> None:
        """Files from small to large, one after the other."""
        for name, size in SIZES.items():
            self.push(name, size)

    def resumed(self) -> None:
        """A task that is killed halfway and then goes on."""
        killed = self.begin("disk.img", 64 * MIB, "--limit-rate", "24M")
        wait_until(lambda: _sent(killed) > 40 * MIB, "more than half has been sent")
        killed.kill()
        again = ("--conflict", "overwrite", "--resume", *self._textfile("image"))
        self._stack.processes.push(self._files / "disk.img", PEER, *again).ends(0, "done")

    def changed(self) -> None:
        """A task with a large file that is there already, but for a little."""
        path = self._files / "mailbox"
        if not path.exists():
            random_file(path, 48 * MIB)
            self._stack.processes.push(path, PEER).ends(0, "done")
        with path.open("r+b") as file:
            file.seek(20 * MIB)
            file.write(os.urandom(MIB // 2))
        flags = ("--conflict", "overwrite", *self._textfile("mailbox"))
        self._stack.processes.push(path, PEER, *flags).ends(0, "done")

    def nightly(self, *, outage: bool = False) -> None:
        """What cron runs, with a file for node_exporter. With an outage the receiver dies meanwhile, and is
        started again."""
        flags = ("--limit-rate", "16M", *self._textfile("nightly"), "--metrics-interval", "5m")
        push = self.begin("nightly.tar", 24 * MIB, *flags)
        if outage:
            wait_until(lambda: _sent(push) > 8 * MIB, "some of it has been sent")
            self._stack.receiver.kill()
            self._stack.receiver.restart()
        push.ends(0, "done")

    def offsite(self) -> Push:
        """A task that has a rate limit, and tells a Pushgateway; this only begins it."""
        told = ("--metrics-push", f"http://{self._stack.gateway.address}", "--metrics-task", "offsite")
        return self.begin("offsite.tar", 16 * MIB, "--limit-rate", "3M", *told)

    def failing(self) -> None:
        """A task that finds another file in its place, each time, and has never succeeded."""
        (self._stack.receiver.folder / "taken").write_text("by another")
        path = random_file(self._files / "taken", MIB)
        flags = ("--conflict", "error", *self._textfile("papers"))
        self._stack.processes.push(path, PEER, *flags).ends(73, "failed")

    def _textfile(self, task: str) -> tuple[str, ...]:
        return ("--metrics-textfile", str(self._stack.textfiles / f"{task}.prom"), "--metrics-task", task)

    def corrupted(self) -> None:
        """An upload of which the content is not what its digest says."""
        head = {"Content-Digest": DIGEST}
        status, _, body = self._stack.receiver.ask("PUT", "/files/corrupted", head, os.urandom(MIB))
        assert status == 400, body

    def refused(self) -> None:
        """A web page, whose address nobody has allowed, tries to upload."""
        status, _, body = self._stack.receiver.ask(
            "PUT", "/files/page", {"Origin": "https://example.org"}, b"x"
        )
        assert status == 403, body

    def astray(self) -> None:
        """Both of these."""
        self.corrupted()
        self.refused()

    def silent(self) -> None:
        """An upload that brings half of what it promised, and then nothing: from now until :meth:`heard`."""
        connection = socket.create_connection(("127.0.0.1", self._stack.receiver.port))
        self._silent.append(connection)
        host = self._stack.receiver.address
        head = ("PUT /files/silent HTTP/1.1", f"Host: {host}", f"Content-Length: {2 * MIB}")
        connection.sendall("\r\n".join((*head, "", "")).encode() + os.urandom(MIB))

    def heard(self) -> None:
        """Whoever was silent is gone."""
        for connection in self._silent:
            connection.close()
        self._silent.clear()

    def tidy(self) -> None:
        """Remove what was received, but for what is to be found there again."""
        for path in below(self._stack.receiver.folder):
            if path.name not in {"taken", "mailbox"}:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self.heard()
        shutil.rmtree(self._files, ignore_errors=True)


def _sent(push: Push) -> int:
    """Bytes that a push that goes on has told so far."""
    assert push.running, push.log()
    return max((event.get("sent_bytes", 0) for event in push.events), default=0)
