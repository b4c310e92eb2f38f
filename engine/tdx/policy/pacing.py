"""How fast to send: a token bucket, and the ways people write rates and sizes."""

from __future__ import annotations

import re
from typing import Final

from tdx.errors import UsageError

BURST_SECONDS: Final = 0.1
"""After a pause, so many seconds' worth may go at once."""

PIECE_SECONDS: Final = 0.1
"""What is paced goes in pieces of so many seconds' worth."""

_AMOUNT: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?(?:([kKmMgGtT])(i?))?(B|bit)?")
_PREFIXES: Final = " kmgt"


class TokenBucket:
    """A limit in bytes per second that several streams share.

    It lends: a reservation is always granted, goes into debt, and costs a wait. So
    reservations of any size work, and callers under one lock are served in the
    order in which they came. Not thread-safe by itself.
    """

    def __init__(self, rate: float) -> None:
        """After a pause, a tenth of a second's worth may go at once."""
        self._at: float | None = None
        self._set(rate)
        self._tokens = self._burst

    def _set(self, rate: float) -> None:
        if rate <= 0:
            raise ValueError(f"not a rate: {rate}")
        self._rate = rate
        self._burst = rate * BURST_SECONDS

    def change(self, rate: float, now: float) -> None:
        """Another rate from ``now`` on; what is owed stays owed."""
        self.reserve(0, now)
        self._set(rate)
        self._tokens = min(self._tokens, self._burst)

    def reserve(self, n: int, now: float) -> float:
        """Take ``n`` bytes; the seconds to wait before sending them (0.0: none).
        ``now`` is monotonic; an earlier one than the last counts as the last."""
        if self._at is not None and now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(self._at, now)
        self._tokens -= n
        # The debt is paid off from the bucket's own time on, which a late caller is behind.
        return max(0.0, self._at - now - self._tokens / self._rate) if self._tokens < 0 else 0.0


def piece_of(rate: float | None, n: int) -> int:
    """How many of the next ``n`` bytes go in one piece at this rate (None: no limit); at least one."""
    return n if rate is None else min(n, max(1, int(rate * PIECE_SECONDS)))


def parse_rate(text: str) -> float:
    """Bytes per second.

    A bare number is in bytes, and so are ``k``, ``M``, ``G``, ``T`` in steps of 1024, as
    curl's --limit-rate and rsync's --bwlimit have it; ``Ki``, ``Mi``, ``MiB`` say so outright.
    ``kB``, ``MB`` and ``Mbit`` are decimal, the last in bits. ``/s`` may follow. ``Mb`` is
    refused, since it means either. UsageError for anything else, and for 0.
    """
    parsed = _parse(text.strip().removesuffix("/s"))
    if parsed is None:
        raise UsageError(f"{text!r} is not a rate; write it like 20M, 20MB or 160Mbit")
    amount, parts, bits = parsed
    if not amount:
        raise UsageError(f"at a rate of {text!r} nothing would ever arrive; leave it out for no limit")
    return amount / (parts * 8 if bits else parts)


def parse_size(text: str) -> int:
    """Bytes: ``3G`` and ``3GiB`` are 3 * 1024**3, as dd and truncate have it; ``3GB`` is
    3 * 1000**3. A fraction of a byte is dropped. UsageError for anything else."""
    parsed = _parse(text.strip())
    if parsed is None or parsed[2]:
        raise UsageError(f"{text!r} is not a size; write it like 3G, 500M or 1.5TB")
    amount, parts, _ = parsed
    return amount // parts


def _parse(text: str) -> tuple[int, int, bool] | None:
    """Numerator and denominator, since a size is exact and floats are not; and whether
    it is in bits. None: not an amount."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        return None
    whole, fraction, prefix, binary, unit = found.groups(default="")
    step = 1000 if unit and not binary else 1024
    power = _PREFIXES.index(prefix.lower()) if prefix else 0
    return int(whole + fraction) * int(step**power), int(10 ** len(fraction)), unit == "bit"
