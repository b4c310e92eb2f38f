"""Asking a receiver on this machine, by its local API."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from pathlib import Path
from typing import Final, cast

from tdx.control.unix_socket import connect
from tdx.errors import Forbidden, ProtocolError, Stalled, TdxError, Unreachable
from tdx.model import shown

TIMEOUT: Final = 5.0
"""Seconds without a byte of an answer, which takes a second where the receiver's disk hangs."""

REQUEST: Final = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

MOST: Final = 64 << 20
"""Bytes of an answer: a transfer takes about a thousand, one with the longest of names 25 thousand."""

_STATUS: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: |\r\n)")


def ask_status(path: Path) -> dict[str, object]:
    """What the receiver whose socket is at ``path`` is doing, as docs/schema/status.json has it. Blocks.

    Unreachable where none listens there, Forbidden where this user may not ask, Stalled where it does not
    answer, ProtocolError where what answers is something else.
    """
    try:
        answer = _exchange(path)
    except TimeoutError:
        raise Stalled(f"the receiver at {shown(str(path))} does not answer") from None
    except OSError as error:
        raise _failure(error, path) from None
    if not answer:
        raise Unreachable(f"the receiver at {shown(str(path))} closed the connection; it may be stopping")
    return _document(answer, path)


def _exchange(path: Path) -> bytes:
    """All that comes back. (Not http.client: with what it imports, half the time of the command was its.)"""
    parts: list[bytes] = []
    with connect(path, TIMEOUT) as sock:
        sock.sendall(REQUEST)
        while sum(map(len, parts)) < MOST and (part := sock.recv(1 << 20)):
            parts.append(part)
    return b"".join(parts)


def _failure(error: OSError, path: Path) -> TdxError:
    where = shown(str(path))
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return Unreachable(
            f"no receiver answers at {where}; start one with `tdx serve --dir DIR`, or name another's state "
            "with --state, or its socket with --socket"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden(f"only the receiver's own user and root may ask at {where}")
    return Unreachable(f"the receiver at {where} cannot be asked: {error.strerror or error}")


def _document(answer: bytes, path: Path) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = _STATUS.match(head)
    document: object = None
    if status is not None:
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(body)
    if status is None or not isinstance(document, dict):
        raise ProtocolError(f"what answers at {shown(str(path))} is no tdx receiver")
    found = cast("dict[str, object]", document)
    if status[1] == b"200":
        return found
    said = shown(str(found.get("detail"))[:1000])
    if status[1] == b"403":
        raise Forbidden(f"the receiver at {shown(str(path))} refuses: {said}")
    raise ProtocolError(f"the receiver at {shown(str(path))} answers {int(status[1])}: {said}")
