"""Which handler answers which request (the table of the wire)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from tdx.control import bundles, files, patches, resumable, trees, uploads
from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.errors import MethodNotAllowed, NotFound
from tdx.model import UploadId
from tdx.proto.names import decode_name
from tdx.proto.tree import TARGET as TREE_TARGET
from tdx.version import VERSION

Handler = Callable[[Receiver, Exchange], Awaitable[Response]]
T = TypeVar("T")

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


_HELLO: Final = {"GET": hello}
_BUNDLES: Final = {"POST": bundles.receive}
_TREES: Final = {"POST": trees.take}
_FILES: Final = {"PUT": files.put_file, "POST": files.create, "HEAD": files.stand}
_UPLOADS: Final = {
    "HEAD": uploads.query,
    "GET": uploads.query,
    "PATCH": resumable.append,
    "PUT": uploads.put_range,
    "DELETE": uploads.cancel,
}
_STEPS: Final = {
    "commit": {"POST": uploads.commit},
    "base": {"POST": patches.take},
    "blocks": {"POST": patches.blocks},
    "patch": {"POST": patches.patch},
}
"""What is below an upload."""
_ANY: Final = {*_HELLO, *_BUNDLES, *_FILES, *_UPLOADS}


def label_of(target: str) -> str:
    """The metrics' label of a target, also of one that no route serves."""
    if target == "/v1/hello":
        return "hello"
    if target == TREE_TARGET:
        return "tree"
    if target == "/files":
        return "bundle"
    if target.startswith("/files/"):
        return "files"
    if target.startswith("/uploads/"):
        step = target.rpartition("/")[2]
        return step if step in _STEPS else "upload"
    return "none"


def route(method: str, target: str) -> Handler:
    """The handler of a request. NotFound, MethodNotAllowed, BadName."""
    if target == "/v1/hello":
        return _choose(method, _HELLO)
    if target == TREE_TARGET:
        return _choose(method, _TREES)
    if target == "/files":
        return _choose(method, _BUNDLES)
    if method == "OPTIONS" and target in ("*", "/files/"):
        return _options(_ANY if target == "*" else _FILES, creates=True)
    if target.startswith("/files/"):
        name = decode_name(target.removeprefix("/files/"))
        return _choose(method, _bound(_FILES, name), creates=True)
    if target.startswith("/uploads/"):
        given, slash, rest = target.removeprefix("/uploads/").partition("/")
        upload = UploadId(given)
        if _UPLOAD_ID.fullmatch(given) and not slash:
            return _choose(method, _bound(_UPLOADS, upload), creates=True)
        if _UPLOAD_ID.fullmatch(given) and rest in _STEPS:
            return _choose(method, _bound(_STEPS[rest], upload))
    raise NotFound(f"nothing is at {target}")


def _bound(
    handlers: Mapping[str, Callable[[Receiver, Exchange, T], Awaitable[Response]]], subject: T
) -> dict[str, Handler]:
    """The handlers of one file or upload."""

    def of(handler: Callable[[Receiver, Exchange, T], Awaitable[Response]]) -> Handler:
        return lambda receiver, exchange: handler(receiver, exchange, subject)

    return {method: of(handler) for method, handler in handlers.items()}


def _choose(method: str, handlers: Mapping[str, Handler], *, creates: bool = False) -> Handler:
    """``creates``: uploads begin or go on there."""
    if method == "OPTIONS":
        return _options(handlers, creates=creates)
    if method not in handlers:
        choices = ", ".join(sorted({*handlers, "OPTIONS"}))
        raise MethodNotAllowed(f"{method} is not for this resource; {choices}", allow=choices)
    return handlers[method]


def _options(methods: Iterable[str], *, creates: bool) -> Handler:
    return lambda _, exchange: resumable.options(exchange, methods, creates=creates)
