"""What is there already: a tree of files pushed again unchanged, and a large file of which little changed."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from perf import cache
from perf.content import GIB, count_of, folder_of, random_file, same_content, scratch, size_of
from perf.contest import rotated
from perf.contestants.rsync import Rsync
from perf.contestants.tdx import Tdx
from perf.model import Contestant, Missing, Outcome, Run, Running, Series, Settings, Table
from perf.processes import cpu_seconds, timed
from perf.scenarios.small import mixed_sizes

PAGE: Final = 4096
CHANGED: Final = 100
"""One page in so many is another one in the next round."""

REPLACES: Final = ("--conflict", "overwrite")


def run(settings: Settings) -> Outcome:
    count, size = settings.sized(10_000), settings.sized(3 * GIB)
    everybody = (Tdx(flags=REPLACES), Rsync(delta=True))
    with scratch(settings.disk) as home:
        tree = folder_of(home / "tree", mixed_sizes(count), per_folder=20)
        unchanged = again("A tree, unchanged", everybody, tree, settings, lambda _: None)
        image = random_file(home / "image", size)
        pages = again("A large file, a page in a hundred changed", everybody, image, settings, scattered)
        region = again("A large file, one stretch of a hundredth changed", everybody, image, settings, in_one)
    notes = (
        (
            "Each pushed once, unmeasured; then, before every round, the source is changed as the title "
            "says, and everybody pushes it once more to where the earlier one lies, on a disk. The source is "
            "in the page cache."
        ),
        (
            "rsync tells what is unchanged by size and mtime alone and does not sync what it writes; tdx "
            "holds the roots of both ends against each other, and what it has is durable at its end."
        ),
    )
    return Outcome("again", "What is there already", notes, (unchanged, pages, region))


def scattered(path: Path) -> None:
    """Other bytes in a hundredth of the file's pages, anywhere."""
    pages = path.stat().st_size // PAGE
    _overwrite(path, [(page * PAGE, PAGE) for page in random.sample(range(pages), max(1, pages // CHANGED))])


def in_one(path: Path) -> None:
    """Other bytes in one stretch of a hundredth of the file."""
    size = path.stat().st_size
    length = max(1, size // CHANGED)
    _overwrite(path, [(random.randrange(size - length + 1), length)])


def _overwrite(path: Path, stretches: Sequence[tuple[int, int]]) -> None:
    then = path.stat().st_mtime + 1  # a change that shows, of a file that is not being written to
    with path.open("r+b", buffering=0) as file:
        for start, length in stretches:
            os.pwrite(file.fileno(), os.urandom(length), start)
    os.utime(path, (then, then))


def again(
    title: str,
    contestants: Sequence[Contestant],
    source: Path,
    settings: Settings,
    change: Callable[[Path], None],
) -> Table:
    """Time whole processes that push ``source`` to where its copy lies, ``change`` being made before each
    round. RuntimeError where what is there afterwards differs from it."""
    ready: list[tuple[Contestant, Running, list[Run]]] = []
    series: list[Series] = []
    with scratch(settings.disk) as homes, scratch(settings.disk) as targets, contextlib.ExitStack() as stack:
        for number, each in enumerate(contestants):
            home, target = homes / str(number), targets / str(number)
            home.mkdir(mode=0o700)
            target.mkdir()
            try:
                ready.append((each, stack.enter_context(each.running(home, target)), []))
            except Missing as missing:
                print(f"  without {each.name}: {missing}", file=sys.stderr)
                series.append(Series(each.name, each.does, (), str(missing)))
        for _, running, _ in ready:
            timed(running.command(source))
        for turn in range(settings.rounds):
            change(source)
            cache.read_once(source)
            for each, running, runs in rotated(ready, turn):
                cache.settle()
                used = cpu_seconds(running.servers)
                done = timed(running.command(source))
                runs.append(Run(done.seconds, done.cpu, cpu_seconds(running.servers) - used))
                if not same_content(source, running.arrived(source)):
                    raise RuntimeError(f"{each.name}: what is there differs from {source}")
        series = [*(Series(each.name, each.does, tuple(runs)) for each, _, runs in ready), *series]
        return Table(title, size_of(source), count_of(source), {}, tuple(series))
