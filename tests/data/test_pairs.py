"""Sender and receiver together: what leaves one file arrives in the other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datakit import (
    STALL,
    Background,
    FileSink,
    MemorySink,
    Received,
    Sent,
    body_on,
    pattern,
    slots_of,
    tcp_pair,
    tls_tcp_pair,
    tls_unix_pair,
    unix_pair,
)
from tdx.data.port import BUFFER, Cancel
from tdx.data.probe import choose_receive
from tdx.data.send import choose_send, send_buffer
from tdx.integrity import cut
from tdx.model import Span

EXTENT = 4 * BUFFER
Pair = Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]]


@pytest.mark.parametrize("receiving", ["buffered", "splice"])
@pytest.mark.parametrize("sending", ["sendfile", "buffered"])
@pytest.mark.parametrize(
    "pair", [tcp_pair, unix_pair, tls_tcp_pair, tls_unix_pair], ids=["tcp", "unix", "tls", "tls-unix"]
)
def test_the_file_and_its_digests_are_the_same_at_both_ends(
    tmp_path: Path, sending: str, receiving: str, pair: Pair
) -> None:
    data = pattern(3 * EXTENT + BUFFER + 4321)
    (tmp_path / "source").write_bytes(data)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    sink = FileSink(tmp_path / "target")
    sent, received = Sent(), Received()
    whole = Span(0, len(data))
    try:
        with pair() as (near, far):
            pump = choose_send(sending, source)
            pushing = Background(
                lambda: pump.send(near, source, list(cut(whole, EXTENT)), sent.hooks(), Cancel(), STALL)
            )
            body = body_on(far, len(data))
            choose_receive(receiving, sink, body).receive(
                body, sink, slots_of(whole, EXTENT), received.hooks(), Cancel()
            )
            pushing.join()
        assert sink.content() == data
    finally:
        os.close(source)
        sink.close()
    assert sent.hashed == received.completed


@given(
    st.sampled_from([unix_pair, tls_unix_pair]),
    st.integers(1, 3 * BUFFER),
    st.integers(0, 2 * BUFFER),
    st.sampled_from([BUFFER // 2, BUFFER, 2 * BUFFER]),
)
def test_any_length_at_any_offset_arrives_in_any_extents(
    pair: Pair, length: int, start: int, extent: int
) -> None:
    data = pattern(length, start)
    sink, received = MemorySink(), Received()
    span = Span(start, start + length)
    with pair() as (near, far):
        pushing = Background(lambda: send_buffer(near, memoryview(data), Sent().hooks(), Cancel(), STALL))
        body = body_on(far, length)
        choose_receive(None, sink, body).receive(
            body, sink, slots_of(span, extent), received.hooks(), Cancel()
        )
        pushing.join()
    assert sink.content()[start:] == data
    assert [part for part, _ in received.completed] == list(cut(span, extent))
