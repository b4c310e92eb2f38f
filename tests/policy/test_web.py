"""The checks against browsers."""

from __future__ import annotations

import pytest

from tdx.policy.web import answer_fields, host_allowed, origin_allowed, preflight_fields
from tdx.proto.fields import parse_host

NAMES = frozenset({"files.example.org", "b.tail1234.ts.net", "100.64.0.9", "fd7a:115c:a1e0::9"})


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:8390", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:1", "::ffff:127.0.0.1"),
        ("127.0.0.1:", "127.0.0.1"),
        ("localhost:8390", "127.0.0.1"),
        ("LOCALHOST", "::1"),
        ("localhost.", "127.0.0.2"),
        ("[::1]:8390", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[fe80::1]:80", "fe80::1%eth0"),
        ("box", "100.64.0.1"),
        ("box.lan:8390", "100.64.0.1"),
        ("Files.Example.ORG", "100.64.0.1"),
        ("100.64.0.9:8390", "127.0.0.1"),
        ("[fd7a:115c:a1e0:0::9]", "127.0.0.1"),
        ("b.tail1234.ts.net.:8390", "100.64.0.1"),
    ],
)
def test_a_host_that_names_this_receiver_is_allowed(host: str, local: str) -> None:
    assert host_allowed(parse_host(host)[0], local, NAMES, "box.lan")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("evil.example", "127.0.0.1"),
        ("localhost", "100.64.0.1"),
        ("127.0.0.2", "127.0.0.1"),
        ("127.0.0.1", "100.64.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("box.lan.evil.example", "127.0.0.1"),
        ("example.org", "127.0.0.1"),
        ("localhost", "not an address"),
    ],
)
def test_any_other_host_is_not(host: str, local: str) -> None:
    assert not host_allowed(parse_host(host)[0], local, NAMES, "box.lan")


def test_a_machine_without_a_name_allows_no_empty_host() -> None:
    assert not host_allowed("", "127.0.0.1", frozenset({""}), "")


def test_requests_without_origin_and_referer_go_on() -> None:
    assert origin_allowed(None, None, frozenset())


@pytest.mark.parametrize(
    ("origin", "referer"),
    [
        ("https://page.example", None),
        ("https://PAGE.example", None),
        (None, "https://page.example/send?to=b#x"),
        (None, "https://page.example?x"),
        ("https://page.example", "https://page.example/"),
        ("http://127.0.0.1:3000", None),
    ],
)
def test_listed_origins_go_on(origin: str | None, referer: str | None) -> None:
    assert origin_allowed(origin, referer, frozenset({"https://page.example/", "http://127.0.0.1:3000"}))
    assert not origin_allowed(origin, referer, frozenset())


@pytest.mark.parametrize(
    ("origin", "referer"),
    [
        ("null", None),
        ("", None),
        (None, ""),
        (None, "null"),
        (None, "about:blank"),
        ("http://page.example", None),
        ("https://page.example:444", None),
        ("https://page.example.evil", None),
        (None, "https://page.example@evil/"),
        (None, "https://evil/https://page.example/"),
        ("https://page.example", "https://evil/"),
        ("https://evil", "https://page.example/"),
    ],
)
def test_all_others_do_not(origin: str | None, referer: str | None) -> None:
    assert not origin_allowed(origin, referer, frozenset({"https://page.example", "null", ""}))


def test_an_answer_names_the_one_origin_that_asked_and_no_other() -> None:
    allowed = frozenset({"https://a.example", "https://b.example"})
    fields = dict(answer_fields("https://a.example", allowed))
    assert fields["Access-Control-Allow-Origin"] == "https://a.example"
    assert fields["Vary"] == "Origin"
    assert "Upload-Offset" in fields["Access-Control-Expose-Headers"]
    assert answer_fields(None, allowed) == [("Vary", "Origin")]
    assert answer_fields(None, frozenset()) == []


@pytest.mark.parametrize("private", [True, False])
def test_a_preflight_is_answered_for_private_networks_only_where_it_asks(private: bool) -> None:
    fields = dict(preflight_fields("OPTIONS, PUT", private_network=private))
    assert fields["Access-Control-Allow-Methods"] == "OPTIONS, PUT"
    assert ("Access-Control-Allow-Private-Network" in fields) is private
    assert "Access-Control-Allow-Credentials" not in fields
    assert "*" not in "".join(fields.values())
