"""What every store decides alike, whatever it keeps its bytes in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from tdx.errors import Exists, NoSpace, ProtocolError, TooLarge
from tdx.integrity import MAX_EXTENTS, extent_count
from tdx.model import Conflict, FileName, Owner, UploadSpec
from tdx.proto.names import numbered
from tdx.store.journal import State, data_ranges
from tdx.store.port import Partial

OWNER_BITS: Final = 0o700
"""What the receiver's user may do in every folder of a tree: nothing more could be put into it otherwise."""

MOST_COPIES: Final = 8
"""Numbered names at which an earlier copy of a link is looked for."""


def created(spec: UploadSpec) -> UploadSpec:
    """The specification of a new upload. Nobody can vouch for holes of a file whose end is unknown.
    TooLarge for a length whose digests no commit can hold."""
    if spec.length is not None and extent_count(spec.length, spec.extent_size) > MAX_EXTENTS:
        raise TooLarge(f"{spec.name}: a file of {spec.length} bytes has more than {MAX_EXTENTS} extents")
    return replace(spec, holes=()) if spec.length is None else spec


def check_name(spec: UploadSpec, *, taken: bool, size: int | None) -> None:
    """Exists where an upload would only be refused at its end. ``size`` is that of the file that
    has the name, if a file has it: one of the same length may yet turn out to be identical."""
    if taken and spec.conflict is Conflict.ERROR and (size is None or size != spec.length):
        raise Exists(f"{spec.name}: this name is taken already", path=spec.name)


def refreshed(spec: UploadSpec, new: UploadSpec) -> UploadSpec:
    """``spec`` with the parts that a new run of the same source may change."""
    return replace(
        spec,
        fingerprint=new.fingerprint,
        mtime_ns=new.mtime_ns,
        mode=new.mode,
        conflict=new.conflict,
        key=new.key,
        sparse=new.sparse,
    )


def lengthened(spec: UploadSpec, state: State, length: int) -> UploadSpec:
    """``spec`` with a length that was unknown; ProtocolError where it cannot be."""
    if spec.length not in (None, length):
        raise ProtocolError(f"{spec.name}: the length is {spec.length}, not {length}")
    if any(span.end > length for span in state.held):
        raise ProtocolError(f"{spec.name}: more than {length} bytes are here already")
    return replace(spec, length=length)


def complete_length(spec: UploadSpec, state: State) -> int:
    """The length of an upload that may be published; ProtocolError where it may not."""
    if spec.length is None:
        raise ProtocolError(f"{spec.name}: the length is not known yet")
    missing = state.held.missing(spec.length).total()
    if missing:
        raise ProtocolError(f"{spec.name}: {missing} bytes are missing")
    suspects = state.suspects()
    if suspects:
        raise ProtocolError(f"{spec.name}: {len(suspects)} extents must be checked again first")
    return spec.length


def needed_bytes(spec: UploadSpec) -> int:
    """What a whole upload of this will take of the disk; 0 while the length is unknown."""
    return data_ranges(spec.length or 0, spec.extent_size, spec.holes).total()


def check_space(spec: UploadSpec, free: int) -> int:
    """What the upload needs of ``free`` bytes; NoSpace where it does not fit."""
    need = needed_bytes(spec)
    usable = max(free, 0)
    if need > usable or (spec.length is None and not usable):
        raise NoSpace(f"{spec.name}: needs {need} bytes, and {usable} may be used", needed=need, free=usable)
    return need


def matching(
    partials: Iterable[Partial], owner: Owner, name: FileName, length: int | None, source_id: str | None
) -> list[Partial]:
    """See :meth:`tdx.store.port.Store.find`."""
    found = [
        partial
        for partial in partials
        if (partial.spec.owner, partial.spec.name, partial.spec.source_id) == (owner, name, source_id)
        and length in (None, partial.spec.length)
    ]
    return sorted(found, key=lambda partial: partial.touched_at, reverse=True)


def is_idle(partial: Partial, now: float, older_than: float | None) -> bool:
    """Whether it has outlived its own lifetime, or ``older_than`` seconds."""
    return now - partial.touched_at > (partial.spec.expires_after if older_than is None else older_than)


def free_number(leaf: str, taken: Callable[[str], bool]) -> str:
    """``leaf`` with a number that is free. However many are taken, few are asked about."""
    high = 1
    while taken(numbered(leaf, high)):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if taken(numbered(leaf, middle)):
            low = middle
        else:
            high = middle
    return numbered(leaf, high)
