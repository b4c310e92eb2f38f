"""P11: many transfers at once to one receiver, while somebody scrapes its metrics, and while nobody does."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from perf import targets
from perf.content import GIB, folder_of, scratch
from perf.contest import contest
from perf.contestants.tdx import DOES
from perf.model import Outcome, Running, Settings
from perf.scenarios.many import FILES, AtOnce
from perf.tables import time_ratios

SCRAPES: Final = 10
"""A second: a hundred times as many as Prometheus asks for by default, and more."""


class Scraper:
    """Scrapes from a thread of the suite's own, which does nothing else meanwhile."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/metrics"
        self._over = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._scrape, name="scraper")
        self._thread.start()

    def _scrape(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            with urllib.request.urlopen(self._url, timeout=30) as answer:
                answer.read()
            self.count += 1
            due = max(due + 1 / SCRAPES, time.monotonic())
            self._over.wait(due - time.monotonic())

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@dataclass(frozen=True)
class Scraped:
    """The pushes of :class:`AtOnce`, with a scraper while they run."""

    pushes: AtOnce

    @property
    def name(self) -> str:
        return f"{self.pushes.name}, scraped"

    @property
    def does(self) -> str:
        return f"{DOES}, {SCRAPES} scrapes a second"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[_ScrapedRunning]:
        with self.pushes.running(home, target) as running:
            scraped = _ScrapedRunning(running, running.receiver.metrics)
            try:
                yield scraped
            finally:
                scraped.stop()


@dataclass
class _ScrapedRunning:
    running: Running
    metrics: str
    scrapers: list[Scraper] = field(default_factory=list[Scraper])

    @property
    def servers(self) -> Sequence[int]:
        return self.running.servers

    def command(self, source: Path) -> Sequence[str]:
        self.stop()  # of an attempt that failed
        self.scrapers.append(Scraper(self.metrics))
        return self.running.command(source)

    def arrived(self, source: Path) -> Path:
        self.stop()
        return self.running.arrived(source)

    def stop(self) -> None:
        while self.scrapers:
            self.scrapers.pop().stop()


def run(settings: Settings) -> Outcome:
    total = settings.sized(3 * GIB)
    alone = AtOnce(FILES)
    scraped = Scraped(alone)
    with scratch(settings.disk) as home:
        parts = folder_of(home / "parts", [total // FILES] * FILES)
        table = contest("With and without a scraper", (alone, scraped), parts, settings)
    notes = (
        f"Page cache to tmpfs. {FILES} tdx push at once, each with a file of its own, to one tdx serve.",
        f"The scraper asks for the text format {SCRAPES} times a second, over a connection each.",
    )
    throughput = targets.P11.reached_by(time_ratios(table, alone.name, scraped.name))
    return Outcome("scraped", "What a scraper costs", notes, (table,), (throughput,))
