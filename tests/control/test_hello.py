"""GET /v1/hello, and requests that no resource takes."""

from __future__ import annotations

import os

import pytest

from support.receiving import RunningReceiver


def test_hello_says_who_this_is_what_it_takes_and_who_is_asking(receiver: RunningReceiver) -> None:
    answer = receiver.request("GET", "/v1/hello")
    assert answer.status == 200
    document = answer.document
    assert document["name"] == "tdx"
    assert isinstance(document["version"], str)
    assert document["limits"] == {"streams_per_upload": 64, "max_file": None}
    assert isinstance(document["free_bytes"], int)
    assert document["free_bytes"] > 0
    you = document["you"]
    assert isinstance(you, dict)
    assert you["owner"] == f"local:{os.getuid()}"
    assert you["provider"] == "local"


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "/v1/hello", "GET, OPTIONS"),
        ("DELETE", "/files/a", "HEAD, OPTIONS, POST, PUT"),
        ("GET", "/files/a", "HEAD, OPTIONS, POST, PUT"),
        ("POST", "/uploads/" + "0" * 32, "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("GET", "/uploads/" + "0" * 32 + "/commit", "OPTIONS, POST"),
        ("GET", "/files", "OPTIONS, POST"),
        ("GET", "/v1/tree", "OPTIONS, POST"),
    ],
)
def test_a_method_that_a_resource_lacks_is_answered_with_those_it_has(
    receiver: RunningReceiver, method: str, target: str, allowed: str
) -> None:
    answer = receiver.request(method, target)
    assert answer.status == 405
    assert answer.problem == "method-not-allowed"
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("target", ["/", "/file", "/v1/hello/", "/uploads/1", "/uploads/", "/v1/hello?x"])
def test_nothing_is_at_other_targets(receiver: RunningReceiver, target: str) -> None:
    answer = receiver.request("GET", target)
    assert (answer.status, answer.problem) == (404, "not-found")


def test_many_requests_go_over_one_connection(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        for number in range(3):
            assert wire.request("GET", "/v1/hello").status == 200
            assert wire.request("PUT", f"/files/f{number}", b"content").status == 201
            assert wire.request("GET", "/uploads/" + "0" * 32).status == 404
    assert receiver.metrics.requests.value(("PUT", "files", "201")) == 3
    assert receiver.visible() == {f"f{number}": b"content" for number in range(3)}
