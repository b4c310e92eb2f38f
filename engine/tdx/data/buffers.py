"""Page-aligned buffers, kept for the whole process and used again."""

from __future__ import annotations

import mmap
import threading
from typing import Final, cast

from tdx.data.port import BUFFER

KEPT: Final = 64
"""Most buffers kept for later; beyond that they go back to the system."""


class BufferPool:
    """Buffers of one size, most recently used first.

    Touching fresh pages costs several times as much as copying into warm ones (on virtual
    machines that return free memory to their host even more), so buffers outlive the pumps.
    """

    def __init__(self, size: int, kept: int = KEPT) -> None:
        self.size = size
        self._kept = kept
        self._spare: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return memoryview(mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give(self, buffer: memoryview) -> None:
        """Hand back a buffer that :meth:`take` returned and nobody uses any more."""
        with self._lock:
            if len(self._spare) < self._kept:
                self._spare.append(buffer)
                return
        # Where the body failed, the frames of the error's traceback refer to it until the garbage
        # collector comes by, and a receiver at rest makes no garbage for it to come by.
        cast("mmap.mmap", buffer.obj).madvise(mmap.MADV_DONTNEED)


BUFFERS: Final = BufferPool(BUFFER)
"""The pool that every pump uses."""
