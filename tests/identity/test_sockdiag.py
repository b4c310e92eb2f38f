from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.identity import sockdiag
from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow

LOOPBACK = b"\x7f\0\0\1"


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 1, length: int | None = None) -> bytes:
    length = 16 + len(body) if length is None else length
    return struct.pack("=IHHII", length, kind, flags, sequence, 0) + body


def described(
    family: int = socket.AF_INET,
    state: int = ESTABLISHED,
    source: bytes = LOOPBACK,
    destination: bytes = LOOPBACK,
    uid: int = 1000,
    inode: int = 7,
) -> bytes:
    ports = struct.pack("!HH", 8390, 50000)
    sockid = ports + source.ljust(16, b"\0") + destination.ljust(16, b"\0") + bytes(12)
    return struct.pack("=BBBB", family, state, 0, 0) + sockid + struct.pack("=5I", 0, 0, 0, uid, inode)


def error(code: int) -> bytes:
    return message(sockdiag.NLMSG_ERROR, struct.pack("=i", -code) + bytes(16))


ROW = SocketRow((LOOPBACK, 8390), (LOOPBACK, 50000), ESTABLISHED, 1000, 7)


def test_a_single_description_is_a_complete_answer() -> None:
    assert sockdiag.parse(message(20, described())) == sockdiag.Answer([ROW], complete=True)


def test_an_ipv6_socket_with_mapped_addresses_is_an_ipv4_row() -> None:
    mapped = bytes(10) + b"\xff\xff" + LOOPBACK
    body = described(family=socket.AF_INET6, source=mapped, destination=mapped)
    assert sockdiag.parse(message(20, body)).rows == [ROW]


def test_attributes_after_the_description_are_passed_over() -> None:
    body = described() + b"\x05\0\x0b\0\x01\0\0\0"
    assert sockdiag.parse(message(20, body) * 2).rows == [ROW, ROW]


def test_a_list_goes_on_until_its_end_is_said() -> None:
    part = message(20, described(), flags=sockdiag.NLM_F_MULTI)
    assert sockdiag.parse(part + part) == sockdiag.Answer([ROW, ROW], complete=False)
    done = message(sockdiag.NLMSG_DONE, bytes(4), flags=sockdiag.NLM_F_MULTI)
    assert sockdiag.parse(part + done) == sockdiag.Answer([ROW], complete=True)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP])
def test_an_error_of_the_kernel_is_raised(code: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  the errno is the point
        sockdiag.parse(error(code))
    assert caught.value.errno == code


def test_a_list_that_ends_in_an_error_is_raised() -> None:
    with pytest.raises(PermissionError):
        sockdiag.parse(message(sockdiag.NLMSG_DONE, struct.pack("=i", -errno.EACCES)))


def test_an_acknowledgement_completes_without_rows() -> None:
    assert sockdiag.parse(error(0)) == sockdiag.Answer([], complete=True)
    assert sockdiag.parse(message(sockdiag.NLMSG_ERROR, b"")) == sockdiag.Answer([], complete=True)


def test_a_list_that_changed_while_it_was_made_is_no_answer() -> None:
    with pytest.raises(InterruptedError):
        sockdiag.parse(message(20, described(), flags=sockdiag.NLM_F_MULTI | sockdiag.NLM_F_DUMP_INTR))


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0",
        bytes(16),
        message(20, described())[:-1],
        message(20, described(), length=15),
        message(20, described(), length=1 << 31),
        message(20, described(), sequence=2),
        message(20, described()[:-1]),
        message(20, b""),
        message(1, b""),
        message(20, described()) + b"\0" * 3,
    ],
)
def test_what_is_not_an_answer_is_a_value_error(datagram: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  any of them
        sockdiag.parse(datagram)


@given(st.binary(max_size=300))
def test_any_datagram_is_an_answer_or_an_error(datagram: bytes) -> None:
    try:
        answer = sockdiag.parse(datagram)
    except (OSError, ValueError):
        return
    assert isinstance(answer, sockdiag.Answer)


class Kernel:
    """A netlink socket that plays back datagrams."""

    def __init__(self, *datagrams: tuple[bytes, int, int]) -> None:
        self.datagrams = list(datagrams)

    def __call__(self, family: int, kind: int, protocol: int) -> Kernel:
        assert (family, protocol) == (socket.AF_NETLINK, sockdiag.NETLINK_SOCK_DIAG)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def recvmsg(self, size: int) -> tuple[bytes, list[bytes], int, tuple[int, int]]:
        if not self.datagrams:
            raise TimeoutError
        data, flags, sender = self.datagrams.pop(0)
        return data, [], flags, (sender, 0)


def playing(monkeypatch: pytest.MonkeyPatch, *datagrams: tuple[bytes, int, int]) -> None:
    monkeypatch.setattr(socket, "socket", Kernel(*datagrams))


ENDS = ((LOOPBACK, 8390), (LOOPBACK, 50000))


def test_only_the_kernel_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = message(20, described(uid=0))
    playing(monkeypatch, (forged, 0, 4711), (message(20, described()), 0, 0))
    assert sockdiag.lookup(*ENDS) == [ROW]


def test_a_listener_in_place_of_the_connection_is_not_it(monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, (message(20, described(state=LISTEN, destination=bytes(4))), 0, 0))
    assert sockdiag.lookup(*ENDS) == []


@pytest.mark.parametrize("answer", [(b"", 0, 0), (message(20, described()), socket.MSG_TRUNC, 0)])
def test_an_empty_or_shortened_datagram_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[bytes, int, int]
) -> None:
    playing(monkeypatch, answer)
    with pytest.raises(ValueError, match="netlink datagram"):
        sockdiag.lookup(*ENDS)


def test_a_list_in_several_datagrams_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    part = message(20, described(state=LISTEN), flags=sockdiag.NLM_F_MULTI)
    done = message(sockdiag.NLMSG_DONE, bytes(4))
    playing(monkeypatch, (part, 0, 0), (part + done, 0, 0), (done, 0, 0))
    assert len(sockdiag.listeners(8390)) == 2


def test_addresses_of_two_families_are_no_connection() -> None:
    assert sockdiag.lookup((LOOPBACK, 1), (bytes(16), 2)) == []


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_the_running_kernel_lists_a_listener_of_ours(listener: socket.socket) -> None:
    try:
        rows = sockdiag.listeners(listener.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no sock_diag here: {error}")
    assert [(row.local, row.state) for row in rows] == [((LOOPBACK, listener.getsockname()[1]), LISTEN)]
