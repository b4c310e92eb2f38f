"""tus-js-client, in its modes for drafts of Resumable Uploads for HTTP, uploads to a receiver and resumes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.clients import Tus, need_tus
from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver
from support.proxy import Fault, always, mistreating

SIZE = 24 * MIB + 12345

PROTOCOLS = ["ietf-draft-03", "ietf-draft-05"]
CHUNKS = [None, 5 * MIB + 1]
"""Sizes of the parts that it sends; None: all that is left."""

pytestmark = [pytest.mark.parametrize("protocol", PROTOCOLS), pytest.mark.usefixtures("tus")]


@pytest.fixture(scope="module")
def tus() -> None:
    need_tus()


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", SIZE)


def options(endpoint: str, protocol: str, chunk: int | None = None, **more: object) -> dict[str, object]:
    parts = {} if chunk is None else {"chunkSize": chunk}
    return {"endpoint": f"{endpoint}/files/name.bin", "protocol": protocol, **parts, **more}


def arrived(receiver: Receiver, source: Path) -> bool:
    """Whether just this file has been published, and nothing is left over."""
    assert receiver.published == ["name.bin"]
    assert receiver.partials == []
    return sha256_of(receiver.folder / "name.bin") == sha256_of(source)


def abort(upload: Tus, receiver: Receiver) -> None:
    """Abort it once some of it is there."""
    receiver.await_staged(3 * MIB)
    upload.signal(signal.SIGTERM)
    upload.ends("aborted")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("early", [False, True])
def test_a_file_arrives(
    processes: Processes, receiver: Receiver, source: Path, protocol: str, chunk: int | None, early: bool
) -> None:
    told = options(receiver.url, protocol, chunk, file=str(source), uploadDataDuringCreation=early)
    upload = Tus(processes, told)
    upload.ends("success")
    assert arrived(receiver, source)
    wanted = 1 if chunk is None else -(-SIZE // chunk)
    assert len(upload.told("chunk")) == wanted
    assert len(upload.told("answer")) == wanted + (not early)


def test_an_empty_file_arrives(processes: Processes, receiver: Receiver, area: Path, protocol: str) -> None:
    empty = random_file(area / "empty", 0)
    Tus(processes, options(receiver.url, protocol, file=str(empty))).ends("success")
    assert arrived(receiver, empty)


def test_a_stream_of_unknown_length_arrives(
    processes: Processes, receiver: Receiver, source: Path, protocol: str
) -> None:
    told = options(receiver.url, protocol, 5 * MIB, uploadLengthDeferred=True)
    with source.open("rb") as content:
        Tus(processes, told, stdin=content).ends("success")
    assert arrived(receiver, source)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_was_aborted_is_found_again_by_another_process_and_goes_on(
    processes: Processes, receiver: Receiver, source: Path, protocol: str, chunk: int | None
) -> None:
    stalls = True
    with mistreating(receiver.port, lambda _: Fault("stall", 4 * MIB) if stalls else None) as proxy:
        told = options(
            f"http://127.0.0.1:{proxy.peer.port}",
            protocol,
            chunk,
            file=str(source),
            store=str(source.with_name("urls.json")),
        )
        first = Tus(processes, told)
        abort(first, receiver)
        assert receiver.published == []
        stalls, before = False, proxy.forwarded
        second = Tus(processes, {**told, "resume": True})
        second.ends("success")
        assert second.told("previous") == [{"event": "previous", "urls": [first.url]}]
        assert second.told("answer")[0] == {"event": "answer", "method": "HEAD", "status": 204}
        assert proxy.forwarded - before < SIZE - 2 * MIB
    assert arrived(receiver, source)


def test_what_was_killed_goes_on_from_its_url(
    processes: Processes, receiver: Receiver, source: Path, protocol: str
) -> None:
    with mistreating(receiver.port, always(Fault("stall", 4 * MIB))) as proxy:
        killed = Tus(processes, options(f"http://127.0.0.1:{proxy.peer.port}", protocol, file=str(source)))
        receiver.await_staged(3 * MIB)
        killed.kill()
        url = killed.url.replace(str(proxy.peer.port), str(receiver.port))
        rest = Tus(processes, options(receiver.url, protocol, file=str(source), uploadUrl=url))
        rest.ends("success")
    assert [answer["method"] for answer in rest.told("answer")] == ["HEAD", "PATCH"]
    assert arrived(receiver, source)


@pytest.mark.parametrize("kind", ["cut", "reset", "half-close"])
def test_it_retries_by_itself_on_a_network_that_cuts_every_connection(
    processes: Processes, receiver: Receiver, source: Path, protocol: str, kind: str
) -> None:
    with mistreating(receiver.port, always(Fault(kind, 7 * MIB))) as proxy:
        told = options(f"http://127.0.0.1:{proxy.peer.port}", protocol, file=str(source), retryDelays=[1] * 9)
        Tus(processes, told).ends("success")
        assert proxy.accepted >= 4
    assert arrived(receiver, source)


def test_what_was_terminated_leaves_nothing(
    processes: Processes, receiver: Receiver, source: Path, protocol: str
) -> None:
    with mistreating(receiver.port, always(Fault("stall", 4 * MIB))) as proxy:
        told = options(f"http://127.0.0.1:{proxy.peer.port}", protocol, file=str(source))
        abort(Tus(processes, {**told, "terminate": True}), receiver)
    assert (receiver.published, receiver.partials) == ([], [])
