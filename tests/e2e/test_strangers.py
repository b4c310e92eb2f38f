"""Who is not vouched for gets nothing in, and is given nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver
from support.spaces import STRANGER, THERE, Ear, as_stranger, cable


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", 9 * MIB)


def test_another_user_of_the_machine_is_refused(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    stranger = as_stranger()
    put = processes.curl("-T", source, f"{receiver.url}/files/intruder", prefix=stranger)
    assert put.status == 403
    assert str(STRANGER) in put.body["detail"]
    assert put.body["type"] == "urn:tdx:problem:forbidden"
    for target in ("/v1/hello", "/uploads/" + "0" * 32):
        assert processes.curl(receiver.url + target, prefix=stranger).status == 403
    assert receiver.published == []
    assert receiver.partials == []
    assert not any("received_bytes" in name and value for name, value in receiver.scrape().items())


def test_a_partial_of_the_owner_cannot_be_touched_by_another_user(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    stranger = as_stranger()
    rest, url = random_file(source.with_name("rest"), MIB), f"{receiver.url}/files/half"
    part = ("-T", source, "-H", f"Content-Range: bytes 0-{9 * MIB - 1}/{10 * MIB}")
    assert processes.curl(*part, url).status == 202
    (partial,) = receiver.partials
    for arguments in (
        ("-I", url),
        ("-X", "DELETE", f"{receiver.url}/uploads/{partial.name}"),
        ("-T", rest, "-H", f"Content-Range: bytes {9 * MIB}-{10 * MIB - 1}/{10 * MIB}", url),
    ):
        assert processes.curl(*arguments, prefix=stranger).status == 403
    assert processes.curl("-I", url).fields["upload-offset"] == str(9 * MIB)


def test_a_push_by_another_user_exits_with_77_before_a_byte_of_the_file_leaves(
    processes: Processes, receiver: Receiver, source: Path, area: Path
) -> None:
    end = processes.push(source, receiver.address, prefix=as_stranger()).ends(77, "failed")
    assert end["error"]["code"] == "forbidden"
    assert end["sent_bytes"] == 0
    assert receiver.published == []
    assert receiver.partials == []


@pytest.mark.parametrize("size", [10, 9 * MIB])
def test_nothing_is_sent_to_a_listener_of_another_user(processes: Processes, area: Path, size: int) -> None:
    source = random_file(area / "source", size)
    ear = Ear(processes, "127.0.0.1", prefix=as_stranger())
    end = processes.push(source, ear.address).ends(77, "failed")
    assert end["error"]["code"] == "forbidden"
    assert ear.heard == b""


def test_root_is_a_stranger_to_another_users_receiver(processes: Processes, area: Path, source: Path) -> None:
    stranger = as_stranger()
    folder = area / "theirs"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    receiver = processes.receiver(folder / "inbox", folder / "state", program=[*stranger, *PROGRAM])
    assert processes.curl("-T", source, f"{receiver.url}/files/from-root").status == 403
    assert processes.push(source, receiver.address).ends(77, "failed")["sent_bytes"] == 0
    # Its own user gets in.
    assert processes.curl("-T", source, f"{receiver.url}/files/own", prefix=stranger).status == 201
    assert receiver.published == ["own"]


def test_plain_http_from_another_machine_is_refused(processes: Processes, area: Path, source: Path) -> None:
    between = cable(processes)
    receiver = processes.receiver(
        area / "inbox",
        area / "receiver-state",
        program=[*between.far, *PROGRAM],
        also=(f"{THERE}:8390",),
    )
    url = f"http://{THERE}:8390"
    put = processes.curl("-T", source, f"{url}/files/intruder", prefix=between.near)
    assert put.status == 403
    assert put.body["type"] == "urn:tdx:problem:forbidden"
    assert processes.curl(f"{url}/v1/hello", prefix=between.near).status == 403
    end = processes.push(source, f"{THERE}:8390", prefix=between.near).ends(77, "failed")
    assert end["sent_bytes"] == 0
    assert receiver.published == []
    assert receiver.partials == []
    # The same address is one of its own machine's: from there the user is known, and let in.
    processes.push(source, f"{THERE}:8390", prefix=between.far).ends(0, "done")
    assert receiver.published == [source.name]
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)


@pytest.mark.parametrize("size", [10, 9 * MIB])
def test_nothing_is_sent_in_plain_to_another_machine(processes: Processes, area: Path, size: int) -> None:
    source = random_file(area / "source", size)
    between = cable(processes)
    ear = Ear(processes, THERE, prefix=between.far)
    end = processes.push(source, ear.address, prefix=between.near).ends(77, "failed")
    assert end["error"]["code"] == "forbidden"
    assert ear.heard == b""
