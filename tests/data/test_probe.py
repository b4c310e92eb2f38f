from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.datakit import STALL, FileSink, MemorySink, identity_body, unix_pair
from tdx.data.body import ChunkedBody, IdentityBody
from tdx.data.port import Cancel
from tdx.data.probe import choose_receive
from tdx.data.send import choose_send
from tdx.errors import UsageError
from tdx.proto.chunked import ChunkedDecoder


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").write_bytes(b"x")
    opened = os.open(tmp_path / "source", os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.fixture
def body() -> Iterator[IdentityBody]:
    with unix_pair() as (near, _):
        yield identity_body(near, 10)


@pytest.fixture
def file_sink(tmp_path: Path) -> Iterator[FileSink]:
    sink = FileSink(tmp_path / "data")
    yield sink
    sink.close()


def test_a_sender_loads_no_receiving_pump() -> None:
    script = "import sys, tdx.control.push; print([name for name in sys.modules if name in sys.argv[1:]])"
    unneeded = ["tdx.data.receive", "tdx.data.splice", "tdx.proto.receiver"]
    done = subprocess.run(
        [sys.executable, "-c", script, *unneeded],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("wish", ["sendfile", "buffered"])
def test_a_forced_sending_pump_is_the_one_that_is_chosen(descriptor: int, wish: str) -> None:
    assert choose_send(wish, descriptor).name == wish


@pytest.mark.parametrize("wish", ["splice", "buffered"])
def test_a_forced_receiving_pump_is_the_one_that_is_chosen(
    file_sink: FileSink, body: IdentityBody, wish: str
) -> None:
    assert choose_receive(wish, file_sink, body).name == wish


@pytest.mark.parametrize("wish", [None, "auto"])
def test_left_to_itself_a_file_goes_by_sendfile_and_arrives_through_buffers(
    descriptor: int, file_sink: FileSink, body: IdentityBody, wish: str | None
) -> None:
    assert choose_send(wish, descriptor).name == "sendfile"
    assert choose_receive(wish, file_sink, body).name == "buffered"


def test_a_pipe_is_sent_through_buffers_and_sendfile_cannot_be_forced_on_it() -> None:
    outlet, inlet = os.pipe()
    try:
        assert choose_send(None, outlet).name == "buffered"
        with pytest.raises(UsageError, match="regular file"):
            choose_send("sendfile", outlet)
    finally:
        os.close(outlet)
        os.close(inlet)


def test_without_sendfile_files_are_sent_through_buffers(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sendfile")
    assert choose_send(None, descriptor).name == "buffered"
    with pytest.raises(UsageError, match="no sendfile"):
        choose_send("sendfile", descriptor)


def test_without_splice_it_cannot_be_forced(
    file_sink: FileSink, body: IdentityBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "splice")
    with pytest.raises(UsageError, match="no splice"):
        choose_receive("splice", file_sink, body)


def test_splice_cannot_be_forced_on_a_store_without_descriptors(body: IdentityBody) -> None:
    with pytest.raises(UsageError, match="descriptors"):
        choose_receive("splice", MemorySink(), body)


def test_a_chunked_body_goes_through_buffers_where_splice_is_forced(file_sink: FileSink) -> None:
    with unix_pair() as (near, _):
        body = ChunkedBody(near, b"", Cancel(), STALL, ChunkedDecoder())
        assert choose_receive("splice", file_sink, body).name == "buffered"


def test_names_nobody_has_are_refused(descriptor: int, file_sink: FileSink, body: IdentityBody) -> None:
    with pytest.raises(UsageError, match="splice"):
        choose_send("splice", descriptor)
    with pytest.raises(UsageError, match="sendfile"):
        choose_receive("sendfile", file_sink, body)
