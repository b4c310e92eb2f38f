"""A receiver that lies: the sender ends, with the documented code, and sends nothing but the file."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from support.datakit import pattern
from support.lying import Asked, Liar, Lie, lying, message
from support.receiving import push
from tdx.control.progress import PushResult, Tally
from tdx.control.sender import SenderOptions
from tdx.errors import TdxError
from tdx.integrity import MIN_EXTENT, Root, cut, digest_of
from tdx.model import Conflict, Span

SMALL = b"hello"
LARGE = pattern(2 * MIN_EXTENT + 5)
ID = "0123456789abcdef" * 2
DEEP = b"[" * 100_000
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NUMBER = b'{"outcome": ' + b"9" * 1_000_000 + b"}"

pytestmark = pytest.mark.usefixtures("short_waits")


def pushed(liar: Liar, tmp_path: Path, content: bytes, tally: Tally | None = None) -> PushResult:
    """What becomes of a push; whatever the other end asked for, it got no byte that is not the file's own."""
    path = tmp_path / "source"
    path.write_bytes(content)
    impatient = SenderOptions(retries=1, stall_timeout=0.5)
    try:
        return push(liar.peer, path, tmp_path / "sender", sender=impatient, tally=tally)
    finally:
        for asked in liar.asked:
            if asked.method == "PUT":
                assert content[asked.start : asked.start + len(asked.body)] == asked.body


def ended(lie: Callable[[Asked], Lie], tmp_path: Path, content: bytes) -> int:
    """The code with which the push ends, and one line that a terminal can bear."""
    with lying(lie) as liar, pytest.raises(TdxError) as caught:
        pushed(liar, tmp_path, content)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1200
    return caught.value.exit_code


def receipt(content: bytes, **other: object) -> dict[str, object]:
    digests = [digest_of(content[span.start : span.end]) for span in cut(Span(0, len(content)), MIN_EXTENT)]
    said = {"outcome": "published", "name": "source", "path": "source", "size": len(content)}
    return {**said, "root": str(Root.over(digests, len(content), MIN_EXTENT)), "verified": True, **other}


def on_and_on(data: bytes) -> Callable[[socket.socket], None]:
    """Sends this until nobody takes it any more."""

    def work(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock.sendall(data)

    return work


def in_drops(data: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Sends this, and then a drop at a time that always comes before patience ends."""

    def work(sock: socket.socket) -> None:
        sock.settimeout(0.02)
        with suppress(ConnectionError):
            sock.sendall(data)
            while True:
                sock.sendall(drop)
                with suppress(TimeoutError):
                    if not sock.recv(1):
                        return

    return work


def silence(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.recv(1)


def hung_up(_: socket.socket) -> None:
    pass


def json_of(document: object) -> bytes:
    return message(200, json.dumps(document).encode())


ANSWERS: dict[str, tuple[Lie, int]] = {
    "a redirect": (message(302, b"", "Location: http://127.0.0.1:1/files/source"), 76),
    "another protocol": (message(101, b"", "Connection: upgrade", "Upgrade: h2c"), 76),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", 76),
    "HTTP/2": (b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n", 76),
    "two lengths": (message(200, b"{}", "Content-Length: 3"), 76),
    "a length and chunks": (message(200, b"{}", "Transfer-Encoding: chunked"), 76),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 76),
    "a length that no memory has": (b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", 76),
    "more length than body": (lambda sock: sock.sendall(message(200, b"{}")[:-1]), 75),
    "a chunk of no size": (CHUNKED + b"-1\r\n", 76),
    "fields on and on": (on_and_on(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000), 76),
    "a body on and on": (on_and_on(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (1 << 20)), 76),
    "interim answers on and on": (on_and_on(b"HTTP/1.1 102 Processing\r\n\r\n"), 76),
    "trailers on and on": (
        on_and_on(CHUNKED + b"0\r\n" + b"X: y\r\n" * 9000),
        76,
    ),
    "a head in drops": (in_drops(b"HTTP/1.1 200 OK\r\n", b"X"), 75),
    "a body in drops": (in_drops(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "), 75),
    "an extension in drops": (in_drops(CHUNKED + b"1;", b"x"), 75),
    "no answer": (hung_up, 75),
    "silence": (silence, 75),
    "an empty body": (message(200), 76),
    "a list": (message(200, b"[]"), 76),
    "deep JSON": (message(200, DEEP), 76),
    "a deep problem": (message(400, DEEP, "Content-Type: application/problem+json"), 76),
    "a number of a million digits": (message(200, NUMBER), 76),
    "no success": (json_of(receipt(SMALL, outcome="perhaps")), 76),
    "another root": (json_of(receipt(b"hullo")), 76),
    "a root for the terminal": (json_of(receipt(SMALL, root="\x1b[2J")), 76),
    "a path for the terminal": (json_of(receipt(b"x", path="\x1b[2J")), 76),
    "an outcome for the terminal": (
        json_of(receipt(SMALL, outcome="\x1b" * 9999)),
        76,
    ),
    "a negative size": (json_of(receipt(SMALL, size=-1)), 76),
}


@pytest.mark.parametrize(("lie", "code"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_ends_a_small_push(tmp_path: Path, lie: Lie, code: int) -> None:
    assert ended(lambda _: lie, tmp_path, SMALL) == code


OPENINGS: dict[str, dict[str, object]] = {
    "an id that ends the head": {"id": "x\r\nHost: elsewhere\r\n"},
    "an id that leads elsewhere": {"id": "../files/other"},
    "no id": {"id": ""},
    "no epoch": {"epoch": 0},
    "a negative epoch": {"epoch": -1},
    "an endless epoch": {"epoch": 1 << 70},
    "extents of nothing": {"extent_size": 0},
    "negative extents": {"extent_size": -MIN_EXTENT},
    "extents of 2**70": {"extent_size": 1 << 70},
    "other extents": {"extent_size": 2 * MIN_EXTENT},
    "held that overlaps": {"held": [[0, 2 * MIN_EXTENT], [MIN_EXTENT, 3 * MIN_EXTENT]]},
    "held backwards": {"held": [[MIN_EXTENT, 2 * MIN_EXTENT], [0, 1]]},
    "held below zero": {"held": [[-1, 1]]},
    "held of nothing": {"held": [[5, 5]]},
    "held beyond the end": {"held": [[0, len(LARGE) + 1]]},
    "held without end": {"held": [[0, 1 << 70]]},
    "held of words": {"held": [["\x1b[2J", 1]]},
    "held of much": {"held": [list(range(100_000))]},
    "held in no list": {"held": {"0": 1}},
}


def opening(**other: object) -> bytes:
    said = {"id": ID, "epoch": 1, "extent_size": MIN_EXTENT, "part": MIN_EXTENT, "streams": 8, "held": []}
    return message(201, json.dumps({**said, **other}).encode())


@pytest.mark.parametrize("other", OPENINGS.values(), ids=OPENINGS)
def test_an_upload_that_cannot_be_ends_a_push_before_a_byte_is_sent(
    tmp_path: Path, other: dict[str, object]
) -> None:
    with lying(lambda _: opening(**other)) as liar, pytest.raises(TdxError) as caught:
        pushed(liar, tmp_path, LARGE)
    assert caught.value.exit_code == 76
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    assert [asked.method for asked in liar.asked] == ["POST"]


def lies_later(
    asked: Asked, commit: bytes, put: bytes = message(200, b"{}"), said: Mapping[str, object] | None = None
) -> bytes:
    """Opens an upload, takes its ranges, and lies afterwards."""
    if asked.target.endswith("/commit"):
        return commit
    return opening(**(said or {})) if asked.method == "POST" else put


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"type": "urn:tdx:problem:extents-differ", "extents": [3]}, 76),
        ({"type": "urn:tdx:problem:extents-differ", "extents": []}, 76),
        ({"type": "urn:tdx:problem:extents-differ", "extents": [1, 0]}, 76),
        ({"type": "urn:tdx:problem:extents-differ", "extents": [-1]}, 76),
        ({"type": "urn:tdx:problem:extents-differ", "extents": [0, 1, 2]}, 65),
        ({"type": "urn:tdx:problem:offset-mismatch", "offset": 1 << 70}, 76),
        ({"type": "urn:tdx:problem:no-space", "detail": "\x1b[2J\r\n" + "x" * 100_000}, 73),
    ],
)
def test_a_commit_that_asks_for_what_cannot_be_ends_the_push(
    tmp_path: Path, document: dict[str, object], code: int
) -> None:
    body = json.dumps(document).encode()
    refusal = message(409, body, "Content-Type: application/problem+json")
    assert ended(lambda asked: lies_later(asked, refusal), tmp_path, LARGE) == code


@pytest.mark.parametrize("seconds", [10**400, -1, math.nan, math.inf, "much", [], 1e300], ids=lambda _: "")
def test_stage_seconds_that_are_none_are_not_counted(tmp_path: Path, seconds: object) -> None:
    put = message(200, json.dumps({"stages": {"receive": 1.5, "hash": seconds}}).encode())
    commit = json_of(receipt(LARGE))
    tally = Tally()
    with lying(lambda asked: lies_later(asked, commit, put)) as liar:
        pushed(liar, tmp_path, LARGE, tally)
    assert tally.theirs.receive > 0
    assert tally.theirs.hash == 0


@pytest.mark.parametrize(
    "other", [{"streams": 1 << 70}, {"streams": -1}, {"part": 1}, {"part": 0}, {"part": 1 << 70}]
)
def test_a_number_of_streams_or_a_part_that_cannot_be_is_none(
    tmp_path: Path, other: dict[str, object]
) -> None:
    commit = json_of(receipt(LARGE))
    with lying(lambda asked: lies_later(asked, commit, said=other)) as liar:
        assert pushed(liar, tmp_path, LARGE).size == len(LARGE)
    assert sum(len(asked.body) for asked in liar.asked if asked.method == "PUT") == len(LARGE)


def test_a_receiver_that_has_everything_from_the_start_is_sent_nothing(tmp_path: Path) -> None:
    commit = json_of(receipt(b"something else"))
    with (
        pytest.raises(TdxError) as caught,
        lying(lambda asked: lies_later(asked, commit, said={"held": [[0, len(LARGE)]]})) as liar,
    ):
        pushed(liar, tmp_path, LARGE)
    assert caught.value.exit_code == 76
    assert [asked.method for asked in liar.asked] == ["POST", "POST"]


class TestWhatIsThere:
    """A receiver that claims to have an earlier version."""

    def ended(self, tmp_path: Path, same: object, needed: object, patched: object) -> tuple[int, Liar]:
        created = {"id": ID, "epoch": 1, "extent_size": MIN_EXTENT, "held": [], "base": len(LARGE)}
        answers = {"base": {"same": same}, "blocks": {"needed": needed}, "patch": {"same": patched}}

        def lie(asked: Asked) -> Lie:
            step = asked.target.rpartition("/")[2]
            if step in answers:
                return message(200, json.dumps(answers[step]).encode())
            if step == "commit":
                return message(200, json.dumps(receipt(LARGE)).encode())
            opened = asked.target.startswith("/files")
            return message(201 if opened else 200, json.dumps(created if opened else {}).encode())

        path = tmp_path / "source"
        path.write_bytes(LARGE)
        with lying(lie) as liar:
            impatient = SenderOptions(retries=1, stall_timeout=0.5)
            try:
                push(liar.peer, path, tmp_path / "sender", sender=impatient, conflict=Conflict.OVERWRITE)
            except TdxError as error:
                return error.exit_code, liar
            return 0, liar

    @pytest.mark.parametrize("same", [None, "all", [[0]], [[5, 2]], [[0, len(LARGE) + 1]], [["0", 1]], {}])
    def test_nonsense_about_what_is_the_same_is_76(self, tmp_path: Path, same: object) -> None:
        assert self.ended(tmp_path, same, [], [])[0] == 76

    @pytest.mark.parametrize(
        "needed",
        [None, [[0, 100]], [[1, 4096]], [[0, len(LARGE) + 1]], [[4096, 0]], "none"],
        ids=["nothing", "half a block", "off a block", "beyond", "backwards", "words"],
    )
    def test_nonsense_about_blocks_is_76(self, tmp_path: Path, needed: object) -> None:
        assert self.ended(tmp_path, [], needed, [])[0] == 76

    def test_blocks_of_an_extent_that_it_was_not_told_of_are_not_sent(self, tmp_path: Path) -> None:
        code, liar = self.ended(tmp_path, [[0, MIN_EXTENT]], [[0, 4096]], [])
        assert code == 76
        assert not any(asked.target.endswith("/patch") for asked in liar.asked)

    def test_what_it_asks_for_and_does_not_keep_is_sent_as_a_whole(self, tmp_path: Path) -> None:
        code, liar = self.ended(tmp_path, [], [[0, 4096]], [])
        assert code == 0
        sent = sum(len(asked.body) for asked in liar.asked if asked.method == "PUT")
        assert sent == len(LARGE)

    def test_a_patch_has_nothing_but_the_blocks_it_asked_for(self, tmp_path: Path) -> None:
        _, liar = self.ended(tmp_path, [], [[4096, 8192]], [[0, len(LARGE)]])
        (asked,) = [asked for asked in liar.asked if asked.target.endswith("/patch")]
        assert asked.body.endswith(LARGE[4096:8192])
        assert len(asked.body) == 4 + 3 * 20 + 12 + 4096
