"""What a receiver counts is exact, whatever happens on the way: real processes, killed and cut off."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver, wait_until
from support.proxy import CuttingProxy, Fault

SIZE = 96 * MIB + 12345


class Ledger:
    """What a receiver has counted in all its lives."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._before: dict[str, float] = {}

    def total(self, series: str) -> int:
        now = self._receiver.scrape() if self._receiver.process.running else {}
        return sum(
            int(value)
            for samples in (self._before, now)
            for name, value in samples.items()
            if name.partition("{")[0] == series
        )

    @property
    def received(self) -> int:
        return self.total("tdx_received_bytes_total")

    def has_received(self, n: int) -> bool:
        return self.received > n

    @property
    def kept(self) -> int:
        return self.received - self.total("tdx_discarded_bytes_total")

    def kill_receiver(self) -> None:
        for name, value in self._receiver.scrape().items():
            self._before[name] = self._before.get(name, 0) + value
        self._receiver.kill()


def test_each_byte_of_a_file_that_was_killed_cut_and_resumed_is_kept_once(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source, ledger = random_file(area / "source", SIZE), Ledger(receiver)
    faults: list[Fault] = []
    with CuttingProxy(receiver.port, lambda _: faults.pop() if faults else None) as proxy:
        to = str(proxy.peer)
        for run in range(3):
            begun = ledger.received
            push = processes.push(source, to, "--resume", "--limit-rate", "32M")
            wait_until(partial(ledger.has_received, begun + 6 * MIB), "content arrives")
            push.kill()
            receiver.await_silence()
            assert ledger.received == proxy.content
            assert ledger.kept == receiver.held()
            if run == 1:
                ledger.kill_receiver()
                receiver.restart()
        faults += [Fault("cut", 3 * MIB + 1), Fault("cut", 5 * MIB + 77), Fault("cut", 9)]
        push = processes.push(source, to, "--resume", "--limit-rate", "32M")
        wait_until(lambda: not faults, "each connection but the last was cut")
        assert push.terminate() == 75
        receiver.await_silence()
        assert ledger.kept == receiver.held()
        assert push.last["retries"] > 0
        before, held = proxy.content, receiver.held()
        done = processes.push(source, to, "--resume").ends(0, "done")
        receiver.await_silence()
        assert (done["resumed_bytes"], done["sent_bytes"]) == (held, SIZE - held)
        assert proxy.content - before == done["sent_bytes"]
        assert ledger.received == proxy.content > SIZE
    assert ledger.kept == ledger.total("tdx_published_bytes_total") == SIZE
    assert sha256_of(receiver.folder / "source") == sha256_of(source)


def test_what_a_sender_that_is_told_to_stop_leaves_is_counted_as_kept(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source, ledger = random_file(area / "source", SIZE), Ledger(receiver)
    push = processes.push(source, receiver.address, "--limit-rate", "24M")
    wait_until(partial(ledger.has_received, 6 * MIB), "content arrives")
    push.terminate()
    receiver.await_silence()
    ledger.kill_receiver()
    receiver.restart()
    assert processes.push(source, receiver.address, "--resume").ends(0, "done")["resumed_bytes"] > 0
    receiver.await_silence()
    assert ledger.kept == SIZE
