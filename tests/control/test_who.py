"""Who is let in, and that an upload is its owner's alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, push, running
from support.uploading import open_upload
from support.vouching import Vouching
from support.wire import head
from tdx.errors import Forbidden

SIZE = (4 << 20) + 10
CONTENT = pattern(SIZE)


@pytest.mark.parametrize(
    ("provider", "rule"),
    [
        (Vouching(None), "identified"),
        (Vouching("local:0", fails=True), "identified"),
        (Vouching("local:4242", own=False), "default"),
        (Vouching("tailscale:n1", name="tailscale", own=False), "default"),
    ],
)
def test_who_is_not_allowed_is_told_the_rule_instead_of_to_continue(
    tmp_path: Path, provider: Vouching, rule: str
) -> None:
    with running(tmp_path, providers=[provider]) as receiver:
        for method, target in (("PUT", "/files/f"), ("GET", "/v1/hello"), ("GET", "/uploads/" + "0" * 32)):
            with receiver.connect() as wire:
                wire.send(head(method, target, {"Content-Length": 10, "Expect": "100-continue"}))
                answer = wire.message()
            assert (answer.status, answer.problem) == (403, "forbidden")
            assert f"rule `{rule}`" in answer.detail
            assert answer.headers["connection"] == "close"
        assert (receiver.visible(), receiver.staged()) == ({}, [])
        assert receiver.refusals() == {("forbidden",): 3}


def test_a_caller_is_looked_up_once_for_each_connection(tmp_path: Path) -> None:
    provider = Vouching(f"local:{os.getuid()}")
    with running(tmp_path, providers=[provider]) as receiver:
        with receiver.connect() as wire:
            for _ in range(3):
                assert wire.request("GET", "/v1/hello").status == 200
        assert len(provider.asked) == 1
        assert provider.asked[0].local.port == receiver.port


def test_an_upload_of_another_owner_is_not_there(tmp_path: Path) -> None:
    provider = Vouching("local:1")
    with running(tmp_path, providers=[provider]) as receiver:
        provider.owner = "local:1"
        upload = open_upload(receiver, "f", SIZE)
        upload.put(receiver, 0, CONTENT, SIZE)
        receiver.request("PUT", "/files/g", CONTENT[:10], {"Content-Range": f"bytes 0-9/{SIZE}"})
        provider.owner = "local:2"
        for method in ("HEAD", "GET", "DELETE", "PATCH"):
            fields = {
                **upload.fields,
                "Content-Type": "application/partial-upload",
                "Upload-Offset": 0,
                "Upload-Complete": "?0",
            }
            answer = receiver.request(method, upload.target, b"", fields)
            assert answer.status == 404
        assert upload.put(receiver, 0, bytes(SIZE), SIZE).status == 404
        assert upload.commit(receiver, CONTENT).status == 404
        assert receiver.request("HEAD", "/files/g").status == 404
        assert open_upload(receiver, "f", SIZE, {"Tdx-Resume": "?1"}).id != upload.id
        provider.owner = "local:1"
        assert upload.commit(receiver, CONTENT).status == 200
        provider.owner = "local:2"
        assert upload.commit(receiver, CONTENT).status == 404
        assert receiver.request("GET", upload.target).status == 404


def test_a_key_of_another_owner_is_another_key(tmp_path: Path) -> None:
    provider = Vouching("local:1")
    with running(tmp_path, providers=[provider]) as receiver:
        for owner, content in (("local:1", b"mine"), ("local:2", b"yours")):
            provider.owner = owner
            answer = receiver.request("PUT", f"/files/{content.decode()}", content, {"Tdx-Upload-Key": "k"})
            assert answer.status == 201
        assert receiver.visible() == {"mine": b"mine", "yours": b"yours"}


@pytest.mark.parametrize("field", ["Origin", "Referer"])
@pytest.mark.parametrize("value", ["https://evil.example", "null", "http://127.0.0.1", ""])
def test_requests_from_web_pages_are_refused(receiver: RunningReceiver, field: str, value: str) -> None:
    answer = receiver.request("PUT", "/files/f", b"content", {field: value})
    assert (answer.status, answer.problem) == (403, "forbidden")
    assert "allowed_origins" in answer.detail
    assert receiver.visible() == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "https://files.example"},
        {"Referer": "https://files.example/page?x"},
        {"Origin": "https://files.example", "Referer": "https://files.example/"},
    ],
)
def test_a_listed_web_page_may_call(tmp_path: Path, fields: Mapping[str, str]) -> None:
    with running(tmp_path, allowed_origins=frozenset({"https://files.example"})) as receiver:
        assert receiver.request("PUT", "/files/f", b"content", fields).status == 201
        both = {**fields, "Referer": "https://evil.example/"}
        assert receiver.request("PUT", "/files/g", b"content", both).status == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:1", socket.gethostname()]
)
def test_a_host_field_that_names_this_receiver_is_served(receiver: RunningReceiver, host: str) -> None:
    assert receiver.request("GET", "/v1/hello", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.2", "[::1]", "files.example", "localhost.evil.example"]
)
def test_a_host_field_that_names_another_is_refused(receiver: RunningReceiver, host: str) -> None:
    answer = receiver.request("PUT", "/files/f", b"content", {"Host": host})
    assert (answer.status, answer.problem) == (403, "forbidden")
    assert receiver.visible() == {}


def test_a_configured_name_is_this_receiver(tmp_path: Path) -> None:
    with running(tmp_path, names=frozenset({"files.example"})) as receiver:
        for host in ("files.example", "FILES.example:8390", "files.example."):
            assert receiver.request("GET", "/v1/hello", headers={"Host": host}).status == 200


@pytest.mark.parametrize("provider", [Vouching(None), Vouching("local:4242", own=False)])
def test_nothing_is_sent_to_a_receiver_that_is_not_ours(
    receiver: RunningReceiver, tmp_path: Path, provider: Vouching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tdx.identity.local.LocalProvider.confirms", lambda _, endpoint: provider.confirms(endpoint)
    )
    source = tmp_path / "f"
    source.write_bytes(b"secret")
    with pytest.raises(Forbidden):
        push(receiver.peer, source, tmp_path / "sender")
    receiver.is_quiet()
    assert receiver.visible() == {}
    assert receiver.metrics.requests.family().samples == ()


def test_who_is_refused_leaves_one_line_of_a_bounded_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, providers=[Vouching("tailscale:n1", name="tailscale", own=False)]) as receiver:
        assert receiver.request("GET", "/files/" + "a" * 15_000).status == 403
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tdx.audit"]
    assert "refused GET /files/aaa" in line
    assert len(line) < 2200
