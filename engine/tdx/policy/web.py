"""Requests that a browser may have been tricked into."""

from __future__ import annotations

import ipaddress
from typing import Final

EXPOSED: Final = (
    "Location, Upload-Offset, Upload-Complete, Upload-Incomplete, Upload-Length, Upload-Limit, Accept-Patch"
)
"""What a page that may call may read of an answer, besides what every page may."""

ACCEPTED: Final = (
    "Content-Type, Content-Range, Content-Digest, Repr-Digest, If-None-Match, Upload-Offset, "
    "Upload-Complete, Upload-Incomplete, Upload-Length, Upload-Draft-Interop-Version, Upload-Metadata, "
    "Upload-Defer-Length, Tdx-Conflict, Tdx-Mtime, Tdx-Mode"
)
"""The fields that such a page may send."""

PREFLIGHT_SECONDS: Final = 600
"""How long a browser need not ask again. Each request is judged anew all the same."""


def host_allowed(name: str, local_address: str, names: frozenset[str], machine: str) -> bool:
    """Whether the host of a ``Host`` field, as :func:`tdx.proto.fields.parse_host` gives it,
    is this receiver: a page of another site, whose name was made to resolve here, is not.

    Allowed are ``local_address`` (that of this connection), ``localhost`` where that is
    a loopback address, ``machine`` (this machine's name, with or without its domain),
    and ``names`` (addresses among them), all of them without regard to case and a final dot.
    """
    local = _address(local_address)
    asked = _address(name)
    if asked is not None:
        return asked == local or asked in map(_address, names)
    machine = _plain(machine)
    allowed = {machine, machine.partition(".")[0], *map(_plain, names)} - {""}
    if local is not None and local.is_loopback:
        allowed.add("localhost")
    return name in allowed


def origin_allowed(origin: str | None, referer: str | None, allowed: frozenset[str]) -> bool:
    """Whether a request with these ``Origin`` and ``Referer`` fields may go on: only without
    either, or where each that is there belongs to an origin in ``allowed``
    (``scheme://host[:port]``). The opaque origin ``null`` never does."""
    known = {entry.lower().rstrip("/") for entry in allowed}
    if origin is not None and ("://" not in origin or origin.lower() not in known):
        return False
    return referer is None or _origin_of(referer) in known


def answer_fields(origin: str | None, allowed: frozenset[str]) -> list[tuple[str, str]]:
    """The fields of every answer to a request that :func:`origin_allowed` has let go on: they let the page of
    that one origin read it. Never a wildcard, and never credentials: a browser has none for this."""
    fields = [("Vary", "Origin")] if allowed else []
    if origin is not None:
        fields += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", EXPOSED)]
    return fields


def preflight_fields(methods: str, *, private_network: bool) -> list[tuple[str, str]]:
    """What the answer to a preflight says besides. ``private_network``: the browser asks, too, whether a
    page of the internet may call a private address."""
    fields = [
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", ACCEPTED),
        ("Access-Control-Max-Age", str(PREFLIGHT_SECONDS)),
    ]
    return [*fields, ("Access-Control-Allow-Private-Network", "true")] if private_network else fields


def _origin_of(url: str) -> str:
    """``scheme://authority`` in lower case; what is no such URL gives what no origin equals."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return " "
    for end in "/?#":
        rest = rest.partition(end)[0]
    return f"{scheme}://{rest}".lower()


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address in its one form: without a zone, IPv4-mapped as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
