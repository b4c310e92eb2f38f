"""One source to several peers: it is read from the disk once, and each peer's end is its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.batches import write_batch
from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver
from support.soak import Soak

SIZE = 128 * MIB
READ = re.compile(r"^read_bytes: (\d+)$", re.MULTILINE)

COUNTED = """
import sys
from pathlib import Path
from tdx_cli.main import run
code = run(sys.argv[1:])
sys.stderr.write(Path("/proc/self/io").read_text())
sys.exit(code)
"""


def forget(path: Path) -> None:
    """Have the kernel keep nothing of the file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_from_disk(processes: Processes, arguments: Sequence[str]) -> int:
    """Bytes that this run of tdx had read from disks (proc_pid_io(5))."""
    run = processes.run("counted", [sys.executable, "-c", COUNTED, *arguments])
    assert run.wait() == 0, run.log()
    found = READ.search(run.stderr)
    assert found is not None, run.log()
    return int(found[1])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file on a disk of which the kernel has nothing in memory, or the test is skipped."""
    path = random_file(tmp_path / "source.bin", SIZE)
    forget(path)
    io = Path("/proc/self/io")
    before = READ.search(io.read_text()) if io.exists() else None
    path.read_bytes()
    after = READ.search(io.read_text()) if io.exists() else None
    if before is None or after is None or int(after[1]) - int(before[1]) < SIZE:
        pytest.skip("needs a temporary folder on a disk, and a kernel that counts what is read from it")
    forget(path)
    return path


def test_for_three_peers_the_source_is_read_from_the_disk_once(
    soak: Soak, processes: Processes, receiver: Receiver, area: Path, source: Path
) -> None:
    receivers = [receiver, *(processes.receiver(area / f"in{n}", area / f"state{n}") for n in (1, 2))]
    peers = [each.address for each in receivers]
    file = write_batch(area / "fan.toml", [{"sources": [str(source)]}], peers=peers, conflict="overwrite")
    read = read_from_disk(processes, ["batch", str(file), "-q"])
    soak.tell(f"{SIZE} bytes to 3 peers: {read} bytes read from the disk")
    # A little more: what the program itself is made of may have left the memory as well.
    assert read < SIZE * 3 // 2
    assert read >= SIZE
    for each in receivers:
        assert sha256_of(each.folder / source.name) == sha256_of(source)


def test_each_peer_ends_for_itself(processes: Processes, receiver: Receiver, area: Path) -> None:
    """One peer is killed midway, one is not there, and one gets everything."""
    (area / "source").mkdir()
    for number in range(4):
        random_file(area / "source" / f"f{number}", 8 * MIB)
    other = processes.receiver(area / "other", area / "other-state")
    file = write_batch(
        area / "fan.toml",
        [{"sources": ["source"], "recursive": True, "limit_rate": "40M", "retries": 1}],
        peers=[receiver.address, other.address, "no..such..peer"],
        conflict="overwrite",
    )
    run = processes.batch(file)
    other.await_staged(4 * MIB)
    other.kill()
    end = run.ends(68, "summary")
    codes = {part["peer"]: (part["outcome"], part["exit_code"]) for part in end["items"]}
    assert codes == {
        receiver.address: ("done", 0),
        other.address: ("failed", 75),
        "no..such..peer:8390": ("failed", 68),
    }
    assert receiver.published == ["source", *(f"source/f{number}" for number in range(4))]
