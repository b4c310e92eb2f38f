"""Which handler answers which request (the table of the wire)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from tdx.control import bundles, files, uploads
from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.errors import MethodNotAllowed, NotFound
from tdx.model import UploadId
from tdx.proto.names import decode_name
from tdx.version import VERSION

Handler = Callable[[Receiver, Exchange], Awaitable[Response]]

_UPLOAD_ID: Final = re.compile(r"[0-9a-f]{32}")


async def hello(receiver: Receiver, exchange: Exchange) -> Response:
    """Who this is, what it takes, who the caller is taken for and what that one may do."""
    identity, grant, limits = exchange.identity, exchange.grant, receiver.limits
    return json_response(
        200,
        {
            "name": "tdx",
            "version": VERSION,
            "limits": {"streams_per_upload": limits.streams_per_upload, "max_file": limits.max_file},
            "free_bytes": await receiver.workers.on_disk(receiver.store.free_bytes),
            "you": {
                "owner": identity.owner,
                "user": identity.user,
                "node": identity.node,
                "provider": identity.provider,
            },
            "grant": {
                "rule": grant.rule,
                "into": grant.into,
                "conflict": sorted(grant.conflict),
                "quota": grant.quota,
                "max_file": grant.max_file,
            },
        },
    )


_FILES: Final = {"PUT": files.put_file, "POST": files.create, "HEAD": files.stand}
_UPLOADS: Final = {
    "HEAD": uploads.query,
    "GET": uploads.query,
    "PATCH": uploads.append,
    "PUT": uploads.put_range,
    "DELETE": uploads.cancel,
}


def label_of(target: str) -> str:
    """The metrics' label of a target, also of one that no route serves."""
    if target == "/v1/hello":
        return "hello"
    if target == "/files":
        return "bundle"
    if target.startswith("/files/"):
        return "files"
    if target.startswith("/uploads/"):
        return "commit" if target.endswith("/commit") else "upload"
    return "none"


def route(method: str, target: str) -> Handler:
    """The handler of a request. NotFound, MethodNotAllowed, BadName."""
    if target == "/v1/hello":
        _allow(method, {"GET"})
        return hello
    if target == "/files":
        _allow(method, {"POST"})
        return bundles.receive
    if target.startswith("/files/"):
        name = decode_name(target.removeprefix("/files/"))
        on_file = _FILES[_allow(method, _FILES.keys())]
        return lambda receiver, exchange: on_file(receiver, exchange, name)
    if target.startswith("/uploads/"):
        given, slash, rest = target.removeprefix("/uploads/").partition("/")
        upload = UploadId(given)
        if _UPLOAD_ID.fullmatch(given) and not slash:
            on_upload = _UPLOADS[_allow(method, _UPLOADS.keys())]
            return lambda receiver, exchange: on_upload(receiver, exchange, upload)
        if _UPLOAD_ID.fullmatch(given) and rest == "commit":
            _allow(method, {"POST"})
            return lambda receiver, exchange: uploads.commit(receiver, exchange, upload)
    raise NotFound(f"nothing is at {target}")


def _allow(method: str, allowed: Collection[str]) -> str:
    if method not in allowed:
        choices = ", ".join(sorted(allowed))
        raise MethodNotAllowed(f"{method} is not for this resource; {choices}", allow=choices)
    return method
