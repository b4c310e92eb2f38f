from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow, holder, is_loopback, pack


def row(uid: int = 1000, inode: int = 7, state: int = ESTABLISHED) -> SocketRow:
    return SocketRow((b"\x7f\0\0\1", 1), (b"\x7f\0\0\1", 2), state, uid, inode)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_and_its_ipv6_mapped_form_are_the_same(address: IPv4Address) -> None:
    assert pack(str(address)) == address.packed
    assert pack(f"::ffff:{address}") == address.packed


@given(st.ip_addresses(v=6))
def test_any_other_ipv6_address_is_its_sixteen_bytes(address: IPv6Address) -> None:
    mapped = address.ipv4_mapped
    assert pack(str(address)) == (mapped.packed if mapped else address.packed)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "127.1", "1.2.3.256", "::1::", "1.2.3.4\0", "\udcff", "%", "127.0.0.1:80", "[::1]"],
)
def test_what_is_not_a_numeric_address_has_no_bytes(text: str) -> None:
    assert pack(text) is None


def test_a_zone_is_left_out() -> None:
    assert pack("fe80::1%eth0") == socket.inet_pton(socket.AF_INET6, "fe80::1")


@pytest.mark.parametrize("text", ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_recognised(text: str) -> None:
    packed = pack(text)
    assert packed is not None
    assert is_loopback(packed)


@pytest.mark.parametrize("text", ["0.0.0.0", "128.0.0.1", "::", "::2", "::ffff:10.0.0.1", "fe80::1"])
def test_nothing_else_is_loopback(text: str) -> None:
    packed = pack(text)
    assert packed is not None
    assert not is_loopback(packed)


def test_one_holder_of_every_row_is_its_uid() -> None:
    assert holder([row()], ESTABLISHED) == 1000
    assert holder([row(), row(inode=8)], ESTABLISHED) == 1000


def test_root_holding_a_socket_is_named() -> None:
    assert holder([row(uid=0)], ESTABLISHED) == 0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(uid=0, inode=0)],
        [row(inode=0)],
        [row(state=4)],
        [row(state=LISTEN)],
        [row(), row(uid=1001)],
        [row(), row(inode=0)],
        [row(), row(state=LISTEN)],
    ],
)
def test_no_row_a_row_held_by_nobody_another_state_or_two_uids_name_nobody(rows: list[SocketRow]) -> None:
    assert holder(rows, ESTABLISHED) is None
