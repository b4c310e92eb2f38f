"""How an upload ends: its bytes held against what the sender says of them, then published."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Sequence

from tdx.control.messages import digests_differ
from tdx.control.session import Session
from tdx.control.stored import digest_stored
from tdx.errors import (
    Exists,
    ExtentsDiffer,
    OffsetMismatch,
    ProtocolError,
    Superseded,
    TooLarge,
    VerificationFailed,
)
from tdx.integrity import ALGORITHM, Root, extent_count
from tdx.metrics import Discard
from tdx.model import MAX_REPAIR_ROUNDS, Claim, Conflict, FileName, Outcome, Receipt, Span, Stages, UploadSpec
from tdx.proto.problem import INCONSISTENT_LENGTH
from tdx.proto.receiver import UploadEvent, UploadState
from tdx.store.port import Existing, Store


async def commit(
    session: Session, digests: Sequence[bytes], length: int, claims: Sequence[Claim], *, check_identical: bool
) -> Receipt:
    """Hold the sender's digests of extents against the recorded ones, and publish if all are equal.

    With ``check_identical`` the published file of this name is compared first. ``claims`` are
    held against what was stored, which is read again. Raises ExtentsDiffer with what is to be
    sent again, VerificationFailed after the last repair round, DigestMismatch for a claim. The
    caller holds the session's gate.
    """
    upload, size = session.upload, session.upload.spec.extent_size
    with _committing(session):
        await session.writers.cut_off(Superseded("the upload was committed while this body was on its way"))
        if upload.spec.length not in (None, length):
            raise ProtocolError(
                f"the upload has {upload.spec.length} bytes, the commit says {length}",
                type=INCONSISTENT_LENGTH,
            )
        if len(digests) != extent_count(length, size):
            raise ProtocolError(f"{len(digests)} digests for {extent_count(length, size)} extents")
        if upload.spec.length is None:
            await session.workers.on_disk(upload.set_length, length)
        root = str(Root.over(digests, length, size))
        if check_identical:
            if (receipt := await _settle_identical(session, digests, root, verified=True)) is not None:
                return receipt
            if upload.spec.conflict is Conflict.ERROR:
                raise Exists(f"{upload.spec.name} exists and differs")
            session.compared = True
        await _recheck(session)
        await _compare(session, digests)
        await _verify(session, digests, (*upload.spec.claims, *claims))
        async with session.publishing:
            # Another run of the same push may have published since this one was opened.
            if not session.compared and (
                receipt := await _settle_identical(session, digests, root, verified=True)
            ):
                return receipt
            return await _publish(session, root, verified=True)


async def finish(session: Session, claims: Sequence[Claim], limit: int) -> Receipt:
    """Publish what came in order, without digests of extents (plain HTTP clients).

    Raises DigestMismatch where the content does not have a digest that is claimed, now or when the
    upload was created, TooLarge beyond
    ``limit`` bytes, OffsetMismatch where stored bytes turn out to be lost. The caller holds
    the session's gate.
    """
    upload, size = session.upload, session.upload.spec.extent_size
    with _committing(session):
        await session.writers.cut_off(Superseded("the upload was completed while this body was on its way"))
        if upload.spec.length is None:
            if session.offset > limit:
                raise TooLarge(f"a file of {session.offset} bytes where at most {limit} are taken")
            await session.workers.on_disk(upload.set_length, session.offset)
        if await _recheck(session):
            raise OffsetMismatch("stored bytes turned out to be lost", offset=session.offset)
        length = upload.spec.length
        if length is None or upload.held.missing(length):
            raise ProtocolError(
                f"the upload ends at {session.offset}, its length is {length}", type=INCONSISTENT_LENGTH
            )
        recorded = upload.digests
        digests = [recorded[index] for index in range(extent_count(length, size))]
        claims = (*upload.spec.claims, *claims)
        await _verify(session, digests, claims)
        root, verified = str(Root.over(digests, length, size)), bool(claims)
        async with session.publishing:
            if (receipt := await _settle_identical(session, digests, root, verified=verified)) is not None:
                return receipt
            return await _publish(session, root, verified=verified)


@contextlib.contextmanager
def _committing(session: Session) -> Generator[None]:
    """No body starts in here; what does not end the upload leaves it open again."""
    session.machine.handle(UploadEvent.COMMIT)
    try:
        yield
    except BaseException:
        if session.machine.state is UploadState.COMMITTING:
            session.machine.handle(UploadEvent.ABORT)
        raise


async def _settle_identical(
    session: Session, digests: Sequence[bytes], root: str, *, verified: bool
) -> Receipt | None:
    """End the upload as ``identical`` if the published file of its name has these digests, or
    one that an earlier push of it was numbered as."""
    path = await session.at_length(find_identical, session.store, session.upload.spec, list(digests))
    if path is None:
        return None
    received = session.upload.received
    receipt = await session.at_length(
        session.upload.settle, Outcome.IDENTICAL, path, root=root, verified=verified
    )
    session.metrics.discard(received, Discard.HELD)
    session.machine.handle(UploadEvent.PUBLISH)
    return receipt


def candidates(store: Store, spec: UploadSpec) -> list[Existing]:
    """The published files that may be what ``spec`` is about to bring. Blocks."""
    if spec.length is None:
        return []
    if spec.conflict is Conflict.RENAME:
        return store.look_alikes(spec.owner, spec.name, spec.length)
    existing = store.existing(spec.name)
    return [existing] if existing is not None and existing.size == spec.length else []


def find_identical(store: Store, spec: UploadSpec, digests: list[bytes]) -> str | None:
    """The path of a published file that has these extents' digests. Reads files; blocks."""
    for each in candidates(store, spec):
        if store.existing_digests(FileName(each.path), spec.extent_size) == digests:
            return each.path
    return None


async def _publish(session: Session, root: str, *, verified: bool) -> Receipt:
    started, received = time.perf_counter(), session.upload.received
    receipt = await session.at_length(session.upload.publish, root=root, verified=verified)
    if receipt.outcome is Outcome.PUBLISHED:
        session.metrics.published_bytes.add(receipt.size)
    else:
        session.metrics.discard(received, Discard.HELD)
    spent = Stages(sync=time.perf_counter() - started)
    session.brought.stages.add(spent)
    session.metrics.add_stages(spent)
    session.machine.handle(UploadEvent.PUBLISH)
    return receipt


async def _recheck(session: Session) -> frozenset[int]:
    """Read again what an earlier process may have lost; the extents that are."""
    await session.rechecked()
    suspects = session.upload.suspects
    return await session.at_length(session.upload.recheck, suspects) if suspects else frozenset()


async def _verify(session: Session, digests: Sequence[bytes], claims: Iterable[Claim]) -> None:
    for claim in dict.fromkeys(claims):
        found = await session.at_length(_content_digest, session, digests, claim.algorithm)
        if found != claim.digest:
            session.metrics.digest_failures.add(1)
            raise digests_differ(claim.algorithm, claim.digest)


async def _compare(session: Session, digests: Sequence[bytes]) -> None:
    upload, recorded = session.upload, session.upload.digests
    differing = [index for index, digest in enumerate(digests) if recorded.get(index) != digest]
    if not differing:
        return
    if wrong := [index for index in differing if index in recorded]:
        session.metrics.digest_failures.add(len(wrong))
        await session.workers.on_disk(upload.invalidate, wrong)
        if session.machine.handle(UploadEvent.DIFFER) is UploadState.FAILED:
            raise VerificationFailed(
                f"{upload.spec.name}: extents still differ after {MAX_REPAIR_ROUNDS} repairs; "
                "nothing was published"
            )
    raise ExtentsDiffer(f"{len(differing)} extents are missing or differ", extents=differing)


def _content_digest(session: Session, digests: Sequence[bytes], algorithm: str) -> bytes:
    """The digest of the whole stored content, read again unless an extent's own is that."""
    if algorithm == ALGORITHM and len(digests) == 1:
        return digests[0]
    length = session.upload.spec.length
    return digest_stored(session.upload, Span(0, length) if length else None, algorithm)
