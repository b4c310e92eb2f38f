from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.devices import make, of_unknown_kind
from tdx.errors import PairingFailed, TdxError, UsageError
from tdx.identity.device import Device, load_or_make
from tdx.identity.pairing import MAX_FRAME, Met, Pairing, Role, new_code, parse_code

CODE: Final = "k7mf-3qpt"
MESSAGES: Final = 8
LAST: Final = MESSAGES - 1


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Device, Device, Device]:
    folder = tmp_path_factory.mktemp("devices")
    joiner, listener, stranger = (load_or_make(folder / name, name) for name in ("j", "l", "s"))
    return joiner, listener, stranger


def start(role: Role, device: Device, code: str = CODE, **options: Any) -> Pairing:
    return Pairing(role, code, device, f"the {role}", 8390, time.time(), **options)


Change = Callable[[int, bytes], bytes]
"""What somebody in between makes of the message of that number, the joiner's hello being 0."""


def as_it_is(_number: int, message: bytes) -> bytes:
    return message


class Run:
    """One try from its first message to its end, as control drives it: who has nothing to say
    ends the connection."""

    def __init__(self, joiner: Pairing, listener: Pairing, change: Change = as_it_is) -> None:
        self.messages: list[bytes] = []
        self.errors: dict[Role, TdxError] = {}
        sides = {Role.JOINER: joiner, Role.LISTENER: listener}
        role, message = Role.JOINER, joiner.begin()
        while message:
            self.messages.append(message)
            message = change(len(self.messages) - 1, message)
            role = role.other
            try:
                message = sides[role].receive(message)
                if role is Role.LISTENER and listener.peer is not None:
                    message = listener.conclude()
            except TdxError as error:
                self.errors[role] = error
                break
        for each, side in sides.items():
            if side.peer is None and each not in self.errors:
                self.errors[each] = side.end()


def test_the_right_code_tells_each_the_others_certificate(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    run = Run(joiner, listener)
    assert run.errors == {}
    assert len(run.messages) == MESSAGES
    assert joiner.peer == Met(devices[1].key, devices[1].certificate, "the listener", 8390)
    assert listener.peer == Met(devices[0].key, devices[0].certificate, "the joiner", 8390)


def test_it_does_not_matter_how_the_bytes_arrive(devices: tuple[Device, ...]) -> None:
    sides = start(Role.LISTENER, devices[1]), start(Role.JOINER, devices[0])
    message, turn = sides[1].begin(), 0
    while message:
        answers = [sides[turn].receive(message[at : at + 1]) for at in range(len(message))]
        assert answers[:-1] == [b""] * (len(message) - 1)
        message, turn = answers[-1], 1 - turn
        if sides[0].peer is not None and turn == 1 and not message:
            message = sides[0].conclude()
    assert all(side.peer for side in sides)


def test_what_comes_after_the_end_undoes_it(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    Run(joiner, listener)
    for side in (joiner, listener):
        assert side.peer is not None
        with pytest.raises(PairingFailed):
            side.receive(b"\0\1\0")
        assert side.peer is None


def test_the_joiner_is_the_last_to_know(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    known: list[tuple[bool, bool]] = []

    def look(_number: int, message: bytes) -> bytes:
        known.append((joiner.peer is not None, listener.peer is not None))
        return message

    Run(joiner, listener, look)
    assert known == [(False, False)] * LAST + [(False, True)]
    assert joiner.peer is not None


@pytest.mark.parametrize("number", range(MESSAGES))
def test_a_flipped_bit_in_any_message_is_noticed(devices: tuple[Device, ...], number: int) -> None:
    whole = Run(start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1]))
    step = max(1, len(whole.messages[number]) // 40)
    tried = 0
    for at in [*range(0, len(whole.messages[number]) - 3, step), -3, -2, -1]:

        def flip(which: int, message: bytes, at: int = at) -> bytes:
            if which != number:
                return message
            position = at % len(message)
            return message[:position] + bytes([message[position] ^ 1]) + message[position + 1 :]

        joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
        run = Run(joiner, listener, flip)
        assert joiner.peer is None
        assert isinstance(run.errors[Role.JOINER], PairingFailed)
        if number != LAST:  # with it the listener says that it is done
            assert listener.peer is None
            assert isinstance(run.errors[Role.LISTENER], PairingFailed)
        tried += 1
    assert tried > 20


@settings(max_examples=60)
@given(number=st.integers(0, LAST), at=st.integers(0, MAX_FRAME), value=st.integers(1, 255))
def test_no_changed_byte_gets_through(number: int, at: int, value: int) -> None:
    def change(which: int, message: bytes) -> bytes:
        if which != number:
            return message
        position = at % len(message)
        return message[:position] + bytes([message[position] ^ value]) + message[position + 1 :]

    with tempfile.TemporaryDirectory() as folder:
        joiner = start(Role.JOINER, load_or_make(Path(folder, "j"), "j"))
        listener = start(Role.LISTENER, load_or_make(Path(folder, "l"), "l"))
        Run(joiner, listener, change)
        assert joiner.peer is None
        assert (listener.peer is not None) == (number == LAST)


@pytest.mark.parametrize("number", range(MESSAGES))
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0], ids=["nothing", "half", "all but one"])
def test_a_message_cut_short_is_no_message(devices: tuple[Device, ...], number: int, keep: float) -> None:
    def cut(which: int, message: bytes) -> bytes:
        return message if which != number else message[: int((len(message) - 1) * keep)]

    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    run = Run(joiner, listener, cut)
    assert joiner.peer is None
    assert isinstance(run.errors[Role.JOINER], PairingFailed)
    assert (listener.peer is None) == (number != LAST)


@pytest.mark.parametrize("number", range(MESSAGES))
def test_nothing_may_follow_a_message(devices: tuple[Device, ...], number: int) -> None:
    def append(which: int, message: bytes) -> bytes:
        return message if which != number else message + b"\0"

    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    Run(joiner, listener, append)
    assert joiner.peer is None
    assert (listener.peer is None) == (number != LAST)


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1, 65535])
def test_a_frame_of_an_impossible_size_is_refused_at_once(devices: tuple[Device, ...], size: int) -> None:
    listener = start(Role.LISTENER, devices[1])
    with pytest.raises(PairingFailed):
        listener.receive(size.to_bytes(2))
    with pytest.raises(PairingFailed):
        listener.receive(start(Role.JOINER, devices[0]).begin())


def test_another_code_fails_on_both_sides(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0], "k7mf-3qpv"), start(Role.LISTENER, devices[1])
    run = Run(joiner, listener)
    assert (joiner.peer, listener.peer) == (None, None)
    assert {role: type(error) for role, error in run.errors.items()} == dict.fromkeys(Role, PairingFailed)
    assert "not the same code" in run.errors[Role.LISTENER].message
    assert "the other end refused" in run.errors[Role.JOINER].message


def test_the_listener_proves_nothing_to_who_has_another_code(devices: tuple[Device, ...]) -> None:
    run = Run(start(Role.JOINER, devices[0], "0000-0000"), start(Role.LISTENER, devices[1]))
    assert len(run.messages) == 5  # the joiner's proof was the last


@pytest.mark.parametrize("until", range(2, MESSAGES))
def test_the_messages_of_an_earlier_pairing_are_worth_nothing(
    devices: tuple[Device, ...], until: int
) -> None:
    recorded = Run(start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])).messages
    listener = start(Role.LISTENER, devices[1])
    for message in recorded[:4:2]:
        listener.receive(message)
    with pytest.raises(PairingFailed):
        listener.receive(recorded[4])
    assert listener.peer is None
    # From some message on only: what came before was genuine.
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    Run(joiner, listener, lambda number, message: recorded[number] if number >= until else message)
    assert joiner.peer is None
    assert (listener.peer is None) == (until != LAST)


def test_what_it_says_itself_is_worth_nothing_to_it(devices: tuple[Device, ...]) -> None:
    joiner = start(Role.JOINER, devices[0])
    with pytest.raises(PairingFailed):
        joiner.receive(joiner.begin())
    # A whole other listener's messages in place of the joiner's answers.
    for device in devices[:2]:
        listener, mirror = start(Role.LISTENER, devices[1]), start(Role.LISTENER, device)
        with pytest.raises(PairingFailed):
            listener.receive(mirror.receive(start(Role.JOINER, devices[0]).begin()))


@pytest.mark.parametrize("number", range(2, MESSAGES))
def test_a_message_of_ones_own_is_no_answer(devices: tuple[Device, ...], number: int) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    sent: list[bytes] = []

    def reflect(which: int, message: bytes) -> bytes:
        sent.append(message)
        return message if which != number else sent[number - 1]

    Run(joiner, listener, reflect)
    assert joiner.peer is None
    assert (listener.peer is None) == (number != LAST)


def test_somebody_in_between_without_the_code_gets_nowhere(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    false_listener = start(Role.LISTENER, devices[2], "0000-0000")
    false_joiner = start(Role.JOINER, devices[2], "0000-0000")
    for run, honest in ((Run(joiner, false_listener), joiner), (Run(false_joiner, listener), listener)):
        assert honest.peer is None
        assert len(run.errors) == 2


@pytest.mark.parametrize("number", [2, 3])
def test_a_certificate_put_in_between_is_noticed(devices: tuple[Device, ...], number: int) -> None:
    def swap(which: int, message: bytes) -> bytes:
        return message if which != number else document(devices[2].certificate)

    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    run = Run(joiner, listener, swap)
    assert (joiner.peer, listener.peer) == (None, None)
    assert {type(error) for error in run.errors.values()} == {PairingFailed}


def test_who_has_the_code_but_not_the_key_gets_nowhere(devices: tuple[Device, ...]) -> None:
    # Shows the certificate of another device, and signs with its own key.
    thief = Device(devices[2].certificate, devices[0].certificate_file, devices[0].key_file)
    joiner, listener = start(Role.JOINER, thief), start(Role.LISTENER, devices[1])
    Run(joiner, listener)
    assert (joiner.peer, listener.peer) == (None, None)
    thief = Device(devices[2].certificate, devices[1].certificate_file, devices[1].key_file)
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, thief)
    Run(joiner, listener)
    assert (joiner.peer, listener.peer) == (None, None)


def test_a_device_does_not_pair_with_itself(devices: tuple[Device, ...]) -> None:
    run = Run(start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[0]))
    assert "with itself" in run.errors[Role.LISTENER].message


def document(certificate: bytes, changes: Mapping[str, object] | None = None) -> bytes:
    """Of a device, with changes; what is changed to None is left out."""
    values = {"certificate": base64.b64encode(certificate).decode(), "name": "x", "port": 8390}
    values |= changes or {}
    data = json.dumps({key: value for key, value in values.items() if value is not None}).encode()
    return len(data).to_bytes(2) + data


def listener_after_hello(devices: tuple[Device, ...], **options: Any) -> Pairing:
    listener = start(Role.LISTENER, devices[1], **options)
    listener.receive(start(Role.JOINER, devices[0]).begin())
    return listener


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"name": ""},
        {"name": 7},
        {"name": "x" * 256},
        {"port": None},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": "8390"},
        {"certificate": None},
        {"certificate": "&"},
        {"certificate": "AAAA"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_document_that_is_none_is_refused(devices: tuple[Device, ...], changes: dict[str, object]) -> None:
    with pytest.raises(PairingFailed, match="something else than it should"):
        listener_after_hello(devices).receive(document(devices[0].certificate, changes))


@pytest.mark.parametrize("data", [b"[]", b"null", b"7", b"{", b"\xff", b"[" * 8000])
def test_a_document_of_another_shape_is_refused(devices: tuple[Device, ...], data: bytes) -> None:
    with pytest.raises(PairingFailed):
        listener_after_hello(devices).receive(len(data).to_bytes(2) + data)


def test_a_certificate_that_could_vouch_for_others_is_refused(devices: tuple[Device, ...]) -> None:
    with pytest.raises(PairingFailed, match="CA:TRUE"):
        listener_after_hello(devices).receive(document(make("x", ca=True).der))


def test_a_kind_of_key_that_nobody_knows_is_refused(devices: tuple[Device, ...]) -> None:
    with pytest.raises(PairingFailed):
        listener_after_hello(devices).receive(document(of_unknown_kind(make("x").der)))


def anybody(_met: Met) -> None:
    pass


def test_who_is_not_accepted_has_proven_who_it_is_and_is_not_trusted(devices: tuple[Device, ...]) -> None:
    def refuse(met: Met) -> None:
        raise UsageError(f"no room for {met.name}")

    for role in Role:
        accept = {each: refuse if each is role else anybody for each in Role}
        joiner = start(Role.JOINER, devices[0], accept=accept[Role.JOINER])
        listener = start(Role.LISTENER, devices[1], accept=accept[Role.LISTENER])
        run = Run(joiner, listener)
        assert isinstance(run.errors[role], UsageError)
        assert isinstance(run.errors[role.other], PairingFailed)
        assert len(run.messages) == (5 if role is Role.LISTENER else 6)
        assert (joiner.peer, listener.peer) == (None, None)


def test_who_has_another_code_is_not_even_considered(devices: tuple[Device, ...]) -> None:
    asked: list[Met] = []
    joiner = start(Role.JOINER, devices[0], "0000-0000", accept=asked.append)
    Run(joiner, start(Role.LISTENER, devices[1], accept=asked.append))
    assert asked == []


def test_a_try_that_failed_stays_failed(devices: tuple[Device, ...]) -> None:
    joiner, listener = start(Role.JOINER, devices[0]), start(Role.LISTENER, devices[1])
    Run(joiner, listener, lambda number, message: message if number < LAST else b"\0\1\0")
    with pytest.raises(PairingFailed):
        joiner.receive(listener.conclude())
    assert joiner.peer is None


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_upon(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        listener = start(Role.LISTENER, load_or_make(Path(folder, "l"), "l"))
        try:
            assert listener.receive(noise) == b""
        except PairingFailed:
            pass
        else:
            assert len(noise) < 2 or len(noise) < 2 + int.from_bytes(noise[:2])
        assert listener.peer is None


def test_codes_are_short_and_differ() -> None:
    codes = {new_code() for _ in range(1000)}
    assert len(codes) == 1000
    for code in codes:
        assert len(code) == 9
        assert code[4] == "-"
        assert parse_code(code) == code.replace("-", "")


@pytest.mark.parametrize("typed", ["k7mf-3qp1", "K7MF3QP1", " k7mf 3qpl ", "k7mf-3qpI", "k-7-m-f-3qpL"])
def test_a_code_is_forgiving_about_how_it_is_typed(typed: str) -> None:
    assert parse_code(typed) == "k7mf3qp1"
    assert parse_code("Ooo0-0000") == "00000000"


@pytest.mark.parametrize("typed", ["", "k7mf-3qp", "k7mf-3qptt", "k7mf-3qpu", "k7mf-3qp!", "k7mf-3qp\n1\n1"])
def test_what_can_be_no_code_is_an_error_of_usage(typed: str) -> None:
    with pytest.raises(UsageError, match="not a code"):
        parse_code(typed)
