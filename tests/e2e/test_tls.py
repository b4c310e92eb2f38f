"""Two machines without a mesh: what paired devices send each other, and what others make of it."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from support.content import MIB, random_file
from support.devices import introduce, make
from support.lan import PORT, Laptop, Nas
from support.middle import forged, meddling, terminating
from support.processes import Processes, wait_until
from support.spaces import THERE, Cable, Ear, cable
from tdx.identity.tls import TlsIdentities

NAME: Final = "nas.example"
"""What name servers know the receiver by; the laptop calls it ``nas``."""

ELSEWHERE: Final = "10.213.0.3"
"""Another address on the cable, of somebody who is not the receiver."""

GIB: Final = 1 << 30
IN_RANDOM: Final = 30
"""Where the random number of a ClientHello or ServerHello is, in bytes from the beginning."""

SMALL: Final = 10
"""Bytes of a file that is sent in one request."""

EXPOSED: Final = "secret-plans.bin"
"""The name of the file that is pushed: not even this is anybody else's business."""

PINNED_KEY_DIFFERS: Final = 90
"""curl's exit code."""


@pytest.fixture
def between(processes: Processes) -> Cable:
    made = cable(processes)
    second = processes.run(
        "address", [*made.far, "ip", "address", "add", f"{ELSEWHERE}/24", "dev", "tdx-far"]
    )
    assert second.wait() == 0, second.log()
    return made


@pytest.fixture
def laptop(processes: Processes, between: Cable, area: Path) -> Laptop:
    return Laptop(processes, between, area)


@pytest.fixture
def nas(processes: Processes, between: Cable, area: Path) -> Nas:
    return Nas(processes, between, area)


@pytest.fixture
def paired(nas: Nas, laptop: Laptop) -> None:
    """The two know each other already; the laptop knows the receiver's name and asks for its address."""
    introduce(nas.state, laptop.state, f"{NAME}:{PORT}")
    laptop.believes(NAME, THERE)


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / EXPOSED, 24 * MIB)


@pytest.fixture
def on_disk(processes: Processes, area: Path) -> Iterator[Path]:
    """A folder for what is too large for memory; emptied at once."""
    folder = processes.logs.parent / "large"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def incompressible(path: Path, size: int) -> Path:
    """A file that nothing on the way could shorten, made faster than a system gives random bytes."""
    stream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
    zeros = bytes(4 * MIB)
    with path.open("wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(stream.update(zeros[: size - start]))
    return path


# --- what works ----------------------------------------------------------------


@pytest.mark.timeout(900)
def test_two_machines_pair_with_a_code_and_3_gib_arrive_whole(
    processes: Processes, between: Cable, laptop: Laptop, on_disk: Path
) -> None:
    nas = Nas(processes, between, on_disk)
    waits = nas.run("pair", "--listen", f"{THERE}:0", "--name", "nas")
    wait_until(lambda: "waiting" in waits.stdout or not waits.running, "it waits")
    *_, where, code = waits.stdout.splitlines()[0].split()
    pairs = laptop.run("pair", where, code, "--name", "laptop")
    assert (pairs.wait(), waits.wait()) == (0, 0), pairs.log() + waits.log()
    source = incompressible(on_disk / "disk.img", 3 * GIB)
    push = laptop.push(source, "nas")
    assert push.wait(600) == 0, push.log()
    assert (push.last["event"], push.last["sent_bytes"]) == ("done", 3 * GIB)
    assert nas.has_received(source)
    assert nas.refused == 0


def test_of_a_push_that_was_killed_only_the_rest_is_sent(
    nas: Nas, laptop: Laptop, paired: None, area: Path
) -> None:
    source = random_file(area / EXPOSED, 96 * MIB)
    push = laptop.push(source, "nas", "--limit-rate", "64M")
    wait_until(lambda: nas.received > 40 * MIB, "much of it has arrived")
    push.kill()
    wait_until(lambda: nas.count("tdx_connections_active") == 0, "the receiver has noticed")
    assert nas.receiver.published == []
    end = laptop.push(source, "nas", "--resume").ends(0, "done")
    assert end["resumed_bytes"] >= 16 * MIB
    assert end["sent_bytes"] + end["resumed_bytes"] == source.stat().st_size
    assert nas.has_received(source)


@pytest.mark.parametrize("size", [SMALL, 5 * MIB])
def test_curl_with_the_key_of_a_device_pushes_to_the_same_port(
    nas: Nas, laptop: Laptop, paired: None, area: Path, size: int
) -> None:
    source = random_file(area / EXPOSED, size)
    device = TlsIdentities(laptop.state).device
    own = ("--cert", device.certificate_file, "--key", device.key_file)
    url, key = f"https://{NAME}:{PORT}/files/{EXPOSED}", TlsIdentities(nas.state).device.key
    pins = [base64.b64encode(bytes.fromhex(each)).decode() for each in (device.key, key)]
    # The certificate is nobody's but its own: it is the key that curl has to look at.
    wrong, right = (("-k", "--pinnedpubkey", f"sha256//{pin}", "-T", source, url) for pin in pins)
    assert laptop.curl(*own, *wrong).wait() == PINNED_KEY_DIFFERS
    assert nas.has_nothing()
    nobody = laptop.curl(*right)
    assert nobody.wait() != 0, nobody.log()
    assert nas.has_nothing()
    assert laptop.curl(*own, *right).status == 201
    assert nas.has_received(source)


def test_what_is_logged_has_no_code_no_key_and_no_content(nas: Nas, laptop: Laptop, area: Path) -> None:
    waits = nas.run("pair", "--listen", f"{THERE}:0", "--name", "nas")
    wait_until(lambda: "waiting" in waits.stdout or not waits.running, "it waits")
    *_, where, code = waits.stdout.splitlines()[0].split()
    pairs = laptop.run("pair", where, code)
    assert (pairs.wait(), waits.wait()) == (0, 0), pairs.log() + waits.log()
    source = area / EXPOSED
    source.write_text("what nobody else may know\n" * 1000)
    push = laptop.run("push", source, "nas")
    assert push.wait() == 0, push.log()
    refused = laptop.curl("-T", source, f"http://{THERE}:{PORT}/files/{EXPOSED}")
    assert refused.status == 403
    keys = [TlsIdentities(state).device.key_file.read_text() for state in (nas.state, laptop.state)]
    logged = nas.log + waits.stderr + pairs.stderr + push.stderr
    assert EXPOSED in logged
    for secret in (
        code,
        code.replace("-", ""),
        "nobody else may know",
        *(key.splitlines()[1] for key in keys),
    ):
        assert secret not in logged


# --- somebody in between -------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, 5 * MIB])
def test_somebody_in_between_with_keys_of_their_own_reads_nothing(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, paired: None, area: Path, size: int
) -> None:
    source = random_file(area / EXPOSED, size)
    impostor = forged(TlsIdentities(nas.state).device.certificate)
    middle = terminating(
        processes, f"{ELSEWHERE}:{PORT}", f"{THERE}:{PORT}", between.far, impostor, area / "impostor"
    )
    laptop.believes(NAME, ELSEWHERE)
    # Who believes everybody is read.
    laptop.curl("-k", "-T", source, f"https://{NAME}:{PORT}/files/{EXPOSED}")
    wait_until(lambda: EXPOSED.encode() in middle.read, "the one in between reads a request")
    read, told = middle.read, middle.told
    line = laptop.fails(77, "push", source, "nas")
    assert f"nas ({ELSEWHERE} port {PORT})" in line
    assert "paired" in line
    wait_until(lambda: len(middle.told) > len(told), "the one in between tells how it went")
    assert [each.partition(":")[0] for each in middle.told[len(told) :]] == ["turned away"]
    assert middle.read == read
    assert nas.has_nothing()


@pytest.mark.parametrize(
    ("direction", "after"),
    [
        ("there", IN_RANDOM),
        ("there", 1500),
        ("there", 3 * MIB),
        ("there", 23 * MIB),
        ("back", IN_RANDOM),
        ("back", 1500),
    ],
)
def test_a_bit_that_is_flipped_on_the_way_is_never_published(
    processes: Processes,
    between: Cable,
    nas: Nas,
    laptop: Laptop,
    paired: None,
    source: Path,
    direction: str,
    after: int,
) -> None:
    middle = meddling(processes, f"{ELSEWHERE}:{PORT}", f"{THERE}:{PORT}", between.far, direction, after, 1)
    laptop.believes(NAME, ELSEWHERE)
    # On one connection, so that it is the one that is meddled with.
    push = laptop.push(source, "nas", "--streams", "1")
    push.wait()
    assert middle.told == ["flipped"]
    if after == IN_RANDOM:
        assert push.code == 76, push.log()
        assert len(push.stderr.splitlines()) == 1
        assert nas.has_nothing()
        push = laptop.push(source, "nas")
    assert push.ends(0, "done")
    assert nas.has_received(source)
    # The file itself goes beneath TLS.
    assert nas.count("tdx_digest_failures_total") == (1 if after >= MIB else 0)


@pytest.mark.parametrize("after", [1000, 3 * MIB])
def test_where_every_connection_is_meddled_with_nothing_is_published(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, paired: None, source: Path, after: int
) -> None:
    meddling(processes, f"{ELSEWHERE}:{PORT}", f"{THERE}:{PORT}", between.far, "there", after, 1000)
    laptop.believes(NAME, ELSEWHERE)
    push = laptop.run("push", source, "nas", "--retries", "2")
    assert push.wait() in (75, 76), push.log()
    assert len(push.stderr.splitlines()) == 1
    assert nas.receiver.published == []


# --- names that lie ------------------------------------------------------------


def test_a_name_that_leads_to_a_listener_who_says_nothing_tells_it_nothing(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, paired: None, area: Path
) -> None:
    source = random_file(area / EXPOSED, 5 * MIB)
    ear = Ear(processes, ELSEWHERE, prefix=between.far)
    laptop.believes(NAME, ELSEWHERE)
    port = ear.address.rpartition(":")[2]
    line = laptop.fails(75, "push", source, f"nas:{port}", "--retries", "0")
    assert "does not finish its TLS handshake" in line
    # It has heard the offer to speak TLS, as anybody may, and waited for more.
    assert ear.heard[:1] == b"\x16"
    assert len(ear.heard) < 1500
    for said in (EXPOSED.encode(), NAME.encode(), b"nas", b"HTTP", source.read_bytes()[:8]):
        assert said not in ear.heard
    assert nas.has_nothing()


@pytest.mark.parametrize("size", [SMALL, 5 * MIB])
def test_a_name_that_leads_to_a_stranger_sends_no_byte_of_the_file(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, paired: None, area: Path, size: int
) -> None:
    source, stranger = random_file(area / EXPOSED, size), make("nas")
    middle = terminating(
        processes, f"{ELSEWHERE}:{PORT}", f"{THERE}:{PORT}", between.far, stranger, area / "stranger"
    )
    laptop.believes(NAME, ELSEWHERE)
    assert "paired" in laptop.fails(77, "push", source, "nas")
    wait_until(lambda: middle.told, "the stranger tells how it went")
    assert [each.partition(":")[0] for each in middle.told] == ["turned away"]
    assert middle.read == b""
    assert nas.has_nothing()


@pytest.mark.parametrize("size", [SMALL, 5 * MIB])
@pytest.mark.parametrize("known", [True, False])
def test_a_name_that_was_never_paired_sends_no_byte_to_an_address_that_nobody_vouches_for(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, area: Path, size: int, known: bool
) -> None:
    source = random_file(area / EXPOSED, size)
    if known:  # another machine is paired: that says nothing of this one
        introduce(nas.state, laptop.state, f"{NAME}:{PORT}")
    ear = Ear(processes, ELSEWHERE, prefix=between.far)
    port = ear.address.rpartition(":")[2]
    laptop.believes("desk.example", ELSEWHERE)
    for peer in (f"desk.example:{port}", ear.address):
        line = laptop.fails(77, "push", source, peer)
        assert f"nothing vouches for who listens at {ELSEWHERE} port {port}" in line
        assert "tdx pair" in line
    assert ear.heard == b""


# --- who is not let in ---------------------------------------------------------


def test_plain_http_to_an_address_that_needs_tls_is_refused_by_rule(
    nas: Nas, laptop: Laptop, paired: None, source: Path
) -> None:
    put = laptop.curl("-T", source, f"http://{THERE}:{PORT}/files/{EXPOSED}")
    assert put.status == 403
    assert put.body["type"] == "urn:tdx:problem:forbidden"
    assert "rule `identified`" in put.body["detail"]
    assert "tdx pair" in put.body["detail"]
    (line,) = nas.audit
    assert f"refused PUT /files/{EXPOSED} from 10.213.0.1: rule `identified`" in line
    assert nas.refused == 1
    assert nas.has_nothing()


def test_a_sender_that_is_not_paired_sends_nothing_in_plain(nas: Nas, laptop: Laptop, source: Path) -> None:
    line = laptop.fails(77, "push", source, f"{THERE}:{PORT}")
    assert f"nothing vouches for who listens at {THERE} port {PORT}" in line
    assert nas.has_nothing()


@pytest.mark.parametrize("size", [SMALL, 5 * MIB])
def test_a_device_that_only_the_sender_has_paired_is_refused(
    nas: Nas, laptop: Laptop, paired: None, area: Path, size: int
) -> None:
    source = random_file(area / EXPOSED, size)
    removed = nas.run("trust", "remove", "laptop")
    assert removed.wait() == 0, removed.log()
    line = laptop.fails(77, "push", source, "nas")
    assert "does not know this device's key" in line
    assert "tdx pair" in line
    (line,) = nas.audit
    assert "refused a TLS connection from 10.213.0.1" in line
    assert nas.refused == 1
    assert nas.has_nothing()
