"""Words shared by every part: ids, spans, upload specifications, receipts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType

UploadId = NewType("UploadId", str)
"""32 lower-case hexadecimal digits from a CSPRNG: unguessable."""

Owner = NewType("Owner", str)
"""The stable key of an identity: ``local:UID``, ``tailscale:STABLEID``, ``wireguard:KEY``, ``tls:SPKI``."""

FileName = NewType("FileName", str)
"""A checked name: relative, ``/`` between components. Only :mod:`tdx.proto.names` makes one."""


RESERVE: Final = 64 << 20
"""Bytes of the receiver's filesystem that stay free, unless told otherwise."""

MAX_REPAIR_ROUNDS: Final = 3
"""How often a commit may be answered with extents to send again, in one run of a sender."""


def shown(name: str) -> str:
    """A name, or other text from elsewhere, fit for a line of output: nothing in it breaks the
    line or drives a terminal."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end, as the provider of that name vouches.

    ``owner`` is the stable key. ``user`` (empty where the provider knows no users),
    ``node``, ``tags`` and ``capabilities`` are for people and for the rules of the policy,
    never for ownership. ``own``: it acts for the same person as this process, as far as the
    provider can tell: the same uid, the same user of a tailnet with both ends untagged, a
    device that was paired, a WireGuard key that the configuration names.
    """

    owner: Owner
    provider: str
    user: str
    node: str
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    own: bool = False

    def __str__(self) -> str:
        who = f"{self.user} on {self.node}" if self.user else self.node
        tagged = f" ({', '.join(self.tags)})" if self.tags else ""
        return f"{shown(who)}{shown(tagged)} [{self.owner}]"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The half-open byte range ``[start, end)``; never empty or negative."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a span: [{self.start}, {self.end})")

    def __len__(self) -> int:
        return self.end - self.start


class Conflict(StrEnum):
    """What to do when the final name is taken."""

    RENAME = "rename"
    OVERWRITE = "overwrite"
    SKIP = "skip"
    ERROR = "error"


class Links(StrEnum):
    """What becomes of symbolic links in a folder."""

    SKIP = "skip"
    """They are left out."""
    FOLLOW = "follow"
    """What they lead to is pushed as if it were there."""
    PRESERVE = "preserve"
    """They are pushed as links, where they stay in the folder that is pushed."""


class Outcome(StrEnum):
    """How a push ended well."""

    PUBLISHED = "published"
    IDENTICAL = "identical"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Claim:
    """A digest of content that its sender told (RFC 9530), of an algorithm that can be verified here."""

    algorithm: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What the sender wants stored, fixed when the upload is created.

    ``length`` is None while unknown. ``source_id`` names the source file
    across changes (device and inode, opaque here), ``fingerprint`` one state of
    it; both are None for clients that send neither. ``holes`` are byte ranges
    known to be zero that will not be sent. ``key`` is the sender's own random
    id, by which a replayed request finds its receipt. ``expires_after`` is the
    idle lifetime in seconds. ``by_name`` says that no id was given out: a plain PUT,
    which its owner continues by name and length alone. ``claims`` are digests of the whole
    file that were told when the upload was created. ``sparse``: the source has holes, so that
    blocks of zeros are to take no room in the published file either.
    """

    owner: Owner
    name: FileName
    length: int | None
    extent_size: int
    conflict: Conflict = Conflict.RENAME
    source_id: str | None = None
    fingerprint: str | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    holes: tuple[Span, ...] = field(default=())
    key: str | None = None
    expires_after: float = 7 * 86400.0
    by_name: bool = False
    claims: tuple[Claim, ...] = ()
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receiver's record of a published file.

    ``path`` is the final name relative to DIR (it differs from ``name`` after
    a rename). ``root`` is the written form of :class:`tdx.integrity.Root`.
    ``verified`` says that digests of the sender's own were compared.
    ``published_at`` is in seconds since the Unix epoch.
    """

    upload: UploadId
    owner: Owner
    key: str | None
    name: FileName
    path: str
    size: int
    root: str
    verified: bool
    outcome: Outcome
    published_at: float


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage of moving bytes (the labels of ``tdx_stage_seconds_total``); ``limit``:
    waiting because of a rate limit."""

    read: float = 0.0
    hash: float = 0.0
    send: float = 0.0
    receive: float = 0.0
    write: float = 0.0
    sync: float = 0.0
    limit: float = 0.0

    def add(self, other: Stages) -> None:
        for stage in self.__slots__:
            setattr(self, stage, getattr(self, stage) + getattr(other, stage))

    def at_least(self, other: Stages) -> Stages:
        """Of each stage the greater figure."""
        return Stages(*(max(getattr(self, stage), getattr(other, stage)) for stage in self.__slots__))

    def times(self, factor: float) -> Stages:
        return Stages(*(getattr(self, stage) * factor for stage in self.__slots__))

    def took_time(self) -> dict[str, float]:
        """The stages that took time, to a microsecond."""
        return {stage: round(seconds, 6) for stage, seconds in self.as_dict().items() if seconds}

    def as_dict(self) -> dict[str, float]:
        return {stage: getattr(self, stage) for stage in self.__slots__}
