"""``tdx batch --dry-run``: what would be pushed, without a word to any peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tdx.control.items import Folder, Found, Item, LeftOut, Link
from tdx.data.source import Source
from tdx.errors import TdxError
from tdx.model import shown
from tdx.policy.exits import worst
from tdx_cli.batch_plan import find, items_of
from tdx_cli.batch_report import say_table
from tdx_cli.batching import Job
from tdx_cli.report import Failure
from tdx_cli.text import say, say_json, size_of, warn

HEADING = ("ITEM", "PEER", "FILES", "BYTES", "CONFLICT")


class Preview:
    """Tells of jobs what a run of them would push now."""

    def __init__(self, name: str, *, as_json: bool, quiet: bool) -> None:
        self._name = name
        self._as_json = as_json
        self._quiet = quiet
        self._rows: list[dict[str, object]] = []
        self._codes: set[int] = set()

    def run(self, jobs: Sequence[Job]) -> int:
        """Tell; the exit code that the sources would lead to, did every peer take everything."""
        for job in jobs:
            self._tell(job)
        code = worst(self._codes)
        if self._as_json:
            say_json({"event": "plan", "batch": self._name, "items": self._rows, "exit_code": code})
        elif not self._quiet:
            rows = [
                (
                    shown(str(row["item"])),
                    shown(str(row["peer"])),
                    str(row["files"]),
                    size_of(float(str(row["bytes"]))),
                    str(row["conflict"]),
                )
                for row in self._rows
            ]
            say_table(HEADING, rows, [None] * len(rows))
        return code

    def _tell(self, job: Job) -> None:
        name = job.item.name
        files = size = folders = links = 0
        codes: set[int] = set()
        for each in _items(job):
            if isinstance(each, LeftOut):
                if not self._quiet:
                    warn(f"{name}: {shown(each.path)} {each.reason}; left out")
                continue
            if not isinstance(each, Item):
                folders += isinstance(each, Folder)
                links += isinstance(each, Link)
                continue
            error = each.error or _unreadable(each)
            if error is not None:
                codes.add(error.exit_code)
                warn(f"{name}: {error.message}")
            else:
                files += 1
                size += each.size or 0
            self._tell_item(job, each, error)
        self._codes |= codes
        for peer in job.parts:
            row = {"item": name, "peer": peer, "conflict": job.item.conflict.value}
            counts = {"files": files, "folders": folders, "links": links, "bytes": size}
            self._rows.append({**row, **counts, "exit_code": worst(codes)})

    def _tell_item(self, job: Job, item: Item, error: TdxError | None) -> None:
        if self._as_json:
            said = {"event": "planned", "name": item.name, "size": item.size, "source": item.path}
            failure = None if error is None else Failure.of(error).document()
            for peer in job.parts:
                say_json({**said, "error": failure, "item": job.item.name, "peer": peer})
        elif error is None and not self._quiet:
            peers = ", ".join(shown(peer) for peer in job.parts)
            say(f"{shown(item.path)} -> {shown(item.name)} at {peers}  {size_of(item.size or 0)}")


def _items(job: Job) -> Iterator[Found]:
    try:
        yield from items_of(job.item, find(job.item))
    except TdxError as error:
        yield Item(job.item.name, job.item.name, error=error)


def _unreadable(item: Item) -> TdxError | None:
    try:
        Source.open(item.path).close()
    except TdxError as error:
        return error
    return None
