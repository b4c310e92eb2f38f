"""The store's port: what control may ask of any store.

Everything here blocks and is called from worker threads. One conformance
suite (``tests/store/conformance.py``) runs on every implementation.

Life of an upload: *created* or *opened* (claimed by one holder), bytes written
and extents recorded in any order, *published* or *discarded*. Closing without
either keeps the partial for a later :meth:`Store.open`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tdx.errors import TdxError
from tdx.model import Conflict, FileName, Outcome, Owner, Receipt, Span, UploadId, UploadSpec
from tdx.proto.tree import Entry, Verdict
from tdx.ranges import RangeSet
from tdx.store.turn import Turn


@dataclass(frozen=True, slots=True)
class Existing:
    """A published file that already carries a name."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Partial:
    """One upload that is not published: a row of :meth:`Store.partials`."""

    upload: UploadId
    spec: UploadSpec
    touched_at: float
    """Seconds since the Unix epoch at which it last changed."""
    staged_bytes: int
    received: int = 0
    """Bytes that came over the network, of one that was removed; nobody counts them before."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one extent that were written, with the digest over exactly them.

    ``span`` starts on an extent boundary. It ends on the next one (or at the
    length) when the extent is whole, earlier when an append broke off. ``reused`` of its bytes were here
    already, in another file; the others have come over the network.
    """

    span: Span
    digest: bytes
    reused: int = 0


class Base(Protocol):
    """The published file that an upload is to replace, open: what it may be made from. It may change at any
    time. Closed by whoever opened it."""

    @property
    def size(self) -> int:
        """Bytes, as it was opened."""
        ...

    def read_at(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; the bytes read, fewer where it ends or cannot be read."""
        ...

    def close(self) -> None: ...


class Upload(Protocol):
    """One claimed upload. Methods may be called from several threads at once.

    One whose bytes lie in a file of this machine may also be a ``DescriptorSink``
    (``tdx.data.port``), structurally: whoever writes through its ``descriptor``, which is
    open until :meth:`close`, calls ``wrote`` after each write.

    Only the holder of the claim has one; a second :meth:`Store.open` of the
    same id raises :class:`tdx.errors.UploadBusy` until :meth:`close`.
    """

    @property
    def id(self) -> UploadId: ...

    @property
    def spec(self) -> UploadSpec: ...

    @property
    def epoch(self) -> int: ...

    @property
    def held(self) -> RangeSet:
        """A snapshot of the byte ranges that are vouched for: recorded pieces and holes."""
        ...

    @property
    def digests(self) -> Mapping[int, bytes]:
        """A snapshot: extent index → digest, for whole extents (zero extents of holes included)."""
        ...

    @property
    def tails(self) -> Mapping[int, Piece]:
        """A snapshot: extent index → the recorded beginning of an extent that is not whole."""
        ...

    @property
    def suspects(self) -> frozenset[int]:
        """Extents recorded under another boot: held, but to be read and hashed
        again (:meth:`recheck`) before publishing."""
        ...

    @property
    def received(self) -> int:
        """Bytes that are held and have come over the network: neither holes nor what was reused."""
        ...

    def tell_lost(self, lost: Callable[[int], None]) -> None:
        """From now on ``lost(n)`` is called, in any thread, when ``n`` bytes that have come over the network
        are no longer held; at once for those that were found to be lost when it was opened. What ends with
        the upload is not told."""
        ...

    @property
    def spoiled(self) -> bool:
        """True once a failed sync, or a receipt that could not be stored, has spoiled it: only
        opened anew does it go on (or turn out to be published)."""
        ...

    def raise_epoch(self) -> int:
        """Durably add one to the epoch; the new epoch."""
        ...

    def refresh(self, spec: UploadSpec) -> None:
        """Durably replace the parts of the spec that a new run of the same source may
        change: fingerprint, mtime_ns, mode, conflict, key, sparse."""
        ...

    def set_length(self, length: int) -> None:
        """Fix a length that was unknown; :class:`tdx.errors.ProtocolError` if bytes
        lie beyond it or another length is already fixed."""
        ...

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``. Short writes are continued; ENOSPC and
        EDQUOT raise :class:`tdx.errors.NoSpace`, other failures
        :class:`tdx.errors.StorageError`. Spreads writeback along the transfer."""
        ...

    def take(self, base: Base, span: Span, go_on: Callable[[], None]) -> None:
        """Put the bytes ``span`` of ``base``, which this store opened, at the same place, as far as it goes
        and can be read; holes are not filled. Nothing is held by that: what is there now must be read
        before it is recorded. Errors as :meth:`write_at`, and what ``go_on()`` raises, which is asked now
        and then."""
        ...

    def read_at(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; the bytes read (short at the end of the data)."""
        ...

    def record(self, piece: Piece) -> None:
        """Journal that ``piece`` has been written. A later piece of the same extent
        replaces an earlier one. Makes a durability mark when enough has gathered."""
        ...

    def invalidate(self, extents: Iterable[int]) -> None:
        """Durably forget these extents, before the first of their bytes is overwritten."""
        ...

    def recheck(self, extents: Iterable[int]) -> frozenset[int]:
        """Read and hash recorded extents again; those that differ are invalidated and
        returned, the others are no longer suspect."""
        ...

    def mark(self) -> None:
        """Make every recorded byte durable and say so in the journal. A failed sync is
        final: the extents since the last mark are invalidated, StorageError is raised, and
        so does every later call but :meth:`discard` and :meth:`close`; opened anew, the
        upload goes on from what is left."""
        ...

    def publish(self, *, root: str, verified: bool) -> Receipt:
        """Make the whole file durable under its final name, in the order of DESIGN
        section 6, and end the upload. The receipt is stored before this returns.

        Resolves the conflict mode: ``Outcome.SKIPPED`` where the mode is ``skip`` and the
        name is taken; :class:`tdx.errors.Exists` for ``error``. Requires a known length,
        every byte held and no suspects (:class:`tdx.errors.ProtocolError` otherwise).
        """
        ...

    def settle(self, outcome: Outcome, path: str, *, root: str, verified: bool) -> Receipt:
        """End the upload without publishing it, because ``path`` already is
        (``identical``) or is to stay as it is (``skipped``). ``verified`` as in the receipt."""
        ...

    def discard(self) -> int:
        """End the upload and remove every byte of it; how many of them had come over the network
        (:attr:`received`)."""
        ...

    def close(self) -> None:
        """Give up the claim, after a durability mark where one is due; idempotent.
        Never raises for a failed mark."""
        ...


@dataclass(slots=True)
class BundledFile:
    """A file of at most one extent that comes in a bundle; ``digest`` is its sender's, ``key`` as in
    :class:`tdx.model.UploadSpec`."""

    name: FileName
    size: int
    digest: bytes
    key: str
    mtime_ns: int | None = None
    mode: int | None = None


Admit = Callable[[UploadId, int], None]
"""Whether a file of so many bytes may be published, with a receipt of this id. NoSpace."""


class Bundle(Protocol):
    """Small files that are made durable and published together, each of them whole or not at all.

    For one thread at a time: for each file :meth:`begin`, any number of :meth:`write`, then
    :meth:`keep` or :meth:`drop`; :meth:`publish` at most once, and :meth:`close` in any case.
    Who makes many calls before :meth:`publish` had better make them in its ``turn``.
    """

    @property
    def turn(self) -> Turn: ...

    def begin(self, file: BundledFile) -> None:
        """The next file. NoSpace, StorageError."""
        ...

    def write(self, data: memoryview) -> None:
        """The next bytes of it, which nobody has verified yet. NoSpace, StorageError; what is left to do
        then is :meth:`drop`."""
        ...

    def keep(self) -> None:
        """It is whole, and its content has the digest that its sender told. StorageError as above."""
        ...

    def drop(self) -> None:
        """It shall not be published."""
        ...

    def publish(self, admit: Admit) -> list[Receipt | TdxError]:
        """Give every kept file its final name, durably; for each its receipt, which is stored, or why it
        could not be published. A file that is there already and is the same is ``identical``.
        ``admit`` is asked about every other one that is to be published, and may refuse it.

        A failure that is not one file's own is raised, and then nothing is acknowledged: a failed
        sync, which is final, or receipts that cannot be stored.
        """
        ...

    def close(self) -> None:
        """Remove what was not published; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of an entry of a tree, and where that is here."""

    verdict: Verdict
    path: str


GoOn = Callable[[], None]
"""Called between the steps of long work; raises what is to end it."""


class Store(Protocol):
    """A folder of published files and the uploads on their way to it."""

    def create(self, spec: UploadSpec) -> Upload:
        """Claim a new, empty upload with epoch 1. Space is checked before anything is
        made (:class:`tdx.errors.NoSpace`); with ``conflict=error`` a taken name raises
        :class:`tdx.errors.Exists`, unless by a file of this length, which may yet turn out
        to be identical."""
        ...

    def open(self, upload: UploadId) -> Upload:
        """Claim an upload that an earlier holder left. NotFound, UploadBusy."""
        ...

    def bundle(self, owner: Owner, conflict: Conflict, length: int | None) -> Bundle:
        """A new bundle of at most ``length`` bytes, or nobody knows how many. NoSpace, StorageError."""
        ...

    def find(self, owner: Owner, name: FileName, length: int | None, source_id: str | None) -> list[Partial]:
        """Partials of this owner, name, length and source, newest first, claimed or not.
        ``length=None`` matches any length; ``source_id=None`` matches only uploads
        without a source id."""
        ...

    def partials(self) -> list[Partial]: ...

    def existing(self, name: FileName) -> Existing | None:
        """The published file of this name, or None. NotFound is never raised; a name
        whose path is blocked by a file or a link raises :class:`tdx.errors.BadName`."""
        ...

    def look_alikes(self, owner: Owner, name: FileName, size: int) -> list[Existing]:
        """The published files of this size that may be what ``owner`` is about to push as
        ``name``: the one of that name, and those that earlier pushes of it were published as
        under a numbered name, newest first. Bounded by how long receipts are kept."""
        ...

    def existing_digests(self, name: FileName, extent_size: int) -> list[bytes] | None:
        """Read and hash the published file of this name; its extent digests in order. None
        where there is none, or it cannot be read: it is not known to be identical to anything."""
        ...

    def open_base(self, name: FileName) -> Base | None:
        """The published file of this name, for :meth:`Upload.take`. None where there is none, where it is
        empty, or where this store cannot do that. BadName as for :meth:`existing`; StorageError."""
        ...

    def make_durable(self, path: str) -> int:
        """Make the published file at ``path`` durable, with the directories it lies in, before it
        is acknowledged: whoever put it there may not have. Its size in bytes.
        :class:`tdx.errors.NotFound` where no file has this name, StorageError where it fails."""
        ...

    def take_entries(
        self, owner: Owner, conflict: Conflict, entries: Sequence[Entry], go_on: GoOn
    ) -> list[Told | TdxError]:
        """Make what needs no content of these entries of a tree (folders, symbolic links, attributes of files
        that are there), and say of each, in order, what there is to do still, or why it is refused.
        ``docs/http.md`` has the rules. Whether a file is the same is told by its root: as it was remembered,
        if stat tells that it has not changed since, or by reading it.

        Whatever is said to be the same or made is durable. A failed sync that is not one file's own
        is final, and raised: then nothing is acknowledged.
        """
        ...

    def receipt(self, upload: UploadId) -> Receipt | None: ...

    def receipt_by_key(self, owner: Owner, key: str) -> Receipt | None: ...

    def free_bytes(self) -> int:
        """What may still be stored: free space less the reserve and less what running
        uploads will still need."""
        ...

    def staged_bytes(self) -> int:
        """What uploads and bundles that are not finished take on the disk. StorageError."""
        ...

    def used(self, owner: Owner, apart: Collection[UploadId] = ()) -> int:
        """The bytes that count towards this owner's quota: the lengths of its partials but those
        ``apart``, holes included (while one is unknown, how far it has been written), and the sizes
        of the files that it was the last to publish under their paths and that are still there with
        that size, but those that came of uploads ``apart``. Looks at every file of this owner."""
        ...

    def is_present(self) -> bool:
        """Whether the folder is still there: one that was removed takes no more uploads."""
        ...

    def recover(self) -> list[Receipt]:
        """Finish intents whose inode already carries the final name; called once at
        start, before any upload is opened."""
        ...

    def expire(self, now: float, older_than: float | None = None) -> list[Partial]:
        """Remove partials idle longer than their own lifetime (or than ``older_than``
        seconds); what was removed. Never one that is claimed, by this process or another.
        Receipts older than their uploads' lifetime go too."""
        ...

    def close(self) -> None: ...
