"""The memory that requests about trees may take at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tdx.errors import Busy
from tdx.model import Owner
from tdx.proto.tree import MAX_BODY

MOST_APIECE: Final = 2 * MAX_BODY
"""Bytes of bodies that one owner may have here at a time. A folder's entries take a hundred bytes each."""


class TreeBodies:
    """Used on the loop alone."""

    def __init__(self) -> None:
        self._held: Counter[Owner] = Counter()

    def held(self) -> int:
        """Bytes that are here, or on their way."""
        return self._held.total()

    @contextmanager
    def room_for(self, owner: Owner, size: int) -> Generator[None]:
        """Room for a body of so many bytes, until the block ends. Busy where this owner has none."""
        if self._held[owner] + size > MOST_APIECE:
            raise Busy("too much about trees is on its way from you; try again later")
        self._held[owner] += size
        try:
            yield
        finally:
            self._held[owner] -= size
            if not self._held[owner]:
                del self._held[owner]
