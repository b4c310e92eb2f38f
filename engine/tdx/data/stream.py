"""Reading a source that cannot be read twice: a pipe, a terminal, standard input."""

from __future__ import annotations

import os
import select
from typing import Final

from tdx.data.port import TICK, Cancel
from tdx.errors import SourceError

_READ: Final = 1 << 20


def read_block(descriptor: int, view: memoryview, cancel: Cancel) -> int:
    """Fill ``view`` from ``descriptor`` unless its end comes first; the bytes read.

    Wakes every TICK to look at ``cancel`` and raises its reason. SourceError where the
    read fails.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    got = 0
    while got < len(view):
        cancel.check()
        try:
            if not poller.poll(TICK * 1000):
                continue
            n = os.readv(descriptor, [view[got : got + _READ]])
        except OSError as error:
            raise SourceError(f"cannot read standard input: {error.strerror}") from None
        if n == 0:
            break
        got += n
    return got
