"""Asking a receiver on this machine, by its local API."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Final, cast

from tdx.control.unix_socket import connect
from tdx.errors import Forbidden, ProtocolError, Stalled, TdxError, Unreachable
from tdx.model import shown

TIMEOUT: Final = 5.0
"""Seconds without a byte of an answer, which takes a second where the receiver's disk hangs."""

MOST: Final = 64 << 20
"""Bytes of an answer: a transfer takes about a thousand, one with the longest of names 25 thousand."""


def ask_status(path: Path) -> dict[str, object]:
    """What the receiver whose socket is at ``path`` is doing, as docs/schema/status.json has it. Blocks.

    Unreachable where none listens there, Forbidden where this user may not ask, Stalled where it does not
    answer, ProtocolError where what answers is something else.
    """
    import http.client

    connection = http.client.HTTPConnection("localhost")
    try:
        connection.sock = connect(path, TIMEOUT)
        connection.request("GET", "/v1/status")
        with connection.getresponse() as response:
            status, body = response.status, response.read(MOST)
    except TimeoutError:
        raise Stalled(f"the receiver at {shown(str(path))} does not answer") from None
    except OSError as error:
        raise _failure(error, path) from None
    except http.client.HTTPException:
        raise ProtocolError(f"what answers at {shown(str(path))} is no tdx receiver") from None
    finally:
        connection.close()
    return _document(status, body, path)


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


def _document(status: int, body: bytes, path: Path) -> dict[str, object]:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProtocolError(f"what answers at {shown(str(path))} is no tdx receiver")
    found = cast("dict[str, object]", document)
    if status == 200:
        return found
    said = shown(str(found.get("detail"))[:1000])
    if status == 403:
        raise Forbidden(f"the receiver at {shown(str(path))} refuses: {said}")
    raise ProtocolError(f"the receiver at {shown(str(path))} answers {status}: {said}")
