"""What every scenario uses: processes timed from outside, a receiver, honest page-cache state."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MIB = 1 << 20
GIB = 1 << 30
TDX = (sys.executable, "-m", "tdx_cli")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""As a user has it: without compiled modules every start would compile tdx anew."""


@dataclass(frozen=True)
class Run:
    """One whole process, exec to exit. ``cpu`` is user plus system seconds, children included."""

    seconds: float
    cpu: float
    status: int
    output: str


def timed(command: Sequence[str]) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    output = process.stdout.read()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}: {errors.strip()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, process.returncode, output)


def cpu_seconds(pid: int) -> float:
    """User plus system time of a running process (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process, 0 once it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@dataclass
class PeakPss:
    """Samples the sum of the PSS of some processes until it is stopped."""

    pids: list[int]
    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, sum(pss_bytes(pid) for pid in self.pids))


@dataclass
class Receiver:
    """A running ``tdx serve``."""

    pid: int
    address: str
    metrics: str

    def counter(self, name: str) -> float:
        """The sum of a metric's samples, as scraped now."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def receiver(folder: Path, state: Path) -> Iterator[Receiver]:
    command = [*TDX, "serve", "--dir", str(folder), "--state", str(state)]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    try:
        assert process.stdout is not None
        told: dict[str, str] = {}
        while len(told) < 2:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("tdx serve ended at once")
            word, _, address = line.strip().partition(" ")
            told[word] = address
        yield Receiver(process.pid, told["listening"], told["metrics"])
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def random_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 8 * MIB)))
    return path


def read_once(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass


def warm(folder: Path, size: int) -> None:
    """Write and unlink a file of ``size`` in ``folder``, so that the run that follows does
    not pay for pages that the virtual machine had given back to its host."""
    path = folder / "warm"
    block = bytes(8 * MIB)
    with path.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(block[: min(left, len(block))])
    path.unlink()


def same_content(a: Path, b: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(a), str(b)], check=False).returncode == 0


def spread(values: Sequence[float], unit: str = "") -> str:
    """median (min-max), the way every figure is quoted."""
    middle = statistics.median(values)
    return f"{middle:.3g}{unit} ({min(values):.3g}-{max(values):.3g})"


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder of our own below ``folder``, removed at the end."""
    place = folder / f"tdx-perf-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def machine() -> str:
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    kernel = os.uname().release.partition("-")[0]
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {kernel}, Python {sys.version.split()[0]}"
