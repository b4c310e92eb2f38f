from __future__ import annotations

from collections.abc import Callable

import pytest

from tdx.errors import IdentityUnavailable
from tdx.identity.port import Endpoint, KnownPeer, Link, Place
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
    assert [(record.levelname, "mesh" in record.message) for record in caplog.records] == [("WARNING", True)]
    assert local.asked == []


def test_a_sender_learns_that_a_provider_failed_since_asking_later_may_help() -> None:
    mesh = Fake("mesh", THERE.host, fail)
    local = Fake("local", THERE.host, lambda: somebody("local"))
    with pytest.raises(IdentityUnavailable, match=r"mesh cannot say who is at .*: no daemon"):
        Identities([mesh, local]).confirm(THERE)
    assert local.asked == []


def test_a_provider_that_fails_to_say_what_it_covers_lets_nobody_in() -> None:
    class Broken(Fake):
        def covers(self, address: str) -> bool:
            raise OSError("gone")

    local = Fake("local", THERE.host, lambda: somebody("local"))
    assert Identities([Broken("mesh", "", fail), local]).identify(LINK) is None


class FakeMesh(Fake):
    """A mesh with one other member, or one that says nothing."""

    def __init__(self, name: str, *names: str, silent: bool = False) -> None:
        super().__init__(name, f"address-of-{name}", lambda: somebody(name))
        self.names = names
        self.silent = silent

    def _say(self) -> None:
        if self.silent:
            raise IdentityUnavailable(f"{self.name} is silent")

    def places(self) -> list[Place]:
        self._say()
        return [Place(f"here-on-{self.name}", self.name)]

    def own_names(self) -> list[str]:
        self._say()
        return [f"me.{self.name}"]

    def peers(self) -> list[KnownPeer]:
        self._say()
        return [KnownPeer(self.names, somebody(self.name), (f"address-of-{self.name}",))]

    def interface(self, address: str) -> str | None:
        return f"if-{self.name}"


def test_a_member_of_a_mesh_is_found_by_any_name_it_goes_by_there() -> None:
    a, b = FakeMesh("a", "nas"), FakeMesh("b", "desk.b.example", "desk")
    found = Identities([a, b], [a, b])
    for name in ("desk", "DESK", "desk.b.example."):
        peer = found.find(name)
        assert peer is not None
        assert peer.identity == somebody("b")
    assert found.find("printer") is None


def test_a_silent_mesh_hides_no_member_of_another_but_is_named_where_nobody_is_found() -> None:
    a, b = FakeMesh("a", silent=True), FakeMesh("b", "desk")
    found = Identities([a, b], [a, b])
    assert found.find("desk") is not None
    with pytest.raises(IdentityUnavailable, match="a is silent"):
        found.find("printer")


def test_the_interface_to_bind_to_is_that_of_the_mesh_that_covers_the_address() -> None:
    a, b = FakeMesh("a"), FakeMesh("b")
    found = Identities([a, b], [a, b])
    assert found.interface("address-of-b") == "if-b"
    assert found.interface("192.0.2.1") is None


def test_a_silent_mesh_has_no_places_and_no_names() -> None:
    a, b = FakeMesh("a", silent=True), FakeMesh("b")
    found = Identities([a, b], [a, b])
    assert found.places() == [Place("here-on-b", "b")]
    assert found.names() == {"me.b"}
