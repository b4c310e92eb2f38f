"""What has to hold on the disk that a power cut has left, before and after the receiver is started again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from faults.power_traffic import Traffic, Version
from support.power import Machine
from support.processes import Processes, Receiver
from support.received import files_below
from tdx.integrity import digest_of
from tdx.model import UploadId, UploadSpec
from tdx.store import meta
from tdx.store.journal import Record, Session, State, replay


@dataclass(frozen=True)
class Aftermath:
    """Of one cut: the disk had got this far (``position``). What it was like is counted in ``tally``."""

    machine: Machine
    traffic: Traffic
    processes: Processes
    position: int
    tally: Counter[str]

    def look(self) -> None:
        """At the disk as it is, with no receiver."""
        self.tally["cuts"] += 1
        self._check_names()
        for partial in self._staged("uploads"):
            self._look_at(partial)
        self.tally["with a bundle"] += bool(self._staged("bundles"))

    def go_on(self) -> None:
        """Start the receiver and its senders again, to the end."""
        self.tally["of them gone on with"] += 1
        receiver = self.machine.boot(self.processes)
        self._check_names()
        for partial in self._staged("uploads"):
            self._check_held(receiver, partial)
        self._resume(receiver)
        assert receiver.published == self._everything(), receiver.process.log()
        for name, account in self.traffic.names.items():
            assert account.last.is_at(self.machine.folder / name), name
        receiver.stop()
        self.machine.collect_garbage(self.processes)
        assert self._staged("uploads") + self._staged("bundles") == []

    def _everything(self) -> list[str]:
        names = {Path(name) for name in self.traffic.names}
        folders = {folder for name in names for folder in name.parents if folder != Path()}
        return sorted(each.as_posix() for each in names | folders)

    # --- final names ----------------------------------------------------------------

    def _check_names(self) -> None:
        """What was acknowledged is there, and whatever is there is whole."""
        there = {
            path.relative_to(self.machine.folder).as_posix() for path in files_below(self.machine.folder)
        }
        assert there <= set(self.traffic.names)
        for name, account in self.traffic.names.items():
            allowed, must = account.allowed(self.position)
            if name in there:
                path = self.machine.folder / name
                assert any(version.is_at(path) for version in allowed), f"{name} is not whole"
            else:
                assert not must, f"{name} was acknowledged and is not there"
            self.tally["acknowledged"] += must

    # --- partials -------------------------------------------------------------------

    def _staged(self, kind: str) -> list[Path]:
        folder = self.machine.folder / ".tdx" / kind
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _look_at(self, partial: Path) -> None:
        """The journal claims nothing beyond doubt that is not there; and what this cut has hit."""
        there = {path.name for path in partial.iterdir()}
        try:
            spec = meta.decode((partial / "meta").read_bytes())
            journal = (partial / "journal").read_bytes()
        except (FileNotFoundError, ValueError):
            self.tally["in the making or being removed"] += 1
            return
        if "data" not in there:
            self.tally["published and not finished"] += "intent" in there
            return
        self.tally["about to be published"] += "intent" in there
        self.tally["partials"] += 1
        state = State(spec.extent_size, spec.length, spec.holes)
        replay(journal, state, UploadId(partial.name))
        data = (partial / "data").read_bytes()
        lost = _lost(state, data)
        assert lost <= state.recent(), f"{spec.name}: a mark covers extents that are not there"
        self.tally["journals with more than the mark covers"] += bool(state.recent())
        self.tally["of which something was lost"] += bool(lost)
        state.apply(Record.session(Session(b"the next boot's ", 1, 1)))
        assert not _lost(state, data), f"{spec.name}: the next boot would trust what is not there"
        self.tally["journals with a mark"] += bool(state.whole())

    def _check_held(self, receiver: Receiver, partial: Path) -> None:
        """What the receiver vouches for is what the source has there."""
        spec = meta.decode((partial / "meta").read_bytes())
        status, _, body = receiver.ask("GET", f"/uploads/{partial.name}")
        assert status == 200, body
        source = self._version_of(spec).source.read_bytes()
        data = (partial / "data").read_bytes()
        for start, end in json.loads(body)["held"]:
            assert data[start:end] == source[start:end], f"{spec.name}: {start}-{end} is held and is wrong"
            self.tally["held after the cut"] += 1

    def _version_of(self, spec: UploadSpec) -> Version:
        versions = self.traffic.names[spec.name].versions
        (version,) = [each for each in versions if spec.length in {None, each.size}]
        return version

    # --- going on -------------------------------------------------------------------

    def _resume(self, receiver: Receiver) -> None:
        """What the senders do that were not cut off, or come again."""
        push = self.processes.push(*self.traffic.tops, "-r", "--resume", receiver.address)
        push.ends(0)
        page = self.traffic.names["page"].last.source
        self.processes.push(page, "--resume", "--conflict", "overwrite", receiver.address).ends(0)
        for name, account in self.traffic.names.items():
            if account.last.mtime_ns is None and name not in receiver.published:
                _, fields, _ = receiver.ask("HEAD", f"/files/{name}")
                offset = fields.get("upload-offset", "0")
                going_on = ["-C", offset] if offset != "0" else []
                source = account.last.source
                put = self.processes.curl(*going_on, "-T", source, f"{receiver.url}/files/{name}")
                assert put.status == 201, put.log()


def _lost(state: State, data: bytes) -> set[int]:
    """The extents of which ``state`` claims what is not there."""
    entries = [state.entry(index) for index in {*state.whole(), *state.tails()}]
    pieces = [entry.piece for entry in entries if entry is not None]
    return {
        piece.span.start // state.extent_size
        for piece in pieces
        if len(data) < piece.span.end or digest_of(data[piece.span.start : piece.span.end]) != piece.digest
    }
