"""Micro-benchmark of the pumps: pairs of them over loopback TCP against cp.

A sender and a receiver process move a file from the page cache into a tmpfs, both hashing
every byte; then `cp` copies the same file to the same place. Rounds are interleaved; before
every run a file of the same size is written there and unlinked, so that no contestant pays
for the first touch of fresh pages. Prints medians, ratios to cp of the same round, and CPU
seconds of both processes.

    python -m perf.pumps --size 1G --rounds 7
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tdx.data.body import IdentityBody
from tdx.data.port import Cancel, ReceiveHooks, SendHooks, Slot
from tdx.data.probe import choose_receive
from tdx.data.send import choose_send
from tdx.data.sockets import to_worker, unpaced
from tdx.integrity import Root, cut, extent_size_for
from tdx.model import Span

STALL = 60.0
CP = "cp"


class FileSink:
    """A bare file as a sink: the pumps' own cost, without a journal."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def write_at(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], offset + done)

    def read_at(self, view: memoryview, offset: int) -> int:
        return os.preadv(self.descriptor, [view], offset)

    def wrote(self, offset: int, length: int) -> None:
        pass


def ignore(_: int) -> None:
    pass


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def receive(pump: str, size: int, path: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    to_worker(sock)
    digests: list[bytes] = []
    hooks = ReceiveHooks(
        received=ignore,
        completed=lambda _, digest: digests.append(digest),
        broke_off=lambda span, _: sys.exit(f"the body broke off in {span}"),
        discarded=ignore,
    )
    cancel, sink, extent = Cancel(), FileSink(path), extent_size_for(size)
    body = IdentityBody(sock, b"", size, cancel, STALL)
    slots: Iterator[Slot] = (Slot(span) for span in cut(Span(0, size), extent))
    before = cpu_seconds()
    choose_receive(pump, sink, body).receive(body, sink, slots, hooks, cancel)
    sock.sendall(b".")
    report("receiver", str(Root.over(digests, size, extent)), cpu_seconds() - before, hooks.stages.as_dict())


def send(pump: str, size: int, path: str, port: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    extent = extent_size_for(size)
    digests: list[bytes] = []
    hooks = SendHooks(sent=ignore, hashed=lambda _, digest: digests.append(digest))
    before = cpu_seconds()
    started = time.perf_counter()
    sock = socket.socket()
    unpaced(sock)
    sock.connect(("127.0.0.1", port))
    to_worker(sock)
    extents = list(cut(Span(0, size), extent))
    choose_send(pump, descriptor).send(sock, descriptor, extents, hooks, Cancel(), STALL)
    sock.setblocking(True)
    while True:
        try:
            sock.recv(1)
            break
        except BlockingIOError:
            continue
    seconds = time.perf_counter() - started
    report(
        "sender",
        str(Root.over(digests, size, extent)),
        cpu_seconds() - before,
        hooks.stages.as_dict(),
        seconds,
    )


def report(role: str, root: str, cpu: float, stages: dict[str, float], seconds: float = 0.0) -> None:
    print(
        json.dumps({"role": role, "root": root, "cpu": cpu, "stages": stages, "seconds": seconds}), flush=True
    )


def warm(path: Path, size: int) -> None:
    """Leave the system with ``size`` bytes of memory that were touched lately."""
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
    path.unlink()


def run_pair(sending: str, receiving: str, size: int, source: Path, target: Path) -> dict[str, float]:
    own = [sys.executable, "-m", "perf.pumps", "--size", str(size)]
    receiver = subprocess.Popen(
        [*own, "--receive", receiving, "--path", str(target)], stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout is not None
    port = receiver.stdout.readline().strip()
    sender = subprocess.run(
        [*own, "--send", sending, "--path", str(source), "--port", port],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    there = json.loads(receiver.stdout.read())
    receiver.stdout.close()
    if receiver.wait():
        sys.exit("the receiver failed")
    here = json.loads(sender.stdout)
    if here["root"] != there["root"]:
        sys.exit(f"{sending}/{receiving}: roots differ")
    stages = {f"s.{k}": v for k, v in here["stages"].items() if v} | {
        f"r.{k}": v for k, v in there["stages"].items() if v
    }
    return {"seconds": here["seconds"], "cpu": here["cpu"] + there["cpu"], **stages}


def run_cp(source: Path, target: Path) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def benchmark(size: int, rounds: int, pairs: list[str], source_dir: str, target_dir: str) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in [CP, *pairs]}
    with (
        tempfile.TemporaryDirectory(dir=source_dir) as source_folder,
        tempfile.TemporaryDirectory(dir=target_dir) as target_folder,
    ):
        source, target = Path(source_folder) / "source", Path(target_folder) / "target"
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        for number, name in itertools.product(range(rounds), results):
            warm(target, size)
            with source.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
            if name == CP:
                result = run_cp(source, target)
            else:
                sending, _, receiving = name.partition("/")
                result = run_pair(sending, receiving, size, source, target)
            target.unlink()
            results[name].append(result)
            print(f"round {number + 1} {name:22} {result['seconds']:.3f} s", file=sys.stderr)
    print_table(results, size)


def print_table(results: dict[str, list[dict[str, float]]], size: int) -> None:
    baseline = [run["seconds"] for run in results[CP]]
    heads = f"{'median s':>8} {'p25':>6} {'best':>6} {'GB/s':>5} {'x cp':>5} {'CPU s':>6}"
    print(f"{'pair':22} {heads}  stages (median s)")
    for name, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        ratio = statistics.median(s / c for s, c in zip(seconds, baseline, strict=True))
        stages = " ".join(
            f"{key} {statistics.median(run.get(key, 0.0) for run in runs):.2f}"
            for key in runs[0]
            if key not in ("seconds", "cpu")
        )
        median = statistics.median(seconds)
        cpu = statistics.median(run["cpu"] for run in runs)
        figures = f"{median:8.3f} {quartile(seconds):6.3f} {min(seconds):6.3f} {size / median / 1e9:5.2f}"
        print(f"{name:22} {figures} {ratio:5.2f} {cpu:6.2f}  {stages}")


def quartile(values: list[float]) -> float:
    """The lower quartile: on a shared machine steadier than the median, and honester than the best."""
    return statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]


def parse_size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=["sendfile/buffered", "buffered/buffered", "sendfile/splice", "buffered/splice"],
        metavar="SEND/RECEIVE",
    )
    parser.add_argument("--source-dir", default=tempfile.gettempdir())
    parser.add_argument("--target-dir", default="/dev/shm")
    for hidden in ("--receive", "--send", "--path", "--port"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        receive(given.receive, given.size, given.path)
    elif given.send:
        send(given.send, given.size, given.path, int(given.port))
    else:
        benchmark(given.size, given.rounds, given.pairs, given.source_dir, given.target_dir)


if __name__ == "__main__":
    main()
