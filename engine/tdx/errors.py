"""The one error tree.

Every failure that a person, a script or the other end can meet is a class
here, and carries four stable facts: a ``code`` (the last part of the RFC 9457
problem ``type``), the HTTP ``status`` a receiver answers with, the
``exit_code`` (sysexits.h) a command ends with, and whether the failure is
``permanent``, that is, whether a run that meets it should give up at once.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

PROBLEM_PREFIX: Final = "urn:tdx:problem:"


class TdxError(Exception):
    """Root of the tree.

    ``message`` is one line for people: what happened, to which file or peer,
    and what to do next. ``details`` are extra members of the problem document;
    their values must be JSON-serialisable.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 74
    permanent: ClassVar[bool] = True

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def problem_type(self) -> str:
        return PROBLEM_PREFIX + self.code

    def problem(self) -> dict[str, object]:
        """The RFC 9457 document for this error."""
        return {
            "type": self.problem_type,
            "title": self.code.replace("-", " "),
            "status": self.status,
            "detail": self.message,
            **self.details,
        }


# --- the caller's own doing --------------------------------------------------


class UsageError(TdxError):
    """The command line makes no sense as given."""

    code, status, exit_code, permanent = "usage", 400, 64, True


class ConfigError(TdxError):
    """The configuration, or the folder it names, cannot be used."""

    code, status, exit_code, permanent = "config", 500, 78, True


class SourceError(TdxError):
    """The source is missing, unreadable, or not a regular file."""

    code, status, exit_code, permanent = "source", 400, 66, True


class SourceChanged(SourceError):
    """The source shrank, grew or changed while it was being sent."""

    code, status, exit_code, permanent = "source-changed", 400, 66, True


# --- reaching the peer -------------------------------------------------------


class UnknownPeer(TdxError):
    """The peer's name does not resolve."""

    code, status, exit_code, permanent = "unknown-peer", 404, 68, True


class Unreachable(TdxError):
    """The peer's address refuses, or there is no route to it."""

    code, status, exit_code, permanent = "unreachable", 503, 69, False


class ConnectionLost(TdxError):
    """The connection ended before the exchange did."""

    code, status, exit_code, permanent = "connection-lost", 400, 75, False


class SealBroken(ConnectionLost):
    """A part of a sealed body is not what was sealed."""

    code, status, exit_code, permanent = "seal-broken", 400, 75, False


class Stalled(TdxError):
    """No progress within the stall timeout."""

    code, status, exit_code, permanent = "stalled", 408, 75, False


class TimedOut(TdxError):
    """The whole run took longer than it was allowed to."""

    code, status, exit_code, permanent = "timeout", 408, 75, False


class Interrupted(TdxError):
    """Stopped on request; the partial is kept."""

    code, status, exit_code, permanent = "interrupted", 503, 75, False


class Busy(TdxError):
    """A limit is reached, or the service is shutting down; try again later."""

    code, status, exit_code, permanent = "busy", 503, 75, False


# --- malformed or misplaced messages -----------------------------------------


class ProtocolError(TdxError):
    """The other end sent something that is not the protocol."""

    code, status, exit_code, permanent = "protocol", 400, 76, True


class IllegalTransition(ProtocolError):
    """An event that the state's row of the transition table does not have."""

    code, status, exit_code, permanent = "illegal-transition", 409, 76, True


class HeadTooLarge(ProtocolError):
    """The request line and fields exceed what a head may hold."""

    code, status, exit_code, permanent = "head-too-large", 431, 76, True


class LengthRequired(ProtocolError):
    """The request needs a length that it does not tell."""

    code, status, exit_code, permanent = "length-required", 411, 76, True


class UnsupportedMedia(ProtocolError):
    """The body is in a content coding, which no receiver undoes (RFC 9110 section 15.5.16)."""

    code, status, exit_code, permanent = "unsupported-coding", 415, 76, True


class TooLarge(ProtocolError):
    """The body or the file is larger than the receiver takes."""

    code, status, exit_code, permanent = "too-large", 413, 73, True


class Overrun(ProtocolError):
    """More bytes than the length that was told before: the upload is given up."""

    code, status, exit_code, permanent = "overrun", 400, 76, True


class TlsFailed(ProtocolError):
    """What came is not TLS 1.3, or breaks its rules; who is not known is :class:`Forbidden`."""

    code, status, exit_code, permanent = "tls", 400, 76, True


class MethodNotAllowed(ProtocolError):
    """The resource, or this receiver, does not know the method."""

    code, status, exit_code, permanent = "method-not-allowed", 405, 76, True


class RangeNotSatisfiable(ProtocolError):
    """A range outside the file, or not on extent boundaries."""

    code, status, exit_code, permanent = "range-not-satisfiable", 416, 76, True


class NotFound(TdxError):
    """No such resource, or not this caller's."""

    code, status, exit_code, permanent = "not-found", 404, 76, True


# --- who may do what ---------------------------------------------------------


class Forbidden(TdxError):
    """Not vouched for, or the policy refuses; the message names the rule."""

    code, status, exit_code, permanent = "forbidden", 403, 77, True


class PairingFailed(Forbidden):
    """Another code, a used or expired one, or somebody in the middle; nothing was trusted."""

    code, status, exit_code, permanent = "pairing-failed", 403, 77, True


class IdentityUnavailable(TdxError):
    """The service that knows who is who (tailscaled, ``wg``) is absent, slow or talks garbage."""

    code, status, exit_code, permanent = "identity-unavailable", 503, 75, False


# --- the destination ---------------------------------------------------------


class BadName(TdxError):
    """A name that no receiver stores."""

    code, status, exit_code, permanent = "bad-name", 400, 73, True


class Exists(TdxError):
    """The final name is taken and the conflict mode is ``error``."""

    code, status, exit_code, permanent = "exists", 409, 73, True


class PreconditionFailed(TdxError):
    """``If-None-Match: *`` and the name is taken (RFC 9110 section 13.1.2)."""

    code, status, exit_code, permanent = "precondition-failed", 412, 73, True


class NoSpace(TdxError):
    """What would be stored exceeds what may be used."""

    code, status, exit_code, permanent = "no-space", 507, 73, True


class StorageError(TdxError):
    """The disk failed a read, a write or a sync."""

    code, status, exit_code, permanent = "storage", 500, 74, False


class StorageUnusable(StorageError):
    """What the receiver keeps on disk is gone or broken: it must be seen to and restarted."""

    code, status, exit_code, permanent = "storage-unusable", 500, 74, True


# --- the upload --------------------------------------------------------------


class OffsetMismatch(TdxError):
    """An append that does not start where the upload ends; ``offset`` is where it does, ``provided`` where
    the append would start."""

    code, status, exit_code, permanent = "offset-mismatch", 409, 76, False

    def __init__(self, message: str, *, offset: int, provided: int | None = None) -> None:
        super().__init__(message, offset=offset)
        self.offset = offset
        self.provided = provided


class Superseded(TdxError):
    """A newer run of the same push has taken the upload over."""

    code, status, exit_code, permanent = "superseded", 409, 75, True


class UploadBusy(TdxError):
    """Another writer holds the lease on these extents, or the commit is running."""

    code, status, exit_code, permanent = "upload-busy", 409, 75, False


class ExtentsDiffer(TdxError):
    """The commit's digests name extents the receiver lacks or has differently.

    ``extents`` are the indices to send again, ascending.
    """

    code, status, exit_code, permanent = "extents-differ", 409, 65, False

    def __init__(self, message: str, *, extents: list[int]) -> None:
        super().__init__(message, extents=extents)
        self.extents = extents


class VerificationFailed(TdxError):
    """The bytes still differ after every repair round; nothing was published."""

    code, status, exit_code, permanent = "verification-failed", 422, 65, True


class DigestMismatch(TdxError):
    """A Content-Digest or Repr-Digest does not fit the bytes (RFC 9530); nothing is kept."""

    code, status, exit_code, permanent = "digest-mismatch", 400, 65, True


def disk_failure(what: str, error: OSError, whose: str = "the receiver") -> TdxError:
    """The error of the tree for a call to the disk of ``whose`` that failed; ``what`` begins its message."""
    code = error.errno
    if code == errno.ENOSPC:
        return NoSpace(f"{what}: no space left on {whose}'s disk (or no inodes)")
    if code == errno.EDQUOT:
        return NoSpace(f"{what}: {whose}'s quota on its disk is used up")
    if code == errno.EFBIG:
        return TooLarge(f"{what}: so large a file is not taken by {whose}'s filesystem, or its limits")
    if code == errno.EROFS:
        return StorageUnusable(f"{what}: {whose}'s filesystem is read-only; see what its log says of it")
    if code in (errno.EMFILE, errno.ENFILE):
        return Busy(f"{what}: {whose} has too many files open; try again later")
    return StorageError(f"{what}: {error.strerror or error}")


def leaves(root: type[TdxError] = TdxError) -> list[type[TdxError]]:
    """Every class of the tree, depth first, the root itself included."""
    found = [root]
    for child in root.__subclasses__():
        found.extend(leaves(child))
    return found


def by_code(code: str) -> type[TdxError] | None:
    """The class whose stable code this is; None for a code of a later version."""
    return next((cls for cls in leaves() if cls.code == code), None)
