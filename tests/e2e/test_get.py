"""Moving on what arrives, while it arrives, and while whoever moves it is killed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from support.content import MIB
from support.inboxes import ArrivedIn, files_in, leftovers_in
from support.processes import PROGRAM, Processes, Receiver, Running, wait_until
from support.soak import Soak

pytestmark = pytest.mark.timeout(300)


def get(processes: Processes, folder: Path, state: Path, dest: Path, *arguments: str) -> Running:
    command = [*PROGRAM, "get", "--dir", str(folder), "--state", str(state), "--to", str(dest), *arguments]
    return Running(processes, "get", command, env=processes.environment)


@pytest.fixture
def elsewhere(area: Path, tmp_path: Path) -> Path:
    """An empty folder on another filesystem than ``area``, where there are two."""
    folder = tmp_path / "dest"
    folder.mkdir()
    if folder.stat().st_dev == area.stat().st_dev:
        pytest.skip("there is one filesystem only")
    return folder


def _copies(process: Running, folder: Path) -> bool:
    return not process.running or bool(leftovers_in(folder))


def test_killed_at_any_moment_it_leaves_whole_files_and_loses_none(
    processes: Processes, area: Path, elsewhere: Path, soak: Soak
) -> None:
    arrived = ArrivedIn(area / "inbox", area / "state")
    content = {f"{number % 3}/{number}": os.urandom(3 * MIB + number) for number in range(24)}
    for path, data in content.items():
        arrived.arrive(path, data)
    kills = soak.rounds(12, 200)
    struck = 0
    for _ in range(kills):
        process = get(processes, arrived.folder, arrived.state, elsewhere, "-q")
        wait_until(partial(_copies, process, elsewhere), "it copies")
        time.sleep(soak.dice.random() * 0.03)
        struck += process.running
        process.kill()
        there, here = files_in(elsewhere), files_in(arrived.folder)
        for path, data in content.items():
            assert there.get(path, here.get(path)) == data, path
            assert here.get(path, data) == data
        assert set(there) <= set(content)
        if not here:
            for path, data in content.items():
                (elsewhere / path).unlink()
                arrived.arrive(path, data)
    assert struck >= kills // 2
    process = get(processes, arrived.folder, arrived.state, elsewhere, "-q")
    assert process.wait() == 0, process.log()
    assert files_in(elsewhere) == content
    assert files_in(arrived.folder) == {}
    assert leftovers_in(elsewhere) == []


@contextlib.contextmanager
def tidied(folder: Path, *names: str) -> Iterator[None]:
    """Somebody removes these folders all the time, whenever they are empty."""
    done = threading.Event()

    def tidy() -> None:
        while not done.is_set():
            for name in names:
                with contextlib.suppress(OSError):
                    os.rmdir(folder / name)

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_folders_that_are_removed_as_files_arrive_in_them_fail_no_upload(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    dest = area / "dest"
    dest.mkdir()
    state = area / "receiver-state"
    getting = get(processes, receiver.folder, state, dest, "--loop", "-q")
    count = 240

    def put(number: int) -> int:
        data = f"{number}".encode()
        return receiver.ask("PUT", f"/files/a/b/c/{number}", {"Content-Length": str(len(data))}, data)[0]

    with tidied(receiver.folder, "a/b/c", "a/b", "a"), ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(put, range(count)))
        expected = {f"a/b/c/{number}": f"{number}".encode() for number in range(count)}
        wait_until(lambda: files_in(dest) == expected, "all has been moved on")
    assert statuses == [201] * count
    assert getting.terminate() == 75, getting.log()
    assert receiver.published == []


def test_neither_does_it_fail_small_files_that_come_together(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = area / "tree"
    expected: dict[str, bytes] = {}
    for number in range(300):
        file = source / f"{number % 10}" / "deep" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"{number}".encode())
        expected[str(file.relative_to(area))] = file.read_bytes()
    dest = area / "dest"
    dest.mkdir()
    getting = get(processes, receiver.folder, area / "receiver-state", dest, "--loop", "-q")
    folders = [f"tree/{number}{deep}" for number in range(10) for deep in ("/deep", "")]
    with tidied(receiver.folder, *folders, "tree"):
        push = processes.push(source, receiver.address, "-r", "--retries", "0")
        assert push.wait() == 0, push.log()
        wait_until(lambda: files_in(dest) == expected, "all has been moved on")
    assert getting.terminate() == 75, getting.log()
    assert receiver.published == []
