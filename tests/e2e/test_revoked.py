"""Who is let in may be let in no longer: a key that is removed, a rule that changes, while something runs."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Final

import pytest

from support.content import MIB, random_file
from support.devices import introduce
from support.lan import PORT, SETTINGS, Laptop, Nas, failed
from support.processes import Curl, Processes, Push, wait_until
from support.spaces import THERE, Cable, cable
from tdx.identity.tls import TlsIdentities

NO_LAPTOPS: Final = f'{SETTINGS}[[rule]]\nname = "no-laptops"\nnode = "laptop"\nallow = false\n'


@pytest.fixture
def between(processes: Processes) -> Cable:
    return cable(processes)


@pytest.fixture
def laptop(processes: Processes, between: Cable, area: Path) -> Laptop:
    return Laptop(processes, between, area)


@pytest.fixture
def nas(processes: Processes, between: Cable, area: Path, laptop: Laptop) -> Nas:
    """Paired with the laptop."""
    made = Nas(processes, between, area)
    introduce(made.state, laptop.state, f"{THERE}:{PORT}")
    return made


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", 24 * MIB)


@pytest.fixture
def slow_push(laptop: Laptop, nas: Nas, source: Path) -> Push:
    """A push that takes long, and of which something has arrived."""
    push = laptop.push(source, "nas", "--limit-rate", "2M")
    wait_until(lambda: nas.received or not push.running, "bytes arrive")
    assert push.running, push.log()
    return push


@pytest.fixture
def slow_body(laptop: Laptop, nas: Nas, source: Path) -> Curl:
    """One request whose body takes long, and of which something has arrived."""
    device = TlsIdentities(laptop.state).device
    own = ("-k", "--cert", device.certificate_file, "--key", device.key_file)
    put = laptop.curl(*own, "--limit-rate", "2M", "-T", source, f"https://{THERE}:{PORT}/files/whole")
    wait_until(lambda: nas.received_plainly or not put.running, "bytes arrive")
    assert put.running, put.log()
    return put


def remove_laptop(nas: Nas) -> None:
    removed = nas.run("trust", "remove", "laptop")
    assert removed.wait() == 0, removed.log()


def was_cut_off(nas: Nas, put: Curl, rule: str) -> bool:
    """Its one body did not come to an end, though it was let in when it began."""
    answer = (put.status, nas.receiver.published)
    assert rule in put.body["detail"]
    return answer == (403, []) and nas.received_plainly < 24 * MIB


def test_one_long_body_is_cut_off_when_its_key_is_removed(nas: Nas, slow_body: Curl) -> None:
    remove_laptop(nas)
    assert was_cut_off(nas, slow_body, "rule `identified`")


def test_one_long_body_is_cut_off_when_a_rule_comes_to_refuse_it(nas: Nas, slow_body: Curl) -> None:
    nas.configuration.write_text(NO_LAPTOPS)
    nas.receiver.process.signal(signal.SIGHUP)
    assert was_cut_off(nas, slow_body, "rule `no-laptops`")


def test_a_device_that_is_removed_while_it_sends_is_cut_off(nas: Nas, slow_push: Push) -> None:
    before = nas.refused
    remove_laptop(nas)
    line = failed(slow_push, 77)
    assert "rule `identified`" in line or "does not know this device's key" in line
    assert nas.receiver.published == []
    assert nas.refused > before
    assert any("refused P" in line and " from 10.213.0.1: " in line for line in nas.audit), nas.log


def test_a_rule_that_comes_to_refuse_a_device_cuts_its_transfer(nas: Nas, slow_push: Push) -> None:
    nas.configuration.write_text(NO_LAPTOPS)
    nas.receiver.process.signal(signal.SIGHUP)
    line = failed(slow_push, 77)
    assert "rule `no-laptops` refuses laptop" in line
    assert nas.receiver.published == []
    assert any("rule `no-laptops` refuses laptop" in line for line in nas.audit), nas.log


def test_a_change_that_is_broken_or_about_others_leaves_a_transfer_alone(
    nas: Nas, laptop: Laptop, source: Path
) -> None:
    push = laptop.push(source, "nas", "--limit-rate", "6M")
    for text, told in (
        ("[[rule]\n", "the configuration stays as it was: "),
        ('[[rule]]\nname = "x"\n', "the configuration stays as it was: "),
        (f'{SETTINGS}[[rule]]\nname = "no-desks"\nnode = "desk"\nallow = false\n', "as configured now"),
    ):
        before, times = nas.received, nas.log.count(told)
        wait_until(lambda: nas.received > before or not push.running, "bytes arrive")  # noqa: B023
        nas.configuration.write_text(text)
        nas.receiver.process.signal(signal.SIGHUP)
        wait_until(lambda: nas.log.count(told) > times, f"it says: {told}")  # noqa: B023
    assert push.running, push.log()
    end = push.ends(0, "done")
    assert end["sent_bytes"] == source.stat().st_size
    assert nas.has_received(source)
    assert nas.audit == []


def test_who_has_a_copy_of_the_state_is_the_device_until_it_is_removed(
    processes: Processes, between: Cable, nas: Nas, laptop: Laptop, source: Path, area: Path
) -> None:
    (area / "backup").mkdir()
    thief = Laptop(processes, between, area / "backup")
    shutil.copytree(laptop.state, thief.state)
    thief.push(source, "nas").ends(0, "done")
    assert nas.has_received(source)
    remove_laptop(nas)
    thief.fails(77, "push", random_file(area / "more.bin", 10), "nas")
    assert nas.has_received(source)
