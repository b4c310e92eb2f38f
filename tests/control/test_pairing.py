from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import pytest

from support.devices import meet, trusted
from tdx.config import parse_address
from tdx.control import pairing as control
from tdx.control.pairing import MAX_SILENT, Invitation, Terms, answer
from tdx.errors import (
    ConfigError,
    PairingFailed,
    ProtocolError,
    TdxError,
    UnknownPeer,
    Unreachable,
    UsageError,
)
from tdx.identity.pairing import Pairing, Role
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted

LOOPBACK: Final = ("127.0.0.1", 0)
PATIENCE: Final = 60.0


@pytest.fixture
def here(tmp_path: Path) -> TlsIdentities:
    return TlsIdentities(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> TlsIdentities:
    return TlsIdentities(tmp_path / "there")


def in_background(work: Callable[[], Trusted]) -> Future[Trusted]:
    future: Future[Trusted] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Waiting:
    """A machine that waits with a code."""

    def __init__(self, tls: TlsIdentities, terms: Terms, seconds: float = PATIENCE) -> None:
        self.invitation = Invitation(tls, terms, LOOPBACK)
        self.code = self.invitation.code
        self.address = parse_address(self.invitation.addresses[0])
        self._end = in_background(lambda: self.invitation.wait(seconds))

    def result(self) -> Trusted:
        return self._end.result(PATIENCE)

    @property
    def error(self) -> BaseException | None:
        return self._end.exception(PATIENCE)


@contextlib.contextmanager
def waiting(tls: TlsIdentities, terms: Terms | None = None, **options: Any) -> Iterator[Waiting]:
    made = Waiting(tls, terms or Terms("desk"), **options)
    with made.invitation:
        yield made


def test_both_trust_each_other_and_can_meet(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there, Terms("desk", port=9001)) as other:
        found = answer(here, Terms("laptop", port=9002), other.address, other.code)
        met = other.result()
    assert (found.name, found.key, found.certificate) == ("desk", there.device.key, there.device.certificate)
    assert (met.name, met.key, met.certificate) == ("laptop", here.device.key, here.device.certificate)
    assert found.addresses == ("127.0.0.1:9001",)
    assert met.addresses == ("127.0.0.1:9002",)
    assert here.trust.entries() == (found,)
    assert there.trust.entries() == (met,)
    assert meet(there.server_context(), here.client_context(found)).well


def test_another_code_burns_the_right_one(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there) as other:
        with pytest.raises(PairingFailed, match="the other end refused"):
            answer(here, Terms("laptop"), other.address, "0000-0000")
        assert isinstance(other.error, PairingFailed)
        with pytest.raises(Unreachable, match="does `tdx pair` wait there"):
            answer(here, Terms("laptop"), other.address, other.code)
    assert here.trust.entries() == there.trust.entries() == ()


def test_what_can_be_no_code_is_not_tried(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there) as other:
        with pytest.raises(UsageError, match="not a code"):
            answer(here, Terms("laptop"), other.address, "k7mf")
        assert answer(here, Terms("laptop"), other.address, other.code.upper()).name == "desk"


def test_garbage_is_a_try(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there) as other, socket.create_connection(other.address, PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert isinstance(other.error, PairingFailed)
        with pytest.raises(Unreachable):
            answer(here, Terms("laptop"), other.address, other.code)
    assert there.trust.entries() == ()


def test_who_hangs_up_in_the_middle_has_had_the_try(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there) as other:
        joiner = Pairing(Role.JOINER, other.code, here.device, "laptop", 1, 1e9)
        with socket.create_connection(other.address, PATIENCE) as connection:
            connection.sendall(joiner.begin())
        assert isinstance(other.error, PairingFailed)
    assert there.trust.entries() == ()


def test_who_says_nothing_is_no_try_and_in_nobodys_way(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there) as other, contextlib.ExitStack() as undo:
        socket.create_connection(other.address, PATIENCE).close()
        silent = [
            undo.enter_context(socket.create_connection(other.address, PATIENCE))
            for _ in range(MAX_SILENT + 1)
        ]
        # There is no room for all: the first has been shown out.
        assert silent[0].recv(1) == b""
        assert answer(here, Terms("laptop"), other.address, other.code).name == "desk"
        assert other.result().name == "laptop"


def test_a_code_that_nobody_uses_expires(there: TlsIdentities) -> None:
    with waiting(there, seconds=0.01) as other:
        assert isinstance(other.error, PairingFailed)
        assert "nobody answered in time" in str(other.error)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(other.address, PATIENCE)


def test_silence_does_not_keep_a_code_alive(there: TlsIdentities) -> None:
    with (
        waiting(there, seconds=0.2) as other,
        socket.create_connection(other.address, PATIENCE) as connection,
    ):
        assert isinstance(other.error, PairingFailed)
        assert connection.recv(1) == b""


def test_an_other_end_that_stops_is_given_up(
    here: TlsIdentities, there: TlsIdentities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "EXCHANGE_SECONDS", 0.2)
    with waiting(there) as other, socket.create_connection(other.address, PATIENCE) as connection:
        connection.sendall(b"\0")
        assert "too slow" in str(other.error)
    with socket.create_server(LOOPBACK) as silent, pytest.raises(PairingFailed, match="too slow"):
        answer(here, Terms("laptop"), silent.getsockname(), "0000-0000")


@contextlib.contextmanager
def says(data: bytes) -> Iterator[tuple[str, int]]:
    """Something else that listens: it says this to the first who connects, and hangs up."""
    with socket.create_server(LOOPBACK) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join(PATIENCE)


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\0\x02\x02\x16", b"\0", b"\0\x10tdx pairing 9xxx"],
)
def test_something_else_that_listens_is_said_to_be_that(here: TlsIdentities, data: bytes) -> None:
    with (
        says(data) as address,
        pytest.raises(ProtocolError, match="does not speak this version of tdx pairing"),
    ):
        answer(here, Terms("laptop"), address, "0000-0000")


def test_who_hangs_up_at_once_is_no_other_protocol(here: TlsIdentities) -> None:
    with says(b"") as address, pytest.raises(PairingFailed, match="the other end is gone"):
        answer(here, Terms("laptop"), address, "0000-0000")


def test_nobody_there_and_no_such_name(here: TlsIdentities) -> None:
    with socket.create_server(LOOPBACK) as listener:
        address = listener.getsockname()
    with pytest.raises(Unreachable, match="connection refused"):
        answer(here, Terms(), address, "0000-0000")
    with pytest.raises(UnknownPeer, match=r"no machine is called nowhere\.invalid"):
        answer(here, Terms(), ("nowhere.invalid", 1), "0000-0000")


def test_an_address_that_is_taken_is_named(there: TlsIdentities) -> None:
    with socket.create_server(LOOPBACK) as listener:
        host, port = listener.getsockname()
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}: Address already in use$"):
            Invitation(there, Terms(), (host, port))


def test_all_addresses_are_listened_on_unless_one_is_named(here: TlsIdentities, there: TlsIdentities) -> None:
    with Invitation(there, Terms("desk")) as invitation:
        ports = {parse_address(address)[1] for address in invitation.addresses}
        hosts = [parse_address(address)[0] for address in invitation.addresses]
        assert len(ports) == 1
        assert "::1" not in hosts
        found = in_background(lambda: invitation.wait(PATIENCE))
        # Over IPv4, though the socket may be one for both.
        assert answer(here, Terms("laptop"), ("127.0.0.1", ports.pop()), invitation.code).name == "desk"
        assert found.result(PATIENCE).addresses == ("127.0.0.1:8390",)


# --- names --------------------------------------------------------------------


def test_what_the_other_calls_itself_is_made_presentable(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there, Terms("../Bob's désk\n")) as other:
        found = answer(here, Terms("127.0.0.1"), other.address, other.code)
        assert found.name == "Bob-s-d-sk-"
        assert other.result().name == f"device-{here.device.key[:8]}"


def test_an_alias_wins_and_is_kept(here: TlsIdentities, there: TlsIdentities) -> None:
    with waiting(there, Terms("desk", alias="mine")) as other:
        assert answer(here, Terms("laptop", alias="work"), other.address, other.code).name == "work"
        assert other.result().name == "mine"
    with waiting(there, Terms("renamed", port=9001)) as other:
        again = answer(here, Terms("laptop"), other.address, other.code)
        assert (again.name, again.addresses) == ("work", ("127.0.0.1:9001",))
        assert other.result().name == "mine"
    assert here.trust.entries() == (again,)


def test_an_alias_that_can_be_no_name_is_refused_before_anything() -> None:
    with pytest.raises(UsageError, match="cannot name a device"):
        Terms(alias="a b")


@pytest.mark.parametrize("role", Role)
def test_the_name_of_another_key_is_not_taken_over(
    here: TlsIdentities, there: TlsIdentities, tmp_path: Path, role: Role
) -> None:
    earlier = TlsIdentities(tmp_path / "earlier")
    mine = here if role is Role.JOINER else there
    mine.trust.add(trusted(earlier.device, "same"))
    before = mine.trust.entries()
    with waiting(there, Terms("same")) as other:
        errors: dict[Role, BaseException | None] = {}
        with pytest.raises(TdxError) as failed:
            answer(here, Terms("same"), other.address, other.code)
        errors[Role.JOINER], errors[Role.LISTENER] = failed.value, other.error
    assert "with --as NAME here" in str(errors[role])
    assert isinstance(errors[role], UsageError)
    assert isinstance(errors[role.other], PairingFailed)
    assert mine.trust.entries() == before
    assert (there if mine is here else here).trust.entries() == ()
    with waiting(there, Terms("same", alias="fresh")) as other:
        assert answer(here, Terms("same", alias="new"), other.address, other.code).name == "new"
        assert other.result().name == "fresh"


def test_what_cannot_be_made_durable_is_not_confirmed(
    here: TlsIdentities, there: TlsIdentities, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ConfigError("the disk is gone")

    with waiting(there) as other:
        monkeypatch.setattr(there.trust, "add", fail)
        with pytest.raises(PairingFailed, match="failed on this side only"):
            answer(here, Terms("laptop"), other.address, other.code)
        assert isinstance(other.error, ConfigError)
    assert here.trust.entries() == ()
