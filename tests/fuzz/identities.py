"""What others say of who they are: pairing, tailscaled, and wg."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.target import Draws, Target, cut_up, folder, is_for_people
from tdx.errors import IdentityUnavailable, PairingFailed
from tdx.identity.allowed_ips import AllowedIps, parse_allowed_ips, parse_handshakes
from tdx.identity.device import Device, key_of, load_or_make, subject_of, unfit, verify
from tdx.identity.localapi import LocalApi, Node, Status, node_of, status_of
from tdx.identity.pairing import LONGEST_SAID_NAME, MAX_FRAME, Pairing, Role, _frame, _parse_document
from tdx.identity.rows import pack

CODE = "k7mf-3qpt"

# --- pairing ------------------------------------------------------------------------------


@functools.cache
def _device(name: str) -> Device:
    return load_or_make(folder() / name, name)


def _sides() -> dict[Role, Pairing]:
    return {
        role: Pairing(role, CODE, _device(role.value), role.value, 8390, time.time())
        for role in (Role.JOINER, Role.LISTENER)
    }


def pairing(data: bytes) -> None:
    """A pairing in which one message is another than it was, or one side has another code, ends without
    trust on the side that gets it; in whatever pieces messages come."""
    draws = Draws(data)
    way, changed, at = draws.number(), draws.below(8), draws.number(2)
    flip, more = draws.number(), draws.rest()
    sides = _sides()
    sender, message, turn = Role.JOINER, sides[Role.JOINER].begin(), 0
    tampered = False
    while message and turn < 8:
        taker = sides[sender.other]
        said = message
        if turn == changed:
            other = bytearray(message)
            other[at % len(other)] ^= flip
            said = bytes(other) + more
            tampered = said != message
        try:
            message = b"".join(taker.receive(piece) for piece in cut_up(said, way))
        except PairingFailed as error:
            is_for_people(error)
            assert tampered
            assert taker.peer is None
            try:
                taker.receive(b"")
            except PairingFailed:
                return
            raise AssertionError("it goes on after a failure") from error
        sender = sender.other
        if not message and sender is Role.LISTENER and sides[Role.LISTENER].peer is not None:
            message = sides[Role.LISTENER].conclude()
        turn += 1
    if tampered:
        assert sides[Role.JOINER].peer is None or sides[Role.LISTENER].peer is None
    else:
        for role, side in sides.items():
            assert side.peer is not None
            assert side.peer.key == _device(role.other.value).key


def pairing_frames(data: bytes) -> None:
    """Whatever a stranger sends first, in whatever pieces: it is waited for, or the try is burnt; nobody is
    trusted, and no more than a frame is kept."""
    draws = Draws(data)
    role = (Role.JOINER, Role.LISTENER)[draws.below(2)]
    way, sent = draws.number(), draws.rest()
    side = Pairing(role, CODE, _device(role.value), "a", 1, time.time())
    try:
        for piece in cut_up(sent, way):
            side.receive(piece)
            assert len(side._buffer) <= MAX_FRAME + 2
    except PairingFailed:
        pass
    assert side.peer is None


def pairing_document(data: bytes) -> None:
    """What a device says of itself is a certificate with a key, a name and a port, or the pairing fails."""
    try:
        met = _parse_document(data)
    except PairingFailed:
        return
    assert 0 < len(met.name) <= LONGEST_SAID_NAME
    assert 0 < met.port < 65536
    assert key_of(met.certificate) == met.key
    if unfit(met.certificate, time.time()) is None:
        subject_of(met.certificate)
    assert not verify(met.certificate, b"signature", b"data")


def _documents() -> list[bytes]:
    certificate = base64.b64encode(_device("joiner").certificate).decode()
    return [json.dumps({"certificate": certificate, "name": "laptop", "port": 8390}).encode()]


def _frames() -> list[bytes]:
    sides = _sides()
    hello = sides[Role.JOINER].begin()
    answer = sides[Role.LISTENER].receive(hello)
    document = sides[Role.JOINER].receive(answer)
    return [b"\1\1" + hello, b"\1\2" + hello + document, b"\0\1" + answer, b"\1\0" + _frame(bytes(3000))]


# --- tailscaled -----------------------------------------------------------------------------

API = LocalApi(Path("/run/tailscaled.sock"))


def _is_node(node: Node) -> None:
    assert node.stable_id
    assert node.stable_id.isascii()
    assert len(node.stable_id) <= 128
    assert " " not in node.stable_id
    assert node.name
    assert all(text.isprintable() for text in (node.name, node.login, *node.tags, *node.capabilities))
    assert all(pack(address) is not None for address in node.addresses)
    assert not (node.tags and node.login)


def whois_answer(data: bytes) -> None:
    """tailscaled's word on a node is taken whole, or not at all."""
    try:
        _is_node(API._read(data, node_of))
    except IdentityUnavailable as error:
        is_for_people(error)


def status_answer(data: bytes) -> None:
    """tailscaled's word on the tailnet is taken whole, or not at all."""
    try:
        status: Status = API._read(data, status_of)
    except IdentityUnavailable as error:
        is_for_people(error)
        return
    assert (status.own is not None) == (status.state == "Running")
    for node in [peer.node for peer in status.peers] + ([status.own] if status.own else []):
        _is_node(node)
    for peer in status.peers:
        assert peer.names
        assert all(name and name == name.lower() for name in peer.names)


def _whois() -> list[bytes]:
    node = {
        "StableID": "nKabcd1CNTRL",
        "Name": "laptop.tail1234.ts.net.",
        "ComputedName": "laptop",
        "User": 5,
        "Addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"],
    }
    profile = {"ID": 5, "LoginName": "alice@example.com"}
    answers = [
        {"Node": node, "UserProfile": profile, "CapMap": {"example.com/cap/tdx": None}},
        {"Node": {**node, "Tags": ["tag:server"]}, "UserProfile": {"ID": 5}, "CapMap": None},
    ]
    return [json.dumps(each).encode() for each in answers]


def _status() -> list[bytes]:
    own = {
        "ID": "n1",
        "DNSName": "laptop.tail1234.ts.net.",
        "UserID": 5,
        "TailscaleIPs": ["100.64.0.1"],
        "Online": True,
    }
    peer = {**own, "ID": "n2", "DNSName": "nas.other.ts.net.", "Active": True, "CurAddr": "1.2.3.4:5"}
    running = {
        "BackendState": "Running",
        "TUN": True,
        "Self": own,
        "CurrentTailnet": {"MagicDNSSuffix": "tail1234.ts.net"},
        "User": {"5": {"LoginName": "alice@example.com"}},
        "Peer": {"nodekey:1": peer, "nodekey:2": {**peer, "ShareeNode": True}},
    }
    stopped = {"BackendState": "Stopped", "TUN": False}
    return [json.dumps(each).encode() for each in (running, stopped)]


# --- wg ---------------------------------------------------------------------------------------


def wg_output(data: bytes) -> None:
    """What wg prints is keys with what each has, or a ValueError; and an address is the longest match's."""
    # An allowed IP has no zone, though the library takes one.
    text = data.decode("utf-8", "replace").replace("%", "")
    readers: tuple[Callable[[str], object], ...] = (parse_handshakes, parse_allowed_ips)
    for reader in readers:
        try:
            reader(text)
        except ValueError:
            continue
    try:
        found = parse_allowed_ips(text)
    except ValueError:
        return
    table = AllowedIps((key, network) for key, networks in found.items() for network in networks)
    for claim in table.claims():
        first = claim.network[0]
        best = table.find(first)
        assert best is not None
        assert best.network.prefixlen >= claim.network.prefixlen
        assert first in best.network
        assert best.keys <= set(found)
    assert table.find(ipaddress.ip_address("192.0.2.1")) is None or found


def _printed() -> list[bytes]:
    one, two = base64.b64encode(bytes(32)), base64.b64encode(b"k" * 32)
    return [
        one + b"\t10.9.0.2/32 10.9.1.0/24\n" + two + b"\t(none)\n",
        one + b"\tfd00::/64 0.0.0.0/0\n",
        one + b"\t1732870000\n" + two + b"\t0\n",
    ]


TOKENS = rb'null true -1 999999999999999999999999 NaN \u001b \ud800 "" [] {} /33 / [['.split()

TARGETS = {
    "pairing": Target(pairing, lambda: [bytes([way, turn, 0, 9, 1]) for way in (0, 1) for turn in range(9)]),
    "pairing_frames": Target(pairing_frames, _frames, [b"tdx pairing 1", b"\0\1", b"\x20\0", b"\x20\1"]),
    "pairing_document": Target(pairing_document, _documents, TOKENS),
    "whois_answer": Target(whois_answer, _whois, TOKENS),
    "status_answer": Target(status_answer, _status, TOKENS),
    "wg_output": Target(
        wg_output, _printed, [b"\t", b"\n", b" ", b"(none)", b"/0", b"::/0", b"\x85", b"=", b"_"]
    ),
}
