from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.identity import procnet
from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow, unmapped

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOOPBACK = b"\x7f\0\0\1"


def written(packed: bytes, port: int) -> str:
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def line(
    local: str = written(LOOPBACK, 8390),
    remote: str = written(LOOPBACK, 50000),
    state: str = "01",
    uid: str = "1000",
    inode: str = "34567",
) -> str:
    queues = "00000000:00000000 00:00000000 00000000"
    rest = "1 0000000000000000 20 4 30 10 -1"
    return f"   0: {local} {remote} {state} {queues} {uid:>5}        0 {inode} {rest}\n"


def test_a_row_says_both_ends_the_state_the_uid_and_the_inode() -> None:
    assert procnet.parse(HEADING + line()) == [
        SocketRow((LOOPBACK, 8390), (LOOPBACK, 50000), ESTABLISHED, 1000, 34567)
    ]


@pytest.mark.skipif(sys.byteorder != "little", reason="the text was taken from a little-endian machine")
def test_a_table_as_a_kernel_printed_it_is_read() -> None:
    table = HEADING + (
        "   0: 00000000000000000000000001000000:20C6 00000000000000000000000000000000:0000 0A "
        "00000000:00000000 00:00000000 00000000     0        0 8811 1 0000000000000000 100 0 0 10 0\n"
        "   1: 0000000000000000FFFF00000100007F:8B49 0000000000000000FFFF00000100007F:BE3A 01 "
        "00000000:00000000 00:00000000 00000000 65534        0 8834 1 0000000000000000 20 4 30 10 -1\n"
    )
    listener, connection = procnet.parse(table)
    assert listener == SocketRow((IPv6Address("::1").packed, 8390), (bytes(16), 0), LISTEN, 0, 8811)
    assert connection == SocketRow((LOOPBACK, 35657), (LOOPBACK, 48698), ESTABLISHED, 65534, 8834)


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 65535),
    st.integers(1, 12),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 1 << 40),
)
def test_every_row_is_read_as_it_was_written(
    address: IPv4Address | IPv6Address, port: int, state: int, uid: int, inode: int
) -> None:
    packed = address.packed
    text = line(
        local=written(packed, port),
        remote=written(bytes(len(packed)), 0),
        state=f"{state:02X}",
        uid=str(uid),
        inode=str(inode),
    )
    nowhere = unmapped(bytes(len(packed)))
    assert procnet.parse(HEADING + text) == [
        SocketRow((unmapped(packed), port), (nowhere, 0), state, uid, inode)
    ]


@pytest.mark.parametrize("table", ["", HEADING])
def test_an_empty_table_has_no_rows(table: str) -> None:
    assert procnet.parse(table) == []


@pytest.mark.parametrize(
    "garbage",
    [
        "\n",
        "   0: torn\n",
        line()[:60],
        line(local="0100007F"),
        line(local="0100007:20C6"),
        line(local="0100007F:20C"),
        line(local="0100007F:XXXX"),
        line(remote="-100007F:20C6"),
        line(remote="nonsense:20C6"),
        line(local="0100007F0100007F:20C6"),
        line(state="?"),
        line(uid="root"),
        line(inode="none"),
    ],
)
def test_a_row_that_cannot_be_read_spoils_the_table(garbage: str) -> None:
    with pytest.raises(ValueError, match="not a row of a socket table"):
        procnet.parse(HEADING + line() + garbage)


@given(st.text(max_size=300))
def test_any_text_is_rows_or_a_value_error(text: str) -> None:
    try:
        rows = procnet.parse(HEADING + text)
    except ValueError:
        return
    assert all(isinstance(found, SocketRow) for found in rows)


def test_both_families_are_read(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(HEADING + line())
    (tmp_path / "tcp6").write_text(
        HEADING + line(local=written(bytes(16), 8390), remote=written(bytes(16), 0))
    )
    assert [len(found.local[0]) for found in procnet.read(tmp_path)] == [4, 16]


def test_a_kernel_without_ipv6_has_one_table(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(HEADING + line())
    assert len(procnet.read(tmp_path)) == 1


def test_without_an_ipv4_table_there_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        procnet.read(tmp_path)


def test_a_table_that_is_not_ascii_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_bytes(HEADING.encode() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match="ascii"):
        procnet.read(tmp_path)
