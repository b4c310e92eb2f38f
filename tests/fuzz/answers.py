"""What a receiver answers, as the sender reads it: problem documents and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from fuzz.target import KNOWN, Draws, Target, is_for_people
from tdx.control.client import Answer
from tdx.control.hello import Hello
from tdx.control.items import Folder
from tdx.control.progress import receipt_of
from tdx.control.push_bundle import _outcome_of
from tdx.control.sending import OpenUpload
from tdx.control.tree_requests import _PART_VERDICTS, FileState, _verdict
from tdx.data.entries import SmallFile
from tdx.errors import ExtentsDiffer, OffsetMismatch, ProtocolError, TdxError
from tdx.integrity import MIN_EXTENT, Root, digest_of
from tdx.proto import problem
from tdx.proto.head import Headers, format_request
from tdx.proto.stages import stages_of

LENGTH = 5 * MIN_EXTENT + 1


def problem_document(data: bytes) -> None:
    """Whatever comes is one known error with one printable line, and said again it is the same one."""
    draws = Draws(data)
    status = 400 + draws.below(200)
    media_type = (problem.MEDIA_TYPE, problem.MEDIA_TYPE.upper() + "; charset=utf-8", "text/html", None)
    error = problem.parse(status, media_type[draws.below(4)], draws.rest())
    is_for_people(error)
    if isinstance(error, OffsetMismatch):
        assert 0 <= error.offset < 1 << 63
    if isinstance(error, ExtentsDiffer):
        assert error.extents
        assert error.extents == sorted(set(error.extents))
        assert 0 <= error.extents[0] <= error.extents[-1] < 1 << 63
    again = problem.parse(*_rendered(error))
    assert type(again) is type(error)
    assert again.message == error.message
    assert vars(again) == vars(error)


def _rendered(error: TdxError) -> tuple[int, str, bytes]:
    status, body = problem.render(error)
    return status, problem.MEDIA_TYPE, body


def _problems() -> list[bytes]:
    errors = [
        ProtocolError("no"),
        OffsetMismatch("the upload stands at 5", offset=5),
        ExtentsDiffer("some differ", extents=[0, 2, 1 << 40]),
        *(cls("it is so") for cls in KNOWN if cls not in (OffsetMismatch, ExtentsDiffer)),
    ]
    return [bytes([error.status - 400, 0]) + problem.render(error)[1] for error in errors]


def answer(data: bytes) -> None:
    """An answer to a creation, a receipt, a greeting: what is taken of it can be worked with, and shown;
    whatever else it is, it is a ProtocolError."""
    draws = Draws(data)
    date = ("Sun, 29 Nov 2026 08:53:28 GMT", "29 Nov 99999 99:99", "", "\t-0000")[draws.below(4)]
    found = Answer(200, Headers([("date", date)]), draws.rest())
    try:
        document = found.document()
    except ProtocolError:
        return
    stages = stages_of(document.get("stages"))
    assert all(math.isfinite(seconds) for seconds in stages.as_dict().values())
    for look in (_opened, _receipt, _hello, _bundled, _tree):
        try:
            look(document, found)
        except ProtocolError as error:
            is_for_people(error)


def _opened(document: dict[str, object], _: Answer) -> None:
    upload = OpenUpload.parse(document, LENGTH)
    request = format_request("PUT", upload.target, [*upload.fields, ("Host", "a")])
    assert request.startswith(b"PUT /uploads/")
    assert request.count(b"\r\n") == 4
    assert upload.target.count("/") == 2
    assert upload.epoch > 0
    assert upload.extent_size > 0
    assert upload.extent_size % upload.part == 0
    assert upload.streams > 0
    missing = upload.held.missing(LENGTH)
    assert all(0 <= gap.start < gap.end <= LENGTH for gap in missing)


def _receipt(document: dict[str, object], _: Answer) -> None:
    result = receipt_of(document, "xxh3-128:4194304:" + "0" * 32, 1.0, sent=LENGTH)
    assert result.size >= 0
    json.dumps(asdict(result), allow_nan=False)


def _hello(_: dict[str, object], found: Answer) -> None:
    hello = Hello.parse(found)
    for figure in (hello.free_bytes, hello.quota, hello.max_file, hello.limit):
        assert figure is None or 0 <= figure < 1 << 63
    assert hello.at is None or math.isfinite(hello.at)


def _bundled(document: dict[str, object], _: Answer) -> None:
    files = document.get("files")
    file = SmallFile("path", "name", "key", 5, digest_of(b"hello"), 5)
    for each in files if isinstance(files, list) else []:
        outcome = _outcome_of(file, each, 1.0)
        if isinstance(outcome, TdxError):
            is_for_people(outcome)
        else:
            json.dumps(asdict(outcome), allow_nan=False)


def _tree(document: dict[str, object], _: Answer) -> None:
    entries = document.get("entries")
    file, folder = FileState("n", 5, 0, 0o644, None), Folder("path", "n", 0, 0o755)
    for each in entries if isinstance(entries, list) else []:
        for entry, kinds in ((file, {"same", "made", "skipped", "send", "ask"}), (folder, _PART_VERDICTS)):
            verdict = _verdict(entry, each)
            assert verdict.path is None or isinstance(verdict.path, str)
            assert (verdict.kind == "failed") == (verdict.error is not None)
            assert verdict.kind == "failed" or verdict.kind in kinds
            if verdict.error is not None:
                is_for_people(verdict.error)


def _answers() -> list[bytes]:
    receipt = {
        "outcome": "published",
        "name": "a",
        "path": "b/a",
        "size": 5,
        "root": str(Root.over([digest_of(b"hello")], 5, MIN_EXTENT)),
        "verified": True,
        "stages": {"receive": 0.5, "hash": 1},
    }
    opened = {
        "id": "0123456789abcdef" * 2,
        "epoch": 1,
        "extent_size": MIN_EXTENT,
        "part": 1 << 20,
        "streams": 8,
        "held": [[0, MIN_EXTENT], [2 * MIN_EXTENT, LENGTH]],
        "existing": False,
        "resumed": True,
        "unchanged": True,
        "seals": ["aes-256-gcm-stream-128k"],
    }
    hello = {
        "name": "tdx",
        "version": "1",
        "you": {"owner": "local:0"},
        "grant": {"rule": "r", "conflict": ["rename"], "quota": 5},
        "limits": {"max_file": 1 << 40},
        "free_bytes": 5,
    }
    refused = {"problem": ProtocolError("no").problem()}
    bundled = {"files": [receipt, refused, {**receipt, "outcome": "skipped"}]}
    tree = {"entries": ["same", ["made", "b/a"], "send", "ask", "skipped", refused]}
    return [b"\0" + json.dumps(each).encode() for each in (receipt, opened, hello, bundled, tree)]


TOKENS = [
    *(b"9" * 400, b" "),
    *rb"1e999 -1 NaN Infinity null true [ { ] \u001b[2J \ud800 \r\n ../ / urn:tdx:problem: offset".split(),
    *b'[[0,1],[0,2]] [[5,1]] [[0,1180591620717411303424]] "files":[ "problem":{ "status": "part":0'.split(),
    *b'"entries":[ "same" ["made", "send" "ask"'.split(),
    *b'"stages":{"read": "outcome":"identical" "held": "size": "extents":['.split(),
]

TARGETS = {
    "problem_document": Target(problem_document, _problems, TOKENS),
    "answer": Target(answer, _answers, TOKENS),
}
