from __future__ import annotations

from collections.abc import Callable

import pytest

from tdx.identity.port import Endpoint, Link
from tdx.identity.registry import Identities
from tdx.model import Identity, Owner

HERE = Endpoint("127.0.0.1", 8390)
THERE = Endpoint("127.0.0.2", 50000)
LINK = Link(local=HERE, remote=THERE)


def somebody(name: str) -> Identity:
    return Identity(Owner(f"{name}:1"), name, "ann", "desk")


class Fake:
    def __init__(self, name: str, covered: str, answer: Callable[[], Identity | None]) -> None:
        self.name = name
        self.covered = covered
        self.answer = answer
        self.asked: list[object] = []

    def covers(self, address: str) -> bool:
        return address == self.covered

    def whois(self, link: Link) -> Identity | None:
        self.asked.append(link)
        return self.answer()

    def confirms(self, destination: Endpoint) -> Identity | None:
        self.asked.append(destination)
        return self.answer()


def fail() -> Identity | None:
    raise RuntimeError("no daemon")


def test_the_provider_that_covers_the_callers_address_is_asked() -> None:
    near = Fake("near", HERE.host, lambda: somebody("near"))
    far = Fake("far", THERE.host, lambda: somebody("far"))
    assert Identities([near, far]).identify(LINK) == somebody("far")
    assert (near.asked, far.asked) == ([], [LINK])


def test_the_provider_that_covers_the_destination_is_asked() -> None:
    near = Fake("near", HERE.host, lambda: somebody("near"))
    far = Fake("far", THERE.host, lambda: somebody("far"))
    assert Identities([near, far]).confirm(HERE) == somebody("near")
    assert (near.asked, far.asked) == ([HERE], [])


def test_an_address_that_nobody_covers_is_nobody() -> None:
    assert Identities([]).identify(LINK) is None
    assert Identities([Fake("near", HERE.host, lambda: somebody("near"))]).identify(LINK) is None


def test_the_next_provider_is_asked_where_one_does_not_know() -> None:
    mesh = Fake("mesh", THERE.host, lambda: None)
    local = Fake("local", THERE.host, lambda: somebody("local"))
    assert Identities([mesh, local]).identify(LINK) == somebody("local")


def test_a_provider_that_fails_lets_nobody_in_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    mesh = Fake("mesh", THERE.host, fail)
    local = Fake("local", THERE.host, lambda: somebody("local"))
    assert Identities([mesh, local]).identify(LINK) is None
    assert Identities([mesh, local]).confirm(THERE) is None
    assert local.asked == []
    assert [(record.levelname, "mesh" in record.message) for record in caplog.records] == [
        ("WARNING", True)
    ] * 2


def test_a_provider_that_fails_to_say_what_it_covers_lets_nobody_in() -> None:
    class Broken(Fake):
        def covers(self, address: str) -> bool:
            raise OSError("gone")

    local = Fake("local", THERE.host, lambda: somebody("local"))
    assert Identities([Broken("mesh", "", fail), local]).identify(LINK) is None
