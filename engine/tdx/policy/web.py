"""Requests that a browser may have been tricked into."""

from __future__ import annotations

import ipaddress


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
