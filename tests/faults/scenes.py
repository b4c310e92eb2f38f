"""What is sent while everything fails, by whom, and what may be seen of it then and must be in the end."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from support.receiving import RunningReceiver, push, push_stream
from support.runs import Seen, items_of, push_many
from tdx.control.progress import PushResult
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.errors import Exists, TdxError
from tdx.model import Conflict, Outcome

EXTENT: Final = 4 << 20
SIZES: Final = (0, 1, 70_000, EXTENT, EXTENT + 1, 2 * EXTENT + 12345, 3 * EXTENT)
NAME: Final = "disk.img"
OLD: Final = b"what was there before"
BLOCK: Final = random.Random(0).randbytes(SIZES[-1] + 4096)
TRIES: Final = 8
"""How often a plain client asks again before it gives up."""


def unnumbered(path: str) -> str:
    """The name that a file was sent under which lies at ``path``, where its own was taken."""
    return re.sub(r" \(\d+\)(?=\.[^./]*$|$)", "", path)


class Scene(ABC):
    """One sender with something to send. ``run`` is called until it is told that all is there."""

    may_flip = True
    """Whether a byte that changes on its way is found: those of a head are under no digest."""

    def __init__(self, dice: random.Random, folder: Path, receiver: RunningReceiver) -> None:
        self.receiver = receiver
        self.told: list[str] = []
        """What went wrong in the newest run."""
        self.state = folder / "sender"
        self.conflict = dice.choice([*Conflict, Conflict.RENAME])
        turn = dice.randrange(4096)
        self.new = BLOCK[turn : turn + dice.choice(SIZES)]
        self.source = folder / NAME
        self.source.write_bytes(self.new)
        os.utime(self.source, (1_600_000_000, 1_600_000_000))
        self.old = dice.choice([None, OLD, self.new])
        if self.old is not None:
            (receiver.folder / NAME).write_bytes(self.old)

    def __str__(self) -> str:
        there = {None: "nothing", OLD: "another file", self.new: "the same"}[self.old]
        return f"{type(self).__name__} of {len(self.new)} bytes, {self.conflict}, {there} there before"

    @abstractmethod
    def run(self, peer: Peer, *, resume: bool) -> bool:
        """Send, against whatever happens; whether it was acknowledged. Only errors that have a name."""

    # --- what there may be ------------------------------------------------------

    @property
    def wanted(self) -> Mapping[str, bytes]:
        """What is sent, by name."""
        return {NAME: self.new}

    @property
    def there(self) -> bytes | None:
        """What lies under the name now."""
        return self.receiver.visible().get(NAME)

    @property
    def refused(self) -> bool:
        """Whether the file that is there now forbids it. One whose digests are not known beforehand cannot
        be found to be the same."""
        return self.conflict is Conflict.ERROR and self.there is not None

    def check(self, *, acknowledged: bool, unread: int) -> None:
        """Under final names there are whole files only, each once, and what was acknowledged is among them.

        ``unread`` times the receiver could not read what it had to compare with, and may have published
        the same under another number.
        """
        seen = self.receiver.visible()
        for path, content in seen.items():
            name = unnumbered(path)
            assert name in self.wanted, f"{path} was never sent"
            former = {self.old} if name == NAME else set()
            assert content in former | {self.wanted[name]}, f"{path} is neither the old file nor the new one"
        if self.old is not None and self.conflict is not Conflict.OVERWRITE:
            assert seen[NAME] == self.old, "the file that was there is gone"
        for name, content in self.wanted.items():
            found = [path for path in seen if unnumbered(path) == name and seen[path] == content]
            assert len(found) <= 1 + unread, f"{name} is there more than once: {found}"
            left_alone = name == NAME and self.conflict is Conflict.SKIP and self.old is not None
            if acknowledged and not left_alone:
                assert found, f"{name} was acknowledged and is not there"
                assert self.conflict is not Conflict.OVERWRITE or name in found


def _patient() -> SenderOptions:
    return SenderOptions(stall_timeout=1.5, retries=6)


class _TdxScene(Scene):
    def __init__(self, dice: random.Random, folder: Path, receiver: RunningReceiver) -> None:
        super().__init__(dice, folder, receiver)
        self.streams, self.pump = dice.choice([None, 1, 2, 3]), dice.choice([None, "buffered"])

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.streams} streams, pump {self.pump}"


class _OneFile(_TdxScene):
    """One file in one run."""

    @abstractmethod
    def push(self, peer: Peer, *, resume: bool) -> PushResult: ...

    def run(self, peer: Peer, *, resume: bool) -> bool:
        refused = self.refused
        try:
            result = self.push(peer, resume=resume)
        except Exists:
            # What cannot be read is not known to be the same.
            assert self.conflict is Conflict.ERROR
            assert self.there is not None
            return False
        except TdxError as error:
            self.told.append(repr(error))
            return False
        assert not refused
        assert result.outcome is not Outcome.SKIPPED or self.conflict is Conflict.SKIP
        return True


class File(_OneFile):
    """``tdx push FILE --resume``."""

    def __init__(self, dice: random.Random, folder: Path, receiver: RunningReceiver) -> None:
        super().__init__(dice, folder, receiver)
        self.may_flip = len(self.new) > EXTENT

    @property
    def refused(self) -> bool:
        return super().refused and self.there != self.new

    def push(self, peer: Peer, *, resume: bool) -> PushResult:
        return push(
            peer,
            self.source,
            self.state,
            sender=_patient(),
            resume=resume,
            streams=self.streams,
            pump=self.pump,
            conflict=self.conflict,
        )


class Stream(_OneFile):
    """``... | tdx push - --name NAME``."""

    may_flip = False

    @property
    def refused(self) -> bool:
        return super().refused and (self.there != self.new or len(self.new) > EXTENT)

    def push(self, peer: Peer, *, resume: bool) -> PushResult:
        descriptor = os.open(self.source, os.O_RDONLY)
        try:
            return push_stream(
                peer, descriptor, self.state, sender=_patient(), name=NAME, conflict=self.conflict
            )
        finally:
            os.close(descriptor)


class Many(_TdxScene):
    """``tdx push FILE FILE ...``: small ones in bundles, others by themselves."""

    may_flip = False

    def __init__(self, dice: random.Random, folder: Path, receiver: RunningReceiver) -> None:
        super().__init__(dice, folder, receiver)
        self.files = {NAME: self.new}
        for number in range(dice.randint(1, 25)):
            size, at = int(dice.paretovariate(0.4)) % 100_000, dice.randrange(EXTENT)
            path = folder / "many" / f"d{number % 3}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(BLOCK[at : at + size])
            self.files[str(path.relative_to(folder / "many"))] = BLOCK[at : at + size]
        self.paths = [self.source, *sorted(path for path in (folder / "many").rglob("f*"))]

    @property
    def wanted(self) -> Mapping[str, bytes]:
        return self.files

    @property
    def refused(self) -> bool:
        return super().refused and self.there != self.new

    def run(self, peer: Peer, *, resume: bool) -> bool:
        folder = self.source.parent
        items = [*items_of([self.source]), *items_of(self.paths[1:], folder / "many")]
        seen = push_many(
            peer, items, self.state, sender=_patient(), resume=resume, seen=Seen(), conflict=self.conflict
        )
        assert len(seen.endings) == len(items), "some file had no end"
        for each in seen.endings.values():
            assert each.error is None or isinstance(each.error, TdxError), each.error
            if isinstance(each.error, Exists):
                # What cannot be read is not known to be the same.
                assert self.conflict is Conflict.ERROR
                assert each.item.name in self.receiver.visible()
        self.told += [f"{name}: {code}" for name, code in seen.errors().items()]
        return not seen.errors()


class _PlainScene(Scene):
    """A client that is not ours, on a connection of its own for every request."""

    may_flip = False

    def ask(
        self,
        peer: Peer,
        method: str,
        target: str,
        fields: Mapping[str, str],
        body: bytes = b"",
        *,
        chunked: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes] | None:
        """The answer; None where there is none, or one that is cut off."""
        connection = http.client.HTTPConnection(peer.host, peer.port, timeout=3.0)
        given = {"Tdx-Conflict": self.conflict.value, **fields}
        pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)] if chunked else body
        try:
            connection.request(method, target, pieces, given, encode_chunked=chunked)
            with connection.getresponse() as answer:
                found = {name.lower(): value for name, value in answer.getheaders()}
                content = answer.read()
            self.told.append(f"{method} {answer.status} {content[:200]!r}")
            return answer.status, found, content
        except (OSError, http.client.HTTPException) as error:
            self.told.append(f"{method} {error!r}")
            return None
        finally:
            connection.close()

    def ended(self, answer: tuple[int, Mapping[str, str], bytes] | None) -> bool:
        """Whether this answer acknowledges the file; what it says of it is true."""
        if answer is None or answer[0] not in {200, 201}:
            return False
        receipt = json.loads(answer[2])
        if receipt["outcome"] != Outcome.SKIPPED:
            assert (self.receiver.folder / receipt["path"]).read_bytes() == self.new
        return True

    def put_whole(self, peer: Peer) -> bool:
        given = {**self.digest, "Content-Length": str(len(self.new))}
        return self.ended(self.ask(peer, "PUT", f"/files/{NAME}", given, self.new))

    @property
    def digest(self) -> dict[str, str]:
        value = base64.b64encode(hashlib.sha256(self.new).digest()).decode()
        return {"Repr-Digest": f"sha-256=:{value}:"}


class Put(_PlainScene):
    """``curl -T FILE``."""

    def run(self, peer: Peer, *, resume: bool) -> bool:
        return self.put_whole(peer)


class Chunked(_PlainScene):
    """``... | curl -T -``."""

    def run(self, peer: Peer, *, resume: bool) -> bool:
        given = {**self.digest, "Transfer-Encoding": "chunked"}
        return self.ended(self.ask(peer, "PUT", f"/files/{NAME}", given, self.new, chunked=True))


class Partial(_PlainScene):
    """``curl -C OFFSET -T FILE``, until it is done."""

    def run(self, peer: Peer, *, resume: bool) -> bool:
        size = len(self.new)
        if not size:
            return self.put_whole(peer)
        for _ in range(TRIES):
            stood = self.ask(peer, "HEAD", f"/files/{NAME}", {})
            fits = stood is not None and stood[1].get("upload-length") == str(size)
            at = int(stood[1]["upload-offset"]) if stood is not None and fits else 0
            end = min(size, at + EXTENT + 4321)
            given = {"Content-Range": f"bytes {at}-{end - 1}/{size}", "Content-Length": str(end - at)}
            assert at < end, "curl would take its work for done"
            answer = self.ask(peer, "PUT", f"/files/{NAME}", {**self.digest, **given}, self.new[at:end])
            if self.ended(answer):
                return True
        return False


class Append(_PlainScene):
    """Any client of the draft for resumable uploads."""

    def __init__(self, dice: random.Random, folder: Path, receiver: RunningReceiver) -> None:
        super().__init__(dice, folder, receiver)
        self.location: str | None = None
        self.offset = 0

    @property
    def refused(self) -> bool:
        # One of the same length is compared when all has come.
        return super().refused and self.there != self.new and self.location is None

    def run(self, peer: Peer, *, resume: bool) -> bool:
        for _ in range(TRIES):
            if self.location is None:
                given = {"Upload-Complete": "?0", "Upload-Length": str(len(self.new))}
                answer = self.ask(peer, "POST", f"/files/{NAME}", given)
                if answer is not None and answer[0] == 200:
                    return self.ended(answer)
                if answer is None or answer[0] != 201:
                    continue
                self.location, self.offset = answer[1]["location"], 0
            if self._append(peer, self.location):
                self.location = None
                return True
        return False

    def _append(self, peer: Peer, location: str) -> bool:
        stood = self.ask(peer, "HEAD", location, {})
        if stood is None:
            return False
        if stood[0] != 204 or stood[1]["upload-complete"] == "?1":
            if stood[0] in {204, 404}:
                self.location = None  # it is lost, or it is there
            return stood[0] == 204
        at = int(stood[1]["upload-offset"])
        assert at >= self.offset, f"the offset has decreased from {self.offset} to {at}"
        self.offset, end = at, min(len(self.new), at + EXTENT + 4321)
        given = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": str(at),
            "Upload-Complete": "?1" if end == len(self.new) else "?0",
        }
        if end == len(self.new):
            given |= self.digest
        answer = self.ask(peer, "PATCH", location, given, self.new[at:end])
        return self.ended(answer)


SCENES: Final[tuple[type[Scene], ...]] = (File, Stream, Many, Put, Chunked, Partial, Append)
