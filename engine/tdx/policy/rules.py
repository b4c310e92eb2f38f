"""Who may push what, and where to: rules that a person can read.

The first rule that matches decides. Two rules stand at the end of every policy:
``yourself`` allows whoever acts for the receiver's own user, and ``default`` refuses
everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tdx.errors import Forbidden
from tdx.model import Conflict, FileName, Identity, shown
from tdx.policy.admission import Limits
from tdx.proto.names import check_name

ALL_CONFLICTS: Final = frozenset(Conflict)

PROVIDERS: Final = ("local", "tailscale", "wireguard", "tls")
"""The names that identity providers go by, and owners begin with."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches an identity when everything that the rule names is true of it.

    ``user``, ``node``, ``tag`` and ``capability`` are compared as the provider gives them
    (``node`` without regard to case), ``key`` with the whole owner or with what follows its
    colon, ``provider`` with the provider's name. What is None matches anybody, but a rule
    names at least one. A rule that refuses (``allow`` False) grants nothing, so its other
    fields say nothing.

    ``into`` is a folder below the receiver's, ``conflict`` the modes that may be asked for,
    ``quota`` the most bytes of that identity's files there at a time (published and still
    there, or staged), ``max_file`` the largest file; None means no such bound.
    """

    name: str
    allow: bool = True
    user: str | None = None
    node: str | None = None
    tag: str | None = None
    key: str | None = None
    capability: str | None = None
    provider: str | None = None
    into: FileName | None = None
    conflict: frozenset[Conflict] = ALL_CONFLICTS
    quota: int | None = None
    max_file: int | None = None

    def mismatch(self, identity: Identity) -> str | None:
        """Why the rule does not match, in words; None where it does."""
        asked: list[tuple[str, str | None, tuple[str, ...]]] = [
            ("provider", self.provider, (identity.provider,)),
            ("user", self.user, (identity.user,)),
            ("node", self.node and self.node.lower(), (identity.node.lower(),)),
            ("tag", self.tag, identity.tags),
            ("key", self.key, (identity.owner, identity.owner.partition(":")[2])),
            ("capability", self.capability, identity.capabilities),
        ]
        for what, wanted, present in asked:
            if wanted is not None and wanted not in present:
                found = identity.owner if what == "key" else ", ".join(filter(None, present))
                nothing = "none" if what in ("tag", "capability") else "unknown"
                return f"{what} is {shown(found) or nothing}, not {wanted}"
        return None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the rule of that name lets an identity do; the fields are those of :class:`Rule`."""

    rule: str
    into: FileName | None = None
    conflict: frozenset[Conflict] = ALL_CONFLICTS
    quota: int | None = None
    max_file: int | None = None

    def place(self, name: FileName) -> FileName:
        """Where a file that is sent as ``name`` goes. BadName where the whole would be too long."""
        return name if self.into is None else check_name(f"{self.into}/{name}")

    def check_conflict(self, wish: Conflict) -> None:
        """Forbidden where ``wish`` is not among the modes granted."""
        if wish not in self.conflict:
            raise Forbidden(
                f"rule `{self.rule}` does not allow --conflict {wish}; "
                f"it allows {', '.join(sorted(self.conflict)) or 'none'}"
            )

    def check_begun(self, name: FileName, conflict: Conflict) -> None:
        """Forbidden where an upload to ``name``, placed by the rules of the time when it was begun,
        may not be published by this one."""
        self.check_conflict(conflict)
        if self.into is not None and not name.startswith(f"{self.into}/"):
            raise Forbidden(
                f"rule `{self.rule}` puts files into {self.into}/ by now, and this upload was begun "
                f"for {name}; run the push again"
            )


NOTHING_GRANTED: Final = Grant("", conflict=frozenset(), quota=0, max_file=0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says of an identity: ``decides`` where it is the one that counts."""

    rule: str
    decides: bool
    reason: str


YOURSELF: Final = "yourself"
DEFAULT: Final = "default"
IDENTIFIED: Final = "identified"
BUILT_IN: Final = frozenset({YOURSELF, DEFAULT, IDENTIFIED})
"""Names that no other rule may have."""

NOBODY: Final = (
    f"rule `{IDENTIFIED}`: nothing on the receiver's machine can say who is calling from that address; "
    "call over a network that it knows, or pair the two machines with `tdx pair`"
)


class Policy:
    """Rules in the order in which they were written, then the two that are always there."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)

    def decide(self, identity: Identity | None) -> Grant:
        """What ``identity`` may do. Forbidden names the rule that refuses and what would allow it."""
        if identity is None:
            raise Forbidden(NOBODY)
        for rule in self._rules:
            if rule.mismatch(identity) is None:
                if not rule.allow:
                    raise Forbidden(
                        f"rule `{rule.name}` refuses {identity}; {_where_to_change(identity, ' before it')}"
                    )
                return Grant(rule.name, rule.into, rule.conflict, rule.quota, rule.max_file)
        if identity.own:
            return Grant(YOURSELF)
        raise Forbidden(f"rule `{DEFAULT}`: no rule allows {identity}; {_where_to_change(identity)}")

    def allows(self, identity: Identity | None) -> bool:
        """Whether :meth:`decide` grants anything."""
        try:
            self.decide(identity)
        except Forbidden:
            return False
        return True

    def explain(self, identity: Identity) -> list[Verdict]:
        """Every rule that was looked at, in order; the last one decides."""
        verdicts: list[Verdict] = []
        for rule in self._rules:
            mismatch = rule.mismatch(identity)
            if mismatch is None:
                verdicts.append(Verdict(rule.name, True, "matches and " + _says(rule.allow)))
                return verdicts
            verdicts.append(Verdict(rule.name, False, mismatch))
        verdicts.append(
            Verdict(YOURSELF, True, _says(True))
            if identity.own
            else Verdict(YOURSELF, False, _not_yourself(identity))
        )
        if not identity.own:
            verdicts.append(Verdict(DEFAULT, True, _says(False)))
        return verdicts


def _says(allow: bool) -> str:
    return "allows" if allow else "refuses"


def _not_yourself(identity: Identity) -> str:
    if identity.provider == "local":
        return f"{shown(identity.user)} is not the user that the receiver runs as"
    if identity.tags:
        return "a tagged node belongs to no user"
    return "it does not act for the receiver's own user"


def _where_to_change(identity: Identity, place: str = "") -> str:
    """What the receiver's owner would write to let ``identity`` in."""
    field = f'tag = "{identity.tags[0]}"' if identity.tags else f'key = "{identity.owner}"'
    change = (
        f"the receiver's owner can add a [[rule]] with {shown(field)}{place} to its configuration, and "
        f"`tdx policy check {shown(identity.owner)}` there explains"
    )
    return (
        f"push as the user that the receiver runs as, or {change}" if identity.provider == "local" else change
    )


def largest_file(limits: Limits, grant: Grant, most: int) -> int:
    """Bytes of the largest file that this receiver takes under this grant, no more than ``most``."""
    return min(each for each in (limits.max_file, grant.max_file, most) if each is not None)
