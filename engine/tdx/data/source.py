"""The file at the sender: opened with care, described, watched for changes, hashed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from tdx.data.port import BUFFER
from tdx.errors import SourceChanged, SourceError
from tdx.integrity import block_digests, digest_of, extent_count, extent_span, new_hasher
from tdx.model import Span, shown

MAX_HOLES: Final = 1000
"""Most holes that are told to a receiver."""

YOUNG: Final = 2.0
"""Seconds after which a change is sure to show in the mtime, whatever the filesystem's clock tick."""

READINGS: Final = 3
"""How often a source is read again at the end while its ctime goes on changing."""

_STAT_BLOCK: Final = 512
"""Bytes that st_blocks counts in, whatever the filesystem's own blocks are."""

_KINDS: Final = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a named pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISBLK, "is a block device"),
    (stat.S_ISCHR, "is a character device"),
)


class Source:
    """A regular file open for reading; made by :meth:`open`, closed by its ``with`` block.

    Everything it says about the file is as it was when it was opened. May be read by
    several threads at once: the descriptor's own offset means nothing.
    """

    def __init__(self, path: str, descriptor: int, status: os.stat_result) -> None:
        self.path: Final = path
        self._descriptor = descriptor
        self._status = status
        self._settled_ctime = status.st_ctime_ns

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Source:
        """Open ``path``, through symbolic links as cp does. SourceError where it is missing,
        unreadable, anything but a regular file, or of unknown size as in /proc; never blocks
        on one."""
        name = os.fspath(path)
        try:
            # Looked at first, because opening can have effects: it wakes a pipe's writer, rewinds a tape.
            _refuse_special(name, os.stat(name).st_mode)
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise SourceError(f"{shown(name)}: cannot be read: {_reason(error)}") from error
        try:
            status = os.fstat(descriptor)
            _refuse_special(name, status.st_mode)
            _refuse_sizeless(name, descriptor, status)
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(name, descriptor, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent; the descriptor is -1 afterwards."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def descriptor(self) -> int:
        return self._descriptor

    @property
    def status(self) -> os.stat_result:
        return self._status

    @property
    def length(self) -> int:
        return self._status.st_size

    @property
    def mtime_ns(self) -> int:
        return self._status.st_mtime_ns

    @property
    def mode(self) -> int:
        """The permission bits, without setuid, setgid and sticky."""
        return self._status.st_mode & 0o777

    @property
    def sparse(self) -> bool:
        """Whether it has holes: it takes less room than it has bytes. (So does a file that its filesystem
        compresses.)"""
        return self._status.st_blocks * _STAT_BLOCK < self._status.st_size

    @property
    def source_id(self) -> str:
        """Names the file across changes of its content (device and inode): 32 hex digits, opaque."""
        return _opaque(self._status.st_dev, self._status.st_ino)

    @property
    def fingerprint(self) -> str:
        """Names this state of the file (size, mtime, inode, device): 32 hex digits, opaque."""
        status = self._status
        return _opaque(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    @property
    def stat_key(self) -> str:
        """As :attr:`fingerprint`, with the ctime, which nobody can set: what the digest log
        is valid for."""
        status = self._status
        return _opaque(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def young(self, now: float) -> bool:
        """Whether the file was changed less than 2 s before ``now`` (seconds since the Unix
        epoch) or after it: another change might then leave the mtime as it is, and what is
        read from it must not be trusted later."""
        return self._status.st_mtime_ns > (now - YOUNG) * 1e9

    def check_unchanged(
        self, digests: Sequence[bytes], extent_size: int, go_on: Callable[[], None] = lambda: None
    ) -> None:
        """SourceChanged if the file is no longer what ``digests``, one for each extent, were
        taken from; SourceError where it cannot be read.

        Size and mtime tell most changes. The mtime can be set back, the ctime cannot, but it
        also moves when the file is renamed, linked or given other permissions: then the
        content is read again, and ``go_on()`` is called after each extent, to raise what
        should end that.
        """
        for _ in range(READINGS):
            ctime = self._look()
            if ctime == self._settled_ctime:
                return
            for index, digest in self.hash_extents(range(len(digests)), extent_size):
                if digest != digests[index]:
                    raise self._written_to()
                go_on()
            # What happens during the reading shows when it is looked at once more.
            self._settled_ctime = ctime
        if self._look() != self._settled_ctime:
            raise self._written_to()

    def _look(self) -> int:
        """The ctime (ns); SourceChanged if size or mtime are no longer as at opening."""
        try:
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise SourceError(f"{shown(self.path)}: cannot be read: {_reason(error)}") from error
        if status.st_size != self._status.st_size:
            raise SourceChanged(
                f"{shown(self.path)}: changed while being sent: "
                f"it had {self._status.st_size} bytes and now has {status.st_size}; push it again"
            )
        if status.st_mtime_ns != self._status.st_mtime_ns:
            raise self._written_to()
        return status.st_ctime_ns

    def _written_to(self) -> SourceChanged:
        return SourceChanged(
            f"{shown(self.path)}: was written to while being sent; push it again when it is complete"
        )

    def holes(self, extent_size: int) -> list[Span]:
        """The whole extents that lie in holes, as merged byte ranges, ascending: at most
        :data:`MAX_HOLES`, the largest. Costs at most two seeks an extent; [] where the
        filesystem cannot tell."""
        if not hasattr(os, "SEEK_DATA"):
            return []
        found: list[Span] = []
        count = extent_count(self.length, extent_size)
        index = 0
        try:
            while index < count:
                start = index * extent_size
                data = self._seek_data(start)
                following = count if data >= self.length else data // extent_size
                if following > index:
                    found.append(Span(start, min(following * extent_size, self.length)))
                    index = following
                else:
                    # The extent after the one that the next hole begins in, or begins with.
                    hole = os.lseek(self._descriptor, data, os.SEEK_HOLE)
                    index = max(index + 1, -(-hole // extent_size))
        except OSError:
            return []
        largest = sorted(found, key=len, reverse=True)[:MAX_HOLES]
        return sorted(largest)

    def read_all(self) -> bytearray:
        """The whole content, for files of at most an extent. Errors as :meth:`hash_extents`."""
        content = bytearray(self.length)
        if content:
            self._fill(memoryview(content), 0)
        return content

    def hash_extents(self, indices: Iterable[int], extent_size: int) -> Iterator[tuple[int, bytes]]:
        """Read these extents and yield (index, digest), in the order given. SourceChanged
        where the file has become too short, SourceError where it cannot be read."""
        buffer = memoryview(bytearray(min(BUFFER, self.length)))
        for index in indices:
            span = extent_span(index, self.length, extent_size)
            hasher = new_hasher()
            for at in range(span.start, span.end, BUFFER):
                part = buffer[: min(BUFFER, span.end - at)]
                self._fill(part, at)
                hasher.update(part)
            yield index, hasher.digest()

    def block_digests(self, span: Span) -> bytes:
        """The digests of the blocks that ``span``, which begins with one, is made of. Errors as
        :meth:`hash_extents`."""
        buffer = memoryview(bytearray(min(BUFFER, len(span))))
        digests: list[bytes] = []
        for at in range(span.start, span.end, len(buffer)):
            part = buffer[: min(len(buffer), span.end - at)]
            self._fill(part, at)
            digests.append(block_digests(part))
        return b"".join(digests)

    def content_digest(self, algorithm: str, go_on: Callable[[], None]) -> bytes:
        """The whole content's digest by a hash of the standard library (``sha-256``), for whoever
        wants more than the extents' own. ``go_on`` is called between reads and may raise."""
        hasher = hashlib.new(algorithm.replace("-", ""))
        buffer = memoryview(bytearray(min(BUFFER, self.length)))
        for at in range(0, self.length, BUFFER):
            go_on()
            part = buffer[: min(BUFFER, self.length - at)]
            self._fill(part, at)
            hasher.update(part)
        return hasher.digest()

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{shown(self.path)}: cannot be read: {_reason(error)}") from error
            if n == 0:
                raise SourceChanged(
                    f"{shown(self.path)}: shrank to {offset + done} of {self.length} bytes while being "
                    "read; push it again"
                )
            done += n

    def _seek_data(self, start: int) -> int:
        """Where data next begin; the length or more where none follow."""
        try:
            return os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.length
            raise


def settled(status: os.stat_result, now: float) -> bool:
    """Whether any change after ``now`` (seconds since the Unix epoch) is sure to show in what stat tells, so
    that what is read from then on is the content for as long as that stays the same."""
    return max(status.st_mtime_ns, status.st_ctime_ns) <= (now - YOUNG) * 1e9


def _refuse_special(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in _KINDS if test(mode)), "is no regular file")
        raise SourceError(f"{shown(name)}: {kind}; only regular files can be read")


def _refuse_sizeless(name: str, descriptor: int, status: os.stat_result) -> None:
    """Files that a kernel makes up as they are read have no bytes as far as stat knows."""
    if status.st_size:
        return
    try:
        sizeless = os.pread(descriptor, 1, 0) and not os.fstat(descriptor).st_size
    except OSError as error:
        raise SourceError(f"{shown(name)}: cannot be read: {_reason(error)}") from error
    if sizeless:
        raise SourceError(f"{shown(name)}: its size is unknown; push it through standard input (-)")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _opaque(*numbers: int) -> str:
    return digest_of(":".join(map(str, numbers)).encode()).hex()
