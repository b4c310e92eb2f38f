"""Names of files as they travel and as they may be stored.

A name is relative, with ``/`` between components, and means the same on every
receiver: what could leave the folder, hide in it, or confuse a terminal is refused.
"""

from __future__ import annotations

import re
from typing import Final

from tdx.errors import BadName
from tdx.model import FileName

MAX_COMPONENT: Final = 255
"""Most UTF-8 bytes of a component (NAME_MAX)."""

MAX_NAME: Final = 4096
"""Most UTF-8 bytes of a whole name."""

MAX_EXTENSION: Final = 64
"""Most UTF-8 bytes of what still counts as an extension."""

RESERVED: Final = ".tdx"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!-~]|[?#]")
_ESCAPE = re.compile(rb"%(..)")
_ESCAPED_SLASH = re.compile(r"%2f", re.IGNORECASE)
_TO_ESCAPE = re.compile(rb"[^A-Za-z0-9._~/-]")


def check_name(name: str) -> FileName:
    """The name, if a receiver may store it; BadName (saying why) otherwise."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadName("the name is not valid Unicode") from error
    if size > MAX_NAME:
        raise BadName(f"the name is longer than {MAX_NAME} bytes")
    if _CONTROL.search(name) is not None:
        raise BadName(f"the name has control characters: {name!r:.80}")
    if name.startswith("/"):
        raise BadName(f"the name is absolute: {name!r:.80}")
    for component in name.split("/"):
        if not component:
            raise BadName(f"the name is empty or has an empty part: {name!r:.80}")
        if component in (".", ".."):
            raise BadName(f"the name has a part {component!r}: {name!r:.80}")
        if component.casefold() == RESERVED:
            raise BadName(f"the name has the part {component!r}, which is the receiver's own")
        if len(component.encode("utf-8")) > MAX_COMPONENT:
            raise BadName(f"a part of the name is longer than {MAX_COMPONENT} bytes: {component!r:.80}")
    return FileName(name)


def decode_name(escaped: str) -> FileName:
    """The name in a request's path: percent-encoded UTF-8, checked.

    An escaped slash is refused, for what a component is must not depend on who decodes.
    """
    if _BAD_ESCAPE.search(escaped) is not None:
        raise BadName(f"the name is not percent-encoded: {escaped!r:.80}")
    if _ESCAPED_SLASH.search(escaped) is not None:
        raise BadName(f"the name has an escaped slash: {escaped!r:.80}")
    raw = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), escaped.encode("ascii"))
    try:
        return check_name(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadName(f"the name is not UTF-8: {escaped!r:.80}") from error


def encode_name(name: str) -> str:
    """The inverse of :func:`decode_name`: all but RFC 3986's unreserved characters and ``/`` escaped."""
    raw = name.encode("utf-8")
    return _TO_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")


def numbered(component: str, n: int) -> str:
    """``name (n).ext``: the name to try when ``component`` is taken.

    The stem is cut at a UTF-8 boundary where the result would exceed 255 bytes; for
    one component, different numbers give different names.
    """
    stem, extension = _split_extension(component)
    tail = f" ({n}){extension}"
    room = MAX_COMPONENT - len(tail.encode("utf-8"))
    return stem.encode("utf-8")[:room].decode("utf-8", "ignore") + tail


def _split_extension(component: str) -> tuple[str, str]:
    """Stem and extension, with ``.tar.gz`` and its like whole; hidden files have none."""
    visible = component.lstrip(".")
    hidden = len(component) - len(visible)
    at = component.rfind(".", hidden)
    if at < 0 or len(component[at:].encode("utf-8")) > MAX_EXTENSION:
        return component, ""
    archive = component[:at]
    if len(archive) > hidden + 4 and archive[-4:].lower() == ".tar":
        at -= 4
    return component[:at], component[at:]
