"""OpenSSL's own loop over the records, and where it is not to be had."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datakit import STALL, body_on, pattern, tls_tcp_pair, tls_unix_pair
from tdx.data import libssl
from tdx.data.libssl import BUFFERED, BulkRead, bulk_read
from tdx.data.port import Cancel
from tdx.data.records import RECORD, RecordReader
from tdx.errors import ConnectionLost

pytestmark = pytest.mark.skipif(
    getattr(importlib.import_module("_ssl"), "__file__", None) is None,
    reason="this Python has OpenSSL built in, where its functions cannot be called",
)


def bulk(sock: ssl.SSLSocket) -> BulkRead:
    found = bulk_read(sock)
    assert found is not None
    return found


def ssl_at(sock: ssl.SSLSocket) -> int:
    """Where OpenSSL's own object of this socket is."""
    address = libssl._address_in(libssl._layer_of(sock), sock)
    assert address is not None
    return address


def test_many_records_are_read_at_one_call() -> None:
    data = pattern(5 * RECORD)
    with tls_unix_pair() as (near, far):
        assert far.send(data) == len(data)
        view = memoryview(bytearray(len(data)))
        assert bulk(near)(view) == len(data)
        assert bytes(view) == data


def test_a_body_takes_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pattern(5 * RECORD)
    with tls_unix_pair() as (near, far):
        far.send(data)
        body = body_on(near, len(data))
        monkeypatch.delattr(ssl.SSLSocket, "read")
        view = memoryview(bytearray(len(data)))
        assert body.readinto(view) == len(data)
        assert bytes(view) == data


def test_what_is_not_asked_for_stays_for_whoever_reads_next() -> None:
    data = pattern(3 * RECORD)
    with tls_unix_pair() as (near, far):

        @given(
            st.lists(st.integers(BUFFERED + 1, 3 * RECORD), min_size=1, max_size=4), st.integers(1, RECORD)
        )
        def check(sizes: list[int], record: int) -> None:
            # So many records fit into the kernel's buffer.
            whole = data[: 6 * record]
            for start in range(0, len(whole), record):
                far.send(whole[start : start + record])
            found = bytearray()
            for size in sizes:
                view = memoryview(bytearray(size))
                n = bulk(near)(view)
                assert n == min(size, len(whole) - len(found))
                found += view[:n]
            while len(found) < len(whole):
                found += near.recv(len(whole) - len(found))
            assert bytes(found) == whole

        check()


def test_nothing_there_is_nothing_read_and_no_end() -> None:
    with tls_unix_pair() as (near, far):
        view = memoryview(bytearray(2 * RECORD))
        read = bulk(near)
        assert read(view) == 0
        far.send(b"later")
        assert read(view) == 5
        assert bytes(view[:5]) == b"later"


def test_the_connection_outlives_the_loop() -> None:
    with tls_unix_pair() as (near, far):
        for _ in range(100):
            read = bulk(near)
            far.send(b"a")
            assert read(memoryview(bytearray(RECORD))) == 1
            del read
        gc.collect()
        far.send(b"there")
        assert near.recv(10) == b"there"
        near.send(b"back")
        assert far.recv(10) == b"back"


def test_the_loop_outlives_the_connection() -> None:
    with tls_unix_pair() as (near, _):
        read = bulk(near)
    del near
    gc.collect()
    assert read(memoryview(bytearray(RECORD))) == 0
    del read
    gc.collect()


@pytest.mark.parametrize("asked", [False, True])
def test_new_keys_in_the_middle_are_taken(asked: bool) -> None:
    data = pattern(3 * RECORD)
    update = ctypes.CDLL(importlib.import_module("_ssl").__file__).SSL_key_update
    update.argtypes = (ctypes.c_void_p, ctypes.c_int)
    with tls_unix_pair() as (near, far):
        far.send(data)
        # RFC 8446 section 4.6.3: update_not_requested, update_requested.
        assert update(ssl_at(far), int(asked)) == 1
        far.send(data)
        view = memoryview(bytearray(2 * len(data)))
        assert bulk(near)(view) == len(view)
        assert bytes(view) == data + data
        near.send(b"answer")
        assert far.recv(10) == b"answer"


def test_what_ended_one_connection_is_not_held_against_the_next_in_the_same_thread() -> None:
    view = memoryview(bytearray(2 * RECORD))
    with tls_tcp_pair() as (near, far), tls_tcp_pair() as (other, _):
        far.send(b"good")
        os.write(far.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        reader = RecordReader(near)
        assert reader.receive(view, whole=True) == 4
        with pytest.raises(BlockingIOError):
            RecordReader(other).receive(view, whole=True)
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            reader.receive(view, whole=True)


def test_an_end_without_a_farewell_is_told_after_the_last_byte() -> None:
    data = pattern(3 * RECORD)
    with tls_tcp_pair() as (near, far):
        far.send(data)
        far.close()
        body = body_on(near, 4 * RECORD, Cancel(), stall=STALL)
        view = memoryview(bytearray(4 * RECORD))
        assert body.readinto(view) == len(data)
        with pytest.raises(ConnectionLost):
            body.readinto(view)


def test_nothing_is_read_once_the_tls_layer_is_gone() -> None:
    with tls_unix_pair() as (near, far):
        read = bulk(near)
        far.send(b"secret")
        near.shutdown(2)
        assert read(memoryview(bytearray(RECORD))) == 0
        assert bulk_read(near) is None


# --- where it is not to be had -----------------------------------------------------


@contextmanager
def library_found_anew() -> Iterator[None]:
    libssl._library.cache_clear()
    try:
        yield
    finally:
        libssl._library.cache_clear()


def test_a_socket_that_blocks_gets_none() -> None:
    with tls_unix_pair() as (near, _):
        os.set_blocking(near.fileno(), True)
        assert bulk_read(near) is None


def test_another_socket_s_layer_is_none_of_this_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_unix_pair() as (near, far):
        monkeypatch.setattr(near, "_sslobj", far._sslobj)  # type: ignore[attr-defined]
        assert bulk_read(near) is None
        monkeypatch.undo()


@pytest.mark.parametrize("layer", [object(), None])
def test_a_layer_of_another_kind_gets_none(monkeypatch: pytest.MonkeyPatch, layer: object) -> None:
    with tls_unix_pair() as (near, _):
        monkeypatch.setattr(near, "_sslobj", layer)
        assert bulk_read(near) is None
        monkeypatch.undo()


def test_another_descriptor_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_unix_pair() as (near, far):
        monkeypatch.setattr(near, "fileno", far.fileno)
        assert bulk_read(near) is None


@pytest.mark.parametrize(
    ("holder", "name", "value"),
    [
        (ssl, "OPENSSL_VERSION", "LibreSSL 3.8.2"),
        (ssl, "OPENSSL_VERSION_INFO", (1, 1, 1, 0, 0)),
        (ssl, "OPENSSL_VERSION_NUMBER", 0x30000000 + 1),
        (sys.implementation, "name", "another"),
        (importlib.import_module("_ssl"), "__file__", None),
        (importlib.import_module("_ssl"), "__file__", "/nowhere/_ssl.so"),
        (importlib.import_module("_ssl"), "__file__", importlib.import_module("_ctypes").__file__),
    ],
)
def test_an_openssl_that_is_not_known_or_not_reached_is_not_called(
    monkeypatch: pytest.MonkeyPatch, holder: object, name: str, value: object
) -> None:
    with library_found_anew(), tls_unix_pair() as (near, far):
        monkeypatch.setattr(holder, name, value)
        assert bulk_read(near) is None
        monkeypatch.undo()
        far.send(b"all the same")
        view = memoryview(bytearray(2 * RECORD))
        assert RecordReader(near).receive(view, whole=True) == 12
