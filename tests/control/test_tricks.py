"""Tricks with the folder, by who may change it while it is served: nothing is ever written outside of it, or
through what was put in the way."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver
from support.spaces import needs_root
from support.uploading import open_upload
from support.wire import chunked
from tdx.integrity import digest_of
from tdx.proto.bundle import END, MEDIA_TYPE

EXTENT = 4 << 20
CONTENT = pattern(2 * EXTENT)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Where nothing may be written."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o700)
    (folder / "precious").write_bytes(b"precious")
    return folder


def is_untouched(outside: Path) -> None:
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == {"precious": b"precious"}


def bundle_of(name: str) -> bytes:
    said = {"name": name, "size": 2, "digest": digest_of(b"it").hex(), "key": f"key-of-{name}"}
    raw = json.dumps(said).encode()
    return chunked([struct.pack(">I", len(raw)) + raw + b"it" + END])


def put_in_all_ways(receiver: RunningReceiver, name: str, conflict: str = "rename") -> list[int]:
    """The statuses of a PUT, of an upload in parts (or of what it breaks off with), and of a bundle."""
    fields = {"Tdx-Conflict": conflict}
    whole = receiver.request("PUT", f"/files/{name}", b"it", fields).status
    created = receiver.request(
        "POST", f"/files/{name}", b"", {**fields, "Upload-Complete": "?0", "Upload-Length": 2}
    )
    parts = created.status
    if parts == 201:
        given = {"Content-Type": "application/partial-upload", "Upload-Offset": 0, "Upload-Complete": "?1"}
        parts = receiver.request("PATCH", created.headers["location"], b"it", given).status
    given = {**fields, "Content-Type": MEDIA_TYPE, "Transfer-Encoding": "chunked"}
    answer = receiver.request("POST", "/files", bundle_of(name), given)
    together = answer.status
    if answer.status == 200:
        together = json.loads(answer.body)["files"][0].get("problem", {}).get("status", 200)
    return [whole, parts, together]


@pytest.mark.parametrize("taken", [".tdx", ".tdx/uploads", ".tdx/bundles"])
def test_a_link_in_the_place_of_the_stores_own_folder_is_not_followed(
    receiver: RunningReceiver, outside: Path, tmp_path: Path, taken: str
) -> None:
    assert put_in_all_ways(receiver, "before") == [201, 200, 200]
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT[:EXTENT], len(CONTENT))
    own = receiver.folder / taken
    own.rename(tmp_path / "moved")
    own.symlink_to(outside)
    put_in_all_ways(receiver, "during")
    upload.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT))
    upload.commit(receiver, CONTENT)
    is_untouched(outside)
    assert (receiver.folder / "before").read_bytes() == b"it"
    own.unlink()
    (tmp_path / "moved").rename(own)
    assert receiver.request("PUT", "/files/after", b"it").status == 201


def test_an_uploads_folder_that_becomes_a_link_is_not_followed(
    receiver: RunningReceiver, outside: Path, tmp_path: Path
) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT[:EXTENT], len(CONTENT))
    receiver.stop()
    (own,) = receiver.staged()
    own.rename(tmp_path / "moved")
    own.symlink_to(outside)
    receiver.start()
    assert upload.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT)).problem == "storage"
    is_untouched(outside)
    assert receiver.request("PUT", "/files/after", b"it").status == 201


@pytest.mark.parametrize("name", ["data", "journal", "meta"])
def test_a_file_of_an_upload_that_becomes_a_link_is_not_followed(
    receiver: RunningReceiver, outside: Path, name: str
) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT[:EXTENT], len(CONTENT))
    receiver.stop()
    (own,) = receiver.staged()
    (own / name).unlink()
    (own / name).symlink_to(outside / "precious")
    receiver.start()
    upload.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT))
    upload.commit(receiver, CONTENT)
    is_untouched(outside)
    assert receiver.request("PUT", "/files/after", b"it").status == 201


def test_a_file_with_another_name_elsewhere_is_replaced_and_not_written_through(
    receiver: RunningReceiver, outside: Path
) -> None:
    os.link(outside / "precious", receiver.folder / "f")
    for content in (b"one", b"two and more"):
        answer = receiver.request("PUT", "/files/f", content, {"Tdx-Conflict": "overwrite"})
        assert answer.document["path"] == "f"
        assert (receiver.folder / "f").read_bytes() == content
    is_untouched(outside)


def test_a_partial_with_another_name_elsewhere_is_published_and_replaced_as_any(
    receiver: RunningReceiver, outside: Path
) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT, len(CONTENT))
    (own,) = receiver.staged()
    os.link(own / "data", outside / "linked")
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.request("PUT", "/files/f", b"new", {"Tdx-Conflict": "overwrite"}).status == 201
    assert (outside / "linked").read_bytes() == CONTENT
    (outside / "linked").unlink()
    is_untouched(outside)


@pytest.mark.parametrize("impostor", ["a folder", "a link", "nothing"])
def test_a_folder_that_is_moved_while_it_serves_takes_its_files_along(
    receiver: RunningReceiver, outside: Path, tmp_path: Path, impostor: str
) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT[:EXTENT], len(CONTENT))
    receiver.folder.rename(tmp_path / "moved")
    if impostor == "a folder":
        receiver.folder.mkdir(mode=0o700)
    elif impostor == "a link":
        receiver.folder.symlink_to(outside)
    put_in_all_ways(receiver, "during")
    upload.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT))
    upload.commit(receiver, CONTENT)
    is_untouched(outside)
    assert impostor != "a folder" or list(receiver.folder.iterdir()) == []
    assert receiver.request("GET", "/v1/hello").status == 200


@pytest.mark.parametrize("kind", ["a fifo", "a socket", "a device", "a folder", "a dangling link"])
@pytest.mark.parametrize("conflict", ["rename", "overwrite", "skip", "error"])
def test_what_is_no_file_under_the_final_name_blocks_nobody_and_is_not_written_to(
    receiver: RunningReceiver, outside: Path, kind: str, conflict: str
) -> None:
    taken = receiver.folder / "f"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a fifo":
            os.mkfifo(taken)
        elif kind == "a socket":
            listener.bind(str(taken))
        elif kind == "a device":
            needs_root()
            os.mknod(taken, 0o600 | 0o020000, os.makedev(1, 3))
        elif kind == "a folder":
            taken.mkdir()
        else:
            taken.symlink_to(outside / "new")
        before = taken.lstat()
        statuses = put_in_all_ways(receiver, "f", conflict)
    is_untouched(outside)
    if conflict == "rename":
        assert statuses == [201, 200, 200]
    else:
        assert set(statuses) <= {200, 201, 400, 409}
    if conflict != "overwrite" or kind == "a folder":
        assert taken.lstat().st_ino == before.st_ino
    receiver.is_quiet()
    assert receiver.request("PUT", "/files/after", b"it").status == 201
