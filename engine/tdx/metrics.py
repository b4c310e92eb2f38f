"""What is counted, and nothing of how it leaves the process.

Series are updated from any thread; an update costs one uncontended lock. Exporters
pull with :meth:`Metrics.families`. Names, labels and units are those of DESIGN
section 10: base units, bounded labels, never a file name.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, product
from typing import Final, Protocol

from tdx.errors import Busy, Forbidden, IdentityUnavailable, NoSpace, PairingFailed, TlsFailed
from tdx.model import Outcome, Stages
from tdx.policy.bottleneck import NAMES

Labels = tuple[str, ...]

PROTOCOLS: Final = ("tdx", "http")
"""Who sends: tdx's own senders, and everybody else."""

RESULTS: Final = (*(each.value for each in Outcome), "failed", "cancelled", "superseded")
UNKNOWN: Final = "unknown"
"""What a transfer waited for that was too short to tell."""

STALLED_SECONDS: Final = 30
"""An active transfer that has brought no byte for so long has stalled."""

# fmt: off
DURATION_BUCKETS: Final = (
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 5400.0, 7200.0, 10800.0,
)
"""Seconds."""

THROUGHPUT_BUCKETS: Final = (
    1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10,
)
"""Bytes per second."""
# fmt: on


TURNED_AWAY: Final = (Forbidden, PairingFailed, IdentityUnavailable, TlsFailed, Busy, NoSpace)
"""Why peers are refused, and not only what they ask for."""


class Discard(StrEnum):
    """Why bytes of content that were received are not kept: the reasons of ``tdx_discarded_bytes_total``."""

    HELD = "held"
    """They were here already: in the upload, or as a file."""
    BROKEN_OFF = "broken_off"
    """Their body broke off, or was stopped, before what it brought was whole."""
    MISMATCH = "mismatch"
    """They lack the digest that their sender told."""
    REFUSED = "refused"
    """They came and could not be taken: too many, no space, no permission, a failing disk, no sense."""
    INVALIDATED = "invalidated"
    """They were held, and then found to be wrong or lost, or to be in the way of others."""
    ABANDONED = "abandoned"
    """They were held when their upload failed, expired, was cancelled, or was replaced by a newer run."""


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; ``labels`` are in the order of the family's label names."""

    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram's state: ``buckets`` are (upper bound, cumulative count), the last bound infinite."""

    buckets: tuple[tuple[float, int], ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Family:
    """One series as it was at one moment. ``distribution`` is set for histograms only,
    which have no ``samples``."""

    name: str
    help: str
    kind: Kind
    labels: Labels
    samples: tuple[Sample, ...] = ()
    distribution: Distribution | None = None


class Series(Protocol):
    def family(self) -> Family: ...


class _Values:
    """Label values → number, one lock for all of a series."""

    def __init__(self, name: str, help: str, labels: Labels) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self._lock = threading.Lock()
        # What has no labels is there from the start, so that its rate is right from the first scrape.
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def _add(self, amount: float, labels: Labels) -> None:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, labels: Labels = ()) -> float:
        """The value under ``labels``; 0 where nothing has been counted."""
        with self._lock:
            return self._values.get(labels, 0)

    def _samples(self) -> tuple[Sample, ...]:
        with self._lock:
            return tuple(Sample(labels, value) for labels, value in sorted(self._values.items()))


class Counter(_Values):
    """A number that only grows. Its name ends in ``_total``."""

    def __init__(self, name: str, help: str, labels: Labels = (), known: Iterable[Labels] = ()) -> None:
        """``known``: label values that are there from the start, so that a rate sees the first of them."""
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends in _total: {name}")
        super().__init__(name, help, labels)
        for each in known:
            self.add(0, each)

    def add(self, amount: float = 1, labels: Labels = ()) -> None:
        """Add ``amount`` (not negative). Adding 0 makes a labelled series appear."""
        if amount < 0:
            raise ValueError(f"{self.name} cannot go down by {-amount}")
        self._add(amount, labels)

    def family(self) -> Family:
        return Family(self.name, self.help, Kind.COUNTER, self.labels, self._samples())


class Gauge(_Values):
    """A number that goes up and down, or one that is asked for at each scrape."""

    def __init__(self, name: str, help: str, labels: Labels = ()) -> None:
        super().__init__(name, help, labels)
        self._source: Callable[[], float] | None = None

    def add(self, amount: float = 1, labels: Labels = ()) -> None:
        self._add(amount, labels)

    def set(self, value: float, labels: Labels = ()) -> None:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
        with self._lock:
            self._values[labels] = value

    def follow(self, source: Callable[[], float]) -> None:
        """From now on the value is what ``source`` returns, asked in the exporter's thread.
        While it raises, the gauge has no sample."""
        if self.labels:
            raise ValueError(f"{self.name} has labels and cannot follow one value")
        self._source = source

    def family(self) -> Family:
        samples = self._samples()
        if self._source is not None:
            try:
                samples = (Sample((), self._source()),)
            except Exception:  # whatever the source is, the other series must still be scraped
                samples = ()
        return Family(self.name, self.help, Kind.GAUGE, self.labels, samples)


class Histogram:
    """How often a value fell into each bucket. ``buckets`` are ascending, inclusive upper bounds."""

    def __init__(self, name: str, help: str, buckets: tuple[float, ...]) -> None:
        if list(buckets) != sorted(set(buckets)):
            raise ValueError(f"the buckets of {name} do not ascend: {buckets}")
        self.name = name
        self.help = help
        self._bounds = (*buckets, float("inf"))
        self._lock = threading.Lock()
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        at = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[at] += 1
            self._sum += value

    def family(self) -> Family:
        with self._lock:
            counts, total = self._counts.copy(), self._sum
        buckets = tuple(zip(self._bounds, accumulate(counts), strict=True))
        return Family(self.name, self.help, Kind.HISTOGRAM, (), (), Distribution(buckets, total))


class Metrics:
    """Every series of one receiver or sender."""

    def __init__(self, version: str) -> None:
        self.build_info = Gauge("tdx_build_info", "The version that is running; always 1.", ("version",))
        self.build_info.set(1, (version,))
        self.requests = Counter(
            "tdx_http_requests_total", "HTTP requests answered.", ("method", "route", "code")
        )
        self.uploads = Counter(
            "tdx_uploads_total", "Uploads that ended.", ("protocol", "result"), product(PROTOCOLS, RESULTS)
        )
        self.uploads_active = Gauge("tdx_uploads_active", "Uploads that are open now.")
        self.connections_active = Gauge("tdx_connections_active", "Connections that are open now.")
        self.received_bytes = Counter(
            "tdx_received_bytes_total",
            "Bytes of file content received.",
            ("protocol",),
            ((each,) for each in PROTOCOLS),
        )
        self.sent_bytes = Counter("tdx_sent_bytes_total", "Bytes of file content sent.")
        self.discarded_bytes = Counter(
            "tdx_discarded_bytes_total",
            "Bytes of file content received and not kept.",
            ("reason",),
            ((each.value,) for each in Discard),
        )
        self.published_bytes = Counter("tdx_published_bytes_total", "Bytes of the files published.")
        self.resumes = Counter("tdx_resumes_total", "Uploads continued from a partial.")
        self.resumed_bytes = Counter(
            "tdx_resumed_bytes_total", "Bytes that were held already when an upload was continued."
        )
        self.reused_bytes = Counter(
            "tdx_reused_bytes_total", "Bytes of new files that were taken from the files they replace."
        )
        self.retries = Counter(
            "tdx_retries_total", "Times a request was tried again after a failure.", ("reason",)
        )
        self.digest_failures = Counter(
            "tdx_digest_failures_total",
            "Extents and whole files whose digest was not the expected one, and sealed bodies changed.",
        )
        self.refused = Counter(
            "tdx_refused_total",
            "Connections and requests refused.",
            ("reason",),
            ((error.code,) for error in TURNED_AWAY),
        )
        self.transfer_duration = Histogram(
            "tdx_transfer_duration_seconds", "Time from opening an upload to its end.", DURATION_BUCKETS
        )
        self.transfer_throughput = Histogram(
            "tdx_transfer_throughput_bytes_per_second",
            "Mean rate of finished transfers.",
            THROUGHPUT_BUCKETS,
        )
        self.stage_seconds = Counter(
            "tdx_stage_seconds_total",
            "Time spent in each stage of moving bytes.",
            ("stage",),
            ((each,) for each in Stages.__slots__),
        )
        self.bottleneck_seconds = Counter(
            "tdx_bottleneck_seconds_total",
            "Duration of the transfers that ended, by what they waited for.",
            ("bottleneck",),
            ((each,) for each in (*NAMES, UNKNOWN)),
        )
        self.transfers_active = Gauge(
            "tdx_transfers_active", "Uploads of which content arrives, or which are published, now."
        )
        self.transfers_stalled = Gauge(
            "tdx_transfers_stalled", f"Active transfers that bring no byte for {STALLED_SECONDS} seconds."
        )
        self.staging_bytes = Gauge("tdx_staging_bytes", "Bytes held for uploads that are not finished.")
        self.storage_free_bytes = Gauge("tdx_storage_free_bytes", "Bytes that may still be stored.")
        self.storage_reserve_bytes = Gauge(
            "tdx_storage_reserve_bytes", "Bytes of the filesystem that are to stay free."
        )
        self.disk_waiting = Gauge(
            "tdx_disk_waiting_seconds", "How long the oldest call to a disk that does not answer has waited."
        )
        self.hooks = Counter("tdx_hooks_total", "Programs run for received files.", ("result",))

    def add_stages(self, spent: Stages) -> None:
        """Add a pump's seconds to ``tdx_stage_seconds_total``."""
        for stage, seconds in spent.as_dict().items():
            self.stage_seconds.add(seconds, (stage,))

    def discard(self, n: int, reason: Discard) -> None:
        """``n`` bytes that were received are not kept."""
        self.discarded_bytes.add(n, (reason.value,))

    def waited_for(self, bottleneck: str | None, seconds: float) -> None:
        """A transfer that took ``seconds`` has ended; None where it was too short to tell what for."""
        self.bottleneck_seconds.add(seconds, (bottleneck or UNKNOWN,))

    def families(self) -> Iterator[Family]:
        """A snapshot of every series, each consistent in itself."""
        series: Series
        for series in vars(self).values():
            yield series.family()
