"""What a receiver listens on, and how it follows meshes that come and go."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from support.processes import reserve_port
from tdx.config import DEFAULT_PORT, Address
from tdx.control import listeners
from tdx.control.connection import link_of
from tdx.control.listeners import Listeners
from tdx.errors import ConfigError
from tdx.identity.port import Place

MESH = Place("127.0.0.77", "lo")
"""An address that only these tests use; loopback's interface stands in for a mesh's."""


@contextmanager
def listening(asked: Sequence[Address], places: list[Place]) -> Iterator[Listeners]:
    found = Listeners(asked, lambda: places)
    try:
        yield found
    finally:
        found.close()


def addresses(found: list[socket.socket]) -> list[Address]:
    return [listener.getsockname()[:2] for listener in found]


def interface_of_accepted(listener: socket.socket) -> str | None:
    with socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            return link_of(accepted).interface


def test_an_address_that_was_asked_for_is_bound_to_no_interface() -> None:
    with listening([("127.0.0.1", 0)], []) as found:
        (listener,) = found.open()
        assert interface_of_accepted(listener) is None


def test_an_address_of_a_mesh_takes_only_what_comes_in_by_its_interface() -> None:
    with listening([(MESH.host, 0)], [MESH]) as found:
        (listener,) = found.open()
        assert interface_of_accepted(listener) == "lo"


def test_without_a_wish_loopback_and_every_mesh_that_is_up_are_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[tuple[str, int, str | None]] = []

    def listen(host: str, port: int, interface: str | None = None) -> list[socket.socket]:
        opened.append((host, port, interface))
        return [reserve_port()]

    monkeypatch.setattr(listeners, "listen", listen)
    with listening([], [MESH]) as found:
        found.open()
    assert opened == [("127.0.0.1", DEFAULT_PORT, None), (MESH.host, DEFAULT_PORT, "lo")]


def test_a_mesh_that_comes_up_later_is_listened_on_then_and_one_that_goes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: list[Place] = []
    with reserve_port() as taken, reserve_port(MESH.host) as reserved:
        ports = {"127.0.0.1": taken.getsockname()[1], MESH.host: reserved.getsockname()[1]}
        really = listeners.listen

        def listen(host: str, port: int, interface: str | None = None) -> list[socket.socket]:
            return really(host, ports[host], interface)

        monkeypatch.setattr(listeners, "listen", listen)
        with listening([], places) as found:
            assert len(found.open()) == 1
            assert found.refresh() == ([], [])
            places.append(MESH)
            opened, gone = found.refresh()
            assert (addresses(opened), gone) == ([(MESH.host, ports[MESH.host])], [])
            assert found.refresh() == ([], [])
            places.clear()
            assert found.refresh() == ([], opened)
            opened[0].close()


def test_an_interface_that_was_made_anew_is_listened_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    index = 7
    monkeypatch.setattr(socket, "if_nametoindex", lambda _: index)
    with listening([(MESH.host, 0)], [MESH]) as found:
        (old,) = found.open()
        port = old.getsockname()[1]
        index = 8
        monkeypatch.setattr(listeners, "listen", lambda host, *_: [reserve_port(host)])
        opened, gone = found.refresh()
        assert gone == [old]
        assert len(opened) == 1
        assert found._ports == {MESH.host: opened[0].getsockname()[1]}
        assert port
        old.close()


def test_an_interface_that_went_between_question_and_answer_is_left_out() -> None:
    with listening([("127.0.0.1", 0), (MESH.host, 0)], [Place(MESH.host, "no-such-if")]) as found:
        (listener,) = found.open()
        assert listener.getsockname()[0] == "127.0.0.1"


def test_an_address_that_is_taken_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            listening([("127.0.0.1", 0), ("127.0.0.1", port)], []) as found,
            pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*in use; stop what"),
        ):
            found.open()


def test_an_address_whose_mesh_went_is_not_listened_on_without_it() -> None:
    places = [MESH]
    with listening([(MESH.host, 0)], places) as found:
        found.open()
        places.clear()
        opened, gone = found.refresh()
        assert (opened, len(gone)) == ([], 1)  # and it is not opened for every way in instead
        gone[0].close()


def passed(host: str, port: int = 0) -> socket.socket:
    """A socket as whoever started the receiver opened it."""
    listener = socket.create_server((host, port))
    listener.setblocking(False)
    return listener


def test_sockets_that_were_passed_are_used_instead_of_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "listen", lambda *_: pytest.fail("opened one of its own"))
    own = passed("127.0.0.1")
    found = Listeners([("127.0.0.1", 1)], lambda: [MESH], [own])
    assert found.open() == [own]
    assert found.refresh() == ([], [])
    assert interface_of_accepted(own) is None
    found.close()
    assert own.fileno() == -1


def test_one_at_an_address_of_a_mesh_is_bound_to_its_interface_also_later() -> None:
    places: list[Place] = []
    own = passed(MESH.host)
    found = Listeners([], lambda: places, [own])
    found.open()
    assert interface_of_accepted(own) is None  # the mesh is not up: nobody is vouched for
    own.setblocking(False)
    places.append(MESH)
    found.refresh()
    assert interface_of_accepted(own) == "lo"
    found.refresh()
    found.close()


def test_who_waited_before_it_was_bound_is_sent_away_and_comes_again() -> None:
    own = passed(MESH.host)
    with socket.create_connection(own.getsockname()) as early:
        found = Listeners([], lambda: [MESH], [own])
        found.open()
        assert early.recv(1) == b""
    assert interface_of_accepted(own) == "lo"
    found.close()


def test_a_wildcard_is_bound_to_nothing() -> None:
    own = passed("0.0.0.0")
    found = Listeners([], lambda: [MESH], [own])
    found.open()
    with socket.create_connection((MESH.host, own.getsockname()[1])):
        own.setblocking(True)
        accepted, _ = own.accept()
        with accepted:
            assert link_of(accepted).interface is None
            assert link_of(accepted).local.host == MESH.host
    found.close()


def test_an_interface_that_cannot_be_bound_to_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    own = passed(MESH.host)
    found = Listeners([], lambda: [Place(MESH.host, "no-such-if")], [own])
    found.open()
    found.refresh()
    assert [record.message for record in caplog.records] == ["cannot bind to no-such-if: No such device"]
    found.close()
