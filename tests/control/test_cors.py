"""Web pages: what those of a listed origin may do and read, and what no other may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.receiving import RunningReceiver, running
from support.vouching import Vouching
from support.wire import Answer

LISTED = "https://files.example"
OTHER = "https://evil.example"
TARGETS = ["*", "/files/", "/files/f", "/files", "/uploads/" + "0" * 32, "/v1/hello"]


@pytest.fixture
def open_to_pages(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path, allowed_origins=frozenset({LISTED})) as receiver:
        yield receiver


def preflight(receiver: RunningReceiver, target: str, origin: str, **more: str) -> Answer:
    fields = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type,upload-complete,upload-offset",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return receiver.request("OPTIONS", target, headers=fields)


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def words(value: str) -> set[str]:
    return {word.strip().lower() for word in value.split(",")}


@pytest.mark.parametrize("target", TARGETS)
def test_a_preflight_of_a_listed_origin_says_what_it_may_send(
    open_to_pages: RunningReceiver, target: str
) -> None:
    answer = preflight(open_to_pages, target, LISTED)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert words(answer.headers["access-control-allow-methods"]) == words(answer.headers["allow"])
    assert {"content-type", "upload-complete", "upload-offset", "upload-draft-interop-version"} < words(
        answer.headers["access-control-allow-headers"]
    )
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-private-network" not in answer.headers
    assert "access-control-allow-credentials" not in answer.headers
    assert "*" not in "".join(cors(answer).values())


def test_a_listed_origin_may_reach_a_private_address_if_its_browser_asks(
    open_to_pages: RunningReceiver,
) -> None:
    answer = preflight(open_to_pages, "/files/f", LISTED, Access_Control_Request_Private_Network="true")
    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("origin", [OTHER, "null", "https://files.example.evil.example", LISTED + ":444"])
def test_a_preflight_of_any_other_is_refused_and_allows_nothing(
    open_to_pages: RunningReceiver, target: str, origin: str
) -> None:
    answer = preflight(open_to_pages, target, origin, Access_Control_Request_Private_Network="true")
    assert (answer.status, answer.problem) == (403, "forbidden")
    assert cors(answer) == {}


def test_by_default_no_page_may_do_anything(receiver: RunningReceiver) -> None:
    answer = preflight(receiver, "/files/f", LISTED)
    assert (answer.status, cors(answer)) == (403, {})
    answer = receiver.request("PUT", "/files/f", b"content", {"Origin": LISTED})
    assert (answer.status, cors(answer), receiver.visible()) == (403, {}, {})


def test_a_preflight_for_a_foreign_host_is_refused(open_to_pages: RunningReceiver) -> None:
    answer = preflight(open_to_pages, "/files/f", LISTED, Host="rebound.example")
    assert (answer.status, answer.problem) == (403, "forbidden")
    assert "access-control-allow-methods" not in answer.headers


def test_a_preflight_from_whom_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    nobody = Vouching("tailscale:stranger", name="tailscale", own=False)
    with running(tmp_path, providers=[nobody], allowed_origins=frozenset({LISTED})) as receiver:
        answer = preflight(receiver, "/files/f", LISTED)
    assert (answer.status, cors(answer)) == (403, {})


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("PUT", "/files/f", 201),
        ("POST", "/files/f", 201),
        ("GET", "/v1/hello", 200),
        ("HEAD", "/uploads/" + "0" * 32, 404),
        ("PATCH", "/uploads/" + "0" * 32, 404),
        ("PATCH", "/files/f", 405),
        ("PUT", "/files/..", 400),
    ],
)
def test_a_page_of_a_listed_origin_may_read_every_answer(
    open_to_pages: RunningReceiver, method: str, target: str, status: int
) -> None:
    answer = open_to_pages.request(method, target, b"", {"Origin": LISTED})
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == LISTED
    exposed = words(answer.headers["access-control-expose-headers"])
    assert {"location", "upload-offset", "upload-complete", "upload-length", "upload-limit"} < exposed
    assert answer.headers["vary"] == "Origin"


def test_who_is_no_page_is_told_that_answers_vary(open_to_pages: RunningReceiver) -> None:
    answer = open_to_pages.request("GET", "/v1/hello")
    assert (answer.headers["vary"], cors(answer)) == ("Origin", {})


def test_where_no_origin_is_listed_nothing_varies(receiver: RunningReceiver) -> None:
    assert "vary" not in receiver.request("GET", "/v1/hello").headers


def test_an_origin_in_other_letters_is_answered_as_it_was_asked(open_to_pages: RunningReceiver) -> None:
    answer = open_to_pages.request("GET", "/v1/hello", b"", {"Origin": "https://FILES.example"})
    assert answer.headers["access-control-allow-origin"] == "https://FILES.example"
