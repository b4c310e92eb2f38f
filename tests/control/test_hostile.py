"""Clients that are slow, many, wrong or wicked: each is answered, and the receiver lives on."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, running
from support.uploading import open_upload
from support.wire import head
from tdx.policy.admission import Limits

EXTENT = 4 << 20


def lives_on(receiver: RunningReceiver) -> None:
    assert receiver.request("PUT", "/files/lives-on", b"yes", {"Tdx-Conflict": "overwrite"}).status in (
        200,
        201,
    )


class TestSlow:
    def test_a_head_that_trickles_is_answered_408(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(head_timeout=0.2)) as receiver, receiver.connect() as wire:
            wire.send(b"GET /v1/hello HT")
            answer = wire.answer()
            assert (answer.status, answer.problem) == (408, "stalled")
            assert wire.is_closed()
            lives_on(receiver)

    def test_an_idle_connection_is_closed_without_a_word(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(idle_timeout=0.2)) as receiver:
            with receiver.connect() as silent:
                assert silent.is_closed()
            with receiver.connect() as kept:
                assert kept.request("GET", "/v1/hello").status == 200
                assert kept.is_closed()

    def test_a_body_that_stops_is_answered_408_and_what_came_is_kept(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(stall_timeout=0.6)) as receiver, receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Content-Length": 1000}) + bytes(100))
            answer = wire.answer()
            assert (answer.status, answer.problem) == (408, "stalled")
            assert answer.headers["connection"] == "close"
            assert receiver.request("HEAD", "/files/f").headers["upload-offset"] == "100"

    def test_a_body_below_the_lowest_rate_is_cut_off(self, tmp_path: Path) -> None:
        limits = Limits(stall_timeout=1.0, min_body_rate=1 << 30)
        with running(tmp_path, limits=limits) as receiver, receiver.connect() as wire:
            wire.sock.settimeout(0.05)
            wire.send(head("PUT", "/files/f", {"Content-Length": 1 << 20}))

            def answered() -> bool:
                wire.send(b"x")
                return not wire.is_silent()

            wait_until(answered, "the slow body is cut off")
            assert wire.answer().status == 408

    @pytest.mark.parametrize("target", ["/uploads/{id}/commit", "/uploads/{id}"])
    def test_a_small_body_that_stops_is_answered_408(self, tmp_path: Path, target: str) -> None:
        with running(tmp_path, limits=Limits(stall_timeout=0.6)) as receiver, receiver.connect() as wire:
            upload = open_upload(receiver, "f", EXTENT)
            method = "POST" if target.endswith("commit") else "PUT"
            fields = {**upload.range_fields(0, EXTENT, EXTENT), "Upload-Length": EXTENT}
            if method == "POST":
                fields["Content-Length"] = 16
            wire.send(head(method, target.format(id=upload.id), fields))
            assert wire.answer().status == 408


class TestMany:
    def test_connections_beyond_the_limit_are_answered_503(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(max_connections=2)) as receiver:
            with receiver.connect() as one, receiver.connect() as two:
                assert one.request("GET", "/v1/hello").status == 200
                assert two.request("GET", "/v1/hello").status == 200
                with receiver.connect() as three:
                    answer = three.answer()
                    assert (answer.status, answer.problem) == (503, "busy")
                    assert answer.headers["connection"] == "close"
                assert one.request("GET", "/v1/hello").status == 200
            receiver.is_quiet()
            lives_on(receiver)

    def test_connections_of_one_owner_beyond_its_limit_are_answered_503(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(max_connections_per_owner=1)) as receiver:
            with receiver.connect() as one:
                assert one.request("GET", "/v1/hello").status == 200
                with receiver.connect() as two:
                    assert two.answer().status == 503
                assert one.request("GET", "/v1/hello").status == 200
            receiver.is_quiet()
            lives_on(receiver)

    @pytest.mark.parametrize(
        "flood",
        [
            b"".join(b"X-%d: y\r\n" % number for number in range(101)) + b"\r\n",
            b"X: " + b"y" * 70_000,
            b"X: y\r\n" * 20_000,
        ],
    )
    def test_a_flood_of_fields_is_answered_431(self, receiver: RunningReceiver, flood: bytes) -> None:
        with receiver.connect() as wire:
            wire.send(b"GET /v1/hello HTTP/1.1\r\nHost: localhost\r\n" + flood)
            answer = wire.answer()
            assert (answer.status, answer.problem) == (431, "head-too-large")
            assert answer.headers["connection"] == "close"
        lives_on(receiver)

    def test_a_target_without_end_is_answered_431(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            wire.send(head("GET", "/files/" + "a" * 20_000))
            assert wire.answer().status == 431


SMUGGLING = {
    "length and coding": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "coding and length": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "lengths in a list": "Content-Length: 5, 5\r\n",
    "other lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "coding twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "coding in a list": "Transfer-Encoding: gzip, chunked\r\n",
    "coding last unknown": "Transfer-Encoding: chunked, identity\r\n",
    "coding misspelt": "Transfer-Encoding: xchunked\r\n",
    "signed length": "Content-Length: +5\r\n",
    "hexadecimal length": "Content-Length: 0x5\r\n",
    "negative length": "Content-Length: -5\r\n",
    "endless length": "Content-Length: 99999999999999999999\r\n",
    "empty length": "Content-Length:\r\n",
    "space before the colon": "Content-Length : 5\r\n",
    "folded line": "Content-Length: 5\r\n X: y\r\n",
    "bare line feed": "Content-Length: 5\nX: y\r\n",
    "bare carriage return": "X: y\rContent-Length: 5\r\n",
    "nul": "X: y\0\r\nContent-Length: 5\r\n",
    "host twice": "Host: localhost\r\nContent-Length: 5\r\n",
    "no colon": "nonsense\r\nContent-Length: 5\r\n",
    "upgrade": "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n",
}
"""Ways to make two readers disagree about where a body ends."""


class TestSmuggling:
    @pytest.mark.parametrize("fields", SMUGGLING.values(), ids=SMUGGLING)
    def test_a_head_that_two_could_read_differently_is_refused_and_its_rest_never_read_as_a_request(
        self, receiver: RunningReceiver, fields: str
    ) -> None:
        smuggled = head("PUT", "/files/smuggled", {"Content-Length": 4}) + b"evil"
        request = (
            f"PUT /files/f HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n".encode() + b"0\r\n\r\n" + smuggled
        )
        with receiver.connect() as wire:
            wire.send(request)
            answer = wire.answer()
            assert answer.status == 400
            assert answer.headers["connection"] == "close"
            assert wire.is_closed()
        assert receiver.visible() == {}
        lives_on(receiver)

    @pytest.mark.parametrize(
        "request_line",
        [
            "GET http://evil.example/ HTTP/1.1",
            "GET /v1/hello HTTP/2.0",
            "GET /v1/hello",
            "GET  / HTTP/1.1",
        ],
    )
    def test_what_is_not_http_is_refused(self, receiver: RunningReceiver, request_line: str) -> None:
        with receiver.connect() as wire:
            wire.send(request_line.encode("latin-1") + b"\r\nHost: localhost\r\n\r\n")
            assert wire.answer().status in (400, 505)
            assert wire.is_closed()
        lives_on(receiver)

    def test_connect_is_not_served(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            wire.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
            assert wire.answer().status == 405
            assert wire.is_closed()

    @pytest.mark.parametrize("more", [b"\0\1\2\3", b" and more", b"and more\nof the file", b"\x89PNG\r\n"])
    def test_bytes_beyond_the_stated_length_are_garbage_and_no_request(
        self, receiver: RunningReceiver, more: bytes
    ) -> None:
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Content-Length": 4}) + b"four" + more)
            assert wire.answer().status == 201
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert wire.is_closed()
        assert receiver.visible() == {"f": b"four"}

    @pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"Host": "evil.example"}, 403),
            ({"If-None-Match": "*"}, 412),
            ({"Tdx-Conflict": "error"}, 409),
            ({"Content-Range": "bytes 5-9/*"}, 400),
        ],
    )
    def test_a_refusal_before_the_body_is_readable_and_the_body_never_a_request(
        self, receiver: RunningReceiver, fields: dict[str, str], status: int, expect: dict[str, str]
    ) -> None:
        receiver.request("PUT", "/files/f", b"old")
        smuggled = head("PUT", "/files/smuggled", {"Content-Length": 4}) + b"evil"
        body = smuggled * 30_000
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Content-Length": len(body), **fields, **expect}) + body)
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert wire.is_closed()
        assert receiver.visible() == {"f": b"old"}


class TestExpect:
    def test_a_client_that_waits_is_told_to_continue_when_its_body_is_wanted(
        self, receiver: RunningReceiver
    ) -> None:
        fields = {"Content-Length": 4, "Expect": "100-Continue"}
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", fields))
            assert wire.message().status == 100
            assert wire.send(b"four").message().status == 201
            wire.send(head("PUT", "/files/g", fields) + b"four")
            assert wire.answer().status == 201
        assert receiver.visible() == {"f": b"four", "g": b"four"}

    def test_a_commit_may_wait_too(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", 0)
        fields = {**upload.fields, "Upload-Length": 0, "Content-Length": 16, "Expect": "100-continue"}
        with receiver.connect() as wire:
            wire.send(head("POST", upload.target + "/commit", fields))
            assert wire.message().status == 100
            assert wire.send(bytes(16)).message().status == 400


BAD_NAMES = {
    "parent": "..",
    "parent inside": "a/../../b",
    "self": "a/./b",
    "absolute": "/etc/passwd",
    "empty": "",
    "empty part": "a//b",
    "trailing slash": "a/",
    "escaped parent": "%2e%2e/b",
    "escaped slash": "a%2Fb",
    "escaped small slash": "a%2fb",
    "nul": "a%00b",
    "newline": "a%0Ab",
    "delete": "a%7Fb",
    "c1 control": "a%C2%85b",
    "not utf-8": "a%FFb",
    "half an escape": "a%2",
    "no escape": "a%zz",
    "ours": ".tdx/uploads/x",
    "ours in capitals": ".TDX",
    "too long a part": "a" * 300,
    "too many bytes": quote("ü" * 128),
    "query": "a?b",
}

GOOD_NAMES = [
    "a" * 255,
    "ü" * 127 + "x",
    "🦊 and 🐢.txt",
    "100% sure.txt",
    "%41 is not A",
    " leading and trailing ",
    "-rf",
    "...",
    ".hidden",
    "a+b&c=d;e",
    "folder/inner folder/file",
    "~",
    "back\\slash",
    "e\u0301 and \u00e9",
]


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
    @pytest.mark.parametrize("method", ["PUT", "POST", "HEAD"])
    def test_a_name_that_nobody_stores_is_refused(
        self, receiver: RunningReceiver, method: str, name: str
    ) -> None:
        fields = {"Upload-Length": 1, "Upload-Complete": "?0"} if method == "POST" else {}
        answer = receiver.request(method, f"/files/{name}", b"", fields)
        assert answer.status == 400
        if method != "HEAD":
            assert answer.problem == "bad-name"
        assert (receiver.visible(), receiver.staged()) == ({}, [])

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_a_name_arrives_as_it_was_sent(self, receiver: RunningReceiver, name: str) -> None:
        for content in (b"one", b"two"):
            answer = receiver.request("PUT", f"/files/{quote(name)}", content)
            assert (answer.status, answer.document["name"]) == (201, name)
        visible = receiver.visible()
        assert visible.pop(name) == b"one"
        ((other, content),) = visible.items()
        assert content == b"two"
        assert len(Path(other).name.encode()) <= 255

    @pytest.mark.parametrize("name", ["taken/below", "taken/below/that"])
    def test_a_file_is_no_folder(self, receiver: RunningReceiver, name: str) -> None:
        receiver.request("PUT", "/files/taken", b"file")
        answer = receiver.request("PUT", f"/files/{name}", b"x")
        assert (answer.status, answer.problem) == (400, "bad-name")
        assert (receiver.visible(), receiver.staged()) == ({"taken": b"file"}, [])

    def test_no_link_leads_out_of_the_folder(self, receiver: RunningReceiver, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (receiver.folder / "link").symlink_to(outside)
        assert receiver.request("PUT", "/files/link/f", b"x").status == 400
        assert list(outside.iterdir()) == []


class TestPipelining:
    def test_requests_sent_at_once_are_answered_in_order(self, receiver: RunningReceiver) -> None:
        bodies = [pattern(size, seed) for seed, size in enumerate((0, 5, 100_000, 1, EXTENT + 7, 3))]
        requests = b"".join(
            head("PUT", f"/files/{number}", {"Content-Length": len(body)}) + body
            for number, body in enumerate(bodies)
        )
        with receiver.connect() as wire:
            wire.send(requests + head("GET", "/v1/hello"))
            assert [wire.answer().document["path"] for _ in bodies] == [str(n) for n in range(len(bodies))]
            assert wire.answer().document["name"] == "tdx"
        assert receiver.visible() == {str(number): body for number, body in enumerate(bodies)}

    def test_chunked_bodies_may_be_followed_at_once(self, receiver: RunningReceiver) -> None:
        one = (
            head("PUT", "/files/a", {"Transfer-Encoding": "chunked"}) + b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"
        )
        two = head("PUT", "/files/b", {"Transfer-Encoding": "chunked"}) + b"1\r\nd\r\n0\r\n\r\n"
        with receiver.connect() as wire:
            wire.send(one + two + head("GET", "/v1/hello"))
            assert [wire.answer().status for _ in range(3)] == [201, 201, 200]
        assert receiver.visible() == {"a": b"abc", "b": b"d"}

    def test_after_close_nothing_more_is_answered(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            wire.send(head("GET", "/v1/hello", {"Connection": "close"}) + head("GET", "/v1/hello"))
            assert wire.answer().headers["connection"] == "close"
            assert wire.is_closed()

    def test_a_half_closed_client_still_gets_its_answers(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            wire.request("GET", "/v1/hello")
            wire.send(head("PUT", "/files/f", {"Content-Length": 4}) + b"four").end()
            assert wire.answer().status == 201
            assert wire.is_closed()
