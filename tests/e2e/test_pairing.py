"""Pairing with the real command, between two machines as far as the network goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import PROGRAM, Processes, Running, wait_until
from support.spaces import HERE, THERE, Cable, cable

TWO_HALVES = """
import sys
from pathlib import Path
from tdx.control.pairing import Invitation, Terms, answer
from tdx.errors import PairingFailed
from tdx.identity.tls import TlsIdentities

host, port, state, guess = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), "0000-0000"
tls = TlsIdentities(state)
with Invitation(tls, Terms("desk"), (host, 0)) as invitation:
    invitation.code = guess
    print(invitation.addresses[0], flush=True)
    for half in (lambda: invitation.wait(60), lambda: answer(tls, Terms("laptop"), (host, port), guess)):
        try:
            print("paired with", half().name, flush=True)
        except PairingFailed:
            print("failed", flush=True)
"""
"""Somebody in between who is listener to the joiner and joiner to the listener, and guesses the code."""

OWN_CERTIFICATES = """
import base64, json, socket, sys
from pathlib import Path
from tdx.identity.device import load_or_make

host, port, state = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
own = base64.b64encode(load_or_make(state, "x").certificate).decode()

def frame(sock):
    file = sock.makefile("rb")
    head = file.read(2)
    return head + file.read(int.from_bytes(head))

def swapped(data):
    document = json.dumps(json.loads(data[2:]) | {"certificate": own}).encode()
    return len(document).to_bytes(2) + document

with socket.create_server((host, 0)) as listener:
    print(f"{host}:{listener.getsockname()[1]}", flush=True)
    joiner, _ = listener.accept()
    with joiner, socket.create_connection((host, port)) as waiting:
        for number in range(4):
            for source, destination in ((joiner, waiting), (waiting, joiner)):
                data = frame(source)
                if not data:
                    print("failed", flush=True)
                    sys.exit()
                destination.sendall(swapped(data) if number == 1 else data)
print("paired", flush=True)
"""
"""Somebody in between who passes everything on, and puts own certificates in the place of both."""


class Machine:
    """One end of the cable."""

    def __init__(self, processes: Processes, prefix: list[str], state: Path) -> None:
        self.prefix = prefix
        self.state = state
        self._processes = processes

    def tdx(self, *arguments: str) -> Running:
        command = [*self.prefix, *PROGRAM, *arguments, "--state", str(self.state)]
        return self._processes.run(arguments[0], command)

    def trusted(self) -> list[dict[str, Any]]:
        listed = self.tdx("trust", "list", "--json")
        assert listed.wait() == 0, listed.log()
        return [json.loads(line) for line in listed.stdout.splitlines()]

    def key(self) -> str:
        shown = self.tdx("id", "--json")
        assert shown.wait() == 0, shown.log()
        return str(json.loads(shown.stdout)["key"])

    def wait_for_pairing(self, address: str) -> tuple[Running, str, str]:
        """`tdx pair` that waits; what it says to type elsewhere: HOST:PORT and a code."""
        waits = self.tdx("pair", "--listen", f"{address}:0", "--name", "desk")
        wait_until(lambda: "waiting" in waits.stdout or not waits.running, "it waits")
        assert waits.running, waits.log()
        *_, where, code = waits.stdout.splitlines()[0].split()
        return waits, where, code


@pytest.fixture
def between(processes: Processes) -> Cable:
    return cable(processes)


@pytest.fixture
def laptop(processes: Processes, between: Cable, area: Path) -> Machine:
    return Machine(processes, between.near, area / "laptop")


@pytest.fixture
def desk(processes: Processes, between: Cable, area: Path) -> Machine:
    return Machine(processes, between.far, area / "desk")


def test_two_machines_pair_and_know_where_to_find_each_other(laptop: Machine, desk: Machine) -> None:
    waits, where, code = desk.wait_for_pairing(THERE)
    pairs = laptop.tdx("pair", where, code, "--name", "laptop", "--port", "9000")
    assert (pairs.wait(), waits.wait()) == (0, 0), pairs.log() + waits.log()
    (mine,), (theirs,) = laptop.trusted(), desk.trusted()
    assert (mine["name"], mine["key"], mine["addresses"]) == ("desk", desk.key(), [f"{THERE}:8390"])
    assert (theirs["name"], theirs["key"], theirs["addresses"]) == ("laptop", laptop.key(), [f"{HERE}:9000"])


def test_every_address_that_is_offered_works(laptop: Machine, desk: Machine) -> None:
    waits = desk.tdx("pair", "--name", "desk")
    wait_until(lambda: "waiting" in waits.stdout or not waits.running, "it waits")
    offers = [line.split()[-2:] for line in waits.stdout.splitlines() if line.startswith("pair with: ")]
    assert offers[0][0].startswith(f"{THERE}:"), waits.log()
    pairs = laptop.tdx("pair", *offers[0])
    assert (pairs.wait(), waits.wait()) == (0, 0), pairs.log() + waits.log()


def test_a_wrong_code_burns_the_right_one(laptop: Machine, desk: Machine) -> None:
    waits, where, code = desk.wait_for_pairing(THERE)
    wrong = "0000-0000" if code != "0000-0000" else "1111-1111"
    assert laptop.tdx("pair", where, wrong).wait() == 77
    assert waits.wait() == 77
    again = laptop.tdx("pair", where, code)
    assert again.wait() == 69, again.log()
    assert (laptop.trusted(), desk.trusted()) == ([], [])


@pytest.mark.parametrize("script", [TWO_HALVES, OWN_CERTIFICATES], ids=["guesses", "own certificates"])
def test_somebody_in_between_with_own_keys_is_trusted_by_nobody(
    processes: Processes, between: Cable, laptop: Machine, desk: Machine, area: Path, script: str
) -> None:
    waits, where, code = desk.wait_for_pairing(THERE)
    port = where.rpartition(":")[2]
    command = [*between.far, sys.executable, "-c", script, THERE, port, str(area / "mallory")]
    mallory = processes.run("mallory", command)
    wait_until(lambda: mallory.stdout or not mallory.running, "mallory listens")
    # As if a name server, or the network, had led the laptop to the wrong address.
    pairs = laptop.tdx("pair", mallory.stdout.strip(), code)
    assert (pairs.wait(), waits.wait()) == (77, 77), pairs.log() + waits.log() + mallory.log()
    assert mallory.wait() == 0, mallory.log()
    assert set(mallory.stdout.splitlines()[1:]) == {"failed"}
    for end in (pairs, waits):
        (line,) = end.stderr.splitlines()
        assert line.startswith("tdx: pairing failed: ")
    assert "not the same code on both sides, or somebody in between" in waits.stderr
    assert (laptop.trusted(), desk.trusted()) == ([], [])
