"""What ``tdx batch`` is to push: a TOML file of items, each with its sources and its peers.

A file looks like this; docs/batch.md explains every key::

    parallel = 2
    jitter = "15m"

    [defaults]
    peer = "nas"
    conflict = "overwrite"

    [[item]]
    name = "photos"
    sources = ["~/Pictures"]
    recursive = true
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from tdx.config.tables import Table, read
from tdx.errors import BadName
from tdx.model import Conflict, FileName, Links
from tdx.policy.bandwidth import RateSchedule
from tdx.policy.retry import RetryPolicy
from tdx.proto.names import check_name

KEYS: Final = (
    "name",
    "parallel",
    "jitter",
    "timeout",
    "metrics_textfile",
    "metrics_push",
    "defaults",
    "item",
)
DEFAULT_KEYS: Final = (
    "peer",
    "peers",
    "into",
    "conflict",
    "recursive",
    "optional",
    "resume",
    "limit_rate",
    "retries",
    "timeout",
    "stall_timeout",
    "digest",
    "streams",
    "whole",
    "links",
    "exclude",
    "include",
    "metrics_interval",
)
"""Of an item, those that may stand under ``[defaults]`` too."""

ITEM_KEYS: Final = ("name", "sources", "as", *DEFAULT_KEYS)

MOST_PARALLEL: Final = 64
DIGESTS: Final = ("sha-256", "sha-512")

_VARIABLE: Final = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})", re.ASCII)
_WILDCARD: Final = re.compile(r"([*?\[])")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One item. ``sources`` are absolute patterns (see :mod:`tdx_cli.globs`), in which ``~``, environment
    variables and the file's folder stand for themselves alone. ``into`` is a folder at the peers, ``called``
    the name of the only source there. ``optional``: no matter that nothing is there to push. Times are in
    seconds; they and ``limit_rate`` are for each peer. Of ``exclude`` and ``include`` the last that matches
    counts, all of the latter after the former. ``metrics_interval``: seconds between runs that are meant to
    be."""

    name: str
    sources: tuple[str, ...]
    peers: tuple[str, ...]
    conflict: Conflict
    into: FileName | None = None
    called: FileName | None = None
    recursive: bool = False
    optional: bool = False
    resume: bool = True
    limit_rate: RateSchedule | None = None
    retries: int = RetryPolicy().retries
    timeout: float | None = None
    stall_timeout: float = 60.0
    digest: str | None = None
    streams: int | None = None
    whole: bool = False
    links: Links = Links.SKIP
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    metrics_interval: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its file says. ``path`` is absolute; ``parallel`` is how many items are on their way at
    once; a run waits up to ``jitter`` seconds before it begins and ``timeout`` bounds what follows. How it
    ended is written to ``metrics_textfile`` and sent to the Pushgateway at ``metrics_push``."""

    path: Path
    name: str
    items: tuple[BatchItem, ...]
    parallel: int = 1
    jitter: float | None = None
    timeout: float | None = None
    metrics_textfile: Path | None = None
    metrics_push: str | None = None


class Said(TypedDict, total=False):
    """What a table says of an item, without what every item has for itself."""

    peers: tuple[str, ...]
    into: FileName
    conflict: Conflict
    recursive: bool
    optional: bool
    resume: bool
    limit_rate: RateSchedule
    retries: int
    timeout: float
    stall_timeout: float
    digest: str
    streams: int
    whole: bool
    links: Links
    exclude: tuple[str, ...]
    include: tuple[str, ...]
    metrics_interval: float


def load_batch(path: Path, env: Mapping[str, str]) -> Batch:
    """The batch that the TOML file at ``path`` describes, checked; ``env`` is what variables in sources
    stand for. ConfigError where it cannot be used."""
    path = path.absolute()
    table = read(path, KEYS, "batch")
    table.require("item")
    common = Said()
    if "defaults" in table:
        defaults = table.table("defaults")
        defaults.only(DEFAULT_KEYS)
        common = _said(defaults)
    items: list[BatchItem] = []
    for each in table.tables("item"):
        item = _item(each, common, env)
        if item.name in (other.name for other in items):
            raise each.wrong("name", "is that of an earlier item already")
        items.append(item)
    if not items:
        raise table.wrong("item", "is an empty list: there is nothing to push")
    return Batch(
        path=path,
        name=table.label("name") if "name" in table else path.stem,
        items=tuple(items),
        parallel=table.whole_number("parallel", 1, MOST_PARALLEL) if "parallel" in table else 1,
        jitter=table.duration("jitter") if "jitter" in table else None,
        timeout=table.duration("timeout") if "timeout" in table else None,
        metrics_textfile=table.location("metrics_textfile") if "metrics_textfile" in table else None,
        metrics_push=table.text("metrics_push") if "metrics_push" in table else None,
    )


def _item(table: Table, common: Said, env: Mapping[str, str]) -> BatchItem:
    table.only(ITEM_KEYS)
    table.require("name", "sources")
    name = table.label("name")
    said = common.copy()
    said.update(_said(table))
    if "peers" not in said:
        raise table.wrong("peer", "is missing: name one here or under [defaults], or several as peers")
    if "conflict" not in said:
        raise table.wrong(
            "conflict",
            f"is missing: a batch says what is done where a name is taken ({', '.join(Conflict)}), "
            "here or under [defaults]",
        )
    sources = table.texts("sources")
    if not sources:
        raise table.wrong("sources", "must list at least one path")
    called = _name(table, "as") if "as" in table else None
    if called is not None and len(sources) > 1:
        raise table.wrong("as", "names one source, and there are several; leave it out, or split the item")
    patterns = tuple(_pattern(table, text, env) for text in sources)
    return BatchItem(name=name, sources=patterns, called=called, **said)


def _said(table: Table) -> Said:
    said = _said_of_folders(table)
    if "peer" in table or "peers" in table:
        said["peers"] = _peers(table)
    if "into" in table:
        said["into"] = _name(table, "into")
    if "conflict" in table:
        said["conflict"] = Conflict(table.choice("conflict", tuple(Conflict)))
    if "recursive" in table:
        said["recursive"] = table.flag("recursive")
    if "optional" in table:
        said["optional"] = table.flag("optional")
    if "resume" in table:
        said["resume"] = table.flag("resume")
    if "limit_rate" in table:
        said["limit_rate"] = table.rate("limit_rate")
    if "retries" in table:
        said["retries"] = table.whole_number("retries", 0, 1000)
    if "timeout" in table:
        said["timeout"] = table.duration("timeout")
    if "stall_timeout" in table:
        said["stall_timeout"] = table.duration("stall_timeout")
    if "digest" in table:
        said["digest"] = table.choice("digest", DIGESTS)
    if "streams" in table:
        said["streams"] = table.whole_number("streams", 1, 64)
    if "metrics_interval" in table:
        said["metrics_interval"] = table.duration("metrics_interval")
    return said


def _said_of_folders(table: Table) -> Said:
    said = Said()
    if "whole" in table:
        said["whole"] = table.flag("whole")
    if "links" in table:
        said["links"] = Links(table.choice("links", tuple(Links)))
    if "exclude" in table:
        said["exclude"] = tuple(table.texts("exclude"))
    if "include" in table:
        said["include"] = tuple(table.texts("include"))
    return said


def _peers(table: Table) -> tuple[str, ...]:
    if "peers" not in table:
        return (table.label("peer"),)
    if "peer" in table:
        raise table.wrong("peer", "is one peer and peers are several: leave one of the two out")
    peers = tuple(table.texts("peers"))
    if not peers:
        raise table.wrong("peers", "must list at least one peer")
    return peers


def _name(table: Table, key: str) -> FileName:
    try:
        return check_name(table.text(key))
    except BadName as error:
        raise table.wrong(key, f"is not a name that a receiver stores: {error.message}") from None


def _pattern(table: Table, text: str, env: Mapping[str, str]) -> str:
    """The absolute pattern that ``text`` means in this file."""
    if "\0" in text:
        raise table.wrong("sources", f"lists what cannot be a path: {text!r}")
    head, slash, rest = text.partition("/")
    if head.startswith("~"):
        home = os.path.expanduser(head)  # noqa: PTH111  unlike pathlib's it says so by returning what it got
        if home == head:
            raise table.wrong("sources", f"names the home of an unknown user: {text!r}")
        return _escaped(home) + slash + _with_variables(table, rest, text, env)
    text = _with_variables(table, text, text, env)
    if text.startswith("/"):
        return text
    return _escaped(str(table.path.parent)).rstrip("/") + "/" + text


def _with_variables(table: Table, part: str, text: str, env: Mapping[str, str]) -> str:
    """``part`` of ``text`` with its variables in their places."""

    def value(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        name = found[2] or found[3]
        if not env.get(name):
            raise table.wrong("sources", f"has {text!r}, and the variable {name} is not set, or empty")
        return _escaped(env[name])

    return _VARIABLE.sub(value, part)


def _escaped(text: str) -> str:
    """A pattern for this text alone."""
    return _WILDCARD.sub(r"[\1]", text)
