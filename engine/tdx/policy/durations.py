"""How long: the ways people write it, and a share of it that a machine keeps to."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from tdx.errors import UsageError

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w|)")
_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_duration(text: str) -> float:
    """Seconds: ``90``, ``90s``, ``1.5h``, ``7d``. UsageError for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a duration; write it like 90s, 15m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def parse_timeout(text: str) -> float:
    """A duration above zero."""
    seconds = parse_duration(text)
    if not seconds:
        raise UsageError("a time of 0 would end before it began; leave the option out instead")
    return seconds


def fixed_share(machine: str, name: str) -> float:
    """A number in [0, 1) that is always the same for one machine and one name, and as good as random over
    many of either: what is to be spread over a fleet stays where it is on each of its machines."""
    digest = hashlib.sha256(f"{machine}\0{name}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
