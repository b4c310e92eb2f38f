"""What a push that has ended leaves for Prometheus: a file for node_exporter, or a group at a Pushgateway.

Imported only where that is asked for: with prometheus-client it takes longer than a small push.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import stat
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tdx.metrics import UNKNOWN

JOB: Final = "tdx-push"
PREFIX: Final = "tdx_push_"
SUCCESS: Final = PREFIX + "last_success_timestamp_seconds"
MOST: Final = 4 << 20
"""Bytes of an earlier file that are looked at."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
"""Characters that mean themselves in the path of a Pushgateway; a dot could be a step up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of ``task`` to ``peer`` ended, at ``completed`` (seconds since 1970). ``size`` is in bytes
    of the files that are at the peer now; ``files`` counts by outcome, ``sender`` and ``receiver`` have
    seconds by stage; ``interval``: seconds between runs that are meant to be."""

    task: str
    peer: str
    completed: float
    seconds: float
    exit_code: int
    size: int = 0
    sent: int = 0
    resumed: int = 0
    reused: int = 0
    retries: int = 0
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    sender: Mapping[str, float] = field(default_factory=dict[str, float])
    receiver: Mapping[str, float] = field(default_factory=dict[str, float])
    bottleneck: str | None = None
    interval: float | None = None


Samples = Mapping[tuple[str, ...], float]
"""Values by the labels that a family has besides task and peer."""


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    help: str
    samples: Callable[[Outcome], Samples]
    labels: tuple[str, ...] = ()


def _stages(outcome: Outcome) -> Samples:
    ends = {"sender": outcome.sender, "receiver": outcome.receiver}
    return {(end, stage): seconds for end, stages in ends.items() for stage, seconds in stages.items()}


FAMILIES: Final = (
    _Family(
        PREFIX + "last_completion_timestamp_seconds",
        "When the task last ended, well or not.",
        lambda it: {(): it.completed},
    ),
    _Family(
        SUCCESS, "When it last ended with exit code 0.", lambda it: {} if it.exit_code else {(): it.completed}
    ),
    _Family(PREFIX + "last_duration_seconds", "Seconds that the last run took.", lambda it: {(): it.seconds}),
    _Family(PREFIX + "last_exit_code", "Exit code of the last run.", lambda it: {(): it.exit_code}),
    _Family(
        PREFIX + "last_size_bytes",
        "Bytes of the files that are at the peer by the last run, or were there already.",
        lambda it: {(): it.size},
    ),
    _Family(
        PREFIX + "last_sent_bytes",
        "Bytes of content that the last run put on the wire.",
        lambda it: {(): it.sent},
    ),
    _Family(
        PREFIX + "last_resumed_bytes",
        "Bytes that the peer held of an earlier run.",
        lambda it: {(): it.resumed},
    ),
    _Family(
        PREFIX + "last_reused_bytes",
        "Bytes that the peer took from files that were replaced.",
        lambda it: {(): it.reused},
    ),
    _Family(
        PREFIX + "last_retries",
        "Connections of the last run that failed and were tried again.",
        lambda it: {(): it.retries},
    ),
    _Family(
        PREFIX + "last_files",
        "Files of the last run by how they ended.",
        lambda it: {(outcome,): count for outcome, count in it.files.items()},
        ("outcome",),
    ),
    _Family(
        PREFIX + "last_stage_seconds",
        "Seconds of the last run by end and stage.",
        _stages,
        ("end", "stage"),
    ),
    _Family(
        PREFIX + "last_bottleneck",
        "1 for what the last run waited for.",
        lambda it: {(it.bottleneck or UNKNOWN,): 1},
        ("bottleneck",),
    ),
    _Family(
        PREFIX + "interval_seconds",
        "Seconds between two runs as the task is meant to be run.",
        lambda it: {} if it.interval is None else {(): it.interval},
    ),
)

Kept = Mapping[str, Mapping[tuple[str, ...], float]]
"""Values of an earlier run by the name of the family and all its labels, in the family's order."""


class _Page(Collector):
    def __init__(self, outcomes: Sequence[Outcome], kept: Kept) -> None:
        self._outcomes = outcomes
        self._kept = kept

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            values = dict(self._kept.get(family.name, {}))
            for each in self._outcomes:
                for labels, value in family.samples(each).items():
                    values[each.task, each.peer, *labels] = value
            if values:
                metric = GaugeMetricFamily(family.name, family.help, labels=("task", "peer", *family.labels))
                for labels, value in sorted(values.items()):
                    metric.add_metric(labels, value)
                yield metric


def _page(outcomes: Sequence[Outcome], kept: Kept) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(outcomes, kept))
    return generate_latest(registry)


# --- a file for node_exporter --------------------------------------------------


def write_textfile(path: Path, outcomes: Sequence[Outcome], others: Collection[tuple[str, str]] = ()) -> None:
    """Replace the file by one that tells of ``outcomes``: whoever reads it finds the old or the new one
    whole. OSError where that fails; then the old one stays.

    Of what the old one has, this stays: when a task that failed now had succeeded last, and all of
    ``others``, which are tasks that share the file, each with its peer.
    """
    now = {(each.task, each.peer) for each in outcomes}
    failed = {(each.task, each.peer) for each in outcomes if each.exit_code}
    also = set(others) - now
    kept = {
        name: {
            labels: value
            for labels, value in values.items()
            if labels[:2] in also or (name == SUCCESS and labels[:2] in failed)
        }
        for name, values in _earlier(path).items()
    }
    page = _page(outcomes, kept)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor
            os.fchmod(descriptor, 0o644)  # node_exporter is another user
            file.write(page)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _earlier(path: Path) -> Kept:
    """What the file says now; lines that are none of ours, or rubbish, say nothing."""
    families = {family.name: ("task", "peer", *family.labels) for family in FAMILIES}
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for line in _text_of(path).split("\n"):
        if not line.startswith(PREFIX):
            continue
        try:
            samples = [each for metric in text_string_to_metric_families(line) for each in metric.samples]
        except Exception:  # noqa: S112  the parser raises whatever it stumbles over
            continue
        for each in samples:
            labels = families.get(each.name, ())
            if set(each.labels) == set(labels) and labels and math.isfinite(each.value):
                found.setdefault(each.name, {})[tuple(each.labels[label] for label in labels)] = each.value
    return found


def _text_of(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with path.open("rb") as file:
            return file.read(MOST).decode("utf-8", "replace")
    except OSError:
        return ""


# --- a Pushgateway ---------------------------------------------------------------


def _opener() -> urllib.request.OpenerDirector:
    """One that follows no redirect: what is sent may have a password, and a POST would become a GET."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def post(url: str, outcome: Outcome, timeout: float) -> None:
    """Have the Pushgateway at ``url`` replace what it has of this task and peer. What is not sent stays: when
    it last succeeded. OSError, with a message for people, where that fails; each step may take ``timeout``
    seconds."""
    base, credentials = _split(url)
    key = "/".join(_step(label, value) for label, value in (("task", outcome.task), ("peer", outcome.peer)))
    request = urllib.request.Request(  # noqa: S310  http or https: measuring.check_url
        f"{base}/metrics/job/{JOB}/{key}",
        data=_page([outcome], {}),
        headers={"Content-Type": CONTENT_TYPE},
        method="POST",
    )
    if credentials is not None:
        token = base64.b64encode(credentials.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with _opener().open(request, timeout=timeout):
            pass
    except HTTPError as error:
        with error:
            raise OSError(_refusal(error)) from None
    except URLError as error:
        reason = error.reason
        raise OSError(str(getattr(reason, "strerror", None) or reason)) from None
    except HTTPException as error:
        raise OSError(f"it does not answer as a Pushgateway does ({type(error).__name__})") from None


def _refusal(error: HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"it answers {error.code}, a redirect, which is not followed; give the address it leads to"
    with contextlib.suppress(OSError, HTTPException):
        if said := " ".join(error.read(300).decode("utf-8", "replace").split()):
            return f"it answers {error.code}: {said}"
    return f"it answers {error.code} {error.reason}"


def _split(url: str) -> tuple[str, str | None]:
    """The URL without who is calling, and that."""
    parts = urllib.parse.urlsplit(url)
    user, found, host = parts.netloc.rpartition("@")
    base = urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    return base, urllib.parse.unquote(user) if found else None


def _step(label: str, value: str) -> str:
    if value and PLAIN.issuperset(value):
        return f"{label}/{value}"
    return f"{label}@base64/{base64.urlsafe_b64encode(value.encode()).decode() or '='}"
